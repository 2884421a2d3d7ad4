"""The whole workflow on a table: tune on training rows, then compare on rows that no tuning saw."""

import dataclasses
import importlib.metadata
import itertools
import os
import platform
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from bilevax.core.events import Event
from bilevax.core.record_lines import Records
from bilevax.core.run_records import LOSSES, Compared, Data, End, Note, Paired, Record, Rows, Scoring
from bilevax.study import additive
from bilevax.study.diagnosis import diagnosis
from bilevax.study.findings import findings
from bilevax.study.judging import mean_and_error, paired_interval, paired_scores, row_losses, score
from bilevax.study.kept import Emit, Kept, Stage, TableModel
from bilevax.study.preparation import Prepared, prepare
from bilevax.study.rivals import RIDGE, Rival, rivals
from bilevax.study.row_set import RowSet
from bilevax.study.rows import telling_rows
from bilevax.study.settings import TuneSettings
from bilevax.tables.labels import label_text
from bilevax.tables.table import Table

if TYPE_CHECKING:
    from bilevax.runs import Run

__all__ = ["Study", "TuneSettings", "tune_table"]

_CHEAP = 1_000_000
"""Cells of the test rows up to which a linear model is fitted in some seconds."""


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """What came out.

    Attributes:
        table: name of the table.
        target: the column that is predicted.
        settings: as given.
        prepared: target, split and features.
        model: the kept model as plain numbers.
        kept: what it is called, and how it came about.
        records: the lines of ``metrics.jsonl``, in their order.
        interrupted: True if the user stopped it; everything else is what was reached.

    Examples:
        >>> from bilevax.study import TuneSettings, load_bundled, tune_table
        >>> quick = TuneSettings(pairs=False, time=0.1)
        >>> study = tune_table(load_bundled("diabetes"), "progression", settings=quick)
        >>> study.target, type(study.model).__name__
        ('progression', 'AdditiveModel')
    """

    table: str
    target: str
    settings: TuneSettings
    prepared: Prepared
    model: TableModel
    kept: Kept
    records: Records
    interrupted: bool

    @property
    def events(self) -> tuple[Event, ...]:
        """The records as JSON values."""
        return tuple(map(plain, self.records))

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
            "method": {
                "name": self.kept.method,
                "reason": self.kept.reason,
                "penalty_per": self.kept.penalty_per,
            },
        }


def config_at_start(table: Table, target: str, settings: TuneSettings) -> dict[str, dict[str, object]]:
    """What ``config.toml`` will say that is known before anything is computed."""
    return {
        "data": {
            "table": table.name,
            "target": target,
            "group": settings.group,
            "time_column": settings.time_column,
            "sha256": table.sha256 or None,
        },
        "tune": {name: value for name, value in settings.plain().items() if name not in ("group", "time_column")},
        **machine_of(jax=settings.is_linear),
    }


def machine_of(*, jax: bool) -> dict[str, dict[str, object]]:
    """The tables of ``config.toml`` on what computes."""
    names = ["bilevax", "numpy", "scipy", "scikit-learn", *(["jax"] if jax else [])]
    versions = {name: importlib.metadata.version(name) for name in names}
    found: dict[str, object] = {"cores": os.cpu_count()}
    if jax:
        # JAX is imported for it alone
        from bilevax.runs.identity import machine

        found["device"] = machine()["device"]
    return {"versions": {**versions, "python": platform.python_version()}, "machine": found}


def tune_table(
    table: Table,
    target: str,
    *,
    settings: TuneSettings | None = None,
    on_event: Callable[[Event], object] | None = None,
    run: "Run | str | os.PathLike[str] | None" = None,
    every: RowSet | None = None,
) -> Study:
    """Tune a model of a table and compare with what the user would have otherwise.

    Rows without a target are left out. The rest are split; everything that is tuned or chosen is so on training rows
    (and validation rows, of a linear model), and every model is scored on the test rows.

    Args:
        table: features and target.
        target: name of the column to be predicted.
        settings: see :class:`TuneSettings`.
        on_event: called with every record as it happens, as JSON values (see ``core/run_records.py``), and with
            ``stage`` records, which are not kept: what begins now, and how far it is. What it returns for a ``step`` or
            a ``stage`` of the tuning, if true, stops the tuning.
        run: where checkpoints of the tuning of a linear model are kept, as of :func:`bilevax.minimize`; the same call
            then goes on, and ``on_event`` gets every record again.
        every: all rows, of which the table is a sample: the model is fitted to them.

    Raises:
        DataError: a fault of the table.
        ParameterError: a setting does not suit the table.
        CheckpointError: the checkpoints are of another run, in use, or damaged.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from bilevax.study import TuneSettings, load_bundled, read_model, tune_table, write_run
        >>> settings = TuneSettings(pairs=False, time=0.1)  # a tenth of a second for comparisons
        >>> study = tune_table(load_bundled("diabetes"), "progression", settings=settings)
        >>> study.target
        'progression'
        >>> directory = Path(tempfile.mkdtemp()) / "run"
        >>> write_run(study, directory)
        >>> read_model(directory).to_plain() == study.model.to_plain()
        True
    """
    begun = start = time.perf_counter()
    settings = settings or TuneSettings()
    records: list[Record] = []

    def emit(record: Record) -> object:
        records.append(record)
        return on_event(plain(record)) if on_event is not None else None

    def stage(name: str, **more: object) -> object:
        return on_event({"kind": "stage", "name": name, **more}) if on_event is not None else None

    stage("looking at the table")
    prepared = prepare(table, target, settings)
    if every is not None:
        every.stage = stage
    for note in _notes(prepared, target, settings):
        emit(note)
    loss, known = LOSSES[prepared.target.task], prepared.scorer is not None
    asked, weighted = settings.scoring if known else None, settings.class_weight is not None
    emit(Scoring(task=prepared.target.task, loss=loss, score=asked, class_weight=weighted))
    before = time.perf_counter() - start
    kept = _fit(prepared, settings, emit, stage, run, begun, every)
    start = time.perf_counter() - before - kept.seconds
    interrupted = kept.interrupted
    # The model is there already: Ctrl-C ends the comparison, not the study.
    try:
        _judge(prepared if every is None else every.of_all(prepared), settings, kept, emit, stage, begun)
    except KeyboardInterrupt:
        interrupted = True
        emit(Note(text="the comparison was interrupted; the model is complete", about="comparison"))
    emit(
        End(
            code=kept.code,
            message=kept.message,
            interrupted=interrupted,
            seconds=time.perf_counter() - start,
            visits=kept.visits,
            steps=kept.steps,
        )
    )
    return Study(table.name, target, settings, prepared, kept.model, kept, Records(records), interrupted)


def plain(record: Record) -> Event:
    """A record as JSON values, without those that are as they are where nothing is said."""
    return {"kind": record.kind, **record.model_dump(mode="json", exclude_defaults=True)}


def _notes(prepared: Prepared, target: str, settings: TuneSettings) -> list[Note]:
    """What preparation says, and what is seen in the columns before any fit."""
    # nothing is amiss with texts that are read
    cells = [name for name in prepared.features.names if name not in settings.texts]
    table = prepared.table.select((*cells, target))
    group, when = settings.group, settings.time_column
    found = findings(table, target, task=prepared.target.task, group=group, time=when)
    # dates that are read as texts have too many values to learn from
    if prepared.left_out:
        left_out = findings(prepared.table.select(prepared.left_out), None)
        found += tuple(note for note in left_out if note.about == "date")
    # of copies it is said already how many the test has
    told = any(note.about == "duplicates" for note in prepared.notes)
    return [*prepared.notes, *(note for note in found if not (told and note.about == "duplicates"))]


def _data(prepared: Prepared, every: RowSet | None) -> Data:
    target, split = prepared.target, prepared.split
    labels, test = target.labels, len(split.test)
    train = len(split.train) if every is None else every.rows - test
    quantiles = None if labels else tuple(np.quantile(target.values, [0, 0.25, 0.5, 0.75, 1]).tolist())
    return Data(
        rows=Rows(train=train, validation=len(split.validation), test=test),
        features=len(prepared.features.names),
        missing_cells=int(sum(column.missing.sum() for column in prepared.features.columns)),
        classes=labels.counts() if labels else {},
        quantiles=quantiles,
    )


def _fit(
    prepared: Prepared,
    settings: TuneSettings,
    emit: Emit,
    stage: Stage,
    run: "Run | str | os.PathLike[str] | None",
    begun: float,
    every: RowSet | None,
) -> Kept:
    data = _data(prepared, every)
    if settings.is_linear:
        # JAX is imported for it alone
        from bilevax.study.linear import fit_linear

        return fit_linear(prepared, settings, emit, stage, data, run)
    emit(data)
    return additive.fit_additive(prepared, settings, emit, stage, begun, every)


def _judge(prepared: Prepared, settings: TuneSettings, kept: Kept, emit: Emit, stage: Stage, begun: float) -> None:
    """Records of the test rows: the kept model, its rivals, the differences, and what else these rows say."""
    test, target = prepared.split.test, prepared.target
    values = target.values[test]
    # By the exported model, so that what is compared is what is kept.
    mine = kept.model.predict_mean(prepared.table.take(test))
    losses = row_losses(target.task, mine, values)
    emit(_compared(prepared, Rival(kept.name, mine, kept.seconds, True), "kept", kept.validation_loss))
    for record in diagnosis(target, mine, values, settings.seed):
        emit(record)
    for row in telling_rows(prepared, kept.model, mine, losses, kept.influence):
        emit(row)
    if kept.interrupted:
        emit(Note(text="interrupted: the comparison with other models is left out", about="comparison"))
        return
    others = rivals(prepared, settings, stage)
    # that of the first sentence is fitted however late it is, where it is a matter of seconds
    late = 0 if len(test) * len(prepared.features.names) > _CHEAP else 1
    for fitted in itertools.count():
        if settings.time is not None and time.perf_counter() - begun > settings.time and fitted >= late:
            left_out = "other models are" if not fitted else "some other models are"
            emit(Note(text=f"the time is used up: {left_out} left out of the comparison", about="comparison"))
            return
        rival = next(others, None)
        if rival is None:
            return
        _against(prepared, settings, mine, rival, emit)


def _against(prepared: Prepared, settings: TuneSettings, mine: np.ndarray, rival: Rival, emit: Emit) -> None:
    target, values = prepared.target, prepared.target.values[prepared.split.test]
    if not rival.converged:
        text = f"{rival.name}: scikit-learn's solver used up its iterations in some of the fits"
        emit(Note(text=text, about="comparison"))
    emit(_compared(prepared, rival, "rival"))
    # Row by row: both models meet the same easy and hard rows.
    own, other = (row_losses(target.task, prediction, values) for prediction in (mine, rival.prediction))
    main = rival.name == RIDGE
    emit(Paired(name=rival.name, measure="loss", main=main, **paired_interval(own, other)._asdict()))
    if prepared.scorer is not None:
        found = paired_scores(prepared.scorer, mine, rival.prediction, values, settings.seed)
        if found is not None:
            emit(Paired(name=rival.name, measure="score", main=main, **found._asdict()))


def _compared(
    prepared: Prepared, model: Rival, role: Literal["kept", "rival"], validation_loss: float | None = None
) -> Compared:
    target, values = prepared.target, prepared.target.values[prepared.split.test]
    mean, error = mean_and_error(row_losses(target.task, model.prediction, values))
    classes = target.labels is not None
    return Compared(
        name=model.name,
        role=role,
        loss=mean,
        loss_se=error,
        score=None if prepared.scorer is None else score(prepared.scorer, model.prediction, values),
        accuracy=float(np.mean(model.prediction.argmax(axis=1) == values)) if classes else None,
        validation_loss=validation_loss,
        seconds=model.seconds,
    )
