"""docs/text.md, from what ``text`` and ``wide`` have kept."""

from typing import Any

from benchmarks import machine, tables

MODELS = {
    "tuned": "tied penalties (bilevax)",
    "grid": "LogisticRegressionCV, by accuracy",
    "grid_by_loss": "LogisticRegressionCV, by log-loss",
    "svc": "LinearSVC",
    "ridge": "ridge, calibrated",
}


def write(text: dict[str, Any], wide: dict[str, Any]) -> None:
    """The tables, between the marks of the page."""
    figures = "\n".join([*_texts(text), *_wide(wide)]).rstrip()
    tables.into(machine.ROOT / "docs" / "text.md", "text", f"{figures}\n")


def _texts(kept: dict[str, Any]) -> list[str]:
    if not kept:
        return []
    out = [
        f"`python -m benchmarks text`, {_day(kept)}; every model has the same"
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
        if turn := row.get("in turn"):
            beside = ", ".join(
                f"{MODELS[rival]} {_number(turn[rival])} ({_difference(turn[f'tuned less {rival}'])})"
                for rival in ("svc", "ridge")
            )
            deals = f", {turn['deals']} deals" if turn["deals"] > 1 else ""
            out.append(
                f"Of each fifth of the training rows, dealt at random, by models of the others (`--in-turn`{deals}):"
                f" accuracy {_number(turn['tuned'])}; {beside}.\n"
            )
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
