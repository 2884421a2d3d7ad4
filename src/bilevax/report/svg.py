"""From a matplotlib figure to SVG that may stand inside a page: no ids that clash, no fonts, no remote names."""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 460  # of every picture, in pixels; two stand side by side on a wide page, one on a telephone
INK, MUTED, GRID, CARD = "#1b2330", "#5d6776", "#e2e6eb", "#fefefe"
ACCENT, SECOND = "#0072b2", "#d55e00"  # blue and vermilion of Okabe and Ito: told apart by all kinds of eyes

# Colours become the page's variables, so that a dark page gets dark pictures.
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", CARD: "card", ACCENT: "accent", SECOND: "second"}
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bilevax",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],  # wider than the page's own fonts: what fits here fits there
    "font.size": 11.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11.0,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.dpi": 72.0,  # a point is a pixel
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
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_LOCAL_NAME = re.compile(r"url\(#([^)]+)\)")
_NO_ROTATION = re.compile(r"rotate\(-?0(?:\.0+)? [^)]*\)")


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The look of all pictures, whatever the user's own settings; restored afterwards."""
    import matplotlib
    import matplotlib.style

    with (
        matplotlib.style.context("default"),
        matplotlib.rc_context(_SETTINGS),  # type: ignore[arg-type]
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's browser has its own fonts
        yield


def panel(height: float, left: float, right: float, top: float, bottom: float) -> "tuple[Figure, Axes]":
    """A picture of the usual width with one pair of axes; heights and margins in pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72))
    return figure, add_axes(figure, left, right, top, bottom)


def add_axes(figure: "Figure", left: float, right: float, top: float, bottom: float) -> "Axes":
    """Axes at the given distances from the edges, in pixels."""
    width, height = figure.get_size_inches() * 72
    box = left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height
    return figure.add_axes(box)


def inline(figure: "Figure", name: str, description: str) -> str:
    """The figure as an ``<svg>`` element whose ids all begin with ``name``; every text in it is escaped.

    Equal figures give equal bytes.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _drop(root)
    referenced = set()
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        referenced |= _rewrite(element, name)
    for element in root.iter():
        if element.get("id", "") not in referenced:
            element.attrib.pop("id", None)
    root.attrib.pop("width"), root.attrib.pop("height"), root.attrib.pop("version", None)
    root.set("role", "img")
    root.set("aria-label", description)
    return ElementTree.tostring(root, encoding="unicode")


def _drop(root: ElementTree.Element) -> None:
    """Remove metadata and matplotlib's style sheet, which would apply to the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
        if not (parent.text or "").strip():
            parent.text = None
        for child in parent:
            child.tail = None


def _rewrite(element: ElementTree.Element, name: str) -> set[str]:
    """Make one element's attributes fit the page; returns the ids it refers to."""
    referenced = set()
    for key, value in list(element.attrib.items()):
        del element.attrib[key]
        key = key.rpartition("}")[2]
        if key == "id":
            value = f"{name}-{value}"
        elif key == "href" and value.startswith("#"):
            value = f"#{name}-{value[1:]}"
            referenced.add(value[1:])
        elif key == "style":
            value = _style(value)
        elif key != "href":  # an embedded image keeps its data
            value = _NO_ROTATION.sub("", _LONG_NUMBER.sub(lambda m: f"{float(m[0]):.2f}", value))
            value = " ".join(value.split())
        if key in ("clip-path", "style"):
            value = _LOCAL_NAME.sub(rf"url(#{name}-\1)", value)
            referenced.update(_LOCAL_NAME.findall(value))
        if value:
            element.set(key, value)
    return referenced


def _style(value: str) -> str:
    parts = (part.strip() for part in value.split(";"))
    kept = "; ".join(p for p in parts if not p.startswith("font-family"))  # the page's own font
    for colour, variable in _VARIABLES.items():
        kept = kept.replace(colour, f"var(--{variable})")
    return kept
