"""The workflow on a table: who may see which row, what is refused, and what is written."""

import json
import math
import os
import signal
import tomllib

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    log_loss,
    mean_gamma_deviance,
    mean_poisson_deviance,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)
from sklearn.preprocessing import StandardScaler

from bilevax.core import manifest
from bilevax.core.codes import Code
from bilevax.core.errors import CorruptError, DataError, ParameterError, UsageError
from bilevax.core.record_lines import read_records
from bilevax.core.run_files import FILES
from bilevax.core.run_records import (
    Calibration,
    Candidate,
    Compared,
    Confusion,
    Data,
    Discrimination,
    Effect,
    End,
    Errors,
    Note,
    Pair,
    Paired,
    Row,
    Scoring,
    Step,
)
from bilevax.report import standalone_additive
from bilevax.sklearn import TunedAdditiveRegressor
from bilevax.study import linear, read_model, tune_table, write_run
from bilevax.study.findings import findings
from bilevax.study.preparation import prepare
from bilevax.study.rivals import RIDGE, rivals
from bilevax.study.run_directory import RunDirectory
from bilevax.study.settings import TuneSettings, settings_from
from bilevax.tables.table import Column, Table, object_array


class QuickEstimator(ClassifierMixin, BaseEstimator):
    """Keeps the contract of TunedLogisticRegression without tuning: what it was given is kept."""

    def __init__(self, penalty_per="feature", *, class_weight=None, scoring="", method="auto", steps=3, random_state=0):
        self.penalty_per, self.class_weight, self.scoring = penalty_per, class_weight, scoring
        self.method, self.steps, self.random_state = method, steps, random_state

    def fit(self, X, y, *, groups=None, validation=None, blocks=None, callback=None, run=None):
        QuickEstimator.last = self
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
    monkeypatch.setattr(linear, "TunedLogisticRegression", QuickEstimator)
    monkeypatch.setattr("bilevax.study.study.rivals", lambda *args: iter(()))


LINEAR = TuneSettings(model="linear")
QUICK = {"time": 1e-9}  # nothing is compared


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
    settings = TuneSettings(model="linear", steps=3)
    result = tune_table(table, "target", settings=settings, on_event=events.append)
    write_run(result, tmp_path / "run")
    model = read_model(tmp_path / "run")
    assert model.classes == tuple(sorted(classes))
    predicted = model.predict(table)
    assert all(type(label) is kind for label in predicted)
    np.testing.assert_array_equal(model.predict_proba(table), result.model.predict_proba(table))
    given = QuickEstimator.last
    both = np.concatenate(result.prepared.split[:2])
    expected = given.predict_proba(given.given_[0])
    np.testing.assert_allclose(model.predict_proba(table.take(both)), expected, rtol=0, atol=1e-12)
    content = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    lines = [json.loads(line) for line in content.splitlines()]
    assert lines == [event for event in events if event["kind"] != "stage"]
    records = read_records(content, "metrics.jsonl")
    assert records == result.records
    data, end, step = records.last(Data), records.last(End), records.of(Step)[0]
    assert data.rows.model_dump() == {"train": 180, "validation": 60, "test": 60}
    assert sum(data.classes.values()) == 300
    assert data.missing_cells == sum(int(c.missing.sum()) for c in table.columns[:2])
    assert data.terms == given.given_[0].shape[1]
    assert (step.step, step.seconds, step.validation_loss, step.code) == (0, 0.1, None, "STALLED")
    assert end.code == "STALLED"
    assert "stopped moving" in end.message
    with open(tmp_path / "run" / "config.toml", "rb") as file:
        config = tomllib.load(file)
    assert config["data"]["target"] == "target"
    assert config["data"]["sha256"] == "f" * 64
    assert config["tune"]["penalty_per"] == "feature"
    assert config["method"]["reason"] == "asked for"
    assert set(config["versions"]) == {"bilevax", "jax", "numpy", "scipy", "scikit-learn", "python"}


@pytest.mark.parametrize("classes", [("no", "yes"), (0, 1, 2)])
@pytest.mark.usefixtures("quick")
def test_the_coefficients_are_the_model_for_anyone(tmp_path, classes):
    table = table_of(classes=classes, since=Column("since", "date", 19000.0 + np.arange(300) ** 2 % 977))
    result = tune_table(table, "target", settings=LINEAR)
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
    result = tune_table(table_of(classes=(0, 1, 2)), "target", settings=TuneSettings(model="linear", penalty_per=per))
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
    assert result.records.of(Compared)[0].name.endswith("(bilevax)")


@pytest.mark.parametrize("settings", [{"model": "linear"}, {}])
def test_no_model_sees_a_test_row(settings, monkeypatch):
    """Test rows changed at will change no model, only the losses on them."""
    monkeypatch.setattr("bilevax.sklearn.additive_choice.REPEATS", 1)
    monkeypatch.setattr(linear, "TunedLogisticRegression", QuickEstimator)
    table, settings = table_of(), TuneSettings(**settings)
    first = tune_table(table, "target", settings=settings)
    test = first.prepared.split.test
    changed = []
    for c in table.columns:
        values = c.values.copy()
        if c.name != "target":
            values[test] = "violet" if c.kind == "text" else 1e3
        changed.append(Column(c.name, c.kind, values))
    second = tune_table(Table("changed", tuple(changed)), "target", settings=settings)
    np.testing.assert_array_equal(second.prepared.split.test, test)
    assert first.model.to_plain() == second.model.to_plain()
    assert first.records.of(Candidate) == second.records.of(Candidate)
    assert len(first.records.of(Compared)) == 4
    for a, b in zip(first.records.of(Compared), second.records.of(Compared), strict=True):
        assert a.validation_loss == b.validation_loss
        assert a.loss != b.loss


@pytest.mark.usefixtures("quick")
def test_dates_that_are_read_as_texts_are_said_where_they_are_left_out():
    days = [f"{i % 28 + 1:02d}.{i % 12 + 1:02d}.{2000 + i % 23}" for i in range(300)]
    records = tune_table(table_of(day=text("day", days)), "target", settings=LINEAR).records
    notes = [record.text for record in records if isinstance(record, Note)]
    assert any("column 'day' is left out" in note for note in notes)
    assert sum("--types day=date" in note for note in notes) == 1


def quick_study(table, monkeypatch, **settings):
    """Compared in one round of folds."""
    monkeypatch.setattr("bilevax.sklearn.additive_choice.REPEATS", 1)
    return tune_table(table, "target", settings=TuneSettings(pairs=False, **settings))


def test_the_comparison_of_classes_is_right(monkeypatch):
    table = table_of(n=400)
    result = quick_study(table, monkeypatch, scoring="balanced_accuracy", class_weight="balanced")
    train, validation, test = result.prepared.split
    assert not len(validation)
    y = result.prepared.target.values
    models = kept, ridge, _, lasso = result.records.of(Compared)
    assert [model.role for model in models] == ["kept", "rival", "rival", "rival"]
    P = result.model.predict_mean(table.take(test))
    assert kept.loss == pytest.approx(log_loss(y[test], P))
    losses = -np.log(P[np.arange(len(test)), y[test]])
    assert kept.loss_se == pytest.approx(losses.std(ddof=1) / math.sqrt(len(test)))
    assert kept.accuracy == np.mean(P.argmax(axis=1) == y[test])
    assert kept.score == pytest.approx(balanced_accuracy_score(y[test], P.argmax(axis=1)))
    # missing numbers at the median, and marked; categories as 0 and 1
    x, noise = (table.column(name).values for name in ("x", "noise"))
    numbers = np.column_stack([np.where(np.isnan(x), np.nanmedian(x[train]), x), noise])
    colours = np.column_stack([table.column("colour").values == c for c in ("red", "green", "blue", None)])
    X = np.column_stack([StandardScaler().fit(numbers[train]).transform(numbers), np.isnan(x), colours])
    options = {"scoring": "neg_log_loss", "max_iter": 1000, "class_weight": "balanced", "use_legacy_attributes": False}
    model = LogisticRegressionCV(Cs=20, l1_ratios=(0.0,), cv=5, **options).fit(X[train], y[train])
    assert ridge.loss == pytest.approx(log_loss(y[test], model.predict_proba(X[test])), abs=0.005)
    assert lasso.loss == pytest.approx(ridge.loss, abs=0.03)
    loss, score = result.records.of(Paired)[:2]
    assert (loss.measure, score.measure, loss.main, score.main) == ("loss", "score", True, True)
    assert [p.main for p in result.records.of(Paired)] == [True, True, False, False, False, False]
    assert loss.difference == pytest.approx(kept.loss - ridge.loss)
    assert score.difference == pytest.approx(kept.score - ridge.score)
    assert loss.low < loss.difference < loss.high
    assert score.low <= score.difference <= score.high
    scoring = result.records.last(Scoring)
    assert (scoring.task, scoring.loss, scoring.score) == ("classes", "log-loss", "balanced_accuracy")
    assert scoring.class_weight


def test_what_the_test_rows_say_of_classes(monkeypatch):
    table = table_of(n=600)
    result = quick_study(table, monkeypatch)
    test = result.prepared.split.test
    y, P = result.prepared.target.values[test], result.model.predict_mean(table.take(test))
    p, records = P[:, 1], result.records
    found = records.last(Discrimination)
    assert found.label == "yes"
    assert found.area == pytest.approx(roc_auc_score(y, p))
    assert found.average_precision == pytest.approx(average_precision_score(y, p))
    assert found.prevalence == y.mean()
    fpr, tpr = np.array(found.false_positive_rate), np.array(found.true_positive_rate)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2) == pytest.approx(found.area, abs=0.01)
    half = next(t for t in found.thresholds if t.at == 0.5)
    assert (half.true_positive, half.false_positive) == (np.sum((p >= 0.5) & (y == 1)), np.sum((p >= 0.5) & (y == 0)))
    assert (half.false_negative, half.true_negative) == (np.sum((p < 0.5) & (y == 1)), np.sum((p < 0.5) & (y == 0)))
    assert records.last(Confusion).rows == [[int(np.sum((y == a) & ((p > 0.5) == b))) for b in (0, 1)] for a in (0, 1)]
    groups = records.last(Calibration).groups
    assert sum(group.rows for group in groups) == 120
    assert sum(group.rows * group.observed for group in groups) == pytest.approx(y.sum())
    assert sum(group.rows * group.predicted for group in groups) == pytest.approx(p.sum())
    # the mean of p (1 - p) is at most Brier's score, which groups can tell from below
    within = sum(group.rows * (group.predicted - group.observed) ** 2 for group in groups) / 120
    assert within < brier_score_loss(y, p)
    assert all(group.low <= group.observed <= group.high for group in groups)
    hardest = [row for row in records.of(Row) if row.why == "hardest"]
    losses = -np.log(P[np.arange(len(test)), y])
    assert [row.loss for row in hardest] == pytest.approx(sorted(losses, reverse=True)[:10])
    assert hardest[0].number == test[np.argmax(losses)] + 1
    for row in records.of(Row):
        at = table.take(np.array([row.number - 1]))
        total = row.intercept + sum(c.adds for c in row.contributions) + row.rest
        assert 1 / (1 + math.exp(-total)) == pytest.approx(result.model.predict_mean(at)[0, 1])
        assert row.truth == at.column("target").values[0]
        assert {c.name for c in row.contributions} <= {"x", "colour", "noise"}
        cell = next(c.cell for c in row.contributions if c.name == "colour")
        assert cell == (at.column("colour").values[0] or "(missing)")
    influential = [row for row in records.of(Row) if row.why == "influential"]
    assert {row.number - 1 for row in influential} <= set(result.prepared.split.train.tolist())
    assert np.all(np.diff([row.influence for row in influential]) <= 0)


def test_effects_are_told_as_the_model_has_them(monkeypatch):
    table = table_of(n=600)
    result = quick_study(table, monkeypatch)
    effects = {effect.name: effect for effect in result.records.of(Effect)}
    assert next(iter(effects)) == "x"
    assert effects["noise"].droppable
    assert not effects["x"].droppable
    model, train = result.model, table.take(result.prepared.split.train)
    adds = model.contributions(model.codes(train))[:, :, 0]
    for name, effect in effects.items():
        own = adds[:, model.names.index(name)]
        assert effect.importance == pytest.approx(np.sqrt(np.mean(own**2)), rel=1e-6)
        curve, weight = np.array(effect.curve)[:, 0], np.array(effect.weight)
        assert weight.sum() == pytest.approx(480)
        assert np.average(curve, weights=weight) == pytest.approx(own.mean(), abs=1e-5)
        assert np.all(np.array(effect.lower)[:, 0] <= curve)
        assert effect.at[-1] == "(missing)"
    at, curve = effects["x"].at[:-1], np.array(effects["x"].curve)[:-1, 0]
    assert at == sorted(at)
    # the mean of a bin's numbers lies in the bin
    there = Table("t", (Column("x", "number", np.array(at)), *train.take(np.arange(len(at))).columns[1:]))
    adds = model.contributions(model.codes(there))[:, model.names.index("x"), 0]
    np.testing.assert_allclose(curve, adds, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task", ["number", "count", "amount"])
def test_a_number_is_predicted(task, tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    table = table_of(n=400, seed=3)
    x = np.nan_to_num(table.column("x").values)
    mean = np.exp(0.5 * np.sin(2 * x) + 0.7)
    y = {"number": mean + 0.2 * rng.normal(size=400), "count": rng.poisson(4 * mean) * 1.0,
         "amount": rng.gamma(3.0, mean / 3.0)}[task]  # fmt: skip
    y[5] = np.nan
    table = Table("t", (*table.columns[:-1], Column("target", "number", y)))
    result = quick_study(table, monkeypatch, task=task)
    write_run(result, tmp_path / "run")
    test = result.prepared.split.test
    rows = result.prepared.places[test]
    prediction = read_model(tmp_path / "run").predict_mean(table.take(rows))
    np.testing.assert_array_equal(prediction, result.model.predict_mean(table.take(rows)))
    loss = {"number": mean_squared_error, "count": mean_poisson_deviance, "amount": mean_gamma_deviance}[task]
    kept, ridge, _, *lasso = result.records.of(Compared)
    assert kept.loss == pytest.approx(loss(y[rows], prediction))
    assert kept.loss < ridge.loss
    assert kept.accuracy is None
    assert len(lasso) == (task == "number")
    errors, data = result.records.last(Errors), result.records.last(Data)
    assert errors.explained == pytest.approx(r2_score(y[rows], prediction))
    assert errors.quantiles["0.9"] == pytest.approx(np.quantile(np.abs(y[rows] - prediction), 0.9))
    assert data.quantiles[2] == np.median(y[~np.isnan(y)])
    assert not data.classes
    assert any("1 of 400 rows are left out" in note.text for note in result.records.of(Note))
    groups = result.records.last(Calibration).groups
    assert sum(group.rows for group in groups) == len(test)
    row = next(row for row in result.records.of(Row) if row.why == "hardest")
    assert float(row.truth) == pytest.approx(y[row.number - 1], rel=1e-5)
    total = row.intercept + sum(c.adds for c in row.contributions) + row.rest
    expected = total if task == "number" else math.exp(total)
    assert float(row.predicted) == pytest.approx(expected, rel=1e-5)
    if task == "count":
        with pytest.raises(DataError, match="counts are at least 0"):
            tune_table(Table("t", (*table.columns[:-1], Column("target", "number", y - 5))), "target",
                       settings=TuneSettings(task="count"))  # fmt: skip


def test_counts_and_amounts_are_in_proportion_to_their_exposure(tmp_path, monkeypatch):
    rng = np.random.default_rng(5)
    n = 600
    town, years = rng.random(n) < 0.4, rng.uniform(0.05, 8.0, n)
    y = rng.poisson(np.exp(1.0 * town) * years) * 1.0
    columns = [Column("town", "number", town * 1.0), Column("years", "number", years), Column("target", "number", y)]
    table = Table("t", tuple(columns))
    result = quick_study(table, monkeypatch, task="count", exposure="years")
    write_run(result, tmp_path / "run")
    model = read_model(tmp_path / "run")
    train, test = result.prepared.split.train, result.prepared.split.test
    assert model.columns == ("town", "years")
    assert any(
        "'years' is what the target is in proportion to and is not learned" in n.text for n in result.records.of(Note)
    )
    # twice the exposure, twice the claims; per year those of the estimator with its logarithm as offset
    mean, twice = model.predict_mean(table), Table("t", (columns[0], Column("years", "number", 2 * years)))
    np.testing.assert_allclose(model.predict_mean(twice), 2 * mean, rtol=1e-12)
    own = TunedAdditiveRegressor("poisson", pairs=False, random_state=0)
    own.fit(town[train, None] * 1.0, y[train], offset=np.log(years[train]))
    np.testing.assert_allclose(own.predict(town[:, None] * 1.0, np.log(years)), mean, rtol=1e-9)
    # the report's program, and what each cell adds
    plain = json.loads((tmp_path / "run" / "coefficients.json").read_text())
    assert standalone_additive.predict(plain, {"town": 1.0, "years": 3.0}) == pytest.approx(
        3.0 * mean[town][0] / years[town][0]
    )
    row = next(row for row in result.records.of(Row) if row.why == "hardest")
    total = row.intercept + sum(c.adds for c in row.contributions) + row.rest
    assert float(row.predicted) == pytest.approx(math.exp(total), rel=1e-5)
    assert next(c for c in row.contributions if c.name == "years").adds == pytest.approx(
        math.log(years[row.number - 1])
    )
    # of a rival without a penalty: claims over years, of each town; the mean of rates is far from it
    ridge = next(rivals(result.prepared, result.settings, lambda name: None))
    for k in (False, True):
        there = train[town[train] == k]
        at = town[test] == k
        np.testing.assert_allclose(
            ridge.prediction[at] / years[test][at], y[there].sum() / years[there].sum(), rtol=0.01
        )
    zero = Table("t", (columns[0], Column("years", "number", np.where(np.arange(n) == 7, 0.0, years)), columns[2]))
    with pytest.raises(DataError, match="t: exposure column 'years' holds 0 in row 8; it is to be above 0"):
        tune_table(zero, "target", settings=TuneSettings(task="count", exposure="years"))
    with pytest.raises(ParameterError, match="exposure is what counts or amounts are in proportion to"):
        settings_from({"exposure": "years"})


def test_what_is_predicted_follows_from_the_target():
    table = table_of(200)

    def task_of(values, kind="number", **settings):
        made = Table("t", (*table.columns[:-1], Column("target", kind, np.asarray(values, float))))
        prepared = prepare(made, "target", TuneSettings(**settings))
        return prepared.target.task, [note.text for note in prepared.notes]

    many = np.linspace(0, 1, 200)
    task, notes = task_of(many)
    assert task == "number"
    assert notes[-1] == "'target' holds 200 different numbers and is predicted as a number (--task classes: as classes)"
    task, notes = task_of(np.arange(200) % 4, "integer")
    assert task == "classes"
    assert notes[-1] == "'target' holds 4 different numbers, taken for classes (--task number: for a number)"
    assert task_of(np.arange(200) % 2, "integer") == ("classes", [])
    assert task_of(np.arange(200) % 4, "integer", task="count")[0] == "count"
    with pytest.raises(ParameterError, match="a linear model is for classes"):
        task_of(many, model="linear")
    with pytest.raises(DataError, match="amounts are above 0"):
        task_of(many, task="amount")
    with pytest.raises(DataError, match="target 'target' holds texts such as 'no'"):
        prepare(Table("t", (*table.columns[:-1], text("target", ["no", "yes"] * 100))), "target",
                TuneSettings(task="number"))  # fmt: skip


def test_pairs_are_told(monkeypatch):
    monkeypatch.setattr("bilevax.sklearn.additive_choice.REPEATS", 1)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=600), rng.normal(size=600)
    y = a * b + 0.1 * rng.normal(size=600)
    table = Table("t", tuple(Column(name, "number", x) for name, x in (("a", a), ("b", b), ("y", y))))
    result = tune_table(table, "y", settings=TuneSettings(**QUICK))
    pair = result.records.of(Pair)[0]
    assert pair.names == ("a", "b")
    surface = np.array(pair.surface)[:, :, 0]
    weight = np.array(pair.weight)
    assert surface.shape == weight.shape == (len(pair.first), len(pair.second))
    assert pair.importance == pytest.approx(np.sqrt(np.average(surface**2, weights=weight)))
    i, j = (next(k for k, x in enumerate(at[:-1]) if x > 1) for at in (pair.first, pair.second))
    assert surface[i, j] > 0.5
    row = next(row for row in result.records.of(Row) if row.why == "hardest")
    cell = next(c.cell for c in row.contributions if c.name == "a x b")
    assert [float(x) for x in cell.split(", ")] == [a[row.number - 1], b[row.number - 1]]
    # which is a matter of seconds
    assert [model.name for model in result.records.of(Compared)[1:]] == [RIDGE]
    assert any("the time is used up" in note.text for note in result.records.of(Note))


@pytest.mark.parametrize("model", ["linear", "additive"])
@pytest.mark.usefixtures("quick")
def test_group_and_time_columns_split_and_are_no_features(model):
    n = 300
    table = table_of(n, patient=np.arange(n) // 5 * 1.0, day=np.random.default_rng(1).permutation(n) * 1.0)
    settings = {"model": model, **(QUICK if model == "additive" else {})}
    grouped = tune_table(table, "target", settings=TuneSettings(group="patient", drop=("day",), **settings))
    assert grouped.prepared.features.names == ("x", "colour", "noise")
    assert grouped.model.columns == ("x", "colour", "noise")
    split, patient = grouped.prepared.split, table.column("patient").values
    assert not {*patient[split.test]} & {*patient[np.concatenate(split[:2])]}
    assert sum(map(len, split)) == n
    timed = tune_table(table, "target", settings=TuneSettings(time_column="day", **settings))
    assert timed.prepared.split.test.tolist() == np.flatnonzero(table.column("day").values >= 240).tolist()
    assert timed.model.columns == ("x", "colour", "noise", "patient")
    if model == "linear":
        assert QuickEstimator.last.given_[2] is None
        tune_table(table, "target", settings=TuneSettings(group="patient", **settings))
        rows = np.concatenate(split[:2])
        np.testing.assert_array_equal(QuickEstimator.last.given_[2], patient[rows])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["Yes", "yes", "No", "no"], "'Yes' (20 rows) and 'yes' (20 rows); 'No' (20 rows) and 'no' (20 rows)"),
        (["straße", "STRASSE", "weg 1", "weg  2"], "'STRASSE' (20 rows) and 'straße' (20 rows)"),
        (["a b", "a  b", "c"], "'a  b' (20 rows) and 'a b' (20 rows)"),
        (["yes", "no"], None),
    ],
)
def test_f6_classes_that_differ_by_case_are_noted(words, note):
    rows = 20 * len(words)
    table = Table("t", (Column("x", "number", np.random.default_rng(0).normal(size=rows)), text("y", words * 20)))
    notes = [found.text for found in findings(table, "y") if "differ only by case" in found.text]
    named = [said.removeprefix("classes ").split(" of 'y'")[0].split("; ") for said in notes]
    assert [[sorted(of.split(" and ")) for of in sets] for sets in named] == (
        [] if note is None else [[sorted(of.split(" and ")) for of in note.split("; ")]]
    )


def test_copies_and_missing_labels_are_noted():
    table = table_of(200)
    doubled = table.take(np.arange(400) % 200)
    target = doubled.column("target").values.copy()
    target[:7] = None
    doubled = Table("t", (*doubled.columns[:-1], text("target", target)))
    notes = [note.text for note in prepare(doubled, "target", TuneSettings()).notes]
    assert notes[0] == "7 of 400 rows are left out: 'target' is missing there"
    assert "test rows agree in every column" in notes[1]
    assert int(notes[1].split()[0]) > 40


def test_what_does_not_suit_the_table_is_refused_before_any_fit():
    table = table_of(60)
    for settings, error, message in (
        (
            {"scoring": "roc_au"},
            ParameterError,
            "scoring 'roc_au' is no score of a model of classes; did you mean 'roc_auc'",
        ),
        ({"scoring": "r2"}, ParameterError, "'r2' is no score of a model of classes"),
        ({"drop": ("y",)}, DataError, "no column 'y'"),
        ({"group": "target"}, ParameterError, "column 'target' is the target"),
        ({"drop": ("x", "colour", "noise")}, DataError, "no column is left to learn from"),
        ({"test_size": 0.01}, DataError, "the test part has 1 rows, too few for 2 classes"),
    ):
        with pytest.raises(error, match=message):
            tune_table(table, "target", settings=TuneSettings(**settings))
    with pytest.raises(DataError, match=r"no column 'targt'; did you mean 'target'\?"):
        tune_table(table, "targt")
    with pytest.raises(DataError, match="15 rows with a target"):
        tune_table(table_of(15), "target")
    with pytest.raises(ParameterError, match=r"scoring 'roc_auc' cannot score 3 classes; there are roc_auc_ovo"):
        tune_table(table_of(classes=(0, 1, 2)), "target", settings=TuneSettings(scoring="roc_auc"))
    new = np.where(np.arange(60) < 55, table.column("target").values, "late")
    late = Table("t", (*table.columns[:-1], Column("day", "integer", np.arange(60.0)), text("target", new)))
    with pytest.raises(DataError, match="no training row is of class 'late'"):
        tune_table(late, "target", settings=TuneSettings(time_column="day"))


def test_settings_are_checked_in_a_sentence():
    for values, message in (
        (
            {"penalty_per": "row"},
            "--penalty-per is 'feature', 'column', 'class', 'weight' or 'global', got 'row'",
        ),
        ({"model": "linear", "steps": 0}, "--steps is a whole number, 1 or more, got 0"),
        ({"stpes": 3}, "'stpes' is no setting; did you mean 'types' or 'steps'?"),
        ({"model": "linear", "test_size": 0.6, "validation_size": 0.4}, "leave no row to train"),
        ({"group": "a", "time_column": "b"}, "group and time_column cannot both split the rows"),
        ({"steps": 3}, "steps is a setting of model 'linear', and the model is 'additive'"),
        ({"model": "linear", "task": "count"}, "a linear model is for classes"),
        ({"task": "number", "class_weight": "balanced"}, "class_weight is for classes"),
    ):
        with pytest.raises(ParameterError, match=message):
            settings_from(values)


@pytest.mark.usefixtures("quick")
def test_an_interruption_keeps_what_was_reached():
    def stop_at_once(event):
        return event["kind"] == "step"

    result = tune_table(table_of(), "target", settings=LINEAR, on_event=stop_at_once)
    assert result.interrupted
    assert len(result.records.of(Step)) == 1
    assert len(result.records.of(Compared)) == 1
    assert result.records.last(End).interrupted
    assert "left out" in result.records.of(Note)[-1].text

    def interrupt(event):
        if event["kind"] == "comparison":
            raise KeyboardInterrupt

    result = tune_table(table_of(), "target", settings=LINEAR, on_event=interrupt)
    assert result.interrupted
    assert result.model.predict(table_of(5))


def test_a_signal_ends_the_comparison_of_candidates():
    folds = []

    def stop(event):
        if event["kind"] == "stage" and "done" in event:
            folds.append(event)
            if event["done"] == 2:
                os.kill(os.getpid(), signal.SIGINT)

    result = tune_table(table_of(), "target", settings=TuneSettings(pairs=False), on_event=stop)
    assert result.interrupted
    assert [event["done"] for event in folds] == [0, 1, 2]
    assert folds[0]["of"] == 20
    assert folds[0]["seconds_left"] is None
    assert folds[2]["seconds_left"] > 0
    assert len(result.records.of(Candidate)) == 4
    assert len(result.records.of(Compared)) == 1
    told = [note.text for note in result.records.of(Note) if note.about in ("model", "comparison")]
    assert "interrupted before all candidates were compared" in told[1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("quick")
def test_a_damaged_model_is_refused(tmp_path):
    write_run(tune_table(table_of(), "target", settings=LINEAR), tmp_path / "run")
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
    first = tune_table(table_of(), "target", settings=LINEAR)
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
    second = tune_table(table_of(seed=5), "target", settings=LINEAR)
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
