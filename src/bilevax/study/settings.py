"""What a user may set for a tuned table."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from bilevax.core.errors import ParameterError
from bilevax.tables.reading import MAX_CELLS, Reading, marks_from_words, types_from_words
from bilevax.tables.table import suggestion

OF_LINEAR = ("penalty_per", "validation_size", "method", "steps", "words", "characters", "cells")
"""Settings that only a linear model has."""

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class TuneSettings(BaseModel):
    """Settings of :func:`~bilevax.study.study.tune_table`.

    Attributes:
        model: ``additive``, a curve for every column and a surface for some pairs; or ``linear``, a logistic regression
            whose penalties are tuned by stochastic hypergradients.
        task: what is predicted: ``classes``, a ``number``, a ``count`` (Poisson) or an ``amount`` above 0 (gamma);
            ``auto``: classes, or a number where the target holds many of them.
        pairs: whether an additive model may have pairs of columns.
        scoring: scikit-learn's name of a score that the report leads with; None: the loss. Of a linear model, one that
            counts classes alike (``balanced_accuracy``, ``f1_macro``) is tuned for as well.
        class_weight: ``balanced`` gives rare classes the weight of frequent ones.
        seed: of the split and of the tuning.
        test_size: share of the rows for the test that no tuning sees.
        group: column whose groups stay whole in one part; it is no feature.
        time_column: column of dates or numbers; the oldest rows train, the newest test; it is no feature.
        exposure: column that counts or amounts are in proportion to, such as years insured; it is no feature.
        drop: columns that are no features; of a file they are not looked at.
        text: columns whose cells are taken as text.
        missing: cells that say that nothing is known, besides the empty one: ``?,NA``, or of one column
            ``COLUMN=?,NA``.
        types: what columns are, instead of what their cells look like: ``COLUMN=text``, ``=number``, ``=date``, or
            ``=day-first`` or ``=month-first``, of dates that leave it open.
        keep: columns that are no features and stand beside the predictions, as identifiers do.
        max_cells: rows x columns at most of a Parquet or svmlight file, a few bytes of which may stand for many cells.
        time: seconds after which no more candidates are compared and no more rivals fitted; None: all are.
        penalty_per: of a linear model, what has a penalty of its own: each ``feature``, ``column`` (whose categories
            share it), ``class``, ``weight``, or none (``global``).
        words: of a linear model, columns of texts whose words and pairs of neighbouring words it learns from; its
            penalties are then tied to how frequent they are.
        characters: of a linear model, columns of texts of which it learns from three to five characters in a row.
        cells: of a linear model, columns of numbered values; of a svmlight file all of its columns, read as ``cells``.
        validation_size: of a linear model, share of the rows that choose among the penalties reached.
        method: of a linear model, ``stochastic``, ``deterministic``, or the one that suits the size of the table.
        steps: of a linear model, outer steps at most; tuning ends before when the validation rows say so.

    Examples:
        >>> from bilevax.study import TuneSettings
        >>> TuneSettings(time="5m", group="patient").time
        300.0
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Literal["additive", "linear"] = "additive"
    task: Literal["auto", "classes", "number", "count", "amount"] = "auto"
    pairs: bool = True
    scoring: str | None = None
    class_weight: Literal["balanced"] | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)
    test_size: float = Field(default=0.2, gt=0, lt=1)
    group: str | None = None
    time_column: str | None = None
    exposure: str | None = None
    drop: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    max_cells: int = Field(default=MAX_CELLS, ge=1)
    time: float | None = Field(default=None, gt=0)
    penalty_per: Literal["feature", "column", "class", "weight", "global"] = "feature"
    words: tuple[str, ...] = ()
    characters: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()
    validation_size: float = Field(default=0.2, gt=0, lt=1)
    method: Literal["auto", "stochastic", "deterministic"] = "auto"
    steps: int = Field(default=100, ge=1)

    @property
    def reading(self) -> Reading:
        """How a file is read."""
        return Reading(
            tuple(dict.fromkeys([*self.text, *self.texts])),
            drop=self.drop,
            missing=marks_from_words(self.missing),
            types=types_from_words(self.types),
            keep=self.keep,
            max_cells=self.max_cells,
        )

    @property
    def texts(self) -> tuple[str, ...]:
        """Columns whose texts are read."""
        return tuple(dict.fromkeys([*self.words, *self.characters, *self.cells]))

    def plain(self) -> dict[str, object]:
        """What is set or taken for granted, as JSON values; without what the model does not have."""
        return self.model_dump(mode="json", exclude=set() if self.is_linear else set(OF_LINEAR))

    @property
    def is_linear(self) -> bool:
        """Whether the model is linear."""
        return self.model == "linear"

    @field_validator("time", mode="before")
    @classmethod
    def _seconds(cls, value: object) -> object:
        """Of 90, 90s, 5m or 1h."""
        if not isinstance(value, str):
            return value
        number, unit = (value[:-1], value[-1]) if value[-1:] in _UNITS else (value, "s")
        try:
            return float(number) * _UNITS[unit]
        except ValueError:
            raise ValueError("takes seconds, or 90s, 5m, 1h") from None

    @model_validator(mode="after")
    def _parts_fit(self) -> "TuneSettings":
        if self.is_linear and self.test_size + self.validation_size >= 1:
            raise ValueError("test_size and validation_size leave no row to train")
        if self.texts and not self.is_linear:
            raise ValueError("words, characters and cells are what a linear model learns from; set model to 'linear'")
        if self.group is not None and self.time_column is not None:
            raise ValueError("group and time_column cannot both split the rows; give one")
        if self.is_linear and self.task not in ("auto", "classes"):
            raise ValueError(f"a linear model is for classes; a {self.task} is predicted by model 'additive'")
        if self.class_weight is not None and self.task not in ("auto", "classes"):
            raise ValueError(f"class_weight is for classes, and the task is to predict a {self.task}")
        if self.exposure is not None and self.task not in ("count", "amount"):
            raise ValueError("exposure is what counts or amounts are in proportion to; set task to 'count' or 'amount'")
        idle = [name for name in OF_LINEAR if name in self.model_fields_set and not self.is_linear]
        if idle:
            raise ValueError(f"{idle[0]} is a setting of model 'linear', and the model is '{self.model}'")
        return self


def settings_from(values: dict[str, object]) -> TuneSettings:
    """Checked settings.

    Raises:
        ParameterError: the first fault, in one sentence.
    """
    try:
        return TuneSettings.model_validate(values)
    except ValidationError as e:
        # Of several faults the first: an error is one sentence.
        raise ParameterError(_sentence(e.errors()[0])) from None


_SHARE, _COUNT, _NAMES = "a share between 0 and 1", "a whole number, 1 or more", "a list of texts"
# Of fields that have constraints; what a field may be alone, its fault says.
_TAKES = {
    "test_size": _SHARE,
    "validation_size": _SHARE,
    "seed": f"a whole number from 0 to {2**32 - 1:,}",
    "steps": _COUNT,
    "max_cells": _COUNT,
    "time": "a number of seconds above 0, or 90s, 5m, 1h",
    "pairs": "true or false",
    **dict.fromkeys(("drop", "text", "missing", "types", "keep"), _NAMES),
    **dict.fromkeys(("scoring", "group", "time_column", "exposure"), "a text"),
}


def _sentence(fault: ErrorDetails) -> str:
    name = str(fault["loc"][0]) if fault["loc"] else ""
    if not name:
        return fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        return f"'{name}' is no setting; {suggestion(name, list(TuneSettings.model_fields))}"
    takes = _TAKES.get(name) or fault.get("ctx", {}).get("expected", fault["msg"])
    return f"--{name.replace('_', '-')} is {takes}, got {fault['input']!r}"
