"""A JAX model of one's own as a scikit-learn classifier."""

from numbers import Integral, Real
from types import ModuleType
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted, validate_data

from bilevax.core.errors import ParameterError, SolveError
from bilevax.sklearn.additive_base import require_target
from bilevax.sklearn.classes import ProbabilisticClassifier, check_labels, encode_classes
from bilevax.sklearn.encoder import TableEncoder
from bilevax.sklearn.frames import Features, check_sample_weight
from bilevax.sklearn.jax_kinds import kind
from bilevax.solvers.label_noise import normalised


class JaxClassifier(ProbabilisticClassifier, BaseEstimator):
    """A JAX model of classes, from equinox, flax or of one's own, with ``fit`` and ``predict_proba``.

    Minimises the mean log-loss of the softmax of the model's scores, by AdamW on minibatches whose rows are drawn in
    proportion to their weights. Some rows are held out, rows that are equal all or none, and training stops where
    their loss no longer falls; the parameters are those of the epoch of least held-out loss. Every fit begins at the
    parameters that the model has, or that ``init`` draws. A row of weight 2 is as two rows to the bit, in any order.

    Cost: a pass forward and back over the rows an epoch. A step compiles once for a model; clones share it.

    Sources: Loshchilov and Hutter (2019), arXiv:1711.05101 (AdamW).

    Args:
        model: one of

            - an equinox module, called with one row [p], that gives scores [C];
            - a flax.nnx module, called with rows [n, p], that gives scores [n, C];
            - a flax.linen module, or a pair (init, apply): ``init(key, X)`` gives the parameters,
              ``apply(parameters, X)`` scores [n, C].

            More scores than classes are left aside. A model must have neither dropout nor running statistics. It is
            never changed, and clones share it. Numbers come to it as they are: put a :class:`TableEncoder` or a
            ``StandardScaler`` before it. The classifier pickles if its model does: ``eqx.nn.MLP`` does with functions
            that have names, ``activation=relu, final_activation=same``, written with ``def``.
        learning_rate: of AdamW. Default 0.003.
        weight_decay: of AdamW. Default 0.001.
        batch_size: rows of a minibatch. Default 64.
        max_epochs: at most. Default 200.
        patience: epochs without a fall of the held-out loss, after which training ends. Default 10.
        validation_fraction: of the rows, held out. Default 0.1.
        random_state: of the held-out rows, of ``init`` and of the minibatches.

    Attributes:
        classes_: the labels, [C].
        model_: the trained module; of linen and pairs, the parameters.
        n_iter_: epochs to the best.
        validation_loss_: held-out log-loss there.
        n_features_in_: p.
        feature_names_in_: names of the columns, where X has them.

    Examples:
        >>> import equinox as eqx, jax
        >>> from sklearn.datasets import load_iris
        >>> from bilevax.sklearn import JaxClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> network = eqx.nn.MLP(4, 3, width_size=8, depth=1, key=jax.random.key(0))
        >>> model = JaxClassifier(network, learning_rate=0.03, max_epochs=30, random_state=0).fit(X, y)
        >>> bool(model.score(X, y) > 0.9)
        True
    """

    _parameter_constraints: ClassVar[dict[str, list[object]]] = {
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "patience": [Interval(Integral, 1, None, closed="left")],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        model: object,
        *,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-3,
        batch_size: int = 64,
        max_epochs: int = 200,
        patience: int = 10,
        validation_fraction: float = 0.1,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.model = model
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X: Features, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "JaxClassifier":
        """Train the model.

        Args:
            X: numbers, [n, p].
            y: labels, [n].
            sample_weight: of the rows, [n]; None: 1.

        Raises:
            ParameterError: a parameter is wrong, or the model makes no scores of such rows.
            SolveError: training diverged.
            ValueError: scikit-learn's, on bad X and y.
        """
        self._validate_params()
        if kind(self.model) is None:
            raise ParameterError(
                f"model must be an equinox or flax module or a pair of functions (init, apply), got {self.model!r}"
            )
        require_target(self, y)
        check_labels(y)
        X, labels = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        weight = check_sample_weight(sample_weight, labels)
        there = weight > 0.0
        classes, codes = encode_classes(labels[there], None)
        rows, told = distinct(X[there], np.eye(len(classes))[codes] * weight[there, None])
        self._train(classes, rows, told)
        return self

    def _train(self, classes: np.ndarray, X: np.ndarray, told: np.ndarray) -> None:
        import jax

        random, training = np.random.RandomState(check_random_state(self.random_state).randint(2**31 - 1)), _training()
        network = training.begin(self.model, jax.random.key(random.randint(2**31 - 1)), X.shape[1], len(classes))
        order = random.permutation(len(X))
        held, rows = np.split(order, [max(1, round(self.validation_fraction * len(X)))])
        # a row alone judges itself
        rows = rows if len(rows) else held
        pace = training.Pace(self.learning_rate, self.weight_decay, self.batch_size, self.max_epochs, self.patience)
        parts = (training.Rows(X[at], told[at]) for at in (rows, held))
        network, epochs, loss = training.train(network, *parts, pace, random)
        if not np.isfinite(loss):
            raise SolveError(
                "training diverged: the held-out loss was never a number; scale the columns, or take a smaller"
                f" learning_rate than {self.learning_rate}"
            )
        self.classes_, self.model_, self.n_iter_, self.validation_loss_ = classes, network.trained, epochs, loss

    def predict_log_proba(self, X: Features) -> np.ndarray:
        """Log-probabilities of the classes, [n, C]."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        scores = _training().parts(self.model, self.model_).scores(X)
        return np.ascontiguousarray(normalised(scores[:, : len(self.classes_)])[0])

    def __sklearn_clone__(self) -> "JaxClassifier":
        """With the same model, which no fit changes: a copy would be compiled anew."""
        return type(self)(**self.get_params(deep=False))


def wrapped(model: object, random: np.random.RandomState) -> BaseEstimator:
    """A JAX model as a classifier; anything else as it is."""
    if hasattr(model, "fit") or kind(model) is None:
        return model
    return JaxClassifier(model, random_state=random.randint(2**31 - 1))


class EveryColumn(TableEncoder):
    """Of a table without categories and missing cells every column in its order, 0 where it would be left out.

    A network has the width that its maker counted. For the rest see :class:`TableEncoder`.
    """

    def transform(self, X: Features) -> np.ndarray:
        """The matrix [n, columns], or [n, terms]."""
        Z: np.ndarray = super().transform(X)
        if any(term.kind != "number" for term in self.terms_):
            return Z
        names = list(self.feature_names_in_)
        out = np.zeros((len(Z), len(names)))
        out[:, [names.index(term.column) for term in self.terms_]] = Z
        return out


def encoder_for(model: object) -> TableEncoder:
    """Of the features that a label cleaner gives a model."""
    return EveryColumn() if isinstance(model, JaxClassifier) or kind(model) else TableEncoder()


def distinct(X: np.ndarray, told: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of X that differ, in an order of their own, and the sums of what is told of each."""
    # rows as bytes; + 0.0 makes 0 of -0, which is equal to it
    X = np.ascontiguousarray(X + 0.0)
    _, first, row = np.unique(X.view(f"V{X.itemsize * X.shape[1]}").ravel(), return_index=True, return_inverse=True)
    sums = np.zeros((len(first), told.shape[1]))
    np.add.at(sums, row, told)
    return X[first], sums


def _training() -> ModuleType:
    """JAX is imported where it is used."""
    from bilevax.sklearn import jax_training

    return jax_training
