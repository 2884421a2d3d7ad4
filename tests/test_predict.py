"""``bilevax predict``: in pieces, with what is kept and scored; what a model has not seen is said, a line a column."""

import csv
import io
import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, sem
from sklearn.metrics import (
    accuracy_score,
    log_loss,
    mean_gamma_deviance,
    mean_poisson_deviance,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)

from bilevax.cli import main
from bilevax.core import files
from bilevax.core.errors import StorageError
from bilevax.core.record_lines import Records
from bilevax.core.run_records import Compared, Scoring
from bilevax.report import run as report_run
from bilevax.study import run_directory
from bilevax.tables import pieces
from bilevax.tables.additive import AdditiveModel, Source
from bilevax.tables.effects import Effect
from bilevax.tables.linear import LinearModel
from bilevax.tables.terms import OTHER, Term


def effect(name, edges, levels, bins):
    centre = (
        None if edges is None else np.array([edges[0] - 1.0, *((np.array(edges[1:]) + edges[:-1]) / 2), edges[-1] + 1])
    )
    edges = None if edges is None else np.array(edges, float)
    return Effect(name, edges, tuple(levels), np.zeros((bins, 0)), (), np.ones(bins), centre)


def additive(link="logit", classes=("no", "yes")):
    """x in bins below 0, from 0 to 10, from 10 on; c of a, b; truth; the year of a day."""
    sources = Source("x", "number"), Source("c", "text"), Source("t", "number"), Source("d", "date", "year")
    effects = (
        effect("x", [0, 10], (), 4),
        effect("c", None, ("a", "b"), 4),
        effect("t", [0.5], (), 3),
        effect("d (year)", [2021], (), 3),
    )
    curves = [-1, 0, 1, 0.5], [0.3, -0.3, 0, 0.1], [0, 0.2, 0], [-2.0, 2.0, 0.0]
    curves = tuple(np.array(curve, float)[:, None] for curve in curves)
    return AdditiveModel(link, classes, np.array([0.25]), sources, effects, curves, target="y", missing={"x": ("-",)})


def score(x, c, t, d):
    """Of a row, by the definition above."""
    of_x = 0.5 if x is None else -1 if x < 0 else 0 if x < 10 else 1
    of_c = {"a": 0.3, "b": -0.3, None: 0.1}.get(c, 0)
    of_d = 0 if d is None else -2 if d < "2021" else 2
    return 0.25 + of_x + of_c + (0.2 if t else 0) + of_d


def linear():
    terms = (
        Term("x", "number", "number", mean=5, scale=2, fill=5),
        Term("c", "category", value="a", mean=0.5, scale=1),
        Term("c", "category", value=OTHER, other=True, mean=0.5, scale=1),
    )
    return LinearModel("y", (3, 7), np.array([0.1]), np.array([[0.4, -0.2, 0.7]]), terms, (1.0, 1.0, 1.0))


ROWS = [
    ("007", "-5", "a", "true", "2020-05-05", "no"),
    ("=1+1", "5", "b", "false", "2024-01-01", "yes"),
    ("-3", "-", "", "true", "2021-01-01", "yes"),
    ("", "10", "z", "", "", ""),
]
NAMES = ("id", "x", "c", "t", "d", "y")


def wilson_half(p, n):
    found = binomtest(round(p * n), n).proportion_ci(0.95, "wilson")
    return (found.high - found.low) / 2


@pytest.fixture(name="predict")
def predictor(tmp_path, monkeypatch, capsys):
    """Applies a model to rows, in one of the formats; what was written, line by line, and what was said."""
    monkeypatch.chdir(tmp_path)
    # Small pieces.
    monkeypatch.setitem(pieces.open_pieces.__kwdefaults__, "block", 60)
    monkeypatch.setitem(pieces.open_pieces.__kwdefaults__, "rows", 2)

    def predict(model, rows, *words, names=NAMES, suffix=".csv", code=0, records=()):
        monkeypatch.setattr(run_directory, "read_model", lambda _: model)
        monkeypatch.setattr(report_run, "read_records_of", lambda _: Records(records))
        if suffix == ".parquet":
            frame = pd.DataFrame([[cell or None for cell in row] for row in rows], columns=names)
            frame.to_parquet("t.parquet")
        elif rows is not None:
            with open(f"t{suffix}", "w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([names, *rows])
        with pytest.raises(SystemExit) as ended:
            main(["predict", "run", f"t{suffix}", *words])
        out, err = capsys.readouterr()
        assert ended.value.code == code, err
        return list(csv.reader(out.splitlines())), err.splitlines()

    return predict


def cells(row):
    _, x, c, t, d, _ = row
    return None if x in ("-", "") else float(x), c or None, t == "true", d or None


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_probabilities_and_numbers_are_those_of_the_model_piece_by_piece(predict, suffix):
    rows = ROWS * 10
    written, _ = predict(additive(), rows, suffix=suffix)
    assert written[0] == ["prediction", "probability_no", "probability_yes"]
    expected = [1 / (1 + math.exp(-score(*cells(row)))) for row in rows]
    np.testing.assert_allclose([float(line[2]) for line in written[1:]], expected, rtol=1e-5)
    assert [line[0] for line in written[1:]] == ["yes" if p > 0.5 else "no" for p in expected]
    numbers, _ = predict(additive("identity", ()), rows, suffix=suffix)
    assert numbers[0] == ["prediction"]
    np.testing.assert_allclose([float(line[0]) for line in numbers[1:]], [score(*cells(r)) for r in rows], rtol=1e-9)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_that_are_kept_stand_first_as_they_are(predict, suffix):
    written, _ = predict(additive(), ROWS, "--keep", "id", "--keep", "d", suffix=suffix)
    assert written[0][:3] == ["id", "d", "prediction"]
    # A spreadsheet would take =1+1 for a formula, and not -3.
    assert [line[:2] for line in written[1:]] == [[r[0] if r[0] != "=1+1" else "'=1+1", r[4]] for r in ROWS]
    _, said = predict(additive(), ROWS, "--keep", "idd", code=4)
    assert "no column 'idd'; did you mean 'id'?" in said[-1]


def test_what_the_model_has_not_seen_is_said_in_one_line_a_column(predict):
    rows = [
        (k, x, c, "", "2024-01-01", "no") for k, x, c in zip(range(6), [5, 5, 900, -50, 20, 5], "abpqrs", strict=True)
    ]
    _, said = predict(additive(), rows)
    assert said == [
        "bilevax: not used by the model: id",
        "bilevax: column 't' is missing in every row",
        "bilevax: column 'x' is in 3 rows outside of the range trained on, about -1 to 11 (2 of them far: 900, -50); "
        "taken as the nearest",
        "bilevax: column 'c' has in 4 rows 4 values ('p', 'q', 'r', ...) that the model does not know",
    ]
    _, said = predict(linear(), [(1, 4, "b"), (2, 26, "a")], names=("id", "x", "c"))
    assert said[1:] == [
        "bilevax: column 'x' is in 1 row far outside of what was trained on, 5 +- 2 (26)",
        "bilevax: column 'c' has in 1 row 1 value ('b') that the model does not know",
    ]
    ids = [(k, 4, f"id{k}") for k in range(10_100)]
    (said,) = predict(linear(), ids, names=("i", "x", "c"))[1][1:]
    assert said.startswith(
        "bilevax: column 'c' has in all 10,100 rows more than 10,000 values ('id0', 'id1', 'id2', ...)"
    )
    assert predict(additive(), ROWS[1:2])[1] == ["bilevax: not used by the model: id"]


def test_what_differs_by_case_alone_is_suggested_and_what_is_lost_whole_comes_first(predict):
    rows = [(k, 24 if k else 99, c, "true", "2024-01-01", "no") for k, c in enumerate(["A", " b  b", "B", "z"])]
    _, said = predict(additive(), rows)
    assert said[1:] == [
        "bilevax: column 'x' is in all 4 rows far outside of the range trained on, about -1 to 11 (99, 24); taken as "
        "the nearest",
        "bilevax: column 'c' has in all 4 rows 4 values ('A', 'b b', 'B', ...) that the model does not know; did you "
        "mean 'a', 'b'?",
    ]
    rows = [(k, 12.9 if k else 13.1, c, "true", "2024-01-01", "no") for k, c in enumerate("XYZA")]
    _, said = predict(additive(), rows)
    assert said[1:] == [
        "bilevax: column 'c' has in all 4 rows 4 values ('X', 'Y', 'Z', ...) that the model does not know; did you "
        "mean 'a'?",
        "bilevax: column 'x' is in 1 row outside of the range trained on, about -1 to 11; taken as the nearest",
    ]


def test_a_column_that_the_model_needs_and_is_not_there(predict):
    names = ("id", "X1", "c", "t", "d", "y")
    _, said = predict(additive(), ROWS, names=names, code=4)
    assert said == ["bilevax: t.csv: no column 'x'; there are 'id', 'X1', 'c', 't', 'd', 'y'"]
    _, said = predict(additive(), ROWS, names=("id", "x", "c", "T", "d", "y"), code=4)
    assert said == ["bilevax: t.csv: no column 't'; did you mean 'T'?"]


def test_columns_that_are_named_otherwise_are_all_suggested(predict):
    _, said = predict(additive(), ROWS, names=("id", "x", "c", "T", "D", "y"), code=4)
    assert said == ["bilevax: t.csv: no columns 't', 'd'; did you mean 'T', 'D'?"]


def test_more_marks_can_be_given(predict):
    rows = [("1", "unk", "a", "true", "2020-05-05", "no"), ("2", "-", "n", "false", "2020-05-05", "no")]
    _, said = predict(additive(), rows, code=4)
    assert "t.csv:2: 'unk' in column 'x', which the model knows as numbers" in said[-1]
    # Those that the model has stay.
    written, _ = predict(additive(), rows, "--missing", "x=unk", "--missing", "c=n")
    empty, _ = predict(additive(), [(row[0], "", row[2].strip("n"), *row[3:]) for row in rows])
    assert written == empty
    _, said = predict(additive(), rows, "--missing", "xx=unk", code=4)
    assert "no column 'xx'" in said[-1]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_predictions_are_scored_where_the_target_is_there(predict, suffix):
    rows = [(*row[:5], y) for row, y in zip(ROWS * 5, ["no", "yes", "no", "", "yes"] * 4, strict=True)]
    known = [row for row in rows if row[5]]
    written, said = predict(additive(), rows, "--score", suffix=suffix)
    probability = [1 / (1 + math.exp(-score(*cells(row)))) for row in known]
    truth = [row[5] for row in known]
    loss, right = (
        log_loss(truth, probability),
        accuracy_score(truth, np.where(np.array(probability) > 0.5, "yes", "no")),
    )
    of_true = [p if y == "yes" else 1 - p for p, y in zip(probability, truth, strict=True)]
    half, wilson = 1.96 * sem(-np.log(of_true)), wilson_half(right, 16)
    assert said[-1] == (
        f"bilevax: scored on 16 rows, ± 95 %: log-loss {loss:.3f} ± {half:.3f}, accuracy {right:.3f} ± {wilson:.3f}; "
        "4 rows without a value of 'y'"
    )
    assert len(written) == 21
    odd = [*rows, ("9", "1", "a", "true", "2020-01-01", "maybe")]
    assert predict(additive(), odd, "--score", suffix=suffix)[1][-1].endswith(
        "; 1 row with a class that the model does not know ('maybe'), not scored"
    )
    assert predict(linear(), [(5, "a", 3), (9, "b", 7)], "--score", names=("x", "c", "y"))[1][-1].startswith(
        "bilevax: scored on 2 rows, ± 95 %: log-loss"
    )


def test_numbers_are_scored_by_their_squares(predict):
    rows = [(*row[:5], 1e6 + y) for row, y in zip(ROWS * 3, np.random.default_rng(0).normal(size=12), strict=True)]
    model = additive("identity", ())
    object.__setattr__(model, "intercept", np.array([1e6 + 0.25]))
    _, said = predict(model, rows, "--score")
    truth, means = [row[5] for row in rows], [1e6 + score(*cells(row)) for row in rows]
    squares, share = mean_squared_error(truth, means), r2_score(truth, means)
    half = 1.96 * sem((np.array(truth) - means) ** 2)
    assert 1 < half < 10
    assert said[-1] == (
        f"bilevax: scored on 12 rows, ± 95 %: mean squared error {squares:.1f} ± {half:.1f}, R^2 −{-share:.4f}"
    )
    _, said = predict(model, rows, "--score", names=("id", "x", "c", "t", "d", "z"), code=4)
    assert "no column 'y'" in said[-1]


@pytest.mark.parametrize(
    ("task", "loss", "deviance"),
    [("count", "Poisson deviance", mean_poisson_deviance), ("amount", "gamma deviance", mean_gamma_deviance)],
)
def test_counts_and_amounts_are_scored_by_the_deviance_of_the_run(predict, task, loss, deviance):
    rows = [(*row[:5], 1 + i % 4) for i, row in enumerate(ROWS * 4)]
    run = [Scoring(task=task, loss=loss), Compared(name="a", role="kept", loss=0.4321, loss_se=0.1, seconds=1)]
    model = additive("log", ())
    truth, means = [row[5] for row in rows], [math.exp(score(*cells(row))) for row in rows]
    whole, each = deviance(truth, means), [deviance([y], [m]) for y, m in zip(truth, means, strict=True)]
    _, said = predict(model, rows, "--score", records=run)
    expected = f"{loss} {whole:.1f} ± {1.96 * sem(each):.1f} (test rows of the run: 0.4321)"
    assert said[-1] == f"bilevax: scored on 16 rows, ± 95 %: {expected}"
    bad = [*rows, (*rows[0][:5], -1)]
    assert re.search(
        r"16 rows.*; 1 row with a value (below 0|of 0 or less)", predict(model, bad, "--score", records=run)[1][-1]
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_the_score_that_was_asked_for_is_that_of_all_rows(predict, weighted):
    rng = np.random.default_rng(0)
    rows = [(*row[:5], "yes" if rng.random() < 0.5 else "no") for row in ROWS * 10]
    run = [
        Scoring(task="classes", loss="log-loss", score="roc_auc", class_weight=weighted),
        Compared(name="a", role="kept", loss=0.4, loss_se=0.1, accuracy=0.77, score=0.88, seconds=1),
    ]
    _, said = predict(additive(), rows, "--score", records=run)
    area = roc_auc_score([row[5] for row in rows], [score(*cells(row)) for row in rows])
    found = re.fullmatch(
        r"bilevax: scored on 40 rows, ± 95 %: area under the ROC curve (\S+) ± (\S+) \(test rows of the run: 0.8800\), "
        r"log-loss .* \(test rows of the run: 0.4000\), accuracy .* \(test rows of the run: 0.7700\)",
        said[-1],
    )
    assert float(found[1]) == round(area, 3)
    # of 20 against 20 it is known to about a tenth
    assert 0.08 < float(found[2]) < 0.3
    shares = [line for line in said if "do not read them as shares" in line]
    assert len(shares) == weighted
    one = [row for row in rows if row[5] == "no"]
    assert (
        "area under the ROC curve not known of these rows, log-loss"
        in predict(additive(), one, "--score", records=run)[1][-1]
    )


def test_a_threshold_decides_between_two_classes(predict):
    rows = [(*row[:5], row[5] or "no") for row in ROWS]
    probability = [1 / (1 + math.exp(-score(*cells(row)))) for row in rows]
    at = sorted(probability)[2]
    plain, _ = predict(additive(), rows)
    written, said = predict(additive(), rows, "--threshold", f"{at - 1e-9:.12f}", "--score")
    predicted = ["yes" if p >= at else "no" for p in probability]
    assert [row[0] for row in written[1:]] == predicted
    assert predicted != [row[0] for row in plain[1:]]
    assert [row[1:] for row in written] == [row[1:] for row in plain]
    right = np.mean([row[5] == label for row, label in zip(rows, predicted, strict=True)])
    assert re.search(rf"accuracy with threshold \S+ {right:.3f} ", said[-1])
    assert "between 0 and 1" in predict(additive(), rows, "--threshold", "40", code=2)[1][-1]
    number = additive("identity", ())
    assert "this one predicts a number" in predict(number, rows, "--threshold", "0.4", code=2)[1][-1]


def test_a_score_that_overflows_is_refused_by_its_true_row(predict):
    rows = [(5, "a")] * 40 + [(1.5e308, "a")]
    model = linear()
    object.__setattr__(model, "coef", np.array([[4.0, -0.2, 0.7]]))
    _, said = predict(model, rows, names=("x", "c"), code=4)
    assert re.fullmatch(r"bilevax: t\.csv: 1\.5e\+308 in column 'x', row 41, is so large that.*overflows", said[-1])


def test_a_file_is_replaced_at_the_end_or_not_at_all(predict, tmp_path):
    (tmp_path / "p.csv").write_text("before")
    assert "give --force to replace it" in predict(additive(), ROWS, "--out", "p.csv", code=2)[1][0]
    assert (tmp_path / "p.csv").read_text() == "before"
    rows = [(5, "a")] * 40 + [(1.5e308, "a")]
    model = linear()
    object.__setattr__(model, "coef", np.array([[4.0, -0.2, 0.7]]))
    predict(model, rows, "--out", "p.csv", "--force", names=("x", "c"), code=4)
    assert (tmp_path / "p.csv").read_text() == "before"
    _, said = predict(additive(), ROWS, "--out", "p.csv", "--force")
    assert said[-1] == "bilevax: 4 predictions in p.csv"
    assert (tmp_path / "p.csv").read_text().count("\n") == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "t.csv"]


def test_what_is_written_in_pieces_is_whole_or_not_there(tmp_path):
    path = tmp_path / "f"
    with pytest.raises(TypeError), files.written_in_pieces(path) as append:
        append("no bytes")
    assert not list(tmp_path.iterdir())
    with files.written_in_pieces(path) as append:
        append(b"one ")
        assert not path.exists()
        append(b"two")
    assert path.read_bytes() == b"one two"
    with pytest.raises(StorageError, match="cannot write"), files.written_in_pieces(tmp_path / "no" / "f") as append:
        append(b"x")


def test_a_table_whose_columns_are_said_what_they_are_from_tune_to_predict(tmp_path, monkeypatch, capsys):
    """A column that is kept is not learned from, even if it says which rows belong together."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bilevax.sklearn.additive_choice.REPEATS", 1)
    rng = np.random.default_rng(0)
    day = np.datetime64("2020-01-01") + rng.integers(0, 1400, 150)
    x, code = rng.normal(size=150), rng.choice([7, 12, 30], 150)
    frame = pd.DataFrame({"id": [f"r{k // 2}" for k in range(150)], "x": x, "code": code, "when": day})
    frame["y"] = x + 2.0 * (code == 12) + 0.1 * rng.normal(size=150)
    frame.to_csv("t.csv", index=False, date_format="%d/%m/%Y")

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        out, err = capsys.readouterr()
        assert not ended.value.code, err
        return out, err

    words = ["--types", "code=text", "--types", "when=date", "--keep", "id", "--group", "id", "--quiet"]
    run("tune", "t.csv", "--target", "y", "--out", "run", *words)
    model = run_directory.read_model(tmp_path / "run")
    assert "id" not in model.columns
    assert model.dates == {"when": "day-first"}
    assert model.text_columns == ("code",)
    out, err = run("predict", "run", "t.csv", "--keep", "id", "--score")
    written = pd.read_csv(io.StringIO(out))
    assert written["id"].tolist() == frame["id"].tolist()
    # where new rows leave it open, the day comes first as it did
    early = (frame["when"].dt.day <= 12) & (frame["when"].dt.day != frame["when"].dt.month)
    frame[early].to_csv("new.csv", index=False, date_format="%d/%m/%Y")
    some, said = run("predict", "run", "new.csv", "--keep", "id")
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(some)), written[early].reset_index(drop=True))
    assert f", with the day first, is {frame.loc[early, 'when'].iloc[0]:%Y-%m-%d}" in said
    squares, share = mean_squared_error(frame["y"], written["prediction"]), r2_score(frame["y"], written["prediction"])
    assert re.fullmatch(
        rf"bilevax: scored on 150 rows, ± 95 %: mean squared error {squares:.3f} ± \S+ \(test rows of the run: \S+\), "
        rf"R\^2 {share:.4f} \(test rows of the run: \S+\)",
        err.splitlines()[-1],
    )
    assert share > 0.9
