"""What a label cleaner is given: rows with labels to doubt, and rows with labels to trust, one below the other."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_consistent_length, validate_data

from bilevax.core.errors import DataError, ParameterError
from bilevax.sklearn.classes import encode_classes, read_labels
from bilevax.sklearn.frames import Features, Held, as_table
from bilevax.solvers.label_noise import Given
from bilevax.tables.table import Column, Table

Trusted: TypeAlias = tuple[Features, ArrayLike] | ArrayLike | None
"""Labels that are known to be right: (X, y) of other rows, or True for such rows [n]; None: none."""


class LabelledRows(NamedTuple):
    """All rows.

    Attributes:
        X: a table, or CSR.
        given: labels; of a table of trusted rows, after all others.
        classes: the labels of the classes, [C].
        own: the number of rows that ``X`` of ``fit`` had.
    """

    X: Held
    given: Given
    classes: np.ndarray
    own: int


def read(estimator: BaseEstimator, X: Features, y: ArrayLike, trusted: Trusted) -> LabelledRows:
    """Check all and put the trusted rows below the others, if they are a table of their own.

    Raises:
        DataError: labels that are no classes; trusted rows that are too few, or of a class that no other row has.
        ParameterError: a mask that is none.
        ValueError: scikit-learn's, on bad X and y.
    """
    features, labels = features_of(estimator, X, reset=True), read_labels(y)
    check_consistent_length(_column(features), labels)
    classes, codes = encode_classes(labels, None)
    n = len(codes)
    if isinstance(trusted, tuple):
        if len(trusted) != 2:
            raise ParameterError(
                f"trusted is a tuple of {len(trusted)}; give (X, y) of the rows whose labels are right"
            )
        below, sure = features_of(estimator, trusted[0], reset=False), read_labels(trusted[1])
        check_consistent_length(_column(below), sure)
        strange = np.setdiff1d(sure, classes)
        if strange.size:
            raise DataError(f"a trusted row has the label '{strange[0]}', which no other row has")
        features, codes = _stacked(features, below), np.concatenate([codes, np.searchsorted(classes, sure)])
        mask = np.arange(len(codes)) >= n
    else:
        mask = _mask(trusted, n)
    given = Given(codes, mask, len(classes))
    _check(given, classes)
    return LabelledRows(features, given, classes, n)


def features_of(estimator: BaseEstimator, X: Features, *, reset: bool) -> Held:
    """A table, or CSR; with ``reset`` those of ``fit``, else of the same columns."""
    if scipy.sparse.issparse(X):
        least = 2 if reset else 1
        return validate_data(estimator, X, reset=reset, accept_sparse="csr", dtype=np.float64, ensure_min_samples=least)
    return as_table(estimator, X, reset=reset)


def _column(features: Held) -> ArrayLike:
    return features.columns[0].values if isinstance(features, Table) else features


def _mask(trusted: ArrayLike | None, n: int) -> np.ndarray:
    if trusted is None:
        return np.zeros(n, bool)
    mask = np.asarray(trusted)
    if mask.shape != (n,) or mask.dtype != bool:
        raise ParameterError(
            f"trusted has the shape {mask.shape} and the type {mask.dtype}; give True or False for each of the"
            f" {n} rows, or (X, y) of other rows"
        )
    if not mask.any():
        raise ParameterError("trusted is False in every row; leave it out if no label is known to be right")
    if mask.all():
        raise ParameterError("trusted is True in every row, so that there is no label to doubt")
    return mask


def _check(given: Given, classes: np.ndarray) -> None:
    trusted, C = int(given.trusted.sum()), len(classes)
    if 0 < trusted < C:
        raise DataError(f"{trusted} trusted rows for {C} classes are too few; give one of each class at least, or none")
    doubted = np.bincount(given.y[~given.trusted], minlength=C)
    if not doubted.all():
        name = classes[int(np.argmin(doubted))]
        raise DataError(f"a trusted row has the label '{name}', which no other row has")


def notes_on(given: Given, classes: np.ndarray) -> tuple[str, ...]:
    """What the user should know of the trusted rows."""
    if not given.trusted.any():
        return (
            "no row is trusted: it is assumed that most labels of every class are right and that wrong ones do not"
            " depend on the features, and what the model cannot learn is taken for wrong labels; some trusted rows"
            " make it much surer",
        )
    counts = np.bincount(given.y[given.trusted], minlength=len(classes))
    without = [f"'{name}'" for name in classes[counts == 0]]
    return (f"no trusted row is of class {', '.join(without)}",) if without else ()


def _stacked(A: Held, B: Held) -> Held:
    if not isinstance(A, Table):
        return scipy.sparse.vstack([A, B], format="csr")
    return dataclasses.replace(A, columns=tuple(_joined(column, B.column(column.name)) for column in A.columns))


def _joined(a: Column, b: Column) -> Column:
    if "text" in (a.kind, b.kind):
        a, b = a.as_text(), b.as_text()
    elif (a.kind == "date") != (b.kind == "date"):
        raise DataError(f"column '{a.name}' holds dates in one of the two tables and numbers in the other")
    return dataclasses.replace(a, values=np.concatenate([a.values, b.values]))


def rows_of(X: Held, rows: Sequence[int] | np.ndarray) -> Held:
    """Some rows of a table or a matrix."""
    return X.take(np.asarray(rows)) if isinstance(X, Table) else X[rows]
