"""Elastic nets, of a number and of two classes, whose penalties are tuned by hypergradients on the support."""

from numbers import Real
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit
from sklearn.base import ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted, validate_data

from bilevax.linalg.columns import Matrix, linear_scores
from bilevax.sklearn.classes import check_labels, encode_classes
from bilevax.sklearn.frames import check_sample_weight, select
from bilevax.sklearn.penalty_search import Tying
from bilevax.sklearn.tuned_linear import Folds, Given, TunedLinear, TunedRegressor
from bilevax.solvers.l1_logistic import L1LogisticModels
from bilevax.solvers.l1_models import CrossFitted, L1Models
from bilevax.solvers.l1_squared import L1SquaredModels


class _ElasticNet(TunedLinear):
    """The parameters of both."""

    _parameter_constraints: ClassVar[dict[str, list[object]]] = {
        **TunedLinear._parameter_constraints,
        "l1_ratio": [Interval(Real, 0, 1, closed="right"), None],
    }

    def __init__(
        self,
        l1_ratio: float | None = None,
        *,
        penalty_per: str | ArrayLike = "global",
        standardize: bool = True,
        cv: Folds = 5,
        validation_fraction: float | None = None,
        steps: int = 50,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.l1_ratio = l1_ratio
        super().__init__(
            penalty_per,
            standardize=standardize,
            cv=cv,
            validation_fraction=validation_fraction,
            steps=steps,
            random_state=random_state,
        )

    def _ratio(self) -> float | None:
        return self.l1_ratio

    def _keep(self, final: CrossFitted, l1: np.ndarray, l2: np.ndarray, shares: Tying) -> None:
        # l1 = l1_ratio alpha, l2 = (1 - l1_ratio) alpha
        alpha = l1 + l2
        ratio = l1 / alpha
        single = shares.groups == 1
        self.alpha_ = float(alpha[0]) if single else alpha
        self.l1_ratio_ = float(ratio[0]) if single or self.l1_ratio is not None else ratio
        assert isinstance(final, L1Models)
        self.dual_gap_ = float(final.gaps(l1, l2)[0])

    def _largest(self, models: CrossFitted) -> float:
        assert isinstance(models, L1Models)
        return models.largest_l1()


class TunedElasticNet(_ElasticNet, TunedRegressor):
    """Linear regression with l1 and l2 penalties, one pair in all or one per column or group, tuned by hypergradients.

    Minimises 1/(2 n) sum_i (y_i - x_i . w - b)^2 + sum_j alpha_j (l1_ratio_j |w_j| + (1 - l1_ratio_j) w_j^2 / 2), as
    scikit-learn's ``ElasticNet`` and, at ``l1_ratio=1``, ``Lasso``, on standardised columns. The penalties minimise the
    cross-validated loss: sixteen values of one alpha on a warm-started path, then L-BFGS on the hypergradient from the
    best. Many penalties overfit that loss, so that a quarter of the rows says where to stop, and the single penalty
    is kept unless the many are better there by a standard error. The final model is trained on all rows.

    Method: proximal coordinate descent on a working set, ended by the linear system on the support; the hypergradient
    is one more such system a fold (Bertrand et al. 2020, arXiv:2002.08943). Nothing is compiled.

    Args:
        l1_ratio: between 0 and 1, 1 is the lasso; None (default): tuned too.
        penalty_per: ``"global"`` (default), ``"feature"``, or the group number of each column, [p], from 0.
        standardize: divide columns by their standard deviations before they are penalised. Default True; False for
            columns that share a unit, such as tf-idf.
        cv: number of folds, which are dealt out at random, or a splitter of scikit-learn, or a list of what one yields,
            that holds out every row once. Default 5.
        validation_fraction: of the rows that validate. Default None: a quarter with more than one penalty, else 0.
        steps: at most so many steps of L-BFGS. Default 50.
        random_state: of the folds and the validation rows.

    Attributes:
        coef_: weights in the units of X, [p].
        intercept_: a number.
        alpha_: a number, or of each column [p]; for the standardised columns.
        l1_ratio_: likewise.
        cv_loss_: cross-validated loss at the chosen penalties: of each row under the model trained without its fold;
            half the squared error, or the log-loss.
        validation_loss_: of the validation rows under these models; None where none validates.
        dual_gap_: at least what the final model is above the minimum of its objective.
        path_: ``l1_ratio``, ``alpha``, cross-validated loss and its slope in log alpha of the first choices, [k, 4].
        history_: one record a step: both losses, the norm of the hypergradient, the mean number of columns selected.
        chosen_step_: the step that was chosen; 0 is the single penalty.
        n_iter_: steps done.
        feature_mean_: of the training rows, [p]; 0 if X is sparse.
        feature_scale_: their standard deviations, [p]; 1 of a constant column, whose weight is 0.
        interrupted_: True if the user stopped it; the model is then trained with the best penalties so far.
        n_features_in_: p.

    Examples:
        >>> from sklearn.datasets import load_diabetes
        >>> from bilevax.sklearn import TunedElasticNet
        >>> X, y = load_diabetes(return_X_y=True)
        >>> lasso = TunedElasticNet(l1_ratio=1.0, random_state=0).fit(X, y)
        >>> int((lasso.coef_ != 0).sum()), bool(lasso.dual_gap_ < 1e-6)
        (7, True)
    """

    def _models(self, X: Matrix, y: np.ndarray, weight: np.ndarray, fold: np.ndarray, K: int) -> CrossFitted:
        return L1SquaredModels(X, y, fold, K, weight=weight)


class TunedElasticNetClassifier(ClassifierMixin, _ElasticNet):
    """Logistic regression of two classes with l1 and l2 penalties, tuned like those of :class:`TunedElasticNet`.

    Minimises 1/n sum_i log(1 + exp(-y_i (x_i . w + b))) + sum_j alpha_j (l1_ratio_j |w_j| + (1 - l1_ratio_j) w_j^2 / 2)
    with y = -1, 1, as scikit-learn's ``LogisticRegression`` with C = 1 / (n alpha), by proximal Newton steps, of which
    each is solved by coordinate descent and the system on the support. For more classes wrap it in
    ``sklearn.multiclass.OneVsRestClassifier``.

    Parameters and attributes are those of :class:`TunedElasticNet`; ``coef_`` is [1, p], ``intercept_`` [1], and
    ``classes_`` has the two labels.

    Examples:
        >>> from sklearn.datasets import load_breast_cancer
        >>> from bilevax.sklearn import TunedElasticNetClassifier
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> model = TunedElasticNetClassifier(l1_ratio=1.0, random_state=0).fit(X, y)
        >>> bool(model.score(X, y) > 0.97)
        True
    """

    def _read(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None, validation: ArrayLike | None) -> Given:
        options = {"accept_sparse": "csc", "dtype": np.float64, "ensure_min_samples": 2}
        check_labels(y)
        rows, labels = validate_data(self, X, y, **options)
        weight = check_sample_weight(sample_weight, labels)
        there, codes = weight > 0.0, np.zeros(len(labels), int)
        self.classes_, codes[there] = encode_classes(labels[there], select(validation, there))
        if len(self.classes_) > 2:
            raise ValueError(
                f"Only binary classification is supported, and there are {len(self.classes_)} classes; "
                "wrap the model in sklearn.multiclass.OneVsRestClassifier"
            )
        return rows, codes.astype(float), weight, codes

    def _set_coefficients(self, coef: np.ndarray, intercept: float) -> None:
        self.coef_, self.intercept_ = coef[None, :], np.array([intercept])

    def _models(self, X: Matrix, y: np.ndarray, weight: np.ndarray, fold: np.ndarray, K: int) -> CrossFitted:
        for k in range(-1, K):
            if len(np.unique(y[fold != k])) < 2 <= len(y[fold != k]):
                raise ValueError("without one fold there is only one class; every class needs rows in several folds")
        return L1LogisticModels(X, y, fold, K, weight=weight)

    def _losses(self, scores: np.ndarray, y: np.ndarray) -> np.ndarray:
        # log(1 + e^s) - y s
        losses: np.ndarray = np.logaddexp(0.0, scores) - y * scores
        return losses

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Scores of the second class, [n]."""
        check_is_fitted(self)
        rows = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        return linear_scores(rows, self.coef_[0], self.intercept_[0])

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The more probable label of each row, [n]."""
        index = (self.decision_function(X) > 0).astype(int)
        labels: np.ndarray = self.classes_[index]
        return labels

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Probabilities of the two classes, [n, 2]."""
        scores = self.decision_function(X)
        # 1 / (1 + exp(s)) and 1 / (1 + exp(-s))
        return np.stack([expit(-scores), expit(scores)], axis=1)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
