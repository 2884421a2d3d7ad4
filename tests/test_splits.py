"""Rows to the three parts, and labels to classes."""

import numpy as np
import pytest

from bilevax.core.errors import DataError
from bilevax.study.splits import Sizes, Split, rows_seen_before, split_by_group, split_by_time, split_stratified
from bilevax.tables.labels import encode_labels, is_quantity
from bilevax.tables.table import Column, Table, object_array


def text(name, cells):
    return Column(name, "text", object_array(list(cells)))


def test_a_stratified_split_keeps_proportions():
    codes = np.repeat([0, 1, 2], [100, 50, 10])
    split = split_stratified(codes, Sizes(0.2, 0.2), seed=3)
    assert np.sort(np.concatenate(split)).tolist() == list(range(160))
    assert [np.bincount(codes[part]).tolist() for part in split] == [[60, 30, 6], [20, 10, 2], [20, 10, 2]]
    again = split_stratified(codes, Sizes(0.2, 0.2), seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(split, again, strict=True))
    assert not np.array_equal(split.test, split_stratified(codes, Sizes(0.2, 0.2), seed=4).test)


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_in_two_parts(seed):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 30, 400)
    split = split_by_group(Column("g", "integer", group.astype(float)), rng.integers(0, 2, 400), Sizes(0.2, 0.2), seed)
    parts = [set(group[rows].tolist()) for rows in split]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert np.sort(np.concatenate(split)).tolist() == list(range(400))
    assert abs(len(split.test) - 80) < 30
    assert abs(len(split.validation) - 80) < 30


def test_few_groups_are_refused_and_four_are_enough():
    codes = np.arange(40) % 2
    with pytest.raises(DataError, match="group column 'g' has 3 groups"):
        split_by_group(text("g", np.repeat(list("abc"), 14)[:40]), codes, Sizes(0.2, 0.2), 0)
    split = split_by_group(text("g", np.repeat(list("abcd"), 10)), codes, Sizes(0.2, 0.2), 0)
    assert sorted(map(len, split)) == [10, 10, 20]
    with pytest.raises(DataError, match="group column 'g' is empty in 8 rows"):
        split_by_group(text("g", [None, *"abcd"] * 8), codes, Sizes(0.2, 0.2), 0)


def test_the_newest_rows_test():
    rng = np.random.default_rng(0)
    moment = rng.integers(0, 50, 500).astype(float)
    split = split_by_time(Column("t", "date", moment), Sizes(0.2, 0.2))
    assert moment[split.train].max() < moment[split.validation].min()
    assert moment[split.validation].max() < moment[split.test].min()
    assert abs(len(split.test) - 100) < 20
    assert abs(len(split.validation) - 100) < 20
    with pytest.raises(DataError, match=r"time column 't' holds text; .*--types t=date"):
        split_by_time(text("t", "abc"), Sizes(0.2, 0.2))
    with pytest.raises(DataError, match="2 moments"):
        split_by_time(Column("t", "integer", np.arange(40.0) % 2), Sizes(0.2, 0.2))


def test_rows_seen_before_are_counted():
    rng = np.random.default_rng(0)
    x, word = rng.integers(0, 17, (400, 64)).astype(float), rng.choice(["a", "b", None], 400)
    x[100], word[100] = x[0], word[0]
    x[101], word[101] = x[1], "elsewhere"
    x[102] = x[2] = np.nan
    word[102] = word[2]
    columns = [Column(f"x{j}", "number", x[:, j].copy()) for j in range(64)]
    table = Table("t", (*columns, text("w", word)))
    split = Split(np.arange(50), np.arange(50, 100), np.arange(100, 400))
    assert rows_seen_before(table, split) == 2


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (text("y", ["a"] * 60), "has 'a' in every row; two classes"),
        (text("y", [None] * 60), "has no value in any row"),
        (text("y", ["a"] * 58 + ["b", "c"]), r"fewer than 5 rows: 'b' \(1\), 'c' \(1\)"),
        (Column("y", "date", np.arange(60.0)), "holds dates"),
    ],
)
def test_a_target_that_is_no_set_of_classes_is_refused(target, message):
    with pytest.raises(DataError, match=message):
        encode_labels(target, "t.csv")


def test_many_numbers_are_a_quantity():
    assert is_quantity(Column("y", "number", np.linspace(0, 1, 60)))
    assert is_quantity(Column("y", "integer", np.arange(60.0)))
    assert not is_quantity(Column("y", "integer", np.arange(60.0) % 20))
    assert not is_quantity(Column("y", "integer", np.arange(5000.0) % 100))  # fifty rows to each
    assert is_quantity(Column("y", "integer", np.arange(50_000.0) % 101))
    assert is_quantity(Column("y", "number", np.arange(5000.0) % 100 / 10))
    assert not is_quantity(text("y", map(str, range(60))))


def test_labels_keep_their_kind():
    assert encode_labels(Column("y", "number", np.array([1.0, 2.0, np.nan] * 5)), "t").classes == (1, 2)
    labels = encode_labels(Column("y", "number", np.array([0.5, 2.0, np.nan] * 5)), "t")
    assert labels.classes == (0.5, 2)
    assert labels.codes[:3].tolist() == [0, 1, -1]
    assert labels.counts() == {"0.5": 5, "2": 5}
    assert encode_labels(Column("y", "boolean", np.array([1.0, 0.0] * 5)), "t").counts() == {"false": 5, "true": 5}
    many = Column("y", "integer", np.arange(5000.0) % 100)
    assert len(encode_labels(many, "t").classes) == 100  # fifty rows to each: classes
