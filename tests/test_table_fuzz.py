"""Delimited and Parquet files, mutated: refused in a sentence, or read as pandas and pyarrow read them."""

import contextlib
import resource
import time
from pathlib import Path

import csv_fuzz
import parquet_fuzz
import pytest

from bilevax.core.errors import BilevaxError, DataError
from bilevax.tables.read import read_table

CRASHED = Path(__file__).parent / "assets" / "crashed"


def outcome(path, data):
    """The table, or None where it is refused; nothing else may happen, and that within a second."""
    path.write_bytes(data)
    began, table = time.process_time(), None
    with contextlib.suppress(BilevaxError):
        table = read_table(path)
    assert time.process_time() - began < 1.0, data[:200]
    return table


def read_all(path, files, same):
    """How many were read of the sound ones and of the mutated ones, and what was read otherwise than others do."""
    read, of, faults = [0, 0], [0, 0], []
    for i, data, *written, sound in files:
        table = outcome(path, data)
        of[sound] += 1
        read[sound] += table is not None
        if table is not None and (fault := same(table, data, *written)):
            faults.append((i, fault))
    assert not faults
    return read[True] / of[True], read[False] / of[False]


def test_delimited_files_are_refused_or_read_as_pandas_reads_them(tmp_path):
    sound, mutated = read_all(tmp_path / "t.csv", csv_fuzz.files(100, 300), csv_fuzz.same)
    # Of the sound ones those are refused in which a word stands between numbers.
    assert sound > 0.8
    assert 0.1 < mutated < 0.6


def test_parquet_files_are_refused_or_read_as_pyarrow_reads_them(tmp_path):
    sound, mutated = read_all(tmp_path / "t.parquet", parquet_fuzz.files(100, 300), parquet_fuzz.same)
    # Of the sound ones those are refused with a column that no model can use.
    assert sound > 0.6
    assert 0.02 < mutated < 0.3


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_f12_ten_thousand_delimited_and_three_thousand_parquet_files(tmp_path):
    """None of them leaves memory behind."""
    read_all(tmp_path / "t.csv", csv_fuzz.files(0, 500), csv_fuzz.same)
    read_all(tmp_path / "t.parquet", parquet_fuzz.files(0, 200), parquet_fuzz.same)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_all(tmp_path / "t.csv", csv_fuzz.files(1, 10_000), csv_fuzz.same)
    read_all(tmp_path / "t.parquet", parquet_fuzz.files(1, 3000), parquet_fuzz.same)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("index_beyond_its_dictionary", "column 'c0' cannot be read"),
        ("name_of_a_column_in_other_bytes", "no readable Parquet file"),
    ],
)
def test_what_crashed_once_is_refused(name, message):
    with pytest.raises(DataError, match=rf"{name}\.parquet: {message}"):
        read_table(CRASHED / f"{name}.parquet")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Once read as one column, for the first line was taken for the header.
        ("818\na|b|c\n1|2|3\n4|5|6\n", "t.csv:2: 3 fields, expected 1: is line 1 a title? The header comes first"),
        ("[\na\tb\n1\t2\n3\n", "t.csv:2: 2 fields, expected 1: is line 1 a title? The header comes first"),
        ("a\tb\n# no\n5\n", "t.csv:2: 1 field, expected 2: is it a comment?"),
        ("Report\n\na;b\n1;2\n4;5\n", "t.csv:3: 2 fields, expected 1: is line 1 a title?"),
    ],
)
def test_a_title_above_the_header_is_no_header(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError) as said:
        read_table(tmp_path / "t.csv")
    assert str(said.value).startswith(message)


@pytest.mark.parametrize("content", ["a,b\t\n1,2\t\n3,4\t\n", "a|b|c \t\n1|2|3\t\n4|5|\t\n"])
def test_a_delimiter_that_only_ends_the_lines_is_none(tmp_path, content):
    (tmp_path / "t.csv").write_text(content)
    assert read_table(tmp_path / "t.csv").names[:2] == ("a", "b")


@pytest.mark.parametrize("above", [b"sep=;\n", b"# made by hand\n", b"\n"])
def test_a_byte_order_mark_below_what_was_put_above_it_is_no_name(tmp_path, above):
    (tmp_path / "t.csv").write_bytes(above + b'\xef\xbb\xbf"a b";c\n1;2\n')
    assert read_table(tmp_path / "t.csv").names == ("a b", "c")
