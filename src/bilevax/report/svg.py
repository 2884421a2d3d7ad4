"""From a matplotlib figure to an image within the page.

A picture is drawn once, in the light colours and without a background; in the dark the page's style sheet inverts its
lightness and keeps its hues (``img`` in ``style.css``), maps of colours included.
"""

import base64
import contextlib
import html
import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of every picture, in pixels: two stand side by side on a wide page, one on a telephone.
WIDTH = 460
INK, MUTED, GRID, CARD = "#1b2330", "#5d6776", "#dde2e8", "#ffffff"
# Blue and vermilion of Okabe and Ito, which all kinds of eyes tell apart.
ACCENT, SECOND = "#0072b2", "#d55e00"
# Theirs and some more, for classes; a second round of them is dashed.
COLOURS = (ACCENT, SECOND, "#009e73", "#cc79a7", "#9a7b00", "#56b4e9", "#7a4fb5", "#8c564b", "#8e97a3", INK)

_SETTINGS: dict[Any, Any] = {
    # Text stays text, and ids depend on nothing but the figure.
    "svg.fonttype": "none",
    "svg.hashsalt": "bilevax",
    "text.parse_math": False,
    # Comes with matplotlib, and is wider than what browsers have in its stead: what fits here fits there.
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11.0,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.facecolor": "none",
    # A point is a pixel.
    "figure.dpi": 72.0,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}
_DASHES = "solid", (0, (4, 2))


def look(c: int) -> "tuple[str, str | tuple[int, tuple[int, int]]]":
    """Colour and dashes of the line of a class."""
    return COLOURS[c % len(COLOURS)], _DASHES[c // len(COLOURS) % 2]


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The look of all pictures, whatever the user's own settings; restored afterwards."""
    import matplotlib
    import matplotlib.style

    with (
        matplotlib.style.context("default"),
        matplotlib.rc_context(_SETTINGS),
        warnings.catch_warnings(),
    ):
        # The reader's browser has fonts of its own.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def panel(
    height: float, left: float, right: float, top: float, bottom: float, *, width: float = WIDTH
) -> "tuple[Figure, Axes]":
    """A picture with one pair of axes; sizes and margins in pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72))
    return figure, add_axes(figure, left, right, top, bottom)


def add_axes(figure: "Figure", left: float, right: float, top: float, bottom: float) -> "Axes":
    """Axes at the given distances from the edges, in pixels."""
    width, height = figure.get_size_inches() * 72
    box = left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height
    return figure.add_axes(box)


def drawing(figure: "Figure", *, background: str = "none") -> str:
    """The figure as an SVG document; equal figures give equal bytes."""
    buffer, nothing = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing, facecolor=background)
    return buffer.getvalue()


def image(figure: "Figure", description: str) -> str:
    """The figure as an ``<img>`` element: a document of its own, so that no text in it can be part of the page."""
    data = base64.b64encode(drawing(figure).encode()).decode()
    return f'<img src="data:image/svg+xml;base64,{data}" alt="{html.escape(description)}">'
