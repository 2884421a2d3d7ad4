"""The least error that a number of minibatches allows, and what each stage of SID contributes to its own.

In loss form, with H the mean of the Hessians H_i, C = d_lam grad_w of the inner loss and H u = grad_1 E at w = w(lam),
the hypergradient is grad_2 E - C'u, and row i moves it by its influence, to first order in its weight,

    psi_i = -(C_i - C)'u  +  C'H^-1 (H_i - H) u  -  G H^-1 g_i ,     G = d/dw (grad_2 E(w) - C(w)'u(w)) ,

g_i the gradient of row i. No regular estimator from N independent minibatches of b rows has a mean square error below
tr Cov(psi) / (b N) asymptotically (the semiparametric bound, with every row of val in E). SID draws other minibatches
for each of the three terms, which correspond to its stages cross, linear and inner.

Source: the bound is classical (van der Vaart 1998, Asymptotic Statistics, chapter 25); its use here is this project's.
"""

from typing import NamedTuple

import numpy as np


class Traces(NamedTuple):
    """Variance per minibatch that each stage contributes; after N of them each, inner/N + linear/N + cross/N.

    Attributes:
        inner: of the term of w.
        linear: of the term of v.
        cross: of the cross product.

    Examples:
        >>> from bilevax.theory import Traces
        >>> Traces(4.0, 1.0, 1.0)  # after N minibatches each: 6 / N
        Traces(inner=4.0, linear=1.0, cross=1.0)
    """

    inner: float
    linear: float
    cross: float


class Influence(NamedTuple):
    """The three terms of psi, one row each, [n, m].

    Attributes:
        inner: -G H^-1 g_i.
        linear: C'H^-1 (H_i - H) u.
        cross: -(C_i - C)'u.

    Examples:
        >>> from bilevax.theory import Influence, influence
        >>> from bilevax.testing.closed_forms import FiniteQuadratic
        >>> p = FiniteQuadratic.random(0)
        >>> parts = p.influence(p.lam)
        >>> isinstance(parts, Influence), parts.psi.shape, round(parts.variance(20) / parts.variance(10), 3)
        (True, (200, 5), 0.5)
    """

    inner: np.ndarray
    linear: np.ndarray
    cross: np.ndarray

    @property
    def psi(self) -> np.ndarray:
        """The influence of each row, [n, m], of mean 0."""
        total: np.ndarray = self.inner + self.linear + self.cross
        return total

    def traces(self, batch_size: int) -> Traces:
        """The stages' variances, tr Cov / b."""
        return Traces(*(_trace(part) / batch_size for part in self))

    def variance(self, batch_size: int) -> float:
        """V = tr Cov(psi) / b: from N minibatches no regular estimator has an error below V / N."""
        # the three terms are of one row, and correlated: V is not the sum of their traces
        return _trace(self.psi) / batch_size

    def variance_with_exact_pass(self, batch_size: int) -> float:
        """The same where the cross product is taken on every row, without its term."""
        return _trace(self.inner + self.linear) / batch_size


def influence(C: np.ndarray, H: np.ndarray, g: np.ndarray, *, outer_gradient: np.ndarray, G: np.ndarray) -> Influence:
    """The influence of each row on the hypergradient.

    Args:
        C: d_lam grad_w of each row's loss at w(lam), [n, d, m].
        H: its Hessian in w, [n, d, d].
        g: its gradient in w, [n, d], of mean 0 at w(lam).
        outer_gradient: grad_1 E(w(lam)), [d].
        G: derivative in w of grad_2 E(w) - C(w)'u(w), [m, d].

    Examples:
        >>> import numpy as np
        >>> from bilevax.theory import influence
        >>> rng = np.random.default_rng(0)
        >>> C, g = rng.normal(size=(9, 3, 2)), rng.normal(size=(9, 3))
        >>> H = np.stack([np.eye(3)] * 9)
        >>> parts = influence(C, H, g - g.mean(0), outer_gradient=np.ones(3), G=np.zeros((2, 3)))
        >>> parts.psi.shape
        (9, 2)
    """
    mean_C, mean_H = C.mean(0), H.mean(0)
    # H u = grad_1 E
    u = np.linalg.solve(mean_H, outer_gradient)
    return Influence(
        # row i moves w by -H^-1 g_i, u by -H^-1 (H_i - H) u, and C by C_i - C
        inner=-np.linalg.solve(mean_H, g.T).T @ G.T,
        linear=((H - mean_H) @ u) @ np.linalg.solve(mean_H, mean_C),
        cross=-np.einsum("idm,d->im", C - mean_C, u),
    )


def _trace(rows: np.ndarray) -> float:
    """Trace of the covariance of the rows."""
    # (1/n) sum_i |x_i - mean|^2: of n rows drawn with replacement, no n - 1
    return float(np.sum((rows - rows.mean(0)) ** 2) / len(rows))
