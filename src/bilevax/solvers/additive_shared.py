"""Additive models of any number of columns: where there is no room for all, columns share penalties.

A table with too few rows for a penalty for each part, or whose parts have more weights than there is room for, is
treated as one whose columns are alike: the parts of a kind share a penalty. Then the model is one of
X_kind = [E_1 Z_1, ..., E_p Z_p] V, V the principal directions of the rows, of which there are no more than rows; but
for those left out for want of room it is the same model, of columns b_j = V_j u. Penalties are tuned for it. Parts with
an effect so much larger than their kind's that chance would bring it less than once in the whole table have functions
and penalties of their own in the model that is given back.

For part j, with A = H^-1 and M_j = V_j (I - exp(rho) A) V_j', the statistic exp(rho) |b_j|^2 / phi has mean tr M_j
and variance 2 tr M_j^2 if the prior holds; its law is taken for that of a gamma variable.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.sparse import csr_array
from scipy.stats import gamma

from bilevax.linalg.binned import DENSE, BinnedColumns
from bilevax.solvers.additive_blocks import Blocks
from bilevax.solvers.additive_families import Family, Multinomial
from bilevax.solvers.additive_fit import Data, data
from bilevax.solvers.additive_marginal import Marginal, curve_errors
from bilevax.solvers.additive_search import CENTRE, Found, minimise, tune, with_prior
from bilevax.tables.effects import Effect, PartKind, room

KINDS: tuple[PartKind, ...] = ("linear", "levels", "steps", "missing", "smooth", "rough")
FIRST = 4
"""So many kinds keep all their directions before others have any."""

EXACT = 500
"""Weights of all scores up to which the Hessian is taken whole."""

ROWS = 4
"""Rows, once for each score, that a penalty takes at least."""

TOLERANCE = 0.1
"""Of the outer loss of many penalties, in units of a log-likelihood."""


class Model(NamedTuple):
    """Columns to fit to, and how they make up the effects.

    Attributes:
        effects: of the table.
        X: [n, P], for :func:`~bilevax.solvers.additive_fit.data`.
        part: number of the penalty of each column of X, [P].
        kind: number of the kind of each penalty, [m].
        back: weights of the effects' bases, one effect after the other, from those of X, [sum of functions, P].
        parts: effect, kind and number of the penalty of every part, -1 where there is no room for it.
        note: what the user should know; empty if every part has a penalty of its own.
        shared: log penalties of the kinds were all parts of a kind to share one; empty where that was not asked.
    """

    effects: tuple[Effect, ...]
    X: BinnedColumns
    part: np.ndarray
    kind: np.ndarray
    back: csr_array
    parts: tuple[tuple[int, PartKind, int], ...]
    note: str
    shared: Mapping[PartKind, float] = MappingProxyType({})

    def weights(self, j: int) -> csr_array:
        """Rows of ``back`` that are effect j's."""
        start = sum(e.basis.shape[1] for e in self.effects[:j])
        return self.back[start : start + self.effects[j].basis.shape[1]]

    def parts_weights(self) -> list[csr_array]:
        """Rows of ``back`` that are each part's."""
        out, starts = [], np.cumsum([0, *(e.basis.shape[1] for e in self.effects)])
        for j, kind, _ in self.parts:
            part = next(part for part in self.effects[j].parts if part.kind == kind)
            out.append(self.back[starts[j] + part.start : starts[j] + part.stop])
        return out

    def columns(self, codes: Sequence[np.ndarray]) -> BinnedColumns:
        """X of other rows, by their bins in each effect, [n'] each."""
        if self.note:
            whole = BinnedColumns(codes, [e.basis for e in self.effects])
            n, K = whole.shape
            pieces = (slice(i, i + max(1, DENSE // K)) for i in range(0, n, max(1, DENSE // K)))
            X = np.concatenate([whole.dense(piece) @ self.back for piece in pieces])
            return BinnedColumns([np.arange(n)], [X], histograms=False)
        used = [(j, np.unique(self.weights(j).tocoo().coords[1])) for j in range(len(self.effects))]
        used = [(j, at) for j, at in used if len(at)]
        bases = [self.effects[j].basis @ self.weights(j)[:, at] for j, at in used]
        return BinnedColumns([codes[j] for j, _ in used], bases) if used else _nothing(len(codes[0]))

    def own_columns(self, j: int) -> np.ndarray | None:
        """Rows of b, the intercept being row 0, that are effect j's alone; None if it shares all its penalties."""
        W = self.weights(j).tocoo()
        alone = np.unique(W.coords[1])
        alone = alone[np.bincount(self.back.tocoo().coords[1], minlength=self.back.shape[1])[alone] == 1]
        return None if W.nnz and not len(alone) else 1 + alone

    def curves(self, b: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of every effect, [bins, S], from b [1 + P, S]."""
        every = self.back @ b[1:]
        stops = np.cumsum([e.basis.shape[1] for e in self.effects])
        return tuple(e.basis @ own for e, own in zip(self.effects, np.split(every, stops[:-1]), strict=True))

    def errors(self, covariances: np.ndarray) -> tuple[np.ndarray, ...]:
        """Standard errors of every effect, [bins, C], from covariances of b by class, [C, 1 + P, 1 + P]."""
        out = []
        for j, effect in enumerate(self.effects):
            W = self.weights(j)
            out.append(curve_errors(effect.basis, np.array([W @ (W @ V[1:, 1:]).T for V in covariances])))
        return tuple(out)


class _Group(NamedTuple):
    """Parts that share a penalty: its number, their columns among all, V, and the first of its columns in X."""

    penalty: int
    at: np.ndarray
    V: np.ndarray
    start: int


class _Table:
    """All parts of some kinds, as one matrix [n, K]."""

    def __init__(self, effects: Sequence[Effect], codes: Sequence[np.ndarray], kinds: Sequence[PartKind]) -> None:
        self.effects = tuple(effects)
        self.X = BinnedColumns(codes, [e.basis for e in effects])
        self.parts = [(j, part) for j, e in enumerate(effects) for part in e.parts if part.kind in kinds]
        self.part, self.place = np.full((2, self.X.shape[1]), -1)
        for m, (j, part) in enumerate(self.parts):
            at = np.arange(part.start, part.stop)
            self.part[self.X.starts[j] + at], self.place[self.X.starts[j] + at] = m, at - part.start
        self.kind = np.array([KINDS.index(part.kind) for _, part in self.parts], int)
        self.sizes = np.array([part.stop - part.start for _, part in self.parts], int)

    def some(self, at: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Codes and bases of some columns, [K] of flags."""
        flags = [(j, at[self.X.block(j)]) for j in range(len(self.effects))]
        used = [(j, own) for j, own in flags if own.any()]
        return [self.X.codes[j] for j, _ in used], [self.X.bases[j][:, own] for j, own in used]

    def model(self, alone: np.ndarray, budget: int) -> tuple[Model, list[_Group]]:
        """The parts that stand alone, and principal directions of the others of each kind: ``budget`` columns."""
        mine = np.append(alone, False)[self.part]
        shared = self._directions(alone, budget - int(mine.sum()), budget)
        codes, bases = self.some(mine)
        number: np.ndarray = np.where(alone, np.cumsum(alone) - 1, -1)
        kinds, penalty = list(self.kind[alone]), list(number[self.part[mine]])
        back = [(np.flatnonzero(mine), np.arange(int(mine.sum())), np.ones(int(mine.sum())))]
        groups = []
        for kind, at, V in shared:
            start = len(penalty)
            groups.append(_Group(len(kinds), at, V, start))
            number[~alone & (self.kind == kind)] = len(kinds)
            penalty += [len(kinds)] * V.shape[1]
            kinds.append(kind)
            codes.append(np.arange(self.X.shape[0]))
            bases.append(self._dot(at, V))
            i, k = np.indices(V.shape)
            back.append((at[i].ravel(), start + k.ravel(), V.ravel()))
        to, of, values = (np.concatenate(x) for x in zip(*back, strict=True))
        matrix = csr_array((values, (to, of)), shape=(self.X.shape[1], len(penalty)))
        X = BinnedColumns(codes, bases, histograms=False if shared else None) if codes else _nothing(self.X.shape[0])
        parts = tuple((j, part.kind, int(m)) for (j, part), m in zip(self.parts, number, strict=True))
        of_kind = np.unique(np.array(kinds, int), return_inverse=True)[1]
        note = self._note(alone) if shared else ""
        return Model(self.effects, X, np.array(penalty, int), of_kind, matrix, parts, note), groups

    def _directions(self, alone: np.ndarray, left: int, budget: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Kind, columns and V of the others; all of the simple kinds first, else those of most variance."""
        found = []
        for kind in range(len(KINDS)):
            others = (self.kind == kind) & ~alone
            if others.any():
                most = max(1, budget // int(others.sum()))
                at = np.append(others, False)[self.part] & (self.place < most)
                found.append((kind, np.flatnonzero(at), *_principal(BinnedColumns(*self.some(at)))))
        # directions of the FIRST kinds before all others, then by size
        rank = [np.where(kind < FIRST, 1e100, 1.0) * e for kind, _, e, _ in found]
        every = np.sort(np.concatenate(rank))[::-1] if rank else np.zeros(0)
        least = every[left] if len(every) > left else -1.0
        kept = [(kind, at, V[:, r > least]) for (kind, at, _, V), r in zip(found, rank, strict=True)]
        return [entry for entry in kept if entry[2].shape[1]]

    def _dot(self, at: np.ndarray, V: np.ndarray) -> np.ndarray:
        whole = np.zeros((self.X.shape[1], V.shape[1]))
        whole[at] = V
        return self.X.dot(whole)

    def _note(self, alone: np.ndarray) -> str:
        return (
            f"there are too few rows, or too many weights, for a penalty for each of the {len(alone):,} parts of "
            f"{len(self.effects):,} columns: {int(alone.sum()):,} with strong effects have one of their own, "
            "the others of a kind share one"
        )


def _nothing(n: int) -> BinnedColumns:
    return BinnedColumns([np.zeros(n, int)], [np.zeros((1, 0))])


def _principal(X: BinnedColumns) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of X'X above rounding, and their eigenvectors, [K, rank]."""
    n, K = X.shape
    if n >= K:
        # X'X = V e V': the directions V in the order of what they move the scores by
        e, V = eigh(X.gram(np.ones(n)))
        kept = e > 1e-12 * e[-1]
        return e[kept], V[:, kept]
    D = X.dense()
    # of fewer rows than columns by XX' = U e U', V = X' U / sqrt(e)
    e, U = eigh(D @ D.T)
    kept = e > 1e-12 * e[-1]
    return e[kept], D.T @ (U[:, kept] / np.sqrt(e[kept]))


def outer_loss(d: Data, family: Family, part: np.ndarray) -> Marginal | Blocks:
    """The marginal likelihood, of many classes class by class."""
    if isinstance(family, Multinomial) and family.scores * d.X.shape[1] > EXACT:
        return Blocks(d, family, part)
    return Marginal(d, family, part)


def additive_model(
    effects: Sequence[Effect],
    codes: Sequence[np.ndarray],
    y: np.ndarray,
    family: Family,
    weight: np.ndarray | None = None,
    offset: np.ndarray | None = None,
    *,
    kinds: Sequence[PartKind] = KINDS,
    apart: bool = True,
    budget: int | None = None,
    start: Mapping[PartKind, float] | None = None,
) -> Model:
    """Columns and parts of a model of the effects, whose size is bounded.

    A penalty for every part where ``budget`` weights are enough, and ROWS rows for each penalty there; else shared
    ones, and those of parts with strong effects, which take half of the budget at most.

    Args:
        effects: of the table's columns.
        codes: bins of the rows, [n] each.
        y: targets as the family takes them, [n].
        family: of the likelihood.
        weight: of the rows, [n].
        offset: of the scores, [n, S].
        kinds: of the parts that the model has.
        apart: whether parts may have penalties of their own where there is no room for all; False: those of a kind
            share one.
        budget: weights of a score; None: :func:`~bilevax.tables.effects.room`.
        start: ``shared`` of a model of other rows, from which the search for these penalties starts.

    Cost: where penalties are shared, an eigendecomposition of at most n columns a kind, and a search for as many
    penalties as there are kinds.
    """
    table = _Table(effects, codes, kinds)
    C = family.scores + 1 if isinstance(family, Multinomial) else 1
    budget = room(C) if budget is None else budget
    if int(table.sizes.sum()) <= budget and ROWS * len(table.parts) <= len(y) * family.scores:
        return table.model(np.ones(len(table.parts), bool), budget)[0]
    alone = np.zeros(len(table.parts), bool)
    model, groups = table.model(alone, budget)
    if not apart or not groups:
        return model
    d = data(model.X, y, family, weight, offset)
    # Its blocks are what the evidence is taken from.
    loss = Blocks(d, family, model.part) if isinstance(family, Multinomial) else Marginal(d, family, model.part)
    kind_of = {number: kind for _, kind, number in model.parts if number >= 0}
    if start:
        rho = np.array([start.get(kind_of[m], CENTRE) for m in range(len(kind_of))])
        found = minimise(with_prior(loss, model.kind), rho, tolerance=TOLERANCE)
    else:
        found = tune(loss, model.kind, tolerance=TOLERANCE)
    shared = {kind: float(found.rho[m]) for m, kind in kind_of.items()}
    chance = _chances(table, groups, loss, found)
    order = np.argsort(chance, kind="stable")
    order = order[chance[order] * len(order) < 1.0]
    alone[order[np.cumsum(table.sizes[order]) <= budget // 2]] = True
    return (table.model(alone, budget)[0] if alone.any() else model)._replace(shared=shared)


def _chances(table: _Table, groups: Sequence[_Group], loss: Marginal | Blocks, found: Found) -> np.ndarray:
    """Probability of an effect as large as that of each part, if it were like the others of its kind."""
    fitted = found.outer.fits[0]
    Q = loss.Q if isinstance(loss, Blocks) else np.eye(1)
    inverses = fitted.inverse().reshape(len(Q), len(fitted.b), -1)
    b = fitted.b @ Q.T
    out = np.ones(len(table.parts))
    for group in groups:
        at = 1 + group.start + np.arange(group.V.shape[1])
        lam = float(np.exp(found.rho[group.penalty]))
        # lam |b_part|^2 / phi, the part's own share of the penalty
        size = lam * np.sum((group.V @ b[at]) ** 2, axis=1) / found.outer.phi
        # V (I - lam A) V', the share's covariance were all penalties of the group right
        products = [group.V @ (np.eye(len(at)) - lam * A[np.ix_(at, at)]) for A in inverses]
        part = table.part[group.at]
        for m in np.unique(part):
            own = part == m
            M = np.array([product[own] @ group.V[own].T for product in products])
            # |z|^2 of z ~ N(0, M) has the mean tr M and the variance 2 tr M^2: a gamma of these two moments
            mean, half = float(np.einsum("cii->", M)), float(np.sum(M * M))
            # shape mean^2 / variance, scale variance / mean
            out[m] = gamma.sf(size[own].sum(), 0.5 * mean * mean / half, scale=2.0 * half / mean) if half > 0.0 else 1.0
    return out
