"""Pictures of the penalties of a linear model, one penalty a term; all axes of penalties are logarithmic."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bilevax.core.text import shorten
from bilevax.report import svg
from bilevax.report.pictures import log_axis
from bilevax.report.run import LinearTerm as Term

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW = 18
_MOST_POINTS = 1500
_LABEL = "penalty (log scale)"


def dots(terms: Sequence[Term], *, signed: bool, penalties: bool, description: str) -> str:
    """Each term's penalty as a dot, its weight beside it; weights alone where ``penalties`` do not differ.

    ``signed`` shows a single weight with its sign.
    """
    # At 11 pixels a character of DejaVu Sans is 6.4 wide, on average.
    names = [shorten(term.name, 21) for term in terms]
    left = 22 + 6.4 * max(map(len, names))
    rows = np.arange(len(terms))[::-1]
    height = _ROW * len(terms) + 64
    if not penalties:
        figure, ax = svg.panel(height, left=left, right=12, top=22, bottom=42)
        _weights(ax, terms, rows, signed=signed)
        ax.set_ylim(-0.8, len(terms) - 0.2)
        ax.set_yticks(rows, names, color=svg.INK)
        return svg.image(figure, description)
    figure, ax = svg.panel(height, left=left, right=134, top=22, bottom=42)
    for row, term in zip(rows, terms, strict=True):
        ax.plot([min(term.penalties), max(term.penalties)], [row, row], color=svg.ACCENT, linewidth=2)
    means = [term.mean_penalty for term in terms]
    ax.plot(means, rows, "o", color=svg.ACCENT, markersize=7, markeredgecolor=svg.CARD, markeredgewidth=0.6)
    ax.set_yticks(rows, names, color=svg.INK)
    ax.set(ylim=(-0.8, len(terms) - 0.2), xlabel=_LABEL)
    spread = [p for term in terms for p in term.penalties]
    log_axis(ax, "x", min(spread), max(spread), ticks=3)
    ax.grid(axis="both")
    ax.set_title("penalty", fontsize=11, color=svg.INK, loc="left")
    beside = svg.add_axes(figure, left=342, right=12, top=22, bottom=42)
    _weights(beside, terms, rows, signed=signed)
    beside.set_ylim(ax.get_ylim())
    return svg.image(figure, description)


def _weights(ax: "Axes", terms: Sequence[Term], rows: np.ndarray, *, signed: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    values = [term.weight[0] if signed and term.weight else term.size for term in terms]
    values = [v if math.isfinite(v) else 0.0 for v in values]
    ax.barh(rows, values, height=0.5, color=svg.MUTED)
    ax.axvline(0, color=svg.MUTED, linewidth=0.8)
    ax.set_yticks(rows, [""] * len(rows))
    ax.grid(axis="both")
    ax.xaxis.set_major_locator(MaxNLocator(3))
    top = 1.08 * max(map(abs, values)) or 1.0
    ax.set(xlim=(-top if min(values) < 0 else 0.0, top), xlabel="weight, signed" if signed else "norm")
    ax.set_title("weight" if signed else "size of weights", fontsize=11, color=svg.INK, loc="left")


def histogram(penalties: np.ndarray, *, description: str) -> str:
    """How many terms have which penalty."""
    from matplotlib.ticker import MaxNLocator

    figure, ax = svg.panel(214, left=52, right=14, top=22, bottom=42)
    low, high = penalties.min(), penalties.max()
    # 2 sqrt(n) bins, of equal length on the logarithmic axis.
    edges = np.geomspace(low, high, 1 + int(np.clip(2 * math.sqrt(len(penalties)), 8, 36)))
    counts, _ = np.histogram(penalties, edges)
    ax.bar(edges[:-1], counts, np.diff(edges), align="edge", color=svg.ACCENT, edgecolor=svg.CARD, linewidth=1)
    median = float(np.median(penalties))
    ax.axvline(median, color=svg.INK, linewidth=1.2, linestyle=(0, (4, 3)))
    side = "left" if median < math.sqrt(low * high) else "right"
    shift = 5 if side == "left" else -5
    ax.annotate("median", (median, 1), (shift, 2), ha=side, xycoords=("data", "axes fraction"),
                textcoords="offset points", color=svg.INK)  # fmt: skip
    log_axis(ax, "x", low, high)
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.grid(axis="y")
    ax.set(xlabel=_LABEL, ylabel="features")
    return svg.image(figure, description)


def scatter(terms: Sequence[Term], *, description: str) -> str:
    """Penalty against the size of the weights, at most 1,500 of the terms, taken evenly in their order."""
    figure, ax = svg.panel(240, left=58, right=14, top=6, bottom=42)
    points = np.array([(t.mean_penalty, t.size) for t in terms])
    # Evenly in the order of the penalties, so that the ends are shown.
    points = points[np.unique(np.linspace(0, len(points) - 1, _MOST_POINTS).round().astype(int))]
    ax.plot(*points.T, "o", color=svg.ACCENT, markersize=4.5, alpha=0.5, markeredgewidth=0, linestyle="none")
    (low, bottom), (high, top) = points.min(axis=0), points.max(axis=0)
    log_axis(ax, "x", low, high)
    log_axis(ax, "y", bottom, top)
    ax.grid(axis="both")
    ax.set(xlabel=_LABEL, ylabel="size of weights (log scale)")
    return svg.image(figure, description)


def image(grid: np.ndarray, *, description: str) -> str:
    """Penalties of pixels where the pixels are, as a map; NaN where there is no term."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    rows, columns = grid.shape
    width = min(svg.WIDTH - 100, 330 * columns / rows)
    figure, ax = svg.panel(width * rows / columns + 20, left=10, right=svg.WIDTH - 10 - width, top=10, bottom=10)
    low, high = np.nanmin(grid), np.nanmax(grid)
    scale = LogNorm(low, high if high > low else 10 * low)
    # Lines between pixels that are wide enough to bear them.
    gap = 1.0 if columns <= 32 else 0.0
    ax.pcolormesh(grid, cmap="cividis_r", norm=scale, edgecolors=svg.CARD, linewidth=gap)
    ax.set(xlim=(0, columns), ylim=(rows, 0))
    ax.set_axis_off()
    legend = svg.add_axes(figure, left=width + 24, right=svg.WIDTH - width - 36, top=26, bottom=12)
    bar = figure.colorbar(ScalarMappable(scale, "cividis_r"), cax=legend, drawedges=False)
    bar.outline.set_visible(False)
    log_axis(legend, "y", low, high)
    legend.set_ylim(low, high if high > low else 10 * low)
    legend.set_title("penalty", fontsize=11, color=svg.INK, loc="left")
    return svg.image(figure, description)
