"""What the rooms ask of one another, and of a user's own classes: structural types, with shapes."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

from jax import Array

from bilevax.core.trees import PyTree

Carry = TypeVar("Carry")


class Draw(NamedTuple):
    """One minibatch.

    Attributes:
        batch: what the losses see, a pytree with leading axis b.
        block: number of the block in ``sampling="blocks"``, else -1.
        weight: factor on the step that makes every row count once an epoch; 1 but for blocks with a short last one.
    """

    batch: PyTree
    block: Array | int
    weight: Array | float


class Keyed(NamedTuple):
    """A batch with random numbers of its own, of a source with ``keys=True``.

    Attributes:
        rows: what the batch would be without, a pytree with leading axis b.
        key: one JAX random key, another in every draw.
    """

    rows: PyTree
    key: Array


class Source(Protocol):
    """Where minibatches come from. Minibatch j is a pure function of (key, j).

    The rows of many consecutive minibatches, a chunk, are chosen at once: a *plan*.
    """

    def renew(self, plan: PyTree, key: Array, j: Array, first: Array | bool) -> PyTree:
        """The plan of the chunk that minibatch j opens; ``plan`` itself where j opens none and is not the first."""

    def boundary(self, j: Array) -> Array:
        """The first minibatch after j that opens a chunk."""

    def visit(self, plan: PyTree, j: Array, use: Callable[[Any], Carry]) -> Carry:
        """``use(draw)`` of minibatch j, which lies in the chunk of the plan."""

    def fold(
        self,
        step: Callable[..., Carry],
        carry: Carry,
        args: PyTree,
        *,
        key: Array,
        start: Array | int,
        stop: Array | int,
    ) -> Carry:
        """Run ``carry = step(carry, args, j, draw)`` for start <= j < stop."""


class RowSource(Source, Protocol):
    """A source over one table of n rows."""

    @property
    def rows(self) -> int:
        """Number of rows, n."""

    @property
    def rows_per_batch(self) -> int:
        """Number of rows in a minibatch, b."""

    @property
    def whole(self) -> bool:
        """True if each minibatch is every row."""

    @property
    def full(self) -> PyTree:
        """Every row at once."""
