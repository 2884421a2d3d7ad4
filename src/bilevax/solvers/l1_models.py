"""K linear models with l1 and l2 penalties, each trained without one fold, and the hypergradient of their held-out loss.

On the host, in float64. A model without fold k minimises

    F_k(w, b) = mean of l(x_i . w + b, y_i) over its rows + sum_j l1_j |w_j| + 1/2 sum_j l2_j w_j^2

The models are solved together, so that one pass over the columns serves them all. Only *active* columns are looked at
closely: those that entered some model so far. On the support S of a model its solution is smooth in the penalties, and
off it constant, so that with E the mean held-out loss

    H_SS v = grad_S E,    dE / dlog l1_j = -l1_j sign(w_j) v_j,    dE / dlog l2_j = -l2_j w_j v_j,    0 off the support

where H is the Hessian of the loss plus diag(l2), bias included. Source: Bertrand et al. (2020), arXiv:2002.08943; for
working sets Massias, Gramfort, Salmon (2018), arXiv:1802.07481.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse
from scipy.special import expit, xlogy

from bilevax.solvers.l1_quadratic import minimise_l1_quadratic, solve_on_support

FEW = 200
"""Columns up to which all are active from the start."""

GROWTH = 20
"""Columns that become active at a time, at least; at most as many as are."""

NEWTON = 100
"""Proximal Newton steps at most."""

Matrix = np.ndarray | scipy.sparse.csc_array
"""Rows of features, [n, p]."""


class HeldOut(NamedTuple):
    """The mean loss of the rows that are held out, each under the model trained without it, and its derivatives.

    Attributes:
        value: E.
        l1: dE / dlog l1, [p].
        l2: dE / dlog l2, [p].
    """

    value: float
    l1: np.ndarray
    l2: np.ndarray


class L1Models(ABC):
    """K models; :meth:`solve` moves them to new penalties, from where they are.

    Args:
        X: features [n, p], dense or CSC.
        y: targets [n].
        fold: of each row [n], from 0 to K - 1; -1 of a row that every model is trained on.
        K: number of models.

    Attributes:
        weights: of the models, [p, K].
        bias: [K].
        active: columns that entered some model, [a].
        gradient: of the mean losses in the weights, without penalties, [p, K]; of the last solution.
    """

    def __init__(self, X: Matrix, y: np.ndarray, fold: np.ndarray, K: int) -> None:
        order = np.argsort(fold, kind="stable")
        # Dense columns are contiguous, and the rows of a fold are too.
        self.X = X[order] if scipy.sparse.issparse(X) else np.asfortranarray(X[order])
        self.y = y[order]
        ends = np.searchsorted(fold[order], np.arange(-1, K + 1))
        self.rest, self.held = slice(0, ends[1]), [slice(ends[k + 1], ends[k + 2]) for k in range(K)]
        self.trained_on = np.array([len(y) - (part.stop - part.start) for part in self.held])
        self.weights, self.bias = np.zeros((X.shape[1], K)), np.zeros(K)
        self.active = np.arange(0)
        self._start()
        if X.shape[1] <= FEW:
            self._activate(np.arange(X.shape[1]))
        self.gradient = self._gradients()
        self._l1 = np.full(X.shape[1], np.inf)

    @abstractmethod
    def _start(self) -> None:
        """Prepare what does not depend on the active columns, and the models without any."""

    def largest_l1(self) -> float:
        """The least l1 at which every weight of a model without any is zero, for the models as they start."""
        return float(np.max(np.abs(self.gradient)))

    def solve(self, l1: np.ndarray, l2: np.ndarray, tolerance: float = 1e-9) -> None:
        """Move the models to their minima.

        Args:
            l1: penalties [p], at least 0.
            l2: penalties [p], at least 0.
            tolerance: part of the largest l1 by which optimality may be missed.
        """
        # Gradients change by at most about as much as l1 does: the sequential strong rule of Tibshirani et al. (2012).
        change = np.where(np.isfinite(self._l1), np.maximum(self._l1 - l1, 0.0), 0.0)
        self._activate(self._worst(l1 - change))
        while True:
            for k in range(len(self.bias)):
                self._solve_one(k, l1[self.active], l2[self.active], tolerance)
            self.gradient = self._gradients()
            violating = self._worst(l1 * (1.0 + tolerance))
            if not violating.size:
                break
            self._activate(violating)
        self._l1 = l1

    def _worst(self, bound: np.ndarray) -> np.ndarray:
        """Inactive columns whose gradient exceeds the bound in some model, as many of the worst as may be added."""
        if len(self.active) == len(bound):
            return np.arange(0)
        excess = np.max(np.abs(self.gradient), axis=1) - bound
        excess[self.active] = -np.inf
        number = min(max(GROWTH, len(self.active)), int(np.sum(excess > 0.0)))
        return np.sort(np.argpartition(-excess, number - 1)[:number]) if number else np.arange(0)

    def _activate(self, columns: np.ndarray) -> None:
        if columns.size:
            self._add_columns(columns)
            self.active = np.concatenate([self.active, columns])

    def held_out(self, l1: np.ndarray, l2: np.ndarray) -> HeldOut:
        """The held-out loss of the solution at these penalties, and its derivatives."""
        value, by_l1, by_l2 = 0.0, np.zeros(len(l1)), np.zeros(len(l1))
        n = sum(part.stop - part.start for part in self.held)
        for k in range(len(self.bias)):
            w = self.weights[self.active, k]
            on = np.flatnonzero(w)
            S = self.active[on]
            loss, v = self._held_out_one(k, on, l2[S])
            value += loss / n
            # dE / dlog l1_j = -l1_j sign(w_j) v_j and dE / dlog l2_j = -l2_j w_j v_j
            by_l1[S] -= l1[S] * np.sign(w[on]) * v / n
            by_l2[S] -= l2[S] * w[on] * v / n
        return HeldOut(value, by_l1, by_l2)

    def gaps(self, l1: np.ndarray, l2: np.ndarray) -> np.ndarray:
        """F_k less the value of a dual feasible point, [K]: at least what a model is above its minimum."""
        out = np.empty(len(self.bias))
        for k in range(len(out)):
            w = self.weights[:, k]
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
    def _solve_one(self, k: int, l1: np.ndarray, l2: np.ndarray, tolerance: float) -> None:
        """Move model k to its minimum over the active columns."""

    @abstractmethod
    def _gradients(self) -> np.ndarray:
        """Of the mean losses in the weights, [p, K]."""

    @abstractmethod
    def _held_out_one(self, k: int, on: np.ndarray, l2: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss of fold k, summed over its rows, and v on the support, the active columns number ``on``."""

    @abstractmethod
    def _dual(self, k: int) -> tuple[float, np.ndarray, Callable[[float], float]]:
        """Mean loss of model k, theta [n], and s -> -f*(-s theta)."""


class L1SquaredModels(L1Models):
    """With the loss 1/2 (score - y)^2, from second moments of the active columns: no pass over rows while they serve.

    Cost of a solution: what the quadratic solves cost, and one product of X^T with K residuals for each set of columns
    that become active.
    """

    def _start(self) -> None:
        parts = [self.y[part] for part in self.held]
        # over the held-out rows: sum y, sum y^2
        self._y, self._yy = np.array([part.sum() for part in parts]), np.array([part @ part for part in parts])
        self._xx, self._all_xx = np.zeros((len(parts), 0, 0)), np.zeros((0, 0))
        self._x, self._xy = np.zeros((len(parts), 0)), np.zeros((len(parts), 0))
        self._all_x, self._all_xy = np.zeros(0), np.zeros(0)
        self._mean_y = (self.y.sum() - self._y) / self.trained_on
        self.bias = self._mean_y.copy()

    def _add_columns(self, columns: np.ndarray) -> None:
        number = len(self.active)
        both = np.concatenate([self.active, columns])
        new = np.zeros((len(self.held) + 1, len(both), len(columns)))
        x, xy = np.zeros((len(new), len(columns))), np.zeros((len(new), len(columns)))
        for k, part in enumerate((*self.held, self.rest)):
            B = self.X[part][:, both]
            added = B[:, number:]
            product = B.T @ added
            new[k] = product.toarray() if scipy.sparse.issparse(product) else product
            x[k], xy[k] = np.asarray(added.sum(axis=0)).ravel(), self.y[part] @ added
        self._xx = np.stack([_bordered(old, border) for old, border in zip(self._xx, new[:-1], strict=True)])
        self._all_xx = _bordered(self._all_xx, new.sum(axis=0))
        self._x, self._xy = np.hstack([self._x, x[:-1]]), np.hstack([self._xy, xy[:-1]])
        self._all_x, self._all_xy = np.append(self._all_x, x.sum(axis=0)), np.append(self._all_xy, xy.sum(axis=0))
        # second moments of the rows that a model is trained on, about their means
        n = self.trained_on[:, None]
        self._mean = (self._all_x - self._x) / n
        self._H = (self._all_xx - self._xx) / n[:, None] - self._mean[:, :, None] * self._mean[:, None, :]
        self._q = (self._all_xy - self._xy) / n - self._mean * self._mean_y[:, None]

    def _solve_one(self, k: int, l1: np.ndarray, l2: np.ndarray, tolerance: float) -> None:
        w = minimise_l1_quadratic(self._H[k] + np.diag(l2), self._q[k], l1, self.weights[self.active, k])
        self.weights[self.active, k] = w
        # the mean residual is 0
        self.bias[k] = self._mean_y[k] - self._mean[k] @ w

    def _gradients(self) -> np.ndarray:
        if len(self.active) == len(self.weights):
            out = np.empty_like(self.weights)
            # H w - q
            out[self.active] = np.einsum("kij,jk->ik", self._H, self.weights[self.active]) - self._q.T
            return out
        residual = self._scores(slice(None)) - self.y[:, None]
        for k, part in enumerate(self.held):
            residual[part, k] = 0.0
        return np.asarray(self.X.T @ (residual / self.trained_on))

    def _held_out_one(self, k: int, on: np.ndarray, l2: np.ndarray) -> tuple[float, np.ndarray]:
        w, b, n = self.weights[self.active[on], k], self.bias[k], self.held[k].stop - self.held[k].start
        x, xy, S = self._x[k, on], self._xy[k, on], np.ix_(on, on)
        moved = self._xx[k][S] @ w
        # sum of 1/2 (y - x . w - b)^2 over the fold
        squares = self._yy[k] + w @ moved + n * b**2 - 2.0 * (w @ xy + b * self._y[k] - b * (x @ w))
        # its gradient, b = mean y - mean x . w being moved along
        g = moved + b * x - xy - self._mean[k, on] * (n * b + x @ w - self._y[k])
        return 0.5 * float(squares), solve_on_support(self._H[k][S] + np.diag(l2), g)

    def _dual(self, k: int) -> tuple[float, np.ndarray, Callable[[float], float]]:
        residual, n = self.y - self._scores(k), self.trained_on[k]
        residual[self.held[k]] = 0.0
        squares, product = residual @ residual / n, residual @ self.y / n
        # s residual'y / n - s^2 residual'residual / (2 n)
        return 0.5 * squares, residual / n, lambda s: s * product - 0.5 * s**2 * squares


class L1LogisticModels(L1Models):
    """With the loss log(1 + exp(-(2 y - 1) score)), y 0 or 1, by proximal Newton steps.

    Cost of a step: the Hessian of the active columns that move, [s, s], from the rows; the quadratic solve; a few
    products with these columns.
    """

    def _start(self) -> None:
        self._share = np.ones((len(self.y), len(self.held)))
        for k, part in enumerate(self.held):
            self._share[part, k] = 0.0
        self._share /= self.trained_on
        mean = self.y @ self._share
        self.bias = np.log(mean / (1.0 - mean))
        self._X = self.X[:, self.active]
        self._score = np.tile(self.bias, (len(self.y), 1))

    def _add_columns(self, columns: np.ndarray) -> None:
        self._X = self.X[:, np.concatenate([self.active, columns])]

    def _solve_one(self, k: int, l1: np.ndarray, l2: np.ndarray, tolerance: float) -> None:
        w, b, score, c = self.weights[self.active, k], self.bias[k], self._score[:, k], self._share[:, k]

        def value(w: np.ndarray, score: np.ndarray) -> float:
            loss = c @ (np.logaddexp(0.0, score) - self.y * score)
            return float(loss + l1 @ np.abs(w) + 0.5 * l2 @ w**2)

        for _ in range(NEWTON):
            p = expit(score)
            r = c * (p - self.y)
            g, by_b = r @ self._X + l2 * w, r.sum()
            missed = np.where(w != 0.0, np.abs(g + l1 * np.sign(w)), np.abs(g) - l1)
            if max(np.max(missed, initial=0.0), abs(by_b)) <= tolerance * np.max(l1):
                break
            V = np.flatnonzero((w != 0.0) | (missed > 0.0))
            X, u, slope = self._X[:, V], np.append(w[V], b), np.append(g[V], by_b)
            H = _logistic_hessian(X, c * p * (1.0 - p), l2[V])
            # the minimum of the quadratic model, with the l1 penalties
            step = minimise_l1_quadratic(H, H @ u - slope, np.append(l1[V], 0.0), u) - u
            along = X @ step[:-1] + step[-1]
            promised = slope @ step + l1[V] @ (np.abs(u + step) - np.abs(u))[:-1]
            size, before = 1.0, value(w, score)
            while True:
                new = w.copy()
                new[V] = u[:-1] + size * step[:-1]
                # Armijo, up to rounding
                if value(new, score + size * along) <= before + 1e-4 * size * promised + 1e-14 * abs(before):
                    break
                size *= 0.5
            w, b, score = new, b + size * step[-1], score + size * along
        self.weights[self.active, k], self.bias[k], self._score[:, k] = w, b, score

    def _gradients(self) -> np.ndarray:
        return np.asarray(self.X.T @ (self._share * (expit(self._score) - self.y[:, None])))

    def _held_out_one(self, k: int, on: np.ndarray, l2: np.ndarray) -> tuple[float, np.ndarray]:
        X, score, part = self._X[:, on], self._score[:, k], self.held[k]
        p = expit(score)
        loss = np.sum(np.logaddexp(0.0, score[part]) - self.y[part] * score[part])
        r = p[part] - self.y[part]
        g = np.append(r @ X[part], r.sum())
        return float(loss), solve_on_support(_logistic_hessian(X, self._share[:, k] * p * (1.0 - p), l2), g)[:-1]

    def _dual(self, k: int) -> tuple[float, np.ndarray, Callable[[float], float]]:
        c, score = self._share[:, k], self._scores(k)
        p = expit(score)
        # y - p, made to sum to 0 over the rows, as the bias asks, by less on the side that has more
        theta = c * (self.y - p)
        up, down = theta[theta > 0.0].sum(), -theta[theta < 0.0].sum()
        theta = theta * np.where(theta > 0.0, min(1.0, down / up), min(1.0, up / down))
        on = c > 0.0

        def conjugate(s: float) -> float:
            # - sum c (q log q + (1 - q) log(1 - q)), q = y - s theta / c
            q = np.clip(self.y[on] - s * theta[on] / c[on], 0.0, 1.0)
            return -float(c[on] @ (xlogy(q, q) + xlogy(1.0 - q, 1.0 - q)))

        return float(c @ (np.logaddexp(0.0, score) - self.y * score)), theta, conjugate


def _bordered(A: np.ndarray, border: np.ndarray) -> np.ndarray:
    """A symmetric matrix [a, a] with more columns [a + b, b], and as many rows."""
    return np.block([[A, border[: len(A)]], [border.T]])


def _logistic_hessian(X: Matrix, d: np.ndarray, l2: np.ndarray) -> np.ndarray:
    """Of the mean loss with l2 penalties, in weights and bias, [s + 1, s + 1]."""
    s = X.shape[1]
    H = np.empty((s + 1, s + 1))
    # (X, 1)' diag(d) (X, 1)
    H[:s, :s], H[s, :s], H[s, s] = _weighted_gram(X, d), d @ X, d.sum()
    H[:s, s] = H[s, :s]
    H[np.arange(s), np.arange(s)] += l2
    return H


def _weighted_gram(X: Matrix, d: np.ndarray) -> np.ndarray:
    """X' diag(d) X, dense."""
    if scipy.sparse.issparse(X):
        weighted = X.copy()
        weighted.data *= d[X.indices]
        out: np.ndarray = (X.T @ weighted).toarray()
        return out
    return X.T @ (X * d[:, None])
