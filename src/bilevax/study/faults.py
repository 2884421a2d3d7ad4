"""What is wrong with columns, labels and rows, whatever the target is."""

import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Iterable

import numpy as np

from bilevax.core.text import counted, listed
from bilevax.study.levels import BITS, Levels, bits, option, rows_in, shown, such_as, words_of

_MANY_LEVELS = 5000
# What has more values may be a quantity of a group, such as a county's income, beside the group's name.
_RECODED = 50
_FIRST_MARKS = (-1.0, *(-float(digit * n) for digit in "978" for n in range(1, 7)))
_LAST_MARKS = tuple(float(digit * n) for digit in "978" for n in range(2, 8))
# A mark occurs more than twice, and stands apart from the quantity: in standard deviations, from its middle and its
# nearest value; and in steps between the values that are near to it.
_OFTEN, _FAR, _APART, _STEPS = 3, 3.5, 1.3, 5.0
# A zero in more rows is a value: of those who have none.
_ZEROS = 0.05
_TOGETHER = 0.6
_SETS = 4
# Rows that are compared for indicators, and columns that are named.
_INDICATED, _NAMED = 20_000, 8


def constant(column: Levels) -> str:
    """A sentence where a column has one value, none, or one in all rows but a few."""
    n, drop = len(column.codes), option("--drop", column.name)
    if not column.known:
        return f"column '{column.name}' is empty in every row: leave it out ({drop})"
    other = column.known - int(column.counts.max())
    if other == 0 and column.known == n:
        return f"column '{column.name}' has the value {such_as(column, 1)} in every row: leave it out ({drop})"
    # One value beside empty cells tells two kinds of rows apart, if each has some.
    apart = other + n - column.known
    if 0 < apart <= min(5, n // 200):
        return f"column '{column.name}' is the same in all rows but {apart}: nothing can be learned from it ({drop})"
    return ""


def mark(column: Levels) -> str:
    """A sentence where a number stands for what is not known, such as -999 in a column of ages."""
    if column.kind not in ("integer", "number") or len(column.levels) < 10:
        return ""
    least, most = column.levels[0], column.levels[-1]
    negative = least in _FIRST_MARKS and column.levels[1] >= 0 and column.whole
    for value, at in ((least, 0), (most, -1)):
        known = value in (_FIRST_MARKS if at == 0 else _LAST_MARKS)
        zero = value == 0 and at == 0 and column.counts[0] <= _ZEROS * column.known
        if not (known or zero) or column.counts[at] < _OFTEN:
            continue
        nearest, far = _apart(column, at)
        if far or (at == 0 and negative):
            side = "at least" if at == 0 else "at most"
            return (
                f"column '{column.name}' has {value:.0f} in {rows_in(int(column.counts[at]), len(column.codes))}, and "
                f"otherwise {side} {nearest:g}: if it stands for what is not known, say so "
                f"({option('--missing', column.name, f'={value:.0f}')})"
            )
    return ""


def _apart(column: Levels, at: int) -> tuple[float, bool]:
    """The value nearest to the first or last one, and whether that is far from all others."""
    keep = np.arange(len(column.levels)) != at % len(column.levels)
    others, counts = column.levels[keep], column.counts[keep]
    nearest = float(others[at])
    # Where most others are 0, the quantity is in the rest.
    counts = np.where(others == 0, 0, counts)
    if not counts.sum():
        return nearest, False
    below = np.cumsum(counts) / counts.sum()
    quarter, middle, upper = (float(others[np.searchsorted(below, p)]) for p in (0.25, 0.5, 0.75))
    # of a normal quantity the quartiles are 1.349 standard deviations apart
    spread = (upper - quarter) / 1.349
    value = float(column.levels[at])
    # the usual distance of two values at that end
    step = float(np.median(np.diff(others[: _OFTEN * 3] if at == 0 else others[-_OFTEN * 3 :])))
    if abs(value - nearest) < _STEPS * step:
        return nearest, False
    return nearest, bool(abs(value - middle) > _FAR * spread > 0 and abs(value - nearest) > _APART * spread)


def alike(column: Levels, *, target: bool) -> str:
    """A sentence where levels of a text column differ by case, blanks or punctuation alone."""
    found = sorted(_spellings(column), key=lambda of: -column.counts[of].sum())
    if not found:
        return ""
    what = "classes" if target else "values"
    rarer = int(sum(column.counts[of].sum() - column.counts[of].max() for of in found))
    sets = [listed(f"{column.levels[i]!r} ({counted(int(column.counts[i]), 'row')})" for i in of[:4]) for of in found]
    more = f"; and so do {counted(len(found) - _SETS, 'other set')}" if len(found) > _SETS else ""
    return (
        f"{what} {'; '.join(sets[:_SETS])} of '{column.name}' differ only by case, blanks or punctuation{more}: if "
        f"they mean the same, write them alike ({counted(rarer, 'row')} to change)"
    )


def _spellings(column: Levels) -> list[list[int]]:
    """Sets of two or more levels that are one word, the most frequent spelling first."""
    if column.kind != "text" or not 2 <= len(column.levels) <= _MANY_LEVELS:
        return []
    same: dict[str, list[int]] = {}
    for i in np.argsort(-column.counts, kind="stable").tolist():
        same.setdefault(_bare(column.levels[i]), []).append(i)
    return [of for of in same.values() if len(of) > 1]


def spelled_alike(column: Levels) -> Levels:
    """The column with its most frequent spellings, unless all are spellings of one word."""
    to = np.arange(len(column.levels) + 1)
    for first, *others in _spellings(column):
        to[others] = first
    kept, to[:-1] = np.unique(to[:-1], return_inverse=True)
    if len(kept) < 2:
        return column
    to[-1] = -1
    codes = to[column.codes].astype(np.int32)
    counts = np.bincount(codes[codes >= 0], minlength=len(kept))
    return dataclasses.replace(column, codes=codes, levels=column.levels[kept], counts=counts)


# At the end of a word, around one, or between two.
_PUNCTUATION = re.compile(r"""(?<=\w)[.,;:!?]+$|["'`´’,;:()_]|(?<=\w)[-./ ]+(?=\w)""")


def _bare(level: str) -> str:
    text = " ".join(unicodedata.normalize("NFKC", level).casefold().split())
    # Beside digits, points and hyphens mean something; a mark alone is a value.
    return text if re.search(r"\d", text) else _PUNCTUATION.sub("", text) or text


# A number, with a unit before or after it; one letter alone may be that of a house or a class.
_QUANTITY = re.compile(r"[$€£]?\s*[+-]?\d+([.,]\d+)*\s*([gmlhst%$€£]|[a-zA-Zµ°%/²³]{2,7}|°C|°F)?")
_LOOKED_AT, _UNITS = 1000, 4


def quantity(column: Levels) -> str:
    """A sentence where texts are numbers, or numbers with their units."""
    some = column.levels[:_LOOKED_AT].tolist() if column.kind == "text" else []
    if len(some) < 20 or sum(_QUANTITY.fullmatch(text) is not None for text in some) < 0.95 * len(some):
        return ""
    by_unit = {re.sub(r"[\d.,+-]+", "", text).strip(): text for text in reversed(some)}
    words = words_of(column.name)
    if len(by_unit) > _UNITS or words.identifier or words.code or any(re.match(r"0\d", text) for text in some):
        return ""
    such = listed(map(shown, by_unit.values()))
    if list(by_unit) == [""]:
        return f"column '{column.name}' is text though all cells are numbers, such as {such}: make it one of numbers"
    return (
        f"column '{column.name}' has numbers with units, such as {such}, and is read as text, one value a category: "
        "write the numbers alone, in one unit"
    )


class SameColumns:
    """Columns that say the same, found by a fingerprint of each."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, int, bytes], str] = {}

    def add(self, column: Levels) -> str:
        """A sentence where a column before this one has the same values, or others one to one; empty otherwise."""
        drop = option("--drop", column.name)
        for how, print_ in _fingerprints(column):
            before = self._first.setdefault((how, len(column.levels), print_), column.name)
            if before != column.name:
                return f"column '{column.name}' {how} '{before}': one of them is enough ({drop})"
        return ""


def _fingerprints(column: Levels) -> Iterable[tuple[str, bytes]]:
    codes, known = column.codes, column.known
    if not known or bits(column.counts) < BITS:
        return
    yield f"has the same {'texts' if column.kind == 'text' else 'values'} as column", _hash(codes, column.levels)
    if column.ordered and len(column.levels) > 2:
        falling = np.where(codes < 0, -1, len(column.levels) - 1 - codes)
        # Rising and falling functions have one fingerprint: that of the direction in which the first row is low.
        first = codes[codes >= 0][0]
        yield "is a rising or falling function of column", _hash(falling if 2 * first >= len(column.levels) else codes)
    if len(column.levels) <= min(_RECODED, 0.5 * known):
        yield "has, one to one, the values of column", _hash(_by_appearance(column))


def _by_appearance(column: Levels) -> np.ndarray:
    """The codes by which level comes first."""
    if not column.ordered:
        return column.codes
    rows = np.flatnonzero(column.codes >= 0)[::-1]
    first = np.empty(len(column.levels), np.int64)
    first[column.codes[rows]] = rows  # the last that is written is the first row
    rank = np.empty(len(first) + 1, np.int32)
    # levels numbered as they come, whatever they are called: a recoding has the same numbers
    rank[np.argsort(first)], rank[-1] = np.arange(len(first)), -1
    ranks: np.ndarray = rank[column.codes]
    return ranks


def _hash(codes: np.ndarray, levels: np.ndarray | None = None) -> bytes:
    found = hashlib.blake2b(codes.astype(np.int32).tobytes(), digest_size=16)
    if levels is not None:
        found.update(levels.tobytes() if levels.dtype != object else "\0".join(levels.tolist()).encode())
    return found.digest()


class Indicators:
    """Columns of two values that tell one level of another column from the rest, found by fingerprints of a sample."""

    def __init__(self, rows: int) -> None:
        self._rows = np.arange(rows)
        if rows > _INDICATED:
            self._rows = np.sort(np.random.default_rng(0).choice(rows, _INDICATED, replace=False))
        self._of_level: dict[bytes, str] = {}
        self._flags: list[tuple[str, bytes, bytes]] = []

    def add(self, column: Levels) -> None:
        """One more column."""
        number, codes = len(column.levels), column.codes[self._rows]
        if number == 2 and column.known == len(column.codes) and bits(column.counts) >= BITS:
            self._flags.append((column.name, _hash(codes == 0), _hash(codes == 1)))
        elif 2 < number <= _RECODED:
            for level in range(number):
                self._of_level.setdefault(_hash(codes == level), column.name)

    def found(self) -> Iterable[tuple[str, str]]:
        """For each column whose levels are told by others its name, and a sentence."""
        told: dict[str, list[str]] = {}
        for name, low, high in self._flags:
            if of := self._of_level.get(high) or self._of_level.get(low):
                told.setdefault(of, []).append(name)
        for of, names in told.items():
            said = listed(f"'{name}'" for name in names[:_NAMED])
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            which, one = ("columns", "each tells one of its values") if len(names) > 1 else ("column", "")
            yield (
                of,
                f"{which} {said}{more} {'follow' if one else 'follows'} from column '{of}' "
                f"({one or 'it tells one of its values'}): leave {'them' if one else 'it'} out "
                f"({' '.join(option('--drop', name) for name in names[:_NAMED])})",
            )


class SameRows:
    """Rows that agree in every column, found by a hash of 64 bits a row."""

    def __init__(self, rows: int) -> None:
        self._hashes = np.zeros(rows, np.uint64)
        self._agree: list[float] = []
        self._apart: list[Levels] = []

    def add(self, column: Levels) -> None:
        """One more column in which rows agree or not."""
        self._hashes = _mixed(self._hashes * np.uint64(0x9E3779B97F4A7C15) + (column.codes + 2).astype(np.uint64))
        counts = np.append(column.counts, len(column.codes) - column.known).astype(float)
        # pairs of rows that agree in this column
        self._agree.append(float(np.sum(counts * (counts - 1)) / 2))

    def leave_out(self, column: Levels) -> None:
        """A column that does not make a row another one, as an identifier."""
        self._apart.append(column)

    def found(self, target: Levels | None) -> str:
        """A sentence where more rows are copies than columns as coarse as these would have."""
        n = len(self._hashes)
        different, which = np.unique(self._hashes, return_inverse=True)
        copies = n - len(different)
        if len(self._agree) < 2 or copies < max(2, 0.001 * n) or copies < 3 * self._by_chance():
            return ""
        repeated = f"{rows_in(copies, n)} {'is a copy' if copies == 1 else 'are copies'} of an earlier one"
        advice = (
            "; if they are one case written twice, leave them out: on both sides of a split they make its test too kind"
        )
        but = [column.name for column in self._apart if _different(which, column)]
        if target is not None and (other := _different(which, target)):
            return (
                f"{repeated} in every column{_but([*but, target.name])}, and {other:,} of them "
                f"{'has' if other == 1 else 'have'} another '{target.name}' than before: no model is right in all of "
                "these; see which are mistakes"
            )
        if target is None or but:
            return f"{repeated} in every column{_but(but)}{advice}"
        return f"{repeated}, with the same '{target.name}'{advice}"

    def _by_chance(self) -> float:
        """Of the pairs of rows that agree in the finest column, those that would agree in all others, too.

        Columns that go together agree more often than independent ones: their chance is taken to a power below 1.
        """
        finest, *others = sorted(self._agree)
        n = len(self._hashes)
        # the pairs of the finest column, times the shares of pairs that agree in others, which are not independent
        return float(finest * np.prod(np.array(others) / (n * (n - 1) / 2)) ** _TOGETHER)


def _different(which: np.ndarray, column: Levels) -> int:
    """Rows that have another value in a column than those before them that are otherwise the same."""
    known = column.codes >= 0
    pairs = which[known].astype(np.int64) * (len(column.levels) + 1) + column.codes[known]
    # copies that have more than one value here
    return len(np.unique(pairs)) - len(np.unique(which[known]))


def _but(names: list[str]) -> str:
    shown = [f"'{name}'" for name in names]
    if len(shown) > _SETS + 1:
        shown[_SETS:] = [f"{len(names) - _SETS:,} more"]
    return f" but {listed(shown)}" if names else ""


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every bit depends on every other."""
    # the finaliser of splitmix64, after a step by its constant
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
