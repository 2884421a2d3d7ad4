"""Tables from files and frames: every fault is named by file and line, and no column is ever shifted."""

import csv
import datetime
import io
import math
import re

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from bilevax.core.errors import BilevaxError, DataError, ParameterError, StorageError
from bilevax.tables.read import read_table, table_from_frame


@pytest.fixture(name="read")
def reader(tmp_path):
    def read(content, **options):
        path = tmp_path / "file.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_table(path, **options)

    return read


def cells(table):
    return {c.name: (c.kind, c.values.tolist()) for c in table.columns}


NUMBERED = "a,b\n" + "1,2\n" * 30


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3\n", "file.csv:3: 1 field, expected 2"),
        ("a,b\n1,2\n3,4,5\n", "file.csv:3: 3 fields, expected 2"),
        ('a,b\n"x\ny",2\n\n3,4\n1\n', "file.csv:6: 1 field, expected 2"),  # a cell of two lines, a blank line
        ("a,b\r1,2\r3\r", "file.csv:3: 1 field, expected 2"),
        ('a,b\n1,"2\n3,4\n', "file.csv:2: a quote is opened here and never closed"),
        ('a,b\n1,2\n1,"x"y\n', "file.csv:3: text follows a closing quote"),
        ("a,b\n1,2\n3,4\0\n", "file.csv:3: a NUL byte"),
        ("", "file.csv: the file is empty"),
        (" \r\n\n", "file.csv: the file is empty"),
        ("a,b\n", "file.csv: a header and no rows"),
        ("a,b,a\n1,2,3\n", "file.csv:1: columns 1 and 3 are both called 'a'"),
        ("a, \n1,2\n", "file.csv:1: column 2 has no name"),
        (",a\n0,1\n", "is left out with to_csv(index=False)"),
        ("a,b\n1,2\n1,é\n".encode("latin-1"), "file.csv:3: byte 0xe9 is not UTF-8; the file looks like latin-1"),
        ("a,b\n1,2\n".encode("utf-16"), "file.csv: the file is UTF-16; save it as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16-be"), "file.csv: the file looks like UTF-16"),
        ("a,b\n1,2\n".encode("utf-32"), "file.csv: the file is UTF-32"),
        ("a,b\n1,2\n1e400,2\n", "file.csv:3: '1e400' in column 'a' overflows"),
        ("a,b\n1,2\n-inf,2\n", "file.csv:3: '-inf' in column 'a' is not finite"),
        (NUMBERED + '\n"x",3\n', "file.csv:33: 'x' in column 'a', which holds numbers in 30 of 31 cells"),
        ("a;b\n1,500;x\n2,255;y\n", "file.csv:2: '1,500' in column 'a' is a number with separators"),
        ("a;b\n7;x\n1.500,2;y\n2,2;z\n", "file.csv:3: '1.500,2' in column 'a' is a number with separators"),
        ("a\n1,2\n1\n", "file.csv:2: 2 fields, expected 1"),
        ("a,b\n5%,1\n6%,2\n", "file.csv:2: '5%' in column 'a' is a number with a sign"),
        ("a,b\n2024-02-01,1\n2024-02-31,2\n", "file.csv:3: '2024-02-31' in column 'a' is no date of the calendar"),
        (b"PK\x03\x04rest", "file.csv: the file is compressed, or a spreadsheet"),
    ],
)
def test_a_fault_is_named_with_its_line(read, content, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read(content)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_delimiters_line_ends_and_byte_order_marks_are_accepted(read, delimiter, end, mark):
    rows = [["a", "b c", "d"], ["1", "x", "2.5"], ["3", f"p{delimiter}q", ""]]
    lines = [delimiter.join(f'"{c}"' if delimiter in c else c for c in row) for row in rows]
    table = read(mark + (end.join(lines) + end).encode())
    found = cells(table)
    assert list(found) == ["a", "b c", "d"]
    assert found["a"] == ("integer", [1.0, 3.0])
    assert found["b c"] == ("text", ["x", f"p{delimiter}q"])
    assert found["d"][1][0] == 2.5
    assert math.isnan(found["d"][1][1])


def test_a_column_has_one_meaning(read):
    table = read(
        "int,num,bool,date,when,code,hex,word,id,none\n"
        " 1 ,1e3,true,2024-01-01,2024-01-01T12:00:00Z,007,0x10,NA b,12345678901234567890,NA\n"
        "NA,.5,False,2024-01-02 06:00,2024-01-01T12:00:00+06:00,010,0x11, y ,1,\n"
        "-3,nan,,,,12,,null,2,nan\n"
    )
    found = {name: (kind, [None if x != x else x for x in values]) for name, (kind, values) in cells(table).items()}
    assert found == {
        "int": ("integer", [1.0, None, -3.0]),
        "num": ("number", [1000.0, 0.5, None]),
        "bool": ("boolean", [1.0, 0.0, None]),
        "date": ("date", [19723.0, 19724.25, None]),
        "when": ("date", [19723.5, 19723.25, None]),
        "code": ("text", ["007", "010", "12"]),  # a leading zero is no number's
        "hex": ("text", ["0x10", "0x11", None]),
        "word": ("text", ["NA b", "y", None]),
        "id": ("text", ["12345678901234567890", "1", "2"]),  # not exact in float64
        "none": ("number", [None, None, None]),
    }
    assert [note.split("'")[1] for note in table.notes] == ["code", "hex", "id", "none"]


def test_a_decimal_comma_is_read_where_it_can_only_be_one(read):
    found = cells(read("a;b;c\n1,5;1,250;-,5\n2,25;17,5;1\n"))
    assert found == {
        "a": ("number", [1.5, 2.25]),
        "b": ("number", [1.25, 17.5]),
        "c": ("number", [-0.5, 1.0]),
    }


def test_text_columns_can_be_asked_for(read):
    table = read("a,b\n1, 2\n03,x\n,y\n", text=["a"])
    assert cells(table)["a"] == ("text", ["1", "03", None])
    with pytest.raises(DataError, match=r"no column 'Age'; did you mean 'age'\?"):
        read("age,b\n1,2\n", text=["Age"])


def test_what_may_be_a_lost_header_or_foreign_dates_is_noted(read):
    assert "is the header missing" in read("1,2\n3,4\n").notes[0]
    assert "2024-12-31" in read("d,x\n31/12/2020,1\n01/02/2021,2\n").notes[0]


def test_f3_a_column_that_is_text_for_a_few_cells_is_noted(read):
    """One of them may be the mark of a missing value."""
    (note,) = read("a,b,c\n" + "1,x,0x1F\n" * 10 + "?,x,0xfe\n" * 5).notes[:1]
    assert note == (
        "column 'a' is read as text, one value a category, for 5 of 15 cells are no numbers, such as '?' "
        "(file.csv:12); leave such cells empty if they are not known"
    )
    assert read("a,b\n1,0x1F\n2,0xfe\n").notes == (
        "column 'b' is read as text; numbers are read when written in decimals",
    )
    assert read("a\nx1\ny2\n3\n").notes == ()


def test_an_unreadable_path_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"cannot read .*none\.csv"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(StorageError, match="cannot read"):
        read_table(tmp_path)


def test_parquet_keeps_its_types(tmp_path):
    frame = pd.DataFrame(
        {
            "i": pd.array([1, None, 3], dtype="Int64"),
            "big": [2**60, 1, 2],
            "x": [0.5, np.nan, 1.0],
            "b": [True, False, True],
            "s": [" a ", None, "NA"],
            "c": pd.Categorical(["u", "v", None]),
            "t": pd.to_datetime(["2024-01-01 12:00", None, "2024-01-02 00:00"]),
        },
        index=[7, 8, 9],
    )
    frame.to_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    found = {name: (kind, [None if x != x else x for x in values]) for name, (kind, values) in cells(table).items()}
    assert found == {
        "i": ("integer", [1.0, None, 3.0]),
        "big": ("text", [str(2**60), "1", "2"]),
        "x": ("number", [0.5, None, 1.0]),
        "b": ("boolean", [1.0, 0.0, 1.0]),
        "s": ("text", ["a", None, "NA"]),
        "c": ("text", ["u", "v", None]),
        "t": ("date", [19723.5, None, 19724.0]),
    }
    assert len(table.sha256) == 64
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"bad\.parquet: no readable Parquet file"):
        read_table(tmp_path / "bad.parquet")
    parquet.write_table(pa.table({"l": [[1], [2]]}), tmp_path / "list.parquet")
    with pytest.raises(DataError, match="column 'l' holds list"):
        read_table(tmp_path / "list.parquet")
    parquet.write_table(pa.table({"x": [1.0, math.inf]}), tmp_path / "inf.parquet")
    with pytest.raises(DataError, match="column 'x' has 1 infinite value, first in row 2"):
        read_table(tmp_path / "inf.parquet")


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_frames_give_the_same_table(frame):
    day = datetime.date(2024, 1, 1)
    table = table_from_frame(frame({"n": [1, 2], "s": ["x", None], "b": [True, False], "d": [day, day]}))
    assert [c.name for c in table.columns] == ["n", "s", "b", "d"]
    assert cells(table)["n"] == ("integer", [1.0, 2.0])
    assert cells(table)["s"] == ("text", ["x", None])
    assert cells(table)["b"] == ("boolean", [1.0, 0.0])
    assert table_from_frame(frame({"n": [1, 2]}), text=["n"]).columns[0].values.tolist() == ["1", "2"]


def test_frames_with_faults_are_refused():
    with pytest.raises(DataError, match="column 'a' mixes types"):
        table_from_frame(pd.DataFrame({"a": [1, "x"]}))
    with pytest.raises(DataError, match="both called 'a'"):
        table_from_frame(pd.DataFrame(np.eye(2), columns=["a", "a"]))
    with pytest.raises(DataError, match="no rows"):
        table_from_frame(pd.DataFrame({"a": []}))
    with pytest.raises(ParameterError, match="eager data frame, got LazyFrame"):
        table_from_frame(pl.LazyFrame({"a": [1]}))
    assert table_from_frame(pd.DataFrame(np.eye(2))).names == ("0", "1")


WORD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(WORD, st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=12))
def test_what_the_csv_module_writes_is_read_back(rows, tmp_path_factory):
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["word", "number"])
    writer.writerows([("w" + word + "w", number) for word, number in rows])
    path = tmp_path_factory.getbasetemp() / "written.csv"
    path.write_bytes(out.getvalue().encode())
    table = read_table(path)
    assert table.column("word").values.tolist() == [f"w{word}w" for word, _ in rows]
    assert table.column("number").values.tolist() == [number for _, number in rows]


@settings(max_examples=300, deadline=1000)
@given(content=st.one_of(st.binary(max_size=60), st.text('a1,;\t"\n\r \0é.', max_size=60).map(str.encode)))
def test_any_bytes_are_a_table_or_a_refusal(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    path.write_bytes(content)
    try:
        table = read_table(path)
    except BilevaxError:
        return
    assert table.rows > 0
    assert len({len(column.values) for column in table.columns}) == 1


@pytest.mark.parametrize("line", ["1 1:0.5 3:2", "-1\t7:-1e-3 # comment", "0.5 12:1"])
def test_a_svmlight_file_is_named_and_not_made_dense(tmp_path, line):
    (tmp_path / "x.svm").write_text(f"{line}\n0 2:1\n")
    with pytest.raises(DataError, match=r"x\.svm: a svmlight file.*use bx\.SparseRows"):
        read_table(tmp_path / "x.svm")
