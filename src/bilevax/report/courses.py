"""The picture of a comparison: how far each algorithm got, for how much, on each problem."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bilevax.core.events import Plain
from bilevax.core.files import write
from bilevax.core.text import duration, short_count
from bilevax.report import svg
from bilevax.report.pictures import log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_PANEL, _MARGIN, _COLUMNS = 190, 60, 2
# Okabe and Ito's colours, which all kinds of eyes tell apart; each round of them has dashes of its own.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_DASHES = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))
_TITLES = {"samples": "samples", "seconds": "CPU seconds"}
_MEASURE = "|grad f|² over that at the start"
# Below this a figure is rounding alone.
_FLOOR = 1e-16


def write_courses(path: Path, records: Sequence[Plain], *, by: str = "samples") -> Path:
    """Write the picture of comparisons as SVG: medians over the seeds, bands from quartile to quartile.

    Args:
        path: of the picture.
        records: of :func:`bilevax.testing.compare.compare`, each with its budgets.
        by: ``"samples"`` or ``"seconds"``, what the x axis is.

    Returns:
        The path.

    Raises:
        StorageError: the picture could not be written.
    """
    problems = [(problem, record["budgets"][by]) for record in records for problem in record["problems"]]
    names = list(dict.fromkeys(entry["name"] for problem, _ in problems for entry in problem["algorithms"]))
    rows = -(-len(problems) // _COLUMNS)
    top = 22 * -(-len(names) // 5) + 8
    with svg.style():
        from matplotlib.figure import Figure

        width, height = 2 * svg.WIDTH, rows * (_PANEL + _MARGIN) + top
        figure = Figure(figsize=(width / 72, height / 72))
        for i, (problem, budgets) in enumerate(problems):
            row, column = divmod(i, _COLUMNS)
            left, above = column * svg.WIDTH + 58, top + row * (_PANEL + _MARGIN) + 18
            box = left, width - left - svg.WIDTH + 72, above, height - above - _PANEL
            ax = svg.add_axes(figure, *box)
            _draw(ax, problem, names, budgets, by)
            ax.set_title(problem["name"], fontsize=12, color=svg.INK, loc="left")
        nothing = np.zeros(0)
        handles = [_line(figure.axes[0], nothing, nothing, names, name) for name in names]
        figure.legend(handles, names, loc="upper left", ncol=5, borderaxespad=0.2, labelcolor=svg.INK)
        # on whatever page it is shown, which may be dark
        write(path, svg.drawing(figure, background=svg.CARD))
    return path


def _line(ax: "Axes", x: np.ndarray, y: np.ndarray, names: Sequence[str], name: str) -> "Line2D":
    number = names.index(name)
    colour, dashes = _COLOURS[number % len(_COLOURS)], _DASHES[number // len(_COLOURS) % len(_DASHES)]
    return ax.plot(x, y, color=colour, linestyle=dashes, linewidth=1.5)[0]


def _draw(ax: "Axes", problem: Plain, names: Sequence[str], budgets: Sequence[float], by: str) -> None:
    x, seen = np.asarray(budgets, float), [1.0]
    for entry in problem["algorithms"]:
        if "quartiles" not in entry:
            continue
        # None is what a failed run has: no point
        low, middle, high = (_above(row) for row in entry["quartiles"][by]["gradient"])
        line = _line(ax, x, middle, names, entry["name"])
        ax.fill_between(x, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        seen += [v for v in middle if np.isfinite(v)]
    log_axis(ax, "x", x[0], x[-1])
    log_axis(ax, "y", min(seen), min(max(seen), 1e3))
    ax.xaxis.set_major_formatter(short_count if by == "samples" else lambda value, _: duration(value))
    ax.set(xlabel=_TITLES[by], ylabel=_MEASURE)
    ax.grid(axis="y")


def _above(row: Sequence[float | None]) -> np.ndarray:
    return np.asarray(np.maximum(np.array(row, float), _FLOOR))
