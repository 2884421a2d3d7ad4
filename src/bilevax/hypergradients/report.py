"""What an estimate says of its error, and the code that follows from that."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.instance import Instance
from bilevax.core.records import Cost, Count, ErrorReport, Estimate, Failure, worst_part
from bilevax.core.trees import PyTree, norm, where
from bilevax.hypergradients.damping import add_damping_bias
from bilevax.hypergradients.residual_error import CERTAIN, residual_error
from bilevax.hypergradients.sid_error import ChainTrace
from bilevax.hypergradients.sid_report import sid_report
from bilevax.theory import Constants

FORGIVEN = 0.1
"""Of the tolerance, within which the error must lie where a deterministic solver did not meet its own."""

FEWEST_STEPS = 8
"""Steps of a solver below which it says too little of the curvature to be forgiven."""


def report_is_due(estimate: Estimate, estimator: Any, instance: Instance) -> bool:
    """Whether :func:`attach_report` has anything to say that the estimator does not say itself."""
    if estimate.error is not None or estimate.v is None:
        return False
    return estimate.seen is not None or getattr(estimator, "deterministic", lambda _: False)(instance)


def attach_report(
    estimate: Estimate,
    instance: Instance,
    estimator: Any,
    constants: Constants | None,
    *,
    key: Array,
    led: bool | None = None,
) -> Estimate:
    """The estimate with its error report: of sampled chains, or of what is left of its two equations.

    An estimator that makes its own report keeps that.

    Args:
        estimate: with what the estimator left for its report.
        instance: with its inner step measured.
        estimator: that made it.
        constants: of the problem; None: no bound.
        key: of the estimate.
        led: whether every row is asked after a sampled chain, which says how far off this one value is, and not what
            replicas have in common; None: where that costs little.
    """
    if report_is_due(estimate, estimator, instance):
        if isinstance(estimate.seen, ChainTrace):
            error = sid_report(instance, estimate, led, key=key)
        else:
            error = residual_error(
                instance, estimate.value, (estimate.w, estimate.v), estimate.seen, constants=constants
            )
        estimate = estimate._replace(error=error, seen=None)
    return add_damping_bias(estimate, instance, key=key)


def unknown_if_failed(estimate: Estimate, constants: Constants | None) -> Estimate:
    """The estimate, of whose error nothing is known if it failed (NOT_CONTRACTIVE or worse)."""
    size = norm(estimate.value)
    nowhere = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), estimate.value)
    part, bound = jnp.full_like(size, jnp.nan), None if constants is None else jnp.full_like(size, jnp.inf)
    rest = bound, jnp.zeros_like(size), jnp.ones_like(size)
    unknown = ErrorReport(estimate.value, nowhere, nowhere, jnp.int32(0), part, part, part, part, *rest)
    if estimate.error is not None:
        numbers = {name: jnp.asarray(getattr(estimate.error, name), size.dtype) for name in ("samples", "order")}
        known = estimate.error._replace(**numbers)
        unknown = where(estimate.code < Code.NOT_CONTRACTIVE, known, unknown)
    return estimate._replace(error=unknown, seen=None)


def apply_tolerance(estimate: Estimate, tol: Array | float) -> Estimate:
    """The estimate, with code TOLERANCE_NOT_MET where the upper limit of its relative error is more than ``tol``.

    A solver that sees every row and used up its steps, at least 8, or stalled, is forgiven where that limit is a tenth
    of ``tol``: what such a run leaves is known less well than what one leaves that met its tolerance.
    """
    if estimate.error is None:
        return estimate
    upper = estimate.error.upper
    tol = jnp.asarray(tol).astype(upper.dtype)
    of_solver = (estimate.failure.stage == Failure.stage_of("inner")) | (
        estimate.failure.stage == Failure.stage_of("linear")
    )
    mild = of_solver & (estimate.code > Code.OK) & (estimate.code <= Code.STALLED)
    mild = mild & (estimate.failure.step >= FEWEST_STEPS) & jnp.isfinite(tol)  # who asks for nothing forgives nothing
    forgiven = mild & (estimate.error.degrees_of_freedom == CERTAIN) & (upper <= FORGIVEN * tol)
    code, failure = worst_part(
        where(forgiven, (jnp.int32(Code.OK), Failure.of("none")), (estimate.code, estimate.failure)),
        (jnp.where(~(upper <= tol), jnp.int32(Code.TOLERANCE_NOT_MET), jnp.int32(Code.OK)), Failure.of("none")),
    )
    return estimate._replace(code=code, failure=failure, tol=tol)


def average_replicas(replicas: Estimate) -> Estimate:
    """One estimate from several with a leading axis: means, the worst code, costs added up.

    The standard error is that of their mean, with one degree of freedom less than there are replicas. They share the
    start and the curvature of the problem: a bias is the mean of what each says of its own.
    """
    value, outer_value, w, v = jax.tree.map(
        lambda x: jnp.mean(x, axis=0), (replicas.value, replicas.outer_value, replicas.w, replicas.v)
    )
    number = replicas.code.shape[0]
    spread = jax.tree.map(lambda x: jnp.std(x, axis=0, ddof=1) / number**0.5, replicas.value)
    worst = jnp.argmax(replicas.code)
    failure = Failure(*(x[worst] for x in replicas.failure))
    error = _averaged(replicas.error, value, spread, number)
    steps = None if replicas.steps is None else replicas.steps[0]
    cost = _total(replicas.cost)
    return Estimate(value, outer_value, w, v, replicas.code[worst], cost, failure, error, steps=steps)


def _averaged(one: ErrorReport | None, value: PyTree, spread: PyTree, number: int) -> ErrorReport:
    unknown = jnp.full_like(norm(spread), jnp.nan)
    nowhere = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), value)
    error = ErrorReport(value, spread, nowhere, jnp.int32(number - 1), unknown, unknown, unknown, unknown)
    if one is None:
        return error
    return error._replace(
        bias=jax.tree.map(lambda b: jnp.mean(b, axis=0), one.bias),
        contraction=jnp.mean(one.contraction),
        bound=None if one.bound is None else jnp.mean(one.bound),
        samples=jnp.sum(one.samples),
    )


def _total(cost: Cost) -> Cost:
    def total(calls: Array | int) -> Array:
        return jnp.sum(jnp.asarray(calls), dtype=jnp.int32)

    return Cost(*(Count(total(c.calls), c.rows, None if c.reads is None else total(c.reads)) for c in cost))
