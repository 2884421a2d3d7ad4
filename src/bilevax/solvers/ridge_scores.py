"""A ridge on the indicators of classes beside logistic models, and the weights with which both are added.

Where classes are many and rare, least squares order them well, and say no probabilities; logistic regressions do. The
scores of both, a S + b R with a, b >= 0 of the least log-loss of rows that neither knows, are linear still. Source:
Breiman (1996), Stacked regressions, Machine Learning 24.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize

from bilevax.solvers.logistic_models import PRODUCTS, ClassRows
from bilevax.solvers.preconditioned import conjugate_gradients


def ridge(rows: ClassRows, alpha: float, tolerance: float) -> np.ndarray:
    """The minimiser theta = (V, d) [p + 1, C] of sum_i c_i |x_i V + d - Y_i|^2 + alpha |V|^2; d is not penalised.

    Cost: some tens of products of X and its transpose with [p, C].

    Args:
        rows: with classes Y as 0 and 1.
        alpha: the penalty.
        tolerance: relative residual.
    """
    # X' c Y, and the penalty of the intercept, the last row, is none
    right = rows.pulled(rows.c[:, None] * rows.Y)
    l2 = np.full_like(right, alpha)
    l2[-1] = 0.0
    # sum_i c_i x_ij^2
    curvature = rows._replace(X=rows.squares).pulled(np.broadcast_to(rows.c[:, None], rows.Y.shape)) + l2

    def product(d: np.ndarray) -> tuple[np.ndarray, float]:
        # (X' c X + l2) d
        return rows.pulled(rows.c[:, None] * rows.scores(d)) + l2 * d, 0.0

    return conjugate_gradients(product, right, lambda r: r / curvature, tolerance=tolerance, most=PRODUCTS).x


def stacked(
    held: Sequence[ClassRows], S: Sequence[np.ndarray], R: Sequence[np.ndarray]
) -> tuple[float, tuple[float, float]]:
    """The least mean log-loss of a S + b R over a, b >= 0, and these; of parts of the rows each."""
    n = sum(float(part.c.sum()) for part in held) or 1.0

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = 0.0, np.zeros(2)
        for part, s, r in zip(held, S, R, strict=True):
            scores = weights[0] * s + weights[1] * r
            # dloss / dscores = c (p - Y)
            pull = part.c[:, None] * (part.probabilities(scores) - part.Y)
            value += part.total(scores) / n
            slope += np.array([np.vdot(pull, s), np.vdot(pull, r)]) / n
        return value, slope

    found = minimize(loss, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * 2)
    a, b = found.x.tolist()
    return float(found.fun), (a, b)
