"""The error report of one run of SID whose chains sampled: from every row, or, where that is dear, from snapshots.

In come the estimate (value, w, v) and the trace of its chains, by way of ``report.attach_report``; out goes the record
that becomes ``estimate.error``. Every row is read for variance-reduced steps of (w, v) from where the chains ended: how
far they move the hypergradient is its error (``every_row``). Snapshots are extrapolated instead (``sid_error``).
"""

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.error_report import FEWEST, as_others
from bilevax.core.instance import Instance
from bilevax.core.keys import stream
from bilevax.core.records import ErrorReport, Estimate
from bilevax.core.trees import PyTree, norm, sub
from bilevax.hypergradients.every_row import way_on_every_row
from bilevax.hypergradients.joint_sid import epoch, measured_step, measuring_calls, rate_at
from bilevax.hypergradients.sid_error import ChainTrace, independent, snapshot_report, with_independent

LED, LEAST_LED = 20, 32
"""Minibatches of a chain for each of the variance-reduced iteration, which is made only if it has 32 and an epoch."""

ENOUGH = 0.5
"""Relaxation times, 1 / |rate| steps each, that the iteration must last for a verdict."""

WALK = 8
"""Minibatches on which the step of the iteration is measured."""


def leads_on(estimate: Estimate, trace: PyTree, instance: Instance) -> Array | bool:
    """Whether the report of this run is made from every row: where that costs little beside its chains.

    A traced bool, as the steps of a chain may be traced; a plain False where the kind of run or of source excludes it.
    """
    train, val, steps = instance.train, instance.val, estimate.steps
    # One key is not the mean over draws.
    if steps is None or not isinstance(trace, ChainTrace) or train.keys or val.keys:
        return False
    # Every minibatch of val would be dear.
    if independent(train, val)[1].is_full_batch and val.rows > train.rows_per_batch:
        return False
    return steps // LED >= max(LEAST_LED, epoch(train))


def sid_report(
    instance: Instance, estimate: Estimate, trace: ChainTrace, led: bool | None = None, *, key: Array
) -> ErrorReport:
    """The report on an estimate of :class:`~bilevax.SID` that sampled.

    Where its chains are so long that every row costs little beside them, (w, v) is iterated to where both equations of
    every row hold (:func:`~bilevax.hypergradients.every_row.way_on_every_row`): ``bias`` is the distance of the value
    from the hypergradient there, wherever it comes from, ``standard_error`` that of the latter, and ``sampling`` the
    distance from the hypergradient of every row at (w, v); the parts of w and of v in the rest are not known. Elsewhere
    snapshots of the chains serve (:func:`~bilevax.hypergradients.sid_error.snapshot_report`).

    Cost: on a twentieth of k minibatches a Hessian-vector product, two gradients of either loss and two products of
    either kind; and one of each on every row.

    Args:
        instance: with its inner step measured.
        estimate: to report on.
        trace: of its run.
        led: True: from every row; False: from snapshots; None: as :func:`leads_on` says, which compiles both where that
            is traced.
        key: its stream measure is used.
    """
    choice = leads_on(estimate, trace, instance) if led is None else led

    def every_row() -> ErrorReport:
        return _led_on(with_independent(instance), estimate, trace, key=key)

    def snapshots() -> ErrorReport:
        if any(chain.cumulative_step is None for chain in trace.chains.values()):
            return _nothing_known(estimate, jax.eval_shape(every_row))
        return snapshot_report(instance, estimate, trace, key=key)

    if isinstance(choice, bool):
        return every_row() if choice else snapshots()
    report: ErrorReport = jax.lax.cond(choice, every_row, snapshots)
    return report


def _nothing_known(estimate: Estimate, like: ErrorReport) -> ErrorReport:
    """The report on a short chain of which no step size tells how far it is: every error may be there."""
    sizes = like._replace(degrees_of_freedom=like.inner)
    unknown: ErrorReport = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), sizes)
    nowhere = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), estimate.value)
    none = jnp.zeros_like(unknown.samples)
    return unknown._replace(
        value=estimate.value, standard_error=nowhere, bias=nowhere, degrees_of_freedom=jnp.int32(0), samples=none
    )


def _led_on(instance: Instance, estimate: Estimate, trace: ChainTrace, *, key: Array) -> ErrorReport:
    """The report from every row, and variance-reduced steps from (w, v) to where both equations hold."""
    train, val, w, v, last = instance.train, instance.val, estimate.w, estimate.v, trace.last
    assert last is not None
    number = jnp.asarray(estimate.steps) // LED
    drift, streams = jax.tree.map(lambda x: x[-1] - x[0], last.points), jax.random.split(stream(key, "measure"), 3)
    # a step of its own: that of the chain may have decayed to nothing
    eta = measured_step(instance, w, key=streams[0], batches=WALK)
    rate = rate_at(instance, w, drift, eta, number, key=streams[1])
    way = way_on_every_row(instance, (w, v), (eta, number), rate, key=streams[2])

    # h the hypergradient on every row, truth = h where both equations hold:
    # value - truth = (value - h(w, v)) + (h(w, v) - truth): noise of the cross and outer batches, and what w and v left
    distance, left = sub(estimate.value, way.truth), norm(sub(way.truth, way.value))
    # of two chains the part of each in what they left is not known
    part = left if len(trace.chains) < 2 else jnp.full_like(left, jnp.nan)
    of_w, of_v = (part if name in trace.chains else jnp.zeros_like(left) for name in ("inner", "linear"))
    # the iteration lasts -rate number relaxation times: half of one has 4 degrees of freedom, the fewest of a verdict
    enough = jnp.floor(FEWEST / ENOUGH * -rate * number.astype(rate.dtype)).astype(jnp.int32)
    # minibatches of train and of val
    calls = measuring_calls(train, WALK) + epoch(train) + 2 * number, epoch(val) + number
    samples = calls[0] * train.rows_per_batch + calls[1] * val.rows_per_batch
    return ErrorReport(
        value=estimate.value,
        standard_error=as_others(way.standard_error),
        bias=jax.tree.map(lambda x: jnp.where(way.lost, jnp.inf, x), as_others(jax.tree.map(jnp.abs, distance))),
        degrees_of_freedom=jnp.clip(enough, 0, way.degrees_of_freedom),
        inner=of_w,
        linear=of_v,
        sampling=norm(sub(estimate.value, way.value)),
        # exp(rate) in a step of eta
        contraction=jnp.where(way.lost, 1.0, _contraction(rate, last.step_sizes, eta)).astype(left.dtype),
        samples=samples.astype(jnp.result_type(float)),
        order=jnp.full((), 0.5, jnp.result_type(float)),
    )


def _contraction(rate: Array, step_sizes: Array | None, eta: Array) -> Array:
    """exp(rate eta_k / eta) of the last step eta_k of the chain; NaN where it has none."""
    if step_sizes is None:
        return jnp.full_like(rate, jnp.nan)
    return jnp.exp(rate * step_sizes[-1].astype(rate.dtype) / eta)
