"""What a run of ``clean`` records, a line of ``metrics.jsonl`` each, beside notes and its end."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from bilevax.core.record_lines import Records, read_records
from bilevax.core.run_records import Calibration, End, Note, Record


class Labelled(Record):
    """The labels that were looked at.

    Attributes:
        rows: with a label to doubt.
        classes: rows of each given label, of these.
        trusted: rows whose label is known to be right.
        trusted_from: a table, or a column, that says so; empty where none is trusted.
        features: columns that the model is given.
        missing_cells: in these.
        flipped: labels that were turned for a rehearsal.
    """

    kind: Literal["labelled"] = "labelled"
    rows: int
    classes: dict[str, int]
    trusted: int = 0
    trusted_from: str = ""
    features: int
    missing_cells: int
    flipped: int = 0


class Wrong(Record):
    """How many labels are wrong, and between which classes.

    Attributes:
        expected: the number, and its 95 % interval.
        suspicious: rows whose label is more probably wrong than right.
        labels: of the classes.
        noise: from the true class (outer) to the given label (inner), probabilities.
        low, high: of their 95 % intervals.
        flows: from the true class (outer) to the given label (inner), the expected numbers of rows.
    """

    kind: Literal["wrong"] = "wrong"
    expected: tuple[float, float, float]
    suspicious: int
    labels: list[str]
    noise: list[list[float]]
    low: list[list[float]]
    high: list[list[float]]
    flows: list[list[float]]


class Shown(Record):
    """What is shown of suspicious rows.

    Attributes:
        columns: whose cells stand beside each; none where the rows are images.
        features: how many columns there are.
        kept: columns that the user wanted to stand beside each.
        image: height and width, where the columns are pixels.
    """

    kind: Literal["shown"] = "shown"
    columns: tuple[str, ...] = ()
    features: int
    kept: tuple[str, ...] = ()
    image: tuple[int, int] | None = None


class Suspect(Record):
    """A row whose label is suspicious.

    Attributes:
        number: of the row in the table, from 1, the header not counted.
        probability: that its label is wrong.
        given: the label.
        suggested: the most probable one.
        truth: where it is known.
        cells: of the columns that are shown; ``kept`` likewise.
        pixels: brightness from 0 to 255, line by line.
    """

    kind: Literal["suspect"] = "suspect"
    number: int
    probability: float
    given: str
    suggested: str
    truth: str | None = None
    cells: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    pixels: tuple[int, ...] = ()


class Verified(Record):
    """What is right of all this where the true labels are known.

    Attributes:
        rows: with a label to doubt, of which the truth is known.
        wrong: how many of their labels are.
        expected: how many were expected to be.
        suspicious: how many of them are more probably wrong than right, by the model.
        right: how many of these are wrong indeed.
        corrected: and how many of those have the true label suggested.
        at_number: share that is wrong among as many of the most suspicious as are wrong.
        area: under the ROC curve of wrong against right labels.
        calibration_error: mean distance of probabilities from observed shares, in groups of rows.
    """

    kind: Literal["verified"] = "verified"
    rows: int
    wrong: int
    expected: float
    suspicious: int
    right: int
    corrected: int
    at_number: float | None = None
    area: float | None = None
    calibration_error: float


class KeptAside(Record):
    """What trusted rows say of a model that has not seen them, given labels as the noise matrix gives them.

    Attributes:
        rows: kept aside.
        area: under the ROC curve of wrong against right labels.
        calibration_error: mean distance of probabilities from shares, in groups of rows.
    """

    kind: Literal["kept_aside"] = "kept_aside"
    rows: int
    area: float
    calibration_error: float


_ANY: TypeAdapter[Record] = TypeAdapter(
    Annotated[
        Note | Labelled | Wrong | Shown | Suspect | Verified | KeptAside | Calibration | End,
        Field(discriminator="kind"),
    ]
)


def read_cleaning(content: bytes, name: str) -> Records:
    """The records of ``metrics.jsonl`` of a run of ``clean``.

    Raises:
        CorruptError: a line is no record; the message names it.
    """
    return read_records(content, name, _ANY)
