"""Short floating types, and systems with directions that no row sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx


def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    return X, X @ np.array([1.0, -1.0, 2.0, 0.0]) + rng.normal(size=60)


def outer(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2)


def ridge(w, lam, batch):
    return outer(w, lam, batch) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def shifted(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y - lam) ** 2)


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16])
def test_a_short_type_ends_at_its_floor_without_a_warning(kind):
    X, y = (jnp.asarray(x, kind) for x in rows())
    sources = bx.Arrays((X[:40], y[:40])), bx.Arrays((X[40:], y[40:]))
    start = jnp.zeros(4, kind), jnp.zeros(4, kind)
    method = bx.SID(bx.LBFGS(), bx.CG())
    est = bx.hypergradient(bx.Problem(bx.GradientStep(ridge), outer), method, *start, *sources, key=jax.random.key(0))
    A = np.array(X[:40], float).T @ np.array(X[:40], float) / 40 + np.eye(4)
    w = np.linalg.solve(A, np.array(X[:40], float).T @ np.array(y[:40], float) / 40)
    g = np.array(X[40:], float).T @ (np.array(X[40:], float) @ w - np.array(y[40:], float)) / 20
    truth = -w * np.linalg.solve(A, g)
    assert np.linalg.norm(np.array(est.value, float) - truth) < 0.02 * np.linalg.norm(truth)
    assert est.value.dtype == kind
    if kind == jnp.bfloat16:
        assert int(est.code) == bx.Code.STALLED
        assert 0.001 < float(est.error.relative) < 0.1


@pytest.mark.parametrize("linear", [bx.CG(), bx.GMRES(), bx.Neumann(), bx.FixedPoint(5000), bx.Exact()])
def test_a_column_twice_is_no_trouble_where_the_system_has_a_solution(linear):
    """The outer gradient is as blind to the difference of the two columns as the Hessian."""
    X, y = rows()
    X = np.concatenate([X[:, :1], X], axis=1)
    sources = bx.Arrays((X[:40], y[:40])), bx.Arrays((X[40:], y[40:]))
    method = bx.SID(bx.LBFGS(tol=1e-10), linear)
    problem = bx.Problem(bx.GradientStep(shifted), shifted)
    est = bx.hypergradient(problem, method, jnp.zeros(5), jnp.zeros(()), *sources, key=jax.random.key(0))
    Z, V = X[:40, 1:], X[40:, 1:]
    w = np.linalg.solve(Z.T @ Z, Z.T @ y[:40])
    error = V @ w - y[40:]
    truth = -np.mean(error) + np.mean(Z @ np.linalg.solve(Z.T @ Z / 40, V.T @ error / 20))
    assert int(est.code) == bx.Code.OK
    assert float(est.value) == pytest.approx(truth, rel=1e-5)


def test_exact_says_singular_where_there_is_no_solution():
    matvec, g = (lambda v: v * jnp.asarray([1.0, 0.5, 0.0])), jnp.asarray([1.0, 1.0, 1e-3])
    assert int(bx.Exact().solve(matvec, g, None).code) == bx.Code.SINGULAR
    solved = bx.Exact().solve(matvec, g.at[2].set(0.0), None)
    assert int(solved.code) == bx.Code.OK
    np.testing.assert_allclose(solved.value, [1.0, 2.0, 0.0])
