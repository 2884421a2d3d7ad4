"""What SID on minibatches says of its own error, against exact filters and closed forms."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import bilevax as bx
from bilevax.core.config import canonicalize
from bilevax.core.records import SNAPSHOTS, Snapshots
from bilevax.core.trees import norm, sub
from bilevax.hypergradients.sid_error import RelaxationRate, last_point_error
from bilevax.solvers.chain import boundaries
from bilevax.testing.closed_forms import FiniteQuadratic
from bilevax.testing.problems import problem

STEPS = 2000


def chain(schedule, h, start=0.0):
    """The tail of x_{j+1} = x_j + eta_j (noise_j - h x_j): the response to a unit of noise at each step, and to x_0."""
    x = np.zeros(STEPS + 1)
    x[-1] = 1.0
    points, travel, sizes, s = [], [], [], 0.0
    cuts = np.asarray(boundaries(jnp.int32(STEPS)))
    for j, eta in enumerate(np.asarray(jax.vmap(schedule)(jnp.arange(STEPS, dtype=jnp.int32)), float)):
        x = (1 - eta * h) * x
        x[j] += eta
        s += eta
        if j + 1 in cuts:
            points.append(x.copy())
            travel.append(s)
            sizes.append(eta)
    points = np.stack(points)
    points[:, -1] *= start
    return Snapshots(jnp.asarray(points), jnp.asarray(travel), jnp.asarray(sizes))


error_of = jax.jit(last_point_error)
CONSTANT, FALLING = bx.Constant(0.1), bx.Harmonic(20.0, 40.0)


@pytest.mark.parametrize(
    ("schedule", "h", "low", "high"),
    [
        (CONSTANT, 0.1, 0.9, 1.1),  # 20 relaxation times
        (CONSTANT, 0.03, 0.85, 1.15),
        (CONSTANT, 0.01, 0.7, 1.2),
        (FALLING, 0.2, 0.9, 1.3),
        (FALLING, 0.05, 0.8, 1.3),  # beta h = 1
    ],
)
def test_the_noise_of_the_slowest_direction_has_its_variance(schedule, h, low, high):
    """Exact: each noise is one entry, and the squares of independent noises add up."""
    tail = chain(schedule, h)
    found = error_of(tail, RelaxationRate(jnp.asarray(h), jnp.asarray(h)))
    variance = float(jnp.sum(tail.points[-1] ** 2))
    assert low < float(jnp.sum(found.squares)) / variance < high
    assert 1.0 <= float(found.degrees_of_freedom) <= SNAPSHOTS - 2


@pytest.mark.parametrize("schedule", [CONSTANT, FALLING])
@pytest.mark.parametrize("times", [2.0, 5.0, 20.0])
def test_that_of_faster_directions_is_rather_too_large(schedule, times):
    h = 0.03
    tail = chain(schedule, times * h)
    found = error_of(tail, RelaxationRate(jnp.asarray(h), jnp.asarray(h)))
    assert 0.9 < float(jnp.sum(found.squares) / jnp.sum(tail.points[-1] ** 2)) < 10.0


@pytest.mark.parametrize("schedule", [CONSTANT, FALLING])
@pytest.mark.parametrize("h", [0.001, 0.01, 0.05])
def test_what_is_left_of_a_start_is_seen_without_noise(schedule, h):
    """In the slowest direction to the last digit, and bounded in all that are faster."""
    tail = chain(schedule, h, start=1.0)
    alone = tail._replace(points=tail.points[:, -1:])
    left = float(tail.points[-1, -1])
    exact = error_of(alone, RelaxationRate(jnp.asarray(h), jnp.asarray(h)))
    assert float(exact.bias[0]) == pytest.approx(left, rel=0.15)
    assert float(exact.squares[0]) < 1e-4
    slower = error_of(alone, RelaxationRate(jnp.asarray(h), jnp.asarray(0.3 * h)))
    assert float(slower.bias[0]) > left


def test_a_chain_without_a_step_knows_nothing():
    nothing = Snapshots(jnp.ones((SNAPSHOTS, 3)), jnp.zeros(SNAPSHOTS), jnp.ones(SNAPSHOTS))
    assert np.all(np.isinf(error_of(nothing, RelaxationRate(jnp.asarray(0.1), jnp.asarray(0.1))).bias))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_where_no_curvature_is_seen_nothing_is_not_a_number_and_the_way_to_go_is_endless(kind):
    """As where the direction goes along negative curvature; noise is as with a curvature that is almost none."""
    tail = jax.tree.map(lambda x: x.astype(kind), chain(FALLING, 0.05))
    none, almost = (RelaxationRate(jnp.asarray(h, kind), jnp.asarray(h, kind)) for h in (np.finfo(kind).tiny, 1e-6))
    found, limit = error_of(tail, none), error_of(tail, almost)
    np.testing.assert_allclose(found.squares, limit.squares, rtol=1e-2)
    assert np.all(np.isfinite(found.squares))
    assert float(jnp.linalg.norm(found.bias)) > 1e3 * float(jnp.linalg.norm(tail.points[-1]))


OTHERS = "logistic-500x20-0.001", "quadratic-10-b32"


@jax.jit
def errors(problem, sid, w0, lam, sources, truth, keys):
    """(code, estimated and true relative error) of runs; one program for all numbers of steps."""

    def one(key):
        est = bx.hypergradient(problem, sid, w0, lam, *sources, key=key)
        return est.code, est.error.relative, norm(sub(est.value, truth)) / norm(truth)

    return jax.vmap(one)(keys)


def estimates(name, steps, runs=12):
    """What :func:`errors` finds of some runs of so many steps."""
    p, solver = problem(name), bx.FixedPoint(steps, bx.Harmonic(20.0, 40.0))
    sid = bx.SID(solver, solver, cross_batches=20)
    w0, lam, truth = jax.tree.map(jnp.asarray, (p.w0, p.lam, p.solution().hypergradient))
    keys = jax.random.split(jax.random.key(5), runs)
    return jax.tree.map(np.asarray, errors(*canonicalize((p.problem, sid)), w0, lam, p.sources(), truth, keys))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ridge", *OTHERS])
def test_a_run_that_is_too_short_says_so(name):
    """The one thing that must not happen: OK where the error is ten times what was asked for."""
    for steps in (5, 50):
        codes, estimated, true = estimates(name, steps)
        assert np.sqrt(np.mean(true**2)) > 0.15
        assert np.all(codes == bx.Code.TOLERANCE_NOT_MET)
        assert np.sqrt(np.mean(estimated**2) / np.mean(true**2)) > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ridge", "logistic-500x20-0.1", "quadratic-10-b32"])
def test_a_long_run_knows_its_error(name):
    codes, estimated, true = estimates(name, 5000)
    assert np.mean(codes == bx.Code.OK) > 0.7
    assert 0.8 < np.sqrt(np.mean(estimated**2) / np.mean(true**2)) < 2.5


P = FiniteQuadratic.random(0, n=60, d=6, m=4)
DATA = bx.Arrays(P.train_data, 4), bx.Arrays(P.val_data)


def run(sid, start, *, problem=P.problem, sources=DATA, runs=200):
    """Values and reports of some runs."""

    @jax.jit
    def one(key):
        est = bx.hypergradient(
            canonicalize(problem), canonicalize(sid), jnp.asarray(start), jnp.asarray(P.lam), *sources, key=key
        )
        return est.value, est.error

    return jax.tree.map(np.asarray, jax.vmap(one)(jax.random.split(jax.random.key(2), runs)))


@pytest.mark.slow
@pytest.mark.parametrize("batches", [1, 5])
def test_cross_batches_are_priced_even_a_single_one(batches):
    sid = bx.SID(bx.Given(), bx.Exact(), cross_batches=batches)
    value, error = run(sid, P.w(P.lam), runs=400)
    variance = np.var(value, axis=0, ddof=1)
    np.testing.assert_allclose(np.mean(error.standard_error**2, axis=0), variance, rtol=0.35)
    assert np.all(error.bias < 1e-8)
    assert np.all(error.degrees_of_freedom >= 3 + batches - 1)
    np.testing.assert_allclose(error.sampling, np.linalg.norm(error.standard_error, axis=1), rtol=1e-6)


def noisy_outer_loss(w, lam, batch):
    """E of rows whose targets differ."""
    return 0.5 * jnp.mean(jnp.sum((w[None] - batch["target"]) ** 2, axis=1)) + 0.05 * jnp.sum(lam**2)


@pytest.mark.slow
def test_outer_batches_are_priced_and_a_single_one_is_not_trusted():
    rng = np.random.default_rng(3)
    val = bx.Arrays({"target": P.target + rng.normal(size=(200, 6))}, 5)
    noisy = bx.Problem(P.problem.inner_map, noisy_outer_loss)
    train = bx.Arrays(P.train_data)
    sid = bx.SID(bx.Given(), bx.Exact(), outer_batches=8)
    value, error = run(sid, P.w(P.lam), problem=noisy, sources=(train, val), runs=400)
    variance = np.var(value, axis=0, ddof=1)
    np.testing.assert_allclose(np.mean(error.standard_error**2, axis=0), variance, rtol=0.35)
    assert np.all(error.degrees_of_freedom == 1)
    single = bx.SID(bx.Given(), bx.Exact(), outer_batches=1)
    est = bx.hypergradient(noisy, single, P.w(P.lam), P.lam, train, val, key=jax.random.key(0))
    assert est.code == bx.Code.TOLERANCE_NOT_MET
    assert np.isinf(est.error.relative)
    assert "more outer batches" in est.message


@pytest.mark.slow
def test_noise_of_w_reaches_the_hypergradient_by_way_of_v():
    """v of conjugate gradients at every w: all noise is that of w, most of it through the right-hand side."""
    sid = bx.SID(bx.FixedPoint(600, 0.2), bx.CG(1e-12))
    value, error = run(sid, np.zeros(6))
    true = np.sqrt(np.sum(np.var(value, axis=0, ddof=1)))
    assert 0.75 < np.sqrt(np.mean(error.inner**2)) / true < 1.8
    assert np.all(error.linear == 0)
    assert np.all(error.sampling == 0)


@pytest.mark.slow
def test_noise_of_v_alone():
    sid = bx.SID(bx.Given(), bx.FixedPoint(600, 0.2))
    value, error = run(sid, P.w(P.lam))
    true = np.sqrt(np.sum(np.var(value, axis=0, ddof=1)))
    assert 0.75 < np.sqrt(np.mean(error.linear**2)) / true < 1.8
    assert np.all(error.inner == 0)


def test_the_report_reads_less_than_a_seventh_of_what_the_estimate_did():
    solver = bx.FixedPoint(1000, 0.2)
    est = bx.hypergradient(P.problem, bx.SID(solver, solver), np.zeros(6), P.lam, *DATA, key=jax.random.key(0))
    assert 0 < est.error.samples < 0.15 * est.cost.samples


def test_the_estimate_is_that_without_a_report():
    solver = bx.FixedPoint(40, 0.2)
    sid, w0, lam = canonicalize(bx.SID(solver, solver, cross_batches=3)), jnp.zeros(6), jnp.asarray(P.lam)
    key = jax.random.key(4)
    est = bx.hypergradient(P.problem, sid, w0, lam, *DATA, key=key)
    instance = bx.Instance(canonicalize(P.problem), lam, *DATA)
    plain = jax.jit(lambda key: sid.estimate(instance, w0, key=key).value)(key)
    np.testing.assert_allclose(est.value, plain, rtol=1e-12)


@pytest.mark.slow
def test_directions_over_sparse_rows_are_asked_one_after_another():
    """A batched scatter takes twice the time of as many scatters."""
    X = scipy.sparse.random_array((60, 8), density=0.3, rng=np.random.default_rng(0), format="csr")
    source = bx.SparseRows((X, np.arange(60) % 3), 10)
    loss = bx.MultinomialLogistic("feature")
    problem, key = bx.Problem(bx.GradientStep(loss), loss), jax.random.key(0)
    estimator = bx.SID(bx.FixedPoint(20), bx.FixedPoint(20))

    def run(w0, lam):
        return bx.hypergradient(problem, estimator, w0, lam, source, source, key=key)

    text = str(jax.make_jaxpr(run)(jnp.zeros((3, 8)), jnp.zeros(8)))
    added = re.findall(r"\[([\d,]+)\] = scatter-add", text)
    assert added
    assert max(shape.count(",") for shape in added) == 1
