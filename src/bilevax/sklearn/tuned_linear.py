"""What linear models on the host share: rows split, penalties searched for, one model trained on every row."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Integral, Real
from typing import ClassVar, TypeAlias

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.model_selection import BaseCrossValidator, check_cv
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from bilevax.core.errors import ParameterError
from bilevax.core.events import Event
from bilevax.linalg.columns import Matrix, column_moments, divide_columns, linear_scores
from bilevax.sklearn.frames import check_sample_weight, select
from bilevax.sklearn.penalty_search import LOWEST, Search, Shares, Tying
from bilevax.sklearn.row_splits import deal_folds, validation_rows
from bilevax.sklearn.threads import one_thread
from bilevax.solvers.l1_models import CrossFitted

Folds: TypeAlias = int | BaseCrossValidator | list[tuple[np.ndarray, np.ndarray]]
"""How many folds, or what yields the rows to train on and those to hold out."""

LEAST = 1e-100
"""Of the penalty that the path begins with: there is nothing to learn where it would be 0."""

VALIDATION = 0.25
"""Share of the rows that validate where many penalties are tuned."""


class TunedLinear(BaseEstimator, ABC):
    """A linear model whose penalties descend the hypergradient of the cross-validated loss; ``fit`` ends in _fit.

    For the parameters and attributes that all share, see :class:`~bilevax.sklearn.TunedElasticNet`.
    """

    _parameter_constraints: ClassVar[dict[str, list[object]]] = {
        "penalty_per": [StrOptions({"global", "feature"}), "array-like"],
        "standardize": ["boolean"],
        "cv": [Interval(Integral, 2, None, closed="left"), HasMethods(["split", "get_n_splits"]), list],
        "validation_fraction": [Interval(Real, 0, 1, closed="left"), None],
        "steps": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }
    _lowest: ClassVar[float] = LOWEST

    penalty_per: str | ArrayLike
    standardize: bool
    cv: Folds
    validation_fraction: float | None
    steps: int
    random_state: int | np.random.RandomState | None

    @abstractmethod
    def _models(self, X: Matrix, y: np.ndarray, weight: np.ndarray, fold: np.ndarray, K: int) -> CrossFitted:
        """K models, each trained without one fold; fold -1 is in all."""

    @abstractmethod
    def _losses(self, scores: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Loss of each row, like the scores, [n, K]; y is [n, 1]."""

    @abstractmethod
    def _ratio(self) -> float | None:
        """The share of l1; None if it is tuned."""

    @abstractmethod
    def _largest(self, models: CrossFitted) -> float:
        """The penalty that the path begins with."""

    def _kept(self, l1: np.ndarray, l2: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Penalties of the final model on every row, from those of models that were trained on a share of them."""
        return l1, l2

    def _fit(
        self,
        X: Matrix,
        y: np.ndarray,
        weight: np.ndarray,
        *,
        strata: np.ndarray,
        groups: ArrayLike | None,
        validation: ArrayLike | None,
        callback: Callable[[Event], bool | None] | None,
    ) -> None:
        """Search for the penalties, then train the model, in one thread: the matrices are small.

        Args:
            X: features, float64 [n, p], dense or CSC.
            y: targets as the models take them, [n].
            weight: of the rows, [n]; one of weight 0 is seen by a splitter alone.
            strata: classes that folds and validation rows have in equal shares, [n].
            groups: as in ``fit``.
            validation: as in ``fit``.
            callback: as in ``fit``.
        """
        there = weight > 0.0
        with one_thread():
            random = check_random_state(self.random_state)
            shares = Shares(self._group(X.shape[1]), self._ratio())
            validated = self._validated(shares, strata, groups, validation, there, int(random.randint(2**31 - 1)))
            train, held_out, split = there & ~validated, there & validated, ~validated
            Z = self._standardized(X, train, weight)
            folds = self._folds(select(Z, split), strata[split], select(groups, split), there[split], random)
            held, targets, held_weight = Z[held_out], y[held_out][:, None], weight[held_out]
            if held_out.any():
                held_weight = held_weight / held_weight.mean()
            search = Search(
                self._models(select(Z, train), y[train], weight[train], folds, int(folds.max()) + 1),
                shares,
                lambda models: held_weight * self._losses(held @ models.weights + models.bias, targets).mean(axis=1),
                callback,
            )
            # 0 where the target or every column is constant
            search.run(max(self._largest(search.models), LEAST), self.steps, lowest=self._lowest)
            self._train(select(Z, there), y[there], weight[there], search)

    def _validated(
        self,
        shares: Shares,
        strata: np.ndarray,
        groups: ArrayLike | None,
        validation: ArrayLike | None,
        there: np.ndarray,
        seed: int,
    ) -> np.ndarray:
        """True for validation rows, [n]."""
        # those that are given, or a fraction of the rows with a weight
        out = np.zeros(len(strata), bool) if validation is None else np.array(validation, bool)
        # Several penalties would overfit the cross-validated loss; one cannot.
        fraction = self.validation_fraction
        if fraction is None:
            fraction = VALIDATION if shares.groups > 1 else 0.0
        if fraction or validation is not None:
            groups, validation = select(groups, there), select(validation, there)
            out[there] = validation_rows(strata[there], groups, validation, fraction, seed)
        return out

    def _group(self, p: int) -> np.ndarray:
        """Number of the penalty of each column, [p]."""
        if isinstance(self.penalty_per, str):
            return np.arange(p) if self.penalty_per == "feature" else np.zeros(p, int)
        group = np.asarray(self.penalty_per)
        if group.shape != (p,) or group.dtype.kind not in "iu" or group.min() < 0:
            raise ParameterError(
                f"penalty_per must be 'global', 'feature', or the group number of each of the {p} columns, from 0"
            )
        return group

    def _standardized(self, X: Matrix, train: np.ndarray, weight: np.ndarray) -> Matrix:
        """Columns about their means and by their scales, of the training rows; sparse ones are not moved."""
        sparse = scipy.sparse.issparse(X)
        mean, scale = column_moments(select(X, train), weight[train])
        self.feature_mean_ = np.zeros_like(mean) if sparse else mean
        self.feature_scale_ = scale if self.standardize else np.ones_like(scale)
        return divide_columns(X if sparse else X - mean, self.feature_scale_)

    def _folds(
        self, X: Matrix, strata: np.ndarray, groups: np.ndarray | None, there: np.ndarray, random: np.random.RandomState
    ) -> np.ndarray:
        """Fold of each training row that is there."""
        if isinstance(self.cv, Integral):
            return deal_folds(strata[there], select(groups, there), int(self.cv), random)
        folds, times = np.full(len(strata), -1), np.zeros(len(strata), int)
        for k, (_, rows) in enumerate(check_cv(self.cv).split(X, strata, groups)):
            if np.asarray(rows).dtype != bool and np.max(rows, initial=0) >= len(folds):
                raise ParameterError(f"cv holds out row {np.max(rows)} of {len(folds)}; count those that train alone")
            folds[rows] = k
            times[rows] += 1
        if np.any(times != 1):
            raise ParameterError("cv must hold out every row once, as KFold does, so that each has one model to test")
        # numbered from 0 without a gap: a fold may have lost its rows to weights of 0
        return np.unique(folds[there], return_inverse=True)[1]

    def _train(self, Z: Matrix, y: np.ndarray, weight: np.ndarray, search: Search) -> None:
        """The final model, on every row."""
        step = search.decided()
        l1, l2 = self._kept(*search.shares.penalties(step.lam), float(search.models.trained_on.mean() / weight.sum()))
        final = self._models(Z, y, weight, np.full(len(y), -1), 1)
        final.begin(step.weights.mean(axis=1), float(step.bias.mean()))
        final.solve(l1, l2)
        self._keep(final, l1, l2, search.shares)
        # weights (x - mean) / scale + bias = coef x + (bias - coef mean)
        self._coef = final.weights[:, 0] / self.feature_scale_
        self._intercept = float(final.bias[0] - self._coef @ self.feature_mean_)
        self.history_, self.n_iter_ = search.history, max(1, len(search.history))
        self.path_ = np.array(search.path)
        self.cv_loss_ = step.loss
        self.validation_loss_ = step.score if step.row_losses.size else None
        self.chosen_step_, self.interrupted_ = step.number, search.interrupted

    @abstractmethod
    def _keep(self, final: CrossFitted, l1: np.ndarray, l2: np.ndarray, shares: Tying) -> None:
        """Keep the penalties under scikit-learn's names."""

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class TunedRegressor(RegressorMixin, TunedLinear):
    """One that predicts a number."""

    def _fit_numbers(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None,
        groups: ArrayLike | None,
        validation: ArrayLike | None,
        callback: Callable[[Event], bool | None] | None,
    ) -> None:
        """``fit``, of numbers y [n]."""
        self._validate_params()
        options = {"accept_sparse": "csc", "dtype": np.float64, "ensure_min_samples": 2}
        rows, numbers = validate_data(self, X, y, y_numeric=True, **options)
        numbers = numbers.astype(np.float64)
        weight = check_sample_weight(sample_weight, numbers)
        # about the mean of the target, which the intercept gets back
        mean, strata = np.average(numbers, weights=weight), np.zeros(len(numbers), int)
        self._fit(rows, numbers - mean, weight, strata=strata, groups=groups, validation=validation, callback=callback)
        self.coef_, self.intercept_ = self._coef, self._intercept + mean

    def predict(self, X: ArrayLike) -> np.ndarray:
        """x . coef + intercept of each row, [n]."""
        check_is_fitted(self)
        rows = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        return linear_scores(rows, self.coef_, self.intercept_)

    def _losses(self, scores: np.ndarray, y: np.ndarray) -> np.ndarray:
        # half the squared error
        losses: np.ndarray = 0.5 * (scores - y) ** 2
        return losses
