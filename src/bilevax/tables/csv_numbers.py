"""Numbers and times as people write them: 1.234,5 and 1'234, 5 %, $5, (5) and 5-, 12:30.

A column is read only if one way of reading fits every cell, or all that fit agree; else the cause is named.
"""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bilevax.tables.table import Column

# Decimal mark and thousands separator, all spaces and apostrophes being written alike.
_WAYS = tuple((decimal, thousands) for decimal in ".," for thousands in ".,' " if decimal != thousands)
_ALIKE = ((r"[\x{a0}\x{202f}\x{2009}]", " "), (r"[\x{2019}`]", "'"), (r"^\x{2212}", "-"))
_SIGNS = "$€£¥"
_BRACKETS = r"^\(([^()]*)\)$"
_AFTER = r"^([^-]*\d)\s?-$"
_PERCENT = r"\s?%$"
_CLOCK = re.compile(r"(\d{1,4}):(\d\d)(?::(\d\d(?:\.\d+)?))?(?:\s?([AaPp])\.?[Mm]\.?)?")
_LIKE_CLOCK = r"^\d{1,4}:\d\d(:\d\d(\.\d+)?)?(\s?[AaPp]\.?[Mm]\.?)?$"

TWO_WAYS = "is a number with separators, which can be read in two ways"
NO_WAY = "is a number with separators, but no one way of reading them fits the whole column"
ADVICE = "write it with a decimal point and without separators"


class UnclearError(Exception):
    """A cell that cannot be read for sure: its row, what is amiss, and what would be right."""

    def __init__(self, row: int, fault: str) -> None:
        super().__init__(fault)
        self.row = row


def written_numbers(name: str, values: pa.ChunkedArray) -> tuple[Column, str] | None:
    """The column of numbers and a note on how they are read, or None if the cells are no numbers.

    Raises:
        UnclearError: they are, but may be other ones.
    """
    bare = values
    for pattern, plain in _ALIKE:
        bare = pc.replace_substring_regex(bare, pattern, plain)
    # In accounts (5) and 5- are -5; where every cell is in brackets, these are no signs.
    if not all_match(bare, _BRACKETS):
        bare = pc.replace_substring_regex(bare, _BRACKETS, r"-\1")
    bare = pc.replace_substring_regex(bare, _AFTER, r"-\1")
    percent, signs = any_matches(bare, _PERCENT), [sign for sign in _SIGNS if any_matches(bare, re.escape(sign))]
    if percent or signs:
        marked = bare
        bare = pc.replace_substring_regex(bare, _PERCENT, "")
        bare = pc.replace_substring_regex(bare, rf"^([+-]?)\s?[{_SIGNS}]\s?", r"\1")
        bare = pc.replace_substring_regex(bare, rf"\s?[{_SIGNS}]$", "")
    # 007- is a code.
    if any_matches(bare, r"^[+-]?0\d"):
        return None
    parsed, fitting = _parsed(bare, plain_first=not signs)
    if parsed is None:
        if fitting is not None:
            raise UnclearError(fitting, f"{NO_WAY}; {ADVICE}")
        return None
    if isinstance(parsed, int):
        raise UnclearError(parsed, f"{TWO_WAYS}; {ADVICE}")
    if percent or signs:
        _require_alike(marked, signs, percent=percent)
    numbers = parsed / 100.0 if percent else parsed
    changed = pc.fill_null(pc.invert(pc.match_substring_regex(values, r"^[+-]?\d*[.,]?\d*$")), False)
    row = int(pc.index(changed, True).as_py())
    # A decimal comma needs no word.
    if row < 0:
        return Column(name, "number", numbers), ""
    return Column(name, "number", numbers), (
        f"column '{name}' is read as numbers: '{values[row].as_py()}' is {numbers[row]:.15g}"
    )


def _require_alike(values: pa.ChunkedArray, signs: list[str], *, percent: bool) -> None:
    """Refuse a column of which some cells have the sign of a percentage or a currency, or another one."""
    if len(signs) + percent > 1:
        raise UnclearError(first_row(values, re.escape(signs[0]), matching=True), "has another sign than other cells")
    sign = "%" if percent else signs[0]
    row = first_row(values, re.escape(sign), matching=False)
    if row >= 0:
        raise UnclearError(row, f"is a number without the sign '{sign}' of others; write all with it, or all without")


def _parsed(values: pa.ChunkedArray, *, plain_first: bool) -> tuple[np.ndarray | int | None, int | None]:
    """The numbers; or a row that can be read in two ways; or None, and the first row that one way reads and not all."""
    if plain_first and all_match(values, _pattern(".", "")):
        return _cast(values, ".", ""), None
    found = [_cast(values, *way) for way in _WAYS if all_match(values, _pattern(*way))]
    if found:
        differing = [np.flatnonzero((other != found[0]) & ~np.isnan(other)) for other in found[1:]]
        rows = [int(rows[0]) for rows in differing if rows.size]
        return (min(rows) if rows else found[0]), None
    some = "|".join(f"(?:{_pattern(*way)})" for way in _WAYS)
    return None, first_row(values, _pattern(".", ""), matching=False) if all_match(values, some) else None


def _pattern(decimal: str, thousands: str) -> str:
    groups = rf"[1-9]\d{{0,2}}(?:{re.escape(thousands)}\d{{3}})+|" if thousands else ""
    point = re.escape(decimal)
    return rf"^[+-]?(?:(?:{groups}\d+)(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?$"


def _cast(values: pa.ChunkedArray, decimal: str, thousands: str) -> np.ndarray:
    plain = pc.replace_substring_regex(values, r"^\+", "")
    plain = pc.replace_substring(plain, thousands, "") if thousands else plain
    out: np.ndarray = pc.cast(pc.replace_substring(plain, decimal, "."), pa.float64()).to_numpy()
    return out


def clock_times(name: str, values: pa.ChunkedArray) -> tuple[Column, str] | None:
    """Times of day and durations with their seconds, in days; None if the cells are none.

    Raises:
        UnclearError: 12:30 may be minutes and seconds, or is no time.
    """
    if not all_match(values, _LIKE_CLOCK):
        return None
    cells = values.to_pylist()
    known = [(row, found) for row, cell in enumerate(cells) if cell and (found := _CLOCK.fullmatch(cell))]
    (_, first), days = known[0], np.full(len(cells), np.nan)
    for row, found in known:
        hours, minutes, seconds = int(found[1]), int(found[2]), float(found[3] or 0.0)
        if bool(found[3]) != bool(first[3]) or bool(found[4]) != bool(first[4]):
            raise UnclearError(row, f"is a time written otherwise than '{first[0]}'; write all alike, as 12:30:00")
        if minutes > 59 or seconds >= 60 or (found[4] and not 1 <= hours <= 12):
            raise UnclearError(row, "is no time of day; correct it, or leave it empty")
        if not found[3] and hours > 23:
            raise UnclearError(row, "may be hours and minutes or minutes and seconds; write it as 00:75:10")
        if found[4]:
            hours = hours % 12 + 12 * (found[4] in "Pp")
        days[row] = (3600.0 * hours + 60.0 * minutes + seconds) / 86400.0
    row, _ = known[0]
    return Column(name, "number", days), f"column '{name}' is read as times: '{first[0]}' is {days[row]:.6g} of a day"


def all_match(values: pa.ChunkedArray, pattern: str) -> bool:
    """True if every cell that is not missing matches."""
    return bool(pc.all(pc.match_substring_regex(values, pattern)).as_py())


def any_matches(values: pa.ChunkedArray, pattern: str) -> bool:
    """True if one of the cells does."""
    return bool(pc.any(pc.match_substring_regex(values, pattern)).as_py())


def first_row(values: pa.ChunkedArray, pattern: str, *, matching: bool) -> int:
    """The first row whose cell matches, or does not; -1 if there is none."""
    return int(pc.index(pc.match_substring_regex(values, pattern), matching).as_py())
