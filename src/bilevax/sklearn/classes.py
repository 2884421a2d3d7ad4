"""Labels of classifiers as numbers, and what is no set of labels refused by name."""

from abc import ABC, abstractmethod
from numbers import Number

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite

from bilevax.core.errors import DataError
from bilevax.sklearn.frames import Features


class ProbabilisticClassifier(ClassifierMixin, ABC):
    """Predictions by the log-probabilities of classes."""

    classes_: np.ndarray

    @abstractmethod
    def predict_log_proba(self, X: Features) -> np.ndarray:
        """Log-probabilities of the classes, [n, C]."""

    def predict_proba(self, X: Features) -> np.ndarray:
        """Probabilities of the classes, [n, C]."""
        probabilities: np.ndarray = np.exp(self.predict_log_proba(X))
        return probabilities

    def predict(self, X: Features) -> np.ndarray:
        """The most probable label of each row, [n]."""
        index = self.predict_log_proba(X).argmax(axis=1)
        labels: np.ndarray = self.classes_[index]
        return labels


def check_labels(y: ArrayLike) -> None:
    """Refuse what cannot be sorted into classes.

    Raises:
        DataError: labels of several types, as where one is missing.
    """
    labels = y if hasattr(y, "dtype") else np.asarray(y)
    kinds = sorted(set(map(_kind, np.asarray(labels, object)))) if _is_object(labels) else []
    if len(kinds) > 1:
        raise DataError(f"y mixes labels of the types {', '.join(kinds)}; make them all strings, or all numbers")


def read_labels(y: ArrayLike) -> np.ndarray:
    """Labels [n], none of which is missing; other faults as of :func:`check_labels`."""
    check_labels(y)
    labels: np.ndarray = column_or_1d(y, warn=True)
    assert_all_finite(labels, input_name="y")
    return labels


def encode_classes(labels: np.ndarray, validation: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """The classes, sorted, and the class of each row, [n].

    Args:
        labels: of the rows, [n].
        validation: True for the rows that validate, [n], where the user says so.

    Raises:
        DataError: one class only, or one without a training row.
    """
    check_classification_targets(labels)
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"Classifier can't train when only one class is present: '{classes[0]}'")
    if validation is not None and np.shape(validation) == codes.shape:
        unseen = np.setdiff1d(codes, codes[~np.asarray(validation, bool)])
        if unseen.size:
            raise DataError(f"no training row is of class '{classes[unseen[0]]}', of which validation rows are")
    return classes, codes


def _is_object(labels: ArrayLike) -> bool:
    # types of pandas have names of their own, and hold its mark of the missing
    return np.ndim(labels) == 1 and (str(getattr(labels, "dtype", "")) in ("string", "category", "object", "str"))


def _kind(label: object) -> str:
    return "str" if isinstance(label, str) else "number" if isinstance(label, Number) else type(label).__name__
