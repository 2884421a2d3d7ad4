"""From a table to rows that train and rows that test; every fault of the table is found here."""

import dataclasses
from typing import NamedTuple

import numpy as np

from bilevax.core.errors import DataError, ParameterError
from bilevax.core.run_records import Note
from bilevax.sklearn.encoder import TableEncoder, worthless
from bilevax.study.judging import Scorer, scorer_for
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
from bilevax.study.target import Target, require_task, target_of
from bilevax.tables.additive import exposures
from bilevax.tables.reading import without
from bilevax.tables.table import Table

_FEWEST_ROWS = 20

_COPIES = 0.01
"""Share of the test rows that were seen in training, above which it is said."""


class Prepared(NamedTuple):
    """A table made ready.

    Attributes:
        table: the rows that have a target.
        features: the columns to learn from, of these rows.
        left_out: names of columns from which nothing can be learned.
        places: their row numbers in the table as it was given, [n].
        target: what is predicted.
        split: train, validation (none, but for a linear model) and test rows.
        scorer: the score that was asked for; None where it is the loss.
        notes: what the user should know, one sentence each.
    """

    table: Table
    features: Table
    left_out: tuple[str, ...]
    places: np.ndarray
    target: Target
    split: Split
    scorer: Scorer | None
    notes: tuple[Note, ...]

    @property
    def tuning(self) -> np.ndarray:
        """The rows that are not kept for the test, training rows first."""
        return np.concatenate([self.split.train, self.split.validation])

    def marks(self, settings: TuneSettings) -> dict[str, tuple[str, ...]]:
        """Of features, what says in a file that nothing is known, besides what always does."""
        reading = settings.reading
        return {name: found for name in self.features.names if (found := reading.marks(name))}

    def groups(self, settings: TuneSettings) -> np.ndarray | None:
        """The group of each row [n], where rows belong together."""
        return None if settings.group is None else self.table.column(settings.group).values

    def exposures(self, settings: TuneSettings) -> np.ndarray | None:
        """What the target of each row [n] is in proportion to."""
        return None if settings.exposure is None else exposures(self.table, settings.exposure)


def prepare(table: Table, target: str, settings: TuneSettings) -> Prepared:
    """Check and split a table.

    Raises:
        DataError: a fault of the table.
        ParameterError: a setting does not suit it.
    """
    notes = [Note(text=text) for text in table.notes]
    table, names = _chosen_columns(table, target, settings)
    goal, note = target_of(table, target, settings.task)
    require_task(goal, settings.model)
    notes += [Note(text=note)] if note else []
    places = np.flatnonzero(~goal.missing)
    if len(places) < table.rows:
        left = table.rows - len(places)
        notes.append(Note(text=f"{left:,} of {table.rows:,} rows are left out: '{target}' is missing there"))
        table, goal = table.take(places), goal.take(places)
    if table.rows < _FEWEST_ROWS:
        raise DataError(
            f"{table.name}: {table.rows} rows with a target; {_FEWEST_ROWS} are the least that can be split"
        )
    if settings.exposure is not None:
        exposures(table, settings.exposure)
    scorer = None if settings.scoring is None else scorer_for(settings.scoring, goal)
    split = _split(table, goal, settings)
    if goal.labels is not None:
        check_classes(split, goal.values, list(goal.labels.counts()))
    cells = [name for name in names if name not in settings.texts]
    left_out, why = worthless(table.select(cells).take(split.train))
    if len(left_out) == len(names):
        raise DataError(f"{table.name}: no column is left to learn from; {'; '.join(why)}")
    notes += [Note(text=text) for text in why]
    features = table.select([name for name in names if name not in left_out])
    seen = rows_seen_before(features, split)
    if seen > _COPIES * len(split.test):
        advice = "" if settings.group else " (--group keeps rows together that belong together)"
        text = (
            f"{seen:,} of {len(split.test):,} test rows agree in every column with a row that is trained on; if they "
            f"are copies, the test is too kind{advice}"
        )
        notes.append(Note(text=text, about="duplicates"))
    for name, what in (
        (settings.group, "keeps rows together"),
        (settings.time_column, "says which rows are older"),
        (settings.exposure, "is what the target is in proportion to"),
    ):
        notes += [Note(text=f"column '{name}' {what} and is not learned from")] if name else []
    return Prepared(table, features, tuple(left_out), places, goal, split, scorer, tuple(notes))


def encoder_of(settings: TuneSettings) -> TableEncoder:
    """Of a table's columns, some of them texts that are read."""
    words, characters, cells = settings.words, settings.characters, settings.cells
    return TableEncoder(words=words, pairs=words, characters=characters, cells=cells)


def _chosen_columns(table: Table, target: str, settings: TuneSettings) -> tuple[Table, list[str]]:
    """The table with its text columns as text, and the names of its features."""
    # The columns that say which rows belong together, which came first, or how much of the target is to be expected.
    others = [name for name in (settings.group, settings.time_column, settings.exposure) if name is not None]
    for name in (*others, *settings.drop, *settings.keep):
        if name == target:
            raise ParameterError(f"column '{target}' is the target and cannot have another part")
    reading = settings.reading
    reading.choose(table.name, [*table.names, *table.unread, *(column.name for column in table.kept)])
    # What passes through may say which rows belong together.
    passed = tuple(column for column in table.kept if column.name in others)
    table = dataclasses.replace(table, columns=(*table.columns, *passed))
    dropped = [name for name in settings.drop if name not in table.unread]
    table.require([target, *others])
    columns = tuple(
        without(column.as_text() if column.name in reading.text else column, reading.marks(column.name))
        for column in table.columns
        if column.name not in dropped
    )
    apart = {target, *others, *settings.keep}
    table.require(settings.texts)
    features = [column.name for column in columns if column.name not in apart]
    if not features:
        hint = (
            "; is the file delimited by commas, semicolons, tabs or bars?"
            if len(columns) + len(table.unread) == 1
            else ""
        )
        raise DataError(f"{table.name}: no column is left to learn from{hint}")
    return dataclasses.replace(table, columns=columns, unread=(*table.unread, *dropped)), features


def _split(table: Table, target: Target, settings: TuneSettings) -> Split:
    # an additive model is chosen by folds of its training rows
    sizes = Sizes(settings.validation_size if settings.is_linear else 0.0, settings.test_size)
    if settings.group is not None:
        return split_by_group(table.column(settings.group), target.codes, sizes, settings.seed)
    if settings.time_column is not None:
        return split_by_time(table.column(settings.time_column), sizes)
    return split_stratified(target.codes, sizes, settings.seed)
