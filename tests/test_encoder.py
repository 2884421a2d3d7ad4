"""The encoder is scikit-learn's; its plain terms make the same matrix with numpy alone."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from bilevax.core.errors import DataError, ParameterError
from bilevax.sklearn.encoder import TableEncoder
from bilevax.study.bundled import NAMES, bundled_target, load_bundled
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


def test_the_matrix_is_scikit_learns():
    table = mixed()
    X = TableEncoder(min_frequency=10).fit(table, table.names).transform(table)
    numbers = np.column_stack([table.column(name).values for name in ("income", "member", "since")])
    imputed = SimpleImputer(strategy="median", add_indicator=True).fit_transform(numbers)
    cells = np.column_stack([table.column(name).values for name in ("colour", "shop")]).astype(object)
    hot = OneHotEncoder(sparse_output=False, min_frequency=10, handle_unknown="infrequent_if_exist")
    expected = np.hstack([StandardScaler().fit_transform(imputed), hot.fit_transform(cells)])
    np.testing.assert_array_equal(X, expected)


def test_plain_terms_make_the_same_matrix_on_rows_never_seen():
    table, other = mixed(), mixed(seed=1)
    strange = other.column("colour").values.copy()
    strange[:5] = ["ultraviolet", "", "RED", " red", "other"]
    other = Table("new", (Column("colour", "text", strange), *other.columns[1:]))
    encoder = TableEncoder(min_frequency=10).fit(table, table.names)
    plain = json.loads(json.dumps([term.to_plain() for term in encoder.terms], allow_nan=False))
    terms = terms_from_plain(plain)
    assert terms == encoder.terms
    for rows in (table, other):
        design = design_from_terms(terms, rows)
        np.testing.assert_allclose(design, encoder.transform(rows), rtol=0, atol=1e-12)
    assert set(text_columns(terms)) == {"colour", "shop"}


def test_a_rare_a_new_and_a_missing_value_have_their_places():
    table = mixed()
    terms = TableEncoder(min_frequency=10).fit(table, table.names).terms
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
    encoder = TableEncoder().fit(table, ["s"])
    new = Table("new", (column("s", ["c", None, "a"], "text"),))
    assert design_from_terms(encoder.terms, new).tolist() == [[0, 0], [0, 0], [1, 0]]
    np.testing.assert_array_equal(encoder.transform(new), design_from_terms(encoder.terms, new))


def test_columns_are_found_by_name():
    table = mixed()
    terms = TableEncoder().fit(table, table.names).terms
    shuffled = Table("new", (column("extra", np.zeros(table.rows)), *reversed(table.columns)))
    np.testing.assert_array_equal(design_from_terms(terms, shuffled), design_from_terms(terms, table))
    renamed = Table("new", tuple(dataclasses.replace(c, name=c.name.replace("come", "comes")) for c in table.columns))
    with pytest.raises(DataError, match=r"new: no column 'income'; did you mean 'incomes'\?"):
        design_from_terms(terms, renamed)
    with pytest.raises(DataError, match=r"new: no columns 'income', 'since'; "):
        design_from_terms(terms, Table("new", tuple(c for c in table.columns if c.name not in ("income", "since"))))


def test_a_column_of_another_kind_is_refused():
    table = mixed()
    terms = TableEncoder().fit(table, table.names).terms

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
    terms = TableEncoder().fit(table, ["grade"]).terms
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
            column("sometimes", np.where(rng.random(n) < 0.5, 3.0, np.nan)),
        ),
    )
    encoder = TableEncoder().fit(table, table.names)
    assert encoder.columns == ("useful", "spread", "sometimes")
    assert [(t.column, t.kind) for t in encoder.terms] == [
        ("useful", "number"),
        ("spread", "number"),
        ("sometimes", "missing"),
    ]
    notes = "\n".join(encoder.notes)
    for name in ("'name'", "'id'", "'empty'", "'one', 'same'"):
        assert name in notes
    with pytest.raises(DataError, match="no column is left to learn from"):
        TableEncoder().fit(table, ["name", "one"])
    with pytest.raises(DataError, match=r"column 'huge' has values up to 1e\+200"):
        TableEncoder().fit(Table("t", (column("huge", [1e200, 1.0]),)), ["huge"])


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
    assert target.kind == ("integer" if name == "digits" else "text")
    features = table.names[:-1]
    encoder = TableEncoder().fit(table, features)
    assert len(encoder.terms) == len(features) - (3 if name == "digits" else 0)
    np.testing.assert_allclose(encoder.transform(table).mean(axis=0), 0, atol=1e-12)


def test_an_unknown_data_set_is_refused_with_the_nearest():
    with pytest.raises(ParameterError, match=r"no bundled data set 'digit'; did you mean 'digits'\?"):
        load_bundled("digit")
