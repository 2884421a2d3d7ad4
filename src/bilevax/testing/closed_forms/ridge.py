"""Ridge regression in closed form: Jacobians that change with w and lam."""

from collections.abc import Sequence

import numpy as np

from bilevax.core.config import config, set_frozen
from bilevax.problems.gradient_step import GradientStep
from bilevax.problems.losses import Squared
from bilevax.problems.problem import Problem
from bilevax.testing.closed_forms.quadratic import Curvature, Floats, with_noise
from bilevax.theory import Constants


@config
class PenalisedRidge:
    """Ridge regression with one penalty exp(lam_j) per coefficient, and a validation quadratic.

    Inner: mean of 1/2 (x_i'w - y_i)^2 plus 1/2 sum_j exp(lam_j) w_j^2. Outer: mean of 1/2 (z_i'w - u_i)^2. The losses
    are the shipped :class:`~bilevax.Squared`, so w has the shape [1, d].

    Args:
        X: training features, [N, d].
        y: training targets, [N].
        Z: validation features, [N', d].
        u: validation targets, [N'].
        lam: the outer variable that goes with the problem, [d].

    Examples:
        >>> p = PenalisedRidge.random(0, d=3)
        >>> p.w(p.lam).shape, p.hypergradient(p.lam).shape
        ((1, 3), (3,))
    """

    X: Floats
    y: Floats
    Z: Floats
    u: Floats
    lam: Floats

    def __post_init__(self) -> None:
        for name in ("X", "y", "Z", "u", "lam"):
            set_frozen(self, **{name: np.asarray(getattr(self, name), np.float64)})

    @classmethod
    def random(cls, seed: int | Sequence[int], *, n: int = 60, d: int = 20, noise: float = 0.5) -> "PenalisedRidge":
        """A random problem: features of decreasing scale, a true coefficient vector, noisy targets.

        Args:
            seed: of every number drawn.
            n: rows of either set.
            d: features.
            noise: standard deviation of the targets.
        """
        rng = np.random.default_rng(seed)
        X, Z = rng.normal(size=(2, n, d)) * np.linspace(1.0, 0.2, d)
        # y = X w + noise, u = Z w + noise, for one w
        truth = rng.normal(size=d)
        y, u = X @ truth + noise * rng.normal(size=n), Z @ truth + noise * rng.normal(size=n)
        return cls(X=X, y=y, Z=Z, u=u, lam=-2.0 + 0.5 * rng.normal(size=d))

    @property
    def train_data(self) -> tuple[Floats, Floats]:
        """The arrays of the inner source, N rows."""
        return self.X, self.y

    @property
    def val_data(self) -> tuple[Floats, Floats]:
        """The arrays of the outer source, N' rows."""
        return self.Z, self.u

    @property
    def problem(self) -> Problem:
        """The bilevel problem, with the step ``curvature(self.lam).alpha``."""
        return Problem(GradientStep(Squared("feature"), self.curvature(self.lam).alpha), Squared())

    def curvature(self, lam: Floats) -> Curvature:
        """L and tau at lam."""
        eigenvalues = np.linalg.eigvalsh(self._hessian(lam))
        return Curvature(float(eigenvalues[-1]), float(eigenvalues[0]))

    def w(self, lam: Floats) -> Floats:
        """The inner solution H^-1 X'y / N with H = X'X / N + diag(exp(lam)), [1, d]."""
        # H w = X'y / n
        return np.linalg.solve(self._hessian(lam), self.X.T @ self.y / len(self.y))[None]

    def v(self, lam: Floats, alpha: float | None = None) -> Floats:
        """The multiplier (alpha H)^-1 Z'(Z w(lam) - u) / N', [1, d]; alpha is ``curvature(lam).alpha`` unless given."""
        step = self.curvature(lam).alpha if alpha is None else alpha
        gradient = self.Z.T @ (self.Z @ self.w(lam)[0] - self.u) / len(self.u)
        # (step H) v = Z'(Z w - u) / n'
        return np.linalg.solve(step * self._hessian(lam), gradient)[None]

    def value(self, lam: Floats) -> float:
        """The outer loss at the inner solution, f(lam) = E(w(lam))."""
        # mean of (z'w(lam) - u)^2 / 2
        return float(0.5 * np.mean((self.Z @ self.w(lam)[0] - self.u) ** 2))

    def hypergradient(self, lam: Floats) -> Floats:
        """The gradient of f, [d]: -exp(lam_j) w_j (H^-1 grad E)_j."""
        # d2(grad_1 G) = diag(exp(lam) w): grad f = - exp(lam) w (H^-1 grad_1 E), entry by entry
        return -np.exp(lam) * self.w(lam).ravel() * self.v(lam, alpha=1.0).ravel()

    def constants(
        self, lam: Floats, *, batch_size: int | None = None, radius: float | None = None, alpha: float | None = None
    ) -> Constants:
        """The exact constants, for minibatches of independent rows of train and every row of val.

        Args:
            lam: outer variable, [d].
            batch_size: b; None: every row.
            radius: of the ball around w(lam) on which L_E and L_Phi hold; None for |w(lam)|, which an iteration from 0
                on every row never leaves.
            alpha: step of the inner map; None for ``curvature(lam).alpha``.
        """
        curvature, w, penalty = self.curvature(lam), self.w(lam)[0], np.exp(np.asarray(lam, np.float64))
        step = curvature.alpha if alpha is None else alpha
        radius = float(np.linalg.norm(w)) if radius is None else radius
        # grad_1 E = Z'(Z w - u) / N', and its Hessian Z'Z / N'
        outer_hessian, outer_gradient = self.Z.T @ self.Z / len(self.u), self.Z.T @ (self.Z @ w - self.u) / len(self.u)
        # gradients of the rows at w(lam), x_i (x_i'w - y_i), their penalty left out
        noise = self.X * (self.X @ w - self.y)[:, None]
        lengths = np.sum(self.X**2, axis=1, keepdims=True)
        data = self.X.T @ self.X / len(self.y)
        mu1 = float(np.linalg.norm(outer_hessian, 2))
        constants = Constants(
            q=curvature.contraction(step),
            L_Phi=step * float(np.max(penalty * (np.abs(w) + radius))),
            L_E=float(np.linalg.norm(outer_gradient)) + mu1 * radius,
            # d2Phi = -step diag(exp(lam) w), whose derivative in w has the norm step max exp(lam)
            mu1=mu1, mu2=0.0, nu1=0.0, nu2=step * float(np.max(penalty)),
            L=curvature.L, tau=curvature.tau, alpha=step,
        )  # fmt: skip
        # sigma1' = step^2 ||E |x|^2 x x' - (E x x')^2||; the cross Jacobian has no noise, the penalty being known
        return with_noise(
            constants,
            batch_size,
            at_solution=step**2 * float(np.sum((noise - noise.mean(0)) ** 2)) / len(noise),
            jacobian=step**2 * float(np.linalg.norm((lengths * self.X).T @ self.X / len(self.y) - data @ data, 2)),
            cross=0.0,
        )

    def _hessian(self, lam: Floats) -> Floats:
        """H = X'X / N + diag(exp(lam)), [d, d]."""
        H: Floats = self.X.T @ self.X / len(self.y) + np.diag(np.exp(np.asarray(lam, np.float64)))
        return H
