"""Columns of a table on the host, dense or sparse, which numpy and scipy write differently."""

from typing import Any, TypeAlias

import numpy as np
import scipy.sparse

Matrix: TypeAlias = Any
"""Float64 [n, p]: an array, or scipy's sparse array in CSC format."""


def dense(A: Matrix) -> np.ndarray:
    """The same as an array."""
    out: np.ndarray = A.toarray() if scipy.sparse.issparse(A) else np.asarray(A)
    return out


def gram(A: Matrix, B: Matrix, weight: np.ndarray | None = None) -> np.ndarray:
    """A' diag(weight) B, dense [a, b]."""
    if weight is not None and scipy.sparse.issparse(B):
        B = B.copy()
        B.data *= weight[B.indices]
    elif weight is not None:
        B = B * weight[:, None]
    return dense(A.T @ B)


def divide_columns(X: Matrix, scale: np.ndarray) -> Matrix:
    """X diag(1 / scale)."""
    if not scipy.sparse.issparse(X):
        return X / scale
    out = scipy.sparse.csc_array(X, copy=True)
    out.data /= np.repeat(scale, np.diff(out.indptr))
    return out


def column_moments(X: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column; 1 where it does not vary."""
    sparse = scipy.sparse.issparse(X)
    mean = np.asarray(X.mean(axis=0)).ravel()
    if sparse:
        scale = np.sqrt(np.maximum(np.asarray(X.multiply(X).mean(axis=0)).ravel() - mean**2, 0.0))
    else:
        scale = X.std(axis=0)
    # A spread within the rounding of a sum of n values is none; the mean is then the value, without rounding.
    varies = scale > max(10, X.shape[0]) * np.finfo(float).eps * np.maximum(1, np.abs(mean))
    return mean if sparse else np.where(varies, mean, X[0]), np.where(varies, scale, 1.0)
