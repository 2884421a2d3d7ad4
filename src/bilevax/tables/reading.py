"""What is read of a file, and how: which columns, as what, and which cells say that nothing is known."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from bilevax.core.errors import ParameterError
from bilevax.tables.table import Column, Table

EVERY = ""
"""Stands for every column that has no marks of its own: no column has an empty name."""

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
    """

    text: Collection[str] = ()
    numbers: Collection[str] = ()
    drop: Collection[str] = ()
    only: Collection[str] | None = None
    missing: Marks = MappingProxyType({})

    def choose(self, source: str, names: Sequence[str]) -> list[int]:
        """The positions of the columns that are read, of those with these names.

        Raises:
            DataError: a column that is asked for is not there.
        """
        asked = [*self.text, *self.drop, *(self.only or ()), *(name for name in self.missing if name != EVERY)]
        known = Table(source, tuple(Column(name, "text", np.empty(0)) for name in names))
        known.require(dict.fromkeys(asked))
        only, drop = set(names if self.only is None else self.only), set(self.drop)
        return [j for j, name in enumerate(names) if name in only and name not in drop]

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
            raise ParameterError(f"missing takes MARK,MARK or COLUMN=MARK,MARK, got '{word}'")
        out[name] = (*out.get(name, ()), *marks)
    return out


def without(column: Column, marks: Sequence[str]) -> Column:
    """The column, its cells that are marks missing: text as it is written, numbers by their value."""
    if not marks or column.kind == "date":
        return column
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
        return float(text)
    except ValueError:
        return None
