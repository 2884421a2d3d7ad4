"""The whole workflow on a table: tune on training and validation rows, then compare on rows that no tuning saw."""

import dataclasses
import importlib.metadata
import os
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from bilevax.core.codes import Code
from bilevax.core.events import Event
from bilevax.runs import Run
from bilevax.runs.identity import machine
from bilevax.sklearn.logistic import TunedLogisticRegression
from bilevax.study.baselines import Baseline, row_losses, single_penalty_grid, untuned
from bilevax.study.evaluation import Classifier, mean_and_error, paired_interval, score
from bilevax.study.preparation import Prepared, prepare
from bilevax.study.settings import TuneSettings
from bilevax.tables.labels import label_text
from bilevax.tables.linear import LinearModel, penalties_by_term
from bilevax.tables.table import Table

__all__ = ["GRID", "TUNED", "UNTUNED", "Study", "TuneSettings", "tune_table"]

TUNED = {
    "feature": "one penalty per feature (bilevax)",
    "column": "one penalty per column (bilevax)",
    "class": "one penalty per class (bilevax)",
    "weight": "one penalty per weight (bilevax)",
    "global": "one penalty (bilevax)",
}
GRID = "single penalty, grid of 20"
UNTUNED = "no tuning (C = 1)"

_CHEAP = 20_000_000
"""Cells times classes up to which the rivals are still fitted after an interruption: some seconds."""


class _Emit(Protocol):
    """Keeps a record and passes it on."""

    def __call__(self, kind: str, **record: object) -> object: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """What came out.

    Attributes:
        table: name of the table.
        target: the column that is predicted.
        settings: as given.
        prepared: labels, split, encoder and matrix.
        model: the tuned model as plain numbers.
        estimator: the fitted estimator.
        events: the records of ``metrics.jsonl``, in their order.
        interrupted: True if the user stopped it; everything else is what was reached.
    """

    table: str
    target: str
    settings: TuneSettings
    prepared: Prepared
    model: LinearModel
    estimator: TunedLogisticRegression
    events: tuple[Event, ...]
    interrupted: bool

    def of_kind(self, kind: str) -> list[Event]:
        """The records of one kind."""
        return [event for event in self.events if event["kind"] == kind]

    def config(self) -> dict[str, dict[str, object]]:
        """The tables of ``config.toml``."""
        table = self.prepared.table
        begun = config_at_start(table, self.target, self.settings)
        return {
            **begun,
            "data": {
                **begun["data"],
                "rows": table.rows,
                "columns": len(table.columns),
                "classes": [label_text(label) for label in self.model.classes],
            },
            "method": {"name": str(self.estimator.method_), "reason": str(self.estimator.method_reason_)},
        }


def config_at_start(table: Table, target: str, settings: TuneSettings) -> dict[str, dict[str, object]]:
    """What ``config.toml`` will say that is known before anything is computed."""
    now = machine()
    return {
        "data": {
            "table": table.name,
            "target": target,
            "group": settings.group,
            "time": settings.time,
            "sha256": table.sha256 or None,
        },
        "tune": settings.model_dump(mode="json", exclude={"group", "time"}),
        "versions": {
            **{name: now[name] for name in ("bilevax", "jax", "numpy")},
            "scikit-learn": importlib.metadata.version("scikit-learn"),
            "python": now["python"],
        },
        "machine": {name: now[name] for name in ("device", "cores")},
    }


def tune_table(
    table: Table,
    target: str,
    *,
    settings: TuneSettings | None = None,
    on_event: Callable[[Event], object] | None = None,
    run: Run | str | os.PathLike[str] | None = None,
) -> Study:
    """Tune penalties on a table and compare with what the user would have otherwise.

    Rows without a label are left out. The rest are split; the encoder learns from the training rows, penalties are
    tuned on the validation rows, and every model is scored on the test rows.

    Args:
        table: features and target.
        target: name of the column to be predicted.
        settings: see :class:`TuneSettings`.
        on_event: called with every record as it happens: ``stage`` (what begins now), ``note``, ``data``, ``step``,
            ``gap``, ``comparison``, ``paired``, ``end``; what it returns for a ``step`` stops the tuning if true.
        run: where checkpoints of the tuning are kept, as of :func:`bilevax.minimize`; the same call then goes on, and
            ``on_event`` gets every record again.

    Raises:
        DataError: a fault of the table.
        ParameterError: a setting does not suit the table.
        CheckpointError: the checkpoints are of another run, in use, or damaged.
    """
    start = time.perf_counter()
    settings = settings or TuneSettings()
    events: list[Event] = []

    def emit(kind: str, **record: object) -> object:
        # A stage is shown, not kept: it is no result.
        event = {"kind": kind, **record}
        if kind != "stage":
            events.append(event)
        return on_event(event) if on_event is not None else None

    emit("stage", name="splitting and encoding the table")
    prepared = prepare(table, target, settings)
    for note in prepared.notes:
        emit("note", text=note)
    emit("data", **_data(prepared))
    # No test row is seen from here to the comparison.
    emit("stage", name="compiling, then tuning", long=True)
    before = time.perf_counter() - start
    estimator, seconds = _fit(prepared, settings, emit, run)
    start = time.perf_counter() - before - seconds
    model = _plain_model(estimator, prepared, target, settings)
    gap, error = estimator.validation_gap_, estimator.validation_gap_se_
    emit("gap", validation_gap=_or_none(gap), standard_error=_or_none(error))
    interrupted = bool(estimator.interrupted_)
    # The tuned model is there already: Ctrl-C ends the comparison, not the study.
    try:
        _compare(model, estimator, seconds, prepared, settings, emit)
    except KeyboardInterrupt:
        interrupted = True
        emit("note", text="the comparison was interrupted; the tuned model is complete")
    code = Code(int(estimator.code_))
    emit(
        "end",
        code=code.name,
        message=code.message,
        interrupted=interrupted,
        seconds=time.perf_counter() - start,
        visits=int(estimator.visits_),
        steps=int(estimator.n_iter_),
    )
    return Study(table.name, target, settings, prepared, model, estimator, tuple(events), interrupted)


def _data(prepared: Prepared) -> Event:
    table = prepared.table
    return {
        "rows": {part: len(rows) for part, rows in prepared.split._asdict().items()},
        "features": len(prepared.encoder.columns_),
        "design_columns": prepared.X.shape[1],
        "classes": prepared.labels.counts(),
        "missing_cells": int(sum(table.column(name).missing.sum() for name in prepared.encoder.columns_)),
    }


def _tuning_rows(prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation rows, and which of them validate."""
    train, validation, _ = prepared.split
    rows = np.concatenate([train, validation])
    return rows, np.arange(len(rows)) >= len(train)


def _fit(
    prepared: Prepared, settings: TuneSettings, emit: _Emit, run: Run | str | os.PathLike[str] | None
) -> tuple[TunedLogisticRegression, float]:
    rows, validation = _tuning_rows(prepared)
    estimator = TunedLogisticRegression(
        _penalty_per(prepared, settings),
        class_weight=settings.class_weight,
        scoring=settings.scoring,
        method=settings.method,
        steps=settings.steps,
        random_state=settings.seed,
    )

    # With compilation: that is what the user waits for.
    start = time.perf_counter()

    def step(record: Event) -> bool:
        nonlocal start
        # the records of a run that goes on count from where it was begun, in another process
        start = min(start, time.perf_counter() - record["seconds"])
        plain = {name: _or_none(value) if isinstance(value, float) else value for name, value in record.items()}
        return bool(emit("step", **plain))

    estimator.fit(
        prepared.X[rows],
        prepared.labels.codes[rows],
        groups=None if settings.group is None else prepared.table.column(settings.group).values[rows],
        validation=validation,
        callback=step,
        run=run,
    )
    return estimator, time.perf_counter() - start


def _penalty_per(prepared: Prepared, settings: TuneSettings) -> str | np.ndarray:
    """For a penalty per column the number of each term's column: the estimator sees terms."""
    if settings.penalty_per != "column":
        return settings.penalty_per
    encoder = prepared.encoder
    return np.array([encoder.columns_.index(term.column) for term in encoder.terms_])


def _or_none(value: float | None) -> float | None:
    """The value; None, as JSON has no NaN, where it is not finite."""
    return None if value is None or not np.isfinite(value) else float(value)


def _plain_model(
    estimator: TunedLogisticRegression, prepared: Prepared, target: str, settings: TuneSettings
) -> LinearModel:
    terms, reading = prepared.encoder.terms_, settings.reading
    return LinearModel(
        target=target,
        classes=prepared.labels.classes,
        intercept=np.asarray(estimator.intercept_, np.float64).reshape(-1),
        coef=np.asarray(estimator.coef_, np.float64),
        terms=terms,
        penalties=penalties_by_term(estimator.penalties_, settings.penalty_per, len(terms)),
        missing={name: found for name in prepared.encoder.columns_ if (found := reading.marks(name))},
    )


def _compare(
    model: LinearModel,
    estimator: TunedLogisticRegression,
    seconds: float,
    prepared: Prepared,
    settings: TuneSettings,
    emit: _Emit,
) -> None:
    """Score the models on the test rows."""
    rows, validation = _tuning_rows(prepared)
    test, codes = prepared.split.test, prepared.labels.codes
    X, y = prepared.X[rows], codes[rows]

    def report(
        name: str, fitted: Classifier, losses: np.ndarray, validation_loss: float | None, seconds: float
    ) -> np.ndarray:
        mean, error = mean_and_error(losses)
        accuracy = float(np.mean(fitted.predict(prepared.X[test]) == codes[test]))
        emit(
            "comparison",
            name=name,
            test_log_loss=mean,
            test_log_loss_se=error,
            test_accuracy=accuracy,
            validation_log_loss=validation_loss,
            seconds=seconds,
            score=score(prepared.scorer, fitted, prepared.X[test], codes[test]),
            score_name=settings.scoring,
        )
        return losses

    # By the exported model, so that what is compared is what is kept.
    tuned_losses = row_losses(model.predict_proba(prepared.table.take(test)), codes[test])
    tuned = report(TUNED[settings.penalty_per], estimator, tuned_losses, _or_none(estimator.validation_loss_), seconds)
    if estimator.interrupted_ and X.size * len(model.classes) > _CHEAP:
        emit("note", text="interrupted: the comparison with other models is left out, it would take long")
        return
    for name, search in ((GRID, single_penalty_grid), (UNTUNED, untuned)):
        emit("stage", name=f"fitting: {name}")
        baseline: Baseline = search(X, y, validation, class_weight=settings.class_weight)
        if not baseline.converged:
            emit("note", text=f"{name}: scikit-learn's solver did not converge within its iterations in every fit")
        losses = row_losses(baseline.model.predict_proba(prepared.X[test]), codes[test])
        report(name, baseline.model, losses, baseline.validation_loss, baseline.seconds)
        # Row by row: both models meet the same easy and hard rows.
        difference, low, high = paired_interval(tuned, losses)
        emit("paired", name=name, difference=difference, low=low, high=high)
