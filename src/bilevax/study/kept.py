"""What every kind of model leaves: the model as plain numbers, how it came about, and records of it."""

from typing import NamedTuple, Protocol, TypeAlias

import numpy as np

from bilevax.core.run_records import Record
from bilevax.tables.additive import AdditiveModel
from bilevax.tables.linear import LinearModel

TableModel: TypeAlias = LinearModel | AdditiveModel


class Emit(Protocol):
    """Keeps a record and passes it on."""

    def __call__(self, record: Record) -> object:
        """What it returns, if true, ends what is under way."""


class Stage(Protocol):
    """Says what begins now: it is shown, not kept."""

    def __call__(self, name: str, **more: object) -> object:
        """What it returns, if true, ends what is under way."""


class Kept(NamedTuple):
    """The model of a run.

    Attributes:
        name: in words.
        model: as plain numbers.
        seconds: to choose and fit it.
        interrupted: True if the user stopped it; the rest is what was reached.
        code: OK, or what was not reached.
        message: of the code.
        method: which method tuned it.
        reason: why that one.
        penalty_per: of a linear model, what has a penalty of its own; ``global`` where one for all did better.
        validation_loss: of a linear model.
        visits: of rows, by a linear model.
        steps: likewise.
        influence: of the training rows, [n]; None where it is not known.
    """

    name: str
    model: TableModel
    seconds: float
    interrupted: bool
    code: str
    message: str
    method: str
    reason: str
    penalty_per: str | None = None
    validation_loss: float | None = None
    visits: int | None = None
    steps: int | None = None
    influence: tuple[float, ...] | None = None


def or_none(value: float | None) -> float | None:
    """The value; None, as JSON has no NaN, where it is not finite."""
    return None if value is None or not np.isfinite(value) else float(value)
