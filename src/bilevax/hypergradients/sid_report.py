"""How wrong one run of SID is: what every row says where it ended, or, where that is dear, the tails of its chains."""

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.error_report import FEWEST, as_others
from bilevax.core.instance import Instance
from bilevax.core.keys import stream
from bilevax.core.records import ErrorReport, Estimate
from bilevax.core.trees import norm, sub
from bilevax.hypergradients.batch_means import contraction_rate
from bilevax.hypergradients.every_row import way_on_every_row
from bilevax.hypergradients.joint_sid import epoch, measured_step, measuring_calls
from bilevax.hypergradients.sid_error import ChainTrace, independent, tail_report, with_independent

LED, LEAST_LED = 20, 32
"""One minibatch in so many of a chain leads on from where it ended, if these are at least so many and an epoch."""

ENOUGH = 0.5
"""Relaxation times that these must last for a verdict."""

WALK = 8
"""Minibatches on which the step of that is measured."""


def leads_on(estimate: Estimate, instance: Instance) -> Array | bool:
    """Whether its chains are so long that every row, and minibatches that lead on, cost little beside them."""
    train, val, steps = instance.train, instance.val, estimate.steps
    if steps is None or not isinstance(estimate.seen, ChainTrace) or train.keys or val.keys:
        return False  # one key is not the mean of all
    if independent(train, val)[1].is_full_batch and val.rows > train.rows_per_batch:
        return False  # every minibatch of val would be dear
    return steps // LED >= max(LEAST_LED, epoch(train))


def sid_report(instance: Instance, estimate: Estimate, led: bool | None = None, *, key: Array) -> ErrorReport:
    """The report on an estimate of :class:`~bilevax.SID` that sampled.

    Where its chains are so long that every row costs little beside them, (w, v) are led on to where both equations of
    every row hold (:func:`~bilevax.hypergradients.every_row.way_on_every_row`): ``bias`` is the distance of the value
    from the hypergradient there, of whatever it comes, ``standard_error`` the doubt about that, and ``sampling`` the
    distance from the hypergradient of every row at (w, v); what w and v each have of the rest is not known. Elsewhere
    the tails of the chains are asked (:func:`~bilevax.hypergradients.sid_error.tail_report`).

    Cost: on a twentieth of k minibatches a Hessian-vector product, two gradients of either loss and two products of
    either kind; and one of each on every row.

    Args:
        instance: with its inner step measured.
        estimate: with what was seen.
        led: what :func:`leads_on` says, where that is known before it is compiled, or False: the tails.
        key: its stream measure is used.
    """
    choice = leads_on(estimate, instance) if led is None else led

    def every_row() -> ErrorReport:
        return _led_on(with_independent(instance), estimate, key=key)

    def tails() -> ErrorReport:
        return tail_report(instance, estimate, key=key)

    if isinstance(choice, bool):
        return every_row() if choice else tails()
    return jax.lax.cond(choice, every_row, tails)


def _led_on(instance: Instance, estimate: Estimate, *, key: Array) -> ErrorReport:
    """The report from every row, and the minibatches that lead on from (w, v)."""
    train, val, w, v, last = instance.train, instance.val, estimate.w, estimate.v, estimate.seen.last
    number = jnp.asarray(estimate.steps) // LED
    drift, streams = jax.tree.map(lambda x: x[-1] - x[0], last.points), jax.random.split(stream(key, "measure"), 3)
    eta = measured_step(instance, w, key=streams[0], batches=WALK)
    rate = contraction_rate(instance, w, drift, eta, number, key=streams[1])
    way = way_on_every_row(instance, (w, v), (eta, number), rate, key=streams[2])

    distance, left = sub(estimate.value, way.truth), norm(sub(way.truth, way.value))
    chains = (estimate.seen.inner, estimate.seen.linear)
    part = left if None in chains else jnp.full_like(left, jnp.nan)  # of two, what each has of it is not known
    of_w, of_v = (jnp.zeros_like(left) if tail is None else part for tail in chains)
    enough = jnp.floor(FEWEST / ENOUGH * -rate * number.astype(rate.dtype)).astype(jnp.int32)
    calls = measuring_calls(train, WALK) + epoch(train) + 2 * number, epoch(val) + number
    samples = calls[0] * train.rows_per_batch + calls[1] * val.rows_per_batch
    return ErrorReport(
        value=estimate.value,
        standard_error=as_others(way.doubt),
        bias=as_others(jax.tree.map(jnp.abs, distance)),
        degrees_of_freedom=jnp.clip(enough, 0, way.degrees_of_freedom),
        inner=of_w,
        linear=of_v,
        sampling=norm(sub(estimate.value, way.value)),
        contraction=jnp.exp(rate * last.sizes[-1].astype(rate.dtype) / eta).astype(left.dtype),
        samples=samples.astype(jnp.result_type(float)),
        order=jnp.full((), 0.5, jnp.result_type(float)),
    )
