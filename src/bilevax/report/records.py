"""A run directory read into plain records: what is absent stays empty, what is torn is refused by file and line."""

import dataclasses
import json
import math
import tomllib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, get_type_hints

from bilevax.core.errors import CorruptError
from bilevax.core.run_files import COEFFICIENTS, CONFIG, METRICS, RunFiles, read_run_files
from bilevax.core.text import clean

# Sums and squares of plotted values stay finite below it.
_LARGEST = 1e300

T = TypeVar("T")


@dataclass(frozen=True)
class Data:
    """The rows and columns of the table; -1 where a number was not recorded."""

    train: int
    validation: int
    test: int
    features: int
    design_columns: int
    missing_cells: int
    classes: tuple[tuple[str, int], ...] = ()

    @property
    def rows(self) -> int:
        """Rows of all splits together."""
        return sum(n for n in (self.train, self.validation, self.test) if n > 0)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One outer step; seconds and visits are counted from the start of the run."""

    code: str = "OK"
    step: float
    seconds: float
    visits: float
    tuning_loss: float
    validation_loss: float
    gradient_norm: float


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model of the comparison; NaN where a number was not recorded."""

    name: str = "(no name)"
    score_name: str = "score"
    score: float
    test_log_loss: float
    test_log_loss_se: float
    test_accuracy: float
    validation_log_loss: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Test log-loss of the tuned model minus another's, with its 95 % interval."""

    name: str = "(no name)"
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Gap:
    """How far the validation set was overfitted."""

    validation_gap: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class End:
    """How the run ended."""

    code: str = "OK"
    message: str = ""
    interrupted: bool
    seconds: float
    visits: float
    steps: float


@dataclass(frozen=True)
class Term:
    """One term of the linear model: its weights (one a class) and its penalties (one, one a class, or none)."""

    name: str
    weights: tuple[float, ...]
    penalties: tuple[float, ...]

    @property
    def penalty(self) -> float:
        """The penalty; the geometric mean where there is one a class; NaN where there is none."""
        if not self.penalties or min(self.penalties) < 0:
            return math.nan
        if min(self.penalties) == 0:
            return 0.0
        # exp of the mean of the logarithms: a product would overflow
        return math.exp(math.fsum(map(math.log, self.penalties)) / len(self.penalties))

    @property
    def size(self) -> float:
        """Euclidean norm of the weights."""
        return math.hypot(*self.weights) if self.weights else math.nan


@dataclass(frozen=True)
class Run:
    """Everything that a run directory says."""

    config: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    data: Data | None = None
    steps: tuple[Step, ...] = ()
    models: tuple[Model, ...] = ()
    paired: tuple[Paired, ...] = ()
    gap: Gap | None = None
    end: End | None = None
    terms: tuple[Term, ...] = ()
    classes: tuple[str, ...] = ()
    exported: bool = False
    notes: tuple[str, ...] = ()

    def setting(self, table: str, key: str) -> str:
        """A setting as text, empty where it is not set."""
        value = self.config.get(table, {}).get(key)
        return "" if value is None else clean(value)


def read_run(directory: Path) -> Run:
    """Read ``config.toml``, ``metrics.jsonl`` and ``coefficients.json``, each as far as it is there.

    Raises:
        DataError: it is no run directory.
        CorruptError: a file was damaged; the message names it and, of a run that goes on, the line.
        StorageError: the system refused to read.
    """
    return run_of(read_run_files(directory))


def run_of(found: RunFiles) -> Run:
    """What the files of a run say.

    Raises:
        CorruptError: one is torn; the message names it and the line.
    """
    path, contents = found.path, found.files
    coefficients = _json_object(path / COEFFICIENTS, contents.get(COEFFICIENTS))
    by_kind: dict[str, list[dict[str, object]]] = defaultdict(list)
    for record in _lines(path / METRICS, contents.get(METRICS)):
        by_kind[str(record.get("kind"))].append(record)

    # Of what is said twice the last word counts.
    return Run(
        config=_toml(path / CONFIG, contents.get(CONFIG)) if found.finished else found.content.get("config", {}),
        data=next(map(_data, reversed(by_kind["data"])), None),
        steps=tuple(_record(Step, r) for r in by_kind["step"]),
        models=tuple({m.name: m for m in (_record(Model, r) for r in by_kind["comparison"])}.values()),
        paired=tuple({p.name: p for p in (_record(Paired, r) for r in by_kind["paired"])}.values()),
        gap=next((_record(Gap, r) for r in reversed(by_kind["gap"])), None),
        end=next((_record(End, r) for r in reversed(by_kind["end"])), None),
        terms=tuple(_term(t) for t in _sequence(coefficients.get("terms")) if isinstance(t, dict)),
        classes=tuple(clean(c) for c in _sequence(coefficients.get("classes"))),
        exported=bool(coefficients),
        notes=tuple(clean(r.get("text", "")) for r in by_kind["note"]),
    )


def _toml(path: Path, content: bytes | None) -> dict[str, dict[str, object]]:
    try:
        tables = tomllib.loads((content or b"").decode())
    # A decoding error of either kind is a ValueError.
    except (ValueError, RecursionError) as e:
        raise CorruptError(f"{path} is not TOML: {clean(e)}") from e
    return {name: table for name, table in tables.items() if isinstance(table, dict)}


def _json_object(path: Path, content: bytes | None) -> dict[str, object]:
    if content is None:
        return {}
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as e:
        raise CorruptError(f"{path} is not JSON: {clean(e)}") from e
    if not isinstance(value, dict):
        raise CorruptError(f"{path} is not a JSON object")
    return value


def _lines(path: Path, content: bytes | None) -> list[dict[str, object]]:
    numbered = [(i, line) for i, line in enumerate((content or b"").split(b"\n"), 1) if line.strip()]
    records = []
    for i, line in numbered:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        # The last line may be torn: a run that was killed while it wrote.
        elif i != numbered[-1][0]:
            raise CorruptError(f"{path}:{i} is not a JSON record; the file was damaged after it was written")
    return records


def _real(value: object) -> float:
    """A number as a float; NaN for everything else; what no sum would survive is infinite."""
    # True is an int to Python; NaN is the one value that is not itself.
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return math.nan
    return float(value) if -_LARGEST < value < _LARGEST else math.copysign(math.inf, value > 0 or -1)


def _whole(value: object) -> int:
    number = _real(value)
    return int(number) if math.isfinite(number) else -1


def _sequence(value: object) -> list[object]:
    return value if isinstance(value, list) else []


_READERS: dict[object, Callable[[object], object]] = {
    str: clean,
    float: _real,
    int: _whole,
    bool: lambda value: value is True,
}


def _record(kind: type[T], record: Mapping[str, object]) -> T:
    """The fields of a record by their types; an empty text is its default."""
    values: dict[str, object] = {}
    for name, of in get_type_hints(kind).items():
        if of in _READERS:
            # A dataclass keeps the defaults of its fields as attributes of the class.
            default = getattr(kind, name, None)
            value = _READERS[of](record.get(name, default))
            values[name] = default if value == "" else value
    return kind(**values)


def _data(record: Mapping[str, object]) -> Data:
    rows, classes = record.get("rows"), record.get("classes")
    found = _record(Data, {**record, **(rows if isinstance(rows, dict) else {})})
    of_classes = classes.items() if isinstance(classes, dict) else ()
    counts = tuple((clean(label) or "(empty)", max(0, _whole(n))) for label, n in of_classes)
    return dataclasses.replace(found, classes=counts)


def _term(record: Mapping[str, object]) -> Term:
    name, penalty = clean(record.get("column", "")) or "(no name)", record.get("penalty")
    if record.get("kind") == "category":
        name = f"{name} = {clean(record.get('value', ''))}"
    elif record.get("kind") == "missing":
        name = f"{name} is missing"
    penalties = [_real(p) for p in (penalty if isinstance(penalty, list) else [penalty])]
    return Term(
        name=name,
        weights=tuple(_real(w) for w in _sequence(record.get("weight"))),
        penalties=tuple(p for p in penalties if math.isfinite(p)),
    )
