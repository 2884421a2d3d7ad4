"""A test problem in closed form whose inner map is no gradient step."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.config import config, set_frozen
from bilevax.core.errors import ParameterError
from bilevax.core.trees import PyTree
from bilevax.problems.problem import Problem
from bilevax.testing.closed_forms.quadratic import Floats, quadratic_outer_loss


class Contraction(NamedTuple):
    """How a linear map contracts.

    Attributes:
        q: its norm, by which every step contracts.
        radius: its spectral radius, by which steps contract in the long run; less than q for a map that is not normal.

    Examples:
        >>> from bilevax.testing.closed_forms import Contraction
        >>> Contraction(q=0.9, radius=1.0).q
        0.9
    """

    q: float
    radius: float


def affine_map(w: Array, lam: Array, batch: PyTree) -> Array:
    """Mean over the batch of M_i w + B_i lam + c_i.

    Args:
        w: inner variable, [d].
        lam: outer variable, [m].
        batch: {"M": [b, d, d], "B": [b, d, m], "c": [b, d]}.
    """
    # the mean of the maps is the map of the means
    M, B, c = (jnp.mean(batch[name], axis=0) for name in ("M", "B", "c"))
    return M @ w + B @ lam + c


@config
class FiniteAffine:
    """A mean of affine maps: rows w -> M_i w + B_i lam + c_i, outer 1/2 |w - target|^2 + r/2 |lam|^2.

    M is not symmetric, so that d1Phi and d1Phi^T are told apart, and no inner loss has these steps.

    Args:
        M: with a mean of spectral radius below one, [n, d, d].
        B: [n, d, m].
        c: [n, d].
        target: [d].
        r: not negative.
        lam: the outer variable that goes with the problem, [m].

    Examples:
        >>> p = FiniteAffine.random(0, d=4, m=2)
        >>> p.hypergradient(p.lam).shape
        (2,)
        >>> p.contraction.radius < p.contraction.q < 1
        True
    """

    M: Floats
    B: Floats
    c: Floats
    target: Floats
    r: float
    lam: Floats

    def __post_init__(self) -> None:
        for name in ("M", "B", "c", "target", "lam"):
            set_frozen(self, **{name: np.asarray(getattr(self, name), np.float64)})
        if not self.contraction.radius < 1:
            raise ParameterError(
                f"the mean of the M_i must have a spectral radius below one, got {self.contraction.radius:.3g}"
            )

    @classmethod
    def random(
        cls, seed: int, *, n: int = 50, d: int = 10, m: int = 5, q: float = 0.7, noise: float = 0.2, r: float = 0.1
    ) -> "FiniteAffine":
        """A random problem: Gaussian matrices.

        Args:
            seed: of every number drawn.
            n: rows.
            d: inner dimension.
            m: outer dimension.
            q: norm of the mean of the M_i.
            noise: standard deviation over the rows of each entry of M, B and c; the mean of M is free of it.
            r: weight of |lam|^2 / 2.
        """
        rng = np.random.default_rng(seed)
        M, B, c = rng.normal(size=(d, d)), rng.normal(size=(d, m)), rng.normal(size=d)
        # M_i = q M / ||M|| + noise less its mean, so that the mean has the norm q exactly
        spread = noise * rng.normal(size=(n, d, d))
        rows = q * M / np.linalg.norm(M, 2) + spread - spread.mean(0)
        B, c = B + noise * rng.normal(size=(n, d, m)), c + noise * rng.normal(size=(n, d))
        return cls(M=rows, B=B, c=c, target=rng.normal(size=d), r=r, lam=0.3 * rng.normal(size=m))

    @property
    def train_data(self) -> dict[str, Floats]:
        """The arrays of the inner source, n rows."""
        return {"M": self.M, "B": self.B, "c": self.c}

    @property
    def val_data(self) -> dict[str, Floats]:
        """The arrays of the outer source, one row."""
        return {"target": self.target[None], "r": np.full(1, float(self.r))}

    @property
    def problem(self) -> Problem:
        """The bilevel problem; its inner map has no loss."""
        return Problem(affine_map, quadratic_outer_loss)

    @property
    def contraction(self) -> Contraction:
        """Norm and spectral radius of the mean of the M_i, the same at every w and lam."""
        M = self._means[0]
        return Contraction(float(np.linalg.norm(M, 2)), float(np.abs(np.linalg.eigvals(M)).max()))

    def w(self, lam: Floats) -> Floats:
        """The fixed point (I - M)^-1 (mean c + B lam), [d]."""
        # (I - M) w = c + B lam
        M, B, c = self._means
        return np.linalg.solve(np.eye(len(M)) - M, c + B @ lam)

    def v(self, lam: Floats) -> Floats:
        """The multiplier (I - M')^-1 (w(lam) - target), [d]."""
        # (I - M') v = w(lam) - target
        M = self._means[0]
        return np.linalg.solve(np.eye(len(M)) - M.T, self.w(lam) - self.target)

    def value(self, lam: Floats) -> float:
        """The outer loss at the fixed point, f(lam) = E(w(lam), lam)."""
        # |w(lam) - target|^2 / 2 + r |lam|^2 / 2
        return float(0.5 * np.sum((self.w(lam) - self.target) ** 2) + 0.5 * self.r * np.sum(np.square(lam)))

    def hypergradient(self, lam: Floats) -> Floats:
        """The gradient of f, r lam + B'v(lam), [m]."""
        # grad_2 E + d2Phi' v = r lam + B'v
        return self.r * np.asarray(lam) + self._means[1].T @ self.v(lam)

    @property
    def _means(self) -> tuple[Floats, Floats, Floats]:
        """The means of M, B and c over the rows."""
        return self.M.mean(0), self.B.mean(0), self.c.mean(0)
