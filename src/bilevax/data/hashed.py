"""Minibatches that are as good as drawn, in a program that compiles sooner."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.config import config
from bilevax.core.trees import PyTree
from bilevax.data.arrays import Arrays
from bilevax.data.fold import Carry, Count, Draw
from bilevax.data.shuffle import hashed_rows


@config
class Hashed:
    """Rows of a table by a hash of the key and the place, for reports; estimates draw theirs.

    Drawing random rows takes as long to compile as a small estimator.
    """

    source: Arrays
    rows_per_batch: int

    whole = False

    @property
    def rows(self) -> int:
        """Number of rows, n."""
        return self.source.rows

    @property
    def full(self) -> PyTree:
        """Every row at once."""
        return self.source.full

    def fold(
        self, step: Callable[..., Carry], carry: Carry, args: PyTree, *, key: Array, start: Count, stop: Count
    ) -> Carry:
        """Run ``carry = step(carry, args, j, draw)`` for start <= j < stop."""
        places = jnp.arange(self.rows_per_batch, dtype=jnp.uint32)

        def one(j: Array, carry: Carry) -> Carry:
            numbers = hashed_rows(key, j.astype(jnp.uint32) * self.rows_per_batch + places, self.rows)
            return step(carry, args, j, Draw(self.source.at(numbers), -1, 1.0))

        return jax.lax.fori_loop(start, stop, one, carry)
