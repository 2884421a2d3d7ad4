"""Minibatches that are as good as drawn, in a program that compiles sooner."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.config import config
from bilevax.core.protocols import Carry, Draw, Total
from bilevax.core.trees import PyTree
from bilevax.data.fold import fold
from bilevax.data.permutation import hashed_rows
from bilevax.data.sampling import Numbered


@config
class HashedBatches:
    """Rows of a table by a hash of the key and the place, for reports; estimates draw theirs.

    Drawing random rows takes as long to compile as a small estimator.
    """

    source: Numbered
    rows_per_batch: int

    is_full_batch: ClassVar[bool] = False
    blocks: ClassVar[None] = None

    @property
    def rows(self) -> int:
        """Number of rows, n."""
        return self.source.rows

    @property
    def keys(self) -> bool:
        """True if each draw brings a key of its own."""
        return self.source.keys

    @property
    def all_rows(self) -> PyTree:
        """Every row at once; None where they are not in memory."""
        return self.source.all_rows

    def total(self, fn: Callable[[PyTree, PyTree], Total], args: PyTree) -> Total:
        """The mean over every row of ``fn(args, batch)``."""
        return self.source.total(fn, args)

    def example(self) -> PyTree:
        """The shapes and dtypes of a batch."""
        return self.source.example()

    def plan_chunk(self, plan: PyTree, key: Array, j: Array, first: Array | bool) -> tuple[Array, PyTree]:
        """The words of the key, from which every minibatch follows, and those of the draws' own keys if they have."""
        return jax.random.key_data(key), self.source.words(key) if self.source.keys else ()

    def chunk_end(self, j: Array) -> Array:
        """None of them opens a chunk."""
        return jnp.asarray(np.iinfo(np.int32).max, jnp.int32)

    def visit(self, plan: tuple[Array, PyTree], j: Array, use: Callable[[Draw], Carry]) -> Carry:
        """``use(draw)`` of minibatch j."""
        # row i of minibatch j is at place j b + i of one long hashed sequence
        places = j.astype(jnp.uint32) * self.rows_per_batch + jnp.arange(self.rows_per_batch, dtype=jnp.uint32)
        # a key of its own where the source's draws have one
        draw = Draw(self.source.at(hashed_rows(plan[0], places, self.rows)), -1, 1.0)
        return use(self.source.with_key(plan[1], j, draw) if self.source.keys else draw)

    fold = fold
