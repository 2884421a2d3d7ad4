"""Columns that are said to be text, numbers or dates, and columns that are passed through; in CSV and in Parquet."""

import datetime
import re

import numpy as np
import pandas as pd
import pytest

from bilevax.core.errors import DataError, ParameterError
from bilevax.study.settings import settings_from
from bilevax.tables.read import read_table
from bilevax.tables.reading import types_from_words


@pytest.fixture(name="read")
def reader(tmp_path):
    def read(content, **options):
        path = tmp_path / "t.csv"
        path.write_text(content)
        return read_table(path, **options)

    return read


def day(year, month, of_month, hour=0):
    return (datetime.datetime(year, month, of_month, hour) - datetime.datetime(1970, 1, 1)) / datetime.timedelta(days=1)


@pytest.mark.parametrize(
    ("written", "days"),
    [
        (["31/12/2020", "1/2/2021"], [day(2020, 12, 31), day(2021, 2, 1)]),
        (["12/31/2020", "1/2/2021"], [day(2020, 12, 31), day(2021, 1, 2)]),
        (["31.12.2020 06:00", "01.02.2021 18:00:00"], [day(2020, 12, 31, 6), day(2021, 2, 1, 18)]),
        (["20201231", "20210201"], [day(2020, 12, 31), day(2021, 2, 1)]),
        (["2020/12/31", "2021/2/1"], [day(2020, 12, 31), day(2021, 2, 1)]),
        (["03/03/2020", "7-7-2021"], [day(2020, 3, 3), day(2021, 7, 7)]),  # either way the same
        (["2020-12-31", "2021-02-01T06:00Z"], None),
        (["2020-12-31", "2021-02-01 12:00"], [day(2020, 12, 31), day(2021, 2, 1, 12)]),
    ],
)
def test_a_column_said_to_hold_dates(read, written, days):
    content = "d;x\n" + "".join(f"{cell};1\n" for cell in [*written, "", "NA"])
    if days is None:
        with pytest.raises(DataError, match="has no time zone, other cells have one"):
            read(content, types={"d": "date"})
        return
    column = read(content, types={"d": "date"}).column("d")
    assert column.kind == "date"
    np.testing.assert_array_equal(column.values, [*days, np.nan, np.nan])


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            ["1/2/2021", "3/4/2021"],
            "t.csv:2: '1/2/2021' in column 'd' may have the day first or the month; say "
            "which (--types d=day-first or --types d=month-first)",
        ),
        (
            ["31/12/2020", "12/31/2020"],
            "t.csv:2: '31/12/2020' in column 'd' is read in no way in which every cell is a",
        ),
        (["30/02/2020"], "t.csv:2: '30/02/2020' in column 'd' is read in no way"),
        (["31/12/2020", "20201231"], "t.csv:2: '31/12/2020' in column 'd' is a date, but no one way"),
        (["31/12/2020", "x"], "t.csv:3: 'x' in column 'd' is no date that is read; write it as 2024-12-31"),
        (["31/12/20"], "t.csv:2: '31/12/20' in column 'd' is no date that is read"),
        (["2020-02-30"], "t.csv:2: '2020-02-30' in column 'd' is no date of the calendar"),
        (["12345"], "t.csv:2: '12345' in column 'd' is no date that is read"),
    ],
)
def test_what_may_be_another_date_is_refused(read, written, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read("d;x\n" + "".join(f"{cell};1\n" for cell in written), types={"d": "date"})


@pytest.mark.parametrize(
    ("written", "said", "days", "order"),
    [
        (["1/2/2021", "3/4/2021"], "month-first", [day(2021, 1, 2), day(2021, 3, 4)], "month-first"),
        (["1/2/2021", "3/4/2021"], "day-first", [day(2021, 2, 1), day(2021, 4, 3)], "day-first"),
        (["1/2/2021", "31/4/2021", "31.5.2021"], "month-first", None, ""),
        # the cells say it
        (["1.2.2021", "31.5.2021"], "month-first", [day(2021, 2, 1), day(2021, 5, 31)], "day-first"),
        (["1/2/2021", "5/31/2021"], "date", [day(2021, 1, 2), day(2021, 5, 31)], "month-first"),
        # nothing depends on it, or it is not there
        (["1/1/2021", "2/2/2021"], "day-first", [day(2021, 1, 1), day(2021, 2, 2)], ""),
        (["2021-02-01", "2021-03-04"], "day-first", [day(2021, 2, 1), day(2021, 3, 4)], ""),
        (["2021/2/1", "2021/3/4"], "day-first", [day(2021, 2, 1), day(2021, 3, 4)], ""),
    ],
)
def test_what_comes_first_in_dates_can_be_said_and_is_known_afterwards(read, written, said, days, order):
    content = "d;x\n" + "".join(f"{cell};1\n" for cell in [*written, ""])
    if days is None:
        with pytest.raises(DataError, match="in column 'd' is read in no way"):
            read(content, types={"d": said})
        return
    table = read(content, types={"d": said})
    np.testing.assert_array_equal(table.column("d").values, [*days, np.nan])
    assert table.take(np.array([0])).column("d").order == order
    told = [note for note in table.notes if f"with the {order.split('-')[0]} first" in note]
    assert len(told) == (written[0] == "1/2/2021" and said == order)


def test_a_column_said_to_hold_numbers_or_text(read):
    content = "a,b,c\n007,1,2\n010,x,3\n"
    table = read(content, types={"a": "number", "c": "text"}, drop=["b"])
    assert table.column("a").values.tolist() == [7.0, 10.0]
    assert table.column("c").values.tolist() == ["2", "3"]
    for wrong, cell in (("b", "x"), ("d", "2024-01-01")):
        with pytest.raises(DataError, match=f"t.csv:3: '{cell}' in column '{wrong}', which is read as numbers"):
            read(f"a,{wrong}\n1,1\n2,{cell}\n", types={wrong: "number"})
    with pytest.raises(DataError, match="no column 'aa'"):
        read(content, types={"aa": "text"})


def test_parquet_columns_are_what_they_are_said_to_be(tmp_path):
    path = tmp_path / "t.parquet"
    frame = pd.DataFrame(
        {
            "ymd": [20201231, 20210201],
            "words": ["1,5", "2,25"],
            "day": pd.to_datetime(["2020-12-31", "2021-02-01"]),
            "when": pd.to_datetime(["2020-12-31 12:30:00.5", None]),
            "code": [7.0, 8.5],
        }
    )
    frame.to_parquet(path)
    types = {"ymd": "date", "words": "number", "day": "text", "when": "text", "code": "text"}
    table = read_table(path, types=types)
    assert table.column("ymd").values.tolist() == [day(2020, 12, 31), day(2021, 2, 1)]
    assert table.column("words").values.tolist() == [1.5, 2.25]
    assert table.column("day").values.tolist() == ["2020-12-31 00:00:00", "2021-02-01 00:00:00"]
    assert table.column("when").values.tolist() == ["2020-12-31 12:30:00.500000", None]
    assert table.column("code").values.tolist() == ["7", "8.5"]
    with pytest.raises(DataError, match=r"t\.parquet: column 'day' holds dates; it is to hold numbers"):
        read_table(path, types={"day": "number"})
    frame["words"] = ["1.5", "x"]
    frame.to_parquet(path)
    with pytest.raises(DataError, match=r"t\.parquet, row 2: 'x' in column 'words', which is read as numbers"):
        read_table(path, types={"words": "number"})


def test_kept_columns_pass_through_as_text(read, tmp_path):
    content = "id,x,y\n007,1,a\n,2,NA\n010,3,b\n"
    pd.DataFrame({"id": ["007", None, "010"], "x": [1, 2, 3], "y": ["a", "NA", "b"]}).to_parquet(tmp_path / "t.parquet")
    for table in (read(content, keep=["y", "id"]), read_table(tmp_path / "t.parquet", keep=["y", "id"])):
        assert table.names == ("x",)
        assert {c.name: c.values.tolist() for c in table.kept} == {"y": ["a", "NA", "b"], "id": ["007", None, "010"]}
        assert table.take(np.array([2])).kept[1].values.tolist() == ["010"]
        assert table.unread == ()
    both = read(content, keep=["x"], only=["x"])
    assert (both.column("x").values.tolist(), both.kept[0].values.tolist()) == ([1.0, 2.0, 3.0], ["1", "2", "3"])
    with pytest.raises(DataError, match="no column 'ID'"):
        read(content, keep=["ID"])


def test_types_are_written_by_column():
    assert types_from_words(["a=text", "b=c=date", "a=text"]) == {"a": "text", "b=c": "date"}
    for word in ("a", "a=integer", "=text", "text"):
        with pytest.raises(ParameterError, match=f"--types takes .*COLUMN=month-first, got '{word}'"):
            types_from_words([word])
    with pytest.raises(ParameterError, match="'a' that it is text and that it is date"):
        types_from_words(["a=text", "a=date"])


def test_settings_say_how_a_file_is_read():
    settings = settings_from({"types": ["a=date"], "keep": ["id"], "max_cells": 10})
    assert (settings.reading.types, settings.reading.keep, settings.reading.max_cells) == ({"a": "date"}, ("id",), 10)


def test_a_parquet_file_that_says_it_has_too_many_cells_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"x": [0] * 100, "y": [1] * 100}).to_parquet(path)
    with pytest.raises(DataError, match=r"100 rows x 2 columns are more than 150 cells.*\(--max-cells 200\)"):
        read_table(path, max_cells=150)
    assert read_table(path, max_cells=150, drop=["y"]).rows == 100
