"""Derivatives of stochastic gradient descent: w and its Jacobian, carried together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.instance import Oracle
from bilevax.hypergradients.piggyback import Carried, pushed
from bilevax.testing.closed_forms import FiniteQuadratic, PenalisedRidge

KEY = jax.random.key(5)
N, D, M, STEPS = 12, 3, 2, 6
RNG = np.random.default_rng(0)
X, Z, Y = RNG.normal(size=(N, D)), RNG.normal(size=(N, M)), RNG.normal(size=(N, D))
LAM, W0 = np.array([0.5, -1.0]), np.linspace(-1.0, 1.0, D)
STEP = 0.3


def inner(w, lam, batch):
    """Mean log 2 cosh(x'w - z'lam) + .1 |w|^2, whose derivatives all change with w and lam."""
    s = batch["x"] @ w - batch["z"] @ lam
    return jnp.mean(jnp.logaddexp(s, -s)) + 0.1 * w @ w


def outer(w, lam, batch):
    """Mean (y'w)^2 / 2 + .1 |lam|^2."""
    return jnp.mean((batch["y"] @ w) ** 2) / 2 + 0.1 * lam @ lam


PROBLEM = bx.Problem(bx.GradientStep(inner, STEP), outer)


def by_hand(script, eta):
    """The recursions of w and J on these rows, in numpy."""
    w, J = W0, np.zeros((D, M))
    for j, rows in enumerate(script):
        x, z = X[rows], Z[rows]
        s = x @ w - z @ LAM
        slope, curved = np.tanh(s) / len(rows), 1 / np.cosh(s) ** 2 / len(rows)
        H, cross = (curved[:, None] * x).T @ x + 0.2 * np.eye(D), -(curved[:, None] * x).T @ z
        w, J = w - eta(j) * STEP * (slope @ x + 0.2 * w), J - eta(j) * STEP * (H @ J + cross)
    return w, J


def test_every_step_is_the_derivative_on_the_same_minibatch(Scripted):
    script = np.array([[0, 1], [3, 3], [2, 7], [11, 4], [5, 6], [8, 9]])
    train = Scripted({"x": jnp.asarray(X), "z": jnp.asarray(Z)}, KEY, {"inner": jnp.asarray(script)})
    estimator = bx.Piggyback(bx.FixedPoint(STEPS, bx.Harmonic(3.0, 2.0)))
    est = bx.hypergradient(PROBLEM, estimator, W0, LAM, train, bx.Arrays({"y": Y}), key=KEY, report=False)
    w, J = by_hand(script, lambda j: 3.0 / (2.0 + j))
    np.testing.assert_allclose(est.w, w, rtol=1e-12)
    np.testing.assert_allclose(est.value, 0.2 * LAM + J.T @ (Y.T @ (Y @ w)) / N, rtol=1e-12)
    counts = {name: (int(part.calls), int(part.samples)) for name, part in est.cost._asdict().items()}
    assert counts == {
        "gradients": (6, 12),
        "hvps": (12, 0),
        "cross": (12, 0),
        "outer_gradients": (1, N),
        "measuring": (0, 0),
    }


def test_on_every_row_it_is_the_forward_mode_of_the_trajectory():
    rows = bx.Arrays({"x": X, "z": Z}), bx.Arrays({"y": Y})
    eta = bx.Polynomial(0.9, 0.3)
    ways = bx.Piggyback(bx.FixedPoint(20, eta)), bx.ITD(20, eta, mode="forward")
    found = [bx.hypergradient(PROBLEM, way, W0, LAM, *rows, key=KEY) for way in ways]
    np.testing.assert_allclose(found[0].value, found[1].value, rtol=1e-12)
    np.testing.assert_allclose(found[0].w, found[1].w, rtol=1e-12)
    # both reports are from the last move, that of the one of w and J, of the other of the value
    exact = bx.SID(bx.LBFGS(1e-12), bx.CG(1e-12))
    truth = bx.hypergradient(PROBLEM, exact, W0, LAM, *rows, key=KEY, report=False).value
    for est in found:
        assert np.linalg.norm(est.value - truth) <= float(est.error.upper) * np.linalg.norm(est.value)


def test_what_cannot_be_differentiated_is_refused():
    with pytest.raises(bx.ParameterError, match="inner must be bx"):
        bx.Piggyback(bx.LBFGS())


@pytest.mark.slow
def test_a_map_that_expands_is_named():
    """By the test that follows a suspicion, not by the suspicion."""
    rows = bx.Arrays({"x": X, "z": Z}, 4), bx.Arrays({"y": Y})
    problem = bx.Problem(bx.GradientStep(inner, 30.0), outer)
    est = bx.hypergradient(problem, bx.Piggyback(bx.FixedPoint(60)), W0, LAM, *rows, key=KEY)
    assert est.code in (bx.Code.NOT_CONTRACTIVE, bx.Code.UNSTABLE, bx.Code.DIVERGED), est
    assert int(est.cost.measuring.calls) > 0


# ---- the three regimes of Iutzeler, Pauwels, Vaiter (2024), on least squares

P, Q = 5, 2
A, C = RNG.normal(size=(200, P)), RNG.normal(size=(P, Q))
NOISE = RNG.normal(size=(200, Q))


def squares(w, lam, batch):
    """Mean (a'w - y(lam))^2 / 2, with y(lam) = b'lam: its solution J* lam has J* = (A'A)^-1 A'B."""
    return jnp.mean((batch["a"] @ w - batch["b"] @ lam) ** 2) / 2


def mean_square_errors(B, eta, stops, keys):
    """E |J_k - J*|^2 at these k, over that many keys."""
    problem, source = bx.Problem(bx.GradientStep(squares, 1.0), outer), bx.Arrays({"a": A, "b": B}, 4)
    wanted = np.linalg.lstsq(A, B, rcond=None)[0]
    start = Carried(jnp.zeros(P), jnp.zeros((Q, P)))

    @jax.jit
    @jax.vmap
    def run(key):
        def step(at, args, j, draw):
            image = pushed(at, args, draw.batch)
            return jax.tree.map(lambda x, y: x + eta(j) * (y - x), at, image)

        args = Oracle(problem, jnp.ones(Q)), jnp.eye(Q)
        return source.fold(step, start, args, key=key, start=0, stop=jnp.asarray(stops)).J

    J = run(jax.random.split(KEY, keys))
    return np.mean(np.sum((np.asarray(J) - wanted.T) ** 2, axis=(2, 3)), axis=0)


@pytest.mark.slow
def test_the_error_of_the_derivative_falls_as_one_over_k_and_not_at_all_and_geometrically():
    stops = [500, 2000, 8000, 20000]
    noisy, exact = A @ C + NOISE, A @ C
    falling = mean_square_errors(noisy, bx.Harmonic(4.0, 40.0), stops, 40)
    slope = np.polyfit(np.log(stops), np.log(falling), 1)[0]
    constant = mean_square_errors(noisy, bx.Constant(0.1), [200, *stops], 40)
    interpolating = mean_square_errors(exact, bx.Constant(0.1), stops, 10)
    print("slope", slope, "plateau", constant, "interpolation", interpolating)
    assert -1.2 < slope < -0.8
    assert constant.max() / constant.min() < 2
    assert constant.min() > 10 * falling[-1]
    assert interpolating[-1] < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("make", [FiniteQuadratic, PenalisedRidge])
def test_the_report_on_a_chain_covers_its_error(make):
    """The truth lies within ``upper`` in at least nine of ten runs, where .95 is said."""
    p = make.random(1, n=60, d=4)
    train, val = bx.Arrays(p.train_data, 10), bx.Arrays(p.val_data)
    truth, w0 = p.hypergradient(p.lam), jnp.zeros_like(jnp.asarray(p.w(p.lam)))
    estimator = bx.Piggyback(bx.FixedPoint(400, bx.Harmonic(20.0, 40.0)))

    def one(key):
        est = bx.hypergradient(p.problem, estimator, w0, jnp.asarray(p.lam), train, val, key=key)
        return est.value, est.error.upper

    values, uppers = map(np.asarray, jax.jit(jax.vmap(one))(jax.random.split(KEY, 200)))
    size, off = np.linalg.norm(values, axis=1), np.linalg.norm(values - truth, axis=1)
    covered, length = np.mean(off <= uppers * size), np.median(uppers * size / off)
    print(make.__name__, "covered", covered, "median upper over error", length)
    assert covered >= 0.9
    assert length < 15
