"""What an estimator is given as a table: a data frame, an array, or a table, after scikit-learn's checks."""

import warnings
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_feature_names_in, _check_sample_weight, validate_data

from bilevax.core.errors import ParameterError
from bilevax.tables.table import Table

if TYPE_CHECKING:
    from narwhals.typing import IntoDataFrame


class Frame(Protocol):
    """A data frame that narwhals knows, of pandas, polars or pyarrow, or a :class:`~bilevax.tables.Table`."""

    @property
    def columns(self) -> object:
        """Each has its own."""


Features: TypeAlias = ArrayLike | Frame | scipy.sparse.spmatrix | scipy.sparse.sparray
"""Rows of features, [n, p], of numbers, texts and dates in a frame; of numbers, or texts, in an array."""

Held: TypeAlias = Table | scipy.sparse.csr_array
"""Features that were read: a table, or the sparse matrix that was given."""


def is_frame(X: Features) -> bool:
    """True for what has named columns: data frames and tables."""
    return hasattr(X, "columns")


def is_sparse_frame(X: Features) -> bool:
    """True of a data frame whose columns are all sparse: a matrix, as scikit-learn takes it."""
    types = getattr(X, "dtypes", ())
    return len(types) > 0 and all(type(of).__name__ == "SparseDtype" for of in types)


def as_table(estimator: BaseEstimator, X: Features, *, reset: bool) -> Table:
    """Features as a table; the columns of an array are called x0, x1, ..., or as in the frame of ``fit``.

    Args:
        estimator: that was given them: its ``n_features_in_`` and ``feature_names_in_`` are set, or compared with.
        X: the features. Missing cells are NaN or None. The columns of a frame must be those of ``fit``, as scikit-learn
            has it; a table is passed on as it is, for its columns are found by name.
        reset: True in ``fit``, which warns of texts that are mostly numbers.

    Raises:
        DataError: a column mixes types, or has one that no model can use.
        TypeError: a cell of an array is neither a number nor text.
        ValueError: scikit-learn's, on a wrong shape, or on other columns than in ``fit``.
    """
    if isinstance(X, Table):
        if reset:
            estimator.n_features_in_, estimator.feature_names_in_ = len(X.names), np.array(X.names, object)
        return X
    from bilevax.tables.read import table_from_array, table_from_frame

    if is_frame(X):
        table = table_from_frame(cast("IntoDataFrame", X), name="X")
        validate_data(estimator, X, reset=reset, skip_check_array=True)
        if not hasattr(estimator, "feature_names_in_"):  # labels that are no strings are no names
            table = table.renamed(_names(estimator))
    else:
        least = 2 if reset else 1
        X = validate_data(
            estimator, X, reset=reset, dtype=None, ensure_all_finite="allow-nan", ensure_min_samples=least
        )
        table = table_from_array(X, _names(estimator))
    for note in table.notes if reset else ():
        warnings.warn(note, stacklevel=2)
    return table


def notes_on_reading(X: Features, table: Table) -> tuple[str, ...]:
    """What reading X has shown; of a table that was given, whoever read it knows."""
    return () if isinstance(X, Table) else table.notes


def are_numbers(table: Table) -> bool:
    """True of numbers and truth values alone, without a missing cell: a matrix as they are."""
    return all(c.kind in ("number", "integer", "boolean") and not c.missing.any() for c in table.columns)


def check_sample_weight(sample_weight: ArrayLike | None, y: np.ndarray) -> np.ndarray:
    """Weights of the rows as float64 [n]; 1 for None.

    Raises:
        ParameterError: one is negative, or all are 0.
        ValueError: scikit-learn's, where there are not n finite weights.
    """
    weight: np.ndarray = _check_sample_weight(sample_weight, y, dtype=np.float64)
    if np.any(weight < 0.0):
        row = int(np.argmax(weight < 0.0))
        raise ParameterError(f"sample_weight is {weight[row]} in row {row}; weights must be at least 0")
    if not weight.any():
        raise ParameterError("sample_weight is zero in every row; at least one must be positive")
    return weight


def group_numbers(given: ArrayLike, p: int, what: str) -> np.ndarray:
    """Numbers of columns, [p].

    Raises:
        ParameterError: there are not p whole numbers from 0.
    """
    numbers = np.asarray(given)
    if numbers.shape != (p,) or numbers.dtype.kind not in "iu" or numbers.min() < 0:
        raise ParameterError(f"{what} of each of the {p} columns, from 0")
    return numbers


def select(A: Any, there: np.ndarray) -> Any:
    """The rows of an array, dense or sparse, where ``there`` [n] is True; A itself for all, or if it has not n rows."""
    if A is None or there.all() or np.shape(A)[:1] != there.shape:
        return A
    return (A if scipy.sparse.issparse(A) else np.asarray(A))[there]


def _names(estimator: BaseEstimator) -> list[str]:
    names: list[str] = _check_feature_names_in(estimator).tolist()
    return names
