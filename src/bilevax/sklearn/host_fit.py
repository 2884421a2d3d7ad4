"""Logistic regression with tuned penalties on the host: sparse rows, and penalties that are tied.

Nothing is compiled, and nothing made dense. Columns are not centred: no intercept is penalised, so that the weights are
the same. Those that are 0 in most rows keep their unit, like those of 0 and 1: what few rows have, divided by its small
standard deviation, would hardly be penalised. The others are divided by theirs.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state

from bilevax.core.codes import Code
from bilevax.core.errors import DataError
from bilevax.core.events import Event
from bilevax.linalg.columns import Matrix, are_zero_one, column_moments, divide_columns
from bilevax.sklearn.penalty_search import Search, Step
from bilevax.sklearn.penalty_ties import Ties, log_frequency, tied
from bilevax.sklearn.row_splits import deal_folds, validation_rows
from bilevax.sklearn.threads import one_thread
from bilevax.sklearn.tuning_method import MANY_ROWS
from bilevax.solvers.logistic_models import ClassRows, LogisticModels

if TYPE_CHECKING:
    from bilevax.sklearn.penalised import RowWeights

FEW = 25
"""Numbers that are tuned up to which no rows validate: the cross-validated loss has little to overfit with."""

LEAST = 1e-100
"""Of the first single penalty: there is nothing to learn where it would be 0."""

LOWEST = 1e-8
"""The last single penalty that is tried against the first, the trace of the Hessian."""

TOLERANCES = 1e-3, 3e-4
"""Of the models on the path of single penalties, and along the descent."""

FINAL = 1e-5
"""Of the final model."""


class Tuned(NamedTuple):
    """What tuning found.

    Attributes:
        coef: in the units of X, [C, p].
        intercept: [C].
        scale: that columns were divided by, [p].
        penalties: on the scaled columns, [p] or [p, C].
        start_penalty: the single one.
        validation_loss: of the chosen step; None where no rows validate.
        gap: how much of the fall of the tuning loss the validation rows do not confirm, and its standard error.
        chosen: the step.
        search: with its history.
        visits: rows read.
    """

    coef: np.ndarray
    intercept: np.ndarray
    scale: np.ndarray
    penalties: np.ndarray
    start_penalty: float
    validation_loss: float | None
    gap: tuple[float, float]
    chosen: Step
    search: Search
    visits: int


def tune_on_host(
    X: Matrix,
    y: np.ndarray,
    weights: "RowWeights",
    *,
    classes: int,
    per: str | np.ndarray,
    blocks: np.ndarray,
    groups: ArrayLike | None,
    validation: ArrayLike | None,
    validation_fraction: float,
    steps: int,
    random_state: int | np.random.RandomState | None,
    callback: Callable[[Event], bool | None] | None,
) -> Tuned:
    """Tune the penalties by the cross-validated loss, then train on every row, in one thread.

    Args:
        X: features [n, p], dense or sparse.
        y: classes, [n].
        weights: of the rows.
        classes: how many.
        per: ``"frequency"``, ``"feature"``, ``"class"``, ``"weight"``, ``"global"``, or the group of each column [p].
        blocks: of columns that have a level each with ``"frequency"``, [p].
        groups: as in ``fit``.
        validation: as in ``fit``.
        validation_fraction: of the rows, where more than FEW numbers are tuned.
        steps: at most so many.
        random_state: of the folds and the validation rows.
        callback: as in ``fit``.
    """
    random = check_random_state(random_state)
    seed = int(random.randint(2**31 - 1))
    numbers = _ties(X, weights.sample, per, blocks, classes).groups
    validated = np.zeros(len(y), bool)
    if validation is not None or numbers > FEW:
        validated = validation_rows(y, groups, validation, validation_fraction, seed)
    train = np.flatnonzero(~validated)
    scale = _scales(X[train], weights.sample[train])
    Z = divide_columns(X, scale)
    K = 5 if len(train) <= MANY_ROWS else 3
    fold = deal_folds(y[train], None if groups is None else np.asarray(groups)[train], K, random)
    fold = _always_trained(fold, y[train])
    ties = _ties(Z[train], weights.sample[train], per, blocks, classes)
    inner, outer = (np.asarray(weight, np.float64) for weight in (weights.training, weights.held_out))
    if validated.any():
        outer = outer / outer[validated].mean()
    with one_thread():
        models = LogisticModels(
            Z[train],
            y[train],
            fold,
            int(fold.max()) + 1,
            classes=classes,
            weight=inner[train],
            held_weight=outer[train],
        )
        held = ClassRows.of(Z[validated], y[validated], outer[validated], classes)
        search = Search(models, ties, lambda _: models.row_losses(held), _recorded(callback, models), TOLERANCES)
        search.run(max(models.largest_curvature(), LEAST), steps, lowest=LOWEST)
        step = search.decided()
        l1, penalties = ties.penalties(step.lam)
        final = LogisticModels(Z, y, np.full(len(y), -1), 1, classes=classes, weight=inner)
        final.begin(step.weights.mean(axis=0), step.bias.mean(axis=0))
        final.solve(l1, penalties, FINAL)
    start = search.start
    gap, error = _gap(start, search.best)
    return Tuned(
        coef=final.weights[0].T / scale,
        intercept=final.bias[0].copy(),
        scale=scale,
        penalties=penalties,
        start_penalty=float(np.ravel(ties.penalties(start.lam)[1])[0]),
        validation_loss=step.score if step.row_losses.size else None,
        gap=(gap, error),
        chosen=step,
        search=search,
        visits=models.visits,
    )


def _ties(X: Matrix, weight: np.ndarray, per: str | np.ndarray, blocks: np.ndarray, classes: int) -> Ties:
    p, outputs, rows = X.shape[1], 1 if classes == 2 else classes, float(weight.sum())
    if not isinstance(per, str):
        return tied(per, rows=rows)
    if per == "frequency":
        return tied(blocks, powers=log_frequency(X, weight, blocks), rows=rows)
    group = np.arange(p) if per in ("feature", "weight") else np.zeros(p, int)
    return tied(group, classes=outputs if per in ("class", "weight") else None, rows=rows)


def _scales(X: Matrix, weight: np.ndarray) -> np.ndarray:
    """Standard deviations; 1 of columns that are 0 in most rows, or 0 or 1 in all."""
    mostly_zero = np.asarray((X != 0.0).sum(axis=0)).ravel() <= 0.5 * X.shape[0]
    return np.where(mostly_zero | are_zero_one(X), 1.0, column_moments(X, weight)[1])


def _always_trained(fold: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rows of a class that is in one fold alone are in every model: none could know it else."""
    folds_of = scipy.sparse.csr_array((np.ones(len(y)), (y, fold))) > 0
    lonely = np.asarray(folds_of.sum(axis=1)).ravel() < 2
    fold = np.where(lonely[y], -1, fold)
    # no fold may be left without a row
    fold[fold >= 0] = np.unique(fold[fold >= 0], return_inverse=True)[1]
    if fold.max() < 0:
        raise DataError("every class has rows in one fold alone, so that none can be held out; pass more rows")
    return fold


def _recorded(
    callback: Callable[[Event], bool | None] | None, models: LogisticModels
) -> Callable[[Event], bool | None]:
    """The record of a step as other methods have it."""

    def told(record: Event) -> bool | None:
        record.pop("selected")
        record.update(visits=models.visits, code=Code.OK.name)
        return callback(record) if callback else None

    return told


def _gap(start: Step, best: Step) -> tuple[float, float]:
    """Change of the validation loss less that of the tuning loss, and its standard error; NaN without such rows."""
    if not best.row_losses.size:
        return np.nan, np.nan
    change = best.row_losses - start.row_losses
    return float(change.mean() - (best.loss - start.loss)), float(change.std() / np.sqrt(len(change)))
