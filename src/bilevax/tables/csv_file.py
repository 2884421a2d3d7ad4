"""Delimited text: its faults found and named by line, then read by pyarrow, every cell as text.

The csv module walks the file once and counts the fields of every record; it is strict about quotes and knows the line
it is on. pyarrow, which is neither, then reads the columns.
"""

import codecs
import contextlib
import csv
import io
import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
from pyarrow import csv as arrow_csv

from bilevax.core.errors import DataError
from bilevax.tables.table import check_names

if TYPE_CHECKING:
    from _csv import Reader

# Where two split the file alike, the one that is rarer inside a cell.
_DELIMITERS = "\t;|,"
# Lines by which the delimiter is recognised.
_SAMPLED = 50
_LINE_END = re.compile(rb"\r\n|\n|\r")
# An unclosed quote would otherwise swallow the file.
_LONGEST_CELL = 1 << 24
# The longer first: the mark of UTF-32 begins with that of UTF-16.
_BOMS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class CsvText(NamedTuple):
    """A delimited file, read but not yet interpreted."""

    name: str
    names: list[str]
    columns: list[pa.ChunkedArray]
    lines: "Lines"


class Lines(NamedTuple):
    """Where the rows of a delimited file are."""

    name: str
    data: bytes
    delimiter: str

    def of(self, row: int) -> str:
        """``file.csv:17``: the line on which a row (counted from 0) begins."""
        # The file is walked again, once, for the message of a fault: numbers of lines are not stored.
        with _long_cells():
            line, _ = next(itertools.islice(_records(self.data, self.delimiter), row + 1, None))
        return f"{self.name}:{line}"


def read_csv_text(name: str, data: bytes) -> CsvText:
    """Read a delimited file whose fields are separated by commas, semicolons, tabs or bars.

    Raises:
        DataError: the file has a fault; the message gives file and line.
    """
    data = _checked_encoding(name, data)
    with _long_cells():
        delimiter = _delimiter(data)
        try:
            header, below, rows = _checked_structure(name, data, delimiter)
        except csv.Error as e:
            raise DataError(_quote_fault(name, data, delimiter, e)) from None
    names = [cell.strip() for cell in header]
    check_names(f"{name}:1", names)
    columns = _columns(name, data[below:], delimiter, names)
    if len(columns[0]) != rows:
        raise DataError(
            f"{name}: {rows} rows by one way of reading and {len(columns[0])} by another; is a quote amiss?"
        )
    return CsvText(name, names, columns, Lines(name, data, delimiter))


def _checked_encoding(name: str, data: bytes) -> bytes:
    """The bytes without a byte order mark, known to be UTF-8 without NUL."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            raise DataError(f"{name}: the file is {encoding}; save it as UTF-8")
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        raise DataError(f"{name}: the file is empty")
    nul = data.find(b"\0")
    if nul >= 0:
        # Every second byte of English in UTF-16 is NUL.
        if data[:4096].count(b"\0") > len(data[:4096]) // 4:
            raise DataError(f"{name}: the file looks like UTF-16 or like no text at all; save it as UTF-8")
        raise DataError(f"{name}:{_line_at(data, nul)}: a NUL byte; the file is damaged, or is no text")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise DataError(
            f"{name}:{_line_at(data, e.start)}: byte 0x{data[e.start]:02x} is not UTF-8; "
            "the file looks like latin-1 (Windows-1252); save it as UTF-8"
        ) from None
    return data


def _line_at(data: bytes, position: int) -> int:
    return 1 + sum(1 for _ in _LINE_END.finditer(data, 0, position))


def _delimiter(data: bytes) -> str:
    """The delimiter that splits the first records evenly, into the most fields."""
    ends = [match.end() for match in itertools.islice(_LINE_END.finditer(data), _SAMPLED)]
    sample = data if len(ends) < _SAMPLED else data[: ends[-1]]
    best, score = ",", (False, 1)
    for delimiter in _DELIMITERS:
        try:
            widths = [len(row) for row in _rows(sample, delimiter, strict=False) if row]
        except csv.Error:
            continue
        # Even first, then many: a sentence with commas splits into many fields, but unevenly.
        even = sum(width == widths[0] for width in widths) > len(widths) // 2
        if widths and widths[0] > 1 and (even, widths[0]) > score:
            best, score = delimiter, (even, widths[0])
    return best


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    # The limit is the csv module's own, for all of its readers: it is given back.
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _rows(data: bytes, delimiter: str, *, strict: bool = True) -> "Reader":
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", newline="")
    return csv.reader(text, delimiter=delimiter, strict=strict)


def _records(data: bytes, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank lines, the header first, each with the line on which it begins."""
    reader = _rows(data, delimiter)
    line = 1
    for row in reader:
        if row:
            yield line, row
        line = reader.line_num + 1


def _checked_structure(name: str, data: bytes, delimiter: str) -> tuple[list[str], int, int]:
    """The header, where in the bytes the rows below it begin, and how many they are; their fields have been counted.

    The loop is that of :func:`_records` written out: it runs once for every row of the file.
    """
    reader = _rows(data, delimiter)
    header = next(row for row in reader if row)
    lines, line, rows = reader.line_num, reader.line_num + 1, 0
    width = len(header)
    for row in reader:
        if len(row) != width:
            # A blank line has no field, and is no row.
            if row:
                plural = "" if len(row) == 1 else "s"
                raise DataError(f"{name}:{line}: {len(row)} field{plural}, expected {width}")
        else:
            rows += 1
        line = reader.line_num + 1
    if not rows:
        raise DataError(f"{name}: a header and no rows")
    last = next(itertools.islice(_LINE_END.finditer(data), lines - 1, None))
    return header, last.end(), rows


def _quote_fault(name: str, data: bytes, delimiter: str, error: csv.Error) -> str:
    line = 1
    reader = _rows(data, delimiter)
    try:
        for _ in reader:
            line = reader.line_num + 1
    except csv.Error:
        pass
    if "unexpected end" in str(error) or "field larger" in str(error):
        return f"{name}:{line}: a quote is opened here and never closed"
    return f'{name}:{line}: text follows a closing quote; a quote inside a quoted cell is written twice, ""'


def _columns(name: str, body: bytes, delimiter: str, names: list[str]) -> list[pa.ChunkedArray]:
    # pyarrow is faster where no cell may hold a line end, and without a quote none can.
    try:
        table = arrow_csv.read_csv(
            io.BytesIO(body),
            read_options=arrow_csv.ReadOptions(column_names=names, block_size=1 << 25),
            parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=b'"' in body),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as e:
        raise DataError(f"{name}: {e}") from None
    return list(table.columns)
