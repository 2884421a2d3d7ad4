"""Which rows are minibatch j: one rule for rows in memory and for rows that are not."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from bilevax.core.config import check_count
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import Draw, Keyed, Total
from bilevax.core.trees import PyTree, row
from bilevax.data.fold import fold
from bilevax.data.permutation import cipher_words, permuted, permuted_within, pick

Carry = TypeVar("Carry")

CHUNK = 256
"""Minibatches whose rows are drawn at once: twice as fast as one key a minibatch."""

KEYS = 0x6B6579
"""Folded into a stream's key for the keys of its draws."""

FEW = 10
"""Blocks of which the order alone would hardly differ from key to key."""


class Layout(NamedTuple):
    """The order of the rows in an epoch of ``"windows"``.

    Attributes:
        words: of the permutations within windows.
        order: of the groups, [k].
        ends: one past the last place of each group in this order, [k].
        turn: places by which the epoch begins later.
    """

    words: Array
    order: Array
    ends: Array
    turn: Array


class Numbered:
    """Minibatches of a table of n rows, chosen by their numbers; a subclass has the table and reads rows of it.

    Minibatch j is a pure function of (key, j), as :class:`~bilevax.Arrays` says of each ``sampling``.
    """

    batch_size: int | None
    sampling: str
    keys: bool
    groups: ArrayLike | None
    window: int

    @property
    def rows(self) -> int:
        """Number of rows, n."""
        raise NotImplementedError

    @property
    def all_rows(self) -> PyTree:
        """Every row as one batch; None where they are not in memory."""
        raise NotImplementedError

    def at(self, numbers: Array) -> PyTree:
        """These rows, without a key."""
        raise NotImplementedError

    def total(self, fn: Callable[[PyTree, PyTree], Total], args: PyTree) -> Total:
        """The mean over every row of ``fn(args, batch)`` (see :class:`~bilevax.core.protocols.RowSource`)."""
        raise NotImplementedError

    def example(self) -> PyTree:
        """A batch as ``jax.eval_shape`` takes it."""
        raise NotImplementedError

    def _everything(self) -> PyTree:
        """Every row as one batch."""
        raise NotImplementedError

    def _choice(self, plan: PyTree) -> PyTree:
        """Of the plan of a chunk, what :meth:`_choose` said."""
        raise NotImplementedError

    def _renewed(self, plan: PyTree, key: Array, j: Array, first: Array | bool) -> PyTree:
        """The plan of the chunk that minibatch j opens, without what the draws' own keys need."""
        raise NotImplementedError

    def _batch(self, plan: PyTree, j: Array, size: int) -> PyTree:
        """The first rows of minibatch j, so many."""
        raise NotImplementedError

    @property
    def rows_per_batch(self) -> int:
        """Number of rows in a minibatch, b; n where ``batch_size`` is None."""
        return self.batch_size or self.rows

    @property
    def is_full_batch(self) -> bool:
        """True if each minibatch is every row, and nothing else."""
        return self.batch_size is None and not self.keys

    @property
    def blocks(self) -> int | None:
        """Blocks in an epoch; 1 where each minibatch is every row, None where a draw is no block."""
        if self.keys:
            return None
        return 1 if self.batch_size is None else self._epoch if self.sampling == "blocks" else None

    @property
    def _epoch(self) -> int:
        """Minibatches in an epoch."""
        # ceil(n / b) blocks, or floor(n / b) minibatches of a permutation
        n, b = self.rows, self.rows_per_batch
        return -(-n // b) if self.sampling == "blocks" else n // b

    def plan_chunk(self, plan: PyTree, key: Array, j: Array, first: Array | bool) -> PyTree:
        """The plan of the chunk that minibatch j opens (see :class:`~bilevax.core.protocols.Source`)."""
        rows, words = (plan and plan[0], (self.words(key),)) if self.keys else (plan, ())
        renewed = () if self.batch_size is None else self._renewed(rows, key, j, first)
        return (renewed, *words) if self.keys else renewed

    def _choose(self, key: Array, j: Array) -> Array | tuple[Array, Array]:
        """The chunk of minibatch j: rows, [CHUNK, b]; or blocks, [CHUNK], and from each the next short one."""
        n, b, epoch = self.rows, self.rows_per_batch, self._epoch
        if self.sampling == "iid":
            return jax.random.randint(jax.random.fold_in(key, j // CHUNK), (CHUNK, b), 0, n)
        # minibatch j is place j mod e of epoch j // e, e minibatches to an epoch
        numbers = j // CHUNK * CHUNK + jnp.arange(CHUNK, dtype=jnp.int32)
        places, first = numbers % epoch, numbers[0] // epoch
        nth = numbers // epoch - first
        met = first + jnp.arange(min(CHUNK, (CHUNK - 1) // epoch + 2), dtype=jnp.int32)  # epochs, a few for a chunk
        if self.sampling == "windows":
            layouts = jax.vmap(lambda epoch: self._layout(jax.random.fold_in(key, epoch)))(met)
            found: Array = jax.lax.map(lambda at: self._in_windows(row(layouts, at[1]), at[0]), (places, nth))
            return found
        words = _words(key, met)
        if self.sampling == "shuffled":
            # minibatch p of an epoch is the places p b, ..., p b + b - 1 of its permutation
            rows = places[:, None] * b + jnp.arange(b, dtype=jnp.int32)[None, :]
            return permuted(words, rows, n, nth[:, None])
        if n % b == 0:
            return permuted(words, places, epoch, nth), jnp.full(CHUNK, CHUNK, jnp.int32)
        # Where the short block comes is the same for every key, unless blocks are few: so under vmap over keys a
        # program still branches and need not compute both sizes. Which rows are in it is the shuffle's choice.
        common = words if epoch < FEW else _words(jax.random.key(0), met)
        # the short block, number e - 1, comes at place p(0); the others in their order around it
        lasts = jax.vmap(lambda w: permuted(w, jnp.int32(0), epoch))(common)
        last = pick(lasts, nth)
        even = jnp.where(places > last, places - 1, places)
        even = permuted(words, even, epoch - 1, nth)
        # where in the chunk each epoch's short block is, and of those from a place on the first
        shorts = (met * epoch + lasts - numbers[0])[:, None]
        nexts = jnp.where(shorts >= jnp.arange(CHUNK, dtype=jnp.int32)[None, :], shorts, CHUNK)
        return jnp.where(places == last, epoch - 1, even), jnp.minimum(jnp.min(nexts, axis=0), CHUNK)

    def _layout(self, key: Array) -> "Layout":
        """The order of an epoch of ``"windows"``."""
        sizes = jnp.asarray(self.groups, jnp.int32)
        k = len(sizes)
        words = cipher_words(key)
        order = permuted(words, jnp.arange(k, dtype=jnp.int32), k)
        ends = jnp.cumsum(sizes[order], dtype=jnp.int32)
        turn = jax.random.randint(key, (), 0, self.rows, jnp.int32)
        return Layout(cipher_words(jax.random.fold_in(key, 1)), order, ends, turn)

    def _in_windows(self, at: "Layout", place: Array) -> Array:
        """The rows of the minibatch at a place of an epoch, [b]."""
        sizes = jnp.asarray(self.groups, jnp.int32)
        n, b, k, G = self.rows, self.rows_per_batch, len(sizes), self.window
        firsts = jnp.cumsum(sizes, dtype=jnp.int32) - sizes
        # (p + turn) mod n: a turn at random makes every row as likely at every place, whatever the groups' sizes
        p = place * b + jnp.arange(b, dtype=jnp.int32)
        p = jnp.where(p >= n - at.turn, p - (n - at.turn), p + at.turn)
        # window w has the groups w G, ..., w G + G - 1 of the order, and the places from `begin` to before `end`
        w = jnp.searchsorted(at.ends, p, side="right").astype(jnp.int32) // G
        begin = jnp.where(w == 0, 0, at.ends[jnp.maximum(w * G - 1, 0)])
        end = at.ends[jnp.minimum(w * G + G, k) - 1]
        p = begin + permuted_within(at.words, p - begin, end - begin, w)
        # and of the group that has place p its row p - (first place of the group)
        q = jnp.searchsorted(at.ends, p, side="right").astype(jnp.int32)
        group = at.order[q]
        return firsts[group] + p - (at.ends[q] - sizes[group])

    def chunk_end(self, j: Array) -> Array:
        """The first minibatch after j that opens a chunk."""
        return (j // CHUNK + 1) * CHUNK

    @staticmethod
    def words(key: Array) -> Array:
        """The stream of the draws' keys as numbers, [2] uint32: a loop carries no keys of any kind."""
        return jax.random.bits(jax.random.fold_in(key, KEYS), (2,), jnp.uint32)

    def with_key(self, words: Array, j: Array, draw: Draw) -> Draw:
        """Draw j with a key of its own."""
        # key of draw j = fold_in(stream, j)
        stream = jax.random.wrap_key_data(words, impl="threefry2x32")
        return draw._replace(batch=Keyed(draw.batch, jax.random.fold_in(stream, j)))

    @staticmethod
    def with_fixed_key(rows: PyTree) -> Keyed:
        """Rows with the key that what reads every row at once sees, always the same."""
        return Keyed(rows, jax.random.fold_in(jax.random.key(0), KEYS))

    @property
    def uneven(self) -> bool:
        """True if there is a short block, and so many blocks that its place is the same for every key."""
        return bool(self._short) and self._epoch >= FEW

    def next_short(self, plan: PyTree, j: Array) -> Array:
        """The first minibatch from j on that is the short block; where there is none in the chunk, the next chunk."""
        nexts = self._choice(plan[0] if self.keys else plan)[1]
        # the chunk's first minibatch, and the place in it
        out: Array = j - j % CHUNK + nexts[j % CHUNK]
        return out

    def visit(self, plan: PyTree, j: Array, use: Callable[[Draw], Carry], short: bool | None = None) -> Carry:
        """``use(draw)`` of minibatch j (see :class:`~bilevax.core.protocols.UnevenSource`)."""
        rows, take = (plan[0], lambda draw: use(self.with_key(plan[1], j, draw))) if self.keys else (plan, use)
        if self.batch_size is None:
            return take(Draw(self._everything(), -1, 1.0))
        n, b, i = self.rows, self.rows_per_batch, j % CHUNK
        if self.sampling != "blocks":
            return take(Draw(self._batch(rows, j, b), -1, 1.0))
        number, nexts = (x[i] for x in self._choice(rows))

        def block(size: int) -> Carry:
            # weight e size / n: over the e blocks of an epoch, weight times mean is the mean of every row
            return take(Draw(self._batch(rows, j, size), number, size * self._epoch / n))

        if not self._short or short is not None:
            return block(self._short if short else b)
        # blocks of two sizes have two programs
        out: Carry = jax.lax.cond(nexts == i, lambda: block(self._short), lambda: block(b))
        return out

    @property
    def _short(self) -> int:
        """Rows in the short block of ``"blocks"``; 0 where there is none."""
        return self.rows % self.rows_per_batch if self.sampling == "blocks" else 0

    fold = fold


def renewed(plan: PyTree, draw: Callable[[], PyTree], j: Array, first: Array | bool) -> PyTree:
    """What is drawn for a chunk, where minibatch j opens one; else the plan that there is."""
    # a branch, not a select: a chunk is drawn once in 256 minibatches
    return draw() if plan is None else jax.lax.cond(first | (j % CHUNK == 0), draw, lambda: plan)


SAMPLINGS = "iid", "shuffled", "blocks", "windows"


def checked_groups(groups: ArrayLike | None, window: int, sampling: str, n: int) -> tuple[Array | None, int]:
    """The sizes of the groups, [k] int32, and how many are a window.

    Raises:
        ParameterError: there are none for ``"windows"``, or some for another sampling; they are no counts of n rows.
    """
    window = check_count("window", window, low=1)
    if groups is None and sampling == "windows":
        raise ParameterError('sampling="windows" needs groups=, the numbers of rows of the groups that lie together')
    if groups is not None and sampling != "windows":
        raise ParameterError('groups= are the numbers of rows of the groups of sampling="windows", and of no other')
    if groups is None:
        return None, window
    sizes = np.asarray(groups)
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu" or np.any(sizes < 1) or int(sizes.sum()) != n:
        raise ParameterError(f"groups must be whole numbers of at least 1 whose sum is n={n}, got {groups!r}")
    return jnp.asarray(sizes, jnp.int32), window


def _words(key: Array, epochs: Array) -> Array:
    """The words of the permutation of each of these epochs, once an epoch."""
    return jax.vmap(lambda epoch: cipher_words(jax.random.fold_in(key, epoch)))(epochs)
