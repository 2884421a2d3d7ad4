"""K logistic regressions of two or more classes, each trained without one fold, and the hypergradient of their loss.

On the host, in float64, dense or sparse rows alike. With S = X W + b, one score for two classes and else C, weights c
of the rows and penalties l2 [p, C], model k minimises

    F_k(W, b) = sum over the rows not in fold k of c_i l(S_i, y_i) + 1/2 sum_jc l2_jc W_jc^2

The intercepts are not penalised, so that columns need not be centred: W is the same, and b takes up what the means
add. With E the mean loss of the held-out rows, each under the model trained without it, and H_k the Hessian of F_k,

    H_k v = grad E_k,    dE / dlog l2_jc = - sum_k l2_jc W_jc v_jc

Newton steps, and v, by conjugate gradients that are preconditioned with the diagonal of H_k. Source: Lin, Weng, Keerthi
(2008), Trust region Newton method for large-scale logistic regression, for truncated Newton steps on sparse rows.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from scipy.special import expit

from bilevax.linalg.columns import Matrix
from bilevax.solvers.l1_models import HeldOut

NEWTON, PRODUCTS = 60, 300
"""Newton steps at most; conjugate gradient steps at most in each."""

FORCING, ADJOINT = 0.1, 3e-3
"""Relative residual of a Newton step, and of v at most."""


class ClassRows(NamedTuple):
    """Rows of a table: features X [n, p], Y [n, C] the classes as 0 and 1, one column for two, weights c [n]."""

    X: Matrix
    Y: np.ndarray
    c: np.ndarray

    @staticmethod
    def of(X: Matrix, y: np.ndarray, c: np.ndarray, classes: int) -> "ClassRows":
        """From classes y [n], integers from 0."""
        Y = (y[:, None] == np.arange(classes)).astype(float)
        return ClassRows(scipy.sparse.csr_array(X) if scipy.sparse.issparse(X) else X, Y[:, int(classes == 2) :], c)

    def take(self, there: np.ndarray) -> "ClassRows":
        """Those where ``there`` [n] is True."""
        return self if there.all() else ClassRows(*(a[there] for a in self))

    def scores(self, theta: np.ndarray) -> np.ndarray:
        """X W + b, [n, C]; the last row of theta [p + 1, C] is b."""
        out: np.ndarray = self.X @ theta[:-1] + theta[-1]
        return out

    def pulled(self, R: np.ndarray) -> np.ndarray:
        """(X, 1)' R, [p + 1, C]."""
        return np.vstack([self.X.T @ R, R.sum(axis=0)])

    def losses(self, S: np.ndarray) -> np.ndarray:
        """l of each row, [n]."""
        # log(1 + exp(s)) - y s; log sum_c exp(s_c) - s_y
        top = np.logaddexp(0.0, S[:, 0]) if S.shape[1] == 1 else np.logaddexp.reduce(S, axis=1)
        out: np.ndarray = top - np.einsum("ic,ic->i", self.Y, S)
        return out

    def probabilities(self, S: np.ndarray) -> np.ndarray:
        """Of the classes, [n, C]; of the second where there are two."""
        if S.shape[1] == 1:
            P: np.ndarray = expit(S)
            return P
        P = np.exp(S - S.max(axis=1, keepdims=True))
        P /= P.sum(axis=1, keepdims=True)
        return P

    def bent(self, P: np.ndarray, U: np.ndarray) -> np.ndarray:
        """c l''(S) U, [n, C]."""
        # P U - P (P . U); P (1 - P) U where there are two classes
        PU = P * U
        out: np.ndarray = self.c[:, None] * (PU - P * (PU if P.shape[1] == 1 else PU.sum(axis=1, keepdims=True)))
        return out

    def diagonal(self, P: np.ndarray) -> np.ndarray:
        """Of the Hessian of the loss, [p + 1, C]."""
        # sum_i c_i P (1 - P) x_ij^2
        squares = self.X.multiply(self.X) if scipy.sparse.issparse(self.X) else self.X**2
        return self._replace(X=squares).pulled(self.c[:, None] * P * (1.0 - P))


class LogisticModels:
    """K models; :meth:`solve` moves them to new penalties, from where they are.

    Cost of a solution: some tens of products of X and its transpose with [p, C], for each model.

    Args:
        X: features [n, p], dense or sparse.
        y: classes [n], integers from 0.
        fold: of each row [n], from 0 to K - 1; -1 of a row that every model is trained on.
        K: number of models.
        classes: how many there are, at least 2.
        weight: of the rows in F, [n], positive; None: 1.
        held_weight: of the rows in E, [n]; None: as in F.

    Attributes:
        X: as given.
        weight: of the rows in F, [n].
        trained_on: the weight of the rows of each model, [K].
        weights: of the models, [K, p, C].
        bias: [K, C].
        visits: rows read so far, once for each product of X or its transpose.
    """

    def __init__(
        self,
        X: Matrix,
        y: np.ndarray,
        fold: np.ndarray,
        K: int,
        *,
        classes: int,
        weight: np.ndarray | None = None,
        held_weight: np.ndarray | None = None,
    ) -> None:
        self.X, self.weight = X, np.ones(len(y)) if weight is None else weight
        rows = ClassRows.of(X, y, self.weight, classes)
        outer = rows if held_weight is None else rows._replace(c=held_weight)
        self._train, self._held = [rows.take(fold != k) for k in range(K)], [outer.take(fold == k) for k in range(K)]
        self.trained_on = np.array([float(part.c.sum()) for part in self._train])
        self._theta = np.zeros((K, X.shape[1] + 1, rows.Y.shape[1]))
        self._adjoint = np.zeros_like(self._theta)
        self._points: list[tuple[np.ndarray, np.ndarray]] = []
        self.visits = 0

    def largest_curvature(self) -> float:
        """Not exceeded by that of the loss in the weights of a class: a quarter of the sum of the squares."""
        return float(max(np.sum(rows.diagonal(np.full((len(rows.c), 1), 0.5))[:-1]) for rows in self._train))

    def row_losses(self, rows: ClassRows) -> np.ndarray:
        """c l of other rows, averaged over the models, [n]."""
        out: np.ndarray = rows.c * np.mean([rows.losses(rows.scores(theta)) for theta in self._theta], axis=0)
        return out

    @property
    def weights(self) -> np.ndarray:
        """[K, p, C]."""
        return self._theta[:, :-1]

    @property
    def bias(self) -> np.ndarray:
        """[K, C]."""
        return self._theta[:, -1]

    def begin(self, weights: np.ndarray, bias: np.ndarray | float) -> None:
        """Start from one model, [p, C] and [C]."""
        self._theta[:] = np.vstack([weights, bias])

    def solve(self, l1: np.ndarray, l2: np.ndarray, tolerance: float = 1e-4) -> None:
        """Move the models to their minima.

        Args:
            l1: 0.
            l2: penalties, [p] or [p, C].
            tolerance: square root of the part of F_k that it may be above its minimum, about.
        """
        self._tolerance, penalty = tolerance, _with_intercepts(l2, self._theta.shape[2])
        self._points = [self._solve_one(k, penalty) for k in range(len(self._theta))]

    def _solve_one(self, k: int, l2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P [n, C] at the minimum and the diagonal of H."""
        rows, theta = self._train[k], self._theta[k].copy()
        S = rows.scores(theta)
        value = float(rows.c @ rows.losses(S)) + 0.5 * float(np.vdot(theta, l2 * theta))
        for _ in range(NEWTON):
            P = rows.probabilities(S)
            diagonal = rows.diagonal(P) + l2 + np.finfo(float).tiny
            g = rows.pulled(rows.c[:, None] * (P - rows.Y)) + l2 * theta
            self.visits += 3 * len(P)
            # g' H^-1 g, about: twice what F is above its minimum
            decrement = float(np.vdot(g, g / diagonal))
            if decrement <= self._tolerance**2 * value:
                break
            step, U = self._conjugate_gradients(k, P, l2, diagonal, -g, np.zeros_like(g), FORCING)
            size, slope = 1.0, float(np.vdot(g, step))
            while True:
                new = theta + size * step
                then = float(rows.c @ rows.losses(S + size * U)) + 0.5 * float(np.vdot(new, l2 * new))
                # Armijo, up to rounding
                if then <= value + 1e-4 * size * slope + 1e-14 * abs(value) or size < 1e-10:
                    break
                size *= 0.5
            theta, S, value = new, S + size * U, then
        self._theta[k] = theta
        return P, diagonal

    def _conjugate_gradients(
        self,
        k: int,
        P: np.ndarray,
        l2: np.ndarray,
        diagonal: np.ndarray,
        right: np.ndarray,
        v: np.ndarray,
        tolerance: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """v with H v = right, from a start, to a relative residual, and (X, 1) (v - start)."""
        rows = self._train[k]

        def product(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            self.visits += 2 * len(P)
            U = rows.scores(d)
            return rows.pulled(rows.bent(P, U)) + l2 * d, U

        r = right - product(v)[0] if v.any() else right.copy()
        z = r / diagonal
        d, rz, goal = z, float(np.vdot(r, z)), tolerance**2 * float(np.vdot(right, right / diagonal))
        along = np.zeros((rows.c.size, v.shape[1]))
        for _ in range(PRODUCTS):
            if rz <= goal:
                break
            Hd, U = product(d)
            a = rz / float(np.vdot(d, Hd))
            v, along, r = v + a * d, along + a * U, r - a * Hd
            z = r / diagonal
            rz, before = float(np.vdot(r, z)), rz
            d = z + rz / before * d
        return v, along

    def held_out(self, l1: np.ndarray, l2: np.ndarray) -> HeldOut:
        """The mean loss of the held-out rows at the solution, and its derivatives, [p, C]."""
        n, penalty = sum(float(held.c.sum()) for held in self._held) or 1.0, _with_intercepts(l2, self._theta.shape[2])
        value, slope, tolerance = 0.0, np.zeros_like(penalty[:-1]), min(ADJOINT, self._tolerance)
        for k, (held, (P, diagonal)) in enumerate(zip(self._held, self._points, strict=True)):
            S = held.scores(self._theta[k])
            value += float(held.c @ held.losses(S)) / n
            right = held.pulled(held.c[:, None] * (held.probabilities(S) - held.Y)) / n
            v, _ = self._conjugate_gradients(k, P, penalty, diagonal, right, self._adjoint[k], tolerance)
            self._adjoint[k] = v
            # dE / dlog l2_jc = - l2_jc W_jc v_jc
            slope -= (penalty * self._theta[k] * v)[:-1]
        return HeldOut(value, np.zeros_like(slope), slope)


def _with_intercepts(l2: np.ndarray, outputs: int) -> np.ndarray:
    """[p + 1, C], 0 in the last row."""
    penalty = np.broadcast_to(l2[:, None] if l2.ndim == 1 else l2, (len(l2), outputs))
    return np.vstack([penalty, np.zeros(outputs)])
