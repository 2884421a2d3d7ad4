"""Tables from files and frames: CSV and Parquet, pandas and polars."""

import hashlib
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
from bilevax.tables.csv_types import column_of_cells, days
from bilevax.tables.table import Column, Table, check_names, object_array

if TYPE_CHECKING:
    from narwhals.typing import IntoDataFrame

__all__ = ["Column", "Table", "read_table", "table_from_array", "table_from_frame"]

_EXACT = 2**53
# What reading takes, measured: in sizes of a CSV file, and in copies of what a Parquet file holds.
_CSV_SIZES, _COPIES = 5, 3
_HELPS = "fewer rows or columns take less"
_SVMLIGHT = re.compile(rb"[-+.\deE]+(?:[ \t]+\d+:[-+.\deE]+)+\s*(?:#|[\r\n]|$)")
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")


def read_table(source: str | Path, *, text: Collection[str] = ()) -> Table:
    """Read a CSV or Parquet file.

    A CSV file is UTF-8 with a header; commas, semicolons, tabs and bars are recognised as delimiters. A column is
    numbers, truth values, ISO dates or text, by all of its cells; ``NA``, ``NaN``, ``null`` and blank are missing.

    Args:
        source: path of the file; what ends in ``.parquet`` or begins as Parquet does is read as that.
        text: columns to read as text whatever their cells are (codes that look like numbers).

    Raises:
        DataError: the file has a fault; the message gives file and line.
        StorageError: the file could not be read.
    """
    path = Path(source)
    with said(f"reading {path.name}", _HELPS):
        return _read(path, text)


def _read(path: Path, text: Collection[str]) -> Table:
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
        return _from_arrow(path.name, _read_parquet(path.name, data), text=text, sha256=digest)
    # Zip (xlsx too), gzip, and the Excel of old.
    if data.startswith((b"PK\x03\x04", b"\x1f\x8b", b"\xd0\xcf\x11\xe0")):
        raise DataError(f"{path.name}: the file is compressed, or a spreadsheet; save it as CSV or Parquet")
    if _SVMLIGHT.match(data):
        raise DataError(
            f"{path.name}: a svmlight file, whose rows are sparse; a table would make them dense. Read it with "
            "scikit-learn's load_svmlight_file, and use bx.SparseRows or the dense array"
        )
    file = read_csv_text(path.name, data)
    # A misspelt name in ``text`` is refused before the cells are looked at.
    Table(path.name, tuple(Column(name, "text", np.empty(0)) for name in file.names)).require(text)
    columns, notes = [], []
    if all(_is_number(name) for name in file.names):
        notes.append("all column names are numbers: is the header missing, and the first row taken for it?")
    for name, cells in zip(file.names, file.columns, strict=True):
        column, note = column_of_cells(name, cells, file.lines, text=name in text)
        columns.append(column)
        notes += [note] if note else []
    return Table(path.name, tuple(columns), tuple(notes), digest)


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
    return _from_arrow(name, pa.table(arrays, names=narwhal.columns), text=text)


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
    return _from_arrow(name, pa.table(arrays, names=list(names)), text=())


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _read_parquet(name: str, data: bytes) -> pa.Table:
    try:
        about = parquet.read_metadata(pa.BufferReader(data))
        groups = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        # a column of one value takes a few bytes in the file, and eight a row here
        require(_COPIES * max(groups, 8 * about.num_rows * about.num_columns), f"reading {name}", _HELPS)
        table = parquet.read_table(pa.BufferReader(data))
        index = [label for label in table.column_names if _PANDAS_INDEX.fullmatch(label)]
        return table.drop_columns(index)
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{name}: no readable Parquet file ({str(e).splitlines()[0]})") from None


def _from_arrow(name: str, table: pa.Table, *, text: Collection[str], sha256: str = "") -> Table:
    names = [str(label) for label in table.column_names]
    check_names(name, names)
    if table.num_rows == 0 or not names:
        raise DataError(f"{name}: no rows")
    columns = [_column(name, label, values) for label, values in zip(names, table.columns, strict=True)]
    out = Table(name, tuple(columns), sha256=sha256)
    out.require(text)
    chosen = tuple(column.as_text() if column.name in text else column for column in columns)
    return Table(name, chosen, sha256=sha256)


def _column(source: str, name: str, values: pa.ChunkedArray) -> Column:
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = pc.cast(values, kind.value_type)
        kind = values.type
    if pa.types.is_null(kind):
        return Column(name, "number", np.full(len(values), np.nan))
    if pa.types.is_boolean(kind):
        return Column(name, "boolean", pc.cast(values, pa.float64()).to_numpy())
    if pa.types.is_integer(kind):
        return _integers(name, values)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _floats(source, name, pc.cast(values, pa.float64()).to_numpy())
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return Column(name, "date", days(pc.cast(values, pa.timestamp("us", tz=getattr(kind, "tz", None)), safe=False)))
    # As dates are, durations are counted in days.
    if pa.types.is_duration(kind):
        return Column(name, "number", days(pc.cast(values, pa.duration("us"), safe=False)))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        cells = pc.utf8_trim_whitespace(pc.cast(values, pa.large_string())).to_pylist()
        return Column(name, "text", object_array([cell or None for cell in cells]))
    raise DataError(f"{source}: column '{name}' holds {kind}; numbers, text, truth values and dates can be used")


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
