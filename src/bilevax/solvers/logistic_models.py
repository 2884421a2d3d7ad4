"""K logistic regressions of two or more classes, each trained without one fold, and the hypergradient of their loss.

On the host, in float64, dense or sparse rows alike. With S = X W + b, one score for two classes and else C, weights c
of the rows and penalties l2 [p, C], model k minimises

    F_k(W, b) = sum over the rows not in fold k of c_i l(S_i, y_i) + 1/2 sum_jc l2_jc W_jc^2

The intercepts are not penalised, so that columns need not be centred: W is the same, and b takes up what the means
add. With E the mean loss of the held-out rows, each under the model trained without it, and H_k the Hessian of F_k,

    H_k v = grad E_k,    dE / dlog l2_kjc = - l2_kjc W_kjc v_kjc

where penalties may be of each model, too. E is that of the scores times a factor s, the same for all models, at which E
plus (log s)^2 / 2 by the number of rows, a standard normal prior of log s, is least; so no derivative of s is needed.
Strong penalties that leave the better order of the rows may so have scores of any size. A single penalty sets their
size itself: s = 1 there.

Newton steps, and v, by conjugate gradients that are preconditioned with the diagonal of H_k. Source: Lin, Weng, Keerthi
(2008), Trust region Newton method for large-scale logistic regression, for truncated Newton steps on sparse rows.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from scipy.optimize import minimize_scalar
from scipy.special import expit

from bilevax.linalg.columns import Matrix
from bilevax.solvers.l1_models import HeldOut
from bilevax.solvers.preconditioned import Solved, conjugate_gradients

NEWTON, PRODUCTS = 60, 300
"""Newton steps at most; conjugate gradient steps at most in each."""

FORCING, ADJOINT, LOOSER = 0.25, 0.1, 10.0
"""Relative residual of a Newton step; of v at most, and in tolerances of the models."""

BLIND = 3
"""Newton steps at most that do not lower F."""

SCALES = -3.0, 3.0
"""Bounds of log s."""


class ClassRows(NamedTuple):
    """Rows: features X [n, p] and their squares, Y [n, C] the classes as 0 and 1, one column for two, weights c [n]."""

    X: Matrix
    squares: Matrix
    Y: np.ndarray
    c: np.ndarray

    @staticmethod
    def of(X: Matrix, y: np.ndarray, c: np.ndarray, classes: int) -> "ClassRows":
        """From classes y [n], integers from 0."""
        # Y_ic = 1 where row i is of class c; of two classes the second alone
        Y = (y[:, None] == np.arange(int(classes == 2), classes)).astype(X.dtype)
        if not scipy.sparse.issparse(X):
            return ClassRows(X, X**2, Y, c)
        X = scipy.sparse.csr_array(X)
        # places are shared with X
        return ClassRows(X, scipy.sparse.csr_array((X.data**2, X.indices, X.indptr), shape=X.shape), Y, c)

    def take(self, there: np.ndarray) -> "ClassRows":
        """Those where ``there`` [n] is True."""
        return self if there.all() else ClassRows(*(a[there] for a in self))

    def scores(self, theta: np.ndarray) -> np.ndarray:
        """X W + b, [n, C]; the last row of theta [p + 1, C] is b."""
        # products with one vector are the faster ones
        product = (self.X @ theta[:-1, 0])[:, None] if theta.shape[1] == 1 else self.X @ theta[:-1]
        out: np.ndarray = product + theta[-1]
        return out

    def pulled(self, R: np.ndarray) -> np.ndarray:
        """(X, 1)' R, [p + 1, C]."""
        out = np.empty((self.X.shape[1] + 1, R.shape[1]), R.dtype)
        out[:-1] = (self.X.T @ R[:, 0])[:, None] if R.shape[1] == 1 else self.X.T @ R
        # (X, 1)' R: the column of ones is the intercept's
        out[-1] = R.sum(axis=0)
        return out

    def losses(self, S: np.ndarray) -> np.ndarray:
        """l of each row, [n]."""
        # log(1 + exp(s)) - y s; log sum_c exp(s_c) - s_y
        top = np.logaddexp(0.0, S[:, 0]) if S.shape[1] == 1 else np.logaddexp.reduce(S, axis=1)
        out: np.ndarray = top - np.einsum("ic,ic->i", self.Y, S)
        return out

    def total(self, S: np.ndarray) -> float:
        """The sum of c l, to double precision."""
        return float(np.vdot(self.c.astype(np.float64), self.losses(S)))

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
        return self._replace(X=self.squares).pulled(self.c[:, None] * P * (1.0 - P))


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
        scaled: scores are multiplied by s; else s = 1.

    Attributes:
        X: as given.
        weight: of the rows in F, [n].
        trained_on: the weight of the rows of each model, [K].
        trained: the rows of each model.
        held: those that it is judged on.
        weights: of the models, [K, p, C].
        bias: [K, C].
        scale: s, of the last held-out loss.
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
        scaled: bool = True,
    ) -> None:
        self.X, self.weight = X, np.ones(len(y)) if weight is None else weight
        rows = ClassRows.of(X, y, self.weight.astype(X.dtype), classes)
        outer = rows if held_weight is None else rows._replace(c=held_weight.astype(X.dtype))
        self.trained, self.held = [rows.take(fold != k) for k in range(K)], [outer.take(fold == k) for k in range(K)]
        self.trained_on = np.array([float(part.c.sum()) for part in self.trained])
        self._theta = np.zeros((K, X.shape[1] + 1, rows.Y.shape[1]), X.dtype)
        self._theta[:, -1] = [_log_shares(part) for part in self.trained]
        self._adjoint = np.zeros_like(self._theta)
        self._points: list[tuple[np.ndarray, np.ndarray]] = []
        self.scale, self.visits, self._scaled_scores = 1.0, 0, scaled

    def largest_curvature(self) -> float:
        """Not exceeded by that of the loss in the weights of a class: a quarter of the sum of the squares."""
        # sum_ij c_i x_ij^2 / 4, the trace of X'WX at its largest, P = 1/2
        return float(max(np.sum(rows.diagonal(np.full((len(rows.c), 1), 0.5))[:-1]) for rows in self.trained))

    def row_losses(self, rows: ClassRows) -> np.ndarray:
        """c l of other rows, averaged over the models, [n]."""
        # c_i / K sum_k l_i(s theta_k)
        losses = [rows.losses(self.scale * rows.scores(theta)) for theta in self._theta]
        out: np.ndarray = rows.c * np.mean(losses, axis=0)
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
        """Start from one model, [p, C] and [C], or one for each, [K, p, C] and [K, C]."""
        self.weights[:], self.bias[:] = weights, bias

    def solve(self, l1: np.ndarray, l2: np.ndarray, tolerance: float = 1e-4) -> None:
        """Move the models to their minima.

        Args:
            l1: 0.
            l2: penalties, [p], [p, C] or [K, p, C].
            tolerance: square root of the part of F_k that it may be above its minimum, about.
        """
        self._tolerance = tolerance
        first, self._points = self._theta[0].copy(), []
        for k, theta in enumerate(self._theta):
            if k:
                # the first model's way is most of the others'
                theta += self._theta[0] - first
            self._points.append(self._solve_one(k, self._penalty(l2, k)))

    def _penalty(self, l2: np.ndarray, k: int) -> np.ndarray:
        """Of a model, [p + 1, C], 0 in the last row."""
        _, rows, outputs = self._theta.shape
        own = l2[:, None] if l2.ndim == 1 else l2[k] if l2.ndim == 3 else l2
        out = np.zeros((rows, outputs), self._theta.dtype)
        out[:-1] = own
        return out

    def _solve_one(self, k: int, l2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P [n, C] at the minimum and the diagonal of H."""
        rows, theta, rounding = self.trained[k], self._theta[k].copy(), 50.0 * np.finfo(l2.dtype).eps
        blind = 0
        S = rows.scores(theta)
        # F = sum_i c_i loss_i + theta' l2 theta / 2
        value = rows.total(S) + 0.5 * float(np.sum(theta * l2 * theta))
        for _ in range(NEWTON):
            P = rows.probabilities(S)
            diagonal = rows.diagonal(P) + l2 + np.finfo(l2.dtype).tiny
            # grad F = (X, 1)' (c (P - Y)) + l2 theta
            g = rows.pulled(rows.c[:, None] * (P - rows.Y)) + l2 * theta
            self.visits += 3 * len(P)
            # g' H^-1 g, about: twice what F is above its minimum
            decrement = float(np.vdot(g, g / diagonal))
            if decrement <= self._tolerance**2 * value:
                break
            solved = self._conjugate_gradients(k, P, l2, diagonal, -g, FORCING)
            step, U = solved.x, solved.image
            size, slope = 1.0, float(np.vdot(g, step))
            while True:
                new = theta + size * step
                then = rows.total(S + size * U) + 0.5 * float(np.sum(new * l2 * new))
                # Armijo, up to rounding
                if then <= value + 1e-4 * size * slope + rounding * abs(value) or size < 1e-10:
                    break
                size *= 0.5
            # of steps that lower F by less than its rounding error the first few may still be better
            blind += then >= value
            theta, S, value = new, S + size * U, then
            if blind > BLIND:
                break
        self._theta[k] = theta
        return P, diagonal

    def _conjugate_gradients(
        self,
        k: int,
        P: np.ndarray,
        l2: np.ndarray,
        diagonal: np.ndarray,
        right: np.ndarray,
        tolerance: float,
        start: np.ndarray | None = None,
    ) -> Solved:
        """v with H v = right, from a start, to a relative residual, and (X, 1) (v - start)."""
        rows = self.trained[k]

        def product(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            self.visits += 2 * len(P)
            # H d = (X, 1)' (c (diag(P) - P P') U) + l2 d, U = (X, 1) d
            U = rows.scores(d)
            out = rows.pulled(rows.bent(P, U))
            out += l2 * d
            return out, U

        return conjugate_gradients(
            product, right, lambda r: r / diagonal, tolerance=tolerance, most=PRODUCTS, start=start
        )

    def held_out(self, l1: np.ndarray, l2: np.ndarray) -> HeldOut:
        """The mean loss of the held-out rows at the solution, that of log s with it, and its derivatives, [K, p, C]."""
        n, slope = sum(float(held.c.sum()) for held in self.held) or 1.0, np.zeros_like(self.weights)
        scores = [held.scores(theta) for held, theta in zip(self.held, self._theta, strict=True)]
        value, self.scale = self._scaled(scores, n)
        for k, (held, S, (P, diagonal)) in enumerate(zip(self.held, scores, self._points, strict=True)):
            s, penalty = self.scale, self._penalty(l2, k)
            right = held.pulled(s * held.c[:, None] * (held.probabilities(s * S) - held.Y)) / n
            tolerance = min(ADJOINT, LOOSER * self._tolerance)
            v = self._conjugate_gradients(k, P, penalty, diagonal, right, tolerance, self._adjoint[k]).x
            self._adjoint[k] = v
            # dE / dlog l2_kjc = - l2_kjc W_kjc v_kjc
            slope[k] = -(penalty * self._theta[k] * v)[:-1]
        return HeldOut(value, np.zeros(len(slope[0])), slope)

    def _scaled(self, scores: list[np.ndarray], n: float) -> tuple[float, float]:
        """The least E + (log s)^2 / 2n, and s."""

        def value(log: float) -> float:
            parts = zip(self.held, scores, strict=True)
            # E(s) with a prior log s ~ N(0, 1) that counts as one row
            return (sum(held.total(float(np.exp(log)) * S) for held, S in parts) + 0.5 * log**2) / n

        if not self._scaled_scores:
            return value(0.0), 1.0
        least = minimize_scalar(value, bounds=SCALES, method="bounded", options={"xatol": 1e-6})
        return float(least.fun), float(np.exp(least.x))


def _log_shares(rows: ClassRows) -> np.ndarray:
    """The intercepts of a model without weights, half a row more in each class, [C]."""
    # shares of the classes, half a row added to each
    ones = rows.c @ rows.Y + 0.5
    # a log-odds of two classes
    out: np.ndarray = np.log(ones / (rows.c.sum() + 1.0 - ones)) if len(ones) == 1 else np.log(ones / ones.sum())
    return out
