"""A table in pieces is the table at once: the same cells, the same faults at the same lines, whatever the pieces."""

import re
import subprocess
import sys

import csv_fuzz
import numpy as np
import pandas as pd
import parquet_fuzz
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from bilevax.core.errors import DataError
from bilevax.tables.pieces import open_pieces
from bilevax.tables.read import read_table
from bilevax.tables.reading import Reading


def joined(path, reading, **sizes):
    """The columns of all pieces, those that pass through, and how many pieces there were."""
    pieces = list(open_pieces(path, reading, **sizes).tables())
    assert [piece.before for piece in pieces] == np.cumsum([0, *(piece.rows for piece in pieces)]).tolist()[:-1]
    columns, kept = (
        [np.concatenate([columns[j].values for columns in of]) for j in range(len(of[0]))]
        for of in ([piece.columns for piece in pieces], [piece.kept for piece in pieces])
    )
    return columns, kept, len(pieces)


def typed(table):
    """The reading of a model that knows what the table's columns are."""
    of = {kind: [c.name for c in table.columns if c.kind in kinds] for kind, kinds in KINDS.items()}
    return Reading(of["text"], of["number"], only=table.names, types=dict.fromkeys(of["date"], "date"))


KINDS = {"text": ("text",), "date": ("date",), "number": ("number", "integer", "boolean")}


def compare(path, reading, sizes):
    """Both ways; the error, where there is one."""
    try:
        at_once = read_table(path, **reading._asdict())
    except DataError as e:
        with pytest.raises(DataError, match=re.escape(str(e))):
            joined(path, reading, **sizes)
        return str(e)
    columns, _, _ = joined(path, reading, **sizes)
    for column, values in zip(at_once.columns, columns, strict=True):
        np.testing.assert_array_equal(values, column.values)
    return ""


def spoiled(rng, table, reading):
    """A model that knows one of the columns as something else."""
    name = str(rng.choice(table.names))
    return reading._replace(numbers=[*reading.numbers, name], text=[t for t in reading.text if t != name])


@pytest.mark.parametrize(("fuzz", "suffix"), [(csv_fuzz, ".csv"), (parquet_fuzz, ".parquet")])
def test_pieces_are_the_table_at_once(tmp_path, fuzz, suffix):
    path, read, errors = tmp_path / f"t{suffix}", 0, 0
    for i, data, *_ in fuzz.files(7, 120):
        path.write_bytes(data)
        try:
            table = read_table(path)
        except DataError:
            continue
        read += 1
        sizes = {"block": 200 + 50 * (i % 7), "rows": 1 + i % 9}
        assert not compare(path, typed(table), sizes)
        if suffix == ".csv":
            errors += bool(compare(path, spoiled(np.random.default_rng(i), table, typed(table)), sizes))
    assert read > 15
    assert errors > 15 or suffix != ".csv"


@pytest.mark.parametrize(
    ("cells", "column"),
    [
        # Each piece could be read otherwise than the whole.
        (["1,500"] * 30 + ["2,5"], [1.5] * 30 + [2.5]),
        (["1.500"] * 30 + ["1.500,5"], [1500.0] * 30 + [1500.5]),
        (["5"] * 30 + ["(5)"], [5.0] * 30 + [-5.0]),
        (["true"] * 10 + [""] * 20, [1.0] * 10 + [np.nan] * 20),
        (["NA"] * 20 + ["-7"], [np.nan] * 20 + [-7.0]),
    ],
)
def test_what_a_column_is_all_of_its_cells_say(tmp_path, cells, column):
    (tmp_path / "t.csv").write_text("x;y\n" + "".join(f"{cell};1\n" for cell in cells))
    parquet.write_table(pa.table({"x": cells, "y": [1] * len(cells)}), tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        (values,), _, pieces = joined(tmp_path / name, Reading(numbers=["x"], only=["x"]), block=30, rows=4)
        assert pieces >= 3
        np.testing.assert_array_equal(values, column)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["5"] * 30 + ["x"], "t.csv:32: 'x' in column 'x', which the model knows as numbers"),
        (["5"] * 30 + ["true"], "t.csv:32: 'true' in column 'x', which the model knows as numbers"),
        (["5%"] * 30 + ["7"], "t.csv:32: '7' in column 'x' is a number without the sign '%' of others"),
        (["5"] * 30 + ["1e400"], "t.csv:32: '1e400' in column 'x' overflows"),
        (["1,500"] * 31, "t.csv:2: '1,500' in column 'x' is a number with separators, which can be read in two ways"),
    ],
)
def test_a_fault_is_named_by_its_line_before_a_piece_is_given(tmp_path, cells, message):
    (tmp_path / "t.csv").write_text("x;y\n" + "".join(f"{cell};1\n" for cell in cells))
    with pytest.raises(DataError, match=re.escape(message)):
        open_pieces(tmp_path / "t.csv", Reading(numbers=["x"], only=["x"]), block=40)


def test_a_row_longer_than_a_piece(tmp_path):
    (tmp_path / "t.csv").write_text("x,y\n1,a\n2," + "b" * 5000 + "\n3,c\n")
    (x, y), _, _ = joined(tmp_path / "t.csv", Reading(["y"], ["x"], only=["x", "y"]), block=64)
    assert (x.tolist(), len(y[1])) == ([1.0, 2.0, 3.0], 5000)


def test_what_passes_through_and_what_is_noted(tmp_path):
    frame = pd.DataFrame({"id": [f"{k:03}" for k in range(50)], "x": ["1", "NA"] * 25, "z": ["a"] * 50})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        reading = Reading(numbers=["x"], only=["x"], keep=["id", "x"])
        (x,), kept, _ = joined(tmp_path / name, reading, block=40, rows=7)
        np.testing.assert_array_equal(x, [1.0, np.nan] * 25)
        assert [of.tolist() for of in kept] == [frame["id"].tolist(), frame["x"].tolist()]
        pieces = open_pieces(tmp_path / name, reading)
        assert (pieces.rows, pieces.others) == (50, ("z",))
        assert pieces.notes == ("'NA' is read as missing in 25 cells of column 'x'",)
    with pytest.raises(DataError, match=r"no column 'idd'; did you mean 'id'\?"):
        open_pieces(tmp_path / "t.csv", Reading(only=["x"], keep=["idd"]))


PROGRAM = """
import re, sys
from pathlib import Path
from bilevax.tables.pieces import open_pieces
from bilevax.tables.reading import Reading
columns = [f"c{j}" for j in range(4)]
sum(table.rows for table in open_pieces(Path(sys.argv[1]), Reading(numbers=columns, only=columns)).tables())
print(re.search("VmHWM:\\s*([0-9]+)", Path("/proc/self/status").read_text())[1])  # ru_maxrss has the parent's, too
"""


@pytest.mark.slow
def test_four_times_the_rows_take_no_more_memory(tmp_path):
    """Files of 10 and 40 MB; read at once, the larger one takes 200 MB more."""
    peaks = {}
    for rows in (500_000, 2_000_000):
        table = pa.table({f"c{j}": np.arange(rows) * (j + 1) % 9973 for j in range(4)})
        for suffix, write in ((".csv", csv.write_csv), (".parquet", parquet.write_table)):
            path = tmp_path / f"t{suffix}"
            write(table, path)
            run = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, check=True)
            peaks[suffix, rows] = int(run.stdout)
    for suffix in (".csv", ".parquet"):
        assert peaks[suffix, 2_000_000] - peaks[suffix, 500_000] < 60_000  # kB
