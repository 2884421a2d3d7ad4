"""The K-fold loss of an additive model as an outer loss of its penalties.

Model k minimises F over the rows outside of fold k, at the same penalties; with q_k = X_k' (w d'), over fold k,

    E(rho) = sum_k sum_(i in fold k) w_i d(y_i, s_i^k),     dE/drho_j = -exp(rho_j) sum_k b^k_j' (H_k^-1 q_k)_j

one solve a fold. Where there is a dispersion, the loss is min over phi of E / phi + c(phi), which rises with E, but is
in units of a log-likelihood.
"""

import numpy as np

from bilevax.solvers.additive_families import Family
from bilevax.solvers.additive_fit import MANY, Data, conjugate, fit, part_sums, penalties
from bilevax.solvers.additive_marginal import dispersion
from bilevax.solvers.additive_search import Outer


class Folds:
    """E, or what rises with it, and its derivatives, as a function of rho.

    Args:
        data: the rows.
        family: of the losses.
        part: the number of each column's part, [P], from 0 to m - 1.
        fold: of each row [n], from 0 to K - 1; -1 of a row that every model is trained on.
        score_weight: of the rows where they are held out, [n]; those they are trained with if None.
        tolerance: of the decrement of F.

    Attributes:
        start: weights that the first fits start from, [1 + P, S]; None: an intercept alone.

    Cost: K fits, m products with X of the held-out rows, and m + 1 solves a fold.
    """

    def __init__(
        self,
        data: Data,
        family: Family,
        part: np.ndarray,
        fold: np.ndarray,
        *,
        score_weight: np.ndarray | None = None,
        tolerance: float = 1e-7,
    ) -> None:
        self.family, self.part, self.tolerance = family, part, tolerance
        self._sums = part_sums(part, family.scores)
        scored = data if score_weight is None else data._replace(weight=score_weight)
        numbers = range(int(fold.max()) + 1)
        self._pairs = [(data.rows(np.flatnonzero(fold != k)), scored.rows(np.flatnonzero(fold == k))) for k in numbers]
        self._weight = scored.weight[fold >= 0]
        self.start: np.ndarray | None = None

    def __call__(self, rho: np.ndarray, near: Outer | None = None) -> Outer:
        """The loss at rho, [m]; ``near`` is that at another one, from which the fits start."""
        penalty, S = penalties(rho, self.part), self.family.scores
        E, gradient, hessian, fits = 0.0, np.zeros(len(rho)), np.zeros((len(rho), len(rho))), []
        lam = np.tile(penalty, S)
        for k, (train, held) in enumerate(self._pairs):
            first = near and near.fits[k]
            found = fit(
                train, self.family, penalty, near=first, start=self.start, tolerance=self.tolerance, curved=False
            )
            losses = self.family.losses(held.X.dot(found.b) + held.offset, held.y)
            E += float(held.weight @ losses.value)
            b = found.b.T.ravel()
            # q = dE_k / db, and v = H^-1 q the adjoint: dE_k / drho_j = - lam_j b_j' v_j
            q = held.X.transposed_dot(held.weight[:, None] * losses.slope)
            # as closely as b is known
            exact = self.tolerance**0.5
            solved = conjugate(train, found.losses, penalty, found.solve, q, part=exact, most=MANY)
            if not solved.converged:
                found = found.curved(train, penalty)
            v = (solved.x if solved.converged else found.solve(q)).T.ravel()
            gradient -= self._sums @ (lam * b * v)
            # As if W were constant: db/drho_k = -U_k, dv/drho_k = -H^-1 (exp(rho_k) v_k + G U_k), G of held-out rows
            U = found.solve_all(self._sums.multiply(lam * b).T.toarray())
            cross = self._sums.multiply(lam * v) @ U
            # X U of the held-out rows, [n, S, m]
            moved = np.stack([held.X.dot(block) for block in np.split(U, S)], axis=1)
            bent = np.einsum("ntu,num->ntm", held.weight[:, None, None] * losses.curvature, moved)
            hessian += cross + cross.T + np.tensordot(moved, bent, axes=((0, 1), (0, 1)))
            fits.append(found)
        log_phi, bend = dispersion(self.family, E, self._weight, 0)
        phi = float(np.exp(log_phi))
        # d lam_j / drho_j = lam_j: the gradient once more on the diagonal
        hessian = (hessian + np.diag(gradient)) / phi
        if bend > 0.0:
            hessian -= np.outer(gradient, gradient) / (phi * phi * bend)
        value = E / phi + self.family.normaliser(log_phi, self._weight)[0]
        return Outer(float(value), gradient / phi, hessian, tuple(fits), phi)
