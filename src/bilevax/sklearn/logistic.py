"""Logistic regression whose penalties, one per feature or finer, are tuned by hypergradients."""

import os
from typing import ClassVar

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.metrics import get_scorer_names
from sklearn.utils import Tags
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.validation import check_is_fitted, check_X_y, validate_data

from bilevax.core.errors import ParameterError
from bilevax.core.events import Callback
from bilevax.core.limits import said
from bilevax.linalg.columns import Matrix, linear_scores
from bilevax.problems import BinaryLogistic, MultinomialLogistic
from bilevax.problems.losses import Groups
from bilevax.runs import Run
from bilevax.sklearn.classes import ProbabilisticClassifier, check_labels, encode_classes
from bilevax.sklearn.encoder import TableEncoder
from bilevax.sklearn.frames import (
    Features,
    are_numbers,
    as_table,
    check_sample_weight,
    group_numbers,
    is_frame,
    is_sparse_frame,
    select,
)
from bilevax.sklearn.host_fit import TunedOnHost, default_ties
from bilevax.sklearn.penalised import PenalisedModel, RowWeights, default_float
from bilevax.tables.labels import Label
from bilevax.tables.memory import HELPS

TIED = "evidence", "frequency"

BALANCED_SCORES = frozenset({"balanced_accuracy", "f1_macro", "recall_macro", "precision_macro", "jaccard_macro"})
"""Scores that count every class alike; the tuned loss then does so too."""


class TunedLogisticRegression(ProbabilisticClassifier, TunedOnHost):
    """Logistic regression with an L2 penalty per feature, column, class, weight, or one for all, that is tuned.

    Minimises sum_i loss_i + 1/2 sum_j penalty_j weight_j^2 on standardised features, as scikit-learn's
    ``LogisticRegression`` with penalty = 1/C; features that are 0 or 1 in every row keep their unit. A data frame with
    text, dates or missing cells is taken as it is: a :class:`~bilevax.sklearn.TableEncoder` makes the features, several
    of a column. Of numbers without a missing cell every column is a feature, of a frame as of an array.

    Tuning is by hypergradients. The rows are split in two. On the training rows, K models are each
    trained without one fold, and the penalties descend the hypergradient of the loss on that fold, from the best single
    penalty. The validation rows, on which no penalty is tuned, say where to stop; the single penalty is kept unless the
    tuned ones are better there by a standard error. The final model is trained on all rows.

    Sparse rows (CSR, CSC, sparse data frames, what a ColumnTransformer makes) stay sparse, and penalties of thousands
    of columns are tied: penalty_jc = exp(a) frequency_j^b / (1 + chi2_jc)^c, the frequency being the share of the rows
    in which the column is not 0, and chi2 the statistic of its covariance with the class, of those rows alone that a
    model is trained on. Tied penalties are so few that no rows need validate; nothing is compiled. Columns that are 0
    in most rows keep their unit. The held-out loss is that of scores times a factor, at which it is least; ``coef_``
    and ``intercept_`` are the minimiser of the penalised loss times that factor. With ``"evidence"`` the scores of a
    ridge on the indicators of the classes are added, where the held-out loss is less with them (Breiman 1996, Stacked
    regressions): the sum is as linear.

    Method: implicit differentiation by L-BFGS and conjugate gradients where a pass over the rows is short; where it is
    long, what :func:`bilevax.plan` chooses, which may be stochastic implicit differentiation (Grazzi, Pontil, Salzo
    2021, arXiv:2011.07122), if that comes near the hypergradient on every row; ``method_reason_`` says why.

    Args:
        penalty_per: ``"feature"``, ``"column"`` (of the table: its categories share one), ``"class"``, ``"weight"``,
            ``"global"``, ``"evidence"`` (tied, as above), ``"frequency"`` (that with c = 0), or the group number of
            each column of the table, from 0. Default ``"auto"``: ``"evidence"`` of at least 500 sparse rows,
            ``"frequency"`` of fewer and of more columns than rows; else ``"feature"``.
        class_weight: None, a weight for each label, or ``"balanced"``: inverse to the class frequencies; in all losses.
        scoring: name of a scikit-learn scorer; for one that counts every class alike, such as
            ``"balanced_accuracy"``, so does the loss that is tuned. Default ``"neg_log_loss"``.
        validation_fraction: of the rows; none where at most 25 numbers are tuned on sparse rows. Default 0.25.
        method: ``"auto"`` (default), ``"deterministic"`` or ``"stochastic"``.
        steps: at most so many outer steps. Default 100.
        encoder: of data frames, such as ``TableEncoder(words=["review"])`` for a column of texts; with
            tied penalties each kind of its n-grams has a level of its own. Default None: as it comes.
        random_state: of the split and the minibatches.

    Attributes:
        classes_: the labels, [C].
        coef_: weights in the units of X, [C, p]; [1, p] if there are two classes.
        intercept_: [C], or [1].
        encoder_: that made the p features of a data frame's columns; None where every column is one.
        penalties_: on the standardised features, in the units of 1/C: of each feature [p], [C], [C, p] or a number.
        start_penalty_: the single penalty that tuning began with.
        feature_mean_: of the training rows, [p]; 0 of columns that keep their unit.
        feature_scale_: their standard deviations, [p]; 1 for a constant feature, for one of 0 and 1, and, where rows
            are sparse or penalties tied, for one that is 0 in most rows.
        score_scale_: the factor of the scores; 1 where rows are dense and penalties not tied, or there is one penalty.
        ridge_: the penalty of the ridge beside it, and the factor of its scores; 0 where it adds nothing.
        method_: ``"deterministic"`` or ``"stochastic"``; ``"planned"`` if the user stopped it before it was.
        method_reason_: one sentence.
        history_: one record an outer step, among them the tuning loss and the validation loss.
        validation_loss_: mean log-loss of the validation rows at the chosen penalties, before the final training; None
            where none validate.
        validation_gap_: how much of the fall of the tuning loss the validation rows do not confirm: how far tuning
            overfitted, in log-loss.
        validation_gap_se_: its standard error.
        chosen_step_: the outer step that was chosen; 0 is the single penalty.
        n_iter_: outer steps done.
        visits_: rows read while tuning.
        code_: the worst :class:`bilevax.Code` of the run.
        interrupted_: True if the user stopped it; the model is then trained with the penalties reached.
        n_features_in_: the number of columns.
        feature_names_in_: their names, of a data frame.

    Examples:
        >>> from sklearn.datasets import load_iris
        >>> from bilevax.sklearn import TunedLogisticRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> model = TunedLogisticRegression(steps=5, random_state=0).fit(X, y)
        >>> model.penalties_.shape
        (4,)
    """

    _parameter_constraints: ClassVar[dict[str, list[object]]] = {
        **PenalisedModel._parameter_constraints,
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "scoring": [str],
        "encoder": [TableEncoder, None],
    }

    def __init__(
        self,
        penalty_per: str | ArrayLike = "auto",
        *,
        class_weight: str | dict[Label, float] | None = None,
        scoring: str = "neg_log_loss",
        validation_fraction: float = 0.25,
        method: str = "auto",
        steps: int = 100,
        encoder: TableEncoder | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.penalty_per = penalty_per
        self.class_weight = class_weight
        self.scoring = scoring
        self.validation_fraction = validation_fraction
        self.method = method
        self.steps = steps
        self.encoder = encoder
        self.random_state = random_state

    @said("this fit", HELPS)
    def fit(
        self,
        X: Features,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        validation: ArrayLike | None = None,
        blocks: ArrayLike | None = None,
        callback: Callback | None = None,
        run: Run | str | os.PathLike[str] | None = None,
    ) -> "TunedLogisticRegression":
        """Tune the penalties and train the model.

        Args:
            X: an array of features, [n, p], or a sparse one, or a data frame.
            y: labels, [n].
            sample_weight: of the rows, [n], in every loss: a row of weight 2 is as two, and one of weight 0 is not
                there. None: 1. They play no part in how rows are dealt out, nor in standard errors.
            groups: a group per row, [n]: no group is split between training and validation, or between folds.
            validation: True for validation rows, [n]; None: a stratified random share.
            blocks: with tied penalties the number, from 0, of the block of each column, [p]: words, pairs of words and
                so on each have a level of their own. None: those of the encoder, or one.
            callback: called with a record after every outer step; returning True ends the tuning.
            run: a directory, or a :class:`bilevax.Run`, in which checkpoints are kept: the same call goes on where a
                process that was killed had come to, to the same bits, and ``callback`` gets the earlier records again.
                ``random_state`` must be an integer then. None: nothing is kept.

        Raises:
            ParameterError: a parameter is wrong.
            CheckpointError: the directory is of another run, in use, or damaged.
            ValueError: scikit-learn's, on bad X and y.
        """
        self._validate_params()
        if run is not None and not isinstance(self.random_state, int | np.integer):
            raise ParameterError(f"random_state must be an integer where a run is kept, got {self.random_state!r}")
        if self.scoring not in get_scorer_names():
            raise ParameterError(f"scoring must be the name of a scikit-learn scorer, got {self.scoring!r}")
        check_labels(y)
        rows, labels, sample = self._read(X, y, sample_weight)
        there = sample > 0.0
        rows, labels, sample = (select(a, there) for a in (rows, labels, sample))
        groups, validation = select(groups, there), select(validation, there)
        self.classes_, codes = encode_classes(labels, validation)
        weights, per = self._weights(codes, sample), self._per()
        if isinstance(per, str) and per == "auto":
            sparse = scipy.sparse.issparse(rows)
            tied = sparse or rows.shape[1] > rows.shape[0]
            per = default_ties(rows.shape[0], sparse=sparse) if tied else "feature"
        if scipy.sparse.issparse(rows) or (isinstance(per, str) and per in TIED):
            if run is not None:
                raise ParameterError("run keeps nothing where rows are sparse or penalties tied: such a fit is short")
            kinds = self._blocks(blocks, rows.shape[1])
            self._fit_on_host(
                rows, codes, weights, per=per, blocks=kinds, groups=groups, validation=validation, callback=callback
            )
            return self
        if blocks is not None:
            raise ParameterError(
                "blocks go with penalty_per='evidence' or 'frequency'; for others pass group numbers as penalty_per"
            )
        self.score_scale_, self.ridge_ = 1.0, (0.0, 0.0)
        self._fit(
            rows,
            codes,
            weights,
            per=per,
            strata=codes,
            groups=groups,
            validation=validation,
            callback=callback,
            run=run,
        )
        return self

    def _read(
        self, X: Features, y: ArrayLike, sample_weight: ArrayLike | None
    ) -> tuple[Matrix, np.ndarray, np.ndarray]:
        """Features [n, p], labels and weights [n]."""
        self.encoder_ = None
        table = as_table(self, X, reset=True) if is_frame(X) and not is_sparse_frame(X) else None
        if table is None or (self.encoder is None and table is not X and are_numbers(table)):
            rows, labels = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64, ensure_min_samples=2)
            return rows, labels, check_sample_weight(sample_weight, labels)
        _, labels = check_X_y(np.zeros((table.rows, 1)), y, ensure_min_samples=2, estimator=self)
        sample = check_sample_weight(sample_weight, labels)
        encoder = TableEncoder() if self.encoder is None else clone(self.encoder)
        self.encoder_ = encoder.fit(table if sample.all() else table.take(sample > 0.0))
        return self.encoder_.transform(table), labels, sample

    def _features(self, X: Features) -> Matrix:
        """Features [n, p] of rows to predict."""
        if self.encoder_ is not None:
            return self.encoder_.transform(as_table(self, X, reset=False))
        return validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)

    def _per(self) -> str | np.ndarray:
        """What has a penalty of its own: a word, or the group number of each feature."""
        if isinstance(self.penalty_per, str) and self.penalty_per != "column":
            return self.penalty_per
        p = self.n_features_in_
        given = np.arange(p) if isinstance(self.penalty_per, str) else self.penalty_per
        group = group_numbers(given, p, "penalty_per must have the group number")
        if self.encoder_ is not None:
            names = list(self.encoder_.feature_names_in_)
            group = group[[names.index(term.column) for term in self.encoder_.terms_]]
        # Columns may have no feature, and groups no column.
        _, index = np.unique(group, return_inverse=True)
        return index

    def _blocks(self, blocks: ArrayLike | None, p: int) -> np.ndarray:
        """Number of the block of each column, [p]."""
        if blocks is None:
            return np.zeros(p, int) if self.encoder_ is None else self.encoder_.blocks_
        return np.unique(group_numbers(blocks, p, "blocks must have the number of the block"), return_inverse=True)[1]

    @property
    def _outputs(self) -> int:
        """The number of scores."""
        return 1 if len(self.classes_) == 2 else len(self.classes_)

    def _loss(self, penalty_per: str | Groups | None) -> BinaryLogistic | MultinomialLogistic:
        return (BinaryLogistic if self._outputs == 1 else MultinomialLogistic)(penalty_per)

    def _set_coefficients(self, coef: np.ndarray, intercept: np.ndarray) -> None:
        self.coef_, self.intercept_ = coef, intercept

    def _weights(self, codes: np.ndarray, sample: np.ndarray) -> RowWeights:
        # n / (C n_c): every class has the same share
        balanced = sample * (sample.sum() / (len(self.classes_) * np.bincount(codes, sample)))[codes]
        # A score that counts every class alike is chosen for by a loss that does so too.
        train = balanced
        if self.class_weight != "balanced":
            train = sample * compute_sample_weight(self.class_weight, self.classes_[codes])
        held = balanced if self.scoring in BALANCED_SCORES else train
        return RowWeights(sample, train.astype(default_float()), held.astype(default_float()))

    def decision_function(self, X: Features) -> np.ndarray:
        """Scores, [n, C]; [n] if there are two classes."""
        check_is_fitted(self)
        scores = linear_scores(self._features(X), self.coef_.T, self.intercept_)
        return scores[:, 0] if self._outputs == 1 else scores

    def predict(self, X: Features) -> np.ndarray:
        """The most probable label of each row, [n]."""
        scores = self.decision_function(X)
        # One score is positive where the second class is the more probable.
        index = (scores > 0).astype(int) if scores.ndim == 1 else np.argmax(scores, axis=1)
        labels: np.ndarray = self.classes_[index]
        return labels

    def predict_log_proba(self, X: Features) -> np.ndarray:
        """Log-probabilities of the classes, [n, C]."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            # log 1 / (1 + exp(s)) and log 1 / (1 + exp(-s))
            return -np.stack([np.logaddexp(0, scores), np.logaddexp(0, -scores)], axis=1)
        # s_c - log sum_c exp(s_c)
        scores -= scores.max(axis=1, keepdims=True)
        scores -= np.log(np.sum(np.exp(scores), axis=1, keepdims=True))
        return scores

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
