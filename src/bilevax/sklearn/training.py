"""Training to the end: L-BFGS on the host, in coordinates in which the loss is well conditioned."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize
from jax import Array

from bilevax.core.trees import PyTree

WIDEST = 2000
"""Columns up to which the coordinates are changed; beyond, factorising would take too long."""

CURVATURE = 0.1
"""Typical second derivative of the logistic losses, against the second moment of the rows."""

_value_and_grad = jax.jit(lambda loss, w, lam, batch: jax.value_and_grad(loss)(w, lam, batch))


def second_moment(X: Array, weight: Array) -> np.ndarray | None:
    """Weighted mean of x x^T over the rows, [p, p]; None if there are too many columns."""
    if X.shape[1] > WIDEST:
        return None
    return np.asarray((X * weight[:, None]).T @ X / X.shape[0], np.float64)


def solve(
    loss: Any,
    w0: PyTree,
    lam: Array,
    batch: PyTree,
    *,
    moment: np.ndarray | None = None,
    max_steps: int = 300,
    fall: float = 1e-7,
) -> PyTree:
    """Minimise w -> loss(w, lam, batch): scipy's L-BFGS in float64 on gradients in JAX's precision.

    With R R^T = c (second moment) + diag(mean penalty) the iteration runs on u = R^T w, whose Hessian is near the
    identity however correlated the columns are.

    Args:
        loss: the inner loss of one model or of K stacked ones.
        w0: start, ``{"weights": [..., p], "bias": [...]}``.
        lam: log-penalties.
        batch: every row.
        moment: from :func:`second_moment`; None: no change of coordinates.
        max_steps: at most so many iterations.
        fall: of the loss in one iteration, at which to stop.
    """
    shape, real = w0["weights"].shape, w0["weights"].dtype
    weights, root = np.asarray(w0["weights"], np.float64).reshape(-1, shape[-1]), None
    if moment is not None:
        root = scipy.linalg.cholesky(CURVATURE * moment + np.diag(_penalties(lam, shape[-1]) + 1e-8), lower=True)
        weights = weights @ root

    def unpack(x: np.ndarray) -> PyTree:
        u = x[: weights.size].reshape(weights.shape)
        if root is not None:
            u = scipy.linalg.solve_triangular(root, u.T, lower=True, trans="T", check_finite=False).T
        bias = x[weights.size :].reshape(w0["bias"].shape)
        return {"weights": jnp.asarray(u.reshape(shape), real), "bias": jnp.asarray(bias, real)}

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _value_and_grad(loss, unpack(x), lam, batch)
        g = np.asarray(gradient["weights"], np.float64).reshape(weights.shape)
        if root is not None:
            g = scipy.linalg.solve_triangular(root, g.T, lower=True, check_finite=False).T
        return float(value), np.concatenate([g.ravel(), np.ravel(np.asarray(gradient["bias"], np.float64))])

    start = np.concatenate([weights.ravel(), np.ravel(np.asarray(w0["bias"], np.float64))])
    options = {"maxiter": max_steps, "gtol": 1e-7, "ftol": fall}
    return unpack(scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x)


def _penalties(lam: Array, p: int) -> np.ndarray:
    """exp(lam) averaged over the classes, [p]."""
    penalties = np.exp(np.asarray(lam, np.float64))
    if penalties.ndim == 2:
        return penalties.mean(axis=0)
    return penalties if penalties.shape == (p,) else np.full(p, penalties.mean())
