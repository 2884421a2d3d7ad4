"""Svmlight files: a label, then the cells that are not 0, each with its column's number."""

import re
from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bilevax.core.errors import DataError
from bilevax.core.limits import require
from bilevax.core.text import counted
from bilevax.tables.reading import Reading, number_of, without
from bilevax.tables.table import Column, Table, number_column, object_array
from bilevax.tables.text import numbered_cell

TARGET, CELLS = "target", "cells"
"""The column of the labels; and that of all cells of a row as text, where they stay sparse."""

_LINE = re.compile(rb"[-+.\deE]+(?:[ \t]+(?:qid|\d+):[-+.\deE]+)+\s*(?:#|[\r\n]|$)")
_COLUMN = re.compile(r"x(\d{1,18})")
_COPIES = 2
_ADVICE = "a linear model learns from them as they are (--model linear --cells cells)"


def looks_like_svmlight(data: bytes) -> bool:
    """True if the first line is a label and numbered cells."""
    return bool(_LINE.match(data))


def read_svmlight(name: str, data: bytes, reading: Reading, *, sha256: str = "") -> Table:
    """The columns x1, x2, ... and ``target``; a cell that is not given is 0.

    Where ``cells`` is to be read as text, that column and ``target``: the cells of a row as they are written.

    Raises:
        DataError: a line is none of such a file, or the table has too many cells.
        ResourceError: it takes more memory than there is.
    """
    sparse = CELLS in reading.text
    columns = _sparse(name, data) if sparse else _dense(name, data, reading)
    names = [column.name for column in columns]
    wanted, kept = reading.choose(name, names), reading.kept(names)
    unread = set(range(len(names))) - {*wanted, *kept}
    of = "" if sparse else f" of {counted(len(names) - 1, 'column')}"
    return Table(
        name,
        tuple(_as_said(columns[j], reading) for j in wanted),
        (f"a svmlight file{of}: a cell that is not given is 0",),
        sha256,
        tuple(names[j] for j in sorted(unread)),
        tuple(columns[j].as_text() for j in kept),
    )


def _sparse(name: str, data: bytes) -> list[Column]:
    """The cells of each row as they are written, and the labels."""
    texts, labels = list[str | None](), array("d")
    for row in _rows(name, data):
        labels.append(row.label)
        texts.append(" ".join(row.words))
    _require_rows(name, labels)
    return [Column(CELLS, "text", object_array(texts)), number_column(TARGET, np.array(labels))]


def _dense(name: str, data: bytes, reading: Reading) -> list[Column]:
    """Every column with its zeros, and the labels."""
    at, columns, values, labels = array("q"), array("q"), array("d"), array("d")
    for i, row in enumerate(_rows(name, data)):
        labels.append(row.label)
        at.extend([i] * len(row.cells))
        columns.extend(number for number, _ in row.cells)
        values.extend(value for _, value in row.cells)
    _require_rows(name, labels)
    numbers = np.frombuffer(columns, np.int64)
    first = 0 if numbers.size and numbers.min() == 0 else 1
    # A model may know columns that are 0 in every row of this file.
    asked = [int(found[1]) for label in reading.only or () if (found := _COLUMN.fullmatch(label))]
    last = max([*asked, int(numbers.max(initial=0))])
    rows, width = len(labels), last - first + 1
    reading.require_cells(name, rows, width + 1, f"; {_ADVICE}")
    require(_COPIES * 8 * rows * (width + 1), f"reading {name}, whose rows are sparse,", f"fewer rows do; {_ADVICE}")
    dense = np.zeros((width, rows))
    dense[numbers - first, np.frombuffer(at, np.int64)] = np.frombuffer(values)
    names = [*(f"x{j}" for j in range(first, last + 1)), TARGET]
    return [number_column(*named) for named in zip(names, [*dense, np.frombuffer(labels)], strict=True)]


def _as_said(column: Column, reading: Reading) -> Column:
    """The column as it is to be read."""
    if reading.type_of(column.name) == "date":
        raise DataError(f"column '{column.name}' holds numbers, and no dates: the file is svmlight")
    own = column.as_text() if reading.type_of(column.name) == "text" else column
    return without(own, reading.marks(column.name))


def _require_rows(name: str, labels: "array[float]") -> None:
    if not labels:
        raise DataError(f"{name}: no rows")


class _Row(NamedTuple):
    """The label of a row, its cells as they are written, and their numbers and values."""

    label: float
    words: list[str]
    cells: list[tuple[int, float]]


def _rows(name: str, data: bytes) -> Iterator[_Row]:
    for line, text in _lines(name, data):
        words = text.split()
        if not words:
            continue
        label, before = number_of(words[0]), -1
        if label is None or not np.isfinite(label):
            raise DataError(f"{name}:{line}: the label '{words[0][:40]}' is no number; one number begins each line")
        words = [word for word in words[1:] if not word.startswith("qid:")]
        try:
            cells = [(int(number), value) for number, value in map(numbered_cell, words)]
        except DataError as e:
            raise DataError(f"{name}:{line}: {e}") from None
        for column, _ in cells:
            if column <= before:
                raise DataError(f"{name}:{line}: column {column} after {before}; the numbers of columns rise in a line")
            before = column
        yield _Row(label, words, cells)


def _lines(name: str, data: bytes) -> Iterator[tuple[int, str]]:
    for line, raw in enumerate(data.splitlines(), 1):
        try:
            # What follows a # may be of any encoding.
            yield line, raw.partition(b"#")[0].decode("ascii")
        except UnicodeDecodeError:
            raise DataError(f"{name}:{line}: no line of a svmlight file: cells are written as NUMBER:VALUE") from None
