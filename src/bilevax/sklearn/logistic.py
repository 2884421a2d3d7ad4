"""Logistic regression whose penalties, one per feature or finer, are tuned by hypergradients."""

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import get_scorer_names
from sklearn.model_selection import GroupKFold, GroupShuffleSplit, ShuffleSplit, StratifiedShuffleSplit
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from bilevax.core.errors import ParameterError

BALANCED_SCORES = frozenset({"balanced_accuracy", "f1_macro", "recall_macro", "precision_macro", "jaccard_macro"})
"""Scores that count every class alike; the tuned loss then does so too."""


class TunedLogisticRegression(ClassifierMixin, BaseEstimator):
    """Logistic regression with an L2 penalty per feature, class, weight, or one for all, tuned by hypergradients.

    Minimises sum_i loss_i + 1/2 sum_j penalty_j weight_j^2 on standardised features, as scikit-learn's
    ``LogisticRegression`` with penalty = 1/C. The rows are split in two. On the training rows, K models are each
    trained without one fold, and the penalties descend the hypergradient of the loss on that fold, from the best single
    penalty. The validation rows, on which no penalty is tuned, say where to stop; the single penalty is kept unless the
    tuned ones are better there by a standard error. The final model is trained on all rows.

    Method: implicit differentiation by L-BFGS and conjugate gradients where a pass over the rows is short; where it is
    long, what :func:`bilevax.plan` chooses, which may be stochastic implicit differentiation (Grazzi, Pontil, Salzo
    2021, arXiv:2011.07122), if that comes near the hypergradient on every row; ``method_reason_`` says why.

    Args:
        penalty_per: ``"feature"`` (default), ``"class"``, ``"weight"`` or ``"global"``.
        class_weight: None, a weight for each label, or ``"balanced"``: inverse to the class frequencies; in all losses.
        scoring: name of a scikit-learn scorer; for one that counts every class alike, such as
            ``"balanced_accuracy"``, so does the loss that is tuned. Default ``"neg_log_loss"``.
        validation_fraction: of the rows. Default 0.25.
        method: ``"auto"`` (default), ``"deterministic"`` or ``"stochastic"``.
        steps: at most so many outer steps. Default 100.
        random_state: of the split and the minibatches.

    Attributes:
        classes_: the labels, [C].
        coef_: weights in the units of X, [C, p]; [1, p] if there are two classes.
        intercept_: [C], or [1].
        penalties_: on the standardised features, in the units of 1/C: [p], [C], [C, p] or a number.
        start_penalty_: the single penalty that tuning began with.
        feature_mean_: of the training rows, [p].
        feature_scale_: their standard deviations, [p]; 1 for a constant feature.
        method_: ``"deterministic"`` or ``"stochastic"``; ``"planned"`` if the user stopped it before it was.
        method_reason_: one sentence.
        history_: one record an outer step, among them the tuning loss and the validation loss.
        validation_loss_: mean log-loss of the validation rows at the chosen penalties, before the final training.
        validation_gap_: how much of the fall of the tuning loss the validation rows do not confirm: how far tuning
            overfitted, in log-loss.
        validation_gap_se_: its standard error.
        chosen_step_: the outer step that was chosen; 0 is the single penalty.
        n_iter_: outer steps done.
        visits_: rows read while tuning.
        code_: the worst :class:`bilevax.Code` of the run.
        interrupted_: True if the user stopped it; the model is then trained with the penalties reached.
        n_features_in_: p.

    Examples:
        >>> from sklearn.datasets import load_iris
        >>> from bilevax.sklearn import TunedLogisticRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> model = TunedLogisticRegression(steps=5, random_state=0).fit(X, y)
        >>> model.penalties_.shape
        (4,)
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "penalty_per": [StrOptions({"feature", "class", "weight", "global"})],
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "scoring": [str],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "method": [StrOptions({"auto", "deterministic", "stochastic"})],
        "steps": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        penalty_per: str = "feature",
        *,
        class_weight: str | dict[Any, float] | None = None,
        scoring: str = "neg_log_loss",
        validation_fraction: float = 0.25,
        method: str = "auto",
        steps: int = 100,
        random_state: Any = None,
    ) -> None:
        self.penalty_per = penalty_per
        self.class_weight = class_weight
        self.scoring = scoring
        self.validation_fraction = validation_fraction
        self.method = method
        self.steps = steps
        self.random_state = random_state

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        groups: Any = None,
        validation: Any = None,
        callback: Callable[[dict[str, Any]], bool | None] | None = None,
    ) -> "TunedLogisticRegression":
        """Tune the penalties and train the model.

        Args:
            X: features, [n, p].
            y: labels, [n].
            groups: a group per row, [n]: no group is split between training and validation, or between folds.
            validation: True for validation rows, [n]; None: a stratified random share.
            callback: called with a record after every outer step; returning True ends the tuning.

        Raises:
            ParameterError: a parameter is wrong.
            ValueError: scikit-learn's, on bad X and y.
        """
        from bilevax.sklearn import tuning
        from bilevax.sklearn.crossfit import pad_columns

        self._validate_params()
        if self.scoring not in get_scorer_names():
            raise ParameterError(f"scoring must be the name of a scikit-learn scorer, got {self.scoring!r}")
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Classifier can't train when only one class is present: {self.classes_[0]!r}")
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31 - 1))
        validated = _validation_rows(labels, groups, validation, self.validation_fraction, seed)
        train = np.flatnonzero(~validated)
        self.feature_mean_, self.feature_scale_ = _moments(X[train])
        Z = pad_columns(((X - self.feature_mean_) / self.feature_scale_).astype(_real()))
        method = tuning.choose_method(self.method, len(train), X.shape[1], self._outputs)
        folds = _folds(labels[train], None if groups is None else np.asarray(groups)[train], method.folds, random)
        tuned = self._tune(Z, labels, train, validated, folds, method, seed, callback)
        self._record(tuned)
        self._train(Z, labels, tuned, len(train), folds.max() + 1)
        return self

    def _tune(
        self,
        Z: np.ndarray,
        labels: np.ndarray,
        train: np.ndarray,
        validated: np.ndarray,
        folds: np.ndarray,
        method: Any,
        seed: int,
        callback: Any,
    ) -> Any:
        import jax

        from bilevax.sklearn import tuning
        from bilevax.sklearn.crossfit import Rows, pad_rows
        from bilevax.sklearn.final_fit import second_moment

        weight, held = self._weights(labels)
        loss, outputs, p = self._loss(), self._outputs, Z.shape[1]
        *_, inner = pad_rows(weight[train])
        X, y, fold, outer = pad_rows(held[train], Z[train], labels[train], folds)
        rows = jax.device_put(Rows(X, y, fold, inner, outer))
        task = tuning.TuningTask(
            penalised=loss(self.penalty_per),
            plain=loss(None),
            rows=rows,
            folds=folds.max() + 1,
            validation=jax.device_put(pad_rows(held[validated], Z[validated], labels[validated])),
            lam_shape={"feature": (p,), "class": (outputs,), "weight": (outputs, p), "global": ()}[self.penalty_per],
            outputs=outputs,
            moment=second_moment(rows.X, rows.train),
        )
        return tuning.tune(task, method, steps=self.steps, seed=seed, callback=callback)

    def _record(self, tuned: Any) -> None:
        self.method_, self.method_reason_ = tuned.method.name, tuned.method.reason
        self.history_, self.n_iter_ = tuned.history, max(1, len(tuned.history))
        self.visits_ = tuned.history[-1]["visits"] if tuned.history else 0
        self.validation_loss_ = tuned.validation_loss
        self.validation_gap_, self.validation_gap_se_ = tuned.gap, tuned.gap_se
        self.chosen_step_, self.code_, self.interrupted_ = tuned.chosen.step, tuned.code, tuned.interrupted

    def _train(self, Z: np.ndarray, labels: np.ndarray, tuned: Any, rows_tuned: int, folds: int) -> None:
        """The final model, on all rows, from the penalties in units of 1/C."""
        import jax
        import jax.numpy as jnp

        from bilevax.sklearn.crossfit import pad_rows
        from bilevax.sklearn.final_fit import solve

        n, p = len(labels), self.n_features_in_
        weight, _ = self._weights(labels)
        lam = np.asarray(tuned.chosen.lam, np.float64) + np.log(rows_tuned / n)
        self.penalties_ = n * np.exp(lam[..., :p] if self.penalty_per in {"feature", "weight"} else lam)
        loss = self._loss()(self.penalty_per)
        rows = jax.device_put(pad_rows(weight, Z, labels))
        lam = jnp.asarray(lam, Z.dtype)
        w = solve(loss, tuned.model, lam, rows, moment=tuned.moment, fall=1e-9, max_steps=500)
        self.start_penalty_ = float(rows_tuned * (folds - 1) / folds * np.exp(np.ravel(tuned.start.lam)[0]))
        self.coef_ = np.asarray(w["weights"], np.float64)[:, :p] / self.feature_scale_
        self.intercept_ = np.asarray(w["bias"], np.float64) - self.coef_ @ self.feature_mean_

    @property
    def _outputs(self) -> int:
        """The number of scores."""
        return 1 if len(self.classes_) == 2 else len(self.classes_)

    def _loss(self) -> Any:
        from bilevax.problems import BinaryLogistic, MultinomialLogistic

        return BinaryLogistic if len(self.classes_) == 2 else MultinomialLogistic

    def _weights(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the rows in training, and in the losses that penalties are chosen by."""
        train = compute_sample_weight(self.class_weight, self.classes_[labels]).astype(_real())
        balanced = self.scoring in BALANCED_SCORES
        return train, compute_sample_weight("balanced", labels).astype(_real()) if balanced else train

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores, [n, C]; [n] if there are two classes."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        out = X @ self.coef_.T + self.intercept_
        return out[:, 0] if len(self.classes_) == 2 else out

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each row, [n]."""
        out = self.decision_function(X)
        index = (out > 0).astype(int) if out.ndim == 1 else np.argmax(out, axis=1)
        return self.classes_[index]

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Log-probabilities of the classes, [n, C]."""
        out = self.decision_function(X)
        if out.ndim == 1:
            return -np.stack([np.logaddexp(0, out), np.logaddexp(0, -out)], axis=1)
        out = out - out.max(axis=1, keepdims=True)
        return out - np.log(np.sum(np.exp(out), axis=1, keepdims=True))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, [n, C]."""
        return np.exp(self.predict_log_proba(X))


def _real() -> Any:
    """JAX's default float, as a numpy dtype."""
    import jax.numpy as jnp

    return np.dtype(jnp.result_type(float))


def _moments(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column; 1 where it does not vary."""
    mean, scale = X.mean(axis=0), X.std(axis=0)
    return mean, np.where(scale > 10 * np.finfo(float).eps * np.maximum(1, np.abs(mean)), scale, 1.0)


def _validation_rows(labels: np.ndarray, groups: Any, given: Any, fraction: float, seed: int) -> np.ndarray:
    """True for validation rows, [n]."""
    n = len(labels)
    if given is not None:
        mask = np.asarray(given)
        if mask.dtype != bool or mask.shape != (n,) or not mask.any() or mask.sum() > n - 2:
            raise ParameterError(
                f"validation must be a boolean vector of {n} rows, some and at most n - 2 of them True"
            )
        return mask
    held = max(1, round(fraction * n))
    classes, counts = np.unique(labels, return_counts=True)
    if groups is not None:
        splitter: Any = GroupShuffleSplit(1, test_size=fraction, random_state=seed)
    elif counts.min() >= 2 and min(held, n - held) >= len(classes):
        splitter = StratifiedShuffleSplit(1, test_size=held, random_state=seed)
    else:
        splitter = ShuffleSplit(1, test_size=held, random_state=seed)
    mask = np.zeros(n, bool)
    mask[next(splitter.split(labels, labels, groups))[1]] = True
    return mask


def _folds(labels: np.ndarray, groups: Any, most: int, random: np.random.RandomState) -> np.ndarray:
    """Fold of each training row: of equal size and stratified; by group where there are groups."""
    n = len(labels)
    if groups is not None:
        _, index = np.unique(groups, return_inverse=True)
        k = min(most, index.max() + 1)
        if k < 2:
            raise ParameterError("groups must leave at least two groups in training; pass more groups")
        folds = np.empty(n, int)
        for fold, (_, rows) in enumerate(GroupKFold(k).split(labels, groups=index)):
            folds[rows] = fold
        return folds
    folds = np.empty(n, int)
    folds[np.lexsort((random.permutation(n), labels))] = np.arange(n) % min(most, n)
    return folds
