"""A weight per row, its hypergradient and its trap; JAX models of one's own, alone and in LabelCleaner."""

import pickle
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import scipy.special
from flax import linen, nnx
from scipy.special import expit
from sklearn.base import clone
from sklearn.datasets import load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

import bilevax as bx
from bilevax import ParameterError, SolveError
from bilevax.sklearn import JaxClassifier, LabelCleaner, TableEncoder, jax_classifier
from bilevax.sklearn.jax_classifier import distinct
from bilevax.solvers import label_row_weights
from bilevax.solvers.label_row_weights import Linear, Rows, effective_sample_size, hypergradient, mean_loss


def flipped_digits(n, seed=0, share=0.3, trusted=0):
    """Digits of which a share has another label, and rows after them that have not."""
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(y))[: n + trusted]
    X, y = X[rows] / 16.0, y[rows]
    turned = (rng.random(n + trusted) < share) & (np.arange(n + trusted) < n)
    return X, np.where(turned, (y + rng.integers(1, 10, n + trusted)) % 10, y), turned, y


def small(seed=0, n=30, m=12, p=3, C=3):
    rng = np.random.default_rng(seed)
    rows = Rows(rng.normal(size=(n, p)), rng.integers(0, C, n), C, penalty=0.7)
    trusted = Rows(rng.normal(size=(m, p)), rng.integers(0, C, m), C)
    return rows, trusted, rng.normal(size=n), rng


def minimum(rows, weight):
    """By Newton's method from L-BFGS's: differences need all digits."""
    at = rows.fit(rows.zero(), weight)
    for _ in range(2):
        d = rows.adjoint(at, weight, rows.loss(at, weight)[1])
        at = Linear(at.W - d.W, at.b - d.b)
    assert np.abs(rows.loss(at, weight)[1].flat()).max() < 1e-12
    return at


def outer(rows, trusted, lam):
    return mean_loss(trusted, minimum(rows, expit(lam)))[0]


def test_the_hypergradient_is_that_of_minima_found_anew():
    rows, trusted, lam, _ = small()
    found = hypergradient(rows, trusted, minimum(rows, expit(lam)), lam)
    each = np.eye(len(lam))
    central = [(outer(rows, trusted, lam + 1e-4 * e) - outer(rows, trusted, lam - 1e-4 * e)) / 2e-4 for e in each]
    np.testing.assert_allclose(found, central, rtol=1e-6, atol=1e-10)
    sparse = Rows(scipy.sparse.csr_matrix(rows.X), rows.y, 3, 0.7)
    found_of_sparse = hypergradient(sparse, trusted, minimum(sparse, expit(lam)), lam)
    np.testing.assert_allclose(found_of_sparse, found, rtol=1e-8)


def test_the_inner_problem_is_weighted_logistic_regression():
    rows, _, lam, _ = small()
    at, weight = rows.fit(rows.zero(), expit(lam)), expit(lam)
    truth = LogisticRegression(C=1 / 0.7, tol=1e-10, max_iter=1000).fit(rows.X, rows.y, sample_weight=weight)
    np.testing.assert_allclose(np.exp(at.log_p(rows.X)), truth.predict_proba(rows.X), atol=1e-6)
    value = weight.sum() * log_loss(rows.y, truth.predict_proba(rows.X), sample_weight=weight)
    assert rows.loss(at, weight)[0] == pytest.approx(value + 0.35 * np.sum(at.W**2), rel=1e-8)


def test_the_effective_sample_size():
    assert effective_sample_size(np.array([2.0, 2.0, 0.0, 0.0])) == 2.0
    assert effective_sample_size(np.full(7, 0.3)) == pytest.approx(7.0)
    assert effective_sample_size(np.array([1.0, 2.0, 3.0])) == pytest.approx(36 / 14)


def test_weights_find_flipped_labels_and_say_what_they_rest_on(monkeypatch):
    monkeypatch.setattr(label_row_weights, "STEPS", 12)
    X, given, turned, y = flipped_digits(300, trusted=100)
    trusted = np.arange(400) >= 300
    cleaner = LabelCleaner(method="weights", cv=3, random_state=0).fit(X, given, trusted=trusted)
    weight = cleaner.row_weights_
    assert roc_auc_score(turned[:300], -weight[:300]) > 0.9
    assert np.all(weight[trusted] == 1.0)
    rows = cleaner.suspicious_rows_
    assert np.all(np.diff(weight[rows]) >= 0.0)
    assert set(rows) == set(np.flatnonzero(weight < 0.5))
    assert np.all(cleaner.suggested_[np.setdiff1d(np.arange(400), rows)] == given[np.setdiff1d(np.arange(400), rows)])
    assert np.mean(cleaner.suggested_ == y) > np.mean(given == y) + 0.1
    assert cleaner.effective_sample_size_ == pytest.approx(weight[:300].sum() ** 2 / np.sum(weight[:300] ** 2))
    assert cleaner.effective_sample_size_ < 290
    assert abs(cleaner.retrain_gap_) < 1e-5
    assert cleaner.notes_[0] == f"the 300 weights count as {cleaner.effective_sample_size_:,.0f} equal ones"
    assert "trained anew" in cleaner.notes_[1]
    # the model is that of these weights: another library's
    numbers = TableEncoder().fit_transform(X)
    truth = LogisticRegression(C=1 / cleaner.strengths_["penalty"], tol=1e-8, max_iter=2000)
    truth.fit(numbers[~trusted], given[~trusted], sample_weight=weight[~trusted])
    np.testing.assert_allclose(cleaner.predict_proba(X), truth.predict_proba(numbers), atol=1e-4)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cleaner)).predict(X), cleaner.predict(X))


def test_the_gap_tells_a_model_that_is_not_that_of_its_weights(monkeypatch):
    monkeypatch.setattr(label_row_weights, "STEPS", 5)
    X, given, _, _ = flipped_digits(300, trusted=60)
    X, given, sure = X[:300], given[:300], (X[300:], given[300:])
    tight = LabelCleaner(method="weights", cv=3, random_state=0).fit(X, given, trusted=sure)
    step = label_row_weights.Descent.step

    def stale(self):
        at = self.at
        step(self)
        self.at = at

    monkeypatch.setattr(label_row_weights.Descent, "step", stale)
    monkeypatch.setattr(label_row_weights, "_steps", lambda *about: 5)
    loose = LabelCleaner(method="weights", cv=3, random_state=0).fit(X, given, trusted=sure)
    assert abs(tight.retrain_gap_) < 1e-5
    assert loose.retrain_gap_ < -0.05


def test_steps_are_those_of_least_held_out_loss(monkeypatch):
    X, given, _, _ = flipped_digits(60, trusted=40)
    rows, sure = Rows(X[:60], given[:60], 10), Rows(X[60:], given[60:], 10)
    fold = np.arange(40) % 2
    monkeypatch.setattr(label_row_weights, "STEPS", 4)
    monkeypatch.setattr(label_row_weights, "LEAST_SHARE", 1e-4)
    found, losses = label_row_weights.weigh(rows, sure, fold), np.zeros(5)
    under = Rows(rows.X, rows.y, 10, found.penalty)
    for k in range(2):
        told, held = (Rows(sure.X[of], sure.y[of], 10) for of in (fold != k, fold == k))
        run = label_row_weights.Descent(under, told, under.zero())
        for step in range(5):
            losses[step] += mean_loss(held, run.at)[0]
            run.step()
    assert found.steps == losses.argmin() > 0
    assert found.loss < found.equal
    # rows whose labels say nothing of those of the trusted: nothing is to be had
    rng = np.random.default_rng(1)
    wrong = Rows(rng.normal(size=(40, 64)), rng.integers(0, 10, 40), 10)
    assert label_row_weights.weigh(rows, wrong, fold).steps <= 1


def mirrored(lam):
    """softmax(lam), whose derivative in lam is taken for the identity: mirror descent on the simplex."""
    return jax.lax.stop_gradient(jax.nn.softmax(lam) - lam) + lam


def log_losses(w, X, y):
    log_p = jax.nn.log_softmax(X @ w["W"] + w["b"][None])
    return -jnp.take_along_axis(log_p, y[:, None], 1)[:, 0]


def warm(rows, trusted, steps):
    """Weights on the simplex and the model after so many steps of model, multiplier and weights together."""

    def inner(w, lam, batch):
        X, y, i = batch
        return jnp.sum(mirrored(lam)[i] * log_losses(w, X, y)) + 0.5 * rows.penalty * jnp.sum(w["W"] ** 2)

    def outer_loss(w, lam, batch):
        return jnp.mean(log_losses(w, *batch))

    problem = bx.Problem(inner_map=bx.GradientStep(inner, 0.5), outer_loss=outer_loss)
    n, p = rows.X.shape
    w0 = {"W": jnp.zeros((p, rows.C)), "b": jnp.zeros(rows.C)}
    train = bx.Arrays((rows.X, rows.y, np.arange(n)), batch_size=None)
    val = bx.Arrays((trusted.X, trusted.y), batch_size=None)
    soba = bx.SOBA(step_size=0.5, ratio=1.0)
    run = bx.minimize(problem, soba, w0, jnp.zeros(n), train, val, steps=steps, key=jax.random.key(0))
    return np.asarray(jax.nn.softmax(run.lam)), Linear(np.asarray(run.w["W"]), np.asarray(run.w["b"]))


def tight(rows, trusted, steps):
    """The same with the minimiser at every step."""
    lam, at = np.zeros(len(rows.y)), rows.zero()
    for _ in range(steps):
        p = scipy.special.softmax(lam)
        at = rows.fit(at, p, tolerance=1e-6 / len(p))
        lam = lam + 0.5 * rows.along(at, rows.adjoint(at, p, mean_loss(trusted, at)[1]))
    p = scipy.special.softmax(lam)
    return p, rows.fit(at, p, tolerance=1e-6 / len(p))


def trap(classes, n, m, pooled, steps):
    """Of both: effective sample size, loss of the trusted rows, and that of the model trained anew at the weights."""
    X, y = load_digits(n_class=classes, return_X_y=True)
    X = X.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16) / 16.0 if pooled else X / 16.0
    rng = np.random.default_rng(0)
    order = rng.permutation(len(y))[: n + m]
    X, y = X[order], y[order]
    given = np.where(rng.random(n) < 0.5, rng.integers(0, classes, n), y[:n])
    rows, trusted = Rows(X[:n], given, classes, penalty=1e-3), Rows(X[n:], y[n:], classes)
    for run, k in zip((warm, tight), steps, strict=True):
        p, at = run(rows, trusted, k)
        anew = rows.fit(rows.zero(), p, tolerance=1e-8 / n)
        yield effective_sample_size(p), mean_loss(trusted, at)[0], mean_loss(trusted, anew)[0]


def test_weights_and_model_that_move_together_are_a_trap():
    """One step of each at a time: the loss of the trusted rows is as good, and the weights are worth nothing."""
    (few, loss, anew), (many, tight_loss, tight_anew) = trap(5, 100, 60, pooled=True, steps=(2000, 50))
    assert loss < tight_loss + 0.1
    assert few < 0.6 * many
    assert anew - loss > 0.3
    assert abs(tight_anew - tight_loss) < 1e-4


@pytest.mark.slow
def test_the_trap_of_whole_digits():
    """Ivanova and Ablin (2023), 300 rows of which half are relabelled at random, 200 trusted."""
    (few, loss, anew), (many, tight_loss, tight_anew) = trap(10, 300, 200, pooled=False, steps=(3000, 150))
    assert loss < 0.5
    assert few < 0.6 * many
    assert anew - loss > 0.05
    assert abs(tight_anew - tight_loss) < 0.01
    assert tight_anew < 0.3


# Models of one's own


def init(key, X):
    return {"W": 0.1 * jax.random.normal(key, (X.shape[1], 12)), "b": jnp.zeros(12)}


def scores(w, X):
    return X @ w["W"] + w["b"]


PAIR = init, scores


class Own(eqx.Module):
    """Functions are not among its fields, so that it pickles."""

    layers: list
    turn: jax.Array
    name: str

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.layers = [eqx.nn.Linear(64, 24, key=one), eqx.nn.Linear(24, 10, key=two)]
        self.turn, self.name = jnp.arange(64), "own"

    def __call__(self, x):
        return self.layers[1](jax.nn.relu(self.layers[0](x[self.turn])))


class OfLinen(linen.Module):
    normed: bool = False

    @linen.compact
    def __call__(self, X):
        X = linen.Dense(24)(X)
        X = linen.BatchNorm(use_running_average=True)(X) if self.normed else X
        return linen.Dense(10)(jax.nn.relu(X))


class OfNnx(nnx.Module):
    def __init__(self, rngs, dropout=False):
        self.one, self.two = nnx.Linear(64, 24, rngs=rngs), nnx.Linear(24, 10, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs) if dropout else None

    def __call__(self, X):
        return self.two(jax.nn.relu(self.one(X)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Own(jax.random.key(0)),
        OfLinen,
        lambda: OfNnx(nnx.Rngs(0)),
        lambda: PAIR,
    ],
    ids=["equinox", "linen", "nnx", "pair"],
)
def test_a_model_of_ones_own_learns_and_is_not_changed(make):
    X, y, _, _ = flipped_digits(900, share=0.0)
    model = make()
    network = JaxClassifier(model, learning_rate=0.01, max_epochs=25, random_state=0).fit(X[:400], y[:400])
    assert network.score(X[400:], y[400:]) > 0.88
    p = network.predict_proba(X)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    again = clone(network).fit(X[:400], y[:400])
    np.testing.assert_array_equal(again.predict_proba(X), p)
    assert again.model is model
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(network)).predict_proba(X), p)


def test_a_bias_becomes_the_weighted_shares_of_the_classes():
    rng = np.random.default_rng(0)
    X, y, weight = rng.normal(size=(2000, 1)), rng.integers(0, 3, 2000), 0.2 + rng.random(2000)
    weight[y == 2] *= 4.0
    model = JaxClassifier(
        (lambda key, X: jnp.zeros(3), lambda b, X: b[None] + 0.0 * X), learning_rate=0.01, weight_decay=0.0,
        patience=50, random_state=0,
    ).fit(X, y, sample_weight=weight)  # fmt: skip
    shares = np.bincount(y, weight) / weight.sum()
    np.testing.assert_allclose(model.predict_proba(X[:1])[0], shares, atol=0.03)
    held = -np.sum(shares * np.log(shares))
    assert model.validation_loss_ == pytest.approx(held, abs=0.06)


def test_weights_are_repeats_in_any_order():
    X, y = load_wine(return_X_y=True)
    X, rng = (X - X.mean(axis=0)) / X.std(axis=0), np.random.default_rng(0)
    weight = rng.integers(0, 3, 178)
    model = JaxClassifier(PAIR, max_epochs=5, random_state=0)
    p = model.fit(X, y, sample_weight=weight).predict_proba(X)
    rows = rng.permutation(np.repeat(np.arange(178), weight))
    np.testing.assert_array_equal(clone(model).fit(X[rows], y[rows]).predict_proba(X), p)
    # a row that is told twice, as different classes, is one row
    told = distinct(np.array([[1.0, 0.0], [2.0, 1.0], [1.0, -0.0]]), np.array([[0.4, 0.0], [1.0, 0.0], [0.0, 0.6]]))
    assert {(*row, *weights) for row, weights in zip(*told, strict=True)} == {(1, 0, 0.4, 0.6), (2, 1, 1, 0)}


def test_training_stops_where_held_out_rows_say():
    X, y, _, _ = flipped_digits(200, share=0.6)
    many = {"learning_rate": 0.03, "max_epochs": 60, "patience": 4, "random_state": 0}
    model = JaxClassifier(Own(jax.random.key(0)), **many).fit(X, y)
    assert model.n_iter_ < 50
    again = clone(model).set_params(max_epochs=model.n_iter_).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    assert again.validation_loss_ == model.validation_loss_


X_WINE, Y_WINE = load_wine(return_X_y=True)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ((lambda key, X: jnp.zeros((13, 2)), lambda W, X: X @ W), ParameterError, r"shape \(3, 2\) .* give \(3, 3\)"),
        (eqx.nn.Linear(4, 3, key=jax.random.key(0)), ParameterError, "cannot be applied to rows of 13 features"),
        (OfLinen(normed=True), ParameterError, "holds batch_stats beside its parameters"),
        (OfNnx(nnx.Rngs(0), dropout=True), ParameterError, "holds RngCount, RngKey beside its parameters"),
        ((lambda key, X: {}, lambda w, X: X), ParameterError, "model has no parameters"),
        (OfLinen, ParameterError, "must be an equinox or flax module or a pair"),
        (LogisticRegression(), ParameterError, "must be an equinox or flax module or a pair"),
    ],
)
def test_models_that_cannot_be_trained_are_refused(model, error, words):
    with pytest.raises(error, match=words) as caught:
        JaxClassifier(model).fit(X_WINE, Y_WINE)
    assert "\n" not in str(caught.value)


def test_a_training_that_diverges_is_told():
    model = (lambda key, X: jnp.ones((13, 3), jnp.float32), lambda W, X: X @ W)
    with pytest.raises(SolveError, match="never a number; scale the columns"):
        JaxClassifier(model, max_epochs=2, patience=1).fit(1e38 * X_WINE, Y_WINE)


@pytest.mark.slow
def test_a_network_stands_in_and_is_about_as_good_as_the_linear_model():
    """On digits, which are nearly linear. Its settings were chosen on other rows."""
    areas = []
    for seed in (0, 3, 4):
        X, given, turned, y = flipped_digits(300, seed, share=0.25, trusted=100)
        network = eqx.nn.MLP(64, 10, 32, 1, key=jax.random.key(0))
        own = JaxClassifier(network, learning_rate=0.01, weight_decay=0.1, random_state=0)
        cleaners = [clone(LabelCleaner(model, cv=3, random_state=0)) for model in (own, "linear")]
        for cleaner in cleaners:
            cleaner.fit(X, given, trusted=np.arange(400) >= 300)
        areas.append([roc_auc_score(turned[:300], of.wrong_label_probability_[:300]) for of in cleaners])
        # more than half of the mistakes are mended
        assert np.mean(cleaners[0].suggested_ != y) < 0.5 * np.mean(given != y)
    mean, linear_mean = np.mean(areas, axis=0)
    assert mean > linear_mean - 0.02
    assert mean > 0.95


class Brief(JaxClassifier):
    def __init__(self, model, *, random_state=None):
        super().__init__(model, max_epochs=4, random_state=random_state)


def test_a_bare_module_is_wrapped_and_the_cleaner_pickles(monkeypatch):
    monkeypatch.setattr(jax_classifier, "JaxClassifier", Brief)
    X, given, _, _ = flipped_digits(120, trusted=40)
    trusted = np.arange(160) >= 120
    cleaner = LabelCleaner(OfLinen(), cv=3, random_state=0).fit(X, given, trusted=trusted)
    assert isinstance(cleaner.model_, Brief)
    # every pixel in its place, also those that are blank in all rows
    frame, spread = pd.DataFrame(X, columns=[f"x{j}" for j in range(64)]), X.std(axis=0)
    placed = (X - X.mean(axis=0)) / np.where(spread > 0.0, spread, 1.0)
    np.testing.assert_allclose(cleaner.encoder_.transform(frame), placed, atol=1e-12)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cleaner)).predict(X), cleaner.predict(X))
    with pytest.raises(ParameterError, match="or a JAX model"):
        LabelCleaner(OfLinen, cv=3).fit(X, given)


def test_what_weights_need_and_what_they_have_not(monkeypatch):
    monkeypatch.setattr(label_row_weights, "STEPS", 2)
    X, y = X_WINE[:, :3], Y_WINE
    with pytest.raises(ParameterError, match="needs trusted rows, whose loss the weights go down"):
        LabelCleaner(method="weights").fit(X, y)
    some = np.arange(178) % 4 == 0
    with pytest.raises(ParameterError, match="a linear model of its own"):
        LabelCleaner("additive", method="weights").fit(X, y, trusted=some)
    with pytest.raises(ValueError, match="method"):
        LabelCleaner(method="posterior").fit(X, y, trusted=some)
    cleaner = LabelCleaner(cv=3, random_state=0).fit(X, y, trusted=some)
    assert hasattr(cleaner, "noise_matrix_")
    cleaner.set_params(method="weights").fit(X, y, trusted=some)
    for name in ("wrong_label_probability_", "posterior_", "noise_matrix_", "noise_interval_", "expected_wrong_"):
        assert not hasattr(cleaner, name)
    with pytest.raises(ParameterError, match="clean needs a noise matrix"):
        cleaner.clean(X, y)
    found = LabelCleaner(method="weights", cv=3, random_state=0).fit(X, y, trusted=some)
    found.set_params(method="noise_matrix").fit(X, y, trusted=some)
    assert not hasattr(found, "retrain_gap_")
    assert not hasattr(found, "effective_sample_size_")


def test_jax_is_imported_by_its_own_models_alone():
    code = (
        "import sys, numpy as np; from sklearn.datasets import load_wine\n"
        "from bilevax.sklearn import JaxClassifier, LabelCleaner\n"
        "X, y = load_wine(return_X_y=True); X = X[:, :2]; JaxClassifier((len, len))\n"
        "LabelCleaner(method='weights', cv=3).fit(X, y, trusted=np.arange(178) % 4 == 0)\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Trusting(LabelCleaner):
    """Trusts every second row of a class, so that scikit-learn's checks, which know of no trusted rows, can be run."""

    def fit(self, X, y, trusted=None):
        labels = np.ravel(np.asarray(y)).astype(str)
        trusted = np.zeros(len(labels), bool)
        trusted[np.argsort(labels, kind="stable")[::2]] = True
        return super().fit(X, y, trusted=trusted)


@pytest.mark.slow
@parametrize_with_checks([JaxClassifier(PAIR, max_epochs=30, learning_rate=0.03, random_state=0)])
def test_scikit_learn_contract_of_networks(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([Trusting(method="weights", cv=3, random_state=0)])
def test_scikit_learn_contract_of_weights(estimator, check):
    check(estimator)
