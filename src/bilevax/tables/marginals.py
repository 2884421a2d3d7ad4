"""How many rows have which cells in a column: counted piece by piece, in bounded memory."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from bilevax.tables.effects import first_of_groups

GROUPS = 32_768
"""Values of a column of numbers that are told apart, at most."""

LEVELS = 100_000
"""Levels of a category that are counted, at most: the rarest are forgotten beyond."""


class Marginal(NamedTuple):
    """What a column holds.

    Attributes:
        values: numbers, NaN where missing, or levels, None where missing, [k].
        weight: rows of each, [k].
        distinct: how many different numbers each stands for, about, [k]; None: one.
    """

    values: np.ndarray
    weight: np.ndarray
    distinct: np.ndarray | None = None


class NumberCounts:
    """Rows by numbers that are told apart: those of some rows, or the means of groups of them.

    Args:
        known: of some rows, NaN where missing, [m].
    """

    def __init__(self, known: np.ndarray) -> None:
        distinct, mass = np.unique(known[~np.isnan(known)], return_counts=True)
        first = first_of_groups(mass.astype(float), GROUPS)
        group = np.searchsorted(first, np.arange(len(distinct)), side="right") - 1
        self._edges = 0.5 * distinct[first[1:] - 1] + 0.5 * distinct[first[1:]]
        rows = np.bincount(group, mass, len(first))
        self._values = np.bincount(group, mass / rows[group] * distinct, len(first))
        self._distinct = np.append(np.bincount(group, minlength=len(first)) / rows, 1.0)
        self._count = np.zeros(len(first) + 1)

    def add(self, values: np.ndarray) -> None:
        """Rows, [n]."""
        there = np.sort(values)  # NaN comes last
        there = there[: len(there) - int(np.isnan(values).sum())]
        stops = [0, *np.searchsorted(there, self._edges, side="right"), len(there), len(values)]
        self._count += np.diff(stops)

    def found(self) -> Marginal:
        """Values, NaN the last; different ones among all rows of a group, as among those that were known."""
        return Marginal(np.append(self._values, np.nan), self._count, self._count * self._distinct)


class LevelCounts:
    """Rows by levels."""

    def __init__(self) -> None:
        self._counts: Counter[str | None] = Counter()

    def add(self, values: np.ndarray) -> None:
        """Rows, text or None, [n]."""
        self._counts.update(values.tolist())
        if len(self._counts) > 2 * LEVELS:
            self._counts = Counter(dict(self._counts.most_common(LEVELS)))

    def found(self) -> Marginal:
        """Levels, and None where one is missing."""
        values = np.empty(len(self._counts), object)
        values[:] = list(self._counts)
        return Marginal(values, np.array(list(self._counts.values()), float))
