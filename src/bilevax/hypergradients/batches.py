"""Means over minibatches, and their spread."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.protocols import Draw, RowSource
from bilevax.core.trees import PyTree, axpy, scale
from bilevax.linalg.sparse import SparseBatch

BatchFunction: TypeAlias = Callable[[PyTree, PyTree], PyTree]
"""(args, batch) -> a tree of floats."""


class Sampled(NamedTuple):
    """The noise of a mean over minibatches.

    Attributes:
        deviation: standard deviation of one of them, like the mean; 0 where there is only one.
        number: of minibatches.
    """

    deviation: PyTree
    number: Array


def batch_mean(
    fn: BatchFunction, args: PyTree, source: RowSource, *, key: Array, number: Array, first: Array | int
) -> PyTree:
    """Mean of fn(args, batch) over so many minibatches, from the first."""
    shape = jax.eval_shape(fn, args, source.example())
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)

    def step(total: PyTree, args: PyTree, _: Array, draw: Draw) -> PyTree:
        # the weights of an epoch's blocks have the mean 1: a sum over whole epochs counts every row alike
        return axpy(draw.weight, fn(args, draw.batch), total)

    total = source.fold(step, start, args, key=key, start=first, stop=first + number)
    return scale(1.0 / jnp.maximum(number, 1).astype(jnp.result_type(float)), total)


def batch_spread(
    fn: BatchFunction, args: PyTree, source: RowSource, *, key: Array, number: Array, first: Array | int
) -> tuple[PyTree, PyTree]:
    """Mean and standard deviation of fn(args, batch) over so many minibatches, from the first."""

    def with_squares(args: PyTree, batch: PyTree) -> PyTree:
        out = fn(args, batch)
        return out, jax.tree.map(jnp.square, out)

    mean, squares = batch_mean(with_squares, args, source, key=key, number=number, first=first)
    # sqrt(J / (J - 1) (mean of squares - square of mean))
    count = number.astype(jnp.result_type(float))
    bessel = count / jnp.maximum(count - 1.0, 1.0)

    def deviation(m: Array, q: Array) -> Array:
        return jnp.sqrt(bessel.astype(m.dtype) * jnp.maximum(q - m**2, 0.0))

    return mean, jax.tree.map(deviation, mean, squares)


def each(batch: PyTree) -> Callable[[Callable[[PyTree], PyTree], PyTree], PyTree]:
    """A function over a stack: at once, but one after another on sparse rows, whose batched scatters are slow."""
    leaves = jax.tree.leaves(batch, is_leaf=lambda x: isinstance(x, SparseBatch))
    sparse = any(isinstance(x, SparseBatch) for x in leaves)
    return jax.lax.map if sparse else lambda fn, stack: jax.vmap(fn)(stack)
