"""TunedLogisticRegression: scikit-learn's contract, its solution against scikit-learn's, and honest tuning."""

import pickle
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, make_classification
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from bilevax import ParameterError, Squared
from bilevax.sklearn import TableEncoder, TunedLogisticRegression, penalised, penalty_search, tuning_method
from bilevax.sklearn.penalised import PenalisedModel, RowWeights


def failing(_: Any) -> dict[str, str]:
    """What cannot hold where rows are dealt out at random; see the test of weights for what holds instead."""
    checks = ["check_sample_weight_equivalence_on_dense_data", "check_sample_weight_equivalence_on_sparse_data"]
    return dict.fromkeys(checks, "two copies of a row may be in two folds, it is in one")


@parametrize_with_checks(
    [TunedLogisticRegression(steps=2, random_state=0)],
    expected_failed_checks=failing,
)
def test_scikit_learn_contract(estimator: Any, check: Any) -> None:
    check(estimator)


def repeated_or_weighted(times: np.ndarray, repeated: bool, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """A fit in which a row counts as often as is said, by copies or by weights; the same rows are in the folds."""
    X, y = load_breast_cancer(return_X_y=True)
    X, y = X[: len(times), :6], y[: len(times)]
    validation = np.arange(len(times)) % 4 == 0
    rows = np.repeat(np.arange(len(times)), times) if repeated else np.flatnonzero(times)
    train = rows[~validation[rows]]
    monkeypatch.setattr(penalised, "deal_folds", lambda *_: train % 3)
    model = TunedLogisticRegression(steps=3, random_state=0, **options)
    if repeated:
        return model.fit(X[rows], y[rows], validation=validation[rows])
    return model.fit(X, y, times, validation=validation)


@pytest.mark.slow
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_a_row_of_weight_two_is_as_two_rows_in_every_loss(
    class_weight: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one of weight 0 is not there; what is left are the standard errors, which decide."""
    times = np.random.default_rng(0).integers(0, 4, 200)
    a, b = (repeated_or_weighted(times, again, monkeypatch, class_weight=class_weight) for again in (True, False))
    np.testing.assert_allclose(b.feature_mean_, a.feature_mean_, rtol=1e-12)
    np.testing.assert_allclose(b.feature_scale_, a.feature_scale_, rtol=1e-12)
    assert b.start_penalty_ == pytest.approx(a.start_penalty_, rel=1e-6)
    for name in ("tuning_loss", "validation_loss", "gradient_norm"):
        np.testing.assert_allclose([r[name] for r in b.history_], [r[name] for r in a.history_], rtol=1e-3)
    assert b.validation_gap_ == pytest.approx(a.validation_gap_, rel=1e-3)
    if b.chosen_step_ == a.chosen_step_:
        np.testing.assert_allclose(b.penalties_, a.penalties_, rtol=1e-4)
        np.testing.assert_allclose(b.coef_, a.coef_, rtol=0.02)
    assert class_weight or b.chosen_step_ == a.chosen_step_


def small(**options: Any) -> TunedLogisticRegression:
    return TunedLogisticRegression(steps=5, random_state=0, **options)


def reference(model: TunedLogisticRegression, X: np.ndarray, y: np.ndarray) -> LogisticRegression:
    """scikit-learn's model with these penalties: a penalty per feature is a penalty of 1 on rescaled features."""
    Z = (X - model.feature_mean_) / model.feature_scale_ / np.sqrt(model.penalties_)
    return LogisticRegression(C=1.0, tol=1e-10, max_iter=20_000).fit(Z, y)


@pytest.mark.parametrize("penalty_per", ["feature", pytest.param("global", marks=pytest.mark.slow)])
@pytest.mark.parametrize("data", [load_breast_cancer, pytest.param(load_iris, marks=pytest.mark.slow)])
def test_solution_is_that_of_scikit_learn_on_rescaled_features(penalty_per: str, data: Any) -> None:
    X, y = data(return_X_y=True)
    model = small(penalty_per=penalty_per).fit(X, y)
    expected = reference(model, X, y)
    Z = (X - model.feature_mean_) / model.feature_scale_ / np.sqrt(model.penalties_)
    np.testing.assert_allclose(model.predict_proba(X), expected.predict_proba(Z), atol=2e-3)


@pytest.mark.parametrize(
    ("penalty_per", "shape"),
    [
        ("class", (3,)),
        *(pytest.param(*of, marks=pytest.mark.slow) for of in [("weight", (3, 4)), ("global", ()), ("feature", (4,))]),
    ],
)
def test_shapes_of_penalties(penalty_per: str, shape: tuple[int, ...]) -> None:
    X, y = load_iris(return_X_y=True)
    model = small(penalty_per=penalty_per).fit(X, y)
    assert np.shape(model.penalties_) == shape
    assert model.coef_.shape == (3, 4)
    assert np.all(model.penalties_ > 0)


def people(n: int = 240, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Texts, truth values, dates and numbers, some of them missing."""
    rng = np.random.default_rng(seed)
    job, age, member = rng.choice(["a", "b", "c", "d"], n), rng.normal(40, 10, n), rng.random(n) < 0.5
    y = (age - 40) / 10 + 1.5 * (job == "a") + member + rng.logistic(size=n) > 1
    start = np.datetime64("2020-01-01") + rng.integers(0, 900, n).astype("timedelta64[D]")
    frame = pd.DataFrame({"job": job, "same": "x", "age": age, "member": member, "start": start})
    frame.loc[::9, "age"] = np.nan
    frame.loc[1::7, "job"] = None
    return frame, np.where(y, "yes", "no")


@pytest.mark.slow
def test_a_frame_is_taken_as_it_is_and_categories_share_a_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, y = people()
    monkeypatch.setattr(penalty_search, "SIGNIFICANT", -np.inf)  # whatever the steps gain, they are kept
    model = small(penalty_per="column").fit(frame, y)
    features = [*(f"job = {job}" for job in "abcd"), "job is missing", "age", "age is missing", "member", "start"]
    assert list(model.encoder_.get_feature_names_out()) == features
    assert (model.n_features_in_, list(model.feature_names_in_)) == (5, list(frame))
    assert len(set(model.penalties_[:5])) == len(set(model.penalties_[5:7])) == 1
    assert len(set(model.penalties_)) == 4
    # the estimator on the encoder's matrix, with these groups
    X = TableEncoder().fit_transform(frame)
    same = small(penalty_per=np.array([4] * 5 + [1, 1, 0, 3])).fit(X, y)
    np.testing.assert_allclose(same.penalties_, model.penalties_, rtol=1e-4)
    np.testing.assert_allclose(model.feature_scale_, [1, 1, 1, 1, 1, *X[:, [5]].std(axis=0), 1, 1, 1], rtol=0.2)
    np.testing.assert_array_equal(model.feature_scale_[[0, 1, 2, 3, 4, 6, 7]], 1.0)
    # scikit-learn's with these penalties
    expected = reference(model, X, y)
    Z = (X - model.feature_mean_) / model.feature_scale_ / np.sqrt(model.penalties_)
    np.testing.assert_allclose(model.predict_proba(frame), expected.predict_proba(Z), atol=2e-3)
    # by other libraries' frames, on rows never seen
    other, _ = people(seed=1)
    np.testing.assert_array_equal(model.predict_proba(pl.from_pandas(other)), model.predict_proba(other))
    with pytest.raises(ValueError, match="The feature names should match"):
        model.predict(other.rename(columns={"age": "years"}))
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(other), model.predict_proba(other))
    # groups of columns: job and member, age and start
    grouped = again.set_params(penalty_per=np.array([2, 0, 1, 2, 1]))._per()
    np.testing.assert_array_equal(grouped, [1] * 5 + [0, 0, 1, 0])
    with pytest.raises(ParameterError, match="penalty_per must have the group number of each of the 5 columns, from 0"):
        small(penalty_per=np.arange(3)).fit(frame, y)


def test_rows_of_weight_zero_teach_a_frames_encoder_nothing() -> None:
    frame, y = people()
    weight = (frame["job"] != "b").to_numpy(float)
    left = weight > 0
    model = small(penalty_per="column").fit(frame, y, weight, groups=np.arange(len(y)))
    assert "job = b" not in model.encoder_.get_feature_names_out()
    same = small(penalty_per="column").fit(frame[left], y[left], groups=np.flatnonzero(left))
    np.testing.assert_array_equal(same.coef_, model.coef_)
    with pytest.raises(ValueError, match="zero"):
        small().fit(frame, y, 0.0 * weight)
    with pytest.raises(ParameterError, match=r"sample_weight is -1\.0 in row 1; weights must be at least 0"):
        small().fit(frame, y, np.where(np.arange(len(y)) == 1, -1.0, weight))


def test_a_frame_of_numbers_is_its_array_and_its_columns_are_features() -> None:
    X, y = load_iris(return_X_y=True)
    X[:, 3] = X[:, 3] > 1.0  # a feature of 0 and 1
    names = ["a", "b", "c", "d"]
    frame = pd.DataFrame(X, columns=names).astype({"d": bool})
    array, model = small().fit(X, y), small(penalty_per="column").fit(frame, y)
    assert model.encoder_ is None
    np.testing.assert_allclose(model.coef_, array.coef_, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(model.penalties_, array.penalties_, rtol=1e-4)
    assert array.feature_scale_[3] == 1.0 != array.feature_scale_[2]


def test_pipeline_clone_cross_validation_and_pickling() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    names = np.array(["benign", "malignant"])[y]
    pipeline = make_pipeline(QuantileTransformer(n_quantiles=50), small())
    assert np.mean(cross_val_score(clone(pipeline), X, names, cv=3)) > 0.93
    pipeline.fit(X, names)
    again = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(again.predict_proba(X), pipeline.predict_proba(X))
    assert set(pipeline.predict(X)) == {"benign", "malignant"}


class Ridge(PenalisedModel):
    """What the three hooks of a sibling are."""

    def __init__(self, penalty_per: str) -> None:
        self.penalty_per, self.validation_fraction, self.method, self.steps = penalty_per, 0.25, "auto", 2
        self.random_state = 0

    def _loss(self, penalty_per: Any) -> Squared:
        return Squared(penalty_per)

    @property
    def _outputs(self) -> int:
        return 1

    def _set_coefficients(self, coef: np.ndarray, intercept: np.ndarray) -> None:
        self.coef_, self.intercept_ = coef[0], intercept[0]

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Ridge":
        self.n_features_in_, one = X.shape[1], np.ones(len(y))
        options = {"strata": np.zeros(len(y)), "groups": None, "validation": None, "callback": None}
        self._fit(X, y, RowWeights(one, one, one), per=self.penalty_per, **options)
        return self


def test_three_hooks_make_a_sibling() -> None:
    """Ridge regression with tuned penalties: the solution is that of the normal equations with them."""
    X, y = load_diabetes(return_X_y=True)
    y = y / y.std()
    model = Ridge("feature").fit(X, y)
    # sum_i (y_i - z_i . u - b)^2 / 2 + sum_j penalty_j u_j^2 / 2
    Z = (X - model.feature_mean_) / model.feature_scale_
    A = np.column_stack([Z, np.ones(len(y))])
    u = np.linalg.solve(A.T @ A + np.diag([*model.penalties_, 0.0]), A.T @ y)
    np.testing.assert_allclose(X @ model.coef_ + model.intercept_, A @ u, atol=2e-3)


def noisy(n: int, seed: int, *, real: int = 10, noise: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Informative columns, then columns of pure noise."""
    X, y = make_classification(n, real, n_informative=real, n_redundant=0, class_sep=0.8, random_state=seed)
    return np.hstack([X, np.random.default_rng(seed).normal(size=(n, noise))]), y


@pytest.mark.slow
def test_noise_columns_are_found_and_the_grid_is_beaten() -> None:
    X, y = noisy(4500, 1, real=6, noise=54)
    train, test = slice(0, 500), slice(500, None)
    model = TunedLogisticRegression(random_state=0).fit(X[train], y[train])
    assert roc_auc_score(np.arange(60) < 6, -model.penalties_) > 0.9
    options = {"scoring": "neg_log_loss", "l1_ratios": (0.0,), "use_legacy_attributes": False}
    grid = LogisticRegressionCV(Cs=20, **options).fit(X[train], y[train])
    assert log_loss(y[test], model.predict_proba(X[test])) < log_loss(y[test], grid.predict_proba(X[test])) - 0.005


@pytest.mark.slow
def test_permuted_labels_teach_nothing() -> None:
    X, y = noisy(1600, 2)
    y = np.random.default_rng(0).permutation(y)
    model = TunedLogisticRegression(random_state=0).fit(X[:600], y[:600])
    assert log_loss(y[600:], model.predict_proba(X[600:])) > np.log(2) - 0.005


@pytest.mark.slow
def test_validation_rows_are_the_given_ones_and_unused_for_scaling() -> None:
    X, y = load_iris(return_X_y=True)
    validation = np.arange(len(y)) % 3 == 0
    model = small().fit(X, y, validation=validation)
    np.testing.assert_allclose(model.feature_mean_, X[~validation].mean(axis=0))
    with pytest.raises(ParameterError, match="boolean vector of 150 rows"):
        small().fit(X, y, validation=validation[:10])


def test_groups_are_not_split() -> None:
    X, y = load_iris(return_X_y=True)
    assert small().fit(X, y, groups=np.arange(len(y)) // 5).score(X, y) > 0.9
    with pytest.raises(ParameterError, match="at least two groups"):
        small().fit(X, y, groups=np.arange(len(y)) // 75)


@pytest.mark.slow
def test_minibatches_reach_what_full_batches_reach() -> None:
    X, y = noisy(6000, 3)
    losses = []
    for method in ("deterministic", "stochastic"):
        model = TunedLogisticRegression(method=method, random_state=0).fit(X[:3000], y[:3000])
        assert model.method_ == method
        losses.append(log_loss(y[3000:], model.predict_proba(X[3000:])))
    assert abs(losses[0] - losses[1]) < 0.005


def test_callback_ends_the_run_and_interrupt_keeps_what_was_reached() -> None:
    X, y = load_iris(return_X_y=True)
    seen: list[dict[str, Any]] = []
    model = TunedLogisticRegression(random_state=0).fit(X, y, callback=lambda r: seen.append(r) or len(seen) == 3)
    assert model.n_iter_ == 3 == len(seen)
    assert [r["step"] for r in seen] == [0, 1, 2]
    assert {"tuning_loss", "validation_loss", "visits", "seconds", "gradient_norm", "code"} < set(seen[0])

    def interrupt(_: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    stopped = TunedLogisticRegression(random_state=0).fit(X, y, callback=interrupt)
    assert stopped.interrupted_
    assert stopped.score(X, y) > 0.9


@pytest.mark.slow
def test_class_balance() -> None:
    X, y = make_classification(1500, 6, weights=[0.95], class_sep=0.7, random_state=0)
    recall = [np.mean(small(class_weight=weight).fit(X, y).predict(X)[y == 1] == 1) for weight in (None, "balanced")]
    assert recall[1] > recall[0] + 0.2
    assert small(scoring="balanced_accuracy").fit(X, y).score(X, y) > 0.8
    with pytest.raises(ParameterError, match="scoring must be the name"):
        small(scoring="no_such_score").fit(X, y)


def test_same_seed_same_model() -> None:
    X, y = load_iris(return_X_y=True)
    np.testing.assert_array_equal(small().fit(X, y).coef_, small().fit(X, y).coef_)


@pytest.mark.slow
def test_where_a_pass_is_long_a_plan_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minibatches where every row costs much, full batches where it costs nothing; never minibatches that mislead."""
    monkeypatch.setattr(tuning_method, "FULL_BATCH_LIMIT", 0.0)
    X, y = noisy(6000, 3)
    found = {}
    for price, near in ((1e-3, 0.3), (1e3, np.inf), (1e3, 0.0)):
        monkeypatch.setattr(tuning_method, "FULL_BATCH_PRICE", price)
        monkeypatch.setattr(tuning_method, "NEAR", near)
        model = TunedLogisticRegression(steps=5, random_state=0).fit(X[:3000], y[:3000])
        found[price, near] = model.method_, model.method_reason_
        assert log_loss(y[3000:], model.predict_proba(X[3000:])) < np.log(2)
    assert found[1e-3, 0.3][0] == "deterministic"
    assert "AID-CG is planned" in found[1e-3, 0.3][1]
    assert found[1e3, np.inf][0] == "stochastic"
    assert "planned to come within 10%" in found[1e3, np.inf][1]
    assert found[1e3, 0.0][0] == "deterministic"
    assert "came no nearer than" in found[1e3, 0.0][1]
