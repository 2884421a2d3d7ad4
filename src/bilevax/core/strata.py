"""A batch of stratified rows: what a loss sees of it is the mean over each stratum, weighted."""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.trees import PyTree, add

Mean = TypeVar("Mean")


class Piece(NamedTuple):
    """As many rows of each stratum.

    Attributes:
        rows: a pytree with leading axes S, the strata, and k, the rows of each.
        weights: of the mean over each stratum's rows, [S].
    """

    rows: PyTree
    weights: Array


class Strata(NamedTuple):
    """A batch of :func:`bilevax.sharded`: S strata, each with rows of its own.

    Attributes:
        pieces: one of a minibatch. Of every row two where the strata are not all as long: the second takes away what
            pads the short ones.
    """

    pieces: tuple[Piece, ...]

    def mean(self, fn: Callable[[PyTree], Mean]) -> Mean:
        """sum_p sum_s a_ps fn(rows of stratum s in piece p), for ``fn`` a mean over rows, a tree of floats."""

        def of(piece: Piece) -> Mean:
            values = jax.vmap(fn)(piece.rows)
            total: Mean = jax.tree.map(lambda x: jnp.tensordot(piece.weights.astype(x.dtype), x, 1), values)
            return total

        return reduce(add, map(of, self.pieces))

    def bound(self, fn: Callable[[PyTree], Array]) -> Array:
        """The mean of an upper bound, which what is taken away does not lower."""
        return Strata(tuple(Piece(p.rows, jnp.maximum(p.weights, 0)) for p in self.pieces)).mean(fn)
