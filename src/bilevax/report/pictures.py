"""Pictures of comparisons and of the course of a run."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from bilevax.core.text import power, shorten, significant
from bilevax.report import svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Pixels of one interval with its name above it.
_ROW = 46
_WIDTH = 400
# More than a picture of 460 pixels can show.
_MOST_POINTS = 600


class Interval(NamedTuple):
    """One row of an interval picture; ``text`` is its value in words, at the right."""

    name: str
    value: float
    low: float
    high: float
    text: str
    strong: bool = False


def intervals(rows: Sequence[Interval], title: str, *, xlabel: str, zero: bool = False) -> str:
    """Dots with their intervals, one row each, names above; ``zero`` draws the line of no difference.

    Empty where there is no row.
    """
    if not rows:
        return ""
    description = f"{title}, with 95 % intervals. {'; '.join(f'{r.name}: {r.text}' for r in rows)}."
    figure, ax = svg.panel(_ROW * len(rows) + 44, left=10, right=10, top=2, bottom=42, width=_WIDTH)
    if zero:
        ax.axvline(0, color=svg.MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    for i, row in enumerate(rows):
        _interval(ax, row, len(rows) - 1 - i)
    ends = [x for r in rows for x in (r.low, r.high, r.value) if math.isfinite(x)] + [0.0] * zero
    ax.set(xlim=_padded(min(ends), max(ends)), ylim=(0, len(rows)), yticks=[], xlabel=xlabel)
    linear_ticks(ax, "x", 4)
    ax.grid(axis="x")
    return svg.image(figure, description)


def _interval(ax: "Axes", row: Interval, bottom: int) -> None:
    colour = svg.ACCENT if row.strong else svg.MUTED
    if math.isfinite(row.low) and math.isfinite(row.high):
        ax.plot([row.low, row.high], [bottom + 0.26] * 2, color=colour, linewidth=3)
    ax.plot([row.value], [bottom + 0.26], "o", color=colour, markersize=9, markeredgecolor=svg.CARD)
    ink = svg.INK if row.strong else svg.MUTED
    # Hides the lines behind the text.
    blank = {"facecolor": svg.CARD, "edgecolor": "none", "pad": 2.0}
    for x, text, side in ((0, shorten(row.name, 36), "left"), (1, row.text, "right")):
        ax.text(x, bottom + 0.56, text, transform=ax.get_yaxis_transform(), color=ink, fontsize=12, ha=side, bbox=blank)


class Line(NamedTuple):
    """One line of a course picture; the second of two is dashed."""

    label: str
    y: Sequence[float]
    second: bool = False


def course(
    x: Sequence[float],
    lines: Sequence[Line],
    *,
    xlabel: str,
    ylabel: str,
    x_text: Callable[[float, object], str] | str = "{x:g}",
    shade: float = 0.0,
    from_zero: bool = True,
) -> str:
    """Lines over the course of a run; the y axis is logarithmic where the values span decades.

    The part of the picture left of ``shade`` is shaded. Empty where a line has fewer than two points.
    """
    from matplotlib.ticker import MaxNLocator

    if any(_thinned(x, line.y).shape[1] < 2 for line in lines):
        return ""
    said = "; ".join(f"{line.label} from {_ends(line.y)}" for line in lines)
    top = 26 if len(lines) > 1 else 8
    figure, ax = svg.panel(224 + top, left=58, right=14, top=top, bottom=42)
    values = np.concatenate([np.asarray(line.y, float) for line in lines])
    values = values[np.isfinite(values)]
    # A loss that falls to a thirtieth would look like an L on a linear axis.
    logarithmic = bool(values.min() > 0 and values.max() > 30 * values.min())
    for line in lines:
        colour, dashes = (svg.SECOND, (0, (4, 2))) if line.second else (svg.ACCENT, "solid")
        ax.plot(*_thinned(x, line.y), color=colour, linestyle=dashes, label=line.label)
    if shade > 0:
        ax.axvspan(0, shade, color=svg.GRID, linewidth=0, zorder=0)
    if logarithmic:
        log_axis(ax, "y", values.min(), values.max())
    else:
        ax.set_ylim(*_padded(values.min(), values.max()))
        linear_ticks(ax, "y", 5)
    if from_zero:
        ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(x_text)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(axis="y")
    if len(lines) > 1:
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncol=2, borderaxespad=0, labelcolor=svg.INK)
    return svg.image(figure, f"{ylabel} against {xlabel}: {said}.")


def _ends(values: Sequence[float]) -> str:
    finite = [v for v in values if math.isfinite(v)]
    return f"{significant(finite[0], 4)} to {significant(finite[-1], 4)}"


def _thinned(x: Sequence[float], y: Sequence[float]) -> np.ndarray:
    """The points that are finite, at most _MOST_POINTS of them taken evenly, [2, points]."""
    points = np.array([x, y], float)
    keep = np.flatnonzero(np.isfinite(points).all(axis=0))
    if len(keep) > _MOST_POINTS:
        keep = keep[np.unique(np.linspace(0, len(keep) - 1, _MOST_POINTS).round().astype(int))]
    return points[:, keep]


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.06 * (high - low) or max(1e-3, 0.1 * abs(high))
    return low - room, high + room


def linear_ticks(ax: "Axes", axis: str, most: int, *, whole: bool = False) -> None:
    """At most so many ticks more one, as plain numbers, or whole ones."""
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    # An offset such as "+4.2e-1" in a corner is what no reader finds.
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_powerlimits((-4, 5))
    side = ax.xaxis if axis == "x" else ax.yaxis
    side.set_major_locator(MaxNLocator(most, integer=whole))
    side.set_major_formatter(formatter)


def log_axis(ax: "Axes", axis: Literal["x", "y"], low: float, high: float, ticks: int = 6) -> None:
    """Make an axis logarithmic, from a little below ``low`` to a little above ``high``."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    decades = math.log10(high) - math.log10(low)
    # 6 % of the logarithmic length at either end; half a decade where all values are one.
    room = 10 ** (0.06 * decades if decades > 0.02 else 0.5)
    # Within what float64 holds.
    lowest, highest = np.clip([low / room, high * room], 1e-323, 1e307)
    ax.set(**{f"{axis}scale": "log", f"{axis}lim": (lowest, highest)})
    side = ax.xaxis if axis == "x" else ax.yaxis
    # Over few decades ticks at powers of ten alone would be one or two; within one, even 2 and 5 are few.
    subs = (1.0,) if decades > 2 else (1.0, 2.0, 5.0)
    side.set_major_locator(LogLocator(subs=subs, numticks=ticks) if decades > 0.7 else MaxNLocator(ticks))
    side.set_minor_locator(NullLocator())
    side.set_major_formatter("{x:g}" if lowest > 1e-4 and highest < 1e5 else _in_powers)


def _in_powers(x: float, _position: object) -> str:
    mantissa, exponent = f"{x:.2e}".split("e")
    digits = f"{float(mantissa):g}·"
    return f"{digits.removeprefix('1·')}{power(int(exponent))}"
