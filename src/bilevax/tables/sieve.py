"""Numbers whose bins are not known yet, in a byte or two: only what is near an edge, to be, is kept as it is."""

from typing import NamedTuple

import numpy as np

from bilevax.linalg.places import CELLS, ROWS, EqualCells
from bilevax.tables.effects import Effect


class Sieved(NamedTuple):
    """Numbers.

    Attributes:
        codes: how many intervals are before each; or that it is missing, or near one, or which atom it is, [n].
        near: those near an interval, in their order, [m].
    """

    codes: np.ndarray
    near: np.ndarray


MANY = 16
"""If one number of so many is near an interval, it is looked up whether it is in one."""


class Sieve:
    """Tells numbers apart by intervals in which edges of bins will be.

    A table of equal cells says which numbers may be in one.

    Args:
        bounds: from where to where each interval goes, rising, [2 k].
        atoms: numbers in intervals that many rows have, rising.
        missing: whether some rows have none.
    """

    def __init__(self, bounds: np.ndarray, atoms: np.ndarray, *, missing: bool = True) -> None:
        self.atoms, self._bounds, self._some_missing = atoms, bounds, missing
        ends = bounds[np.isfinite(bounds)] if np.isfinite(bounds).any() else np.zeros(1)
        # of one edge: so narrow that what is next to it is apart
        width = max(float(ends[-1] / 2 - ends[0] / 2) * 2, 1e-6 * float(np.abs(ends).max()), 1e-290)
        self._cell = EqualCells(float(ends[0]), min(width, np.finfo(float).max))
        at = np.clip(self._cell(bounds), 0, CELLS + 2)
        begun, ended = (np.cumsum(np.bincount(c, minlength=CELLS + 4)) for c in (at[::2], at[1::2] + 1))
        self._missing = len(at) // 2 + 1
        self._near = self._missing + 1
        kind = np.min_scalar_type(self._near + len(atoms))
        self._table = np.where(begun > ended, self._near, ended)[:-1].astype(kind)

    def __call__(self, x: np.ndarray, without: np.ndarray | None = None) -> Sieved:
        """Numbers, NaN where missing, [n]; of those ``without`` nothing is meant."""
        codes = np.empty(len(x), self._table.dtype)
        for start in range(0, len(x), ROWS):
            some = x[start : start + ROWS]
            own = np.take(self._table, self._cell(some), out=codes[start : start + ROWS], mode="clip")
            if self._some_missing:
                own[np.isnan(some)] = self._missing
        if without is not None:
            codes[without] = self._missing
        at = np.flatnonzero(codes == self._near)
        near = x[at]
        if len(self.atoms):
            atom = np.minimum(np.searchsorted(self.atoms, near), len(self.atoms) - 1)
            at, near = self._settled(codes, at, near, self.atoms[atom] == near, self._near + 1 + atom)
        if MANY * len(near) > len(x):
            before = np.searchsorted(self._bounds, near, side="right")
            at, near = self._settled(codes, at, near, before % 2 == 0, before // 2)
        return Sieved(codes, near)

    @staticmethod
    def _settled(
        codes: np.ndarray, at: np.ndarray, near: np.ndarray, which: np.ndarray, code: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Write the codes of some of those that are near; where the others are, and these."""
        codes[at[which]] = code[which]
        return at[~which], near[~which]

    def atom_counts(self, codes: np.ndarray) -> np.ndarray:
        """Rows of each atom."""
        return np.bincount(codes, minlength=self._near + 1 + len(self.atoms))[self._near + 1 :]

    def bins(self, effect: Effect) -> np.ndarray | None:
        """Of each code the bin, that of what is near one any; None if an edge is in no interval."""
        assert effect.edges is not None
        bounds, edges = np.append(self._bounds, np.inf), effect.edges
        before = np.searchsorted(self._bounds, edges)
        if np.any((before % 2 == 0) & (bounds[before] != edges)):
            return None
        gaps = np.searchsorted(before // 2, np.arange(self._missing))
        others = effect.codes(np.concatenate([[np.nan, np.nan], self.atoms]))
        return np.concatenate([gaps.astype(others.dtype), others])

    def codes(self, effect: Effect, bins: np.ndarray, found: Sieved) -> np.ndarray:
        """The bins of numbers in an effect, as of :meth:`Effect.codes`; ``bins`` are those of the codes."""
        codes = found.codes
        at = np.flatnonzero(codes >= self._near)
        # mostly there is an edge in each interval
        same = bins.dtype == codes.dtype and np.array_equal(bins[: self._near], np.arange(self._near))
        out = codes.copy() if same else np.take(bins, codes)
        if len(self.atoms):
            out[at] = bins[codes[at]]
            at = at[codes[at] == self._near]
        out[at] = effect.codes(found.near)
        return out
