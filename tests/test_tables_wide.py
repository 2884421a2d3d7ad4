"""Many columns at once: what one look at all of them says, a look at each says too, and a wide table takes seconds."""

import io
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevax.core.errors import DataError
from bilevax.tables.csv_content import Content
from bilevax.tables.csv_file import Lines
from bilevax.tables.csv_plain import plain_columns
from bilevax.tables.csv_types import column_of_cells
from bilevax.tables.read import read_table
from bilevax.tables.reading import Reading

CELLS = [
    *("1", " 2.5 ", "-3", "+4", "1e3", ".5", "5.", "007", "-0", "0", "1e400", "9007199254740993", "9007199254740992.0"),
    *("", " ", "NA", "?", "nan", "-nan(1)", "inf", "-Infinity", "true", "FALSE", "none", "1.#IND", "."),
    *(
        "x",
        "x1",
        "é",
        "-",
        "#5",
        "(5)",
        "$5",
        "1,5",
        "5%",
        "12:30",
        "2024-02-29",
        "31/12/2020",
        "0x1F",
        "a\nb",
        "_",
        "٣",
    ),
]
CELL = st.one_of(st.sampled_from(CELLS), st.sampled_from(CELLS[:4]), st.text("0123456789.,-+eEaN%: ", max_size=4))


def array_of(cells):
    return pa.chunked_array([pa.array(cells, pa.string())])


@settings(max_examples=300, deadline=None)
@given(columns=st.lists(st.lists(CELL, min_size=4, max_size=4), min_size=1, max_size=4), number=st.booleans())
def test_what_is_plain_is_what_a_closer_look_finds(columns, number):
    arrays, names = (
        [pa.chunked_array([pa.array(cells, pa.string())]) for cells in columns],
        list("abcd")[: len(columns)],
    )
    reading = Reading(numbers=["a"] if number else (), missing={"": ["-"]})
    rows = ("\n".join(["h", *("x",) * 4]) + "\n").encode()
    for name, array, plain in zip(names, arrays, plain_columns(names, arrays, reading), strict=True):
        if plain is not None:
            column, note, marks = column_of_cells(
                name, array, Lines("t.csv", Content(lambda: io.BytesIO(rows)), ","), reading
            )
            assert (plain.column.kind, plain.note, plain.marks) == (column.kind, note, marks)
            np.testing.assert_array_equal(plain.column.values, column.values)


def test_numbers_and_words_are_plain():
    """Else a wide table would take a closer look at each column."""
    columns = [["1", "2.5"], ["NA", "-1e3"], ["x1", "é"], ["", "NA"], ["007", "1"], ["1", "x"]]
    found = list(plain_columns(list("abcdef"), list(map(array_of, columns)), Reading()))
    kinds = [plain.column.kind if plain else None for plain in found]
    assert kinds == ["number", "number", "text", "number", None, None]
    assert found[1].marks == {"NA": 1}
    assert found[3].note == "column 'd' has no value in any row"


def wide(path, columns):
    """Of three rows: numbers, words, numbers with marks, columns without a value."""
    rng = np.random.default_rng(0)
    rows = [",".join(f"c{j}" for j in range(columns))]
    for i in range(3):
        cells = [str(i), "w", "NA" if i else "2", "NA", "x1", "0.5"]
        rows.append(",".join(f"{x:.3f}" if j % 7 else cells[j % 6] for j, x in enumerate(rng.normal(size=columns))))
    path.write_text("\n".join(rows) + "\n")


def seconds(path, columns):
    wide(path, columns)
    began = time.process_time()
    assert len(read_table(path).columns) == columns
    return time.process_time() - began


def test_no_step_is_quadratic_in_the_columns(tmp_path):
    seconds(tmp_path / "t.csv", 100)  # imports
    few, many = (min(seconds(tmp_path / "t.csv", columns) for _ in range(2)) for columns in (2000, 16000))
    assert many < 24 * few


@pytest.mark.slow
def test_a_hundred_thousand_columns_are_read_within_ten_seconds(tmp_path):
    assert seconds(tmp_path / "t.csv", 100_000) < 10
    with pytest.raises(DataError, match=r"t\.csv:4: '1e400' in column 'c99999' overflows"):
        read_table(cut(tmp_path / "t.csv"))


def cut(path):
    """Its last cell overflows."""
    path.write_text(path.read_text().rstrip("\n").rpartition(",")[0] + ",1e400\n")
    return path
