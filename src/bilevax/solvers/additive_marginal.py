"""The Laplace approximate marginal likelihood of an additive model as an outer loss of its penalties.

With Gaussian priors, b_j ~ N(0, phi / exp(rho_j)) for part j of r_j weights and a flat one of the M intercepts, the
integral of the likelihood over b is approximated around the minimum of F (Wood 2011, J. R. Stat. Soc. B 73:3):

    V = F(b) / phi + c(phi) - M/2 log(2 pi phi) - 1/2 sum_j r_j rho_j + 1/2 log |H|,     H = X' W X + diag(penalties)

phi = 1 where there is no dispersion; else it minimises V, or is at least a given one. For Gaussian rows V is exact. W
depends on b and b on rho, so

    dV/drho_j = 1/2 (exp(rho_j) (|b_j|^2 / phi + tr (H^-1)_jj - b_j' (H^-1 g)_j) - r_j),     g = X' (dW/ds : h)

with h the leverages x_i' H^-1 x_i: one more solve, db/drho_j = -exp(rho_j) H^-1 b_j.
"""

import numpy as np
from scipy.optimize import brentq

from bilevax.solvers.additive_families import Family
from bilevax.solvers.additive_fit import Data, Fit, fit, part_sums, penalties
from bilevax.solvers.additive_search import Found, Outer, OuterLoss, minimise

LOG_PHI = (-40.0, 40.0)
"""Between these the logarithm of the dispersion is looked for."""


SETTLING, SETTLED = 8, 0.1
"""How often the dispersion is taken anew, at most, and the change of its logarithm that is none."""

FLATTEST = 0.1
"""Least curvature of V that the doubt of a log penalty is taken from."""


class Marginal:
    """V and its derivatives, as a function of rho.

    Args:
        data: the rows.
        family: of the likelihood.
        part: the number of each column's part, [P], from 0 to m - 1.
        tolerance: of the decrement of F.

    Attributes:
        least: phi is at least this where there is one; 0 at first.
        start: weights that the first fit starts from, [1 + P, S]; None: an intercept alone.

    Cost: a fit, then S^3 P^3 / 3 twice for H^-1, and the leverages, S (S + 1) / 2 of :meth:`BinnedColumns.quadratic`.
    """

    def __init__(self, data: Data, family: Family, part: np.ndarray, *, tolerance: float = 1e-7) -> None:
        self.data, self.family, self.part, self.tolerance = data, family, part, tolerance
        self._sums = part_sums(part, family.scores)
        self.rank = self._sums.sum(axis=1)
        self.least = 0.0
        self.start: np.ndarray | None = None

    def __call__(self, rho: np.ndarray, near: Outer | None = None) -> Outer:
        """V at rho, [m]; ``near`` is V at another one, from which the fit starts."""
        penalty, M = penalties(rho, self.part), self.family.scores
        found = self._fit(penalty, near and near.fits[0])
        log_phi, bend = dispersion(self.family, found.value, self.data.weight, M)
        if self.family.dispersed and self.least > np.exp(log_phi):
            log_phi, bend = float(np.log(self.least)), 0.0
        phi = float(np.exp(log_phi))
        A = found.inverse()
        b, lam = found.b.T.ravel(), np.tile(penalty, M)
        # exp(rho_j) |b_j|^2 / phi and exp(rho_j) tr A_jj
        size, trace = self._sums @ (lam * b * b / phi), self._sums @ (lam * np.diag(A))
        # F / phi + c(phi) + (log|H| - rank' rho - M log(2 pi phi)) / 2, M the intercepts
        value = found.value / phi + self.family.normaliser(log_phi, self.data.weight)[0]
        value += 0.5 * (found.log_det() - float(self.rank @ rho) - M * (np.log(2.0 * np.pi) + log_phi))
        # db / drho_j = - A lam_j b_j: log|H| by way of b
        through = self._sums @ (lam * b * found.solve(self._bending(found, A)).T.ravel())
        # As if W were constant: - exp(rho_j + rho_k) (b_j' A_jk b_k / phi + |A_jk|^2 / 2) off the diagonal
        T, U = self._sums.multiply(lam).tocsr(), self._sums.multiply(lam * b).tocsr()
        hessian = np.diag(0.5 * (size + trace)) - 0.5 * T @ (T @ (A * A)).T - U @ (U @ A).T / phi
        if bend > 0.0:  # phi follows rho
            hessian -= np.outer(size, size) / (4.0 * bend)
        gradient = 0.5 * (size + trace - through - self.rank)
        return Outer(float(value), gradient, hessian, (found,), phi)

    def _fit(self, penalty: np.ndarray, near: Fit | None) -> Fit:
        """The minimum of F."""
        return fit(self.data, self.family, penalty, near=near, start=self.start, tolerance=self.tolerance)

    def freedom(self, rho: np.ndarray, outer: Outer) -> np.ndarray:
        """Effective degrees of freedom of the parts, r_j - exp(rho_j) tr (H^-1)_jj, [m]."""
        lam = np.tile(penalties(rho, self.part), self.family.scores)
        # rank_j - exp(rho_j) tr A_jj
        out: np.ndarray = self.rank - self._sums @ (lam * np.diag(outer.fits[0].inverse()))
        return out

    def spread(self, outer: Outer) -> float:
        """The dispersion of the rows that the weights depend on, tr (H^-1 J) / tr (H^-1 X' W X).

        J = sum_i x_i x_i' r_i^2 / (1 - h_i), r the slopes of the losses and h = W x' H^-1 x the leverages: the variance
        of the gradient (Takeuchi 1976), each row seen by a model without it. Where the variance rises faster than the
        family says, rows of high leverage have more than the mean of the others, which phi of V is.
        """
        d, found = self.data, outer.fits[0]
        w, r, W = d.weight, found.losses.slope[:, 0], found.losses.curvature[:, 0, 0]
        q = d.X.quadratic(found.inverse())
        # one of the rows that a weight stands for
        rest = np.maximum(1.0 - np.minimum(w, 1.0) * W * q, 1e-6)
        # tr(H^-1 J) = sum_i w_i q_i r_i^2 / (1 - h_i), tr(H^-1 X' W X) = sum_i w_i W_i q_i, q_i = x_i' H^-1 x_i
        return float(np.sum(w * q * r * r / rest) / np.sum(w * W * q))

    def _bending(self, found: Fit, A: np.ndarray) -> np.ndarray:
        """g = X' (dW/ds : h), [1 + P, S]."""
        d, S = self.data, self.family.scores
        P = d.X.shape[1]
        if not self.family.bends:
            return np.zeros((P, S))
        h = np.empty((len(d.y), S, S))
        for t in range(S):
            for u in range(t + 1):
                # x_i' A_tu x_i, [n, S, S]
                h[:, t, u] = h[:, u, t] = d.X.quadratic(A[t * P : (t + 1) * P, u * P : (u + 1) * P])
        return d.X.transposed_dot(d.weight[:, None] * self.family.bend(found.scores, d.y, h))


def dispersion(family: Family, F: float, w: np.ndarray, M: int) -> tuple[float, float]:
    """log phi that minimises F / phi + c(phi) - M/2 log(phi), and the second derivative there; 0, 0 without one."""
    if not family.dispersed:
        return 0.0, 0.0

    def slope(log_phi: float) -> float:
        # d/dlog phi (F / phi + c(phi) - M/2 log phi)
        return -F * float(np.exp(-log_phi)) + family.normaliser(log_phi, w)[1] - 0.5 * M

    low, high = LOG_PHI
    if slope(low) >= 0.0:
        log_phi = low
    elif slope(high) <= 0.0:
        log_phi = high
    else:
        log_phi = float(brentq(slope, low, high, xtol=1e-12, rtol=1e-14))
    return log_phi, F * float(np.exp(-log_phi)) + family.normaliser(log_phi, w)[2]


def settled(
    model: Marginal, loss: OuterLoss, rho: np.ndarray, *, near: Outer | None = None, tolerance: float = 1e-2
) -> Found:
    """Penalties at which phi is what it is of V, and no less than the spread of their own fit.

    Were phi free, penalties would fall until a few rows of large variance are met, and phi with them. So it begins
    high, and follows the spread; the penalties are found as closely as log phi is known.

    Args:
        model: the marginal likelihood, with a first ``least``.
        loss: made of it.
        rho: start, [m].
        near: as in :func:`~bilevax.solvers.additive_search.minimise`.
        tolerance: likewise.
    """
    change, spread = 1.0, model.least
    for _ in range(SETTLING):
        model.least = spread
        found = minimise(loss, rho, near=near, tolerance=max(tolerance, change))
        fitted, rho, near = found.outer.fits[0], found.rho, found.outer
        own = float(np.exp(dispersion(model.family, fitted.value, model.data.weight, model.family.scores)[0]))
        spread = model.spread(found.outer)
        change = abs(np.log(max(spread, own) / found.outer.phi))
        if change <= SETTLED:
            break
    return minimise(loss, rho, at=near, tolerance=tolerance)


def doubt(found: Found) -> np.ndarray:
    """A root of V_rho, the covariance of what the log penalties may be wrong by, [m, m]."""
    e, U = np.linalg.eigh(0.5 * (found.outer.hessian + found.outer.hessian.T))
    # root root' = H^-1, H the Hessian in rho; a flat direction is not taken for a free one
    out: np.ndarray = U / np.sqrt(np.maximum(e, FLATTEST))
    return out


def covariance(
    model: Marginal, found: Found, group: np.ndarray | None = None, inverse: np.ndarray | None = None
) -> np.ndarray:
    """Of the weights, phi H^-1 + J V_rho J', score by score, [S (1 + P), S (1 + P)].

    The second term is what rho may be wrong by (Wood, Pya, Saefken 2016, arXiv:1511.03864): J = db/drho, V_rho the
    inverse of the Hessian of V and the prior, whose eigenvalues below FLATTEST are raised to it.

    Args:
        model: the marginal likelihood.
        found: tuned penalties.
        group: as in :func:`~bilevax.solvers.additive_search.tied`, where parts share penalties, [m].
        inverse: H^-1, where it is there already.
    """
    fitted = found.outer.fits[0]
    A = fitted.inverse() if inverse is None else inverse
    b, lam = fitted.b.T.ravel(), np.tile(penalties(found.rho, model.part), model.family.scores)
    part = model.part if group is None else group[model.part]
    # - db / drho, [S (1 + P), m]
    J = A @ (part_sums(part, model.family.scores).multiply(lam * b)).T.toarray()
    spread = J @ doubt(found)
    # phi A at rho, and J cov(rho) J'
    out: np.ndarray = found.outer.phi * A + spread @ spread.T
    return out


def class_covariances(covariance: np.ndarray, contrasts: np.ndarray) -> np.ndarray:
    """Of the weights b Q' of every class, [C, 1 + P, 1 + P], from that of b; Q the contrasts, [C, S]."""
    S = contrasts.shape[1]
    P = len(covariance) // S
    own = covariance.reshape(S, P, S, P)
    # Q_c' V Q_c over scores, [C, P, P]
    out: np.ndarray = np.einsum("ct,tiuj,cu->cij", contrasts, own, contrasts, optimize=True)
    return out


def curve_errors(Z: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """Standard errors of Z b in each class, [bins, C].

    Args:
        Z: what the bins stand for, [bins, k].
        covariances: of b, [C, k, k].
    """
    # z_b' V z_b of each bin b
    variances = np.array([np.einsum("bi,bi->b", Z @ V, Z) for V in covariances])
    out: np.ndarray = np.sqrt(np.maximum(variances.T, 0.0))
    return out


def evidence(model: Marginal, found: Found, columns: slice | np.ndarray, inverse: np.ndarray | None = None) -> float:
    """log p(y) less log p(y) without a column, by the ratio of prior and posterior density of its weights at 0.

    1/2 (b_j' (A_jj)^-1 b_j / phi + log |A_jj diag(penalties_j)|), A = H^-1 (Savage, Dickey 1971); exact for Gaussian
    rows at this phi.

    Args:
        model: the marginal likelihood.
        found: tuned penalties.
        columns: of X with the column of ones, those of the column.
        inverse: H^-1, where it is there already.
    """
    fitted, S = found.outer.fits[0], model.family.scores
    P = len(fitted.b)
    at = (np.arange(P)[columns] + np.arange(S)[:, None] * P).ravel()
    A = (fitted.inverse() if inverse is None else inverse)[np.ix_(at, at)]
    b = fitted.b.T.ravel()[at]
    lam = np.tile(penalties(found.rho, model.part)[columns], S)
    square, log_det = density_ratio(A, b, lam)
    # log N(0; 0, phi / lam) - log N(0; b, phi A), the prior's density at 0 over the posterior's
    return 0.5 * (square / found.outer.phi + log_det)


def density_ratio(A: np.ndarray, b: np.ndarray, lam: np.ndarray) -> tuple[float, float]:
    """b' A^-1 b and log |A diag(lam)|, of which the log ratio of prior and posterior density at 0 is made."""
    # The eigenvalues of A diag(lam) are between 0 and 1.
    log_det = np.linalg.slogdet(np.sqrt(lam)[:, None] * A * np.sqrt(lam))[1]
    return float(b @ np.linalg.solve(A, b)), float(log_det)
