"""Between which edges numbers lie."""

import numpy as np

CELLS, FEW_EDGES = 8192, 16
"""Cells of a table in which bins are looked up, of as many rows at least, and edges for which it is not made."""


def places(edges: np.ndarray, x: np.ndarray) -> np.ndarray:
    """How many edges are at most x, [n]; by a table of equal cells where that is faster: one look for most rows."""
    width = float(edges[-1] - edges[0]) if len(x) > CELLS and len(edges) > FEW_EDGES else 0.0
    if not 1e-300 < width < 1e300:
        return np.searchsorted(edges, x, side="right")
    # rises with x, also as it is rounded: a cell without an edge is in one bin
    at, bounds = (_cell(values, float(edges[0]), CELLS / width) for values in (x, edges))
    table = np.searchsorted(bounds, np.arange(CELLS + 2), side="right").astype(np.int16)
    table[bounds] = -1
    out: np.ndarray = np.take(table, at)
    doubtful = np.flatnonzero(out < 0)
    out[doubtful] = np.searchsorted(edges, x[doubtful], side="right")
    return out


def _cell(x: np.ndarray, first: float, per: float) -> np.ndarray:
    with np.errstate(over="ignore"):
        cell = x - first
        cell *= per
    # of NaN some cell
    np.fmin(cell, CELLS, out=cell)
    np.fmax(cell, -1.0, out=cell)
    cell += 1.0
    return cell.astype(np.int32)
