"""The encoder is as scikit-learn's transformers; its plain terms make the same matrix with numpy alone."""

import dataclasses
import json
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from bilevax.core.errors import DataError, ParameterError
from bilevax.sklearn import TunedAdditiveRegressor
from bilevax.sklearn.encoder import TableEncoder
from bilevax.study.bundled import NAMES, bundled_target, load_bundled
from bilevax.tables import table_from_frame
from bilevax.tables.table import Column, Table, object_array
from bilevax.tables.terms import OTHER, design_from_terms, terms_from_plain, text_columns


def column(name, values, kind="number"):
    values = object_array(values) if kind == "text" else np.asarray(values, float)
    return Column(name, kind, values)


def mixed(n=300, seed=0):
    rng = np.random.default_rng(seed)
    colour = rng.choice(["red", "green", "blue"], n).astype(object)
    colour[::50] = "mauve"  # rare: six of 300
    colour[1::20] = None
    shop = rng.choice(["a", "b"], n).astype(object)
    shop[7] = None  # a rare missing cell
    shop[[8, 9]] = "zebra"
    income = rng.lognormal(10, 1, n)
    income[::9] = np.nan
    return Table(
        "mixed",
        (
            column("colour", colour, "text"),
            column("income", income),
            column("member", rng.integers(0, 2, n), "boolean"),
            column("since", 19000 + rng.integers(0, 500, n), "date"),
            column("shop", shop, "text"),
        ),
    )


def strange_rows():
    """Rows never seen, with values never seen."""
    other = mixed(seed=1)
    strange = other.column("colour").values.copy()
    strange[:5] = ["ultraviolet", "", "RED", " red", "other"]
    return Table("new", (Column("colour", "text", strange), *other.columns[1:]))


@pytest.mark.parametrize("most", [200, 3])
def test_the_matrix_is_scikit_learns(most):
    """Its transformers, with categories, marks and truth values as 0 and 1."""
    train, new = mixed(), strange_rows()
    encoder = TableEncoder(min_frequency=10, max_categories=most).fit(train)

    def numbers(table):
        return np.column_stack([table.column(name).values for name in ("income", "since")])

    impute = SimpleImputer(strategy="median", add_indicator=True).fit(numbers(train))
    scale = StandardScaler().fit(impute.transform(numbers(train))[:, :2])
    options = {"min_frequency": 10, "max_categories": most, "handle_unknown": "infrequent_if_exist"}
    hot = {}
    for name in ("colour", "shop"):
        hot[name] = OneHotEncoder(sparse_output=False, **options).fit(train.column(name).values[:, None])
    for table in (train, new):
        imputed = impute.transform(numbers(table))
        income, since = scale.transform(imputed[:, :2]).T
        colour, shop = (hot[name].transform(table.column(name).values[:, None]) for name in ("colour", "shop"))
        expected = np.column_stack([colour, income, imputed[:, 2], table.column("member").values, since, shop])
        np.testing.assert_allclose(encoder.transform(table), expected, rtol=1e-12, atol=1e-15)


def test_plain_terms_are_the_encoder():
    encoder = TableEncoder(min_frequency=10).fit(mixed())
    terms = terms_from_plain(json.loads(json.dumps([term.to_plain() for term in encoder.terms_], allow_nan=False)))
    assert terms == encoder.terms_
    for rows in (mixed(), strange_rows()):
        np.testing.assert_array_equal(design_from_terms(terms, rows), encoder.transform(rows))
    assert set(text_columns(terms)) == {"colour", "shop"}


@parametrize_with_checks([TableEncoder()])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def frame(table):
    """As pandas has it: dates, truth values, NaN for a missing text."""
    cells = {column.name: column.values for column in table.columns}
    dates = np.datetime64("1970-01-01", "s") + (86400 * cells["since"]).astype("timedelta64[s]")
    return pd.DataFrame({**cells, "member": cells["member"] == 1.0, "since": dates})


@pytest.mark.parametrize(
    "kind", [pd.DataFrame, pl.from_pandas, pa.Table.from_pandas], ids=["pandas", "polars", "arrow"]
)
def test_a_frame_is_as_its_table(kind):
    train, new = mixed(), mixed(seed=1)
    encoder = TableEncoder(min_frequency=10).fit(kind(frame(train)))
    expected = TableEncoder(min_frequency=10).fit(train)
    assert encoder.terms_ == expected.terms_
    assert list(encoder.feature_names_in_) == list(train.names) == list(encoder.columns_)
    found = encoder.transform(kind(frame(new)))
    np.testing.assert_array_equal(found, expected.transform(new))
    np.testing.assert_array_equal(found, encoder.transform(new))


def test_an_array_is_as_its_frame():
    """Of objects; one of numbers or of text alone too."""
    train = frame(mixed())[["colour", "income"]]
    expected = TableEncoder().fit(train)
    encoder = TableEncoder().fit(train.to_numpy(object))
    np.testing.assert_array_equal(encoder.transform(train.to_numpy(object)), expected.transform(train))
    assert encoder.columns_ == ("x0", "x1")
    assert not hasattr(encoder, "feature_names_in_")
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        unnamed = expected.transform(train.to_numpy(object))
    np.testing.assert_array_equal(unnamed, expected.transform(train))
    numbers = TableEncoder().fit_transform(train[["income"]].to_numpy())
    np.testing.assert_array_equal(numbers, expected.transform(train)[:, -2:])
    text = TableEncoder().fit(train[["colour"]].fillna("none").to_numpy(str))
    assert [term.value for term in text.terms_] == ["blue", "green", "mauve", "none", "red"]
    by_number = TableEncoder().fit(train.set_axis([3, 5], axis=1))
    assert by_number.columns_ == ("x0", "x1")


def test_names_say_what_terms_are_and_frames_come_out():
    encoder = TableEncoder(min_frequency=10).fit(frame(mixed())[["colour", "income"]])
    names = ["colour = blue", "colour = green", "colour = red", "colour is missing", f"colour = {OTHER}"]
    assert list(encoder.get_feature_names_out()) == [*names, "income", "income is missing"]
    out = encoder.set_output(transform="pandas").transform(frame(mixed())[["colour", "income"]])
    assert list(out.columns) == list(encoder.get_feature_names_out())
    with pytest.raises(ValueError, match="input_features is not equal to feature_names_in_"):
        encoder.get_feature_names_out(["a", "b"])
    unnamed = TableEncoder().fit(np.array([["a", 1.0], ["b", 2.0]] * 10, object))
    assert list(unnamed.get_feature_names_out(["f", "g"])) == ["f = a", "f = b", "g"]


def test_types_of_pandas_are_what_they_say():
    n, rng = 60, np.random.default_rng(0)
    cells = {
        "cat": pd.Categorical(rng.choice(["a", "b"], n)),
        "int": pd.array(rng.integers(0, 99, n), "Int64"),
        "text": pd.array(rng.choice(["u", "v"], n), "string"),
        "truth": pd.array(rng.random(n) < 0.5, "boolean"),
        "for": pd.to_timedelta(rng.integers(0, 999, n), "s"),
    }
    frame = pd.DataFrame(cells, index=rng.permutation(n))
    frame.loc[frame.index[::7], ["int", "text", "truth", "cat"]] = pd.NA
    encoder = TableEncoder().set_output(transform="pandas").fit(frame)
    names = ["cat = a", "cat = b", "cat is missing", "int", "int is missing", "text = u", "text = v"]
    assert list(encoder.get_feature_names_out()) == [*names, "text is missing", "truth", "truth is missing", "for"]
    out = encoder.transform(frame)
    assert list(out.index) == list(frame.index)
    np.testing.assert_array_equal(out["cat = a"], (frame["cat"] == "a").to_numpy(float, na_value=0.0))


def test_a_copy_and_what_is_read_back_encode_alike():
    table = frame(mixed())
    encoder = TableEncoder(min_frequency=10, max_categories=4).fit(table)
    again = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_array_equal(again.transform(table), encoder.transform(table))
    copy = clone(encoder)
    texts = {"words": (), "pairs": (), "characters": (), "cells": (), "min_texts": 2, "buckets": None}
    assert copy.get_params() == {"min_frequency": 10, "max_categories": 4, **texts}
    assert not hasattr(copy, "terms_")


def test_zeros_and_ones_are_left_and_the_more_frequent_fills():
    cells = {"mark": [0.0, 1.0, 1.0, np.nan], "tie": [0.0, 1.0, np.nan, np.nan], "number": [0.0, 1.0, 2.0, 3.0]}
    X = TableEncoder().fit_transform(pd.DataFrame(cells))
    np.testing.assert_array_equal(X[:, 0], [0, 1, 1, 1])
    np.testing.assert_array_equal(X[:, 2], [0, 1, 0, 0])
    np.testing.assert_allclose(X[:, 4], np.array([-1.5, -0.5, 0.5, 1.5]) / np.sqrt(1.25))


def test_cells_that_are_no_numbers_and_no_text_are_refused():
    with pytest.raises(DataError, match=r"X: column 'x1' mixes types \(float and str\); make it one of numbers"):
        TableEncoder().fit(np.array([[1.0, "a"], [2.0, 3.0]], object))
    with pytest.raises(TypeError, match="X: column 'x0' holds a dict; the argument must be a string or a number"):
        TableEncoder().fit(np.array([[{}, "a"], [2.0, "b"]], object))
    with pytest.raises(DataError, match="X: column 'a' has 1 infinite value, first in row 2"):
        TableEncoder().fit(pd.DataFrame({"a": [1.0, np.inf]}))
    twice = pd.DataFrame(np.eye(3), columns=["a", "b", "a"])
    with pytest.raises(DataError, match="X: columns 1 and 3 are both called 'a'; rename one"):
        TableEncoder().fit(twice)
    with pytest.raises(ValueError, match="'max_categories' parameter of TableEncoder must be an int"):
        TableEncoder(max_categories=1).fit(frame(mixed()))


def test_a_word_among_numbers_is_said():
    ages = [*map(str, range(20, 40)), "unknown"] * 5
    frame = pd.DataFrame(
        {"age": ages, "code": pd.Categorical(ages), "whole": ["1", "2", "3"] * 35, "x": np.arange(105) % 8}
    )
    with pytest.warns(UserWarning, match="column 'age' is read as text, .* such as 'unknown'"):
        encoder = TableEncoder().fit(frame)
    assert encoder.notes_ == (
        "column 'age' is read as text, one value a category, for 5 of 105 cells are no numbers, such as 'unknown' (X, "
        "row 21); leave such cells empty if they are not known",
    )
    # of a table that was given its reader has said it
    table = table_from_frame(frame)
    assert len(table.notes) == 1
    assert TableEncoder().fit(table).notes_ == ()
    y = np.arange(105.0) % 7
    with pytest.warns(UserWarning, match="'unknown'"):
        assert TunedAdditiveRegressor(choose=False, pairs=False).fit(frame, y).notes_[0] == encoder.notes_[0]


def test_a_rare_a_new_and_a_missing_value_have_their_places():
    table = mixed()
    terms = TableEncoder(min_frequency=10).fit(table).terms_
    colours = [(t.kind, t.value, t.other) for t in terms if t.column == "colour"]
    shops = [(t.kind, t.value, t.other) for t in terms if t.column == "shop"]
    assert colours == [
        ("category", "blue", False),
        ("category", "green", False),
        ("category", "red", False),
        ("missing", None, False),
        ("category", OTHER, True),
    ]
    assert shops == [("category", "a", False), ("category", "b", False), ("category", OTHER, True)]
    cells = object_array(["mauve", "never seen", None, "red"])
    new = table.take(np.arange(4))
    new = Table("new", tuple(Column(c.name, c.kind, cells) if c.kind == "text" else c for c in new.columns))
    design = dict(zip([(t.column, t.kind, t.value) for t in terms], design_from_terms(terms, new).T, strict=True))
    assert design["colour", "category", OTHER].tolist() == [1, 1, 0, 0]
    assert design["colour", "missing", None].tolist() == [0, 0, 1, 0]
    assert design["colour", "category", "red"].tolist() == [0, 0, 0, 1]
    assert design["shop", "category", OTHER].tolist() == [1, 1, 1, 1]  # "red" is no shop, a missing shop is rare


def test_a_new_value_is_none_of_the_known_where_none_was_rare():
    table = Table("t", (column("s", ["a", "b"] * 20, "text"), column("x", range(40))))
    encoder = TableEncoder().fit(table.select(["s"]))
    new = Table("new", (column("s", ["c", None, "a"], "text"),))
    assert design_from_terms(encoder.terms_, new).tolist() == [[0, 0], [0, 0], [1, 0]]
    np.testing.assert_array_equal(encoder.transform(new), design_from_terms(encoder.terms_, new))


def test_columns_are_found_by_name():
    table = mixed()
    terms = TableEncoder().fit(table).terms_
    shuffled = Table("new", (column("extra", np.zeros(table.rows)), *reversed(table.columns)))
    np.testing.assert_array_equal(design_from_terms(terms, shuffled), design_from_terms(terms, table))
    renamed = Table("new", tuple(dataclasses.replace(c, name=c.name.replace("come", "comes")) for c in table.columns))
    with pytest.raises(DataError, match=r"new: no column 'income'; did you mean 'incomes'\?"):
        design_from_terms(terms, renamed)
    with pytest.raises(DataError, match=r"new: no columns 'income', 'since'; "):
        design_from_terms(terms, Table("new", tuple(c for c in table.columns if c.name not in ("income", "since"))))


def test_a_column_of_another_kind_is_refused():
    table = mixed()
    terms = TableEncoder().fit(table).terms_

    def replaced(new):
        return Table("new", tuple(new if c.name == new.name else c for c in table.columns))

    with pytest.raises(
        DataError, match="column 'income' holds texts such as 'n' in row 1; the model knows it as numbers"
    ):
        design_from_terms(terms, replaced(column("income", ["n"] * table.rows, "text")))
    with pytest.raises(DataError, match="column 'since' holds numbers; the model knows it as dates"):
        design_from_terms(terms, replaced(column("since", np.arange(table.rows))))
    nothing = replaced(column("since", [None] * table.rows, "text"))  # an empty column has no kind
    assert np.isfinite(design_from_terms(terms, nothing)).all()


def test_numbers_stand_for_their_text_where_categories_are_known():
    table = Table("t", (column("grade", ["1", "2"] * 20, "text"),))
    terms = TableEncoder().fit(table).terms_
    new = Table("new", (column("grade", [2.0, 1.0], "integer"),))
    assert design_from_terms(terms, new).tolist() == [[0, 1], [1, 0]]


def test_what_teaches_nothing_is_left_out_and_said():
    n = 100
    rng = np.random.default_rng(0)
    table = Table(
        "t",
        (
            column("name", [f"person {i}" for i in range(n)], "text"),
            column("id", rng.permutation(n) + 1000, "integer"),
            column("empty", np.full(n, np.nan)),
            column("one", np.ones(n)),
            column("same", ["x"] * n, "text"),
            column("useful", rng.normal(size=n)),
            column("spread", rng.choice(10**6, n, replace=False), "integer"),
            column("rare", [f"v{i % 30}" for i in range(n)], "text"),
            column("sometimes", np.where(rng.random(n) < 0.5, 3.0, np.nan)),
        ),
    )
    encoder = TableEncoder().fit(table)
    assert encoder.columns_ == ("useful", "spread", "sometimes")
    assert [(t.column, t.kind) for t in encoder.terms_] == [
        ("useful", "number"),
        ("spread", "number"),
        ("sometimes", "missing"),
    ]
    notes = "\n".join(encoder.notes_)
    assert "column 'rare' is left out: no value in 5 training rows" in encoder.notes_
    for name in ("'name'", "'id'", "'empty'", "'one', 'same'"):
        assert name in notes
    with pytest.raises(DataError, match="no column is left to learn from"):
        TableEncoder().fit(table.select(["name", "one"]))
    with pytest.raises(DataError, match=r"column 'huge' has values up to 1e\+200"):
        TableEncoder().fit(Table("t", (column("huge", [1e200, 1.0]),)))


def test_a_term_from_a_file_is_checked():
    for plain in (
        [{"column": "a"}],
        [{"column": "a", "kind": "number", "mean": "x"}],
        [3],
        [{"column": 1, "kind": "missing"}],
    ):
        with pytest.raises(DataError, match="not the terms of a model"):
            terms_from_plain(plain)
    with pytest.raises(DataError, match="not the terms of a model"):
        terms_from_plain([{"column": "a", "kind": "code"}])


@pytest.mark.parametrize("name", NAMES)
def test_bundled_data_sets_are_tables(name):
    table = load_bundled(name)
    target = table.column(bundled_target(name))
    assert table.names[-1] == target.name
    assert target.kind == {"digits": "integer", "diabetes": "integer", "airfoil": "number"}.get(name, "text")
    features = table.names[:-1]
    encoder = TableEncoder().fit(table.select(features))
    assert len(encoder.terms_) == len(features) - (3 if name == "digits" else 0)
    X = encoder.transform(table)
    zero_one = np.isin(X, (0.0, 1.0)).all(axis=0)
    assert zero_one.sum() == (3 if name == "digits" else 0)
    np.testing.assert_allclose(X[:, ~zero_one].mean(axis=0), 0, atol=1e-12)


def test_an_unknown_data_set_is_refused_with_the_nearest():
    with pytest.raises(ParameterError, match=r"no bundled data set 'digit'; did you mean 'digits'\?"):
        load_bundled("digit")
