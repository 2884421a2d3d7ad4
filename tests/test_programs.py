"""An eager hypergradient in several programs against the one program of a user's trace: what failed, and its report."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.config import canonicalize
from bilevax.hypergradients import driver
from bilevax.testing.closed_forms import FiniteQuadratic

P = FiniteQuadratic.random(0, n=60, d=4, m=3)
NOISY = bx.Arrays(P.train_data, 4), bx.Arrays(P.val_data)
WHOLE = bx.Arrays(P.train_data), bx.Arrays(P.val_data)
KEY = jax.random.key(3)

FAILING = {
    "a chain that overflows": (
        bx.SID(bx.FixedPoint(900, 60.0), bx.FixedPoint(50)),
        NOISY,
        "inner solver",
    ),
    "a linear chain that grows": (bx.SID(bx.FixedPoint(50), bx.FixedPoint(60, 9.0)), NOISY, "linear solver"),
    "steps on every row that grow": (bx.SID(bx.FixedPoint(80, 60.0), bx.FixedPoint(50)), WHOLE, "inner solver"),
}


def estimate(estimator, sources, **options):
    return bx.hypergradient(P.problem, estimator, jnp.zeros(4), jnp.asarray(P.lam), *sources, key=KEY, **options)


@jax.jit
def in_a_trace(problem, estimator, w0, lam, sources, key):
    return bx.hypergradient(problem, estimator, w0, lam, *sources, key=key)


def in_one(estimator, sources):
    """The same, all that it depends on being arguments of the user's program."""
    return in_a_trace(*canonicalize((P.problem, estimator)), jnp.zeros(4), jnp.asarray(P.lam), sources, KEY)


def said(est):
    """All but the numbers that rounding may change."""
    cost = [(int(part.calls), part.rows) for part in est.cost]
    return bx.Code(int(est.code)), est.message, cost, bool(est.failure.finite), int(est.failure.step)


@pytest.mark.slow_but("True-a chain that overflows", "False-a linear chain that grows")
@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("long", [False, True])
def test_what_failed_is_said_as_in_one_program(name, long, monkeypatch):
    estimator, sources, stage = FAILING[name]
    monkeypatch.setattr(driver, "LONG", 0.0 if long else 3e9)  # of a long run, the program is not compiled briefly
    eager, traced = estimate(estimator, sources), in_one(estimator, sources)
    assert eager.code >= bx.Code.NOT_CONTRACTIVE
    assert f"in the {stage}" in eager.message
    assert said(eager) == said(traced)
    for a, b in zip(*(jax.tree.leaves((est.w, est.failure)) for est in (eager, traced)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    for est in (eager, traced):
        assert est.error.relative == np.inf or np.isnan(est.error.relative)
        assert not est.error.upper <= 1e9
    assert jax.tree.structure(eager) == jax.tree.structure(traced)


@pytest.mark.slow
def test_a_replica_that_fails_leaves_nothing_known():
    estimator, sources, _ = FAILING["a linear chain that grows"]
    est = estimate(estimator, sources, replicas=3)
    assert est.code >= bx.Code.NOT_CONTRACTIVE
    assert not est.error.upper <= 1e9


@pytest.mark.slow_but("minibatches")
@pytest.mark.parametrize("sources", [NOISY, WHOLE], ids=["minibatches", "every row"])
def test_the_report_of_a_program_of_its_own_is_that_of_one_program(sources):
    sid = bx.SID(bx.FixedPoint(40, 0.5), bx.FixedPoint(40, 0.5), cross_batches=6)
    eager, traced = estimate(sid, sources), in_one(sid, sources)
    assert jax.tree.structure(eager) == jax.tree.structure(traced)
    np.testing.assert_allclose(eager.value, traced.value, rtol=1e-14)
    for a, b in zip(jax.tree.leaves(eager.error), jax.tree.leaves(traced.error), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert said(eager) == said(traced)


@pytest.mark.parametrize("name", FAILING)
def test_the_stage_that_failed_is_looked_into_alone(name, monkeypatch):
    """The program of the whole estimate that looks into every suspicion is for those that are refuted."""

    def whole(*args, **options):
        raise AssertionError("the whole estimate was made again")

    monkeypatch.setattr(driver, "_briefly", whole)
    estimator, sources, stage = FAILING[name]
    est = estimate(estimator, sources)
    assert f"in the {stage}" in est.message


def test_what_is_refuted_is_made_again(monkeypatch):
    """The map of A = .9 I + N, not normal, grows for long and then contracts: one program more finds the solution."""
    calls, whole = [], driver._briefly
    monkeypatch.setattr(driver, "_briefly", lambda *args, **options: calls.append(1) or whole(*args, **options))
    A = 0.9 * np.eye(12) + np.diag(np.ones(11), 1)
    problem = bx.Problem(lambda w, lam, batch: batch[0] @ w + lam, lambda w, lam, batch: jnp.sum(w) * jnp.mean(batch))
    train, val = bx.Arrays(A[None]), bx.Arrays(np.ones((1, 1)))
    sid = bx.SID(bx.FixedPoint(900), bx.FixedPoint(900))
    est = bx.hypergradient(problem, sid, jnp.zeros(12), jnp.ones(12), train, val, key=KEY)
    assert est.code == bx.Code.OK
    assert calls == [1]
    np.testing.assert_allclose(est.value, np.linalg.solve((np.eye(12) - A).T, np.ones(12)), rtol=1e-6)
