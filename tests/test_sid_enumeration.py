"""Every possible sequence of minibatches through the shipped estimator. No noise: what is compared is exact."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.config import canonicalize
from bilevax.testing.closed_forms import FiniteQuadratic
from bilevax.theory import hypergradient_moments, inner_moments, known, linear_moments

KEY = jax.random.key(7)
LONGEST = 3
MOST = 3**8  # sequences in one call: fewer are repeated, so that one program serves all lengths

SCHEDULES = {
    "constant": (bx.Constant(0.4), lambda j: 0.4 + 0.0 * j),
    "harmonic": (bx.Harmonic(2.0, 3.0), lambda j: 2.0 / (3.0 + j)),
    "polynomial": (bx.Polynomial(0.5, 0.75, 2.0), lambda j: 0.5 / (1.0 + j / 2.0) ** 0.75),
}


def sequences(n, *lengths):
    """All sequences of rows, cut into stages: one int32 [n^sum(lengths), LONGEST, 1] a stage, padded with the row n."""
    every = np.array(list(itertools.product(range(n), repeat=sum(lengths))), np.int32)
    scripts, at = [], 0
    for length in lengths:
        script = np.full((len(every), LONGEST, 1), n, np.int32)
        script[:, :length, 0] = every[:, at : at + length]
        scripts.append(script)
        at += length
    return scripts


@pytest.fixture(scope="module")
def enumerate_sid(Scripted):
    """The estimates of all scripts, one entry a script, as numpy arrays; v0 is None or a warm start."""

    @jax.jit
    def run(problem, sid, w0, v0, lam, train, val, scripts):
        def one(scripts):
            inner = {name: script for name, script in scripts.items() if name != "outer"}
            sources = [Scripted(train, KEY, inner), bx.Arrays(val)]
            if "outer" in scripts:
                sources[1] = Scripted(val, KEY, {"outer": scripts["outer"]})
            est = sid.estimate(bx.Instance(problem, lam, *sources), w0, key=KEY, v0=v0)
            return est.value, est.w, est.v, est.code

        return jax.vmap(one)(scripts)

    def call(problem, sid, w0, lam, data, scripts, v0=None):
        train, val = jax.tree.map(jnp.asarray, data)
        number = len(scripts["inner"])
        repeated = {name: np.resize(script, (MOST, *script.shape[1:])) for name, script in scripts.items()}
        out = run(canonicalize(problem), canonicalize(sid), w0, v0, jnp.asarray(lam), train, val, repeated)
        value, w, v, code = jax.tree.map(lambda x: np.asarray(x)[:number], out)
        assert np.all(code == bx.Code.OK)
        return value, w, v

    return call


def moments_of(samples, truth):
    error = samples - truth
    return error.mean(0), error.T @ error / len(error)


def assert_exact(measured, exact):
    """Equal to 1e-12 of the largest entry of the exact value."""
    np.testing.assert_allclose(measured, exact, rtol=0, atol=1e-12 * np.max(np.abs(exact)))


MORE = 2, 3, "constant", "harmonic"
"""Beside every pair of schedules for two steps of w and of v: one for another number of each."""


@pytest.mark.parametrize("correlated", [False, True], ids=["uncorrelated", "correlated"])
@pytest.mark.parametrize(
    ("t", "k", "inner", "linear"),
    [
        pytest.param(*counts, *of, marks=() if counts == (2, 2) or (*counts, *of) == MORE else pytest.mark.slow)
        for of in [("constant", "harmonic"), ("harmonic", "constant"), ("polynomial",) * 2]
        for counts in [(2, 2), (2, 3), (3, 2), (3, 3)]
    ],
)
def test_all_sequences_have_the_exact_moments(enumerate_sid, t, k, inner, linear, correlated):
    p = FiniteQuadratic.random(3, correlated=correlated, n=3, d=3, m=2)
    (eta, eta_of), (rho, rho_of) = SCHEDULES[inner], SCHEDULES[linear]
    sid = bx.SID(bx.FixedPoint(t, eta), bx.FixedPoint(k, rho), cross_batches=1)
    w0 = jnp.asarray([0.5, -1.0, 0.25])
    scripts = dict(zip(("inner", "linear", "cross"), sequences(3, t, k, 1), strict=True))
    value, w, v = enumerate_sid(p.problem, sid, w0, p.lam, (p.train_data, p.val_data), scripts)

    exact = p.moments(p.lam)
    at_w = inner_moments(exact, known(np.asarray(w0), exact.w), eta_of(np.arange(t)), 1)
    at_v = linear_moments(exact, at_w, rho_of(np.arange(k)), 1)
    at_end = hypergradient_moments(exact, at_v, 1, 1)
    for samples, truth, (mean, second) in (
        (w, p.w(p.lam), at_w),
        (v, p.v(p.lam), at_v[:2]),
        (value, p.hypergradient(p.lam), at_end),
    ):
        measured_mean, measured_second = moments_of(samples, truth)
        assert_exact(measured_mean, mean)
        assert_exact(measured_second, second)
    assert_exact(np.mean(np.sum((value - p.hypergradient(p.lam)) ** 2, axis=1)), at_end.mse)
    assert_exact((v - p.v(p.lam)).T @ (w - p.w(p.lam)) / len(w), at_v.with_inner)


@pytest.mark.parametrize("correlated", [False, True], ids=["uncorrelated", "correlated"])
def test_two_cross_batches_and_a_warm_start(enumerate_sid, correlated):
    p = FiniteQuadratic.random(4, correlated=correlated, n=3, d=3, m=2)
    eta, eta_of = SCHEDULES["harmonic"]
    w0, v0 = jnp.asarray([0.5, -1.0, 0.25]), jnp.asarray([1.0, 2.0, -0.5])
    scripts = dict(zip(("inner", "linear", "cross"), sequences(3, 2, 2, 2), strict=True))
    sid = bx.SID(bx.FixedPoint(2, eta), bx.FixedPoint(2, eta), cross_batches=2)
    value, _, _ = enumerate_sid(p.problem, sid, w0, p.lam, (p.train_data, p.val_data), scripts, v0)

    exact, steps = p.moments(p.lam), eta_of(np.arange(2))
    at_w = inner_moments(exact, known(np.asarray(w0), exact.w), steps, 1)
    at_end = hypergradient_moments(exact, linear_moments(exact, at_w, steps, 1, np.asarray(v0)), 1, 2)
    mean, second = moments_of(value, exact.hypergradient)
    assert_exact(mean, at_end.bias)
    assert_exact(second, at_end.second)


@pytest.mark.parametrize("correlated", [False, True], ids=["uncorrelated", "correlated"])
@pytest.mark.slow
def test_minibatches_of_two_rows(enumerate_sid, correlated):
    p = FiniteQuadratic.random(5, correlated=correlated, n=3, d=3, m=2)
    every = np.array(list(itertools.product(range(3), repeat=8)), np.int32)
    scripts = {name: np.full((len(every), 2, 2), 3, np.int32) for name in ("inner", "linear", "cross")}
    scripts["inner"][:, :1] = every[:, None, 0:2]
    scripts["linear"][:, :2] = every[:, 2:6].reshape(-1, 2, 2)
    scripts["cross"][:, :1] = every[:, None, 6:8]
    sid = bx.SID(bx.FixedPoint(1, 0.5), bx.FixedPoint(2, 0.5), cross_batches=1)
    value, _, _ = enumerate_sid(p.problem, sid, jnp.zeros(3), p.lam, (p.train_data, p.val_data), scripts)

    exact = p.moments(p.lam)
    at_w = inner_moments(exact, known(np.zeros(3), exact.w), [0.5], 2)
    at_end = hypergradient_moments(exact, linear_moments(exact, at_w, [0.5, 0.5], 2), 2, 1)
    mean, second = moments_of(value, exact.hypergradient)
    assert_exact(mean, at_end.bias)
    assert_exact(second, at_end.second)


# The same on a problem whose Jacobians change with w, against a loop over hand-derived derivatives.

ALPHA, TAU, RIDGE = 0.7, 0.4, 0.05


def logcosh(a):
    return a + jax.nn.softplus(-2.0 * a) - np.log(2.0)


def logcosh_inner(w, lam, batch):
    return jnp.mean(logcosh(batch["x"] @ w - batch["B"] @ lam + batch["o"])) + 0.5 * TAU * jnp.sum(w**2)


def logcosh_outer(w, lam, batch):
    return jnp.mean(logcosh(batch["z"] @ w + batch["c"] @ lam - batch["y"])) + 0.5 * RIDGE * jnp.sum(lam**2)


def logcosh_rows(seed, d=3, m=2):
    rng = np.random.default_rng(seed)
    train = {"x": rng.normal(size=(3, d)), "B": rng.normal(size=(3, m)), "o": rng.normal(size=3)}
    val = {"z": rng.normal(size=(3, d)), "c": rng.normal(size=(3, m)), "y": rng.normal(size=3)}
    return train, val


def by_hand(train, val, w0, lam, rows, etas, rhos):
    """SID of one sequence of rows: (inner, linear, cross, outer) lists; outer None means every row."""
    inner, linear, cross, outer = rows
    x, B, o = train["x"], train["B"], train["o"]
    w = w0
    for i, eta in zip(inner, etas, strict=True):
        gradient = x[i] * np.tanh(x[i] @ w - B[i] @ lam + o[i]) + TAU * w
        w = w + eta * ((w - ALPHA * gradient) - w)
    g, direct = np.zeros_like(w), np.zeros_like(lam)
    outer = range(len(val["y"])) if outer is None else outer
    for i in outer:
        slope = np.tanh(val["z"][i] @ w + val["c"][i] @ lam - val["y"][i])
        g, direct = g + val["z"][i] * slope / len(outer), direct + val["c"][i] * slope / len(outer)
    direct = direct + RIDGE * lam
    v = np.zeros_like(w)
    for i, rho in zip(linear, rhos, strict=True):
        curvature = 1.0 / np.cosh(x[i] @ w - B[i] @ lam + o[i]) ** 2
        hessian_v = x[i] * (curvature * (x[i] @ v)) + TAU * v
        v = v + rho * (v - ALPHA * hessian_v + g - v)
    product = np.zeros_like(lam)
    for i in cross:
        curvature = 1.0 / np.cosh(x[i] @ w - B[i] @ lam + o[i]) ** 2
        product = product + ALPHA * B[i] * curvature * (x[i] @ v) / len(cross)
    return direct + product, w, v


@pytest.mark.parametrize(
    ("t", "k", "J", "J1"),
    [pytest.param(2, 3, 1, None, marks=pytest.mark.slow), (3, 3, 1, None), (2, 2, 2, None), (2, 2, 1, 1), (1, 2, 1, 2)],
)
def test_all_sequences_of_a_problem_with_changing_jacobians(enumerate_sid, t, k, J, J1):
    train, val = logcosh_rows(11)
    (eta, eta_of), (rho, rho_of) = SCHEDULES["harmonic"], SCHEDULES["polynomial"]
    problem = bx.Problem(bx.GradientStep(logcosh_inner, ALPHA), logcosh_outer)
    sid = bx.SID(bx.FixedPoint(t, eta), bx.FixedPoint(k, rho), cross_batches=J, outer_batches=J1)
    names = ("inner", "linear", "cross") if J1 is None else ("inner", "linear", "cross", "outer")
    lengths = (t, k, J) if J1 is None else (t, k, J, J1)
    scripts = dict(zip(names, sequences(3, *lengths), strict=True))
    w0, lam = np.array([0.3, -0.8, 0.6]), np.array([0.7, -0.4])
    found = enumerate_sid(problem, sid, jnp.asarray(w0), lam, (train, val), scripts)

    wanted = []
    for i in range(len(scripts["inner"])):
        rows = [scripts[name][i, :length, 0] for name, length in zip(names, lengths, strict=True)]
        rows = rows if J1 is not None else [*rows, None]
        wanted.append(by_hand(train, val, w0, lam, rows, eta_of(np.arange(t)), rho_of(np.arange(k))))
    for samples, truth in zip(found, zip(*wanted, strict=True), strict=True):
        truth = np.array(truth)
        np.testing.assert_allclose(samples, truth, rtol=0, atol=1e-12 * np.max(np.abs(truth)))
