"""A table in pieces of rows, for what does not fit into memory: the columns of a model, whose types it knows.

A file is gone through before the first piece is given, so that its faults are found, and what each column holds is
decided by all of its cells. Columns of plain numbers, truth values, ISO dates and texts are then read piece by piece.
A column that is written otherwise (1.234,5 or 5 %) is read whole: 8 bytes a row.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bilevax.core.limits import said
from bilevax.core.processes import STRATA
from bilevax.tables.ahead import ahead
from bilevax.tables.arrow import arrow_column, kept_column, require_utf8
from bilevax.tables.csv_file import LongRowError, open_csv_text
from bilevax.tables.csv_types import as_boolean, column_of_cells, iso_dates, known_cells
from bilevax.tables.marks import notes_on_marks
from bilevax.tables.parquet_file import open_parquet
from bilevax.tables.read import csv_columns, format_of, read_table
from bilevax.tables.reading import Reading, without
from bilevax.tables.table import Column, Table

BLOCK = 1 << 21
"""Bytes of a delimited file that are read at once."""

_LONGEST = 1 << 30

ROWS = 1 << 16
"""Rows of a Parquet file that are read at once."""


class Pieces(NamedTuple):
    """A table in pieces.

    Attributes:
        name: of the file, or of the data set.
        rows: of all pieces.
        others: names of columns of the file that are neither read nor passed through.
        notes: what its user should know.
        tables: gives the pieces, from the first.
        sha256: by which the files are known again.
        starts: first rows of the strata, and the row after the last; if empty, such as have as many rows each.
        between: gives the pieces from one of these rows to another; None: they are only to be had with all others.
    """

    name: str
    rows: int
    others: tuple[str, ...]
    notes: tuple[str, ...]
    tables: Callable[[], Iterator[Table]]
    sha256: str = ""
    starts: tuple[int, ...] = ()
    between: Callable[[int, int], Iterator[Table]] | None = None

    @property
    def _starts(self) -> tuple[int, ...]:
        return self.starts or tuple(self.rows * s // STRATA for s in range(STRATA + 1))

    def stratum(self, table: Table) -> int:
        """That of a piece, or of a selection of its columns: the one of its first row."""
        return int(np.searchsorted(self._starts, table.before, side="right")) - 1

    def dealt(self, strata: range) -> Iterator[Table]:
        """The pieces of some strata, neighbours."""
        start, stop = self._starts[strata.start], self._starts[strata.stop]
        for table in self.tables() if self.between is None else ahead(self.between(start, stop)):
            if start <= table.before < stop:
                yield table


class _File(NamedTuple):
    """A file of which columns can be read in pieces and whole.

    Attributes:
        name: of the file.
        names: of its columns.
        positions: of the columns that are read, in the order in which they are in a piece.
        notes: what its user should know.
        pieces: gives the columns of each piece.
        whole: a column as a whole, as it is meant, and a note.
    """

    name: str
    names: Sequence[str]
    positions: Sequence[int]
    notes: Sequence[str]
    pieces: Callable[[], Iterator[list[pa.Array]]]
    whole: Callable[[int], tuple[Column, str]]


def pieces_of_table(table: Table) -> Pieces:
    """A table in one piece."""
    return Pieces(table.name, table.rows, tuple(filter(None, table.unread)), table.notes, lambda: iter((table,)))


def open_pieces(path: Path, reading: Reading, *, block: int = BLOCK, rows: int = ROWS) -> Pieces:
    """Go through a file for the first time; its columns are ``reading.only``, of which it says what each is.

    Args:
        path: of a CSV or Parquet file; others, and what can be read only once, are read whole.
        reading: how.
        block: bytes of a delimited file that are read at once, about.
        rows: rows of a Parquet file that are read at once.

    Raises:
        DataError: the file has a fault.
        StorageError: it could not be read.
    """
    kind = format_of(path)
    if kind not in ("csv", "parquet"):
        return pieces_of_table(read_table(path, **reading._asdict()))
    with said(f"reading {path.name}"):
        if kind == "parquet":
            return _pieces(_parquet(path, reading, rows), reading)
        try:
            return _pieces(_csv(path, reading, block), reading)
        except LongRowError:
            return _pieces(_csv(path, reading, _LONGEST), reading)


def _csv(path: Path, reading: Reading, block: int) -> _File:
    text = open_csv_text(path.name, lambda: path.open("rb"), lambda names: csv_columns(path.name, names, reading))

    def whole(position: int) -> tuple[Column, str]:
        name = text.names[position]
        column, note, _ = column_of_cells(name, text.columns([position])[0], text.lines, reading)
        return column, note

    return _File(path.name, text.names, text.wanted, text.notes, lambda: text.batches(block), whole)


def _parquet(path: Path, reading: Reading, rows: int) -> _File:
    file = open_parquet(path.name, path, reading)

    def whole(position: int) -> tuple[Column, str]:
        return arrow_column(path.name, file.names[position], file.column(position), reading), ""

    return _File(path.name, file.names, file.wanted, (), lambda: file.batches(rows), whole)


def _pieces(file: _File, reading: Reading) -> Pieces:
    found = _looked_through(file, reading)
    wanted, kept = reading.choose(file.name, file.names), reading.kept(file.names)
    whole, notes = {}, [*file.notes]
    for j in (j for j in wanted if found.kinds.get(j) == "other"):
        column, note = file.whole(j)
        whole[j] = without(column, reading.marks(column.name))
        notes += [note] if note else []
    notes += notes_on_marks((Column(file.names[j], "number", np.empty(0)), counts) for j, counts in found.marks.items())

    def tables() -> Iterator[Table]:
        before = 0
        for arrays in file.pieces():
            of, rows = dict(zip(file.positions, arrays, strict=True)), len(arrays[0])
            columns = tuple(
                _slice(whole[j], before, rows) if j in whole else _piece(file, j, of[j], reading, before).column
                for j in wanted
            )
            passed = tuple(kept_column(file.name, file.names[j], pa.chunked_array([of[j]])) for j in kept)
            yield Table(file.name, columns, kept=passed, before=before)
            before += rows

    others = tuple(name for j, name in enumerate(file.names) if j not in {*wanted, *kept} and name)
    return Pieces(file.name, found.rows, others, tuple(notes), tables)


class _Found(NamedTuple):
    """What columns hold as a whole that are to be numbers or dates and are texts, their marks, and the rows."""

    kinds: dict[int, str]
    marks: dict[int, Counter[str]]
    rows: int


def _looked_through(file: _File, reading: Reading) -> _Found:
    wanted = set(reading.choose(file.name, file.names))
    kinds: dict[int, str] = {}
    marks: dict[int, Counter[str]] = {}
    rows = 0
    for arrays in file.pieces():
        for j, array in zip(file.positions, arrays, strict=True):
            if j in wanted:
                _, kind, counts = _piece(file, j, array, reading, rows)
                marks.setdefault(j, Counter()).update(counts)
                # What differs from piece to piece, all cells decide together.
                if kind and kinds.setdefault(j, kind) != kind:
                    kinds[j] = "other"
        rows += len(arrays[0])
    return _Found(kinds, marks, rows)


class _Typed(NamedTuple):
    """The column of a piece, what its texts are, empty where none is there, and how often they are marks."""

    column: Column
    kind: Literal["", "number", "boolean", "date", "zoned", "other"] = ""
    marks: Mapping[str, int] = MappingProxyType({})


def _piece(file: _File, position: int, array: pa.Array, reading: Reading, before: int) -> _Typed:
    name, cells = file.names[position], pa.chunked_array([array])
    kind = reading.type_of(name)
    if kind == "text" or not _is_text(array.type):
        return _Typed(arrow_column(file.name, name, cells, reading, before))
    require_utf8(file.name, name, cells)
    typed = _typed(name, pc.cast(cells, pa.string()), reading)
    return typed._replace(column=without(typed.column, reading.marks(name)))


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _typed(name: str, cells: pa.ChunkedArray, reading: Reading) -> _Typed:
    """Numbers, truth values or ISO dates; ``other`` if they are none, or if it takes all cells to say what they are."""
    there = pc.if_else(pc.equal(cells, ""), pa.scalar(None, pa.string()), cells)
    date = reading.type_of(name) == "date"
    # The usual column needs no pattern.
    if not date and (numbers := _floats(there)) is not None and int(np.isnan(numbers).sum()) == there.null_count:
        return _Typed(Column(name, "number", numbers), "number" if there.null_count < len(there) else "")
    values, marks = known_cells(cells, reading.marks(name))
    if values.null_count == len(values):
        return _Typed(Column(name, "number", np.full(len(values), np.nan)), "", marks)
    if date:
        dates, zoned = iso_dates(values)
        column = None if dates is None else Column(name, "date", dates)
        return _Typed(column, "zoned" if zoned else "date", marks) if column else _Typed(_nothing(name), "other", marks)
    if (numbers := _floats(values)) is not None:
        return _Typed(Column(name, "number", numbers), "number", marks)
    truth = as_boolean(name, values)
    return _Typed(truth, "boolean", marks) if truth else _Typed(_nothing(name), "other", marks)


def _nothing(name: str) -> Column:
    """Of a column that is read whole."""
    return Column(name, "number", np.empty(0))


def _floats(values: pa.ChunkedArray) -> np.ndarray | None:
    """The cells as numbers, if all of them are finite ones."""
    try:
        numbers: np.ndarray = pc.cast(values, pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    return None if np.isinf(numbers).any() else numbers


def _slice(column: Column, start: int, rows: int) -> Column:
    return Column(column.name, column.kind, column.values[start : start + rows])
