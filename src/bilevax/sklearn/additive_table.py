"""From what users hold to the bins of an additive model: data frames, arrays, tables."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bilevax.core.errors import ParameterError
from bilevax.sklearn.frames import Features
from bilevax.tables.additive import Source, cells, sources_of
from bilevax.tables.effects import Effect, category, number, resolution, room
from bilevax.tables.marginals import Marginal
from bilevax.tables.table import Table

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


def ordered_levels(X: Features, ordered: Mapping[str, Sequence[str]] | None) -> dict[str, tuple[str, ...]]:
    """Levels in their order, of columns that are declared and of ordered categoricals of pandas."""
    out: dict[str, tuple[str, ...]] = {}
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(X, pandas.DataFrame):
        for name, kind in X.dtypes.items():
            if isinstance(kind, pandas.CategoricalDtype) and kind.ordered:
                out[str(name)] = tuple(str(level).strip() for level in kind.categories)
    return out | {str(name): tuple(str(level) for level in levels) for name, levels in (ordered or {}).items()}


def binned(
    table: Table,
    weight: np.ndarray,
    ordered: Mapping[str, tuple[str, ...]],
    scores: int,
    marginal: Callable[[Source], Marginal] | None = None,
) -> Binned:
    """The effects of a table's columns, of about as many weights as there is :func:`room` for.

    Args:
        table: of the rows.
        weight: of the rows, [n].
        ordered: levels of columns, in their order.
        scores: S.
        marginal: of an effect in more rows, of which the table has some.

    Raises:
        ParameterError: an ordered column is not there, or has other levels.
    """
    unknown = [name for name in ordered if name not in table.names]
    if unknown:
        raise ParameterError(f"ordered names column '{unknown[0]}', which is not there")
    sources = tuple(source for c in table.columns for source in sources_of(c, text=c.name in ordered))
    values = [cells(table, source) for source in sources]
    known = [
        Marginal(x, weight) if marginal is None else marginal(source) for source, x in zip(sources, values, strict=True)
    ]
    # of the weight of the rows that are here
    known = [each._replace(weight=each.weight * (weight.sum() / each.weight.sum())) for each in known]
    effects: dict[int, Effect] = {}
    for j, (source, (x, w, _)) in enumerate(zip(sources, known, strict=True)):
        if source.kind == "text":
            effects[j] = category(source.name, x, w, ordered=_levels(source, x, ordered))
    others = sum(effect.basis.shape[1] for effect in effects.values())
    n, C = int(weight.sum()), scores + 1 if scores > 1 else 1
    smooth, coarse = resolution(len(sources) - len(effects), others, min(room(C), 2 * n * scores))
    coarse = min(coarse, max(n // ROWS_OF_A_STEP, 8))
    for j, (source, (x, w, distinct)) in enumerate(zip(sources, known, strict=True)):
        if j not in effects:
            effects[j] = number(source.name, x, w, distinct=distinct, smooth=smooth, coarse=coarse)
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
