"""Arrays in a file that nobody else sees: written once, read as often as it takes, gone with the process."""

import errno
import os
import shutil
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from bilevax.core import files

K = TypeVar("K")


class KeptArrays(Generic[K]):
    """Lists of arrays of one dimension, each list with a key; one reads at a time.

    Args:
        folder: on whose disk they are.

    Raises:
        StorageError: the system refused.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, files.unnamed(folder)
        weakref.finalize(self, self._file.close)
        self._lists: list[tuple[K, list[tuple[np.dtype, int]]]] = []

    def add(self, key: K, arrays: Sequence[np.ndarray]) -> None:
        """One more list.

        Raises:
            StorageError: the disk is full.
        """
        with files.refused("write", self._folder):
            for x in arrays:
                left = np.ascontiguousarray(x).view(np.uint8).data
                while left:
                    left = left[self._file.write(left) :]
        self._lists.append((key, [(x.dtype, len(x)) for x in arrays]))

    def __iter__(self) -> Iterator[tuple[K, list[np.ndarray]]]:
        """The lists, in their order.

        Raises:
            StorageError: the system refused.
        """
        with files.refused("read", self._folder):
            self._file.seek(0)
        for key, shapes in self._lists:
            with files.refused("read", self._folder):
                arrays = [self._read(np.empty(n, dtype)) for dtype, n in shapes]
            yield key, arrays

    def _read(self, x: np.ndarray) -> np.ndarray:
        left = x.view(np.uint8).data
        while left:
            read = self._file.readinto(left)
            if not read:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            left = left[read:]
        return x

    def close(self) -> None:
        """Give it up."""
        self._file.close()


def has_room(folder: Path, need: float) -> bool:
    """Whether the disk of a folder has twice so many bytes free.

    Raises:
        StorageError: the system refused.
    """
    with files.refused("read", folder):
        return shutil.disk_usage(folder).free > 2.0 * need
