"""How far a stochastic hypergradient can be off, from the constants of the problem alone.

These are safety theorems. On quadratics they lie 60 to 1700 times above the truth, elsewhere further: they say that a
method converges and how fast, not where it stands. What an estimate's error *is* has to be measured.

Throughout rho >= E|w_t - w(lam)|^2 and sigma >= E|v_k - v(w_t)|^2, from whatever solvers; of stochastic fixed-point
iterations :class:`~bilevax.theory.MeanSquare` gives both.

Source: Grazzi, Pontil, Salzo (2021), arXiv:2011.07122, and (2023), arXiv:2202.03397; the constants are this project's
own derivation, for L_Phi and L_E that hold wherever w_t may be.
"""

import math
from collections.abc import Iterable
from typing import TypeVar

from jax import Array

from bilevax.theory.constants import Constants

Number = TypeVar("Number", float, Array)


def bias_bound(constants: Constants, rho: float, linear_bias: float) -> float:
    """|E[estimate] - gradient| <= c1 sqrt(rho) + L_Phi linear_bias.

    Args:
        constants: of the problem.
        rho: bound on E|w_t - w(lam)|^2.
        linear_bias: bound on |E[v_k | w_t] - v(w_t)|: :func:`linear_bias_bound`, or sqrt(sigma).

    Examples:
        >>> from bilevax.theory import bias_bound
        >>> from bilevax.testing.closed_forms import FiniteQuadratic
        >>> p = FiniteQuadratic.random(0)
        >>> constants = p.constants(p.lam, batch_size=10)
        >>> bias_bound(constants, rho=4e-4, linear_bias=0.0) / bias_bound(constants, rho=1e-4, linear_bias=0.0)
        2.0
    """
    # h is c1-Lipschitz in w, and linear in v with |d2Phi| <= L_Phi
    return constants.c1 * math.sqrt(rho) + constants.L_Phi * linear_bias


def linear_bias_bound(q: float, etas: Iterable[float], distance: float) -> float:
    """|E[v_k | w_t] - v(w_t)| <= prod_j (|1 - eta_j| + eta_j q) |v_0 - v(w_t)|.

    The iteration for v is affine with fresh minibatches, so that its mean follows the deterministic one: geometric for
    constant steps, while the variance stays.

    Args:
        q: contraction constant.
        etas: the steps eta_0, ..., eta_{k-1}.
        distance: |v_0 - v(w_t)|; of v_0 = 0 at most L_E / (1 - q).

    Examples:
        >>> from bilevax.theory import linear_bias_bound
        >>> linear_bias_bound(0.5, [1.0, 1.0], distance=4.0)  # q^2 4
        1.0
    """
    # |E v_{j+1} - v| <= |(1 - eta) I + eta d1Phi^T| |E v_j - v|
    return distance * math.prod(abs(1.0 - eta) + eta * q for eta in etas)


def mse_bound(
    constants: Constants, rho: float, sigma: float, cross_batches: int | None, outer_batches: int | None = None
) -> float:
    """E|estimate - gradient|^2 <= (sigma2'/J) E|v_k|^2 + 2 c1^2 rho + 2 L_Phi^2 sigma.

    E|v_k|^2 <= 2 sigma + 2 L_E^2 / (1 - q)^2. An outer gradient from J1 minibatches adds
    4 sigma2_E / J1 + 4 L_Phi^2 sigma1_E / ((1 - q)^2 J1), and L_E^2 becomes L_E^2 + sigma1_E / J1.

    Proof. The error is the sum of grad_2 E(w_t) - grad_2 E(w); (hat d2Phi - d2Phi)^T v_k, which is centred given w_t
    and v_k; d2Phi^T (v_k - v(w_t)); and d2Phi(w_t)^T v(w_t) - d2Phi(w)^T v(w), whose v is Lipschitz with
    mu1 / (1 - q) + nu1 L_E / (1 - q)^2.

    Args:
        constants: of the problem.
        rho: bound on E|w_t - w(lam)|^2.
        sigma: bound on E|v_k - v(w_t)|^2, v(w_t) for the grad_1 E that was drawn.
        cross_batches: J; None: every row once.
        outer_batches: J1; None: every row of val.

    Examples:
        >>> from bilevax.theory import mse_bound
        >>> from bilevax.testing.closed_forms import FiniteQuadratic
        >>> p = FiniteQuadratic.random(0)
        >>> constants = p.constants(p.lam, batch_size=10)
        >>> mse_bound(constants, rho=0.0, sigma=0.0, cross_batches=None)  # both solved, the cross product on every row
        0.0
    """
    c = constants
    # 2 c1^2 rho + 2 L_Phi^2 sigma, the two of |a + b|^2 <= 2 |a|^2 + 2 |b|^2
    square = 2.0 * c.c1**2 * rho + 2.0 * c.L_Phi**2 * sigma
    if cross_batches is not None:
        # (sigma2' / J) E|v_k|^2, E|v_k|^2 <= 2 (sigma + E|v(w_t)|^2)
        square += c.sigma2_prime / cross_batches * 2.0 * (sigma + c.linear_start(outer_batches))
    if outer_batches is not None:
        # 4 (sigma2_E + L_Phi^2 sigma1_E / (1 - q)^2) / J1: its noise in grad_2 E, and by way of v in the product
        square += 4.0 * (c.sigma2_E + c.L_Phi**2 * c.sigma1_E / (1.0 - c.q) ** 2) / outer_batches
    return square


def a_posteriori_bound(
    *,
    v: Number,
    residual: Number,
    distance: Number,
    B: float,
    mu: float,
    L_F: float,
    L_H: float,
    L_B: float,
    L_direct: float = 0.0,
) -> Number:
    """What a deterministic hypergradient can be off by, from what was computed: no start value enters.

    |estimate - gradient| <= |B| d + L_B e (|v| + d) + L_direct e, where d = (r + e (L_F + |v| L_H)) / mu bounds
    |v - v(lam)|.

    Written in loss form, H v = grad_1 F; in map form with I - d1Phi^T for H the letters are mu = 1 - q, L_F = mu1,
    L_H = nu1, L_B = nu2, L_direct = mu2.

    Source: Ehrhardt, Roberts (2023), Analyzing inexact hypergradients for bilevel learning, arXiv:2301.04764.

    Args:
        v: |v|, of the multiplier that was computed.
        residual: r = |H v - grad_1 F| at the computed w.
        distance: e, bound on |w - w(lam)|: |gradient of the inner loss| / mu, or |Phi(w) - w| / (1 - q).
        B: |B|, norm of the cross derivative at the computed w.
        mu: smallest eigenvalue of the Hessian.
        L_F: Lipschitz constant of grad_1 F.
        L_H: Lipschitz constant of the Hessian.
        L_B: Lipschitz constant of the cross derivative.
        L_direct: Lipschitz constant of grad_2 F in w.

    Examples:
        >>> from bilevax.theory import a_posteriori_bound
        >>> a_posteriori_bound(v=1.0, residual=0.02, distance=0.0, B=2.0, mu=0.5, L_F=1.0, L_H=0.0, L_B=0.0)
        0.08
    """
    # d = (r + e (L_F + |v| L_H)) / mu: the system at w(lam) has another right-hand side and another matrix
    off = (residual + distance * (L_F + v * L_H)) / mu
    # |B v - B(lam) v(lam)| <= |B| d + L_B e (|v| + d), and grad_2 F moves by L_direct e
    return B * off + L_B * distance * (v + off) + L_direct * distance
