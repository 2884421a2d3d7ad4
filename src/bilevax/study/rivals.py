"""What a user would have otherwise: two lines of scikit-learn, each fitted to the same rows."""

import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from sklearn import config_context
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import GammaRegressor, LassoCV, LogisticRegressionCV, PoissonRegressor, RidgeCV
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, StratifiedKFold

from bilevax.core.run_records import Task
from bilevax.linalg.columns import Matrix
from bilevax.sklearn.threads import one_thread
from bilevax.study.preparation import Prepared, encoder_of
from bilevax.study.settings import TuneSettings
from bilevax.tables.table import Column, Table

FOLDS, PENALTIES = 5, 20

_LEVELS = 250
"""Categories that gradient boosting is given, at most: the most frequent ones."""

_CHEAP = 2e8
"""Cells times scores up to which a linear model is fitted to a grid of l1 penalties: a minute or so."""


class Rival(NamedTuple):
    """A fitted model.

    Attributes:
        name: what it is.
        prediction: probabilities [test rows, C], or means [test rows].
        seconds: to choose and fit it.
        converged: False if a solver used up its iterations.
    """

    name: str
    prediction: np.ndarray
    seconds: float
    converged: bool


RIDGE = "linear model, one penalty"
LASSO = "linear model, one L1 penalty"
BOOSTING = "gradient boosting"
NAMES = RIDGE, BOOSTING, LASSO


def rivals(prepared: Prepared, settings: TuneSettings, stage: Callable[[str], object]) -> Iterator[Rival]:
    """Each rival, fitted when it is asked for.

    Linear models are given standardised numbers, their missing cells at the median and marked, and categories as 0 and
    1; a penalty is the best of 20 by five folds. Gradient boosting is scikit-learn's, as it comes; it reads no texts.

    Args:
        prepared: the rows.
        settings: class weights, groups, exposures, and the seed.
        stage: called with the name of the one that begins.
    """
    rows, target = prepared.tuning, prepared.target
    fitted, splits = partial(_fitted, prepared, settings, stage), _folds(prepared, settings)
    encoder = encoder_of(settings).fit(prepared.features.take(rows))
    weight: dict[str, str | None] = {} if target.labels is None else {"class_weight": settings.class_weight}
    X = encoder.transform(prepared.features)
    yield fitted(RIDGE, _ridge(target.task, splits, weight, settings), X)
    if others := [name for name in prepared.features.names if name not in settings.texts]:
        trees = boosted_columns(prepared.features.select(others), rows)
        yield fitted(BOOSTING, _boosting(target.task, trees, settings.seed, weight), trees.X)
    classes = len(target.labels.classes) if target.labels else 1
    l1, scores = _lasso(target.task, splits, weight, classes), classes if classes > 2 else 1
    if l1 is not None and len(rows) * X.shape[1] * scores * scores <= _CHEAP:
        yield fitted(LASSO, l1, X)


def _fitted(
    prepared: Prepared,
    settings: TuneSettings,
    stage: Callable[[str], object],
    name: str,
    model: BaseEstimator,
    X: Matrix,
) -> Rival:
    stage(f"fitting: {name}")
    start, rows, test = time.perf_counter(), prepared.tuning, prepared.split.test
    y, exposure, weight = prepared.target.values[rows], prepared.exposures(settings), {}
    if exposure is not None:
        # of a count y log(e mu) - e mu is e times the log-likelihood of the rate y / e; of an amount it is that itself
        y, weight = y / exposure[rows], {"sample_weight": exposure[rows]} if prepared.target.task == "count" else {}
    # of both libraries: threads that wait take the time of others
    with (
        one_thread(openmp=True),
        config_context(enable_metadata_routing=bool(weight)),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(X[rows], y, **weight)
    seconds = time.perf_counter() - start
    prediction = model.predict_proba(X[test]) if prepared.target.labels is not None else model.predict(X[test])
    if exposure is not None:
        prediction = prediction * exposure[test]
    return Rival(name, prediction, seconds, not caught)


def _folds(prepared: Prepared, settings: TuneSettings) -> list[tuple[np.ndarray, np.ndarray]]:
    rows, groups = prepared.tuning, prepared.groups(settings)
    if groups is not None:
        return list(GroupKFold(min(FOLDS, len(np.unique(groups[rows])))).split(rows, groups=groups[rows]))
    codes = prepared.target.codes[rows]
    if prepared.target.labels is not None and np.bincount(codes).min() >= FOLDS:
        return list(StratifiedKFold(FOLDS, shuffle=True, random_state=settings.seed).split(rows, codes))
    return list(KFold(FOLDS, shuffle=True, random_state=settings.seed).split(rows))


def _ridge(
    task: Task, folds: list[tuple[np.ndarray, np.ndarray]], weight: dict[str, str | None], settings: TuneSettings
) -> BaseEstimator:
    if task == "classes":
        return _logistic(folds, weight, Cs=PENALTIES, l1_ratios=(0.0,), max_iter=1000)
    if task == "number":
        return RidgeCV(np.geomspace(1e-3, 1e5, PENALTIES))
    kind, grid = PoissonRegressor if task == "count" else GammaRegressor, np.geomspace(1e-6, 1e2, PENALTIES)
    model = kind(solver="newton-cholesky", max_iter=1000)
    scorer = get_scorer(f"neg_mean_{'poisson' if task == 'count' else 'gamma'}_deviance")
    if settings.exposure is not None and task == "count":
        with config_context(enable_metadata_routing=True):
            model.set_fit_request(sample_weight=True)
            scorer.set_score_request(sample_weight=True)
    return GridSearchCV(model, {"alpha": grid}, cv=folds, scoring=scorer)


def _lasso(
    task: Task, folds: list[tuple[np.ndarray, np.ndarray]], weight: dict[str, str | None], classes: int
) -> BaseEstimator | None:
    """None for counts and amounts: scikit-learn has none."""
    if task == "number":
        return LassoCV(cv=folds, max_iter=10_000)
    if task != "classes":
        return None
    if classes == 2:
        return _logistic(folds, weight, Cs=10, l1_ratios=(1.0,), solver="liblinear", intercept_scaling=100.0)
    return _logistic(folds, weight, Cs=10, l1_ratios=(1.0,), solver="saga", tol=1e-2, max_iter=200)


def _logistic(
    folds: list[tuple[np.ndarray, np.ndarray]], weight: dict[str, str | None], **options: object
) -> BaseEstimator:
    return LogisticRegressionCV(
        cv=folds, scoring="neg_log_loss", random_state=0, use_legacy_attributes=False, **weight, **options
    )


def _boosting(task: Task, columns: "BoostedColumns", seed: int, weight: dict[str, str | None]) -> BaseEstimator:
    options = {"categorical_features": columns.categories, "random_state": seed}
    if task == "classes":
        return HistGradientBoostingClassifier(**options, **weight)
    loss = {"number": "squared_error", "count": "poisson", "amount": "gamma"}[task]
    return HistGradientBoostingRegressor(loss=loss, **options)


class BoostedColumns(NamedTuple):
    """Columns as gradient boosting takes them: numbers, and codes of categories; NaN where missing or rare."""

    X: np.ndarray
    categories: np.ndarray


def boosted_columns(features: Table, rows: np.ndarray) -> BoostedColumns:
    """The columns of all rows, with the levels of some, [n, p]."""
    X = np.column_stack([_codes(c, rows) if c.kind == "text" else c.values for c in features.columns])
    return BoostedColumns(X, np.array([column.kind == "text" for column in features.columns]))


def _codes(column: Column, rows: np.ndarray) -> np.ndarray:
    cells = column.as_text().values
    there = [cell for cell in cells[rows].tolist() if cell is not None]
    levels, count = np.unique(np.array(there, dtype=str), return_counts=True)
    kept = levels[np.argsort(-count, kind="stable")[:_LEVELS]].tolist()
    code = {level: float(k) for k, level in enumerate(kept)}
    return np.array([code.get(cell, np.nan) for cell in cells.tolist()])
