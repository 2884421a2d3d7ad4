"""Cross-fitting: K models, each trained without one fold, whose losses on that fold are what the penalties minimise.

Rows are arranged as cells [m, K]: cell (i, k) is row i of fold k. Folds are filled up with cells of weight zero, to a
length from a short list, so that data sets of nearly the same size share one compiled program.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.config import config
from bilevax.core.trees import PyTree


class Cells(NamedTuple):
    """Rows by fold; a batch of them has leading axis b in place of m.

    Attributes:
        X: features [m, K, p].
        y: classes [m, K], integers.
        train: weight of the cell in the training losses [m, K], of mean 1.
        held: weight of the cell in the held-out losses [m, K], of mean 1.
    """

    X: Any
    y: Any
    train: Any
    held: Any


@config
class CrossFitLoss:
    """Sum over the K models of their mean training loss on the other folds; the inner loss.

    Args:
        loss: of one model, such as :class:`~bilevax.MultinomialLogistic`; lam is shared by the models.
    """

    loss: Any

    def __call__(self, w: PyTree, lam: PyTree, batch: Cells) -> Array:
        """The inner variable w has a leading axis K."""
        folds = batch.y.shape[1]
        losses = [self._of_neighbours(w, lam, batch, shift) for shift in range(1, folds)]
        return sum(losses, start=jnp.zeros((), batch.X.dtype)) / (folds - 1)

    def _of_neighbours(self, w: PyTree, lam: PyTree, batch: Cells, shift: int) -> Array:
        """Sum over k of the loss of model k on fold k + shift."""
        X, y, weight = (jnp.roll(a, -shift, axis=1) for a in (batch.X, batch.y, batch.train))
        return jnp.sum(jax.vmap(self.loss, in_axes=(0, None, 1))(w, lam, (X, y, weight)))

    def curvature(self, w: PyTree, batch: Cells) -> Array:
        """The largest curvature of any model on any fold."""
        rows = (batch.X, batch.y, batch.train)
        return jnp.max(jax.vmap(self.loss.curvature, in_axes=(0, 1))(w, rows))

    def penalty_curvature(self, w: PyTree, lam: PyTree) -> PyTree:
        """The curvature of the penalty, the same for every model."""
        one = jax.tree.map(lambda x: x[0], w)
        return jax.tree.map(lambda p: jnp.asarray(p)[None], self.loss.penalty_curvature(one, lam))


@config
class HeldOutLoss:
    """Mean over the K models of their loss on the fold they were not trained on; the outer loss.

    Args:
        loss: of one model, without a penalty.
    """

    loss: Any

    def __call__(self, w: PyTree, lam: PyTree, batch: Cells) -> Array:
        """The inner variable w has a leading axis K."""
        return jnp.mean(jax.vmap(self.loss, in_axes=(0, None, 1))(w, lam, (batch.X, batch.y, batch.held)))


def arrange(X: np.ndarray, y: np.ndarray, folds: np.ndarray, train: np.ndarray, held: np.ndarray) -> Cells:
    """Rows as cells.

    Args:
        X: features [n, p].
        y: classes [n].
        folds: fold of each row [n], 0 to K - 1, none empty.
        train: training weight of each row [n].
        held: held-out weight of each row [n].
    """
    parts = [np.flatnonzero(folds == k) for k in range(folds.max() + 1)]
    m = padded(max(len(rows) for rows in parts))
    index = np.stack([np.pad(rows, (0, m - len(rows)), mode="wrap") for rows in parts], axis=1)
    real = np.stack([np.arange(m) < len(rows) for rows in parts], axis=1)

    def weights(a: np.ndarray) -> np.ndarray:
        cells = np.where(real, a[index], 0.0)
        return (cells * (cells.size / cells.sum())).astype(X.dtype)

    return Cells(X[index], y[index], weights(train), weights(held))


def fill(X: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows filled up to a padded length with rows of weight zero; the weights have mean 1."""
    n, m = len(y), padded(len(y))
    index = np.pad(np.arange(n), (0, m - n), mode="wrap")
    w = np.where(np.arange(m) < n, weight[index], 0.0)
    return X[index], y[index], (w * (m / w.sum())).astype(X.dtype)


def padded(n: int) -> int:
    """The next length of the form 2^k (8 + i) / 8: at most an eighth longer, and few different ones."""
    unit = max(1, 2 ** ((n - 1).bit_length() - 4))
    return -(-n // unit) * unit
