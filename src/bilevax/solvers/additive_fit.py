"""A penalised generalised linear model on binned columns, fitted by Newton's method.

    F(b) = sum_i w_i d(y_i, s_i) + 1/2 sum_j exp(rho_j) |b_j|^2,    s_i = X_i b + offset_i

with d half the unit deviance of a family, and j the *parts*: groups of columns that share a penalty. A column of ones
without a penalty stands before X. With several scores, b is [1 + P, S], and a part is its columns in all scores.
With a dispersion phi the likelihood is exp(-d / phi), and the prior of b_j N(0, phi / exp(rho_j)), so that b does not
depend on phi.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.sparse import csr_array

from bilevax.core.errors import ParameterError
from bilevax.linalg.binned import BinnedColumns
from bilevax.solvers.additive_families import Family, Losses
from bilevax.solvers.preconditioned import Solved, conjugate_gradients

MOST_STEPS = 100
"""Newton steps of a fit, at most."""

ROUNDING = 1e-13
"""Part of F by which its sum over the rows may be wrong."""

INEXACT = 5e-2
"""Part of the error, in the norm of H, that conjugate gradients leave of a Newton step."""

FEW, MANY = 6, 20
"""Products with H after which they are given up for a new factor, of a Newton step and of a solution."""


class Data(NamedTuple):
    """Rows to fit to.

    Attributes:
        X: [n, P], without the column of ones.
        y: targets [n].
        weight: [n]; a row of weight 2 counts as two rows.
        offset: added to the scores, [n, S].
    """

    X: BinnedColumns
    y: np.ndarray
    weight: np.ndarray
    offset: np.ndarray

    def rows(self, index: np.ndarray) -> "Data":
        """These rows alone."""
        return Data(self.X.rows(index), self.y[index], self.weight[index], self.offset[index])


def data(
    X: BinnedColumns, y: np.ndarray, family: Family, weight: np.ndarray | None = None, offset: np.ndarray | None = None
) -> Data:
    """Rows to fit to; a column of ones is put before X, weights are 1 and offsets 0 where they are None.

    Raises:
        ParameterError: the rows of the parts differ in number, or weights are negative, not finite or all 0.
    """
    n = len(y)
    ones = BinnedColumns([np.zeros(n, int), *X.codes], [np.ones((1, 1)), *X.bases], histograms=X.forced)
    w = np.ones(n) if weight is None else np.asarray(weight, float)
    o = np.zeros((n, family.scores)) if offset is None else np.asarray(offset, float).reshape(n, -1)
    if X.shape[0] != n or w.shape != (n,) or o.shape != (n, family.scores):
        shapes = f"{X.shape[0]}, {n}, {w.shape} and {o.shape}"
        raise ParameterError(f"rows of X and y, weight and offset are {shapes}; n, n, (n,), (n, {family.scores}) fit")
    if not (np.all(np.isfinite(w)) and np.all(w >= 0.0) and np.any(w > 0.0)):
        raise ParameterError("weights are negative, not finite or all zero; give numbers of at least 0")
    return Data(ones, np.asarray(y), w, o)


class Fit(NamedTuple):
    """A minimum of F.

    Attributes:
        b: weights, the intercept first, [1 + P, S].
        scores: [n, S].
        losses: of the rows at b.
        value: F(b).
        curvature: W [n, S, S], at b or near it.
        gram: X' W X, score by score, [S (1 + P), S (1 + P)].
        factor: lower Cholesky factor of H = X' W X + diag(penalties), laid out likewise.
        steps: Newton steps taken.
        converged: whether the decrement came below the tolerance.
    """

    b: np.ndarray
    scores: np.ndarray
    losses: Losses
    value: float
    curvature: np.ndarray
    gram: np.ndarray
    factor: np.ndarray
    steps: int
    converged: bool

    def solve(self, r: np.ndarray) -> np.ndarray:
        """H^-1 r, [1 + P, S]."""
        return _solve(self.factor, r)

    def solve_all(self, r: np.ndarray) -> np.ndarray:
        """H^-1 r of r [S (1 + P), m], laid out like H."""
        out: np.ndarray = cho_solve((self.factor, True), r, check_finite=False)
        return out

    def inverse(self) -> np.ndarray:
        """H^-1, laid out like H."""
        return inverted(self.factor)

    def curved(self, d: Data, penalty: np.ndarray) -> "Fit":
        """With the curvature at b."""
        G = curvature(d, self.losses)
        return self._replace(curvature=self.losses.curvature, gram=G, factor=factorised(G, penalty))

    def log_det(self) -> float:
        """log |H|."""
        return 2.0 * float(np.sum(np.log(np.diag(self.factor))))


def inverted(factor: np.ndarray) -> np.ndarray:
    """The inverse of a matrix, from its lower Cholesky factor."""
    # The upper triangle of the factor is 0, and stays so.
    # H^-1 of H = L L', its lower half
    lower, _ = dpotri(factor, lower=1)
    out: np.ndarray = lower + lower.T
    out[np.diag_indices(len(out))] *= 0.5
    return out


def _solve(factor: np.ndarray, r: np.ndarray) -> np.ndarray:
    x = cho_solve((factor, True), r.T.ravel(), check_finite=False)
    out: np.ndarray = x.reshape(r.shape[1], -1).T
    return out


def part_sums(part: np.ndarray, S: int) -> csr_array:
    """[m, S (1 + P)], 1 where a row of H is of a part; part as in :func:`penalties`."""
    P = len(part)
    at = (np.arange(1, P + 1) + np.arange(S)[:, None] * (P + 1)).ravel()
    return csr_array((np.ones(S * P), (np.tile(part, S), at)), shape=(int(part.max(initial=-1)) + 1, S * (P + 1)))


def penalties(rho: np.ndarray, part: np.ndarray) -> np.ndarray:
    """exp(rho_j) of each column's part, 0 of the intercept, [1 + P]; part [P] has the number of each column's part."""
    return np.concatenate([[0.0], np.exp(rho)[part]])


def curvature(d: Data, losses: Losses) -> np.ndarray:
    """X' W X, score by score, [S (1 + P), S (1 + P)]."""
    P, S = d.X.shape[1], losses.slope.shape[1]
    out = np.empty((S, P, S, P))
    for t in range(S):
        for u in range(t + 1):
            # X' W_tu X, [P, P]
            out[t, :, u] = d.X.gram(d.weight * losses.curvature[:, t, u])
            out[u, :, t] = out[t, :, u]
    return out.reshape(S * P, S * P)


def factorised(G: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Lower Cholesky factor of G + diag(penalty, once for each score)."""
    at = np.arange(len(G))
    diagonal = G[at, at] + np.tile(penalty, len(G) // len(penalty))
    # A curvature that vanished may round to less than 0.
    diagonal, jitter = np.maximum(diagonal, np.finfo(float).eps * np.max(diagonal)), 0.0
    while True:
        H = np.array(G, order="F")
        H[at, at] = diagonal * (1.0 + jitter)
        factor, info = dpotrf(H, lower=1, clean=1, overwrite_a=1)
        if info == 0:
            return np.asarray(factor)
        # Rounding, or rows whose curvature vanished: but for these H is positive definite.
        jitter = max(1e-14, 100.0 * jitter)


class Point(NamedTuple):
    """F at b, and what it was made of."""

    b: np.ndarray
    scores: np.ndarray
    losses: Losses
    value: float


def point(d: Data, family: Family, penalty: np.ndarray, b: np.ndarray) -> Point:
    """F at b."""
    s = d.X.dot(b) + d.offset
    losses = family.losses(s, d.y)
    # F(b) = sum_i w_i loss_i + sum_j lam_j |b_j|^2 / 2
    return Point(b, s, losses, float(d.weight @ losses.value) + 0.5 * float(penalty @ np.sum(b * b, axis=1)))


def fit(
    d: Data,
    family: Family,
    penalty: np.ndarray,
    *,
    near: Fit | None = None,
    start: np.ndarray | None = None,
    tolerance: float = 1e-9,
    curved: bool = True,
) -> Fit:
    """The minimum of F, from a fit at other penalties, from given weights, or from a model of an intercept alone.

    Newton steps H v = -grad F, halved until F falls by a part of what its slope promises, until the decrement
    grad F' H^-1 grad F / 2, or the part of it that a step should leave, is at most ``tolerance`` (F is in units of a
    log-likelihood). The factor of one Hessian preconditions conjugate gradients on those after it, until these need
    more than :data:`FEW` products.

    Args:
        d: the rows.
        family: of the loss.
        penalty: of every row of b, [1 + P], 0 for none.
        near: the fit to start from.
        start: weights to start from where there is none, [1 + P, S].
        tolerance: of the decrement.
        curved: whether the curvature of the result is that at the minimum; else one near it.

    Cost: a gradient, or a product with H, is 2 n p additions; a curvature S (S + 1) / 2 of :meth:`BinnedColumns.gram`;
    S^3 P^3 / 3 a factor.
    """
    if near is None:
        at = point(d, family, penalty, intercept_alone(d, family) if start is None else start)
        W, G = at.losses.curvature, curvature(d, at.losses)
    else:
        at, W, G = point(d, family, penalty, near.b), near.curvature, near.gram
    factor = factorised(G, penalty)
    steps, converged, here = 0, False, _same(W, at.losses.curvature)
    while steps < MOST_STEPS:
        # grad F = X' (w slope) + lam b
        gradient = d.X.transposed_dot(d.weight[:, None] * at.losses.slope) + penalty[:, None] * at.b
        # H v = -grad F
        known = partial(_solve, factor)
        if here:
            solved = Solved(known(-gradient), 0, True)
        else:
            solved = conjugate(d, at.losses, penalty, known, -gradient, part=INEXACT, most=FEW)
        # - g' v / 2, what the Newton step lowers F by
        decrement = -0.5 * float(np.sum(gradient * solved.x))
        converged = solved.converged and decrement <= tolerance
        if converged:
            break
        moved = halved(d, family, penalty, at, solved.x, decrement) if solved.converged else None
        if moved is not None:
            at, steps = moved, steps + 1
            here = _same(W, at.losses.curvature)
            # after a step that is solved to INEXACT the decrement is INEXACT^2 of what it was
            converged = INEXACT**2 * decrement <= tolerance
            if converged:
                break
        elif here:
            break  # no step lowers F: it is at its rounding
        else:
            W, G, here = at.losses.curvature, curvature(d, at.losses), True
            factor = factorised(G, penalty)
    found = Fit(*at, W, G, factor, steps, converged)
    return found.curved(d, penalty) if curved and not here else found


def _same(W: np.ndarray, other: np.ndarray) -> bool:
    return W is other or np.array_equal(W, other)


def conjugate(
    d: Data,
    losses: Losses,
    penalty: np.ndarray,
    preconditioner: Callable[[np.ndarray], np.ndarray],
    r: np.ndarray,
    *,
    part: float,
    most: int,
) -> Solved:
    """H^-1 r, [1 + P, S], but for a part of it in the norm of H, by preconditioned conjugate gradients.

    H = X' W X + diag(penalties), with W of these losses.
    """

    def product(p: np.ndarray) -> tuple[np.ndarray, float]:
        # H p = X' (w W X p) + lam p, W_i [S, S]
        Wp = np.einsum("ntu,nu->nt", losses.curvature, d.X.dot(p))
        return d.X.transposed_dot(d.weight[:, None] * Wp) + penalty[:, None] * p, 0.0

    return conjugate_gradients(product, r, preconditioner, tolerance=part, most=most)


def intercept_alone(d: Data, family: Family) -> np.ndarray:
    """Weights of the model of an intercept alone, [1 + P, S]."""
    b = np.zeros((d.X.shape[1], family.scores))
    b[0] = family.start(d.y, d.weight)
    return b


def halved(d: Data, family: Family, penalty: np.ndarray, at: Point, move: np.ndarray, decrement: float) -> Point | None:
    """Where F falls by a ten-thousandth of what its slope promises; None: nowhere."""
    size = 1.0
    while size > 1e-8:
        new = point(d, family, penalty, at.b + size * move)
        # Armijo with c = 1e-4: g' (size v) = - 2 size decrement
        if new.value <= at.value - 2e-4 * size * decrement + ROUNDING * abs(at.value):
            return new
        size *= 0.5
    return None
