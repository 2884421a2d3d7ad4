"""What a column of text cells is: numbers, truth values, dates, or text after all.

One rule for a whole column, never one for a cell: a column is numbers when every cell that is not missing is a number,
in whatever share of the rows that is. A column that is nearly so, or in which one word stands between many numbers, is
refused by line, for a model that took it for names would be a bad one in silence.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bilevax.core.errors import DataError
from bilevax.tables.csv_dates import written_dates
from bilevax.tables.csv_numbers import UnclearError, all_match, any_matches, clock_times, first_row, written_numbers
from bilevax.tables.csv_plain import EXACT, NUMBER, ZERO, text_cells
from bilevax.tables.marks import without_marks
from bilevax.tables.reading import Reading
from bilevax.tables.table import Column, Order

NEARLY_ALL = 0.9
"""A column with at least this share of numbers is refused for its other cells."""

MOST = 0.5
"""A column with at least this share of numbers is text with a note."""

MANY = 20
"""With more different numbers than this, one or two words beside them are refused: they may be marks."""

# Patterns for pyarrow's RE2.
ISO_DATE = r"^\d{4}-\d\d-\d\d([T ]\d\d(:\d\d(:\d\d(\.\d+)?)?)?(Z|[+-]\d\d:?\d\d)?)?$"
WITH_ZONE = r":\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)$"
_HEXADECIMAL = r"^(?i:[+-]?0x[0-9a-f]+)$"


class Places(Protocol):
    """Where the rows of a table are."""

    def of(self, row: int) -> str:
        """Of a row, counted from 0, as a message begins."""
        ...


def column_of_cells(
    name: str, cells: pa.ChunkedArray, lines: Places, reading: Reading
) -> tuple[Column, str, dict[str, int]]:
    """A column of cells, a note on it (empty when there is nothing to say), and how often it has each mark.

    Raises:
        DataError: the cells are nearly a column of numbers, or of numbers written in a way that is not read.
    """
    values = _there(cells, reading.marks(name))
    kind = reading.type_of(name)
    if kind == "text":
        return _text(name, values), "", {}
    known, marks = without_marks(values)
    if known.null_count == len(known):
        return Column(name, "number", np.full(len(known), np.nan)), f"column '{name}' has no value in any row", marks
    if kind == "date":
        return *_dates(name, known, lines, reading.order_of(name)), marks
    asked = "" if kind is None else "the model knows as numbers" if name in reading.numbers else "is read as numbers"
    column, note = _interpreted(name, known, lines, asked)
    # Among texts the marks are values like others.
    return (_text(name, values) if column is None else column), note, marks


def _there(cells: pa.ChunkedArray, marks: Sequence[str]) -> pa.ChunkedArray:
    """The cells without blanks at their ends, null where they are empty or one of the marks."""
    trimmed = pc.utf8_trim_whitespace(cells)
    missing = pc.is_in(trimmed, value_set=pa.array(["", *marks], pa.string()))
    return pc.if_else(missing, pa.scalar(None, pa.string()), trimmed)


def known_cells(cells: pa.ChunkedArray, marks: Sequence[str]) -> tuple[pa.ChunkedArray, dict[str, int]]:
    """The cells of a column that is no text, null where nothing is known, and how often that is by which usual mark."""
    return without_marks(_there(cells, marks))


def _interpreted(name: str, values: pa.ChunkedArray, lines: Places, asked: str) -> tuple[Column | None, str]:
    """The column, None for text, and a note; ``asked``: why it has to be numbers, or empty."""
    plain = _as_floats(name, values, lines)
    if plain is not None:
        reason = "" if asked else _reason_for_text(values, plain)
        return (None, f"column '{name}' is read as text: {reason}") if reason else (_numbers(name, values, plain), "")
    other = as_boolean(name, values) or (None if asked else _as_date(name, values, lines))
    if other is not None:
        return other, ""
    written = _as_written(name, values, lines, asked)
    if written is not None:
        return written
    _refuse_nearly_numbers(name, values, lines, asked)
    return None, _note_on_text(name, values, lines)


def _note_on_text(name: str, values: pa.ChunkedArray, lines: Places) -> str:
    """What the user should know of a column that is text after all, and may be meant as something else."""
    if all_match(values, _HEXADECIMAL):
        return f"column '{name}' is read as text; numbers are read when written in decimals"
    note = words_among_numbers(name, values, lines)
    return note and f"{note}, or give the mark (--missing), if they are not known"


def words_among_numbers(name: str, values: pa.ChunkedArray, lines: Places) -> str:
    """The first half of a sentence where most cells of a text are numbers, and some are none; else empty."""
    known, pattern = len(values) - values.null_count, f"^{NUMBER}$"
    numbers = pc.sum(pc.match_substring_regex(values, pattern)).as_py() or 0
    if not MOST * known <= numbers < known:
        return ""
    row, cell = _first(values, pattern, matching=False)
    return (
        f"column '{name}' is read as text, one value a category, for {known - numbers:,} of {known:,} cells are no "
        f"numbers, such as {cell} ({lines.of(row)}); leave such cells empty"
    )


def _text(name: str, values: pa.ChunkedArray) -> Column:
    return Column(name, "text", text_cells(values))


def _first(values: pa.ChunkedArray, pattern: str, *, matching: bool) -> tuple[int, str]:
    """The first row whose cell matches (or does not), and the cell."""
    row = first_row(values, pattern, matching=matching)
    return row, _shown(values[row].as_py())


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= 40 else cell[:39] + "…")


def _as_floats(name: str, values: pa.ChunkedArray, lines: Places) -> np.ndarray | None:
    """The cells as float64, or None if one is no number."""
    try:
        numbers: np.ndarray = pc.cast(values, pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    _require_finite(name, values, numbers, lines)
    return numbers


def _require_finite(name: str, values: pa.ChunkedArray, numbers: np.ndarray, lines: Places) -> None:
    infinite = np.flatnonzero(np.isinf(numbers))
    if infinite.size:
        row = int(infinite[0])
        cell = values[row].as_py()
        fault = "is not finite" if "inf" in cell.lower() else "overflows: no number above 1.8e308 is held"
        raise DataError(f"{lines.of(row)}: {_shown(cell)} in column '{name}' {fault}")


def _reason_for_text(values: pa.ChunkedArray, numbers: np.ndarray) -> str:
    """Why cells that could be numbers are none; empty if they are."""
    # 007 as a number would lose its zeros.
    if any_matches(values, ZERO):
        return f"{_first(values, ZERO, matching=True)[1]} begins with a zero, as codes do"
    # A whole number that float64 would change: 9007199254740993 is none of its values.
    for row in np.flatnonzero(np.abs(numbers) >= EXACT):
        cell = values[int(row)].as_py()
        if cell.lstrip("+-").isdigit():
            return f"its integers are too long for a number, such as {_shown(cell)}"
    return ""


def _numbers(name: str, values: pa.ChunkedArray, numbers: np.ndarray) -> Column:
    finite = numbers[~np.isnan(numbers)]
    # 2.0 and 2e3 are whole numbers, but no column of counts is written so.
    whole = bool(np.all(finite == np.rint(finite))) and not any_matches(values, "[.eE]")
    return Column(name, "integer" if whole else "number", numbers)


def as_boolean(name: str, values: pa.ChunkedArray) -> Column | None:
    """Truth values, or None if the cells are none."""
    if not all_match(values, "^(?i:true|false)$"):
        return None
    truth = pc.equal(pc.utf8_lower(values), "true")
    return Column(name, "boolean", pc.cast(truth, pa.float64()).to_numpy())


def _as_date(name: str, values: pa.ChunkedArray, lines: Places) -> Column | None:
    if not all_match(values, ISO_DATE):
        return None
    found, zoned = iso_dates(values)
    if found is None:
        row, cell = _first_unreadable(values, _moments(zoned=zoned))
        fault = "has no time zone, other cells have one" if zoned else "is no date of the calendar"
        raise DataError(f"{lines.of(row)}: {cell} in column '{name}' {fault}")
    return Column(name, "date", found)


def iso_dates(values: pa.ChunkedArray) -> tuple[np.ndarray | None, bool]:
    """Days of dates as 2024-12-31, None if a cell is none, and whether they have a time zone."""
    # Among cells with a zone, one without it does not say which moment it is.
    zoned = any_matches(values, WITH_ZONE)
    try:
        return days(pc.cast(values, _moments(zoned=zoned))) if all_match(values, ISO_DATE) else None, zoned
    except pa.ArrowInvalid:
        return None, zoned


def _moments(*, zoned: bool) -> pa.DataType:
    return pa.timestamp("us", tz="UTC" if zoned else None)


def _dates(name: str, values: pa.ChunkedArray, lines: Places, order: Order) -> tuple[Column, str]:
    """A column that is said to hold dates, and a note."""
    column = _as_date(name, values, lines)
    if column is not None:
        return column, ""
    try:
        stamps, note, first = written_dates(name, values, order)
    except UnclearError as e:
        raise DataError(f"{lines.of(e.row)}: {_shown(values[e.row].as_py())} in column '{name}' {e}") from None
    return Column(name, "date", days(stamps), first), note


def _first_unreadable(values: pa.ChunkedArray, kind: pa.DataType) -> tuple[int, str]:
    """The first row whose cell cannot be read as the type, by halving."""
    # Rows before low can be read; those before high cannot.
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            pc.cast(values[low:middle], kind)
            low = middle
        except pa.ArrowInvalid:
            high = middle
    return low, _shown(values[low].as_py())


def days(stamps: pa.ChunkedArray) -> np.ndarray:
    """Days since 1970-01-01, with fractions, of microsecond timestamps; NaN where missing."""
    microseconds = pc.cast(pc.cast(stamps, pa.int64()), pa.float64(), safe=False)
    out: np.ndarray = microseconds.to_numpy() / 86_400e6
    return out


def _as_written(name: str, values: pa.ChunkedArray, lines: Places, asked: str) -> tuple[Column, str] | None:
    """Numbers and times that are written as people do."""
    try:
        found = written_numbers(name, values) or clock_times(name, values)
    except UnclearError as e:
        cell = _shown(values[e.row].as_py())
        # A column that a model knows as numbers cannot be text.
        advice = "" if asked else f", or have the column read as text (--text '{name}')"
        raise DataError(f"{lines.of(e.row)}: {cell} in column '{name}' {e}{advice}") from None
    if found is not None:
        _require_finite(name, values, found[0].values, lines)
    return found


def _refuse_nearly_numbers(name: str, values: pa.ChunkedArray, lines: Places, asked: str) -> None:
    """Refuse the cells that are no numbers, where the rest is a quantity; or where the column is known to be one."""
    pattern = f"^{NUMBER}$"
    matching = pc.fill_null(pc.match_substring_regex(values, pattern), True)
    words = pc.unique(values.filter(pc.invert(matching)))
    cells = len(values) - values.null_count
    numbers = pc.sum(pc.match_substring_regex(values, pattern)).as_py()
    row, cell = _first(values, pattern, matching=False)
    if asked:
        raise DataError(f"{lines.of(row)}: {cell} in column '{name}', which {asked}")
    if any_matches(values, ZERO):
        return
    # One or two words, in whatever share, may be marks.
    quantity = len(words) <= 2 and len(pc.unique(values.filter(matching))) > MANY
    if numbers >= NEARLY_ALL * cells or quantity:
        raise DataError(
            f"{lines.of(row)}: {cell} in column '{name}', which holds numbers in {numbers:,} of {cells:,} cells; "
            f"correct it, leave it empty or give it as a mark if it is not known (--missing '{name}={cell[1:-1]}'), or "
            f"have the column read as text (--text '{name}')"
        )
