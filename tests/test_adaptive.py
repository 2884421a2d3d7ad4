"""Runs with a target: what is continued is what was begun, and they end where they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.config import canonicalize
from bilevax.testing.closed_forms import FiniteQuadratic

KEY = jax.random.key(5)
P = FiniteQuadratic.random(0, n=60, d=4, m=3)
START = P.problem, jnp.zeros(4), jnp.asarray(P.lam)
NOISY = bx.Arrays(P.train_data, 4), bx.Arrays(P.val_data)
WHOLE = bx.Arrays(P.train_data), bx.Arrays(P.val_data)


def run(estimator, sources=NOISY, key=KEY, **options):
    problem, w0, lam = START
    return bx.hypergradient(problem, estimator, w0, lam, *sources, key=key, **options)


def true_error(est):
    truth = P.hypergradient(P.lam)
    return np.linalg.norm(est.value - truth) / np.linalg.norm(truth)


def legs(estimator, number, sources=NOISY):
    """The last of so many legs, each a compiled program of its own."""
    problem, w0, lam = canonicalize(START[0]), *START[1:]
    instance = bx.Instance(problem, lam, *sources)

    @jax.jit
    def leg(estimator, state, doublings):
        return estimator.suspecting().extend(instance, state, key=KEY, doublings=doublings)

    state = estimator.init(instance, w0, key=KEY)
    for doublings in range(number):
        est, state = leg(canonicalize(estimator), state, doublings)
    return est, state


def affine(x, args, batch):
    return x - 0.3 * (jnp.mean(batch["A"], axis=0) @ x - jnp.mean(batch["b"], axis=0))


def test_a_chain_that_goes_on_is_to_the_bit_the_one_that_never_stopped():
    """Decreasing steps, over the edge of a chunk of minibatches."""
    steps = bx.Harmonic(4.0, 8.0)

    @jax.jit
    def solve(count, start, first):
        return bx.FixedPoint(count, steps).solve(affine, start, None, NOISY[0], key=KEY, first=first)

    once = solve(400, jnp.zeros(4), 0)
    again = solve(150, solve(250, jnp.zeros(4), 0).value, 250)
    np.testing.assert_array_equal(again.value, once.value)
    assert int(again.last_step) == 400
    assert int(again.calls) == 150


def test_steps_on_every_row_go_on_as_well():
    def solve(count, start, first=0):
        return bx.FixedPoint(count, bx.Harmonic(4.0, 8.0)).solve(affine, start, None, WHOLE[0], key=KEY, first=first)

    np.testing.assert_array_equal(solve(5, solve(7, jnp.zeros(4)).value, 7).value, solve(12, jnp.zeros(4)).value)


@pytest.mark.slow
def test_a_joint_run_of_three_legs_is_one_run_of_four_times_the_steps():
    """One chain, given steps: to the bit where it ends, and to rounding in its mean and its error."""
    options = {"extrapolate": False, "last_pass": "never"}
    est, state = legs(bx.JointSID(64, 0.3, **options), 3)
    long, whole = legs(bx.JointSID(256, 0.3, **options), 1)
    np.testing.assert_array_equal(state.chains.w, whole.chains.w)
    np.testing.assert_array_equal(state.chains.v, whole.chains.v)
    np.testing.assert_array_equal(state.series.extrapolated.counts, np.full(12, 16))
    for a, b in ((est.value, long.value), (est.w, long.w), (est.error.standard_error, long.error.standard_error)):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.slow
def test_a_count_that_does_not_divide_loses_no_step():
    """Of 2 x 37 steps the last three quarters, 56, are in the means, whatever the edges of the stretches."""
    est, state = legs(bx.JointSID(37, 0.3, extrapolate=False, last_pass="never"), 2)
    long, _ = legs(bx.JointSID(74, 0.3, extrapolate=False, last_pass="never"), 1)
    assert abs(int(np.sum(state.series.extrapolated.counts)) - 56) <= 3
    np.testing.assert_allclose(est.value, long.value, rtol=0.05)


@pytest.mark.slow
def test_the_second_leg_of_sid_has_as_many_steps_as_the_first_and_new_cross_batches():
    """By hand: t and k go on from (w, v), v for the new w; cross batches J, ..., 3 J - 1."""
    sid = bx.SID(bx.FixedPoint(20, 0.3), bx.FixedPoint(10, 0.3), cross_batches=3)
    est, state = legs(sid, 2)
    inner = bx.FixedPoint(40, 0.3)
    half = legs(sid, 1)[1]
    w = legs(bx.SID(inner, sid.linear, cross_batches=3), 1)[1].w
    np.testing.assert_array_equal(state.w, w)
    again = bx.SID(bx.Given(), bx.FixedPoint(10, 0.3), cross_batches=6).extend(
        bx.Instance(canonicalize(START[0]), START[2], *NOISY), half._replace(w=w), key=KEY, doublings=1
    )[0]
    np.testing.assert_allclose(est.v, again.v, rtol=1e-12)
    assert [int(part.calls) for part in est.cost][:3] == [40, 20, 9]


@pytest.fixture(scope="module")
def met():
    estimator = bx.JointSID(100)
    return [run(estimator, key=jax.random.key(seed), target=0.05) for seed in range(20)]


@pytest.mark.slow
def test_a_target_is_met_within_a_factor_of_two_or_flagged(met):
    errors = [true_error(est) for est in met if est.code == bx.Code.OK]
    assert len(errors) >= 15
    assert np.sqrt(np.mean(np.square(errors))) < 0.1
    assert all(est.error.relative <= 0.05 for est in met if est.code == bx.Code.OK)
    assert len({int(est.cost.gradients.calls) for est in met}) > 1  # it is each run that decides


@pytest.mark.slow
def test_numbers_compile_nothing(met, compilations):
    before = compilations.number
    run(bx.JointSID(90), key=jax.random.key(100), target=0.06, budget=10**6)
    assert compilations.number == before


@pytest.mark.slow
def test_a_budget_is_kept_and_the_code_says_so():
    for budget in (2000, 5000, 12_000, 40_000):
        est = run(bx.JointSID(100, last_pass="never"), target=1e-5, budget=budget)
        assert budget / 5 < est.cost.samples <= budget
        assert est.code == bx.Code.TOLERANCE_NOT_MET
    assert "most of it the noise of the minibatches: try more steps" in est.message


@pytest.mark.slow
def test_on_every_row_it_goes_on_until_the_target_or_until_nothing_moves():
    sid = bx.SID(bx.FixedPoint(4), bx.FixedPoint(4))
    est = run(sid, WHOLE, target=1e-7)
    assert est.code == bx.Code.OK
    assert true_error(est) < 2e-7
    assert int(est.cost.gradients.calls) in (32, 64, 128)
    assert run(bx.SID(bx.LBFGS(1e-3), bx.CG(1e-3)), WHOLE, target=1e-17).code == bx.Code.STALLED
    short = run(sid, WHOLE, target=1e-7, budget=2000)
    assert short.cost.samples <= 2000
    assert "equation: try more inner steps" in short.message or "system: try more linear steps" in short.message


@pytest.mark.slow
def test_a_run_of_sid_goes_by_what_it_sees_of_itself_and_so_do_replicas():
    sid = bx.SID(bx.FixedPoint(20, bx.Harmonic(8.0, 16.0)), bx.FixedPoint(20, bx.Harmonic(8.0, 16.0)), cross_batches=5)
    est = run(sid, target=0.1, replicas=6)
    assert est.code == bx.Code.OK
    assert true_error(est) < 0.3
    alone = run(sid, target=1e-6, budget=5000)
    assert alone.code == bx.Code.TOLERANCE_NOT_MET
    assert 0.4 * true_error(alone) < alone.error.relative < 20 * true_error(alone)
    assert "try more inner steps" in alone.message or "try more linear steps" in alone.message


def test_what_cannot_go_on_is_refused(refused):
    refused(lambda: run(bx.ITD(10), WHOLE, target=0.1), bx.ParameterError, "ITD cannot go on")
    refused(lambda: run(bx.JointSID(10), budget=100), bx.ParameterError, "belongs to a run with target=")
    refused(lambda: run(bx.JointSID(10), target=0.0), bx.ParameterError, "target must lie in")
    refused(lambda: run(bx.JointSID(10), target=0.1, replicas=4), bx.ParameterError, "use replicas=5 or more")
    with pytest.raises(bx.ParameterError, match="a traced program cannot"):
        jax.jit(lambda key: run(bx.JointSID(10), key=key, target=0.1).value)(KEY)
