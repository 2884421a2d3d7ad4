"""A linear model of a prepared table: logistic regression, its penalties tuned by stochastic hypergradients."""

import os
import time

import numpy as np

from bilevax.core.codes import Code
from bilevax.core.events import Event
from bilevax.core.run_records import Data, Gap, Note, Step
from bilevax.linalg.columns import Matrix
from bilevax.runs import Run
from bilevax.sklearn.encoder import TableEncoder
from bilevax.sklearn.host_fit import default_ties
from bilevax.sklearn.logistic import TunedLogisticRegression
from bilevax.sklearn.tuning_method import choose_method
from bilevax.study.kept import Emit, Kept, Stage, or_none
from bilevax.study.preparation import Prepared, encoder_of
from bilevax.study.settings import TuneSettings
from bilevax.tables.linear import LinearModel, penalties_by_term
from bilevax.tables.memory import require_fit, study_memory
from bilevax.tables.table import orders_of

NAMES = {
    "feature": "one penalty per feature (bilevax)",
    "column": "one penalty per column (bilevax)",
    "class": "one penalty per class (bilevax)",
    "weight": "one penalty per weight (bilevax)",
    "global": "one penalty (bilevax)",
    "evidence": "penalties by evidence (bilevax)",
    "frequency": "penalties by frequency (bilevax)",
}


def encoded(prepared: Prepared, settings: TuneSettings, emit: Emit) -> tuple[TableEncoder, Matrix]:
    """The design matrix of all rows; medians, scales and categories are those of the training rows."""
    train, encoder = prepared.features.take(prepared.split.train), encoder_of(settings)
    _require_memory(prepared, encoder.width(train), settings)
    encoder.fit(train)
    for text in encoder.notes_:
        emit(Note(text=text))
    return encoder, encoder.transform(prepared.features)


def fit_linear(
    prepared: Prepared,
    settings: TuneSettings,
    emit: Emit,
    stage: Stage,
    data: Data,
    run: Run | str | os.PathLike[str] | None,
) -> Kept:
    """Tune on training and validation rows.

    Args:
        prepared: the rows.
        settings: how.
        emit: gets a record of every step; true ends the tuning.
        stage: told what begins.
        data: emitted once the number of terms is known.
        run: where checkpoints are kept.
    """
    encoder, X = encoded(prepared, settings, emit)
    emit(data.model_copy(update={"terms": X.shape[1]}))
    # No test row is seen from here to the comparison.
    stage("compiling, then tuning", long=True)
    rows = prepared.tuning
    per = default_ties(len(rows), sparse=True) if settings.texts else settings.penalty_per
    # the estimator sees terms, whose columns it is told by number
    of_columns = np.array([encoder.columns_.index(term.column) for term in encoder.terms_])
    estimator = TunedLogisticRegression(
        of_columns if per == "column" else per,
        class_weight=settings.class_weight,
        scoring=settings.scoring or "neg_log_loss",
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
        fields = {name: record.get(name) for name in Step.model_fields if name != "kind"}
        plain = {name: or_none(value) if isinstance(value, float) else value for name, value in fields.items()}
        late = settings.time is not None and record["seconds"] > settings.time
        return bool(emit(Step.model_validate(plain))) or late

    groups = prepared.groups(settings)
    estimator.fit(
        X[rows],
        prepared.target.values[rows],
        groups=None if groups is None else groups[rows],
        # tied penalties are so few that no rows need validate, and such a fit is short
        validation=None if settings.texts else np.arange(len(rows)) >= len(prepared.split.train),
        blocks=encoder.blocks_ if settings.texts else None,
        callback=step,
        run=None if settings.texts else run,
    )
    seconds = time.perf_counter() - start
    gap, error = estimator.validation_gap_, estimator.validation_gap_se_
    emit(Gap(validation_gap=or_none(gap), standard_error=or_none(error)))
    code = Code(int(estimator.code_))
    # the single penalty that tuning starts from may be the one that is kept
    kept = "global" if np.ptp(np.asarray(estimator.penalties_)) == 0.0 else per
    return Kept(
        name=NAMES[kept],
        model=_plain_model(estimator, encoder, prepared, settings),
        seconds=seconds,
        interrupted=bool(estimator.interrupted_),
        code=code.name,
        message=code.message,
        method=str(estimator.method_),
        reason=str(estimator.method_reason_),
        penalty_per=kept,
        validation_loss=or_none(estimator.validation_loss_),
        visits=int(estimator.visits_),
        steps=int(estimator.n_iter_),
    )


def _plain_model(
    estimator: TunedLogisticRegression, encoder: TableEncoder, prepared: Prepared, settings: TuneSettings
) -> LinearModel:
    assert prepared.target.labels is not None
    terms, marks = encoder.terms_, prepared.marks(settings)
    tied = "weight" if np.ndim(estimator.penalties_) == 2 else "feature"
    per = tied if settings.texts else settings.penalty_per
    return LinearModel(
        target=prepared.target.name,
        classes=prepared.target.labels.classes,
        intercept=np.asarray(estimator.intercept_, np.float64).reshape(-1),
        coef=np.asarray(estimator.coef_, np.float64),
        terms=terms,
        penalties=penalties_by_term(estimator.penalties_, per, len(terms)),
        missing={name: marks[name] for name in encoder.columns_ if name in marks},
        dates=orders_of(prepared.features.column(name) for name in encoder.columns_),
    )


def _require_memory(prepared: Prepared, p: int, settings: TuneSettings) -> None:
    """Refuse a table that memory is clearly too small for, before it is encoded."""
    assert prepared.target.labels is not None
    rows, classes = prepared.table.rows, len(prepared.target.labels.classes)
    outputs = 1 if classes == 2 else classes
    folds = choose_method(settings.method, len(prepared.tuning), p, outputs).folds
    require_fit(study_memory(rows, p, outputs, folds), f"tuning {rows:,} rows, of {p:,} terms,")
