"""Models side by side on rows that no tuning saw."""

import math
import warnings
from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np
from scipy import stats
from sklearn.dummy import DummyClassifier
from sklearn.metrics import get_scorer, get_scorer_names

from bilevax.core.errors import ParameterError
from bilevax.tables.table import suggestion


class Classifier(Protocol):
    """A fitted model of scikit-learn's kind."""

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The label of each row, [n]."""


Scorer: TypeAlias = Callable[[Classifier, np.ndarray, np.ndarray], float]

_NOT_FOR_CLASSES = ("r2", "explained_variance", "rand_score", "mutual_info", "completeness", "homogeneity", "fowlkes",
                    "v_measure", "_error", "deviance")  # fmt: skip


def scorer_for(name: str, codes: np.ndarray) -> Scorer:
    """scikit-learn's scorer of that name, tried on a constant prediction of these classes.

    Raises:
        ParameterError: there is none, or it cannot score these classes; the message says what can.
    """
    # scikit-learn does not say which of its scorers are for classifiers.
    known = [known for known in get_scorer_names() if not any(part in known for part in _NOT_FOR_CLASSES)]
    if name not in known:
        raise ParameterError(f"scoring '{name}' is no score of a classifier; {suggestion(name, known)}")
    scorer: Scorer = get_scorer(name)
    # A model that knows the frequencies alone; if it cannot be scored, none can.
    nothing = np.zeros((len(codes), 1))
    constant = DummyClassifier(strategy="prior").fit(nothing, codes)
    try:
        _quietly(scorer, constant, nothing, codes)
    except ValueError as e:
        classes = len(np.unique(codes))
        near = [other for other in known if other.startswith(name + "_")]
        advice = f"; there are {', '.join(near)}" if near else ""
        reason = str(e).splitlines()[0].rstrip(".")
        raise ParameterError(f"scoring '{name}' cannot score {classes} classes{advice} ({reason})") from None
    return scorer


def score(scorer: Scorer, model: Classifier, X: np.ndarray, codes: np.ndarray) -> float | None:
    """The score, or None where these rows do not have one (a class may be absent)."""
    try:
        value = _quietly(scorer, model, X, codes)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _quietly(scorer: Scorer, model: Classifier, X: np.ndarray, codes: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(scorer(model, X, codes))


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of independent values and its standard error."""
    if len(values) < 2:
        return float(values.mean()), 0.0
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def paired_interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Mean of a - b over rows, and its 95 % interval by Student's t."""
    mean, error = mean_and_error(a - b)
    # mean +- t_{n-1}(.975) s / sqrt(n), with s the standard deviation of the n differences
    half = float(stats.t.ppf(0.975, max(len(a) - 1, 1))) * error
    return mean, mean - half, mean + half
