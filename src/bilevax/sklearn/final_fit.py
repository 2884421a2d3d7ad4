"""Training to the end: L-BFGS on the host, in coordinates in which the loss is well conditioned."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevax.core.config import config
from bilevax.core.trees import PyTree

WIDEST = 2000
"""Columns up to which the coordinates are turned; beyond, factorising would take too long and they are only scaled."""

CURVATURE = 0.1
"""Typical second derivative of the logistic losses, against the second moment of the rows."""


@config
class Whitened:
    """A loss of one model in the coordinates u of its weights u turn.

    Args:
        loss: in the weights, such as :class:`~bilevax.MultinomialLogistic`.
        turn: from :func:`coordinates`.
    """

    loss: Any
    turn: Array

    def per_row(self, scores: Array, y: Array) -> Array:
        """Loss of each row, which sees scores alone."""
        return self.loss.per_row(scores, y)

    def half_penalty(self, u: Array, lam: PyTree) -> Array:
        """Of the weights u turn."""
        return self.loss.half_penalty(apply_basis(u, self.turn), lam)


def second_moment(X: Array, weight: Array) -> np.ndarray:
    """Weighted mean of x x^T over the rows, [p, p]; of more than WIDEST columns the diagonal alone, [p]."""
    weighted = X * weight[:, None]
    moment = weighted.T @ X if X.shape[1] <= WIDEST else jnp.sum(weighted * X, axis=0)
    return np.asarray(moment / X.shape[0], np.float64)


def coordinates(moment: np.ndarray, lam: Array) -> tuple[Array, Array]:
    """(root, turn), inverse to each other: in u = weights root the Hessian of a penalised loss is near the identity.

    root root^T = CURVATURE * moment + diag(mean penalty); both are [p, p], or [p] where the moment is a diagonal.
    """
    penalties = _penalties(lam, len(moment)) + 1e-8
    if moment.ndim == 1:
        root = np.sqrt(CURVATURE * moment + penalties)
        turn = 1.0 / root
    else:
        root = scipy.linalg.cholesky(CURVATURE * moment + np.diag(penalties), lower=True)
        turn = scipy.linalg.solve_triangular(root, np.eye(len(root)), lower=True)
    real = jnp.result_type(float)
    return jnp.asarray(root, real), jnp.asarray(turn, real)


def change_basis(w: PyTree, turn: Array) -> PyTree:
    """The same model with weights times a turn, or a root, of the coordinates."""
    return {**w, "weights": apply_basis(w["weights"], turn)}


def apply_basis(weights: Array, turn: Array) -> Array:
    """[..., p] times a turn or a root, full or diagonal."""
    return weights @ turn if turn.ndim == 2 else weights * turn[(None,) * (weights.ndim - 1)]


@jax.jit
def _value_and_grad(loss: Any, u: PyTree, turn: Array, lam: Array, batch: PyTree) -> tuple[Array, PyTree]:
    """Loss and gradient in the coordinates u."""
    return jax.value_and_grad(lambda u: loss(change_basis(u, turn), lam, batch))(u)


def solve(
    loss: Any,
    w0: PyTree,
    lam: Array,
    batch: PyTree,
    *,
    moment: np.ndarray,
    max_steps: int = 300,
    fall: float = 1e-7,
) -> PyTree:
    """Minimise w -> loss(w, lam, batch): scipy's L-BFGS in float64 on gradients in JAX's precision.

    The iteration runs in the :func:`coordinates` in which the loss is well conditioned, however correlated the columns
    are.

    Args:
        loss: the inner loss of one model or of K stacked ones.
        w0: start, ``{"weights": [..., p], "bias": [...]}``.
        lam: log-penalties.
        batch: every row.
        moment: from :func:`second_moment`.
        max_steps: at most so many iterations.
        fall: of the loss in one iteration, at which to stop.
    """
    real = w0["weights"].dtype
    root, turn = coordinates(moment, lam)
    flat, unravel = ravel_pytree(change_basis(w0, root))

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _value_and_grad(loss, unravel(jnp.asarray(x, real)), turn, lam, batch)
        return float(value), np.asarray(ravel_pytree(gradient)[0], np.float64)

    options = {"maxiter": max_steps, "gtol": 1e-7, "ftol": fall}
    out = scipy.optimize.minimize(objective, np.asarray(flat, np.float64), jac=True, method="L-BFGS-B", options=options)
    return change_basis(unravel(jnp.asarray(out.x, real)), turn)


def _penalties(lam: Array, p: int) -> np.ndarray:
    """exp(lam) averaged over the classes, [p]."""
    penalties = np.exp(np.asarray(lam, np.float64))
    if penalties.ndim == 2:
        return penalties.mean(axis=0)
    return penalties if penalties.shape == (p,) else np.full(p, penalties.mean())
