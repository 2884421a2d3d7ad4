"""The Laplace approximate marginal likelihood of an additive model as an outer loss of its penalties.

With Gaussian priors, b_j ~ N(0, phi / exp(rho_j)) for part j of r_j weights and a flat one of the M intercepts, the
integral of the likelihood over b is approximated around the minimum of F (Wood 2011, J. R. Stat. Soc. B 73:3):

    V = F(b) / phi + c(phi) - M/2 log(2 pi phi) - 1/2 sum_j r_j rho_j + 1/2 log |H|,     H = X' W X + diag(penalties)

phi = 1 where there is no dispersion; else it minimises V. For Gaussian rows V is exact. W depends on b and b on rho, so

    dV/drho_j = 1/2 (exp(rho_j) (|b_j|^2 / phi + tr (H^-1)_jj - b_j' (H^-1 g)_j) - r_j),     g = X' (dW/ds : h)

with h the leverages x_i' H^-1 x_i: one more solve, db/drho_j = -exp(rho_j) H^-1 b_j.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.sparse import csr_array

from bilevax.solvers.additive_families import Family
from bilevax.solvers.additive_fit import Data, Fit, fit, penalties
from bilevax.solvers.additive_search import Outer

LOG_PHI = (-40.0, 40.0)
"""Between these the logarithm of the dispersion is looked for."""


class Marginal:
    """V and its derivatives, as a function of rho.

    Args:
        data: the rows.
        family: of the likelihood.
        part: the number of each column's part, [P], from 0 to m - 1.
        tolerance: of the decrement of F.

    Cost: a fit, then S^3 P^3 / 3 twice for H^-1, and the leverages, S (S + 1) / 2 of :meth:`BinnedColumns.quadratic`.
    """

    def __init__(self, data: Data, family: Family, part: np.ndarray, *, tolerance: float = 1e-7) -> None:
        self.data, self.family, self.part, self.tolerance = data, family, part, tolerance
        self.m = int(part.max(initial=-1)) + 1
        self.rank = family.scores * np.bincount(part, minlength=self.m).astype(float)
        # [m, S (1 + P)], 1 where a row of H is of a part
        at = np.concatenate([np.arange(len(part)) + 1 + t * (len(part) + 1) for t in range(family.scores)])
        ones = np.ones(len(at)), (np.tile(part, family.scores), at)
        self._sums = csr_array(ones, shape=(self.m, family.scores * (len(part) + 1)))

    def __call__(self, rho: np.ndarray, near: Outer | None = None) -> Outer:
        """V at rho, [m]; ``near`` is V at another one, from which the fit starts."""
        penalty = penalties(rho, self.part)
        found = fit(self.data, self.family, penalty, near=near and near.fit, tolerance=self.tolerance)
        log_phi, bend = self._dispersion(found.value)
        phi, M = float(np.exp(log_phi)), self.family.scores
        constant = self.family.normaliser(log_phi, self.data.weight)[0]
        A = found.inverse()
        b, lam = found.b.T.ravel(), np.tile(penalty, M)
        size, trace = self._sums @ (lam * b * b / phi), self._sums @ (lam * np.diag(A))
        value = found.value / phi + constant - 0.5 * M * (np.log(2.0 * np.pi) + log_phi)
        value += 0.5 * (found.log_det() - float(self.rank @ rho))
        through = self._sums @ (lam * b * found.solve(self._bending(found, A)).T.ravel())
        # As if W were constant: exp(rho_j + rho_k) (b_j' A_jk b_k / phi + |A_jk|^2 / 2) off the diagonal
        inner = A * (0.5 * A + np.outer(b, b / phi)) * lam[:, None] * lam
        hessian = np.diag(0.5 * (size + trace)) - self._sums @ (self._sums @ inner).T
        if bend > 0.0:  # phi follows rho
            hessian -= np.outer(size, size) / (4.0 * bend)
        gradient = 0.5 * (size + trace - through - self.rank)
        return Outer(float(value), gradient, hessian, found, phi, self.rank - trace, size)

    def _dispersion(self, F: float) -> tuple[float, float]:
        """log phi that minimises V, and the second derivative of V there; 0 and 0 where there is no dispersion."""
        if not self.family.dispersed:
            return 0.0, 0.0
        M, w = self.family.scores, self.data.weight

        def slope(log_phi: float) -> float:
            return -F * float(np.exp(-log_phi)) + self.family.normaliser(log_phi, w)[1] - 0.5 * M

        low, high = LOG_PHI
        if slope(low) >= 0.0:
            log_phi = low
        elif slope(high) <= 0.0:
            log_phi = high
        else:
            log_phi = float(brentq(slope, low, high, xtol=1e-12, rtol=1e-14))
        return log_phi, F * float(np.exp(-log_phi)) + self.family.normaliser(log_phi, w)[2]

    def _bending(self, found: Fit, A: np.ndarray) -> np.ndarray:
        """g = X' (dW/ds : h), [1 + P, S]."""
        d, S = self.data, self.family.scores
        P = d.X.shape[1]
        if not self.family.bends:
            return np.zeros((P, S))
        h = np.empty((len(d.y), S, S))
        for t in range(S):
            for u in range(t + 1):
                h[:, t, u] = h[:, u, t] = d.X.quadratic(A[t * P : (t + 1) * P, u * P : (u + 1) * P])
        return d.X.transposed_dot(d.weight[:, None] * self.family.bend(found.scores, d.y, h))
