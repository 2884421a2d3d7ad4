"""Tables of data frames and arrays: pandas, polars, pyarrow, or whatever else narwhals knows."""

import sys
from collections.abc import Collection, Sequence
from numbers import Integral, Number, Real
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bilevax.core.errors import DataError, ParameterError
from bilevax.core.text import listed
from bilevax.tables.arrow import table_from_arrow
from bilevax.tables.reading import Reading
from bilevax.tables.table import Table, check_names

# What pyarrow and the libraries of frames raise where a column is of none of their types.
_REFUSALS = (pa.ArrowException, TypeError, ValueError, OverflowError, NotImplementedError)

if TYPE_CHECKING:
    from narwhals.typing import IntoDataFrame


def table_from_frame(frame: "IntoDataFrame", *, name: str = "frame", text: Collection[str] = ()) -> Table:
    """A table of an eager data frame: pandas, polars, pyarrow, or whatever else narwhals knows. The index is left out.

    Raises:
        ParameterError: it is no data frame.
        DataError: a column mixes types, or has one that no model can use.

    Examples:
        >>> from bilevax.tables import table_from_frame
        >>> import pandas as pd
        >>> table_from_frame(pd.DataFrame({"age": [31.0, 45.0], "city": ["Rome", "Oslo"]})).names
        ('age', 'city')
    """
    import narwhals as nw

    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(frame, pandas.DataFrame):
        # Labels of pandas need not be there, be strings, nor differ.
        labels = ["" if label is None or label != label else str(label) for label in frame.columns]
        _check_labels(name, labels)
        frame = frame.set_axis(labels, axis=1)
    elif isinstance(frame, pa.Table):
        _check_labels(name, frame.column_names)
    try:
        narwhal = nw.from_native(frame, eager_only=True)
    except TypeError:
        raise ParameterError(f"frame must be an eager data frame, got {type(frame).__name__}") from None
    arrays = []
    for series in narwhal.iter_columns():
        try:
            arrays.append(pa.chunked_array([series.to_arrow()]))
        except _REFUSALS as e:
            arrays.append(_numbers(name, series.name, series.to_list(), e))
    return table_from_arrow(name, pa.table(arrays, names=narwhal.columns), Reading(text))


def table_from_array(X: np.ndarray, names: Sequence[str], *, name: str = "X") -> Table:
    """A table of an array [n, p] of numbers, truth values, texts or objects; None and NaN are missing.

    Raises:
        DataError: a column mixes types, or has one that no model can use.
        TypeError: a cell is neither a number nor text.
    """
    arrays = []
    for label, cells in zip(names, X.T, strict=True):
        try:
            arrays.append(pa.chunked_array([pa.array(cells, from_pandas=True)]))
        except _REFUSALS as e:
            other = next((cell for cell in cells if not isinstance(cell, str | Number | np.generic | None)), None)
            if other is not None:
                kind = type(other).__name__
                raise TypeError(
                    f"{name}: column '{label}' holds a {kind}; the argument must be a string or a number"
                ) from None
            arrays.append(_numbers(name, label, cells.tolist(), e))
    return table_from_arrow(name, pa.table(arrays, names=list(names)), Reading())


def _check_labels(name: str, labels: Sequence[str]) -> None:
    check_names(name, labels)
    for position, label in enumerate(labels, 1):
        if not _is_unicode(label):
            raise DataError(f"{name}: the name of column {position} holds half of a character; rename it")


def _is_unicode(text: str) -> bool:
    # Python's strings can hold halves of characters, which no encoding has.
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _numbers(source: str, name: str, cells: Sequence[object], refusal: Exception) -> pa.ChunkedArray:
    """Numbers of other types, whole ones that are too long as text; other cells are refused, and said why."""
    there = [cell for cell in cells if cell is not None and cell == cell]
    kinds = {type(cell) for cell in there}
    if all(isinstance(cell, Integral) for cell in there):
        whole = [int(cell) if isinstance(cell, Integral) else None for cell in cells]
        long = any(cell is not None and abs(cell) >= 2**63 for cell in whole)
        return pa.chunked_array([pa.array([None if x is None else str(x) for x in whole] if long else whole)])
    if all(isinstance(cell, Real) for cell in there):
        return pa.chunked_array([pa.array([float(cell) if isinstance(cell, Real) else None for cell in cells])])
    if any(isinstance(cell, str) and not _is_unicode(cell) for cell in there):
        raise DataError(f"{source}: column '{name}' holds half of a character; correct the text") from refusal
    if len(kinds) > 1:
        mixed = listed(sorted(kind.__name__ for kind in kinds))
        raise DataError(f"{source}: column '{name}' mixes types ({mixed}); make it one of numbers or text") from refusal
    kind = next(iter(kinds)).__name__ if kinds else "what is not known"
    raise DataError(
        f"{source}: column '{name}' holds {kind}, in a way that is not read; make it one of numbers, text or dates"
    ) from refusal
