"""Training to the end: L-BFGS on the host, in coordinates in which the loss is well conditioned."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevax.core.trees import PyTree

WIDEST = 2000
"""Columns up to which the coordinates are changed; beyond, factorising would take too long."""

CURVATURE = 0.1
"""Typical second derivative of the logistic losses, against the second moment of the rows."""


@jax.jit
def _value_and_grad(loss: Any, u: PyTree, turn: Array | None, lam: Array, batch: PyTree) -> tuple[Array, PyTree]:
    """Loss and gradient in the coordinates u."""
    return jax.value_and_grad(lambda u: loss(_turned(u, turn), lam, batch))(u)


def _turned(u: PyTree, turn: Array | None) -> PyTree:
    """The weights u turn, [..., p]; turn is [p, p]."""
    return u if turn is None else {**u, "weights": u["weights"] @ turn}


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
    real, turn, start = w0["weights"].dtype, None, w0
    if moment is not None:
        penalties = np.diag(_penalties(lam, moment.shape[0]) + 1e-8)
        root = scipy.linalg.cholesky(CURVATURE * moment + penalties, lower=True)
        turn = jnp.asarray(scipy.linalg.solve_triangular(root, np.eye(len(root)), lower=True), real)
        start = {**w0, "weights": w0["weights"] @ jnp.asarray(root, real)}
    flat, unravel = ravel_pytree(start)

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _value_and_grad(loss, unravel(jnp.asarray(x, real)), turn, lam, batch)
        return float(value), np.asarray(ravel_pytree(gradient)[0], np.float64)

    options = {"maxiter": max_steps, "gtol": 1e-7, "ftol": fall}
    out = scipy.optimize.minimize(objective, np.asarray(flat, np.float64), jac=True, method="L-BFGS-B", options=options)
    return _turned(unravel(jnp.asarray(out.x, real)), turn)


def _penalties(lam: Array, p: int) -> np.ndarray:
    """exp(lam) averaged over the classes, [p]."""
    penalties = np.exp(np.asarray(lam, np.float64))
    if penalties.ndim == 2:
        return penalties.mean(axis=0)
    return penalties if penalties.shape == (p,) else np.full(p, penalties.mean())
