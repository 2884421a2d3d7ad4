"""From what users hold to the bins of an additive model: data frames, arrays, tables."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from bilevax.core.errors import ParameterError
from bilevax.tables.additive import Source, cells, sources_of
from bilevax.tables.effects import BUDGET, Effect, category, number, resolution
from bilevax.tables.read import table_from_frame
from bilevax.tables.table import Column, Table, object_array

ROWS_OF_A_STEP = 8
"""Of a rough part, at least, on average."""


class Binned(NamedTuple):
    """A table's effects, and the bins of its rows.

    Attributes:
        sources: where the cells of each effect come from.
        effects: of the columns.
        codes: of the rows in each effect, [n] each.
    """

    sources: tuple[Source, ...]
    effects: tuple[Effect, ...]
    codes: tuple[np.ndarray, ...]


def as_table(estimator: BaseEstimator, X: Any, *, reset: bool) -> Table:
    """X with named columns; numbers of an array are called x0, x1, ...

    Raises:
        ValueError: scikit-learn's, on what is no table of numbers, or one of other columns than were fitted.
        DataError: a column mixes types, or two have one name.
    """
    if isinstance(X, Table):
        return X
    if hasattr(X, "columns") and hasattr(X, "shape"):
        table = table_from_frame(X, name="X")
        validate_data(estimator, X, reset=reset, skip_check_array=True)
        return table
    options = {"ensure_all_finite": "allow-nan", "dtype": None, "reset": reset}
    array = validate_data(estimator, X, ensure_min_samples=2 if reset else 1, **options)
    return Table("X", tuple(_column(f"x{j}", x) for j, x in enumerate(array.T)))


def _column(name: str, x: np.ndarray) -> Column:
    if x.dtype.kind in "biuf":
        return Column(name, "number", x.astype(float))
    missing = np.array([cell is None or cell != cell for cell in x])
    if all(isinstance(cell, str) for cell in x[~missing]):
        return Column(name, "text", object_array([cell if isinstance(cell, str) else None for cell in x]))
    return Column(name, "number", np.where(missing, np.nan, x).astype(float))


def ordered_levels(X: Any, ordered: Mapping[str, Sequence[str]] | None) -> dict[str, tuple[str, ...]]:
    """Levels in their order, of columns that are declared and of ordered categoricals of pandas."""
    out: dict[str, tuple[str, ...]] = {}
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(X, pandas.DataFrame):
        for name, kind in X.dtypes.items():
            if isinstance(kind, pandas.CategoricalDtype) and kind.ordered:
                out[str(name)] = tuple(str(level).strip() for level in kind.categories)
    return out | {str(name): tuple(str(level) for level in levels) for name, levels in (ordered or {}).items()}


def binned(table: Table, weight: np.ndarray, ordered: Mapping[str, tuple[str, ...]], scores: int) -> Binned:
    """The effects of a table's columns, of about BUDGET weights over all scores at most.

    Raises:
        ParameterError: an ordered column is not there, or has other levels.
    """
    unknown = [name for name in ordered if name not in table.names]
    if unknown:
        raise ParameterError(f"ordered names column '{unknown[0]}', which is not there")
    sources = tuple(source for c in table.columns for source in sources_of(c, text=c.name in ordered))
    values = [cells(table, source) for source in sources]
    effects: dict[int, Effect] = {}
    for j, (source, x) in enumerate(zip(sources, values, strict=True)):
        if source.kind == "text":
            effects[j] = category(source.name, x, weight, ordered=_levels(source, x, ordered))
    others = sum(effect.basis.shape[1] for effect in effects.values())
    n = int(weight.sum())
    smooth, coarse = resolution(len(sources) - len(effects), others, min(BUDGET, n) // scores)
    coarse = int(np.clip(n // ROWS_OF_A_STEP, 8, coarse))
    for j, (source, x) in enumerate(zip(sources, values, strict=True)):
        if j not in effects:
            effects[j] = number(source.name, x, weight, smooth=smooth, coarse=coarse)
    found = tuple(effects[j] for j in range(len(sources)))
    return Binned(sources, found, tuple(e.codes(x) for e, x in zip(found, values, strict=True)))


def _levels(source: Source, x: np.ndarray, ordered: Mapping[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    levels = ordered.get(source.column)
    if levels is not None:
        strange = sorted({cell for cell in x.tolist() if cell is not None} - set(levels))
        if strange:
            raise ParameterError(
                f"column '{source.column}' has the level '{strange[0]}', which is not among its ordered levels"
            )
        if len(set(levels)) < len(levels):
            raise ParameterError(f"the ordered levels of column '{source.column}' name one twice")
    return levels


def row_weights(sample_weight: ArrayLike | None, n: int) -> np.ndarray:
    """Weights of the rows, [n].

    Raises:
        ValueError: they are not n finite numbers of at least 0, one of them above.
    """
    if sample_weight is None:
        return np.ones(n)
    w = np.asarray(sample_weight, float)
    if w.ndim == 0:
        w = np.full(n, float(w))
    if w.shape != (n,):
        raise ValueError(f"sample_weight.shape == {w.shape}, expected {(n,)}: one number a row")
    if not (np.all(np.isfinite(w)) and np.all(w >= 0.0) and np.any(w > 0.0)):
        raise ValueError("sample_weight has negative weights, infinite ones, or none above zero")
    return w


def directions(
    sources: Sequence[Source], ordered: Mapping[str, tuple[str, ...]], monotone: Mapping[str, int], scores: int
) -> tuple[int, ...]:
    """1, -1 or 0 for each effect: whether its curve has to rise, to fall, or neither.

    Raises:
        ParameterError: a column is not there, or has no order, or there are more than two classes.
    """
    if monotone and scores > 1:
        raise ParameterError("monotone is for two classes: with more, no score rises by itself")
    known = {source.column: source for source in sources if source.part in ("", "year")}
    for name, direction in monotone.items():
        if name not in known:
            raise ParameterError(f"monotone names column '{name}', which is not there")
        if known[name].kind == "text" and name not in ordered:
            raise ParameterError(f"column '{name}' holds categories, which have no order; give it by ordered, too")
        if direction not in (-1, 0, 1):
            raise ParameterError(f"monotone of column '{name}' is {direction!r}; 1 rises, -1 falls, 0 may do both")
    return tuple(int(monotone.get(source.column, 0)) if source is known.get(source.column) else 0 for source in sources)
