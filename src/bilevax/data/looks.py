"""A loop over named streams of minibatches, whose step evaluates each minibatch as often as it likes.

In come sources by name, from an algorithm's ``streams`` or from a caller of :func:`fold_looks`; :class:`Streams` makes
one source of them for the loop ``data.fold``. Out goes, to each step, a *look* at each stream: a function that applies
what the step gives it to the step's minibatch (:class:`Look`), or a fold over its T (:class:`LookAtSeveral`).
"""

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.config import check_count, config
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import Carry, Draw, RowSource, Source, UnevenSource
from bilevax.core.trees import PyTree, is_concrete
from bilevax.data.fold import fold, is_uneven, loop_within
from bilevax.data.sampling import CHUNK, renewed

NAMED = 0x80000000
"""Highest bit, set in the number that is folded in for a name, so that no stream has the key of a step."""


@config
class Several:
    """A stream that gives each step T minibatches of a source, all from one chunk of 256.

    A look at it folds over them: ``look.fold(move, carry)``. Where T does not divide 256, the rest of each chunk is
    skipped.

    Args:
        source: where the minibatches come from; its chunks have 256, or it has none.
        number: T, from 1 to 256; it may be traced.

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> train = bx.Arrays(jnp.ones((50, 2)), batch_size=5)
        >>> {"linear": bx.Several(train, 10)}["linear"].number  # ten minibatches a step, in `streams`
        10
    """

    source: Source
    number: Array | int

    def __post_init__(self) -> None:
        number = check_count("number", self.number, low=1)
        if is_concrete(number) and number > CHUNK:
            raise ParameterError(f"number must be at most {CHUNK}, a chunk, got {number}; use source.fold for more")

    @property
    def _steps(self) -> Array:
        """Steps to a chunk."""
        return jnp.floor_divide(CHUNK, jnp.asarray(self.number, jnp.int32))

    def _begin(self, k: Array) -> Array:
        """The number of the first minibatch of step k."""
        # T minibatches a step, 256 // T steps a chunk: none lies in two chunks
        return k // self._steps * CHUNK + k % self._steps * self.number

    def plan_chunk(self, plan: PyTree, key: Array, k: Array, first: Array | bool) -> PyTree:
        """The plan of the chunk that step k opens (see :class:`~bilevax.core.protocols.Source`)."""
        return self.source.plan_chunk(plan, key, self._begin(k), first)

    def chunk_end(self, k: Array) -> Array:
        """The first step after k that opens a chunk."""
        # 256 // T steps to a chunk
        return (k // self._steps + 1) * self._steps

    def look(self, plan: PyTree, k: Array, short: bool | None) -> "LookAtSeveral":
        """The look of step k."""
        return LookAtSeveral(self, plan, self._begin(k))


class LookAtSeveral:
    """What a step sees of :class:`Several`: ``look.fold`` over its minibatches, or ``look[i]``, one of them."""

    def __init__(self, several: Several, plan: PyTree, begin: Array) -> None:
        self._several, self._plan, self._begin = several, plan, begin

    def __getitem__(self, i: Array | int) -> "Look":
        """The look at the step's minibatch i < T; whether it is a short one is looked up each time."""
        # the i-th of the step's minibatches is number begin + i of the source
        j = self._begin + i
        return Look(lambda use: self._several.source.visit(self._plan, j, use))

    def part(self, i: Array | int, number: Array | int) -> "LookAtSeveral":
        """The look at the i-th ``number`` of them."""
        return LookAtSeveral(Several(self._several.source, number), self._plan, self._begin + i * number)

    def fold(self, move: Callable[[Carry, Array, Draw], Carry], carry: Carry, stop: Array | int | None = None) -> Carry:
        """``carry = move(carry, i, draw)`` over the step's minibatches i = 0, ..., T - 1, the same in every fold.

        Over the first ``stop`` of them, if that is given.
        """
        source, begin = self._several.source, self._begin

        def one(j: Array, carry: Carry, **known: bool) -> Carry:
            return source.visit(self._plan, j, partial(move, carry, j - begin), **known)

        end = begin + jnp.asarray(self._several.number if stop is None else stop, jnp.int32)
        return loop_within(source, self._plan)(begin, end, one, carry)


@config
class Undrawn:
    """A stream that draws nothing: the step has ``look.source``, to be read with a key from ``looks.key``."""

    source: RowSource

    def plan_chunk(self, plan: PyTree, key: Array, k: Array, first: Array | bool) -> PyTree:
        """No plan."""
        return ()

    def chunk_end(self, k: Array) -> Array:
        """No step opens a chunk."""
        return jnp.asarray(np.iinfo(np.int32).max, jnp.int32)

    def look(self, plan: PyTree, k: Array, short: bool | None) -> "Undrawn":
        """Itself."""
        return self


@config
class Single:
    """A stream that gives each step one minibatch."""

    source: Source

    def plan_chunk(self, plan: PyTree, key: Array, k: Array, first: Array | bool) -> PyTree:
        """The source's plan."""
        return self.source.plan_chunk(plan, key, k, first)

    def chunk_end(self, k: Array) -> Array:
        """The source's boundary."""
        return self.source.chunk_end(k)

    @property
    def uneven(self) -> bool:
        """True if the source has a smaller minibatch now and then."""
        return is_uneven(self.source)

    def next_short(self, plan: PyTree, k: Array) -> Array:
        """The source's next short minibatch."""
        return cast(UnevenSource, self.source).next_short(plan, k)

    def look(self, plan: PyTree, k: Array, short: bool | None) -> "Look":
        """The look of step k."""
        # a source of even minibatches has no such argument
        known = {"short": short} if self.uneven else {}
        return Look(lambda use: self.source.visit(plan, k, use, **known))


@config
class Uniform:
    """A stream of whole numbers, one a step, each of 0, ..., number - 1 as likely: ``looks[name](lambda p: p)``.

    Drawn 256 at once: a number from the step's own key takes as long as a product on a minibatch.
    """

    number: Array | int

    def plan_chunk(self, plan: PyTree, key: Array, k: Array, first: Array | bool) -> Array:
        """The numbers of the chunk that step k opens, [CHUNK]."""

        def draw() -> Array:
            return jax.random.randint(jax.random.fold_in(key, k // CHUNK), (CHUNK,), 0, self.number)

        out: Array = renewed(plan, draw, k, first)
        return out

    def chunk_end(self, k: Array) -> Array:
        """The first step after k that opens a chunk."""
        return (k // CHUNK + 1) * CHUNK

    def visit(self, plan: Array, k: Array, use: Callable[[Array], Carry]) -> Carry:
        """``use(p)`` of the number of step k."""
        return use(plan[k % CHUNK])

    fold = fold


class Look:
    """What a step sees of a source: ``look(use)`` is ``use(draw)`` of the step's minibatch, the same at every call.

    So a step evaluates the same rows at several points. Where one block of an epoch is shorter than the others, the
    program branches around ``use`` alone.
    """

    def __init__(self, visit: Callable[[Callable[[Draw], PyTree]], PyTree]) -> None:
        self._visit = visit

    def __getitem__(self, i: Array | int) -> "Look":
        """Itself: of one minibatch a step, the first is the only one."""
        return self

    def __call__(self, use: Callable[[Draw], Carry]) -> Carry:
        """``use(draw)``."""
        out: Carry = self._visit(use)
        return out

    @property
    def block(self) -> Array:
        """Number of the block in ``sampling="blocks"``, else -1, int32."""
        return self(lambda draw: jnp.asarray(draw.block, jnp.int32))


class Looks(dict[str, PyTree]):
    """A step's look at each stream, by name."""

    def __init__(self, looks: Mapping[str, PyTree], key: Array, k: Array) -> None:
        super().__init__(looks)
        self._key, self._k = key, k

    @property
    def key(self) -> Array:
        """A key of the step's own, ``fold_in(key, k)`` of the loop's."""
        return jax.random.fold_in(self._key, self._k)


def stream_key(key: Array, name: str) -> Array:
    """The key of a stream, by its name: what other streams there are changes no minibatch of it."""
    # crc32, not hash(): Python's differs from process to process
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode()) | NAMED))


Stream: TypeAlias = Source | Several | Undrawn


class Streams:
    """Several streams as one source, for the loop ``data.fold``: its minibatch k is the :class:`Looks` of step k."""

    def __init__(self, streams: Mapping[str, Stream], key: Array) -> None:
        self.streams = {name: x if isinstance(x, Several | Undrawn) else Single(x) for name, x in streams.items()}
        self.key = key

    def plan_chunk(self, plan: PyTree, key: Array, k: Array, first: Array | bool) -> PyTree:
        """The plans of all streams, each from the key of its name."""
        return {
            name: stream.plan_chunk(plan and plan[name], stream_key(key, name), k, first)
            for name, stream in self.streams.items()
        }

    def chunk_end(self, k: Array) -> Array:
        """The first step after k that opens a chunk of any stream."""
        # plans are renewed together; a stream whose chunk goes on keeps the one it has
        return jnp.min(jnp.stack([stream.chunk_end(k) for stream in self.streams.values()]))

    @property
    def _uneven(self) -> dict[str, Single]:
        # a look at several sweeps over their short ones by itself
        return {name: x for name, x in self.streams.items() if isinstance(x, Single) and x.uneven}

    @property
    def uneven(self) -> bool:
        """True if any of them gives a step a single minibatch, which is smaller now and then."""
        return bool(self._uneven)

    def next_short(self, plan: PyTree, k: Array) -> Array:
        """The first step from k on with a short minibatch of any stream, or beyond the chunk."""
        return jnp.min(jnp.stack([stream.next_short(plan[name], k) for name, stream in self._uneven.items()]))

    def visit(self, plan: PyTree, k: Array, use: Callable[[Looks], Carry], short: bool | None = None) -> Carry:
        """``use(looks)`` of step k; ``short``: whether a minibatch of it is a short one."""
        # of several streams with short minibatches, which has one now must be looked up in the program
        if short and len(self._uneven) > 1:
            short = None
        looks = {name: stream.look(plan[name], k, short) for name, stream in self.streams.items()}
        return use(Looks(looks, self.key, k))

    fold = fold


def fold_looks(
    streams: Mapping[str, Stream],
    step: Callable[[Carry, PyTree, Array, Looks], Carry],
    carry: Carry,
    args: PyTree,
    *,
    key: Array,
    start: Array | int,
    stop: Array | int,
) -> Carry:
    """Run ``carry = step(carry, args, k, looks)`` for start <= k < stop, as one compiled loop.

    ``looks[name](use)`` is ``use(draw)`` of the step's minibatch of that stream. Each name has a key of its own
    (:func:`stream_key`), so the same source under two names gives independent minibatches; minibatch k of a stream is
    the k-th of ``source.fold`` with that key. How the loop is cut changes no bit.

    Args:
        streams: for each name a source, :class:`Several` of its minibatches a step, or :class:`Undrawn`.
        step: the body; draws nothing itself.
        carry: the start value, any pytree of arrays.
        args: everything large or changing that the body reads; never a closure.
        key: a JAX random key.
        start: first step.
        stop: one past the last step.

    Examples:
        Two directions on the same rows, of which the mean is taken:

        >>> import bilevax as bx, jax, jax.numpy as jnp
        >>> train = bx.Arrays(jnp.arange(40.0), batch_size=4, sampling="blocks")
        >>> def step(total, args, k, looks):
        ...     once, twice = (looks["train"](lambda draw: factor * jnp.mean(draw.batch)) for factor in (1.0, 2.0))
        ...     return total + (twice - once) / 10
        >>> float(bx.fold_looks({"train": train}, step, jnp.zeros(()), (), key=jax.random.key(0), start=0, stop=10))
        19.5
    """
    if not streams:
        raise ParameterError("fold_looks needs at least one stream, as in {'train': train, 'val': val}")
    return Streams(streams, key).fold(step, carry, args, key=key, start=start, stop=stop)
