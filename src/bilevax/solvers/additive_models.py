"""Additive models of a table's columns: which parts of the effects a candidate has, and how its penalties are tuned."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from bilevax.linalg.binned import BinnedColumns
from bilevax.solvers.additive_families import Family
from bilevax.solvers.additive_fit import data, penalties
from bilevax.solvers.additive_folds import Folds
from bilevax.solvers.additive_marginal import Marginal, covariance, curve_errors, evidence, settled
from bilevax.solvers.additive_monotone import constrained, rising
from bilevax.solvers.additive_search import CENTRE, HIGHEST, LOWEST, Found, Search, minimise, tied, tune, with_prior
from bilevax.tables.effects import Effect, PartKind
from bilevax.tables.pair_screen import screened
from bilevax.tables.pairs import Pair


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
PAIRS = Candidate("additive with pairs", (*ADDITIVE.kinds, "pair"))
"""In the order of what they may do."""

MOST_PAIRS, ROUNDS = 30, 3
"""Pairs of columns of a model, and how often they are screened for, at most."""

WEIGHTS_OF_PAIRS, WEIGHTS = 1000, 2000
"""Of pairs, and of a model with pairs, about, at most."""


class TunedPart(NamedTuple):
    """A part of an effect in a tuned model.

    Attributes:
        effect: number of the effect; those of pairs follow those of columns.
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
        pairs: of columns.
        start: log penalties of the parts to start from; None: the best that all share.
        least: dispersion to start from; 0: that around an intercept.

    Attributes:
        intercept: [S].
        curves: of every effect [bins, S], and of every pair [joint bins, S]; 0 where the candidate has no part of it.
        found: penalties, and the outer loss.
    """

    def __init__(
        self,
        rows: Rows,
        candidate: Candidate,
        pairs: tuple[Pair, ...] = (),
        start: np.ndarray | None = None,
        least: float = 0.0,
    ) -> None:
        self.rows, self.candidate, self.pairs = rows, candidate, pairs
        effects: tuple[Effect | Pair, ...] = (*rows.effects, *pairs)
        columns = [_columns(effect, candidate.kinds) for effect in effects]
        self._used = [j for j, own in enumerate(columns) if own.size]
        self._bins = [len(effect.basis) for effect in effects]
        codes = self._with_pairs(rows.codes)
        bases = [effects[j].basis[:, columns[j]] for j in self._used]
        self._X = BinnedColumns([codes[j] for j in self._used], bases) if bases else _no_columns(len(rows.y))
        self._parts = [(j, part) for j in self._used for part in effects[j].parts if part.kind in candidate.kinds]
        sizes = [part.stop - part.start for _, part in self._parts]
        d = data(self._X, rows.y, rows.family, rows.weight, rows.offset)
        self._part = np.repeat(np.arange(len(sizes)), sizes)
        self._together = np.zeros(len(sizes), int) if candidate.shared else None
        # also where penalties are tuned by folds: the bands are the posterior's
        self.marginal = Marginal(d, rows.family, self._part)
        self.found = self._tuned(start, least)
        if rows.fold is not None:
            self.found = self.found._replace(outer=self.marginal(self.found.rho, None))
        b = self._within(self.found.outer.fits[0].b)
        self.intercept: np.ndarray = b[0]
        self.curves = self._curves(b)

    def _with_pairs(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [*codes, *(pair.codes(codes[pair.columns[0]], codes[pair.columns[1]]) for pair in self.pairs)]

    def _tuned(self, start: np.ndarray | None, least: float) -> Found:
        model, fold, m = self.marginal, self.rows.fold, len(self._parts)
        loss = model if fold is None else Folds(model.data, self.rows.family, self._part, fold)
        if not m:
            return Found(np.zeros(0), loss(np.zeros(0), None), 1, True)
        search: Search = minimise
        if fold is None and self.rows.family.dispersed:
            model.least = least or model.spread(model(np.full(m, HIGHEST)))
            search = partial(settled, model)
        kind = np.unique([part.kind for _, part in self._parts], return_inverse=True)[1]
        if self._together is not None:
            found = search(tied(with_prior(loss, kind), self._together), np.array([CENTRE]))
            return found._replace(rho=found.rho[self._together])
        return tune(loss, kind, search=search) if start is None else search(with_prior(loss, kind), start)

    def _within(self, b: np.ndarray) -> np.ndarray:
        """The weights whose curves rise and fall as they should; penalties are tuned without that."""
        directions = [self.rows.directions[j] if j < len(self.rows.effects) else 0 for j in self._used]
        if not any(directions):
            return b
        orders = [self.rows.effects[j].in_order if j < len(self.rows.effects) else 0 for j in self._used]
        A = rising(self._X.bases, directions, orders)
        penalty = penalties(self.found.rho, self._part)
        return constrained(self.marginal.data, self.rows.family, penalty, b, A)

    def _curves(self, b: np.ndarray) -> tuple[np.ndarray, ...]:
        curves = [np.zeros((bins, b.shape[1])) for bins in self._bins]
        for k, j in enumerate(self._used):
            curves[j] = self._X.bases[k] @ b[self._block(k)]
        for j, direction in enumerate(self.rows.directions):
            if direction:  # but for rounding it is so already
                curve = curves[j][: self.rows.effects[j].in_order]
                curve[:] = direction * np.maximum.accumulate(direction * curve)
        return tuple(curves)

    def _block(self, k: int) -> slice:
        at = self._X.block(k)
        return slice(1 + at.start, 1 + at.stop)

    def scores(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        """Without an offset, of the bins of the columns, [n, S]."""
        out = np.tile(self.intercept, (len(codes[0]), 1))
        every = self._with_pairs(codes)
        for j in self._used:
            out += np.take(self.curves[j], every[j], axis=0)
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
        out = [np.zeros((bins, len(contrasts))) for bins in self._bins]
        if self._used:
            C = covariance(self.marginal, self.found, self._together)
            for k, j in enumerate(self._used):
                out[j] = curve_errors(self._X.bases[k], self._block(k), C, contrasts)
        return tuple(out)

    def evidence(self) -> np.ndarray:
        """log of the evidence for each effect and pair: see :func:`~bilevax.solvers.additive_marginal.evidence`."""
        out = np.zeros(len(self._bins))
        for k, j in enumerate(self._used):
            out[j] = evidence(self.marginal, self.found, self._block(k))
        return out

    def screened(self, known: frozenset[tuple[int, int]]) -> list[Pair]:
        """Pairs that would add to the marginal likelihood, none of which are known."""
        rows, at = self.rows, self.found.outer.fits[0]
        S, n = rows.family.scores, int(rows.weight.sum())
        have = sum(pair.basis.shape[1] for pair in self.pairs)
        budget = min(WEIGHTS_OF_PAIRS, n, WEIGHTS - S * (self._X.shape[1] - have)) // S - have
        if budget <= 0 or len(self.pairs) >= MOST_PAIRS:
            return []
        return screened(
            rows.effects,
            rows.codes,
            at.losses.slope,
            at.losses.curvature,
            rows.weight,
            budget=budget,
            phi=self.found.outer.phi,
            known=known,
            most=MOST_PAIRS - len(self.pairs),
        )


def with_pairs(fit: AdditiveFit) -> AdditiveFit:
    """The additive model with the pairs of columns that it lacks; itself, where it lacks none.

    Pairs that neighbours of others imitate, and those that the noise hid, show when the others are there.
    """
    for _ in range(ROUNDS):
        new = fit.screened(frozenset(pair.columns for pair in fit.pairs))
        if not new:
            break
        start = np.clip([*fit.found.rho, *(pair.start for pair in new)], LOWEST, HIGHEST)
        fit = AdditiveFit(fit.rows, PAIRS, (*fit.pairs, *new), start, fit.marginal.least)
    return fit


def _columns(effect: Effect | Pair, kinds: Sequence[PartKind]) -> np.ndarray:
    """Columns of an effect's basis that are of these kinds of parts."""
    ranges = [np.arange(part.start, part.stop) for part in effect.parts if part.kind in kinds]
    return np.concatenate([np.zeros(0, int), *ranges])


def _no_columns(n: int) -> BinnedColumns:
    return BinnedColumns([np.zeros(n, int)], [np.zeros((1, 0))])
