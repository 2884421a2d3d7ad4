"""What a run records, a line of ``metrics.jsonl`` each: the study writes them; report and command read them."""

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Task: TypeAlias = Literal["classes", "number", "count", "amount"]
"""What is predicted: a class, a number, a count of at least 0, or an amount above 0."""

LOSSES: dict[Task, str] = {
    "classes": "log-loss",
    "number": "mean squared error",
    "count": "Poisson deviance",
    "amount": "gamma deviance",
}
"""The mean of what, over the rows, a model of the task is fitted to make small."""


class Values(BaseModel):
    """Numbers are finite; None where one is not known."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Record(Values):
    """A line; ``kind`` says which."""

    kind: str


class Note(Record):
    """What the user should know, in one sentence, and what it is about."""

    kind: Literal["note"] = "note"
    text: str
    about: Literal["table", "leak", "identifier", "date", "duplicates", "constant", "labels", "model", "comparison"] = (
        "table"
    )


class Rows(Values):
    """How many rows train, validate (none where folds do) and test."""

    train: int
    validation: int
    test: int


class Data(Record):
    """The table.

    Attributes:
        features: columns that the model is given.
        terms: columns of a linear model's design matrix.
        classes: rows of each label; empty where a number is predicted.
        quantiles: of the target where it is a number: least, quarter, half, three quarters, largest.
    """

    kind: Literal["data"] = "data"
    rows: Rows
    features: int
    missing_cells: int
    terms: int | None = None
    classes: dict[str, int] = {}
    quantiles: tuple[float, float, float, float, float] | None = None


class Scoring(Record):
    """What models are judged by.

    Attributes:
        task: what is predicted.
        loss: name of the loss, a mean over the rows; less is better.
        score: scikit-learn's name of the score that was asked for; None where it is the loss.
        class_weight: True if rare classes weigh as much as frequent ones where models are fitted.
    """

    kind: Literal["scoring"] = "scoring"
    task: Task
    loss: str
    score: str | None = None
    class_weight: bool = False


class Step(Record):
    """One outer step of the tuning of a linear model; seconds and visits count from the start of the run."""

    kind: Literal["step"] = "step"
    step: int
    code: str
    seconds: float
    visits: int
    tuning_loss: float | None
    validation_loss: float | None
    gradient_norm: float | None


class Gap(Record):
    """Part of the fall of the tuning loss that the validation rows do not confirm."""

    kind: Literal["gap"] = "gap"
    validation_gap: float | None
    standard_error: float | None


class Candidate(Record):
    """A model that was considered, on held-out rows of the folds: all that chose saw only training rows.

    Attributes:
        name: such as ``additive``; the last, ``mixture``, is what was kept.
        loss: mean over the held-out rows.
        difference: of its loss from that of the first candidate, and its standard error.
        weight: in the mixture.
    """

    kind: Literal["candidate"] = "candidate"
    name: str
    loss: float
    difference: float
    standard_error: float
    weight: float


class Compared(Record):
    """A model on the test rows, which no choice of any model has seen.

    Attributes:
        name: in words.
        role: ``kept``, the model of this run; or ``rival``.
        loss: mean over the test rows, with its standard error.
        score: the one that was asked for; more is better.
        accuracy: share of the rows whose class is right.
        validation_loss: of the rows that chose among penalties, where there are such.
        seconds: to choose and fit it.
    """

    kind: Literal["comparison"] = "comparison"
    name: str
    role: Literal["kept", "rival"]
    loss: float
    loss_se: float
    score: float | None = None
    accuracy: float | None = None
    validation_loss: float | None = None
    seconds: float


class Paired(Record):
    """Kept model minus a rival, on the same test rows, with a 95 % interval.

    Attributes:
        name: of the rival.
        measure: ``loss`` (below 0 the kept one is better) or ``score`` (above 0 it is).
        main: True for the rival that the first sentence speaks of.
    """

    kind: Literal["paired"] = "paired"
    name: str
    measure: Literal["loss", "score"]
    difference: float
    low: float
    high: float
    main: bool = False


class Part(Values):
    """A part of an effect and its penalty: ``linear``, ``smooth``, ``rough``, ``levels``, ``steps``, ``missing``."""

    part: str
    candidate: str
    penalty: float
    freedom: float


class Effect(Record):
    """What a column adds to the score; most important first.

    Attributes:
        name: the column, with the part of a date in brackets.
        importance: root of the mean square of what it adds, over training rows, classes together.
        freedom: effective degrees of freedom.
        log_evidence: log of the evidence for it; None where it is not known.
        droppable: True if its column can be left out.
        at: numbers, or levels, of its bins; the last, ``(missing)``, of missing cells. Empty for the less important of
            many effects.
        curve: [bins][S], with S the number of classes if there are more than two, else 1.
        lower: of the 95 % band, likewise.
        upper: likewise.
        weight: of the training rows in each bin.
        parts: their penalties.
    """

    kind: Literal["effect"] = "effect"
    name: str
    importance: float
    freedom: float
    log_evidence: float | None
    droppable: bool
    at: list[float | str] = []
    curve: list[list[float]] = []
    lower: list[list[float]] = []
    upper: list[list[float]] = []
    weight: list[float] = []
    parts: list[Part] = []


class Pair(Record):
    """What two columns add together, beside what each adds by itself: [first][second][S]."""

    kind: Literal["pair"] = "pair"
    names: tuple[str, str]
    importance: float
    log_evidence: float | None
    first: list[float | str]
    second: list[float | str]
    surface: list[list[list[float]]]
    weight: list[list[float]]


class Threshold(Values):
    """Test rows of two classes by whether the probability of the second is at least ``at``."""

    at: float
    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int


class Discrimination(Record):
    """How well the test rows of a class are told from the others.

    Attributes:
        label: of the class; of two, the second.
        false_positive_rate, true_positive_rate: points of the ROC curve, from (0, 0) to (1, 1).
        area: under it.
        recall, precision: points of the precision-recall curve.
        average_precision: sum of precision times step of recall.
        prevalence: share of the rows that are of the class.
        thresholds: of two classes.
    """

    kind: Literal["discrimination"] = "discrimination"
    label: str
    false_positive_rate: list[float]
    true_positive_rate: list[float]
    area: float
    recall: list[float]
    precision: list[float]
    average_precision: float
    prevalence: float
    thresholds: list[Threshold] = []


class Group(Values):
    """Test rows of like predictions: their mean, what was observed, its 95 % interval, and how many they are."""

    predicted: float
    observed: float
    low: float
    high: float
    rows: int


class Calibration(Record):
    """Predictions against what was observed: of the probability of a class, or of the number that is predicted."""

    kind: Literal["calibration"] = "calibration"
    label: str = ""
    groups: list[Group]


class Confusion(Record):
    """Test rows by true class (outer) and by most probable class (inner)."""

    kind: Literal["confusion"] = "confusion"
    labels: list[str]
    rows: list[list[int]]


class Errors(Record):
    """Of a predicted number: a sample of test rows, and quantiles of the absolute error.

    Attributes:
        predicted, observed: of up to 1,000 test rows.
        quantiles: share of the rows -> absolute error that they do not exceed.
        explained: share of the variance that is explained.
    """

    kind: Literal["errors"] = "errors"
    predicted: list[float]
    observed: list[float]
    quantiles: dict[str, float]
    explained: float | None


class Contribution(Values):
    """What a cell, or a pair of cells, adds to a row's score (of the true class, if there are more than two)."""

    name: str
    cell: str
    adds: float


class Row(Record):
    """A row that deserves a look.

    Attributes:
        why: ``hardest``: a test row of large loss; ``influential``: a training row that moves the model; ``typical``: a
            test row in the middle of its class or of the predictions, to see how a prediction comes about.
        number: of the row in the table, from 1, the header not counted.
        truth: what the table says.
        predicted: the most probable class, or the mean.
        probability: given to the truth.
        loss: of the row.
        influence: how far leaving it out would move the predictions (Cook's distance).
        intercept: of the score.
        contributions: the largest, in order; ``rest``: of all others.
    """

    kind: Literal["row"] = "row"
    why: Literal["hardest", "influential", "typical"]
    number: int
    truth: str
    predicted: str
    probability: float | None = None
    loss: float | None = None
    influence: float | None = None
    intercept: float
    contributions: list[Contribution]
    rest: float


class End(Record):
    """How the run ended; ``code`` is OK, or says what was not reached."""

    kind: Literal["end"] = "end"
    code: str
    message: str
    interrupted: bool
    seconds: float
    visits: int | None = None
    steps: int | None = None


AnyRecord: TypeAlias = Annotated[
    Note
    | Data
    | Scoring
    | Step
    | Gap
    | Candidate
    | Compared
    | Paired
    | Effect
    | Pair
    | Discrimination
    | Calibration
    | Confusion
    | Errors
    | Row
    | End,
    Field(discriminator="kind"),
]
"""A record of any kind."""

RUN_RECORDS: TypeAdapter[Record] = TypeAdapter(AnyRecord)
