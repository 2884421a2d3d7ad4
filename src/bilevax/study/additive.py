"""An additive model of a prepared table: candidates compared by folds of the training rows, the best mixture kept."""

import dataclasses
import time
from contextlib import closing, nullcontext
from typing import Literal, TypeAlias

import numpy as np

from bilevax.core.events import Event
from bilevax.core.run_records import Candidate, Effect, Note, Pair, Part, Record, Task
from bilevax.core.signals import Stops
from bilevax.sklearn.additive import TunedAdditiveClassifier, TunedAdditiveRegressor
from bilevax.sklearn.additive_base import Curve, Surface, learn_from
from bilevax.solvers.additive_models import ONE_PENALTY, PENALTY_EACH
from bilevax.study.kept import Emit, Kept, Stage, or_none
from bilevax.study.preparation import Prepared
from bilevax.study.row_set import RowSet
from bilevax.study.settings import TuneSettings
from bilevax.tables.additive import AdditiveModel
from bilevax.tables.table import orders_of

_LINEAR = {ONE_PENALTY.name, PENALTY_EACH.name}

STOPPING = "stopping: the model is finished by what is known so far; press again to give up everything"
"""Said at the first signal."""

SHARE = 0.5
"""Of the time that is allowed, for the comparison of candidates: the final fit and the rivals take some, too."""

CURVES, PAIRS = 40, 20
"""Effects whose curves are recorded, and pairs, at most: the most important ones."""

Estimator: TypeAlias = TunedAdditiveClassifier | TunedAdditiveRegressor

_FAMILIES: dict[Task, Literal["gaussian", "poisson", "gamma"]] = {
    "number": "gaussian", "count": "poisson", "amount": "gamma",
}  # fmt: skip


def fit_additive(
    prepared: Prepared, settings: TuneSettings, emit: Emit, stage: Stage, begun: float, every: RowSet | None = None
) -> Kept:
    """Tune, choose and fit on the training rows; a signal, or the end of the time, ends the choice.

    Args:
        prepared: the rows.
        settings: how.
        emit: gets records of the candidates and effects.
        stage: told how far the comparison of the candidates is.
        begun: when the time began, by ``time.perf_counter``.
        every: all rows, where those that are prepared are some of them.
    """
    stage("tuning and comparing models", long=True)
    rows, groups, exposure = prepared.split.train, prepared.groups(settings), prepared.exposures(settings)
    start = time.perf_counter()
    estimator = _estimator(prepared, settings)
    with Stops(told=lambda: stage(STOPPING, long=True)) as stops, nullcontext() if every is None else closing(every):

        def callback(record: Event) -> bool:
            left = record["seconds"] * (record["of"] / record["fold"] - 1) if record["fold"] else None
            rest = None if settings.time is None else max(0.0, SHARE * settings.time - (time.perf_counter() - begun))
            if left is not None and rest is not None:
                left = min(left, rest)
            told = stage("comparing models", done=record["fold"], of=record["of"], seconds_left=left)
            end = bool(told) or rest == 0.0 or stops.number > 0
            # all processes compare the same folds
            return end if every is None else every.processes.any(end)

        if every is not None:
            every.begin(prepared, lambda: stops.number > 0)
            counting = time.perf_counter()
            every.count()
            begun += time.perf_counter() - counting  # the comparison is what is limited
            learn_from(estimator, every)
        estimator.fit(
            prepared.features.take(rows),
            prepared.target.values[rows],
            groups=None if groups is None else groups[rows],
            callback=callback,
            **({} if exposure is None else {"offset": np.log(exposure[rows])}),
        )
    interrupted = stops.number > 0
    seconds = time.perf_counter() - start
    for text in (*estimator.notes_, *(every.notes if every is not None else ())):
        emit(Note(text=text, about="model"))
    if estimator.interrupted_:
        emit(Note(text=_ended(estimator, interrupted=interrupted), about="model"))
    for record in (*candidates(estimator, _unit(prepared)), *effects(estimator)):
        emit(record)
    influence = None if estimator.influence_ is None else tuple(estimator.influence_.tolist())
    chosen = "stacking of models tuned inside five folds" if estimator.choice_ else "the richest model, not compared"
    by = "marginal likelihood" if settings.group is None and settings.class_weight is None else "held-out folds"
    return Kept(
        name=f"{'linear' if estimator.mixture_.keys() <= _LINEAR else 'additive'} model (bilevax)",
        model=_plain_model(estimator, prepared, settings),
        seconds=seconds,
        interrupted=interrupted,
        code="OK",
        message="",
        method=by,
        reason=chosen,
        influence=influence,
    )


def _plain_model(estimator: Estimator, prepared: Prepared, settings: TuneSettings) -> AdditiveModel:
    labels = prepared.target.labels
    return dataclasses.replace(
        estimator.model_,
        target=prepared.target.name,
        missing=prepared.marks(settings),
        dates=orders_of(prepared.features.columns),
        classes=labels.classes if labels is not None else (),
        exposure=settings.exposure or "",
    )


def _estimator(prepared: Prepared, settings: TuneSettings) -> Estimator:
    if prepared.target.labels is not None:
        return TunedAdditiveClassifier(
            pairs=settings.pairs, class_weight=settings.class_weight, random_state=settings.seed
        )
    family = _FAMILIES[prepared.target.task]
    return TunedAdditiveRegressor(family, pairs=settings.pairs, random_state=settings.seed)


def _ended(estimator: Estimator, *, interrupted: bool) -> str:
    why = "interrupted" if interrupted else "the time is used up"
    richest = "with pairs of columns" if estimator.pairs else "with a curve for each column"
    unseen = f"the model {richest} was kept without a comparison"
    known = "what the folds that were done say was kept" if estimator.choice_ else unseen
    return f"{why} before all candidates were compared: {known}"


def _unit(prepared: Prepared) -> float:
    """Of a candidate's loss, in that of the comparison: half the deviance, of a number that is scaled to variance 1."""
    task, y = prepared.target.task, prepared.target.values[prepared.split.train]
    return {"classes": 1.0, "number": 2.0 * float(np.var(y)), "count": 2.0, "amount": 2.0}[task]


def candidates(estimator: Estimator, unit: float) -> list[Record]:
    """Records of what was compared, with losses in a unit."""
    return [
        Candidate(
            name=c.candidate,
            loss=unit * c.loss,
            difference=unit * c.difference,
            standard_error=unit * c.standard_error,
            weight=c.weight,
        )
        for c in estimator.choice_
    ]


def effects(estimator: Estimator) -> list[Record]:
    """Records of the curves and surfaces, most important first."""
    columns = {source.name: source.column for source in estimator.model_.sources}
    curves = sorted(estimator.curves_.values(), key=lambda c: -_importance(c.effect, c.weight))
    pairs = sorted(estimator.pairs_.items(), key=lambda item: -_importance(item[1].effect, item[1].weight))
    out: list[Record] = []
    for k, curve in enumerate(curves):
        droppable = columns[curve.name] in estimator.drop_columns_
        parts = [
            Part(part=p.kind, candidate=p.candidate, penalty=p.penalty, freedom=p.freedom)
            for p in estimator.penalties_
            if p.name == curve.name
        ]
        effect = Effect(
            name=curve.name,
            importance=_importance(curve.effect, curve.weight),
            freedom=estimator.effective_degrees_of_freedom_[curve.name],
            log_evidence=or_none(estimator.evidence_[curve.name]),
            droppable=droppable,
            parts=parts,
        )
        out.append(effect.model_copy(update=_points(curve)) if k < CURVES else effect)
    out += [_pair(surface, estimator.evidence_[name]) for name, surface in pairs[:PAIRS]]
    return out


def _importance(effect: np.ndarray, weight: np.ndarray) -> float:
    """Root of the mean over rows of the squares, added up over classes."""
    # sqrt(sum_b w_b sum_c f_bc^2 / sum_b w_b)
    flat = effect.reshape(weight.size, -1)
    return float(np.sqrt(np.average((flat**2).sum(axis=1), weights=weight.ravel())))


def _points(curve: Curve) -> dict[str, object]:
    def told(values: np.ndarray) -> list[list[float]]:
        return [[_short(x) for x in row] for row in values.reshape(len(curve.at), -1).tolist()]

    return {
        "at": [_short(at) if isinstance(at, float) else at for at in curve.at],
        "curve": told(curve.effect),
        "lower": told(curve.lower),
        "upper": told(curve.upper),
        "weight": curve.weight.tolist(),
    }


def _short(x: float) -> float:
    """To six digits: what is drawn needs no more."""
    return float(f"{x:.6g}")


def _pair(surface: Surface, log_evidence: float) -> Pair:
    shape = surface.weight.shape
    return Pair(
        names=surface.names,
        importance=_importance(surface.effect, surface.weight),
        log_evidence=or_none(log_evidence),
        first=list(surface.at_first),
        second=list(surface.at_second),
        surface=[[list(map(_short, s)) for s in row] for row in surface.effect.reshape(*shape, -1).tolist()],
        weight=surface.weight.tolist(),
    )
