"""K linear models with l1 and l2 penalties, each trained without one fold, and the hypergradient of their loss on it.

On the host, in float64. A model without fold k minimises

    F_k(w, b) = mean of l(x_i . w + b, y_i) over its rows + sum_j l1_j |w_j| + 1/2 sum_j l2_j w_j^2

Where rows have weights, every mean is weighted: a row of weight two is as two rows.

The models are solved together, so that one pass over the columns serves them all. Only *active* columns are looked at
closely: those that entered some model so far. On the support S of a model its solution is smooth in the penalties, and
off it constant, so that with E the mean held-out loss

    H_SS v = grad_S E,    dE / dlog l1_j = -l1_j sign(w_j) v_j,    dE / dlog l2_j = -l2_j w_j v_j,    0 off the support

where H is the Hessian of the loss plus diag(l2), bias included. Source: Bertrand et al. (2020), arXiv:2002.08943; for
working sets Massias, Gramfort, Salmon (2018), arXiv:1802.07481.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse

from bilevax.linalg.columns import Matrix

FEW = 200
"""Columns up to which all are active from the start."""

GROWTH = 20
"""Columns that become active at a time, at least; at most as many as are in the largest support."""

IDLE = 3
"""Active columns for each that is used, from which the others retire."""


class HeldOut(NamedTuple):
    """The mean loss of the rows that are held out, each under the model trained without it, and its derivatives.

    Attributes:
        value: E.
        l1: dE / dlog l1, [p].
        l2: dE / dlog l2, [p]; of several scores [K, p, C].
    """

    value: float
    l1: np.ndarray
    l2: np.ndarray


class CrossFitted(Protocol):
    """K models of one table, as a search of penalties sees them.

    Attributes:
        X: the features, [n, p].
        weight: of the rows, [n].
        weights: [p, K]; of several scores [K, p, C].
        bias: [K]; of several scores [K, C].
        trained_on: the weight of the rows of each model, [K].
        scale: that scores are multiplied by in the held-out loss.
    """

    X: Matrix
    weight: np.ndarray
    trained_on: np.ndarray
    scale: float

    @property
    def weights(self) -> np.ndarray:
        """Of the models."""

    @property
    def bias(self) -> np.ndarray:
        """Of the models."""

    def begin(self, weights: np.ndarray, bias: float) -> None:
        """Start from one model, [p]."""

    def solve(self, l1: np.ndarray, l2: np.ndarray, tolerance: float = 1e-9) -> None:
        """Move the models to their minima at these penalties, [p] each."""

    def held_out(self, l1: np.ndarray, l2: np.ndarray) -> HeldOut:
        """The held-out loss of the solution at these penalties, and its derivatives."""


class L1Models(ABC):
    """K models; :meth:`solve` moves them to new penalties, from where they are.

    Args:
        X: features [n, p], dense or CSC.
        y: targets [n].
        fold: of each row [n], from 0 to K - 1; -1 of a row that every model is trained on.
        K: number of models.
        weight: of the rows [n], positive; None: 1.
        few: up to so many columns all are active from the start.

    Attributes:
        weights: of the models, [p, K].
        bias: [K].
        active: columns that entered some model, [a].
        gradient: of the mean losses in the weights, without penalties, [p, K]; of the last solution.
        scale: 1: scores are taken as they are.
    """

    scale = 1.0

    def __init__(
        self,
        X: Matrix,
        y: np.ndarray,
        fold: np.ndarray,
        K: int,
        *,
        weight: np.ndarray | None = None,
        few: int = FEW,
    ) -> None:
        order = np.argsort(fold, kind="stable")
        # Dense columns are contiguous, and the rows of a fold are too.
        self.X = X[order] if scipy.sparse.issparse(X) else np.asfortranarray(X[order])
        self.y = y[order]
        self.weight = np.ones(len(y)) if weight is None else weight[order]
        ends = np.searchsorted(fold[order], np.arange(-1, K + 1))
        self.rest, self.held = slice(0, ends[1]), [slice(ends[k + 1], ends[k + 2]) for k in range(K)]
        self.held_on = np.array([self.weight[part].sum() for part in self.held])
        self.trained_on = self.weight.sum() - self.held_on
        self.weights, self.bias = np.zeros((X.shape[1], K)), np.zeros(K)
        self.active = np.arange(0)
        self._start()
        first = np.arange(X.shape[1] if X.shape[1] <= few else 0)
        self._all_active = len(first) > 0
        self._add_columns(first)
        self.active = first
        self.gradient = self._gradients()

    @abstractmethod
    def _start(self) -> None:
        """Prepare what does not depend on the active columns, and the models without any."""

    def largest_l1(self) -> float:
        """The least l1 at which every weight is zero, of models that have not moved yet."""
        return float(np.max(np.abs(self.gradient)))

    def begin(self, weights: np.ndarray, bias: float) -> None:
        """Start from one model, [p]."""
        self._activate(np.setdiff1d(np.flatnonzero(weights), self.active))
        self.weights[:], self.bias[:] = weights[:, None], bias
        self.gradient = self._gradients()

    def solve(self, l1: np.ndarray, l2: np.ndarray, tolerance: float = 1e-9) -> None:
        """Move the models to their minima.

        Args:
            l1: penalties [p], at least 0.
            l2: penalties [p], at least 0.
            tolerance: part of l1, of its median, by which optimality may be missed.
        """
        self._retire()
        self._activate(self._worst(l1))
        allowed = tolerance * float(np.median(l1))
        while True:
            for k in range(len(self.bias)):
                self._solve_one(k, l1[self.active], l2[self.active], allowed)
            self.gradient = self._gradients()
            violating = self._worst(l1 * (1.0 + tolerance))
            if not violating.size:
                break
            self._activate(violating)

    def _worst(self, bound: np.ndarray) -> np.ndarray:
        """Inactive columns whose gradient exceeds the bound in some model, as many of the worst as may be added."""
        if len(self.active) == len(bound):
            return np.arange(0)
        # a weight of 0 is right while |gradient_j| <= l1_j, in every model
        excess = np.max(np.abs(self.gradient), axis=1) - bound
        excess[self.active] = -np.inf
        support = int(np.max(np.sum(self.weights[self.active] != 0.0, axis=0), initial=0))
        number = min(max(GROWTH, support), int(np.sum(excess > 0.0)))
        return np.sort(np.argpartition(-excess, number - 1)[:number]) if number else np.arange(0)

    def _retire(self) -> None:
        """Take inactive again what no model uses, where that is most of the active columns."""
        used = np.flatnonzero(np.any(self.weights[self.active] != 0.0, axis=1))
        if self._all_active or len(self.active) <= IDLE * len(used) + 2 * GROWTH:
            return
        self._keep_columns(used)
        self.active = self.active[used]

    def _activate(self, columns: np.ndarray) -> None:
        if columns.size:
            self._add_columns(columns)
            self.active = np.concatenate([self.active, columns])

    def held_out(self, l1: np.ndarray, l2: np.ndarray) -> HeldOut:
        """The held-out loss of the solution at these penalties, and its derivatives."""
        value, by_l1, by_l2 = 0.0, np.zeros(len(l1)), np.zeros(len(l1))
        n = float(self.held_on.sum()) or 1.0
        for k in range(len(self.bias)):
            w = self.weights[self.active, k]
            on = np.flatnonzero(w)
            S = self.active[on]
            loss, v = self._held_out_one(k, on, l2[S])
            value += float(loss) / n
            # dE / dlog l1_j = -l1_j sign(w_j) v_j and dE / dlog l2_j = -l2_j w_j v_j
            by_l1[S] -= l1[S] * np.sign(w[on]) * v / n
            by_l2[S] -= l2[S] * w[on] * v / n
        return HeldOut(value, by_l1, by_l2)

    def gaps(self, l1: np.ndarray, l2: np.ndarray) -> np.ndarray:
        """F_k less the value of a dual feasible point, [K]: at least what a model is above its minimum."""
        out = np.empty(len(self.bias))
        for k in range(len(out)):
            w = self.weights[:, k]
            # gap = primal - dual at theta scaled into the feasible set: at least the distance to the minimum
            loss, theta, conjugate = self._dual(k)
            u, bent = np.abs(theta @ self.X), l2 > 0.0
            # |x_j . theta| <= l1_j where l2_j = 0
            outside = (u > l1) & ~bent
            scale = float(np.min(l1[outside] / u[outside], initial=1.0))
            primal = loss + np.sum(l1 * np.abs(w)) + 0.5 * np.sum(l2 * w**2)
            # - f*(-theta) - sum_j (|x_j . theta| - l1_j)_+^2 / (2 l2_j)
            excess = np.maximum(scale * u - l1, 0.0)[bent]
            out[k] = primal - conjugate(scale) + 0.5 * np.sum(excess**2 / l2[bent])
        return out

    def _scores(self, k: int | slice) -> np.ndarray:
        """x_i . w + b of every row, [n] or [n, K]."""
        out: np.ndarray = self.X[:, self.active] @ self.weights[self.active, k] + self.bias[k]
        return out

    @abstractmethod
    def _add_columns(self, columns: np.ndarray) -> None:
        """Prepare for more active columns; they follow those that are."""

    @abstractmethod
    def _keep_columns(self, index: np.ndarray) -> None:
        """Keep the active columns with these numbers alone."""

    @abstractmethod
    def _solve_one(self, k: int, l1: np.ndarray, l2: np.ndarray, allowed: float) -> None:
        """Move model k to its minimum over the active columns, where no gradient misses optimality by more."""

    @abstractmethod
    def _gradients(self) -> np.ndarray:
        """Of the mean losses in the weights, [p, K]."""

    @abstractmethod
    def _held_out_one(self, k: int, on: np.ndarray, l2: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss of fold k, summed over its rows, and v on the support, the active columns number ``on``."""

    @abstractmethod
    def _dual(self, k: int) -> tuple[float, np.ndarray, Callable[[float], float]]:
        """Mean loss of model k, theta [n], and s -> -f*(-s theta)."""
