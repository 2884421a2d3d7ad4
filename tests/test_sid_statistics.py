"""The shipped estimator with its own random minibatches, against the exact moments."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

import bilevax as bx
from bilevax.core.config import canonicalize, config
from bilevax.testing.closed_forms import FiniteQuadratic
from bilevax.testing.tools import Wrapped
from bilevax.theory import hypergradient_moments, inner_moments, known, linear_moments, sid_moments

OPTIMISED = True
KEY = jax.random.key(0)
MANY = 20_000  # Monte Carlo runs


@partial(jax.jit, static_argnames="runs")
def monte_carlo(problem, sid, w0, lam, train, val, key, runs):
    """(value, w, v) of independent runs of the estimator, [runs, ...] each."""

    def one(key):
        est = sid.estimate(bx.Instance(problem, lam, train, val), w0, key=key)
        return est.value, est.w, est.v

    return jax.lax.map(one, jax.random.split(key, runs), batch_size=500)


def sample(p, sid, *, batch_size, w0=None, key=KEY, runs=MANY, sampling="iid"):
    train, val = bx.Arrays(p.train_data, batch_size, sampling=sampling), bx.Arrays(p.val_data)
    w0 = jnp.zeros(len(p.target)) if w0 is None else jnp.asarray(w0)
    out = monte_carlo(canonicalize(p.problem), canonicalize(sid), w0, jnp.asarray(p.lam), train, val, key, runs)
    return jax.tree.map(np.asarray, out)


def assert_mean(samples, exact):
    """Hotelling's statistic of the mean, as a vector, below the .9999 quantile of its limit."""
    difference = samples.mean(0) - exact
    statistic = len(samples) * difference @ np.linalg.solve(np.cov(samples.T), difference)
    assert statistic < chi2.ppf(0.9999, df=samples.shape[1])


def assert_square(samples, truth, exact):
    """Mean square error within four standard errors of the exact one."""
    squares = np.sum((samples - truth) ** 2, axis=1)
    assert abs(squares.mean() - exact) < 4 * squares.std(ddof=1) / np.sqrt(len(squares))


def harmonic(p, gamma):
    """beta = 2 / (1 - q^2), the schedule and its steps as a function of the count."""
    beta = 2 / (1 - p.curvature.q**2)
    return bx.Harmonic(beta, gamma), lambda number: beta / (gamma + np.arange(number))


def assert_moments(p, *, t, k, J, batch_size, gamma):
    """w_t, v_k and the hypergradient of a Monte Carlo run against the recursions."""
    schedule, steps = harmonic(p, gamma)
    sid = bx.SID(bx.FixedPoint(t, schedule), bx.FixedPoint(k, schedule), cross_batches=J)
    value, w, v = sample(p, sid, batch_size=batch_size)
    exact = p.moments(p.lam)
    at_w = inner_moments(exact, known(np.zeros_like(exact.w), exact.w), steps(t), batch_size)
    at_v = linear_moments(exact, at_w, steps(k), batch_size)
    at_end = hypergradient_moments(exact, at_v, batch_size, J)
    assert_mean(w, exact.w + at_w.mean)
    assert_square(w, exact.w, at_w.square)
    assert_mean(v, exact.v + at_v.mean)
    assert_square(v, exact.v, at_v.square)
    assert_mean(value, exact.hypergradient + at_end.bias)
    assert_square(value, exact.hypergradient, at_end.mse)


@pytest.mark.parametrize("J", [1, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("batch_size", "correlated"),
    [pytest.param(1, False, id="b1", marks=pytest.mark.slow), pytest.param(2, True, id="b2-correlated")],
)
def test_monte_carlo_equals_the_exact_moments(batch_size, correlated, J):
    p = FiniteQuadratic.random(0, correlated=correlated, n=40, d=4, m=3)
    assert_moments(p, t=100, k=100, J=J, batch_size=batch_size, gamma=60.0)


@pytest.mark.slow
def test_beyond_the_minibatches_that_are_drawn_at_once():
    """t, k and J all reach into the third chunk of 256 minibatches."""
    p = FiniteQuadratic.random(1, n=40, d=4, m=3)
    assert_moments(p, t=600, k=600, J=600, batch_size=1, gamma=60.0)


@pytest.mark.slow
@pytest.mark.parametrize("J", [1, 10])
@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("correlated", [False, True], ids=["uncorrelated", "correlated"])
def test_monte_carlo_equals_the_exact_moments_on_the_quadratic(correlated, batch_size, J):
    p = FiniteQuadratic.random(0, correlated=correlated)
    assert_moments(p, t=100, k=100, J=J, batch_size=batch_size, gamma=90.0)


def rates(p, beta, gamma, batch_size):
    """Log-log slopes, over two decades, of E|w_t-w*|^2, E|v_t-v*|^2 at w* and at w_t, and the MSE of t = k = J."""
    exact = p.moments(p.lam)
    authors = 2 / (1 - p.curvature.q**2)
    counts = np.unique(np.geomspace(10 * authors, 1000 * authors, 9).astype(int))
    steps = beta / (gamma + np.arange(counts[-1]))
    at_w, done, levels = known(np.zeros_like(exact.w), exact.w), 0, []
    for t in counts:
        at_w, done = inner_moments(exact, at_w, steps[done:t], batch_size), t
        alone = linear_moments(exact, known(exact.w, exact.w), steps[:t], batch_size)
        at_v = linear_moments(exact, at_w, steps[:t], batch_size)
        mse = hypergradient_moments(exact, at_v, batch_size, int(t)).mse
        levels.append([at_w.square, alone.square, at_v.square, mse])
    return np.polyfit(np.log(counts), np.log(levels), 1)[0]


@pytest.mark.parametrize("correlated", [False, True], ids=["uncorrelated", "correlated"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_decreasing_steps_give_the_rate_one_over_t(seed, correlated):
    p = FiniteQuadratic.random(seed, correlated=correlated)
    beta = 2 / (1 - p.curvature.q**2)
    slopes = rates(p, beta, beta, batch_size=20)
    assert np.all((slopes > -1.1) & (slopes < -0.9)), slopes


def test_negative_control_steps_that_sum_too_slowly_are_slower():
    p = FiniteQuadratic.random(0)
    beta = 0.2 / (1 - p.curvature.q**2)
    slopes = rates(p, beta, beta, batch_size=20)
    assert np.all(slopes > -0.6), slopes


@pytest.mark.slow
def test_monte_carlo_has_the_rate():
    p = FiniteQuadratic.random(0)
    beta = 2 / (1 - p.curvature.q**2)
    counts, levels = np.array([27, 81, 243, 729]), []
    for t in counts:
        solver = bx.FixedPoint(int(t), bx.Harmonic(beta, beta))
        value, w, _ = sample(p, bx.SID(solver, solver, cross_batches=int(t)), batch_size=20, runs=400)
        squares = [(w - p.w(p.lam)) ** 2, (value - p.hypergradient(p.lam)) ** 2]
        levels.append([np.mean(np.sum(x, axis=1)) for x in squares])
    slopes = np.polyfit(np.log(counts), np.log(levels), 1)[0]
    assert np.all((slopes > -1.2) & (slopes < -0.8)), slopes


def floor(p, batch_size, J):
    """E|(d2Phi_B - d2Phi)' v*|^2, from the rows themselves."""
    spread = (p.B - p.B.mean(0)).transpose(0, 2, 1) @ p.v(p.lam)
    return p.curvature.alpha**2 * np.mean(np.sum(spread**2, axis=1)) / (J * batch_size)


@pytest.mark.parametrize("J", [1, 4])
def test_the_bias_goes_while_the_error_stays_at_its_floor(J):
    p = FiniteQuadratic.random(0)
    _, steps = harmonic(p, 10.0)
    bias, mse = [], []
    for number in (10, 100, 1000, 10_000):
        end = sid_moments(p.moments(p.lam), np.zeros(10), steps(number), steps(number), batch_size=20, cross_batches=J)
        bias.append(np.linalg.norm(end.bias))
        mse.append(end.mse)
    assert np.all(np.diff(np.log10(bias)) < -0.8), bias
    assert np.all(np.array(mse) > floor(p, 20, J))
    assert mse[-1] < (1.01 if J == 1 else 1.05) * floor(p, 20, J)


@pytest.mark.parametrize("gamma", [None, 8.0], ids=["constant", "harmonic"])
def test_the_linear_systems_bias_falls_as_its_mean_recursion(gamma):
    p = FiniteQuadratic.random(0)
    exact, curvature = p.moments(p.lam), p.curvature
    for k in (1, 5, 30):
        steps = np.full(k, 0.3) if gamma is None else 2.0 / (gamma + np.arange(k))
        found = linear_moments(exact, known(exact.w, exact.w), steps, 1).mean
        bound = np.prod(1 - steps * (1 - curvature.q)) * np.linalg.norm(exact.v)
        assert np.linalg.norm(found) <= bound * (1 + 1e-12)
        if gamma is None:
            M = np.eye(10) - 0.3 * curvature.alpha * p.A.mean(0)
            np.testing.assert_allclose(found, -np.linalg.matrix_power(M, k) @ exact.v, rtol=1e-10)


@pytest.mark.slow
def test_the_shipped_solvers_bias_is_geometric_at_the_exact_inner_solution():
    """Constant steps: the variance of v_k stays, but its mean is -(I - eta alpha A)^k v* off."""
    p = FiniteQuadratic.random(2, correlated=True, n=40, d=4, m=3)
    M = np.eye(4) - 0.1 * p.curvature.alpha * p.A.mean(0)
    for k in (10, 80):
        sid = bx.SID(bx.Given(), bx.FixedPoint(k, 0.1), cross_batches=1)
        value, w, v = sample(p, sid, batch_size=2, w0=p.w(p.lam), runs=10_000)
        assert np.array_equal(w, np.broadcast_to(p.w(p.lam), w.shape))
        mean = p.v(p.lam) - np.linalg.matrix_power(M, k) @ p.v(p.lam)
        assert_mean(v, mean)
        assert_mean(value, p.r * p.lam + p.curvature.alpha * p.B.mean(0).T @ mean)


@pytest.mark.slow
def test_the_shipped_estimators_bias_is_below_the_noise_while_its_error_is_at_the_floor():
    p = FiniteQuadratic.random(0, n=40, d=4, m=3)
    schedule, steps = harmonic(p, 40.0)
    solver = bx.FixedPoint(1000, schedule)
    value, _, _ = sample(p, bx.SID(solver, solver, cross_batches=1), batch_size=1)
    end = sid_moments(p.moments(p.lam), np.zeros(4), steps(1000), steps(1000), batch_size=1, cross_batches=1)
    assert MANY * end.bias @ np.linalg.solve(end.covariance, end.bias) < 1
    assert_mean(value, p.hypergradient(p.lam))
    assert_square(value, p.hypergradient(p.lam), end.mse)
    assert floor(p, 1, 1) < end.mse < 1.05 * floor(p, 1, 1)


def linear_outer_loss(w, lam, batch):
    """An outer loss whose gradient does not depend on w."""
    return jnp.mean(batch["target"] @ w) + 0.0 * jnp.sum(lam)


SEEN = []
"""Keys of folds, in their order."""


@config
class Watching(Wrapped):
    """A source that notes the key of every fold, and exchanges one key for another."""

    old: object
    new: object

    def fold(self, step, carry, args, *, key, start, stop):
        data = jax.random.key_data(key)
        jax.debug.callback(lambda key: SEEN.append(tuple(key.tolist())), data, ordered=True)
        data = jnp.where(jnp.all(data == self.old), self.new, data)
        return self.source.fold(step, carry, args, key=jax.random.wrap_key_data(data), start=start, stop=stop)


@jax.jit
def watched_estimate(problem, sid, lam, sources, key, old, new):
    sources = tuple(Watching(source, old, new) for source in sources)
    est = sid.estimate(bx.Instance(problem, lam, *sources), jnp.zeros(4), key=key)
    return {name: getattr(est, name) for name in STAGES}


STAGES = ("w", "outer_value", "v", "value")
"""What the streams decide first, in the order of their folds: inner, outer, linear, cross."""


@pytest.fixture(scope="module")
def watched():
    """counts, key, exchanged key -> (what the stages gave, the keys of their folds)."""
    p = FiniteQuadratic.random(0, n=40, d=4, m=3)
    problem = canonicalize(bx.Problem(p.problem.inner_map, linear_outer_loss))
    val = {"target": np.random.default_rng(0).normal(size=(30, 4)), "r": np.zeros(30)}
    sources = bx.Arrays(p.train_data, 5), bx.Arrays(val, 5)
    nothing = np.zeros_like(jax.random.key_data(KEY))

    def call(t=20, k=20, J=5, J1=4, *, seed=0, exchange=(nothing, nothing)):
        solvers = (bx.FixedPoint(t, 0.1), bx.FixedPoint(k, 0.1))
        sid = canonicalize(bx.SID(*solvers, cross_batches=J, outer_batches=J1))
        SEEN.clear()
        out = watched_estimate(problem, sid, jnp.asarray(p.lam), sources, jax.random.key(seed), *exchange)
        found = jax.tree.map(np.asarray, jax.block_until_ready(out))
        jax.effects_barrier()
        return found, np.array(list(dict.fromkeys(SEEN)), np.uint32)  # a chain is cut, and looked into, on its stream

    return call


def changes(found, base):
    return {name for name in STAGES if not np.array_equal(found[name], base[name])}


@pytest.mark.usefixtures("hasty")
def test_the_four_streams_have_keys_of_their_own(watched):
    keys = np.concatenate([watched(seed=0)[1], watched(seed=1)[1]])
    assert len(keys) == 8
    assert len({tuple(key) for key in keys}) == 8


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("count", "follows"),
    [
        ("t", {"w", "outer_value"}),
        ("k", {"v", "value"}),
        ("J", {"value"}),
        ("J1", {"outer_value", "v", "value"}),
    ],
)
def test_no_count_moves_another_stream(watched, count, follows):
    """All Jacobians and the outer gradient are constant: each stage depends on its own stream and on what feeds it."""
    base, keys = watched()
    found, same_keys = watched(**{count: 300})
    assert np.array_equal(keys, same_keys)
    assert changes(found, base) == follows


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("stream", "follows"),
    [(0, {"w", "outer_value"}), (1, {"outer_value", "v", "value"}), (2, {"v", "value"}), (3, {"value"})],
    ids=["inner", "outer", "linear", "cross"],
)
def test_another_key_for_one_stream_moves_no_other(watched, stream, follows):
    base, keys = watched()
    found, _ = watched(exchange=(keys[stream], jax.random.key_data(jax.random.key(99))))
    assert changes(found, base) == follows


@pytest.mark.usefixtures("hasty")
def test_the_key_decides_everything(watched):
    first, again, other = (watched(seed=seed)[0] for seed in (0, 0, 1))
    assert changes(first, again) == set()
    assert changes(first, other) == set(STAGES)


@pytest.mark.usefixtures("hasty")
def test_both_doors_hand_the_key_on():
    p = FiniteQuadratic.random(0, n=40, d=4, m=3)
    sources = bx.Arrays(p.train_data, 5), bx.Arrays(p.val_data)
    sid = bx.SID(bx.FixedPoint(5, 0.1), bx.FixedPoint(5, 0.1), cross_batches=1)
    start = np.zeros(4), p.lam, *sources
    found = []
    for seed in (0, 0, 1):
        key = jax.random.key(seed)
        est = bx.hypergradient(p.problem, sid, *start, key=key, report=False)
        run = bx.minimize(p.problem, bx.BSGM(sid, bx.optim("sgd", 0.01)), *start, steps=2, key=key)
        found.append([np.asarray(x) for x in (est.value, est.w, est.v, run.lam, run.w)])
    for first, again, other in zip(*found, strict=True):
        assert np.array_equal(first, again)
        assert not np.any(first == other)


@pytest.mark.slow
def test_the_errors_of_the_stages_are_uncorrelated():
    """With Jacobians constant and v_k not fed by w_t, any correlation of the two is a shared stream."""
    p = FiniteQuadratic.random(0, n=40, d=4, m=3)
    problem = bx.Problem(p.problem.inner_map, linear_outer_loss)
    sid = bx.SID(bx.FixedPoint(20, 0.1), bx.FixedPoint(20, 0.1), cross_batches=1)
    sources = bx.Arrays(p.train_data, 1), bx.Arrays(p.val_data)
    out = monte_carlo(canonicalize(problem), canonicalize(sid), jnp.zeros(4), jnp.asarray(p.lam), *sources, KEY, MANY)
    _, w, v = jax.tree.map(np.asarray, out)
    correlation = np.corrcoef(w.T, v.T)[:4, 4:]
    assert np.max(np.abs(correlation)) < 4.5 / np.sqrt(MANY)
