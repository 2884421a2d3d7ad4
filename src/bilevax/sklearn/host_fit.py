"""Logistic regression with tuned penalties on the host: sparse rows, and penalties that are tied.

Nothing is compiled, and nothing made dense. Columns that are 0 in most rows keep their unit, like those of 0 and 1:
what few rows have, divided by its small standard deviation, would hardly be penalised. They are not centred, either: no
intercept is penalised, so that the weights are the same. The others are standardised.
"""

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state

from bilevax.core.codes import Code
from bilevax.core.errors import DataError, ParameterError
from bilevax.core.events import Callback, Event
from bilevax.linalg.columns import Matrix, are_zero_one, column_moments, divide_columns
from bilevax.sklearn.penalised import PenalisedModel, RowWeights
from bilevax.sklearn.penalty_search import LEAST, Pace, Search, Step
from bilevax.sklearn.penalty_ties import Ties, log_evidence, log_frequency, tied
from bilevax.sklearn.row_splits import deal_folds, validation_rows
from bilevax.sklearn.threads import one_thread
from bilevax.solvers.logistic_models import ClassRows, LogisticModels
from bilevax.solvers.ridge_scores import ridge, stacked

FEW = 25
"""Numbers that are tuned up to which no rows validate: the cross-validated loss has little to overfit with."""

SAY = 500
"""Rows from which on evidence is used by default; fewer say too little of a column."""

SMALL, SMALLER = 2000, 500
"""Rows up to which there are five folds, three of more; and up to which there are ten."""

FIRST, LOWEST = 1e-3, 1e-5
"""The first single penalty that is tried against the trace of the Hessian, and the last against it."""

PACE = Pace(path=7, worse=0.0, promise=0.03, rough=1e-2, fine=6e-3, first=0.5, flat=5e-4, worth=5e-4)
"""A fall of the loss by a ten-thousandth is far below what the rows can tell."""

SEARCHED = np.float32
"""Precision of the models of the search on sparse rows; all others have double precision."""

FINAL = 1e-3
"""Of the final model."""

RIDGES = 1.0, 0.3, 0.1, 0.03
"""Penalties of a ridge that are tried, by the mean square of a row."""

RESIDUAL = 1e-2
"""Of a ridge."""


def default_ties(rows: int, *, sparse: bool) -> str:
    """What penalties are tied to."""
    return "evidence" if sparse and rows >= SAY else "frequency"


class TunedOnHost(PenalisedModel):
    """A classifier of sparse rows, or of penalties that are tied; its ``fit`` ends in :meth:`_fit_on_host`."""

    classes_: np.ndarray

    def _fit_on_host(
        self,
        X: Matrix,
        y: np.ndarray,
        weights: RowWeights,
        *,
        per: str | np.ndarray,
        blocks: np.ndarray,
        groups: ArrayLike | None,
        validation: ArrayLike | None,
        callback: Callback | None,
    ) -> None:
        """Tune the penalties by the cross-validated loss, then train on every row, in one thread.

        Where more than FEW numbers are tuned, rows validate.

        Args:
            X: features [n, p], dense or sparse.
            y: classes, [n].
            weights: of the rows.
            per: ``"evidence"``, ``"frequency"``, ``"feature"``, ``"class"``, ``"weight"``, ``"global"``, or the group
                of each column [p].
            blocks: of columns that have a level each where penalties are tied, [p].
            groups: as in ``fit``.
            validation: as in ``fit``.
            callback: as in ``fit``.
        """
        if self.method == "stochastic":
            raise ParameterError("method='stochastic' takes neither sparse rows nor tied penalties")
        classes = len(self.classes_)
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31 - 1))
        numbers = _ties(X, weights.sample, per, blocks, classes).groups
        validated = np.zeros(len(y), bool)
        if validation is not None or numbers > FEW:
            validated = validation_rows(y, groups, validation, self.validation_fraction, seed)
        train = np.flatnonzero(~validated)
        mean, scale = _moments(X[train], weights.sample[train])
        # z = (x - mean) / scale
        Z = divide_columns(_less(X, mean), scale)
        precision = SEARCHED if scipy.sparse.issparse(Z) else np.float64
        fold = _folds(y[train], None if groups is None else np.asarray(groups)[train], random)
        ties = _ties(Z[train], weights.sample[train], per, blocks, classes)
        by_evidence = isinstance(per, str) and per == "evidence"
        inner, outer = (np.asarray(weight, np.float64) for weight in (weights.training, weights.held_out))
        if validated.any():
            outer = outer / outer[validated].mean()
        with one_thread():
            models = LogisticModels(
                Z[train].astype(precision),
                y[train],
                fold,
                int(fold.max()) + 1,
                classes=classes,
                weight=inner[train],
                held_weight=outer[train],
                scaled=ties.groups > 1 or by_evidence,
            )
            ties = _begun(ties, models, blocks if by_evidence else None)
            held = ClassRows.of(Z[validated].astype(precision), y[validated], outer[validated], classes)
            search = Search(models, ties, lambda _: models.row_losses(held), _recorded(callback, models), PACE)
            search.run(FIRST * models.largest_curvature(), self.steps, lowest=LOWEST)
            step = search.decided()
            final, penalties = _trained(Z, y, inner, classes, step, ties, blocks)
            # s theta of the logistic model; with a ridge beside it a (s theta) + b theta_ridge
            theta = step.scale * np.concatenate([final.weights[0], final.bias])
            alpha, (a, b) = _beside(models, step, np.exp(ties.usual)) if by_evidence else (0.0, (1.0, 0.0))
            if b > 0.0:
                theta = a * theta + b * ridge(final.trained[0], alpha, RESIDUAL)
        # theta' (x - mean) / scale = (theta / scale)' x - (mean / scale)' theta
        self._set_coefficients(theta[:-1].T / scale, theta[-1] - (mean / scale) @ theta[:-1])
        self.feature_mean_, self.feature_scale_ = mean, scale
        self.score_scale_, self.ridge_ = a * step.scale, (alpha, b)
        self.penalties_ = _as_told(penalties, per)
        self.start_penalty_ = float(np.ravel(ties.penalties(search.start.lam)[1])[0])
        self.visits_, self.code_ = models.visits, Code.OK
        self._record_search(search, step)

    def _record_search(self, search: Search, step: Step) -> None:
        self.validation_loss_ = step.score if step.row_losses.size else None
        self.validation_gap_, self.validation_gap_se_ = _gap(search.start, search.best)
        self.method_ = "deterministic"
        self.method_reason_ = "rows are sparse, or penalties tied: every row is read, and nothing compiled"
        self.history_, self.n_iter_ = search.history, max(1, len(search.history))
        self.chosen_step_, self.interrupted_ = step.number, search.interrupted


def _folds(y: np.ndarray, groups: np.ndarray | None, random: np.random.RandomState) -> np.ndarray:
    """The fold of each training row, -1 of those that every model is trained on."""
    K = 10 if len(y) <= SMALLER else 5 if len(y) <= SMALL else 3
    return _always_trained(deal_folds(y, groups, K, random), y)


def _begun(ties: Ties, models: LogisticModels, blocks: np.ndarray | None) -> Ties:
    """What the models tell of usual penalties and, of these blocks of columns, of the evidence for them."""
    # with which scores have the variance 1, before any label
    ties = ties._replace(usual=np.log(max(4.0 * models.largest_curvature() / models.trained_on.max(), LEAST)))
    if blocks is None:
        return ties
    return ties._replace(evidence=np.stack([log_evidence(rows, blocks) for rows in models.trained]))


def _trained(
    Z: Matrix, y: np.ndarray, weight: np.ndarray, classes: int, step: Step, ties: Ties, blocks: np.ndarray
) -> tuple[LogisticModels, np.ndarray]:
    """The model of every row, and its penalties on the scaled columns."""
    final = LogisticModels(Z, y, np.full(len(y), -1), 1, classes=classes, weight=weight)
    if ties.evidence is not None:
        ties = ties._replace(evidence=log_evidence(final.trained[0], blocks))
    l1, penalties = ties.penalties(step.lam)
    final.begin(step.weights.mean(axis=0), step.bias.mean(axis=0))
    final.solve(l1, penalties, FINAL)
    return final, penalties


def _beside(models: LogisticModels, step: Step, square: float) -> tuple[float, tuple[float, float]]:
    """The penalty of a ridge whose scores are added, and the weights (a, b) of both, by the held-out loss."""
    thetas = np.concatenate([step.weights, step.bias[:, None]], axis=1)
    # each row by the models that have not seen it
    S = [step.scale * held.scores(theta) for held, theta in zip(models.held, thetas, strict=True)]
    found = []
    for alpha in square * np.array(RIDGES):
        pairs = zip(models.held, models.trained, strict=True)
        loss, weights = stacked(models.held, S, [held.scores(ridge(rows, alpha, RESIDUAL)) for held, rows in pairs])
        found.append((loss, float(alpha), weights))
    return min(found)[1:]


def _ties(X: Matrix, weight: np.ndarray, per: str | np.ndarray, blocks: np.ndarray, classes: int) -> Ties:
    p, outputs, rows = X.shape[1], 1 if classes == 2 else classes, float(weight.sum())
    if not isinstance(per, str):
        return tied(per, rows=rows)
    if per in ("frequency", "evidence"):
        return tied(blocks, powers=log_frequency(X, weight, blocks), rows=rows)
    group = np.arange(p) if per in ("feature", "weight") else np.zeros(p, int)
    return tied(group, classes=outputs if per in ("class", "weight") else None, rows=rows)


def _moments(X: Matrix, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations; 0 and 1 of columns that are 0 in most rows, or 0 or 1 in all.

    In a table that is mostly 0 no column is made larger: the weighted counts of a word that most texts have are small
    because it says little.
    """
    times = np.asarray((X != 0.0).sum(axis=0)).ravel()
    # columns that are mostly 0, and marks, stay where they are
    kept = (times <= 0.5 * X.shape[0]) | are_zero_one(X)
    mean, scale = column_moments(X, weight)
    if times.sum() <= 0.5 * X.shape[0] * X.shape[1]:
        scale = np.maximum(scale, 1.0)
    return np.where(kept, 0.0, mean), np.where(kept, 1.0, scale)


def _less(X: Matrix, mean: np.ndarray) -> Matrix:
    """X less the means of its columns; of sparse ones few are not 0."""
    if not scipy.sparse.issparse(X):
        return X - mean
    # indices of 64 bits would slow every product
    rows, full = np.arange(X.shape[0], dtype=np.int32), np.flatnonzero(mean).astype(np.int32)
    at = np.repeat(rows, len(full)), np.tile(full, len(rows))
    return scipy.sparse.csr_array(X - scipy.sparse.csr_array((np.tile(mean[full], len(rows)), at), shape=X.shape))


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


def _recorded(callback: Callback | None, models: LogisticModels) -> Callback:
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
    # (fall of the tuning loss) - (fall of the validation loss), by rows
    change = best.row_losses - start.row_losses
    return float(change.mean() - (best.loss - start.loss)), float(change.std() / np.sqrt(len(change)))


def _as_told(penalties: np.ndarray, per: str | np.ndarray) -> np.ndarray:
    """One number, [C], [C, p] or [p], as the parameter says it."""
    told: np.ndarray = penalties[0] if isinstance(per, str) and per in ("global", "class") else penalties.T
    return told
