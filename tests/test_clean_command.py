"""``bilevax clean``: what it finds, what it writes, what it refuses, and its page."""

import base64
import csv
import hashlib
import io
import json
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import cleaning_runs as runs
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score, roc_auc_score
from test_report import HOSTILE, outline, parsed, sentence

from bilevax.cli import main
from bilevax.core.cleaning_records import Suspect, Verified, Wrong
from bilevax.core.errors import DataError
from bilevax.core.record_lines import Records
from bilevax.core.run_records import Calibration
from bilevax.report import write_report
from bilevax.report.cleaning_words import flows, verdict
from bilevax.report.png import png
from bilevax.study import cleaning, cleaning_check
from bilevax.study.cleaning_rows import CleanSettings, rows_to_clean
from bilevax.study.cleaning_shown import Pixels, brightness, pixels_of, telling_columns
from bilevax.tables.frames import table_from_frame
from bilevax.tables.labels import encode_labels
from bilevax.tables.replaced import replaced

LABELS = ("cat", "dog", "fox")


class Oracle:
    """Stands in for the cleaner: column p says how probably a label is wrong, column s which is right."""

    fitted = None

    def __init__(self, model, *, random_state):
        self.model, self.random_state = model, random_state

    def fit(self, X, y, *, trusted=None):
        Oracle.fitted = SimpleNamespace(X=X, y=y, trusted=trusted, model=self.model, seed=self.random_state)
        mask = trusted if isinstance(trusted, np.ndarray) else np.zeros(len(y), bool)
        self.classes_ = np.unique(y)
        C = len(self.classes_)
        codes, p = np.searchsorted(self.classes_, y), np.where(mask, 0.0, X.column("p").values)
        better = np.searchsorted(self.classes_, X.column("s").values.astype(str))
        self.posterior_ = np.zeros((len(y), C))
        self.posterior_[np.arange(len(y)), codes] = 1.0 - p
        self.posterior_[np.arange(len(y)), better] += p
        self.wrong_label_probability_ = p
        self.suggested_ = self.classes_[self.posterior_.argmax(axis=1)]
        self.suspicious_rows_ = np.flatnonzero(p > 0.5)
        self.noise_matrix_ = np.arange(C * C).reshape(C, C) / 10
        self.noise_interval_ = np.stack([self.noise_matrix_ - 1, self.noise_matrix_ + 1])
        self.expected_wrong_ = SimpleNamespace(value=p.sum(), low=p.sum() / 2, high=2 * p.sum())
        self.notes_ = () if mask.any() else ("no row is trusted: it is weaker",)
        return self


@pytest.fixture(name="clean")
def cleaner(tmp_path, monkeypatch, capsys):
    """Runs the command where the oracle cleans; what it wrote to standard output and error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cleaning, "LabelCleaner", Oracle)
    Oracle.fitted = None

    def clean(*words, code=0):
        with pytest.raises(SystemExit) as ended:
            main(["clean", *words])
        out, err = capsys.readouterr()
        assert ended.value.code == code, err
        return out, err

    return clean


def table(n=60, seed=0):
    """Rows whose label is wrong with p, and then s is right; the truth is drawn."""
    rng = np.random.default_rng(seed)
    given = rng.integers(0, 3, n)
    other = (given + rng.integers(1, 3, n)) % 3
    p = np.where(rng.random(n) < 0.2, 0.6 + 0.39 * rng.random(n), 0.3 * rng.random(n)).round(4)
    wrong = rng.random(n) < p
    labels = np.array(LABELS)
    return pd.DataFrame(
        {
            "id": [f"{i:03d}" for i in range(n)],
            "animal": labels[given],
            "p": p,
            "s": labels[other],
            "really": labels[np.where(wrong, other, given)],
            "checked": np.where(np.arange(n) % 7 == 0, "yes", ""),
        }
    )


def written(frame, path="animals.csv", **more):
    frame.to_csv(path, index=False, **more)
    return path


def metrics():
    return Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


# ---- what is written


def test_rows_are_written_most_suspicious_first_and_counted_as_in_the_file(clean, tmp_path):
    frame = table()
    frame.loc[[3, 10], "animal"] = ""  # not looked at, and counted all the same
    out, err = clean(
        written(frame), "--target", "animal", "--keep", "id", "--drop", "really", "--drop", "checked", "--out", "run"
    )
    head, *rows = read("run/suspicious.csv")
    assert head == ["row", "probability", "given", "suggested", "id"]
    assert "2 of 60 rows are left out: 'animal' is missing there" in err
    assert Oracle.fitted.X.names == ("p", "s")
    expected = frame[frame.animal != ""].sort_values("p", ascending=False, kind="stable")
    assert [int(row[0]) for row in rows] == (expected.index + 1).tolist()
    assert [float(row[1]) for row in rows] == expected.p.tolist()
    assert [row[2:] for row in rows] == np.where(
        (expected.p > 0.5).to_numpy()[:, None],
        expected[["animal", "s", "id"]].to_numpy(),
        expected[["animal", "animal", "id"]].to_numpy(),
    ).tolist()
    said = " ".join(out.split())
    assert re.search(r"^About \d+ of 58 labels \(.*\) are expected to be wrong", said)
    assert "report run/report.html suspicious run/suspicious.csv" in said
    assert not (tmp_path / "run/cleaned.csv").exists()


def test_cleaned_has_the_suggested_labels_and_every_other_byte_of_the_file(clean):
    frame = table()
    frame.loc[[2, int(frame.p.argmax())], "animal"] = ""  # what is not there stays so
    text = frame.to_csv(index=False, lineterminator="\r\n").replace("animal,p", '"animal",p', 1)
    lines = ("\ufeff# two lines of comment\n# above\n" + text + "\r\n").split("\r\n")
    lines[5] = lines[5].replace(frame.animal[4], f' "{frame.animal[4]}"'.strip())
    with open("animals.csv", "w", newline="", encoding="utf-8") as file:
        file.write("\r\n".join(lines))
    clean("animals.csv", "--target", "animal", "--drop", "really", "--drop", "checked", "--out", "run", "--cleaned")
    before, after = (Path(path).read_bytes() for path in ("animals.csv", "run/cleaned.csv"))
    wrong = (frame.p > 0.5) & (frame.animal != "")
    old, new = before.split(b"\r\n"), after.split(b"\r\n")
    assert [i - 1 for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b] == frame.index[wrong].tolist()
    cleaned = pd.read_csv("run/cleaned.csv", comment="#", dtype=str, keep_default_na=False)
    expected = frame.assign(animal=np.where(wrong, frame.s, frame.animal), p=cleaned.p)
    pd.testing.assert_frame_equal(cleaned, expected.astype(str), check_dtype=False)


def test_labels_are_replaced_as_the_file_writes_them(clean):
    frame = table().assign(animal=lambda f: f.animal == "cat")
    frame["s"] = np.where(frame.animal, "false", "true")
    clean(written(frame), "--target", "animal", "--drop", "really", "--out", "run", "--cleaned")
    assert {row[1] for row in read("run/cleaned.csv")[1:]} == {"True", "False"}  # not true, as it is shown
    frame.drop(columns=["really"]).to_parquet("animals.parquet")
    clean("animals.parquet", "--target", "animal", "--out", "other", "--cleaned")
    cleaned = pd.read_parquet("other/cleaned.parquet")
    expected = frame.drop(columns="really").assign(animal=frame.animal ^ (frame.p > 0.5))
    pd.testing.assert_frame_equal(cleaned, expected)


CELL = st.text(st.sampled_from('ab,;"\n \u00e9'), max_size=4).filter(lambda s: s.strip() == s)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(CELL, st.sampled_from(["u", "v,w", 'x"y', "z"]), CELL), min_size=2, max_size=6), st.randoms())
def test_a_file_is_copied_whatever_is_quoted_in_it(tmp_path_factory, rows, random):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    ends, quoting = random.choice(["\n", "\r\n"]), random.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    text = io.StringIO()
    csv.writer(text, lineterminator=ends, quoting=quoting).writerows([("first", "label", "last"), *rows])
    path.write_bytes(text.getvalue().encode())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    like = {i: random.randrange(len(rows)) for i in range(len(rows)) if random.random() < 0.5}
    assert b"".join(replaced(path, "label", {}, digest)) == path.read_bytes()
    out = b"".join(replaced(path, "label", like, digest)).decode()
    expected = [(a, rows[like.get(i, i)][1], b) for i, (a, _, b) in enumerate(rows)]
    assert [tuple(row) for row in csv.reader(io.StringIO(out, newline=""))][1:] == expected
    with pytest.raises(DataError, match="was changed since it was read"):
        next(replaced(path, "label", like, "0" * 64))


def test_what_would_be_a_formula_is_marked_as_text(clean):
    frame = table().replace({"animal": {"cat": "=cat"}, "s": {"cat": "=cat"}, "id": {"003": "=1+1", "004": "-5"}})
    words = ("--target", "animal", "--keep", "id", "--drop", "really", "--drop", "checked", "--out", "run")
    clean(written(frame), *words)
    rows = {int(row[0]): row for row in read("run/suspicious.csv")[1:]}
    assert {cell for row in rows.values() for cell in row[2:4]} == {"'=cat", "dog", "fox"}
    assert (rows[4][4], rows[5][4]) == ("'=1+1", "-5")


def test_a_run_is_replaced_whole_reported_anew_and_has_no_model(clean, capsys):
    words = (written(table()), "--target", "animal", "--drop", "really", "--out", "run")
    clean(*words, "--cleaned")
    page = Path("run/report.html").read_bytes()
    for command, code, text in (
        (["report", "run"], 0, ""),
        (["resume", "run"], 0, "is finished; there is nothing to go on with"),
        (["predict", "run", "animals.csv"], 4, "run has no model.safetensors: `bilevax clean` wrote it"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == code
        assert text in capsys.readouterr().err
    assert Path("run/report.html").read_bytes() == page
    _, err = clean(*words, code=2)
    assert "run is not empty; choose another directory, or give --force to replace the run in it" in err
    Path("run/mine.txt").touch()
    clean(*words, "--force", "--seed", "3", "--model", "additive")
    assert (Oracle.fitted.model, Oracle.fitted.seed) == ("additive", 3)
    names = {"config.toml", "manifest.json", "metrics.jsonl", "mine.txt", "report.html", "suspicious.csv"}
    assert {path.name for path in Path("run").iterdir()} == names
    listed = json.loads(Path("run/manifest.json").read_text())["files"]
    assert {name: said["sha256"] for name, said in listed.items()} == {
        name: hashlib.sha256((Path("run") / name).read_bytes()).hexdigest()
        for name in names - {"mine.txt", "manifest.json"}
    }


def test_as_json_and_quiet(clean):
    frame = table()
    words = (written(frame), "--target", "animal", "--drop", "checked", "--truth", "really")
    out, _ = clean(*words, "--out", "a", "--json")
    found = json.loads(out)
    assert found["probably_wrong"] == int((frame.p > 0.5).sum())
    assert found["expected_wrong"]["value"] == pytest.approx(frame.p.sum())
    assert found["verified"]["wrong"] == int((frame.animal != frame.really).sum())
    assert found["suspicious"] == "a/suspicious.csv"
    assert clean(*words, "--out", "b", "--quiet") == ("b/report.html\n", "")


# ---- rows


def test_trusted_rows_by_a_column_and_by_another_table(clean):
    frame = table()
    drop = ("--drop", "really", "--drop", "id")
    clean(written(frame), "--target", "animal", "--trusted-column", "checked", *drop, "--out", "a")
    sure = np.arange(60) % 7 == 0
    assert Oracle.fitted.trusted.tolist() == sure.tolist()
    assert Oracle.fitted.X.names == ("p", "s")
    assert not {1 + i for i in np.flatnonzero(sure)} & {int(row[0]) for row in read("a/suspicious.csv")[1:]}
    # columns in another order, with one more, which holds what it may; a text where the first table has texts
    other = pd.DataFrame(
        {"s": ["1", "2", "", "3"], "animal": ["fox", "cat", "", "dog"], "p": [1, 2, 3, 4], "x": list("abcd")}
    )
    written(other, "sure.csv")
    clean("animals.csv", "--target", "animal", "--trusted", "sure.csv", *drop, "--drop", "checked", "--out", "b")
    X, y = Oracle.fitted.trusted
    assert y.tolist() == ["fox", "cat", "dog"]
    assert [(c.name, c.kind, c.values.tolist()) for c in X.columns] == [
        ("p", "integer", [1.0, 2.0, 4.0]),
        ("s", "text", ["1", "2", "3"]),
    ]


def test_rows_that_another_table_trusts_are_noted():
    def noted(frame, sure):
        rows = rows_to_clean(table_from_frame(frame), "animal", CleanSettings(), trusted=table_from_frame(sure))
        return [note.text for note in rows.notes if "doubted all the same" in note.text]

    frame = table()[["p", "s", "animal"]].assign(
        p=lambda f: f.p.mask(f.index == 40), s=lambda f: f.s.mask(f.index == 3)
    )
    both = frame.iloc[[40, 10, 3]].assign(animal="fox")
    others = [both.assign(p=7.5), frame.iloc[[8]].assign(s="owl")]
    (text,) = noted(frame, pd.concat([*others, both]))
    assert "3 rows of frame have the cells of a row of frame in every column but the label" in text
    assert "give that column as --trusted-column" in text
    (text,) = noted(frame, pd.concat([*others, both.head(1)]))
    assert "1 row of frame has the cells" in text
    assert not noted(frame, pd.concat(others))
    # three rows that agree with twenty each
    assert not noted(frame.drop(columns="p"), both.drop(columns="p").head(2))


@pytest.mark.parametrize("cells", [[1, 0], ["true", "false"], ["Yes", "no"], ["y", ""]])
def test_how_rows_are_marked(cells):
    frame = table().assign(checked=lambda f: [cells[0] if i % 4 == 0 else cells[1] for i in f.index])
    rows = rows_to_clean(
        table_from_frame(frame.drop(columns="really")), "animal", CleanSettings(trusted_column="checked")
    )
    assert np.flatnonzero(rows.trusted).tolist() == list(range(0, 60, 4))


def test_a_rehearsal_turns_a_share_of_the_labels_and_trusts_others():
    frame = table(3000, 1)[["animal", "p", "s"]]
    rows = rows_to_clean(table_from_frame(frame), "animal", CleanSettings(flip=0.2, trust=150, seed=4))
    again = rows_to_clean(table_from_frame(frame), "animal", CleanSettings(flip=0.2, trust=150, seed=4))
    assert np.array_equal(rows.codes, again.codes)
    turned = rows.given != frame.animal.to_numpy()
    assert (turned.sum(), rows.trusted.sum(), (turned & rows.trusted).sum()) == (600, 150, 0)
    assert rows.truth.tolist() == frame.animal.tolist()
    before = encode_labels(table_from_frame(frame).column("animal"), "t").codes
    # each of the two other classes with one half: within four standard errors
    steps = np.bincount((rows.codes - before)[turned] % 3, minlength=3)
    assert steps[0] == 0
    assert abs(steps[1] - 300) < 4 * np.sqrt(150)


def test_copies_of_the_labels_are_named_before_all_else(clean):
    frame = table(200).assign(code=lambda f: f.animal.map({"cat": 1, "dog": 2, "fox": 3}), id=range(200))
    out, _ = clean(written(frame), "--target", "animal", "--drop", "really", "--drop", "checked", "--out", "run")
    assert "Do not believe this before you have looked at it" in out
    assert "'code'" in out
    running = next(line for line in metrics() if "counts the rows" in line)
    assert "--drop id" in running
    assert "--time-column" not in running
    assert "'code'" in parsed(Path("run/report.html").read_text(encoding="utf-8")).text


# ---- what the truth says


def test_figures_of_the_truth_are_those_of_scikit_learn(clean):
    frame = table(400)
    frame.loc[frame.index[::9], "really"] = ""
    clean(written(frame), "--target", "animal", "--truth", "really", "--drop", "checked", "--out", "run")
    records = [json.loads(line) for line in metrics()]
    found = Verified.model_validate(next(r for r in records if r["kind"] == "verified"))
    known = frame[frame.really != ""]
    wrong, p = (known.animal != known.really).to_numpy(), known.p.to_numpy()
    assert (found.rows, found.wrong, found.suspicious) == (len(known), wrong.sum(), (p > 0.5).sum())
    assert found.right == (wrong & (p > 0.5)).sum()
    assert found.corrected == (wrong & (p > 0.5) & (known.s == known.really)).sum()
    assert found.area == pytest.approx(roc_auc_score(wrong, p))
    worst = np.argsort(-p, kind="stable")[: wrong.sum()]
    assert found.at_number == pytest.approx(wrong[worst].mean())
    assert found.expected == pytest.approx(p.sum())
    of = pd.DataFrame({"p": p, "wrong": wrong}).groupby(np.floor(10 * p)).mean()
    groups = Calibration.model_validate(next(r for r in records if r["kind"] == "calibration")).groups
    assert [g.predicted for g in groups] == pytest.approx(of.p.tolist())
    assert [g.observed for g in groups] == pytest.approx(of.wrong.tolist())
    times = np.unique(np.floor(10 * p), return_counts=True)[1]
    assert [g.rows for g in groups] == times.tolist()
    assert found.calibration_error == pytest.approx(np.sum(times * np.abs(of.p - of.wrong)) / len(p))
    # and of the others the truth is not known
    assert sum(row[4] == "" for row in read("run/suspicious.csv")) == (frame.really == "").sum()


def test_what_flows_between_classes_is_the_sum_of_posteriors(clean):
    frame = table().assign(animal=lambda f: f.animal.map({"cat": 10, "dog": 9, "fox": 2}))
    frame["s"] = frame.s.map({"cat": 10, "dog": 9, "fox": 2})
    # the labels are numbers, in whose order 2 comes before 10; as texts it does not
    clean(written(frame), "--target", "animal", "--text", "s", "--drop", "really", "--drop", "checked", "--out", "run")
    wrong = next(Wrong.model_validate_json(line) for line in metrics() if '"kind": "wrong"' in line)
    assert wrong.labels == ["2", "9", "10"]
    for c, truth in enumerate((2, 9, 10)):
        for j, label in enumerate((2, 9, 10)):
            own = frame[frame.animal == label]
            expected = (1 - own.p).sum() if c == j else own.p[own.s == truth].sum()
            assert wrong.flows[c][j] == pytest.approx(expected)
    texts = ["10", "2", "9"]
    of = np.arange(9).reshape(3, 3) / 10  # as the oracle has it, in the order of the texts
    assert wrong.noise == [[of[texts.index(a), texts.index(b)] for b in wrong.labels] for a in wrong.labels]
    assert wrong.low[0][1] == pytest.approx(wrong.noise[0][1] - 1)


def test_trusted_rows_kept_aside_are_judged_as_labels_drawn_for_them_are(monkeypatch):
    """The weights of all labels are those of labels that are drawn, to the error of 200,000 draws."""
    T, rng = np.array([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [0.3, 0.1, 0.6]]), np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=300), "animal": np.array(LABELS)[rng.integers(0, 3, 300)]})
    seen = []

    def probabilities(x):
        scores = np.stack([x, -x, 0.3 * x**2], axis=1)
        return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)

    class Half:
        classes_, noise_matrix_ = np.array(LABELS), T

        def __init__(self, model, *, random_state): ...

        def fit(self, X, y, *, trusted):
            seen.append((X.column("x").values, trusted))

        def predict_proba(self, X):
            seen.append(X.column("x").values)
            return probabilities(X.column("x").values)

    monkeypatch.setattr(cleaning_check, "LabelCleaner", Half)
    mask = np.arange(300) < 90
    rows = rows_to_clean(table_from_frame(frame.assign(sure=mask)), "animal", CleanSettings(trusted_column="sure"))
    assert cleaning_check.may_be_kept_aside(rows)
    found, calibration = cleaning_check.kept_aside(rows, CleanSettings(), T)
    (fitted, trusted), held = seen
    assert found.rows == len(held) == 45
    assert set(held) | set(fitted[trusted]) == set(frame.x[mask])
    assert set(held).isdisjoint(fitted)
    z = np.array([LABELS.index(frame.animal[frame.x == x].item()) for x in held])
    i = rng.integers(0, 45, 200_000)
    j = (rng.random(200_000)[:, None] > T[z[i]].cumsum(axis=1)).sum(axis=1)
    q = probabilities(held)[i] * T[:, j].T
    wrong = 1.0 - q[np.arange(200_000), j] / q.sum(axis=1)
    assert found.area == pytest.approx(roc_auc_score(j != z[i], wrong), abs=0.01)
    of = pd.DataFrame({"p": wrong, "wrong": j != z[i]}).groupby(np.floor(10 * wrong)).mean()
    large = [k for k, g in enumerate(calibration.groups) if g.rows >= 3]
    assert len(large) > 4
    tenths = {int(10 * g.predicted): g for g in calibration.groups}
    for tenth, mean in of.iterrows():
        if tenth in tenths and tenths[tenth].rows >= 3:
            assert tenths[tenth].predicted == pytest.approx(mean.p, abs=0.02)
            assert tenths[tenth].observed == pytest.approx(mean.wrong, abs=0.03)
    # the same rows in a table of their own
    del seen[:]
    apart = table_from_frame(frame[mask], name="sure.csv")
    below = rows_to_clean(table_from_frame(frame[~mask]), "animal", CleanSettings(), apart)
    again, _ = cleaning_check.kept_aside(below, CleanSettings(), T)
    (fitted, (others, labels)), held = seen
    assert (again.rows, len(fitted), len(labels)) == (45, 210, 45)
    assert set(held) | set(others.column("x").values) == set(frame.x[mask])
    assert not cleaning_check.may_be_kept_aside(rows._replace(truth=rows.given))


# ---- refusals


FAULTS = [
    ("animals.csv --out o", 2, "Missing option '--target'; the last of the 6 columns is 'checked'"),
    ("animals.csv --target animl --out o", 4, "animals.csv: no column 'animl'; did you mean 'animal'?"),
    ("animals.csv --target animal", 2, "Missing option '--out'"),
    ("animal.csv --target animal --out o", 2, "there is no file 'animal.csv', and no bundled"),
    ("animals.csv --target animal --out o --trusted sure.csv --drop checked --drop really --drop id", 4,
     "sure.csv: no column 's'; there are 'animal', 'p'"),
    ("animals.csv --target animal --out o --trusted wolf.csv --drop checked --drop really --drop id", 4,
     "wolf.csv: row 2 has the label 'wolf', which no row of animals.csv has; there are 'cat', 'dog', 'fox'"),
    ("animals.csv --target animal --out o --trusted empty.csv --drop checked --drop really --drop id", 4,
     "empty.csv: 'animal' is missing in every row; trusted rows have labels"),
    ("animals.csv --target animal --out o --trusted-column s", 4, "column 's' holds 'cat' in row"),
    ("animals.csv --target animal --out o --trusted-column chckd", 4, "no column 'chckd'; did you mean 'checked'?"),
    ("animals.csv --target animal --out o --trusted-column animal", 3, "column 'animal' is given two parts"),
    ("animals.csv --target animal --out o --truth really --keep really", 3, "column 'really' is kept beside the rows"),
    ("animals.csv --target animal --out o --trusted sure.csv --trusted-column checked", 2, "both say which labels"),
    ("animals.csv --target p --out o", 4, "target 'p' holds 60 different numbers, which are no labels"),
    ("one.csv --target animal --out o", 4, "one.csv: target 'animal' has 'cat' in every row; two classes are"),
    ("none.csv --target animal --out o", 4, "none.csv: target 'animal' has no value in any row"),
    ("short.csv --target animal --out o", 4, "short.csv: 9 rows with a label; 20 are the least that can be judged"),
    ("bare.csv --target animal --out o", 4, "bare.csv: no column is left to learn from beside 'animal'"),
    ("animals.csv --target animal --out o --flip 2", 2, "Invalid value for '--flip'"),
    ("animals.csv --target animal --out o --trust 5", 2, "--trust says how many labels a rehearsal trusts (--flip)"),
    ("animals.csv --target animal --out o --flip .2 --cleaned", 2, "leave out --cleaned"),
    ("animals.csv --target animal --out o --flip .5 --trust 40", 3, "--trust 40 and --flip 0.5 are all of the 60 rows"),
    ("animals.csv --target animal --out o --flip .2 --trust 5 --trusted-column checked", 2, "leave one of the two out"),
    ("iris --out o --cleaned", 2, "'iris' is a bundled data set, of which no cleaned copy is made"),
    ("animals.svm --target target --out o --cleaned", 4, "no CSV or Parquet file, of which alone a cleaned copy"),
]  # fmt: skip


def test_faults_are_one_sentence_before_anything_is_computed(clean, tmp_path):
    frame = table()
    written(frame)
    others = pd.DataFrame({"animal": ["cat", "wolf"], "p": [0.1, 0.2], "s": ["a", "b"]})
    written(others.drop(columns="s"), "sure.csv")
    written(others, "wolf.csv")
    written(others.assign(animal=""), "empty.csv")
    written(frame.assign(animal="cat"), "one.csv")
    written(frame.assign(animal=""), "none.csv")
    written(frame.head(9), "short.csv")
    written(frame[["animal"]], "bare.csv")
    with open("animals.svm", "w") as file:
        file.writelines(f"{i % 2} 1:{i}.5 2:3\n" for i in range(30))
    for words, code, text in FAULTS:
        _, err = clean(*words.split(), "--quiet", code=code)
        assert text in err, words
        assert len(err.splitlines()) == 1
    assert Oracle.fitted is None
    assert not (tmp_path / "o").exists()


# ---- what is shown of rows


def test_images_are_known_by_the_names_of_columns():
    def named(names):
        return pixels_of(table_from_frame(pd.DataFrame(np.zeros((3, len(names))), columns=names)))

    squares = [f"pixel_{i}_{j}" for i in range(8) for j in range(8)]
    assert named(squares) == Pixels(8, 8, tuple(squares))
    assert named(squares[::-1]) == Pixels(8, 8, tuple(squares))
    wide = [f"{i}x{j}" for i in range(1, 5) for j in range(1, 11)]
    assert named(wide) == Pixels(4, 10, tuple(wide))
    row = [f"pixel{k}" for k in range(784)]
    assert named(sorted(row)) == Pixels(28, 28, tuple(row))
    assert named([f"x{k}" for k in range(1, 65)]) is None  # may be anything
    assert named(squares[:-1]) is None
    assert named([*squares[:-1], "pixel_7_9"]) is None
    assert named([*squares, "weight"]) is None
    assert named([f"pixel{k}" for k in range(20)]) is None
    assert named([f"pixel_{i}_{j}" for i in range(2) for j in range(2)]) is None  # a picture of four


def test_pixels_become_the_picture_they_are():
    frame = pd.DataFrame([[0.0, 4.0, 8.0, np.nan], [8.0, 0.0, 2.0, 6.0]], columns=["p_0_0", "p_0_1", "p_1_0", "p_1_1"])
    found = brightness(table_from_frame(frame), Pixels(2, 2, tuple(frame.columns)), np.array([1, 0]))
    assert found.tolist() == [[255, 0, 64, 191], [0, 128, 255, 0]]
    data = png(list(range(6)), 2, 3)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (size,), name = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(name + body)
        chunks[name], at = body, at + 12 + size
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (3, 2, 8, 0, 0, 0, 0)
    assert zlib.decompress(chunks[b"IDAT"]) == bytes([0, 0, 1, 2, 0, 3, 4, 5])


def test_the_columns_that_tell_most_of_the_label_are_shown():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, 500)
    frame = pd.DataFrame({f"x{j}": rng.normal(size=500) + (j == 6) * 3 * codes for j in range(10)})
    frame["c"] = np.where(rng.random(500) < 0.3, "?", np.array(["u", "v", "w"])[codes])
    frame["d"] = rng.choice(["u", "v"], 500)
    frame.loc[::50, "x6"] = np.nan
    shown = telling_columns(table_from_frame(frame), codes, 0)
    assert len(shown) == 8
    levels = {name: pd.qcut(frame[name], 16, labels=False).fillna(-1) for name in frame.columns if name[0] == "x"}
    levels |= {name: frame[name] for name in "cd"}
    told = sorted(frame.columns, key=lambda name: -mutual_info_score(levels[name], codes))[:8]
    assert shown == [name for name in frame.columns if name in told]
    assert {"x6", "c"} < set(shown)


# ---- the page


def page_of(directory, found, **more):
    return write_report(runs.write(directory, found, **more)).read_text(encoding="utf-8")


def test_the_first_sentence_says_how_many_and_between_which_classes(tmp_path):
    assert sentence(page_of(tmp_path / "a", runs.records())) == (
        "About 90 of 900 labels (10.0\u202f%, 72 to 108 with 95\u202f%) are expected to be wrong, most often no given "
        "as yes (41)."
    )
    few = page_of(tmp_path / "b", runs.few())
    assert sentence(few) == "Few labels seem wrong: about 4.2 of 900 labels (0.5\u202f%, 0 to 9.9 with 95\u202f%)."
    text = parsed(few).text
    assert "Of 30 columns the 3 are shown that tell most of the label." in text
    assert "None of these labels is more probably wrong than right." in text
    assert "No row is trusted, which is weaker" in text
    none = Records([runs.labelled(LABELS), runs.wrong(LABELS, (0.02, 0.0, 0.4), 0)])
    assert verdict(none).sentence == "None of 900 labels seems to be wrong."
    found = Records(
        [runs.labelled(LABELS), runs.wrong(LABELS).model_copy(update={"flows": np.full((3, 3), 15.0).tolist()})]
    )
    assert verdict(found).sentence.endswith("are expected to be wrong, between all classes alike.")
    in_turn = [[0.0, 33.0, 1.0], [1.0, 0.0, 33.0], [33.0, 1.0, 0.0]]
    found = Records([runs.labelled(LABELS), runs.wrong(LABELS).model_copy(update={"flows": in_turn})])
    assert (
        "most often cat given as dog (33), dog given as fox (33) and fox given as cat (33)." in verdict(found).sentence
    )
    first = flows(runs.wrong(LABELS))[0]
    assert (first.truth, first.given, first.rows) == ("cat", "dog", 41.0)


def test_rows_have_their_ranks_in_every_order(tmp_path):
    page = page_of(tmp_path, runs.records(cells=("39", "-1.5", "", "b", "A")))
    heads = re.findall(r'<label for="o(\d+)u">([^<]*)</label>', page)
    assert [name for _, name in heads] == ["row", "probability", "given", "suggested", "id", *runs.COLUMNS]
    rows = re.findall(r'<tr role="row" class="in-order[^"]*" style="([^"]*)">(.*?)</tr>', page)
    ranks = np.array([[int(rank) for rank in re.findall(r"--o\d+: (\d+)", style)] for style, _ in rows])
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", text) for _, text in rows]
    assert ranks.shape == (30, 8)
    assert (np.sort(ranks, axis=0) == np.arange(1, 31)[:, None]).all()
    assert ranks[:, 1].tolist() == list(range(1, 31))  # as they stand: most suspicious first
    assert [cells[k][0] for k in ranks[:, 0].argsort()] == sorted((row[0] for row in cells), key=int)
    # numbers, then texts whatever their case, then what is missing
    ordered = [cells[k][5] for k in ranks[:, 5].argsort()]
    assert list(dict.fromkeys(ordered)) == ["-1.5", "39", "A", "b", "–"]
    for j, _ in heads:
        assert f"#o{j}u:checked ~ * .in-order {{ order: var(--o{j}); }}" in page


def test_hostile_strings_are_text_and_add_nothing(tmp_path):
    pages = []
    for name, strings in (("hostile", HOSTILE), ("benign", [f"plain {c}" for c in "abcdefg"])):
        found = [*runs.records(strings, strings), *runs.verified()]
        pages.append(page_of(tmp_path / name, found, table=strings[0], target=strings[1]))
    hostile, benign = map(outline, pages)
    assert hostile.elements == benign.elements
    assert {tag for tag, _ in hostile.elements}.isdisjoint({"script", "iframe", "object", "link", "base", "form"})
    assert not any(name.startswith("on") for _, attributes in hostile.elements for name in attributes)
    assert all(s in hostile.text for s in HOSTILE[:5])
    styles = [value for _, name, value in parsed(pages[0]).values if name == "style"]
    allowed = r"(--o\d+: \d+(; )?)+|width: [\d.]+%|background: rgb\([\d ]+ / \d+%\)"
    allowed += r"|grid-template-columns: repeat\(\d+, auto\)"
    assert all(re.fullmatch(allowed, style) for style in styles)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe]", pages[0])
    policy = [value for tag, name, value in parsed(pages[0]).values if tag == "meta" and name == "content"]
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in policy
    assert "http" not in pages[0].replace("http-equiv", "").replace("http://evil.example", "")


def test_images_are_those_of_the_rows_and_the_truth_is_beside_them(tmp_path):
    found = runs.images()
    page = page_of(tmp_path, found)
    images = re.findall(r'<img src="data:image/png;base64,([^"]*)"', page)
    suspects = [record for record in found if isinstance(record, Suspect)]
    assert [base64.b64decode(image) for image in images] == [png(row.pixels, 8, 8) for row in suspects]
    text = parsed(page).text
    assert "By the true labels 93 of 900 are wrong: of the 84 that are called wrong 80 are (95.2 %)" in text
    assert "0.9940" in text
    aside = parsed(page_of(tmp_path / "aside", runs.aside())).text
    assert "25 trusted rows were kept aside from a second model" in aside
    assert "area under the ROC curve of 0.987, and the probabilities are off by 0.021 on average." in aside


# ---- the whole


STRANGER = """
import sys
from bilevax.cli import main
from bilevax.solvers import label_search
label_search.EVALUATIONS = 3  # a short search is enough here
try:
    main(sys.argv[1:])
finally:
    assert "jax" not in sys.modules
"""


def test_wrong_labels_are_found_by_a_few_trusted_rows_without_jax(tmp_path):
    rng = np.random.default_rng(0)
    n, m = 132, 24
    z = rng.integers(0, 2, n)
    frame = pd.DataFrame(4.0 * z[:, None] + rng.normal(size=(n, 2)), columns=["height", "width"])
    words = np.array(["ash", "oak"])
    wrong = np.arange(n) % 12 == 0
    frame["tree"] = words[np.where(wrong, 1 - z, z)]
    written(frame[m:], tmp_path / "trees.csv")
    written(frame.assign(tree=words[z])[:m], tmp_path / "sure.csv")
    command = ["clean", "trees.csv", "--target", "tree", "--trusted", "sure.csv", "--out", "run", "--cleaned", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["expected_wrong"]["low"] <= wrong[m:].sum() <= found["expected_wrong"]["high"]
    rows = np.array([int(row[0]) - 1 for row in read(tmp_path / "run/suspicious.csv")[1:]])
    assert roc_auc_score(wrong[m:][rows], -np.arange(len(rows))) > 0.97
    cleaned = pd.read_csv(tmp_path / "run/cleaned.csv").tree.to_numpy()
    assert np.mean(cleaned == words[z[m:]]) > 0.97
