"""The sections on the data, the method, the model's use, and the configuration."""

import math
from importlib.resources import files
from typing import NamedTuple

from bilevax.core.run_records import LOSSES, Data, Effect, Scoring
from bilevax.core.text import clean, count, counted, decimal, percent, significant
from bilevax.report.run import ADDITIVE, Run
from bilevax.report.summary import notes

_MOST_CLASSES = 30
_MOST_ITEMS = 24
_METHODS = {
    "deterministic": (
        "At every step the model is solved on all training rows, and so is how it would change with each penalty. "
        "Exact to the tolerance, and fastest on tables that are not large."
    ),
    "stochastic": (
        "At every step the model, and how it would change with each penalty, are moved by noisy steps on small "
        "batches of rows, so that the cost of a step hardly depends on how long the table is."
    ),
}


class Bar(NamedTuple):
    """A part of a whole; ``width`` in per cent of the widest."""

    label: str
    value: str
    share: str
    width: str


class DataSection(NamedTuple):
    """The splits, the classes, and sentences."""

    splits: tuple[Bar, ...]
    classes: tuple[Bar, ...]
    quantiles: tuple[tuple[str, str], ...]
    sentences: tuple[str, ...]


def data_section(run: Run) -> DataSection | None:
    """The section; None where the data were not recorded."""
    d = run.records.last(Data)
    if d is None:
        return None
    splits = {"train": d.rows.train, "validation": d.rows.validation, "test": d.rows.test}
    classes = sorted(d.classes.items(), key=lambda c: -c[1])
    shown, rest = classes[:_MOST_CLASSES], classes[_MOST_CLASSES:]
    if rest:
        shown.append((f"and {count(len(rest))} more", sum(n for _, n in rest)))
    names = "least", "quarter", "half", "three quarters", "largest"
    quantiles = [(name, significant(q, 4)) for name, q in zip(names, d.quantiles or (), strict=False)]
    facts = _facts(d, run.records.last(Scoring)) + notes(run.records, ["table", "model"])
    return DataSection(
        _bars([s for s in splits.items() if s[1] > 0], of_total=True), _bars(shown), tuple(quantiles), tuple(facts)
    )


def _bars(parts: list[tuple[str, int]], of_total: bool = False) -> tuple[Bar, ...]:
    total = max(1, sum(n for _, n in parts))
    # Splits are drawn as shares of the table, classes against the largest.
    widest = total if of_total else max(1, max((n for _, n in parts), default=1))
    return tuple(Bar(name, count(n), percent(n / total), f"{100 * n / widest:.2f}") for name, n in parts)


def _facts(d: Data, scoring: Scoring | None) -> list[str]:
    out = []
    if d.terms is not None:
        out.append(
            f"{counted(d.features, 'feature')} became {counted(d.terms, 'column')} of numbers: one for a number, one "
            "for each value of a category, one for “is missing” where cells are missing."
        )
    out.append(f"Empty: {counted(d.missing_cells, 'cell')}." if d.missing_cells else "No cell is missing.")
    counts = [n for n in d.classes.values() if n > 0]
    if len(counts) > 1 and (scoring is None or scoring.loss == LOSSES["classes"]):
        # - sum_c p_c log p_c
        entropy = -sum(n / sum(counts) * math.log(n / sum(counts)) for n in counts)
        out.append(
            f"A model that knew only how common each class is would have a log-loss of {decimal(entropy, 3)}: "
            "what the columns add lies below that."
        )
    return out


class Method(NamedTuple):
    """How the penalties were tuned."""

    name: str
    reason: str
    meaning: str


def method_section(run: Run) -> Method | None:
    """The section; None where the method was not recorded, or is told by the mathematics."""
    name = run.setting("method", "name") if run.records.last(Effect) is None else ""
    return Method(name, run.setting("method", "reason"), _METHODS.get(name, "")) if name else None


class Use(NamedTuple):
    """How to apply the model."""

    additive: bool
    binary: bool
    classes: int
    positive: str
    code: str


def use_section(run: Run) -> Use | None:
    """The section; None where no model was exported."""
    if run.model is None:
        return None
    additive = run.model.format == ADDITIVE
    name = "standalone_additive.py" if additive else "standalone.py"
    code = files("bilevax.report").joinpath(name).read_text(encoding="utf-8")
    labels = run.labels()
    binary = bool(run.model.terms) and all(len(t.weight) == 1 for t in run.model.terms)
    return Use(additive, binary, len(labels), labels[1] if binary and len(labels) == 2 else "", code)


def settings(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """The configuration, table by table; the method has a section of its own, and paths concern nobody else."""
    return [
        (clean(name), [(clean(key), _value(value)) for key, value in table.items()])
        for name, table in run.config.items()
        if table and name not in ("method", "source")
    ]


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{clean(key)}: {_value(v)}" for key, v in list(value.items())[:_MOST_ITEMS])
    if isinstance(value, list):
        more = f" … and {count(len(value) - _MOST_ITEMS)} more" if len(value) > _MOST_ITEMS else ""
        return ", ".join(clean(v) for v in value[:_MOST_ITEMS]) + more
    return clean(value)
