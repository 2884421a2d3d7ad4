"""The minimum of an additive model's penalised loss among curves that rise or fall."""

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import nnls

from bilevax.solvers.additive_families import Family
from bilevax.solvers.additive_fit import Data, curvature, factorised

MOST_STEPS = 50
"""Newton steps, at most."""


def constrained(
    d: Data, family: Family, penalty: np.ndarray, b: np.ndarray, A: np.ndarray, *, tolerance: float = 1e-7
) -> np.ndarray:
    """argmin F(b) subject to A b >= 0, by Newton steps within the constraints, [1 + P, 1].

    Each step minimises the quadratic model of F: with H = L L' and z the Newton point, L'x = L'z + M v, M = L^-1 A',
    and v >= 0 minimises |M v + L'z|, a problem of least squares with signs.

    Args:
        d: the rows.
        family: of one score.
        penalty: of the weights, [1 + P].
        b: the minimum without constraints, [1 + P, 1].
        A: the constraints, [m, 1 + P].
        tolerance: of the decrease that a step promises.

    Cost: a Cholesky factor and a problem of least squares of [1 + P, m] a step.
    """
    x, value = b[:, 0], np.inf
    for _ in range(MOST_STEPS):
        losses = family.losses(d.X.dot(x[:, None]) + d.offset, d.y)
        gradient = d.X.transposed_dot(d.weight[:, None] * losses.slope)[:, 0] + penalty * x
        # H = L L', and the Newton step is the projection of the free one onto A x >= 0 in the norm of H
        L = factorised(curvature(d, losses), penalty)
        # L'z = L'x - L^-1 g
        z = L.T @ x - solve_triangular(L, gradient, lower=True)
        # the dual: multipliers m >= 0 that minimise |L^-1 A' m + z|^2 / 2
        M = solve_triangular(L, A.T, lower=True)
        held = M @ nnls(M, -z, maxiter=30 * A.shape[1])[0] if len(A) else 0.0
        new = solve_triangular(L, z + held, lower=True, trans="T")
        step, size = new - x, 1.0
        if not np.isfinite(value):  # the first point need not keep the constraints
            x, value = new, _value(d, family, penalty, new)
            continue
        # g' s + s' H s / 2, what the quadratic model promises
        promised = float(gradient @ step) + 0.5 * float(np.sum((L.T @ step) ** 2))
        if promised >= -tolerance:
            break
        while size > 1e-8 and (trial := _value(d, family, penalty, x + size * step)) > value + 1e-4 * size * promised:
            size *= 0.5
        if size <= 1e-8:
            break
        x, value = x + size * step, trial
    return x[:, None]


def _value(d: Data, family: Family, penalty: np.ndarray, x: np.ndarray) -> float:
    losses = family.losses(d.X.dot(x[:, None]) + d.offset, d.y)
    return float(d.weight @ losses.value) + 0.5 * float(penalty @ (x * x))
