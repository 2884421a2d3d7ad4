"""Tables of data frames and arrays: pandas, polars, pyarrow, or whatever else narwhals knows."""

import sys
from collections.abc import Collection, Sequence
from numbers import Number
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bilevax.core.errors import DataError, ParameterError
from bilevax.tables.arrow import table_from_arrow
from bilevax.tables.reading import Reading
from bilevax.tables.table import Table, check_names

if TYPE_CHECKING:
    from narwhals.typing import IntoDataFrame


def table_from_frame(frame: "IntoDataFrame", *, name: str = "frame", text: Collection[str] = ()) -> Table:
    """A table of an eager data frame: pandas, polars, pyarrow, or whatever else narwhals knows. The index is left out.

    Raises:
        ParameterError: it is no data frame.
        DataError: a column mixes types, or has one that no model can use.
    """
    import narwhals as nw

    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(frame, pandas.DataFrame):
        # Labels of pandas need not be strings, nor differ.
        labels = [str(label) for label in frame.columns]
        check_names(name, labels)
        frame = frame.set_axis(labels, axis=1)
    try:
        narwhal = nw.from_native(frame, eager_only=True)
    except TypeError:
        raise ParameterError(f"frame must be an eager data frame, got {type(frame).__name__}") from None
    arrays = []
    for series in narwhal.iter_columns():
        try:
            arrays.append(pa.chunked_array([series.to_arrow()]))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            raise DataError(f"{name}: column '{series.name}' mixes types; make it one of numbers or text") from None
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
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            other = next((cell for cell in cells if not isinstance(cell, str | Number | np.generic | None)), None)
            if other is not None:
                kind = type(other).__name__
                raise TypeError(
                    f"{name}: column '{label}' holds a {kind}; the argument must be a string or a number"
                ) from None
            raise DataError(f"{name}: column '{label}' mixes types; make it one of numbers or text") from None
    return table_from_arrow(name, pa.table(arrays, names=list(names)), Reading())
