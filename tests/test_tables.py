"""Tables from files and frames: every fault is named by file and line, and no column is ever shifted."""

import csv
import datetime
import decimal
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
from bilevax.tables.reading import marks_from_words


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
        (
            "a,b\n1,2\n1,é\n".encode("latin-1"),
            "file.csv:3: byte 0xe9 is not UTF-8; the file looks like Windows-1252 (latin-1), in which 'é' stands there "
            "in column 'b'; save it as UTF-8",
        ),
        (
            "a,Preis \u20ac\n1,2\n".encode("cp1252"),
            "file.csv:1: byte 0x80 is not UTF-8; the file looks like Windows-1252 (latin-1), in which "
            "'Preis \u20ac' stands there; save it as UTF-8",
        ),
        ("a,b\n1,2\n".encode("utf-16"), "file.csv: the file is UTF-16; save it as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16-be"), "file.csv: the file looks like UTF-16"),
        ("a,b\n1,2\n".encode("utf-32"), "file.csv: the file is UTF-32"),
        ("a,b\n1,2\n1e400,2\n", "file.csv:3: '1e400' in column 'a' overflows"),
        ("a,b\n1,2\n-inf,2\n", "file.csv:3: '-inf' in column 'a' is not finite"),
        (NUMBERED + '\n"x",3\n', "file.csv:33: 'x' in column 'a', which holds numbers in 30 of 31 cells"),
        ("a;b\n1,500;x\n2,255;y\n", "file.csv:2: '1,500' in column 'a' is a number with separators"),
        ("a\n1,2\n1\n", "file.csv:2: 2 fields, expected 1"),
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
        "word": ("text", ["NA b", "y", "null"]),  # among texts a value, if no other is said
        "id": ("text", ["12345678901234567890", "1", "2"]),  # not exact in float64
        "none": ("number", [None, None, None]),
    }
    assert [note.split("'")[1] for note in table.notes[:4]] == ["code", "hex", "id", "none"]


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
    # that dates are not read as such, and how they are, a finding says
    assert read("d,x\n31/12/2020,1\n01/02/2021,2\n").notes == ()


def test_f3_a_column_that_is_text_for_a_few_cells_is_noted(read):
    """One of them may be the mark of a missing value."""
    (note,) = read("a,b,c\n" + "1,x,0x1F\n" * 10 + "-,x,0xfe\n" * 5).notes[:1]
    assert note == (
        "column 'a' is read as text, one value a category, for 5 of 15 cells are no numbers, such as '-' "
        "(file.csv:12); leave such cells empty, or give the mark (--missing), if they are not known"
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


@pytest.mark.parametrize(
    ("content", "bad"),
    [
        ('x,spoiled\n1,1e400\n2,"5\n"\n3,3\n', "spoiled"),
        ("spoiled,x\n2024-02-31,1\n2024-02-01,2\n2024-02-02,3\n", "spoiled"),
        ("a,x,a\nv,1,w\nv,2,w\nv,3,w\n", "a"),  # an own name twice
        (",x\n0,1\n1,2\n2,3\n", ""),  # the index of pandas
        ("x,é\n1,a\n2,ü\n3,b\n".replace("é", "e").encode("latin-1"), "e"),
    ],
)
def test_what_is_not_asked_for_is_not_looked_at(read, content, bad):
    with pytest.raises(DataError):
        read(content)
    table = read(content, only=["x"])
    assert cells(table) == {"x": ("integer", [1.0, 2.0, 3.0])}
    assert set(table.unread) == {bad}
    if bad and bad != "a":
        assert cells(read(content, drop=[bad])) == cells(table)


def test_a_fault_in_a_column_asked_for_is_still_named(read):
    with pytest.raises(DataError, match=r"file\.csv:3: byte 0xfc is not UTF-8"):
        read("x,e\n1,a\nü,\n3,b\n".encode("latin-1"), only=["x"])
    with pytest.raises(DataError, match=r"file\.csv:3: 'y' in column 'x', which the model knows as numbers$"):
        read("x,e\n1,a\ny,\n3,b\n", numbers=["x"])
    with pytest.raises(DataError, match=r"file\.csv:2: 'y' in column 'x', which the model knows as numbers$"):
        read("x,e\ny,a\nz,b\n", numbers=["x"])
    assert cells(read("x,e\n007,a\n9007199254740993,\n", numbers=["x"]))["x"] == ("integer", [7.0, 2.0**53])
    with pytest.raises(DataError, match=r"no column 'Age'; did you mean 'age'\?"):
        read("age,b\n1,2\n", only=["Age"])
    with pytest.raises(DataError, match=r"no column 'agee'; did you mean 'age'\?"):
        read("age,b\n1,2\n", drop=["agee"])


def test_parquet_reads_what_is_asked_for(tmp_path):
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"x": [1, 2], "l": [[1], [2]], "inf": [math.inf, 0.0]}), path)
    for options in ({"only": ["x"]}, {"drop": ["l", "inf"]}):
        table = read_table(path, **options)
        assert (cells(table), table.unread) == ({"x": ("integer", [1.0, 2.0])}, ("l", "inf"))


@pytest.mark.parametrize("share", [0.01, 0.15, 0.9])
@pytest.mark.parametrize("mark", ["?", "NA", "N/A", "nan(1)", "-NaN(ind)", ".", "1.#QNAN", "None"])
def test_a_mark_among_numbers_is_missing_in_any_share(read, share, mark):
    marks = round(400 * share)
    numbers = [f"{k}.5" for k in range(400 - marks)]
    table = read("a,b\n" + "".join(f"{cell},1\n" for cell in [*numbers, *[mark] * marks]))
    column = table.column("a")
    assert column.kind == "number"
    assert column.values[: 400 - marks].tolist() == [float(cell) for cell in numbers]
    assert np.isnan(column.values[400 - marks :]).all()
    assert table.notes == (f"'{mark}' is read as missing in {marks} cells of column 'a'",)


@pytest.mark.parametrize("share", [0.01, 0.15, 0.9])
def test_a_word_among_many_numbers_is_refused_in_any_share(read, share):
    words = round(400 * share)
    content = "a,b\n" + "".join(f"{k},1\n" for k in range(400 - words)) + "unk,1\n" * words
    with pytest.raises(DataError, match=rf"file.csv:{402 - words}: 'unk' in column 'a'.*\(--missing 'a=unk'\)"):
        read(content)
    for missing in ({"": ["unk"]}, {"a": ["x", "unk"]}):
        assert np.isnan(read(content, missing=missing).column("a").values).sum() == words
    assert read(content, text=["a"]).column("a").values[-1] == "unk"


def test_among_texts_only_the_empty_cell_is_missing(read):
    content = "country,when,yes,note\nNA,2024-01-01,true,?\nDE,NA,None,\n,2024-01-03,false,x\n"
    table = read(content)
    assert table.column("country").values.tolist() == ["NA", "DE", None]
    assert table.column("note").values.tolist() == ["?", None, "x"]
    assert [table.column(name).kind for name in ("when", "yes")] == ["date", "boolean"]
    assert table.notes == (
        "'NA' is read as missing in 1 cell of column 'when'",
        "'None' is read as missing in 1 cell of column 'yes'",
        "'NA' is kept as a value in 1 cell of column 'country'; --missing 'country=NA' makes it missing",
        "'?' is kept as a value in 1 cell of column 'note'; --missing 'note=?' makes it missing",
    )
    assert read(content, missing={"": ["NA"]}).column("country").values.tolist() == [None, "DE", None]
    own = read(content, missing={"": ["NA", "?"], "country": []})
    assert own.column("country").values.tolist() == ["NA", "DE", None]
    assert own.column("note").values.tolist() == [None, None, "x"]
    with pytest.raises(DataError, match=r"no column 'County'; did you mean 'country'\?"):
        read(content, missing={"County": ["NA"]})


def test_marks_that_are_numbers_count_by_value_in_every_kind_of_file(read, tmp_path):
    missing = {"": ["-999", "NA"], "s": ["x"]}
    pd.DataFrame({"i": [1, -999, 2], "f": [-999.0, 0.5, 0.0], "s": ["NA", "x", "y"]}).to_parquet(tmp_path / "t.parquet")
    for table in (
        read("i,f,s\n1,-999.0,NA\n-999,.5,x\n2,0,y\n", missing=missing),
        read_table(tmp_path / "t.parquet", missing=missing),
    ):
        found = {c.name: [None if x != x else x for x in c.values.tolist()] for c in table.columns}
        assert found == {"i": [1.0, None, 2.0], "f": [None, 0.5, 0.0], "s": ["NA", None, "y"]}


def test_marks_are_written_for_all_columns_or_one():
    assert marks_from_words(["?, NA", "a=-", "b=x=y"]) == {"": ("?", "NA"), "a": ("-",), "b=x": ("y",)}
    assert marks_from_words(["a="]) == {"a": ()}
    with pytest.raises(ParameterError, match="COLUMN=MARK"):
        marks_from_words([" , "])


@pytest.mark.parametrize(
    ("content", "found", "notes"),
    [
        ("sep=;\na;b\n1,5;2\n", {"a": [1.5], "b": [2.0]}, 0),
        ("SEP=,\r\na,b\r\n1;2,2\r\n", {"a": ["1;2"], "b": [2.0]}, 0),
        ("sep=^\na^b\n1^2\n", {"a": [1.0], "b": [2.0]}, 0),
        ("# made by x, y\n# on a day\na,b\n1,2\n", {"a": [1.0], "b": [2.0]}, 1),
        ("##v=1\n#a\tb\n1\t2\n", {"#a": [1.0], "b": [2.0]}, 1),
        ("\n##one\n\n# two\na,b\n#3,4\n", {"a": ["#3"], "b": [4.0]}, 1),
        ("#,b\n1,2\n", {"#": [1.0], "b": [2.0]}, 0),
        ("a,b\n1,2,\n3,4,\n", {"a": [1.0, 3.0], "b": [2.0, 4.0]}, 1),
        ("a;b;\n1;2;\n3;4; \n", {"a": [1.0, 3.0], "b": [2.0, 4.0]}, 1),
        ("a,b,,\n1,2,,\n3,,,\n", {"a": [1.0, 3.0], "b": [2.0, None]}, 1),
    ],
)
def test_lines_above_the_header_and_delimiters_at_the_end_are_left_out(read, content, found, notes):
    table = read(content)
    assert {c.name: [None if x != x else x for x in c.values.tolist()] for c in table.columns} == found
    assert sum("left out" in note for note in table.notes) == notes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sep=;\na;b\n1;2\n\n3\n", "file.csv:5: 1 field, expected 2"),
        ("# x\n# y\na,b\n1,2\n3\n", "file.csv:5: 1 field, expected 2"),
        ("# a,b\na,b\n1,2\n", "file.csv:1: the line begins with '#' and has as many fields as the next"),
        ("#made by x,y\na,b\n1,2\n", "file.csv:1: the line begins with '#' and has as many fields as the next"),
        ("# a\nb\n1\n", "file.csv:1: the line begins with '#' and has as many fields as the next"),
        ("a,b\n1,2\n# the end\n", "file.csv:3: 1 field, expected 2: is it a comment?"),
        ("a,b\n1,2\n3,4,\n", "file.csv:3: 3 fields, expected 2: the line ends with a delimiter, others do not"),
        ("a,b\n1,2,\n3,4\n", "file.csv:3: 2 fields, expected 3"),
        ("a,b\n1,2,\n3,4,5\n", "file.csv:3: 3 fields, expected 2"),
        ("a,b,\n1,2,\n3,4,5\n", "file.csv:1: column 3 has no name"),
        ("sep=;\n", "file.csv: a header and no rows"),
        ('{"a": 1}\n{"a": 2}\n', "file.csv: the file is JSON lines, one object a line, which is not read"),
        ('\ufeff{"a": [1,\n 2]}\n', "file.csv: the file is JSON, which is not read"),
        ('[{"a": 1}, {"a": 2}]', "file.csv: the file is JSON, which is not read"),
        ("<!DOCTYPE html>\n<p>,\n", "file.csv: a web page or XML, no table"),
        ("<?xml version='1.0'?>\n<a>1,2</a>\n", "file.csv: a web page or XML, no table"),
    ],
)
def test_the_cause_is_named_by_which_a_file_is_no_table(read, content, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read(content)


@pytest.mark.parametrize(
    ("written", "numbers"),
    [
        (["7", "1.500,2", "2,2"], [7, 1500.2, 2.2]),
        (["1,234.5", "-12,345,678", ".5"], [1234.5, -12345678, 0.5]),
        (["1.234.567", "1.234"], [1234567, 1234]),
        (["1,234,567", "1,234"], [1234567, 1234]),
        (["1'234", "12’345.5", "+3"], [1234, 12345.5, 3]),
        (["1 234", "12\u00a0345,5", "1\u202f000\u202f000"], [1234, 12345.5, 1e6]),
        (["5%", "12.5 %", "-100%"], [0.05, 0.125, -1]),
        (["5,5%", "2%"], [0.055, 0.02]),
        (["(5)", "7", "(1,234.50)"], [-5, 7, -1234.5]),
        (["5-", "7", "-3.5"], [-5, 7, -3.5]),
        (["\u22125.5", "2"], [-5.5, 2]),
        (["$5", "-$1,234.50", "($2)"], [5, -1234.5, -2]),
        (["5 €", "-2,75 €"], [5, -2.75]),
        (["+1,5", "1,5e3"], [1.5, 1500]),
        (["06:00", "23:30"], [0.25, 23.5 / 24]),
        (["6:00:36", "100:00:00.5"], [0.25 + 36 / 86400, (360000.5) / 86400]),
        (["12:30 AM", "12:30 pm", "6:00 p.m."], [0.5 / 24, 12.5 / 24, 0.75]),
    ],
)
def test_numbers_and_times_as_people_write_them(read, written, numbers):
    content = "a;b\n" + "".join(f"{cell};x\n" for cell in [*written, "", "NA"])
    column = read(content).column("a")
    assert column.kind == "number"
    np.testing.assert_allclose(column.values, [*numbers, np.nan, np.nan], rtol=1e-15)
    # a model's columns likewise
    np.testing.assert_array_equal(read(content, numbers=["a"]).column("a").values, column.values)


@pytest.mark.parametrize(
    ("written", "row", "cause"),
    [
        (["7", "1,500"], 1, "which can be read in two ways"),
        (["$1.500", "$2"], 0, "which can be read in two ways"),
        (["1.500,2", "1,500.2"], 0, "no one way of reading them fits"),
        (["1.5", "1,5"], 1, "no one way of reading them fits"),
        (["0.125", "2,5"], 1, "no one way of reading them fits"),
        (["5%", "0.05"], 1, "without the sign '%'"),
        (["0.5", "5%"], 0, "without the sign '%'"),
        (["$5", "€5"], 0, "another sign than other cells"),
        (["$5", "7"], 1, "without the sign '$'"),
        (["2,5", "1e400"], 1, "overflows"),
        (["12:30", "75:10"], 1, "may be hours and minutes or minutes and seconds"),
        (["12:30", "1:02:03"], 1, "a time written otherwise than '12:30'"),
        (["12:30", "12:75"], 1, "is no time of day"),
        (["1:30 pm", "13:30"], 1, "a time written otherwise than '1:30 pm'"),
        (["1:30 pm", "13:30 pm"], 1, "is no time of day"),
        (["12:00:00", "12:00:60"], 1, "is no time of day"),
    ],
)
def test_numbers_and_times_that_may_be_others_are_refused(read, written, row, cause):
    with pytest.raises(
        DataError, match=rf"file\.csv:{row + 2}: '{re.escape(written[row])}' in column 'a' .*{re.escape(cause)}"
    ):
        read("a;b\n" + "".join(f"{cell};x\n" for cell in written))
    with pytest.raises(DataError) as known:
        read("a;b\n" + "".join(f"{cell};x\n" for cell in written), numbers=["a"])
    assert cause in str(known.value)
    assert "--text" not in str(known.value)


@pytest.mark.parametrize(
    "words",
    [
        ["(1)", "(2)"],
        ["007-", "008-"],
        ["1.2.3", "1.10.2"],
        ["16:9", "4:3"],
        ["10.0.0.1", "192.168.100.200"],
        ["01 234", "75 001"],
    ],
)
def test_what_only_looks_like_numbers_stays_text(read, words):
    assert cells(read("a;b\n" + "".join(f"{word};x\n" for word in words)))["a"] == ("text", words)


@pytest.mark.parametrize("long", ["9007199254740993", "-9007199254740993", "12345678901234567890", "9007199254740992"])
@pytest.mark.parametrize("other", ["1", "0.5", "1e3", "NA"])
def test_whole_numbers_that_float64_would_change_stay_as_written(read, long, other):
    table = read(f"a,b\n{long},1\n{other},2\n")
    assert cells(table)["a"] == ("text", [long, other])
    assert f"too long for a number, such as '{long}'" in table.notes[0]
    assert cells(read("a,b\n9007199254740991,1\n"))["a"] == ("integer", [2.0**53 - 1])


@pytest.mark.parametrize("at", [1, 5])
def test_parquet_faults_are_named_by_column(tmp_path, at):
    words = [f"w{k}" for k in range(8)]
    offsets = np.arange(0, 17, 2, dtype=np.int32)
    letters = bytearray("".join(words).encode())
    letters[2 * at] = 0xFF
    bad = pa.StringArray.from_buffers(8, pa.py_buffer(offsets), pa.py_buffer(bytes(letters)))
    late = pa.array([0] * at + [2**60] + [0] * (7 - at), pa.timestamp("ms"))
    path = tmp_path / "t.parquet"
    for column, message in (
        (bad, "holds bytes that are not UTF-8"),
        (late, "has dates or times that are out of range"),
    ):
        parquet.write_table(pa.table({"x": words, "bad": column}), path)
        with pytest.raises(DataError, match=rf"t\.parquet: column 'bad' {message}"):
            read_table(path)
        assert cells(read_table(path, only=["x"])) == {"x": ("text", words)}
    parquet.write_table(
        pa.table({"x": words}), path, write_page_checksum=True, compression="none", use_dictionary=False
    )
    data = path.read_bytes()
    path.write_bytes(data.replace(words[at].encode(), b"zz", 1))
    with pytest.raises(DataError, match=r"t\.parquet: no readable Parquet file"):
        read_table(path)


def test_parquet_times_and_whole_decimals(tmp_path):
    path = tmp_path / "t.parquet"
    long = [decimal.Decimal(2**53 + 1), decimal.Decimal(1)]
    times = pa.array([datetime.time(6), datetime.time(12, 30)], pa.time64("ns"))
    parquet.write_table(pa.table({"long": pa.array(long, pa.decimal128(20, 0)), "t": times}), path)
    assert cells(read_table(path)) == {
        "long": ("text", [str(2**53 + 1), "1"]),
        "t": ("number", [0.25, 12.5 / 24]),
    }
