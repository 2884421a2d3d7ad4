"""Elastic nets of the squared loss, cross-fitted, from second moments."""

from collections.abc import Callable

import numpy as np

from bilevax.linalg.columns import gram
from bilevax.solvers.l1_models import L1Models
from bilevax.solvers.l1_quadratic import minimise_l1_quadratic, solve_on_support


class L1SquaredModels(L1Models):
    """With the loss 1/2 (score - y)^2, from second moments of the active columns: no pass over rows while they serve.

    Cost of a solution: what the quadratic solves cost, and one product of X^T with K residuals for each set of columns
    that become active.
    """

    def _start(self) -> None:
        # over the held-out rows: sum c y, sum c y^2, c their weights
        self._cy = self.weight * self.y
        self._y = np.array([self._cy[part].sum() for part in self.held])
        self._yy = np.array([self._cy[part] @ self.y[part] for part in self.held])
        self._equal = bool(np.all(self.weight == 1.0))
        K = len(self.held)
        self._xx, self._all_xx = np.zeros((K, 0, 0)), np.zeros((0, 0))
        self._x, self._xy = np.zeros((K, 0)), np.zeros((K, 0))
        self._all_x, self._all_xy = np.zeros(0), np.zeros(0)
        self._mean_y = (self._cy.sum() - self._y) / self.trained_on
        self.bias = self._mean_y.copy()

    def _add_columns(self, columns: np.ndarray) -> None:
        number = len(self.active)
        both = np.concatenate([self.active, columns])
        new = np.zeros((len(self.held) + 1, len(both), len(columns)))
        x, xy = np.zeros((len(new), len(columns))), np.zeros((len(new), len(columns)))
        for k, part in enumerate((*self.held, self.rest)):
            B = self.X[part][:, both]
            added = B[:, number:]
            c = self.weight[part]
            new[k] = gram(B, added, None if self._equal else c)
            x[k], xy[k] = c @ added, self._cy[part] @ added
        self._xx = np.stack([_bordered(old, border) for old, border in zip(self._xx, new[:-1], strict=True)])
        self._all_xx = _bordered(self._all_xx, new.sum(axis=0))
        self._x, self._xy = np.hstack([self._x, x[:-1]]), np.hstack([self._xy, xy[:-1]])
        self._all_x, self._all_xy = np.append(self._all_x, x.sum(axis=0)), np.append(self._all_xy, xy.sum(axis=0))
        self._center()

    def _keep_columns(self, index: np.ndarray) -> None:
        self._xx, self._all_xx = self._xx[:, index][:, :, index], self._all_xx[index][:, index]
        self._x, self._xy = self._x[:, index], self._xy[:, index]
        self._all_x, self._all_xy = self._all_x[index], self._all_xy[index]
        self._center()

    def _center(self) -> None:
        """Second moments of the rows that a model is trained on, about their means."""
        n = self.trained_on[:, None]
        self._mean = (self._all_x - self._x) / n
        # H = sum c x x' / n - mean x mean x', q = sum c x y / n - mean x mean y
        self._H = (self._all_xx - self._xx) / n[:, None] - self._mean[:, :, None] * self._mean[:, None, :]
        self._q = (self._all_xy - self._xy) / n - self._mean * self._mean_y[:, None]

    def _solve_one(self, k: int, l1: np.ndarray, l2: np.ndarray, allowed: float) -> None:
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
        return np.asarray(self.X.T @ (residual * self.weight[:, None] / self.trained_on))

    def _held_out_one(self, k: int, on: np.ndarray, l2: np.ndarray) -> tuple[float, np.ndarray]:
        w, b, n = self.weights[self.active[on], k], self.bias[k], self.held_on[k]
        x, xy, S = self._x[k, on], self._xy[k, on], np.ix_(on, on)
        moved = self._xx[k][S] @ w
        # sum of c / 2 (y - x . w - b)^2 over the fold
        squares = self._yy[k] + w @ moved + n * b**2 - 2.0 * (w @ xy + b * self._y[k] - b * (x @ w))
        # its gradient, b = mean y - mean x . w being moved along
        g = moved + b * x - xy - self._mean[k, on] * (n * b + x @ w - self._y[k])
        return 0.5 * float(squares), solve_on_support(self._H[k][S] + np.diag(l2), g)

    def _dual(self, k: int) -> tuple[float, np.ndarray, Callable[[float], float]]:
        c, n = self.weight.copy(), self.trained_on[k]
        c[self.held[k]] = 0.0
        residual = self.y - self._scores(k)
        # of mean 0 over the rows, as the bias asks
        centred = residual - c @ residual / n
        theta = c * centred / n
        square, product = theta @ centred, theta @ self.y
        # s theta'y - s^2 n sum theta^2 / c / 2
        return 0.5 * float(c @ residual**2) / n, theta, lambda s: s * product - 0.5 * s**2 * square


def _bordered(A: np.ndarray, border: np.ndarray) -> np.ndarray:
    """A symmetric matrix [a, a] with more columns [a + b, b], and as many rows."""
    return np.block([[A, border[: len(A)]], [border.T]])
