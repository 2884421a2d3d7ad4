"""Chunks of minibatches whose rows programs have announced, so that the host can read ahead."""

import zlib
from collections import OrderedDict
from typing import NamedTuple, TypeAlias

import numpy as np

from bilevax.data.sampling import CHUNK

CHUNKS = 8
"""Chunks of which the rows are known: a program has one of each of its streams, and the next."""

Place: TypeAlias = tuple[int, int]
"""A piece of a chunk: the chunk's number, and which piece."""


class Chunk(NamedTuple):
    """The rows of a chunk.

    Attributes:
        choice: row numbers, [CHUNK * b]; or of blocks of rows that follow each other their numbers, [CHUNK].
        then: the number of the chunk after it; None where that was not said.
        batch_size: rows in a minibatch, b.
        together: minibatches in a piece, which are read together, A.
        rows: of the table, n.
    """

    choice: np.ndarray
    then: int | None
    batch_size: int
    together: int
    rows: int

    def numbers(self, piece: int) -> np.ndarray:
        """The rows of a piece, [A * b]."""
        A, b = self.together, self.batch_size
        if len(self.choice) == CHUNK * b:
            return self.choice[piece * A * b : (piece + 1) * A * b]
        blocks = self.choice[piece * A : (piece + 1) * A]
        # behind a short block its last row: never used
        return np.minimum(blocks[:, None] * b + np.arange(b, dtype=np.int32), self.rows - 1).ravel()


class Announced:
    """The last chunks that were announced, by number."""

    def __init__(self) -> None:
        self._chunks: OrderedDict[int, Chunk] = OrderedDict()

    def announce(self, now: np.ndarray, then: np.ndarray, *sizes: int) -> int:
        """The number of a chunk that comes ``now``, the same whenever its rows are; another comes after it.

        Args:
            now: the choice of :class:`Chunk`.
            then: that of the other.
            sizes: b, A and n.
        """
        number, after = (zlib.crc32(choice.data) >> 1 for choice in (now, then))  # 31 bits
        for at, choice, following in (number, now, after), (after, then, None):
            # a program takes its memory back
            known = self._chunks.pop(at, None) or Chunk(choice.copy(), None, *sizes)
            self._chunks[at] = known if following is None else known._replace(then=following)
        while len(self._chunks) > CHUNKS:
            self._chunks.popitem(last=False)
        return number

    def __getitem__(self, number: int) -> Chunk | None:
        """The chunk of this number; None where it was forgotten."""
        return self._chunks.get(number)

    def after(self, place: Place) -> tuple[Place, np.ndarray] | None:
        """The piece after this one and its rows; None where nobody knows."""
        number, piece = place[0], place[1] + 1
        chunk = self[number]
        if chunk is not None and piece * chunk.together == CHUNK:
            if chunk.then is None:
                return None
            number, piece = chunk.then, 0
            chunk = self[number]
        return None if chunk is None else ((number, piece), chunk.numbers(piece))
