"""Sparse rows in the linear estimators: the models of dense rows, nothing densified, penalties that are tied."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.special import softmax
from scipy.stats import norm
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from bilevax import DataError, ParameterError
from bilevax.sklearn import TunedElasticNet, TunedLogisticRegression, TunedRidge, host_fit
from bilevax.sklearn.penalty_ties import log_evidence, log_frequency, tied
from bilevax.solvers.logistic_models import ClassRows, LogisticModels
from bilevax.solvers.ridge_scores import ridge, stacked


def table(classes: int, n: int = 90, p: int = 12) -> tuple[sp.csr_array, np.ndarray]:
    rng = np.random.default_rng(classes)
    X = sp.random_array((n, p), density=0.3, rng=rng, data_sampler=rng.normal, format="csr")
    # columns of many frequencies, and one that is never 0
    keep = rng.uniform(size=X.nnz) < np.linspace(0.1, 1.0, p)[X.indices]
    X.data[~keep] = 0.0
    X.eliminate_zeros()
    X = sp.hstack([X, rng.normal(3.0, 2.0, size=(n, 1))], format="csr")
    scores = 2.0 * X @ rng.normal(size=(p + 1, classes))
    return X, (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("per", ["frequency", "evidence", "class"])
def test_hypergradients_of_ties_are_central_differences_on_sparse_and_dense_rows(classes: int, per: str) -> None:
    X, y = table(classes)
    fold, weight = np.arange(len(y)) % 4 - 1, np.random.default_rng(0).uniform(0.5, 2.0, len(y))
    group, outputs = np.arange(X.shape[1]) % 2, 1 if classes == 2 else classes
    powers = log_frequency(X, weight, group)
    ties = tied(group, classes=outputs, rows=50.0) if per == "class" else tied(group, powers=powers, rows=50.0)
    if per == "evidence":
        known = [ClassRows.of(X[fold != k], y[fold != k], weight[fold != k], classes) for k in range(3)]
        ties = ties._replace(evidence=np.stack([log_evidence(rows, group) for rows in known]))
    lam = np.random.default_rng(1).normal(size=ties.groups)

    def held_out(rows: Any, lam: np.ndarray) -> Any:
        models = LogisticModels(rows, y, fold, 3, classes=classes, weight=weight, held_weight=weight**2)
        models.solve(*ties.penalties(lam), tolerance=1e-10)
        return models.held_out(*ties.penalties(lam))

    sparse, dense = (held_out(rows, lam) for rows in (X, X.toarray()))
    np.testing.assert_allclose(sparse.l2, dense.l2, rtol=1e-6, atol=1e-10)
    h = 1e-4
    for e in np.eye(len(lam)):
        difference = (held_out(X, lam + h * e).value - held_out(X, lam - h * e).value) / (2.0 * h)
        assert e @ ties.slope(sparse) == pytest.approx(difference, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_held_out_loss_is_that_of_the_best_factor_of_the_scores(classes: int) -> None:
    """Beside scikit-learn's models, and the least of a grid of factors with their prior."""
    X, y = table(classes)
    fold, l2 = np.arange(len(y)) % 2, np.full(X.shape[1], 30.0)
    models = LogisticModels(X, y, fold, 2, classes=classes)
    models.solve(l2, l2, 1e-10)
    logs, total = np.linspace(-3.0, 3.0, 6001), 0.0
    for k in range(2):
        known, held = fold != k, fold == k
        reference = LogisticRegression(C=1 / 30.0, tol=1e-10, max_iter=20_000).fit(X[known], y[known])
        scores = np.reshape(reference.decision_function(X[held]), (held.sum(), -1))
        scores = np.hstack([np.zeros_like(scores), scores]) if classes == 2 else scores
        scaled = np.exp(logs)[:, None, None] * scores
        total = total + np.sum(np.logaddexp.reduce(scaled, axis=2) - scaled[:, np.arange(held.sum()), y[held]], axis=1)
    objective = (total + 0.5 * logs**2) / len(y)
    assert models.held_out(l2, l2).value == pytest.approx(objective.min(), rel=1e-6)
    assert models.scale == pytest.approx(np.exp(logs[objective.argmin()]), rel=2e-3)
    assert abs(models.scale - 1.0) > 0.02


def test_evidence_is_the_chi_squared_statistic_of_the_rows_that_train() -> None:
    X, y = table(3)
    group, weight = np.zeros(X.shape[1], int), np.random.default_rng(0).integers(1, 4, len(y))
    found = log_evidence(ClassRows.of(X, y, weight.astype(float), 3), group)
    repeated, labels = np.repeat(X.toarray(), weight, axis=0), np.repeat(y, weight)
    # n r^2, r the correlation
    n = len(labels)
    r = np.array([[np.corrcoef(x, labels == c)[0, 1] for c in range(3)] for x in repeated.T])
    expected = np.log1p(n * r**2)
    np.testing.assert_allclose(found, expected - expected.mean(), rtol=1e-9, atol=1e-9)


def test_no_model_has_the_evidence_of_the_rows_that_it_is_judged_on() -> None:
    """Of noise, it would tell the held-out labels."""
    rng = np.random.default_rng(0)
    X = sp.random_array((150, 400), density=0.05, rng=rng, format="csr")
    model = TunedLogisticRegression("evidence", random_state=0).fit(X, np.arange(150) % 2)
    assert model.history_[-1]["tuning_loss"] > 0.67


def test_priors_are_normal_densities_of_powers_and_of_the_levels_mean() -> None:
    ties = tied(np.array([0, 0, 1]), powers=np.arange(3.0)[:, None], rows=10.0)._replace(usual=2.0)
    lam = np.array([7.0, 9.0, 2.0])
    value, slope = ties.prior(lam)
    expected = norm(0.0, 1.0).logpdf([0.0, 2.0]) @ [1.0, -1.0] + norm(2.0, 6.0).logpdf([2.0, 8.0]) @ [1.0, -1.0]
    assert value == pytest.approx(expected / 10.0)
    np.testing.assert_allclose(slope, np.array([0.5 / 6.0, 0.5 / 6.0, 2.0]) / 10.0)
    np.testing.assert_allclose(ties.penalties(lam)[1], np.exp([7.0, 9.0, 13.0]))


def test_a_single_penalty_sets_the_size_of_scores_and_does_not_vanish_where_classes_are_apart() -> None:
    """Of a dense table with a rare column, too: it has one penalty, and ten folds."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = 10.0 * np.eye(3)[y] @ rng.normal(size=(3, 100)) + rng.normal(size=(60, 100))
    X[:, 0] = rng.uniform(size=60) < 0.1
    model = TunedLogisticRegression(random_state=0).fit(X, y)
    assert np.ptp(model.penalties_) == 0.0
    assert model.score_scale_ == 1.0
    assert model.penalties_[0] > 1e-3
    assert model.score(X, y) == 1.0


def test_sparse_rows_give_the_model_of_dense_ones_and_are_never_made_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """To rounding; at the tolerances as they are, to these."""
    X, y = table(2)
    monkeypatch.setattr(host_fit, "PACE", host_fit.PACE._replace(rough=1e-9, fine=1e-9))
    monkeypatch.setattr(host_fit, "SEARCHED", np.float64)
    monkeypatch.setattr(host_fit, "FINAL", 1e-8)
    dense = TunedLogisticRegression("evidence", random_state=0, steps=2).fit(X.toarray(), y)
    for rows in (X, sp.csc_matrix(X)):
        with monkeypatch.context() as refused:
            for kind, name in itertools.product((sp.csr_array, sp.csc_array, sp.csr_matrix), ("toarray", "todense")):
                refused.setattr(kind, name, lambda *_: pytest.fail("made dense"))
            model = TunedLogisticRegression("evidence", random_state=0, steps=2).fit(rows, y)
        np.testing.assert_allclose(model.coef_, dense.coef_, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(model.penalties_, dense.penalties_, rtol=1e-6)
        np.testing.assert_allclose(model.predict_proba(rows), dense.predict_proba(rows.toarray()), atol=1e-8)
    assert model.validation_loss_ is None
    # products with indices of 64 bits are slower
    assert host_fit._less(sp.csr_array(X), np.arange(X.shape[1]) == 2.0).indices.dtype == np.int32
    assert model.feature_scale_[-1] == pytest.approx(X.toarray()[:, -1].std())
    assert np.all(model.feature_scale_[:-1] == 1.0)


def test_the_model_is_scikit_learns_at_the_penalties_found() -> None:
    X, y = table(3)
    model = TunedLogisticRegression("frequency", random_state=0).fit(X, y)
    Z = (X.toarray() - model.feature_mean_) / model.feature_scale_ / np.sqrt(model.penalties_)
    reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=20_000).fit(Z, y)
    scores = model.score_scale_ * reference.decision_function(Z)
    np.testing.assert_allclose(model.predict_proba(X), softmax(scores, axis=1), atol=2e-3)
    assert model.score_scale_ != 1.0


@pytest.mark.parametrize("classes", [2, 3])
def test_a_ridge_beside_it_is_scikit_learns_and_has_the_weight_of_the_least_held_out_loss(classes: int) -> None:
    X, y = table(classes)
    weight = np.random.default_rng(0).uniform(0.5, 2.0, len(y))
    rows = ClassRows.of(X, y, weight, classes)
    theta = ridge(rows, 3.0, 1e-10)
    reference = Ridge(3.0).fit(X.toarray(), rows.Y, sample_weight=weight)
    np.testing.assert_allclose(theta[:-1], np.reshape(reference.coef_.T, theta[:-1].shape), atol=1e-8)
    np.testing.assert_allclose(theta[-1], reference.intercept_, atol=1e-8)
    parts = [ClassRows.of(X[i::2], y[i::2], weight[i::2], classes) for i in range(2)]
    S, R = ([part.scores(t) for part in parts] for t in (np.random.default_rng(1).normal(size=theta.shape), theta))
    loss, (a, b) = stacked(parts, S, R)

    def at(a: float, b: float) -> float:
        return sum(p.total(a * s + b * r) for p, s, r in zip(parts, S, R, strict=True)) / weight.sum()

    assert loss == pytest.approx(at(a, b))
    assert b > 0.0
    assert min(at(a + u, b + v) for u in (-0.02, 0.0, 0.02) for v in (-0.02, 0.0, 0.02) if a + u >= 0.0) >= loss - 1e-12


def test_scores_of_a_ridge_are_added_where_the_held_out_loss_is_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less the ridge, what is left is the minimiser at the penalties told."""
    monkeypatch.setattr(host_fit, "FINAL", 1e-8)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 12, 700)
    said = (np.arange(60) % 12 == y[:, None]) & (rng.uniform(size=(700, 60)) < 0.3)
    X = sp.csr_array((said | (rng.uniform(size=(700, 60)) < 0.05)).astype(float))
    model = TunedLogisticRegression("evidence", steps=2, random_state=0).fit(X, y)
    alpha, b = model.ridge_
    assert b > 0.1
    rows = ClassRows.of(X, y, np.ones(700), 12)
    theta = np.vstack([model.coef_.T, model.intercept_]) - b * ridge(rows, alpha, host_fit.RESIDUAL)
    theta /= model.score_scale_
    pull = rows.pulled(rows.probabilities(rows.scores(theta)) - rows.Y)
    np.testing.assert_allclose(pull[:-1], -model.penalties_.T * theta[:-1], atol=1e-3)
    np.testing.assert_allclose(pull[-1], 0.0, atol=1e-3)


def test_a_rare_column_that_is_noise_is_penalised_more() -> None:
    """Where frequent columns alone tell, the power of the frequency is negative."""
    rng = np.random.default_rng(0)
    frequent, rare = rng.uniform(size=(600, 5)) < 0.4, rng.uniform(size=(600, 200)) < 0.03
    y = (3.0 * frequent.sum(axis=1) + rng.logistic(size=600) > 6.0).astype(int)
    X = sp.csr_array(np.hstack([frequent, rare]).astype(float))
    model = TunedLogisticRegression("frequency", random_state=0).fit(X, y)
    assert np.min(model.penalties_[5:]) > 3.0 * np.max(model.penalties_[:5])
    single = TunedLogisticRegression("global", random_state=0).fit(X, y)
    assert model.history_[-1]["tuning_loss"] < single.history_[-1]["tuning_loss"] - 0.01


def mixed() -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"colour": rng.choice(["red", "blue", "green"], 80), "size": rng.normal(size=80)})
    return frame, (frame["size"] + (frame["colour"] == "red") + rng.normal(size=80) > 0.3).to_numpy().astype(int)


@pytest.mark.parametrize("kind", [TunedLogisticRegression, TunedRidge, TunedElasticNet])
def test_a_pipeline_with_the_default_one_hot_encoder(kind: Any) -> None:
    frame, y = mixed()
    columns = ColumnTransformer(
        [("words", OneHotEncoder(), ["colour"]), ("numbers", StandardScaler(), ["size"])], sparse_threshold=1.0
    )
    assert sp.issparse(columns.fit_transform(frame))
    assert make_pipeline(columns, kind(random_state=0)).fit(frame, y).score(frame, y) > 0.2


@pytest.mark.parametrize("kind", [TunedLogisticRegression, TunedRidge, TunedElasticNet])
def test_a_sparse_data_frame_is_a_sparse_matrix_with_names(kind: Any) -> None:
    X, y = table(2)
    frame = pd.DataFrame.sparse.from_spmatrix(X).add_prefix("c")
    a, b = (kind(random_state=0).fit(rows, y) for rows in (frame, X))
    np.testing.assert_allclose(a.predict(frame), b.predict(X), atol=1e-8)
    assert a.feature_names_in_[0] == "c0"


def test_a_class_of_one_row_is_in_every_model() -> None:
    X, y = table(2)
    y[0] = 2
    model = TunedLogisticRegression(random_state=0).fit(X, y)
    assert np.isfinite(model.intercept_).all()
    assert np.isfinite(model.history_[-1]["tuning_loss"])
    with pytest.raises(DataError, match="in one fold alone"):
        TunedLogisticRegression().fit(X[:3], [0, 1, 2])


def test_validation_rows_decide_where_every_column_has_a_penalty() -> None:
    X, y = table(2, p=40)
    validation = np.arange(len(y)) % 3 == 0
    model = TunedLogisticRegression("feature", random_state=0, steps=3).fit(X, y, validation=validation)
    first = TunedLogisticRegression("feature", random_state=0, steps=3).fit(X[~validation], y[~validation])
    assert model.validation_loss_ is not None
    assert first.validation_loss_ is not None
    assert model.penalties_.shape == (41,)
    assert model.chosen_step_ == 0 or np.ptp(model.penalties_) > 0.0


def test_what_sparse_rows_are_refused_with() -> None:
    X, y = table(2)
    with pytest.raises(ParameterError, match="stochastic"):
        TunedLogisticRegression(method="stochastic").fit(X, y)
    with pytest.raises(ParameterError, match="run keeps nothing"):
        TunedLogisticRegression(random_state=0).fit(X, y, run="nowhere")
