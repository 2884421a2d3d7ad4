"""A file with some cells of one column replaced; everything else of a CSV file stays as it is, to the byte."""

import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bilevax.core.errors import DataError
from bilevax.core.files import refused
from bilevax.tables.csv_file import CsvText, open_csv_text
from bilevax.tables.read import format_of

_AT_ONCE = 10_000
"""Records."""


def require_replaceable(path: Path) -> str:
    """The suffix of what :func:`replaced` writes: ``.csv`` or ``.parquet``.

    Raises:
        DataError: it is no such file, or cannot be read twice.
        StorageError: it could not be read.
    """
    known = format_of(path)
    if known == "other":
        raise DataError(f"{path} is no CSV or Parquet file, of which alone a cleaned copy is written; save it as one")
    return f".{known}"


def replaced(path: Path, column: str, like: Mapping[int, int], sha256: str) -> Iterator[bytes]:
    """The file in pieces, where some cells of a column are those of other rows.

    Args:
        path: a CSV or Parquet file.
        column: whose cells are replaced.
        like: by row, counted from 0, the row whose cell it gets.
        sha256: of the file when the rows were counted.

    Raises:
        DataError: the file is another one by now.
        StorageError: it could not be read.
    """
    with refused("read", path), path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise DataError(f"{path} was changed since it was read; clean it anew")
    yield from (_parquet if format_of(path) == "parquet" else _csv)(path, column, like)


def _csv(path: Path, column: str, like: Mapping[int, int]) -> Iterator[bytes]:
    text = open_csv_text(path.name, lambda: path.open("rb"), lambda names: [names.index(column)])
    (cells,) = text.columns()
    found = {row: cells[other].as_py().strip() for row, other in like.items()}
    lines: list[str] = []
    for line in _lines(path, text, found):
        lines.append(line)
        if len(lines) == _AT_ONCE:
            yield "".join(lines).encode("utf-8", "surrogateescape")
            lines.clear()
    yield "".join(lines).encode("utf-8", "surrogateescape")


def _lines(path: Path, text: CsvText, cells: Mapping[int, str]) -> Iterator[str]:
    """Records as they are written, or with another cell; blank lines are none."""
    delimiter, row = text.lines.delimiter, -1
    with path.open("rb") as file:
        lines = iter(io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline=""))
        for _ in range(text.structure.lines):
            yield next(lines)
        for line in lines:
            record = line
            # a cell that is open goes on in the next line
            while '"' in record and _is_open(record, delimiter):
                record += next(lines)
            if record.strip("\r\n"):
                row += 1
                record = _with_cell(record, delimiter, text.wanted[0], cells[row]) if row in cells else record
            yield record


def _cell(delimiter: str) -> "re.Pattern[str]":
    """A cell: quoted, where a quote within is written twice, or up to the delimiter."""
    return re.compile(rf'"(?:[^"]|"")*(?:"|\Z)|[^{re.escape(delimiter)}\r\n]*')


def _spans(record: str, delimiter: str) -> Iterator[tuple[int, int]]:
    pattern, start = _cell(delimiter), 0
    while match := pattern.match(record, start):
        yield match.span()
        start = match.end() + 1
        if record[match.end() : start] != delimiter:
            return


def _is_open(record: str, delimiter: str) -> bool:
    """True where the last cell is quoted and has no closing quote."""
    *_, (start, end) = _spans(record, delimiter)
    cell = record[start:end]
    return cell.startswith('"') and (len(cell) < 2 or cell.count('"') % 2 == 1)


def _with_cell(record: str, delimiter: str, position: int, cell: str) -> str:
    start, end = list(_spans(record, delimiter))[position]
    special = any(c in cell for c in f'{delimiter}"\r\n') or cell != cell.strip() or record[start:end].startswith('"')
    written = '"' + cell.replace('"', '""') + '"' if special else cell
    return record[:start] + written + record[end:]


def _parquet(path: Path, column: str, like: Mapping[int, int]) -> Iterator[bytes]:
    table = pq.read_table(path)
    place, rows = table.column_names.index(column), np.arange(table.num_rows)
    rows[list(like)] = list(like.values())
    out = pa.BufferOutputStream()
    pq.write_table(table.set_column(place, table.schema.field(place), table.column(place).take(pa.array(rows))), out)
    yield out.getvalue().to_pybytes()
