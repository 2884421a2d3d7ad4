"""Additive models of a table's columns: which parts of the effects a candidate has, and how its penalties are tuned."""

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from bilevax.linalg.binned import BinnedColumns
from bilevax.solvers.additive_blocks import Blocks
from bilevax.solvers.additive_families import Family
from bilevax.solvers.additive_fit import data, penalties
from bilevax.solvers.additive_folds import Folds
from bilevax.solvers.additive_marginal import Marginal, class_covariances, covariance, curve_errors, evidence, settled
from bilevax.solvers.additive_monotone import constrained
from bilevax.solvers.additive_search import (
    CENTRE,
    HIGHEST,
    LOWEST,
    Found,
    Outer,
    OuterLoss,
    Search,
    minimise,
    tied,
    tune,
    with_prior,
)
from bilevax.solvers.additive_shared import Model, additive_model, outer_loss
from bilevax.tables.effects import Effect, PartKind, room
from bilevax.tables.pair_screen import MOST, screened
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
        fold: of each row [n] where penalties are tuned by the K-fold loss, -1 of rows that they are not tuned on; None:
            they are tuned by the marginal likelihood.
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

TOLERANCE, FITTED = 1e-2, 1e-4
"""Of the outer loss, in units of a log-likelihood; and the part of it that is the tolerance of the fits of folds."""

WEIGHTS_OF_PAIRS, WEIGHTS = 1000, 2000
"""Of pairs, and of a model with pairs, at most: see :func:`~bilevax.tables.effects.room`."""


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


Name = tuple[int, PartKind] | tuple[int, int]
"""Of a part: its effect and kind; of a pair: its columns."""


class Start(NamedTuple):
    """Where a search for penalties starts.

    Attributes:
        rho: log penalties of parts and pairs.
        phi: dispersion.
    """

    rho: Mapping[Name, float]
    phi: float


class AdditiveFit:
    """A candidate, tuned and fitted.

    Args:
        rows: what to fit to.
        candidate: which.
        pairs: of columns.
        near: a fit to other rows, or without some of the pairs, whose weights are the start; None: an intercept alone.
        start: of the search; if None that of ``near``, and without it the best penalty that all parts share and the
            dispersion around an intercept.
        tolerance: of the outer loss.

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
        near: "AdditiveFit | None" = None,
        start: Start | None = None,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.rows, self.candidate, self.pairs, self.tolerance = rows, candidate, pairs, tolerance
        effects, pair_codes = rows.effects, self._with_pairs(rows.codes)[len(rows.effects) :]
        model = additive_model(
            effects, rows.codes, rows.y, rows.family, rows.weight, rows.offset,
            kinds=candidate.kinds, apart=not candidate.shared, start=near.model.shared if near else None,
        )  # fmt: skip
        X, m = model.X, len(model.kind)
        X = BinnedColumns([*X.codes, *pair_codes], [*X.bases, *(p.basis for p in pairs)], histograms=X.forced)
        sizes = [pair.basis.shape[1] for pair in pairs]
        self._part = np.concatenate([model.part, np.repeat(m + np.arange(len(pairs)), sizes)])
        # pairs are a kind of their own
        self._kind = np.concatenate([model.kind, np.full(len(pairs), model.kind.max(initial=-1) + 1)])
        self._together = np.zeros(m, int) if candidate.shared else None
        d = data(X, rows.y, rows.family, rows.weight, rows.offset)
        self.model: Model = model._replace(X=d.X)  # one matrix is enough
        # also where penalties are tuned by folds: the bands are the posterior's
        self.marginal = outer_loss(d, rows.family, self._part)
        self.marginal.start = None if near is None else self._weights_of(near)
        loss = self.marginal if rows.fold is None else self._folds(rows.fold)
        self.found = self._searched(loss, near.start() if start is None and near else start)
        if rows.fold is not None:
            self.found = self.found._replace(outer=self._at_penalties())
        b = self._within(self.found.outer.fits[0].b)
        self.intercept: np.ndarray = b[0]
        self.curves = self._curves(b)

    def _with_pairs(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [*codes, *(pair.codes(codes[pair.columns[0]], codes[pair.columns[1]]) for pair in self.pairs)]

    def _searched(self, loss: Marginal | Blocks | Folds, start: Start | None) -> Found:
        kind = self._kind
        if not len(kind):
            return Found(np.zeros(0), loss(np.zeros(0), None), 1, True)
        search: Search = minimise
        if isinstance(loss, Marginal) and self.rows.family.dispersed:
            loss.least = start.phi if start else loss.spread(loss(np.full(len(kind), HIGHEST)))
            search = partial(settled, loss)
        if start is not None:
            return self._descended(search, loss, self._log_penalties(start))
        if self._together is not None:
            return self._descended(search, loss, np.full(len(kind), CENTRE))
        return tune(loss, kind, search=search, tolerance=self.tolerance)

    def _descended(self, search: Search, loss: OuterLoss, rho: np.ndarray) -> Found:
        """With the prior, from these penalties; from the first of them, where all parts share one."""
        both, group = with_prior(loss, self._kind), self._together
        if group is None:
            return search(both, rho, tolerance=self.tolerance)
        found = search(tied(both, group), rho[:1], tolerance=self.tolerance)
        return found._replace(rho=found.rho[group])

    def _folds(self, fold: np.ndarray) -> Folds:
        """The K-fold loss of the rows that have a fold."""
        there = np.flatnonzero(fold >= 0)
        d, tolerance = self.marginal.data.rows(there), FITTED * self.tolerance
        out = Folds(d, self.rows.family, self._part, fold[there], tolerance=tolerance)
        out.start = self.marginal.start
        return out

    def _log_penalties(self, start: Start) -> np.ndarray:
        """Of its parts, the mean of what is known of those that share one, [m]."""
        known: list[list[float]] = [[] for _ in self.model.kind]
        for j, kind, number in self.model.parts:
            if number >= 0 and (j, kind) in start.rho:
                known[number].append(start.rho[j, kind])
        own = [float(np.mean(rho)) if rho else CENTRE for rho in known]
        return np.clip([*own, *(start.rho.get(pair.columns, pair.start) for pair in self.pairs)], LOWEST, HIGHEST)

    def _weights_of(self, near: "AdditiveFit") -> np.ndarray | None:
        """Those of another fit, 0 for pairs that it lacks, [1 + P, S]; None where its columns are other ones."""
        b = near.found.outer.fits[0].b
        same = near.pairs == self.pairs[: len(near.pairs)] and np.array_equal(near._part, self._part[: len(b) - 1])
        if near.model.note or self.model.note or not same:
            return None
        return np.pad(b, ((0, 1 + len(self._part) - len(b)), (0, 0)))

    def start(self) -> Start:
        """Where a search for the penalties of another fit can start."""
        rho, m = self.found.rho.tolist(), len(self.model.kind)
        found: dict[Name, float] = {(j, kind): rho[number] for j, kind, number in self.model.parts if number >= 0}
        found |= {pair.columns: rho[m + k] for k, pair in enumerate(self.pairs)}
        return Start(found, self.found.outer.phi)

    def _at_penalties(self) -> Outer:
        """The marginal likelihood at the penalties that the folds chose."""
        if self._together is None:
            return self.marginal(self.found.rho, None)
        return tied(self.marginal, self._together)(self.found.rho[:1], None)

    def _within(self, b: np.ndarray) -> np.ndarray:
        """The weights whose curves rise and fall as they should; penalties are tuned without that."""
        if not any(self.rows.directions):
            return b
        A = np.zeros((0, len(b)))
        for j, direction in enumerate(self.rows.directions):
            if direction:
                effect = self.rows.effects[j]
                steps = direction * np.diff(effect.basis[: effect.in_order], axis=0) @ self.model.weights(j)
                A = np.concatenate([A, np.pad(steps, ((0, 0), (1, len(b) - 1 - steps.shape[1])))])
        penalty = penalties(self.found.rho, self._part)
        return constrained(self.marginal.data, self.rows.family, penalty, b, A)

    def _curves(self, b: np.ndarray) -> tuple[np.ndarray, ...]:
        curves = list(self.model.curves(b[: 1 + len(self.model.part)]))
        for j, direction in enumerate(self.rows.directions):
            if direction:  # but for rounding it is so already
                curve = curves[j][: self.rows.effects[j].in_order]
                curve[:] = direction * np.maximum.accumulate(direction * curve)
        return (*curves, *(pair.basis @ b[at] for pair, at in zip(self.pairs, self._of_pairs(), strict=True)))

    def _of_pairs(self) -> list[slice]:
        """Rows of b that are each pair's."""
        stops = 1 + len(self.model.part) + np.cumsum([0, *(pair.basis.shape[1] for pair in self.pairs)])
        return [slice(int(start), int(stop)) for start, stop in pairwise(stops)]

    def scores(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        """Without an offset, of the bins of the columns, [n, S]."""
        out = np.tile(self.intercept, (len(codes[0]), 1))
        for curve, c in zip(self.curves, self._with_pairs(codes), strict=True):
            out += np.take(curve, c, axis=0)
        return out

    def columns(self, codes: Sequence[np.ndarray]) -> BinnedColumns:
        """X of other rows, by their bins, without the column of ones."""
        own, of_pairs = self.model.columns(codes), self._with_pairs(codes)[len(codes) :]
        bases = [*own.bases, *(pair.basis for pair in self.pairs)]
        return BinnedColumns([*own.codes, *of_pairs], bases, histograms=own.forced)

    def retuned(self, loss: Marginal, rho: np.ndarray) -> Found:
        """Penalties of another marginal likelihood of its columns, from rho on; those of folds, or of none, stay.

        Where the likelihood is exact the search is that of a fit to the other rows.
        """
        if self.rows.fold is not None or not len(rho):
            return Found(rho, loss(rho, None), 1, True)
        if not self.rows.family.bends and not self.pairs:
            return self._searched(loss, None)
        return self._descended(minimise, loss, rho)

    def moved(self, loss: Marginal | Blocks, found: Found, effects: tuple[Effect, ...]) -> "AdditiveFit":
        """The same columns with the weights that other rows give them, whose weights in the bins the effects know."""
        new = copy.copy(self)
        new.__dict__.pop("_inverse", None)
        new.rows, new.model = self.rows._replace(effects=effects), self.model._replace(effects=effects)
        new.marginal, new.found, b = loss, found, found.outer.fits[0].b
        new.intercept, new.curves = b[0], new._curves(b)
        return new

    def parts(self) -> list[TunedPart]:
        """Penalties and degrees of freedom."""
        rho, inverses = self.found.rho, self._inverses()
        lam = penalties(rho, self._part)[1:]
        # of part j, with W_j its weights from those of X: tr W_j (1 - A diag(lam)) W_j'
        F = len(inverses) * np.eye(len(lam)) - inverses.sum(axis=0)[1:, 1:] * lam
        out = []
        for (j, kind, number), W in zip(self.model.parts, self.model.parts_weights(), strict=True):
            if number >= 0:
                P = W.shape[1]
                freedom = float(np.sum((W @ F[:P, :P]) * W.toarray()))
                out.append(TunedPart(j, kind, float(np.exp(rho[number])), freedom))
        for k, at in enumerate(self._of_pairs()):
            own = slice(at.start - 1, at.stop - 1)
            penalty = float(np.exp(rho[len(self.model.kind) + k]))
            out.append(TunedPart(len(self.rows.effects) + k, "pair", penalty, float(np.trace(F[own, own]))))
        return out

    @cached_property
    def _inverse(self) -> np.ndarray:
        """H^-1, laid out like H."""
        return self.found.outer.fits[0].inverse()

    def _inverses(self) -> np.ndarray:
        """The diagonal blocks of H^-1, of every score, [S, 1 + P, 1 + P]; or of every class."""
        if isinstance(self.marginal, Blocks):
            return self._inverse
        S, P = self.rows.family.scores, 1 + len(self._part)
        at = np.arange(S)
        return self._inverse.reshape(S, P, S, P)[at, :, at]

    def _covariances(self, contrasts: np.ndarray) -> np.ndarray:
        """Of the weights of every class, [C, 1 + P, 1 + P]."""
        loss = self.marginal
        if isinstance(loss, Blocks):
            return loss.covariances(self.found, self._together)
        return class_covariances(covariance(loss, self.found, self._together, self._inverse), contrasts)

    def errors(self, contrasts: np.ndarray) -> tuple[np.ndarray, ...]:
        """Standard errors of curve @ contrasts', [bins, C] each; contrasts [C, S]."""
        covariances, P = self._covariances(contrasts), 1 + len(self.model.part)
        of_pairs = zip(self.pairs, self._of_pairs(), strict=True)
        errors = (curve_errors(pair.basis, covariances[:, at, at]) for pair, at in of_pairs)
        return (*self.model.errors(covariances[:, :P, :P]), *errors)

    def influence(self) -> np.ndarray | None:
        """d' H d / phi, with d what leaving a row out does to the weights (Cook 1977), [n]; None for several scores.

        With h = w W x' H^-1 x the leverage and r the slope of the loss, a Newton step is d = H^-1 x w r / (1 - h).
        """
        if self.rows.family.scores > 1:
            return None
        at, w, phi = self.found.outer.fits[0].losses, self.rows.weight, self.found.outer.phi
        q = self.marginal.data.X.quadratic(self._inverse)
        rest = np.maximum(1.0 - w * at.curvature[:, 0, 0] * q, 1e-6)
        # d' H d = q (w r / (1 - h))^2, q = x' H^-1 x
        out: np.ndarray = q * (w * at.slope[:, 0] / rest) ** 2 / phi
        return out

    def evidence(self) -> np.ndarray:
        """log of the evidence for each effect and pair: see :func:`~bilevax.solvers.additive_marginal.evidence`.

        NaN where an effect shares its penalties with others: there is none for it alone.
        """
        alone = [self.model.own_columns(j) for j in range(len(self.rows.effects))]
        columns = [*alone, *(np.arange(at.start, at.stop) for at in self._of_pairs())]
        return np.array([np.nan if at is None else self._evidence(at) for at in columns])

    def _evidence(self, at: np.ndarray) -> float:
        if not len(at):
            return 0.0
        loss, found, inverse = self.marginal, self.found, self._inverse
        return loss.evidence(found, at, inverse) if isinstance(loss, Blocks) else evidence(loss, found, at, inverse)

    def screened(self, known: frozenset[tuple[int, int]]) -> list[Pair]:
        """Pairs that would add to the marginal likelihood, none of which are known."""
        rows, at = self.rows, self.found.outer.fits[0]
        S, n = rows.family.scores, int(rows.weight.sum())
        if self.model.note:
            return []  # for want of room
        have = sum(pair.basis.shape[1] for pair in self.pairs)
        C = S + 1 if S > 1 else 1
        budget = min(room(C, WEIGHTS_OF_PAIRS), n, room(C, WEIGHTS) - len(self.model.part)) - have
        if budget <= 0 or len(self.pairs) >= MOST:
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
            most=MOST - len(self.pairs),
        )
