"""Texts as weighted counts of words, pairs of words or characters, from plain terms."""

import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np

Grams: TypeAlias = Literal["words", "pairs", "characters"]
"""Of a text: its words of two letters and more, pairs of neighbouring ones, or three to five characters of a word."""

_WORD = re.compile(r"\b\w\w+\b")
_LENGTHS = 3, 4, 5


def grams_of(cell: str | None, of: Grams, buckets: int | None = None) -> Iterable[str]:
    """The n-grams of a text in small letters, those of characters with a blank before and after each word.

    Args:
        cell: the text; None has none.
        of: what kind.
        buckets: each is replaced by the number of one of so many, by its CRC-32; None: it is not.
    """
    found = _grams((cell or "").lower(), of)
    return found if buckets is None else (f"#{zlib.crc32(gram.encode()) % buckets}" for gram in found)


def _grams(text: str, of: Grams) -> Iterable[str]:
    if of == "words":
        return _WORD.findall(text)
    if of == "pairs":
        return map(" ".join, pairwise(_WORD.findall(text)))
    padded = [f" {word} " for word in text.split()]
    return (word[i : i + n] for word in padded for n in _LENGTHS for i in range(max(len(word) - n + 1, 0)))


def vocabulary(cells: np.ndarray, of: Grams, least: int, buckets: int | None) -> dict[str, float]:
    """The n-grams that occur in at least so many texts, sorted, with their weights log((1 + n) / (1 + n_j)) + 1."""
    times = Counter(gram for cell in cells for gram in set(grams_of(cell, of, buckets)))
    n = len(cells)
    return {g: float(np.log((1 + n) / (1 + times[g])) + 1.0) for g in sorted(times) if times[g] >= least}


def weighted_counts(
    cells: np.ndarray, weights: dict[str, float], of: Grams, buckets: int | None
) -> Any:  # scipy.sparse.csr_array
    """(1 + log count_ij) weight_j of the text's n-grams, by the norm of the row: CSR [n, j]."""
    import scipy.sparse

    number = {gram: j for j, gram in enumerate(weights)}
    columns, counts, ends = array("q"), array("q"), [0]
    for cell in cells:
        found = Counter(j for gram in grams_of(cell, of, buckets) if (j := number.get(gram)) is not None)
        columns.extend(found.keys())
        counts.extend(found.values())
        ends.append(len(columns))
    index = np.array(columns)
    values = (1.0 + np.log(np.array(counts, float))) * np.fromiter(weights.values(), float, len(weights))[index]
    row = np.repeat(np.arange(len(cells)), np.diff(ends))
    norm = np.sqrt(np.bincount(row, values**2, len(cells)))
    # 32 bits, as solvers ask; scipy widens them where there are more entries
    places = row.astype(np.int32), index.astype(np.int32)
    return scipy.sparse.csr_array((values / norm[row], places), shape=(len(cells), len(weights)))
