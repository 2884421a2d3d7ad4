"""Svmlight files: the same numbers as scikit-learn reads, and every fault named by line."""

import re

import numpy as np
import pytest
from sklearn.datasets import dump_svmlight_file, load_svmlight_file

from bilevax.core.errors import DataError, ResourceError
from bilevax.tables.read import read_table


def write(tmp_path, content, name="t.svm"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("zero_based", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_numbers_are_those_of_scikit_learn(tmp_path, seed, zero_based):
    rng = np.random.default_rng(seed)
    X = np.where(rng.random((30, 7)) < 0.4, rng.normal(size=(30, 7)), 0.0)
    X[3] = X[:, 2] = 0.0
    X[0, [0, 6]] = 1.5, -2.0
    path = tmp_path / "t.libsvm"
    dump_svmlight_file(X, rng.integers(0, 3, 30), str(path), zero_based=zero_based, comment="written é")
    truth, labels = load_svmlight_file(str(path))
    table = read_table(path)
    assert table.names == (*(f"x{j}" for j in range(1 - zero_based, 8 - zero_based)), "target")
    np.testing.assert_array_equal(np.column_stack([c.values for c in table.columns[:-1]]), truth.toarray())
    assert table.column("target").kind == "integer"
    np.testing.assert_array_equal(table.column("target").values, labels)


@pytest.mark.parametrize("line", ["1 1:0.5 3:2", "-1\t7:-1e-3 # comment", "0.5 12:1"])
def test_b14_a_svmlight_file_is_read_and_a_note_says_so(tmp_path, line):
    """By its name or by what it looks like."""
    for name in ("x.svmlight", "x.txt"):
        table = read_table(write(tmp_path, f"{line}\n0 2:1\n", name))
        assert table.rows == 2
        assert table.column("x2").values.tolist() == [0.0, 1.0]
        assert "a cell that is not given is 0" in table.notes[0]


def test_columns_are_chosen_typed_and_passed_through(tmp_path):
    path = write(tmp_path, "1 qid:4 1:2 3:-999\n\n# nothing\r\n0 1:7.5\n")
    table = read_table(path, drop=["x2"], text=["x1"], keep=["target"], missing={"x3": ["-999"]})
    assert table.names == ("x1", "x3")
    assert table.column("x1").values.tolist() == ["2", "7.5"]
    assert np.isnan(table.column("x3").values).tolist() == [True, False]
    assert (table.kept[0].name, table.kept[0].values.tolist()) == ("target", ["1", "0"])
    assert table.unread == ("x2",)
    # a model may know columns that are 0 throughout
    assert read_table(path, only=["x9", "x1"]).column("x9").values.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 1:2\n\n1,2 1:3\n", "t.svm:3: the label '1,2' is no number"),
        ("a 1:2\n", "t.svm:1: the label 'a' is no number"),
        ("nan 1:2\n", "t.svm:1: the label 'nan' is no number"),
        ("1 1:2\n1 2:x\n", "t.svm:2: '2:x' is no cell; cells are written as NUMBER:VALUE"),
        ("1 1:2\r1 2:1e400\r", "t.svm:2: '2:1e400' is no cell"),
        ("1 1:2\n1 2:1_0\n", "t.svm:2: '2:1_0' is no cell"),
        ("1 1:2\n1 -2:1\n", "t.svm:2: '-2:1' is no cell"),
        ("1 3:2 3:1\n", "t.svm:1: column 3 after 3; the numbers of columns rise in a line"),
        ("1 3:2 2:1\n", "t.svm:1: column 2 after 3"),
        ("# nothing\n", "t.svm: no rows"),
        ("", "t.svm: no rows"),
        ("1 1:\xe9\n".encode("latin-1"), "t.svm:1: no line of a svmlight file"),
        ("1 999999999999:1\n", "t.svm: 1 rows x 1,000,000,000,000 columns are more than 500,000,000 cells"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path, content, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read_table(write(tmp_path, content))


def test_what_takes_too_much_memory_is_refused_by_size(tmp_path):
    path = write(tmp_path, "1 99999999999:1\n2 5:1\n")
    with pytest.raises(ResourceError, match=r"reading t\.svm, whose rows are sparse, takes about 3200\.0 GB"):
        read_table(path, max_cells=10**15)
