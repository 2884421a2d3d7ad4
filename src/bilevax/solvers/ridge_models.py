"""K ridge regressions, each trained without one fold, where columns outnumber rows: from the rows' kernel."""

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from bilevax.linalg.columns import Matrix, dense, divide_columns
from bilevax.solvers.l1_models import HeldOut


class KernelRidgeModels:
    """K models that minimise mean 1/2 (y_i - x_i . w - b)^2 + 1/2 sum_j l2_j w_j^2, p larger than n.

    With C = X diag(1 / l2) X^T, rows of weights c, n' their sum in a model and N = n' diag(1 / c), (C + N) a = y - b 1,
    1'a = 0 and w = diag(1 / l2) X^T a. The adjoint g of the held-out residuals r, times c, solves the same system,
    (C + N) g + d 1 = -C r, 1'g = -1'r on the training rows, and is r on the others:
    dE / dlog l2_j = -(x_j . g) (x_j . a) / l2_j, x_j the columns.

    Cost: n^2 p, and n^3 / 3 for each model.

    Args:
        X: features [n, p], dense or CSC.
        y: targets [n].
        fold: of each row [n], from 0 to K - 1; -1 of a row that every model is trained on.
        K: number of models.
        weight: of the rows [n], positive; None: 1.

    Attributes:
        weights: of the models, [p, K].
        bias: [K].
        trained_on: the weight of the rows of each model, [K].
        scale: 1: scores are taken as they are.
    """

    scale = 1.0

    def __init__(self, X: Matrix, y: np.ndarray, fold: np.ndarray, K: int, *, weight: np.ndarray | None = None) -> None:
        self.X, self.y, self.fold = X, y, fold
        self.weight = np.ones(len(y)) if weight is None else weight
        self.weights, self.bias = np.zeros((X.shape[1], K)), np.zeros(K)
        self.trained_on = np.array([self.weight[fold != k].sum() for k in range(K)])

    def begin(self, weights: np.ndarray, bias: float) -> None:
        """Nothing: a solution needs no start."""

    def solve(self, l1: np.ndarray, l2: np.ndarray, tolerance: float = 0.0) -> None:
        """Move the models to their minima; l1 is 0, and the solution exact."""
        # C = X diag(1 / l2) X'
        C = dense(divide_columns(self.X, l2) @ self.X.T)
        self._a, self._adjoint = np.zeros((2, len(self.y), len(self.bias)))
        self._loss = 0.0
        for k, n in enumerate(self.trained_on):
            t, h = np.flatnonzero(self.fold != k), np.flatnonzero(self.fold == k)
            factor = cho_factor(C[np.ix_(t, t)] + np.diag(n / self.weight[t]), lower=True)
            # (C_tt + diag(n / c)) a = y - b 1, for y and for 1 apart
            one = cho_solve(factor, np.ones(len(t)))
            a = cho_solve(factor, self.y[t])
            # 1'a = 0
            self.bias[k] = a.sum() / one.sum()
            self._a[t, k] = a - self.bias[k] * one
            residual = C[h] @ self._a[:, k] + self.bias[k] - self.y[h]
            # c r
            residual, unweighted = self.weight[h] * residual, residual
            self._loss += 0.5 * float(residual @ unweighted)
            g = cho_solve(factor, -(C[np.ix_(t, h)] @ residual))
            # 1'g = -1'r
            self._adjoint[t, k] = g - (g.sum() + residual.sum()) / one.sum() * one
            self._adjoint[h, k] = residual
        # w_j = x_j . a / l2_j
        self.weights = np.asarray(self.X.T @ self._a) / l2[:, None]

    def held_out(self, l1: np.ndarray, l2: np.ndarray) -> HeldOut:
        """The held-out loss of the solution at these penalties, and its derivatives."""
        n = float(self.weight[self.fold >= 0].sum()) or 1.0
        # -(x_j . g) (x_j . a) / l2_j, and (x_j . a) / l2_j = w_j
        slope = -np.sum(np.asarray(self.X.T @ self._adjoint) * self.weights, axis=1) / n
        return HeldOut(self._loss / n, np.zeros(len(l2)), slope)
