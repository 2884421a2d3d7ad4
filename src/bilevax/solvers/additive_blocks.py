"""The marginal likelihood of an additive model of many classes, its log determinant taken class by class.

With S = C - 1 scores and P columns, a factor of H takes S^3 P^3 / 3. In the scores of all classes, t = s Q', H is
X' (diag(p) - p p') X + penalties; here log |H| is taken of its diagonal blocks alone, at C P^3 / 3:

    V = F(b) + 1/2 sum_c (log |B_c| - sum_j r_j rho_j - log(2 pi))
    B_c = X' diag(w p_c (1 - p_c)) X + diag(penalties)

b is the exact minimum of F, found by Newton steps of conjugate gradients on H that the blocks precondition. A block
knows nothing of the others, so that effective degrees of freedom are too large by C / (C - 1) at most. As W depends on
b and b on rho, with h_c the leverages x_i' B_c^-1 x_i and b_c = b Q_c',

    dV/drho_j = 1/2 sum_c (exp(rho_j) (|b_jc|^2 + tr (B_c^-1)_jj) - r_j) - 1/2 exp(rho_j) b_j' (H^-1 g)_j

g = X' (dW/ds : Q' diag(h) Q): exact for V as it stands.
"""

from functools import partial

import numpy as np

from bilevax.core.errors import ParameterError
from bilevax.solvers.additive_families import Family, Losses, Multinomial
from bilevax.solvers.additive_fit import (
    INEXACT,
    MOST_STEPS,
    Data,
    Fit,
    conjugate,
    factorised,
    halved,
    intercept_alone,
    inverted,
    part_sums,
    penalties,
    point,
)
from bilevax.solvers.additive_marginal import density_ratio, doubt
from bilevax.solvers.additive_search import Found, Outer
from bilevax.solvers.preconditioned import Solved

MOST_PRODUCTS = 500
"""Products with H of a solve, at most."""


class BlockFit(Fit):
    """A minimum of F with H class by class: ``gram`` and ``factor`` are those of the blocks, [C, 1 + P, 1 + P]."""

    def inverse(self) -> np.ndarray:
        """Of the blocks, [C, 1 + P, 1 + P]."""
        return _inverses(self.factor)

    def log_det(self) -> float:
        """The sum of those of the blocks."""
        return 2.0 * float(np.sum(np.log(np.einsum("cjj->cj", self.factor))))


class Blocks:
    """V and its derivatives, as a function of rho: in place of :class:`Marginal` where there are many classes.

    Args:
        data: the rows.
        family: classes.
        part: the number of each column's part, [P], from 0 to m - 1.
        tolerance: of the decrement of F.

    Attributes:
        start: weights that the first fit starts from, [1 + P, S]; None: an intercept alone.

    Raises:
        ParameterError: the family is not one of classes.

    Cost: C grams and leverages, C P^3 thrice, and some dozen products with X and X' a Newton step.
    """

    def __init__(self, data: Data, family: Family, part: np.ndarray, *, tolerance: float = 1e-7) -> None:
        if family.dispersed or (family.scores > 1 and not isinstance(family, Multinomial)):
            raise ParameterError(f"{type(family).__name__} is no family of classes; only those go class by class")
        self.data, self.family, self.part, self.tolerance = data, family, part, tolerance
        self.Q: np.ndarray = family.contrasts if isinstance(family, Multinomial) else np.ones((1, 1))
        self._sums = part_sums(part, 1)
        self.rank = self._sums.sum(axis=1)
        self.start: np.ndarray | None = None

    def __call__(self, rho: np.ndarray, near: Outer | None = None) -> Outer:
        """V at rho, [m]; ``near`` is V at another one, from which the fit starts."""
        lam, C = penalties(rho, self.part), len(self.Q)
        found = self.fit(lam, near and near.fits[0])
        inverses, b = found.inverse(), found.b @ self.Q.T
        # F + (sum_c log|H_c| - C (rank' rho + log 2 pi)) / 2, F at the minimum
        value = found.value + 0.5 * (found.log_det() - C * float(self.rank @ rho + np.log(2.0 * np.pi)))
        # H v = d(sum_c log|H_c|) / db; db / drho_j = - H^-1 lam_j b_j, so that what goes through b is - lam_j b_j' v_j
        v = self.solve(found.losses, lam, inverses, self._bending(found, inverses), self.tolerance**0.5).x
        through = self._sums @ (lam * np.sum(found.b * v, axis=1))
        trace = np.einsum("cjj->j", inverses)
        # lam_j (|b_j|^2 + sum_c tr A_c,jj), the derivatives of F and of log|H_c| at b held
        both = self._sums @ (lam * (np.sum(b * b, axis=1) + trace))
        # As if W were constant, and H its blocks: - exp(rho_j + rho_k) sum_c (b_jc' A_jk b_kc + |A_jk|^2 / 2)
        hessian, T = np.diag(0.5 * both), self._sums.multiply(lam).tocsr()
        for A, b_c in zip(inverses, b.T, strict=True):
            U = self._sums.multiply(lam * b_c).tocsr()
            hessian -= 0.5 * T @ (T @ (A * A)).T + U @ (U @ A).T
        gradient = 0.5 * (both - through - C * self.rank)
        return Outer(float(value), gradient, hessian, (found,), 1.0)

    def freedom(self, rho: np.ndarray, outer: Outer) -> np.ndarray:
        """Effective degrees of freedom of the parts, C r_j - exp(rho_j) sum_c tr (B_c^-1)_jj, [m]."""
        trace = np.einsum("cjj->j", outer.fits[0].inverse())
        # C rank_j - lam_j sum_c tr A_c,jj
        out: np.ndarray = len(self.Q) * self.rank - self._sums @ (penalties(rho, self.part) * trace)
        return out

    def evidence(self, found: Found, columns: np.ndarray, inverses: np.ndarray) -> float:
        """log p(y) less log p(y) without some columns, as :func:`evidence` has it, of the blocks.

        1/2 sum_c (b_c' (A_c)^-1 b_c + (C - 1) / C log |A_c diag(penalties)|): of C scores one follows from the others.
        """
        b, lam = found.outer.fits[0].b @ self.Q.T, penalties(found.rho, self.part)[columns]
        total = 0.0
        for A_c, b_c in zip(inverses[:, columns[:, None], columns], b[columns].T, strict=True):
            square, log_det = density_ratio(A_c, b_c, lam)
            total += 0.5 * (square + self.family.scores / len(self.Q) * log_det)
        return total

    def covariances(self, found: Found, group: np.ndarray | None = None) -> np.ndarray:
        """Of the weights of every class, B_c^-1 + J V_rho J' as :func:`covariance` has it, [C, 1 + P, 1 + P]."""
        fitted = found.outer.fits[0]
        out, lam = fitted.inverse(), penalties(found.rho, self.part)
        sums = self._sums if group is None else part_sums(group[self.part], 1)
        root = doubt(found)
        for A, b in zip(out, (fitted.b @ self.Q.T).T, strict=True):
            # db / drho = - A lam b, and root root' the covariance of rho: what is not known of rho adds to A
            spread = A @ (sums.multiply(lam * b).T @ root)
            A += spread @ spread.T
        return out

    def fit(self, penalty: np.ndarray, near: Fit | None = None) -> BlockFit:
        """The minimum of F, from a fit at other penalties, or from ``start``.

        The blocks are those of the start until a solve takes longer than it takes to make them.
        """
        d, family, P = self.data, self.family, self.data.X.shape[1]
        first = intercept_alone(d, family) if self.start is None else self.start
        b = first if near is None else near.b
        at = point(d, family, penalty, b)
        inverses = _inverses(_factors(self._grams(at.losses) if near is None else near.gram, penalty))
        converged, steps = False, 0
        while steps < MOST_STEPS:
            gradient = d.X.transposed_dot(d.weight[:, None] * at.losses.slope) + penalty[:, None] * at.b
            solved = self.solve(at.losses, penalty, inverses, -gradient, INEXACT)
            # - g' x / 2, what a Newton step lowers F by
            decrement = -0.5 * float(np.sum(gradient * solved.x))
            converged = decrement <= self.tolerance
            moved = None if converged else halved(d, family, penalty, at, solved.x, decrement)
            if moved is None:
                break
            at, steps = moved, steps + 1
            # C grams are n P^2 multiplications each, a product with H is 2 n P of each score
            if 4 * solved.products > P:
                inverses = _inverses(_factors(self._grams(at.losses), penalty))
        grams = self._grams(at.losses)
        return BlockFit(*at, at.losses.curvature, grams, _factors(grams, penalty), steps, converged)

    def solve(
        self, losses: Losses, penalty: np.ndarray, inverses: np.ndarray, r: np.ndarray, tolerance: float
    ) -> Solved:
        """H^-1 r, [1 + P, S], by conjugate gradients."""
        known = partial(self._preconditioned, inverses)
        return conjugate(self.data, losses, penalty, known, r, part=tolerance, most=MOST_PRODUCTS)

    def _preconditioned(self, inverses: np.ndarray, r: np.ndarray) -> np.ndarray:
        """sum_c B_c^-1 r Q_c' Q_c."""
        # sum_c Q_c A_c (Q_c' r), Q_c the contrasts of class c
        out: np.ndarray = np.matmul(inverses, (r @ self.Q.T).T[:, :, None])[:, :, 0].T @ self.Q
        return out

    def _grams(self, losses: Losses) -> np.ndarray:
        """X' diag(w (Q W Q')_cc) X of every class, [C, 1 + P, 1 + P]."""
        # Q_c' W_i Q_c, the curvature of row i in the score of class c, [C, n]
        W = np.einsum("ct,ntu,cu->cn", self.Q, losses.curvature, self.Q, optimize=True)
        return np.array([self.data.X.gram(self.data.weight * np.maximum(W_c, 0.0)) for W_c in W])

    def _bending(self, found: Fit, inverses: np.ndarray) -> np.ndarray:
        """g = X' (dW/ds : Q' diag(h) Q), [1 + P, S]."""
        d, Q = self.data, self.Q
        # x_i' A_c x_i, [C, n], and sum_c of it along Q_c Q_c', [n, S, S]
        h = np.array([d.X.quadratic(A) for A in inverses])
        in_scores = np.einsum("cn,ct,cu->ntu", h, Q, Q, optimize=True)
        return d.X.transposed_dot(d.weight[:, None] * self.family.bend(found.scores, d.y, in_scores))


def _factors(grams: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Lower Cholesky factors of the blocks."""
    return np.array([factorised(G, penalty) for G in grams])


def _inverses(factors: np.ndarray) -> np.ndarray:
    """Of the blocks, from their factors."""
    return np.array([inverted(factor) for factor in factors])
