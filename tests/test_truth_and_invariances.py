"""Faults C17 to C19 and C22 (docs/faults.md): hypergradients are unbiased, right, scale and permute as they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.testing.closed_forms import FiniteQuadratic

KEY = jax.random.key(0)
D, N = 4, 24


# C17


P = FiniteQuadratic.random(2, correlated=True, n=20, d=4, m=3)
FEW = bx.SID(bx.FixedPoint(4, 0.5), bx.FixedPoint(4, 0.5), cross_batches=4)


def products():
    """4,000 estimates from minibatches of four rows, [4000, m]."""
    sources = bx.Arrays(P.train_data, 4), bx.Arrays(P.val_data)
    lam, w0 = jnp.asarray(P.lam), jnp.zeros(4)
    keys = jax.random.split(KEY, 4000)
    instance = bx.Instance(P.problem, lam, *sources)
    return np.asarray(jax.jit(jax.vmap(lambda key: FEW.estimate(instance, w0, key=key).value))(keys))


def deviation(found):
    """In standard errors, from the same few steps on every row: the Jacobians are constant, so that is the mean."""
    sources = bx.Arrays(P.train_data), bx.Arrays(P.val_data)
    truth = np.asarray(bx.hypergradient(P.problem, FEW, np.zeros(4), P.lam, *sources, key=KEY, report=False).value)
    return np.abs(found.mean(0) - truth) / (found.std(0, ddof=1) / np.sqrt(len(found)))


@pytest.mark.slow
def test_c17_the_mean_of_4000_products_is_that_of_the_full_batch():
    assert deviation(products()).max() < 4


@pytest.mark.slow
def test_c17_control_one_stream_for_all_stages_is_biased(monkeypatch):
    """Rows whose two Jacobians go together: shared minibatches would be seen here."""
    monkeypatch.setattr("bilevax.hypergradients.sid.stream", lambda key, name: key)
    assert deviation(products()).max() > 12


# C18, C19, C22 on one ridge regression, its numbers all arguments of programs that are compiled once


def inner_loss(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def outer_loss(w, lam, batch):
    Z, u, c = batch
    return jnp.mean(c * 0.5 * (Z @ w - u) ** 2) + jnp.mean(c) * 0.05 * jnp.vdot(lam, lam)


def data(seed=0):
    rng = np.random.default_rng(seed)
    X, Z = rng.normal(size=(2, N, D)) * np.linspace(1.0, 0.4, D)
    truth = rng.normal(size=D)
    y, u = X @ truth + 0.5 * rng.normal(size=N), Z @ truth + 0.5 * rng.normal(size=N)
    return (X, y), (Z, u, np.ones(N))


LAM = np.array([-1.0, 0.3, -2.0, -0.5])


def closed_form(lam, train, val):
    (X, y), (Z, u, _) = train, val
    H = X.T @ X / N + np.diag(np.exp(lam))
    w = np.linalg.solve(H, X.T @ y / N)
    v = np.linalg.solve(H, Z.T @ (Z @ w - u) / N)
    value = 0.5 * np.mean((Z @ w - u) ** 2) + 0.05 * lam @ lam
    return value, -np.exp(lam) * w * v + 0.1 * lam


def make(name, t=400):
    """An estimator, and the batch size it is used with."""
    return {
        "SID": (bx.SID(bx.FixedPoint(t, bx.Harmonic(4.0, 5.0)), bx.FixedPoint(t, 0.5), 7, 3), 5),
        "AID": (bx.SID(bx.FixedPoint(t), bx.FixedPoint(t)), None),
        "LBFGS-CG": (bx.SID(bx.LBFGS(tol=1e-12), bx.CG(tol=1e-13)), None),
        "GMRES": (bx.SID(bx.FixedPoint(t), bx.GMRES(tol=1e-13, restart=8)), None),
        "ITD": (bx.ITD(400), None),
    }[name]


EXACT = ["AID", "LBFGS-CG", "GMRES", "ITD"]


def problem():
    return bx.Problem(bx.GradientStep(inner_loss, 0.35), outer_loss)


def arguments(name, train=None, val=None, t=400):
    estimator, b = make(name, t)
    default = data()
    train, val = default[0] if train is None else train, default[1] if val is None else val
    return problem(), estimator, bx.Arrays(train, b), bx.Arrays(val, b)


def estimate(name, lam=LAM, key=KEY, **rows):
    model, estimator, train, val = arguments(name, **rows)
    return bx.hypergradient(model, estimator, np.zeros(D), lam, train, val, key=key)


def error(found, truth):
    return np.linalg.norm(np.asarray(found) - truth) / np.linalg.norm(truth)


@pytest.mark.parametrize("name", EXACT)
def test_c18_equals_the_closed_form(name):
    est = estimate(name)
    value, truth = closed_form(LAM, *data())
    assert est.code == bx.Code.OK
    assert error(est.value, truth) < 1e-6
    assert error(est.outer_value, value) < 1e-9


def test_c18_equals_central_differences():
    steps = 1e-5 * np.eye(D)
    truth = [(closed_form(LAM + e, *data())[0] - closed_form(LAM - e, *data())[0]) / 2e-5 for e in steps]
    assert error(estimate("LBFGS-CG").value, np.array(truth)) < 1e-7


def test_c18_the_error_falls_as_q_to_the_t():
    """With q the largest eigenvalue of d1Phi: neither slower nor, as from a start at the solution, faster."""
    (X, _), _ = data()
    q = np.abs(1 - 0.35 * np.linalg.eigvalsh(X.T @ X / N + np.diag(np.exp(LAM)))).max()
    truth = closed_form(LAM, *data())[1]
    errors = [error(estimate("AID", t=t).value, truth) for t in (30, 50, 70)]
    assert errors[-1] > 1e-10
    rates = (np.array(errors[1:]) / np.array(errors[:-1])) ** (1 / 20)
    np.testing.assert_allclose(rates, q, rtol=5e-3)


@jax.custom_vjp
def identity(x):
    return x


identity.defvjp(lambda x: (x, None), lambda _, g: (g,))


def with_a_derivative_of_its_own(w, lam, batch):
    return 0.5 * identity(w) + lam + 0.0 * jnp.mean(batch)


def sum_of_w(w, lam, batch):
    return jnp.sum(w) + 0.0 * jnp.mean(batch)


@pytest.mark.parametrize("batch_size", [1, None])
def test_c18_a_map_with_a_custom_vjp(batch_size):
    """Reverse mode is all that the theory asks of a map: kernels and implicit layers often have nothing else."""
    rows = bx.Arrays(np.zeros(2), batch_size)
    sid = bx.SID(bx.FixedPoint(60), bx.FixedPoint(60))
    model = bx.Problem(with_a_derivative_of_its_own, sum_of_w)
    est = bx.hypergradient(model, sid, np.zeros(D), np.ones(D), rows, rows, key=KEY)
    np.testing.assert_allclose(est.value, 2.0, rtol=1e-12)


def test_c19_implicit_unrolled_and_the_value_function_agree():
    """The value function is differenced as the library itself computes it, at the solution of its own inner solver."""
    steps = 1e-4 * np.eye(D)

    def value(lam):
        return float(estimate("LBFGS-CG", lam).outer_value)

    differences = np.array([(value(LAM + e) - value(LAM - e)) / 2e-4 for e in steps])
    found = {name: np.asarray(estimate(name).value) for name in EXACT}
    for name in EXACT:
        assert error(found[name], found["AID"]) < 1e-8
        assert error(found[name], differences) < 1e-6
    stochastic = np.mean([estimate("SID", key=jax.random.key(s)).value for s in range(30)], axis=0)
    assert error(stochastic, found["AID"]) < 0.1


# C22


@pytest.mark.parametrize("name", ["SID", *EXACT])
@pytest.mark.parametrize("c", [1e-6, 3.0, 1e8])
def test_c22_a_scaled_outer_loss_scales_the_hypergradient(name, c):
    """The same minibatches, so that it holds for the stochastic estimator as well."""
    _, (Z, u, one) = data()
    plain, scaled = estimate(name), estimate(name, val=(Z, u, c * one))
    np.testing.assert_allclose(scaled.value, c * np.asarray(plain.value), rtol=1e-9)
    np.testing.assert_allclose(scaled.outer_value, c * plain.outer_value, rtol=1e-12)
    assert np.array_equal(scaled.w, plain.w)
    assert scaled.code == plain.code


@pytest.mark.parametrize("name", EXACT)
def test_c22_permuted_rows_change_nothing(name):
    order = np.random.default_rng(1).permutation(N)
    train, val = (tuple(x[order] for x in rows) for rows in data())
    np.testing.assert_allclose(estimate(name, train=train, val=val).value, estimate(name).value, rtol=1e-10)


def test_c22_permuted_rows_change_nothing_to_twelve_digits():
    """At a fixed number of steps, where no tolerance decides when to end."""
    order = np.random.default_rng(1).permutation(N)
    train, val = (tuple(x[order] for x in rows) for rows in data())
    for name in ("AID", "ITD"):
        np.testing.assert_allclose(estimate(name, train=train, val=val).value, estimate(name).value, rtol=1e-12)


@pytest.mark.parametrize("name", ["AID", "ITD"])
def test_c22_repeated_rows_change_nothing(name):
    (X, y), val = data()
    twice = bx.Arrays((np.r_[X, X], np.r_[y, y]))
    model, estimator, _, source = arguments(name)
    est = bx.hypergradient(model, estimator, np.zeros(D), LAM, twice, source, key=KEY)
    np.testing.assert_allclose(est.value, estimate(name, val=val).value, rtol=1e-9)
