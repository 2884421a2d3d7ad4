"""The error report of an estimate, and the code that follows from it."""

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.estimator import Estimator, ExtensibleEstimator
from bilevax.core.instance import Instance
from bilevax.core.records import ErrorReport, Estimate, Failure, first_failure
from bilevax.core.trees import PyTree, norm, row, where
from bilevax.hypergradients.damping import add_damping_bias
from bilevax.hypergradients.residual_error import CERTAIN, residual_error
from bilevax.hypergradients.sid_error import ChainTrace
from bilevax.hypergradients.sid_report import sid_report
from bilevax.theory import Constants

FORGIVEN = 0.1
"""Fraction of the tolerance within which the error must lie where a deterministic solver did not meet its own."""

FEWEST_STEPS = 8
"""Steps of a solver below which too little of the curvature is known to forgive it."""


def report_is_due(estimate: Estimate, trace: PyTree, estimator: Estimator, instance: Instance) -> bool:
    """Whether :func:`attach_report` can report what the estimator does not report itself."""
    if estimate.error is not None or estimate.v is None:
        return False
    return trace is not None or (isinstance(estimator, ExtensibleEstimator) and estimator.deterministic(instance))


def attach_report(
    estimate: Estimate,
    trace: PyTree,
    instance: Instance,
    estimator: Estimator,
    constants: Constants | None,
    *,
    key: Array,
    led: bool | None = None,
) -> Estimate:
    """The estimate with its error report: from sampled chains, or from the residuals of its two equations.

    An estimator that makes its own report keeps that.

    Args:
        estimate: without a report, or with one of its own.
        trace: the evidence in the estimator's state.
        instance: with its inner step measured.
        estimator: that made it.
        constants: of the problem; None: no bound.
        key: of the estimate.
        led: whether every row is read after a sampled chain, which tells the error of this one value, and not what
            replicas have in common; None: where that costs little.
    """
    if report_is_due(estimate, trace, estimator, instance):
        if isinstance(trace, ChainTrace):
            # something was sampled
            error = sid_report(instance, estimate, trace, led, key=key)
        else:
            noisy = isinstance(estimator, ExtensibleEstimator) and not estimator.deterministic(instance)
            points = estimate.w, estimate.v
            error = residual_error(instance, estimate.value, points, trace, noisy=noisy, constants=constants)
        estimate = estimate._replace(error=error)
    return add_damping_bias(estimate, instance, key=key)


def unknown_if_failed(estimate: Estimate, constants: Constants | None) -> Estimate:
    """The estimate, of whose error nothing is known if it failed (NOT_CONTRACTIVE or worse)."""
    size = norm(estimate.value)
    nowhere = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), estimate.value)
    part, bound = jnp.full_like(size, jnp.nan), None if constants is None else jnp.full_like(size, jnp.inf)
    rest = bound, jnp.zeros_like(size), jnp.ones_like(size)
    unknown = ErrorReport(estimate.value, nowhere, nowhere, jnp.int32(0), part, part, part, part, *rest)
    # One of the two by a where, and so of one structure and one dtype: the code is known at run time only.
    if estimate.error is not None:
        numbers = {name: jnp.asarray(getattr(estimate.error, name), size.dtype) for name in ("samples", "order")}
        known = estimate.error._replace(**numbers)
        unknown = where(estimate.code < Code.NOT_CONTRACTIVE, known, unknown)
    return estimate._replace(error=unknown)


def unjudged(estimate: Estimate) -> Estimate:
    """The estimate, of whose error nothing is known and nothing will be: no OK comes of that."""
    code, failure = first_failure(
        (estimate.code, estimate.failure), (jnp.int32(Code.TOLERANCE_NOT_MET), Failure.of("none"))
    )
    return estimate._replace(code=code, failure=failure)


def apply_tolerance(estimate: Estimate, tol: Array | float) -> Estimate:
    """The estimate, with code TOLERANCE_NOT_MET where the upper limit of its relative error is more than ``tol``.

    A solver that sees every row and used up its steps, at least 8, or stalled, is forgiven where that limit is a tenth
    of ``tol``: the error of such a run is known less well than that of one which met its tolerance.
    """
    if estimate.error is None:
        return estimate
    # OK means upper <= tol, and not the point estimate
    upper = estimate.error.upper
    tol = jnp.asarray(tol).astype(upper.dtype)
    of_solver = [estimate.failure.stage == Failure.stage_of(name) for name in ("inner", "linear")]
    mild = (of_solver[0] | of_solver[1]) & (estimate.code > Code.OK) & (estimate.code <= Code.STALLED)
    # without a tolerance nothing is forgiven
    mild = mild & (estimate.failure.step >= FEWEST_STEPS) & jnp.isfinite(tol)
    forgiven = mild & (estimate.error.degrees_of_freedom == CERTAIN) & (upper <= FORGIVEN * tol)
    code, failure = first_failure(
        # the solver's code, unless forgiven; and the tolerance
        where(forgiven, (jnp.int32(Code.OK), Failure.of("none")), (estimate.code, estimate.failure)),
        (jnp.where(~(upper <= tol), jnp.int32(Code.TOLERANCE_NOT_MET), jnp.int32(Code.OK)), Failure.of("none")),
    )
    return estimate._replace(code=code, failure=failure, tol=tol)


def average_replicas(replicas: Estimate, *, sampled: bool) -> Estimate:
    """One estimate from several with a leading axis: means, the worst code, costs added up.

    The standard error is that of their mean, with one degree of freedom less than there are replicas. They share the
    start and the curvature of the problem: the bias is the mean of theirs. Where nothing is ``sampled`` they are equal,
    and show nothing that none of them reports.
    """
    # mean of the value, std / sqrt(replicas) its standard error
    value, outer_value, w, v = jax.tree.map(
        lambda x: jnp.mean(x, axis=0), (replicas.value, replicas.outer_value, replicas.w, replicas.v)
    )
    number = replicas.code.shape[0]
    spread = jax.tree.map(lambda x: jnp.std(x, axis=0, ddof=1) / number**0.5, replicas.value)
    worst = jnp.argmax(replicas.code)
    failure = row(replicas.failure, worst)
    # of their reports: the bias, which they share
    error = _averaged(replicas.error, value, spread, number) if sampled or replicas.error is not None else None
    steps = None if replicas.steps is None else replicas.steps[0]
    cost = jax.tree.map(lambda calls: jnp.sum(jnp.asarray(calls), dtype=jnp.int32), replicas.cost)
    return Estimate(value, outer_value, w, v, replicas.code[worst], cost, failure, error, steps=steps)


def _averaged(one: ErrorReport | None, value: PyTree, spread: PyTree, number: int) -> ErrorReport:
    unknown = jnp.full_like(norm(spread), jnp.nan)
    nowhere = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), value)
    degrees = jnp.int32(number - 1)
    parts = unknown, unknown, unknown, unknown
    error = ErrorReport(value, spread, nowhere, degrees, *parts, replicas=jnp.int32(number))
    if one is None:
        return error
    if one.draws is not None:
        # an entry that was the same in all draws of all replicas
        unseen = jax.tree.map(lambda x: jnp.all(jnp.isinf(x), axis=0), one.standard_error)
        spread = jax.tree.map(lambda x, s: jnp.where(x, jnp.inf, s), unseen, spread)
        error = error._replace(standard_error=spread, draws=one.draws[0])
    return error._replace(
        bias=jax.tree.map(lambda b: jnp.mean(b, axis=0), one.bias),
        contraction=jnp.mean(one.contraction),
        bound=None if one.bound is None else jnp.mean(one.bound),
        samples=jnp.sum(one.samples),
    )
