"""What a model has not seen in training: empty columns, other categories, numbers far outside of its range."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from bilevax.core.text import counted
from bilevax.tables.additive import AdditiveModel
from bilevax.tables.effects import Effect
from bilevax.tables.linear import LinearModel
from bilevax.tables.table import Table

_SHOWN = 3
# Standard deviations from the mean, beyond which a number is far outside of what a linear model was trained on.
_FAR = 10.0
_BEYOND = 3.0
_LINES = 20
_HELD = 10_000


class _Known(NamedTuple):
    """What a model knows of a column: its categories, or where its numbers lie, and what is far from there."""

    levels: frozenset[str] | None = None
    low: float = -np.inf
    high: float = np.inf
    far_low: float = -np.inf
    far_high: float = np.inf
    words: str = ""
    nearest: bool = False


class _Unseen:
    """Counts rows and their values, of which it holds so many at most: a column of identifiers has no end."""

    def __init__(self) -> None:
        self.rows = 0
        self._values: dict[str, None] = {}

    def add(self, value: str) -> None:
        self.rows += 1
        if len(self._values) <= _HELD:
            self._values[value] = None

    def __str__(self) -> str:
        """``4 values ('p', 'q', 'r', ...)``."""
        number = len(self._values)
        words = f"more than {_HELD:,} values" if number > _HELD else counted(number, "value")
        quoted = _first(f"'{value}'" for value in self._values)
        return f"{words} ({quoted})"

    def shown(self) -> str:
        """The first of them, as they are."""
        return _first(self._values)

    def meant(self, levels: frozenset[str]) -> str:
        """Which levels they may be, that differ by case and blanks alone; empty if none."""
        by_word: dict[str, str] = {}
        for level in sorted(levels):
            by_word.setdefault(_word(level), level)
        near = dict.fromkeys(by_word[word] for value in self._values if (word := _word(value)) in by_word)
        quoted = _first(f"'{level}'" for level in near)
        return f"; did you mean {quoted}?" if near else ""


def _first(words: Iterable[str]) -> str:
    """A few, and dots where there are more."""
    some = list(itertools.islice(words, _SHOWN + 1))
    return ", ".join(some[:_SHOWN]) + (", ..." if len(some) > _SHOWN else "")


def _word(text: str) -> str:
    return " ".join(text.split()).casefold()


class Unfamiliar:
    """Counts, over the pieces of a table, what a model has not seen in training.

    Args:
        model: that is applied.
    """

    def __init__(self, model: LinearModel | AdditiveModel) -> None:
        self._known = _of_additive(model) if isinstance(model, AdditiveModel) else _of_linear(model)
        self._columns = model.columns
        self._rows = 0
        self._missing = dict.fromkeys(self._columns, 0)
        self._outside = dict.fromkeys(self._columns, 0)
        self._far = {name: _Unseen() for name in self._columns}
        self._unseen = {name: _Unseen() for name in self._columns}

    def add(self, table: Table) -> None:
        """Count the rows of a piece."""
        self._rows += table.rows
        for name in self._columns:
            column, known = table.column(name), self._known[name]
            missing = column.missing
            self._missing[name] += int(missing.sum())
            if known.levels is not None:
                for cell in column.as_text().values[~missing].tolist():
                    if cell not in known.levels:
                        self._unseen[name].add(cell)
            elif column.kind != "text":
                there = column.values[~missing]
                self._outside[name] += int(np.sum((there < known.low) | (there > known.high)))
                for value in there[(there < known.far_low) | (there > known.far_high)].tolist():
                    self._far[name].add(f"{value:g}")

    def lines(self) -> Iterator[str]:
        """One line for each column of which there is something to say."""
        # a column that is lost whole comes first
        columns = sorted(self._columns, key=lambda name: not self._lost(name))
        said = [line for name in columns if (line := self._line(name))]
        yield from said[:_LINES]
        if len(said) > _LINES:
            yield f"and {counted(len(said) - _LINES, 'column')} more that the model does not know so"

    def _lost(self, name: str) -> bool:
        unknown = max(self._unseen[name].rows, self._outside[name])
        return self._rows > 0 and self._missing[name] + unknown == self._rows

    def _in_rows(self, number: int) -> str:
        return f"all {number:,} rows" if number == self._rows > 1 else counted(number, "row")

    def _line(self, name: str) -> str:
        unseen, known = self._unseen[name], self._known[name]
        if self._rows and self._missing[name] == self._rows:
            return f"column '{name}' is missing in every row"
        if unseen.rows:
            return (
                f"column '{name}' has in {self._in_rows(unseen.rows)} {unseen} that the model does not know"
                f"{unseen.meant(known.levels or frozenset())}"
            )
        if self._outside[name]:
            return f"column '{name}' is in {self._in_rows(self._outside[name])} {self._where(name)}"
        return ""

    def _where(self, name: str) -> str:
        """``far outside of the range trained on, about 50 to 100 (-999); taken as the nearest``."""
        far, outside, known = self._far[name], self._outside[name], self._known[name]
        taken = "; taken as the nearest" if known.nearest else ""
        if far.rows == outside:
            return f"far outside of {known.words} ({far.shown()}){taken}"
        some = f" ({far.rows:,} of them far: {far.shown()})" if far.rows else ""
        return f"outside of {known.words}{some}{taken}"


def _of_additive(model: AdditiveModel) -> dict[str, _Known]:
    out: dict[str, _Known] = {}
    for source, effect in zip(model.sources, model.effects, strict=True):
        if effect.edges is None:
            out[source.column] = _Known(frozenset(effect.levels))
        elif not source.part and effect.centre is not None and len(effect.edges):
            out[source.column] = _range(effect, effect.edges, effect.centre)
    return {name: out.get(name, _Known()) for name in model.columns}


def _range(effect: Effect, edges: np.ndarray, centre: np.ndarray) -> _Known:
    """Where the numbers of a column lie. The outer bins have no ends; their means are within them."""
    low, high = float(min(edges[0], centre[0])), float(max(edges[-1], centre[-1]))
    # Of m exponential distances to the edge, of mean d, the largest is more than d (log m + 3) once in twenty tables.
    first, last = (np.log(max(float(mass), 1.0)) + _BEYOND for mass in (effect.weight[0], effect.weight[len(edges)]))
    return _Known(
        low=float(min(low, edges[0] - first * (edges[0] - centre[0]))),
        high=float(max(high, edges[-1] + last * (centre[-1] - edges[-1]))),
        # outside by as much as the range is wide
        far_low=low - (high - low),
        far_high=high + (high - low),
        words=f"the range trained on, about {low:.4g} to {high:.4g}",
        nearest=True,
    )


def _of_linear(model: LinearModel) -> dict[str, _Known]:
    out: dict[str, _Known] = {}
    for term in model.terms:
        if term.kind == "category":
            before = out.get(term.column, _Known(frozenset())).levels or frozenset()
            out[term.column] = _Known(before | ({term.value} if term.value is not None else set()))
        elif term.kind == "number":
            spread = _FAR * term.scale
            words = f"what was trained on, {term.mean:.4g} +- {term.scale:.4g}"
            low, high = term.mean - spread, term.mean + spread
            out[term.column] = _Known(low=low, high=high, far_low=low, far_high=high, words=words)
    return {name: out.get(name, _Known()) for name in model.columns}
