"""What every row says of a long run of SID, against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import bilevax as bx
from bilevax.core.config import canonicalize
from bilevax.hypergradients.every_row import way_on_every_row
from bilevax.hypergradients.sid_error import ChainTrace
from bilevax.hypergradients.sid_report import LEAST_LED, LED, leads_on
from bilevax.testing.closed_forms import FiniteQuadratic

P = FiniteQuadratic.random(0, n=60, d=6, m=4, correlated=True)
TRUTH = P.hypergradient(P.lam)
DATA = bx.Arrays(P.train_data, 4), bx.Arrays(P.val_data)
LONG = LED * LEAST_LED
START = np.full(6, 3.0), np.full(6, -2.0)


def h(w, v):
    """Of every row: r lam + alpha B'v."""
    return P.r * P.lam + P.curvature.alpha * P.B.mean(0).T @ v


@pytest.mark.parametrize("batch", [None, 4])
def test_the_way_ends_where_both_equations_of_every_row_hold(batch):
    """On every row at once to the last digit; on minibatches, within its doubt."""
    sources, steps = (bx.Arrays(P.train_data, batch), DATA[1]), (jnp.asarray(0.5), jnp.int32(400))
    slowest = np.log(1.0 - 0.5 * P.curvature.alpha * P.curvature.tau)
    way = jax.jit(
        lambda key: way_on_every_row(
            bx.Instance(P.problem, jnp.asarray(P.lam), *sources),
            tuple(map(jnp.asarray, START)),
            steps,
            jnp.asarray(slowest),
            key=key,
        )
    )(jax.random.key(0))
    np.testing.assert_allclose(way.value, h(*START), rtol=1e-10)
    left, wrong = np.linalg.norm(TRUTH - h(*START)), np.linalg.norm(way.truth - TRUTH)
    assert way.degrees_of_freedom == 7
    if batch is None:
        assert wrong < 1e-8 * left
    else:
        assert 0.01 * left < wrong < 3.0 * np.linalg.norm(way.standard_error) < 0.6 * left


def test_what_the_way_has_not_made_is_made_up_for():
    """In the slowest direction 1 - exp(-R) of it is made."""
    tau, alpha = P.curvature.tau, P.curvature.alpha
    slow = np.linalg.eigh(P.A.mean(0))[1][:, 0]
    w, v = P.w(P.lam), P.v(P.lam) + 5.0 * slow
    number, rate = 20, np.log(1.0 - 0.1 * alpha * tau)
    point, args = (jnp.asarray(w), jnp.asarray(v)), (bx.Arrays(P.train_data), DATA[1])
    way = way_on_every_row(
        bx.Instance(P.problem, jnp.asarray(P.lam), *args), point,
        (jnp.asarray(0.1), jnp.int32(number)), jnp.asarray(rate), key=jax.random.key(0),
    )  # fmt: skip
    assert float(way.resolved) == pytest.approx(1.0 - np.exp(rate * number))
    made = 1.0 - np.mean(np.exp(rate * np.arange(number // 2, number)))
    np.testing.assert_allclose(
        way.truth - way.value, made / (1.0 - np.exp(rate * number)) * (TRUTH - h(w, v)), rtol=1e-6, atol=1e-9
    )


def run(sid, sources=DATA, runs=100, start=0.0):

    @jax.jit
    def one(key):
        est = bx.hypergradient(
            canonicalize(P.problem), canonicalize(sid), jnp.full(6, start), jnp.asarray(P.lam), *sources, key=key
        )
        return est.code, est.value, est.error, est.error.upper

    return jax.tree.map(np.asarray, jax.vmap(one)(jax.random.split(jax.random.key(2), runs)))


@pytest.mark.parametrize("sampling", ["iid", pytest.param("blocks", marks=pytest.mark.slow)])
def test_a_long_run_knows_how_far_off_its_own_value_is(sampling):
    """Not only how far it is in the mean: run by run, its cross batches included; never less than half of it unseen."""
    chain = bx.FixedPoint(LONG, bx.Constant(0.1))
    sid = bx.SID(chain, chain, cross_batches=20)
    _, value, error, upper = run(sid, (bx.Arrays(P.train_data, 4, sampling), DATA[1]))
    true, said = np.linalg.norm(value - TRUTH, axis=1), np.linalg.norm(error.bias, axis=1)
    assert 0.8 < np.median(said / true) < 1.25
    assert np.mean((said / true > 0.6) & (said / true < 1.6)) > 0.9
    assert np.corrcoef(true, said)[0, 1] > 0.8
    assert np.mean(upper < true / np.linalg.norm(value, axis=1)) < 0.03
    assert np.median(upper * np.linalg.norm(value, axis=1) / true) < 2.5
    assert np.all(error.sampling > 0)
    assert np.all(np.isnan(error.inner) & np.isnan(error.linear))


@pytest.mark.slow
def test_a_start_that_is_far_is_seen():
    chain = bx.FixedPoint(LONG, bx.Constant(0.003))
    code, value, error, upper = run(bx.SID(chain, chain), start=300.0, runs=20)
    true, said = np.linalg.norm(value - TRUTH, axis=1), np.linalg.norm(error.bias, axis=1)
    assert np.all(true > 0.5 * np.linalg.norm(TRUTH))
    assert np.all(code == bx.Code.TOLERANCE_NOT_MET)
    assert np.median(said / true) > 0.5
    assert np.mean(upper * np.linalg.norm(value, axis=1) > true) > 0.95


@functools.cache
def of(steps, **options):
    chain = bx.FixedPoint(steps, bx.Constant(0.1))
    args = jnp.zeros(6), jnp.asarray(P.lam), *DATA
    return bx.hypergradient(P.problem, bx.SID(chain, chain), *args, key=jax.random.key(0), **options)


def test_every_row_is_asked_where_it_costs_little():
    assert float(of(LONG).error.order) == 0.5
    assert float(of(LONG - 1).error.order) == 1.0  # the tails
    assert 0 < of(LONG).error.samples < 0.15 * of(LONG).cost.samples


@pytest.mark.slow
def test_one_program_says_the_same_and_replicas_ask_the_tails():
    assert float(of(LONG, replicas=2).error.order) == 1.0  # how far off is one value is not what two have in common
    chain = bx.FixedPoint(LONG, bx.Constant(0.1))

    @jax.jit
    def traced(sid):
        args = jnp.zeros(6), jnp.asarray(P.lam), *DATA
        return bx.hypergradient(P.problem, sid, *args, key=jax.random.key(0)).error

    for a, b in zip(*map(jax.tree.leaves, (traced(canonicalize(bx.SID(chain, chain))), of(LONG).error)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_steps_that_would_do_go_by_noise():
    error = of(LONG).error
    tol = float(error.upper) / 4
    factor = float(error.steps_needed(LONG, tol)) / LONG
    assert factor == pytest.approx(16.0, rel=0.1)
    assert "steps would do" in of(LONG)._replace(tol=tol, code=jnp.int32(bx.Code.TOLERANCE_NOT_MET)).message


def test_where_every_row_is_not_their_mean_or_dear_the_tails_are_asked():
    est = of(40)
    est, trace = est._replace(steps=jnp.int32(10**6)), ChainTrace(None, None, None, None)
    rows = {"x": np.zeros((60, 2))}
    assert leads_on(est, trace, bx.Instance(None, None, bx.Arrays(rows, 4), bx.Arrays(rows)))
    assert leads_on(est, trace, bx.Instance(None, None, bx.Arrays(rows, 4), bx.Arrays(rows, 4)))
    assert not leads_on(est, trace, bx.Instance(None, None, bx.Arrays(rows, 4, keys=True), bx.Arrays(rows)))
    assert not leads_on(est, trace, bx.Instance(None, None, bx.Arrays(rows, 4), bx.Arrays(rows, 4, keys=True)))
    assert not leads_on(est, None, bx.Instance(None, None, bx.Arrays(rows, 4), bx.Arrays(rows)))
    assert not leads_on(est._replace(steps=None), trace, bx.Instance(None, None, bx.Arrays(rows, 4), bx.Arrays(rows)))
    assert not leads_on(
        est._replace(steps=jnp.int32(LED * 70)),
        trace,
        bx.Instance(None, None, bx.Arrays({"x": np.zeros(280)}, 1), bx.Arrays(rows)),
    )


@pytest.mark.slow
def test_sparse_rows_are_led_on_one_after_another():
    X = scipy.sparse.random_array((60, 8), density=0.3, rng=np.random.default_rng(0), format="csr")
    y = np.arange(60) % 3
    loss = bx.MultinomialLogistic("feature")
    problem, chain = bx.Problem(bx.GradientStep(loss), loss), bx.FixedPoint(LONG, bx.Constant(0.3))
    ends = []
    for source in (bx.SparseRows((X, y), 10), bx.Arrays((X.toarray(), y), 10)):
        args = jnp.zeros((3, 8)), jnp.zeros(8), source, source
        ends.append(bx.hypergradient(problem, bx.SID(chain, chain, 40, 40), *args, key=jax.random.key(0)))
    assert all(float(est.error.order) == 0.5 for est in ends)
    assert float(ends[0].error.upper) == pytest.approx(float(ends[1].error.upper), rel=0.5)
