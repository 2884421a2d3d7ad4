"""Elastic nets of the logistic loss, cross-fitted, by proximal Newton steps."""

from collections.abc import Callable

import numpy as np
from scipy.special import expit, xlogy

from bilevax.linalg.columns import Matrix, gram
from bilevax.solvers.l1_models import L1Models
from bilevax.solvers.l1_quadratic import minimise_l1_quadratic, solve_on_support

NEWTON = 100
"""Proximal Newton steps at most."""


class L1LogisticModels(L1Models):
    """With the loss log(1 + exp(-(2 y - 1) score)), y 0 or 1, by proximal Newton steps.

    Cost of a step: the Hessian of the active columns that move, [s, s], from the rows; the quadratic solve; a few
    products with these columns.
    """

    def _start(self) -> None:
        self._share = np.tile(self.weight[:, None], len(self.held))
        for k, part in enumerate(self.held):
            self._share[part, k] = 0.0
        self._share /= self.trained_on
        mean = self.y @ self._share
        # the log-odds of the model's own rows
        self.bias = np.log(mean / (1.0 - mean))
        self._score = np.tile(self.bias, (len(self.y), 1))

    def begin(self, weights: np.ndarray, bias: float) -> None:
        """Start from one model, [p]."""
        super().begin(weights, bias)
        self._score = self._scores(slice(None))
        self.gradient = self._gradients()

    def _add_columns(self, columns: np.ndarray) -> None:
        self._X = self.X[:, np.concatenate([self.active, columns])]

    def _keep_columns(self, index: np.ndarray) -> None:
        self._X = self._X[:, index]

    def _solve_one(self, k: int, l1: np.ndarray, l2: np.ndarray, allowed: float) -> None:
        w, b, score, c = self.weights[self.active, k], self.bias[k], self._score[:, k], self._share[:, k]

        def value(w: np.ndarray, score: np.ndarray) -> float:
            loss = c @ (np.logaddexp(0.0, score) - self.y * score)
            return float(loss + l1 @ np.abs(w) + 0.5 * l2 @ w**2)

        for _ in range(NEWTON):
            p = expit(score)
            r = c * (p - self.y)
            g, by_b = r @ self._X + l2 * w, r.sum()
            # how far 0 is from the subdifferential: |g + l1 sign w|, or |g| - l1 where w is 0
            missed = np.where(w != 0.0, np.abs(g + l1 * np.sign(w)), np.abs(g) - l1)
            if max(np.max(missed, initial=0.0), abs(by_b)) <= allowed + np.finfo(float).eps:
                break
            V = np.flatnonzero((w != 0.0) | (missed > 0.0))
            X, u, slope = self._X[:, V], np.append(w[V], b), np.append(g[V], by_b)
            H = _logistic_hessian(X, c * p * (1.0 - p), l2[V])
            # the minimum of the quadratic model, with the l1 penalties
            step = minimise_l1_quadratic(H, H @ u - slope, np.append(l1[V], 0.0), u) - u
            along = X @ step[:-1] + step[-1]
            # g' d + sum_j l1_j (|w_j + d_j| - |w_j|), negative unless w is the minimum
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
        # X' (c (p - y)), c the shares of the rows in each model
        return np.asarray(self.X.T @ (self._share * (expit(self._score) - self.y[:, None])))

    def _held_out_one(self, k: int, on: np.ndarray, l2: np.ndarray) -> tuple[float, np.ndarray]:
        X, score, part = self._X[:, on], self._score[:, k], self.held[k]
        p = expit(score)
        c = self.weight[part]
        loss = c @ (np.logaddexp(0.0, score[part]) - self.y[part] * score[part])
        r = c * (p[part] - self.y[part])
        # (X, 1)' c (p - y) of the fold, and v = H^-1 g of the model's own rows
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


def _logistic_hessian(X: Matrix, d: np.ndarray, l2: np.ndarray) -> np.ndarray:
    """Of the mean loss with l2 penalties, in weights and bias, [s + 1, s + 1]."""
    s = X.shape[1]
    H = np.empty((s + 1, s + 1))
    # (X, 1)' diag(d) (X, 1)
    H[:s, :s], H[s, :s], H[s, s] = gram(X, X, d), d @ X, d.sum()
    H[:s, s] = H[s, :s]
    H[np.arange(s), np.arange(s)] += l2
    return H
