"""What additive models share as estimators: rows binned, candidates compared, the mixture kept as curves."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from bilevax.core.errors import ParameterError
from bilevax.sklearn.additive_choice import Compared, choose
from bilevax.sklearn.additive_table import binned, directions
from bilevax.sklearn.frames import as_table, check_sample_weight
from bilevax.sklearn.row_splits import deal_folds
from bilevax.sklearn.threads import one_thread
from bilevax.solvers.additive_families import Family, Multinomial
from bilevax.solvers.additive_models import ADDITIVE, ONE_PENALTY, PENALTY_EACH, AdditiveFit, Candidate, Rows
from bilevax.tables.additive import AdditiveModel, Link, Source
from bilevax.tables.labels import Label
from bilevax.tables.table import Table

CANDIDATES = ONE_PENALTY, PENALTY_EACH, ADDITIVE

GAINED = 1.0
"""Log evidence below which a column can be dropped: e to 1."""

FOLDS = 5
"""Of the K-fold loss that tunes penalties."""


class Curve(NamedTuple):
    """What a column adds to the score.

    Attributes:
        name: of the column, with the part of a date in brackets.
        at: mean of the numbers in each bin, [bins], or levels and ``"(other values)"``; a missing cell comes last.
        effect: [bins]; [bins, C] for more than two classes. Its mean over the training rows is 0.
        lower: of the 95 % band, likewise.
        upper: likewise.
        weight: of the training rows in each bin, [bins].
    """

    name: str
    at: tuple[float | str, ...]
    effect: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    weight: np.ndarray


class Penalty(NamedTuple):
    """A penalty of the final model.

    Attributes:
        name: of the column.
        kind: what it is on: ``linear``, ``smooth``, ``rough``, ``levels``, ``steps`` or ``missing``.
        penalty: of 1/2 |b|^2 beside the sum of half the deviances, for functions of mean square 1; divided by the
            dispersion it is the inverse of the prior variance.
        freedom: effective degrees of freedom, all scores together.
        candidate: the model of the mixture that has it.
    """

    name: str
    kind: str
    penalty: float
    freedom: float
    candidate: str


class Given(NamedTuple):
    """Rows whose weight is above 0: a table, targets, weights, groups, and their places."""

    table: Table
    y: np.ndarray
    weight: np.ndarray
    groups: np.ndarray | None
    places: np.ndarray


class Units(NamedTuple):
    """Scores in the units of y: shift + scale s."""

    shift: float = 0.0
    scale: float = 1.0


PLAIN = Units()


class TunedAdditive(BaseEstimator, ABC):
    """The parameters of both, and what they learn."""

    _parameter_constraints: ClassVar[dict[str, list[object]]] = {
        "choose": ["boolean"],
        "tuned_by": [StrOptions({"auto", "marginal", "folds"})],
        "ordered": [dict, None],
        "monotone": [dict, None],
        "random_state": ["random_state"],
    }

    choose: bool
    tuned_by: str
    ordered: Mapping[str, Sequence[str]] | None
    monotone: Mapping[str, int] | None
    random_state: int | np.random.RandomState | None

    @property
    @abstractmethod
    def _link(self) -> Link:
        """From scores to means."""

    def _read(self, X: Any, y: np.ndarray, sample_weight: ArrayLike | None, groups: ArrayLike | None) -> Given:
        """What there is to learn from."""
        table, n = as_table(self, X, reset=True), len(y)
        check_consistent_length(table.columns[0].values, y)
        of_rows = None if groups is None else np.asarray(groups)
        if of_rows is not None and of_rows.shape != (n,):
            raise ParameterError(f"groups has the shape {of_rows.shape}; give one group for each of the {n} rows")
        weight = check_sample_weight(sample_weight, y)
        there = np.flatnonzero(weight > 0.0)
        if len(there) < n:
            table, y, weight = table.take(there), y[there], weight[there]
            of_rows = None if of_rows is None else of_rows[there]
        return Given(table, y, weight, of_rows, there)

    def _fit(
        self,
        given: Given,
        y: np.ndarray,
        family: Family,
        *,
        levels: Mapping[str, tuple[str, ...]],
        offset: np.ndarray | None = None,
        strata: np.ndarray,
        by_folds: bool,
        units: Units = PLAIN,
    ) -> None:
        """Choose, tune and fit.

        Args:
            given: the rows.
            y: targets as the family takes them, [n].
            family: of the likelihood.
            levels: of ordered columns.
            offset: [n].
            strata: classes that folds have in equal shares, [n].
            by_folds: whether penalties are tuned by the K-fold loss.
            units: of the scores.
        """
        random = np.random.RandomState(check_random_state(self.random_state).randint(2**31 - 1))
        fold = deal_folds(strata, given.groups, FOLDS, random) if by_folds else None
        start = np.zeros((len(y), family.scores)) if offset is None else offset[:, None]
        kept: tuple[tuple[Candidate, float], ...] = ((ADDITIVE, 1.0),)
        self.choice_: tuple[Compared, ...] = ()
        self.notes_: tuple[str, ...] = ()
        with one_thread():
            bins = binned(given.table, given.weight, levels, family.scores)
            turns = directions(bins.sources, levels, self.monotone or {}, family.scores)
            rows = Rows(bins.effects, bins.codes, y, given.weight, start, family, turns, fold)
            rows = self._dispersed(rows)
            if self.choose:
                choice = choose(rows, CANDIDATES, strata, given.groups, random)
                kept, self.choice_ = choice.kept, choice.compared
                if choice.rows < len(y):
                    self.notes_ += (f"the candidates were compared on {choice.rows:,} of {len(y):,} rows",)
            fits = [AdditiveFit(rows, candidate) for candidate, _ in kept]
            self._keep(bins.sources, fits, [share for _, share in kept], units)

    def _dispersed(self, rows: Rows) -> Rows:
        """The rows with the family whose dispersion suits them."""
        return rows

    def _keep(self, sources: tuple[Source, ...], fits: list[AdditiveFit], shares: list[float], units: Units) -> None:
        """The mixture as one additive model."""
        names, family = [source.name for source in sources], fits[0].rows.family
        # of more than two classes the scores of all
        Q = units.scale * (family.contrasts if isinstance(family, Multinomial) else np.eye(1))
        curves = [[curve @ Q.T for curve in fit.curves] for fit in fits]
        mixed = tuple(np.tensordot(shares, [own[j] for own in curves], 1) for j in range(len(names)))
        intercept = units.shift + np.tensordot(shares, [fit.intercept @ Q.T for fit in fits], 1)
        classes: tuple[Label, ...] = tuple(getattr(self, "classes_", np.zeros(0)).tolist())
        self.model_ = AdditiveModel(self._link, classes, intercept, sources, fits[0].rows.effects, mixed)
        self.intercept_ = float(intercept[0]) if len(Q) == 1 else intercept
        self.mixture_ = {fit.candidate.name: share for share, fit in zip(shares, fits, strict=True)}
        self.curves_ = self._bands(fits, shares, curves, Q)
        self.penalties_ = tuple(
            Penalty(names[part.effect], part.kind, part.penalty, part.freedom, fit.candidate.name)
            for fit in fits
            for part in fit.parts()
        )
        freedom = dict.fromkeys(names, 0.0)
        for penalty in self.penalties_:
            freedom[penalty.name] += self.mixture_[penalty.candidate] * penalty.freedom
        self.effective_degrees_of_freedom_ = freedom
        richest = fits[-1]
        self.evidence_ = dict(zip(names, richest.evidence().tolist(), strict=True))
        self.drop_columns_ = self._without_evidence()
        self.dispersion_ = richest.found.outer.phi * units.scale**2

    def _bands(
        self, fits: list[AdditiveFit], shares: list[float], curves: list[list[np.ndarray]], Q: np.ndarray
    ) -> dict[str, Curve]:
        errors, out = [fit.errors(Q) for fit in fits], {}
        for j, (source, effect) in enumerate(zip(self.model_.sources, self.model_.effects, strict=True)):
            f = self.model_.curves[j]
            # sum_c a_c (se_c^2 + (f_c - f)^2) (Buckland, Burnham, Augustin 1997)
            spread = [error[j] ** 2 + (own[j] - f) ** 2 for error, own in zip(errors, curves, strict=True)]
            half = 1.96 * np.sqrt(np.tensordot(shares, spread, 1))
            f, low, high = (x[:, 0] if len(Q) == 1 else x for x in (f, f - half, f + half))
            out[source.name] = Curve(source.name, effect.labels(), f, low, high, effect.weight)
        return out

    def _without_evidence(self) -> tuple[str, ...]:
        """Columns none of whose effects has evidence."""
        most: dict[str, float] = {}
        for source in self.model_.sources:
            most[source.column] = max(most.get(source.column, -np.inf), self.evidence_[source.name])
        return tuple(name for name, log_evidence in most.items() if log_evidence < GAINED)

    def _scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return self.model_.scores(self.model_.codes(as_table(self, X, reset=False)))

    def contributions(self, X: Any) -> np.ndarray:
        """What every effect adds to the scores of each row, [n, effects], or [n, effects, C] for more than two classes.

        With the intercept they sum to the scores; the effects are in the order of ``curves_``.
        """
        check_is_fitted(self)
        found = self.model_.contributions(self.model_.codes(as_table(self, X, reset=False)))
        return found[:, :, 0] if found.shape[2] == 1 else found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        return tags


def require_target(estimator: BaseEstimator, y: object) -> None:
    """Refuse a fit without targets, in scikit-learn's words."""
    if y is None:
        raise ValueError(f"{type(estimator).__name__} requires y to be passed, but the target y is None")
