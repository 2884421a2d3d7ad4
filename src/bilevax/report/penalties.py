"""The section on the penalties, feature by feature."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bilevax.core.text import count, counted, listed, percent, significant
from bilevax.report import penalty_pictures
from bilevax.report.run import LinearTerm as Term
from bilevax.report.run import Run

SHOWN = 30
LISTED = 2000
# Terms for a picture of their distribution to say something.
_ENOUGH = 12
_MOST_PIXELS = 4096
_ROW_AND_COLUMN = re.compile(r"(.*?)(\d+)[^\d]+(\d+)\D*")
_PIXEL = re.compile(r"(\D*pix\D*)(\d+)", re.IGNORECASE)


class Penalties(NamedTuple):
    """Pictures, sentences and the full table, smallest penalty first."""

    title: str
    dots: str
    histogram: str
    scatter: str
    image: str
    total: int
    signed: bool
    towards: str
    sentences: tuple[str, ...]
    rows: tuple[tuple[str, str, str], ...]


def penalties_section(run: Run) -> Penalties | None:
    """The section; None where no penalty is known."""
    every = run.model.terms if run.model else []
    terms = sorted((t for t in every if t.mean_penalty > 0), key=lambda t: t.mean_penalty)
    if not terms:
        return None
    values = np.array([t.mean_penalty for t in terms])
    signed = all(len(t.weight) == 1 for t in terms)
    # Within a ten-thousandth all penalties are one, which needs no picture.
    differ = values[-1] > 1.0001 * values[0]
    many = differ and len(terms) >= _ENOUGH
    weighty = [t for t in terms if t.size > 0 and math.isfinite(t.size)]
    first = (terms if differ else sorted(weighty, key=lambda t: -t.size))[:SHOWN]
    names = listed([t.name for t in first[:3]])
    return Penalties(
        title=_title(len(first), len(terms), differ),
        dots=penalty_pictures.dots(
            first, signed=signed, penalties=bool(differ), description=f"Features and their weights: first {names}."
        ) if first else "",
        histogram=penalty_pictures.histogram(
            values, description=f"Histogram of {counted(len(terms), 'penalty')}."
        ) if many else "",
        scatter=penalty_pictures.scatter(
            weighty, description="Size of the weights against the penalty, a point a feature."
        ) if many and len(weighty) >= _ENOUGH else "",
        image=_image(terms) if many else "",
        total=len(terms),
        signed=signed,
        towards=run.labels()[1] if signed and len(run.labels()) == 2 else "",
        sentences=tuple(_sentences(terms, values) + _left_out(len(every) - len(terms))),
        rows=tuple(_row(t, signed) for t in terms[:LISTED]),
    )  # fmt: skip


def _title(shown: int, total: int, differ: bool) -> str:
    if shown == total:
        return "Every feature, " + ("smallest penalty first" if differ else "largest weight first")
    return f"The {shown} most trusted features" if differ else f"The {shown} largest weights"


def _row(term: Term, signed: bool) -> tuple[str, str, str]:
    low, high = min(term.penalties), max(term.penalties)
    penalty = significant(low) if low == high else f"{significant(low)} to {significant(high)}"
    return term.name, penalty, significant(term.weight[0] if signed and term.weight else term.size)


def _sentences(terms: Sequence[Term], values: np.ndarray) -> list[str]:
    smallest, largest = float(values[0]), float(values[-1])
    if largest <= 1.0001 * smallest:
        return [f"All features share the penalty {significant(smallest)}."]
    out = [
        f"The penalties run from {significant(smallest)} to {significant(largest)}, "
        f"a factor of {significant(largest / smallest, 2)}; their median is {significant(float(np.median(values)))}."
    ]
    sizes = np.array([t.size for t in terms])
    squares = np.where(np.isfinite(sizes), sizes, 0.0) ** 2
    out += _tied("largest", values > 0.999 * largest, squares) + _tied("smallest", values < 1.001 * smallest, squares)
    if len(terms) >= _ENOUGH and squares.sum() > 0:
        # The least k for which the k largest squares are 90 % of their sum.
        enough = int(np.searchsorted(np.cumsum(np.sort(squares)[::-1]), 0.9 * squares.sum())) + 1
        out.append(f"Of all {count(len(terms))} features, {count(enough)} carry 90\u202f% of the squared weights.")
    return out


def _tied(where: str, tied: np.ndarray, squares: np.ndarray) -> list[str]:
    """What sits together at an end, where a bound or the end of the run stopped it, and how much it weighs."""
    n, total = int(tied.sum()), float(squares.sum())
    if n < 2 or total == 0:
        return []
    part, share = percent(n / len(tied), 0), float(squares[tied].sum()) / total
    weight = percent(share) if share >= 0.001 else "less than 0.1\u202f%"
    return [f"At the {where}, {counted(n, 'feature')} ({part}) sit together and carry {weight} of the squared weights."]


def _left_out(n: int) -> list[str]:
    return [f"Not shown: {counted(n, 'feature')} without a penalty."] if n else []


def _image(terms: Sequence[Term]) -> str:
    if len(terms) > _MOST_PIXELS or max(len(t.name) for t in terms) > 40:
        return ""
    grid = pixels([t.name for t in terms], [t.mean_penalty for t in terms])
    if grid is None:
        return ""
    rows, columns = grid.shape
    return penalty_pictures.image(grid, description=f"Map of the penalties, {rows} rows by {columns} columns.")


def pixels(names: Sequence[str], values: Sequence[float]) -> np.ndarray | None:
    """Values laid out as the picture whose pixels the names number; None where they do not.

    Understood are a row and a column, ``pixel_3_7``, and a single count, ``pixel130``.

    >>> pixels([f"pixel_{i}_{j}" for i in range(4) for j in range(5)], range(20)).shape
    (4, 5)
    """
    found = [_ROW_AND_COLUMN.fullmatch(name) for name in names]
    if all(found):
        stems = {m[1] for m in found if m}
        places = [(m[2], m[3]) for m in found if m]
    else:
        found = [_PIXEL.fullmatch(name) for name in names]
        stems = {m[1] for m in found if m}
        places = [("0", m[2]) for m in found if m]
    if not all(found) or len(stems) != 1 or max(len(digits) for place in places for digits in place) > 6:
        return None
    index = np.array([(int(i), int(j)) for i, j in places])
    # Names that only count have no row.
    if not index[:, 0].any():
        index = _square(index[:, 1])
    index -= index.min(axis=0)
    shape = index.max(axis=0) + 1
    # Too thin, too large or too empty for a picture: the numbers in the names mean something else.
    if min(shape) < 4 or shape.prod() > _MOST_PIXELS or len({tuple(i) for i in index.tolist()}) < 0.5 * shape.prod():
        return None
    grid = np.full(shape, np.nan)
    grid[index[:, 0], index[:, 1]] = values
    return grid


def _square(index: np.ndarray) -> np.ndarray:
    """Counts as rows and columns of a square picture; they begin with 0, or with 1 where the last is a square."""
    # 784 pixels are counted from 0 to 783, or from 1 to 784 = 28^2.
    last = int(index.max())
    start = 1 if math.isqrt(last) ** 2 == last and index.min() >= 1 else 0
    side = math.isqrt(last - start) + 1
    return np.stack(np.divmod(index - start, side), axis=1)
