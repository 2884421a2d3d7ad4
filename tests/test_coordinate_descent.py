"""CoordinateDescent: solutions against scikit-learn's and scipy's, and the hypergradients that SID makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import ElasticNet

import bilevax as bx

KEY = jax.random.key(0)
SOLVER = bx.CoordinateDescent(tol=1e-10)
FIGURES = {3: 0.06112138, 10: 0.01275434, 30: -0.00162426}
"""dE / dlog alpha of the lasso on 300 rows of diabetes at alpha_max over these; E on the other 142."""


def standardized(load):
    X, y = load(return_X_y=True)
    return (X - X.mean(axis=0)) / X.std(axis=0), (y - y.mean()) / y.std() if load is load_diabetes else y


def soft(w, lam, s):
    """The prox of sum_j exp(lam_j) |w_j|; lam may be one for all."""
    return jnp.sign(w) * jnp.maximum(jnp.abs(w) - s * jnp.exp(lam), 0.0)


def squares(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2)


def held_out(w, lam, batch):
    return squares(w, None, batch)


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_one_model_solves_the_elastic_net(ratio):
    X, y = standardized(load_diabetes)

    def prox(w, alpha, s):
        return soft(w, jnp.log(ratio * alpha), s) / (1.0 + s * (1.0 - ratio) * alpha)

    step = bx.ProximalStep(squares, prox)
    # sweeps alone would need more than 160: the linear system ends them once the support is right
    solver = bx.CoordinateDescent(tol=1e-10, max_sweeps=100)
    for alpha in (0.3, 0.01):
        out = solver.solve(step, jnp.ones(10), jnp.asarray(alpha), bx.Arrays((X, y)))
        expected = ElasticNet(alpha, l1_ratio=ratio, fit_intercept=False, tol=1e-13, max_iter=1_000_000).fit(X, y)
        assert out.code == bx.Code.OK
        assert out.last_step == 1
        np.testing.assert_allclose(out.value, expected.coef_, rtol=1e-8, atol=1e-10)


def test_more_columns_than_rows():
    """The first sweeps keep more columns than there are rows, and the system on these is singular."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 60))
    X, w = X + 0.7 * np.roll(X, 1, 1), np.where(np.arange(60) % 6 == 0, 1.0, 0.0)
    y = X @ w + 2.0 * rng.normal(size=30)
    alpha = np.max(np.abs(X.T @ y)) / 30 / 100
    out = SOLVER.solve(bx.ProximalStep(squares, soft), jnp.zeros(60), jnp.log(alpha), bx.Arrays((X, y)))
    expected = ElasticNet(alpha, l1_ratio=1.0, fit_intercept=False, tol=1e-13, max_iter=1_000_000).fit(X, y)
    assert out.code == bx.Code.OK
    np.testing.assert_allclose(out.value, expected.coef_, atol=1e-7)


def test_logistic_regression_from_far_away():
    """From there the quadratic model is so wrong that its minimum is a worse point: the Hessian must be damped."""
    X, y = standardized(load_breast_cancer)
    out = SOLVER.solve(
        bx.ProximalStep(bx.BinaryLogistic(), lambda w, lam, s: soft(w, lam, s)),
        jnp.full((1, 30), 5.0), jnp.log(0.02), bx.Arrays((X, y)),
    )  # fmt: skip
    assert out.code == bx.Code.OK
    w = np.asarray(out.value)[0]
    gradient = (1.0 / (1.0 + np.exp(-X @ w)) - y) @ X / len(y)
    on = w != 0.0
    assert 5 < on.sum() < 15
    np.testing.assert_allclose(gradient[on], -0.02 * np.sign(w[on]), rtol=1e-8)
    assert np.all(np.abs(gradient[~on]) < 0.02)


def test_any_prox_that_acts_entry_by_entry():
    """Nonnegative least squares, in a nested w."""
    X, y = standardized(load_diabetes)

    def nonnegative(w, lam, s):
        return jax.tree.map(lambda x: jnp.maximum(x, 0.0), w)

    def loss(w, lam, batch):
        return squares(jnp.concatenate([w["a"], w["b"]]), lam, batch)

    start = {"a": jnp.ones(3), "b": jnp.zeros(7)}
    out = SOLVER.solve(bx.ProximalStep(loss, nonnegative), start, jnp.zeros(()), bx.Arrays((X, y)))
    expected = scipy.optimize.nnls(X, y)[0]
    np.testing.assert_allclose(np.concatenate([out.value["a"], out.value["b"]]), expected, atol=1e-9)


def lasso():
    X, y = standardized(load_diabetes)
    problem = bx.Problem(bx.ProximalStep(squares, soft), held_out)
    sources = bx.Arrays((X[:300], y[:300])), bx.Arrays((X[300:], y[300:]))
    return problem, sources, float(np.max(np.abs(X[:300].T @ y[:300])) / 300)


@pytest.mark.parametrize("part", FIGURES)
def test_three_figures_of_the_lasso_on_diabetes(part):
    problem, sources, largest = lasso()
    lam = jnp.log(largest / part)
    est = bx.hypergradient(problem, bx.SID(SOLVER, bx.Exact()), jnp.zeros(10), lam, *sources, key=KEY, report=False)
    assert float(est.value) == pytest.approx(FIGURES[part], abs=1e-8)

    def value(lam):
        w = SOLVER.solve(problem.inner_map, jnp.zeros(10), lam, sources[0]).value
        return sources[1].total(lambda w, rows: squares(w, None, rows), w)

    slope = (value(lam + 1e-5) - value(lam - 1e-5)) / 2e-5
    assert float(slope) == pytest.approx(FIGURES[part], abs=1e-7)


def test_a_penalty_of_a_column_off_the_support_has_no_hypergradient():
    problem, sources, largest = lasso()
    lam = jnp.full(10, np.log(largest / 10))
    sid = bx.SID(SOLVER, bx.GMRES(tol=1e-12))
    est = bx.hypergradient(problem, sid, jnp.zeros(10), lam, *sources, key=KEY, report=False)
    off = np.asarray(est.w) == 0.0
    assert 0 < off.sum() < 10
    assert not np.any(np.asarray(est.value)[off])
    assert np.all(np.asarray(est.value)[~off])
    assert float(est.value.sum()) == pytest.approx(FIGURES[10], abs=1e-8)
    again = bx.retrain_gap(problem, est.w, lam, jnp.zeros(10), *sources, key=KEY, inner=SOLVER)
    assert abs(float(again.gap)) < 1e-10


def test_what_cannot_be_solved_is_refused_in_a_sentence():
    problem, sources, _ = lasso()
    with pytest.raises(bx.ParameterError, match="LBFGS needs an inner loss without a prox"):
        bx.hypergradient(problem, bx.SID(bx.LBFGS(), bx.Exact()), jnp.zeros(10), jnp.zeros(()), *sources, key=KEY)
    with pytest.raises(bx.ParameterError, match="d=5,001 entries; use"):
        SOLVER.solve(squares, jnp.zeros(5001), jnp.zeros(()), sources[0])
    for name in ("tol", "max_steps", "max_sweeps"):
        with pytest.raises(bx.ParameterError, match=name):
            bx.CoordinateDescent(**{name: 0})


def test_too_few_models_are_said():
    X, y = standardized(load_breast_cancer)
    step = bx.ProximalStep(bx.BinaryLogistic(), soft)
    out = bx.CoordinateDescent(max_steps=1).solve(step, jnp.zeros((1, 30)), jnp.log(0.02), bx.Arrays((X, y)))
    assert out.code == bx.Code.MAX_STEPS
    assert out.calls == 1 + 32
