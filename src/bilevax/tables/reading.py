"""What is read of a file, and how: which columns, as what, and which cells say that nothing is known."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple, cast, get_args

import numpy as np

from bilevax.core.errors import DataError, ParameterError
from bilevax.tables.table import CodedColumn, Column, Order, Table

EVERY = ""
"""Stands for every column that has no marks of its own: no column has an empty name."""

MAX_CELLS = 500_000_000
"""4 GB of numbers."""

Type = Literal["text", "number", "date", "day-first", "month-first"]
"""What a column can be said to be; the last two are dates, whose order counts where their cells leave it open."""

Marks = Mapping[str, Sequence[str]]
"""For columns the cells that say that nothing is known; those of ``EVERY`` hold for all other columns."""


class Reading(NamedTuple):
    """What is read of a file, and how.

    Attributes:
        text: columns to read as text whatever their cells are (codes that look like numbers).
        numbers: columns that hold numbers, as a model knows them; a cell that is none is refused.
        drop: columns that are not looked at.
        only: the only columns that are looked at; None: all.
        missing: cells that say that nothing is known, besides the empty one.
        types: what columns are, instead of what their cells look like.
        keep: columns that are passed through: no model learns from them.
        max_cells: rows x columns at most, of files of which a few bytes may stand for many cells.
    """

    text: Collection[str] = ()
    numbers: Collection[str] = ()
    drop: Collection[str] = ()
    only: Collection[str] | None = None
    missing: Marks = MappingProxyType({})
    types: Mapping[str, Type] = MappingProxyType({})
    keep: Collection[str] = ()
    max_cells: int = MAX_CELLS

    def choose(self, source: str, names: Sequence[str]) -> list[int]:
        """The positions of the columns that are read, of those with these names.

        Raises:
            DataError: a column that is asked for is not there.
        """
        named = (self.text, self.drop, self.only or (), self.types, self.keep, set(self.missing) - {EVERY})
        asked = [name for names_ in named for name in names_]
        known = Table(source, tuple(Column(name, "text", np.empty(0)) for name in names))
        known.require(dict.fromkeys(asked))
        only = set(names) - set(self.keep) if self.only is None else set(self.only)
        drop = set(self.drop)
        return [j for j, name in enumerate(names) if name in only and name not in drop]

    def kept(self, names: Sequence[str]) -> list[int]:
        """The positions of the columns that are passed through."""
        return [names.index(name) for name in self.keep]

    def require_cells(self, source: str, rows: int, columns: int, advice: str = "") -> None:
        """Refuse a file that says it has more rows x columns than ``max_cells``.

        Raises:
            DataError: it does.
        """
        if rows * columns > self.max_cells:
            raise DataError(
                f"{source}: {rows:,} rows x {columns:,} columns are more than {self.max_cells:,} cells; read fewer "
                f"columns (--drop), or allow so many (--max-cells {rows * columns}){advice}"
            )

    def type_of(self, name: str) -> Literal["text", "number", "date"] | None:
        """What a column is said to be; None where its cells say it."""
        if name in self.text or name in self.numbers:
            return "text" if name in self.text else "number"
        said = self.types.get(name)
        return "date" if said == "day-first" or said == "month-first" else said

    def order_of(self, name: str) -> Order:
        """What comes first in the dates of a column, where that is said."""
        said = self.types.get(name)
        return said if said == "day-first" or said == "month-first" else ""

    def marks(self, name: str) -> tuple[str, ...]:
        """Those of a column."""
        return tuple(self.missing.get(name, self.missing.get(EVERY, ())))


def marks_from_words(words: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Marks as one writes them: ``?,NA`` for every column, ``COLUMN=?,NA`` for one, which then has no others.

    Raises:
        ParameterError: a word has no mark for any column.
    """
    out: dict[str, tuple[str, ...]] = {}
    for word in words:
        # Names of columns have an equals sign more often than marks.
        name, equals, listed = word.rpartition("=")
        marks = tuple(mark.strip() for mark in listed.split(",") if mark.strip())
        if not marks and not (equals and name):
            raise ParameterError(f"--missing takes MARK,MARK or COLUMN=MARK,MARK, got '{word}'")
        out[name] = (*out.get(name, ()), *marks)
    return out


def types_from_words(words: Iterable[str]) -> dict[str, Type]:
    """Types as one writes them: ``COLUMN=text``, ``=number``, ``=date``, ``=day-first`` or ``=month-first``.

    Raises:
        ParameterError: a word is none of these, or a column has two types.
    """
    out: dict[str, Type] = {}
    for word in words:
        name, _, kind = word.rpartition("=")
        if not name or kind not in get_args(Type):
            raise ParameterError(
                "--types takes COLUMN=text, COLUMN=number, COLUMN=date, COLUMN=day-first or COLUMN=month-first, got "
                f"'{word}'"
            )
        if out.setdefault(name, cast(Type, kind)) != kind:
            raise ParameterError(f"--types says of '{name}' that it is {out[name]} and that it is {kind}; give one")
    return out


def without(column: Column, marks: Sequence[str]) -> Column:
    """The column, its cells that are marks missing: text as it is written, numbers by their value."""
    if not marks or column.kind == "date":
        return column
    if isinstance(column, CodedColumn):
        return CodedColumn(column.name, without(Column(column.name, "text", column.words), marks).values, column.codes)
    values = column.values.copy()
    if column.kind == "text":
        known = set(marks)
        values[[cell in known for cell in values.tolist()]] = None
    else:
        values[np.isin(values, [x for x in map(number_of, marks) if x is not None])] = np.nan
    return Column(column.name, column.kind, values)


def number_of(text: str) -> float | None:
    """The number that a text is; None if it is none."""
    try:
        # Python takes 1_000 for a number, as no file does.
        return None if "_" in text else float(text)
    except ValueError:
        return None
