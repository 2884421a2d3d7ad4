"""The section on how good the predictions of test rows are."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from bilevax.core.run_records import Calibration, Confusion, Discrimination, Errors, Threshold
from bilevax.core.text import count, decimal, percent, shorten, significant
from bilevax.report import diagnostic_pictures as draw
from bilevax.report.effects import Picture, legend_of
from bilevax.report.run import Run
from bilevax.report.words import AS_IF, is_weighted

_MOST_THRESHOLDS = 11
_MOST_CLASSES = 30
_SURELY = 3.0  # standard errors


class Cell(NamedTuple):
    """A cell of the confusion table; ``shade`` is half the per cent of its row, so that ink can be read on it."""

    rows: str
    shade: str
    right: bool


class Diagnostics(NamedTuple):
    """Pictures and tables; what was not recorded is empty."""

    legend: tuple[tuple[str, str, bool], ...]
    classes: int
    pictures: tuple[Picture, ...]
    positive: str
    thresholds: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]
    confusion: tuple[tuple[str, tuple[Cell, ...]], ...]
    areas: tuple[tuple[str, ...], ...]
    quantiles: tuple[tuple[str, str], ...]
    explained: str
    bias: str


def diagnostics_section(run: Run) -> Diagnostics | None:
    """The section; None where nothing of it was recorded."""
    curves, calibrations = run.records.of(Discrimination), run.records.of(Calibration)
    confusion, errors = run.records.last(Confusion), run.records.last(Errors)
    if not (curves or calibrations or confusion or errors):
        return None
    two = curves[0] if len(curves) == 1 else None
    quantiles = errors.quantiles.items() if errors else ()
    shown = {run.labels()[c]: c for c in run.shown_labels()}
    target, drawn = run.setting("data", "target"), (_of_shown(curves, shown), _of_shown(calibrations, shown))
    return Diagnostics(
        legend=legend_of(run),
        classes=len(run.labels()),
        pictures=tuple(_pictures(*drawn, errors, target, weighted=is_weighted(run.records))),
        positive=two.label if two else "",
        thresholds=_thresholds(two.thresholds) if two else (),
        labels=tuple(shorten(label, 24) for label in confusion.labels[:_MOST_CLASSES]) if confusion else (),
        confusion=_confusion(confusion) if confusion else (),
        areas=tuple(map(_area, curves)) if len(curves) > 1 else (),
        quantiles=tuple((_share(share), significant(error)) for share, error in quantiles),
        bias=_bias(calibrations, errors, newest=bool(run.setting("data", "time_column"))),
        explained=percent(errors.explained) if errors and errors.explained is not None else "",
    )


def _bias(calibrations: Sequence[Calibration], errors: Errors | None, *, newest: bool) -> str:
    """Of a number: that predictions are too low, or too high, where the mean error is surely not 0."""
    groups = [g for c in calibrations for g in c.groups]
    if errors is None or len(errors.observed) < 2:
        return ""
    off = np.subtract(errors.observed, errors.predicted)
    # the groups are of all test rows, the sample of some
    rows = sum(g.rows for g in groups) or len(off)
    mean = sum(g.rows * (g.observed - g.predicted) for g in groups) / rows if groups else float(off.mean())
    if abs(mean) <= _SURELY * float(off.std(ddof=1)) / math.sqrt(rows):
        return ""
    which = "the test rows (the newest rows)" if newest else "the test rows"
    return f"Predictions are too {'low' if mean > 0 else 'high'} by {significant(abs(mean))} on average on {which}."


D = TypeVar("D", Discrimination, Calibration)


def _of_shown(records: Sequence[D], shown: Mapping[str, int]) -> list[tuple[int, D]]:
    """Those of the classes that have lines, with the number of the class; the one there is is the first."""
    if len(records) == 1:
        return [(0, records[0])]
    return sorted(((shown[d.label], d) for d in records if d.label in shown), key=lambda pair: pair[0])


def _pictures(
    curves: Sequence[tuple[int, Discrimination]],
    calibrations: Sequence[tuple[int, Calibration]],
    errors: Errors | None,
    target: str,
    *,
    weighted: bool,
) -> list[Picture]:
    out = []
    if curves:
        of = "" if len(curves) > 1 else f"Area {decimal(curves[0][1].area, 3)}; the dashed line is guessing."
        out.append(Picture("ROC", of or "Each class against the rest.", draw.roc(curves)))
        of = "" if len(curves) > 1 else f"Average precision {decimal(curves[0][1].average_precision, 3)}."
        out.append(Picture("Precision and recall", of or "Each class against the rest.", draw.precision_recall(curves)))
    if errors and errors.predicted:
        out.append(Picture("Observed against predicted", "A point is a test row.", draw.scatter(errors, target)))
    if calibrations:
        note = "Groups of rows with like predictions. On the dashed line, what was predicted is what happens."
        note += f" {AS_IF[0].upper()}{AS_IF[1:]}." if weighted else ""
        out.append(Picture("Calibration", note, draw.calibration(calibrations)))
    return out


def _thresholds(thresholds: Sequence[Threshold]) -> tuple[tuple[str, ...], ...]:
    """At most so many, taken evenly in their order."""
    last = len(thresholds) - 1
    most = min(_MOST_THRESHOLDS, len(thresholds))
    chosen = [thresholds[round(i * last / max(most - 1, 1))] for i in range(most)]
    return tuple(_threshold(t) for t in sorted(chosen, key=lambda t: t.at))


def _threshold(t: Threshold) -> tuple[str, ...]:
    there, others = t.true_positive + t.false_negative, t.false_positive + t.true_negative
    flagged, right = t.true_positive + t.false_positive, t.true_positive + t.true_negative
    return (
        percent(t.at, 1),
        _of(t.true_positive, there),
        _of(t.false_positive, others),
        percent(t.true_positive / flagged) if flagged else "–",
        percent(right / (there + others)) if there + others else "–",
    )


def _of(part: int, whole: int) -> str:
    return f"{count(part)} of {count(whole)} ({percent(part / whole, 0)})" if whole else "–"


def _confusion(c: Confusion) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
    out = []
    for i, (label, row) in enumerate(zip(c.labels, c.rows, strict=False)):
        total = max(1, sum(row))
        cells = tuple(Cell(count(n), f"{50 * n / total:.0f}", i == j) for j, n in enumerate(row[:_MOST_CLASSES]))
        out.append((label or "(empty)", cells))
    return tuple(out[:_MOST_CLASSES])


def _area(d: Discrimination) -> tuple[str, ...]:
    return d.label or "(empty)", decimal(d.area, 3), decimal(d.average_precision, 3), percent(d.prevalence)


def _share(share: str) -> str:
    try:
        return percent(float(share), 0)
    except ValueError:
        return share
