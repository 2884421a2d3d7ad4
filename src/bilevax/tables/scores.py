"""How far predictions are from what is known, over the pieces of a table."""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from bilevax.core.errors import DataError
from bilevax.core.text import counted
from bilevax.tables.labels import Label
from bilevax.tables.table import Column


class _Predicting(Protocol):
    """A model, by what it predicts."""

    @property
    def target(self) -> str:
        """The column."""
        ...

    @property
    def classes(self) -> tuple[Label, ...]:
        """The labels; none of a number."""
        ...


def known_target(model: _Predicting) -> dict[str, Literal["text", "number"]]:
    """The column that a model predicts, and what its cells are.

    Raises:
        DataError: the model does not know the name of the column.
    """
    if not model.target:
        raise DataError("the model does not know which column it predicts; nothing can be scored")
    return {model.target: "text" if any(isinstance(label, str) for label in model.classes) else "number"}


class Scores:
    """Log-loss and accuracy of classes, mean squared error and R^2 of numbers; rows without a target are left out.

    Args:
        classes: the labels; none of a number.
    """

    def __init__(self, classes: Sequence[Label]) -> None:
        self._codes = {_key(label): code for code, label in enumerate(classes)}
        self._rows = self._loss = self._right = self._first = self._sum = self._squares = 0.0
        self._missing = 0
        self._others, self._unknown = dict[object, None](), 0

    def add(self, means: np.ndarray, column: Column) -> None:
        """Count the rows of a piece.

        Args:
            means: probabilities [n, C], or [n].
            column: the target.
        """
        there = ~column.missing
        self._missing += int((~there).sum())
        cells, means = column.values[there], means[there]
        if not self._codes:
            return self._add_numbers(means, cells.astype(float))
        codes = np.fromiter((self._codes.get(cell, -1) for cell in cells.tolist()), np.intp, len(cells))
        unknown = cells[codes < 0].tolist()
        self._unknown += len(unknown)
        # Three are shown.
        self._others = dict.fromkeys(list(dict.fromkeys([*self._others, *unknown]))[:3])
        codes, means = codes[codes >= 0], means[codes >= 0]
        chosen = means[np.arange(len(codes)), codes]
        # A probability that was rounded to 0 is not infinitely wrong.
        self._loss -= float(np.sum(np.log(np.maximum(chosen, np.finfo(float).tiny))))
        self._right += float(np.sum(means.argmax(axis=1) == codes)) if len(codes) else 0.0
        self._rows += len(codes)
        return None

    def _add_numbers(self, means: np.ndarray, truth: np.ndarray) -> None:
        if not self._rows and len(truth):
            # Less the first of them, sums of squares keep their digits.
            self._first = float(truth[0])
        self._loss += float(np.sum((truth - means) ** 2))
        self._sum += float(np.sum(truth - self._first))
        self._squares += float(np.sum((truth - self._first) ** 2))
        self._rows += len(truth)

    def line(self, target: str) -> str:
        """What came of it, in a line."""
        out = f"scored on {counted(int(self._rows), 'row')}: "
        if not self._rows:
            out = f"no row has a value of '{target}' that could be scored"
        elif self._codes:
            out += f"log-loss {self._loss / self._rows:.4g}, accuracy {self._right / self._rows:.4g}"
        else:
            spread = self._squares - self._sum**2 / self._rows
            out += f"mean squared error {self._loss / self._rows:.6g}"
            out += f", R^2 {1.0 - self._loss / spread:.4g}" if spread > 0.0 else ""
        if self._missing:
            out += f"; {counted(self._missing, 'row')} without a value of '{target}'"
        if self._unknown:
            shown = ", ".join(f"'{label}'" for label in self._others)
            out += f"; {counted(self._unknown, 'row')} with a class that the model does not know ({shown}), not scored"
        return out


def _key(label: Label) -> str | float:
    """As it is in a column: true is 1."""
    return label if isinstance(label, str) else float(label)
