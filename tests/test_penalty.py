"""The penalty estimator against the closed form of its bias, and against its recursion written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.config import config
from bilevax.core.keys import stream
from bilevax.testing.closed_forms import FiniteAffine, FiniteQuadratic, PenalisedRidge

KEY = jax.random.key(5)
P = FiniteQuadratic.random(3, n=20, d=4, m=3)
A, B = P.A.mean(0), P.B.mean(0)
W0 = np.zeros(4)


def rows(p=P, batch_size=None):
    return bx.Arrays(p.train_data, batch_size), bx.Arrays(p.val_data)


def multiplied(c):
    """c (w - z) = (A + I / c)^-1 (w - target), of an outer Hessian I."""
    return np.linalg.solve(A + np.eye(4) / c, P.w(P.lam) - P.target)


def biased(c):
    return P.r * P.lam + B.T @ multiplied(c)


@pytest.mark.slow_but("LBFGS")
@pytest.mark.parametrize("inner", [bx.FixedPoint(400), bx.LBFGS(1e-13)], ids=["FixedPoint", "LBFGS"])
def test_its_bias_is_that_of_the_closed_form(inner):
    c = 7.0
    est = bx.hypergradient(P.problem, bx.Penalty(inner, c, 1.0, extrapolate=False), W0, P.lam, *rows(), key=KEY)
    np.testing.assert_allclose(est.value, biased(c), rtol=1e-9)
    np.testing.assert_allclose(est.w, P.w(P.lam), rtol=1e-9)
    np.testing.assert_allclose(est.outer_value, P.value(P.lam), rtol=1e-9)
    # v of the map, whose step is alpha
    np.testing.assert_allclose(est.v, multiplied(c) / P.curvature.alpha, rtol=1e-9)
    both = bx.hypergradient(P.problem, bx.Penalty(inner, c, 1.0), W0, P.lam, *rows(), key=KEY)
    np.testing.assert_allclose(both.value, 2 * biased(2 * c) - biased(c), rtol=1e-9)
    truth = P.hypergradient(P.lam)
    off = [np.linalg.norm(x.value - truth) for x in (est, both)]
    assert off[1] < 0.3 * off[0]
    # and both reports know of it
    for x, error in zip((est, both), off, strict=True):
        assert error <= float(x.error.upper) * np.linalg.norm(x.value) < 10 * error
        assert (x.code == bx.Code.OK) == (float(x.error.upper) <= 0.1)


@pytest.mark.parametrize("extrapolate", [False, True])
def test_the_bias_falls_as_a_power_of_c(extrapolate):
    truth, off = P.hypergradient(P.lam), []
    for multiplier in (100.0, 200.0):
        estimator = bx.Penalty(bx.FixedPoint(400), multiplier, extrapolate=extrapolate)
        est = bx.hypergradient(P.problem, estimator, W0, P.lam, *rows(), key=KEY, report=False)
        off.append(np.linalg.norm(est.value - truth) / np.linalg.norm(truth))
    assert off[0] < (5e-4 if extrapolate else 5e-2)
    np.testing.assert_allclose(off[0] / off[1], 4.0 if extrapolate else 2.0, rtol=0.1)


N, D, M, STEPS = 12, 3, 2, 6
RNG = np.random.default_rng(0)
X, Z, Y, Q = (RNG.normal(size=(N, width)) for width in (D, M, D, M))
LAM, START, STEP = np.array([0.5, -1.0]), np.linspace(-1.0, 1.0, D), 0.3


def inner(w, lam, batch):
    """Mean log 2 cosh(x'w - z'lam) + .1 |w|^2."""
    s = batch["x"] @ w - batch["z"] @ lam
    return jnp.mean(jnp.logaddexp(s, -s)) + 0.1 * w @ w


def outer(w, lam, batch):
    """Mean (y'w + q'lam - 1)^4 / 4 + .1 |lam|^2."""
    return jnp.mean((batch["y"] @ w + batch["q"] @ lam - 1.0) ** 4) / 4 + 0.1 * lam @ lam


def grad_g(w, chosen):
    slope = np.tanh(X[chosen] @ w - Z[chosen] @ LAM) / len(chosen)
    return slope @ X[chosen] + 0.2 * w, -slope @ Z[chosen]


def grad_e(w, chosen):
    slope = (Y[chosen] @ w + Q[chosen] @ LAM - 1.0) ** 3 / len(chosen)
    return slope @ Y[chosen], slope @ Q[chosen] + 0.2 * LAM


def test_w_and_every_z_move_on_the_same_minibatches(Scripted):
    scripts = RNG.integers(N, size=(2, STEPS, 2))
    # the streams of two sources that are drawn together
    base, eta, c = stream(KEY, "inner"), bx.Harmonic(3.0, 4.0), 5.0
    train = Scripted({"x": jnp.asarray(X), "z": jnp.asarray(Z)}, base, {"inner": jnp.asarray(scripts[0])})
    val = Scripted({"y": jnp.asarray(Y), "q": jnp.asarray(Q)}, base, {"linear": jnp.asarray(scripts[1])})
    problem = bx.Problem(bx.GradientStep(inner, STEP), outer)
    estimator, v0 = bx.Penalty(bx.FixedPoint(STEPS, eta), c, 1.0), np.array([1.0, -2.0, 0.5])
    est = bx.hypergradient(problem, estimator, START, LAM, train, val, key=KEY, v0=v0, report=False)

    w, copies = START, {c: START - STEP * v0 / c, 2 * c: START - STEP * v0 / (2 * c)}
    for j, (zeta, xi) in enumerate(zip(*scripts, strict=True)):
        rho = STEP * 3.0 / (4.0 + j)
        copies = {a: z - rho * (grad_g(z, zeta)[0] + grad_e(z, xi)[0] / a) for a, z in copies.items()}
        w = w - rho * grad_g(w, zeta)[0]
    every = np.arange(N)
    values = [grad_e(z, every)[1] + a * (grad_g(z, every)[1] - grad_g(w, every)[1]) for a, z in copies.items()]
    np.testing.assert_allclose(est.w, w, rtol=1e-12)
    np.testing.assert_allclose(est.value, 2 * values[1] - values[0], rtol=1e-10)
    v = [a * (w - z) / STEP for a, z in copies.items()]
    np.testing.assert_allclose(est.v, 2 * v[1] - v[0], rtol=1e-10)
    # three gradients of G on each minibatch, read once, and two of E; of the value three and three on every row
    counts = {name: (int(part.calls), int(part.samples)) for name, part in est.cost._asdict().items()}
    assert counts == {
        "gradients": (18, 12),
        "hvps": (0, 0),
        "cross": (18, 12),
        "outer_gradients": (12 + 18, 12 + 12),
        "measuring": (0, 0),
    }


@config
class Times:
    """A loss times a number."""

    loss: object
    by: float

    def __call__(self, w, lam, batch):
        return self.by * self.loss(w, lam, batch)


def test_scaling_either_loss_changes_no_iterate():
    """In units that are measured."""
    sources, found = (bx.Arrays({"x": X, "z": Z}, 4), bx.Arrays({"y": Y, "q": Q}, 4)), []
    for by_inner, by_outer in ((1.0, 1.0), (8.0, 1.0), (1.0, 1024.0)):
        step = bx.GradientStep(Times(inner, by_inner), STEP / by_inner)
        problem = bx.Problem(step, Times(outer, by_outer))
        estimator = bx.Penalty(bx.FixedPoint(10), 20.0, cross_batches=3)
        est = bx.hypergradient(problem, estimator, START, LAM, *sources, key=KEY, report=False)
        found.append(np.asarray(est.value) / by_outer)
    np.testing.assert_allclose(found[1:], [found[0]] * 2, rtol=1e-9)


def test_a_warm_start_leaves_a_multiplier_that_is_no_larger():
    """At the solution itself the inner gradient is 0, and the unit is of the length of w."""
    w0 = P.w(P.lam)
    est = bx.hypergradient(P.problem, bx.Penalty(bx.LBFGS(1e-12)), w0, P.lam, *rows(), key=KEY)
    c = 100 * P.curvature.alpha * np.linalg.norm(w0 - P.target) / np.linalg.norm(w0)
    np.testing.assert_allclose(est.value, 2 * biased(2 * c) - biased(c), rtol=1e-7)


def test_of_a_short_chain_without_a_second_copy_the_bias_is_not_known():
    estimator = bx.Penalty(bx.FixedPoint(60, 0.3), extrapolate=False)
    est = bx.hypergradient(P.problem, estimator, W0, P.lam, *rows(batch_size=5), key=KEY)
    assert est.code == bx.Code.TOLERANCE_NOT_MET
    assert np.isinf(float(est.error.upper))


@pytest.mark.slow
@pytest.mark.parametrize("make", [FiniteQuadratic, PenalisedRidge])
def test_the_report_on_a_chain_covers_its_error(make):
    """The truth lies within ``upper`` in at least nine of ten runs, where .95 is said."""
    p = make.random(1, n=60, d=4)
    truth, w0 = p.hypergradient(p.lam), jnp.zeros_like(jnp.asarray(p.w(p.lam)))
    estimator = bx.Penalty(bx.FixedPoint(400, bx.Harmonic(20.0, 40.0)), cross_batches=20)

    def one(key):
        est = bx.hypergradient(p.problem, estimator, w0, jnp.asarray(p.lam), *rows(p, 10), key=key)
        return est.value, est.error.upper

    values, uppers = map(np.asarray, jax.jit(jax.vmap(one))(jax.random.split(KEY, 200)))
    size, off = np.linalg.norm(values, axis=1), np.linalg.norm(values - truth, axis=1)
    covered, length = np.mean(off <= uppers * size), np.median(uppers * size / off)
    print(make.__name__, "covered", covered, "median upper over error", length)
    assert covered >= 0.9
    assert length < 15


def test_what_it_cannot_serve_is_refused():
    p = FiniteAffine.random(4, d=5, m=3)
    with pytest.raises(bx.ParameterError, match="Penalty needs an inner loss"):
        bx.hypergradient(p.problem, bx.Penalty(bx.FixedPoint(5)), np.zeros(5), p.lam, *rows(p), key=KEY)
    damped = bx.Problem(P.problem.inner_map, P.problem.outer_loss, damping=0.1)
    with pytest.raises(bx.ParameterError, match="leave damping away"):
        bx.hypergradient(damped, bx.Penalty(bx.FixedPoint(5)), W0, P.lam, *rows(), key=KEY)
    with pytest.raises(bx.ParameterError, match="multiplier must lie in"):
        bx.Penalty(bx.FixedPoint(5), 0.0)
    with pytest.raises(bx.ParameterError, match="inner must be a solver"):
        bx.Penalty(5)
