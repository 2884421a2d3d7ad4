"""Measured steps that survive a curvature which grows, damped systems, and runs that stop where they fail."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.config import canonicalize
from bilevax.hypergradients.damping import damping_bias
from bilevax.linalg.power import walk_curvature

KEY = jax.random.key(7)
ONE_ROW = bx.Arrays(np.ones((1, 1)))


# ---- the walk


def bound(loss, w, rows=ONE_ROW, lam=0.0):
    """L of a measured gradient step."""
    ready = jax.jit(lambda w: bx.GradientStep(loss).measured(w, jnp.asarray(lam), rows, KEY))(jnp.asarray(w))
    return 1.0 / float(jnp.max(ready.metric(jnp.asarray(w), jnp.asarray(lam))))


def quadratic(w, lam, batch):
    return 0.5 * jnp.sum(jnp.array([4.0, 1.0, 0.1]) * w**2) * jnp.mean(batch)


def exponential(w, lam, batch):
    """Least at log 30, where its curvature is 30; at 0 it is 1."""
    return jnp.sum(jnp.exp(w) - 30.0 * w) * jnp.mean(batch)


def flat_start(w, lam, batch):
    """Curvature 1e-3 at 0, 1 + 1e-3 on the way to its minimum at some 1.9, and 10 there."""
    return jnp.sum(5e-4 * w**2 + 0.25 * w**4 - 7.0 * w) * jnp.mean(batch)


def linear(w, lam, batch):
    return jnp.sum(w) * jnp.mean(batch)


def test_of_a_quadratic_the_largest_eigenvalue_and_at_most_a_tenth_more():
    assert 4.0 <= bound(quadratic, np.ones(3)) <= 4.4 * (1 + 1e-9)


@pytest.mark.parametrize(("loss", "least"), [(exponential, 30.0), (flat_start, 10.0)])
def test_a_curvature_that_grows_on_the_way_is_met(loss, least):
    """At w0 = 0 it is 30 and 1e4 times less than at the minimum."""
    found = bound(loss, np.zeros(1))
    assert 0.9 * least <= found <= 4.0 * least
    step = bx.GradientStep(loss, 1.0 / found)
    w = jax.lax.fori_loop(0, 300, lambda _, w: step(w, 0.0, jnp.ones((1, 1))), jnp.zeros(1))
    assert abs(jax.grad(loss)(w, 0.0, jnp.ones((1, 1)))[0]) < 1e-6


def test_without_any_curvature_the_step_is_one():
    assert bound(linear, np.zeros(2)) == 1.0


def test_the_walk_reads_as_many_minibatches_as_it_says():
    seen = []

    def gradient(w, args, batch):
        jax.debug.callback(lambda: seen.append("gradient"))
        return w * jnp.mean(batch)

    def product(w, args, batch, u):
        jax.debug.callback(lambda: seen.append("product"))
        return u * jnp.mean(batch)

    rows = bx.Arrays(np.ones((6, 1)), batch_size=2)
    start = jnp.ones(2), jnp.zeros(())
    found = walk_curvature(gradient, product, start, None, rows, key=KEY, looks=(5, 3))
    jax.effects_barrier()
    assert (seen.count("gradient"), seen.count("product")) == (10, 15)
    np.testing.assert_allclose(found, 1.1)


# ---- families on which a step measured at w0 fails


def poisson(w, lam, batch):
    z = batch["x"] @ w[:-1] + w[-1]
    return jnp.mean(jnp.exp(z) - batch["y"] * z) + 0.5 * jnp.sum(jnp.exp(lam) * w[:-1] ** 2)


def poisson_loss(w, lam, batch):
    z = batch["x"] @ w[:-1] + w[-1]
    return jnp.mean(jnp.exp(z) - batch["y"] * z)


def exponential_squares(w, lam, batch):
    z = batch["x"] @ w[:-1] + w[-1]
    return 0.5 * jnp.mean((jnp.exp(z) - batch["y"]) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w[:-1] ** 2)


def counts(seed, rate, n=200, d=4):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2 * n, d))
    y = rng.poisson(rate * np.exp(0.3 * x @ rng.standard_normal(d))).astype(float)
    return [bx.Arrays({"x": x[s], "y": y[s]}, batch_size=8) for s in (slice(n), slice(n, None))]


@pytest.mark.slow_but("poisson")
@pytest.mark.parametrize(
    ("inner", "rates"), [(poisson, (1.0, 5.0, 20.0)), (exponential_squares, (3.0,))], ids=["poisson", "exp_squares"]
)
def test_a_curvature_that_grows_after_the_start_is_survived(inner, rates):
    """A step measured at w0 alone fails in each of the Poisson runs of rate 5 and more."""
    problem = bx.Problem(bx.GradientStep(inner), poisson_loss)
    arguments = np.zeros(5), np.full(4, -2.0)
    for rate in rates:
        for seed in range(4):
            key = jax.random.key(seed)
            est = bx.hypergradient(problem, bx.JointSID(1000), *arguments, *counts(seed, rate), key=key, report=False)
            assert est.code < bx.Code.NOT_CONTRACTIVE, (rate, seed, est.message)
            assert np.isfinite(est.value).all()


def test_a_message_never_advises_what_is_in_use():
    for code in bx.Code:
        assert "measured step" not in code.message
        assert "step_size=None" not in code.message


# ---- damping

A = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, -0.05]])
C = A + 0.5 * np.eye(3)
DELTA, STEP = 0.2, 0.25


def saddle(w, lam, batch):
    """A stationary point at lam, of a Hessian with a negative eigenvalue."""
    u = w - lam
    return 0.5 * (u @ (A * jnp.mean(batch)) @ u)


def definite(w, lam, batch):
    """A minimum at lam."""
    u = w - lam
    return 0.5 * (u @ (C * jnp.mean(batch)) @ u)


def ahead(w, lam, batch):
    return jnp.sum(w * jnp.arange(1.0, 4.0)) * jnp.mean(batch)


def damped_truth(delta, step=STEP):
    """d2Phi^T (A s + delta)^-1 g with d2Phi = s A."""
    return step * A @ np.linalg.solve(step * A + delta * np.eye(3), np.arange(1.0, 4.0))


ROWS = bx.Arrays(np.array([[0.9], [1.1]]), batch_size=1)


@pytest.mark.slow_but("CG", "FixedPoint")
@pytest.mark.parametrize(
    ("estimator", "rtol"),
    [
        (bx.SID(bx.Given(), bx.FixedPoint(400)), 0.15),
        (bx.SID(bx.Given(), bx.CG(1e-10)), 1e-8),
        (bx.SID(bx.Given(), bx.GMRES(1e-10)), 1e-8),
        (bx.SID(bx.Given(), bx.Exact()), 1e-8),
        (bx.JointSID(4000), 0.02),
    ],
    ids=["FixedPoint", "CG", "GMRES", "Exact", "JointSID"],
)
def test_every_linear_solver_solves_the_damped_system(estimator, rtol):
    problem = bx.Problem(bx.GradientStep(saddle, STEP), ahead, damping=DELTA)
    w = np.array([1.0, 2.0, 3.0])
    est = bx.hypergradient(problem, estimator, w, w, ROWS, ROWS, key=KEY, report=False)
    assert est.code < bx.Code.NOT_CONTRACTIVE, est.message
    np.testing.assert_allclose(est.value, damped_truth(DELTA), rtol=rtol)


def test_the_price_of_damping_is_the_first_order_of_what_it_changes():
    w, delta = np.array([1.0, 2.0, 3.0]), 0.05
    problem = bx.Problem(bx.GradientStep(definite, STEP), ahead, damping=delta)
    damped = STEP * C + delta * np.eye(3)
    v = np.linalg.solve(damped, np.arange(1.0, 4.0))
    rows, w = bx.Arrays(np.ones((1, 1))), jnp.asarray(w)
    instance = bx.Instance(canonicalize(problem), w, rows, rows)
    bias, number = jax.jit(lambda instance, at: damping_bias(instance, at, key=KEY))(instance, (w, jnp.asarray(v)))
    np.testing.assert_allclose(bias, np.abs(delta * STEP * C @ np.linalg.solve(damped, v)), rtol=0.06)
    assert number > 50


def test_the_report_prices_the_damping():
    """The bias is the change to first order, a little more than the error of the damped value."""
    w, delta = np.array([1.0, 2.0, 3.0]), 0.02
    problem = bx.Problem(bx.GradientStep(definite, STEP), ahead, damping=delta)
    est = bx.hypergradient(problem, bx.SID(bx.Given(), bx.CG(1e-10)), w, w, ONE_ROW, ONE_ROW, key=KEY)
    error = np.linalg.norm(est.value - np.arange(1.0, 4.0))  # undamped, d2Phi^T (A s)^-1 g = g
    assert 0.7 * error < np.linalg.norm(est.error.bias) < 1.5 * error


def test_a_damping_is_checked():
    with pytest.raises(bx.ParameterError, match="damping must lie in"):
        bx.Problem(bx.GradientStep(saddle), ahead, damping=-1.0)


# ---- runs


def turning(w, lam, batch):
    """The curvature is 2 - lam."""
    return (0.5 * jnp.sum((w - 1.0) ** 2) + 0.5 * jnp.sum((1.0 - lam) * w**2)) * jnp.mean(batch)


def upwards(w, lam, batch):
    """Its hypergradient is nearly -1.8."""
    return 1e-3 * jnp.sum(w) * jnp.mean(batch) - 1.8 * jnp.sum(lam)


def solve(problem, estimator=None, steps=8, w0=1.0, **options):
    estimator = estimator or bx.SID(bx.FixedPoint(60), bx.FixedPoint(60))
    algorithm = bx.BSGM(estimator, bx.optim("sgd", learning_rate=0.5))
    return bx.minimize(
        problem, algorithm, np.full(1, w0), np.zeros(1), ONE_ROW, ONE_ROW, steps=steps, key=KEY, **options
    )  # fmt: skip


@pytest.mark.parametrize("every", [1, None])
def test_a_run_that_fails_stops_at_once_and_says_where(every):
    """Lam is 0, .9, 1.8, 2.7: there the map expands."""
    seen = []
    problem = bx.Problem(bx.GradientStep(turning, 0.5), upwards, damping=0.0)
    result = solve(problem, every=every, callback=lambda p: seen.append(float(p.lam[0])))
    assert result.history.code.tolist()[:-1] == [0, 0, 0]
    assert result.code == result.history.code[-1] == bx.Code.NOT_CONTRACTIVE
    assert "of outer step 3." in result.message
    assert "stopped there, with the w and lam before it" in result.message
    np.testing.assert_allclose(result.lam, 2.7, rtol=0.01)
    if every == 1:
        assert seen[-1] == seen[-2] == result.lam[0]


def double_well(w, lam, batch):
    return jnp.sum(0.25 * (w**2 - 1.0) ** 2 - lam * w) * jnp.mean(batch)


def test_a_system_that_is_not_positive_definite_is_damped_and_the_run_goes_on():
    """At the top of the hill, w = 0, the curvature is -1: with the step .2 a damping above .2 is needed."""
    problem = bx.Problem(bx.GradientStep(double_well, 0.2), lambda w, lam, batch: jnp.sum(w) * jnp.mean(batch))
    result = solve(problem, bx.SID(bx.Given(), bx.FixedPoint(100)), steps=3, w0=0.0)
    assert result.code < bx.Code.NOT_CONTRACTIVE
    assert result.config["damping"] == [[0, 0.01], [0, 0.04], [0, 0.16], [0, 0.64]]
    assert len(result.history.code) == 3
    # what was tried in vain is counted, with the first step
    first, *others = np.diff(result.history.samples, prepend=0)
    assert result.cost.samples == result.history.samples[-1]
    assert first > 2 * max(others)
    assert "damped by 0.64 from outer step 0 on" in result.message


# ---- a network with every default


@pytest.mark.slow
def test_a_network_is_reweighted_with_every_default():
    """Rows with flipped labels lose weight against clean ones."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((160, 2))
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int32)
    flipped = np.arange(100) % 4 == 0
    noisy = np.where(flipped, 1 - y[:100], y[:100])
    net = eqx.nn.MLP(2, 2, 8, 1, activation=jnp.tanh, key=jax.random.key(0))
    w0, rest = eqx.partition(net, eqx.is_inexact_array)

    def losses(w, x, y):
        return -jnp.take_along_axis(jax.nn.log_softmax(jax.vmap(eqx.combine(w, rest))(x)), y[:, None], 1)[:, 0]

    def weighted(w, lam, batch):
        x, y, i = batch
        decay = 1e-3 * sum(jnp.sum(p**2) for p in jax.tree.leaves(w))
        return jnp.mean(jax.nn.sigmoid(lam[i]) * losses(w, x, y)) + decay

    problem = bx.Problem(bx.GradientStep(weighted), lambda w, lam, batch: jnp.mean(losses(w, *batch)))
    train = bx.Arrays((x[:100], noisy, np.arange(100, dtype=np.int32)), batch_size=20)
    val = bx.Arrays((x[100:], y[100:]), batch_size=20)
    algorithm = bx.BSGM(bx.JointSID(400), bx.optim("adam", learning_rate=0.3))
    result = bx.minimize(problem, algorithm, w0, np.zeros(100), train, val, steps=5, key=KEY)
    assert result.code < bx.Code.NOT_CONTRACTIVE, result.message
    assert np.mean(result.lam[~flipped]) > np.mean(result.lam[flipped]) + 0.2
    assert result.history.outer_value[-1] < result.history.outer_value[0]
