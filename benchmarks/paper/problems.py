"""The problems of the experiments: rows, splits, losses, and the step sizes of the paper's authors.

Inner loss: mean over the training rows, plus 1/2 sum_j exp(lam_j) |w_j|^2 with a penalty for each feature j; outer
loss: mean over the validation rows. No intercept.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from benchmarks import datasets

import bilevax as bx
from bilevax.core.config import replace_unchecked

SYNTHETIC = {"rows": 10_000, "columns": 50}


class Data(NamedTuple):
    """Rows to split into train and val, and test rows: X [n, d] dense or CSR, y [n] from 0; ``classes`` 2 or more."""

    name: str
    X: Any
    y: np.ndarray
    X_test: Any
    y_test: np.ndarray
    classes: int
    batch: int

    @property
    def outputs(self) -> int:
        """Scores of a row, C."""
        return 1 if self.classes == 2 else self.classes

    @property
    def loss(self) -> Any:
        """The class of the loss."""
        return bx.BinaryLogistic if self.classes == 2 else bx.MultinomialLogistic

    def few(self, rows: int) -> "Data":
        """The first rows of each kind, and of a sparse matrix the columns that these rows use: for trying out."""
        X, X_test = self.X[:rows], self.X_test[:rows]
        if scipy.sparse.issparse(X):
            used = np.unique(X.indices)[:500]
            X, X_test = X[:, used], X_test[:, used]
        return self._replace(X=X, y=self.y[:rows], X_test=X_test, y_test=self.y_test[:rows], batch=min(self.batch, 30))


def synthetic() -> Data:
    """Nearly separable labels from a logistic model; the columns' variances fall as 1 / j^2, the first is 1."""
    rng = np.random.default_rng(0)
    n, d = SYNTHETIC["rows"], SYNTHETIC["columns"]
    X = rng.normal(size=(2 * n, d)) / np.arange(1, d + 1)
    y = (rng.uniform(size=2 * n) < 1 / (1 + np.exp(-X @ rng.normal(scale=10, size=d)))).astype(np.int32)
    return Data("synthetic", X[:n], y[:n], X[n:], y[n:], 2, 50)


def fashion() -> Data:
    """Fashion-MNIST, centred and divided by one number: the rows' mean squared norm is 1."""
    raw = datasets.fashion()
    mean = raw.X.mean(axis=0)
    size = np.sqrt(np.mean(np.sum((raw.X - mean) ** 2, axis=1)))
    X, X_test = (((part - mean) / size).astype(np.float32) for part in (raw.X, raw.X_test))
    return Data("fashion", X, raw.y, X_test, raw.y_test, 10, 90)


def newsgroups() -> Data:
    """20 Newsgroups as tf-idf: rows of norm 1."""
    return Data("newsgroups", *datasets.newsgroups(), 20, 90)


LOADERS: dict[str, Callable[[], Data]] = {"synthetic": synthetic, "fashion": fashion, "newsgroups": newsgroups}
FETCH = {"fashion": datasets.fashion_folder, "newsgroups": datasets.newsgroups_wheel}
"""What is downloaded, once, before anything is computed."""


def source(data: Data, *, batch: int | None = None, test: bool = False, dtype: Any = None) -> Any:
    """A source of all rows but the test rows, or of those, dense or sparse; in the data's precision or another."""
    X, y = (data.X_test, data.y_test) if test else (data.X, data.y)
    kind = bx.SparseRows if scipy.sparse.issparse(X) else bx.Arrays
    return kind((X if dtype is None else X.astype(dtype), y), batch)


def halves(data: Data, run: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the rows to train and to validate on, of a run."""
    kept, held = np.split(np.random.default_rng(run).permutation(len(data.y)), [len(data.y) // 2])
    return kept, held


def part(whole: Any, rows: np.ndarray) -> Any:
    """A source of some rows of another. The entries of sparse rows stay in one table, so that no shape changes."""
    return replace_unchecked(whole, data=jax.tree.map(lambda a: a[rows], whole.data))


def curvature(data: Data, rows: np.ndarray) -> float:
    """L: the largest curvature that the mean loss of these rows can have, sup a'' |X|^2 / n."""
    X = data.X[rows].astype(np.float64)
    largest = scipy.sparse.linalg.svds(X, k=1, return_singular_vectors=False, rng=0)[0]
    return float(data.loss.largest_second_derivative * largest**2 / len(rows))


class Steps(NamedTuple):
    """The authors' step sizes where the curvature lies between ``strength`` and L + strength.

    Phi = w - alpha grad with alpha = 2 / (L + 2 strength) contracts by q; decreasing steps are beta / (beta + j) with
    beta = 2 / (1 - q^2), constant ones 1.
    """

    alpha: float
    q: float

    @classmethod
    def of(cls, L: float, strength: float) -> "Steps":
        """The steps for these curvatures."""
        return cls(2 / (L + 2 * strength), L / (L + 2 * strength))

    @property
    def decreasing(self) -> bx.Harmonic:
        """eta_j = beta / (beta + j)."""
        beta = 2 / (1 - self.q**2)
        return bx.Harmonic(beta, beta)
