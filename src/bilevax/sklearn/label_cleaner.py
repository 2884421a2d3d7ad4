"""Which labels are wrong, by a few rows whose labels are known to be right."""

from numbers import Integral
from typing import ClassVar, NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils._param_validation import Interval as Range
from sklearn.utils.validation import check_is_fitted

from bilevax.core.errors import DataError, ParameterError
from bilevax.linalg.columns import Matrix
from bilevax.sklearn.additive import TunedAdditiveClassifier
from bilevax.sklearn.additive_base import require_target
from bilevax.sklearn.classes import ProbabilisticClassifier
from bilevax.sklearn.frames import Features, Held
from bilevax.sklearn.jax_classifier import encoder_for, wrapped
from bilevax.sklearn.label_em import EM, Fitted, require_weights
from bilevax.sklearn.label_rows import LabelledRows, Trusted, features_of, notes_on, read, rows_of
from bilevax.sklearn.label_weights import PROBABILITIES, notes_on_weights, require_trusted, row_weights
from bilevax.sklearn.row_splits import deal_folds
from bilevax.sklearn.threads import one_thread
from bilevax.solvers.label_calibration import Judged, judged
from bilevax.solvers.label_intervals import Interval, noise_interval, number_interval
from bilevax.solvers.label_models import Point
from bilevax.solvers.label_noise import LEAST, Given, Prior, number_wrong, posterior, updated
from bilevax.solvers.label_row_weights import Linear, Weighed
from bilevax.solvers.label_search import UNTOLD, cross_fitted, fitted, is_wide, retrained, search

SEARCHED = 10_000
"""Rows that choose the strengths, at most, beside as many trusted ones."""

SPLITS = 2
"""Into twice as many folds as ``cv``, by which rows are judged where there are few rows a column."""

MANY_WEIGHTS = (
    "there are fewer than ten rows a column, and no row is trusted: the labels alone hardly tell how many are wrong;"
    " some trusted rows would"
)


class Found(NamedTuple):
    """What both kinds of model find.

    Attributes:
        q: posteriors of the true classes, each by a model that has not seen the row, [n, C].
        model: of all rows.
        T: the noise matrix.
        of_models: those of models trained without a fold, [K, C, C].
        wrong: the numbers of wrong labels that these say, [K].
        strengths: what was chosen, by name.
        notes: one sentence each.
    """

    q: np.ndarray
    model: Point | Fitted
    T: np.ndarray
    of_models: np.ndarray
    wrong: np.ndarray
    strengths: dict[str, float]
    notes: tuple[str, ...] = ()


class LabelCleaner(ProbabilisticClassifier, BaseEstimator):
    """Finds wrong labels in a table, and learns from it as if they were right.

    The true class c of a row is given as j with probability T_cj, so that

        P(label j | x) = sum_c p_c(x) T_cj,        P(true c | x, label j) = p_c(x) T_cj / sum_d p_d(x) T_dj

    The classifier p and the noise matrix T are fitted together: EM over the true classes (Dawid and Skene 1979), those
    of trusted rows given, from a model of the trusted rows. The prior of T is of flips of a class's rate to any other
    class (beta and Dirichlet). A few hyperparameters (penalty, weight of the trusted rows, the prior's rates, and how
    many rows and flips it counts as) go down the held-out loss of trusted rows and given labels by exact
    hypergradients, and are kept only where it falls.
    A row's label is suspect by one minus its posterior under a model that has not seen the row; the corrected model is
    trained on these posteriors. Where there are fewer than ten rows a column, or no trusted rows, the posteriors have a
    factor of the scores (with trusted rows a bias, too) and a noise matrix that are fitted to held-out rows
    (:mod:`bilevax.solvers.label_calibration`).

    That flips do not depend on the features, given the true class, is assumed. Without trusted rows it is assumed,
    too, that most labels of each class are right, and whatever the model cannot learn passes for a wrong label; with
    fewer than ten rows a column as well, the labels alone hardly tell how many are wrong.

    ``method="weights"`` is a weight per row by hypergradients instead (:mod:`bilevax.solvers.label_row_weights`): an
    inner linear model of the weighted rows, the loss of the trusted rows outside. It ranks worse, as there are more
    weights than trusted rows, and knows no probabilities: of the attributes below, ``wrong_label_probability_``,
    ``posterior_``, ``noise_matrix_``, ``noise_interval_`` and ``expected_wrong_`` are absent, and so is ``clean``.

    Sources: Patrini et al. (2017), arXiv:1609.03683; Hendrycks et al. (2018), arXiv:1802.05300 (trusted rows);
    Northcutt, Jiang, Chuang (2021), arXiv:1911.00068 (the same question without any).

    Args:
        model: ``"linear"`` (default), multinomial logistic; ``"additive"``, a :class:`TunedAdditiveClassifier` without
            the choice; or a classifier with ``predict_proba`` whose ``fit`` takes ``sample_weight``: it is given the
            numbers of a :class:`TableEncoder`, and trained some forty times with the weight of trusted rows fixed. A
            JAX model (equinox, flax, or a pair of init and apply) is put into a :class:`JaxClassifier`, and is given
            every column of a table of numbers, standardised, in its order.
        method: ``"noise_matrix"`` (default), or ``"weights"``, of a linear model and with trusted rows alone.
        cv: folds; of weights, those of the trusted rows that choose the number of steps. Default 5.
        random_state: of the folds.

    Attributes:
        classes_: the labels, [C].
        wrong_label_probability_: of each row of X, [n]; 0 for trusted rows.
        suggested_: the most probable label of each row, [n].
        suspicious_rows_: rows whose label is more probably wrong than right, most suspicious first; of weights, those
            whose weight has fallen.
        row_weights_: the posterior of each row's label, [n], as weights for another model; of weights, these, from
            1/2, which is where they begin, down to 0 and up to 1; 1 for trusted rows.
        posterior_: of all classes, [n, C].
        noise_matrix_: T, [C, C]: from the true class to the given label.
        noise_interval_: 95 % intervals of it, [2, C, C]: the jackknife over the folds, at least that of counts.
        expected_wrong_: how many labels are wrong: value, low, high; likewise, and chance.
        strengths_: the hyperparameters by name.
        effective_sample_size_: of weights, (sum w)^2 / sum w^2: the rows to doubt count as so many.
        retrain_gap_: of weights: the loss of the trusted rows under the model trained anew at the final weights, less
            that under the model that was carried along while they were chosen. Above 0, the weights are worth less
            than their run said.
        model_: the corrected model: a linear :class:`~bilevax.solvers.label_models.Point`, of weights a
            :class:`~bilevax.solvers.label_row_weights.Linear`, or the estimator.
        encoder_: the :class:`TableEncoder` of its features; None where it takes them as they are.
        notes_: what the user should know, one sentence each.
        n_features_in_: p.
        feature_names_in_: names of the columns, where X has them.

    Examples:
        >>> import numpy as np
        >>> from sklearn.datasets import load_wine
        >>> from bilevax.sklearn import LabelCleaner
        >>> X, y = load_wine(return_X_y=True)
        >>> given, trusted = y.copy(), np.arange(178) % 5 == 0
        >>> given[[3, 82, 148]] = 2, 0, 1
        >>> cleaner = LabelCleaner(random_state=0).fit(X, given, trusted=trusted)
        >>> {3, 82, 148} <= set(cleaner.suspicious_rows_)
        True
    """

    _parameter_constraints: ClassVar[dict[str, list[object]]] = {
        "model": [
            StrOptions({"linear", "additive"}),
            HasMethods(["fit", "predict_proba"]),
            callable,
            tuple,
            HasMethods(["init", "apply"]),
        ],
        "method": [StrOptions({"noise_matrix", "weights"})],
        "cv": [Range(Integral, 3, None, closed="left")],
        "random_state": ["random_state"],
    }

    _model: Point | Linear | Fitted

    def __init__(
        self,
        model: object = "linear",
        *,
        method: str = "noise_matrix",
        cv: int = 5,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.model = model
        self.method = method
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Features, y: ArrayLike, *, trusted: Trusted = None) -> "LabelCleaner":
        """Find the wrong labels and fit the corrected model.

        Args:
            X: a data frame (pandas, polars, pyarrow), an array or a sparse matrix, [n, p].
            y: labels as they are given, [n].
            trusted: True for the rows whose label is known to be right, [n]; or (X, y) of other such rows; None: none.

        Raises:
            ParameterError: a parameter is wrong, or the mask.
            DataError: the labels or a column cannot be used, or the trusted rows are too few.
            ValueError: scikit-learn's, on bad X and y.
        """
        self._validate_params()
        require_target(self, y)
        if self.method == "weights":
            require_trusted(self.model, trusted)
        rows = read(self, X, y, trusted)
        given, random = rows.given, np.random.RandomState(check_random_state(self.random_state).randint(2**31 - 1))
        if np.sum(~given.trusted) < self.cv:
            raise DataError(f"{np.sum(~given.trusted)} rows with labels to doubt are too few for {self.cv} folds")
        self.classes_ = rows.classes
        with one_thread():
            features = self._encoded(rows.X)
            if self.method == "weights":
                return self._keep_weights(row_weights(features, given, self.cv, random), features, rows)
            find = self._linear if self.model == "linear" else self._em
            found = find(features, given, random)
        self._keep(found, given, rows.own)
        self.notes_ = notes_on(given, rows.classes) + found.notes
        return self

    def _encoded(self, X: Held) -> Held | np.ndarray:
        """What the model takes: a matrix, or of an additive model a table."""
        self.encoder_ = None
        if self.model == "additive" or scipy.sparse.issparse(X):
            return X
        self.encoder_ = encoder_for(self.model).fit(X)
        return self.encoder_.transform(X)

    def _folds(self, given: Given, random: np.random.RandomState, times: int = 1) -> np.ndarray:
        """So many times ``cv`` folds of all rows in which labels have equal shares."""
        return deal_folds(given.y + given.classes * given.trusted, None, times * self.cv, random)

    def _linear(self, X: Matrix, given: Given, random: np.random.RandomState) -> Found:
        some, fold = _some(given, random), self._folds(given, random)
        notes: tuple[str, ...] = ()
        if len(some) < len(given.y):
            notes = (f"the strengths were chosen on {len(some):,} of {len(given.y):,} rows",)
        best = search(X[some], given.take(some), fold[some])
        wide, told = is_wide(X[some], given.classes), bool(given.trusted.any())
        if wide and not told:
            notes += (MANY_WEIGHTS,)
        # EM from a model of trusted rows needs no such thing, and without any the scores of a wide one tell nothing
        if wide == told:
            splits = np.array([self._folds(given, random, times=2) for _ in range(SPLITS)]) if wide else fold[None]
            found = judged(X, given, splits, best)
        else:
            q = cross_fitted(X, given, np.where(given.trusted, -1, fold), best)
            log_T = [at.noise.log_matrix for at in best.points]
            by_models = (posterior(at.log_p(X), given, log)[0] for at, log in zip(best.points, log_T, strict=True))
            # as the posteriors have it: where the prior decides on the rates, the model's own is that of training
            T = updated(given.expected(q), Prior(UNTOLD, 1e-3, 1e-3))
            found = Judged(q, T, np.exp(log_T), np.array([number_wrong(own, given) for own in by_models]))
        final = retrained(X, found.q, fitted(X, given, best), best.strengths)
        return Found(found.q, final, *found[1:], best.strengths.named(self.classes_), notes)

    def _em(self, X: Held, given: Given, random: np.random.RandomState) -> Found:
        estimator = TunedAdditiveClassifier(choose=False, pairs=False) if self.model == "additive" else self.model
        estimator = wrapped(estimator, random)
        require_weights(estimator)
        em = EM(estimator, lambda rows: rows_of(X, rows), given, random)
        fold = self._folds(given, random)
        others = em.choose(fold)
        fold = np.where(given.trusted, -1, fold)
        q, Ts, wrong = np.eye(given.classes)[given.y], [], []
        for k in range(self.cv):
            at, held = em.fit(np.flatnonzero(fold != k), others), fold == k
            log_p, log_T = at.log_p(X, given.classes), np.log(np.maximum(at.T, LEAST))
            own, _ = posterior(log_p, given, log_T)
            q[held] = own[held]
            Ts.append(at.T)
            wrong.append(number_wrong(own, given))
        final = em.fit(np.arange(len(fold)), others)
        return Found(q, final, final.T, np.array(Ts), np.array(wrong), {"others": others})

    def _keep(self, found: Found, given: Given, own: int) -> None:
        y, doubted = given.y[:own], ~given.trusted[:own]
        q = found.q[:own]
        # P(true class is not the given one)
        wrong = np.where(doubted, 1.0 - q[np.arange(own), y], 0.0)
        self.posterior_, self.wrong_label_probability_, self.row_weights_ = q, wrong, 1.0 - wrong
        self.suggested_ = self.classes_[q.argmax(axis=1)]
        order = np.argsort(-wrong, kind="stable")
        self.suspicious_rows_ = order[wrong[order] > 0.5]
        self.noise_matrix_, self.strengths_ = found.T, found.strengths
        self.noise_interval_ = noise_interval(found.T, found.of_models, found.q[~given.trusted].sum(axis=0))
        self.expected_wrong_: Interval = number_interval(wrong[doubted], found.wrong)
        self._model, self.model_ = found.model, getattr(found.model, "model", found.model)
        self._forget("effective_sample_size_", "retrain_gap_")

    def _keep_weights(self, found: Weighed, X: Matrix, rows: LabelledRows) -> "LabelCleaner":
        given, doubted = rows.given, np.flatnonzero(~rows.given.trusted)
        # trusted rows count 1
        self.row_weights_ = np.ones(rows.own)
        self.row_weights_[doubted] = found.weight
        order = doubted[np.argsort(found.weight, kind="stable")]
        self.suspicious_rows_ = order[self.row_weights_[order] < 0.5]
        codes, fallen = given.y[: rows.own].copy(), self.suspicious_rows_
        codes[fallen] = found.at.log_p(X[fallen]).argmax(axis=1)
        self.suggested_ = self.classes_[codes]
        self.strengths_ = {"penalty": found.penalty, "steps": float(found.steps)}
        self.effective_sample_size_, self.retrain_gap_ = found.effective_sample_size, found.retrain_gap
        self._model = self.model_ = found.at
        self.notes_ = notes_on(given, rows.classes) + notes_on_weights(found)
        self._forget(*PROBABILITIES)
        return self

    def _forget(self, *names: str) -> None:
        """What an earlier fit by the other method had."""
        for name in names:
            if hasattr(self, name):
                delattr(self, name)

    def clean(self, X: Features, y: ArrayLike) -> np.ndarray:
        """Labels of which those that are more probably wrong than right are replaced by the most probable, [n].

        Of the rows of ``fit``, :attr:`suggested_` is by models that have not seen them.
        """
        check_is_fitted(self)
        if not hasattr(self, "noise_matrix_"):
            raise ParameterError("clean needs a noise matrix, which method='weights' has not; see suggested_")
        labels = np.asarray(y)
        codes = np.searchsorted(self.classes_, labels)
        if not np.isin(labels, self.classes_).all():
            raise DataError(f"y has the label '{np.setdiff1d(labels, self.classes_)[0]}', which was not there in fit")
        given = Given(codes, np.zeros(len(codes), bool), len(self.classes_))
        q, _ = posterior(self._log_p(X), given, np.log(np.maximum(self.noise_matrix_, LEAST)))
        right = q[np.arange(len(codes)), codes] >= 0.5
        cleaned: np.ndarray = np.where(right, labels, self.classes_[q.argmax(axis=1)])
        return cleaned

    def _log_p(self, X: Features) -> np.ndarray:
        check_is_fitted(self)
        features = features_of(self, X, reset=False)
        if self.encoder_ is not None:
            features = self.encoder_.transform(features)
        if isinstance(self._model, Point | Linear):
            return self._model.log_p(features)
        return self._model.log_p(features, len(self.classes_))

    def predict_log_proba(self, X: Features) -> np.ndarray:
        """Log-probabilities of the true classes, [n, C]."""
        return np.ascontiguousarray(self._log_p(X))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.sparse = True
        tags.input_tags.string = tags.input_tags.categorical = True
        return tags


def _some(given: Given, random: np.random.RandomState) -> np.ndarray:
    """Rows that choose the strengths: the first so many of each kind, in a random order."""
    parts = [random.permutation(np.flatnonzero(kind))[:SEARCHED] for kind in (~given.trusted, given.trusted)]
    return np.sort(np.concatenate(parts))
