"""What a user would have without bilevax: a single penalty from a grid."""

import time
import warnings
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from bilevax.linalg.columns import are_zero_one
from bilevax.study.judging import row_losses
from bilevax.tables.labels import Label

ClassWeight: TypeAlias = Literal["balanced"] | dict[Label, float] | None


class Baseline(NamedTuple):
    """A fitted rival.

    Attributes:
        model: standardisation and logistic regression, fitted on training and validation rows.
        c: scikit-learn's C, the inverse of the penalty on the sum of the losses.
        validation_loss: log-loss on the validation rows of the model with this C, fitted on the training rows.
        seconds: the whole search and the refit; without a search, the fit.
        refit_seconds: the last fit alone.
        converged: False if a fit of the search, or the refit, used up its iterations.
        grid: the values of C that were tried.
        grid_losses: the validation log-loss of each.
    """

    model: Pipeline
    c: float
    validation_loss: float
    seconds: float
    refit_seconds: float
    converged: bool
    grid: np.ndarray
    grid_losses: np.ndarray


def single_penalty_grid(
    X: np.ndarray,
    y: np.ndarray,
    validation: np.ndarray,
    *,
    points: int = 20,
    class_weight: ClassWeight = None,
    max_iter: int = 1000,
    warm_start: bool = True,
) -> Baseline:
    """Logistic regression with the best C of a log grid from 1e-4 to 1e4.

    Each C is fitted on the training rows, beginning with the largest penalty and each next one where the last ended;
    the C of the least validation log-loss is fitted again on training and validation rows.

    Args:
        X: features, [n, p].
        y: labels, [n].
        validation: True for the rows that choose C, bool [n].
        points: values of C.
        class_weight: as in scikit-learn.
        max_iter: of each fit.
        warm_start: False begins every fit at zero, as a grid search over separate models does.
    """
    regression = LogisticRegression(class_weight=class_weight, max_iter=max_iter, warm_start=warm_start)
    return _search(X, y, validation, np.logspace(-4, 4, points), regression)


def _search(
    X: np.ndarray, y: np.ndarray, validation: np.ndarray, grid: np.ndarray, regression: LogisticRegression
) -> Baseline:
    start = time.perf_counter()
    validation = np.asarray(validation, bool)
    # Means and scales are those of the training rows, in the refit too; categories stay 0 and 1.
    scaler = StandardScaler().fit(X[~validation])
    scaler.scale_[are_zero_one(X[~validation])] = 1.0
    scaled = scaler.transform(X)
    classes, codes = np.unique(y, return_inverse=True)
    losses, converged = [], True
    for c in grid.tolist():
        converged &= _fit(regression.set_params(C=c), scaled[~validation], y[~validation])
        losses.append(_validation_loss(regression, scaled[validation], codes[validation], classes))
    c = float(grid[np.argmin(losses)])
    searched = time.perf_counter()
    # An unfitted clone: the refit does not begin where the search ended.
    final = clone(regression).set_params(C=c)
    converged &= _fit(final, scaled, y)
    end = time.perf_counter()
    return Baseline(
        model=Pipeline([("scale", scaler), ("logistic", final)]),
        c=c,
        validation_loss=min(losses),
        seconds=end - start,
        refit_seconds=end - searched,
        converged=converged,
        grid=grid,
        grid_losses=np.array(losses),
    )


def _validation_loss(model: LogisticRegression, X: np.ndarray, codes: np.ndarray, classes: np.ndarray) -> float:
    # A class without a training row has probability 0.
    probabilities = np.zeros((len(X), len(classes)))
    probabilities[:, np.searchsorted(classes, model.classes_)] = model.predict_proba(X)
    return float(row_losses("classes", probabilities, codes).mean())


def _fit(model: LogisticRegression, X: np.ndarray, y: np.ndarray) -> bool:
    """Fit, and say whether it converged."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(X, y)
    return not caught
