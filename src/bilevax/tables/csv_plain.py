"""Columns that are what they look like, plain numbers or words: many are read at once.

A wide table has so many columns that a few calls for each would take most of the time. What is not plain here, is
looked at column by column in :mod:`bilevax.tables.csv_types`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bilevax.tables.marks import MARK
from bilevax.tables.reading import EVERY, Reading
from bilevax.tables.table import Column, Kind, object_array

NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
"""A plain number, for pyarrow's RE2."""

ZERO = r"^[+-]?0\d"
"""So begins a code."""

EXACT = 2.0**53
"""From here on, float64 does not hold every integer."""

# Cells that are looked at together.
_CELLS = 1 << 16
# No number, date or time begins with a letter or is without a digit, but for these.
_WORD = r"^(\pL|\D+$)"
_NO_WORD = r"^(?i:[+-]?inf(inity)?|true|false)$"


class Plain(NamedTuple):
    """A column that needs no interpretation, no note on it, and how often it has each mark."""

    column: Column
    note: str
    marks: dict[str, int]


def plain_columns(names: Sequence[str], columns: Sequence[pa.ChunkedArray], reading: Reading) -> Iterator[Plain | None]:
    """For each column what is in it, or None where that takes a closer look."""
    width = max(1, _CELLS // max(1, len(columns[0]))) if columns else 1
    # Columns with marks or a type of their own take a closer look.
    own = set(reading.missing) - {EVERY} | set(reading.types) | set(reading.text)
    for start in range(0, len(names), width):
        batch = [j for j in range(start, min(start + width, len(names))) if names[j] not in own]
        known = _plain([names[j] for j in batch], [columns[j] for j in batch], reading) if batch else []
        found = dict(zip(batch, known, strict=True))
        yield from (found.get(j) for j in range(start, min(start + width, len(names))))


def _plain(names: Sequence[str], columns: Sequence[pa.ChunkedArray], reading: Reading) -> list[Plain | None]:
    """Of columns that have the same marks, those that are plain."""
    numbers = set(reading.numbers)
    shape = len(names), len(columns[0])
    trimmed = pc.utf8_trim_whitespace(_joined(columns))
    missing = pc.is_in(trimmed, value_set=pa.array(["", *reading.marks(EVERY)], pa.string()))
    values = pc.if_else(missing, pa.scalar(None, pa.string()), trimmed)
    empty = missing.to_numpy().reshape(shape)
    number = _matching(values, f"^{NUMBER}$", shape)
    out: list[Plain | None] = [None] * len(names)
    plain = (number | empty).all(axis=1)
    marked = np.zeros_like(number)
    if not plain.all():
        marked = _matching(values, MARK, shape)
        plain = (number | empty | marked).all(axis=1)
        words = (_matching(values, _WORD, shape) & ~_matching(values, _NO_WORD, shape) & ~marked) | empty
        texts = np.flatnonzero(words.all(axis=1) & ~plain)
        for j, text in zip(texts.tolist(), _texts(values, texts, shape), strict=True):
            # Of a column that is known to hold numbers the word is named.
            out[j] = None if names[j] in numbers else Plain(Column(names[j], "text", text), "", {})
    plain &= ~_matching(values, ZERO, shape).any(axis=1)
    for j, kind, x, counted in _numbers(values, plain, number, marked):
        note = "" if number[j].any() else f"column '{names[j]}' has no value in any row"
        out[j] = Plain(Column(names[j], kind, x), note, counted)
    return out


def _joined(columns: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    """The cells of all columns, one column after the other."""
    if len(columns) == 1:
        return columns[0]
    # Every call would take longer by the number of chunks.
    cells = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())
    return pa.table([cells], ["cells"]).combine_chunks().column(0)


def _matching(values: pa.ChunkedArray, pattern: str, shape: tuple[int, int]) -> np.ndarray:
    found: np.ndarray = pc.fill_null(pc.match_substring_regex(values, pattern), False).to_numpy()
    return found.reshape(shape)


def _texts(values: pa.ChunkedArray, columns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if not columns.size:
        return np.empty((0, shape[1]), object)
    chosen = np.zeros(shape, bool)
    chosen[columns] = True
    return text_cells(values.filter(pa.array(chosen.ravel()))).reshape(-1, shape[1])


def text_cells(values: pa.ChunkedArray) -> np.ndarray:
    """Cells as an object array: each text is held once; None where missing."""
    if not len(values):
        return np.empty(0, object)
    # All chunks of what is encoded at once have one dictionary.
    chunks = values.dictionary_encode().chunks
    # A missing cell has the index -1, that of the last word: None.
    words = object_array([*chunks[-1].dictionary.to_pylist(), None])
    return np.concatenate([words[chunk.indices.fill_null(-1).to_numpy()] for chunk in chunks])


def kept_cells(values: pa.ChunkedArray) -> np.ndarray:
    """Cells that are passed through."""
    trimmed = pc.utf8_trim_whitespace(values)
    return text_cells(pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, trimmed.type), trimmed))


def _numbers(
    values: pa.ChunkedArray, plain: np.ndarray, number: np.ndarray, marked: np.ndarray
) -> Iterator[tuple[int, Kind, np.ndarray, dict[str, int]]]:
    """Each column of plain numbers that float64 holds as they are: its place, kind and numbers, and its marks."""
    bare = pc.if_else(pa.array((number & plain[:, None]).ravel()), values, pa.scalar(None, pa.string()))
    numbers = pc.cast(bare, pa.float64()).to_numpy().reshape(number.shape)
    with np.errstate(invalid="ignore"):
        inexact = np.any(np.abs(numbers) >= EXACT, axis=1)
    integer = np.any(number, axis=1) & ~_matching(bare, "[.eE]", number.shape).any(axis=1)
    counts: dict[int, Counter[str]] = {}
    at = np.flatnonzero(marked & plain[:, None])
    for j, mark in zip((at // number.shape[1]).tolist(), values.take(pa.array(at)).to_pylist(), strict=True):
        counts.setdefault(j, Counter())[mark] += 1
    for j in np.flatnonzero(plain & ~inexact).tolist():
        yield j, "integer" if integer[j] else "number", numbers[j], dict(counts.get(j, {}))
