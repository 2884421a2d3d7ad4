"""Columns of a table on the host, dense or sparse, which numpy and scipy write differently."""

from typing import TypeAlias, TypeGuard

import numpy as np
import scipy.sparse

from bilevax.core.errors import DataError

Matrix: TypeAlias = np.ndarray | scipy.sparse.csc_array
"""Float64 [n, p]: an array, or scipy's sparse array in CSC format."""

SMALLEST = 1e-290
"""Spread of a column that is none: 1 / it would overflow in the weights."""


def is_sparse(A: Matrix) -> TypeGuard[scipy.sparse.csc_array]:
    """Whether it is scipy's, and not an array."""
    return bool(scipy.sparse.issparse(A))


def dense(A: Matrix) -> np.ndarray:
    """The same as an array."""
    out: np.ndarray = A.toarray() if is_sparse(A) else np.asarray(A)
    return out


def gram(A: Matrix, B: Matrix, weight: np.ndarray | None = None) -> np.ndarray:
    """A' diag(weight) B, dense [a, b]."""
    if weight is not None and is_sparse(B):
        B = B.copy()
        B.data *= weight[B.indices]
    elif weight is not None:
        B = B * weight[:, None]
    return dense(A.T @ B)


def divide_columns(X: Matrix, scale: np.ndarray) -> Matrix:
    """X diag(1 / scale)."""
    if not is_sparse(X):
        return X / scale
    out = scipy.sparse.csc_array(X, copy=True)
    # entry by entry: column j has indptr[j + 1] - indptr[j] of them, one after the other
    out.data /= np.repeat(scale, np.diff(out.indptr))
    return out


def are_zero_one(X: Matrix) -> np.ndarray:
    """True of columns that hold 0 and 1 alone, bool [p]: a category, a mark, a truth value."""
    if is_sparse(X):
        entries = X.tocoo()
        other = (entries.data != 0.0) & (entries.data != 1.0)
        out: np.ndarray = np.bincount(entries.col[other], minlength=X.shape[1]) == 0
    else:
        out = np.all((X == 0.0) | (X == 1.0), axis=0)
    return out


def column_moments(X: Matrix, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column; 1 where it does not vary. Columns may be of any size.

    Args:
        X: the columns.
        weight: of the rows, [n], positive; None: 1.
    """
    if X.shape[0] == 0 or X.shape[1] == 0:
        return np.zeros(X.shape[1]), np.ones(X.shape[1])
    sparse = is_sparse(X)
    largest = abs(X).max(axis=0)
    largest = largest.toarray().ravel() if sparse else largest
    # in units of a power of 2 near the largest entry, which round nothing: no square overflows or vanishes
    unit = np.ldexp(1.0, np.frexp(np.where(largest > SMALLEST, largest, 1.0))[1] - 1)
    Y = divide_columns(X, unit)
    mean = _mean(Y, weight)
    if is_sparse(Y):
        # mean of squares - square of mean: zeros that are not stored stay so
        scale = np.sqrt(np.maximum(_mean(Y.multiply(Y), weight) - mean**2, 0.0))
    else:
        scale = np.sqrt(_mean((Y - mean) ** 2, weight))
    # A spread within the rounding of a sum of n values is none; the mean is then the value, without rounding.
    varies = scale > max(10, X.shape[0]) * np.finfo(float).eps * np.abs(mean)
    mean, scale, varies = mean * unit, scale * unit, varies & (scale * unit > SMALLEST)
    return mean if sparse else np.where(varies, mean, X[0]), np.where(varies, scale, 1.0)


def _mean(X: Matrix, weight: np.ndarray | None) -> np.ndarray:
    """Of every column, [p]."""
    return np.asarray(X.mean(axis=0) if weight is None else weight @ X / weight.sum()).ravel()


def linear_scores(X: Matrix, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    """X coef + intercept, [n] or [n, C].

    Raises:
        DataError: an entry is so large that the score of its row overflows.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        # X coef + intercept may be inf - inf: NaN
        scores: np.ndarray = X @ coef + intercept
    finite = np.isfinite(scores)
    if not finite.all():
        row = int(np.argmin(finite.reshape(len(scores), -1).all(axis=1)))
        raise DataError(f"row {row} of X is so large that its score overflows; is it in the units of training?")
    return scores
