"""What linear models with tuned penalties share: rows split, penalties tuned, one model trained on every row."""

import os
from abc import ABC, abstractmethod
from numbers import Integral, Real
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from bilevax.core.events import Callback
from bilevax.linalg.columns import are_zero_one, column_moments
from bilevax.problems.losses import Groups
from bilevax.runs import Run
from bilevax.sklearn import tuning
from bilevax.sklearn.crossfit import LinearLoss, Rows, pad_columns, pad_rows
from bilevax.sklearn.final_fit import second_moment, solve
from bilevax.sklearn.row_splits import deal_folds, validation_rows
from bilevax.sklearn.tuning_method import choose_method
from bilevax.tables.memory import fit_memory, require_fit


class RowWeights(NamedTuple):
    """Weights of the rows, [n] each.

    Attributes:
        sample: how often a row counts; positive.
        training: in the loss that models are trained on.
        held_out: in the losses that penalties are chosen by.
    """

    sample: np.ndarray
    training: np.ndarray
    held_out: np.ndarray


class PenalisedModel(BaseEstimator, ABC):
    """A linear model whose penalties are tuned by hypergradients; its ``fit`` ends in :meth:`_fit`.

    A subclass has three hooks: the loss, the number of scores, and what it keeps of the weights. For the parameters and
    attributes that all share, see :class:`~bilevax.sklearn.TunedLogisticRegression`.
    """

    _parameter_constraints: ClassVar[dict[str, list[object]]] = {
        "penalty_per": [
            StrOptions({"auto", "evidence", "frequency", "feature", "column", "class", "weight", "global"}),
            "array-like",
        ],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "method": [StrOptions({"auto", "deterministic", "stochastic"})],
        "steps": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    penalty_per: str | ArrayLike
    validation_fraction: float
    method: str
    steps: int
    random_state: int | np.random.RandomState | None

    @abstractmethod
    def _loss(self, penalty_per: str | Groups | None) -> LinearLoss:
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
        weights: RowWeights,
        *,
        per: str | np.ndarray,
        strata: np.ndarray,
        groups: ArrayLike | None,
        validation: ArrayLike | None,
        callback: Callback | None,
        run: Run | str | os.PathLike[str] | None = None,
    ) -> None:
        """Tune the penalties, then train the model.

        Args:
            X: features, float64 [n, p].
            y: targets as the loss takes them, [n].
            weights: of the rows.
            per: what has a penalty of its own: ``"feature"``, ``"class"``, ``"weight"``, ``"global"``, or the group
                number of each column of X, [p], from 0.
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
        need = fit_memory(len(y), X.shape[1], self._outputs, method.folds)
        require_fit(need, f"tuning on {len(y):,} rows of {X.shape[1]:,} columns")
        Z = self._standardized(X, train, weights.sample[train])
        folds = deal_folds(strata[train], None if groups is None else np.asarray(groups)[train], method.folds, random)
        task = self._task((Z, y, weights), train, validated, folds, per)
        tuned = tuning.tune(task, method, steps=self.steps, seed=seed, callback=callback, run=run)
        self._record(tuned)
        lam = jnp.asarray(self._rescale(task, tuned, per, X.shape[1]), Z.dtype)
        # The final model, on all rows.
        rows = jax.device_put(pad_rows(weights.training, Z, y))
        w = solve(task.penalised, tuned.model, lam, rows, moment=task.moment, tolerance=1e-9, max_steps=500)
        # weights (x - mean) / scale + bias = coef x + (bias - coef mean)
        coef = np.asarray(w["weights"], np.float64)[:, : X.shape[1]] / self.feature_scale_
        self._set_coefficients(coef, np.asarray(w["bias"], np.float64) - coef @ self.feature_mean_)

    def _standardized(self, X: np.ndarray, train: np.ndarray, sample: np.ndarray) -> np.ndarray:
        """By the means and scales of the training rows, and padded."""
        self.feature_mean_, scale = column_moments(X[train], sample)
        # Categories keep their unit: standardised, a rare one would hardly be penalised.
        self.feature_scale_ = np.where(are_zero_one(X[train]), 1.0, scale)
        # z = (x - mean) / scale
        return pad_columns(((X - self.feature_mean_) / self.feature_scale_).astype(default_float()))

    def _task(
        self,
        table: tuple[np.ndarray, np.ndarray, RowWeights],
        train: np.ndarray,
        validated: np.ndarray,
        folds: np.ndarray,
        per: str | np.ndarray,
    ) -> tuning.TuningTask:
        (Z, y, weights), outputs = table, self._outputs
        sample, training, held_out = (weight[train] for weight in weights)
        *_, training = pad_rows(training)
        rows = Rows(*map(jax.device_put, (*pad_rows(held_out, Z[train], y[train], folds), training)))
        p = Z.shape[1]
        if isinstance(per, str):
            penalty: str | Groups = per
            shape = {"feature": (p,), "class": (outputs,), "weight": (outputs, p), "global": ()}[per]
        else:
            # Columns that pad have weights of 0: any group will do.
            penalty, shape = Groups(np.pad(per, (0, p - len(per)))), (int(per.max()) + 1,)
        return tuning.TuningTask(
            penalised=self._loss(penalty),
            plain=self._loss(None),
            rows=rows,
            folds=int(folds.max()) + 1,
            validation=jax.device_put(pad_rows(weights.held_out[validated], Z[validated], y[validated])),
            sizes=(float(sample.sum()), float(weights.sample[validated].sum())),
            lam_shape=shape,
            outputs=outputs,
            moment=second_moment(rows.X, rows.inner_weight),
        )

    def _record(self, tuned: tuning.TuningResult) -> None:
        self.method_, self.method_reason_ = tuned.method.name, tuned.method.reason
        self.history_, self.n_iter_ = tuned.history, max(1, len(tuned.history))
        self.visits_ = tuned.history[-1]["visits"] if tuned.history else 0
        self.validation_loss_: float | None = tuned.validation_loss
        self.validation_gap_, self.validation_gap_se_ = tuned.gap, tuned.gap_se
        self.chosen_step_, self.code_, self.interrupted_ = tuned.chosen.step, tuned.code, tuned.interrupted

    def _rescale(
        self, task: tuning.TuningTask, tuned: tuning.TuningResult, per: str | np.ndarray, p: int
    ) -> np.ndarray:
        """Keep the penalties in units of 1/C; log-penalties of the final model, against its mean loss on all rows."""
        size, n = task.sizes[0], sum(task.sizes)
        # n exp(lam) = n_train exp(tuned lam): a penalty on the sum of the losses does not grow with the rows.
        lam: np.ndarray = np.asarray(tuned.chosen.lam, np.float64) + np.log(size / n)
        penalties = n * np.exp(lam)
        if isinstance(per, str):
            self.penalties_ = penalties[..., :p] if per in {"feature", "weight"} else penalties
        else:
            self.penalties_ = penalties[per]
        # n_train (K - 1) / K exp(lam): on the sum of the losses that each of the K models saw
        self.start_penalty_ = float(size * (task.folds - 1) / task.folds * np.exp(np.ravel(tuned.start.lam)[0]))
        return lam


def default_float() -> np.dtype[np.floating]:
    """JAX's default float, as a numpy dtype."""
    return np.dtype(jnp.result_type(float))
