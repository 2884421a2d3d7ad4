"""What linear models with tuned penalties share: rows split, penalties tuned, one model trained on every row."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Integral, Real
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from bilevax.core.events import Event
from bilevax.core.limits import require
from bilevax.linalg.columns import column_moments
from bilevax.runs import Run
from bilevax.sklearn import tuning
from bilevax.sklearn.crossfit import LinearLoss, Rows, pad_columns, pad_rows
from bilevax.sklearn.final_fit import second_moment, solve
from bilevax.sklearn.row_splits import deal_folds, validation_rows
from bilevax.sklearn.tuning_method import choose_method
from bilevax.tables.memory import HELPS, MAPPED, PROGRAMS, fit_memory


class PenalisedModel(BaseEstimator, ABC):
    """A linear model whose penalties are tuned by hypergradients; its ``fit`` ends in :meth:`_fit`.

    A subclass has three hooks: the loss, the number of scores, and what it keeps of the weights. For the parameters and
    attributes that all share, see :class:`~bilevax.sklearn.TunedLogisticRegression`.
    """

    _parameter_constraints: ClassVar[dict[str, list[object]]] = {
        "penalty_per": [StrOptions({"feature", "class", "weight", "global"})],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "method": [StrOptions({"auto", "deterministic", "stochastic"})],
        "steps": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    penalty_per: str
    validation_fraction: float
    method: str
    steps: int
    random_state: int | np.random.RandomState | None

    @abstractmethod
    def _loss(self, penalty_per: str | None) -> LinearLoss:
        """The loss of one model; without a penalty for None."""

    @property
    @abstractmethod
    def _outputs(self) -> int:
        """The number of scores, C."""

    @abstractmethod
    def _set_coefficients(self, coef: np.ndarray, intercept: np.ndarray) -> None:
        """Keep the weights [C, p], in the units of X, and the intercepts [C]."""

    def _fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        weights: tuple[np.ndarray, np.ndarray],
        *,
        strata: np.ndarray,
        groups: ArrayLike | None,
        validation: ArrayLike | None,
        callback: Callable[[Event], bool | None] | None,
        run: Run | str | os.PathLike[str] | None = None,
    ) -> None:
        """Tune the penalties, then train the model.

        Args:
            X: features, float64 [n, p].
            y: targets as the loss takes them, [n].
            weights: of the rows in training, and in the losses that penalties are chosen by, both [n].
            strata: classes that folds and validation rows have in equal shares, [n].
            groups: as in ``fit``.
            validation: as in ``fit``.
            callback: as in ``fit``.
            run: as in ``fit``.
        """
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31 - 1))
        validated = validation_rows(strata, groups, validation, self.validation_fraction, seed)
        train = np.flatnonzero(~validated)
        method = choose_method(self.method, len(train), X.shape[1], self._outputs)
        require(
            fit_memory(len(y), X.shape[1], self._outputs, method.folds),
            f"tuning on {len(y):,} rows of {X.shape[1]:,} columns",
            HELPS,
            compiler=PROGRAMS,
            mapped=MAPPED,
        )
        self.feature_mean_, self.feature_scale_ = column_moments(X[train])
        # z = (x - mean) / scale
        Z = pad_columns(((X - self.feature_mean_) / self.feature_scale_).astype(default_float()))
        folds = deal_folds(strata[train], None if groups is None else np.asarray(groups)[train], method.folds, random)
        (inner_weight, outer_weight), outputs, p = weights, self._outputs, Z.shape[1]
        *_, inner = pad_rows(inner_weight[train])
        rows = Rows(*map(jax.device_put, (*pad_rows(outer_weight[train], Z[train], y[train], folds), inner)))
        task = tuning.TuningTask(
            penalised=self._loss(self.penalty_per),
            plain=self._loss(None),
            rows=rows,
            folds=folds.max() + 1,
            validation=jax.device_put(pad_rows(outer_weight[validated], Z[validated], y[validated])),
            lam_shape={"feature": (p,), "class": (outputs,), "weight": (outputs, p), "global": ()}[self.penalty_per],
            outputs=outputs,
            moment=second_moment(rows.X, rows.inner_weight),
        )
        tuned = tuning.tune(task, method, steps=self.steps, seed=seed, callback=callback, run=run)
        self._record(tuned)
        self._train(Z, y, inner_weight, tuned, len(train), task.folds)

    def _record(self, tuned: tuning.TuningResult) -> None:
        self.method_, self.method_reason_ = tuned.method.name, tuned.method.reason
        self.history_, self.n_iter_ = tuned.history, max(1, len(tuned.history))
        self.visits_ = tuned.history[-1]["visits"] if tuned.history else 0
        self.validation_loss_ = tuned.validation_loss
        self.validation_gap_, self.validation_gap_se_ = tuned.gap, tuned.gap_se
        self.chosen_step_, self.code_, self.interrupted_ = tuned.chosen.step, tuned.code, tuned.interrupted

    def _train(
        self, Z: np.ndarray, y: np.ndarray, weight: np.ndarray, tuned: tuning.TuningResult, rows_tuned: int, folds: int
    ) -> None:
        """The final model, on all rows, from the penalties in units of 1/C."""
        n, p = len(y), self.n_features_in_
        # n exp(lam) = rows_tuned exp(tuned lam): a penalty on the sum of the losses does not grow with the rows.
        lam = np.asarray(tuned.chosen.lam, np.float64) + np.log(rows_tuned / n)
        self.penalties_ = n * np.exp(lam[..., :p] if self.penalty_per in {"feature", "weight"} else lam)
        # n_train (K - 1) / K exp(lam): on the sum of the losses that each of the K models saw
        self.start_penalty_ = float(rows_tuned * (folds - 1) / folds * np.exp(np.ravel(tuned.start.lam)[0]))
        rows = jax.device_put(pad_rows(weight, Z, y))
        loss, lam = self._loss(self.penalty_per), jnp.asarray(lam, Z.dtype)
        w = solve(loss, tuned.model, lam, rows, moment=tuned.moment, tolerance=1e-9, max_steps=500)
        # weights (x - mean) / scale + bias = coef x + (bias - coef mean)
        coef = np.asarray(w["weights"], np.float64)[:, :p] / self.feature_scale_
        self._set_coefficients(coef, np.asarray(w["bias"], np.float64) - coef @ self.feature_mean_)


def default_float() -> np.dtype[np.floating]:
    """JAX's default float, as a numpy dtype."""
    return np.dtype(jnp.result_type(float))
