"""From a table to what an estimator fits: labels, split, matrix; every fault of the table is found here."""

import dataclasses
from typing import NamedTuple

import numpy as np

from bilevax.core.errors import DataError, ParameterError
from bilevax.core.limits import require
from bilevax.sklearn.encoder import TableEncoder
from bilevax.sklearn.tuning_method import choose_method
from bilevax.study.evaluation import Scorer, scorer_for
from bilevax.study.settings import TuneSettings
from bilevax.study.splits import (
    Sizes,
    Split,
    check_classes,
    rows_seen_before,
    split_by_group,
    split_by_time,
    split_stratified,
)
from bilevax.tables.labels import Labels, encode_labels, notes_on_case
from bilevax.tables.memory import HELPS, MAPPED, PROGRAMS, study_memory
from bilevax.tables.reading import without
from bilevax.tables.table import Table

_FEWEST_ROWS = 20


class Prepared(NamedTuple):
    """A table made ready.

    Attributes:
        table: the rows that have a label.
        labels: their classes.
        split: train, validation and test rows.
        encoder: fitted on the training rows.
        X: the design matrix of all rows, [n, p].
        scorer: the score that is reported.
        notes: what the user should know, one sentence each.
    """

    table: Table
    labels: Labels
    split: Split
    encoder: TableEncoder
    X: np.ndarray
    scorer: Scorer
    notes: tuple[str, ...]


def prepare(table: Table, target: str, settings: TuneSettings) -> Prepared:
    """Check, split and encode a table.

    Raises:
        DataError: a fault of the table.
        ParameterError: a setting does not suit it.
    """
    notes = list(table.notes)
    table, features = _chosen_columns(table, target, settings)
    labels = encode_labels(table.column(target), table.name)
    notes += notes_on_case(labels, target)
    table, labels = _labelled_rows(table, labels, target, notes)
    scorer = scorer_for(settings.scoring, labels.codes)
    split = _split(table, labels, settings)
    check_classes(split, labels.codes, list(labels.counts()))
    # Medians, scales and categories are those of the training rows.
    train, encoder = table.select(features).take(split.train), TableEncoder()
    _require_memory(table, encoder.width(train), labels, settings)
    encoder.fit(train)
    notes += encoder.notes_
    seen = rows_seen_before(table, encoder.columns_, split)
    if seen:
        notes.append(
            f"{seen:,} of {len(split.test):,} test rows agree in every feature with a row that is trained or tuned on; "
            "if they are copies, the test is too kind (--group keeps rows together that belong together)"
        )
    return Prepared(table, labels, split, encoder, encoder.transform(table), scorer, tuple(notes))


def _require_memory(table: Table, p: int, labels: Labels, settings: TuneSettings) -> None:
    """Refuse a table that memory is clearly too small for, before it is encoded."""
    classes, tuned = len(labels.classes), int(table.rows * (1.0 - settings.test_size))
    outputs = 1 if classes == 2 else classes
    folds = choose_method(settings.method, tuned, p, outputs).folds
    what = f"tuning {table.rows:,} rows, of {p:,} terms,"
    need = study_memory(table.rows, p, outputs, folds)
    require(need, what, HELPS, compiler=PROGRAMS, mapped=MAPPED)


def _chosen_columns(table: Table, target: str, settings: TuneSettings) -> tuple[Table, list[str]]:
    """The table with its text columns as text, and the names of its features."""
    # The columns that say which rows belong together, or which came first.
    splitting = [name for name in (settings.group, settings.time) if name is not None]
    for name in (*splitting, *settings.drop):
        if name == target:
            raise ParameterError(f"column '{target}' is the target and cannot have another part")
    reading = settings.reading
    reading.choose(table.name, [*table.names, *table.unread])
    dropped = [name for name in settings.drop if name not in table.unread]
    table.require([target, *splitting])
    columns = tuple(
        without(column.as_text() if column.name in settings.text else column, reading.marks(column.name))
        for column in table.columns
        if column.name not in dropped
    )
    apart = {target, *splitting}
    features = [column.name for column in columns if column.name not in apart]
    if not features:
        hint = (
            "; is the file delimited by commas, semicolons, tabs or bars?"
            if len(columns) + len(table.unread) == 1
            else ""
        )
        raise DataError(f"{table.name}: no column is left to learn from{hint}")
    return dataclasses.replace(table, columns=columns, unread=(*table.unread, *dropped)), features


def _labelled_rows(table: Table, labels: Labels, target: str, notes: list[str]) -> tuple[Table, Labels]:
    known = labels.codes >= 0
    missing = int(np.sum(~known))
    if missing:
        notes.append(f"{missing:,} of {len(known):,} rows are left out: '{target}' is missing there")
        table, labels = table.take(known), labels._replace(codes=labels.codes[known])
    if table.rows < _FEWEST_ROWS:
        raise DataError(f"{table.name}: {table.rows} rows with a label; {_FEWEST_ROWS} are the least that can be split")
    return table, labels


def _split(table: Table, labels: Labels, settings: TuneSettings) -> Split:
    sizes = Sizes(settings.validation_size, settings.test_size)
    if settings.group is not None:
        return split_by_group(table.column(settings.group), labels.codes, sizes, settings.seed)
    if settings.time is not None:
        return split_by_time(table.column(settings.time), sizes)
    return split_stratified(labels.codes, sizes, settings.seed)
