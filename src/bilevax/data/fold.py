"""The only loop over minibatches."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.errors import ParameterError
from bilevax.core.protocols import Carry, Keyed, RowSource, Source
from bilevax.core.trees import PyTree


def has_keys(source: RowSource) -> bool:
    """True if its batches bring keys, so that no pass over every row stands for their mean."""
    return isinstance(source.full, Keyed)


def refuse_keys(what: str, instead: str, **sources: RowSource) -> None:
    """Refuse, for what reads every row at once, sources whose batches bring keys.

    Raises:
        ParameterError: one of them does.
    """
    for name, source in sources.items():
        if has_keys(source):
            raise ParameterError(
                f"{what} reads every row of {name} at once, with one key for ever, and {name} has keys=True: the noise"
                f" of that one draw would pass for no noise; {instead}"
            )


def fold(
    source: Source,
    step: Callable[[Carry, PyTree, Array, Any], Carry],
    carry: Carry,
    args: PyTree,
    *,
    key: Array,
    start: Array | int,
    stop: Array | int,
    sweep: Callable[..., tuple[Array, Carry]] | None = None,
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
        stop: one past the last minibatch.
        sweep: how to run ``carry = use(carry, j, draw)`` from minibatch j on, (plan, j, end, use, carry) -> (where it
            ended, carry): at least one minibatch, and none from ``end`` on, which is in the same chunk or opens the
            next. Default: all of them, each by ``source.visit``.
    """
    sweep = sweep or partial(_visits, source)
    start, stop = jnp.asarray(start, jnp.int32), jnp.asarray(stop, jnp.int32)
    shape = jax.eval_shape(lambda: source.renew(None, key, start, True))
    empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)

    def segment(state: tuple[Array, PyTree, Carry]) -> tuple[Array, PyTree, Carry]:
        j, plan, carry = state
        plan = source.renew(plan, key, j, j == start)
        end = jnp.minimum(stop, source.boundary(j))
        end, carry = sweep(plan, j, end, lambda carry, j, draw: step(carry, args, j, draw), carry)
        return end, plan, carry

    return jax.lax.while_loop(lambda state: state[0] < stop, segment, (start, empty, carry))[2]


def _visits(
    source: Source, plan: PyTree, j: Array, end: Array, use: Callable[..., Carry], carry: Carry
) -> tuple[Array, Carry]:
    def one(j: Array, carry: Carry) -> Carry:
        return source.visit(plan, j, lambda draw: use(carry, j, draw))

    return end, jax.lax.fori_loop(j, end, one, carry)
