"""Losses of generalised linear models, with L2 penalties exp(lam) of every granularity.

Shapes: a batch is ``(X, y)`` or ``(X, y, sample_weight)`` with X [b, d], y [b] and sample_weight [b]. The inner
variable is ``{"weights": [C, d], "bias": [C]}`` or an array [C, d] for no bias; C is the number of classes or outputs,
1 for binary logistic and scalar regression.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from bilevax.core.config import check_choice, config, set_frozen
from bilevax.core.errors import ParameterError
from bilevax.core.trees import PyTree
from bilevax.linalg.power import power_iteration
from bilevax.linalg.row_chunks import KEPT, over_rows

PENALTIES = ("global", "class", "feature", "weight")


@config
class Groups:
    """One penalty per group of features.

    Args:
        index: group number of each feature, integers [d] from 0 to G - 1; lam has shape [G].

    Examples:
        >>> import bilevax as bx
        >>> bx.Squared(penalty=bx.Groups([0, 0, 1])).penalty  # three features, two penalties
        Groups(index=int32[3])
    """

    index: PyTree

    def __post_init__(self) -> None:
        index = np.asarray(self.index)
        if index.ndim != 1 or index.dtype.kind not in "iu" or index.size == 0 or index.min() < 0:
            raise ParameterError("index must be a vector of group numbers 0, 1, ..., one per feature")
        set_frozen(self, index=jnp.asarray(index, jnp.int32))


def strengths(per: str | Groups, lam: Array) -> Array:
    """exp(lam), shaped to broadcast against weights [C, d].

    Args:
        per: ``"global"`` (lam []), ``"class"`` ([C]), ``"feature"`` ([d]), ``"weight"`` ([C, d]) or Groups ([G]).
        lam: logarithms of the penalties.
    """
    if isinstance(per, Groups):
        # lam_g of the group g of each feature
        return jnp.exp(lam)[per.index][None, :]
    if per == "feature":
        return jnp.exp(lam)[None, :]
    return jnp.exp(lam)[:, None] if per == "class" else jnp.exp(lam)


def _weights(w: PyTree) -> Array:
    weights: Array = w["weights"] if isinstance(w, dict) else w
    return weights


def scores(w: PyTree, X: Array) -> Array:
    """X weights^T + bias, [b, C]."""
    # Named, so that a backward pass over pieces of rows keeps these and not X @ W again.
    out: Array = checkpoint_name(X @ _weights(w).T, KEPT)
    return out + w["bias"][None, :] if isinstance(w, dict) else out


def _plus(w: PyTree, weights: Array) -> PyTree:
    """The tree w with something added to its weights."""
    return {**w, "weights": w["weights"] + weights} if isinstance(w, dict) else w + weights


def _check_vector(y: Array) -> None:
    if y.ndim != 1:
        raise ParameterError(f"y has shape {y.shape}; pass one label a row, shape [n], for example y.ravel()")


class _LinearModelLoss:
    """Base of the three losses: mean over the rows of ``per_row(scores, y)``, plus half the penalised squares."""

    penalty: str | Groups | None
    per_row: Callable[[Array, Array], Array]
    largest_second_derivative: float

    def __post_init__(self) -> None:
        if not isinstance(self.penalty, Groups | None):
            check_choice("penalty", self.penalty, PENALTIES)

    def __call__(self, w: PyTree, lam: PyTree, batch: PyTree) -> Array:
        """Mean loss over the batch, plus 1/2 sum exp(lam) weights^2 if there is a penalty."""
        return self._share(w, batch, batch[0].shape[0]) + self.half_penalty(_weights(w), lam)

    def half_penalty(self, weights: Array, lam: PyTree) -> Array:
        """1/2 sum exp(lam) weights^2; 0 without a penalty."""
        if self.penalty is None:
            return jnp.zeros((), weights.dtype)
        by, squares = strengths(self.penalty, lam), weights**2
        if squares.ndim == 2 and by.shape[:1] == (1,):
            # sum_c w_cj^2 as a product with ones, and so its derivative in lam: as a sum it takes XLA ten times as long
            squares = jnp.ones((1, squares.shape[0]), squares.dtype) @ squares
        # 1/2 sum_j exp(lam_j) w_j^2: lam may be any real number
        return 0.5 * jnp.sum(by * squares)

    def value_and_grad(self, w: PyTree, lam: PyTree, batch: PyTree) -> tuple[Array, PyTree]:
        """The loss and its gradient in w, like w; of many rows in one pass."""
        n = batch[0].shape[0]
        # value and gradient in one visit of each piece of X, in the cache from the scores to R^T X
        loss, slope = over_rows(lambda w, rows: jax.value_and_grad(self._share)(w, rows, n), w, batch)
        penalty, pull = jax.value_and_grad(self.half_penalty)(_weights(w), lam)
        # the bias has no penalty
        return loss + penalty, _plus(slope, pull)

    def hessian_product(self, w: PyTree, lam: PyTree, batch: PyTree, v: PyTree) -> PyTree:
        """grad_w^2 of the loss times v, like w: the scores of w and of v are one product with X."""
        n = batch[0].shape[0]
        product = over_rows(lambda args, rows: self._share_of_product(args, rows, n), (w, v), batch)
        # the penalty's Hessian is diag(exp(lam))
        return product if self.penalty is None else _plus(product, strengths(self.penalty, lam) * _weights(v))

    def _share(self, w: PyTree, rows: PyTree, n: int) -> Array:
        """Sum over these rows, of n, of c_i per_row_i / n, c_i the weights."""
        X, y, *weight = rows
        losses = self.per_row(scores(w, X), y)
        return jnp.sum(losses * weight[0] if weight else losses) / n

    def _share_of_product(self, args: tuple[PyTree, PyTree], rows: PyTree, n: int) -> PyTree:
        """The Hessian of :meth:`_share` in w, times v; args are (w, v)."""
        (w, v), (X, y, *weight) = args, rows
        W, V = _weights(w), _weights(v)
        # S = X W^T and U = X V^T, of a dense X from one reading; of a sparse one to join W and V would cost more
        both = X @ jnp.concatenate([W, V]).T if isinstance(X, Array) else jnp.concatenate([X @ W.T, X @ V.T], axis=1)
        S, U = both[:, : W.shape[0]], both[:, W.shape[0] :]
        if isinstance(w, dict):
            S, U = S + w["bias"][None, :], U + v["bias"][None, :]
        # H v = sum_i c_i / n a''(S_i) U_i x_i^T = R^T X
        share = (weight[0] if weight else jnp.ones_like(S[:, 0])) / n
        R = jax.jvp(jax.grad(lambda s: jnp.sum(self.per_row(s, y))), (S,), (U,))[1] * share[:, None]
        return {"weights": R.T @ X, "bias": jnp.sum(R, axis=0)} if isinstance(w, dict) else R.T @ X

    def curvature(self, w: PyTree, batch: PyTree) -> Array:
        """A bound on the largest curvature of the mean loss at any w: sup a'' times that of the rows' second moment."""
        X, _, *weight = batch
        # the features with that of the bias, a constant 1: (x_i, one)
        one = jnp.ones((), X.dtype) if isinstance(w, dict) else jnp.zeros((), X.dtype)
        n = X.shape[0]
        c = weight[0] if weight else jnp.ones(n, X.dtype)

        # M u = sum_i c_i / n (x_i'u) x_i, and |H| <= sup a'' |M|
        def part(u: tuple[Array, Array], rows: tuple[Array, Array]) -> tuple[Array, Array]:
            X, c = rows
            r = c * (X @ u[0] + one * u[1]) / n
            return r @ X, one * jnp.sum(r)

        # No key is at hand: a start that is orthogonal to no axis, nor to a mean over the features.
        start = (jnp.ones(X.shape[1], X.dtype) + 0.5 * jnp.cos(jnp.arange(X.shape[1])).astype(X.dtype), one)
        return self.largest_second_derivative * power_iteration(lambda u: over_rows(part, u, (X, c)), start)

    def penalty_curvature(self, w: PyTree, lam: PyTree) -> PyTree:
        """The diagonal curvature of the penalty, to broadcast against w: exp(lam) for weights, 0 for the bias."""
        weights = jnp.zeros(()) if self.penalty is None else strengths(self.penalty, lam)
        return {"weights": weights, "bias": jnp.zeros(())} if isinstance(w, dict) else weights


@config
class Squared(_LinearModelLoss):
    """Squared loss, 1/2 sum_c (score_c - y_c)^2, averaged over the rows; y [b] or [b, C].

    Args:
        penalty: None, ``"global"``, ``"class"``, ``"feature"``, ``"weight"`` or :class:`Groups`: lam holds the
            logarithms of the penalties.

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> loss = bx.Squared(penalty="feature")  # lam: a log penalty for each of the 2 features
        >>> float(loss(jnp.ones(2), jnp.zeros(2), (jnp.eye(2), jnp.zeros(2))))
        1.5
    """

    penalty: str | Groups | None = None
    largest_second_derivative = 1.0

    @staticmethod
    def per_row(scores: Array, y: Array) -> Array:
        """Loss of each row, [b]."""
        if y.shape != scores.shape and scores.shape != (*y.shape, 1):
            raise ParameterError(f"y has shape {y.shape} and the scores {scores.shape}; pass y [n], or [n, C] as they")
        # 1/2 sum_c (score_c - y_c)^2
        return 0.5 * jnp.sum((scores - y.reshape(scores.shape)) ** 2, axis=-1)


@config
class BinaryLogistic(_LinearModelLoss):
    """Binary logistic loss, log(1 + exp(-(2 y - 1) score)), averaged over the rows; y [b] of 0 and 1.

    Args:
        penalty: None, ``"global"``, ``"feature"``, ``"weight"`` or :class:`Groups`: lam holds the logarithms of the
            penalties.

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> loss = bx.BinaryLogistic(penalty="feature")  # labels 0 and 1
        >>> round(float(loss(jnp.zeros((1, 2)), jnp.zeros(2), (jnp.eye(2), jnp.array([0, 1])))), 4)  # log 2
        0.6931
    """

    penalty: str | Groups | None = None
    largest_second_derivative = 0.25

    @staticmethod
    def per_row(scores: Array, y: Array) -> Array:
        """Loss of each row, [b]."""
        _check_vector(y)
        loss: Array = optax.losses.sigmoid_binary_cross_entropy(scores[:, 0], y.astype(scores.dtype))
        return loss


@config
class MultinomialLogistic(_LinearModelLoss):
    """Multinomial logistic loss, -log softmax(scores)_y, averaged over the rows; y [b] of integers 0 to C - 1.

    Args:
        penalty: None, ``"global"``, ``"class"``, ``"feature"``, ``"weight"`` or :class:`Groups`: lam holds the
            logarithms of the penalties.

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> loss = bx.MultinomialLogistic(penalty="feature")  # weights [classes, features]
        >>> round(float(loss(jnp.zeros((4, 2)), jnp.zeros(2), (jnp.eye(2), jnp.array([0, 3])))), 4)  # log 4
        1.3863
    """

    penalty: str | Groups | None = None
    largest_second_derivative = 0.5

    @staticmethod
    def per_row(scores: Array, y: Array) -> Array:
        """Loss of each row, [b]."""
        _check_vector(y)
        # score_y as a masked sum: a gather's transpose is a scatter, which is slow
        classes = jnp.arange(scores.shape[1], dtype=jnp.int32)
        picked = y.astype(jnp.int32)[:, None] == classes[None, :]
        # log sum_c exp(score_c) - score_y
        return jax.nn.logsumexp(scores, axis=1) - jnp.sum(jnp.where(picked, scores, 0), axis=1)
