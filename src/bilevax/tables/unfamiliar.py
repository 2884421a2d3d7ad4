"""What a model has not seen in training: empty columns, other categories, numbers far outside of its range."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bilevax.core.text import counted
from bilevax.tables.additive import AdditiveModel
from bilevax.tables.linear import LinearModel
from bilevax.tables.table import Table

_SHOWN = 3
# Standard deviations from the mean, beyond which a number is far outside of what a linear model was trained on.
_FAR = 10.0
_LINES = 20
_HELD = 10_000


class _Known(NamedTuple):
    """What a model knows of a column: its categories, or the range of its numbers."""

    levels: frozenset[str] | None = None
    low: float = -np.inf
    high: float = np.inf
    words: str = ""


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
        shown = ", ".join(f"'{value}'" for value in list(self._values)[:_SHOWN]) + (", ..." if number > _SHOWN else "")
        words = f"more than {_HELD:,} values" if number > _HELD else counted(number, "value")
        return f"{words} ({shown})"


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
        self._far = dict.fromkeys(self._columns, 0)
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
                self._far[name] += int(np.sum((there < known.low) | (there > known.high)))

    def lines(self) -> Iterator[str]:
        """One line for each column of which there is something to say."""
        said = [line for name in self._columns if (line := self._line(name))]
        yield from said[:_LINES]
        if len(said) > _LINES:
            yield f"and {counted(len(said) - _LINES, 'column')} more that the model does not know so"

    def _line(self, name: str) -> str:
        unseen, far = self._unseen[name], self._far[name]
        if self._rows and self._missing[name] == self._rows:
            return f"column '{name}' is missing in every row"
        if unseen.rows:
            return f"column '{name}' has in {counted(unseen.rows, 'row')} {unseen} that the model does not know"
        if far:
            return f"column '{name}' is in {counted(far, 'row')} far outside of {self._known[name].words}"
        return ""


def _of_additive(model: AdditiveModel) -> dict[str, _Known]:
    out: dict[str, _Known] = {}
    for source, effect in zip(model.sources, model.effects, strict=True):
        if effect.edges is None:
            out[source.column] = _Known(frozenset(effect.levels))
        elif not source.part and effect.centre is not None and len(effect.edges):
            # The outer bins have no ends; their means are within them.
            low, high = float(min(effect.edges[0], effect.centre[0])), float(max(effect.edges[-1], effect.centre[-1]))
            words = f"the range trained on, about {low:.4g} to {high:.4g}"
            out[source.column] = _Known(low=low - (high - low), high=high + (high - low), words=words)
    return {name: out.get(name, _Known()) for name in model.columns}


def _of_linear(model: LinearModel) -> dict[str, _Known]:
    out: dict[str, _Known] = {}
    for term in model.terms:
        if term.kind == "category":
            before = out.get(term.column, _Known(frozenset())).levels or frozenset()
            out[term.column] = _Known(before | ({term.value} if term.value is not None else set()))
        elif term.kind == "number":
            spread = _FAR * term.scale
            words = f"what was trained on, {term.mean:.4g} +- {term.scale:.4g}"
            out[term.column] = _Known(low=term.mean - spread, high=term.mean + spread, words=words)
    return {name: out.get(name, _Known()) for name in model.columns}
