"""A run directory read into plain records: what is absent stays empty, what is torn is refused by file and line."""

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bilevax.core.errors import DataError, StorageError
from bilevax.core.text import clean

_LARGEST = 1e300


@dataclass(frozen=True)
class Data:
    """The rows and columns of the table; -1 where a number was not recorded."""

    train: int
    validation: int
    test: int
    features: int
    design_columns: int
    missing_cells: int
    classes: tuple[tuple[str, int], ...]

    @property
    def rows(self) -> int:
        """Rows of all splits together."""
        return sum(n for n in (self.train, self.validation, self.test) if n > 0)


@dataclass(frozen=True)
class Step:
    """One outer step; seconds and visits are counted from the start of the run."""

    code: str
    step: float
    seconds: float
    visits: float
    tuning_loss: float
    validation_loss: float
    gradient_norm: float


@dataclass(frozen=True)
class Model:
    """One model of the comparison; NaN where a number was not recorded."""

    name: str
    score_name: str
    score: float
    test_log_loss: float
    test_log_loss_se: float
    test_accuracy: float
    validation_log_loss: float
    seconds: float


@dataclass(frozen=True)
class Paired:
    """Test log-loss of the tuned model minus another's, with its 95 % interval."""

    name: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Gap:
    """How far the validation set was overfitted."""

    validation_gap: float
    standard_error: float


@dataclass(frozen=True)
class End:
    """How the run ended."""

    code: str
    message: str
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
        return math.exp(math.fsum(map(math.log, self.penalties)) / len(self.penalties))

    @property
    def size(self) -> float:
        """Euclidean norm of the weights."""
        return math.hypot(*self.weights) if self.weights else math.nan


@dataclass(frozen=True)
class Run:
    """Everything that a run directory says."""

    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
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
        DataError: none of them is there, or one is torn; the message names the file and the line.
        StorageError: the system refused to read.
    """
    texts = {name: _bytes(directory / name) for name in ("config.toml", "metrics.jsonl", "coefficients.json")}
    if all(text is None for text in texts.values()):
        raise DataError(f"{directory} is not a run directory: it has none of {', '.join(texts)}")
    coefficients = _json_object(directory / "coefficients.json", texts["coefficients.json"])
    return Run(
        config=_toml(directory / "config.toml", texts["config.toml"]),
        terms=tuple(_term(t) for t in _sequence(coefficients.get("terms")) if isinstance(t, dict)),
        classes=tuple(clean(c) for c in _sequence(coefficients.get("classes"))),
        exported=bool(coefficients),
        **_sorted(_lines(directory / "metrics.jsonl", texts["metrics.jsonl"])),
    )


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise StorageError(e.errno, f"cannot read {path}: {e.strerror}") from e


def _toml(path: Path, content: bytes | None) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads((content or b"").decode())
    except (ValueError, RecursionError) as e:  # a decoding error of either kind is a ValueError
        raise DataError(f"{path} is not TOML: {clean(e)}") from e
    return {name: table for name, table in tables.items() if isinstance(table, dict)}


def _json_object(path: Path, content: bytes | None) -> dict[str, Any]:
    if content is None:
        return {}
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path} is not JSON: {clean(e)}") from e
    if not isinstance(value, dict):
        raise DataError(f"{path} is not a JSON object")
    return value


def _lines(path: Path, content: bytes | None) -> list[dict[str, Any]]:
    numbered = [(i, line) for i, line in enumerate((content or b"").split(b"\n"), 1) if line.strip()]
    records = []
    for i, line in numbered:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif i != numbered[-1][0]:  # the last line may be torn: a run that was killed while it wrote
            raise DataError(f"{path}:{i} is not a JSON record; the file was damaged after it was written")
    return records


def _sorted(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Records by kind; of what is said twice (a resumed run) the last word counts."""
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_kind.setdefault(str(record.get("kind")), []).append(record)
    models = {m.name: m for m in map(_model, by_kind.get("comparison", []))}
    paired = {p.name: p for p in map(_paired, by_kind.get("paired", []))}
    last = {kind: found[-1] for kind, found in by_kind.items()}
    return {
        "data": _data(last["data"]) if "data" in last else None,
        "steps": tuple(map(_step, by_kind.get("step", []))),
        "models": tuple(models.values()),
        "paired": tuple(paired.values()),
        "gap": _gap(last["gap"]) if "gap" in last else None,
        "end": _end(last["end"]) if "end" in last else None,
        "notes": tuple(clean(r.get("text", "")) for r in by_kind.get("note", [])),
    }


def _real(value: object) -> float:
    """A number as a float; NaN for everything else; what no sum would survive is infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return math.nan
    return float(value) if -_LARGEST < value < _LARGEST else math.copysign(math.inf, value > 0 or -1)


def _whole(value: object) -> int:
    number = _real(value)
    return int(number) if math.isfinite(number) else -1


def _sequence(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _name(record: Mapping[str, Any]) -> str:
    return clean(record.get("name", "")) or "(no name)"


def _data(record: Mapping[str, Any]) -> Data:
    rows, classes = record.get("rows"), record.get("classes")
    rows = rows if isinstance(rows, dict) else {}
    classes = classes if isinstance(classes, dict) else {}
    return Data(
        train=_whole(rows.get("train")),
        validation=_whole(rows.get("validation")),
        test=_whole(rows.get("test")),
        features=_whole(record.get("features")),
        design_columns=_whole(record.get("design_columns")),
        missing_cells=_whole(record.get("missing_cells")),
        classes=tuple((clean(label) or "(empty)", max(0, _whole(n))) for label, n in classes.items()),
    )


def _step(record: Mapping[str, Any]) -> Step:
    names = ("step", "seconds", "visits", "tuning_loss", "validation_loss", "gradient_norm")
    return Step(clean(record.get("code", "OK")), *(_real(record.get(name)) for name in names))


def _model(record: Mapping[str, Any]) -> Model:
    names = ("score", "test_log_loss", "test_log_loss_se", "test_accuracy", "validation_log_loss", "seconds")
    numbers = (_real(record.get(name)) for name in names)
    return Model(_name(record), clean(record.get("score_name", "score")), *numbers)


def _paired(record: Mapping[str, Any]) -> Paired:
    return Paired(_name(record), *(_real(record.get(name)) for name in ("difference", "low", "high")))


def _gap(record: Mapping[str, Any]) -> Gap:
    return Gap(_real(record.get("validation_gap")), _real(record.get("standard_error")))


def _end(record: Mapping[str, Any]) -> End:
    numbers = (_real(record.get(name)) for name in ("seconds", "visits", "steps"))
    message, interrupted = clean(record.get("message", "")), record.get("interrupted") is True
    return End(clean(record.get("code", "OK")), message, interrupted, *numbers)


def _term(record: Mapping[str, Any]) -> Term:
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
