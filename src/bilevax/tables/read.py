"""Tables from files: CSV, Parquet and svmlight."""

import hashlib
import io
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from bilevax.core.errors import DataError
from bilevax.core.files import refused
from bilevax.core.limits import require, said
from bilevax.core.text import counted
from bilevax.tables.csv_file import open_csv_text
from bilevax.tables.csv_plain import kept_cells, plain_columns
from bilevax.tables.csv_types import column_of_cells
from bilevax.tables.frames import table_from_array, table_from_frame
from bilevax.tables.marks import notes_on_marks
from bilevax.tables.parquet_file import read_parquet
from bilevax.tables.reading import MAX_CELLS, Marks, Reading, Type, number_of, without
from bilevax.tables.svmlight import looks_like_svmlight, read_svmlight
from bilevax.tables.table import Column, Table

__all__ = ["Column", "Table", "read_table", "table_from_array", "table_from_frame"]

# What reading takes, measured: in sizes of a CSV file, and in bytes for each of its columns, however few its rows are.
_CSV_SIZES, _CSV_COLUMN = 5, 10_000
_FIRST = 1 << 16
_HELPS = "fewer rows or columns take less"
_PARQUET, _SVMLIGHT = (".parquet", ".pq"), (".svm", ".svmlight", ".libsvm")
_JSON = re.compile(rb'(?:\xef\xbb\xbf)?\s*(?:\{\s*"[^"\r\n]*"\s*:|\[\s*[{\[])')
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|table|\?xml)\b", re.IGNORECASE)


def read_table(
    source: str | Path,
    *,
    text: Collection[str] = (),
    numbers: Collection[str] = (),
    drop: Collection[str] = (),
    only: Collection[str] | None = None,
    missing: Marks | None = None,
    types: Mapping[str, Type] | None = None,
    keep: Collection[str] = (),
    max_cells: int = MAX_CELLS,
) -> Table:
    r"""Read a CSV, Parquet or svmlight file.

    A CSV file is UTF-8 with a header; commas, semicolons, tabs and bars are recognised as delimiters. A column is
    numbers, truth values, ISO dates, times or text, by all of its cells. An empty cell is missing; ``?``, ``NA``,
    ``NaN``, ``null`` and the like are missing among numbers, truth values and dates, and are values among texts.

    Args:
        source: path of the file; what ends in ``.parquet`` or ``.svm``, or begins as such files do, is read as that.
        text: columns to read as text whatever their cells are (codes that look like numbers).
        numbers: columns that are known to hold numbers; a cell that is none is refused by line.
        drop: columns that are not looked at, whatever is in them.
        only: the only columns to look at; all without it.
        missing: for a column (``""``: for all others) more cells that say that nothing is known.
        types: what columns are, instead of what their cells look like: ``text``, ``number`` or ``date``.
        keep: columns that are passed through as text, in ``kept``, and are no columns of the table.
        max_cells: rows x columns at most, of a Parquet or svmlight file, in which a few bytes may stand for many cells.

    Raises:
        DataError: the file has a fault; the message gives file and line.
        StorageError: the file could not be read.

    Examples:
        >>> from pathlib import Path
        >>> from bilevax.tables import read_table
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "people.csv")
        >>> _ = path.write_text("age,city\n31,Rome\n45,Oslo\n")
        >>> [(column.name, column.kind) for column in read_table(path).columns]
        [('age', 'integer'), ('city', 'text')]
    """
    path = Path(source)
    with said(f"reading {path.name}", _HELPS):
        return _read(path, Reading(text, numbers, drop, only, missing or {}, types or {}, keep, max_cells))


def _read(path: Path, reading: Reading) -> Table:
    suffix = path.suffix.lower()
    with refused("read", path):
        if suffix not in _PARQUET:
            require(_CSV_SIZES * path.stat().st_size, f"reading {path.name}", _HELPS)
        data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    # What a file is, its first bytes say; names may lie.
    if data.startswith(b"PAR1") or suffix in _PARQUET:
        return read_parquet(path.name, data, reading, sha256=digest)
    refuse_other_formats(path.name, data)
    if suffix in _SVMLIGHT or looks_like_svmlight(data):
        return read_svmlight(path.name, data, reading, sha256=digest)
    return csv_table(path.name, data, reading, digest)


def format_of(path: Path) -> Literal["csv", "parquet", "other"]:
    """What a file is that can be read more than once; ``other`` is read whole, or refused.

    Raises:
        StorageError: it could not be read.
    """
    if not path.is_file():
        return "other"
    with refused("read", path), path.open("rb") as file:
        first = file.read(_FIRST)
    suffix = path.suffix.lower()
    if first.startswith(b"PAR1") or suffix in _PARQUET:
        return "parquet"
    refuse_other_formats(path.name, first)
    return "other" if suffix in _SVMLIGHT or looks_like_svmlight(first) else "csv"


def csv_table(name: str, data: bytes, reading: Reading, digest: str = "") -> Table:
    """The table of a delimited file's bytes."""
    file = open_csv_text(name, lambda: io.BytesIO(data), lambda names: csv_columns(name, names, reading))
    require(_CSV_COLUMN * len(file.wanted), f"reading {counted(len(file.wanted), 'column')} of {name}", _HELPS)
    cells = dict(zip(file.wanted, file.columns(), strict=True))
    notes, seen, columns = [*file.notes], [], []
    if all(number_of(label) is not None for label in file.names):
        notes.append("all column names are numbers: is the header missing, and the first row taken for it?")
    wanted = reading.choose(name, file.names)
    names, texts = [file.names[j] for j in wanted], [cells[j] for j in wanted]
    for label, of, plain in zip(names, texts, plain_columns(names, texts, reading), strict=True):
        column, note, marks = plain or column_of_cells(label, of, file.lines, reading)
        columns.append(without(column, reading.marks(label)))
        notes += [note] if note else []
        seen.append((column, marks))
    kept = tuple(Column(file.names[j], "text", kept_cells(cells[j])) for j in reading.kept(file.names))
    unread = tuple(label for j, label in enumerate(file.names) if j not in cells)
    return Table(name, tuple(columns), (*notes, *notes_on_marks(seen)), digest, unread, kept)


def csv_columns(name: str, names: list[str], reading: Reading) -> list[int]:
    """The positions of the columns of a delimited file that are read or passed through."""
    return sorted({*reading.choose(name, names), *reading.kept(names)})


def refuse_other_formats(name: str, data: bytes) -> None:
    """Refuse what is no table, by its first bytes."""
    # Zip (xlsx too), gzip, and the Excel of old.
    if data.startswith((b"PK\x03\x04", b"\x1f\x8b", b"\xd0\xcf\x11\xe0")):
        raise DataError(f"{name}: the file is compressed, or a spreadsheet; save it as CSV or Parquet")
    if _MARKUP.match(data):
        raise DataError(f"{name}: a web page or XML, no table; save the table alone, as CSV")
    if _JSON.match(data):
        lines = "JSON lines, one object a line" if _is_json_line(data) else "JSON"
        raise DataError(
            f"{name}: the file is {lines}, which is not read; pandas reads it (read_json), and writes CSV or Parquet"
        )


def _is_json_line(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data.lstrip().splitlines()[0]), dict)
    except (ValueError, RecursionError):
        return False
