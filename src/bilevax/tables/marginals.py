"""How many rows have which cells in a column: counted piece by piece, in bounded memory."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bilevax.linalg.places import places
from bilevax.tables.effects import BINS, first_of_groups, shares

GROUPS = 32_768
"""Values of a column of numbers that are told apart, at most."""

AROUND = 1 << 20
"""Numbers around the edges of bins that are told apart, at most: of a column of some 250 million different ones."""

TOGETHER = 1 << 19
"""Numbers that are sorted at once: to find the ends of groups takes as long in fewer."""

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
    """Rows by numbers that are told apart: the means of groups of them, and after a second pass those around edges.

    Args:
        known: of some rows, NaN where missing, [m].
    """

    def __init__(self, known: np.ndarray) -> None:
        distinct, mass = np.unique(_finite(known[~np.isnan(known)]), return_counts=True)
        first = first_of_groups(mass.astype(float), GROUPS)
        near, apart = _in_single(distinct, first)
        # of so many numbers a few that float32 does not tell apart may be in one group
        if apart.all() or (len(distinct) > GROUPS and apart.mean() > 0.99):
            first, near = np.append(first[:1], first[1:][apart]), near[apart]
            self._sorted, self._edges = near, _rounded_to(near)
        else:
            self._sorted = self._edges = 0.5 * distinct[first[1:] - 1] + 0.5 * distinct[first[1:]]
        group = np.searchsorted(first, np.arange(len(distinct)), side="right") - 1
        rows = np.bincount(group, mass, len(first))
        self._values = np.bincount(group, mass / rows[group] * distinct, len(first))
        # different ones that are known, and how many there are for each row more: as many as rows that are alone
        self._distinct, self._rows = np.bincount(group, minlength=len(first)), rows
        self._new = np.bincount(group, mass == 1, len(first)) / rows
        self._count, self._missing = np.zeros(len(first)), 0
        self._waiting: list[np.ndarray] = []
        # groups whose numbers are told apart, from where to where each run of them goes, and the numbers
        self._told = np.zeros(len(first), bool)
        self._runs = np.zeros(0)
        self._around: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, values: np.ndarray, without: np.ndarray | None = None) -> None:
        """Rows, [n], but those with these numbers."""
        with np.errstate(over="ignore"):
            own = values.astype(self._sorted.dtype)
        if without is not None:  # they are few: as if missing, and not counted as such
            own[without] = np.nan
            self._missing -= len(without)
        self._waiting.append(own)
        if sum(map(len, self._waiting)) >= TOGETHER:
            self._count_waiting()

    def _count_waiting(self) -> None:
        there = np.concatenate([np.zeros(0, self._sorted.dtype), *self._waiting])
        self._waiting = []
        there.sort()
        numbers = int(np.searchsorted(there, np.nan))  # NaN comes last
        self._missing += len(there) - numbers
        if len(self._count):
            # group g has edges[g - 1] < x <= edges[g]
            ends = np.searchsorted(there[:numbers], self._sorted, side="right")
            self._count += np.diff(ends, prepend=0, append=numbers)

    def choose(self) -> bool:
        """Of all rows, which went by: whether they are to do so again, for :meth:`add_around`."""
        self._count_waiting()
        n, mass = self._count.sum(), self._count
        if n == 0.0 or len(mass) <= BINS:
            return False
        # a bin begins where the shares come to a multiple of 1 / BINS, with the number before or after
        ends, at = np.cumsum(shares(mass, BINS, self._different())), np.arange(1, BINS) / BINS
        for near in (-1.5 / n, 1.5 / n):
            self._told[np.minimum(np.searchsorted(ends, at + near), len(mass) - 1)] = True
        bounds = np.concatenate([[-np.inf], np.nextafter(self._edges, np.inf), [np.inf]])
        turns = np.flatnonzero(np.diff(np.concatenate([[False], self._told, [False]])))
        runs = bounds[turns]
        self._runs = runs[:-1] if runs[-1] == np.inf else runs
        return True

    def add_around(self, values: np.ndarray) -> None:
        """Rows once more, [n]: their numbers around the edges of bins."""
        if not len(self._runs):
            return
        x = _finite(values)
        own = x[(places(self._runs, x) % 2 == 1) & ~np.isnan(x)]
        self._around.append(np.unique(own, return_counts=True))
        if sum(len(x) for x, _ in self._around[1:]) > len(self._around[0][0]):
            self._merge()

    def _merge(self) -> None:
        x, inverse = np.unique(np.concatenate([x for x, _ in self._around]), return_inverse=True)
        self._around = [(x, np.bincount(inverse, np.concatenate([count for _, count in self._around]), len(x)))]
        if len(x) > AROUND:
            self.forget()

    def _different(self) -> np.ndarray:
        """Numbers of each group, about."""
        more = np.maximum(self._count - self._rows, 0.0)
        # a good guess of the share of new ones (Good 1953, Biometrika 40:237)
        different: np.ndarray = np.minimum(self._distinct + self._new * more, self._count)
        return different

    def state(self) -> dict[str, np.ndarray]:
        """What passes have counted."""
        self._count_waiting()
        if self._around:
            self._merge()
        x, rows = self._around[0] if self._around else (np.zeros(0), np.zeros(0))
        missing = np.array(self._missing)
        return {"count": self._count, "missing": missing, "told": self._told, "around": x, "rows": rows}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of :meth:`state`."""
        self._count, self._missing, self._told = state["count"], int(state["missing"]), state["told"]
        self._around = [(state["around"], state["rows"])]

    def join(self, states: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Of the rows of several processes, which have counted the same pass."""
        if self._told.any():
            self._around = [(state["around"], state["rows"]) for state in states]
            if all(state["told"].any() for state in states):
                self._merge()
            else:
                self.forget()
            return
        self._count = np.sum([state["count"] for state in states], axis=0)
        self._missing = sum(int(state["missing"]) for state in states)

    def forget(self) -> None:
        """The second pass does not count."""
        self._told[:], self._runs, self._around = False, np.zeros(0), []

    def found(self) -> Marginal:
        """Values, NaN the last."""
        state, coarse = self.state(), ~self._told
        x, rows = state["around"], state["rows"]
        mass = self._count[coarse]
        return Marginal(
            np.concatenate([self._values[coarse], x, [np.nan]]),
            np.concatenate([mass, rows, [self._missing]]),
            np.concatenate([self._different()[coarse], np.ones(len(x)), [self._missing]]),
        )


def _in_single(distinct: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges between groups as float32, which are sorted in half of the time, and which of them part the groups."""
    with np.errstate(over="ignore"):
        single = distinct.astype(np.float32)
        low, high = single[first[1:] - 1], single[first[1:]]
        middle = (0.5 * distinct[first[1:] - 1] + 0.5 * distinct[first[1:]]).astype(np.float32)
    return np.where(middle < high, middle, low), (low < high) & np.isfinite(low) & np.isfinite(high)


def _rounded_to(edges: np.ndarray) -> np.ndarray:
    """The largest float64 that float32 rounds to at most each of these."""
    middle = 0.5 * (edges.astype(float) + np.nextafter(edges, np.float32(np.inf)).astype(float))
    # what is half way is rounded to the even one
    out: np.ndarray = np.where(edges.view(np.int32) % 2 == 0, middle, np.nextafter(middle, -np.inf))
    return out


def _finite(x: np.ndarray) -> np.ndarray:
    out: np.ndarray = np.clip(x, -np.finfo(float).max, np.finfo(float).max)
    return out


class LevelCounts:
    """Rows by levels."""

    def __init__(self) -> None:
        self._counts: Counter[str | None] = Counter()

    def add(self, values: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Rows, text or None, [n]; or how many rows have each, [n]."""
        if rows is None:
            self._counts.update(values.tolist())
        else:
            for i in np.flatnonzero(rows):
                self._counts[values[i]] += int(rows[i])
        if len(self._counts) > 2 * LEVELS:
            self._counts = Counter(dict(self._counts.most_common(LEVELS)))

    def state(self) -> dict[str, np.ndarray]:
        """What passes have counted."""
        return {"counts": np.array(json.dumps(list(self._counts.items())))}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of :meth:`state`."""
        self._counts = Counter(dict(json.loads(str(state["counts"]))))

    def join(self, states: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Of the rows of several processes."""
        self._counts = Counter()
        for state in states:
            self._counts.update(dict(json.loads(str(state["counts"]))))

    def found(self) -> Marginal:
        """Levels, and None where one is missing."""
        values = np.empty(len(self._counts), object)
        values[:] = list(self._counts)
        return Marginal(values, np.array(list(self._counts.values()), float))
