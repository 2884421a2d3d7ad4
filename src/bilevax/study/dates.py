"""Dates that are read as something else: as numbers, or as texts of a form that is not read."""

import re
from collections.abc import Callable
from functools import partial

import numpy as np

from bilevax.study.levels import Levels, option, such_as, words_of

_FIRST_YEAR, _LAST_YEAR = 1900, 2100
# Different values that have to be dates: by chance, one in thirty whole numbers of eight digits is.
_FEWEST = 8
_EXACT = "2024-12-31"
_YEARS = ("year", "yr", "jahr", "année", "anno", "año")

_MONTH = r"(jan|feb|mar|apr|may|mai|jun|jul|aug|sep|sept|oct|okt|nov|dec|dez)[a-z]*\.?"
_CLOCK = r"([T ,]+\d{1,2}:\d\d(:\d\d(\.\d+)?)?\s*([ap]\.?m\.?)?(\s*(z|utc|gmt|[+-]\d\d:?\d\d))?)?"
_DAY = r"((mon|tue|wed|thu|fri|sat|sun)[a-z]*,?\s+)?"
_YEAR = r"(1[6-9]|20)\d\d"
# What is read as a date once it is said to be one.
_READ = re.compile(rf"({_YEAR}-\d\d-\d\d|\d{{1,2}}[./-]\d{{1,2}}[./-]{_YEAR})([T ].*)?")
_TEXTS = re.compile(
    rf"{_DAY}("
    rf"\d{{1,2}}[./-]\d{{1,2}}[./-]{_YEAR}|\d{{1,2}}/\d{{1,2}}/\d\d|\d\d[.-]\d\d[.-]\d\d|{_YEAR}[./-]\d{{1,2}}[./-]\d{{1,2}}|"
    rf"\d{{1,2}}[. -]*{_MONTH}[, -]*(\d{{4}}|\d\d)|{_MONTH}\s*\d{{1,2}}(st|nd|rd|th)?,?\s+\d{{4}}|"
    rf"{_MONTH}[ -]*\d{{4}}|\d{{1,2}}/{_YEAR}|{_YEAR}-(0\d|1[0-2])|{_YEAR}-?w\d\d(-?\d)?|{_YEAR}[ -]?q[1-4]|"
    rf"q[1-4][ -/]?{_YEAR}|\d{{8}}t?(\d{{4}}|\d{{6}})?z?){_CLOCK}",
    re.IGNORECASE,
)
_LOOKED_AT = 1000


def date(column: Levels) -> str:
    """A sentence where the cells are dates that are read as something else; empty otherwise."""
    if column.kind == "text":
        return _in_text(column)
    if not column.whole or len(column.levels) < 3:
        return ""
    return _in_digits(column, column.levels.astype(np.int64))


def years(column: Levels) -> bool:
    """Whether a column named as one holds years, two at least."""
    if not column.whole or len(column.levels) < 2 or column.name.casefold() not in _YEARS:
        return False
    return bool(column.levels[0] >= _FIRST_YEAR and column.levels[-1] <= _LAST_YEAR)


def _in_digits(column: Levels, values: np.ndarray) -> str:
    words = words_of(column.name)
    found = next((form for form, is_one in _FORMS.items() if is_one(values, words.time)), "")
    if not found:
        return ""
    if found.startswith(("days", "Unix")):
        why = "which as numbers are in order, but have neither months nor days of the week"
    else:
        why = "between which a number has gaps at the end of each month or year"
    advice = _advice(column, found in _READ_DIGITS)
    return f"column '{column.name}' holds {found}, such as {such_as(column, 1)}, {why}: {advice}"


def _advice(column: Levels, readable: bool) -> str:
    said = (
        f"have it read as dates ({option('--types', column.name, '=date')})" if readable else f"write them as {_EXACT}"
    )
    return f"{said}, or leave it out ({option('--drop', column.name)})"


def _dates(year: np.ndarray, month: np.ndarray, day: np.ndarray) -> bool:
    longest = np.array([0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])[month * ((month >= 1) & (month <= 12))]
    valid = (year >= _FIRST_YEAR) & (year <= _LAST_YEAR) & (day >= 1) & (day <= longest)
    # A mark such as 99999999 may stand among them.
    return bool(np.count_nonzero(valid) >= max(0.98 * len(year), 1) and np.count_nonzero(~valid) <= 2)


def _day_at_the_end(x: np.ndarray, named: bool) -> bool:
    # 20241231
    return (named or len(x) >= _FEWEST) and _dates(x // 10_000, x // 100 % 100, x % 100)


def _year_at_the_end(x: np.ndarray, named: bool) -> bool:
    if not named and len(x) < _FEWEST:
        return False
    # 12312024 or 31122024; a leading 0 is lost, so that there are seven digits at least
    first, second, year = x // 1_000_000, x // 10_000 % 100, x % 10_000
    return bool(x.min() > 1_000_000) and (_dates(year, second, first) or _dates(year, first, second))


def _month_at_the_end(x: np.ndarray, named: bool) -> bool:
    # 202412
    month, needed = x % 100, _FEWEST if named else 2 * _FEWEST
    return len(x) >= needed and _dates(x // 100, month, np.ones_like(x)) and (named or bool(month.max() == 12))


def _unix(x: np.ndarray, named: bool, unit: int = 1) -> bool:
    """Seconds from 1989 to 2033."""
    # from 1989 to 2033, and without a name that says so whole minutes alone
    if x.min() < 600_000_000 * unit or x.max() >= 2_000_000_000 * unit:
        return False
    return named or (len(x) >= _FEWEST and bool(np.all(x % (60 * unit) == 0)))


def _excel(x: np.ndarray, named: bool) -> bool:
    """Days from 1927 to 2064, and more than one of them."""
    # from 1927 to 2064, at least a week of them
    return named and bool(x.min() >= 10_000 and x.max() < 60_000 and x.max() - x.min() >= 7 and len(x) >= _FEWEST)


_READ_DIGITS = ("dates as numbers (year, month, day)",)
_FORMS: dict[str, Callable[[np.ndarray, bool], bool]] = {
    "dates as numbers (year, month, day)": _day_at_the_end,
    "dates as numbers (with the year at the end)": _year_at_the_end,
    "months as numbers (year, month)": _month_at_the_end,
    "Unix time in seconds": _unix,
    "Unix time in milliseconds": partial(_unix, unit=1000),
    "days by their numbers, as in Excel": _excel,
}


def _in_text(column: Levels) -> str:
    some = column.levels[:_LOOKED_AT].tolist()
    if len(some) < 3:
        return ""
    others = [text for text in some if not _TEXTS.fullmatch(text.strip())]
    # a few marks of the missing may stand among them
    if len(others) > 0.1 * len(some):
        return ""
    if all(text.isdigit() for text in some) and not _digits_are_dates(some):
        return ""
    but = f" (but not in {others[0]!r})" if others else ""
    readable = not others and all(_READ.fullmatch(text) for text in some)
    return (
        f"column '{column.name}' has dates such as {such_as(column, 2)}{but}, and is read as text, one value a "
        f"category: {_advice(column, readable)}"
    )


def _digits_are_dates(texts: list[str]) -> bool:
    """Texts of digits alone, as where some begin with a zero."""
    values = np.array([int(text[:8]) for text in texts])
    return len(texts) >= _FEWEST and (_day_at_the_end(values, False) or _year_at_the_end(values + 0, True))
