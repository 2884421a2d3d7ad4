"""How many rows have which cells in a column: counted piece by piece, in bounded memory."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bilevax.linalg.places import places
from bilevax.tables.effects import BINS, edges_of, first_of_groups, shares
from bilevax.tables.sieve import Sieve, Sieved
from bilevax.tables.table import object_array

GROUPS = 32_768
"""Values of a column of numbers that are told apart, at most."""

AROUND = 1 << 20
"""Numbers around the edges of bins that are told apart, at most: of a column of some 250 million different ones."""

TOGETHER = 1 << 20
"""Numbers that are sorted at once: to find the ends of groups takes as long in fewer."""

FEW = 1 << 16
"""Numbers around edges that are sorted at once."""

MOVED = 16
"""Rows by which an edge may be elsewhere than where the first pass has it, and a group more."""

ATOM = 1024
"""A number is an atom that one row of so many has, and that is alone in its group."""

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
        self._room, self._waiting = np.zeros(0, self._sorted.dtype), 0
        # groups whose numbers are told apart, from where to where each run of them goes, and the numbers
        self._told = self._near_told = np.zeros(len(first), bool)
        self._runs = np.zeros(0)
        self._around: list[tuple[np.ndarray, np.ndarray]] = []
        self._near: list[np.ndarray] = []

    def add(self, values: np.ndarray, without: np.ndarray | None = None) -> None:
        """Rows, [n], but those with these numbers."""
        if self._waiting + len(values) > len(self._room):
            self._count_waiting()
        if len(values) > len(self._room):
            self._room = np.empty(max(len(values), TOGETHER), self._sorted.dtype)
        own = self._room[self._waiting : self._waiting + len(values)]
        with np.errstate(over="ignore"):
            own[:] = values
        if without is not None:  # they are few: as if missing, and not counted as such
            own[without] = np.nan
            self._missing -= len(without)
        self._waiting += len(values)

    def _count_waiting(self) -> None:
        there, self._waiting = self._room[: self._waiting], 0
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
        # of ties it is guessed how many numbers there are, and the second pass knows it
        low, high = (np.searchsorted(ends, at + near) for near in (-MOVED / n, MOVED / n))
        begun, ended = (np.bincount(i, minlength=len(mass) + 3) for i in (np.maximum(low - 1, 0), high + 2))
        self._near_told = np.cumsum(begun - ended)[: len(mass)] > 0
        runs = self._bounds(self._told)
        self._runs = runs[:-1] if runs[-1] == np.inf else runs
        return True

    def _bounds(self, groups: np.ndarray) -> np.ndarray:
        """From where to where each run of some groups goes."""
        bounds = np.concatenate([[-np.inf], np.nextafter(self._edges, np.inf), [np.inf]])
        return bounds[np.flatnonzero(np.diff(np.concatenate([[False], groups, [False]])))]

    def sieve(self) -> Sieve:
        """Of the edges to be, after :meth:`choose`: they are in groups that are told apart, or near them."""
        if not self._told.any():
            return Sieve(np.repeat(edges_of(*self.found()), 2), np.zeros(0), missing=self._missing > 0)
        near = self._near_told
        atoms = near & (self._distinct == 1) & (self._count > self._count.sum() / ATOM)
        return Sieve(self._bounds(near), self._values[atoms], missing=self._missing > 0)

    def add_around(self, sieve: Sieve, found: Sieved) -> None:
        """Rows once more, as the sieve has them: their numbers around the edges of bins."""
        if not len(self._runs):
            return
        self._near.append(self._told_apart(found.near))
        if len(sieve.atoms):
            rows = sieve.atom_counts(found.codes)
            atoms = self._told_apart(sieve.atoms[rows > 0])
            self._around.append((atoms, rows[np.searchsorted(sieve.atoms, atoms)]))
        if sum(map(len, self._near)) >= FEW:
            self._sort_near()

    def _told_apart(self, x: np.ndarray) -> np.ndarray:
        """Those in groups that are."""
        return _finite(x[places(self._runs, x) % 2 == 1])

    def _sort_near(self) -> None:
        if self._near:
            self._around.append(np.unique(np.concatenate(self._near), return_counts=True))
            self._near = []
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
        if self._around or self._near:
            self._sort_near()
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
        self._told[:], self._runs, self._around, self._near = False, np.zeros(0), [], []

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
        return Marginal(object_array(list(self._counts)), np.array(list(self._counts.values()), float))
