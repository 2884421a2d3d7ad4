"""A run directory as the page reads it: records, settings, and of a linear run its weights; every text is cleaned."""

import json
import math
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from bilevax.core.errors import CorruptError, DataError
from bilevax.core.record_lines import Records, read_records
from bilevax.core.run_files import COEFFICIENTS, CONFIG, METRICS, RunFiles, read_run_files
from bilevax.core.run_records import Data, Record
from bilevax.core.text import clean
from bilevax.report.earlier import modern

Config = Mapping[str, Mapping[str, object]]
"""The tables of ``config.toml``."""

ADDITIVE = "bilevax-additive-1"
"""The format of an additive model in ``coefficients.json``."""

CLASSES = 12
"""That have a line each, at most."""

# Sums and products of three plotted values stay finite below it.
_LARGEST = 1e90

M = TypeVar("M", bound=BaseModel)


class _Exported(BaseModel):
    """What the page wants of ``coefficients.json``; the rest is let be."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class LinearTerm(_Exported):
    """A term of a linear model: its weights (one a class) and its penalties (one, one a class, or none)."""

    column: str
    kind: str = "number"
    value: str = ""
    weight: list[float]
    penalty: float | list[float] | None = None

    @property
    def name(self) -> str:
        """The column, and what of it."""
        if self.kind == "category":
            return f"{self.column} = {self.value}"
        return f"{self.column} is missing" if self.kind == "missing" else self.column

    @property
    def penalties(self) -> list[float]:
        """Of the classes, or the one."""
        if isinstance(self.penalty, list):
            return self.penalty
        return [] if self.penalty is None else [self.penalty]

    @property
    def mean_penalty(self) -> float:
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
        return math.hypot(*self.weight) if self.weight else math.nan


class Exported(_Exported):
    """A model as ``coefficients.json`` has it; an additive one is told by its records, so its curves are let be."""

    format: str = ""
    classes: list[str | int | float | bool] = []
    terms: list[LinearTerm] = []

    @property
    def same_penalty(self) -> bool:
        """True if all terms have one penalty, within a ten-thousandth."""
        penalties = [p for term in self.terms for p in term.penalties if p > 0]
        return bool(penalties) and max(penalties) <= 1.0001 * min(penalties)


class Run(NamedTuple):
    """What the files of a run say; None where no model was exported."""

    records: Records
    config: Config
    model: Exported | None

    def setting(self, table: str, key: str) -> str:
        """A setting as text, empty where it is not set."""
        return setting(self.config, table, key)

    def labels(self) -> list[str]:
        """The classes as text, in their order."""
        classes = self.config.get("data", {}).get("classes") or (self.model.classes if self.model else [])
        return [clean(c) for c in classes] if isinstance(classes, list) else []

    def shown_labels(self) -> list[int]:
        """Which classes have lines: the most frequent ones, in their order."""
        labels, data = self.labels(), self.records.last(Data)
        counts = data.classes if data else {}
        frequent = sorted(range(len(labels)), key=lambda c: -counts.get(labels[c], 0))
        return sorted(frequent[:CLASSES])


def setting(config: Config, table: str, key: str) -> str:
    """A setting as text, empty where it is not set."""
    value = config.get(table, {}).get(key)
    return "" if value is None else clean(value)


def read_records_of(directory: Path) -> Records:
    """What a run recorded; nothing where there is nothing.

    Raises:
        CorruptError: a file was damaged; the message names it.
        StorageError: the system refused to read.
    """
    found = read_run_files(directory)
    return cleaned(read_records(modern(found.files.get(METRICS, b"")), str(found.path / METRICS)))


def run_of(found: RunFiles) -> Run:
    """What the files of a run say.

    Raises:
        DataError: it has no records.
        CorruptError: a file is torn; the message names it and the line.
    """
    path, contents = found.path, found.files
    if METRICS not in contents:
        raise DataError(f"{path} has no {METRICS}: nothing was recorded, so there is nothing to report")
    config = config_from(found)
    model = _model(path / COEFFICIENTS, contents.get(COEFFICIENTS))
    records = read_records(modern(contents[METRICS]), str(path / METRICS))
    return Run(cleaned(records), config, model)


def config_from(found: RunFiles) -> Config:
    """The settings of a run, which its manifest has while it goes on.

    Raises:
        CorruptError: the file is torn.
    """
    if not found.finished:
        config: Config = found.content.get("config", {})
        return config
    return _toml(found.path / CONFIG, found.files.get(CONFIG))


def cleaned(records: Records) -> Records:
    """The records with texts that are safe to show, and with numbers whose squares can be added up."""
    walked: Iterable[Record] = map(_walked, records)
    return Records(walked)


def _walked(model: M) -> M:
    return model.model_copy(update={name: _value(value) for name, value in model})


def _value(value: object) -> object:
    """A field, all that is within it too."""
    if isinstance(value, float):
        return min(max(value, -_LARGEST), _LARGEST)
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list | tuple):
        return type(value)(map(_value, value))
    if isinstance(value, dict):
        # labels that read alike are one
        counts = Counter[str]()
        for key, count in value.items():
            counts[clean(key) or "(empty)"] += count
        return dict(counts)
    return _walked(value) if isinstance(value, BaseModel) else value


def _toml(path: Path, content: bytes | None) -> dict[str, dict[str, object]]:
    try:
        tables = tomllib.loads((content or b"").decode())
    # A decoding error of either kind is a ValueError.
    except (ValueError, RecursionError) as e:
        raise CorruptError(f"{path} is not TOML: {clean(e)}") from e
    return {name: table for name, table in tables.items() if isinstance(table, dict)}


def _model(path: Path, content: bytes | None) -> Exported | None:
    if content is None:
        return None
    try:
        plain = json.loads(content)
    except (ValueError, RecursionError) as e:
        raise CorruptError(f"{path} is not JSON: {clean(e)}") from e
    try:
        return _walked(Exported.model_validate(plain))
    except ValidationError as e:
        fault = e.errors()[0]
        where = clean(".".join(map(str, fault["loc"])))
        raise CorruptError(f"{path} is not a model: {where or 'it'}: {clean(fault['msg'])}") from None
