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
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
from pyarrow import csv as arrow_csv

from bilevax.core.errors import DataError
from bilevax.core.text import counted
from bilevax.tables.csv_opening import LINE_END, comments_end, without_comments, without_sep
from bilevax.tables.table import check_names

if TYPE_CHECKING:
    from _csv import Reader

# Where two split the file alike, the one that is rarer inside a cell.
_DELIMITERS = "\t;|,"
# Lines by which the delimiter is recognised.
_SAMPLED = 50
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
    """A delimited file, read but not yet interpreted; of its columns those at the wanted positions."""

    name: str
    names: list[str]
    wanted: list[int]
    columns: list[pa.ChunkedArray]
    lines: "Lines"
    notes: list[str]


class _Structure(NamedTuple):
    """The names in the header, where in the bytes the rows below begin, how many they are, and of how many fields."""

    names: list[str]
    below: int
    rows: int
    width: int


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


def read_csv_text(name: str, data: bytes, choose: Callable[[list[str]], list[int]]) -> CsvText:
    """Read a delimited file whose fields are separated by commas, semicolons, tabs or bars.

    Args:
        name: of the file, for messages.
        data: its bytes.
        choose: given the names in the header, the positions of the columns to read; nothing is said of what stands in
            others.

    Raises:
        DataError: the file has a fault; the message gives file and line.
    """
    data = _checked_encoding(name, data)
    with _long_cells():
        data, said = without_sep(data)
        delimiter = said or _delimiter(data[comments_end(data) :])
        try:
            data, comments = without_comments(name, data, lambda line: len(next(_rows(line, delimiter, strict=False))))
            names, below, rows, width = _checked_structure(name, data, delimiter)
        except csv.Error as e:
            raise DataError(_quote_fault(name, data, delimiter, e)) from None
    notes = [f"{counted(comments, 'line')} of comment above the header, with '#', left out"] if comments else []
    if width > len(names):
        notes.append(f"what follows the delimiter after '{names[-1]}' is left out: it is empty in every row")
    wanted = choose(names)
    check_names(f"{name}:1", names, wanted)
    _check_utf8(name, data, delimiter, wanted if len(wanted) < len(names) else None)
    columns = _columns(name, data[below:], delimiter, width, wanted)
    if columns and len(columns[0]) != rows:
        raise DataError(
            f"{name}: {rows} rows by one way of reading and {len(columns[0])} by another; is a quote amiss?"
        )
    return CsvText(name, names, wanted, columns, Lines(name, data, delimiter), notes)


def _checked_encoding(name: str, data: bytes) -> bytes:
    """The bytes without a byte order mark, known to hold no NUL."""
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
    return data


def _check_utf8(name: str, data: bytes, delimiter: str, wanted: list[int] | None) -> None:
    """Refuse other bytes than UTF-8, in the header and the wanted columns; None: anywhere."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as e:
        line, byte = _line_at(data, e.start), data[e.start]
    else:
        return
    if wanted is not None:
        with _long_cells():
            found = _undecoded(data, delimiter, wanted)
        if found is None:
            return
        line, byte = found
    raise DataError(
        f"{name}:{line}: byte 0x{byte:02x} is not UTF-8; the file looks like latin-1 (Windows-1252); save it as UTF-8"
    )


def _undecoded(data: bytes, delimiter: str, wanted: list[int]) -> tuple[int, int] | None:
    """The first record whose wanted cells have a byte that is not UTF-8, and the byte."""
    for k, (line, row) in enumerate(_records(data, delimiter)):
        cells = "".join(row if k == 0 else [row[j] for j in wanted])
        # Python decodes such a byte as a lone surrogate.
        if escaped := re.search("[\udc80-\udcff]", cells):
            return line, ord(escaped[0]) - 0xDC00
    return None


def _line_at(data: bytes, position: int) -> int:
    return 1 + sum(1 for _ in LINE_END.finditer(data, 0, position))


def _delimiter(data: bytes) -> str:
    """The delimiter that splits the first records evenly, into the most fields."""
    ends = [match.end() for match in itertools.islice(LINE_END.finditer(data), _SAMPLED)]
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
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="surrogateescape", newline="")
    return csv.reader(text, delimiter=delimiter, strict=strict)


def _records(data: bytes, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank lines, the header first, each with the line on which it begins."""
    reader = _rows(data, delimiter)
    line = 1
    for row in reader:
        if row:
            yield line, row
        line = reader.line_num + 1


def _checked_structure(name: str, data: bytes, delimiter: str) -> _Structure:
    """Count the fields of every record; what follows the last name and is empty everywhere is left out.

    The loop is that of :func:`_records` written out: it runs once for every row of the file.
    """
    reader = _rows(data, delimiter)
    header = [cell.strip() for cell in next((row for row in reader if row), [])]
    lines, line, rows = reader.line_num, reader.line_num + 1, 0
    width = len(header)
    named = max((j + 1 for j, cell in enumerate(header) if cell), default=width)
    for row in reader:
        if rows == 0 and len(row) == width + 1 and named == width and not row[-1].strip():
            # A delimiter ends the rows, and not the header.
            width += 1
        if len(row) != width:
            # A blank line has no field, and is no row.
            if row:
                raise DataError(f"{name}:{line}: {_ragged(row, width)}")
        else:
            rows += 1
            if named < width and any(cell.strip() for cell in row[named:]):
                if len(header) < width:
                    raise DataError(f"{name}:{line}: {_ragged(row, len(header))}")
                named = width
        line = reader.line_num + 1
    if not rows:
        raise DataError(f"{name}: a header and no rows")
    last = next(itertools.islice(LINE_END.finditer(data), lines - 1, None))
    return _Structure(header[:named], last.end(), rows, width)


def _ragged(row: list[str], width: int) -> str:
    fault = f"{len(row)} field{'' if len(row) == 1 else 's'}, expected {width}"
    if row[0].lstrip().startswith("#"):
        return f"{fault}: is it a comment? Those above the header alone are left out"
    if len(row) == width + 1 and not row[-1].strip():
        return f"{fault}: the line ends with a delimiter, others do not"
    return fault


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


def _columns(name: str, body: bytes, delimiter: str, width: int, wanted: Sequence[int]) -> list[pa.ChunkedArray]:
    if not wanted:
        return []
    # By position: names of columns that are not read may repeat.
    positions, chosen = [str(j) for j in range(width)], [str(j) for j in wanted]
    # pyarrow is faster where no cell may hold a line end, and without a quote none can.
    try:
        table = arrow_csv.read_csv(
            io.BytesIO(body),
            read_options=arrow_csv.ReadOptions(column_names=positions, block_size=1 << 25),
            parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=b'"' in body),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(chosen, pa.string()), include_columns=chosen, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as e:
        raise DataError(f"{name}: {e}") from None
    return list(table.columns)
