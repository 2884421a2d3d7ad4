"""Additive models of a table's columns: which parts of the effects a candidate has, and how its penalties are tuned."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bilevax.linalg.binned import BinnedColumns
from bilevax.solvers.additive_families import Family
from bilevax.solvers.additive_fit import data, penalties
from bilevax.solvers.additive_folds import Folds
from bilevax.solvers.additive_marginal import Marginal, covariance, curve_errors, evidence
from bilevax.solvers.additive_monotone import constrained, rising
from bilevax.solvers.additive_search import CENTRE, Found, minimise, tied, tune, with_prior
from bilevax.tables.effects import Effect, PartKind


class Rows(NamedTuple):
    """What additive models are fitted to.

    Attributes:
        effects: bins of every column, and what they may do.
        codes: the bin of each row in every column, [n] each.
        y: targets as the family takes them, [n].
        weight: [n].
        offset: added to the scores, [n, S].
        family: of the likelihood.
        directions: of every curve: 1: it rises, -1: it falls, 0: it may do both.
        fold: of each row [n] where penalties are tuned by the K-fold loss; None: by the marginal likelihood.
    """

    effects: tuple[Effect, ...]
    codes: tuple[np.ndarray, ...]
    y: np.ndarray
    weight: np.ndarray
    offset: np.ndarray
    family: Family
    directions: tuple[int, ...]
    fold: np.ndarray | None = None

    def take(self, index: np.ndarray) -> "Rows":
        """These rows alone."""
        fold = None if self.fold is None else self.fold[index]
        codes = tuple(c[index] for c in self.codes)
        y, weight, offset = self.y[index], self.weight[index], self.offset[index]
        return self._replace(codes=codes, y=y, weight=weight, offset=offset, fold=fold)


class Candidate(NamedTuple):
    """A kind of model.

    Attributes:
        name: what it is called.
        kinds: of the parts that it has.
        shared: whether they all share one penalty.
    """

    name: str
    kinds: tuple[PartKind, ...]
    shared: bool = False


LINEAR: tuple[PartKind, ...] = ("linear", "levels", "steps", "missing")
ONE_PENALTY = Candidate("one penalty", LINEAR, shared=True)
PENALTY_EACH = Candidate("a penalty a column", LINEAR)
ADDITIVE = Candidate("additive", (*LINEAR, "smooth", "rough"))


class TunedPart(NamedTuple):
    """A part of an effect in a tuned model.

    Attributes:
        effect: number of the effect.
        kind: of the part.
        penalty: exp(rho), of weights whose functions have mean square 1.
        freedom: effective degrees of freedom.
    """

    effect: int
    kind: PartKind
    penalty: float
    freedom: float


class AdditiveFit:
    """A candidate, tuned and fitted.

    Args:
        rows: what to fit to.
        candidate: which.

    Attributes:
        intercept: [S].
        curves: of every effect, [bins, S]; 0 where the candidate has no part of it.
        found: penalties, and the outer loss.
    """

    def __init__(self, rows: Rows, candidate: Candidate) -> None:
        self.rows, self.candidate = rows, candidate
        self._columns = [_columns(effect, candidate.kinds) for effect in rows.effects]
        self._used = [j for j, columns in enumerate(self._columns) if columns.size]
        bases = [rows.effects[j].basis[:, self._columns[j]] for j in self._used]
        self._X = BinnedColumns([rows.codes[j] for j in self._used], bases) if bases else _no_columns(len(rows.y))
        self._parts = [(j, part) for j in self._used for part in rows.effects[j].parts if part.kind in candidate.kinds]
        sizes = [part.stop - part.start for _, part in self._parts]
        d = data(self._X, rows.y, rows.family, rows.weight, rows.offset)
        self._part = np.repeat(np.arange(len(sizes)), sizes)
        self._together = np.zeros(len(sizes), int) if candidate.shared else None
        # also where penalties are tuned by folds: the bands are the posterior's
        self.marginal = Marginal(d, rows.family, self._part)
        self.found = self._tuned()
        fitted = self.marginal(self.found.rho, None) if rows.fold is not None else self.found.outer
        self.found = self.found._replace(outer=fitted)
        b = self._within(fitted.fits[0].b)
        self.intercept: np.ndarray = b[0]
        self.curves = self._curves(b)

    def _tuned(self) -> Found:
        fold = self.rows.fold
        loss = self.marginal if fold is None else Folds(self.marginal.data, self.rows.family, self._part, fold)
        m = len(self._parts)
        if not m:
            return Found(np.zeros(0), loss(np.zeros(0), None), 1, True)
        kind = np.unique([part.kind for _, part in self._parts], return_inverse=True)[1]
        if self._together is not None:
            found = minimise(tied(with_prior(loss, kind), self._together), np.array([CENTRE]))
            return found._replace(rho=found.rho[self._together])
        return tune(loss, kind)

    def _within(self, b: np.ndarray) -> np.ndarray:
        """The weights whose curves rise and fall as they should; penalties are tuned without that."""
        directions = [self.rows.directions[j] for j in self._used]
        if not any(directions):
            return b
        A = rising(self._X.bases, directions, [self.rows.effects[j].in_order for j in self._used])
        penalty = penalties(self.found.rho, self._part)
        return constrained(self.marginal.data, self.rows.family, penalty, b, A)

    def _curves(self, b: np.ndarray) -> tuple[np.ndarray, ...]:
        curves = [np.zeros((len(effect.basis), b.shape[1])) for effect in self.rows.effects]
        for k, j in enumerate(self._used):
            curves[j] = self._X.bases[k] @ b[self._block(k)]
            if direction := self.rows.directions[j]:  # but for rounding it is so already
                curve = curves[j][: self.rows.effects[j].in_order]
                curve[:] = direction * np.maximum.accumulate(direction * curve)
        return tuple(curves)

    def _block(self, k: int) -> slice:
        at = self._X.block(k)
        return slice(1 + at.start, 1 + at.stop)

    def scores(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        """Without an offset, [n, S]."""
        out = np.tile(self.intercept, (len(codes[0]), 1))
        for j in self._used:
            out += np.take(self.curves[j], codes[j], axis=0)
        return out

    def parts(self) -> list[TunedPart]:
        """Penalties and degrees of freedom."""
        freedom = self.marginal.freedom(self.found.rho, self.found.outer)
        return [
            TunedPart(j, part.kind, float(np.exp(rho)), float(df))
            for (j, part), rho, df in zip(self._parts, self.found.rho, freedom, strict=True)
        ]

    def errors(self, contrasts: np.ndarray) -> tuple[np.ndarray, ...]:
        """Standard errors of curve @ contrasts', [bins, C] each; contrasts [C, S]."""
        out = [np.zeros((len(effect.basis), len(contrasts))) for effect in self.rows.effects]
        if self._used:
            C = covariance(self.marginal, self.found, self._together)
            for k, j in enumerate(self._used):
                out[j] = curve_errors(self._X.bases[k], self._block(k), C, contrasts)
        return tuple(out)

    def evidence(self) -> np.ndarray:
        """log of the evidence for each effect, [p]: see :func:`~bilevax.solvers.additive_marginal.evidence`."""
        out = np.zeros(len(self.rows.effects))
        for k, j in enumerate(self._used):
            out[j] = evidence(self.marginal, self.found, self._block(k))
        return out


def _columns(effect: Effect, kinds: Sequence[PartKind]) -> np.ndarray:
    """Columns of an effect's basis that are of these kinds of parts."""
    ranges = [np.arange(part.start, part.stop) for part in effect.parts if part.kind in kinds]
    return np.concatenate([np.zeros(0, int), *ranges])


def _no_columns(n: int) -> BinnedColumns:
    return BinnedColumns([np.zeros(n, int)], [np.zeros((1, 0))])
