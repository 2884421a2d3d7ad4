"""Texts as weighted counts of words, pairs of words or characters, and as numbered values, from plain terms."""

import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from bilevax.core.errors import DataError
from bilevax.tables.reading import number_of

if TYPE_CHECKING:
    import scipy.sparse

Grams: TypeAlias = Literal["words", "pairs", "characters", "cells"]
"""Of a text: its words of two letters and more, pairs of neighbouring ones, or three to five characters of a word; or
its cells, NUMBER:VALUE with a blank between, as in svmlight files."""

_WORD = re.compile(r"\b\w\w+\b")
_LENGTHS = 3, 4, 5
_CELL = re.compile(r"(\d{1,18}):(\S+)")


def grams_of(cell: str | None, of: Grams, buckets: int | None = None) -> Iterator[tuple[str, float]]:
    """The n-grams of a text in small letters, those of characters with a blank before and after each word.

    Each stands for 1; the number of a cell for its value.

    Args:
        cell: the text; None has none.
        of: what kind.
        buckets: each is replaced by the number of one of so many, by its CRC-32; None: it is not.

    Raises:
        DataError: a word is no cell, where they are cells.
    """
    text = (cell or "").lower()
    found = map(numbered_cell, text.split()) if of == "cells" else ((gram, 1.0) for gram in _grams(text, of))
    for gram, value in found:
        yield (gram if buckets is None else f"#{zlib.crc32(gram.encode()) % buckets}"), value


def numbered_cell(word: str) -> tuple[str, float]:
    """Number and value of a cell.

    Raises:
        DataError: it is none.
    """
    found = _CELL.fullmatch(word)
    value = number_of(found[2]) if found else None
    if found is None or value is None or np.isinf(value):
        raise DataError(f"'{word[:40]}' is no cell; cells are written as NUMBER:VALUE")
    return found[1], value


def _grams(text: str, of: Grams) -> Iterable[str]:
    if of == "words":
        return _WORD.findall(text)
    if of == "pairs":
        return map(" ".join, pairwise(_WORD.findall(text)))
    # with blanks around a word, so that its beginning and its end are told
    padded = [f" {word} " for word in text.split()]
    return (word[i : i + n] for word in padded for n in _LENGTHS for i in range(max(len(word) - n + 1, 0)))


def vocabulary(cells: np.ndarray, of: Grams, least: int, buckets: int | None) -> dict[str, float]:
    """The n-grams that occur in at least so many texts, sorted, with their weights log((1 + n) / (1 + n_j)) + 1.

    Of numbered values, in their order, the weight is 1.
    """
    # a set for each text: how often it has a gram plays no part
    times = Counter(gram for cell in cells for gram in {gram for gram, _ in grams_of(cell, of, buckets)})
    if of == "cells":
        return {g: 1.0 for g in sorted(times, key=lambda g: int(g.lstrip("#"))) if times[g] >= least}
    # log((1 + n) / (1 + n_j)) + 1, n_j the texts that have the n-gram
    n = len(cells)
    return {g: float(np.log((1 + n) / (1 + times[g])) + 1.0) for g in sorted(times) if times[g] >= least}


def weighted_counts(
    cells: np.ndarray, weights: dict[str, float], of: Grams, buckets: int | None
) -> "scipy.sparse.csr_array":
    """(1 + log count_ij) weight_j of the text's n-grams, by the norm of the row, or weight_j value_ij: CSR [n, j]."""
    import scipy.sparse

    number = {gram: j for j, gram in enumerate(weights)}
    columns, counts, ends = array("q"), array("d"), [0]
    for cell in cells:
        found = dict[int, float]()
        for gram, value in grams_of(cell, of, buckets):
            if (j := number.get(gram)) is not None:
                found[j] = found.get(j, 0.0) + value
        columns.extend(found.keys())
        counts.extend(found.values())
        ends.append(len(columns))
    index, count = np.array(columns), np.array(counts)
    weight = np.fromiter(weights.values(), float, len(weights))[index]
    row = np.repeat(np.arange(len(cells)), np.diff(ends))
    if of == "cells":
        if np.isnan(count).any():
            raise DataError("a cell is missing (nan), which cells that are read as they are cannot be; write a number")
        values = count * weight
    else:
        # (1 + log count_ij) weight_j, by the norm of row i
        values = (1.0 + np.log(count)) * weight
        values /= np.sqrt(np.bincount(row, values**2, len(cells)))[row]
    # 32 bits, as solvers ask; scipy widens them where there are more entries
    places = row.astype(np.int32), index.astype(np.int32)
    return scipy.sparse.csr_array((values, places), shape=(len(cells), len(weights)))
