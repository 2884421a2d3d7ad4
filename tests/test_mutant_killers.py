"""What no other test saw: each was written because a wrong program of ``tests/mutants`` passed all the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.keys import stream
from bilevax.testing.closed_forms import FiniteQuadratic

KEY = jax.random.key(0)
P = FiniteQuadratic.random(0, n=40, d=4, m=3)


def estimate(sid, *, w0=None, batch_size=None, p=P, **options):
    sources = bx.Arrays(p.train_data, batch_size), bx.Arrays(p.val_data)
    w0 = jnp.zeros(4) if w0 is None else jnp.asarray(w0)
    return sid.estimate(bx.Instance(p.problem, jnp.asarray(p.lam), *sources), w0, key=KEY, **options)


def test_every_row_and_a_schedule_by_hand():
    """Three and four steps of decreasing size on full batches, long before anything has converged."""
    est = estimate(bx.SID(bx.FixedPoint(3, bx.Harmonic(2.0, 3.0)), bx.FixedPoint(4, bx.Polynomial(0.5, 0.75, 2.0))))
    H, c = P.A.mean(0), P.b.mean(0) + P.B.mean(0) @ P.lam
    alpha, w, v = P.curvature.alpha, np.zeros(4), np.zeros(4)
    for j in range(3):
        w = w - 2.0 / (3.0 + j) * alpha * (H @ w - c)
    for j in range(4):
        v = v - 0.5 / (1.0 + j / 2.0) ** 0.75 * (alpha * H @ v - (w - P.target))
    np.testing.assert_allclose(est.w, w, rtol=1e-12)
    np.testing.assert_allclose(est.v, v, rtol=1e-12)


@pytest.mark.parametrize(
    "batch_size", [pytest.param(None, marks=pytest.mark.slow), 5], ids=["every-row", "minibatches"]
)
def test_the_schedule_starts_again_at_every_outer_step(batch_size):
    solver = bx.FixedPoint(4, bx.Harmonic(2.0, 3.0))
    first, later = (estimate(bx.SID(solver, solver), batch_size=batch_size, outer_step=s) for s in (0, 7))
    assert np.array_equal(first.w, later.w)
    assert np.array_equal(first.v, later.v)


def test_a_short_block_moves_w_by_its_weight():
    """Fifty rows in blocks of seven: the block of one row counts a seventh, in units of the mean block."""

    def inner_map(w, lam, batch):
        return jnp.mean(batch) + 0.0 * w

    train = bx.Arrays(np.arange(50.0), 7, sampling="blocks")
    one = np.ones(1)
    problem = bx.Problem(inner_map, lambda w, lam, batch: jnp.sum(w))
    sid = bx.SID(bx.FixedPoint(8, 0.5), bx.FixedPoint(1))
    est = bx.hypergradient(problem, sid, one, one, train, bx.Arrays(np.ones(3)), key=KEY, report=False)
    blocks, weights = blocks_of_an_epoch(train)
    w = 1.0
    for block, weight in zip(blocks, weights, strict=True):
        w = w + 0.5 * weight * (np.mean(block) - w)
    np.testing.assert_allclose(est.w, [w], rtol=1e-12)
    assert sorted(len(block) for block in blocks) == [1] + 7 * [7]
    np.testing.assert_allclose(sorted(set(weights)), [8 / 50, 56 / 50])


def blocks_of_an_epoch(train):
    """The rows of the first eight blocks of the inner stream, and len(block) * 8 / 50, the weight each should have."""

    def note(carry, args, j, draw):
        size = draw.batch.shape[0]
        return carry.at[j].set(jnp.pad(draw.batch, (0, 7 - size), constant_values=-1.0))

    seen = train.fold(note, jnp.zeros((8, 7)), (), key=stream(KEY, "inner"), start=0, stop=8)
    blocks = [np.asarray(row)[np.asarray(row) >= 0] for row in seen]
    return blocks, [len(block) * 8 / 50 for block in blocks]


SOLVERS = {"CG": bx.CG(tol=1e-12), "Neumann": bx.Neumann(tol=1e-12), "GMRES": bx.GMRES(tol=1e-12)}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_start_changes_no_solution(name):
    v0 = jnp.asarray([3.0, -2.0, 1.0, 5.0])
    est = estimate(bx.SID(bx.Given(), SOLVERS[name]), w0=P.w(P.lam), v0=v0)
    assert est.code == bx.Code.OK
    np.testing.assert_allclose(est.v, P.v(P.lam), rtol=1e-9)


def test_a_start_that_is_the_solution_costs_gmres_nothing():
    """One cycle of one vector solves nothing in four dimensions: the start must have been taken as it is."""
    solver = bx.GMRES(tol=1e-10, max_steps=1, restart=1)
    est = estimate(bx.SID(bx.Given(), solver), w0=P.w(P.lam), v0=jnp.asarray(P.v(P.lam)))
    cold = estimate(bx.SID(bx.Given(), solver), w0=P.w(P.lam))
    assert cold.code != bx.Code.OK
    np.testing.assert_allclose(est.v, P.v(P.lam), rtol=1e-9)


def test_a_failure_of_the_inner_solver_alone_is_said():
    est = estimate(bx.SID(bx.FixedPoint(1, 0.1), bx.CG(tol=1e-12)))
    assert est.code == bx.Code.TOLERANCE_NOT_MET
    assert "inner solver" in est.message


def test_weights_of_rows_reach_the_linear_system():
    """A row of weight 3 is three rows, in w and in v, through the loss's own Hessian product too."""
    rng = np.random.default_rng(8)
    X, y, weight = rng.normal(size=(12, 3)), rng.normal(size=12), rng.integers(1, 4, 12)
    repeated = np.repeat(X, weight, axis=0), np.repeat(y, weight)
    problem = bx.Problem(bx.GradientStep(bx.Squared("feature"), 0.3), bx.Squared())
    weighted = X, y, weight * (12 / weight.sum())
    found = [
        bx.hypergradient(
            problem, bx.SID(bx.FixedPoint(300), bx.FixedPoint(300)),
            np.zeros((1, 3)), -np.ones(3), bx.Arrays(train), bx.Arrays((X, y)), key=KEY, report=False,
        )
        for train in (weighted, repeated)
    ]  # fmt: skip
    np.testing.assert_allclose(found[0].w, found[1].w, rtol=1e-10)
    np.testing.assert_allclose(found[0].v, found[1].v, rtol=1e-10)
    np.testing.assert_allclose(found[0].value, found[1].value, rtol=1e-10)
