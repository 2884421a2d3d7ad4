"""Rows that do not fit into memory."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from bilevax.core.config import check_choice, check_count, check_switch, config, positive, set_frozen, static
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import Total
from bilevax.core.trees import PyTree, add, scale, zeros
from bilevax.data.arrays import Arrays
from bilevax.data.data_sets import DataSetRows, is_data_set
from bilevax.data.host_calls import from_host
from bilevax.data.reader import Reader, number_of, reader_of
from bilevax.data.readings import Rows
from bilevax.data.sampling import CHUNK, SAMPLINGS, Numbered, checked_groups

MOST = 64
"""Minibatches in a piece: what one call of the host costs is little beside so many steps."""

HANDED = 1 << 23
"""Bytes of a piece of rows that are handed over, one minibatch at least: each call of the host takes time."""

SHARE, MAPPED = 32, 4
"""What is read together to ``prefetch_bytes``, and where no rows are handed over: a short loop reads little in vain."""

SPANS = 8
"""Pieces of a pass over every row to ``prefetch_bytes``."""


class Piece(NamedTuple):
    """The plan of a chunk, and the rows of some of its minibatches.

    Attributes:
        choice: which rows the chunk has, as :meth:`Numbered._choose` says.
        told: the number by which the host, which reads ahead, knows the chunk, [].
        begin: the place in the chunk of the first minibatch that is here, [].
        rows: of the minibatches that are here what the host said, each array [G, b, ...]; none where each minibatch is
            a piece, which the host gives when it is used.
    """

    choice: PyTree
    told: Array
    begin: Array
    rows: list[Array]


@config
class Stream(Numbered):
    """Rows that stay where they are: in memory-mapped files, or wherever an object of the user's finds them.

    Minibatch j has exactly the rows that :class:`~bilevax.Arrays` draws for the same key and ``sampling``, so that all
    that runs on tables in memory runs on these: hypergradients with their reports, every algorithm, plans, checkpoints.
    A compiled program asks the host for a piece at a time, some minibatches or a stretch of the table, and while it
    uses one a thread reads the next. A pass over every row (``total``) is a weighted mean over pieces.

    Not under ``jax.vmap`` over what rows are drawn by, as with ``replicas=``: that is refused.

    Args:
        data: a pytree of arrays or of paths of ``.npy`` files, such as ``("X.npy", "y.npy")``, which are mapped; or an
            object with ``len`` and ``rows(numbers)``, which gives a pytree of numpy arrays with these rows, in this
            order, numbers [k] int64, some of them perhaps twice. It is called by one thread at a time, and gives new
            arrays, or the same ones at every call, which are copied; or a
            ``pyarrow.dataset`` of Parquet or Arrow files, whose row groups are read whole.
        batch_size: rows in a minibatch, 1 <= b <= n; None for every row, which what draws needs within
            ``prefetch_bytes``, and what reads them by ``total`` does not.
        sampling: as of :class:`~bilevax.Arrays`. Of a data set ``"windows"`` alone, whose groups are its row groups; so
            of an object with ``groups``, the numbers of rows [k] of groups that it reads together.
        seed: of the shuffle of ``"blocks"``, which permutes the rows' numbers, 4 n bytes; None: blocks are contiguous,
            the fastest to read, for data that are shuffled already.
        keys: a fresh key in every draw. Default False.
        columns: of a data set, a pytree of names, a string for a vector [b], a list for a matrix [b, d], such as
            ``(["age", "income"], "y")``; None: every column, a dict of vectors.
        window: groups in a window; the rows of a window are in memory together, within ``prefetch_bytes``. Default 4.
        prefetch_bytes: what is read ahead takes at most, and so does a minibatch. Default 256 MB. At once is read at
            most a thirty-second of it, in a pass over every row an eighth, but at least one minibatch.
        timeout: seconds after which a read has failed. Default 60.

    Raises:
        DataError: the data cannot be opened, are no real numbers, or differ in length. While it runs: a read fails, has
            not come in time, or gives other shapes, NaN or infinite entries. Out of :func:`~bilevax.hypergradient`,
            :func:`~bilevax.minimize`, :func:`~bilevax.plan` and :func:`~bilevax.check` comes this sentence; out of
            one's own compiled program JAX's error, which has it.
        ParameterError: the batch size does not lie in [1, n], or a minibatch takes more than ``prefetch_bytes``.

    Examples:
        >>> import bilevax as bx
        >>> class Digits:
        ...     def __len__(self):
        ...         return 1000
        ...     def rows(self, numbers):
        ...         return (numbers % 10).astype(np.float32)
        >>> source = bx.Stream(Digits(), batch_size=10)
        >>> float(source.total(lambda scale, batch: scale * jnp.mean(batch), jnp.float32(2.0)))
        9.0
    """

    data: PyTree
    batch_size: int | None = static(None)
    sampling: str = "iid"
    seed: int | None = 0
    keys: bool = dataclasses.field(default=False, kw_only=True)
    columns: PyTree = dataclasses.field(default=None, kw_only=True, metadata={"static": True})
    window: int = dataclasses.field(default=4, kw_only=True, metadata={"static": True})
    prefetch_bytes: int = dataclasses.field(default=1 << 28, kw_only=True, metadata={"static": True})
    timeout: float = dataclasses.field(default=60.0, kw_only=True, metadata={"static": True})
    groups: ArrayLike | None = dataclasses.field(init=False)
    table: int = dataclasses.field(init=False, metadata={"told": False})
    mapped: tuple[Array | None, ...] = dataclasses.field(init=False, metadata={"told": False})

    def __post_init__(self) -> None:
        check_choice("sampling", self.sampling, SAMPLINGS)
        check_switch("keys", self.keys)
        seed = None if self.seed is None else check_count("seed", self.seed)
        most = check_count("prefetch_bytes", self.prefetch_bytes, low=1)
        blocks = self.sampling == "blocks" and self.batch_size is not None
        reader = Reader(self._opened(most), seed if blocks else None, most, positive("timeout", self.timeout))
        b = None if self.batch_size is None else check_count("batch_size", self.batch_size, low=1)
        if b is not None and b > reader.length:
            raise ParameterError(f"batch_size must lie in [1, n={reader.length}], got {b}")
        seed = None if blocks else seed
        groups, window = self._grouped(reader)
        set_frozen(self, data=reader, batch_size=b, seed=seed, groups=groups, window=window)
        set_frozen(self, table=number_of(reader), columns=None)
        set_frozen(self, mapped=reader.mapped)
        _ = self._shape  # which refuses minibatches that are too large

    def _opened(self, most: int) -> PyTree:
        if is_data_set(self.data):
            return DataSetRows(self.data, self.columns, most)
        if self.columns is not None:
            raise ParameterError("columns= are those of a pyarrow.dataset, as pyarrow.dataset.dataset(folder) is one")
        return self.data

    def _grouped(self, reader: Reader) -> tuple[Array | None, int]:
        """The sizes of the groups of rows that are read together, and how many are a window."""
        sizes, windows = reader.groups, self.sampling == "windows"
        if sizes is None and windows:
            raise ParameterError('sampling="windows" is of rows in groups, as those of a pyarrow.dataset; leave it out')
        if sizes is not None and not windows and self.batch_size is not None:
            raise ParameterError(
                f'these rows are in {len(sizes)} groups that are read whole, and sampling="{self.sampling}" takes some'
                ' of every one for a minibatch; give sampling="windows"'
            )
        groups, window = checked_groups(sizes if windows else None, self.window, self.sampling, reader.length)
        largest = 0 if sizes is None or not windows else int(np.sort(sizes)[-window:].sum()) * reader.row_bytes
        if largest > self.prefetch_bytes:
            raise ParameterError(
                f"a window of {window} groups takes up to {largest:,} bytes, more than prefetch_bytes="
                f"{self.prefetch_bytes:,}; give a smaller window or a larger prefetch_bytes"
            )
        return groups, window

    # Everything below may run while a program is traced, and takes from the reader what of equal ones is equal.

    @property
    def rows(self) -> int:
        """Number of rows, n."""
        return int(self.data.length)

    @property
    def all_rows(self) -> None:
        """None: they are never in memory at once."""
        return None

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Minibatches in a piece, G, those that are read together, A, and rows in each, b."""
        b = self.rows_per_batch
        size = b * self.data.row_bytes
        if size > self.prefetch_bytes and self.batch_size is not None:
            raise ParameterError(
                f"a minibatch of {b:,} rows takes {size:,} bytes, more than prefetch_bytes={self.prefetch_bytes:,}; "
                "give a smaller batch_size or a larger prefetch_bytes"
            )
        handed = sum(s.size * s.dtype.itemsize for s in self._shapes((), (b,))[1:])
        together = _whole(self.prefetch_bytes // (SHARE if handed else MAPPED) // max(size, 1))
        return min(_whole(HANDED // max(handed, 1)), together), together, b

    def example(self) -> PyTree:
        """The shapes and dtypes of a batch."""
        rows = self._like((self.rows_per_batch,))
        return jax.eval_shape(self.with_fixed_key, rows) if self.keys else rows

    def _like(self, axes: tuple[int, ...]) -> PyTree:
        leaves = [jax.ShapeDtypeStruct((*axes, *s.shape), s.dtype) for s in self.data.shapes]
        return jax.tree.unflatten(self.data.structure, leaves)

    def at(self, numbers: Array, then: Array | None = None) -> PyTree:
        """These rows, [...] of them, without a key; while they are used those of ``then`` are read, if it is given."""
        none = jnp.zeros(0, jnp.int32)
        shapes = self._shapes(numbers.shape, numbers.shape)
        return self._rows(from_host(_rows_of, shapes, self.table, numbers, none if then is None else then))

    def _shapes(self, where: tuple[int, ...], axes: tuple[int, ...]) -> list[jax.ShapeDtypeStruct]:
        leaves = zip(jax.tree.leaves(self._like(axes)), self.mapped, strict=True)
        return [jax.ShapeDtypeStruct(where, jnp.int32), *(like for like, mapped in leaves if mapped is None)]

    def _rows(self, told: list[Array], of: Callable[[Array, Array], Array] | None = None) -> PyTree:
        """The rows of which this was told; ``of(leaf, where)`` are those of a mapped leaf."""
        # the host gives the numbers back once it has looked at the rows, so that none is taken before
        where, others = told[0], iter(told[1:])
        of = of or (lambda leaf, where: leaf.at[where].get(mode="promise_in_bounds"))
        leaves = [next(others) if leaf is None else of(leaf, where) for leaf in self.mapped]
        return jax.tree.unflatten(self.data.structure, leaves)

    def _span(self, start: Array | int, size: int) -> PyTree:
        """So many rows from one on, and not every one."""
        told = from_host(
            partial(_span_of, size=size), self._shapes((), (size,)), self.table, jnp.asarray(start, jnp.int32)
        )
        rows = self._rows(told, lambda leaf, start: jax.lax.dynamic_slice_in_dim(leaf, start, size))
        return self.with_fixed_key(rows) if self.keys else rows

    def total(self, fn: Callable[[PyTree, PyTree], Total], args: PyTree) -> Total:
        """The mean over every row of ``fn(args, batch)``: sum_p n_p / n fn(args, piece p), in the order of the rows.

        For a derivative in reverse the rows are read again.
        """
        n = self.rows
        if all(leaf is not None for leaf in self.mapped) and n * self.data.row_bytes <= self.prefetch_bytes:
            return self._as_they_lie(fn, args)
        # several minibatches at least: a network on few rows takes as long as on some more
        size = min(
            n, max(self.prefetch_bytes // SPANS // self.data.row_bytes, self._shape[2] if self.batch_size else 1, 1)
        )
        if size == n:
            numbers = jnp.arange(n, dtype=jnp.int32)
            rows = self.at(numbers, numbers)
            return fn(args, self.with_fixed_key(rows) if self.keys else rows)

        # no piece outlives its turn: else a derivative in reverse would keep every row
        @partial(jax.checkpoint, prevent_cse=False)
        def piece(start: Array, args: PyTree) -> Total:
            part: Total = scale(size / n, fn(args, self._span(start, size)))
            return part

        def turn(_: Array, at: tuple[Array, Total]) -> tuple[Array, Total]:
            start, total = at
            return start + size, add(total, piece(start, args))

        nothing = zeros(jax.eval_shape(piece, jnp.int32(0), args))
        # the last piece after the others, as the next pass begins after it
        start, total = jax.lax.fori_loop(0, n // size, turn, (jnp.int32(0), nothing))
        if n % size:
            total = add(total, scale(n % size / n, fn(args, self._span(start, n % size))))
        mean: Total = total
        return mean

    def _as_they_lie(self, fn: Callable[[PyTree, PyTree], Total], args: PyTree) -> Total:
        """The mean over rows that are all mapped, and of which no copy is made."""
        told = from_host(partial(_span_of, size=self.rows), self._shapes((), ()), self.table, jnp.int32(0))
        leaves = self._rows(told, lambda leaf, _: leaf)
        rows = self.with_fixed_key(leaves) if self.keys else leaves
        nothing = jax.eval_shape(fn, args, rows)
        # not before the host has looked at them
        out: Total = jax.lax.cond(told[0] == 0, lambda args: fn(args, rows), lambda _: zeros(nothing), args)
        return out

    def some(self, number: int, key: Array, batch_size: int | None = -1) -> Arrays:
        """So many rows at random, at most every one, in memory and drawn i.i.d.; by default as many to a minibatch."""
        words = np.asarray(jax.random.key_data(key)).ravel().tolist()
        number = min(number, self.rows, max(1, self.prefetch_bytes // self.data.row_bytes))
        rng, sizes = np.random.default_rng(words), self.data.groups
        if sizes is None:
            numbers = rng.choice(self.rows, number, replace=False, shuffle=False)
        else:  # of some groups, with four times as many rows
            order = rng.permutation(len(sizes))
            taken = order[: int(np.searchsorted(np.cumsum(sizes[order]), 4 * number)) + 1]
            here = np.concatenate([np.arange(sizes[g]) + sizes[:g].sum() for g in taken])
            numbers = rng.choice(here, number, replace=False)
        rows = jax.tree.unflatten(self.data.structure, self.data.rows(np.sort(numbers)))
        b = self.batch_size if batch_size == -1 else batch_size
        return Arrays(rows, None if b is None else min(b, number), keys=self.keys)

    # Minibatches: a plan has the rows of some of them.

    def _renewed(self, plan: PyTree, key: Array, j: Array, first: Array | bool) -> Piece:
        G, A, b = self._shape

        def choose() -> tuple[PyTree, Array]:
            # the host reads ahead, into the chunk after this one, too
            choice, then = (self._choose(key, at) for at in (j, j // CHUNK * CHUNK + CHUNK))
            told = partial(_announce, batch_size=b, together=A)
            rows = [jax.tree.leaves(x)[0] for x in (choice, then)]
            return choice, from_host(told, self._shapes((), ())[:1], self.table, *rows)[0]

        def read(choice: PyTree, told: Array) -> tuple[Array, list[Array]]:
            begin = j % CHUNK // G * G
            return begin, self._of_chunk(choice, told, begin, G) if G > 1 else []

        if plan is None:
            chosen = choose()
            return Piece(*chosen, *read(*chosen))
        chosen = jax.lax.cond(first | (j % CHUNK == 0), choose, lambda: (plan.choice, plan.told))
        # no piece of a chunk is renewed within it, but at places that no key changes
        return Piece(
            *chosen, *jax.lax.cond(first | (j % G == 0), lambda: read(*chosen), lambda: (plan.begin, plan.rows))
        )

    def _of_chunk(self, choice: PyTree, told: Array, begin: Array, count: int) -> list[Array]:
        """What the host says of so many minibatches from a place of a chunk on."""
        shape = count, self.rows_per_batch
        numbers = self._numbers(choice, begin, count)
        return from_host(_minibatches, self._shapes(shape, shape), self.table, told, begin, numbers)

    def _numbers(self, choice: PyTree, begin: Array | int, count: int) -> Array:
        """The numbers of the rows of the minibatches at so many places of a chunk, [count, b]."""
        if self.sampling != "blocks":
            return jax.lax.dynamic_slice_in_dim(choice, begin, count)
        b = self.rows_per_batch
        blocks = jax.lax.dynamic_slice_in_dim(choice[0], begin, count)
        # behind a short block its last row: never used
        return jnp.minimum(blocks[:, None] * b + jnp.arange(b, dtype=jnp.int32)[None, :], self.rows - 1)

    def chunk_end(self, j: Array) -> Array:
        """The first minibatch after j that opens a piece; a chunk, where each minibatch is one."""
        G = self._shape[0]
        return (j // G + 1) * G if G > 1 else super().chunk_end(j)

    def _choice(self, plan: Piece) -> PyTree:
        return plan.choice

    def _everything(self) -> PyTree:
        size = self.rows * self.data.row_bytes
        if size > self.prefetch_bytes:
            raise ParameterError(
                f"a minibatch of every row takes {size:,} bytes, more than prefetch_bytes={self.prefetch_bytes:,}, and"
                " this method draws some; give the stream a batch_size"
            )
        return self.at(jnp.arange(self.rows, dtype=jnp.int32))

    def _batch(self, plan: Piece, j: Array, size: int) -> PyTree:
        G, place = self._shape[0], j % CHUNK

        def alone() -> list[Array]:
            return [a[0] for a in self._of_chunk(plan.choice, plan.told, place, 1)]

        if G == 1:
            return self._rows([a[:size] for a in alone()])
        # outside of the branches, into which what they use is copied
        where = plan.rows[0][place - plan.begin]

        def held() -> list[Array]:
            return [where, *(a[place - plan.begin] for a in plan.rows[1:])]

        # else a minibatch of the chunk that is not in this piece, as where a step has several
        here = (place >= plan.begin) & (place < plan.begin + G)
        return self._rows([a[:size] for a in jax.lax.cond(here, held, alone)])


def _whole(count: int) -> int:
    """The next smaller power of two, so that these fill a chunk, within 1 and ``MOST``."""
    return 1 << (max(1, min(MOST, count)).bit_length() - 1)


def _rows_of(table: np.ndarray, now: np.ndarray, then: np.ndarray, *, out: Rows) -> None:
    reader_of(int(table[0]))(now, then if then.size else None, _flat(out))


def _announce(
    table: np.ndarray, now: np.ndarray, then: np.ndarray, *, out: Rows, batch_size: int, together: int
) -> None:
    out[0][...] = reader_of(int(table[0])).announce(now, then, batch_size, together)


def _minibatches(table: np.ndarray, told: np.ndarray, begin: np.ndarray, numbers: np.ndarray, *, out: Rows) -> None:
    reader_of(int(table[0])).minibatches(int(told[0]), int(begin[0]), numbers, _flat(out))


def _flat(out: Rows) -> Rows:
    """Arrays of rows with one leading axis."""
    where = out[0]
    return [x.reshape(where.size, *x.shape[where.ndim :]) for x in out]


def _span_of(table: np.ndarray, start: np.ndarray, *, out: Rows, size: int) -> None:
    reader_of(int(table[0])).span(int(start[0]), size, out)
