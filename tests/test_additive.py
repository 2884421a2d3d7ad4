"""Additive models as estimators: what they promise of data frames, weights, missing cells, dates, order and choice."""

import dataclasses
import json
import subprocess
import sys

import joblib
import numpy as np
import pandas as pd
import pytest
from scipy.linalg import block_diag
from scipy.optimize import LinearConstraint, minimize
from scipy.special import expit
from sklearn.metrics import r2_score
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from bilevax import DataError, ParameterError
from bilevax.linalg.binned import BinnedColumns
from bilevax.sklearn import TunedAdditiveClassifier, TunedAdditiveRegressor
from bilevax.sklearn.additive_choice import FOLDS, choose
from bilevax.solvers.additive_families import Binomial, Gaussian, Multinomial, Poisson
from bilevax.solvers.additive_fit import data, penalties
from bilevax.solvers.additive_models import ADDITIVE, ONE_PENALTY, PENALTY_EACH, AdditiveFit, Rows
from bilevax.solvers.additive_monotone import constrained
from bilevax.solvers.additive_stack import held_out, stacked
from bilevax.tables.additive import additive_from_plain
from bilevax.tables.effects import category, number
from bilevax.tables.read import table_from_frame

UNCHOSEN = {"choose": False, "random_state": 0}


# A row of weight 2 is in one fold, two rows may be in two; without the choice they are the same:
# test_weights_are_repeated_rows. On the check's classes every deal chooses alike.
FOLDS_OF_ROWS = {"check_sample_weight_equivalence_on_dense_data": "folds are dealt out row by row"}


@parametrize_with_checks([TunedAdditiveClassifier(**UNCHOSEN), TunedAdditiveRegressor(**UNCHOSEN)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [TunedAdditiveClassifier(random_state=0), TunedAdditiveRegressor(random_state=0)],
    expected_failed_checks=lambda estimator: FOLDS_OF_ROWS if isinstance(estimator, TunedAdditiveRegressor) else {},
)
def test_scikit_learn_contract_with_the_choice(estimator, check):
    check(estimator)


def frame(n=300, seed=0, gaps=0.1):
    """Numbers, text, missing cells and dates; what the score is."""
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(
        {
            "wave": rng.uniform(-2, 2, n),
            "noise": rng.normal(size=n),
            "town": rng.choice(["Bern", "Chur", "Genf"], n),
            "size": rng.choice(["small", "middle", "large"], n),
            "when": pd.Timestamp("2021-03-01") + pd.to_timedelta(rng.integers(0, 700, n), unit="D"),
        }
    )
    steps = {"small": 0.0, "middle": 0.8, "large": 1.0}
    score = np.sin(2 * X["wave"]) + 1.5 * (X["town"] == "Chur") + X["size"].map(steps) - (X["when"].dt.year == 2022)
    X.loc[rng.random(n) < gaps, "wave"] = np.nan
    return X, score.to_numpy(), rng


def regressor(n=300, **options):
    X, score, rng = frame(n)
    y = score + 0.3 * rng.normal(size=n)
    return TunedAdditiveRegressor(**(UNCHOSEN | options)).fit(X, y), X, y


def test_a_data_frame_as_it_is():
    model, X, y = regressor(ordered={"size": ["small", "middle", "large"]})
    assert model.score(X, y) > 0.85
    assert list(model.curves_) == ["wave", "noise", "town", "size", "when (year)", "when (month)", "when (day)",
                                   "when (weekday)"]  # fmt: skip
    assert set(model.drop_columns_) == {"noise"}
    town = model.curves_["town"]
    assert town.at[-2:] == ("(other values)", "(missing)")
    assert sorted(town.at[:3]) == ["Bern", "Chur", "Genf"]
    assert town.weight[:3].sum() == len(X)
    size = model.curves_["size"]
    assert size.at[:3] == ("small", "middle", "large")
    assert np.all(np.diff(size.effect[:3]) > 0)
    assert np.all(size.lower <= size.effect)
    assert np.all(size.effect <= size.upper)
    # every curve has mean 0 over the training rows
    for curve in model.curves_.values():
        assert abs(curve.weight @ curve.effect) < 1e-8 * len(X)


def test_contributions_and_the_intercept_sum_to_the_scores():
    model, X, _ = regressor()
    contributions = model.contributions(X)
    np.testing.assert_allclose(contributions.sum(axis=1) + model.intercept_, model.predict(X), atol=1e-12)
    town = model.curves_["town"]
    by_hand = X["town"].map(dict(zip(town.at, town.effect, strict=True)))
    np.testing.assert_array_equal(contributions[:, 2], by_hand)


def test_what_was_not_in_training():
    model, X, _ = regressor()
    row = X.iloc[[0]].assign(wave=1.0)
    far, farther = row.assign(wave=2.5), row.assign(wave=1e9)
    assert model.predict(far) == model.predict(farther)
    rest = model.predict(row.assign(town="Bern")) - model.curves_["town"].effect[model.curves_["town"].at.index("Bern")]
    assert model.predict(row.assign(town="Zug")) == pytest.approx(rest + model.curves_["town"].effect[-2])
    assert model.predict(row.assign(town=None)) == pytest.approx(rest)  # none was missing
    waves = model.curves_["wave"]
    gap = model.predict(row.assign(wave=np.nan)) - model.predict(row)
    assert gap == pytest.approx(waves.effect[-1] - waves.effect[np.argmin(np.abs(np.array(waves.at[:-1]) - 1.0))])


def test_the_model_is_plain_numbers():
    model, X, _ = regressor()
    plain = json.loads(json.dumps(model.model_.to_plain()))
    again = additive_from_plain(plain)
    scores = again.scores(again.codes(table_from_frame(X)))
    np.testing.assert_array_equal(again.mean(scores), model.predict(X))
    dated = dataclasses.replace(model.model_, dates={"wave": "day-first"})
    assert additive_from_plain(json.loads(json.dumps(dated.to_plain()))).dates == {"wave": "day-first"}
    for key, value in {
        "dates": {"wave": "x"},
        "format": "x",
        "link": "cauchit",
        "intercept": [1.0, 2.0],
        "effects": [{}],
    }.items():
        with pytest.raises(DataError):
            additive_from_plain(plain | {key: value})
    with pytest.raises(DataError, match=r"column 'wave' holds texts such as 'x' in row 1; the model knows numbers"):
        model.predict(X.assign(wave="x"))


def test_the_units_of_y_change_nothing_else():
    model, X, y = regressor()
    other = TunedAdditiveRegressor(**UNCHOSEN).fit(X, 1e6 - 2e3 * y)
    np.testing.assert_allclose(other.predict(X), 1e6 - 2e3 * model.predict(X), rtol=1e-9)
    assert other.dispersion_ == pytest.approx(4e6 * model.dispersion_, rel=1e-6)
    np.testing.assert_allclose(other.curves_["wave"].upper, -2e3 * model.curves_["wave"].lower, atol=1e-3)
    freedom = 1 + sum(model.effective_degrees_of_freedom_.values())
    assert model.dispersion_ == pytest.approx(np.sum((y - model.predict(X)) ** 2) / (len(y) - freedom), rel=0.02)


def test_weights_are_repeated_rows():
    X, score, rng = frame(150)
    y, times = score + 0.5 * rng.normal(size=150), rng.integers(0, 4, 150)
    weighted = TunedAdditiveRegressor(**UNCHOSEN).fit(X, y, sample_weight=times)
    at = np.repeat(np.arange(150), times)
    repeated = TunedAdditiveRegressor(**UNCHOSEN).fit(X.iloc[at], y[at])
    np.testing.assert_allclose(weighted.predict(X), repeated.predict(X), atol=1e-6)
    assert weighted.evidence_ == pytest.approx(repeated.evidence_, abs=1e-3)


def test_counts_amounts_and_offsets():
    X, score, rng = frame(600, gaps=0.0)
    exposure = rng.uniform(0.2, 5.0, 600)
    counts = rng.poisson(exposure * np.exp(score))
    poisson = TunedAdditiveRegressor("poisson", **UNCHOSEN).fit(X, counts, offset=np.log(exposure))
    with pytest.warns(UserWarning, match="fitted with an offset: without one, predictions are for an offset of 0"):
        unexposed = poisson.predict(X)
    assert np.corrcoef(np.log(unexposed), score)[0, 1] > 0.97
    predicted = poisson.predict(X, offset=np.log(exposure))
    np.testing.assert_allclose(predicted, exposure * unexposed)
    assert poisson.score(X, counts, offset=np.log(exposure)) == pytest.approx(r2_score(counts, predicted))
    assert 1.0 <= poisson.dispersion_ < 1.2
    few = TunedAdditiveRegressor("poisson", **UNCHOSEN).fit(X, rng.poisson(0.1 * np.exp(score)))
    assert 1.0 <= few.dispersion_ < 1.3  # the mean deviance is 0.6
    less = TunedAdditiveRegressor("poisson", **UNCHOSEN).fit(X, rng.binomial(3, 1.0 / (1.0 + np.exp(-score))))
    assert less.dispersion_ == 1.0
    assert abs(np.log(unexposed) - score).mean() < 0.15
    # counts of ten times the variance of Poisson's
    many = rng.negative_binomial(np.exp(score) * 20 / 9, 0.1)
    assert TunedAdditiveRegressor("poisson", **UNCHOSEN).fit(X, many).dispersion_ == pytest.approx(10.0, rel=0.3)
    amounts = np.exp(score) * rng.gamma(4.0, 0.25, 600)
    gamma = TunedAdditiveRegressor("gamma", **UNCHOSEN).fit(X, amounts)
    assert gamma.dispersion_ == pytest.approx(0.25, rel=0.15)
    again = TunedAdditiveRegressor("gamma", **UNCHOSEN).fit(X, 1e-9 * amounts)
    np.testing.assert_allclose(again.predict(X), 1e-9 * gamma.predict(X), rtol=1e-6)


def test_classes_by_their_labels():
    X, score, rng = frame(400)
    y = np.where(rng.random(400) < expit(2 * score - 1), "yes", "no")
    model = TunedAdditiveClassifier(**UNCHOSEN).fit(X, y)
    assert model.classes_.tolist() == ["no", "yes"]
    np.testing.assert_allclose(model.predict_proba(X)[:, 1], expit(model.decision_function(X)))
    assert np.all((model.predict(X) == "yes") == (model.decision_function(X) > 0))
    three = np.array(["a", "b", "c"])[np.clip(np.round(score + 0.5 * rng.normal(size=400)), 0, 2).astype(int)]
    many = TunedAdditiveClassifier(**UNCHOSEN).fit(X, three)
    assert many.curves_["wave"].effect.shape == (len(many.curves_["wave"].at), 3)
    np.testing.assert_allclose(many.curves_["wave"].effect.sum(axis=1), 0.0, atol=1e-12)
    assert many.contributions(X).shape == (400, len(many.curves_), 3)
    scores = many.contributions(X).sum(axis=1) + many.intercept_
    np.testing.assert_allclose(many.decision_function(X), scores, atol=1e-12)
    np.testing.assert_allclose(many.predict_log_proba(X), scores - np.log(np.exp(scores).sum(1))[:, None], atol=1e-9)
    assert np.all(many.curves_["wave"].upper > many.curves_["wave"].lower)


def test_the_order_of_classes_changes_no_curve():
    X, score, rng = frame(400)
    y = np.clip(np.round(score + 0.5 * rng.normal(size=400)), 0, 2).astype(int)
    one = TunedAdditiveClassifier(**UNCHOSEN).fit(X, y)
    other = TunedAdditiveClassifier(**UNCHOSEN).fit(X, np.array([2, 0, 1])[y])
    np.testing.assert_allclose(other.curves_["wave"].effect[:, [2, 0, 1]], one.curves_["wave"].effect, atol=1e-5)
    np.testing.assert_allclose(other.curves_["wave"].upper[:, [2, 0, 1]], one.curves_["wave"].upper, atol=1e-4)


def test_balanced_classes_and_groups_are_tuned_by_folds():
    X, score, rng = frame(200)
    X = X[["wave", "town"]]
    y = rng.random(200) < expit(score - 3)
    balanced = TunedAdditiveClassifier(class_weight="balanced", **UNCHOSEN).fit(X, y)
    assert abs(balanced.predict_proba(X)[:, 1].mean() - 0.5) < 0.1
    assert balanced.penalties_ != TunedAdditiveClassifier(class_weight="balanced", tuned_by="marginal", **UNCHOSEN).fit(
        X, y).penalties_  # fmt: skip
    # of forty groups, whose rows are copies, the rows say nothing of other groups
    group = np.arange(200) % 40
    copies = X.iloc[:40].iloc[group].reset_index(drop=True)
    noise = rng.normal(size=40)[group] + 0.01 * rng.normal(size=200)
    grouped = TunedAdditiveRegressor(**UNCHOSEN).fit(copies, noise, groups=group)
    alone = TunedAdditiveRegressor(**UNCHOSEN).fit(copies, noise)
    assert np.std(grouped.predict(copies)) < 0.5 * np.std(alone.predict(copies))


# Monotone curves


def test_the_constrained_minimum_is_another_solver_s():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 60))
    y = (rng.random(60) < expit(np.sin(3 * x[0]) - x[1])).astype(float)
    effects = [number("a", x[0], bins=8, smooth=4, coarse=6), number("b", x[1], bins=6, smooth=3, coarse=4)]
    X = BinnedColumns([e.codes(v) for e, v in zip(effects, x, strict=True)], [e.basis for e in effects])
    blocks = [sign * np.diff(e.basis[:-1], axis=0) for e, sign in zip(effects, (1, -1), strict=True)]
    d, A = data(X, y, Binomial()), np.pad(block_diag(*blocks), ((0, 0), (1, 0)))
    penalty = penalties(np.zeros(1), np.zeros(X.shape[1], int))

    def objective(b):
        s = d.X.dot(b[:, None])[:, 0]
        return np.sum(np.logaddexp(0, s) - y * s) + 0.5 * penalty @ b**2

    found = constrained(d, Binomial(), penalty, np.zeros((1 + X.shape[1], 1)), A)[:, 0]
    reference = minimize(objective, found * 0, method="SLSQP", constraints=[LinearConstraint(A, lb=0.0)],
                         options={"ftol": 1e-12, "maxiter": 1000})  # fmt: skip
    assert objective(found) <= reference.fun + 1e-7
    np.testing.assert_allclose(found, reference.x, atol=1e-4)
    assert np.min(A @ found) > -1e-10
    assert np.min(A @ found) < 1e-10  # some constraint holds it
    # with nothing to hold, it is the minimum
    free = constrained(d, Binomial(), penalty, np.zeros((1 + X.shape[1], 1)), A[:0], tolerance=1e-12)
    gradient = d.X.transposed_dot((expit(d.X.dot(free)[:, 0]) - y)[:, None])[:, 0] + penalty * free[:, 0]
    assert np.max(np.abs(gradient)) < 1e-5


def test_curves_rise_and_fall_on_request():
    X, score, rng = frame(300)
    y = score + 0.3 * rng.normal(size=300)
    model = TunedAdditiveRegressor(monotone={"wave": -1, "noise": 1}, **UNCHOSEN).fit(X, y)
    assert np.all(np.diff(model.curves_["wave"].effect[:-1]) <= 0)
    assert np.ptp(model.curves_["wave"].effect[:-1]) > 0.1
    assert np.all(np.diff(model.curves_["noise"].effect[:-1]) >= 0)
    sizes = {"size": ["large", "middle", "small"]}
    down = TunedAdditiveRegressor(ordered=sizes, monotone={"size": -1}, **UNCHOSEN).fit(X, y)
    up = TunedAdditiveRegressor(ordered=sizes, monotone={"size": 1}, **UNCHOSEN).fit(X, y)
    assert np.ptp(up.curves_["size"].effect[:3]) < 1e-9 < 0.5 < np.ptp(down.curves_["size"].effect[:3])


# Pairs


def test_a_planted_pair_is_found_and_is_pure():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=400), "b": rng.normal(size=400), "c": rng.choice(list("uvw"), 400)})
    y = X["a"] * X["b"] + np.sin(X["a"]) + 0.3 * rng.normal(size=400)
    model = TunedAdditiveRegressor(random_state=0).fit(X, y)
    assert list(model.pairs_) == ["a x b"]
    assert model.mixture_["additive with pairs"] > 0.9
    assert model.score(X, y) > 0.85
    # b has an effect in the pair alone
    assert model.drop_columns_ == ("c",)
    assert model.evidence_["a x b"] > 50
    surface = model.pairs_["a x b"]
    sums = surface.weight * surface.effect
    np.testing.assert_allclose(sums.sum(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose(sums.sum(axis=1), 0.0, atol=1e-9)
    # against what of a b is no sum of functions of a and of b, in these rows
    at, N = [np.array(groups[:-1]) for groups in (surface.at_first, surface.at_second)], surface.weight[:-1, :-1]
    sides = np.concatenate([np.kron(np.eye(len(at[0])), np.ones((len(at[1]), 1))),
                            np.kron(np.ones((len(at[0]), 1)), np.eye(len(at[1])))], axis=1)  # fmt: skip
    root, product = np.sqrt(N.ravel())[:, None], np.outer(*at).reshape(-1, 1)
    truth = (product - sides @ np.linalg.lstsq(root * sides, root * product)[0]).reshape(N.shape)
    inside = (surface.lower[:-1, :-1] <= truth) & (truth <= surface.upper[:-1, :-1])
    assert N[inside].sum() > 0.85 * N.sum()
    np.testing.assert_allclose(model.contributions(X).sum(axis=1) + model.intercept_, model.predict(X))
    again = additive_from_plain(json.loads(json.dumps(model.model_.to_plain())))
    np.testing.assert_array_equal(again.mean(again.scores(again.codes(table_from_frame(X)))), model.predict(X))
    plain = model.model_.to_plain()
    plain["pairs"][0]["columns"] = [0, 7]
    with pytest.raises(DataError):
        additive_from_plain(plain)
    without = TunedAdditiveRegressor(random_state=0, pairs=False, choose=False).fit(X, y)
    assert without.pairs_ == {}
    assert without.score(X, y) < 0.5


# The choice


def test_stacking_minimises_the_loss_over_mixtures():
    rng = np.random.default_rng(3)
    y = (rng.random(400) < 0.4).astype(float)
    scores = (2 * y - 1)[:, None, None] * [[0.6], [0.9], [0.1]] + rng.normal(size=(400, 3, 1)) * [[0.5], [1.0], [2.0]]
    scores, w = scores.transpose(1, 0, 2)[None], rng.uniform(0.5, 2.0, 400)
    a = stacked(Binomial(), scores, y, w, doubt=0.0)

    def loss(a):
        return w @ Binomial().losses(np.tensordot(a, scores[0], 1), y).value

    corners = [np.array([i, j, 20 - i - j]) / 20 for i in range(21) for j in range(21 - i)]
    assert loss(a) <= min(map(loss, corners)) + 0.05
    assert a.sum() == pytest.approx(1.0)
    # two repeats with the same scores are one
    np.testing.assert_allclose(stacked(Binomial(), np.concatenate([scores, scores]), y, w, doubt=0.0), a, atol=1e-4)
    # what the others gain has to exceed the doubt
    gain = loss(np.array([1.0, 0.0, 0.0])) - loss(a)
    assert stacked(Binomial(), scores, y, w, doubt=10 * gain)[0] == 1.0
    # weights below a twentieth are none
    close = scores.copy()
    close[0, 2] = scores[0, 1] + 3.0 * rng.normal(size=(400, 1))
    assert stacked(Binomial(), close, y, w, doubt=0.0)[2] == 0.0


def test_the_doubt_is_in_nats():
    rng = np.random.default_rng(4)
    y = rng.normal(size=300)
    scores = np.array([0 * y, 0.1 * y + 0.1 * rng.normal(size=300)])[None, :, :, None]
    for unit in (1e-3, 1e3):
        np.testing.assert_allclose(
            stacked(Gaussian(), unit * scores, unit * y, np.ones(300)), stacked(Gaussian(), scores, y, np.ones(300)),
            atol=1e-3,
        )  # fmt: skip


def test_one_row_is_no_reason_to_prefer_a_model():
    rng = np.random.default_rng(0)
    y = rng.poisson(1.0, 400).astype(float)
    y[0] = 60.0
    first, w, family = np.full(400, np.log(y.mean())), np.ones(400), Poisson(dispersed=True)
    one_row, many = first.copy(), first + 0.3 * (y - y.mean()) * (y < 60.0)
    one_row[0] = np.log(6.0)
    of_first, of_one, of_many = (w @ family.losses(s[:, None], y).value for s in (first, one_row, many))
    assert of_first - of_many > of_first - of_one > 80.0
    scores = np.array([first, one_row])[None, :, :, None]
    np.testing.assert_array_equal(stacked(family, scores, y, w), [1.0, 0.0])
    assert stacked(Poisson(), scores, y, w)[1] > 0.9  # were the counts Poisson's
    # nor does it speak against another
    scores = np.array([first, one_row, many])[None, :, :, None]
    assert stacked(family, scores, y, w)[2] > 0.9
    # twice the rows in two repeats are as they are once
    np.testing.assert_allclose(
        stacked(family, np.concatenate([scores, scores]), y, w), stacked(family, scores, y, w), atol=1e-4
    )


def test_what_is_kept_and_how_sure():
    X, score, rng = frame(240)
    y = score + 0.3 * rng.normal(size=240)
    model = TunedAdditiveRegressor(random_state=0, pairs=False).fit(X[["wave", "town"]], y)
    assert [c.candidate for c in model.choice_] == ["one penalty", "a penalty a column", "additive", "mixture"]
    one, _, additive, mixture = model.choice_
    assert one.difference == one.standard_error == 0.0
    assert additive.loss - one.loss == pytest.approx(additive.difference)
    assert additive.difference < -3 * additive.standard_error < 0
    assert model.mixture_["additive"] > 0.8
    assert sum(model.mixture_.values()) == pytest.approx(1.0)
    assert mixture.loss <= additive.loss + 1e-3
    line = TunedAdditiveRegressor(random_state=0, pairs=False).fit(X[["noise"]], X["noise"] + rng.normal(size=240))
    assert line.mixture_["one penalty"] > 0.9
    again = TunedAdditiveRegressor(random_state=0, pairs=False).fit(X[["wave", "town"]], y)
    np.testing.assert_array_equal(again.predict(X[["wave", "town"]]), model.predict(X[["wave", "town"]]))


def test_standard_errors_know_that_folds_share_rows(monkeypatch):
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=100), rng.normal(size=100)
    effects = (number("x", x, smooth=4, coarse=8),)
    rows = Rows(effects, (effects[0].codes(x),), y, np.ones(100), np.zeros((100, 1)), Gaussian(), (0,))
    folds = []

    def known(rows, candidates, held, near):
        folds.append(held)
        k = (len(folds) - 1) % FOLDS
        return np.array([np.zeros((len(held), 1)), np.full((len(held), 1), k / 10.0)])

    monkeypatch.setattr("bilevax.sklearn.additive_choice.held_out", known)
    found = choose(rows, (ONE_PENALTY, ADDITIVE), (), np.zeros(100, int), None, np.random.RandomState(0))
    differences = [np.mean(0.5 * (y[held] - i % FOLDS / 10) ** 2 - 0.5 * y[held] ** 2) for i, held in enumerate(folds)]
    assert len(folds) == 4 * FOLDS
    error = np.sqrt((1 / 20 + 1 / 4) * np.var(differences, ddof=1))
    assert found.compared[1].standard_error == pytest.approx(error)
    assert found.compared[1].difference == pytest.approx(np.mean(differences))


@pytest.mark.parametrize(("by", "most"), [("marginal", "choice.ROWS"), ("folds", "base.FOLDED")])
def test_groups_stay_together_in_the_choice(monkeypatch, by, most):
    seen = []

    def known(rows, candidates, held, near):
        seen.append((len(rows.y), held))
        return np.zeros((len(candidates), len(held), 1))

    monkeypatch.setattr("bilevax.sklearn.additive_choice.held_out", known)
    monkeypatch.setattr(f"bilevax.sklearn.additive_{most}", 60)
    group = np.repeat(np.arange(20), 5)
    X = pd.DataFrame({"x": np.arange(100.0)})
    model = TunedAdditiveRegressor(tuned_by=by, random_state=0).fit(X, np.sin(X["x"]), groups=group)
    assert model.notes_ == ("the candidates were compared on 60 of 100 rows",)
    assert all(rows == 60 and len(held) % 5 == 0 for rows, held in seen)


def test_a_comparison_that_is_ended_decides_by_what_it_knows():
    X, score, rng = frame(150)
    X, y = X[["wave", "town"]], score + 0.3 * rng.normal(size=150)
    records = []

    def ends_at(fold):
        def callback(record):
            records.append(record)
            return record["fold"] == fold

        return callback

    def fit(callback):
        return TunedAdditiveRegressor(pairs=False, random_state=0).fit(X, y, callback=callback)

    whole = fit(records.append).choice_
    assert [record["fold"] for record in records] == list(range(20))
    assert {record["of"] for record in records} == {20}
    first = fit(ends_at(7))
    assert first.interrupted_
    assert len(first.choice_) == len(whole)
    # one whole repeat: the first five folds
    assert first.choice_[0].loss == fit(ends_at(5)).choice_[0].loss
    part = fit(ends_at(2))
    assert part.choice_[0].loss != first.choice_[0].loss
    assert "the candidates were compared on 60 of 150 rows" in part.notes_
    none = fit(ends_at(0))
    assert none.mixture_ == {"additive": 1.0}
    assert none.choice_ == ()


def test_the_influence_of_a_row_is_what_leaving_it_out_does():
    rng = np.random.default_rng(4)
    x, w = rng.normal(size=60), rng.integers(1, 4, 60).astype(float)
    y = np.sin(2 * x) + 0.3 * rng.normal(size=60)
    y[7] += 3.0
    effects = (number("x", x, smooth=6, coarse=8),)
    rows = Rows(effects, (effects[0].codes(x),), y, w, np.zeros((60, 1)), Gaussian(), (0,))
    fit = AdditiveFit(rows, PENALTY_EACH)
    X = np.column_stack([np.ones(60), effects[0].basis[rows.codes[0]][:, :1]])
    H = X.T @ (w[:, None] * X) + np.diag([0.0, np.exp(fit.found.rho[0])])
    b = np.linalg.solve(H, X.T @ (w * y))
    exact = []
    for i in range(60):
        others = np.where(np.arange(60) == i, 0.0, w)
        d = np.linalg.solve(H - w[i] * np.outer(X[i], X[i]), X.T @ (others * y)) - b
        exact.append(d @ H @ d / fit.found.outer.phi)
    np.testing.assert_allclose(fit.influence(), exact, rtol=1e-8)
    assert np.argmax(exact) == 7


@pytest.mark.parametrize("by", ["marginal", "folds"])
@pytest.mark.parametrize("classes", [2, 9])
def test_one_penalty_has_bands_however_it_is_tuned(by, classes):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(90, 9))
    effects = tuple(number(f"x{j}", x[:, j], smooth=4, coarse=8) for j in range(9))
    codes = tuple(e.codes(x[:, j]) for j, e in enumerate(effects))
    family = Binomial() if classes == 2 else Multinomial(classes)
    y, S = np.arange(90) % classes, family.scores
    fold = np.arange(90) // 18 if by == "folds" else None
    rows = Rows(effects, codes, y, np.ones(90), np.zeros((90, S)), family, (0,) * 9, fold)
    Q = np.eye(1) if classes == 2 else family.contrasts
    for candidate in (ONE_PENALTY, PENALTY_EACH):
        fit = AdditiveFit(rows, candidate)
        assert len(fit.parts()) == 9
        assert all(np.all(np.isfinite(e)) for e in fit.errors(Q))
        assert np.all(np.isfinite(fit.evidence()))


def test_candidates_are_nested():
    rng = np.random.default_rng(6)
    x, z = rng.normal(size=120), np.array(list("abc"), object)[rng.integers(0, 3, 120)]
    effects = (number("x", x, smooth=4, coarse=8), category("z", z))
    codes = tuple(e.codes(v) for e, v in zip(effects, (x, z), strict=True))
    y = rng.integers(0, 3, 120)
    rows = Rows(effects, codes, y, np.ones(120), np.zeros((120, 2)), Multinomial(3), (0, 0))
    one, each, additive = (AdditiveFit(rows, c) for c in (ONE_PENALTY, PENALTY_EACH, ADDITIVE))
    assert [p.kind for p in one.parts()] == [p.kind for p in each.parts()] == ["linear", "levels"]
    assert one.parts()[0].penalty == one.parts()[1].penalty
    assert each.parts()[0].penalty != each.parts()[1].penalty
    assert [p.kind for p in additive.parts()] == ["linear", "smooth", "rough", "levels"]
    # a linear model's curve is a line in the mean of its bins
    slope = np.diff(one.curves[0][:-1, 0]) / np.diff(effects[0].centre)
    np.testing.assert_allclose(slope, slope[0])
    for fit in (one, each, additive):
        assert all(0.0 <= p.freedom <= 2.0 * 12 for p in fit.parts())
        assert all(np.all(e >= 0.0) for e in fit.errors(Multinomial(3).contrasts))


# Whatever comes


def test_jax_is_not_imported():
    code = (
        "import sys, pandas as pd, numpy as np\n"
        "from bilevax.sklearn import TunedAdditiveClassifier\n"
        "X = pd.DataFrame({'a': np.arange(60.0), 'b': list('xyz') * 20})\n"
        "TunedAdditiveClassifier(random_state=0).fit(X, np.arange(60) % 7 < 3).predict(X)\n"
        "assert 'jax' not in sys.modules, 'jax'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_columns_that_say_nothing():
    y = np.arange(40.0) % 5
    X = pd.DataFrame({"one": 1.0, "none": np.nan, "same": "a", "x": y})
    model = TunedAdditiveRegressor(**UNCHOSEN).fit(X, y)
    assert model.score(X, y) > 0.99
    assert set(model.drop_columns_) == {"one", "none", "same"}
    assert TunedAdditiveRegressor(**UNCHOSEN).fit(X[["one"]], y).predict(X[["one"]]) == pytest.approx(np.full(40, 2.0))


def test_two_processes_and_pickles():
    X, score, rng = frame(120)
    y = score + rng.normal(size=120)
    scores = cross_val_score(TunedAdditiveRegressor(**UNCHOSEN), X, y, n_jobs=2, cv=3)
    assert np.all(np.isfinite(scores))


@pytest.mark.parametrize(
    ("options", "fit", "message"),
    [
        ({"ordered": {"size": ["small", "large"]}}, {}, "column 'size' has the level 'middle', which is not among"),
        ({"ordered": {"age": ["a"]}}, {}, "ordered names column 'age', which is not there"),
        ({"ordered": {"town": ["Bern", "Bern", "Chur", "Genf"]}}, {}, "levels of column 'town' name one twice"),
        ({"monotone": {"age": 1}}, {}, "monotone names column 'age', which is not there"),
        ({"monotone": {"town": 1}}, {}, "column 'town' holds categories, which have no order"),
        ({"monotone": {"wave": 2}}, {}, "monotone of column 'wave' is 2; 1 rises"),
        ({}, {"groups": [1, 2]}, r"groups has the shape \(2,\); give one group for each of the 60 rows"),
        ({}, {"offset": [1.0]}, "offset must be a finite number for each of the 60 rows"),
        ({"tuned_by": "magic"}, {}, "tuned_by"),
        ({}, {"sample_weight": -np.ones(60)}, r"sample_weight is -1.0 in row 0; weights must be at least 0"),
    ],
)
def test_what_is_wrong_is_said(options, fit, message):
    X, score, _ = frame(60)
    with pytest.raises((ParameterError, ValueError), match=message):
        TunedAdditiveRegressor(**(UNCHOSEN | options)).fit(X, score, **fit)


def test_targets_that_do_not_suit():
    X, score, _ = frame(60)
    with pytest.raises(DataError, match="of family 'gamma' are amounts above 0; the least of them is"):
        TunedAdditiveRegressor("gamma").fit(X, score - 1)
    with pytest.raises(DataError, match="of family 'poisson' are counts of at least 0"):
        TunedAdditiveRegressor("poisson").fit(X, score - 1)
    with pytest.raises(DataError, match="only one class is present: 'a'"):
        TunedAdditiveClassifier().fit(X, ["a"] * 60)
    with pytest.raises(ParameterError, match="monotone is for two classes"):
        TunedAdditiveClassifier(monotone={"wave": 1}).fit(X, np.arange(60) % 3)
    with pytest.raises(DataError, match="both called 'a'"):
        TunedAdditiveClassifier().fit(pd.DataFrame(np.ones((4, 2)), columns=["a", "a"]), [0, 1, 0, 1])


def test_evidence_class_by_class_is_that_of_the_whole(monkeypatch):
    """Of classes that are equally frequent the blocks say about what the whole Hessian says."""
    rng = np.random.default_rng(8)
    x = rng.normal(size=(400, 2))
    y = np.argmax(x[:, :1] * [1.0, -1.0, 0.0, 0.0] + rng.gumbel(size=(400, 4)), axis=1)
    effects = tuple(number(f"x{j}", x[:, j], smooth=4, coarse=8) for j in range(2))
    codes = tuple(e.codes(x[:, j]) for j, e in enumerate(effects))
    rows = Rows(effects, codes, y, np.ones(400), np.zeros((400, 3)), Multinomial(4), (0, 0))
    whole = AdditiveFit(rows, PENALTY_EACH).evidence()
    monkeypatch.setattr("bilevax.solvers.additive_shared.EXACT", 0)
    blocks = AdditiveFit(rows, PENALTY_EACH).evidence()
    assert whole[0] > 40
    np.testing.assert_allclose(blocks, whole, rtol=0.2, atol=0.5)


def test_offsets_are_in_the_scores_that_are_stacked():
    rng = np.random.default_rng(9)
    x, offset = rng.normal(size=200), rng.normal(size=200)
    effects = (number("x", x, smooth=4, coarse=8),)
    y = x + 5.0 * offset + 0.1 * rng.normal(size=200)
    rows = Rows(effects, (effects[0].codes(x),), y, np.ones(200), 5.0 * offset[:, None], Gaussian(), (0,))
    held = np.arange(0, 200, 5)
    scores = held_out(rows, (PENALTY_EACH,), held)
    assert np.std(scores[0, :, 0] - y[held]) < 0.3


def test_numbers_of_any_size():
    X, score, rng = frame(100)
    X = X[["wave", "town"]]
    y = score + 0.1 * rng.normal(size=100)
    plain = TunedAdditiveRegressor(**UNCHOSEN).fit(X, y).predict(X)
    for unit in (1e-290, 1e290):
        with np.errstate(all="raise", under="ignore"):
            model = TunedAdditiveRegressor(**UNCHOSEN).fit(X.assign(wave=unit * X["wave"]), unit * y)
        np.testing.assert_allclose(model.predict(X.assign(wave=unit * X["wave"])), unit * plain, rtol=1e-6)


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_folds_that_are_fitted_at_the_same_time_have_the_same_bits(backend):
    X = np.random.default_rng(5).normal(size=(120, 2))
    y, done = X[:, 0] + 0.3 * np.random.default_rng(6).normal(size=120), []

    def fitted(n_jobs, end=99):
        model = TunedAdditiveRegressor(pairs=False, random_state=0, n_jobs=n_jobs)
        with joblib.parallel_config(backend=backend):
            model.fit(X, y, callback=lambda event: done.append(event["fold"]) or event["fold"] == end)
        return model.model_.to_plain(), model.choice_, model.interrupted_

    one = fitted(None)
    assert done == list(range(20))
    assert fitted(2) == one
    # what is under way when the comparison is ended does not count
    assert fitted(2, end=7) == fitted(None, end=7)
