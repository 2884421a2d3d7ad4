"""The column that is predicted: classes, or a number, and which of the two."""

from typing import NamedTuple

import numpy as np

from bilevax.core.errors import DataError, ParameterError
from bilevax.core.run_records import Task
from bilevax.tables.labels import Labels, encode_labels, is_quantity
from bilevax.tables.table import Column, Table


class Target(NamedTuple):
    """What is predicted.

    Attributes:
        name: of the column.
        task: classes, number, count or amount.
        values: of classes their codes, int64 [n], -1 where missing; else float64 [n], NaN where missing.
        labels: of classes.
    """

    name: str
    task: Task
    values: np.ndarray
    labels: Labels | None

    @property
    def codes(self) -> np.ndarray:
        """Strata: the classes, or 0 for all rows."""
        return self.values if self.labels is not None else np.zeros(len(self.values), np.int64)

    @property
    def missing(self) -> np.ndarray:
        """Rows that have no target."""
        return self.values < 0 if self.labels is not None else np.isnan(self.values)

    def take(self, there: np.ndarray) -> "Target":
        """The target of some rows."""
        labels = None if self.labels is None else self.labels._replace(codes=self.labels.codes[there])
        return self._replace(values=self.values[there], labels=labels)

    def text(self, value: float) -> str:
        """A value as one writes it."""
        return list(self.labels.counts())[int(value)] if self.labels is not None else f"{value:.6g}"


def target_of(table: Table, name: str, task: str) -> tuple[Target, str | None]:
    """The target, and a note on what it was taken for, where that could be doubted.

    Args:
        table: with that column.
        name: of it.
        task: as asked for, or ``auto``.

    Raises:
        DataError: the column is no such target.
    """
    column = table.column(name)
    numbers = column.kind in ("number", "integer")
    many = len(np.unique(column.values[~column.missing])) if numbers else 0
    if task == "auto" and is_quantity(column):
        note = f"'{name}' holds {many:,} different numbers and is predicted as a number (--task classes: as classes)"
        return _number(column, table.name, "number"), note
    if task in ("auto", "classes"):
        labels = encode_labels(column, table.name)
        note = f"'{name}' holds {many} different numbers, taken for classes (--task number: for a number)"
        return Target(name, "classes", labels.codes, labels), note if task == "auto" and many > 2 else None
    known: Task = "number" if task == "number" else "count" if task == "count" else "amount"
    return _number(column, table.name, known), None


def _number(column: Column, source: str, task: Task) -> Target:
    where = f"{source}: target '{column.name}'"
    if found := column.other_than("number"):
        raise DataError(f"{where} holds {found}; a {task} is asked for")
    values = np.where(column.missing, np.nan, column.values.astype(float))
    known = values[~np.isnan(values)]
    if not len(known):
        raise DataError(f"{where} has no value in any row")
    low, high = float(known.min()), float(known.max())
    if low == high:
        raise DataError(f"{where} is {low:g} in every row; there is nothing to be learned")
    if task == "count" and low < 0.0:
        raise DataError(f"{where} holds {low:g}; counts are at least 0 (--task number takes any)")
    if task == "amount" and low <= 0.0:
        raise DataError(f"{where} holds {low:g}; amounts are above 0 (--task number takes any)")
    return Target(column.name, task, values, None)


def require_task(target: Target, model: str) -> None:
    """Refuse a number where the model is for classes.

    Raises:
        ParameterError: it is.
    """
    if model == "linear" and target.labels is None:
        raise ParameterError(
            f"target '{target.name}' holds many numbers, and a linear model is for classes; a number is predicted by "
            "--model additive"
        )
