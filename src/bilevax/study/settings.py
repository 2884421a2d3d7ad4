"""What a user may set for a tuned table."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bilevax.core.errors import ParameterError
from bilevax.tables.reading import MAX_CELLS, Reading, marks_from_words, types_from_words


class TuneSettings(BaseModel):
    """Settings of :func:`~bilevax.study.study.tune_table`.

    Attributes:
        penalty_per: what has a penalty of its own: each ``feature``, ``column`` (whose categories share it), ``class``,
            ``weight``, or none (``global``).
        scoring: scikit-learn's name of a score that is reported beside log-loss and accuracy; one that counts classes
            alike (``balanced_accuracy``, ``f1_macro``) is tuned for as well.
        class_weight: ``balanced`` gives rare classes the weight of frequent ones.
        seed: of the split and of the tuning.
        test_size: share of the rows for the test that no tuning sees.
        validation_size: share of the rows that choose among the penalties reached, and C in the grid.
        group: column whose groups stay whole in one part; it is no feature.
        time: column of dates or numbers; the oldest rows train, the newest test; it is no feature.
        drop: columns that are no features; of a file they are not looked at.
        text: columns whose cells are taken as text.
        missing: cells that say that nothing is known, besides the empty one: ``?,NA``, or of one column
            ``COLUMN=?,NA``.
        types: what columns are, instead of what their cells look like: ``COLUMN=text``, ``=number`` or ``=date``.
        keep: columns that are no features and stand beside the predictions, as identifiers do.
        max_cells: rows x columns at most of a Parquet or svmlight file, a few bytes of which may stand for many cells.
        method: ``stochastic``, ``deterministic``, or the one that suits the size of the table.
        steps: outer steps at most; tuning ends before when the validation rows say so.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    penalty_per: Literal["feature", "column", "class", "weight", "global"] = "feature"
    scoring: str = "neg_log_loss"
    class_weight: Literal["balanced"] | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)
    test_size: float = Field(default=0.2, gt=0, lt=1)
    validation_size: float = Field(default=0.2, gt=0, lt=1)
    group: str | None = None
    time: str | None = None
    drop: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    max_cells: int = Field(default=MAX_CELLS, ge=1)
    method: Literal["auto", "stochastic", "deterministic"] = "auto"
    steps: int = Field(default=100, ge=1)

    @property
    def reading(self) -> Reading:
        """How a file is read."""
        return Reading(
            self.text,
            drop=self.drop,
            missing=marks_from_words(self.missing),
            types=types_from_words(self.types),
            keep=self.keep,
            max_cells=self.max_cells,
        )

    @model_validator(mode="after")
    def _parts_fit(self) -> "TuneSettings":
        if self.test_size + self.validation_size >= 1:
            raise ValueError("test_size and validation_size leave no row to train")
        if self.group is not None and self.time is not None:
            raise ValueError("group and time cannot both split the rows; give one")
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
        fault = e.errors()[0]
        name = ".".join(map(str, fault["loc"]))
        message = fault["msg"].removeprefix("Value error, ")
        given = f", got {fault['input']!r}" if name else ""
        raise ParameterError(f"{name}: {message}{given}" if name else message) from None
