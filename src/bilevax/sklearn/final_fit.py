"""Training to the end: L-BFGS on the host, in coordinates in which the loss is well conditioned."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevax.core.config import config
from bilevax.core.protocols import Loss
from bilevax.core.trees import PyTree
from bilevax.problems.losses import Groups
from bilevax.sklearn.crossfit import RowLoss

WIDEST = 2000
"""Columns up to which the basis is a full matrix; beyond, factorising would take too long and it is a diagonal."""

CURVATURE = 0.1
"""Typical second derivative of the logistic losses, against the second moment of the rows."""


@config
class Whitened:
    """A loss of one model in the coordinates u, where its weights are u basis.

    Args:
        loss: in the weights, such as :class:`~bilevax.MultinomialLogistic`.
        basis: from :func:`coordinates`.
    """

    loss: RowLoss
    basis: Array

    def per_row(self, scores: Array, y: Array) -> Array:
        """Loss of each row, which sees scores alone."""
        return self.loss.per_row(scores, y)

    def half_penalty(self, u: Array, lam: PyTree) -> Array:
        """Of the weights u basis."""
        # 1/2 sum_j exp(lam_j) (u L^-1)_j^2
        return self.loss.half_penalty(apply_basis(u, self.basis), lam)


def second_moment(X: Array, weight: Array) -> np.ndarray:
    """Weighted mean of x x^T over the rows, [p, p]; of more than WIDEST columns the diagonal alone, [p]."""
    # 1/n sum_i c_i x_i x_i^T
    weighted = X * weight[:, None]
    moment = weighted.T @ X if X.shape[1] <= WIDEST else jnp.sum(weighted * X, axis=0)
    return np.asarray(moment / X.shape[0], np.float64)


def coordinates(moment: np.ndarray, lam: Array) -> tuple[Array, Array]:
    """The Cholesky factor L of the curvature and the basis L^-1, [p, p], or [p] where the moment is a diagonal.

    In the coordinates u = weights L, weights = u L^-1, the Hessian of a penalised loss is near the identity.
    """
    # L exists, whatever the columns: 1e-8 is above the rounding errors of their second moment.
    penalties = _penalties(lam, len(moment)) + 1e-8
    # L L^T = CURVATURE moment + diag(mean penalty)
    if moment.ndim == 1:
        cholesky = np.sqrt(CURVATURE * moment + penalties)
        basis = 1.0 / cholesky
    else:
        cholesky = scipy.linalg.cholesky(CURVATURE * moment + np.diag(penalties), lower=True)
        basis = scipy.linalg.solve_triangular(cholesky, np.eye(len(cholesky)), lower=True)
    real = jnp.result_type(float)
    return jnp.asarray(cholesky, real), jnp.asarray(basis, real)


def change_basis(w: PyTree, basis: Array) -> PyTree:
    """The same model, its weights times L^-1 or L."""
    return {**w, "weights": apply_basis(w["weights"], basis)}


def apply_basis(weights: Array, basis: Array) -> Array:
    """[..., p] times a matrix [p, p], or a diagonal one [p]."""
    return weights @ basis if basis.ndim == 2 else weights * basis[(None,) * (weights.ndim - 1)]


@jax.jit
def _value_and_grad(loss: Loss, u: PyTree, basis: Array, lam: Array, batch: PyTree) -> tuple[Array, PyTree]:
    """Loss and gradient in the coordinates u."""
    # d/du loss(u L^-1)
    return jax.value_and_grad(lambda u: loss(change_basis(u, basis), lam, batch))(u)


def solve(
    loss: Loss,
    w0: PyTree,
    lam: Array,
    batch: PyTree,
    *,
    moment: np.ndarray,
    max_steps: int = 300,
    tolerance: float = 1e-7,
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
        tolerance: relative decrease of the loss in one iteration below which it ends.
    """
    real = w0["weights"].dtype
    cholesky, basis = coordinates(moment, _per_feature(loss, lam))
    # u_0 = w_0 L
    flat, unravel = ravel_pytree(change_basis(w0, cholesky))

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _value_and_grad(loss, unravel(jnp.asarray(x, real)), basis, lam, batch)
        return float(value), np.asarray(ravel_pytree(gradient)[0], np.float64)

    options = {"maxiter": max_steps, "gtol": 1e-7, "ftol": tolerance}
    out = scipy.optimize.minimize(objective, np.asarray(flat, np.float64), jac=True, method="L-BFGS-B", options=options)
    # w = u L^-1
    return change_basis(unravel(jnp.asarray(out.x, real)), basis)


def _per_feature(loss: Loss, lam: Array) -> Array:
    """lam of each feature, where groups of features share one."""
    per = getattr(getattr(loss, "loss", loss), "penalty", None)
    return lam[per.index] if isinstance(per, Groups) else lam


def _penalties(lam: Array, p: int) -> np.ndarray:
    """exp(lam) averaged over the classes, [p]."""
    penalties: np.ndarray = np.exp(np.asarray(lam, np.float64))
    if penalties.shape == (p,):
        return penalties
    # One for all, or one a class, is the same for every feature.
    return np.broadcast_to(penalties.mean(axis=0) if penalties.ndim == 2 else penalties.mean(), p)
