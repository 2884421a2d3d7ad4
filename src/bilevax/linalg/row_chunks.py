"""Losses that are sums over rows: what a pass over many rows uses twice, it reads from memory once."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
from jax import Array

from bilevax.core.protocols import Loss
from bilevax.core.trees import PyTree, add, zeros

Total = TypeVar("Total")

PIECE = 1 << 20
"""Entries of X in a piece: they stay in a cache from the scores to the gradient."""

MANY = 8
"""Pieces from which on rows are read so; where they are fewer, all of them nearly fit a cache."""

KEPT = "kept"
"""Name of what is small beside a piece, and long to compute."""


def value_and_grad(loss: Loss) -> Callable[[PyTree, PyTree, PyTree], tuple[Array, PyTree]]:
    """(w, lam, batch) -> the loss and its gradient in w: the loss's own ``value_and_grad``, or autodiff's."""
    # The losses of linear models know a pass in pieces, which autodiff of their value would not find.
    both: Callable[..., tuple[Array, PyTree]] = getattr(loss, "value_and_grad", None) or jax.value_and_grad(loss)
    return both


def many(rows: PyTree) -> bool:
    """True if it pays to read the rows piece by piece; rows whose features are no array cannot be."""
    X = rows[0]
    return isinstance(X, Array) and X.size >= MANY * PIECE


def over_rows(fn: Callable[[PyTree, PyTree], Total], args: PyTree, rows: PyTree) -> Total:
    """``fn(args, rows)``, a tree of sums over the rows, as the sum over pieces of them where they are :func:`many`.

    It can be differentiated any number of times, forward and in reverse, and mapped. For a derivative in reverse, what
    ``fn`` has named :data:`KEPT` by ``checkpoint_name`` is kept of each piece; the rest is computed again.

    Args:
        fn: a sum over the rows.
        args: what else it reads, a pytree of arrays.
        rows: a tuple of arrays with leading axis n, the features X [n, d] first.
    """
    if not many(rows):
        return fn(args, rows)
    X = rows[0]
    n, size = X.shape[0], max(PIECE * X.shape[0] // X.size, 1)

    # Nothing of a piece but what is named KEPT outlives it: else the backward pass would hold every piece's scores.
    @partial(jax.checkpoint, prevent_cse=False, policy=jax.checkpoint_policies.save_only_these_names(KEPT))
    def piece(i: Array, args: PyTree, rows: PyTree) -> Total:
        return fn(args, jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, i * size, size), rows))

    # sum over rows = that over the ragged last piece, or 0, + those over the n // size whole ones
    if n % size:
        total = fn(args, jax.tree.map(lambda a: a[n - n % size :], rows))
    else:
        total = zeros(jax.eval_shape(fn, args, rows))
    end: Total = jax.lax.fori_loop(0, n // size, lambda i, total: add(total, piece(i, args, rows)), total)
    return end
