"""Columns of pyarrow, of Parquet files and data frames, as a table's."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bilevax.core.errors import DataError
from bilevax.tables.csv_plain import kept_cells
from bilevax.tables.csv_types import column_of_cells, days, words_among_numbers
from bilevax.tables.reading import Reading, without
from bilevax.tables.table import CodedColumn, Column, Table, check_names, object_array

_EXACT = 2**53


class _Rows(NamedTuple):
    """Where the rows of a table are that has no lines."""

    name: str
    before: int

    def of(self, row: int) -> str:
        return f"{self.name}, row {self.before + row + 1}"


def table_from_arrow(name: str, table: pa.Table, reading: Reading, *, sha256: str = "") -> Table:
    """What is to be read of a table.

    Raises:
        DataError: it has no rows, or a column that no model can use.
    """
    names = [str(label) for label in table.column_names]
    wanted, kept = reading.choose(name, names), reading.kept(names)
    check_names(name, names, sorted({*wanted, *kept}))
    if table.num_rows == 0 or not names:
        raise DataError(f"{name}: no rows")
    read = {*wanted, *kept}
    columns = tuple(arrow_column(name, names[j], table.column(j), reading) for j in wanted)
    meant = (
        _note_on_text(name, column)
        for j, column in zip(wanted, columns, strict=True)
        # categories are meant
        if reading.type_of(names[j]) != "text" and not pa.types.is_dictionary(table.column(j).type)
    )
    return Table(
        name,
        columns,
        tuple(filter(None, meant)),
        sha256,
        tuple(label for j, label in enumerate(names) if j not in read),
        tuple(kept_column(name, names[j], table.column(j)) for j in kept),
    )


def _note_on_text(source: str, column: Column) -> str:
    """A sentence where most cells of a text are numbers, and some are none."""
    if column.kind != "text":
        return ""
    note = words_among_numbers(column.name, pa.chunked_array([pa.array(column.values, pa.string())]), _Rows(source, 0))
    return note and f"{note} if they are not known"


def arrow_column(source: str, name: str, values: pa.ChunkedArray, reading: Reading, before: int = 0) -> Column:
    """A column as it is to be read.

    Args:
        source: for messages, the name of the table.
        name: of the column.
        values: its cells.
        reading: what it is to be, and what says that nothing is known.
        before: rows of the table that stand before these.

    Raises:
        DataError: it holds what no model can use.
    """
    kind = reading.type_of(name)
    if kind == "text":
        return without(kept_column(source, name, values), reading.marks(name))
    column = without(_sound_column(source, name, values, before), reading.marks(name))
    if kind == "number" and column.kind == "date" and not column.missing.all():
        raise DataError(f"{source}: column '{name}' holds dates; it is to hold numbers")
    if (kind is not None and column.kind == "text") or (kind == "date" and column.kind in ("number", "integer")):
        cells = pa.chunked_array([pa.array(column.as_text().values, pa.string())])
        column, _, _ = column_of_cells(name, cells, _Rows(source, before), reading)
    return column


def kept_column(source: str, name: str, values: pa.ChunkedArray) -> Column:
    """Every cell as text: 3.0 is written ``3``, a date as 2024-12-31."""
    kind = values.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        written = pc.cast(_microseconds(source, name, values, _moments(kind)), pa.string())
        return Column(name, "text", object_array(pc.replace_substring_regex(written, r"(\.0+)?Z?$", "").to_pylist()))
    return _sound_column(source, name, values).as_text()


def _sound_column(source: str, name: str, values: pa.ChunkedArray, before: int = 0) -> Column:
    try:
        return _column(source, name, values, before)
    except pa.ArrowException as e:
        words = (str(e).splitlines() or ["damaged"])[0]
        raise DataError(f"{source}: column '{name}' cannot be read ({words})") from None


def _column(source: str, name: str, values: pa.ChunkedArray, before: int) -> Column:
    kind = values.type
    if pa.types.is_dictionary(kind):
        # A damaged file may point beyond its dictionary.
        values.validate(full=True)
        if _is_text(kind.value_type):
            return _coded(name, values)
        values = pc.cast(values, kind.value_type)
        kind = values.type
    if pa.types.is_null(kind):
        return Column(name, "number", np.full(len(values), np.nan))
    if pa.types.is_boolean(kind):
        return Column(name, "boolean", pc.cast(values, pa.float64()).to_numpy())
    if pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale <= 0):
        return _integers(name, values)
    if pa.types.is_decimal(kind):
        # By way of the digits: pyarrow's own conversion is not the nearest float.
        return Column(name, "number", pc.cast(pc.cast(values, pa.string()), pa.float64()).to_numpy())
    if pa.types.is_floating(kind):
        return _floats(source, name, pc.cast(values, pa.float64()).to_numpy(), before)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return Column(name, "date", days(_microseconds(source, name, values, _moments(kind))))
    # As dates are, durations are counted in days.
    if pa.types.is_duration(kind):
        return Column(name, "number", days(_microseconds(source, name, values, pa.duration("us"))))
    if pa.types.is_time(kind):
        return Column(name, "number", days(pc.cast(values, pa.time64("us"), safe=False)))
    if _is_text(kind):
        require_utf8(source, name, values)
        return Column(name, "text", kept_cells(pc.cast(values, pa.large_string())))
    raise DataError(
        f"{source}: column '{name}' holds {_words(kind)}; numbers, text, truth values and dates can be used"
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _coded(name: str, values: pa.ChunkedArray) -> Column:
    """A dictionary's texts, of which each is looked at once."""
    chunks = values.unify_dictionaries().chunks
    if not chunks:
        return Column(name, "text", np.empty(0, object))
    # a missing cell is the last word: None
    texts = kept_cells(pa.chunked_array([pc.cast(chunks[0].dictionary, pa.large_string())]))
    words = object_array([*texts.tolist(), None])
    codes = [chunk.indices.cast(pa.int32()).fill_null(len(words) - 1).to_numpy() for chunk in chunks]
    return CodedColumn(name, words, np.concatenate(codes))


def _words(kind: pa.DataType) -> str:
    """What the cells of a type are that cannot be used, as one says it."""
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        return "records"
    if pa.types.is_nested(kind):
        return "lists"
    if "binary" in str(kind):
        return "bytes"
    return "periods or intervals" if "period" in str(kind) or "interval" in str(kind) else str(kind)


def _moments(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp("us", tz=getattr(kind, "tz", None))


def _microseconds(source: str, name: str, values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Moments or durations as microseconds, of the type."""
    try:
        # Nanoseconds are cut; of seconds, some have no microseconds in 64 bits.
        return pc.cast(values, kind, safe=getattr(values.type, "unit", "") != "ns")
    except pa.ArrowInvalid:
        raise DataError(f"{source}: column '{name}' has dates or times that are out of range (292,000 years)") from None


def require_utf8(source: str, name: str, values: pa.ChunkedArray) -> None:
    """Refuse texts that are none."""
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


def _floats(source: str, name: str, numbers: np.ndarray, before: int) -> Column:
    infinite = np.flatnonzero(np.isinf(numbers))
    if infinite.size:
        count = f"{infinite.size} infinite value" + ("" if infinite.size == 1 else "s")
        raise DataError(f"{source}: column '{name}' has {count}, first in row {before + infinite[0] + 1}")
    return Column(name, "number", numbers)
