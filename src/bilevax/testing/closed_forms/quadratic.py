"""A finite sum of quadratics in closed form: what an estimator should find is known to machine precision.

It gives, in numpy and float64, w(lam), v(lam), the value f(lam) = E(w(lam), lam) and its gradient, the curvatures
and the step they call for; and the :class:`~bilevax.Problem` with the arrays of its two sources, on which the same
functions are met as a user's would be: module-level losses of a minibatch, the data never closed over.
"""

from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from bilevax.core.config import config, replace_unchecked, set_frozen
from bilevax.core.errors import ParameterError
from bilevax.core.trees import PyTree
from bilevax.problems.gradient_step import GradientStep
from bilevax.problems.problem import Problem
from bilevax.theory import Constants, Influence, QuadraticMoments, influence

Floats: TypeAlias = NDArray[np.floating]


class Solution(NamedTuple):
    """The truth at some lam, in float64.

    Attributes:
        w: the fixed point, like w0.
        v: solution of (I - d1Phi^T) v = grad_1 E, like w0.
        value: f(lam) = E(w, lam).
        hypergradient: grad f(lam), like lam.

    Examples:
        >>> from bilevax.testing.closed_forms import Solution
        >>> Solution(w=1.0, v=0.5, value=0.1, hypergradient=-0.2).hypergradient
        -0.2
    """

    w: PyTree
    v: PyTree
    value: float
    hypergradient: PyTree


class Curvature(NamedTuple):
    """The largest and the smallest curvature of an inner loss, and the gradient step of the best worst case.

    Attributes:
        L: largest eigenvalue of the inner Hessian.
        tau: smallest eigenvalue.

    Examples:
        >>> from bilevax.testing.closed_forms import Curvature
        >>> curvature = Curvature(L=4.0, tau=1.0)
        >>> curvature.alpha, round(curvature.contraction(curvature.alpha), 3)  # 2 / (L + tau), (L - tau) / (L + tau)
        (0.4, 0.6)
    """

    L: float
    tau: float

    @property
    def alpha(self) -> float:
        """The step 2 / (L + tau)."""
        return 2.0 / (self.L + self.tau)

    @property
    def q(self) -> float:
        """Contraction constant of the map with that step, (L - tau) / (L + tau)."""
        return (self.L - self.tau) / (self.L + self.tau)

    def contraction(self, alpha: float) -> float:
        """Contraction constant of the map with any step, max(|1 - alpha L|, |1 - alpha tau|)."""
        # |I - alpha A|, whose eigenvalues lie between 1 - alpha L and 1 - alpha tau
        return max(abs(1.0 - alpha * self.L), abs(1.0 - alpha * self.tau))


def quadratic_inner_loss(w: Array, lam: Array, batch: PyTree) -> Array:
    """Mean over the batch of 1/2 w'A_i w - w'(b_i + B_i lam).

    Args:
        w: inner variable, [d].
        lam: outer variable, [m].
        batch: {"A": [b, d, d], "b": [b, d], "B": [b, d, m]}.
    """
    # b_i + B_i lam
    linear = batch["b"] + batch["B"] @ lam
    # mean of w'A_i w / 2 - (b_i + B_i lam)'w
    return jnp.mean(0.5 * jnp.einsum("i,nij,j->n", w, batch["A"], w) - linear @ w)


def quadratic_outer_loss(w: Array, lam: Array, batch: PyTree) -> Array:
    """Mean over the batch of 1/2 |w - target_i|^2 + r_i/2 |lam|^2.

    Args:
        w: inner variable, [d].
        lam: outer variable, [m].
        batch: {"target": [b, d], "r": [b]}.
    """
    # mean of |w - target_i|^2 / 2 + r_i |lam|^2 / 2
    return jnp.mean(0.5 * jnp.sum((w[None] - batch["target"]) ** 2, axis=1) + 0.5 * batch["r"] * jnp.sum(lam**2))


@config
class FiniteQuadratic:
    """Sums of quadratics: inner rows 1/2 w'A_i w - w'(b_i + B_i lam), outer 1/2 |w - target_j|^2 + r_j/2 |lam|^2.

    Its Jacobians are constant in w and lam, so the moments of every stochastic estimator are known exactly
    (:meth:`moments`).

    Args:
        A: symmetric, with a positive definite mean, [n, d, d].
        b: [n, d].
        B: [n, d, m].
        target: [d], or a row each of the outer loss, [n', d].
        r: not negative; a number, or one a row of the outer loss, [n'].
        lam: the outer variable that goes with the problem, [m].

    Examples:
        >>> p = FiniteQuadratic.random(0, n=50, d=4, m=2)
        >>> p.hypergradient(p.lam).shape
        (2,)
        >>> bool(abs(p.curvature.q - (1 - p.curvature.alpha * p.curvature.tau)) < 1e-12)
        True
    """

    A: Floats
    b: Floats
    B: Floats
    target: Floats
    r: float | Floats
    lam: Floats

    def __post_init__(self) -> None:
        for name in ("A", "b", "B", "target", "lam"):
            set_frozen(self, **{name: np.asarray(getattr(self, name), np.float64)})
        rows = [len(self.target)] * (self.target.ndim == 2) + [*np.shape(self.r)]
        if len(set(rows)) > 1:
            raise ParameterError(f"target and r must have the same number of rows, got {rows[0]} and {rows[1]}")
        if not np.array_equal(self.A, self.A.transpose(0, 2, 1)):
            raise ParameterError("every A_i must be symmetric")
        if not np.linalg.eigvalsh(self.A.mean(0))[0] > 0:
            raise ParameterError("the mean of the A_i must be positive definite")

    @classmethod
    def random(
        cls, seed: int, *, correlated: bool = False, n: int = 200, d: int = 10, m: int = 5, r: float = 0.1
    ) -> "FiniteQuadratic":
        """A random problem: A_i = x_i x_i' + 0.3 I with anisotropic Gaussian x_i.

        Args:
            seed: of every number drawn.
            correlated: True for B_i - B = (A_i - A) C, so that the two Jacobians of a row go together; False for
                independent B_i.
            n: rows.
            d: inner dimension.
            m: outer dimension.
            r: weight of |lam|^2 / 2.
        """
        rng = np.random.default_rng(seed)
        # A_i = x_i x_i' + .3 I: its least eigenvalue is .3 in every row
        X = rng.normal(size=(n, d)) * np.linspace(1.0, 0.4, d)
        A = X[:, :, None] * X[:, None, :] + 0.3 * np.eye(d)
        b = 0.5 * rng.normal(size=(n, d)) + 1.0
        B = rng.normal(size=(d, m)) + 0.3 * rng.normal(size=(n, d, m))
        lam, target = 0.3 * rng.normal(size=m), rng.normal(size=d)
        # B_i = B + (A_i - A) C
        if correlated:
            B = B.mean(0) + (A - A.mean(0)) @ rng.normal(size=(d, m))
        return cls(A=A, b=b, B=B, target=target, r=r, lam=lam)

    @classmethod
    def conditioned(
        cls, seed: int, *, condition: float = 10.0, n: int = 101, n_val: int = 101, d: int = 4, m: int = 2
    ) -> "FiniteQuadratic":
        """A random problem with noise in both levels, the mean A of eigenvalues from 1 to 1 / condition.

        Every A_i exceeds half of the mean, and all eigenvalues of the Hessian of f lie between 1.1 and 1.2: how fast
        an algorithm is, the inner condition decides.

        Args:
            seed: of every number drawn.
            condition: of the mean A.
            n: rows of the inner loss.
            n_val: rows of the outer loss.
            d: inner dimension, not less than m.
            m: outer dimension.
        """
        rng = np.random.default_rng([seed, n, n_val])
        basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
        root = basis * np.geomspace(1.0, condition**-0.5, d) @ basis.T
        # A_i = A^1/2 (I + x_i x_i') A^1/2 / 2, the mean of x_i x_i' the identity exactly
        X = np.sqrt(n) * np.linalg.qr(rng.normal(size=(n, d)))[0]
        A = root @ (np.eye(d) + X[:, :, None] * X[:, None, :]) @ root / 2
        A = (A + A.transpose(0, 2, 1)) / 2
        # b_i = A_i w + A^1/2 noise, B_i = A_i C + A^1/2 noise less its mean: the Jacobians of a row go together
        w, C = rng.normal(size=d), np.linalg.qr(rng.normal(size=(d, m)))[0]
        spread = rng.normal(size=(n, d, m))
        b, B = A @ w + 0.5 * rng.normal(size=(n, d)) @ root, A @ C + 0.3 * root @ (spread - spread.mean(0))
        # A^-1 B = C, so grad^2 f = (1 + mean r) I
        target, r = w + (rng.normal(size=d) + 0.5 * rng.normal(size=(n_val, d))) @ root, rng.uniform(0.05, 0.25, n_val)
        return cls(A=A, b=b, B=B, target=target, r=r, lam=1.0 + rng.normal(size=m))

    @property
    def train_data(self) -> dict[str, Floats]:
        """The arrays of the inner source, n rows."""
        return {"A": self.A, "b": self.b, "B": self.B}

    @property
    def val_data(self) -> dict[str, Floats]:
        """The arrays of the outer source, n' rows: one, unless target or r has more."""
        target, r = np.atleast_2d(self.target), np.atleast_1d(np.asarray(self.r, np.float64))
        rows = max(len(target), len(r))
        return {"target": np.broadcast_to(target, (rows, *target.shape[1:])), "r": np.broadcast_to(r, rows)}

    @property
    def problem(self) -> Problem:
        """The bilevel problem, with the step ``curvature.alpha``."""
        return Problem(GradientStep(quadratic_inner_loss, self.curvature.alpha), quadratic_outer_loss)

    @property
    def means(self) -> tuple[Floats, Floats, Floats]:
        """The means of A, b and B over the rows."""
        return self.A.mean(0), self.b.mean(0), self.B.mean(0)

    @property
    def outer_means(self) -> tuple[Floats, float]:
        """The means of target and r over the rows of the outer loss."""
        return np.atleast_2d(self.target).mean(0), float(np.mean(self.r))

    @property
    def outer_hessian(self) -> Floats:
        """The Hessian of f, B'A^-2 B + r I, the same at every lam, [m, m]."""
        # dw/dlam = A^-1 B
        G = np.linalg.solve(self.means[0], self.means[2])
        # f is quadratic: grad^2 f = G'G + r I
        hessian: Floats = G.T @ G + self.outer_means[1] * np.eye(self.lam.size)
        return hessian

    @property
    def minimiser(self) -> Floats:
        """Where f is least, [m]."""
        # grad f(lam) = grad f(0) + grad^2 f lam = 0
        return np.linalg.solve(self.outer_hessian, -self.hypergradient(np.zeros(self.lam.size)))

    @property
    def curvature(self) -> Curvature:
        """L and tau, the same at every lam."""
        eigenvalues = np.linalg.eigvalsh(self.means[0])
        return Curvature(float(eigenvalues[-1]), float(eigenvalues[0]))

    def w(self, lam: Floats) -> Floats:
        """The inner solution A^-1 (mean b + B lam), [d]."""
        A, b, B = self.means
        # A w = b + B lam
        return np.linalg.solve(A, b + B @ lam)

    def v(self, lam: Floats, alpha: float | None = None) -> Floats:
        """The multiplier (alpha A)^-1 (w(lam) - target), [d]; alpha is ``curvature.alpha`` unless given."""
        step = self.curvature.alpha if alpha is None else alpha
        # (step A) v = w(lam) - target
        return np.linalg.solve(step * self.means[0], self.w(lam) - self.outer_means[0])

    def value(self, lam: Floats) -> float:
        """The outer loss at the inner solution, f(lam) = E(w(lam), lam)."""
        # f = mean over j of |w(lam) - target_j|^2 / 2 + r_j |lam|^2 / 2
        distances = np.sum((self.w(lam) - np.atleast_2d(self.target)) ** 2, axis=1)
        return float(0.5 * np.mean(distances) + 0.5 * np.mean(self.r) * np.sum(np.square(lam)))

    def hypergradient(self, lam: Floats) -> Floats:
        """The gradient of f, r lam + B'A^-1 (w(lam) - target), [m]."""
        # r lam + B' A^-1 (w(lam) - target), the step of the map cancels
        return self.outer_means[1] * np.asarray(lam) + self.means[2].T @ self.v(lam, alpha=1.0)

    def moments(self, lam: Floats, alpha: float | None = None) -> QuadraticMoments:
        """What the exact recursions of :mod:`bilevax.theory` read, every row of the outer loss seen."""
        step = self.curvature.alpha if alpha is None else alpha
        rows, (target, r) = (self.A, self.b, self.B), self.outer_means
        return QuadraticMoments.of_rows(rows, np.asarray(lam), target=target, r=r, alpha=step)

    def constants(
        self, lam: Floats, *, batch_size: int | None = None, radius: float | None = None, alpha: float | None = None
    ) -> Constants:
        """The exact constants, for minibatches of independent rows.

        All Jacobians are constant and only |grad_1 E| = |w - target| depends on w: L_E holds on a ball around w(lam),
        and wherever E|w_t - w(lam)|^2 is at most its squared radius, which is all that the bounds need here.

        Args:
            lam: outer variable, [m].
            batch_size: b; None: every row.
            radius: of the ball; None for |w(lam)|, which an iteration from 0 on every row never leaves.
            alpha: step of the inner map; None for ``curvature.alpha``.
        """
        step = self.curvature.alpha if alpha is None else alpha
        # Phi(w, lam) = w - step (A w - b - B lam): d1Phi = I - step A and d2Phi = step B, whatever w and lam are
        rows = self.moments(lam, step)
        dA, dB = self.A - rows.A, self.B - rows.B
        radius = float(np.linalg.norm(rows.w)) if radius is None else radius
        constants = Constants(
            q=self.curvature.contraction(step),
            L_Phi=step * float(np.linalg.norm(rows.B, 2)),
            L_E=float(np.linalg.norm(rows.w - self.outer_means[0])) + radius,
            mu1=1.0, mu2=0.0, nu1=0.0, nu2=0.0,
            L=self.curvature.L, tau=self.curvature.tau, alpha=step,
        )  # fmt: skip
        # sigma1' = step^2 ||E (A_i - A)^2||,  sigma2' = step^2 ||E (B_i - B)(B_i - B)'||
        return with_noise(
            constants,
            batch_size,
            at_solution=float(np.trace(rows.noise)),
            jacobian=step**2 * float(np.linalg.norm(np.einsum("iab,ibc->ac", dA, dA) / len(dA), 2)),
            cross=step**2 * float(np.linalg.norm(np.einsum("idm,iem->de", dB, dB) / len(dB), 2)),
        )

    def influence(self, lam: Floats) -> Influence:
        """What each row does to the hypergradient, for the efficiency bound."""
        # of row i: A_i w - b_i - B_i lam;  dw/dlam = A^-1 B
        w, (A, _, B) = self.w(lam), self.means
        gradients = self.A @ w - self.b - self.B @ np.asarray(lam)
        G = np.linalg.solve(A, B).T
        return influence(-self.B, self.A, gradients, outer_gradient=w - self.outer_means[0], G=G)


def with_noise(
    constants: Constants, batch_size: int | None, *, at_solution: float, jacobian: float, cross: float
) -> Constants:
    """Constants with the noise of b independent rows, from E|noise|^2 at w(lam), sigma1' and sigma2' of one row.

    The noise of the map at w is that at w(lam) plus the Jacobian's along w - w(lam), and |Phi(w) - w| is at least
    (1 - q)|w - w(lam)|.
    """
    if batch_size is None:
        return constants
    return replace_unchecked(
        constants,
        # E|a + b|^2 <= 2 E|a|^2 + 2 E|b|^2, a the noise at w(lam) and b that of the Jacobian along w - w(lam)
        sigma1=2.0 * at_solution / batch_size,
        sigma2=2.0 * jacobian / (batch_size * (1.0 - constants.q) ** 2),
        sigma1_prime=jacobian / batch_size,
        sigma2_prime=cross / batch_size,
    )
