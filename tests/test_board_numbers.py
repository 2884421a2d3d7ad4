"""Faults A10 to A14, B12, B13, B15, B16, B18 and F3 (docs/reliability.md): numbers of any size, type, layout and label.

A hypergradient of one ridge regression, 20 + 20 rows and 4 columns, serves most: it is compiled once a type.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.exceptions import DataConversionWarning

import bilevax as bx
from bilevax.linalg.columns import column_moments
from bilevax.problems.gradient_step import InverseCurvature
from bilevax.sklearn import TunedElasticNet, TunedElasticNetClassifier, TunedLogisticRegression, TunedRidge
from bilevax.sklearn.encoder import TableEncoder
from bilevax.tables.linear import linear_from_plain
from bilevax.tables.table import Column, Table

KEY = jax.random.key(0)
N, D = 20, 4
LAM = -2.0
RIDGE = bx.Problem(bx.GradientStep(bx.Squared("feature")), bx.Squared())
EXACT = bx.SID(bx.FixedPoint(400), bx.FixedPoint(400))


def table(seed=0, n=2 * N, d=D):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    return X, X @ np.linspace(1.0, -1.0, d) + 0.3 * rng.normal(size=n)


def estimate(X, y, kind=np.float64):
    rows = [(X[part], y[part]) for part in (slice(N), slice(N, None))]
    train, val = (bx.Arrays((A.astype(kind), b.astype(kind)) if kind is not None else (A, b)) for A, b in rows)
    kind = train.all_rows[0].dtype
    return bx.hypergradient(RIDGE, EXACT, np.zeros((1, D), kind), np.full(D, LAM, kind), train, val, key=KEY)


def truth(X, y):
    """The closed form, in float64."""
    X, y = X.astype(float), y.astype(float)
    (A, b), (Z, u) = (X[:N], y[:N]), (X[N:], y[N:])
    H = A.T @ A / N + np.exp(LAM) * np.eye(D)
    w = np.linalg.solve(H, A.T @ b / N)
    return -np.exp(LAM) * w * np.linalg.solve(H, Z.T @ (Z @ w - u) / N)


def error(est, expected):
    return np.linalg.norm(np.asarray(est.value, float) - expected) / np.linalg.norm(expected)


# A8


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16])
def test_a8_sums_of_short_types_are_accumulated_in_float32(kind):
    """Of 5,000 ones; in bfloat16 a sum of ones stops at 256, in float16 at 2,048."""
    rows, w = (jnp.ones((5000, 2), kind), jnp.ones(5000, kind)), jnp.zeros((1, 2), kind)
    loss, gradient = jax.jit(lambda w: bx.Squared().value_and_grad(w, (), rows))(w)
    curvature = jax.jit(lambda w: bx.Squared().curvature(w, rows))(w)
    assert loss.dtype == gradient.dtype == curvature.dtype == kind
    np.testing.assert_allclose(float(loss), 0.5, rtol=0.01)
    np.testing.assert_allclose(np.asarray(gradient, float), -1.0, rtol=0.01)
    np.testing.assert_allclose(float(curvature), 2.2, rtol=0.02)


# A10


def test_a10_float32_and_float64_agree_within_the_condition():
    """Columns whose curvatures differ by 40: the relative difference is within 10 units times the condition."""
    X, y = table()
    X = X * np.geomspace(1.0, 0.2, D)
    H = X[:N].T @ X[:N] / N + np.exp(LAM) * np.eye(D)
    condition = np.linalg.cond(H)
    short, double = estimate(X, y, np.float32), estimate(X, y)
    assert short.code == double.code == bx.Code.OK
    assert error(double, truth(X, y)) < 1e-12 * condition
    assert 0 < error(short, np.asarray(double.value)) < 10 * np.finfo(np.float32).eps * condition
    for est, kind in ((short, "float32"), (double, "float64")):
        assert f"value {kind}[4]" in str(est.error)
        assert f"value {kind}[4]; w {kind}[1,4]" in str(est)


# A11


@pytest.mark.parametrize("size", [1e-12, 1e6, 1e12, 1e16])
def test_a11_columns_of_any_size_in_float32(size):
    """The squares of 1e12 are 1e24, whose own squares overflow: the measured step was 0, and nothing moved."""
    X, y = table()
    X = (X * size).astype(np.float32)
    est = estimate(X, y, np.float32)
    assert est.code == bx.Code.OK
    assert error(est, truth(X, y)) < 1e-3


@pytest.mark.parametrize("size", [1e20, 1e30])
def test_a11_what_overflows_is_coded_and_not_passed_on(size):
    """Curvatures above 3e38: no step of 0 is taken for a solution."""
    X, y = table()
    est = estimate(X * size, y, np.float32)
    assert est.code == bx.Code.NONFINITE
    assert np.isfinite(est.w).all()


def test_a11_a_step_whose_curvature_overflows_is_not_zero():
    loss = bx.Squared()
    step = bx.GradientStep(loss).measured(jnp.zeros((1, 2)), (), bx.Arrays((np.full((3, 2), 1e200), np.ones(3))), KEY)
    assert np.isnan(step.metric(jnp.zeros((1, 2)), jnp.zeros(()))).all()
    assert np.isnan(InverseCurvature(jnp.asarray(np.inf), None)(jnp.zeros((1, 2)), jnp.zeros(())))


@pytest.mark.parametrize(("kind", "sizes"), [(np.float32, (3e6, 1e8, 1e15)), (np.float64, (1e15, 1e100))])
def test_a11_columns_that_differ_beyond_the_type_are_not_called_solved(kind, sizes):
    """One column is so large that no step of the map moves the other weights, and no residual shows it."""
    X, y = table()
    assert np.isfinite(estimate(X * np.array([10.0, 1.0, 1.0, 1.0]), y, kind).error.relative)
    for size in sizes:
        Z = (X * np.array([size, 1.0, 1.0, 1.0])).astype(kind)
        est = estimate(Z, y, kind)
        assert error(est, truth(Z, y)) > 0.5
        assert est.code == bx.Code.TOLERANCE_NOT_MET
        assert "bring the columns of the data to one scale" in est.message


@pytest.mark.slow
def test_a11_long_chains_of_minibatches_are_not_called_solved_either():
    X, y = table()
    X = (X * np.array([1e8, 1.0, 1.0, 1.0])).astype(np.float32)
    train, val = (bx.Arrays((X[part], y[part].astype(np.float32)), 4) for part in (slice(N), slice(N, None)))
    sid, start = bx.SID(bx.FixedPoint(2000), bx.FixedPoint(2000)), (np.zeros((1, D), "f"), np.full(D, LAM, "f"))
    est = bx.hypergradient(RIDGE, sid, *start, train, val, key=KEY)
    assert est.code != bx.Code.OK
    assert "to one scale" in est.message or est.code >= bx.Code.NOT_CONTRACTIVE


@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e-13, 1e30, 1e200])
@pytest.mark.parametrize("make", [np.asarray, sp.csc_array])
def test_a11_the_unit_of_a_column_does_not_decide_whether_it_varies(size, make):
    """A standard deviation below 1e-13 was that of a constant; squares of 1e200 overflow."""
    X, _ = table()
    units = np.array([size, 1.0, size, 1.0])
    mean, scale = column_moments(make(X * units))
    np.testing.assert_allclose(mean, X.mean(axis=0) * units, rtol=1e-12)
    np.testing.assert_allclose(scale, X.std(axis=0) * units, rtol=1e-12)


@pytest.mark.parametrize("size", [pytest.param(1e-30, marks=pytest.mark.slow), 1e200])
def test_a11_estimators_fit_the_same_model_in_any_unit(size):
    X, y = table()
    units = np.array([size, 1.0, 1.0, 1.0])
    for make in (TunedRidge, TunedElasticNet):
        one, other = make(random_state=0).fit(X, y), make(random_state=0).fit(X * units, y)
        np.testing.assert_allclose(other.coef_ * units, one.coef_, rtol=1e-6)
    logistic = [TunedLogisticRegression(steps=2, random_state=0).fit(Z, y > 0) for Z in (X, X * units)]
    np.testing.assert_allclose(logistic[1].coef_ * units, logistic[0].coef_, rtol=1e-4)


def test_a11_a_table_refuses_what_cannot_be_standardised():
    for factor, said in ((1e200, "values up to .*; divide it"), (1e-200, "values that differ by .*; multiply it")):
        columns = Table("t", (Column("x", "number", factor * np.arange(40.0)),))
        with pytest.raises(bx.DataError, match=f"t: column 'x' has {said} or leave it out"):
            TableEncoder().fit(columns)


# A12


def test_a12_constant_columns_rows_of_zeros_and_a_table_of_zeros_run():
    X, y = table()
    for change in ((slice(None), 1), (3, slice(None))):
        Z = X.copy()
        Z[change] = 0.7 if change[1] == 1 else 0.0
        est = estimate(Z, y)
        assert est.code == bx.Code.OK
        assert error(est, truth(Z, y)) < 1e-9
    nothing = estimate(0 * X, y)
    assert nothing.code == bx.Code.OK
    assert not np.any(nothing.w)
    assert not np.any(nothing.value)


# B15


def layouts(X, tmp_path):
    np.save(tmp_path / "x.npy", X)
    fixed = X.copy()
    fixed.flags.writeable = False
    padded = np.zeros((2 * len(X), 2 * D))
    padded[::2, ::2] = X
    return {
        "read-only": fixed,
        "Fortran": np.asfortranarray(X),
        "negative strides": X[::-1, ::-1].copy()[::-1, ::-1],
        "a slice": padded[::2, ::2],
        "memory-mapped": np.load(tmp_path / "x.npy", mmap_mode="r"),
    }


def test_b15_the_layout_of_an_array_changes_no_bit_and_is_not_written_to(tmp_path):
    X, y = table()
    expected = [np.asarray(x).tobytes() for x in estimate(X, y)[:4]]
    ridge = TunedRidge(random_state=0).fit(X, y).coef_.tobytes()
    for name, rows in layouts(X, tmp_path).items():
        assert rows.flags.c_contiguous == (name in ("read-only", "memory-mapped"))
        assert [np.asarray(x).tobytes() for x in estimate(rows, y, None)[:4]] == expected, name
        assert TunedRidge(random_state=0).fit(rows, y).coef_.tobytes() == ridge, name
        assert np.array_equal(rows, X)


# B16, A14, B12, B13: estimators


def test_b16_columns_of_a_frame_in_another_order_are_refused():
    X, y = table()
    frame = pd.DataFrame(X, columns=list("abcd"))
    for model in (TunedRidge(), TunedElasticNet(), TunedElasticNetClassifier()):
        model.fit(frame, y > 0 if isinstance(model, TunedElasticNetClassifier) else y)
        with pytest.raises(ValueError, match="Feature names must be in the same order as they were in fit"):
            model.predict(frame[list("bacd")])


def test_a14_a_column_of_labels_is_warned_about_as_scikit_learn_does():
    X, y = table()
    for model, labels in ((TunedElasticNetClassifier(), y > 0), (TunedRidge(), y)):
        with pytest.warns(DataConversionWarning, match="A column-vector y was passed"):
            model.fit(X, labels[:, None])


CLASSIFIERS = TunedLogisticRegression, TunedElasticNetClassifier


@pytest.mark.parametrize("make", CLASSIFIERS)
def test_b12_one_class_and_a_class_without_training_rows_are_refused(make):
    X, _ = table()
    with pytest.raises(bx.DataError, match="only one class is present: 'a'"):
        make().fit(X, np.full(len(X), "a"))
    y = np.repeat(["a", "b"], N)
    with pytest.raises(bx.DataError, match="no training row is of class 'b', of which validation rows are"):
        make().fit(X, y, validation=y == "b")


@pytest.mark.parametrize("make", CLASSIFIERS)
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a", 1], "mixes labels of the types number, str"),
        (["a", None], "mixes labels of the types NoneType, str"),
        (pd.array(["a", pd.NA]), "mixes labels of the types NAType, str"),
        (pd.array([1, None], dtype="Int64"), "contains NaN"),
        ([1.0, np.nan], "contains NaN"),
    ],
)
def test_b13_mixed_and_missing_labels_are_refused(make, labels, said):
    X, _ = table()
    y = labels.take(np.arange(2 * N) % 2) if hasattr(labels, "take") else np.array(labels * N, object)
    with pytest.raises(ValueError, match=said):
        make().fit(X, y)


def test_b13_strings_come_back_as_strings():
    X, y = table()
    labels = np.where(y > 0, "yes", "no")
    for given in (labels, labels.astype(object), pd.Series(labels)):
        found = TunedElasticNetClassifier(random_state=0).fit(X, given).predict(X)
        assert set(found) == {"no", "yes"}
        assert np.mean(found == labels) > 0.8


# B18


def test_b18_one_column_and_more_columns_than_rows():
    X, y = table()
    assert TunedRidge(random_state=0).fit(X[:, :1], y).score(X[:, :1], y) > 0.2
    wide = table(d=200)
    found = TunedRidge(random_state=0).fit(*wide)
    assert found.coef_.shape == (200,)
    assert np.isfinite(found.coef_).all()


@pytest.mark.slow
def test_b18_a_million_columns():
    rng = np.random.default_rng(0)
    X = sp.random(60, 10**6, 1e-4, format="csc", random_state=0)
    y = X[:, [7]].toarray().ravel() + rng.normal(size=60)
    assert np.isfinite(TunedRidge(random_state=0).fit(X, y).predict(X)).all()
    source = bx.SparseRows((X, y))
    sid = bx.SID(bx.FixedPoint(20), bx.FixedPoint(20))
    problem = bx.Problem(bx.GradientStep(bx.Squared("global")), bx.Squared())
    est = bx.hypergradient(problem, sid, np.zeros((1, 10**6)), np.float64(LAM), source, source, key=KEY)
    assert est.w.shape == (1, 10**6)
    assert np.isfinite(est.value)


# F3: what is computed from a cell


def model(**changes):
    term = {"column": "x", "kind": "number", "type": "number", "mean": 0.0, "scale": 0.5, "fill": 1.0, "weight": [2.0]}
    plain = {"format": "bilevax-linear-1", "target": "y", "classes": ["no", "yes"], "intercept": [0.1]}
    return linear_from_plain(plain | {"terms": [term | changes]})


def test_f3_a_cell_whose_score_overflows_is_refused_with_its_row():
    large = Table("new.csv", (Column("x", "number", np.array([1.0, np.nan, 1e308, -1e308])),))
    with pytest.raises(bx.DataError, match=r"^new\.csv: 1e\+308 in column 'x', row 3, is so large that"):
        model().predict_proba(large)
    fitting = model().predict_proba(large.take(np.arange(2)))
    np.testing.assert_allclose(fitting[:, 1], 1 / (1 + np.exp(-np.array([4.1, 4.1]))))


@pytest.mark.parametrize(
    "changes", [{"scale": 0.0}, {"scale": -1.0}, {"scale": np.inf}, {"mean": np.nan}, {"fill": np.inf}], ids=str
)
def test_f3_a_model_that_can_score_nothing_is_refused(changes):
    with pytest.raises(bx.DataError, match=r"not the terms of a model: column 'x' has mean, scale and fill"):
        model(**changes)


def test_f3_estimators_refuse_rows_whose_score_overflows():
    X, y = table()
    X[:, 0] *= 1e-3
    for fitted in (TunedRidge().fit(X, 1e3 * y), TunedElasticNetClassifier().fit(X, y > 0)):
        with pytest.raises(bx.DataError, match="row 1 of X is so large that its score overflows"):
            fitted.predict(np.array([np.ones(D), np.full(D, 1.7e308)]))
