"""Dates as people write them, in a column that is said to hold dates: 31.12.2020, 12/31/2020, 20201231.

One way of reading has to fit every cell; where two do and differ, the cell is refused.
"""

import shlex

import pyarrow as pa
import pyarrow.compute as pc

from bilevax.tables.csv_numbers import UnclearError, all_match, first_row
from bilevax.tables.table import Order

_TIME = r"(?:[ T](\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?))?"
# What a cell is like, and the same with year, month and day in their places, two digits each at least.
_WAYS = (
    (rf"^(\d{{4}})(\d\d)(\d\d){_TIME}$", r"\1-0\2-0\3 \4"),
    (rf"^(\d{{4}})[./-](\d{{1,2}})[./-](\d{{1,2}}){_TIME}$", r"\1-0\2-0\3 \4"),
    (rf"^(\d{{1,2}})[./-](\d{{1,2}})[./-](\d{{4}}){_TIME}$", r"\3-0\2-0\1 \4"),
    (rf"^(\d{{1,2}})[./-](\d{{1,2}})[./-](\d{{4}}){_TIME}$", r"\3-0\1-0\2 \4"),
)
_ORDERS: dict[tuple[str, str], Order] = {_WAYS[2]: "day-first", _WAYS[3]: "month-first"}


def written_dates(name: str, values: pa.ChunkedArray, order: Order = "") -> tuple[pa.ChunkedArray, str, Order]:
    """Timestamps in microseconds, a note on how they are read, and what comes first in them, where that matters.

    Args:
        name: of the column.
        values: its cells.
        order: what comes first, where the cells leave it open.

    Raises:
        UnclearError: a cell is no date, or may be two.
    """
    known = [way for way in _WAYS if all_match(values, way[0])]
    if not known:
        some = "|".join(f"(?:{pattern})" for pattern, _ in _WAYS)
        row = first_row(values, some, matching=False)
        if row < 0:
            raise UnclearError(_first(values), "is a date, but no one way of reading them fits the whole column")
        raise UnclearError(row, "is no date that is read; write it as 2024-12-31, or leave it empty")
    read = {way: stamps for way in known if (stamps := _stamps(values, *way)) is not None}
    if not read:
        raise UnclearError(_first(values), "is read in no way in which every cell is a date of the calendar")
    way, *others = read
    row, first = _first(values), _ORDERS.get(way, "")
    note = f"column '{name}' is read as dates: '{values[row].as_py()}'"
    for other in others:
        unlike = int(pc.index(pc.equal(read[way], read[other]), False).as_py())
        if unlike < 0:
            first = ""
        elif not order:
            given = " or ".join(f"--types {shlex.quote(f'{name}={said}')}" for said in _ORDERS.values())
            raise UnclearError(unlike, f"may have the day first or the month; say which ({given}), or write 2024-12-31")
        else:
            way = next(way for way, said in _ORDERS.items() if said == order)
            first, note = order, f"{note}, with the {order.removesuffix('-first')} first,"
    return read[way], f"{note} is {read[way][row].as_py():%Y-%m-%d}", first


def _stamps(values: pa.ChunkedArray, pattern: str, written: str) -> pa.ChunkedArray | None:
    """None if a cell is no date of the calendar."""
    plain = pc.replace_substring_regex(values, pattern, written)
    plain = pc.replace_substring_regex(plain, r"-0(\d\d)", r"-\1")
    try:
        return pc.cast(pc.utf8_trim_whitespace(plain), pa.timestamp("us"))
    except pa.ArrowInvalid:
        return None


def _first(values: pa.ChunkedArray) -> int:
    """The first row that is not missing."""
    return int(pc.index(pc.is_valid(values), True).as_py())
