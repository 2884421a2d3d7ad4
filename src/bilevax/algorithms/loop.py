"""The outer loop of every algorithm, pure and traceable: a few outer steps as one compiled program."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.protocols import RowSource
from bilevax.core.records import Cost, Failure
from bilevax.core.trees import PyTree, norm
from bilevax.problems.problem import Problem

RECORDED = 64
"""Most outer steps in one call of :func:`advance`."""


class Watched(NamedTuple):
    """What is recorded of each outer step; arrays [RECORDED] of which the first ``stop - start`` are filled."""

    outer_value: Array
    gradient_norm: Array
    code: Array
    failure: Failure
    cost: Cost


def advance(
    problem: Problem,
    algorithm: Any,
    state: PyTree,
    w0: PyTree,
    sources: tuple[RowSource, RowSource],
    *,
    key: Array,
    start: Array,
    stop: Array,
) -> tuple[PyTree, Array, Watched]:
    """Outer steps start <= s < stop, at most RECORDED; ends early at a code of NOT_CONTRACTIVE or worse.

    Step s draws from ``fold_in(key, s)``: how a run is cut into calls changes nothing.

    Returns:
        The state, the number of the next step, and the record.
    """

    def watch(state: PyTree, s: Array) -> tuple[PyTree, Watched]:
        new, est = algorithm.step(problem, state, w0, sources, key=jax.random.fold_in(key, s), s=s)
        return new, Watched(est.outer_value, norm(est.value), est.code, est.failure, est.cost)

    shape = jax.eval_shape(watch, state, start)[1]
    empty = jax.tree.map(lambda x: jnp.zeros((RECORDED, *x.shape), x.dtype), shape)

    def going(carry: tuple[PyTree, Array, Array, Watched]) -> Array:
        _, s, code, _ = carry
        return (s < jnp.minimum(stop, start + RECORDED)) & (code < Code.NOT_CONTRACTIVE)

    def step(carry: tuple[PyTree, Array, Array, Watched]) -> tuple[PyTree, Array, Array, Watched]:
        state, s, code, record = carry
        state, seen = watch(state, s)
        record = jax.tree.map(lambda a, x: a.at[s - start].set(x), record, seen)
        return state, s + 1, jnp.maximum(code, seen.code), record

    state, s, _, record = jax.lax.while_loop(going, step, (state, start, jnp.int32(0), empty))
    return state, s, record
