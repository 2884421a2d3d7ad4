"""The section that compares the tuned model with the models a user would have had without it."""

import math
from typing import NamedTuple

from bilevax.core.text import decimal, duration, percent, places_for
from bilevax.report.pictures import Interval, intervals
from bilevax.report.records import Model, Run
from bilevax.report.summary import NORMAL, is_known, main_rival, tuned_model

SHOWN_ANYHOW = {"neg_log_loss", "accuracy"}
"""Scores that have a column of their own in every table of models."""


class Row(NamedTuple):
    """One model, as the table shows it."""

    name: str
    tuned: bool
    cells: tuple[str, ...]


class Comparison(NamedTuple):
    """Pictures and table."""

    levels: str
    differences: str
    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    kept: str


def comparison(run: Run) -> Comparison | None:
    """The section; None where no model was compared."""
    if not run.models:
        return None
    heads, rows = _table(run)
    return Comparison(_levels(run), _differences(run), heads, rows, _kept(run))


def _places(run: Run) -> int:
    # The smallest error decides for all, so that the figures can be compared.
    errors = [m.test_log_loss_se for m in run.models if m.test_log_loss_se > 0]
    return places_for(NORMAL * min(errors)) if errors else 4


def _table(run: Run) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    tuned, paired, places = tuned_model(run), {p.name: p for p in run.paired}, _places(run)
    scores = {m.score_name for m in run.models if math.isfinite(m.score)} - SHOWN_ANYHOW
    score = min(scores) if scores else ""

    def cells(m: Model) -> tuple[str, ...]:
        error = f" ± {decimal(NORMAL * m.test_log_loss_se, places)}" if m.test_log_loss_se >= 0 else ""
        p, difference = paired.get(m.name), "–"
        if p is not None:
            digits = places_for((p.high - p.low) / 2)
            low, high = decimal(p.low, digits), decimal(p.high, digits)
            difference = f"{decimal(p.difference, digits)} ({low} to {high})"
        out = [decimal(m.test_log_loss, places) + error, difference, percent(m.test_accuracy)]
        out += [decimal(m.score, 4)] if score else []
        return (*out, decimal(m.validation_log_loss, places), duration(m.seconds))

    heads = ["test log-loss", "tuned minus this", "test accuracy", *([f"test {score}"] if score else [])]
    rows = tuple(Row(m.name, m is tuned, cells(m)) for m in run.models)
    return (*heads, "validation log-loss", "time"), rows


def _levels(run: Run) -> str:
    tuned, places = tuned_model(run), _places(run)
    rows = []
    for m in run.models:
        half = NORMAL * m.test_log_loss_se
        text = decimal(m.test_log_loss, places) + (f" ± {decimal(half, places)}" if half >= 0 else "")
        ends = m.test_log_loss - half, m.test_log_loss + half
        rows.append(Interval(m.name, m.test_log_loss, *ends, text, m is tuned))
    rows = [row for row in rows if math.isfinite(row.value)]
    return intervals(rows, "Test log-loss of each model", xlabel="test log-loss (nats per row)")


def _differences(run: Run) -> str:
    rows, rival = [], main_rival(run)
    for p in filter(is_known, run.paired):
        text = decimal(p.difference, places_for((p.high - p.low) / 2))
        rows.append(Interval(f"against {p.name}", p.difference, p.low, p.high, text, p is rival))
    xlabel = "← tuned is better · difference (nats per row) · tuned is worse →"
    return intervals(rows, "Test log-loss of the tuned model minus the others'", xlabel=xlabel, zero=True)


def _kept(run: Run) -> str:
    """How much of what was gained on the validation rows was still there on the test rows."""
    tuned, rival = tuned_model(run), main_rival(run)
    other = next((m for m in run.models if rival is not None and m.name == rival.name), None)
    if tuned is None or other is None or rival is None:
        return ""
    # Both are the rival's loss minus the tuned model's: positive where tuning helped.
    seen = other.validation_log_loss - tuned.validation_log_loss
    if not math.isfinite(seen):
        return ""
    places = places_for((rival.high - rival.low) / 2)
    before, after = (f"{'gained' if x >= 0 else 'lost'} {decimal(abs(x), places)}" for x in (seen, -rival.difference))
    return (
        f"On the validation rows, which tuning saw, it {before} over “{rival.name}”; "
        f"on the test rows, which it did not see, it {after}."
    )
