"""Bins of every row in a file, so that Newton steps read some bytes a row in place of the table."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bilevax.tables.additive import Source, cells
from bilevax.tables.effects import Effect
from bilevax.tables.kept_arrays import KeptArrays
from bilevax.tables.marginals import LevelCounts, NumberCounts
from bilevax.tables.sieve import Sieve, Sieved
from bilevax.tables.table import CodedColumn, Table, object_array


class Piece(NamedTuple):
    """Rows that are kept together.

    Attributes:
        before: rows of the table that stand before it.
        stratum: of which it is.
    """

    before: int
    stratum: int


class Words:
    """Texts as the numbers of words.

    Args:
        known: some of which are levels; others have one number.
    """

    def __init__(self, known: Iterable[str | None]) -> None:
        self._numbers = {word: i for i, word in enumerate(dict.fromkeys([*known, None]))}
        self._kind = np.min_scalar_type(len(self._numbers))

    def __call__(self, table: Table, source: Source) -> np.ndarray:
        """The number of each cell, [n]; that of words that are not known is the last."""
        column = table.column(source.column)
        if isinstance(column, CodedColumn):
            out: np.ndarray = self._of(column.words)[column.codes]
            return out
        return self._of(cells(table, source))

    def _of(self, words: np.ndarray) -> np.ndarray:
        get, other = self._numbers.get, len(self._numbers)
        return np.array([get(word, other) for word in words.tolist()], self._kind)

    def codes(self, effect: Effect, bins: np.ndarray, found: Sieved) -> np.ndarray:
        """The bins of texts in an effect, as of :meth:`Effect.codes`; ``bins`` are those of the codes."""
        out: np.ndarray = np.take(bins, found.codes)
        return out

    def bins(self, effect: Effect) -> np.ndarray | None:
        """Of each number the bin; None if a level is not known."""
        if not self._numbers.keys() >= set(effect.levels):
            return None
        bins = effect.codes(object_array(list(self._numbers)))
        return np.append(bins, bins.dtype.type(effect.in_order))


Kept = Mapping[Source, Sieve | Words]
"""How the cells of each effect are kept while its bins are not known."""


def kept_as(counts: NumberCounts | LevelCounts) -> Sieve | Words:
    """By what was counted."""
    return Words(counts.found().values) if isinstance(counts, LevelCounts) else counts.sieve()


def kept_by(effect: Effect) -> Sieve | Words:
    """By the bins themselves."""
    if effect.edges is None:
        return Words(effect.levels)
    return Sieve(np.repeat(effect.edges, 2), np.zeros(0))


def kept_cells(table: Table, there: np.ndarray, source: Source, how: Sieve | Words) -> tuple[Sieved, Sieved]:
    """Cells of the rows that are there; and of all, of which others count as missing.

    Raises:
        DataError: as of :func:`~bilevax.tables.additive.cells`.
    """
    if isinstance(how, Words):
        found = Sieved(how(table, source), np.zeros(0))
    else:
        found = how(cells(table, source), np.flatnonzero(~there))
    return found._replace(codes=found.codes[there]), found


Decoders = list[tuple[int, Callable[[Sieved], np.ndarray]]]
"""Of effects, where their cells are among those of all, and what makes bins of them."""


def decoders(kept: Kept, sources: Sequence[Source], effects: Sequence[Effect]) -> Decoders | None:
    """None if cells that are kept so do not say the bins."""
    places = {source: i for i, source in enumerate(kept)}
    out: Decoders = []
    for source, effect in zip(sources, effects, strict=True):
        bins = kept[source].bins(effect) if source in kept else None
        if bins is None:
            return None
        out.append((places[source], partial(kept[source].codes, effect, bins)))
    return out


class BinFile:
    """Cells of rows, and their targets.

    Args:
        folder: in which the file is.
        kept: how cells are kept.

    Raises:
        StorageError: the system refused.
    """

    def __init__(self, folder: Path, kept: Kept) -> None:
        self._arrays, self.kept = KeptArrays[Piece](folder), kept

    def add(self, piece: Piece, found: Sequence[Sieved], y: np.ndarray) -> None:
        """Rows: the cells of every effect and targets.

        Raises:
            StorageError: the disk is full.
        """
        self._arrays.add(piece, [x for each in found for x in each] + [y])

    def __iter__(self) -> Iterator[tuple[Piece, list[Sieved], np.ndarray]]:
        """What was added.

        Raises:
            StorageError: the system refused.
        """
        for piece, (*arrays, y) in self._arrays:
            yield piece, [Sieved(*pair) for pair in zip(arrays[::2], arrays[1::2], strict=True)], y

    def close(self) -> None:
        """Give it up."""
        self._arrays.close()
