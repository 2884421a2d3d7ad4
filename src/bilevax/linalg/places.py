"""Between which edges numbers lie."""

import numpy as np

CELLS, FEW_EDGES = 32_768, 16
"""Cells of a table in which bins are looked up, and edges for which it is not made."""

ROWS = 16_384
"""Rows at a time, which a cache holds; for half of them the table is made."""


def places(edges: np.ndarray, x: np.ndarray) -> np.ndarray:
    """How many edges are at most x, [n], one more than there are of NaN.

    By a table of equal cells where that is faster: one look for most rows.
    """
    last = len(edges) + 1
    width = float(edges[-1] - edges[0]) if len(x) > ROWS // 2 and len(edges) > FEW_EDGES else 0.0
    if not 1e-300 < width < 1e300:
        return np.where(np.isnan(x), last, np.searchsorted(edges, x, side="right"))
    cell = EqualCells(float(edges[0]), width)
    bounds = cell(edges)
    kind = np.min_scalar_type(last + 1)
    # a cell without an edge is in the bin of all edges in cells up to it; one with an edge is marked, and looked at
    table = np.cumsum(np.bincount(bounds, minlength=CELLS + 3)).astype(kind)
    table[bounds] = last + 1
    out = np.empty(len(x), kind)
    for start in range(0, len(x), ROWS):
        some = x[start : start + ROWS]
        own = np.take(table, cell(some), out=out[start : start + ROWS], mode="clip")
        doubtful = np.flatnonzero(own == last + 1)
        own[doubtful] = np.searchsorted(edges, some[doubtful], side="right")
        missing = np.isnan(some)
        if missing.any():
            own[missing] = last
    return out


class EqualCells:
    """Cells of equal width; the number of that of x rises with x, also as it is rounded.

    Args:
        first: where cell 1 begins: those before are in cell 0 or less, to be clipped.
        width: of ``CELLS`` of them together: those after it are in cell CELLS + 2 at most.
    """

    def __init__(self, first: float, width: float) -> None:
        self._per = CELLS / width
        self._first = first - 1.0 / self._per

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Of NaN some cell; what lies far before the first cell has the lowest number there is."""
        with np.errstate(over="ignore", invalid="ignore"):
            cell = x - self._first
            cell *= self._per
            np.fmin(cell, CELLS + 2.0, out=cell)
            return cell.astype(np.intp)
