"""Constants of generalised linear models: rows a_i(x_i'w) with convex a_i, and a penalty on w."""

import math
from typing import NamedTuple

import numpy as np


class Link(NamedTuple):
    """How curved the loss of one score is.

    Attributes:
        second: sup a'', largest curvature.
        third: sup |a'''|, Lipschitz constant of the curvature.

    Examples:
        >>> from bilevax.theory.glm import LOGISTIC
        >>> LOGISTIC.second  # the largest second derivative of log(1 + exp(-s))
        0.25
    """

    second: float
    third: float


# a'' = p (1 - p) <= 1/4, and |a'''| = p (1 - p) |1 - 2 p| is largest at p = (1 +- 1 / sqrt(3)) / 2
LOGISTIC = Link(1 / 4, 1 / (6 * math.sqrt(3)))
"""log(1 + exp(-z))."""

# a'' = 1 - t^2, a''' = -2 t (1 - t^2) with t = tanh z, largest at t = 1 / sqrt(3)
LOG_COSH = Link(1.0, 4 / (3 * math.sqrt(3)))
"""log cosh z."""

SQUARED = Link(1.0, 0.0)
"""z^2 / 2."""

# Hessian diag(p) - p p', of norm at most 1/2: two classes of probability 1/2 each
SOFTMAX = Link(1 / 2, math.sqrt(2) / (3 * math.sqrt(3)))
"""Cross entropy of a softmax, in spectral norms over the classes. ``third`` is the largest value that a random search
over 2 to 10 classes has found; it is not proved."""


class RowConstants(NamedTuple):
    """What the rows of a generalised linear model contribute.

    Attributes:
        L: largest curvature of their mean loss; a penalty's comes on top.
        row_smoothness: largest curvature of one row, sup a'' max |x_i|^2, for ``MeanSquare.of_convex_rows``.
        sigma1_prime: see :class:`~bilevax.theory.Constants`; 0 without a batch size.
        nu1: see :class:`~bilevax.theory.Constants`.

    Examples:
        >>> from bilevax.theory.glm import RowConstants
        >>> RowConstants._fields
        ('L', 'row_smoothness', 'sigma1_prime', 'nu1')
    """

    L: float
    row_smoothness: float
    sigma1_prime: float
    nu1: float


def row_constants(X: np.ndarray, link: Link, *, alpha: float, batch_size: int | None = None) -> RowConstants:
    """Bounds valid at every w, from the features alone.

    L = sup a'' |mean xx'|, sigma1' = alpha^2 (sup a'')^2 |mean |x|^2 xx'| / b, nu1 = alpha sup|a'''| |mean |x| xx'|.

    Args:
        X: features, [n, d], a column of ones among them if there is a bias.
        link: such as :data:`LOGISTIC`.
        alpha: step of the inner map.
        batch_size: b, rows drawn independently with replacement; None: every row.

    Examples:
        >>> import numpy as np
        >>> from bilevax.theory.glm import row_constants, SQUARED
        >>> row_constants(np.eye(2), SQUARED, alpha=1.0).L
        0.5
    """
    X = np.asarray(X, np.float64)
    length = np.linalg.norm(X, axis=1)
    # E|alpha (H_B - H) x|^2 <= alpha^2 E|a'' x_i x_i'x|^2 / b <= (alpha sup a'')^2 x'(mean |x_i|^2 x_i x_i') x / b
    spread = alpha**2 * link.second**2 * _norm(X, length**2)
    return RowConstants(
        # H = mean of a''(x_i'w) x_i x_i' <= sup a'' mean of x_i x_i'
        L=link.second * _norm(X, np.ones_like(length)),
        row_smoothness=link.second * float(length.max()) ** 2,
        sigma1_prime=0.0 if batch_size is None else spread / batch_size,
        nu1=alpha * link.third * _norm(X, length),
    )


class PenaltyConstants(NamedTuple):
    """What a penalty contributes; its sigma2_prime is 0, since no row enters.

    Attributes:
        L_Phi: see :class:`~bilevax.theory.Constants`.
        nu2: see :class:`~bilevax.theory.Constants`.

    Examples:
        >>> from bilevax.theory.glm import PenaltyConstants
        >>> PenaltyConstants(L_Phi=1.0, nu2=0.5).nu2
        0.5
    """

    L_Phi: float
    nu2: float


def penalty_constants(lam: np.ndarray, w: np.ndarray, *, alpha: float, radius: float = 0.0) -> PenaltyConstants:
    """Of 1/2 sum_j exp(lam_j) w_j^2: L_Phi = alpha max exp(lam_j) (|w_j| + radius), nu2 = alpha max exp(lam_j).

    Args:
        lam: logarithms of the penalties, [d].
        w: weights, [d].
        alpha: step of the inner map.
        radius: of the ball around w on which L_Phi holds.

    Examples:
        >>> import numpy as np
        >>> from bilevax.theory.glm import penalty_constants
        >>> penalty_constants(np.zeros(2), np.ones(2), alpha=0.5)
        PenaltyConstants(L_Phi=0.5, nu2=0.5)
    """
    # d/dlam_j of alpha exp(lam_j) w_j is alpha exp(lam_j) w_j, and that in w_j again alpha exp(lam_j)
    penalty = np.exp(np.asarray(lam, np.float64))
    return PenaltyConstants(alpha * float(np.max(penalty * (np.abs(w) + radius))), alpha * float(np.max(penalty)))


def _norm(X: np.ndarray, weights: np.ndarray) -> float:
    """Spectral norm of the mean of weight x x'."""
    # |mean of c_i x_i x_i'|
    return float(np.linalg.norm((X * weights[:, None]).T @ X / len(X), 2))
