"""Means over minibatches, and their spread."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.protocols import Draw, RowSource
from bilevax.core.trees import PyTree, axpy, row, scale, zeros
from bilevax.linalg.sparse import SparseBatch

BatchFunction: TypeAlias = Callable[[PyTree, PyTree], PyTree]
"""(args, batch) -> a tree of floats."""

StackFunction: TypeAlias = Callable[[PyTree, PyTree, PyTree], PyTree]
"""(args, row of a stack, batch) -> a tree of floats."""


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
    # in the shape of fn's result, which is not evaluated for it
    start = zeros(jax.eval_shape(fn, args, source.example()))

    def step(total: PyTree, args: PyTree, _: Array, draw: Draw) -> PyTree:
        # the weights of an epoch's blocks have the mean 1: a sum over whole epochs counts every row alike
        return axpy(draw.weight, fn(args, draw.batch), total)

    # (1/J) sum_i fn(args, zeta_i); of no minibatches 0
    total = source.fold(step, start, args, key=key, start=first, stop=first + number)
    return scale(1.0 / jnp.maximum(number, 1).astype(jnp.result_type(float)), total)


def with_squares(fn: Callable[..., PyTree]) -> Callable[..., tuple[PyTree, PyTree]]:
    """The function with the squares of its values beside them, for :func:`mean_and_deviation`."""

    def both(*args: PyTree) -> tuple[PyTree, PyTree]:
        x = fn(*args)
        return x, jax.tree.map(jnp.square, x)

    return both


def mean_and_deviation(means: tuple[PyTree, PyTree], number: Array) -> tuple[PyTree, PyTree]:
    """Mean and standard deviation, from the means of so many values and of their squares."""
    mean, squares = means
    # sqrt(J / (J - 1) (mean of squares - square of mean))
    count = number.astype(jnp.result_type(float))
    bessel = count / jnp.maximum(count - 1.0, 1.0)

    # rounding may leave a square of the mean above the mean of the squares
    def deviation(m: Array, q: Array) -> Array:
        return jnp.sqrt(bessel.astype(m.dtype) * jnp.maximum(q - m**2, 0.0))

    return mean, jax.tree.map(deviation, mean, squares)


def stack_mean(
    fn: StackFunction, args: PyTree, stack: PyTree, source: RowSource, *, key: Array, number: Array
) -> PyTree:
    """Mean of fn(args, x, batch) over so many minibatches, of every row x of a stack [L, ...] the same."""
    length = jax.tree.leaves(stack)[0].shape[0]
    start = zeros(jax.eval_shape(fn, args, row(stack, 0), source.example()), length)

    def step(totals: PyTree, args: tuple[PyTree, PyTree], _: Array, draw: Draw) -> PyTree:
        args, stack = args

        def more(total: PyTree, x: PyTree) -> PyTree:
            return axpy(draw.weight, fn(args, x, draw.batch), total)

        return revised(more, totals, stack, batch=draw.batch)

    # the same minibatches at every row of the stack: what they share drops out of differences
    totals = source.fold(step, start, (args, stack), key=key, start=0, stop=number)
    return scale(1.0 / jnp.maximum(number, 1).astype(jnp.result_type(float)), totals)


def revised(fn: Callable[..., PyTree], stack: PyTree, *others: PyTree, batch: PyTree) -> PyTree:
    """The stack of fn(x, *others), x and others rows of stacks [L, ...], x and fn(x) alike.

    All at once; but on a sparse minibatch one after another and in place: a product with it takes less time than a few
    passes over a stack, and a row of one stays in the cache from pass to pass.
    """
    if not is_sparse(batch):
        return jax.vmap(fn)(stack, *others)

    def one(i: Array, stack: PyTree) -> PyTree:
        new = fn(*(row(rows, i) for rows in (stack, *others)))
        return jax.tree.map(lambda x, at: jax.lax.dynamic_update_index_in_dim(x, at, i, 0), stack, new)

    length = jax.tree.leaves(stack)[0].shape[0]
    out: PyTree = jax.lax.fori_loop(0, length, one, stack)
    return out


def each(batch: PyTree) -> Callable[[Callable[[PyTree], PyTree], PyTree], PyTree]:
    """A function over a stack: at once, but one after another on sparse rows; see :func:`revised`."""
    return jax.lax.map if is_sparse(batch) else lambda fn, stack: jax.vmap(fn)(stack)


def is_sparse(batch: PyTree) -> bool:
    """True if a part of the batch is a sparse matrix."""
    leaves = jax.tree.leaves(batch, is_leaf=lambda x: isinstance(x, SparseBatch))
    return any(isinstance(x, SparseBatch) for x in leaves)
