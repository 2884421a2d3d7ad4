"""LabelCleaner and what it stands on: posteriors, noise matrices, hypergradients, cross-fitting, bad input."""

import itertools
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from bilevax import DataError, ParameterError
from bilevax.sklearn import LabelCleaner, label_cleaner
from bilevax.solvers import label_search
from bilevax.solvers.label_calibration import calibrated
from bilevax.solvers.label_intervals import half_width, noise_interval, number_interval
from bilevax.solvers.label_models import LabelModel, Point, Strengths
from bilevax.solvers.label_noise import Given, Noise, Prior, fit_noise, posterior, uniform_noise, updated
from bilevax.solvers.label_search import Found, cross_fitted, is_wide, retrained, search

RATE = np.array([-0.8, -1.0, 0.2])
"""Log-odds of the prior's rates."""

T3 = np.array([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [0.3, 0.1, 0.6]])


@parametrize_with_checks([LabelCleaner(cv=3, random_state=0)])
def test_scikit_learn_contract(estimator, check, monkeypatch):
    monkeypatch.setattr(label_search, "EVALUATIONS", 1)
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([LabelCleaner(random_state=0)])
def test_scikit_learn_contract_with_the_whole_search(estimator, check):
    check(estimator)


def classes(n=900, C=3, seed=0, T=T3, m=60, spread=1.5):
    """Normal clouds, labels that T flips, and trusted rows at the end."""
    rng = np.random.default_rng(seed)
    z = rng.integers(0, C, n)
    X = rng.normal(size=(n, C)) + spread * np.eye(C)[z]
    y = np.array([rng.choice(C, p=T[c]) for c in z])
    trusted = np.arange(n) >= n - m
    return X, np.where(trusted, z, y), z, trusted


def small(seed=0, n=40, p=3, C=3):
    rng = np.random.default_rng(seed)
    given = Given(rng.integers(0, C, n), np.arange(n) < 8, C)
    theta = 0.5 * rng.normal(size=(p + 2) * C + C * C)
    return LabelModel(rng.normal(size=(n, p)), given, rng.random(n) + 0.5), theta, rng


def test_posteriors_are_those_of_every_true_class_enumerated():
    model, theta, _ = small(n=6)
    at = Point.of(theta, 3, 3)
    given = Given(np.array([0, 1, 2, 1, 0, 2]), np.array([False, False, False, False, True, False]), 3)
    T = np.exp(at.noise.log_matrix)
    np.testing.assert_allclose(T.sum(axis=1), 1.0)
    scores = model.X @ at.W + at.b
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    # all 3^6 sets of true classes, each with the probability of the given labels
    total, mass = 0.0, np.zeros((6, 3))
    for z in itertools.product(range(3), repeat=6):
        says = [float(c == y) if sure else T[c, y] for c, y, sure in zip(z, given.y, given.trusted, strict=True)]
        probability = np.prod([p[i, c] for i, c in enumerate(z)]) * np.prod(says)
        total += probability
        mass[np.arange(6), z] += probability
    q, log_m = posterior(at.log_p(model.X), given, at.noise.log_matrix)
    np.testing.assert_allclose(q, mass / total, atol=1e-12)
    np.testing.assert_allclose(log_m.sum(), np.log(total))


def test_noise_has_its_parameters_and_back():
    np.testing.assert_allclose(np.exp(Noise.of(T3).log_matrix), T3, atol=1e-12)
    two = np.array([[0.8, 0.2], [0.0, 1.0]])
    np.testing.assert_allclose(np.exp(Noise.of(two).log_matrix), two, atol=1e-10)
    np.testing.assert_allclose(uniform_noise(3, 0.3), [[0.7, 0.15, 0.15], [0.15, 0.7, 0.15], [0.15, 0.15, 0.7]])


def test_derivatives_are_those_of_differences():
    model, theta, rng = small()
    by, d, e = Strengths(0.3, 0.5, 1.0, 1.5, RATE), rng.normal(size=theta.size), 1e-5

    def loss(t, by=by):
        return model.loss(Point.of(t, 3, 3), by)

    up, down = loss(theta + e * d), loss(theta - e * d)
    gradient = loss(theta)[1]
    assert (up[0] - down[0]) / (2 * e) == pytest.approx(gradient @ d, rel=1e-7)
    product = model.hessian(Point.of(theta, 3, 3), by)(d)
    np.testing.assert_allclose((up[1] - down[1]) / (2 * e), product, atol=1e-6)
    by_strengths = model.by_strengths(Point.of(theta, 3, 3), by, d)
    for k in range(7):
        more, less = (Strengths.of(by.flat() + s * e * np.eye(7)[k]) for s in (1, -1))
        slope = (loss(theta, more)[1] - loss(theta, less)[1]) @ d / (2 * e)
        assert slope == pytest.approx(by_strengths[k], rel=1e-6)


def test_the_loss_is_that_of_its_definition():
    model, theta, _ = small()
    by, at = Strengths(0.3, 0.5, 1.0, 1.5, RATE), Point.of(theta, 3, 3)
    T, value = np.exp(at.noise.log_matrix), 0.0
    for x, y, sure, c in zip(model.X, model.given.y, model.given.trusted, model.weight, strict=True):
        p = np.exp(x @ at.W + at.b)
        p /= p.sum()
        value -= c * np.exp(0.5) * np.log(p[y]) if sure else c * np.log(p @ T[:, y])
    value += 0.5 * np.exp(0.3) * np.sum(at.W**2)
    b, a = np.exp(1.0), np.exp(1.5)
    for c in range(3):
        rho = 1.0 - T[c, c]
        rate = 1.0 / (1.0 + np.exp(-RATE[c]))
        value -= b * ((1.0 - rate) * np.log(1.0 - rho) + rate * np.log(rho))
        value -= a * np.mean([np.log(T[c, j] / rho) for j in range(3) if j != c])
    assert model.loss(at, by)[0] == pytest.approx(value, rel=1e-10)


def test_the_hypergradient_is_that_of_minima_found_anew():
    X, y, _, trusted = classes(300, m=40)
    given, held = Given(y, trusted, 3), np.arange(300) % 3 == 0
    model = LabelModel(X[~held], given.take(np.flatnonzero(~held)), np.ones(200))
    out = LabelModel(X[held], given.take(np.flatnonzero(held)), np.ones(100))

    def minimum(lam):
        def scaled(t):
            value, gradient = model.loss(Point.of(t, 3, 3), Strengths.of(lam))
            return value / 200, gradient / 200

        start = Point(np.zeros((3, 3)), np.zeros(3), Noise.of(uniform_noise(3, 0.2))).flat()
        options = {"gtol": 1e-11, "maxiter": 5000}
        return Point.of(minimize(scaled, start, jac=True, method="BFGS", options=options).x, 3, 3)

    lam = np.array([*np.log([2.0, 3.0, 20.0, 5.0]), *RATE])
    at, by = minimum(lam), Strengths.of(lam)
    v = model.solve(at, by, out.loss(at, None)[1], steps=500, tolerance=1e-10)
    for k, slope in enumerate(-model.by_strengths(at, by, v)):
        values = [out.loss(minimum(lam + s * 1e-3 * np.eye(7)[k]), None)[0] for s in (1, -1)]
        assert slope == pytest.approx((values[0] - values[1]) / 2e-3, rel=2e-3, abs=1e-5)


def test_dense_rows_that_are_almost_collinear_are_fitted_in_a_few_passes(monkeypatch):
    X, y, _, trusted = classes(300, m=40)
    X = np.hstack([X, X + 0.02 * np.random.default_rng(1).normal(size=X.shape)]) * [1.0, 30.0, 0.05, 1.0, 1.0, 1.0]
    by, passes, loss = Strengths(np.log(0.3), 1.0, 2.0, 1.5, RATE), [], LabelModel.loss
    monkeypatch.setattr(LabelModel, "loss", lambda *a: passes.append(1) or loss(*a))
    zero, losses, counts = Point(np.zeros((6, 3)), np.zeros(3), Noise.of(T3)), [], []
    for rows, steps in ((X, 50), (scipy.sparse.csr_matrix(X), 50), (scipy.sparse.csr_matrix(X), 20000)):
        model = LabelModel(rows, Given(y, trusted, 3), np.ones(300))
        passes.clear()
        at = model.fit(zero, by, steps=steps, tolerance=1e-7)
        counts.append(len(passes))
        losses.append(model.loss(at, by)[0])
    # sparse rows keep their coordinates: 50 steps do not bring them there
    assert losses[0] == pytest.approx(losses[2], abs=1e-3)
    assert losses[1] > losses[2] + 0.1
    assert counts[0] < counts[2] / 5


def test_the_likelihood_never_falls_in_em():
    rng = np.random.default_rng(0)
    log_p = np.log(rng.dirichlet(np.ones(4), 200))
    given, prior = Given(rng.integers(0, 4, 200), np.arange(200) < 20, 4), Prior(0.3, 5.0, 8.0)
    T, values = uniform_noise(4, 0.6), []
    for _ in range(30):
        q, log_m = posterior(log_p, given, np.log(T))
        values.append(log_m.sum() + prior.log_density(T))
        T = updated(given.expected(q), prior)
        np.testing.assert_allclose(T.sum(axis=1), 1.0)
    assert np.all(np.diff(values) > -1e-9)
    assert values[-1] > values[0] + 1.0
    # concave: from elsewhere to the same
    np.testing.assert_allclose(fit_noise(log_p, given, uniform_noise(4, 0.1), prior, 1000),
                               fit_noise(log_p, given, T, prior, 1000), atol=1e-3)  # fmt: skip


def test_the_m_step_is_the_maximum():
    rng = np.random.default_rng(1)
    counts, prior = 20.0 * rng.random((3, 3)), Prior(0.3, 5.0, 8.0)
    T = updated(counts, prior)

    def value(M):
        return np.sum(counts * np.log(M)) + prior.log_density(M)

    for _ in range(50):
        near = T * np.exp(0.02 * rng.normal(size=(3, 3)))
        assert value(near / near.sum(axis=1, keepdims=True)) < value(T)


def test_a_known_noise_matrix_is_recovered():
    X, y, z, trusted = classes(6000, spread=3.0)
    cleaner = LabelCleaner(random_state=0).fit(X, y, trusted=trusted)
    assert np.abs(cleaner.noise_matrix_ - T3).max() < 0.04
    low, high = cleaner.noise_interval_
    assert np.mean((low <= T3) & (high >= T3)) >= 8 / 9
    assert np.all(high - low < 0.15)
    wrong = (y != z).sum()
    assert cleaner.expected_wrong_.low <= wrong <= cleaner.expected_wrong_.high
    assert cleaner.expected_wrong_.value == pytest.approx(wrong, rel=0.1)
    assert np.mean(cleaner.suggested_ == z) > np.mean(y == z) + 0.15
    assert cleaner.score(X, z) > 0.9
    np.testing.assert_array_equal(cleaner.clean(X[:9], y[:9]) == y[:9], cleaner.suggested_[:9] == y[:9])


def test_scores_find_their_factor_bias_and_noise():
    """Scores of true probabilities, shrunk and moved: what made them is found, and the number of wrong labels."""
    rng, n, bias = np.random.default_rng(0), 20_000, np.array([0.6, 0.0, -0.6])
    true = 2.0 * rng.normal(size=(n, 3))
    p = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    z = (rng.random(n)[:, None] > p.cumsum(axis=1)).sum(axis=1)
    trusted = np.arange(n) < 5000
    y = np.where(trusted, z, [rng.choice(3, p=T3[c]) for c in z])
    given, log_p = Given(y, trusted, 3), (true - bias) / 1.6
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    by = Strengths(3.0, 0.0, np.log(5000.0), 0.0, np.full(3, 2.0))
    at = calibrated(log_p, given, by, Noise.of(uniform_noise(3, 0.1)))
    np.testing.assert_allclose(at.W, 1.6 * np.eye(3), atol=0.05)
    np.testing.assert_allclose(at.b - at.b.mean(), bias, atol=0.08)
    np.testing.assert_allclose(np.exp(at.noise.log_matrix), T3, atol=0.03)
    q, _ = posterior(at.log_p(log_p), given, at.noise.log_matrix)
    assert (1.0 - q[np.arange(n), y]).sum() == pytest.approx(np.sum(y != z), rel=0.03)


def wide(seed, rates, n=500, p=600, m=80, apart=0.45):
    """Two clouds in more dimensions than there are rows, labels turned at a rate of each class, trusted rows first."""
    rng, trusted = np.random.default_rng(seed), np.arange(n) < m
    z = rng.integers(0, 2, n)
    X = rng.normal(size=(n, p)) + apart * np.outer(2 * z - 1, np.arange(p) < 40)
    return X, np.where((rng.random(n) < np.array(rates)[z]) & ~trusted, 1 - z, z), z, trusted


def error_of_calibration(wrong, truth):
    bins = np.minimum((15 * wrong).astype(int), 14)
    return np.abs(np.bincount(bins, wrong - truth)).sum() / len(wrong)


def test_probabilities_of_a_classifier_that_could_fit_every_label_are_what_happens():
    X, y, z, trusted = wide(2, (0.2, 0.2))
    cleaner = LabelCleaner(random_state=0).fit(X, y, trusted=trusted)
    wrong, flipped = cleaner.wrong_label_probability_[~trusted], (y != z)[~trusted]
    assert cleaner.expected_wrong_.value == pytest.approx(flipped.sum(), rel=0.15)
    assert error_of_calibration(wrong, flipped) < 0.05
    np.testing.assert_array_equal(cleaner.posterior_[trusted], np.eye(2)[z[trusted]])


@pytest.mark.slow
def test_they_are_in_many_draws():
    number, error, covered = [], [], 0
    for seed in range(24):
        X, y, z, trusted = wide(100 + seed, ((0.4, 0.0), (0.2, 0.2))[seed % 2])
        cleaner = LabelCleaner(random_state=0).fit(X, y, trusted=trusted)
        wrong, flipped = cleaner.wrong_label_probability_[~trusted], (y != z)[~trusted]
        number.append(wrong.sum() / flipped.sum())
        error.append(error_of_calibration(wrong, flipped))
        covered += cleaner.expected_wrong_.low <= flipped.sum() <= cleaner.expected_wrong_.high
    assert np.mean(number) == pytest.approx(1.0, abs=0.06)
    assert np.mean(error) < 0.035
    assert covered >= 20


@pytest.mark.slow
def test_means_over_splits_rank_better(monkeypatch):
    gain = []
    for seed in range(12):
        X, y, z, trusted = wide(300 + seed, (0.2, 0.2), apart=0.2)
        areas = []
        for splits in (1, label_cleaner.SPLITS):
            monkeypatch.setattr(label_cleaner, "SPLITS", splits)
            wrong = LabelCleaner(random_state=0).fit(X, y, trusted=trusted).wrong_label_probability_
            areas.append(roc_auc_score((y != z)[~trusted], wrong[~trusted]))
        gain.append(areas[1] - areas[0])
    assert np.mean(gain) > 2 * np.std(gain) / 12**0.5


def test_a_classifier_that_could_fit_every_label_leaves_some_for_flips():
    rng = np.random.default_rng(0)
    z, trusted = rng.integers(0, 2, 500), np.arange(500) < 80
    X = rng.normal(size=(500, 600)) + 0.45 * np.outer(2 * z - 1, np.arange(600) < 40)
    y = np.where((rng.random(500) < 0.4) & (z == 0) & ~trusted, 1, z)
    cleaner = LabelCleaner(random_state=0).fit(X, y, trusted=trusted)
    assert cleaner.expected_wrong_.value == pytest.approx(np.sum(y != z), rel=0.25)
    assert cleaner.noise_matrix_[0, 1] == pytest.approx(0.4, abs=0.1)
    assert cleaner.noise_matrix_[1, 0] < 0.1
    assert roc_auc_score((y != z)[~trusted], cleaner.wrong_label_probability_[~trusted]) > 0.98


def test_trusted_rows_are_never_suspected_and_decide():
    X, y, z, trusted = classes(400)
    cleaner = LabelCleaner(random_state=0).fit(X, y, trusted=trusted)
    assert not cleaner.wrong_label_probability_[trusted].any()
    assert not np.isin(np.flatnonzero(trusted), cleaner.suspicious_rows_).any()
    np.testing.assert_array_equal(cleaner.suggested_[trusted], y[trusted])
    wrong = cleaner.wrong_label_probability_[cleaner.suspicious_rows_]
    assert np.all(np.diff(wrong) <= 0.0)
    assert np.all(wrong > 0.5)
    np.testing.assert_allclose(cleaner.row_weights_, 1.0 - cleaner.wrong_label_probability_)
    assert roc_auc_score((y != z)[~trusted], cleaner.wrong_label_probability_[~trusted]) > 0.85
    # the same rows as a table of their own
    other = LabelCleaner(random_state=0).fit(X[~trusted], y[~trusted], trusted=(X[trusted], y[trusted]))
    assert len(other.suggested_) == 340
    np.testing.assert_allclose(other.wrong_label_probability_, cleaner.wrong_label_probability_[~trusted], atol=1e-6)


def test_names_of_classes_and_their_order_change_nothing():
    X, y, _, trusted = classes(300)
    one = LabelCleaner(random_state=0).fit(X, y, trusted=trusted)
    names = np.array(["a", "b", "c"])[y]
    two = LabelCleaner(random_state=0).fit(X, names, trusted=trusted)
    np.testing.assert_array_equal(two.wrong_label_probability_, one.wrong_label_probability_)
    assert set(two.suggested_) <= {"a", "b", "c"}
    # in another order the folds are the same rows, and sums come in another order
    turned = np.array([2, 0, 1])[y]
    given, fold = Given(y, trusted, 3), np.where(trusted, -1, np.arange(300) % 3)
    found = Found(Strengths(0.5, 1.0, 2.0, 2.0, RATE), (), (0.0, 0.0), 1)
    q = cross_fitted(X, given, fold, found)
    other = found._replace(strengths=found.strengths._replace(rate=RATE[[1, 2, 0]]))
    np.testing.assert_allclose(cross_fitted(X, given._replace(y=turned), fold, other)[:, [2, 0, 1]], q, atol=2e-3)


def test_a_label_moves_no_model_that_judges_it():
    X, y, _, trusted = classes(200, m=30)
    fold = np.where(trusted, -1, np.arange(200) % 4)
    found = Found(Strengths(0.5, 1.0, 2.0, 2.0, RATE), (), (0.0, 0.0), 1)
    other = y.copy()
    other[5] = (y[5] + 1) % 3
    q, moved = (cross_fitted(X, Given(labels, trusted, 3), fold, found) for labels in (y, other))
    same = (fold == fold[5]) & (np.arange(200) != 5)
    np.testing.assert_array_equal(q[same], moved[same])
    assert np.all(np.any(q != moved, axis=1)[(fold != fold[5]) & ~trusted])


def test_the_corrected_model_is_that_of_weighted_copies():
    X = classes(200)[0]
    q = np.random.default_rng(0).dirichlet(0.2 + 3.0 * np.eye(3)[0], 200)[:, [0, 1, 2]]
    at = Point(np.zeros((3, 3)), np.zeros(3), Noise.of(T3))
    found = retrained(X, q, at, Strengths(np.log(2.0), 3.0, 0.0, 0.0, RATE))
    row, c = np.nonzero(q > 1e-3)
    truth = LogisticRegression(C=0.5, tol=1e-8, max_iter=1000).fit(X[row], c, sample_weight=q[row, c])
    np.testing.assert_allclose(np.exp(found.log_p(X)), truth.predict_proba(X), atol=1e-3)
    np.testing.assert_array_equal(found.noise.log_matrix, at.noise.log_matrix)


def test_strengths_are_kept_only_where_the_loss_falls():
    X, y, _, trusted = classes(400)
    found = search(X, Given(y, trusted, 3), np.arange(400) % 5)
    assert found.loss[1] <= found.loss[0]
    assert len(found.points) == 5


def test_intervals_are_those_of_the_jackknife():
    means = np.array([1.0, 2.0, 4.0, 3.0])
    # (K - 1) / K sum (a - mean)^2 = 3/4 * 5, and t of 3 degrees of freedom at 97.5 %
    assert half_width(means, 0.0) == pytest.approx(3.182446 * np.sqrt(3.75), rel=1e-5)
    assert half_width(means, 100.0) == pytest.approx(31.82446, rel=1e-5)
    T = np.array([[0.9, 0.1], [0.0, 1.0]])
    low, high = noise_interval(T, np.stack([T] * 4), np.array([100.0, 50.0]))
    assert high[0, 1] - 0.1 == pytest.approx(3.182446 * np.sqrt(0.09 / 100), rel=1e-5)
    assert low[1, 0] == high[1, 0] == 0.0
    found = number_interval(np.array([0.5, 0.5, 1.0, 0.0, 0.0, 0.0]), np.full(4, 2.0))
    assert found.value == 2.0
    assert found.high - 2.0 == pytest.approx(3.182446 * np.sqrt(0.5), rel=1e-5)


def test_without_trusted_rows_it_says_so_and_without_wrong_labels_that_there_are_few():
    X, y = load_breast_cancer(return_X_y=True)
    cleaner = LabelCleaner(random_state=0).fit(X, y)
    assert "no row is trusted" in cleaner.notes_[0]
    assert cleaner.expected_wrong_.value < 0.05 * len(y)
    given = np.where(np.arange(569) % 10 == 0, 1 - y, y)
    cleaner = LabelCleaner(random_state=0).fit(X, given)
    assert roc_auc_score(given != y, cleaner.wrong_label_probability_) > 0.95


def test_frames_sparse_matrices_and_pickles():
    X, y, _, trusted = classes(300)
    frame = pd.DataFrame({"a": X[:, 0], "b": np.where(X[:, 1] > 0.7, "high", "low"), "c": X[:, 2]})
    cleaner = LabelCleaner(random_state=0).fit(frame, y, trusted=trusted)
    assert list(cleaner.feature_names_in_) == ["a", "b", "c"]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cleaner)).predict(frame), cleaner.predict(frame))
    again = LabelCleaner(random_state=0).fit(frame[~trusted], y[~trusted], trusted=(frame[trusted], y[trusted]))
    np.testing.assert_allclose(again.predict_proba(frame), cleaner.predict_proba(frame), atol=1e-6)
    sparse = LabelCleaner(random_state=0).fit(scipy.sparse.csr_matrix(X), y, trusted=trusted)
    dense = LabelCleaner(random_state=0).fit(X, y, trusted=trusted)
    assert np.mean(sparse.predict(scipy.sparse.csr_matrix(X)) == dense.predict(X)) > 0.95


@pytest.mark.parametrize("model", [LogisticRegression(), pytest.param("additive", marks=pytest.mark.slow)])
def test_another_classifier_stands_in(model):
    X, y = load_breast_cancer(return_X_y=True)
    X, rng = X[:, :4], np.random.default_rng(0)
    flipped = rng.random(569) < 0.2
    trusted = np.arange(569) % 8 == 0
    given = np.where(flipped & ~trusted, 1 - y, y)
    cleaner = LabelCleaner(model, cv=3, random_state=0).fit(X, given, trusted=trusted)
    assert roc_auc_score(given != y, cleaner.wrong_label_probability_) > 0.9
    assert cleaner.expected_wrong_.value == pytest.approx(np.sum(given != y), rel=0.25)
    assert cleaner.score(X, y) > 0.88
    assert not cleaner.wrong_label_probability_[trusted].any()


def test_it_is_the_same_again_and_jax_is_not_imported():
    code = (
        "import sys, numpy as np; from sklearn.datasets import load_wine; from bilevax.sklearn import LabelCleaner\n"
        "X, y = load_wine(return_X_y=True); fit = lambda: LabelCleaner(cv=3, random_state=3).fit(X[:, :4], y)\n"
        "assert np.array_equal(fit().wrong_label_probability_, fit().wrong_label_probability_)\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


X, Y = load_wine(return_X_y=True)
SOME = np.arange(178) % 5 == 0


@pytest.mark.parametrize(
    ("trusted", "error", "words"),
    [
        (SOME[:100], ParameterError, "give True or False for each of the 178 rows"),
        (np.arange(178), ParameterError, "trusted has the shape .* type int"),
        (np.zeros(178, bool), ParameterError, "False in every row; leave it out"),
        (np.ones(178, bool), ParameterError, "no label to doubt"),
        (np.arange(178) < 2, DataError, "2 trusted rows for 3 classes are too few"),
        (Y == 2, DataError, "a trusted row has the label '2', which no other row has"),
        ((X[:9], np.full(9, 7)), DataError, "a trusted row has the label '7', which no other row has"),
        ((X[:9],), ParameterError, "a tuple of 1; give"),
        ((X[:9, :5], Y[:9]), ValueError, "5 features"),
        ((X[:9], Y[:8]), ValueError, "inconsistent numbers of samples"),
    ],
)
def test_bad_trusted_rows_are_named(trusted, error, words):
    with pytest.raises(error, match=words):
        LabelCleaner().fit(X, Y, trusted=trusted)


def test_other_bad_input_is_named():
    with pytest.raises(ValueError, match="model"):
        LabelCleaner("trees").fit(X, Y)
    with pytest.raises(DataError, match="too few for 5 folds"):
        LabelCleaner().fit(X[[0, 1, 70, 150]], Y[[0, 1, 70, 150]])
    cleaner = LabelCleaner(random_state=0).fit(X, Y, trusted=(X[:40], Y[:40]))
    assert cleaner.notes_ == ("no trusted row is of class '1', '2'",)
    with pytest.raises(DataError, match="label '9', which was not there"):
        cleaner.clean(X[:2], [0, 9])


def test_many_rows_choose_on_some(monkeypatch):
    monkeypatch.setattr(label_cleaner, "SEARCHED", 200)
    X, y, _, trusted = classes(600)
    cleaner = LabelCleaner(random_state=0).fit(X, y, trusted=trusted)
    assert cleaner.notes_ == ("the strengths were chosen on 260 of 600 rows",)


@pytest.mark.slow
def test_intervals_cover():
    """Of the matrix, and of the number of wrong labels, in 40 draws: 95 % and chance."""
    covered, entries = 0, []
    for seed in range(40):
        X, y, z, trusted = classes(900, seed=seed, spread=2.5)
        cleaner = LabelCleaner(random_state=0).fit(X, y, trusted=trusted)
        low, high = cleaner.noise_interval_
        entries.append((low <= T3) & (high >= T3))
        covered += cleaner.expected_wrong_.low <= np.sum(y != z) <= cleaner.expected_wrong_.high
    assert np.mean(entries) > 0.9
    assert covered >= 35


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_without_trusted_rows_the_labels_tell_how_many_are_wrong(rate):
    """Three clouds that a linear model knows: a rate that is far from where the search begins."""
    rng = np.random.default_rng(5)
    true = rng.integers(0, 3, 1000)
    X = 4.0 * np.eye(3)[true] + rng.normal(size=(1000, 3))
    flipped = rng.random(1000) < rate
    given = np.where(flipped, (true + rng.integers(1, 3, 1000)) % 3, true)
    cleaner = LabelCleaner(random_state=0).fit(X, given)
    value, low, high = cleaner.expected_wrong_
    assert low <= flipped.sum() <= high
    assert abs(value - flipped.sum()) < 0.07 * flipped.sum() + 6
    np.testing.assert_allclose(cleaner.noise_matrix_, (1 - 1.5 * rate) * np.eye(3) + rate / 2, atol=0.06)
    called = np.isin(np.arange(1000), cleaner.suspicious_rows_)
    assert np.sum(called & flipped) >= 0.9 * flipped.sum()
    assert np.sum(called & ~flipped) < 20


def test_without_trusted_rows_held_out_labels_choose_the_rate_of_each_class():
    """Of two clouds the first alone has flips."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 2, 1000)
    X = rng.normal(size=(1000, 3)) + 3.0 * true[:, None] * [1.0, 0.0, 0.0]
    given = np.where((rng.random(1000) < 0.4) & (true == 0), 1, true)
    found = search(X, Given(given, np.zeros(1000, bool), 2), np.arange(1000) % 5)
    np.testing.assert_allclose(1.0 / (1.0 + np.exp(-found.strengths.rate)), [0.4, 0.0], atol=0.1)


@pytest.mark.parametrize(("shape", "classes", "wide"), [
    ((100, 11), 2, True), ((100, 10), 2, False), ((100, 8), 14, True), ((100, 8), 13, False),
])  # fmt: skip
def test_wide_is_fewer_than_ten_rows_a_column_or_than_weights(shape, classes, wide):
    assert is_wide(np.zeros(shape), classes) is wide
