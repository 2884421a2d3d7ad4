"""The figures: squared errors against epochs, and the course of the validation loss."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.paper import bilevel, errors
from bilevax.core.text import power
from bilevax.report import svg

LOOKS: dict[str, dict[str, Any]] = {
    "batch": {"color": svg.MUTED, "marker": "s"},
    "cg": {"color": svg.INK, "marker": "D"},
    "const": {"color": svg.SECOND, "marker": "o"},
    "const shuffled": {"color": svg.SECOND, "marker": "o", "linestyle": (0, (4, 2)), "markerfacecolor": svg.CARD},
    "dec": {"color": svg.ACCENT, "marker": "o"},
    "dec shuffled": {"color": svg.ACCENT, "marker": "o", "linestyle": (0, (4, 2)), "markerfacecolor": svg.CARD},
    "stochastic": {"color": svg.ACCENT, "marker": "o"},
}
KINDS = {"single": "a single penalty", "feature": "a penalty per feature"}
FLOOR = 1e-14
"""Errors below it are drawn on it: nobody needs them, and the rest would be flat."""


def draw(found: dict[str, Any], folder: Path) -> dict[str, str]:
    """Draw what there are results for; file names by experiment."""
    folder.mkdir(parents=True, exist_ok=True)
    out = {}
    for name, result in found.items():
        with svg.style():
            figure = error_picture(result) if name.startswith("errors") else bilevel_picture(result)
            out[name] = f"{name}.png"
            figure.savefig(folder / out[name], dpi=130, facecolor=svg.CARD)
    return out


def error_picture(result: dict[str, Any]) -> Figure:
    """A column for each strength, a row for each kind of penalty; line: mean of the runs, band: 10 to 90 %."""
    strengths = result["strengths"]
    figure = Figure(figsize=(2.7 * len(strengths) + 0.8, 6.4), layout="constrained")
    axes = figure.subplots(2, len(strengths), sharex=True, sharey="row", squeeze=False)
    shown: dict[str, None] = {}
    for ax_row, (kind, title) in zip(axes, KINDS.items(), strict=True):
        for ax, one in zip(ax_row, strengths.values(), strict=True):
            for method, curve in one["curves"].items():
                shown[method] = None
                _curve(ax, curve["epochs"], curve[kind], LOOKS[method])
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(numticks=6))
            ax.yaxis.set_major_formatter(lambda y, _: power(round(np.log10(y))))
            ax.xaxis.set_major_formatter("{x:g}")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_minor_locator(NullLocator())
            ax.grid(axis="y")
        ax_row[0].set_ylabel(f"squared relative error,\n{title}")
    for ax, strength in zip(axes[0], strengths, strict=True):
        ax.set_title(f"penalty {strength}, q = {strengths[strength]['q']:.4g}", fontsize=11)
    for ax in axes[1]:
        ax.set_xlabel("epochs")
    _legend(figure, shown, errors.METHODS)
    return figure


def _curve(ax: Any, x: list[list[float]], y: list[list[float]], look: dict[str, Any]) -> None:
    across = np.array([np.mean(runs) for runs in x])
    runs = np.maximum(np.array(y), FLOOR)
    ax.fill_between(across, *np.quantile(runs, [0.1, 0.9], axis=1), color=look["color"], alpha=0.15, linewidth=0)
    ax.plot(across, runs.mean(axis=1), markersize=4, **look)


def bilevel_picture(result: dict[str, Any]) -> Figure:
    """The validation loss that each estimator saw along its run: mean of the runs, and each run faintly."""
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    axes = figure.subplots(1, len(result["penalties"]), sharey=True)
    epochs = result["plan"]["epochs"]
    for ax, (per, runs) in zip(axes, result["penalties"].items(), strict=True):
        for method in bilevel.METHODS:
            courses = np.array([one["course"] for one in runs[method]])
            across = epochs * np.arange(1, courses.shape[1] + 1)
            plain = LOOKS[method] | {"marker": ""}
            ax.plot(across, courses.T, alpha=0.25, linewidth=0.8, **plain)
            ax.plot(across, courses.mean(axis=0), **plain)
        ax.set_title("a single penalty" if per == "global" else "a penalty per feature", fontsize=11)
        ax.set_xlabel("epochs")
        ax.grid(axis="y")
    axes[0].set_ylabel("validation loss of the w in hand")
    _legend(figure, dict.fromkeys(bilevel.METHODS), bilevel.METHODS)
    return figure


def _legend(figure: Figure, shown: dict[str, None], names: dict[str, str]) -> None:
    handles = [Line2D([], [], label=names[method], markersize=4, **LOOKS[method]) for method in shown]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, labelcolor=svg.INK)
