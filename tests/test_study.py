"""The workflow on a table: who may see which row, what is refused, and what is written."""

import json
import math
import tomllib

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from bilevax.core import manifest
from bilevax.core.codes import Code
from bilevax.core.errors import CorruptError, DataError, ParameterError, UsageError
from bilevax.core.run_files import FILES
from bilevax.study import read_model, study, tune_table, write_run
from bilevax.study.baselines import row_losses
from bilevax.study.run_directory import RunDirectory
from bilevax.study.settings import TuneSettings, settings_from
from bilevax.tables.table import Column, Table, object_array


class QuickEstimator(ClassifierMixin, BaseEstimator):
    """Keeps the contract of TunedLogisticRegression without tuning: what it was given is kept."""

    def __init__(self, penalty_per="feature", *, class_weight=None, scoring="", method="auto", steps=3, random_state=0):
        self.penalty_per, self.class_weight, self.scoring = penalty_per, class_weight, scoring
        self.method, self.steps, self.random_state = method, steps, random_state

    def fit(self, X, y, *, groups=None, validation=None, callback=None, run=None):
        self.given_ = (X, y, groups, validation)
        self.interrupted_, self.history_ = False, []
        for step in range(self.steps):
            record = {
                "step": step,
                "seconds": 0.1,
                "visits": 10 * step,
                "validation_loss": math.nan,
                "code": "STALLED",
            }
            self.history_.append(record)
            if callback is not None and callback(record):
                self.interrupted_ = True
                break
        model = LogisticRegression(C=0.5, class_weight=self.class_weight, max_iter=500).fit(X, y)
        self.classes_, self.coef_, self.intercept_ = model.classes_, model.coef_, model.intercept_
        (scores, p), self.n_features_in_ = model.coef_.shape, X.shape[1]
        if isinstance(self.penalty_per, str):
            shape = {"feature": (p,), "class": (scores,), "weight": (scores, p), "global": ()}[self.penalty_per]
            self.penalties_ = np.arange(1.0, 1.0 + math.prod(shape)).reshape(shape)
        else:
            self.penalties_ = 1.0 + self.penalty_per
        self.method_, self.method_reason_, self.code_ = "deterministic", "asked for", Code.STALLED
        self.validation_loss_, self.validation_gap_, self.validation_gap_se_ = 0.5, 0.01, None
        self.n_iter_, self.visits_ = len(self.history_), 100
        return self

    def decision_function(self, X):
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict_proba(self, X):
        scores = X @ self.coef_.T + self.intercept_
        scores = np.hstack([np.zeros_like(scores), scores]) if scores.shape[1] == 1 else scores
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


@pytest.fixture(name="quick")
def quick_estimator(monkeypatch):
    monkeypatch.setattr(study, "TunedLogisticRegression", QuickEstimator)


def text(name, cells):
    return Column(name, "text", object_array(list(cells)))


def table_of(n=300, classes=("no", "yes"), seed=0, **columns):
    """A table with numbers, categories, missing cells, and a target that depends on them."""
    rng = np.random.default_rng(seed)
    x, colour = rng.normal(size=n), rng.choice(["red", "green", "blue"], n)
    logits = np.outer(x + (colour == "red"), np.arange(len(classes)))
    codes = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    parts = [
        Column("x", "number", np.where(rng.random(n) < 0.1, np.nan, x)),
        text("colour", [None if rng.random() < 0.1 else c for c in colour]),
        Column("noise", "number", rng.normal(size=n)),
        *(value if isinstance(value, Column) else Column(name, "integer", value) for name, value in columns.items()),
    ]
    if isinstance(classes[0], str):
        target = text("target", [classes[c] for c in codes])
    else:
        kind = "boolean" if isinstance(classes[0], bool) else "integer"
        target = Column("target", kind, np.array([float(classes[c]) for c in codes]))
    return Table("made.csv", (*parts, target), sha256="f" * 64)


@pytest.mark.parametrize(
    ("classes", "kind"), [(("no", "yes"), str), ((3, 10, 200), int), ((False, True), bool), (("c", "ä", "=b"), str)]
)
@pytest.mark.usefixtures("quick")
def test_a_study_from_table_to_files(tmp_path, classes, kind):
    table = table_of(classes=classes)
    events = []
    result = tune_table(table, "target", settings=TuneSettings(steps=3), on_event=events.append)
    write_run(result, tmp_path / "run")
    model = read_model(tmp_path / "run")
    assert model.classes == tuple(sorted(classes))
    predicted = model.predict(table)
    assert all(type(label) is kind for label in predicted)
    np.testing.assert_array_equal(model.predict_proba(table), result.model.predict_proba(table))
    np.testing.assert_allclose(
        model.predict_proba(table), result.estimator.predict_proba(result.prepared.X), rtol=0, atol=1e-12
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [event for event in events if event["kind"] != "stage"]
    kinds = [line["kind"] for line in lines]
    assert kinds == ["data", *["step"] * 3, "gap", "comparison", *["comparison", "paired"] * 2, "end"]
    data, end = lines[0], lines[-1]
    assert data["rows"] == {"train": 180, "validation": 60, "test": 60}
    assert sum(data["classes"].values()) == 300
    assert data["missing_cells"] == sum(int(c.missing.sum()) for c in table.columns[:2])
    assert lines[1] == {
        "kind": "step",
        "step": 0,
        "seconds": 0.1,
        "visits": 0,
        "validation_loss": None,
        "code": "STALLED",
    }
    assert end["code"] == "STALLED"
    assert "stopped moving" in end["message"]
    with open(tmp_path / "run" / "config.toml", "rb") as file:
        config = tomllib.load(file)
    assert config["data"]["target"] == "target"
    assert config["data"]["sha256"] == "f" * 64
    assert config["tune"]["penalty_per"] == "feature"
    assert config["method"]["reason"] == "asked for"
    assert set(config["versions"]) == {"bilevax", "jax", "numpy", "scikit-learn", "python"}


@pytest.mark.parametrize("classes", [("no", "yes"), (0, 1, 2)])
@pytest.mark.usefixtures("quick")
def test_the_coefficients_are_the_model_for_anyone(tmp_path, classes):
    table = table_of(classes=classes, since=Column("since", "date", 19000.0 + np.arange(300) ** 2 % 977))
    result = tune_table(table, "target")
    write_run(result, tmp_path / "run")
    exported = json.loads((tmp_path / "run" / "coefficients.json").read_text())
    assert exported["format"] == "bilevax-linear-1"
    assert len(exported["formula"]) == 6
    rows = [
        dict(zip(table.names, cells, strict=True)) for cells in zip(*(c.values for c in table.columns), strict=True)
    ]
    expected = result.model.predict_proba(table)
    for row, probabilities in zip(rows[:40], expected[:40].tolist(), strict=True):
        assert plain_probabilities(exported, row) == pytest.approx(probabilities, abs=1e-12)


def plain_probabilities(model, row):
    """The formula of the file, word by word, with no library."""
    scores = list(model["intercept"])
    indicators = {}
    for term in model["terms"]:
        cell = row[term["column"]]
        missing = cell is None or cell != cell
        if term["kind"] == "number":
            x = term["fill"] if missing else cell
        elif term["kind"] == "missing":
            x = float(missing)
        elif not term.get("other"):
            x = float(cell == term["value"])
        else:
            x = float(not indicators.get(term["column"]))
        if term["kind"] != "number":
            indicators[term["column"]] = indicators.get(term["column"], 0) + x
        for c, weight in enumerate(term["weight"]):
            scores[c] += weight * (x - term["mean"]) / term["scale"]
    if len(scores) == 1:
        p = 1 / (1 + math.exp(-scores[0]))
        return [1 - p, p]
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


@pytest.mark.parametrize("per", ["feature", "column", "class", "weight", "global"])
@pytest.mark.usefixtures("quick")
def test_each_term_has_its_own_penalty(per):
    result = tune_table(table_of(classes=(0, 1, 2)), "target", settings=TuneSettings(penalty_per=per))
    p = len(result.model.terms)
    found = [entry["penalty"] for entry in result.model.to_plain()["terms"]]
    assert (
        found
        == {
            "feature": [1.0 + j for j in range(p)],
            "column": [1.0] * 2 + [2.0] * 4 + [3.0],  # x and its mark, colours and theirs, noise
            "class": [[1.0, 2.0, 3.0]] * p,
            "weight": [[1.0 + j, 1.0 + p + j, 1.0 + 2 * p + j] for j in range(p)],
            "global": [1.0] * p,
        }[per]
    )
    assert result.of_kind("comparison")[0]["name"].endswith("(bilevax)")


@pytest.mark.usefixtures("quick")
def test_no_model_sees_a_test_row():
    """Test rows changed at will change neither the encoder nor a model, only their own losses."""
    table = table_of()
    first = tune_table(table, "target")
    test = first.prepared.split.test
    changed = []
    for c in table.columns:
        values = c.values.copy()
        if c.name != "target":
            values[test] = "violet" if c.kind == "text" else 1e3
        changed.append(Column(c.name, c.kind, values))
    second = tune_table(Table("changed", tuple(changed)), "target")
    np.testing.assert_array_equal(second.prepared.split.test, test)
    assert first.model.to_plain() == second.model.to_plain()
    for a, b in zip(first.of_kind("comparison"), second.of_kind("comparison"), strict=True):
        assert a["validation_log_loss"] == b["validation_log_loss"]
        assert a["test_log_loss"] != b["test_log_loss"]


@pytest.mark.usefixtures("quick")
def test_the_comparison_is_right():
    table = table_of(n=400)
    result = tune_table(table, "target", settings=TuneSettings(scoring="f1"))
    prepared, (train, validation, test) = result.prepared, result.prepared.split
    X, y, both = prepared.X, prepared.labels.codes, np.concatenate([train, validation])
    given = result.estimator.given_
    np.testing.assert_array_equal(given[0], X[both])
    np.testing.assert_array_equal(given[3], np.isin(both, validation))
    # numbers are standardised on the training rows, and categories 0 and 1
    scaled = X[:, [term.kind == "number" for term in prepared.encoder.terms_]][train]
    np.testing.assert_allclose(scaled, StandardScaler().fit_transform(scaled), atol=1e-12)
    assert np.isin(X[:, [term.kind != "number" for term in prepared.encoder.terms_]], (0.0, 1.0)).all()
    models = {}
    for c in np.logspace(-4, 4, 20):
        fitted = LogisticRegression(C=c, max_iter=1000).fit(X[train], y[train])
        models[c] = log_loss(y[validation], fitted.predict_proba(X[validation]))
    best = min(models, key=models.get)
    final = LogisticRegression(C=best, max_iter=1000).fit(X[both], y[both])
    tuned, grid, default = result.of_kind("comparison")
    expected = log_loss(y[test], final.predict_proba(X[test]))
    assert grid["test_log_loss"] == pytest.approx(expected, abs=1e-3)
    assert grid["validation_log_loss"] == pytest.approx(models[best], abs=1e-3)
    assert default["test_accuracy"] == np.mean(LogisticRegression().fit(X[both], y[both]).predict(X[test]) == y[test])
    losses = row_losses(result.estimator.predict_proba(X[test]), y[test])
    assert tuned["test_log_loss"] == pytest.approx(losses.mean())
    assert tuned["test_log_loss_se"] == pytest.approx(losses.std(ddof=1) / math.sqrt(len(test)))
    assert tuned["score_name"] == "f1"
    assert 0 < tuned["score"] < 1
    paired = result.of_kind("paired")[0]
    assert paired["difference"] == pytest.approx(tuned["test_log_loss"] - grid["test_log_loss"])
    assert paired["low"] < paired["difference"] < paired["high"]


@pytest.mark.usefixtures("quick")
def test_group_and_time_columns_split_and_are_no_features():
    n = 300
    table = table_of(n, patient=np.arange(n) // 5 * 1.0, day=np.random.default_rng(1).permutation(n) * 1.0)
    grouped = tune_table(table, "target", settings=TuneSettings(group="patient", drop=("day",)))
    assert "patient" not in grouped.prepared.encoder.columns_
    assert "day" not in grouped.prepared.encoder.columns_
    rows = np.concatenate(grouped.prepared.split[:2])
    np.testing.assert_array_equal(grouped.estimator.given_[2], table.column("patient").values[rows])
    timed = tune_table(table, "target", settings=TuneSettings(time="day"))
    assert timed.prepared.split.test.tolist() == np.flatnonzero(table.column("day").values >= 240).tolist()
    assert timed.estimator.given_[2] is None


@pytest.mark.usefixtures("quick")
def test_copies_and_missing_labels_are_noted():
    table = table_of(200)
    doubled = table.take(np.arange(400) % 200)
    target = doubled.column("target").values.copy()
    target[:7] = None
    doubled = Table("t", (*doubled.columns[:-1], text("target", target)))
    notes = [event["text"] for event in tune_table(doubled, "target").of_kind("note")]
    assert notes[0] == "7 of 400 rows are left out: 'target' is missing there"
    assert "test rows agree in every feature" in notes[1]
    assert int(notes[1].split()[0]) > 40


def test_what_does_not_suit_the_table_is_refused_before_any_fit():
    table = table_of(60)
    for settings, error, message in (
        ({"scoring": "roc_au"}, ParameterError, "scoring 'roc_au' is no score of a classifier; did you mean 'roc_auc'"),
        ({"scoring": "r2"}, ParameterError, "'r2' is no score of a classifier"),
        ({"drop": ("y",)}, DataError, "no column 'y'"),
        ({"group": "target"}, ParameterError, "column 'target' is the target"),
        ({"drop": ("x", "colour", "noise")}, DataError, "no column is left to learn from"),
        ({"test_size": 0.01}, DataError, "the test part has 1 rows, too few for 2 classes"),
    ):
        with pytest.raises(error, match=message):
            tune_table(table, "target", settings=TuneSettings(**settings))
    with pytest.raises(DataError, match=r"no column 'targt'; did you mean 'target'\?"):
        tune_table(table, "targt")
    with pytest.raises(DataError, match="15 rows with a label"):
        tune_table(table_of(15), "target")
    with pytest.raises(ParameterError, match=r"scoring 'roc_auc' cannot score 3 classes; there are roc_auc_ovo"):
        tune_table(table_of(classes=(0, 1, 2)), "target", settings=TuneSettings(scoring="roc_auc"))
    new = np.where(np.arange(60) < 55, table.column("target").values, "late")
    late = Table("t", (*table.columns[:-1], Column("day", "integer", np.arange(60.0)), text("target", new)))
    with pytest.raises(DataError, match="no training row is of class 'late'"):
        tune_table(late, "target", settings=TuneSettings(time="day"))


def test_settings_are_checked_in_a_sentence():
    for values, message in (
        (
            {"penalty_per": "row"},
            "penalty_per: Input should be 'feature', 'column', 'class', 'weight' or 'global', got 'row'",
        ),
        ({"steps": 0}, "steps: Input should be greater than or equal to 1, got 0"),
        ({"stpes": 3}, "stpes: Extra inputs are not permitted"),
        ({"test_size": 0.6, "validation_size": 0.4}, "leave no row to train"),
        ({"group": "a", "time": "b"}, "group and time cannot both split the rows"),
    ):
        with pytest.raises(ParameterError, match=message):
            settings_from(values)


@pytest.mark.usefixtures("quick")
def test_an_interruption_keeps_what_was_reached(monkeypatch):
    def stop_at_once(event):
        return event["kind"] == "step"

    result = tune_table(table_of(), "target", on_event=stop_at_once)
    assert result.interrupted
    assert len(result.of_kind("step")) == 1
    assert len(result.of_kind("comparison")) == 3  # a small table: still cheap
    assert result.of_kind("end")[0]["interrupted"] is True
    monkeypatch.setattr(study, "_CHEAP", 0)
    result = tune_table(table_of(), "target", on_event=stop_at_once)
    assert len(result.of_kind("comparison")) == 1
    assert "left out" in result.of_kind("note")[-1]["text"]

    def interrupt(event):
        if event["kind"] == "comparison":
            raise KeyboardInterrupt

    result = tune_table(table_of(), "target", on_event=interrupt)
    assert result.interrupted
    assert result.model.predict(table_of(5))


@pytest.mark.usefixtures("quick")
def test_a_damaged_model_is_refused(tmp_path):
    write_run(tune_table(table_of(), "target"), tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in [*range(0, start, 97), *range(start, len(whole), 13), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[position] ^= 0x01
        path.write_bytes(damaged)
        with pytest.raises(CorruptError, match=r"model\.safetensors is damaged"):
            read_model(tmp_path / "run")
    for content in (b"", whole[:100], whole[:-1], b"\0" * 50):
        path.write_bytes(content)
        with pytest.raises(CorruptError, match=r"model\.safetensors is damaged"):
            read_model(tmp_path / "run")
    path.unlink()
    with pytest.raises(CorruptError, match=r"model\.safetensors is missing"):
        read_model(tmp_path / "run")
    with RunDirectory(tmp_path / "begun") as begun:
        begun.begin({})
        with pytest.raises(DataError, match=r"has no model\.safetensors: the run did not end"):
            read_model(tmp_path / "begun")
    with pytest.raises(DataError, match="it is no run directory"):
        read_model(tmp_path)


@pytest.mark.usefixtures("quick")
def test_a_run_is_replaced_whole_or_not_at_all(tmp_path):
    directory = tmp_path / "run"
    first = tune_table(table_of(), "target")
    write_run(first, directory)
    (directory / "notes.txt").write_text("mine")
    (directory / "report.html").write_text("the first run's")
    with pytest.raises(UsageError, match="is not empty; choose another directory, or give --force"):
        write_run(first, directory)
    before = {name: (directory / name).read_bytes() for name in (*FILES, manifest.NAME) if (directory / name).exists()}
    failed = RunDirectory(directory, force=True)
    failed.append({"kind": "data"})
    assert {name: (directory / name).read_bytes() for name in before} == before
    failed.discard()
    assert sorted(path.name for path in directory.iterdir()) == sorted([*before, "notes.txt"])
    second = tune_table(table_of(seed=5), "target")
    run = RunDirectory(directory, force=True)
    for event in second.events:
        run.append(event)
    run.finish(second)
    assert read_model(directory).to_plain() == second.model.to_plain()
    assert (directory / "notes.txt").read_text() == "mine"
    assert {path.name for path in directory.iterdir()} == {*before, "notes.txt"} - {"report.html"}
    with pytest.raises(UsageError, match="holds other files and no run"):
        RunDirectory(tmp_path, force=True)
    aborted = RunDirectory(tmp_path / "new")
    aborted.append({"kind": "data"})
    aborted.discard()
    assert not (tmp_path / "new").exists()
