"""Additive models of rows that are too many to hold: these go by in pieces, and a pass is a Newton step.

At weights b a pass adds up, over its rows,

    l = sum_i w_i d(y_i, s_i),    g = X' (w d'),    G = X' W X

of which a Newton step and, with l + g' (c - b) + 1/2 (c - b)' G (c - b) for the rows' part of F(c), the marginal
likelihood are made: exact for Gaussian rows, else as if W were constant near b. After each pass the penalties are tuned
anew by it.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bilevax.core.limits import require
from bilevax.core.processes import ALONE, Pairwise, Processes
from bilevax.linalg.binned import BinnedColumns
from bilevax.solvers.additive_blocks import BlockFit, Blocks
from bilevax.solvers.additive_families import Family, Losses
from bilevax.solvers.additive_fit import Data, Fit, curvature, data, factorised, part_sums, penalties, point
from bilevax.solvers.additive_marginal import Marginal, dispersion
from bilevax.solvers.additive_models import AdditiveFit
from bilevax.solvers.additive_search import Found, Outer
from bilevax.tables.effects import Effect
from bilevax.tables.memory import HELPS

CLOSE = 0.1
"""What a step promises of the log-likelihood when it is the last: what it leaves is of second order."""

CURVATURES = 4_000_000
"""Second derivatives of losses that are there together, at most."""

COPIES = 9
"""Of a Hessian that a step takes, at most: with those of rows that are summed at the same time."""


class Sums(NamedTuple):
    """l, g and G over rows at b, and their weight.

    Attributes:
        value: l.
        gradient: g, [1 + P, S].
        gram: G, laid out score by score, [S (1 + P), S (1 + P)].
        weight: of the rows.
    """

    value: float
    gradient: np.ndarray
    gram: np.ndarray
    weight: float

    def plus(self, other: "Sums") -> "Sums":
        """Of the rows of both."""
        (value, g, G, weight), more = self, other
        return Sums(value + more.value, g + more.gradient, G + more.gram, weight + more.weight)


def sums(d: Data, family: Family, b: np.ndarray) -> Sums:
    """Of these rows; cost: as of a gradient and a curvature of :func:`~bilevax.solvers.additive_fit.fit`."""
    at = point(d, family, np.zeros(len(b)), b)
    gradient = d.X.transposed_dot(d.weight[:, None] * at.losses.slope)
    return Sums(at.value, gradient, curvature(d, at.losses), float(d.weight.sum()))


class Expanded(Marginal):
    """V with the rows' part of F as it is expanded at b.

    Args:
        like: the marginal likelihood of other rows, of the same columns.
        summed: over the rows, at b.
        b: [1 + P, S].
        ratio: of the dispersion of the rows that weights depend on, over that of all.
    """

    def __init__(self, like: Marginal | Blocks, summed: Sums, b: np.ndarray, ratio: float = 1.0) -> None:
        self.family, self.part, self.summed, self.at, self.ratio = like.family, like.part, summed, b, ratio
        self._sums = part_sums(self.part, self.family.scores)
        self.rank = self._sums.sum(axis=1)
        self.least = 0.0
        # of its rows the weight alone is asked for
        none = np.zeros(0)
        X = BinnedColumns([none], [np.zeros((1, len(b)))])
        self.data = Data(X, none, np.array([summed.weight]), np.zeros((0, self.family.scores)))

    def _fit(self, penalty: np.ndarray, near: Fit | None) -> Fit:
        """g + G (c - b) + penalty c = 0."""
        (value, g, G, _), b, S = self.summed, self.at, self.family.scores
        factor = factorised(G, penalty)
        none = Losses(np.zeros(0), np.zeros((0, S)), np.zeros((0, S, S)))
        fit = Fit(b, np.zeros((0, S)), none, value, none.curvature, G, factor, 1, True)
        # c = b - (G + penalty)^-1 (g + penalty b)
        step = -fit.solve(g + penalty[:, None] * b)
        # F(c) = l + g' s + s' G s / 2 + sum_j lam_j |c_j|^2 / 2, s = c - b
        move = step.T.ravel()
        # l(c) ~ l(b) + g'(c - b) + (c - b)' G (c - b) / 2
        value += float(np.sum(g * step)) + 0.5 * float(move @ G @ move)
        c = b + step
        return fit._replace(b=c, value=value + 0.5 * float(penalty @ np.sum(c * c, axis=1)))

    def _bending(self, found: Fit, A: np.ndarray) -> np.ndarray:
        return np.zeros_like(found.b)

    def spread(self, outer: Outer) -> float:
        """Of these rows no more is known than their sums."""
        return self.ratio * _dispersion(self, outer.fits[0].value)


def _dispersion(loss: Marginal, F: float) -> float:
    return float(np.exp(dispersion(loss.family, F, loss.data.weight, loss.family.scores)[0]))


class Passing:
    """A model on its way from its fit to some rows to that to all, which go by.

    Args:
        fit: to some of the rows.

    Attributes:
        passes: how many there were.

    Raises:
        ResourceError: the Hessian takes more memory than there is.
    """

    def __init__(self, fit: AdditiveFit) -> None:
        size = fit.found.outer.fits[0].b.size
        require(COPIES * 8 * size**2, f"a Newton step of {size:,} weights", HELPS)
        self.fit, self.b, self.rho, self.passes = fit, fit.found.outer.fits[0].b, fit.found.rho, 0
        self._start = np.append(self.b, self.rho)
        self._sums = Pairwise(Sums.plus)
        self._total: Sums | None = None
        self._before: tuple[np.ndarray, float] | None = None
        self._reached: tuple[Expanded, Found] | None = None
        # of the dispersion of the rows that weights depend on, over that of all
        like = fit.marginal
        self._spread = (
            like.least / _dispersion(like, fit.found.outer.fits[0].value) if isinstance(like, Marginal) else 1.0
        )

    def sums(self, codes: Sequence[np.ndarray], y: np.ndarray, weight: np.ndarray) -> list[Sums]:
        """Of rows, by their bins in each effect, [n] each, for :meth:`add`; by any thread."""
        family = self.fit.rows.family
        most = max(1, CURVATURES // family.scores**2)
        parts = (slice(i, i + most) for i in range(0, len(y), most))
        rows = (data(self.fit.columns([c[at] for c in codes]), y[at], family, weight[at]) for at in parts)
        return [sums(d, family, self.b) for d in rows]

    def add(self, parts: Sequence[Sums], stratum: int = 0) -> None:
        """Rows of the pass, of a stratum that is not before earlier ones."""
        for part in parts:
            self._sums.add(stratum, part)

    def end(self, processes: Processes = ALONE) -> None:
        """End the pass: all rows went by, here or in another process."""
        S, P = self.b.shape[1], len(self.b)
        own = self._sums.total() or Sums(0.0, np.zeros_like(self.b), np.zeros((S * P, S * P)), 0.0)
        value, weight = processes.summed(np.array([own.value, own.weight]))
        gradient, gram = processes.summed(own.gradient), processes.summed(own.gram)
        self._total = Sums(float(value), gradient, gram, float(weight))

    @property
    def crc32(self) -> str:
        """Of what it starts from, by which processes see whether theirs is the same."""
        return f"{zlib.crc32(self._start.tobytes()):08x}"

    def state(self) -> dict[str, np.ndarray]:
        """What there is at the end of a pass, before :meth:`step`."""
        assert self._total is not None
        before, last = self._before or (np.zeros(0), 0.0)
        own = {
            "start": self._start,
            "b": self.b,
            "rho": self.rho,
            "passes": self.passes,
            "before": before,
            "last": last,
        }
        return {key: np.asarray(x) for key, x in {**own, **self._total._asdict()}.items()}

    def restored(self, state: Mapping[str, np.ndarray] | None) -> bool:
        """Whether it is now where it was at the end of a pass: the state may be that of another fit."""
        if state is None or state["start"].shape != self._start.shape or not np.allclose(state["start"], self._start):
            return False
        self.b, self.rho, self.passes = state["b"], state["rho"], int(state["passes"])
        self._before = (state["before"], float(state["last"])) if state["before"].size else None
        self._total = Sums(float(state["value"]), state["gradient"], state["gram"], float(state["weight"]))
        return True

    def step(self) -> bool:
        """Move to where the pass says; whether another one is needed."""
        assert self._total is not None
        total, self._total, b = self._total, None, self.b
        penalty = penalties(self.rho, self.fit.marginal.part)
        value = total.value + 0.5 * float(penalty @ np.sum(b * b, axis=1))
        if self._before is not None and value > self._before[1] + 1e-9 * abs(value):
            self.b = 0.5 * (self._before[0] + b)  # too far
            return True
        loss = Expanded(self.fit.marginal, total, b, self._spread)
        if loss.family.dispersed:
            loss.least = self._spread * _dispersion(loss, value)
        found = self._found(loss)
        self.rho, self.passes, self._reached = found.rho, self.passes + 1, (loss, found)
        self.b, penalty = found.outer.fits[0].b, penalties(found.rho, loss.part)
        # 1/2 (c - b)' H (c - b) of F(b) - F(c)
        promised = -0.5 * float(np.sum((total.gradient + penalty[:, None] * b) * (self.b - b)))
        self._before = b, total.value + 0.5 * float(penalty @ np.sum(b * b, axis=1))
        return self.fit.rows.family.bends and promised > CLOSE

    def _found(self, loss: Expanded) -> Found:
        """Of many classes, whose marginal likelihood goes class by class, penalties stay."""
        if isinstance(self.fit.marginal, Blocks):
            fits = (loss._fit(penalties(self.rho, loss.part), None),)
            return Found(self.rho, self.fit.found.outer._replace(fits=fits), 1, True)
        return self.fit.retuned(loss, self.rho)

    def fitted(self, effects: tuple[Effect, ...]) -> AdditiveFit:
        """To all rows, as far as they went by to the end; the effects know the weights of these in their bins."""
        if self._reached is None:
            return self.fit
        (loss, found), like = self._reached, self.fit.marginal
        if not isinstance(like, Blocks):
            return self.fit.moved(loss, found, effects)
        at, S = found.outer.fits[0], loss.family.scores
        G = at.gram.reshape(S, len(at.b), S, len(at.b))
        # X' diag(w (Q W Q')_cc) X
        grams = np.einsum("ct,tiuj,cu->cij", like.Q, G, like.Q, optimize=True)
        penalty = penalties(found.rho, loss.part)
        factors = np.array([factorised(gram, penalty) for gram in grams])
        block = BlockFit(at.b, at.scores, at.losses, at.value, at.curvature, grams, factors, 1, True)
        return self.fit.moved(like, found._replace(outer=found.outer._replace(fits=(block,))), effects)
