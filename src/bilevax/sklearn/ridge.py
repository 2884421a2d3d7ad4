"""Ridge regression whose penalties, one per column or group, are tuned by hypergradients."""

from typing import ClassVar

import numpy as np

from bilevax.linalg.columns import Matrix, column_moments
from bilevax.sklearn.penalty_search import Tying
from bilevax.sklearn.tuned_linear import TunedRegressor
from bilevax.solvers.l1_models import CrossFitted
from bilevax.solvers.l1_squared import L1SquaredModels
from bilevax.solvers.ridge_models import KernelRidgeModels


class TunedRidge(TunedRegressor):
    """Linear regression with an l2 penalty per column or group, or one for all, tuned by hypergradients.

    Minimises sum_i (y_i - x_i . w - b)^2 + sum_j alpha_j w_j^2, as scikit-learn's ``Ridge``, on standardised columns.
    The penalties minimise the cross-validated loss: sixteen values of one alpha, then L-BFGS on the hypergradient from
    the best. Many penalties overfit that loss, so that a quarter of the rows says where to stop, and the single penalty
    is kept unless the many are better there by a standard error. The final model is trained on all rows.

    Cost of a step: one linear system [p, p] a fold, or [n, n] where columns outnumber rows. Nothing is compiled.

    Args:
        penalty_per: ``"feature"`` (default), ``"global"``, or the group number of each column, [p], from 0.
        standardize: as of :class:`TunedElasticNet`, like all that follows.
        cv: folds, or a splitter. Default 5.
        validation_fraction: of the rows that validate. Default None: a quarter with more than one penalty, else 0.
        steps: at most so many steps of L-BFGS. Default 50.
        random_state: of the folds and the validation rows.

    Attributes:
        alpha_: a number, or of each column [p]; for the standardised columns, and the sum over the rows.

    The others are those of :class:`TunedElasticNet`.

    Examples:
        >>> from sklearn.datasets import load_diabetes
        >>> from bilevax.sklearn import TunedRidge
        >>> X, y = load_diabetes(return_X_y=True)
        >>> model = TunedRidge(random_state=0).fit(X, y)
        >>> model.alpha_.shape, bool(model.score(X, y) > 0.5)
        ((10,), True)
    """

    _lowest: ClassVar[float] = 1e-8

    def _ratio(self) -> float:
        return 0.0

    def _models(self, X: Matrix, y: np.ndarray, weight: np.ndarray, fold: np.ndarray, K: int) -> CrossFitted:
        n, p = X.shape
        if p > n:
            return KernelRidgeModels(X, y, fold, K, weight=weight)
        return L1SquaredModels(X, y, fold, K, weight=weight, few=p)

    def _largest(self, models: CrossFitted) -> float:
        # the trace of the second moments of the columns: at least the largest curvature
        return float(np.sum(column_moments(models.X, models.weight)[1] ** 2))

    def _kept(self, l1: np.ndarray, l2: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
        # the penalty on the sum over the rows is the same for more of them, as the precision of a prior is
        return l1, l2 * share

    def _keep(self, final: CrossFitted, l1: np.ndarray, l2: np.ndarray, shares: Tying) -> None:
        # n l2 on the sum of the squares, without the half
        alpha = float(final.trained_on[0]) * l2
        self.alpha_ = float(alpha[0]) if shares.groups == 1 else alpha
