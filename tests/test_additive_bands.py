"""Simulated curves: how often bands cover them, and which columns' evidence is for them."""

import numpy as np
import pytest

from bilevax.linalg.binned import BinnedColumns
from bilevax.sklearn import TunedAdditiveClassifier, TunedAdditiveRegressor
from bilevax.solvers.additive_families import Binomial, Gaussian, Poisson
from bilevax.solvers.additive_fit import data
from bilevax.solvers.additive_marginal import Marginal, covariance, curve_errors, evidence
from bilevax.solvers.additive_search import tune
from bilevax.tables.effects import number, resolution

CURVES = {
    "smooth": lambda x: np.sin(3.0 * x),
    "steps": lambda x: 1.0 * (x > 0.3) - 0.6 * (x > -0.8),
    "line": lambda x: 0.7 * x,
    "bump": lambda x: np.exp(-8.0 * (x - 0.5) ** 2),
}


def simulated(family, n, noise, seed):
    """Coverage of 95 % bands at the rows, by curve, and the evidence for every column."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2.0, 2.0, (len(CURVES) + noise, n))
    true = np.array([f(row) for f, row in zip(CURVES.values(), x, strict=False)])
    s = true.sum(axis=0)
    if isinstance(family, Gaussian):
        y = s + 0.7 * rng.normal(size=n)
    elif isinstance(family, Poisson):
        y = rng.poisson(np.exp(s)).astype(float)
    else:
        y = (rng.random(n) < 1.0 / (1.0 + np.exp(-s))).astype(float)
    smooth, coarse = resolution(len(x), 0, min(1500, 2 * n))
    effects = [number(str(j), row, smooth=smooth, coarse=coarse) for j, row in enumerate(x)]
    kinds = [part.kind for effect in effects for part in effect.parts]
    sizes = [part.stop - part.start for effect in effects for part in effect.parts]
    codes = [effect.codes(row) for effect, row in zip(effects, x, strict=True)]
    X = BinnedColumns(codes, [effect.basis for effect in effects])
    model = Marginal(data(X, y, family), family, np.repeat(np.arange(len(kinds)), sizes))
    found = tune(model, np.unique(kinds, return_inverse=True)[1])
    C, covered, evidences = covariance(model, found), [], []
    for j, Z in enumerate(X.bases):
        columns = slice(1 + X.starts[j], 1 + X.starts[j + 1])
        evidences.append(evidence(model, found, columns))
        if j < len(CURVES):
            error = (Z @ found.outer.fits[0].b[columns])[codes[j], 0] - true[j] + true[j].mean()
            covered.append(np.mean(np.abs(error) <= 1.96 * curve_errors(Z, C[None, columns, columns])[codes[j], 0]))
    return covered, evidences


@pytest.mark.slow
def test_bands_cover_and_noise_has_no_evidence():
    covered, evidences = zip(*(simulated(Gaussian(), 500, 4, seed) for seed in range(4)), strict=True)
    assert 0.9 <= np.mean(covered) <= 0.99
    assert np.min(np.array(evidences)[:, :4]) > 5.0
    assert np.mean(np.array(evidences)[:, 4:] < 1.0) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "n"), [(Gaussian(), 500), (Poisson(), 500), (Gaussian(), 2000), (Binomial(), 2000), (Poisson(), 2000)]
)
def test_bands_cover_in_every_family(family, n):
    """Of 500 rows of two classes and 20 noise columns bands cover .80: a curve without evidence has hardly a band."""
    covered, evidences = zip(*(simulated(family, n, 20, seed) for seed in range(5)), strict=True)
    assert 0.9 <= np.mean(covered) <= 0.98
    assert np.mean(np.array(evidences)[:, 4:] < 1.0) >= 0.8
    assert np.mean(np.array(evidences)[:, :4] >= 1.0) >= 0.95


def table(family, n, seed, noise=20):
    """Rows of CURVES and noise, with the true curve of each column."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2.0, 2.0, (len(CURVES) + noise, n))
    true = np.array([f(row) for f, row in zip(CURVES.values(), x, strict=False)])
    s = true.sum(axis=0)
    y = {
        "gaussian": lambda: s + 0.7 * rng.normal(size=n),
        "poisson": lambda: rng.poisson(np.exp(s)).astype(float),
        "binary": lambda: (rng.random(n) < 1.0 / (1.0 + np.exp(-s))).astype(int),
    }[family]()
    return x.T, y, true


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "n"), [("gaussian", 500), ("gaussian", 5000), ("poisson", 1000), ("binary", 2000), ("binary", 5000)]
)
def test_the_estimators_bands_and_dropped_columns(family, n):
    """The choice included."""
    covered, dropped, lost = [], [], []
    for seed in range(3):
        X, y, true = table(family, n, seed)
        model = TunedAdditiveClassifier(random_state=0) if family == "binary" else TunedAdditiveRegressor(
            family, random_state=0
        )  # fmt: skip
        model.fit(X, y)
        for j, f in enumerate(true):
            curve, bins = model.curves_[f"x{j}"], model.model_.effects[j].codes(X[:, j])
            inside = (curve.lower[bins] <= f - f.mean()) & (f - f.mean() <= curve.upper[bins])
            covered.append(inside.mean())
        out = {int(name[1:]) for name in model.drop_columns_}
        dropped.append(sum(j >= len(CURVES) for j in out) / 20)
        lost.append(sum(j < len(CURVES) for j in out) / len(CURVES))
    print(family, n, np.mean(covered), np.mean(dropped), np.mean(lost))
    assert 0.9 <= np.mean(covered) <= 0.98
    assert np.mean(dropped) >= 0.8
    assert np.mean(lost) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gaussian", "binary"])
def test_another_seed_changes_no_loss_by_more_than_its_standard_error(family):
    X, y, _ = table(family, 1300, 9, noise=4)
    train, test = slice(0, 400), slice(400, None)
    losses = []
    for seed in range(3):
        if family == "binary":
            model = TunedAdditiveClassifier(random_state=seed).fit(X[train], y[train])
            losses.append(-np.log(model.predict_proba(X[test])[np.arange(900), y[test]]))
        else:
            model = TunedAdditiveRegressor(random_state=seed).fit(X[train], y[train])
            losses.append((y[test] - model.predict(X[test])) ** 2)
    error = np.std(losses[0]) / np.sqrt(900)
    assert np.ptp(np.mean(losses, axis=1)) < error
