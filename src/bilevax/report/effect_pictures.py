"""Pictures of what columns, and pairs of columns, add to a score."""

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from bilevax.core.run_records import Effect, Pair
from bilevax.core.text import count, shorten, significant
from bilevax.report import svg
from bilevax.report.pictures import linear_ticks, log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 350
"""Of a picture, in pixels: three stand side by side on a wide page."""

LEVELS = 20
"""Of a category that are shown, the most frequent ones."""

_BANDS = 3  # more of them, one upon the other, are mud
_ROW, _CHARACTER, _LONGEST = 19, 6.6, 21
_TAILS = 0.005  # rows beyond either end of an axis, where they would take more than half of it
_DECADES = 20.0  # largest over least number from which an axis may be logarithmic
_MISSING = "(missing)"
_NAMES = {
    "month": ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
    "weekday": ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"),
}


class Bins(NamedTuple):
    """Those bins of an effect that have rows.

    Attributes:
        at: numbers or levels.
        curve: [bins, S].
        low: of the band, likewise.
        high: likewise.
        weight: [bins].
    """

    at: list[float | str]
    curve: np.ndarray
    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray

    def take(self, chosen: np.ndarray) -> "Bins":
        """Some of them, in this order."""
        at = [self.at[int(b)] for b in chosen]
        return Bins(at, self.curve[chosen], self.low[chosen], self.high[chosen], self.weight[chosen])


def bins_of(effect: Effect) -> Bins:
    """The bins of an effect that have rows; a band that is not known has no width."""
    curve, weight = np.array(effect.curve, float), np.array(effect.weight, float)
    bands = (np.array(band, float) for band in (effect.lower, effect.upper))
    low, high = (band if band.shape == curve.shape else curve for band in bands)
    return Bins(effect.at, curve, low, high, weight).take(np.flatnonzero(weight > 0))


def picture(effect: Effect, labels: Sequence[str], unit: str, shown: Sequence[int] = (0,), *, part: str = "") -> str:
    """The effect of a column: a curve of numbers, points of levels, a map of levels and classes.

    Args:
        effect: with curves of S scores.
        labels: of the classes.
        unit: what it is measured in.
        shown: which of the scores, if S > 1.
        part: of a date.
    """
    bins = bins_of(effect)
    shown = [c for c in shown if c < bins.curve.shape[1]] if bins.curve.shape[1] > 1 else [0]
    numbers = np.array([not isinstance(a, str) for a in bins.at])
    if numbers.any():
        parts = bins.take(np.flatnonzero(numbers)), bins.take(np.flatnonzero(~numbers))
        return _curve(*parts, shown, name=effect.name, unit=unit, part=part)
    ordered = any(part.part == "steps" for part in effect.parts)
    levels = _levels_shown(bins, ordered)
    if levels.curve.shape[1] == 1:
        return _points(levels, effect.name, unit)
    names = [labels[c] if c < len(labels) else str(c + 1) for c in shown]
    return _level_map(levels, effect.name, shown, names)


def _levels_shown(bins: Bins, ordered: bool) -> Bins:
    """The most frequent levels; in their order if they have one, else by effect; what is missing comes last."""
    most = np.sort(np.argsort(-bins.weight, kind="stable")[:LEVELS])
    shown = bins.take(most)
    if not ordered:
        shown = shown.take(np.argsort(-shown.curve[:, 0], kind="stable"))
    last = np.array([a == _MISSING for a in shown.at])
    return shown.take(np.argsort(last, kind="stable"))


def _curve(numbers: Bins, missing: Bins, shown: Sequence[int], *, name: str, unit: str, part: str) -> str:
    x = np.array([float(a) for a in numbers.at])
    figure, ax = svg.panel(200, left=66, right=56 if missing.at else 16, top=8, bottom=30, width=WIDTH)
    inside = _x_axis(ax, x, numbers.weight)
    if part in _NAMES:
        # room for every second month
        some = x[:: 2 if part == "month" else 1]
        ax.set_xticks(some, [_tick(part_name(part, a)) for a in some.tolist()])
    _lines(ax, x, numbers, shown)
    if missing.at:
        _beside(ax, missing, shown)
    _y_axis(ax, numbers, missing, inside)
    _rug(ax, x, numbers.weight)
    ax.set_ylabel(shorten(unit, 24))
    ends = f"{numbers.curve.min():.3g} to {numbers.curve.max():.3g}"
    return svg.image(figure, f"What {name} adds, from {x.min():.4g} to {x.max():.4g}: {ends}.")


def _lines(ax: "Axes", x: np.ndarray, bins: Bins, shown: Sequence[int]) -> None:
    """A model of bins is constant within each."""
    few = len(shown) <= _BANDS
    for c in shown:
        colour, dashes = svg.look(c)
        if few:
            ax.fill_between(x, bins.low[:, c], bins.high[:, c], step="mid", color=colour, alpha=0.18, linewidth=0)
        ax.step(x, bins.curve[:, c], where="mid", color=colour, linestyle=dashes, linewidth=1.8 if few else 1.2)
    if len(x) == 1:
        ax.plot(x, bins.curve[:, :1], "o", color=svg.ACCENT, markersize=5)
    ax.axhline(0, color=svg.MUTED, linewidth=0.8, zorder=0)


def _beside(ax: "Axes", missing: Bins, shown: Sequence[int]) -> None:
    """The effect of a missing cell, right of the axes."""
    place = ax.get_yaxis_transform()
    for c in shown:
        colour, _ = svg.look(c)
        if len(shown) <= _BANDS:
            band = missing.low[0, c], missing.high[0, c]
            ax.plot([1.13, 1.13], band, color=colour, alpha=0.5, transform=place, clip_on=False)
        ax.plot([1.13], [missing.curve[0, c]], "o", color=colour, markersize=5, transform=place, clip_on=False)
    ax.text(1.13, -0.075, "missing", transform=ax.transAxes, ha="center", va="top", color=svg.MUTED, fontsize=10)


def _x_axis(ax: "Axes", x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Limits and ticks by where the rows are; which bins are inside is returned."""
    order = np.cumsum(weight) / weight.sum()
    at = np.minimum(np.searchsorted(order, (_TAILS, 1 - _TAILS)), len(x) - 1)
    low, high = x[at].tolist()
    if x.min() > 0 and x.max() > _DECADES * x.min() and _uneven(np.log(x), order) < 0.5 * _uneven(x, order):
        log_axis(ax, "x", float(x.min()), float(x.max()), ticks=4)
        return np.ones(len(x), bool)
    if high - low > 0.5 * (x.max() - x.min()):
        low, high = float(x.min()), float(x.max())
    room = 0.02 * (high - low) or max(0.5, 0.1 * abs(high))
    ax.set_xlim(low - room, high + room)
    linear_ticks(ax, "x", 4, whole=bool(np.all(x == np.rint(x))))
    inside: np.ndarray = (x >= low) & (x <= high)
    return inside


def _uneven(x: np.ndarray, order: np.ndarray) -> float:
    """How far rows are from evenly spread over the axis: the largest difference of the two distributions."""
    return float(np.max(np.abs((x - x[0]) / (x[-1] - x[0]) - order)))


def _y_axis(ax: "Axes", numbers: Bins, missing: Bins, inside: np.ndarray) -> None:
    """All curves, and their bands as far as those are not many times as wide."""
    parts = [numbers.take(np.flatnonzero(inside)), missing] if missing.at else [numbers.take(np.flatnonzero(inside))]
    curve, low, high = (np.concatenate([getattr(p, name).ravel() for p in parts]) for name in ("curve", "low", "high"))
    reach = max(float(curve.max() - curve.min()), float(np.median(high - low)), 1e-12)
    bottom = max(float(low.min()), float(curve.min()) - reach)
    top = min(float(high.max()), float(curve.max()) + reach)
    bottom, top = min(bottom, 0.0), max(top, 0.0)
    if bottom == top:  # a column that adds nothing
        bottom, top = -1.0, 1.0
    # room for the rug
    ax.set_ylim(bottom - 0.12 * (top - bottom), top + 0.05 * (top - bottom))
    linear_ticks(ax, "y", 5)
    ax.grid(axis="y")


def _rug(ax: "Axes", x: np.ndarray, weight: np.ndarray) -> None:
    """Where the rows are: a tick a bin, longer where there are more; one path."""
    gap = np.full(len(x), np.nan)
    tops = 0.065 * np.sqrt(weight / weight.max())
    xs, ys = np.stack([x, x, gap], axis=1).ravel(), np.stack([0 * tops, tops, gap], axis=1).ravel()
    ax.plot(xs, ys, color=svg.MUTED, linewidth=0.8, solid_capstyle="butt", transform=ax.get_xaxis_transform())


def _names(at: Sequence[float | str]) -> tuple[list[str], float]:
    """Names short enough for a picture, and the pixels that they take."""
    names = [shorten(str(a), _LONGEST) or "(empty)" for a in at]
    columns = [sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in name) for name in names]
    return names, _CHARACTER * max(columns) + 12


def _points(bins: Bins, name: str, unit: str) -> str:
    names, left = _names(bins.at)
    figure, ax = svg.panel(_ROW * len(names) + 46, left=left, right=46, top=4, bottom=42, width=WIDTH)
    rows = np.arange(len(names))[::-1]
    ax.axvline(0, color=svg.MUTED, linewidth=0.8, zorder=0)
    ax.hlines(rows, bins.low[:, 0], bins.high[:, 0], color=svg.ACCENT, linewidth=2, alpha=0.45)
    ax.plot(bins.curve[:, 0], rows, "o", color=svg.ACCENT, markersize=5.5)
    ax.set_yticks(rows, names, color=svg.INK)
    ax.set(ylim=(-0.7, len(rows) - 0.3), xlabel=shorten(unit, 24))
    low, high = min(0.0, float(bins.low.min())), max(0.0, float(bins.high.max()))
    room = 0.05 * (high - low) or 1.0
    ax.set_xlim(low - room, high + room)
    linear_ticks(ax, "x", 4)
    ax.grid(axis="x")
    for row, weight in zip(rows, bins.weight, strict=True):
        ax.text(
            1.03,
            row,
            _rows(round(weight)),
            transform=ax.get_yaxis_transform(),
            va="center",
            fontsize=10,
            color=svg.MUTED,
        )
    said = "; ".join(f"{n} {v:.3g}" for n, v in zip(names, bins.curve[:, 0], strict=True))
    return svg.image(figure, f"What {name} adds: {said}.")


def _rows(n: int) -> str:
    return count(n) if n < 100_000 else f"{n / 1000:,.0f} k"


def part_name(part: str, value: float | str) -> float | str:
    """A month or weekday by its name, in short; else the value."""
    names, first = _NAMES.get(part, ()), 1 if part == "month" else 0
    known = not isinstance(value, str) and value == round(value) and 0 <= value - first < len(names)
    return names[round(float(value)) - first] if known else value


def _level_map(bins: Bins, name: str, shown: Sequence[int], labels: Sequence[str]) -> str:
    names, left = _names(bins.at)
    labels = [shorten(label, 12) for label in labels]
    upright = _crowded(labels, WIDTH - left - 60)
    below = 16 + (_CHARACTER * max(map(len, labels)) if upright else 0.0)
    figure, ax = svg.panel(_ROW * len(names) + 14 + below, left=left, right=60, top=6, bottom=8 + below, width=WIDTH)
    map_of(figure, ax, bins.curve[::-1, list(shown)], right=60)
    ax.set_yticks(np.arange(len(names)), names[::-1], color=svg.INK)
    ax.set_xticks(np.arange(len(shown)), labels, rotation=90 if upright else 0)
    return svg.image(figure, f"What {name} adds, by level and class.")


def _crowded(names: Sequence[str], width: float) -> bool:
    return _CHARACTER * max(map(len, names)) + 6 > width / len(names)


def map_of(figure: "Figure", ax: "Axes", values: np.ndarray, *, right: float) -> None:
    """Values [rows, columns] from the bottom as colours around 0, with their scale at the right; NaN is grey."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("effect", [svg.SECOND, "#f4b183", svg.CARD, "#7fbde0", svg.ACCENT])
    most = float(np.nanmax(np.abs(values))) or 1.0
    ax.set_facecolor(svg.GRID)
    ax.imshow(values, cmap=colours, vmin=-most, vmax=most, aspect="auto", origin="lower", interpolation="none")
    ax.tick_params(length=0)
    width, height = figure.get_size_inches() * 72
    box = ax.get_position()
    # as high as the axes, 10 pixels wide
    scale = svg.add_axes(figure, width - right + 12, right - 22, (1 - box.y1) * height, box.y0 * height)
    scale.imshow(np.linspace(-most, most, 64)[:, None], cmap=colours, vmin=-most, vmax=most, aspect="auto",
                 origin="lower", interpolation="none", extent=(0, 1, -most, most))  # fmt: skip
    scale.set_xticks([])
    scale.yaxis.tick_right()
    linear_ticks(scale, "y", 3 if height < 140 else 5)


def grey(pair: Pair) -> float:
    """Share of the map without rows."""
    there = np.array(pair.weight, float) > 0
    there = there[there.any(axis=1)][:, there.any(axis=0)]
    return 1.0 - float(there.mean())


def pair_picture(pair: Pair, labels: Sequence[str], parts: tuple[str, str] = ("", "")) -> tuple[str, str]:
    """A map of what two columns add together; of several classes that of the one it moves most, and its label."""
    surface, weight = np.array(pair.surface, float), np.array(pair.weight, float)
    there = weight > 0
    rows, columns = there.any(axis=1), there.any(axis=0)
    size = np.sqrt(np.sum(weight[:, :, None] * surface**2, axis=(0, 1)))
    c = int(np.argmax(size))
    values = np.where(there, surface[:, :, c], np.nan)[rows][:, columns]
    first = [part_name(parts[0], pair.first[i]) for i in np.flatnonzero(rows)]
    second = [part_name(parts[1], pair.second[i]) for i in np.flatnonzero(columns)]
    _, left = _names([_tick(a) for a in first])
    figure, ax = svg.panel(250, left=left + 26, right=60, top=8, bottom=44, width=WIDTH)
    map_of(figure, ax, values, right=60)
    _ticks(ax, "y", [_tick(a, _LONGEST) for a in first], most=6)
    across = [_tick(a, 9) for a in second]
    _ticks(ax, "x", across, most=int((WIDTH - left - 86) / (_CHARACTER * max(map(len, across)) + 12)))
    ax.set_xlabel(shorten(pair.names[1], 26))
    ax.set_ylabel(shorten(pair.names[0], 26), labelpad=9)
    label = labels[c] if surface.shape[2] > 1 and c < len(labels) else ""
    return svg.image(figure, f"What {pair.names[0]} and {pair.names[1]} add together."), label


def _tick(a: float | str, width: int = _LONGEST) -> str:
    if isinstance(a, str):
        return shorten(a, width)
    text = significant(a)
    return text.rstrip("0").rstrip(".") if "." in text and "·" not in text else text


def _ticks(ax: "Axes", axis: Literal["x", "y"], names: Sequence[str], *, most: int) -> None:
    """Names of cells, at most so many of them, taken evenly."""
    places = np.unique(np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int))
    set_ticks = ax.set_xticks if axis == "x" else ax.set_yticks
    set_ticks(places, [names[i] for i in places.tolist()])
