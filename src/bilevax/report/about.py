"""The sections on the data, the method, the model's use, and the configuration."""

import math
from importlib.resources import files
from typing import NamedTuple

from bilevax.core.text import clean, count, counted, decimal, percent
from bilevax.report.records import Data, Run

_MOST_CLASSES = 30
_MOST_ITEMS = 24
_METHODS = {
    "deterministic": (
        "Deterministic: at every step the model is solved on all training rows, and the linear system behind the "
        "hypergradient too. Exact to the tolerance, and fastest on tables that are not large."
    ),
    "stochastic": (
        "Stochastic: at every step the model and the linear system behind the hypergradient are solved by noisy steps "
        "on small batches of rows, so that the cost of a step hardly depends on how long the table is."
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
    sentences: tuple[str, ...]


def data_section(run: Run) -> DataSection | None:
    """The section; None where the data were not recorded."""
    if run.data is None:
        return None
    d = run.data
    splits = [(name, n) for name, n in (("train", d.train), ("validation", d.validation), ("test", d.test)) if n > 0]
    classes = sorted(d.classes, key=lambda c: -c[1])
    shown, rest = classes[:_MOST_CLASSES], classes[_MOST_CLASSES:]
    if rest:
        shown.append((f"and {count(len(rest))} more", sum(n for _, n in rest)))
    return DataSection(_bars(splits, of_total=True), _bars(shown), tuple(_facts(d)))


def _bars(parts: list[tuple[str, int]], of_total: bool = False) -> tuple[Bar, ...]:
    total = max(1, sum(n for _, n in parts))
    # Splits are drawn as shares of the table, classes against the largest.
    widest = total if of_total else max(1, max((n for _, n in parts), default=1))
    return tuple(Bar(name, count(n), percent(n / total), f"{100 * n / widest:.2f}") for name, n in parts)


def _facts(d: Data) -> list[str]:
    out = []
    if d.features >= 0 and d.design_columns >= 0:
        out.append(
            f"{counted(d.features, 'feature')} became {counted(d.design_columns, 'column')} of numbers: one for a "
            "number, one for each value of a category, one for “is missing” where cells are missing."
        )
    if d.missing_cells >= 0:
        cells = counted(d.missing_cells, "cell")
        out.append(f"Empty: {cells}." if d.missing_cells else "No cell is missing.")
    counts = [n for _, n in d.classes if n > 0]
    if len(counts) > 1:
        # - sum_c p_c log p_c
        entropy = -sum(n / sum(counts) * math.log(n / sum(counts)) for n in counts)
        out.append(
            f"A model that knew only how common each class is would have a log-loss of {decimal(entropy, 3)}: "
            "what the features add lies below that."
        )
    return out


class Method(NamedTuple):
    """How the penalties were tuned."""

    name: str
    reason: str
    meaning: str


def method_section(run: Run) -> Method | None:
    """The section; None where the method was not recorded."""
    name = run.setting("method", "name")
    return Method(name, run.setting("method", "reason"), _METHODS.get(name, "")) if name else None


class Use(NamedTuple):
    """How to apply the model."""

    binary: bool
    classes: int
    positive: str
    code: str


def use_section(run: Run) -> Use | None:
    """The section; None where no model was exported."""
    if not run.exported:
        return None
    code = files("bilevax.report").joinpath("standalone.py").read_text(encoding="utf-8")
    binary = bool(run.terms) and all(len(t.weights) == 1 for t in run.terms)
    positive = run.classes[1] if binary and len(run.classes) == 2 else ""
    return Use(binary, len(run.classes), positive, code)


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
    if isinstance(value, list):
        more = f" … and {count(len(value) - _MOST_ITEMS)} more" if len(value) > _MOST_ITEMS else ""
        return ", ".join(clean(v) for v in value[:_MOST_ITEMS]) + more
    return clean(value)
