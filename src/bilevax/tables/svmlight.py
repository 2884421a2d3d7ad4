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
from bilevax.tables.table import Column, Table

TARGET = "target"
"""The column of the labels."""

_LINE = re.compile(rb"[-+.\deE]+(?:[ \t]+(?:qid|\d+):[-+.\deE]+)+\s*(?:#|[\r\n]|$)")
_CELL = re.compile(r"(\d{1,18}):(\S+)")
_COLUMN = re.compile(r"x(\d{1,18})")
_COPIES = 2


def looks_like_svmlight(data: bytes) -> bool:
    """True if the first line is a label and numbered cells."""
    return bool(_LINE.match(data))


class _Cells(NamedTuple):
    """The cells that are not 0, by their rows and columns, and the labels."""

    rows: "array[int]"
    columns: "array[int]"
    values: "array[float]"
    labels: "array[float]"


def read_svmlight(name: str, data: bytes, reading: Reading, *, sha256: str = "") -> Table:
    """The columns x1, x2, ... and ``target``; a cell that is not given is 0.

    Raises:
        DataError: a line is none of such a file, or the table has too many cells.
        ResourceError: it takes more memory than there is.
    """
    cells = _cells(name, data)
    if not cells.labels:
        raise DataError(f"{name}: no rows")
    numbers = np.frombuffer(cells.columns, np.int64)
    first = 0 if numbers.size and numbers.min() == 0 else 1
    # A model may know columns that are 0 in every row of this file.
    asked = [int(found[1]) for label in reading.only or () if (found := _COLUMN.fullmatch(label))]
    last = max([*asked, int(numbers.max(initial=0))])
    rows, width = len(cells.labels), last - first + 1
    reading.require_cells(name, rows, width + 1)
    require(
        _COPIES * 8 * rows * (width + 1), f"reading {name}, whose rows are sparse,", "fewer rows or columns take less"
    )
    dense = np.zeros((width, rows))
    dense[numbers - first, np.frombuffer(cells.rows, np.int64)] = np.frombuffer(cells.values)
    names = [*(f"x{j}" for j in range(first, last + 1)), TARGET]
    of = [*dense, np.frombuffer(cells.labels)]
    wanted, kept = reading.choose(name, names), reading.kept(names)
    unread = set(range(len(names))) - {*wanted, *kept}
    return Table(
        name,
        tuple(_column(names[j], of[j], reading) for j in wanted),
        (f"a svmlight file of {counted(width, 'column')}: a cell that is not given is 0",),
        sha256,
        tuple(names[j] for j in sorted(unread)),
        tuple(_column(names[j], of[j], Reading()).as_text() for j in kept),
    )


def _column(name: str, values: np.ndarray, reading: Reading) -> Column:
    there = values[~np.isnan(values)]
    column = Column(name, "integer" if bool(np.all(there == np.rint(there))) else "number", values)
    if reading.type_of(name) == "date":
        raise DataError(f"column '{name}' holds numbers, and no dates: the file is svmlight")
    return without(column.as_text() if reading.type_of(name) == "text" else column, reading.marks(name))


def _cells(name: str, data: bytes) -> _Cells:
    out = _Cells(array("q"), array("q"), array("d"), array("d"))
    for line, text in _lines(name, data):
        words = text.partition("#")[0].split()
        if not words:
            continue
        label, before = number_of(words[0]), -1
        if label is None or not np.isfinite(label):
            raise DataError(f"{name}:{line}: the label '{words[0][:40]}' is no number; one number begins each line")
        row = len(out.labels)
        out.labels.append(label)
        for word in words[1:]:
            if word.startswith("qid:"):
                continue
            found = _CELL.fullmatch(word)
            value = number_of(found[2]) if found else None
            if found is None or value is None or np.isinf(value):
                raise DataError(f"{name}:{line}: '{word[:40]}' is no cell; cells are written as NUMBER:VALUE")
            column = int(found[1])
            if column <= before:
                raise DataError(f"{name}:{line}: column {column} after {before}; the numbers of columns rise in a line")
            out.rows.append(row)
            out.columns.append(column)
            out.values.append(value)
            before = column
    return out


def _lines(name: str, data: bytes) -> Iterator[tuple[int, str]]:
    for line, raw in enumerate(data.splitlines(), 1):
        try:
            # What follows a # may be of any encoding.
            yield line, raw.partition(b"#")[0].decode("ascii")
        except UnicodeDecodeError:
            raise DataError(f"{name}:{line}: no line of a svmlight file: cells are written as NUMBER:VALUE") from None
