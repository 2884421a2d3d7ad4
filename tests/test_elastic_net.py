"""TunedElasticNet, its classifier and TunedRidge: scikit-learn's contract, its solutions, and honest tuning."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import ElasticNet, LassoCV, LogisticRegression, Ridge
from sklearn.model_selection import KFold, PredefinedSplit, ShuffleSplit, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from bilevax import ParameterError
from bilevax.sklearn import TunedElasticNet, TunedElasticNetClassifier, TunedRidge
from bilevax.sklearn.penalty_search import promising

KINDS = [TunedElasticNet, TunedElasticNetClassifier, TunedRidge]


def failing(estimator):
    """Several penalties need rows that validate, which are a random quarter: copies of a row may be on both sides.

    Models with one penalty pass these checks: there a row is as often in a fold as its weight says.
    """
    checks = ["check_sample_weight_equivalence_on_dense_data", "check_sample_weight_equivalence_on_sparse_data"]
    return {} if estimator.penalty_per == "global" else dict.fromkeys(checks, "copies validate and train")


@parametrize_with_checks(
    [
        TunedElasticNet(steps=2, random_state=0),
        TunedElasticNet(0.9, penalty_per="feature", steps=2, random_state=0),
        TunedElasticNetClassifier(steps=2, random_state=0),
        TunedRidge(steps=2, random_state=0),
        TunedRidge("global", steps=2, random_state=0),
    ],
    expected_failed_checks=failing,
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def test_nothing_imports_jax():
    """Neither the estimators' import and fit, nor what they share with others that nothing is compiled for."""
    code = """
import sys
import numpy as np
from bilevax.sklearn import TableEncoder, TunedElasticNet, TunedElasticNetClassifier, TunedRidge
import bilevax.sklearn.classes, bilevax.sklearn.frames, bilevax.sklearn.row_splits
from bilevax.tables import LinearModel, Table, read_table, table_from_frame
X = np.random.default_rng(0).normal(size=(40, 3))
Z = TableEncoder().fit_transform(X)
for kind in (TunedElasticNet, TunedRidge, TunedElasticNetClassifier):
    kind(steps=1).fit(Z, X[:, 0] > 0).predict(Z)
assert "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def table(kind):
    return (load_breast_cancer if kind is TunedElasticNetClassifier else load_diabetes)(return_X_y=True)


def diabetes():
    return load_diabetes(return_X_y=True)


def standardized(model, X):
    return (X - model.feature_mean_) / model.feature_scale_


@pytest.mark.parametrize("ratio", [1.0, None])
def test_the_model_is_scikit_learns_at_the_penalties_found(ratio):
    X, y = diabetes()
    model = TunedElasticNet(ratio, random_state=0).fit(X, y)
    expected = ElasticNet(model.alpha_, l1_ratio=model.l1_ratio_, tol=1e-12, max_iter=1_000_000)
    expected.fit(standardized(model, X), y)
    np.testing.assert_allclose(model.predict(X), expected.predict(standardized(model, X)), rtol=1e-6)
    assert model.dual_gap_ < 1e-9 * np.var(y)
    assert ratio is None or model.l1_ratio_ == ratio


def test_the_classifier_is_scikit_learns_at_the_penalty_found():
    X, y = load_breast_cancer(return_X_y=True)
    names = np.array(["benign", "malignant"])[y]
    model = TunedElasticNetClassifier(0.5, random_state=0).fit(X, names)
    Z = standardized(model, X)
    C = 1.0 / (len(y) * model.alpha_)
    expected = LogisticRegression(C=C, l1_ratio=0.5, solver="saga", tol=1e-7, max_iter=20_000).fit(Z, names)
    np.testing.assert_allclose(model.predict_proba(X), expected.predict_proba(Z), atol=1e-4)
    assert list(model.classes_) == ["benign", "malignant"]
    np.testing.assert_array_equal(model.predict(X), expected.predict(Z))


@pytest.mark.parametrize("rows", [None, 8], ids=["more rows", "more columns"])
def test_the_ridge_is_scikit_learns_at_the_penalties_found(rows):
    X, y = diabetes()
    X, y = X[:rows], y[:rows]
    for per in ("feature", "global"):
        model = TunedRidge(per, cv=2, random_state=0).fit(X, y)
        alpha = np.broadcast_to(model.alpha_, X.shape[1])
        Z = standardized(model, X) / np.sqrt(alpha)
        np.testing.assert_allclose(model.predict(X), Ridge(1.0).fit(Z, y).predict(Z), rtol=1e-7)


def test_the_ridge_penalty_found_is_that_of_the_sum_over_the_rows():
    """The final model has more rows than those of the folds and the same alpha, as RidgeCV has it."""
    X, y = diabetes()
    model = TunedRidge("global", standardize=False, cv=KFold(2)).fit(X, y)
    predicted = cross_val_predict(Ridge(model.alpha_, solver="cholesky"), X, y, cv=KFold(2))
    assert model.cv_loss_ == pytest.approx(0.5 * np.mean((predicted - y) ** 2), rel=1e-8)


def test_the_lasso_found_is_as_good_as_that_of_a_grid():
    """Of 100 values, on the same folds."""
    X, y = diabetes()
    Z = StandardScaler().fit_transform(X)
    folds = KFold(5)
    model = TunedElasticNet(1.0, cv=folds).fit(Z, y)
    grid = LassoCV(alphas=100, cv=folds).fit(Z, y)

    def loss(alpha):
        out = np.empty(len(y))
        for train, held in folds.split(Z):
            fitted = ElasticNet(alpha, l1_ratio=1.0, tol=1e-10, max_iter=100_000).fit(Z[train], y[train])
            out[held] = 0.5 * (fitted.predict(Z[held]) - y[held]) ** 2
        return out.mean()

    assert model.cv_loss_ == pytest.approx(loss(model.alpha_), rel=1e-8)
    assert model.cv_loss_ <= loss(grid.alpha_) * (1.0 + 1e-4)


def test_descent_from_the_path_lowers_the_cross_validated_loss():
    X, y = diabetes()
    model = TunedElasticNet(random_state=0).fit(X, y)
    losses = [record["tuning_loss"] for record in model.history_]
    assert model.cv_loss_ == min(losses) < min(losses[0], *model.path_[:, 2])
    assert model.validation_loss_ is None
    # where there are no kinks, until nothing is left of the slope
    ridge = TunedRidge(validation_fraction=0.0, random_state=0).fit(X, y)
    assert ridge.history_[-1]["gradient_norm"] < 0.1 * ridge.history_[0]["gradient_norm"]


def test_the_descent_begins_at_the_least_cubic_between_two_values():
    """Of (x - 1.3)^2 (x + 1.6)^2 - x / 2, x = log alpha: its better minimum lies between two values that are worse."""
    quartic = np.polynomial.Polynomial.fromroots([1.3, 1.3, -1.6, -1.6]) - np.polynomial.Polynomial([0.0, 0.5])
    x = np.array([3.0, 2.0, 0.5, -1.0, -1.65, -3.0])
    path = np.stack([np.exp(x), quartic(x), quartic.deriv()(x)], axis=1)
    assert np.argmin(path[:, 1]) == 4
    alpha, value = promising(path)
    assert np.log(alpha) == pytest.approx(1.3, abs=0.2)
    assert value < quartic(-1.6)


def sparse_problem(kind):
    rng = np.random.default_rng(0)
    X = scipy.sparse.random_array((120, 300), density=0.1, rng=rng, data_sampler=rng.normal).toarray()
    score = X[:, :3] @ np.array([5.0, -5.0, 5.0]) + 0.3 * rng.normal(size=120)
    return X, (score > 0).astype(int) if kind is TunedElasticNetClassifier else score


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_columns_give_the_same_model_as_dense_ones(kind):
    X, y = sparse_problem(kind)
    options = {"penalty_per": "global", "standardize": True, "cv": KFold(4)}
    dense, sparse = (kind(**options).fit(rows, y) for rows in (X, scipy.sparse.csr_array(X)))
    np.testing.assert_allclose(sparse.coef_, dense.coef_, atol=1e-5)
    np.testing.assert_allclose(sparse.predict(scipy.sparse.csr_array(X)), dense.predict(X), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_penalty_per_column_or_group(kind):
    X, y = table(kind)
    p = X.shape[1]
    by_column = kind(penalty_per="feature", steps=3, random_state=0).fit(X, y)
    assert by_column.alpha_.shape == (p,)
    assert by_column.validation_loss_ > 0.0
    group = np.arange(p) % 3
    by_group = kind(penalty_per=group, steps=3, random_state=0).fit(X, y)
    for g in range(3):
        assert len(set(by_group.alpha_[group == g])) == 1
    assert np.isscalar(kind(penalty_per="global", steps=1).fit(X, y).alpha_)


def noisy(n):
    """4 of 40 columns matter."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(n, 40))
    return X, X[:, :4] @ np.array([3.0, -2.0, 1.0, 1.0]) + 2.0 * rng.normal(size=n)


def test_ridge_penalties_find_the_columns_that_matter():
    X, y = noisy(2120)
    many, one = (TunedRidge(per, random_state=0).fit(X[:120], y[:120]) for per in ("feature", "global"))
    assert many.chosen_step_ > 0
    assert np.median(many.alpha_[4:]) > 3.0 * np.max(many.alpha_[:4])
    error = [np.mean((model.predict(X[120:]) - y[120:]) ** 2) for model in (many, one)]
    assert error[0] < 0.9 * error[1]


def test_the_single_penalty_is_kept_where_validation_rows_do_not_confirm_many():
    """The loss of the validation rows falls by 7 % along the way, less than its standard error: there is only noise."""
    X, _ = noisy(80)
    y = np.random.default_rng(11).normal(size=80)
    for model in (TunedRidge(random_state=0), TunedElasticNet(1.0, penalty_per="feature", random_state=0)):
        model.fit(X, y)
        losses = [record["validation_loss"] for record in model.history_]
        assert min(losses) < 0.95 * losses[0]
        assert model.chosen_step_ == 0
        assert len(set(model.alpha_)) == 1


def test_no_row_of_a_group_helps_to_predict_another():
    """A row and its copy are one group: the cross-validated loss must not see through."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 150)), rng.normal(size=60)
    X, y, groups = np.vstack([X, X]), np.tile(y, 2), np.tile(np.arange(60), 2)
    told, not_told = (TunedElasticNet(1.0, random_state=0).fit(X, y, groups=g) for g in (groups, None))
    assert not_told.cv_loss_ < 0.7 * told.cv_loss_


def test_given_validation_rows_are_not_trained_on_and_give_no_scale():
    X, y = diabetes()
    validation = np.arange(len(y)) % 3 == 0
    model = TunedRidge(steps=2, random_state=0).fit(X, y, validation=validation)
    np.testing.assert_allclose(model.feature_mean_, X[~validation].mean(axis=0))
    with pytest.raises(ParameterError, match="boolean vector of 442 rows"):
        TunedRidge().fit(X, y, validation=validation[:10])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_weight_two_is_as_two_rows_where_rows_validate(kind):
    """And one of weight 0 is not there; what is left are the standard errors, which decide."""
    X, y = table(kind)
    X, y = X[:200, :8], y[:200]
    times = np.random.default_rng(0).integers(0, 4, len(y))
    validation, rows = np.arange(len(y)) % 4 == 0, np.repeat(np.arange(len(y)), times)
    folds = np.arange(len(y)) // 5 % 3

    def fit(rows, *weight):
        cv = PredefinedSplit(folds[rows[~validation[rows]]])
        model = kind(penalty_per="feature", cv=cv, steps=4)
        return model.fit(X[rows], y[rows], *weight, validation=validation[rows])

    copies, weighted = fit(rows), fit(np.arange(len(y)), times)
    np.testing.assert_allclose(weighted.path_, copies.path_, rtol=1e-6)
    for name in ("tuning_loss", "validation_loss", "gradient_norm"):
        found, expected = ([record[name] for record in model.history_] for model in (weighted, copies))
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert weighted.chosen_step_ == copies.chosen_step_
    np.testing.assert_allclose(weighted.alpha_, copies.alpha_, rtol=1e-4)
    np.testing.assert_allclose(weighted.predict(X), copies.predict(X), rtol=1e-4)


def test_splits_of_all_rows_are_refused_where_some_validate():
    X, y = diabetes()
    splits = list(KFold(3).split(X))
    assert TunedElasticNet(1.0, cv=splits, steps=1).fit(X, y).n_iter_
    with pytest.raises(ParameterError, match="cv holds out row 441 of 332; count those that train alone"):
        TunedRidge(cv=splits[::-1], random_state=0).fit(X, y)


def test_callback_ends_the_search_and_interrupt_keeps_the_best():
    X, y = diabetes()
    seen = []
    model = TunedElasticNet(random_state=0).fit(X, y, callback=lambda record: seen.append(record) or len(seen) == 2)
    assert model.n_iter_ == 2 == len(seen)
    assert {"step", "seconds", "tuning_loss", "validation_loss", "gradient_norm", "selected"} == set(seen[0])

    def interrupt(_):
        raise KeyboardInterrupt

    stopped = TunedElasticNet(random_state=0).fit(X, y, callback=interrupt)
    assert stopped.interrupted_
    assert stopped.score(X, y) > 0.5


def test_pipeline_clone_cross_validation_pickling_and_seed():
    X, y = diabetes()
    pipeline = make_pipeline(StandardScaler(), TunedElasticNet(random_state=0))
    assert np.mean(cross_val_score(clone(pipeline), X, y, cv=3)) > 0.4
    pipeline.fit(X, y)
    again = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(again.predict(X), pipeline.predict(X))
    np.testing.assert_array_equal(clone(pipeline).fit(X, y)[-1].coef_, pipeline[-1].coef_)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_refused_in_a_sentence(kind):
    X, y = table(kind)
    broken = X.copy()
    broken[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        kind().fit(broken, y)
    with pytest.raises(ParameterError, match="group number of each of the"):
        kind(penalty_per=np.zeros(3, int)).fit(X, y)
    with pytest.raises(ParameterError, match="hold out every row once"):
        kind(cv=ShuffleSplit(3)).fit(X, y)
    with pytest.raises(ValueError, match="'steps' parameter"):
        kind(steps=0).fit(X, y)


def test_a_text_is_no_number():
    with pytest.raises(ValueError, match="could not convert string to float"):
        TunedRidge().fit(diabetes()[0], np.array(["a"] * 442))


def test_one_class_and_three_are_refused():
    X, _ = diabetes()
    with pytest.raises(ValueError, match="only one class"):
        TunedElasticNetClassifier().fit(X, np.zeros(len(X)))
    with pytest.raises(ValueError, match="OneVsRestClassifier"):
        TunedElasticNetClassifier().fit(X, np.arange(len(X)) % 3)
    with pytest.raises(ValueError, match="every class needs rows in several folds"):
        TunedElasticNetClassifier().fit(X, (np.arange(len(X)) == 5).astype(int))


@pytest.mark.parametrize("kind", KINDS)
def test_constant_columns_and_targets_teach_nothing(kind):
    X, y = table(kind)
    X[:, 2] = 7.3
    model = kind(penalty_per="global", random_state=0).fit(X, y)
    assert np.ravel(model.coef_)[2] == 0.0
    assert np.any(model.coef_)
    if kind is not TunedElasticNetClassifier:
        constant = kind(random_state=0).fit(X, np.full(len(y), 3.0))
        np.testing.assert_allclose(constant.predict(X), 3.0)
    nothing = kind(penalty_per="global", random_state=0).fit(np.ones((len(y), 2)), y)
    assert len(set(nothing.predict(np.ones((5, 2))))) == 1
