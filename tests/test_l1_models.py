"""Elastic nets on the host: solutions against scikit-learn's, hypergradients against central differences."""

import itertools

import numpy as np
import pytest
import scipy.sparse
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression, Ridge

from bilevax.solvers import l1_models
from bilevax.solvers.l1_logistic import L1LogisticModels
from bilevax.solvers.l1_quadratic import minimise_l1_quadratic, solve_on_support
from bilevax.solvers.l1_squared import L1SquaredModels
from bilevax.solvers.ridge_models import KernelRidgeModels

MODELS = {"squared": L1SquaredModels, "logistic": L1LogisticModels}


def table(kind):
    X, y = (load_diabetes if kind == "squared" else load_breast_cancer)(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    return X, (y - y.mean()) / y.std() if kind == "squared" else y.astype(float)


def wide(seed=0, n=40, p=90):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) + rng.normal(size=(n, 1))
    return X, X[:, :4] @ np.array([2.0, -1.0, 1.0, 0.5]) + 0.3 * rng.normal(size=n)


def folds(n, K=3):
    return np.random.default_rng(1).permutation(n) % K


def strengths(kind, X, y, *, share=0.05, l2=0.5):
    """Different for every column, of about this share of the largest l1."""
    p = X.shape[1]
    l1 = share * MODELS[kind](X, y, np.full(len(y), -1), 1).largest_l1() * np.exp(0.3 * np.sin(np.arange(p)))
    return l1, l2 * l1[::-1]


def on_all_rows(kind, X, y, l1, l2, **options):
    models = MODELS[kind](X, y, np.full(len(y), -1), 1, **options)
    models.solve(l1, l2, 1e-11)
    return models


def quadratic(d, rank, seed=0):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(rank, d)) + rng.normal(size=(rank, 1))
    return A.T @ A / rank, A.T @ rng.normal(size=rank) / rank


@pytest.mark.parametrize(("d", "rank"), [(8, 20), (60, 100), (60, 25)])
@pytest.mark.parametrize("share", [0.5, 0.05, 0.002])
def test_a_quadratic_with_l1_is_minimal_from_any_start(d, rank, share):
    """What 0 in the subdifferential asks of each coordinate; singular matrices too, and coordinates without l1."""
    H, q = quadratic(d, rank)
    l1 = share * np.max(np.abs(q)) * np.linspace(0.5, 1.5, d)
    l1[0] = 0.0
    values = []
    for start in (np.zeros(d), np.linspace(-3.0, 3.0, d)):
        w = minimise_l1_quadratic(H, q, l1, start)
        h = q - H @ w
        on = w != 0.0
        np.testing.assert_allclose(h[on], (l1 * np.sign(w))[on], atol=1e-8)
        assert np.all(np.abs(h[~on]) <= l1[~on] * (1.0 + 1e-8))
        values.append(0.5 * w @ H @ w - q @ w + l1 @ np.abs(w))
    assert values[0] == pytest.approx(values[1], rel=1e-9)


@pytest.mark.parametrize("few", [200, 0], ids=["all-active", "working-set"])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_lasso_and_the_elastic_net_are_scikit_learns(few, sparse):
    for X, y in (table("squared"), wide()):
        data = scipy.sparse.csc_array(X) if sparse else X
        p = X.shape[1]
        top = on_all_rows("squared", X, y, np.full(p, 1e9), np.zeros(p)).largest_l1()
        for alpha, ratio in itertools.product((0.5 * top, 0.02 * top), (1.0, 0.6)):
            l1, l2 = np.full(p, ratio * alpha), np.full(p, (1.0 - ratio) * alpha)
            models = on_all_rows("squared", data, y, l1, l2, few=few)
            expected = ElasticNet(alpha, l1_ratio=ratio, tol=1e-13, max_iter=1_000_000).fit(X, y)
            np.testing.assert_allclose(models.weights[:, 0], expected.coef_, rtol=1e-6, atol=1e-7)
            assert models.bias[0] == pytest.approx(expected.intercept_, rel=1e-6, abs=1e-9)
            assert abs(models.gaps(l1, l2)[0]) < 1e-10


@pytest.mark.parametrize("sparse", [False, True])
def test_a_penalty_per_column_is_one_of_rescaled_columns(sparse):
    """sum_j l1_j |w_j| is the l1 norm of l1_j w_j, whose columns are x_j / l1_j."""
    X, y = table("squared")
    l1, _ = strengths("squared", X, y)
    models = on_all_rows("squared", scipy.sparse.csc_array(X) if sparse else X, y, l1, np.zeros(len(l1)), few=0)
    expected = Lasso(1.0, tol=1e-13, max_iter=1_000_000).fit(X / l1, y).coef_ / l1
    np.testing.assert_allclose(models.weights[:, 0], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("share", "ratio"), [(0.2, 1.0), (0.05, 0.5)])
def test_l1_logistic_regression_is_scikit_learns(share, ratio):
    X, y = table("logistic")
    n, p = X.shape
    alpha = share * on_all_rows("logistic", X, y, np.full(p, 1e9), np.zeros(p)).largest_l1()
    # C sum loss + l1_ratio |w|_1 + (1 - l1_ratio) / 2 |w|^2 with C = 1 / (n alpha)
    expected = LogisticRegression(
        C=1.0 / (n * alpha), l1_ratio=ratio, solver="saga", tol=1e-9, max_iter=20_000, random_state=0
    ).fit(X, y)
    l1, l2 = np.full(p, ratio * alpha), np.full(p, (1.0 - ratio) * alpha)
    for data in (X, scipy.sparse.csc_array(X)):
        models = on_all_rows("logistic", data, y, l1, l2, few=0)
        np.testing.assert_allclose(models.weights[:, 0], expected.coef_[0], rtol=1e-5, atol=1e-7)
        assert models.bias[0] == pytest.approx(expected.intercept_[0], rel=1e-5)
        assert 0.0 < models.gaps(l1, l2)[0] + 1e-15 < 1e-12


@pytest.mark.parametrize("sparse", [False, True])
def test_ridges_are_scikit_learns_whichever_side_is_longer(sparse):
    for X, y in (table("squared"), wide()):
        n, p = X.shape
        l2 = np.exp(np.sin(np.arange(p)))
        data = scipy.sparse.csc_array(X) if sparse else X
        # sum (y - x . w)^2 + n l2 w^2, on rescaled columns
        expected = Ridge(float(n), solver="cholesky").fit(X / np.sqrt(l2), y)
        for models in (
            L1SquaredModels(data, y, np.full(n, -1), 1, few=p),
            KernelRidgeModels(data, y, np.full(n, -1), 1),
        ):
            models.solve(np.zeros(p), l2)
            np.testing.assert_allclose(models.weights[:, 0], expected.coef_ / np.sqrt(l2), rtol=1e-7, atol=1e-10)
            assert models.bias[0] == pytest.approx(expected.intercept_, abs=1e-9)


def central(make, l1, l2, h=1e-4):
    """dE / dlog l1 and dE / dlog l2 by central differences, each from models that start anew."""

    def value(which, j, s):
        at = l1.copy(), l2.copy()
        at[which][j] *= np.exp(s)
        models = make()
        models.solve(*at, 1e-12)
        return models.held_out(*at).value

    slopes = [[(value(which, j, h) - value(which, j, -h)) / (2 * h) for j in range(len(l1))] for which in (0, 1)]
    return np.array(slopes)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("few", [200, 0], ids=["all-active", "working-set"])
@pytest.mark.parametrize("kind", ["squared", "logistic"])
def test_hypergradients_are_central_differences_and_zero_off_the_support(kind, few, sparse):
    X, y = table(kind)
    X, y = X[:200, :10], y[:200]
    if kind == "squared":
        y = y - y.mean()
    l1, l2 = strengths(kind, X, y, share=0.1)
    # as many rows in each fold as there are not: the mean is over rows, and not over folds
    fold = np.repeat([0, 1, 2, -1], [30, 50, 80, 40])

    def make():
        return MODELS[kind](scipy.sparse.csc_array(X) if sparse else X, y, fold, 3, few=few)

    models = make()
    models.solve(l1, l2, 1e-12)
    held = models.held_out(l1, l2)
    off = np.all(models.weights == 0.0, axis=1)
    assert 0 < off.sum() < len(off)
    assert not np.any(held.l1[off])
    assert not np.any(held.l2[off])
    expected = central(make, l1, l2)
    np.testing.assert_allclose([held.l1, held.l2], expected, rtol=1e-6, atol=1e-8)


def test_the_held_out_loss_is_that_of_the_rows_left_out():
    for kind in MODELS:
        X, y = table(kind)
        fold = folds(len(y))
        models = MODELS[kind](X, y, fold, 3)
        l1, l2 = strengths(kind, X, y)
        models.solve(l1, l2)
        losses = np.empty(len(y))
        for k in range(3):
            rows = fold == k
            alone = on_all_rows(kind, X[~rows], y[~rows], l1, l2)
            score = X[rows] @ alone.weights[:, 0] + alone.bias[0]
            losses[rows] = (
                0.5 * (score - y[rows]) ** 2 if kind == "squared" else np.logaddexp(0.0, score) - y[rows] * score
            )
        assert models.held_out(l1, l2).value == pytest.approx(losses.mean(), rel=1e-7)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", ["squared", "logistic", "kernel"])
def test_a_row_of_weight_two_is_as_two_rows(kind, sparse):
    """In solutions, held-out losses, hypergradients and gaps; only the weights' proportions matter."""
    X, y = wide() if kind == "kernel" else table(kind)
    X, y = X[:150], y[:150]
    times, fold = np.random.default_rng(2).integers(1, 4, len(y)), folds(len(y))
    l1, l2 = (np.zeros(90), np.full(90, 0.1)) if kind == "kernel" else strengths(kind, X, y)
    make = KernelRidgeModels if kind == "kernel" else MODELS[kind]
    few = {} if kind == "kernel" or not sparse else {"few": 0}
    copies = make(X.repeat(times, axis=0), y.repeat(times), fold.repeat(times), 3)
    weighted = make(scipy.sparse.csc_array(X) if sparse else X, y, fold, 3, weight=0.37 * times, **few)
    np.testing.assert_allclose(weighted.trained_on, 0.37 * copies.trained_on)
    found = []
    for models in (copies, weighted):
        largest = 0.0 if kind == "kernel" else models.largest_l1()
        models.solve(l1, l2, 1e-11)
        found.append((largest, models.weights.copy(), models.bias, *models.held_out(l1, l2)))
        if kind != "kernel":
            assert np.all(np.abs(models.gaps(l1, l2)) < 1e-9)
            models.weights *= 1.1
            found[-1] += (models.gaps(l1, l2),)
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("sparse", [False, True])
def test_hypergradients_of_ridges_from_either_side(sparse):
    X, y = wide(n=30, p=40)
    l2, l1, fold = np.exp(np.sin(np.arange(40))), np.zeros(40), np.repeat([0, 1, 2, -1], [5, 8, 10, 7])
    data = scipy.sparse.csc_array(X) if sparse else X
    found = []
    for make in (
        lambda: KernelRidgeModels(data, y, fold, 3),
        lambda: L1SquaredModels(data, y, fold, 3, few=40),
    ):
        models = make()
        models.solve(l1, l2)
        held = models.held_out(l1, l2)
        np.testing.assert_allclose(held.l2, central(make, l1, l2)[1], rtol=1e-6, atol=1e-9)
        assert not np.any(held.l1)
        found.append(models)
    np.testing.assert_allclose(found[0].weights, found[1].weights, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", ["squared", "logistic"])
def test_the_gap_bounds_what_is_left_to_gain(kind):
    X, y = table(kind)
    l1, l2 = strengths(kind, X, y)
    # without l2 in a half of the columns: both ways of making a dual point feasible
    l2 = np.where(np.arange(len(l2)) % 2 == 0, l2, 0.0)
    best = on_all_rows(kind, X, y, l1, l2)

    def objective(models):
        w, score = models.weights[:, 0], X @ models.weights[:, 0] + models.bias[0]
        loss = 0.5 * (score - y) ** 2 if kind == "squared" else np.logaddexp(0.0, score) - y * score
        return loss.mean() + l1 @ np.abs(w) + 0.5 * l2 @ w**2

    rough = on_all_rows(kind, X, y, 1.3 * l1, l2)
    over = objective(rough) - objective(best)
    assert over > 1e-5
    assert over <= rough.gaps(l1, l2)[0] <= 100 * over
    assert abs(best.gaps(l1, l2)[0]) < 1e-9
    # a bias that is off leaves no dual point feasible as it is
    best.bias += 0.1
    over = objective(best) - objective(on_all_rows(kind, X, y, l1, l2))
    assert 0.0 < over <= best.gaps(l1, l2)[0] <= 100 * over


def test_a_warm_start_changes_nothing():
    for kind in MODELS:
        X, y = table(kind)
        l1, l2 = strengths(kind, X, y)
        cold = on_all_rows(kind, X, y, l1, l2, few=0)
        warm = MODELS[kind](X, y, np.full(len(y), -1), 1, few=0)
        warm.begin(np.linspace(-1.0, 1.0, X.shape[1]), 0.3)
        warm.solve(l1, l2, 1e-11)
        np.testing.assert_allclose(warm.weights, cold.weights, atol=1e-8)


@pytest.mark.parametrize("kind", ["squared", "logistic"])
def test_columns_that_retire_and_come_back_change_nothing(kind, monkeypatch):
    monkeypatch.setattr(l1_models, "GROWTH", 1)
    X, y = wide()
    y = y if kind == "squared" else (y > 0.0).astype(float)
    fold, l1 = folds(len(y)), strengths(kind, X, y)[0]
    models, sizes = MODELS[kind](X, y, fold, 3, few=0), []
    for scale in (0.2, 15.0, 12.0, 0.5, 1.0):
        models.solve(scale * l1, 0.1 * scale * l1, 1e-11)
        sizes.append(len(models.active))
    assert sizes[2] < min(sizes[1], sizes[3])
    cold = MODELS[kind](X, y, fold, 3)
    cold.solve(l1, 0.1 * l1, 1e-11)
    np.testing.assert_allclose(models.weights, cold.weights, atol=1e-7)
    np.testing.assert_allclose(models.held_out(l1, 0.1 * l1).l1, cold.held_out(l1, 0.1 * l1).l1, atol=1e-7)


FIGURES = {3: 0.06112138, 10: 0.01275434, 30: -0.00162426}
"""dE / dlog alpha of the lasso on diabetes at alpha_max over these, found apart from this code in three ways: by the
formula, by autodiff through a proximal fixed point, and by finite differences."""


def diabetes_300():
    """300 rows to train on and 142 to validate, columns and y standardised by all, no intercept."""
    X, y = table("squared")
    return X[:300], y[:300], X[300:], y[300:]


@pytest.mark.parametrize("part", FIGURES)
def test_three_figures_of_the_lasso_on_diabetes(part):
    X, y, X_held, y_held = diabetes_300()
    H, q = X.T @ X / 300, X.T @ y / 300
    alpha = np.max(np.abs(q)) / part
    w = minimise_l1_quadratic(H, q, np.full(10, alpha), np.zeros(10))
    S = np.flatnonzero(w)
    v = solve_on_support(H[np.ix_(S, S)], X_held[:, S].T @ (X_held @ w - y_held) / len(y_held))
    assert -alpha * np.sign(w[S]) @ v == pytest.approx(FIGURES[part], abs=1e-8)
