"""How far predictions are from what is known, over the pieces of a table."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.special import xlogy

from bilevax.core.errors import DataError
from bilevax.core.text import counted
from bilevax.tables.additive import AdditiveModel
from bilevax.tables.labels import Label
from bilevax.tables.linear import LinearModel
from bilevax.tables.table import Column

_LEAST = 1e-10
"""Of a mean that has to be above 0."""


def known_target(model: LinearModel | AdditiveModel) -> dict[str, Literal["text", "number"]]:
    """The column that a model predicts, and what its cells are.

    Raises:
        DataError: the model does not know the name of the column.
    """
    if not model.target:
        raise DataError("the model does not know which column it predicts; nothing can be scored")
    return {model.target: "text" if any(isinstance(label, str) for label in model.classes) else "number"}


def row_losses(task: str, prediction: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Loss of each row, [n]: log-loss, squared error, or deviance.

    Args:
        task: what is predicted.
        prediction: probabilities [n, C], or means [n].
        values: codes or numbers, [n].
    """
    if task == "classes":
        # - log p_i(y_i); a probability of 0 would cost infinitely much
        chosen = prediction[np.arange(len(values)), values].astype(np.float64)
        losses: np.ndarray = -np.log(np.clip(chosen, np.finfo(np.float64).eps, 1.0))
        return losses
    if task == "number":
        return np.asarray((values - prediction) ** 2)
    mean = np.maximum(prediction, _LEAST)
    if task == "count":
        # 2 (y log(y / m) - y + m)
        return np.asarray(2.0 * (xlogy(values, values / mean) - values + mean))
    # 2 (log(m / y) + y / m - 1)
    return np.asarray(2.0 * (np.log(mean / values) + values / mean - 1.0))


def most_probable(means: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """Codes of the classes that are predicted, [n]; of two the second where its probability is at least a threshold."""
    codes: np.ndarray = means.argmax(axis=1) if threshold is None else (means[:, 1] >= threshold).astype(int)
    return codes


class Running:
    """Mean of numbers that come in pieces, and its standard error.

    Attributes:
        count: how many there were.
        mean: of them.
        squares: sum of the squared distances from it.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Some more of them."""
        if not len(values):
            return
        # two means become one, without a difference of large sums (Chan, Golub and LeVeque 1979)
        n, mean = len(values), float(values.mean())
        step, whole = mean - self.mean, self.count + n
        self.squares += float(np.sum((values - mean) ** 2)) + step**2 * self.count * n / whole
        self.mean += step * n / whole
        self.count = whole

    @property
    def error(self) -> float:
        """Standard error of the mean; 0 where it is not known."""
        # sqrt(s^2 / n), s^2 = sum (x - mean)^2 / (n - 1)
        return math.sqrt(self.squares / (self.count - 1) / self.count) if self.count > 1 else 0.0


class Scores:
    """Losses of rows, the accuracy of classes, R^2 of numbers; rows without a target are left out.

    Args:
        classes: the labels; none of a number.
        task: what is predicted where it is no class: ``number``, ``count`` or ``amount``.
        threshold: of two classes, the probability from which on the second is predicted.
        keep: hold predictions and truths, for a score that is no mean over the rows.

    Attributes:
        loss: over the rows that are scored.
        right: whether the class that is predicted is the true one, likewise.
        threshold: as given.
    """

    def __init__(
        self, classes: Sequence[Label], task: str = "number", *, threshold: float | None = None, keep: bool = False
    ) -> None:
        self.loss, self.right, self._truth = Running(), Running(), Running()
        self._codes = {_key(label): code for code, label in enumerate(classes)}
        self.threshold = threshold
        self._task = "classes" if classes else task
        self._kept: list[tuple[np.ndarray, np.ndarray]] | None = [] if keep else None
        self._missing = self._unknown = self._outside = 0
        self._others = dict[object, None]()

    def add(self, means: np.ndarray, column: Column) -> None:
        """Count the rows of a piece.

        Args:
            means: probabilities [n, C], or [n].
            column: the target.
        """
        there = ~column.missing
        self._missing += int((~there).sum())
        cells, means = column.values[there], means[there]
        values, scored = self._known(cells) if self._codes else self._numbers(cells.astype(float))
        values, means = values[scored], means[scored]
        self.loss.add(row_losses(self._task, means, values))
        if self._codes:
            self.right.add((most_probable(means, self.threshold) == values).astype(float))
        else:
            self._truth.add(values)
        if self._kept is not None:
            # of two classes one probability says both
            self._kept.append((means[:, 1].copy() if len(self._codes) == 2 else means, values))

    def _known(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes, and which labels the model knows."""
        codes = np.fromiter((self._codes.get(cell, -1) for cell in cells.tolist()), np.intp, len(cells))
        unknown = cells[codes < 0].tolist()
        self._unknown += len(unknown)
        # Three are shown.
        self._others = dict.fromkeys(list(dict.fromkeys([*self._others, *unknown]))[:3])
        return codes, codes >= 0

    def _numbers(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers, and which of them have the loss of the task."""
        fits = {"count": values >= 0, "amount": values > 0}.get(self._task, np.ones(len(values), bool))
        self._outside += int((~fits).sum())
        return values, fits

    @property
    def explained(self) -> float | None:
        """Share of the variance of a number that is explained, R^2."""
        if self._task != "number" or not self._truth.squares > 0.0:
            return None
        # 1 - sum (y - prediction)^2 / sum (y - mean)^2
        return 1.0 - self.loss.mean * self.loss.count / self._truth.squares

    def held(self) -> tuple[np.ndarray, np.ndarray]:
        """Predictions, [n, C] or [n], and codes or numbers, [n]; if they are kept."""
        predictions, values = (np.concatenate(parts) for parts in zip(*(self._kept or ()), strict=True))
        if len(self._codes) == 2:
            predictions = np.stack([1.0 - predictions, predictions], axis=1)
        return predictions, values

    def line(self, target: str, figures: Sequence[str]) -> str:
        """What came of it, in a line.

        Args:
            target: the column.
            figures: in words.
        """
        out = f"scored on {counted(self.loss.count, 'row')}, ± 95 %: {', '.join(figures)}"
        if not self.loss.count:
            out = f"no row has a value of '{target}' that could be scored"
        if self._missing:
            out += f"; {counted(self._missing, 'row')} without a value of '{target}'"
        if self._unknown:
            shown = ", ".join(f"'{label}'" for label in self._others)
            out += f"; {counted(self._unknown, 'row')} with a class that the model does not know ({shown}), not scored"
        if self._outside:
            least = "below 0" if self._task == "count" else "of 0 or less"
            out += f"; {counted(self._outside, 'row')} with a value {least}, for which there is no such loss"
        return out


def _key(label: Label) -> str | float:
    """As it is in a column: true is 1."""
    return label if isinstance(label, str) else float(label)
