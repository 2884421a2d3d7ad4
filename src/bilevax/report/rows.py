"""The section on rows that deserve a look, and how their predictions come about."""

import math
import re
from collections.abc import Collection
from typing import NamedTuple

from bilevax.core.run_records import Contribution, Pair, Row, Scoring
from bilevax.core.text import count, percent, shorten, significant
from bilevax.report.run import Run

_MOST = 10
_CELL = 40
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}(e[-+]?\d+)?")
_WHY = {
    "hardest": (
        "Hardest",
        "Test rows that the model got most wrong. Look at their labels: they may be mistakes.",
    ),
    "influential": ("Most influential", "Training rows without which the model would be most different."),
    "typical": ("Typical", "Test rows in the middle of their class."),
}


_OF_NUMBERS = "Test rows a quarter, half and three quarters of the way through the predictions, in their order."


class Share(NamedTuple):
    """A contribution as a bar from the middle: where it starts and how wide it is, in per cent."""

    name: str
    cell: str
    value: str
    left: str
    width: str
    up: bool


class Shown(NamedTuple):
    """A row and its contributions."""

    title: str
    truth: str
    predicted: str
    figures: str
    sum: str
    shares: tuple[Share, ...]


class Group(NamedTuple):
    """Rows of one kind."""

    title: str
    note: str
    rows: tuple[Shown, ...]


def rows_section(run: Run) -> list[Group]:
    """The groups that were recorded."""
    rows, scoring = run.records.of(Row), run.records.last(Scoring) or Scoring(task="classes", loss="log-loss")
    words = _WHY if scoring.task == "classes" else _WHY | {"typical": ("Typical", _OF_NUMBERS)}
    pairs = {" x ".join(pair.names) for pair in run.records.of(Pair)}
    groups = {why: [row for row in rows if row.why == why][:_MOST] for why in _WHY}
    shown = {why: tuple(_shown(row, scoring, pairs) for row in found) for why, found in groups.items() if found}
    return [Group(*words[why], found) for why, found in shown.items()]


def _shown(row: Row, scoring: Scoring, pairs: Collection[str]) -> Shown:
    figures, number = [], scoring.task == "number"
    if row.probability is not None:
        figures.append(f"probability of the truth {percent(row.probability)}")
    elif row.loss is not None and number:
        figures.append(f"off by {significant(math.sqrt(abs(row.loss)))}")
    elif row.loss is not None:
        figures.append(f"{scoring.loss} {significant(row.loss)}")
    if row.influence is not None:
        # d' H d of the change d of all curves: its root is in standard errors
        moved = significant(math.sqrt(max(0.0, row.influence)), 2)
        figures.append(f"leaving it out would move the model by {moved} standard errors")
    return Shown(
        title=f"Row {count(row.number)}",
        truth=row.truth or "(empty)",
        predicted=row.predicted or "(empty)",
        figures=", ".join(figures),
        sum=_sum(row, "prediction" if number else "score"),
        shares=_shares(row, pairs),
    )


def _sum(row: Row, what: str) -> str:
    added = sum(c.adds for c in row.contributions) + row.rest
    score = significant(row.intercept + added)
    return f"intercept {significant(row.intercept)}, contributions {_signed(added)}: {what} {score}"


def _shares(row: Row, pairs: Collection[str]) -> tuple[Share, ...]:
    parts = [(*_named(c, pairs), c.adds) for c in row.contributions]
    parts += [("all others", "", row.rest)] * (row.rest != 0.0)
    largest = max((abs(adds) for *_, adds in parts), default=0.0) or 1.0
    return tuple(_share(name, cell, adds, largest) for name, cell, adds in parts)


def _named(c: Contribution, pairs: Collection[str]) -> tuple[str, str]:
    """Name and cell as they are shown, of a pair both cells."""
    if c.name not in pairs:
        return c.name or "(no name)", _cell(c.cell, _CELL)
    return c.name.replace(" x ", " × "), ", ".join(_cell(cell, _CELL // 2) for cell in c.cell.split(", ", 1))


def _cell(text: str, width: int) -> str:
    """A date without its midnight, a number to six digits, a text as far as there is room."""
    if _LONG_NUMBER.fullmatch(text):
        return f"{float(text):.6g}"
    return shorten(text.removesuffix("T00:00:00"), width)


def _share(name: str, cell: str, adds: float, largest: float) -> Share:
    width = 50 * abs(adds) / largest
    left = 50.0 if adds >= 0 else 50 - width
    return Share(name, cell, _signed(adds), f"{left:.2f}", f"{width:.2f}", adds >= 0)


def _signed(x: float) -> str:
    return f"+{significant(x)}" if x > 0 else significant(x)
