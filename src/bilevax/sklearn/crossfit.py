"""Cross-fitting: K models, each trained without one fold, whose losses on that fold are what the penalties minimise.

The scores of all models on a row are one product with the stacked weights [K C, p], so K models cost little more
than one.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.config import config
from bilevax.core.trees import PyTree
from bilevax.problems import BinaryLogistic, MultinomialLogistic, Squared

LinearLoss: TypeAlias = BinaryLogistic | MultinomialLogistic | Squared
"""A loss of one model, with a penalty or without."""


class RowLoss(Protocol):
    """What cross-fitting needs of a :data:`LinearLoss`."""

    @property
    def per_row(self) -> Callable[[Array, Array], Array]:
        """Loss of each row [b], from scores [b, C] and targets [b]."""

    def half_penalty(self, weights: Array, lam: PyTree, /) -> Array:
        """1/2 sum of the penalties times squared weights [C, p]."""


class Rows(NamedTuple):
    """A batch of rows with their folds.

    Attributes:
        X: features [b, p].
        y: classes [b], integers.
        fold: 0 to K - 1, [b].
        outer_weight: in the held-out losses [b], of mean 1 over all rows.
        inner_weight: in the training losses [b], of mean 1 over all rows.
    """

    X: Array
    y: Array
    fold: Array
    outer_weight: Array
    inner_weight: Array


def losses_of_models(loss: RowLoss, w: PyTree, X: Array, y: Array) -> Array:
    """Loss of every model on every row, [b, K]; w has weights [K, C, p] and bias [K, C]."""
    weights, bias = w["weights"], w["bias"]
    folds, outputs, p = weights.shape
    # s_ikc = x_i . w_kc + b_kc, for all k and c in one product
    scores = X @ weights.reshape(folds * outputs, p).T + bias.reshape(1, folds * outputs)
    return jax.vmap(loss.per_row, in_axes=(1, None), out_axes=1)(scores.reshape(-1, folds, outputs), y)


@config
class CrossFitLoss:
    """Sum over the K models of their penalised mean loss on the rows of the other folds; the inner loss.

    Args:
        loss: of one model, such as :class:`~bilevax.MultinomialLogistic`; lam is shared by the models.
    """

    loss: RowLoss

    def __call__(self, w: PyTree, lam: PyTree, batch: Rows) -> Array:
        """The inner variable w has a leading axis K."""
        folds = w["weights"].shape[0]
        # 1/n sum_i c_i l_i(w_k) over the rows of other folds than k, with c_i K / (K - 1) for c_i: its mean is 1 again
        weight = batch.inner_weight[:, None] * (folds / (folds - 1))
        others = jnp.where(_own_fold(batch, folds), jnp.zeros_like(weight), weight)
        data = jnp.sum(losses_of_models(self.loss, w, batch.X, batch.y) * others) / batch.y.shape[0]
        # + 1/2 sum_j exp(lam_j) w_kj^2
        return data + jnp.sum(jax.vmap(self.loss.half_penalty, in_axes=(0, None))(w["weights"], lam))


@config
class HeldOutLoss:
    """Mean loss over the rows, each by the model that was not trained on its fold; the outer loss.

    Args:
        loss: of one model, without a penalty.
    """

    loss: RowLoss

    def __call__(self, w: PyTree, lam: PyTree, batch: Rows) -> Array:
        """The inner variable w has a leading axis K."""
        folds = w["weights"].shape[0]
        # 1/n sum_i c_i l_i(w_k), k the fold of row i
        outer_weight = batch.outer_weight[:, None]
        own = jnp.where(_own_fold(batch, folds), outer_weight, jnp.zeros_like(outer_weight))
        return jnp.sum(losses_of_models(self.loss, w, batch.X, batch.y) * own) / batch.y.shape[0]


def _own_fold(batch: Rows, folds: int) -> Array:
    """True where the model of the column was trained without the row, [b, K]."""
    return batch.fold[:, None] == jnp.arange(folds, dtype=batch.fold.dtype)[None, :]


def pad_rows(weight: np.ndarray, *rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows filled up to a padded length with rows of weight zero, and the weights, of mean 1.

    Data sets of nearly the same size so share one compiled program.

    Args:
        weight: of the rows, [n].
        rows: arrays with leading axis n.
    """
    n, m = len(weight), padded(len(weight))
    # Rows are repeated, so that their losses are finite, at weight 0.
    index = np.pad(np.arange(n), (0, m - n), mode="wrap")
    w = np.where(np.arange(m) < n, weight[index], 0.0)
    # m c_i / sum_i c_i: the mean over the padded rows is 1
    return (*(a[index] for a in rows), (w * (m / w.sum())).astype(weight.dtype))


def padded(n: int) -> int:
    """The next length of the form 2^k (8 + i), at least 64: at most an eighth longer beyond, and few different ones."""
    # 2^k, with 8 2^k <= n - 1 < 16 2^k
    unit: int = 2 ** (max(n - 1, 64).bit_length() - 4)
    return max(64, -(-n // unit) * unit)


def pad_columns(X: np.ndarray) -> np.ndarray:
    """Few columns filled up with columns of zeros to a multiple of eight, which no loss and no penalty sees."""
    # The weight of a column of zeros has no gradient but that of its penalty: it stays 0.
    p = X.shape[1]
    return X if p >= 64 else np.pad(X, ((0, 0), (0, -p % 8)))
