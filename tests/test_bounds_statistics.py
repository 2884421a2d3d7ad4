"""The bounds against exact moments, and the shipped solvers and SID beside wrong ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.config import canonicalize, config, replace_unchecked
from bilevax.testing.closed_forms import FiniteQuadratic, PenalisedRidge
from bilevax.testing.tools import Wrapped
from bilevax.theory import (
    bias_bound,
    hypergradient_moments,
    inner_moments,
    known,
    linear_bias_bound,
    linear_moments,
    mse_bound,
    second_moment_rate,
)

KEY = jax.random.key(0)
COUNTS = (10, 100, 1000)

QUADRATICS = {
    "quadratic": FiniteQuadratic.random(0),
    "quadratic-correlated": FiniteQuadratic.random(1, correlated=True),
    "small": FiniteQuadratic.random(2, n=30, d=4, m=3),
    "small-correlated": FiniteQuadratic.random(3, correlated=True, n=30, d=4, m=3),
}


# No bound is exceeded


def steps_of(recursion, rule):
    """The longest constant steps for which the theory speaks, or the best decreasing ones, COUNTS[-1] of them."""
    if rule == "constant":
        return np.full(COUNTS[-1], recursion.limit)
    beta, gamma = recursion.harmonic
    return beta / (gamma + np.arange(COUNTS[-1]))


def bound_of(recursion, rule, steps, start):
    if rule == "constant":
        return recursion.constant(recursion.limit, steps, start)
    return recursion.decreasing(*recursion.harmonic, steps, start)


def along(moments, start, etas):
    """The moments after each of COUNTS steps."""
    at, found = 0, []
    for t in COUNTS:
        start, at = moments(start, etas[at:t]), t
        found.append(start)
    return found


def square_at_w(exact, at_w, at_v):
    """E|v_k - v(w_t)|^2, from the errors of v_k and w_t against v* and w*: v(w) - v* is linear in w - w*."""
    K = np.linalg.inv(exact.alpha * exact.A)
    mixed = at_v.with_inner @ K.T
    return float(np.trace(at_v.second - mixed - mixed.T + K @ at_w.second @ K.T))


def ratios(p, rule, batch_size, constants=None):
    """What is exact over what its bound says, on the whole grid: {bound: array}."""
    exact = p.moments(p.lam)
    start = float(np.sum(exact.w**2))
    radius = np.sqrt(p.constants(p.lam, batch_size=batch_size).inner.highest(start))
    c = p.constants(p.lam, batch_size=batch_size, radius=radius) if constants is None else constants
    linear, found = c.linear(), {"inner": [], "linear": [], "linear in the mean": [], "hypergradient": [], "bias": []}
    inner_etas, linear_etas = steps_of(c.inner, rule), steps_of(linear, rule)
    zero = known(np.zeros_like(exact.w), exact.w)
    inner = along(lambda start, etas: inner_moments(exact, start, etas, batch_size), zero, inner_etas)
    for t, at_w in zip(COUNTS, inner, strict=True):
        rho = bound_of(c.inner, rule, t, start)
        found["inner"].append(at_w.square / rho)
        for k in COUNTS:
            at_v = linear_moments(exact, at_w, linear_etas[:k], batch_size)
            sigma = bound_of(linear, rule, k, c.linear_start())
            mean = linear_bias_bound(c.q, linear_etas[:k], np.sqrt(c.linear_start()))
            found["linear"].append(square_at_w(exact, at_w, at_v) / sigma)
            off = at_v.mean - np.linalg.solve(exact.alpha * exact.A, at_w.mean)
            rounding = 1e-12 * np.linalg.norm(exact.v)
            found["linear in the mean"].append(max(np.linalg.norm(off) - rounding, 0.0) / mean)
            for J in (1, k):
                end = hypergradient_moments(exact, at_v, batch_size, J)
                found["hypergradient"].append(end.mse / mse_bound(c, rho, sigma, J))
                for linear_bias in (mean, np.sqrt(sigma)):
                    found["bias"].append(np.linalg.norm(end.bias) / bias_bound(c, rho, linear_bias))
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("batch_size", [1, 20])
@pytest.mark.parametrize("rule", ["constant", "decreasing"])
@pytest.mark.parametrize("name", QUADRATICS)
def test_no_bound_is_exceeded(name, rule, batch_size):
    for bound, values in ratios(QUADRATICS[name], rule, batch_size).items():
        assert np.all(values <= 1.0), bound


@pytest.mark.parametrize(
    ("changes", "bounds"), [({"sigma1": 0.1}, {"inner"}), ({"L_E": 0.02}, {"linear", "linear in the mean"})]
)
def test_control_constants_that_are_too_small_make_bounds_that_are_exceeded(changes, bounds):
    p = QUADRATICS["quadratic"]
    right = p.constants(p.lam, batch_size=20)
    wrong = replace_unchecked(right, **{name: factor * getattr(right, name) for name, factor in changes.items()})
    exceeded = {name for name, values in ratios(p, "constant", 20, wrong).items() if np.any(values > 1.0)}
    assert exceeded >= bounds


# Monte Carlo with the shipped solvers


@partial(jax.jit, static_argnames="runs")
def estimates(problem, sid, w0, lam, sources, runs, key=KEY):
    """(value, w, v, code) of independent runs of SID, [runs, ...] each."""

    def one(key):
        est = sid.estimate(bx.Instance(problem, lam, *sources), w0, key=key)
        return est.value, est.w, est.v, est.code

    return jax.lax.map(one, jax.random.split(key, runs), batch_size=500)


def sample(p, sid, *, batch_size, runs, w0=None, train=None):
    train = bx.Arrays(p.train_data, batch_size) if train is None else train
    w0 = jnp.zeros_like(jnp.asarray(p.w(p.lam))) if w0 is None else jnp.asarray(w0)
    sources = train, bx.Arrays(p.val_data)
    return jax.tree.map(
        np.asarray, estimates(canonicalize(p.problem), canonicalize(sid), w0, jnp.asarray(p.lam), sources, runs)
    )


def mean_square(samples, truth):
    """(mean, standard error) of the square error."""
    squares = np.sum((samples - truth).reshape(len(samples), -1) ** 2, axis=1)
    return squares.mean(), squares.std(ddof=1) / np.sqrt(len(squares))


@pytest.mark.slow
def test_the_shipped_estimator_is_within_the_bounds():
    p, t = QUADRATICS["small-correlated"], 100
    start = float(np.sum(p.w(p.lam) ** 2))
    radius = np.sqrt(p.constants(p.lam, batch_size=2).inner.highest(start))
    c = p.constants(p.lam, batch_size=2, radius=radius)
    inner, linear = (bx.FixedPoint(t, bx.Harmonic(*r.harmonic)) for r in (c.inner, c.linear()))
    value, w, _, _ = sample(p, bx.SID(inner, linear, cross_batches=10), batch_size=2, runs=2000)
    rho = c.inner.decreasing(*c.inner.harmonic, t, start)
    sigma = c.linear().decreasing(*c.linear().harmonic, t, c.linear_start())
    for samples, truth, bound in ((w, p.w(p.lam), rho), (value, p.hypergradient(p.lam), mse_bound(c, rho, sigma, 10))):
        mean, error = mean_square(samples, truth)
        assert mean - 3 * error <= bound


# Constant steps end on a plateau


def settled(p, eta, batch_size):
    """(steps until the start is forgotten, E|w - w*|^2 at the fixed point of its recursion)."""
    exact = p.moments(p.lam)
    d, M = exact.w.size, np.eye(exact.w.size) - eta * exact.alpha * exact.A
    operator = np.kron(M, M) + (eta * exact.alpha) ** 2 / batch_size * exact.jacobian_noise
    plateau = np.linalg.solve(np.eye(d * d) - operator, eta**2 / batch_size * exact.noise.reshape(-1))
    level = np.trace(plateau.reshape(d, d))
    steps = (5 + 0.5 * np.log(np.sum(exact.w**2) / level)) / (eta * (1 - p.curvature.q))
    return int(np.ceil(steps)), level


@pytest.mark.parametrize("name", ["quadratic", "quadratic-correlated", "small"])
@pytest.mark.parametrize("batch_size", [1, 20])
def test_constant_steps_reach_a_plateau_that_falls_with_the_step(name, batch_size):
    p = QUADRATICS[name]
    exact, bound = p.moments(p.lam), p.constants(p.lam, batch_size=batch_size).inner
    longest, levels = min(0.25, bound.limit), []
    for eta in (longest, longest / 2):
        t, plateau = settled(p, eta, batch_size)
        zero = known(np.zeros_like(exact.w), exact.w)
        near, far = (inner_moments(exact, zero, np.full(n * t, eta), batch_size).square for n in (1, 4))
        assert abs(near / far - 1) < 0.05
        assert far == pytest.approx(plateau, rel=1e-3)
        assert plateau <= bound.plateau(eta)
        levels.append(plateau)
    assert 0.4 < levels[1] / levels[0] < 0.5


@pytest.mark.slow
def test_the_shipped_solver_stays_on_its_plateau():
    p, b = QUADRATICS["small"], 5
    for eta, n in ((0.25, 1), (0.25, 4), (0.125, 1)):
        t, plateau = settled(p, eta, b)
        sid = bx.SID(bx.FixedPoint(n * t, eta), bx.FixedPoint(0), cross_batches=1)
        mean, error = mean_square(sample(p, sid, batch_size=b, runs=2000)[1], p.w(p.lam))
        assert abs(mean - plateau) < 4 * error + 0.002 * plateau


# The floor, and J


@pytest.mark.parametrize("J", [1, 4, 16, 64])
def test_at_the_exact_solution_the_error_is_a_floor_over_j(J):
    p, b = QUADRATICS["small"], 2
    sid = bx.SID(bx.Given(), bx.Exact(), cross_batches=J)
    value = sample(p, sid, batch_size=b, w0=p.w(p.lam), runs=4000)[0]
    spread = p.curvature.alpha * (p.B - p.B.mean(0)).transpose(0, 2, 1) @ p.v(p.lam)
    floor = np.mean(np.sum(spread**2, axis=1)) / b
    mean, error = mean_square(value, p.hypergradient(p.lam))
    assert abs(J * mean - floor) < 4 * J * error
    assert error < 0.05 * mean


@pytest.mark.slow
def test_penalties_have_no_floor():
    """lam enters no row: with J = 1 the error keeps falling as w and v do."""
    p, errors = PenalisedRidge.random(0, n=40, d=4), []
    for t in (20, 200, 2000):
        solver = bx.FixedPoint(t, bx.Harmonic(30.0, 60.0))
        value = sample(p, bx.SID(solver, solver, cross_batches=1), batch_size=4, runs=200)[0]
        errors.append(mean_square(value, p.hypergradient(p.lam))[0])
    assert errors[1] < 0.4 * errors[0]
    assert errors[2] < 0.2 * errors[1]


# What wrong code would show


@config
class Frozen(Wrapped):
    """A source that hands out the first of its minibatches again and again."""

    is_full_batch = False

    def plan_chunk(self, plan, key, j, first):
        return self.source.plan_chunk(plan, key, jnp.int32(0), first)

    def visit(self, plan, j, use):
        return self.source.visit(plan, jnp.int32(0), use)


def relative_bias(value, p):
    return np.linalg.norm(value.mean(0) - p.hypergradient(p.lam)) / np.linalg.norm(p.hypergradient(p.lam))


@pytest.mark.slow
def test_one_frozen_minibatch_is_seen_with_any_steps():
    """With every row in the cross product, so that its noise hides nothing; w is at the solution, v a solver's."""
    p, b = QUADRATICS["quadratic"], 20
    published = 2 / (1 - p.curvature.q**2)
    train = bx.Arrays(p.train_data, b)
    for schedule in (bx.Polynomial(0.1, 0.0), bx.Polynomial(1.0, 1.0, published)):  # constant; beta = gamma
        sid = bx.SID(bx.Given(), bx.FixedPoint(200, schedule))
        right, wrong = (
            sample(p, sid, batch_size=b, w0=p.w(p.lam), train=source, runs=500)[0] for source in (train, Frozen(train))
        )
        assert relative_bias(right, p) < 0.015
        assert relative_bias(wrong, p) > 0.1


def test_the_map_itself_on_single_rows_is_refused_and_diverges():
    """eta = 1 with b = 1: a contraction in the mean whose second moment grows."""
    p = QUADRATICS["quadratic"]
    c = p.constants(p.lam, batch_size=1)
    assert second_moment_rate(p.moments(p.lam), 1.0, 1) > 1
    for recursion in (c.inner, c.linear()):
        with pytest.raises(bx.ParameterError, match="a step must lie in"):
            recursion.constant(1.0, 200, 1.0)
    codes = sample(p, bx.SID(bx.FixedPoint(200), bx.FixedPoint(200), cross_batches=1), batch_size=1, runs=100)[3]
    assert np.mean(codes >= bx.Code.DIVERGED) > 0.95
    stable = bx.FixedPoint(200, c.inner.limit)
    assert np.all(sample(p, bx.SID(stable, stable, cross_batches=1), batch_size=1, runs=100)[3] == bx.Code.OK)


@jax.jit
def scripted_estimates(problem, w, v, lam, source, val, scripts):
    """One step of the linear solver from v, and one cross product, on the rows of each script."""

    def one(script):
        sid = canonicalize(bx.SID(bx.Given(), bx.FixedPoint(1), cross_batches=1))
        return sid.estimate(
            bx.Instance(problem, lam, replace_unchecked(source, scripts=script), val), w, key=KEY, v0=v
        ).value

    return jax.vmap(one)(scripts)


def test_the_last_draw_reused_is_seen_where_jacobians_go_together(Scripted):
    """The means over every row or pair of rows: no noise. v is at its mean, v*, where the solver's mean stays."""
    p, b = FiniteQuadratic.random(0, correlated=True), 20
    train, w, v, lam = jax.tree.map(jnp.asarray, (p.train_data, p.w(p.lam), p.v(p.lam), p.lam))
    each = np.arange(200, dtype=np.int32).reshape(-1, 1, 1)
    pairs = {"linear": np.repeat(each, 200, axis=0), "cross": np.tile(each, (200, 1, 1))}
    bias = {}
    for name, scripts in (("fresh", pairs), ("reused", {"linear": each, "cross": each})):
        source = Scripted(train, KEY, scripts)
        value = scripted_estimates(canonicalize(p.problem), w, v, lam, source, bx.Arrays(p.val_data), scripts)
        bias[name] = relative_bias(np.asarray(value), p) / b  # the covariance of two means over the same b rows
    assert bias["fresh"] < 1e-12
    assert bias["reused"] > 0.02
    rows = p.A - p.A.mean(0), p.B - p.B.mean(0)
    expected = p.curvature.alpha**2 * np.einsum("idm,ide,e->m", rows[1], rows[0], p.v(p.lam)) / (200 * b)
    assert bias["reused"] == pytest.approx(np.linalg.norm(expected) / np.linalg.norm(p.hypergradient(p.lam)))


# What is counted


READ = {}
"""Minibatches that were read with each key, one of each stage."""


def note(key, number):
    READ[tuple(key.tolist())] = READ.get(tuple(key.tolist()), 0) + int(number)


@config
class Noting(Wrapped):
    """A source that notes how many minibatches are read with which key."""

    is_full_batch = False

    def fold(self, step, carry, args, *, key, start, stop):
        jax.debug.callback(note, jax.random.key_data(key), jnp.max(jnp.asarray(stop)) - start)
        return self.source.fold(step, carry, args, key=key, start=start, stop=stop)


@jax.jit
def noted_estimate(problem, sid, lam, sources):
    noting = tuple(map(Noting, sources))
    est = sid.estimate(bx.Instance(problem, lam, *noting), jnp.zeros(4), key=KEY)
    return est.cost, est.value


@pytest.mark.parametrize("J1", [pytest.param(None, marks=pytest.mark.slow), 4])
def test_what_is_read_is_what_is_counted(J1):
    p, b = QUADRATICS["small"], 4
    val = {"target": np.ones((6, 4)), "r": np.ones(6)}
    for t, k, J in ((7, 5, 3), (300, 1, 2), (0, 0, 1)):
        sid = bx.SID(bx.FixedPoint(t, 0.1), bx.FixedPoint(k, 0.1), cross_batches=J, outer_batches=J1)
        sources = bx.Arrays(p.train_data, b), bx.Arrays(val, 2)
        READ.clear()
        cost, value = noted_estimate(canonicalize(p.problem), canonicalize(sid), jnp.asarray(p.lam), sources)
        jax.block_until_ready(value)
        jax.effects_barrier()
        assert (cost.gradients.evaluations, cost.hvps.evaluations, cost.cross.evaluations) == (t * b, k * b, J * b)
        assert cost.outer_gradients.evaluations == (6 if J1 is None else J1 * 2)
        expected = [t, k, J] + ([] if J1 is None else [J1])
        assert sorted(x for x in READ.values() if x) == sorted(x for x in expected if x)
        assert cost.samples == (t + k + J) * b + cost.outer_gradients.evaluations
