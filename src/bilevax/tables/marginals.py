"""How many rows have which cells in a column: counted piece by piece, in bounded memory."""

from collections import Counter

import numpy as np

from bilevax.tables.effects import first_of_groups

GROUPS = 8192
"""Values of a column of numbers that are told apart, at most."""

LEVELS = 100_000
"""Levels of a category that are counted, at most: the rarest are forgotten beyond."""


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
        share = mass / np.bincount(group, mass, len(first))[group]
        self._values = np.bincount(group, share * distinct, len(first))
        self._count = np.zeros(len(first) + 1)

    def add(self, values: np.ndarray) -> None:
        """Rows, [n]."""
        there = np.sort(values)  # NaN comes last
        there = there[: len(there) - int(np.isnan(values).sum())]
        stops = [0, *np.searchsorted(there, self._edges, side="right"), len(there), len(values)]
        self._count += np.diff(stops)

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """Values, NaN the last, and their rows."""
        return np.append(self._values, np.nan), self._count


class LevelCounts:
    """Rows by levels."""

    def __init__(self) -> None:
        self._counts: Counter[str | None] = Counter()

    def add(self, values: np.ndarray) -> None:
        """Rows, text or None, [n]."""
        self._counts.update(values.tolist())
        if len(self._counts) > 2 * LEVELS:
            self._counts = Counter(dict(self._counts.most_common(LEVELS)))

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """Levels, and None where one is missing, and their rows."""
        values = np.empty(len(self._counts), object)
        values[:] = list(self._counts)
        return values, np.array(list(self._counts.values()), float)
