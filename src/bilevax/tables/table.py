"""Named columns: what a table is once it has been read, and which column a name means."""

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from bilevax.core.errors import DataError

Kind = Literal["number", "integer", "boolean", "date", "text"]
"""What the cells of a column are. Everything but text is held as float64, with NaN where a cell is missing."""


Order = Literal["", "day-first", "month-first"]
"""What came first in dates as they were written, where one of the two did."""


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """One column of a table.

    Attributes:
        name: its name in the header.
        kind: ``number``, ``integer``, ``boolean`` (0 and 1), ``date`` (days since 1970-01-01, with fraction), ``text``.
        values: float64 [n] with NaN where missing; for text an object array [n] of ``str``, None where missing.
        order: of dates.

    Examples:
        >>> import numpy as np
        >>> from bilevax.tables import Column
        >>> Column("age", "number", np.array([31.0, np.nan])).kind
        'number'
    """

    name: str
    kind: Kind
    values: np.ndarray
    order: Order = ""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def missing(self) -> np.ndarray:
        """True where the cell is missing, bool [n]."""
        if self.kind == "text":
            return np.fromiter((cell is None for cell in self.values), bool, len(self.values))
        missing: np.ndarray = np.isnan(self.values)
        return missing

    def other_than(self, known: Literal["number", "date"]) -> str:
        """What the column holds in place of numbers or dates: ``texts such as 'x' in row 1``; empty if it does not."""
        found = self.kind if self.kind in ("date", "text") else "number"
        if found == known or self.missing.all():
            return ""
        row = int(np.argmin(self.missing))
        return f"{found}s" + (f" such as {self.values[row]!r} in row {row + 1}" if found == "text" else "")

    def take(self, rows: np.ndarray) -> "Column":
        """The column of the given rows (indices, or a boolean mask)."""
        return Column(self.name, self.kind, self.values[rows], self.order)

    def as_text(self) -> "Column":
        """The same column with every cell as text: 3.0 is written ``3``, true is written ``true``."""
        if self.kind == "text":
            return self
        write = _write_boolean if self.kind == "boolean" else _write_number
        cells = [None if np.isnan(x) else write(x) for x in self.values.tolist()]
        return Column(self.name, "text", object_array(cells))


class CodedColumn(Column):
    """A column of text by the numbers of its words; the cells as text are made when they are asked for.

    Attributes:
        words: object [k], text, or None where missing.
        codes: the word of each cell, integers [n].
    """

    def __init__(self, name: str, words: np.ndarray, codes: np.ndarray) -> None:
        for key, value in {"name": name, "kind": "text", "order": "", "words": words, "codes": codes}.items():
            object.__setattr__(self, key, value)

    words: np.ndarray
    codes: np.ndarray

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def missing(self) -> np.ndarray:
        """True where the cell is missing, bool [n]."""
        missing: np.ndarray = np.array([word is None for word in self.words])[self.codes]
        return missing

    @functools.cached_property
    def values(self) -> np.ndarray:
        """Object [n] of text, None where missing."""
        out: np.ndarray = self.words[self.codes]
        return out

    def take(self, rows: np.ndarray) -> "CodedColumn":
        """The column of the given rows (indices, or a boolean mask)."""
        return CodedColumn(self.name, self.words, self.codes[rows])


def _write_boolean(x: float) -> str:
    return "true" if x else "false"


def _write_number(x: float) -> str:
    # 3.0 was 3 in the file, or will be compared with what was.
    return str(int(x)) if x.is_integer() else repr(x)


def number_column(name: str, values: np.ndarray) -> Column:
    """A column of float64 [n], of integers where all that are there are whole."""
    there = values[~np.isnan(values)]
    return Column(name, "integer" if bool(np.all(there == np.rint(there))) else "number", values)


def object_array(cells: Sequence[str | None]) -> np.ndarray:
    """A one-dimensional object array of the cells."""
    out = np.empty(len(cells), dtype=object)
    out[:] = cells
    return out


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Named columns of equal length.

    Attributes:
        name: the file's name, or the data set's.
        columns: the columns in their order in the file.
        notes: what the reader saw that its user should know, one sentence each.
        sha256: of the file that was read; empty when there was none.
        unread: names of columns of the file that were not looked at.
        kept: columns that are passed through, as text: no model learns from them.
        before: rows of the file that stand before those of this table.

    Examples:
        >>> import numpy as np
        >>> from bilevax.tables import Column, Table
        >>> table = Table("people", (Column("age", "number", np.array([31.0, 45.0])),))
        >>> table.names, table.columns[0].values.tolist()
        (('age',), [31.0, 45.0])
    """

    name: str
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()
    sha256: str = ""
    unread: tuple[str, ...] = ()
    kept: tuple[Column, ...] = ()
    before: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)

    @functools.cached_property
    def _positions(self) -> dict[str, int]:
        return {column.name: j for j, column in enumerate(self.columns)}

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.columns[0]) if self.columns else 0

    def column(self, name: str) -> Column:
        """The column of that name.

        Raises:
            DataError: there is none; the message names the nearest.
        """
        self.require([name])
        return self.columns[self._positions[name]]

    def require(self, names: Iterable[str]) -> None:
        """Check that columns are there, and were read.

        Raises:
            DataError: some are not; the message names them, and the nearest of those that are.
        """
        absent = [name for name in names if name not in self._positions]
        if not absent:
            return
        listed = ", ".join(f"'{name}'" for name in absent[:5]) + (", ..." if len(absent) > 5 else "")
        plural = "s" if len(absent) > 1 else ""
        if absent[0] in self.unread:
            raise DataError(f"{self.name}: column '{absent[0]}' was not read; do not drop it")
        known = (*self.names, *filter(None, self.unread))
        near = [found[0] for name in absent[:5] if (found := nearest(name, known))]
        several = "did you mean " + ", ".join(f"'{name}'" for name in near) + "?"
        advice = several if len(near) > 1 else suggestion(absent[0], known)
        raise DataError(f"{self.name}: no column{plural} {listed}; {advice}")

    def select(self, names: Sequence[str]) -> "Table":
        """The table of the columns with these names, in their order.

        Raises:
            DataError: there is none of that name.
        """
        return dataclasses.replace(self, columns=tuple(map(self.column, names)))

    def renamed(self, names: Sequence[str]) -> "Table":
        """The same columns by other names."""
        columns = (Column(name, c.kind, c.values, c.order) for c, name in zip(self.columns, names, strict=True))
        return dataclasses.replace(self, columns=tuple(columns))

    def take(self, rows: np.ndarray) -> "Table":
        """The table of the given rows (indices, or a boolean mask)."""
        columns, kept = (tuple(c.take(rows) for c in of) for of in (self.columns, self.kept))
        return dataclasses.replace(self, columns=columns, kept=kept)


def orders_of(columns: Iterable[Column]) -> dict[str, Order]:
    """By name what came first in columns of dates, where one of the two did."""
    return {column.name: column.order for column in columns if column.order}


def orders_from_plain(plain: Mapping[object, object]) -> dict[str, Order]:
    """The same, from JSON.

    Raises:
        ValueError: it is none of them.
    """
    out: dict[str, Order] = {}
    for name, order in plain.items():
        if order not in ("day-first", "month-first"):
            raise ValueError(f"{order!r} is no order of dates")
        out[str(name)] = "day-first" if order == "day-first" else "month-first"
    return out


def nearest(name: str, names: Sequence[str]) -> list[str]:
    """Up to three names that are near, the nearest first; case does not count."""
    # Reversed, so that of names that differ in case alone the first is found.
    near = {known.casefold(): known for known in reversed(names)}
    return [near[found] for found in difflib.get_close_matches(name.casefold(), list(near), n=3, cutoff=0.75)]


def suggestion(name: str, names: Sequence[str]) -> str:
    """``did you mean 'age'?`` where a name is near, otherwise what there is to choose from."""
    if matches := nearest(name, names):
        return "did you mean " + " or ".join(f"'{match}'" for match in matches) + "?"
    shown = ", ".join(f"'{known}'" for known in names[:12])
    return f"there are {shown}" + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def check_names(source: str, names: Sequence[str], wanted: Iterable[int] | None = None) -> None:
    """Check a header: of the columns at the wanted positions, or of all.

    Raises:
        DataError: a name is empty or stands there twice.
    """
    seen: dict[str, int] = {}
    for position in range(1, len(names) + 1) if wanted is None else (j + 1 for j in wanted):
        name = names[position - 1]
        if not name:
            raise DataError(
                f"{source}: column {position} has no name; name it, or leave it out "
                "(an index that pandas wrote is left out with to_csv(index=False))"
            )
        if name in seen:
            raise DataError(f"{source}: columns {seen[name]} and {position} are both called '{name}'; rename one")
        seen[name] = position
