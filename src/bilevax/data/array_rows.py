"""Rows of arrays that lie in memory or in memory-mapped files."""

import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.errors import DataError, in_a_line
from bilevax.core.trees import PyTree, map_named
from bilevax.data.arrays import check_finite, check_numbers, common_length

AT_ONCE = 1 << 20
"""Bytes of rows that are looked at together: they stay in a processor's cache."""

PAGE = 4096
"""Bytes of which one brings the others into memory."""


class ArrayRows:
    """Rows of arrays that share their leading axis, such as memory-mapped ``.npy`` files.

    Args:
        data: a pytree of arrays or of paths of ``.npy`` files.

    Attributes:
        mapped: of each leaf that lies in a file as JAX reads it an array over the same pages, else None.
        known: what tells these rows from others.
    """

    def __init__(self, data: PyTree) -> None:
        opened = map_named(_opened, "data", data)
        self._length = common_length(opened)
        self._names = jax.tree.leaves(map_named(lambda name, _: name, "data", opened))
        leaves = jax.tree.leaves(opened)
        self._files = {x.filename: os.path.getsize(x.filename) for x in leaves if _has_file(x)}
        self.known = tuple(map(_known, leaves))
        self.mapped = tuple(map(_as_it_lies, leaves))
        # plain arrays over the same memory: numpy reads them sooner
        self._data = jax.tree.map(lambda x: x.view(np.ndarray), opened)
        # rows that were found finite
        self._sound = np.zeros(self._length if any(x is not None for x in self.mapped) else 0, bool)

    def __len__(self) -> int:
        return self._length

    def rows(self, numbers: np.ndarray) -> PyTree:
        """These rows, copied."""
        self._require_whole()
        return jax.tree.map(lambda a: np.array(_taken(a, numbers)), self._data)

    def read(self, numbers: np.ndarray) -> list[np.ndarray]:
        """These rows of the leaves that are not mapped; those of the others are brought into memory.

        They are looked at once; when they are asked for again, an entry of each page is read.

        Raises:
            DataError: an entry is not finite, or a file was cut.
        """
        self._require_whole()
        out, new = [], numbers[~self._sound[numbers]] if len(self._sound) else numbers
        for name, leaf, mapped in zip(self._names, jax.tree.leaves(self._data), self.mapped, strict=True):
            if mapped is None:
                rows = _taken(leaf, numbers)
                require_finite(name, rows, numbers)
                out.append(rows.astype(jax.dtypes.canonicalize_dtype(leaf.dtype), copy=False))
                continue
            if len(new):
                _see(name, leaf, new)
            if len(new) < len(numbers) and leaf.nbytes > AT_ONCE:
                _touch(leaf, numbers)
        if len(self._sound):
            self._sound[new] = True
        return out

    def _require_whole(self) -> None:
        # a page beyond the end of a file that was cut would end the process
        for path, size in self._files.items():
            if os.path.getsize(path) < size:
                raise DataError(f"{path} was cut while it was read")


def _touch(leaf: np.ndarray, numbers: np.ndarray) -> None:
    """Read an entry of each page of these rows, by which the system brings them into memory."""
    flat = leaf.reshape(len(leaf), -1)
    for start in range(0, flat.shape[1], max(1, PAGE // leaf.itemsize)):
        flat[:, start][numbers]


def _see(name: str, leaf: np.ndarray, numbers: np.ndarray) -> None:
    k = max(1, AT_ONCE // max(leaf[:1].nbytes, 1))
    room = np.empty((min(k, len(numbers)), *leaf.shape[1:]), leaf.dtype)
    for part in (numbers[i : i + k] for i in range(0, len(numbers), k)):
        require_finite(name, _taken(leaf, part, room[: len(part)]), part)


def _taken(leaf: np.ndarray, numbers: np.ndarray, room: np.ndarray | None = None) -> np.ndarray:
    """These rows, copied, or as they lie if they follow each other."""
    first, last = int(numbers[0]), int(numbers[-1])
    if last - first + 1 == len(numbers) and np.all(np.diff(numbers) == 1):
        return leaf[first : last + 1]
    # the numbers are in bounds: with a check numpy would fill another array first
    return np.take(leaf, numbers, axis=0, out=room, mode="raise" if room is None else "clip")


def require_finite(name: str, x: np.ndarray, numbers: Sequence[int] | np.ndarray) -> None:
    """Refuse NaN and infinite entries of floating rows; numbers are those of the rows."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return
    # a sum of squares is the fastest sum there is; it is finite unless an entry is not, or some are huge
    flat = x.reshape(-1)
    if x.dtype not in (np.float32, np.float64) or not np.isfinite(np.dot(flat, flat)):

        def place(i: int) -> tuple[int, ...]:
            at, *columns = np.unravel_index(i, x.shape)
            return int(numbers[int(at)]), *map(int, columns)

        check_finite(name, x, place)


def _opened(name: str, x: object) -> np.ndarray:
    if hasattr(x, "tocsr"):
        raise DataError(f"{name} is a sparse matrix, which has no rows of one shape; use bx.SparseRows")
    try:
        array = (
            np.load(x, mmap_mode="r")
            if isinstance(x, str | Path)
            else x
            if isinstance(x, np.ndarray)
            else np.asarray(x)
        )
    except (OSError, ValueError, EOFError) as e:
        raise DataError(f"{name} cannot be opened: {in_a_line(e)}") from e
    if isinstance(array, np.lib.npyio.NpzFile):
        raise DataError(f"{name} is an archive, {x}, of {', '.join(array.files)}; save each array by np.save")
    check_numbers(name, array)
    return array


def _known(x: np.ndarray) -> tuple[object, ...]:
    """What tells an array from others while it is held: its file as it is now, or its memory; and its part of that."""
    part = x.__array_interface__["data"][0], x.strides, x.shape, x.dtype.str
    if not isinstance(x, np.memmap) or x.filename is None:
        return part
    # what is written into a file all who mapped it see
    now = os.stat(x.filename)
    return now.st_dev, now.st_ino, now.st_size, x.offset, *part[1:]


def _has_file(x: object) -> bool:
    return isinstance(x, np.memmap) and x.filename is not None


def _as_it_lies(x: np.ndarray) -> Array | None:
    if not _has_file(x) or x.dtype != jax.dtypes.canonicalize_dtype(x.dtype):
        return None
    flat = x.view(np.ndarray)
    one = jax.device_put(flat[:1], may_alias=True)
    # JAX takes memory as it is, or copies it: the whole as the first row
    same = one.unsafe_buffer_pointer() == flat.ctypes.data
    return jax.device_put(flat, may_alias=True) if same else None
