"""The only loop over minibatches."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.errors import ParameterError
from bilevax.core.protocols import Carry, RowSource, Source, UnevenSource
from bilevax.core.trees import PyTree, zeros


def refuse_keys(what: str, instead: str, **sources: RowSource) -> None:
    """Refuse, for what reads every row at once, sources whose batches bring keys.

    Raises:
        ParameterError: one of them does.
    """
    for name, source in sources.items():
        if source.keys:
            raise ParameterError(
                f"{what} reads every row of {name} at once, with one key for ever, and {name} has keys=True: the noise"
                f" of that one draw would pass for no noise; {instead}"
            )


class Underway(NamedTuple):
    """A loop that has come to minibatch j, with the plan of the chunk before it or around it."""

    j: Array
    plan: PyTree
    carry: PyTree


def fold(
    source: Source,
    step: Callable[..., Carry],
    carry: Carry,
    args: PyTree,
    *,
    key: Array,
    start: Array | int,
    stop: Array | int,
) -> Carry:
    """Run ``carry = step(carry, args, j, draw)`` for start <= j < stop, as one compiled loop.

    Minibatch j depends on (key, j) alone, so a loop that is stopped and continued sees the same minibatches as one that
    is not. ``start`` and ``stop`` may be traced: a count compiles nothing.

    Args:
        source: where the minibatches come from.
        step: the body; draws nothing itself.
        carry: the start value, any pytree of arrays.
        args: everything large or changing that the body reads; never a closure.
        key: a JAX random key.
        start: first minibatch.
        stop: one past the last minibatch; or several such, in order, for the carry at each of them, stacked.
    """
    start, stop = jnp.asarray(start, jnp.int32), jnp.asarray(stop, jnp.int32)
    lead_on = partial(continued, source, step, args, key=key, start=start)
    at = Underway(start, no_plan(source, key), carry)
    # of several stops a scan, whose plan goes over from one to the next
    out: Carry = (lead_on(at, stop) if stop.ndim == 0 else jax.lax.scan(lead_on, at, stop))[1]
    return out


def no_plan(source: Source, key: Array) -> PyTree:
    """What stands for the plan before the first chunk."""
    # zeros in its shape: the loop overwrites them at its first minibatch
    return zeros(jax.eval_shape(lambda: source.plan_chunk(None, key, jnp.int32(0), True)))


def continued(
    source: Source,
    step: Callable[..., Carry],
    args: PyTree,
    at: Underway,
    stop: Array,
    *,
    key: Array,
    start: Array,
) -> tuple[Underway, Carry]:
    """A loop that began at ``start``, led on to ``stop``, and its carry; no chunk is planned twice."""

    # from one chunk's start to the next, or to the stop: within it no minibatch needs a new plan
    def segment(at: Underway) -> Underway:
        plan = source.plan_chunk(at.plan, key, at.j, at.j == start)
        end = jnp.minimum(stop, source.chunk_end(at.j))

        def one(j: Array, carry: Carry, **known: bool) -> Carry:
            return source.visit(plan, j, partial(step, carry, args, j), **known)

        return Underway(end, plan, loop_within(source, plan)(at.j, end, one, at.carry))

    at = jax.lax.while_loop(lambda at: at.j < stop, segment, at)
    return at, at.carry


def loop_within(source: Source, plan: PyTree) -> Callable[[Array, Array, Callable[..., Carry], Carry], Carry]:
    """(start, end, one, carry) -> carry: ``carry = one(j, carry)`` for start <= j < end, in the chunk of the plan.

    Of a source with short minibatches ``one`` takes ``short``, whether j is one.
    """
    if not is_uneven(source):
        return jax.lax.fori_loop

    def loop(start: Array, end: Array, one: Callable[..., Carry], carry: Carry) -> Carry:
        # Minibatches of the usual size one after another, then the short one: a branch a sweep, not one a step.
        def sweep(at: tuple[Array, Carry]) -> tuple[Array, Carry]:
            j, carry = at
            until = jnp.minimum(end, source.next_short(plan, j))
            carry = jax.lax.fori_loop(j, until, partial(one, short=False), carry)
            carry = jax.lax.cond(until < end, partial(one, until, short=True), lambda carry: carry, carry)
            return until + 1, carry

        out: Carry = jax.lax.while_loop(lambda at: at[0] < end, sweep, (start, carry))[1]
        return out

    return loop


def is_uneven(source: Source) -> TypeGuard[UnevenSource]:
    """True if the source has a smaller minibatch now and then, and foresees it."""
    return isinstance(source, UnevenSource) and source.uneven
