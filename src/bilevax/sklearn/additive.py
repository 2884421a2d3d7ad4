"""Additive models that one can read: a curve for every column, each of whose penalties is tuned."""

import warnings
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import check_array, column_or_1d
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.class_weight import compute_sample_weight

from bilevax.core.errors import DataError, ParameterError
from bilevax.core.events import Callback
from bilevax.core.limits import said
from bilevax.sklearn.additive_base import TunedAdditive, Units, require_target
from bilevax.sklearn.additive_passes import Targets
from bilevax.sklearn.classes import encode_classes, read_labels
from bilevax.sklearn.frames import Features
from bilevax.solvers.additive_families import Binomial, Family, Gamma, Gaussian, Multinomial, Poisson
from bilevax.solvers.additive_models import ADDITIVE, AdditiveFit, Rows
from bilevax.tables.additive import Link
from bilevax.tables.labels import Label
from bilevax.tables.memory import HELPS

_FAMILIES: dict[str, Family] = {"gaussian": Gaussian(), "poisson": Poisson(dispersed=True), "gamma": Gamma()}


class TunedAdditiveClassifier(ClassifierMixin, TunedAdditive):
    """An additive model of two or more classes: a curve for every column, all of whose penalties are tuned.

    score = intercept + sum over the columns of f_j(x_j); the probability is 1 / (1 + exp(-score)), or the softmax of a
    score for each class. Of a column of numbers f_j has a line, a smooth part (penalised second differences) and a
    rough part (penalised first differences), each with a penalty, so that it can become a line, a step or nothing; of
    categories it has a shrunken effect for each level; missing cells have an effect of their own. A number outside of
    the training range has the effect of the nearest in it, an unseen level that of a typical one.

    The penalties minimise the Laplace approximate marginal likelihood (Wood 2011, J. R. Stat. Soc. B 73:3) by its exact
    hypergradient, or the loss of held-out folds where rows are grouped or classes weighted. Whether so much freedom
    pays is asked of rows that no candidate has seen: one penalty for a linear model, a penalty a column, the additive
    model, and one with pairs are each tuned inside five outer folds (four times over below 2,000 rows, if models have
    1,500 weights at most), and the mixture that predicts best is kept (stacking; Wolpert 1992, Breiman 1996): a
    mixture of additive models is one. The last candidate has those pairs of columns that would add more to the marginal
    likelihood than chance would, each a surface that takes nothing from the curves of its two columns.

    Args:
        choose: whether the candidates are compared and mixed. Default True; False: the additive model.
        pairs: whether there is a candidate with pairs of columns. Default True.
        tuned_by: ``"marginal"``, ``"folds"``, or ``"auto"`` (default): folds with ``class_weight`` or ``groups``.
        ordered: the levels of ordered categories in their order, by column; ordered categoricals of pandas need none.
        monotone: 1 for a curve that rises and -1 for one that falls, by column of numbers, dates' years or ordered
            categories; the penalties are tuned without that, and the bands are those of curves that may do both.
        class_weight: None, a weight for each label, or ``"balanced"``: inverse to the class frequencies.
        random_state: of the folds.
        n_jobs: outer folds that are fitted at the same time, each in a process with one thread; the model has the same
            bits. None: 1, or as ``joblib.parallel_config`` says; -1: as many as there are cores.

    Attributes:
        classes_: the labels, [C].
        intercept_: a number, or [C] for more than two classes.
        curves_: a :class:`Curve` for each effect, by name, with 95 % bands: of a column, or of a part of its dates.
        pairs_: a :class:`Surface` for each pair of columns, by the names with `` x `` between them.
        penalties_: a :class:`Penalty` for each part of each effect.
        effective_degrees_of_freedom_: of each effect, by name.
        evidence_: log of the evidence for each effect, by name: of the rows with it over those without; NaN where it
            shares its penalties with others, for want of rows or of room, which ``notes_`` say.
        drop_columns_: names of the columns whose evidence is below e to 1: they may be left out.
        mixture_: weights of the candidates that are kept, by name.
        choice_: a :class:`Compared` for each candidate and the mixture; empty without a choice.
        influence_: how far leaving a row out would move the model, [rows of a weight above 0] (Cook's distance without
            its divisor, to one Newton step); None for more than two classes.
        interrupted_: True if the callback ended the comparison of the candidates.
        dispersion_: 1.
        model_: the whole as plain numbers, a :class:`~bilevax.tables.additive.AdditiveModel`.
        notes_: what the user should know, one sentence each.
        n_features_in_: p.
        feature_names_in_: names of the columns, where X has them.

    Examples:
        >>> from sklearn.datasets import load_breast_cancer
        >>> from bilevax.sklearn import TunedAdditiveClassifier
        >>> X, y = load_breast_cancer(return_X_y=True, as_frame=True)
        >>> model = TunedAdditiveClassifier(random_state=0).fit(X[["mean radius", "mean texture"]], y)
        >>> bool(model.score(X[["mean radius", "mean texture"]], y) > 0.88)
        True
    """

    _parameter_constraints: ClassVar[dict[str, list[object]]] = {
        **TunedAdditive._parameter_constraints,
        "class_weight": [StrOptions({"balanced"}), dict, None],
    }

    def __init__(
        self,
        *,
        choose: bool = True,
        pairs: bool = True,
        tuned_by: str = "auto",
        ordered: Mapping[str, Sequence[str]] | None = None,
        monotone: Mapping[str, int] | None = None,
        class_weight: str | dict[Label, float] | None = None,
        random_state: int | np.random.RandomState | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.choose = choose
        self.pairs = pairs
        self.tuned_by = tuned_by
        self.ordered = ordered
        self.monotone = monotone
        self.class_weight = class_weight
        self.random_state = random_state
        self.n_jobs = n_jobs

    @said("this fit", HELPS)
    def fit(
        self,
        X: Features,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        callback: Callback | None = None,
    ) -> "TunedAdditiveClassifier":
        """Tune, choose and fit.

        Args:
            X: a data frame (pandas, polars, pyarrow) with numbers, truth values, text and dates, or an array, [n, p].
            y: labels, [n].
            sample_weight: a row of weight 2 counts as two rows, [n].
            groups: a group per row, [n]: no two folds share one.
            callback: called before each fold of the comparison of the candidates with ``fold`` (how many are done),
                ``of`` and ``seconds``; True ends the comparison, and what is known by then decides.

        Raises:
            ParameterError: a parameter is wrong.
            DataError: a column or the labels cannot be used.
            ValueError: scikit-learn's, on bad X and y.
        """
        self._validate_params()
        require_target(self, y)
        given = self._read(X, read_labels(y), sample_weight, groups)
        self.classes_, codes = encode_classes(given.y, None)
        weight = given.weight * compute_sample_weight(self.class_weight, given.y)
        # what classes weigh says nothing of how many rows there are
        weight *= given.weight.sum() / weight.sum()
        # a factor of each class, which rows that are not given have too
        of_class = np.bincount(codes, weight) / np.bincount(codes, given.weight)
        given = given._replace(weight=weight)
        C = len(self.classes_)
        family: Family = Binomial() if C == 2 else Multinomial(C)

        def of(labels: np.ndarray) -> Targets:
            codes = np.searchsorted(self.classes_, labels)
            return Targets(codes.astype(float) if C == 2 else codes, of_class[codes])

        self._fit(given, of, family, strata=codes, doubtful=self.class_weight is not None, callback=callback)
        return self

    @property
    def _link(self) -> Link:
        return "logit" if len(self.classes_) == 2 else "softmax"

    def decision_function(self, X: Features) -> np.ndarray:
        """Scores: of the second class [n], or of every class [n, C]."""
        scores = self._scores(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict_proba(self, X: Features) -> np.ndarray:
        """Probabilities of the classes, [n, C]."""
        scores = self._scores(X)
        return self.model_.mean(scores)

    def predict_log_proba(self, X: Features) -> np.ndarray:
        """Their logarithms, [n, C]."""
        logarithms: np.ndarray = np.log(self.predict_proba(X))
        return logarithms

    def predict(self, X: Features) -> np.ndarray:
        """The most probable label of each row, [n]."""
        index = self.predict_proba(X).argmax(axis=1)
        labels: np.ndarray = self.classes_[index]
        return labels


class TunedAdditiveRegressor(RegressorMixin, TunedAdditive):
    """An additive model of a number, a count or an amount: a curve for every column, all of whose penalties are tuned.

    The mean is the score, or its exponential for counts and amounts; else as :class:`TunedAdditiveClassifier`. The
    dispersion phi is estimated: y has variance phi (Gaussian), phi mean (Poisson) or phi mean^2 (gamma), the mean of
    the rows that the curves depend on where these vary more than others. Folds tune the penalties where rows are
    grouped.

    Args:
        family: ``"gaussian"`` (default), ``"poisson"`` for counts, ``"gamma"`` for amounts above 0.
        choose: as in :class:`TunedAdditiveClassifier`.
        pairs: likewise.
        tuned_by: likewise.
        ordered: likewise.
        monotone: likewise.
        random_state: likewise.
        n_jobs: likewise.

    Attributes:
        dispersion_: phi; 1 for counts that are seen to vary no more than those of Poisson.

    The others are those of :class:`TunedAdditiveClassifier`.

    Examples:
        >>> from sklearn.datasets import load_diabetes
        >>> from bilevax.sklearn import TunedAdditiveRegressor
        >>> X, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
        >>> model = TunedAdditiveRegressor(random_state=0).fit(X, y)
        >>> "age" in model.drop_columns_, "bmi" in model.drop_columns_
        (True, False)
    """

    _parameter_constraints: ClassVar[dict[str, list[object]]] = {
        **TunedAdditive._parameter_constraints,
        "family": [StrOptions(set(_FAMILIES))],
    }

    def __init__(
        self,
        family: Literal["gaussian", "poisson", "gamma"] = "gaussian",
        *,
        choose: bool = True,
        pairs: bool = True,
        tuned_by: str = "auto",
        ordered: Mapping[str, Sequence[str]] | None = None,
        monotone: Mapping[str, int] | None = None,
        random_state: int | np.random.RandomState | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.family = family
        self.choose = choose
        self.pairs = pairs
        self.tuned_by = tuned_by
        self.ordered = ordered
        self.monotone = monotone
        self.random_state = random_state
        self.n_jobs = n_jobs

    @said("this fit", HELPS)
    def fit(
        self,
        X: Features,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        callback: Callback | None = None,
    ) -> "TunedAdditiveRegressor":
        """Tune, choose and fit.

        Args:
            X: a data frame (pandas, polars, pyarrow) with numbers, truth values, text and dates, or an array, [n, p].
            y: numbers, [n]; at least 0 for Poisson, above 0 for gamma.
            sample_weight: a row of weight 2 counts as two rows, [n].
            groups: a group per row, [n]: no two folds share one.
            offset: added to the score of each row, [n], such as the logarithm of an exposure.
            callback: called before each fold of the comparison of the candidates with ``fold`` (how many are done),
                ``of`` and ``seconds``; True ends the comparison, and what is known by then decides.

        Raises:
            ParameterError: a parameter is wrong.
            DataError: a column or the targets cannot be used.
            ValueError: scikit-learn's, on bad X and y.
        """
        self._validate_params()
        require_target(self, y)
        numbers = column_or_1d(check_array(y, ensure_2d=False, dtype=np.float64, input_name="y"), warn=True)
        given = self._read(X, numbers, sample_weight, groups)
        added = _offset(offset, len(numbers))[given.places]
        self._has_offset = offset is not None
        _require_range(self.family, given.y)
        units = self._units(given.y, given.weight)
        # Gaussian scores are in units of the standard deviation of y, others are logarithms
        family = _FAMILIES[self.family]

        def of(y: np.ndarray) -> Targets:
            # (y - shift) / scale; of a gamma y / exp(shift), as its scores are logarithms
            scaled = (y - units.shift) / units.scale if self.family == "gaussian" else y / np.exp(units.shift)
            return Targets(scaled, np.ones(len(y)))

        self._fit(
            given,
            of,
            family,
            offset=added / units.scale,
            strata=np.zeros(len(given.y), int),
            units=units,
            callback=callback,
        )
        return self

    def _dispersed(self, rows: Rows) -> tuple[Rows, AdditiveFit | None]:
        if self.family != "poisson":
            return rows, None
        # a phi below 1 is no dispersion of counts: Poisson's own, 1, then
        additive = AdditiveFit(rows, ADDITIVE)
        return (rows._replace(family=Poisson()), None) if additive.found.outer.phi < 1.0 else (rows, additive)

    def _units(self, y: np.ndarray, weight: np.ndarray) -> Units:
        # Divided first: squares of the largest floats overflow.
        largest = float(np.max(np.abs(y))) or 1.0
        # standard deviation and mean of y / largest, times it
        mean = float(np.average(y / largest, weights=weight))
        if self.family == "gaussian":
            deviation = float(np.sqrt(np.average((y / largest - mean) ** 2, weights=weight)))
            return Units(mean * largest, deviation * largest or 1.0)
        return Units(float(np.log(mean) + np.log(largest))) if self.family == "gamma" else Units()

    @property
    def _link(self) -> Link:
        return "identity" if self.family == "gaussian" else "log"

    def predict(self, X: Features, offset: ArrayLike | None = None) -> np.ndarray:
        """The mean of each row, [n]; offset [n] as in ``fit``, where it had one: without, a warning, and 0."""
        scores = self._scores(X)
        if offset is None and self._has_offset:
            warnings.warn("it was fitted with an offset: without one, predictions are for an offset of 0", stacklevel=2)
        return self.model_.mean(scores + _offset(offset, len(scores))[:, None])

    def score(
        self, X: Features, y: ArrayLike, sample_weight: ArrayLike | None = None, offset: ArrayLike | None = None
    ) -> float:
        """R squared of the predictions; offset [n] as in ``fit``."""
        return float(r2_score(y, self.predict(X, offset), sample_weight=sample_weight))


def _require_range(family: str, y: np.ndarray) -> None:
    low = float(y.min())
    if family == "poisson" and (low < 0.0 or float(y.max()) == 0.0):
        raise DataError(f"y of family 'poisson' are counts of at least 0, some above; the least of them is {low:g}")
    if family == "gamma" and low <= 0.0:
        raise DataError(f"y of family 'gamma' are amounts above 0; the least of them is {low:g}")


def _offset(offset: ArrayLike | None, n: int) -> np.ndarray:
    """[n], 0 where it is None."""
    if offset is None:
        return np.zeros(n)
    out = np.asarray(offset, float)
    if out.shape != (n,) or not np.all(np.isfinite(out)):
        raise ParameterError(f"offset must be a finite number for each of the {n} rows")
    return out
