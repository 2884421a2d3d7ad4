"""Models on rows that no tuning saw: losses, the score that was asked for, and how sure a difference is."""

import math
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.metrics import get_scorer, get_scorer_names

from bilevax.core.errors import ParameterError
from bilevax.study.target import Target
from bilevax.tables.scores import row_losses as row_losses
from bilevax.tables.table import suggestion

Scorer: TypeAlias = Callable[[BaseEstimator, np.ndarray, np.ndarray], float]

_ALIASES = {
    "auc": "roc_auc", "rocauc": "roc_auc", "prauc": "average_precision", "ap": "average_precision", "acc": "accuracy",
    "mse": "neg_mean_squared_error", "rmse": "neg_root_mean_squared_error", "mae": "neg_mean_absolute_error",
    "mape": "neg_mean_absolute_percentage_error", "logloss": "neg_log_loss", "crossentropy": "neg_log_loss",
    "brier": "neg_brier_score", "fscore": "f1", "f1score": "f1", "rsquared": "r2",
}  # fmt: skip
"""What scores are called elsewhere."""

RESAMPLES = 200
"""Of the test rows, for the interval of a difference of scores."""

_RESAMPLED = 10_000
"""Rows of a resample, at most, where one score alone is asked for."""

_NOT_FOR_CLASSES = ("r2", "explained_variance", "rand_score", "mutual_info", "completeness", "homogeneity", "fowlkes",
                    "v_measure", "_error", "deviance", "d2_")  # fmt: skip
_FOR_NUMBERS = ("r2", "explained_variance", "_error", "deviance", "d2_absolute")


class Interval(NamedTuple):
    """A difference, or a mean, and its 95 % interval."""

    difference: float
    low: float
    high: float


class Known(BaseEstimator):
    """A model whose predictions are there already: a row of X is the number of a row."""

    def __init__(self, prediction: np.ndarray) -> None:
        self.prediction = prediction

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Known":
        """There is nothing to be learned."""
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Means, [n]."""
        return np.asarray(self.prediction[X[:, 0]])


class KnownNumbers(RegressorMixin, Known):
    """Of a number."""


class KnownClasses(ClassifierMixin, Known):
    """Of classes 0, 1, ..."""

    @property
    def classes_(self) -> np.ndarray:
        """Their codes."""
        return np.arange(self.prediction.shape[1])

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probabilities, [n, C]."""
        return np.asarray(self.prediction[X[:, 0]])

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The most probable class, [n]."""
        return np.asarray(self.predict_proba(X).argmax(axis=1))


def known(prediction: np.ndarray) -> Known:
    """A model of scikit-learn's kind that has these predictions, [n, C] or [n]."""
    return KnownClasses(prediction) if prediction.ndim == 2 else KnownNumbers(prediction)


def scorer_for(name: str, target: Target) -> Scorer | None:
    """scikit-learn's scorer of that name, tried on a constant prediction; None for what is the loss anyhow.

    Raises:
        ParameterError: there is none, or it cannot score this target; the message says what can.
    """
    # scikit-learn does not say which of its scorers are for classes.
    classes = target.labels is not None
    found = [
        scorer
        for scorer in get_scorer_names()
        if (not any(p in scorer for p in _NOT_FOR_CLASSES) if classes else any(p in scorer for p in _FOR_NUMBERS))
    ]
    if name not in found:
        what = "classes" if classes else "a number"
        alias = _ALIASES.get(re.sub("[^a-z0-9]", "", name.casefold()))
        advice = f"did you mean '{alias}'?" if alias in found else suggestion(name, found)
        raise ParameterError(f"scoring '{name}' is no score of a model of {what}; {advice}")
    scorer: Scorer = get_scorer(name)
    # A model that knows the frequencies alone; if it cannot be scored, none can.
    nothing = np.zeros((len(target.values), 1))
    constant = (DummyClassifier(strategy="prior") if classes else DummyRegressor()).fit(nothing, target.values)
    try:
        _quietly(scorer, constant, nothing, target.values)
    except ValueError as e:
        near = [other for other in found if other.startswith(name + "_")]
        others = f"; there are {', '.join(near)}" if near else ""
        reason = str(e).splitlines()[0].rstrip(".")
        what = f"{len(np.unique(target.values))} classes" if classes else "these numbers"
        raise ParameterError(f"scoring '{name}' cannot score {what}{others} ({reason})") from None
    own = {"classes": "neg_log_loss", "number": "neg_mean_squared_error", "count": "neg_mean_poisson_deviance",
           "amount": "neg_mean_gamma_deviance"}  # fmt: skip
    return None if name == own[target.task] else scorer


def score(scorer: Scorer, prediction: np.ndarray, values: np.ndarray, rows: np.ndarray | None = None) -> float | None:
    """The score on all rows or some, or None where these do not have one (a class may be absent)."""
    rows = np.arange(len(values)) if rows is None else rows
    try:
        value = _quietly(scorer, known(prediction), rows[:, None], values[rows])
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def score_and_error(name: str, prediction: np.ndarray, values: np.ndarray) -> tuple[float, float] | None:
    """A score of scikit-learn on rows, and its standard error by resampled rows; None where it is not known.

    Args:
        name: scikit-learn's.
        prediction: probabilities [n, C], or means [n].
        values: codes or numbers, [n].
    """
    scorer: Scorer = get_scorer(name)
    value, n = score(scorer, prediction, values), len(values)
    if value is None:
        return None
    size = min(n, _RESAMPLED)
    found = _resampled(lambda rows: score(scorer, prediction, values, rows), n, size, 0)
    # of m rows out of n the spread is sqrt(n / m) times as large
    return value, 0.0 if found is None else float(np.std(found, ddof=1) * math.sqrt(size / n))


def _resampled(measure: Callable[[np.ndarray], float | None], n: int, size: int, seed: int) -> list[float] | None:
    """What is measured on rows drawn with replacement (Efron 1979), where it is known; None if mostly it is not."""
    rng = np.random.default_rng(seed)
    found = [measure(rng.integers(n, size=size)) for _ in range(RESAMPLES)]
    known_ones = [x for x in found if x is not None]
    return known_ones if 2 * len(known_ones) >= RESAMPLES else None


def _quietly(scorer: Scorer, model: BaseEstimator, X: np.ndarray, values: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(scorer(model, X, values))


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of independent values and its standard error."""
    if len(values) < 2:
        return float(values.mean()), 0.0
    # s / sqrt(n)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def mean_interval(values: np.ndarray) -> Interval:
    """The mean of independent values, and its 95 % interval by Student's t."""
    mean, error = mean_and_error(values)
    # mean +- t_{n-1}(.975) s / sqrt(n), with s the standard deviation of the n values
    half = float(stats.t.ppf(0.975, max(len(values) - 1, 1))) * error
    return Interval(mean, mean - half, mean + half)


def paired_interval(a: np.ndarray, b: np.ndarray) -> Interval:
    """Mean of a - b over rows, and its 95 % interval by Student's t."""
    return mean_interval(a - b)


def paired_scores(scorer: Scorer, a: np.ndarray, b: np.ndarray, values: np.ndarray, seed: int) -> Interval | None:
    """Score of a minus that of b, and its 95 % interval by the percentiles of resampled rows (Efron 1979).

    None where a score is not known, or on most resamples.
    """

    def difference(rows: np.ndarray | None = None) -> float | None:
        mine, other = score(scorer, a, values, rows), score(scorer, b, values, rows)
        return None if mine is None or other is None else mine - other

    whole, n = difference(), len(values)
    found = None if whole is None else _resampled(difference, n, n, seed)
    if whole is None or found is None:
        return None
    # both models on the same resampled rows: what they share drops out
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(whole, float(low), float(high))
