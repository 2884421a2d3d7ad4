"""What every caller of an estimator shares: the step measured before it, and the report after it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import replace
from bilevax.core.keys import stream
from bilevax.core.protocols import RowSource
from bilevax.core.records import Cost, Count, Error, Estimate, Failure, worst_part
from bilevax.core.trees import PyTree, norm, where
from bilevax.hypergradients.damping import damping_priced
from bilevax.hypergradients.diagnosis import unused_leaves
from bilevax.hypergradients.residual_error import CERTAIN, a_posteriori
from bilevax.hypergradients.sid_error import Seen
from bilevax.hypergradients.sid_report import sid_report
from bilevax.problems import gradient_step
from bilevax.problems.gradient_step import GradientStep
from bilevax.problems.problem import Problem
from bilevax.problems.proximal_step import ProximalStep
from bilevax.theory import Constants

FORGIVEN = 0.1
"""Of the tolerance, within which the error must lie where a deterministic solver did not meet its own."""

FEWEST_STEPS = 8
"""Steps of a solver below which it says too little of the curvature to be forgiven."""


def measured_estimate(
    problem: Problem,
    estimator: Any,
    w0: PyTree,
    lam: PyTree,
    sources: tuple[RowSource, RowSource],
    *,
    key: Array,
    **start: Any,
) -> Estimate:
    """An estimate with the inner step measured first, where it is None, and counted; says which leaves are unused."""
    train, val = sources
    ready = measured_problem(problem, w0, lam, train, key)
    estimate = estimator.estimate(ready, w0, lam, sources, key=key, **start)
    unused = unused_leaves(problem, w0, lam, (train.full, val.full))
    return counted(estimate, problem, train)._replace(unused=unused)


def measured_problem(
    problem: Problem, w0: PyTree, lam: PyTree, train: RowSource, key: Array, minibatches: int | None = None
) -> Problem:
    """The problem with its inner step filled in, where that is None; else the problem itself."""
    if not _unmeasured(problem):
        return problem
    inner_map: Any = problem.inner_map
    return replace(problem, inner_map=inner_map.measured(w0, lam, train, stream(key, "measure"), minibatches))


def counted(estimate: Estimate, problem: Problem, train: RowSource) -> Estimate:
    """The estimate with what measuring the step of this problem costs, if that is needed."""
    products = measuring_products(problem, train)
    if not products:
        return estimate
    spent = Count(jnp.int32(products), train.rows_per_batch)
    return estimate._replace(cost=estimate.cost.plus(Cost(measuring=spent)))


def measuring_products(problem: Problem, train: RowSource, minibatches: int | None = None) -> int:
    """Products, of a minibatch each, that it takes to measure the inner step; 0 where it is given, or there is none."""
    if not _unmeasured(problem):
        return 0
    inner_map: Any = problem.inner_map
    return gradient_step.measuring_products(train, minibatches, known=hasattr(inner_map.loss, "curvature"))


def _unmeasured(problem: Problem) -> bool:
    inner_map = problem.inner_map
    return isinstance(inner_map, GradientStep | ProximalStep) and inner_map.step_size is None


def with_error(
    estimate: Estimate,
    problem: Problem,
    estimator: Any,
    lam: PyTree,
    sources: tuple[RowSource, RowSource],
    constants: Constants | None,
    *,
    key: Array,
    led: bool | None = None,
) -> Estimate:
    """The estimate with its error report: of sampled chains, or of what is left of its two equations.

    An estimator that makes its own report keeps that. ``led``: whether every row is asked after a sampled chain, which
    says how far off this one value is, and not what replicas have in common; None: where that costs little.
    """
    if report_is_due(estimate, estimator, sources):
        if isinstance(estimate.seen, Seen):
            error = sid_report(problem, estimate, lam, sources, led, key=key)
        else:
            points = estimate.w, estimate.v, lam
            error = a_posteriori(problem, estimate.value, points, sources, estimate.seen, constants=constants)
        estimate = estimate._replace(error=error, seen=None)
    return damping_priced(estimate, problem, lam, sources[0], key=key)


def report_is_due(estimate: Estimate, estimator: Any, sources: tuple[RowSource, RowSource]) -> bool:
    """Whether :func:`with_error` has anything to say that the estimator does not say itself."""
    if estimate.error is not None or estimate.v is None:
        return False
    return estimate.seen is not None or getattr(estimator, "deterministic", lambda _: False)(sources)


def unknown_if_failed(estimate: Estimate, constants: Constants | None) -> Estimate:
    """The estimate, of whose error nothing is known if it failed (NOT_CONTRACTIVE or worse)."""
    size = norm(estimate.value)
    nowhere = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), estimate.value)
    part, bound = jnp.full_like(size, jnp.nan), None if constants is None else jnp.full_like(size, jnp.inf)
    rest = bound, jnp.zeros_like(size), jnp.ones_like(size)
    unknown = Error(estimate.value, nowhere, nowhere, jnp.int32(0), part, part, part, part, *rest)
    if estimate.error is not None:
        numbers = {name: jnp.asarray(getattr(estimate.error, name), size.dtype) for name in ("visits", "order")}
        known = estimate.error._replace(**numbers)
        unknown = where(estimate.code < Code.NOT_CONTRACTIVE, known, unknown)
    return estimate._replace(error=unknown, seen=None)


def judged(estimate: Estimate, tol: Array) -> Estimate:
    """The estimate, with code BUDGET where the upper limit of its relative error is more than ``tol``.

    A solver that sees every row and used up its steps, at least 8, or stalled, is forgiven where that limit is a tenth
    of ``tol``: what such a run leaves is known less well than what one leaves that met its tolerance.
    """
    if estimate.error is None:
        return estimate
    upper = estimate.error.upper
    tol = tol.astype(upper.dtype)
    of_solver = (estimate.failure.stage == Failure.stage_of("inner")) | (
        estimate.failure.stage == Failure.stage_of("linear")
    )
    mild = of_solver & ((estimate.code == Code.BUDGET) | (estimate.code == Code.STALLED))
    mild = mild & (estimate.failure.step >= FEWEST_STEPS) & jnp.isfinite(tol)  # who asks for nothing forgives nothing
    forgiven = mild & (estimate.error.degrees == CERTAIN) & (upper <= FORGIVEN * tol)
    code, failure = worst_part(
        where(forgiven, (jnp.int32(Code.OK), Failure.of("none")), (estimate.code, estimate.failure)),
        (jnp.where(~(upper <= tol), jnp.int32(Code.BUDGET), jnp.int32(Code.OK)), Failure.of("none")),
    )
    return estimate._replace(code=code, failure=failure, tol=tol)
