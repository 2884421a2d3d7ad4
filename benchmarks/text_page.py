"""docs/text.md, from what ``text`` and ``wide`` have kept."""

from typing import Any

from benchmarks import machine, tables

HEAD = """# Texts and sparse tables

Words, hashed categories, genes: many columns, of which few rows have most. `TunedLogisticRegression`, `TunedRidge`
and the elastic nets take sparse rows as they are (CSR, CSC, sparse data frames, what a `ColumnTransformer` makes);
nothing is made dense.

```python
>>> import pandas as pd
>>> from bilevax.sklearn import TableEncoder, TunedLogisticRegression
>>> reviews = ["great fit", "poor fit", "great", "poor, torn"] * 10
>>> shop = pd.DataFrame({"age": [31, 52, 44, 28] * 10, "review": reviews})
>>> encoder = TableEncoder(words=["review"], pairs=["review"])
>>> model = TunedLogisticRegression(encoder=encoder, random_state=0).fit(shop, [1, 0, 1, 0] * 10)
>>> model.predict(pd.DataFrame({"age": [40], "review": ["great, great"]})).tolist()
[1]

```

`bilevax tune shop.csv --target liked --model linear --words review --characters review` does the same from the shell,
and so does `bilevax tune rows.svm --model linear` for a svmlight file. A matrix of your own, of several kinds of
columns, goes in with `fit(X, y, blocks=...)`.

## Penalties that are tied

Forty thousand free penalties would be forty thousand numbers to overfit with. Of sparse rows, and where columns
outnumber rows, the default `penalty_per="frequency"` ties them: `penalty_j = exp(a_block) frequency_j^b`. The
frequency of a column is the share of the rows in which it is not 0; every block (words, pairs of words, characters of
one column of texts, all other columns) has a level a, and the power b, which has a standard normal prior beside the
held-out log-likelihood, is shared. So 30,000 columns of three kinds have four numbers, whose hypergradients of the
cross-validated loss are exact, and which need no validation rows. Which form of tie, and that the power is shared,
was chosen on rows of Rotten Tomatoes and of the clothing reviews that no table below has, and on the training part of
R8: a power for each block, and one of the variance beside it, overfitted there; penalties for each class gained
nothing.

Columns are not centred: no intercept is penalised, so that the weights are those of centred columns, and sparse and
dense rows have the same model. Those that are 0 in most rows keep their unit, as columns of 0 and 1 do; divided by
its small standard deviation, what few rows have would hardly be penalised. The others are divided by theirs.
"""

MODELS = {
    "tuned": "tied penalties (bilevax)",
    "grid": "LogisticRegressionCV, by accuracy",
    "grid_by_loss": "LogisticRegressionCV, by log-loss",
    "svc": "LinearSVC",
    "ridge": "ridge, calibrated",
}


def write(text: dict[str, Any], wide: dict[str, Any]) -> None:
    """The page."""
    parts = [HEAD, *_texts(text), *_wide(wide)]
    (machine.ROOT / "docs" / "text.md").write_text("\n".join(parts).rstrip() + "\n")


def _texts(kept: dict[str, Any]) -> list[str]:
    if not kept:
        return []
    out = [
        f"## Measured on texts\n\n`python -m benchmarks text`, {_day(kept)}; every model has the same"
        " tf-idf matrix (words alone of the news; of the reviews pairs of words and characters, too). Differences are"
        " the tuned model's less that of the row, on the same test rows, ± their standard errors. Seconds are of CPU,"
        " encoding included, on a machine that was shared.\n"
    ]
    for row in kept["rows"]:
        rows = []
        for name, title in MODELS.items():
            own = row[name]
            cells = [_number(own["accuracy"]), *_differences(name, own, "accuracy"), _number(own.get("loss"))]
            rows.append([title, *cells, *_differences(name, own, "loss"), f"{own['seconds']:.0f}"])
        about = f"{row['rows']:,} x {row['columns']:,}, {row['classes']} classes, {row['test']:,} test rows"
        head = f"**{row['data'].replace('_', ' ')}** ({about}; peak {row['GB']:.1f} GB)\n"
        names = "model", "accuracy", "tuned less it", "log-loss", "tuned less it", "seconds"
        out.append(head + "\n" + tables.text(names, rows) + "\n")
    missing = {"newsgroups", "r52", "r8", "rotten_tomatoes", "clothing"} - {row["data"] for row in kept["rows"]}
    return [*out, f"Not measured yet: {', '.join(sorted(missing))}.\n"] if missing else out


def _wide(kept: dict[str, Any]) -> list[str]:
    if not kept:
        return []
    names = "data", "accuracy", "grid's", "difference", "log-loss", "grid's", "difference", "never worse by .005"
    rows = []
    for row in kept["summary"]:
        own = [row["data"]]
        for what in ("accuracy", "loss"):
            own += [_number(row[what]), _number(row[f"grid's {what}"]), _difference(row[f"{what} less the grid's"])]
        rows.append([*own, "yes" if row["met"] else "no"])
    return [
        f"## Many columns, few rows\n\n`python -m benchmarks wide`, {_day(kept)}: the mean of 20 splits,"
        " a quarter to test, beside LogisticRegressionCV of standardised columns, chosen by log-loss.\n",
        tables.text(names, rows) + "\n",
    ]


def _differences(name: str, own: dict[str, Any], what: str) -> list[str]:
    found = own.get(f"{what} of the tuned less it")
    return ["" if name == "tuned" or found is None else _difference(found)]


def _day(kept: dict[str, Any]) -> str:
    return str(kept["setting"]["date"])[:10]


def _difference(found: list[float]) -> str:
    return f"{found[0]:+.4f} ± {found[1]:.4f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
