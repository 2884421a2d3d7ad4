"""A column by its different values, and what its name says: what the findings before a fit are made of."""

import dataclasses
import functools
import re
import shlex
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from bilevax.core.text import decimal, listed
from bilevax.tables.table import Column, Kind

BITS = 40
"""What two columns have to agree in, in bits, so that it is not by chance."""


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """A column by its different values.

    Attributes:
        name: of the column.
        kind: of its cells.
        codes: index into the levels for each row, int32 [n]; -1 where the cell is missing.
        levels: the different values: floats in their order; texts in the order in which they come first.
        counts: rows of each level, int64 [q].
    """

    name: str
    kind: Kind
    codes: np.ndarray
    levels: np.ndarray
    counts: np.ndarray

    @functools.cached_property
    def known(self) -> int:
        """Cells that are not missing."""
        return int(self.counts.sum())

    @property
    def ordered(self) -> bool:
        """True where the order of the levels means something: in all but texts."""
        return self.kind != "text"

    @functools.cached_property
    def whole(self) -> bool:
        """True for whole numbers that float64 holds."""
        numbers = self.kind in ("integer", "number") and len(self.levels) > 0
        return numbers and bool(np.all(self.levels == np.rint(self.levels))) and abs(self.levels).max() < 2.0**53

    @property
    def unique(self) -> bool:
        """True where (nearly) every row has a value of its own."""
        return len(self.levels) >= 20 and len(self.levels) >= 0.95 * self.known

    @property
    def steady(self) -> bool:
        """True where the values only rise, or only fall, from row to row, and there are many of them."""
        codes = self.codes[self.codes >= 0]
        # levels are in order, so that codes rise where values do
        steps = np.diff(codes) if self.ordered and len(self.levels) >= 10 else np.array([-1, 1])
        return bool(np.all(steps >= 0) or np.all(steps <= 0))


def levels_of(column: Column) -> Levels:
    """The different values of a column."""
    if column.kind == "text":
        coded = pa.array(column.values, pa.large_string()).dictionary_encode()
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        levels = coded.dictionary.to_numpy(zero_copy_only=False)
    else:
        known = ~np.isnan(column.values)
        codes = np.full(len(known), -1, np.int32)
        levels, codes[known] = np.unique(column.values[known], return_inverse=True)
    counts = np.bincount(codes[codes >= 0], minlength=len(levels))
    return Levels(column.name, column.kind, codes, levels, counts)


def bits(counts: np.ndarray) -> float:
    """What two columns with so many rows of each value have to agree in, in bits: of few, chance gives as much."""
    n, shares = int(counts.sum()), counts[counts > 0] / counts.sum()
    # n times the entropy of the column: two that agree in so many bits do not by chance
    return -n * float(np.sum(shares * np.log2(shares)))


class Words(NamedTuple):
    """What a name may say."""

    identifier: bool
    code: bool
    time: bool


_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_IDENTIFIER = {"id", "ids", "uuid", "guid", "key", "pk", "identifier", "rownum", "nr", "serial"}
_PEOPLE = "case|client|customer|household|participant|passenger|patient|person|student|subject|user"
_THINGS = "account|booking|device|employee|invoice|member|order|product|record|row|sample|session|ticket|transaction"
# A customer may be a number of a customer, but customers are counted.
_OWNED = re.compile(rf"({_PEOPLE})|({_PEOPLE}|{_THINGS})s?(id|no|nr|num|number)")
_CODE = {"zip", "zipcode", "postcode", "postal", "plz", "fips", "code", "codes", "naics", "sic", "icd", "iata", "npi"}
_TIME = {
    "date", "datum", "day", "time", "timestamp", "ts", "datetime", "dob", "birthday", "birthdate", "created", "updated",
    "epoch", "unix", "month", "year", "yr", "week", "quarter", "period", "yearmonth", "yyyymm", "yyyymmdd", "when",
}  # fmt: skip


@functools.lru_cache(maxsize=8)
def words_of(name: str) -> Words:
    """What a column's name says of it: ``customerID`` an identifier, ``zip_code`` a code, ``sale_date`` a time."""
    words = [word.lower() for word in _WORD.findall(name)]
    joined = "".join(words)
    identifier = bool(_IDENTIFIER & set(words)) or bool(_OWNED.fullmatch(joined))
    return Words(identifier, bool(_CODE & {*words, joined}), bool(_TIME & {*words, joined}))


def option(name: str, column: str, more: str = "") -> str:
    """An option of ``tune`` as one types it.

    >>> option("--drop", "age"), option("--types", "zip code", "=text")
    ('--drop age', "--types 'zip code=text'")
    """
    return f"{name} {shlex.quote(column + more)}"


def rows_in(part: int, n: int) -> str:
    """``12 of 1,000 rows``, ``all 1,000 rows``."""
    return f"all {n:,} rows" if part == n else f"{part:,} of {n:,} rows"


def cut_percent(share: float) -> str:
    """A share below 1 in per cent, never rounded up to 100.

    >>> cut_percent(0.99999), cut_percent(0.976)
    ('99.9\u202f%', '97.6\u202f%')
    """
    return f"{decimal(np.floor(1000 * share + 1e-9) / 10, 1)}\u202f%"


def such_as(column: Levels, number: int = 3) -> str:
    """The first levels, for a sentence."""
    return listed(map(shown, column.levels[:number]))


def shown(value: str | float) -> str:
    """A level as a sentence has it: a text in quotes, a whole number without decimals."""
    if isinstance(value, str):
        return repr(value if len(value) <= 30 else value[:29] + "…")
    return str(int(value)) if float(value).is_integer() else f"{value:g}"
