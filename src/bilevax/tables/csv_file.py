"""Delimited text: its faults found and named by line, then read by pyarrow, every cell as text.

The csv module walks the file once and counts the fields of every record; it is strict about quotes and knows the line
it is on. pyarrow, which is neither, then reads the columns.
"""

import contextlib
import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar

import pyarrow as pa
from pyarrow import csv as arrow_csv

from bilevax.core.errors import DataError
from bilevax.core.text import counted
from bilevax.tables.csv_content import SAMPLED, Content, checked_content
from bilevax.tables.csv_opening import LINE_END, comments_end, without_comments, without_sep
from bilevax.tables.table import check_names

if TYPE_CHECKING:
    from _csv import Reader

# Where two split the file alike, the one that is rarer inside a cell.
_DELIMITERS = "\t;|,"
# An unclosed quote would otherwise swallow the file.
_LONGEST_CELL = 1 << 24
# Bytes that are read at once.
_BLOCK, _LONGEST_BLOCK = 1 << 25, (1 << 31) - 1

_BEGINNING_BOM = re.compile(rb"\A([\r\n]*)\xef\xbb\xbf")

T = TypeVar("T")


class Structure(NamedTuple):
    """The names in the header, the lines down to it, how many rows are below, and of how many fields."""

    names: list[str]
    lines: int
    rows: int
    width: int


class Lines(NamedTuple):
    """Where the rows of a delimited file are."""

    name: str
    content: Content
    delimiter: str

    def of(self, row: int) -> str:
        """``file.csv:17``: the line on which a row (counted from 0) begins."""
        # The file is walked again, once, for the message of a fault: numbers of lines are not stored.
        with _long_cells():
            line, _ = next(itertools.islice(_records(self), row + 1, None))
        return f"{self.name}:{line}"


class LongRowError(DataError):
    """A row is longer than the bytes that are read at once."""


class CsvText(NamedTuple):
    """A delimited file that is known to be sound, and not yet interpreted.

    Attributes:
        name: of the file.
        structure: its header and rows.
        wanted: the positions of the columns to read.
        lines: where its rows are.
        notes: what its user should know.
        quoted: whether a quote is in it.
    """

    name: str
    structure: Structure
    wanted: list[int]
    lines: Lines
    notes: list[str]
    quoted: bool

    @property
    def names(self) -> list[str]:
        """In the header."""
        return self.structure.names

    def columns(self, positions: Sequence[int] | None = None) -> list[pa.ChunkedArray]:
        """The columns at some positions, by default the wanted ones, every cell as text."""
        chosen = self.wanted if positions is None else positions
        if not chosen:
            return []
        for block in (_BLOCK, _LONGEST_BLOCK):
            try:
                table = self._read(arrow_csv.read_csv, chosen, block)
            except pa.ArrowInvalid as e:
                # A row may be longer than a block; then all rows are one.
                if block == _LONGEST_BLOCK or "block" not in str(e):
                    raise DataError(f"{self.name}: {e}") from None
            else:
                break
        self._require_rows(table.num_rows)
        return list(table.columns)

    def batches(self, block: int) -> Iterator[list[pa.Array]]:
        """The wanted columns in pieces of rows, each of about so many bytes.

        Raises:
            LongRowError: a row is longer.
        """
        rows = 0
        if not self.wanted:
            return
        try:
            for batch in self._read(arrow_csv.open_csv, self.wanted, block):
                rows += batch.num_rows
                yield batch.columns
        except pa.ArrowInvalid as e:
            raise (LongRowError if "block" in str(e) else DataError)(f"{self.name}: {e}") from None
        self._require_rows(rows)

    def _read(self, read: Callable[..., T], positions: Sequence[int], block: int) -> T:
        # By position: names of columns that are not read may repeat.
        every, chosen = [str(j) for j in range(self.structure.width)], [str(j) for j in positions]
        return read(
            self.lines.content.after(self.structure.lines),
            read_options=arrow_csv.ReadOptions(
                column_names=every, block_size=block, use_threads=read is arrow_csv.read_csv
            ),
            # pyarrow is faster where no cell may hold a line end, and without a quote none can.
            parse_options=arrow_csv.ParseOptions(delimiter=self.lines.delimiter, newlines_in_values=self.quoted),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(chosen, pa.string()), include_columns=chosen, strings_can_be_null=False
            ),
        )

    def _require_rows(self, rows: int) -> None:
        if rows != self.structure.rows:
            raise DataError(
                f"{self.name}: {self.structure.rows} rows by one way of reading and {rows} by another; is a quote "
                "amiss?"
            )


def open_csv_text(name: str, start: Callable[[], BinaryIO], choose: Callable[[list[str]], list[int]]) -> CsvText:
    """Look through a delimited file whose fields are separated by commas, semicolons, tabs or bars.

    Args:
        name: of the file, for messages.
        start: opens it; it is read more than once.
        choose: given the names in the header, the positions of the columns to read; nothing is said of what stands in
            others.

    Raises:
        DataError: the file has a fault; the message gives file and line.
    """
    content, encoding = checked_content(name, start)
    with _long_cells():
        head, said = without_sep(content.head)
        delimiter = said or _delimiter(head[comments_end(head) :])
        lines = Lines(name, content, delimiter)
        try:
            head, comments = without_comments(name, head, lambda line: _fields(line, delimiter))
            # What made the line above may have left the mark where it was.
            lines = lines._replace(content=content._replace(head=_BEGINNING_BOM.sub(rb"\1", head)))
            found = _checked_structure(lines)
        except csv.Error as e:
            raise DataError(_quote_fault(lines, e)) from None
    notes = [f"{counted(comments, 'line')} of comment above the header, with '#', left out"] if comments else []
    if found.width > len(found.names):
        notes.append(f"what follows the delimiter after '{found.names[-1]}' is left out: it is empty in every row")
    wanted = choose(found.names)
    check_names(f"{name}:1", found.names, wanted)
    if encoding.other is not None:
        _refuse_other_bytes(lines, encoding.other, wanted if len(wanted) < len(found.names) else None)
    return CsvText(name, found, wanted, lines, notes, encoding.quoted)


def _refuse_other_bytes(lines: Lines, other: tuple[int, int], wanted: list[int] | None) -> None:
    """Refuse other bytes than UTF-8, in the header and the wanted columns; None: anywhere."""
    with _long_cells():
        found = _undecoded(lines, wanted)
    if found is not None:
        line, byte, column, cell = found
        where = "" if column is None else f" in column '{column}'"
        raise DataError(
            f"{lines.name}:{line}: byte 0x{byte:02x} is not UTF-8; the file looks like Windows-1252 (latin-1), in "
            f"which '{cell}' stands there{where}; save it as UTF-8"
        )
    if wanted is None:
        raise DataError(f"{lines.name}:{other[0]}: byte 0x{other[1]:02x} is not UTF-8; save the file as UTF-8")


def _undecoded(lines: Lines, wanted: list[int] | None) -> tuple[int, int, str | None, str] | None:
    """The first cell that is wanted, or in the header, with a byte that is not UTF-8.

    Its line, the byte, its column (None in the header), and the cell as Windows-1252.
    """
    names: list[str] = []
    for k, (line, row) in enumerate(_records(lines)):
        names = names or row
        for j in range(len(row)) if k == 0 or wanted is None else wanted:
            # Python decodes such a byte as a lone surrogate.
            if escaped := re.search("[\udc80-\udcff]", row[j]):
                cell = row[j].encode("utf-8", "surrogateescape").decode("cp1252", "replace")
                column = None if k == 0 or j >= len(names) else names[j]
                return line, ord(escaped[0]) - 0xDC00, column, cell if len(cell) <= 40 else f"{cell[:39]}…"
    return None


def _delimiter(data: bytes) -> str:
    """The delimiter that splits the first records evenly, into the most columns in which something stands."""
    ends = [match.end() for match in itertools.islice(LINE_END.finditer(data), SAMPLED)]
    sample = data if len(ends) < SAMPLED else data[: ends[-1]]
    best, score = ",", (False, False, 1)
    for delimiter in _DELIMITERS:
        try:
            rows = [row for row in _rows(io.BytesIO(sample), delimiter, strict=False) if row]
        except csv.Error:
            continue
        times, usual = max(((count, fields) for fields, count in Counter(map(len, rows)).items()), default=(0, 0))
        # Even first, then many: a sentence with commas splits into many fields, but unevenly.
        even = usual > 1 and 2 * times >= len(rows)
        # If the header does not split, it is no header.
        width = usual if even else len(rows[0]) if rows else 0
        filled = sum(any(row[j].strip() for row in rows if j < len(row)) for j in range(width))
        found = even, bool(rows) and len(rows[0]) > 1, filled
        if filled > 1 and found > score:
            best, score = delimiter, found
    return best


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    # The limit is the csv module's own, for all of its readers: it is given back.
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _fields(line: bytes, delimiter: str) -> int:
    return len(next(_rows(io.BytesIO(line), delimiter, strict=False)))


def _rows(file: BinaryIO, delimiter: str, *, strict: bool = True) -> "Reader":
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    return csv.reader(text, delimiter=delimiter, strict=strict)


def _records(file: Lines) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank lines, the header first, each with the line on which it begins."""
    reader = _rows(file.content.open(), file.delimiter)
    line = 1
    for row in reader:
        if row:
            yield line, row
        line = reader.line_num + 1


def _checked_structure(file: Lines) -> Structure:
    """Count the fields of every record; what follows the last name and is empty everywhere is left out.

    The loop is that of :func:`_records` written out: it runs once for every row of the file.
    """
    reader = _rows(file.content.open(), file.delimiter)
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
                title = f": is line {lines} a title? The header comes first" if width == 1 and not rows else ""
                raise DataError(f"{file.name}:{line}: {_ragged(row, width)}{title}")
        else:
            rows += 1
            if named < width and any(cell.strip() for cell in row[named:]):
                if len(header) < width:
                    raise DataError(f"{file.name}:{line}: {_ragged(row, len(header))}")
                named = width
        line = reader.line_num + 1
    if not rows:
        raise DataError(f"{file.name}: a header and no rows")
    return Structure(header[:named], lines, rows, width)


def _ragged(row: list[str], width: int) -> str:
    fault = f"{len(row)} field{'' if len(row) == 1 else 's'}, expected {width}"
    if row[0].lstrip().startswith("#"):
        return f"{fault}: is it a comment? Those above the header alone are left out"
    if len(row) == width + 1 and not row[-1].strip():
        return f"{fault}: the line ends with a delimiter, others do not"
    return fault


def _quote_fault(file: Lines, error: csv.Error) -> str:
    line = 1
    reader = _rows(file.content.open(), file.delimiter)
    try:
        for _ in reader:
            line = reader.line_num + 1
    except csv.Error:
        pass
    if "unexpected end" in str(error) or "field larger" in str(error):
        return f"{file.name}:{line}: a quote is opened here and never closed"
    return f'{file.name}:{line}: text follows a closing quote; a quote inside a quoted cell is written twice, ""'
