"""Labels as the table has them and as numbers: 0, 1, ... in their order, and back."""

from typing import NamedTuple, TypeAlias

import numpy as np

from bilevax.core.errors import DataError
from bilevax.tables.table import Column

Label: TypeAlias = str | int | float | bool

_FEWEST = 5
_MANY, _TOO_MANY = 20, 100
# With fewer rows to each of many integers, the integers are taken for a quantity.
_ROWS_OF_A_CLASS = 50


class Labels(NamedTuple):
    """The target column.

    Attributes:
        classes: the labels, sorted: strings, integers, floats or truth values, as in the table.
        codes: index into the classes for each row of the table, int64 [n]; -1 where the label is missing.
    """

    classes: tuple[Label, ...]
    codes: np.ndarray

    def counts(self) -> dict[str, int]:
        """Rows of each class, by the label's text."""
        found = np.bincount(self.codes[self.codes >= 0], minlength=len(self.classes)).tolist()
        return dict(zip(map(label_text, self.classes), found, strict=True))


def label_text(label: Label) -> str:
    """A label as one writes it: truth values in lower case."""
    return str(label).lower() if isinstance(label, bool) else str(label)


def encode_labels(column: Column, source: str, fewest: int = _FEWEST) -> Labels:
    """The classes of a target column and each row's class.

    Args:
        column: the target.
        source: the table's name, for messages.
        fewest: rows that a class must have.

    Raises:
        DataError: the column is no set of classes (dates, one class only), or a class has too few rows.
    """
    where = f"{source}: target '{column.name}'"
    if column.kind == "date":
        raise DataError(f"{where} holds dates; a target holds classes")
    missing = column.missing
    values, inverse = np.unique(column.values[~missing], return_inverse=True)
    codes = np.full(len(column.values), -1, np.int64)
    codes[~missing] = inverse
    labels = Labels(tuple(_label(value, column) for value in values.tolist()), codes)
    counts = labels.counts()
    if len(counts) < 2:
        only = f"'{next(iter(counts))}' in every row" if counts else "no value in any row"
        raise DataError(f"{where} has {only}; two classes are the least there can be")
    rare = {label: count for label, count in counts.items() if count < fewest}
    if rare:
        listed = ", ".join(f"'{label}' ({count})" for label, count in list(rare.items())[:5])
        more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
        raise DataError(
            f"{where} has classes with fewer than {fewest} rows: {listed}{more}; merge them into others or leave "
            "their rows out, for every class has to be trained, validated and tested"
        )
    return labels


def _label(value: Label, column: Column) -> Label:
    if isinstance(value, float):
        if column.kind == "boolean":
            return bool(value)
        return int(value) if column.kind == "integer" or value.is_integer() else value
    return value


def is_quantity(column: Column) -> bool:
    """True for many different numbers: fractions, very many integers, or such of which each has few rows."""
    if column.kind not in ("number", "integer"):
        return False
    known = column.values[~column.missing]
    values = np.unique(known)
    if len(values) <= _MANY:
        return False
    fractions = bool(np.any(values != np.rint(values)))
    return fractions or len(values) > _TOO_MANY or len(known) < _ROWS_OF_A_CLASS * len(values)
