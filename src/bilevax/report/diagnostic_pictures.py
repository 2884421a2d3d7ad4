"""Pictures of how good predictions are."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bilevax.core.run_records import Calibration, Discrimination, Errors
from bilevax.core.text import shorten
from bilevax.report import svg
from bilevax.report.effect_pictures import WIDTH
from bilevax.report.pictures import linear_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEIGHT, _MOST_POINTS, _MOST_DOTS = 250, 200, 500


def _square() -> "tuple[Figure, Axes]":
    return svg.panel(_HEIGHT, left=54, right=16, top=8, bottom=42, width=WIDTH)


def _unit_axes(ax: "Axes", xlabel: str, ylabel: str) -> None:
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=xlabel, ylabel=ylabel)
    for side in (ax.xaxis, ax.yaxis):
        side.set_ticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0", "25 %", "50 %", "75 %", "100 %"])
    ax.grid(axis="both")


def _dashed(ax: "Axes", x: Sequence[float], y: Sequence[float]) -> None:
    ax.plot(x, y, color=svg.MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)


def _curves(ax: "Axes", lines: Sequence[tuple[int, Sequence[float], Sequence[float]]]) -> None:
    for c, x, y in lines:
        chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).round().astype(int))
        colour, dashes = svg.look(c)
        width = 1.8 if len(lines) == 1 else 1.2
        ax.plot(np.array(x)[chosen], np.array(y)[chosen], color=colour, linestyle=dashes, linewidth=width)


def roc(curves: Sequence[tuple[int, Discrimination]]) -> str:
    """The ROC curves of classes, by the numbers of these."""
    figure, ax = _square()
    _dashed(ax, [0, 1], [0, 1])
    _curves(ax, [(c, d.false_positive_rate, d.true_positive_rate) for c, d in curves])
    _unit_axes(ax, "false alarms among the others", "found")
    said = "; ".join(f"{d.label}: area {d.area:.3f}" for _, d in curves)
    return svg.image(figure, f"ROC. {said}.")


def precision_recall(curves: Sequence[tuple[int, Discrimination]]) -> str:
    """The precision-recall curves of classes."""
    figure, ax = _square()
    if len(curves) == 1:
        _dashed(ax, [0, 1], [curves[0][1].prevalence] * 2)
    _curves(ax, [(c, d.recall, d.precision) for c, d in curves])
    _unit_axes(ax, "found (recall)", "right among flagged (precision)")
    said = "; ".join(f"{d.label}: average precision {d.average_precision:.3f}" for _, d in curves)
    return svg.image(figure, f"Precision and recall. {said}.")


def calibration(found: Sequence[tuple[int, Calibration]]) -> str:
    """What was observed against what was predicted, in groups of rows; of one curve with intervals."""
    figure, ax = _square()
    ends = [v for _, c in found for g in c.groups for v in (g.predicted, g.observed)] or [0.0, 1.0]
    # of a number there is no label
    probabilities = any(c.label for _, c in found)
    low, high = (0.0, 1.0) if probabilities else (min(ends), max(ends))
    _dashed(ax, [low, high], [low, high])
    for c, record in found:
        x, y = [g.predicted for g in record.groups], [g.observed for g in record.groups]
        colour, dashes = svg.look(c)
        if len(found) == 1:
            bars = [g.low for g in record.groups], [g.high for g in record.groups]
            ax.vlines(x, *bars, color=colour, alpha=0.45, linewidth=2)
        ax.plot(x, y, "o", color=colour, linestyle=dashes, markersize=5 if len(found) == 1 else 3, linewidth=1.2)
    if probabilities:
        _unit_axes(ax, "predicted probability", "observed share")
    else:
        ax.set(xlabel="predicted", ylabel="observed")
        linear_ticks(ax, "x", 5)
        linear_ticks(ax, "y", 5)
        ax.grid(axis="both")
    return svg.image(figure, "Calibration: observed against predicted.")


def scatter(errors: Errors, target: str) -> str:
    """Observed against predicted numbers, at most 500 rows, taken evenly."""
    figure, ax = _square()
    points = np.array([errors.predicted, errors.observed], float)
    chosen = np.unique(np.linspace(0, points.shape[1] - 1, _MOST_DOTS).round().astype(int))
    ends = [float(points.min()), float(points.max())]
    _dashed(ax, ends, ends)
    ax.plot(*points[:, chosen], "o", color=svg.ACCENT, markersize=3.2, alpha=0.45, markeredgewidth=0, linestyle="none")
    ax.set(xlabel="predicted", ylabel=shorten(target or "observed", 30))
    linear_ticks(ax, "x", 5)
    linear_ticks(ax, "y", 5)
    ax.grid(axis="both")
    return svg.image(figure, f"Observed against predicted {target}, {points.shape[1]} rows.")
