"""Tables from files and frames: CSV and Parquet, pandas and polars."""

import hashlib
import json
import re
import sys
from collections.abc import Collection, Sequence
from numbers import Number
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from bilevax.core.errors import DataError, ParameterError, StorageError
from bilevax.core.limits import require, said
from bilevax.tables.csv_file import read_csv_text
from bilevax.tables.csv_plain import plain_columns
from bilevax.tables.csv_types import column_of_cells, days
from bilevax.tables.marks import notes_on_marks
from bilevax.tables.reading import Marks, Reading, number_of, without
from bilevax.tables.table import Column, Table, check_names, object_array

if TYPE_CHECKING:
    from narwhals.typing import IntoDataFrame

__all__ = ["Column", "Table", "read_table", "table_from_array", "table_from_frame"]

_EXACT = 2**53
# What reading takes, measured: in sizes of a CSV file, and in copies of what a Parquet file holds.
_CSV_SIZES, _COPIES = 5, 3
_HELPS = "fewer rows or columns take less"
_SVMLIGHT = re.compile(rb"[-+.\deE]+(?:[ \t]+\d+:[-+.\deE]+)+\s*(?:#|[\r\n]|$)")
_JSON = re.compile(rb'(?:\xef\xbb\xbf)?\s*(?:\{\s*"[^"\r\n]*"\s*:|\[\s*[{\[])')
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|table|\?xml)\b", re.IGNORECASE)
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")


def read_table(
    source: str | Path,
    *,
    text: Collection[str] = (),
    numbers: Collection[str] = (),
    drop: Collection[str] = (),
    only: Collection[str] | None = None,
    missing: Marks | None = None,
) -> Table:
    """Read a CSV or Parquet file.

    A CSV file is UTF-8 with a header; commas, semicolons, tabs and bars are recognised as delimiters. A column is
    numbers, truth values, ISO dates, times or text, by all of its cells. An empty cell is missing; ``?``, ``NA``,
    ``NaN``, ``null`` and the like are missing among numbers, truth values and dates, and are values among texts.

    Args:
        source: path of the file; what ends in ``.parquet`` or begins as Parquet does is read as that.
        text: columns to read as text whatever their cells are (codes that look like numbers).
        numbers: columns that are known to hold numbers; a cell that is none is refused by line.
        drop: columns that are not looked at, whatever is in them.
        only: the only columns to look at; all without it.
        missing: for a column (``""``: for all others) more cells that say that nothing is known.

    Raises:
        DataError: the file has a fault; the message gives file and line.
        StorageError: the file could not be read.
    """
    path = Path(source)
    with said(f"reading {path.name}", _HELPS):
        return _read(path, Reading(text, numbers, drop, only, missing or {}))


def _read(path: Path, reading: Reading) -> Table:
    parquet_name = path.suffix.lower() in (".parquet", ".pq")
    try:
        if not parquet_name:
            require(_CSV_SIZES * path.stat().st_size, f"reading {path.name}", _HELPS)
        data = path.read_bytes()
    except OSError as e:
        raise StorageError(e.errno, f"cannot read {path}: {e.strerror}") from e
    digest = hashlib.sha256(data).hexdigest()
    # What a file is, its first bytes say; names may lie.
    if data.startswith(b"PAR1") or parquet_name:
        return _from_arrow(path.name, _read_parquet(path.name, data, reading), reading, sha256=digest)
    _refuse_other_formats(path.name, data)
    file = read_csv_text(path.name, data, lambda names: reading.choose(path.name, names))
    names = [file.names[j] for j in file.wanted]
    columns, notes, seen = [], file.notes, []
    if all(number_of(name) is not None for name in file.names):
        notes.append("all column names are numbers: is the header missing, and the first row taken for it?")
    for name, cells, plain in zip(names, file.columns, plain_columns(names, file.columns, reading), strict=True):
        column, note, marks = plain or column_of_cells(name, cells, file.lines, reading)
        columns.append(without(column, reading.marks(name)))
        notes += [note] if note else []
        seen.append((column, marks))
    notes += notes_on_marks(seen)
    return Table(path.name, tuple(columns), tuple(notes), digest, _others(file.names, file.wanted))


def _refuse_other_formats(name: str, data: bytes) -> None:
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
    if _SVMLIGHT.match(data):
        raise DataError(
            f"{name}: a svmlight file, whose rows are sparse; a table would make them dense. Read it with "
            "scikit-learn's load_svmlight_file, and use bx.SparseRows or the dense array"
        )


def _others(names: Sequence[str], wanted: Sequence[int]) -> tuple[str, ...]:
    """The names of the columns that are not wanted."""
    read = set(wanted)
    return tuple(name for j, name in enumerate(names) if j not in read)


def _is_json_line(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data.lstrip().splitlines()[0]), dict)
    except (ValueError, RecursionError):
        return False


def table_from_frame(frame: "IntoDataFrame", *, name: str = "frame", text: Collection[str] = ()) -> Table:
    """A table of an eager data frame: pandas, polars, pyarrow, or whatever else narwhals knows. The index is left out.

    Raises:
        ParameterError: it is no data frame.
        DataError: a column mixes types, or has one that no model can use.
    """
    import narwhals as nw

    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(frame, pandas.DataFrame):
        # Labels of pandas need not be strings, nor differ.
        labels = [str(label) for label in frame.columns]
        check_names(name, labels)
        frame = frame.set_axis(labels, axis=1)
    try:
        narwhal = nw.from_native(frame, eager_only=True)
    except TypeError:
        raise ParameterError(f"frame must be an eager data frame, got {type(frame).__name__}") from None
    arrays = []
    for series in narwhal.iter_columns():
        try:
            arrays.append(pa.chunked_array([series.to_arrow()]))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            raise DataError(f"{name}: column '{series.name}' mixes types; make it one of numbers or text") from None
    return _from_arrow(name, pa.table(arrays, names=narwhal.columns), Reading(text))


def table_from_array(X: np.ndarray, names: Sequence[str], *, name: str = "X") -> Table:
    """A table of an array [n, p] of numbers, truth values, texts or objects; None and NaN are missing.

    Raises:
        DataError: a column mixes types, or has one that no model can use.
        TypeError: a cell is neither a number nor text.
    """
    arrays = []
    for label, cells in zip(names, X.T, strict=True):
        try:
            arrays.append(pa.chunked_array([pa.array(cells, from_pandas=True)]))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            other = next((cell for cell in cells if not isinstance(cell, str | Number | np.generic | None)), None)
            if other is not None:
                kind = type(other).__name__
                raise TypeError(
                    f"{name}: column '{label}' holds a {kind}; the argument must be a string or a number"
                ) from None
            raise DataError(f"{name}: column '{label}' mixes types; make it one of numbers or text") from None
    return _from_arrow(name, pa.table(arrays, names=list(names)), Reading())


def _read_parquet(name: str, data: bytes, reading: Reading) -> pa.Table:
    """The table; columns that are not looked at are of null."""
    try:
        about = parquet.read_metadata(pa.BufferReader(data))
        groups = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        # a column of one value takes a few bytes in the file, and eight a row here
        require(_COPIES * max(groups, 8 * about.num_rows * about.num_columns), f"reading {name}", _HELPS)
        names = [label for label in about.schema.to_arrow_schema().names if not _PANDAS_INDEX.fullmatch(label)]
        wanted = [names[j] for j in reading.choose(name, names)]
        table = parquet.read_table(pa.BufferReader(data), columns=wanted, page_checksum_verification=True)
        unread = pa.nulls(about.num_rows)
        read = set(wanted)
        return pa.table([table.column(label) if label in read else unread for label in names], names=names)
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{name}: no readable Parquet file ({str(e).splitlines()[0]})") from None


def _from_arrow(name: str, table: pa.Table, reading: Reading, *, sha256: str = "") -> Table:
    names = [str(label) for label in table.column_names]
    wanted = reading.choose(name, names)
    check_names(name, names, wanted)
    if table.num_rows == 0 or not names:
        raise DataError(f"{name}: no rows")
    columns = []
    for label, values in ((names[j], table.column(j)) for j in wanted):
        column = _column(name, label, values)
        column = column.as_text() if label in reading.text else column
        columns.append(without(column, reading.marks(label)))
    return Table(name, tuple(columns), sha256=sha256, unread=_others(names, wanted))


def _column(source: str, name: str, values: pa.ChunkedArray) -> Column:
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = pc.cast(values, kind.value_type)
        kind = values.type
    if pa.types.is_null(kind):
        return Column(name, "number", np.full(len(values), np.nan))
    if pa.types.is_boolean(kind):
        return Column(name, "boolean", pc.cast(values, pa.float64()).to_numpy())
    if pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale <= 0):
        return _integers(name, values)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _floats(source, name, pc.cast(values, pa.float64()).to_numpy())
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return Column(name, "date", days(_microseconds(source, name, values)))
    # As dates are, durations are counted in days.
    if pa.types.is_duration(kind):
        return Column(name, "number", days(pc.cast(values, pa.duration("us"), safe=False)))
    if pa.types.is_time(kind):
        return Column(name, "number", days(pc.cast(values, pa.time64("us"), safe=False)))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        _require_utf8(source, name, values)
        cells = pc.utf8_trim_whitespace(pc.cast(values, pa.large_string())).to_pylist()
        return Column(name, "text", object_array([cell or None for cell in cells]))
    raise DataError(f"{source}: column '{name}' holds {kind}; numbers, text, truth values and dates can be used")


def _microseconds(source: str, name: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = values.type
    try:
        # Nanoseconds are cut; of seconds, some have no microseconds in 64 bits.
        fine = getattr(kind, "unit", "") == "ns"
        return pc.cast(values, pa.timestamp("us", tz=getattr(kind, "tz", None)), safe=not fine)
    except pa.ArrowInvalid:
        raise DataError(f"{source}: column '{name}' has dates that are out of range (292,000 years)") from None


def _require_utf8(source: str, name: str, values: pa.ChunkedArray) -> None:
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        raise DataError(f"{source}: column '{name}' holds bytes that are not UTF-8") from None


def _integers(name: str, values: pa.ChunkedArray) -> Column:
    numbers = pc.cast(values, pa.float64(), safe=False).to_numpy()
    # Longer than float64 holds: an identifier.
    if np.any(np.abs(numbers) >= _EXACT):
        return Column(name, "text", object_array(pc.cast(values, pa.string()).to_pylist()))
    return Column(name, "integer", numbers)


def _floats(source: str, name: str, numbers: np.ndarray) -> Column:
    infinite = np.flatnonzero(np.isinf(numbers))
    if infinite.size:
        count = f"{infinite.size} infinite value" + ("" if infinite.size == 1 else "s")
        raise DataError(f"{source}: column '{name}' has {count}, first in row {infinite[0] + 1}")
    return Column(name, "number", numbers)
