"""What the rooms ask of one another, and of a user's own classes: structural types, with shapes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from jax import Array

from bilevax.core.records import Cost, Info
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


@runtime_checkable
class UnevenSource(Source, Protocol):
    """A source with a smaller minibatch now and then, which it can foresee: a loop need not branch at each of them."""

    @property
    def uneven(self) -> bool:
        """True if it has such minibatches, at places that no key changes."""

    def next_short(self, plan: PyTree, j: Array) -> Array:
        """The first short minibatch from j on in the chunk of the plan; where there is none, the next chunk."""

    def visit(self, plan: PyTree, j: Array, use: Callable[[Any], Carry], short: bool | None = None) -> Carry:
        """``use(draw)`` of minibatch j; ``short``: whether that is a short one, None where it must be looked up."""


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


class Algorithm(Protocol):
    """A bilevel method: what it carries, and one outer step.

    The loop (:func:`bilevax.minimize`, or a user's own by :func:`bilevax.fold_looks`) draws the minibatches of its
    streams, watches what ``info`` says, and takes back a stretch in which a value became NaN.
    """

    @property
    def steps_per_record(self) -> int:
        """Outer steps to an entry of the history, at most: 1 where a step is long, 256 where it is not."""

    def check(self, problem: Any) -> None:
        """Refuse in a sentence a problem that lacks what the algorithm needs."""

    def streams(self, sources: tuple["RowSource", "RowSource"]) -> Mapping[str, Any]:
        """What each step draws, by name: for each name a source, or several minibatches of one.

        Where ``info`` has no outer value, the loop evaluates the outer loss on the stream called "val".
        """

    def init(self, problem: Any, w0: PyTree, lam: PyTree, sources: tuple["RowSource", "RowSource"]) -> PyTree:
        """The state before the first step, lam projected."""

    def step(self, problem: Any, state: PyTree, looks: Any, k: Array) -> tuple[PyTree, Info]:
        """Outer step k: the new state, and what may be watched of it. ``looks[name]`` is a look at a stream."""

    def solution(self, state: PyTree) -> tuple[PyTree, PyTree]:
        """The w and the lam of a state."""

    def step_cost(self, problem: Any, sources: tuple["RowSource", "RowSource"]) -> Cost | None:
        """Oracle calls of one step; None where each step says its own in ``info.cost``."""
