"""Columns of data frames: of every type what is in them, or one sentence of our own that says what cannot be used."""

import datetime
import decimal
import pathlib

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from bilevax.core.errors import DataError, ParameterError
from bilevax.tables.read import table_from_array, table_from_frame

HOUR = datetime.timedelta(hours=1)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([1j, 2.0], "column 'a' holds complex, in a way that is not read"),
        ([1, "x"], r"column 'a' mixes types \(int and str\); make it one of numbers or text"),
        ([datetime.date(2024, 1, 1), "x"], r"column 'a' mixes types \(date and str\)"),
        (pd.Categorical([1, "x"]), r"column 'a' mixes types \(int and str\)"),
        ([b"x", b"y"], "column 'a' holds bytes; numbers, text, truth values and dates can be used"),
        ([[1], [2]], "column 'a' holds lists;"),
        ([{"b": 1}, {}], "column 'a' holds records;"),
        ([pathlib.PurePosixPath("x")] * 2, "column 'a' holds PurePosixPath, in a way that is not read"),
        (pd.period_range("2024-01", periods=2, freq="M"), "column 'a' holds periods or intervals;"),
        (pd.IntervalIndex.from_breaks([0, 1, 2]), "column 'a' holds periods or intervals;"),
        (np.array([2**60, 0], "M8[s]"), "column 'a' has dates or times that are out of range"),
        (pd.Series(["\ud800", "x"], dtype=object), "column 'a' holds half of a character"),
        ([np.inf, 1.0], "column 'a' has 1 infinite value, first in row 1"),
    ],
)
def test_what_cannot_be_used_is_said_in_words_of_a_table(cells, message):
    with pytest.raises(DataError, match=f"^frame: {message}"):
        table_from_frame(pd.DataFrame({"a": pd.Series(cells), "b": [1, 2]}))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"a": [[1], [2]]}), "column 'a' holds lists"),
        (pl.DataFrame({"a": [{"b": 1}, {"b": 2}]}), "column 'a' holds records"),
        (pl.DataFrame({"a": [b"x", b"y"]}), "column 'a' holds bytes"),
        (pl.DataFrame(), "no rows"),
        (pa.table([[1], [2]], names=["a", "a"]), "columns 1 and 2 are both called 'a'"),
        (pa.table({"a": pa.array([(1, 2, 3)], pa.month_day_nano_interval())}), "column 'a' holds periods or intervals"),
        (pd.DataFrame(np.eye(2), columns=["a", "a"]), "columns 1 and 2 are both called 'a'"),
        (pd.DataFrame(np.eye(2), columns=[None, "a"]), "column 1 has no name"),
        (pd.DataFrame(np.eye(2), columns=["", "a"]), "column 1 has no name"),
        (pd.DataFrame(np.eye(2), columns=pd.Index(["b", "\ud800"], dtype=object)), "the name of column 2 holds half"),
        (pd.DataFrame(index=[1, 2]), "no rows"),
    ],
)
def test_frames_that_cannot_be_used(frame, message):
    with pytest.raises(DataError, match=f"^frame: {message}"):
        table_from_frame(frame)


@pytest.mark.parametrize("value", [{"a": [1]}, pd.Series([1]), np.eye(2), None, "x", pl.Series([1])])
def test_what_is_no_frame(value):
    with pytest.raises(ParameterError, match=f"frame must be an eager data frame, got {type(value).__name__}"):
        table_from_frame(value)


@pytest.mark.parametrize(
    ("frame", "kind", "values"),
    [
        (pd.DataFrame({"a": [10**30, 7]}), "text", ["1" + "0" * 30, "7"]),
        (pl.DataFrame({"a": [2**70, None]}, schema={"a": pl.Int128}), "text", [str(2**70), None]),
        (pd.DataFrame({"a": np.array([2**64 - 1, 2], np.uint64)}), "text", [str(2**64 - 1), "2"]),
        (pd.DataFrame({"a": pd.arrays.SparseArray([0, 3])}), "integer", [0.0, 3.0]),
        (pd.DataFrame({"a": pd.arrays.SparseArray([0.5, np.nan])}), "number", [0.5, None]),
        (pd.DataFrame({"a": np.array([1, 2.5], np.longdouble)}), "number", [1.0, 2.5]),
        (pd.DataFrame({"a": np.array([1, 2.5], np.float16)}), "number", [1.0, 2.5]),
        (pd.DataFrame({"a": [decimal.Decimal("0.1"), None]}), "number", [0.1, None]),
        (pl.DataFrame({"a": [decimal.Decimal("1.50"), None]}), "number", [1.5, None]),
        (pd.DataFrame({"a": [True, None]}), "boolean", [1.0, None]),
        (pd.DataFrame({"a": pd.array(["x", pd.NA], dtype="string")}), "text", ["x", None]),
        (pd.DataFrame({"a": pd.Series([pd.NA, 1], dtype=object)}), "integer", [None, 1.0]),
        (pd.DataFrame({"a": [HOUR, None]}), "number", [1 / 24, None]),
        (pl.DataFrame({"a": [datetime.time(6), None]}), "number", [0.25, None]),
        (pd.DataFrame({"a": [datetime.date(1970, 1, 2), datetime.date(9999, 1, 1)]}), "date", [1.0, 2932532.0]),
        (pd.DataFrame({"a": np.array(["1970-01-02T12", "NaT"], "M8[ns]")}), "date", [1.5, None]),
        (pa.table({"a": pa.array(["x", None]).dictionary_encode()}), "text", ["x", None]),
        (pa.table({"a": pa.array(["x", ""], pa.string_view())}), "text", ["x", None]),
    ],
)
def test_columns_of_every_type_are_what_is_in_them(frame, kind, values):
    (column,) = table_from_frame(frame).columns
    assert column.kind == kind
    assert [None if cell is None or cell != cell else cell for cell in column.values.tolist()] == values


def test_whole_numbers_of_an_array_of_objects_that_are_too_long_are_text():
    table = table_from_array(np.array([[10**30, 1], [7, 2.5]], dtype=object), ["a", "b"])
    assert table.column("a").values.tolist() == ["1" + "0" * 30, "7"]
    assert table.column("b").values.tolist() == [1.0, 2.5]
