"""What linear models on the host share: rows split, penalties searched for, one model trained on every row."""

from abc import ABC, abstractmethod
from numbers import Integral, Real
from typing import ClassVar, Self, TypeAlias

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.model_selection import BaseCrossValidator, check_cv
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from bilevax.core.errors import ParameterError
from bilevax.core.events import Callback
from bilevax.core.limits import said
from bilevax.linalg.columns import Matrix, column_moments, divide_columns, linear_scores
from bilevax.sklearn.frames import check_sample_weight, group_numbers, select
from bilevax.sklearn.penalty_search import LOWEST, Search, Shares, Tying
from bilevax.sklearn.row_splits import deal_folds, validation_rows
from bilevax.sklearn.threads import one_thread
from bilevax.solvers.l1_models import CrossFitted
from bilevax.tables.memory import HELPS

Folds: TypeAlias = int | BaseCrossValidator | list[tuple[np.ndarray, np.ndarray]]
"""How many folds, or what yields the rows to train on and those to hold out."""

Given: TypeAlias = tuple[Matrix, np.ndarray, np.ndarray, np.ndarray]
"""Features [n, p], targets, weights and strata of the rows, [n] each."""

VALIDATION = 0.25
"""Share of the rows that validate where many penalties are tuned."""


class TunedLinear(BaseEstimator, ABC):
    """A linear model whose penalties descend the hypergradient of the cross-validated loss.

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

    def __init__(
        self,
        penalty_per: str | ArrayLike = "feature",
        *,
        standardize: bool = True,
        cv: Folds = 5,
        validation_fraction: float | None = None,
        steps: int = 50,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.penalty_per = penalty_per
        self.standardize = standardize
        self.cv = cv
        self.validation_fraction = validation_fraction
        self.steps = steps
        self.random_state = random_state

    @abstractmethod
    def _read(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None, validation: ArrayLike | None) -> Given:
        """What ``fit`` is given, checked."""

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

    @said("this fit", HELPS)
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        validation: ArrayLike | None = None,
        callback: Callback | None = None,
    ) -> Self:
        """Tune the penalties and train the model.

        Args:
            X: features, [n, p], dense or sparse.
            y: numbers, or labels of two classes, [n].
            sample_weight: of the rows, [n], in every loss: a row of weight 2 is as two, and one of weight 0 is not
                there. None: 1. They play no part in how rows are dealt out, nor in standard errors.
            groups: a group per row, [n]: no group is split between folds, or between training and validation.
            validation: True for validation rows, [n]; None: a random share.
            callback: called with a record after every step; returning True ends the tuning.

        Raises:
            ParameterError: a parameter is wrong.
            ValueError: scikit-learn's, on bad X and y; a class has too few rows.
        """
        self._validate_params()
        rows, y, weight, strata = self._read(X, y, sample_weight, validation)
        there = weight > 0.0
        with one_thread():
            random = check_random_state(self.random_state)
            shares = Shares(self._group(rows.shape[1]), self._ratio())
            validated = self._validated(shares, strata, groups, validation, there, int(random.randint(2**31 - 1)))
            train, held_out, split = there & ~validated, there & validated, ~validated
            Z = self._standardized(rows, train, weight)
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
            search.run(self._largest(search.models), self.steps, lowest=self._lowest)
            self._train(select(Z, there), y[there], weight[there], search)
        return self

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
        return group_numbers(self.penalty_per, p, "penalty_per must be 'global', 'feature', or the group number")

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
        coef = final.weights[:, 0] / self.feature_scale_
        self._set_coefficients(coef, float(final.bias[0] - coef @ self.feature_mean_))
        self.history_, self.n_iter_ = search.history, max(1, len(search.history))
        self.path_ = np.array(search.path)
        self.cv_loss_ = step.loss
        self.validation_loss_ = step.score if step.row_losses.size else None
        self.chosen_step_, self.interrupted_ = step.number, search.interrupted

    @abstractmethod
    def _set_coefficients(self, coef: np.ndarray, intercept: float) -> None:
        """Keep the weights, in the units of X, and the intercept under scikit-learn's names."""

    @abstractmethod
    def _keep(self, final: CrossFitted, l1: np.ndarray, l2: np.ndarray, shares: Tying) -> None:
        """Keep the penalties under scikit-learn's names."""

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class TunedRegressor(RegressorMixin, TunedLinear):
    """One that predicts a number."""

    def _read(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None, validation: ArrayLike | None) -> Given:
        options = {"accept_sparse": "csc", "dtype": np.float64, "ensure_min_samples": 2}
        rows, numbers = validate_data(self, X, y, y_numeric=True, **options)
        numbers = numbers.astype(np.float64)
        weight = check_sample_weight(sample_weight, numbers)
        # about the mean of the target, which the intercept gets back
        self._mean = np.average(numbers, weights=weight)
        return rows, numbers - self._mean, weight, np.zeros(len(numbers), int)

    def _set_coefficients(self, coef: np.ndarray, intercept: float) -> None:
        self.coef_, self.intercept_ = coef, intercept + self._mean

    def predict(self, X: ArrayLike) -> np.ndarray:
        """x . coef + intercept of each row, [n]."""
        check_is_fitted(self)
        rows = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        return linear_scores(rows, self.coef_, self.intercept_)

    def _losses(self, scores: np.ndarray, y: np.ndarray) -> np.ndarray:
        # half the squared error
        losses: np.ndarray = 0.5 * (scores - y) ** 2
        return losses
