"""What additive models share as estimators: rows binned, candidates compared, the mixture kept as curves."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from bilevax.core.errors import ParameterError
from bilevax.core.events import Callback
from bilevax.sklearn.additive_choice import Compared, choose, some_rows
from bilevax.sklearn.additive_passes import EveryRow, Targets, fit_to_every_row
from bilevax.sklearn.additive_table import binned, directions, ordered_levels
from bilevax.sklearn.frames import Features, as_table, check_sample_weight, notes_on_reading
from bilevax.sklearn.row_splits import deal_folds
from bilevax.sklearn.threads import one_thread
from bilevax.solvers.additive_families import Family, Multinomial
from bilevax.solvers.additive_models import ADDITIVE, ONE_PENALTY, PAIRS, PENALTY_EACH, AdditiveFit, Candidate, Rows
from bilevax.solvers.additive_stack import fitted
from bilevax.tables.additive import AdditiveModel, Link, Source, pair_name
from bilevax.tables.effects import MISSING, Effect
from bilevax.tables.labels import Label
from bilevax.tables.pairs import Pair
from bilevax.tables.table import Table
from bilevax.tables.terms import OTHER

CANDIDATES: tuple[Candidate, ...] = ONE_PENALTY, PENALTY_EACH, ADDITIVE, PAIRS

GAINED = 1.0
"""Log evidence below which a column can be dropped: e to 1."""

FOLDS, FOLDED = 5, 10_000
"""Of the K-fold loss that tunes penalties, and the rows that it is taken of, at most."""


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


class Surface(NamedTuple):
    """What a pair of columns adds to the score, beside what each adds by itself.

    Attributes:
        names: of the two columns.
        at_first: the groups of the first: mean of their numbers, or their levels; the missing cells' comes last.
        at_second: of the second.
        effect: [groups, groups]; [groups, groups, C] for more than two classes. In every row and column of it the mean
            over the training rows is 0.
        lower: of the 95 % band, likewise.
        upper: likewise.
        weight: of the training rows, [groups, groups].
    """

    names: tuple[str, str]
    at_first: tuple[float | str, ...]
    at_second: tuple[float | str, ...]
    effect: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    weight: np.ndarray


class Given(NamedTuple):
    """Rows whose weight is above 0: a table, targets, weights, groups, places; levels of ordered columns."""

    table: Table
    y: np.ndarray
    weight: np.ndarray
    groups: np.ndarray | None
    places: np.ndarray
    levels: Mapping[str, tuple[str, ...]]


class Units(NamedTuple):
    """Scores in the units of y: shift + scale s."""

    shift: float = 0.0
    scale: float = 1.0


PLAIN = Units()


class TunedAdditive(BaseEstimator, ABC):
    """The parameters of both, and what they learn."""

    _parameter_constraints: ClassVar[dict[str, list[object]]] = {
        "choose": ["boolean"],
        "pairs": ["boolean"],
        "tuned_by": [StrOptions({"auto", "marginal", "folds"})],
        "ordered": [dict, None],
        "monotone": [dict, None],
        "random_state": ["random_state"],
        "n_jobs": [Integral, None],
    }

    choose: bool
    pairs: bool
    tuned_by: str
    ordered: Mapping[str, Sequence[str]] | None
    monotone: Mapping[str, int] | None
    random_state: int | np.random.RandomState | None
    n_jobs: int | None

    _every: EveryRow | None = None

    @property
    @abstractmethod
    def _link(self) -> Link:
        """From scores to means."""

    def _read(self, X: Features, y: np.ndarray, sample_weight: ArrayLike | None, groups: ArrayLike | None) -> Given:
        """What there is to learn from."""
        table, n = as_table(self, X, reset=True), len(y)
        self.notes_ = notes_on_reading(X, table)
        check_consistent_length(table.columns[0].values, y)
        of_rows = None if groups is None else np.asarray(groups)
        if of_rows is not None and of_rows.shape != (n,):
            raise ParameterError(f"groups has the shape {of_rows.shape}; give one group for each of the {n} rows")
        weight = check_sample_weight(sample_weight, y)
        there = np.flatnonzero(weight > 0.0)
        if len(there) < n:
            table, y, weight = table.take(there), y[there], weight[there]
            of_rows = None if of_rows is None else of_rows[there]
        return Given(table, y, weight, of_rows, there, ordered_levels(X, self.ordered))

    def _fit(
        self,
        given: Given,
        of: Callable[[np.ndarray], Targets],
        family: Family,
        *,
        offset: np.ndarray | None = None,
        strata: np.ndarray,
        doubtful: bool = False,
        units: Units = PLAIN,
        callback: Callback | None = None,
    ) -> None:
        """Choose, tune and fit.

        Args:
            given: the rows.
            of: targets as the family takes them, and weights, from those that are given.
            family: of the likelihood.
            offset: [n].
            strata: classes that folds have in equal shares, [n].
            doubtful: whether the likelihood is, so that the K-fold loss tunes penalties, as where rows are grouped.
            units: of the scores.
            callback: of the choice.
        """
        random = np.random.RandomState(check_random_state(self.random_state).randint(2**31 - 1))
        y = of(given.y).y
        by_folds = self.tuned_by == "folds" or (self.tuned_by == "auto" and (doubtful or given.groups is not None))
        fold = _folds(strata, given.groups, random) if by_folds else None
        start = np.zeros((len(y), family.scores)) if offset is None else offset[:, None]
        richest = len(CANDIDATES) if self.pairs else len(CANDIDATES) - 1
        candidates = CANDIDATES[0 if self.choose else richest - 1 : richest]
        kept = {candidates[-1]: 1.0}
        self.choice_: tuple[Compared, ...] = ()
        self.interrupted_ = False
        with one_thread():
            marginal = None if self._every is None else self._every.marginal
            bins = binned(given.table, given.weight, given.levels, family.scores, marginal)
            turns = directions(bins.sources, given.levels, self.monotone or {}, family.scores)
            rows = Rows(bins.effects, bins.codes, y, given.weight, start, family, turns, fold)
            rows, additive = self._dispersed(rows)
            fits = fitted(rows, candidates, additive=additive)
            if self.choose:
                choice = choose(rows, candidates, fits, strata, given.groups, random, callback, self.n_jobs)
                kept, self.choice_, self.interrupted_ = dict(choice.kept), choice.compared, choice.ended
                if 0 < choice.rows < len(y):
                    self.notes_ += (f"the candidates were compared on {choice.rows:,} of {len(y):,} rows",)
            # a model without a pair that adds something is the one without pairs
            mixture: dict[AdditiveFit, float] = {}
            for candidate, fit in zip(candidates, fits, strict=True):
                if candidate in kept:
                    mixture[fit] = mixture.get(fit, 0.0) + kept[candidate]
            found = list(mixture.items())
            if self._every is not None:
                found, passes, ended = fit_to_every_row(self._every, bins.sources, found, of)
                self.notes_ += (_passed(passes, ended),)
            self._keep(bins.sources, found, units)
            # of the rows that are given, had the model been fitted to them
            self.influence_ = list(mixture)[-1].influence() if self._every is None else None

    def _dispersed(self, rows: Rows) -> tuple[Rows, AdditiveFit | None]:
        """The rows with the family whose dispersion suits them, and their additive model, if that told it."""
        return rows, None

    def _keep(self, sources: tuple[Source, ...], mixture: Sequence[tuple[AdditiveFit, float]], units: Units) -> None:
        """The mixture as one additive model."""
        fits, shares = [fit for fit, _ in mixture], [share for _, share in mixture]
        richest, family = fits[-1], fits[0].rows.family
        effects = richest.rows.effects
        self.notes_ += (richest.model.note,) if richest.model.note else ()
        # of more than two classes the scores of all
        Q = family.contrasts if isinstance(family, Multinomial) else np.eye(1)
        mixed, errors = _mixed(fits, shares, Q)
        curves, halves = ([units.scale * f for f in each] for each in (mixed, errors))
        # of a target in units of its own: y = shift + scale y', of curves the scale alone
        intercept = units.shift + units.scale * np.tensordot(shares, [fit.intercept @ Q.T for fit in fits], 1)
        classes: tuple[Label, ...] = tuple(getattr(self, "classes_", np.zeros(0)).tolist())
        self.model_ = AdditiveModel(self._link, classes, intercept, sources, effects, tuple(curves), richest.pairs)
        self.intercept_ = float(intercept[0]) if len(Q) == 1 else intercept
        self.mixture_ = {fit.candidate.name: share for fit, share in mixture}
        bands = [_band(f, 1.96 * error) for f, error in zip(curves, halves, strict=True)]
        self.curves_ = {
            source.name: Curve(source.name, effect.labels(), *band, effect.weight)
            for source, effect, band in zip(sources, effects, bands, strict=False)
        }
        self.pairs_ = {
            pair_name(pair): _surface(pair, effects, *band)
            for pair, band in zip(richest.pairs, bands[len(effects) :], strict=True)
        }
        self._keep_penalties(fits)
        self.evidence_ = dict(zip(self.model_.names, richest.evidence().tolist(), strict=True))
        self.drop_columns_ = self._without_evidence()
        # a variance, in the squared units of the target
        self.dispersion_ = richest.found.outer.phi * units.scale * units.scale

    def _keep_penalties(self, fits: Sequence[AdditiveFit]) -> None:
        names = self.model_.names
        self.penalties_ = tuple(
            Penalty(names[part.effect], part.kind, part.penalty, part.freedom, fit.candidate.name)
            for fit in fits
            for part in fit.parts()
        )
        self.effective_degrees_of_freedom_ = dict.fromkeys(names, 0.0)
        for penalty in self.penalties_:
            self.effective_degrees_of_freedom_[penalty.name] += self.mixture_[penalty.candidate] * penalty.freedom

    def _without_evidence(self) -> tuple[str, ...]:
        """Columns none of whose effects has evidence; it is not known of one that shares its penalties."""
        sources = self.model_.sources
        most = {source.column: -np.inf for source in sources}
        for source in sources:
            # of a date its parts, and of a column its pairs: the strongest counts
            most[source.column] = np.maximum(most[source.column], self.evidence_[source.name])
        for pair in self.model_.pairs:
            for j in pair.columns:
                most[sources[j].column] = np.maximum(most[sources[j].column], self.evidence_[pair_name(pair)])
        return tuple(name for name, log_evidence in most.items() if log_evidence < GAINED)

    def _scores(self, X: Features) -> np.ndarray:
        check_is_fitted(self)
        return self.model_.scores(self.model_.codes(as_table(self, X, reset=False)))

    def contributions(self, X: Features) -> np.ndarray:
        """What every effect adds to the scores of each row, [n, effects], or [n, effects, C] for more than two classes.

        With the intercept they sum to the scores; the effects are in the order of ``curves_``, then of ``pairs_``.
        """
        check_is_fitted(self)
        found = self.model_.contributions(self.model_.codes(as_table(self, X, reset=False)))
        return found[:, :, 0] if found.shape[2] == 1 else found

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        return tags


def learn_from(estimator: TunedAdditive, every: EveryRow) -> None:
    """Have a fit choose on the rows that it is given, and the model be fitted to all."""
    estimator._every = every


def _passed(passes: int, ended: bool) -> str:
    if not passes:
        return "ended before a pass over all rows: the model is fitted to the rows that it was chosen on"
    many = f"{passes} passes" if passes > 1 else "a pass"
    return f"fitted to all rows in {many}" + (", and ended before its weights had settled" if ended else "")


def _folds(strata: np.ndarray, groups: np.ndarray | None, random: np.random.RandomState) -> np.ndarray:
    """Fold of each row, -1 but for FOLDED of them."""
    drawn, out = some_rows(len(strata), FOLDED, groups, random), np.full(len(strata), -1)
    out[drawn] = deal_folds(strata[drawn], None if groups is None else groups[drawn], FOLDS, random)
    return out


def _mixed(
    fits: Sequence[AdditiveFit], shares: Sequence[float], Q: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Curves of the mixture and their standard errors, [bins, C] each."""
    curves = [_padded([curve @ Q.T for curve in fit.curves], fits[-1]) for fit in fits]
    errors = [_padded(list(fit.errors(Q)), fits[-1]) for fit in fits]
    mixed = [np.tensordot(shares, own, 1) for own in zip(*curves, strict=True)]
    # sum_c a_c (se_c^2 + (f_c - f)^2) (Buckland, Burnham, Augustin 1997)
    spreads = [
        np.sqrt(np.tensordot(shares, [e**2 + (own - f) ** 2 for e, own in zip(se, each, strict=True)], 1))
        for f, se, each in zip(mixed, zip(*errors, strict=True), zip(*curves, strict=True), strict=True)
    ]
    return mixed, spreads


def _padded(curves: list[np.ndarray], richest: AdditiveFit) -> list[np.ndarray]:
    """With curves of 0 for the pairs that only the richest has."""
    # a candidate without pairs adds 0 there
    absent = richest.curves[len(curves) :]
    return curves + [np.zeros((len(other), curves[0].shape[1] if curves else 1)) for other in absent]


def _band(f: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The middle and both ends; [bins] of one score."""
    if f.shape[1] == 1:
        f, half = f[:, 0], half[:, 0]
    return f, f - half, f + half


def _surface(pair: Pair, effects: Sequence[Effect], *band: np.ndarray) -> Surface:
    at = [_group_labels(effects[j], group) for j, group in zip(pair.columns, pair.groups, strict=True)]
    shape = pair.weight.shape
    f, low, high = (x.reshape(*shape, *x.shape[1:]) for x in band)
    return Surface(pair.names, at[0], at[1], f, low, high, pair.weight)


def _group_labels(effect: Effect, group: np.ndarray) -> tuple[float | str, ...]:
    """Of each group: the mean of its numbers, or its level, and ``OTHER`` for several."""
    labels = effect.labels()
    out: list[float | str] = []
    for g in range(int(group[-1])):
        own = np.flatnonzero(group == g)
        if effect.centre is not None:
            mass = effect.weight[own]
            out.append(float(np.average(effect.centre[own], weights=mass if mass.any() else None)))
        else:
            out.append(labels[own[0]] if len(own) == 1 else OTHER)
    return (*out, MISSING)


def require_target(estimator: BaseEstimator, y: object) -> None:
    """Refuse a fit without targets, in scikit-learn's words."""
    if y is None:
        raise ValueError(f"{type(estimator).__name__} requires y to be passed, but the target y is None")
