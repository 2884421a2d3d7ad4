"""Simulated curves: how often bands cover them, and which columns' evidence is for them."""

import numpy as np
import pytest

from bilevax.linalg.binned import BinnedColumns
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
            covered.append(np.mean(np.abs(error) <= 1.96 * curve_errors(Z, columns, C, np.eye(1))[codes[j], 0]))
    return covered, evidences


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
