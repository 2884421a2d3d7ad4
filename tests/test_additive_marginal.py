"""Penalised fits and their marginal likelihood: against closed forms and central differences in float64."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import gamma as gamma_law
from scipy.stats import multivariate_normal, norm, poisson

from bilevax.linalg.binned import BinnedColumns
from bilevax.solvers.additive_families import Binomial, Gamma, Gaussian, Multinomial, Poisson
from bilevax.solvers.additive_fit import data, factorised, fit, penalties
from bilevax.solvers.additive_folds import Folds
from bilevax.solvers.additive_marginal import SETTLED, Marginal, covariance, curve_errors, evidence, settled
from bilevax.solvers.additive_search import CENTRE, HIGHEST, LEVEL, Found, Outer, minimise, tied, tune, with_prior
from bilevax.tables.effects import number

FAMILIES = {
    "gaussian": Gaussian(),
    "binomial": Binomial(),
    "poisson": Poisson(),
    "quasi-poisson": Poisson(dispersed=True),
    "gamma": Gamma(),
    "multinomial": Multinomial(3),
}


def rows(family, seed=0, n=80, weights=True):
    """Two columns of 6 and 4 bins with 4 + 3 functions in 3 parts, a third part in both; weights and offsets."""
    rng = np.random.default_rng(seed)
    codes = [rng.integers(0, B, n) for B in (6, 4)]
    bases = [rng.normal(size=(B, k)) for B, k in ((6, 4), (4, 3))]
    X = BinnedColumns(codes, bases)
    part = np.array([0, 0, 1, 1, 2, 2, 2])
    eta = 0.5 * X.dense() @ rng.normal(size=(7, family.scores))
    offset = 0.3 * rng.normal(size=(n, family.scores))
    mean = family.mean(eta + offset)
    if isinstance(family, Gaussian):
        y = mean[:, 0] + 0.7 * rng.normal(size=n)
    elif isinstance(family, Poisson):
        y = rng.poisson(mean[:, 0]).astype(float)
    elif isinstance(family, Binomial):
        y = (rng.random(n) < mean[:, 0]).astype(float)
    elif isinstance(family, Gamma):
        y = rng.gamma(3.0, mean[:, 0] / 3.0)
    else:
        y = np.array([rng.choice(3, p=p) for p in mean])
    weight = rng.integers(0, 4, n).astype(float) if weights else None
    return data(X, y, family, weight, offset), part


def jacobian(f, x, step=1e-5):
    """Central differences, [..., len(x)]."""
    out = [(f(x + step * e) - f(x - step * e)) / (2.0 * step) for e in np.eye(len(x))]
    return np.stack(out, axis=-1)


@pytest.mark.parametrize("name", FAMILIES)
def test_derivatives_of_losses_are_central_differences(name):
    family = FAMILIES[name]
    d, _ = rows(family)
    rng = np.random.default_rng(1)
    s = rng.normal(size=(len(d.y), family.scores))
    h = rng.normal(size=(len(d.y), family.scores, family.scores))
    h = h + h.transpose(0, 2, 1)
    shift = np.zeros(family.scores)
    found = family.losses(s, d.y)
    np.testing.assert_allclose(found.slope, jacobian(lambda t: family.losses(s + t, d.y).value, shift), atol=1e-8)
    np.testing.assert_allclose(found.curvature, jacobian(lambda t: family.losses(s + t, d.y).slope, shift), atol=1e-8)
    bent = jacobian(lambda t: np.sum(h * family.losses(s + t, d.y).curvature, axis=(1, 2)), shift)
    np.testing.assert_allclose(family.bend(s, d.y, h), bent, atol=1e-7)
    first, second = jacobian(lambda p: np.array(family.normaliser(float(p[0]), d.weight)[:2]), np.array([-0.7]))[:, 0]
    np.testing.assert_allclose(family.normaliser(-0.7, d.weight)[1:], [first, second], rtol=1e-6, atol=1e-8)
    assert np.all(found.value >= -1e-12)


@pytest.mark.parametrize(
    ("name", "log_density"),
    [
        ("gaussian", lambda y, s, phi: norm.logpdf(y, s, np.sqrt(phi))),
        ("binomial", lambda y, s, phi: np.log(np.where(y == 1.0, 1.0 / (1.0 + np.exp(-s)), 1.0 / (1.0 + np.exp(s))))),
        ("poisson", lambda y, s, phi: poisson.logpmf(y, np.exp(s))),
        ("gamma", lambda y, s, phi: gamma_law.logpdf(y, 1.0 / phi, scale=phi * np.exp(s))),
    ],
)
def test_losses_are_the_families_likelihoods(name, log_density):
    """-log p(y) = d / phi + c(phi) + what depends on y alone."""
    family = FAMILIES[name]
    d, _ = rows(family)
    one = np.ones(1)

    def rest(seed, phi):
        s = np.random.default_rng(seed).normal(size=(len(d.y), 1))
        constant = family.normaliser(np.log(phi), one)[0]
        return -log_density(d.y, s[:, 0], phi) - family.losses(s, d.y).value / phi - constant

    phis = (0.3, 2.0) if family.dispersed else (1.0, 1.0)
    np.testing.assert_allclose(rest(0, phis[0]), rest(1, phis[1]), atol=1e-10)


def test_classes_are_treated_alike():
    """The softmax of the scores of all classes, a ridge on all their weights: any order of the classes is the same."""
    family = FAMILIES["multinomial"]
    d, part = rows(family)
    penalty = penalties(np.array([0.3, -0.5, 0.1]), part)
    found = fit(d, family, penalty, tolerance=1e-14)
    order = np.array([2, 0, 1])
    Q = family.contrasts
    np.testing.assert_allclose(Q.T @ Q, np.eye(2), atol=1e-15)
    other = fit(
        d._replace(y=order[d.y], offset=d.offset @ Q.T[:, np.argsort(order)] @ Q), family, penalty, tolerance=1e-14
    )
    np.testing.assert_allclose(family.mean(other.scores)[:, order], family.mean(found.scores), atol=1e-8)

    def whole(B):
        t = np.concatenate([np.ones((len(d.y), 1)), d.X.dense()[:, 1:]], axis=1) @ B.reshape(-1, 3) + d.offset @ Q.T
        loss = np.log(np.exp(t).sum(axis=1)) - t[np.arange(len(t)), d.y]
        return d.weight @ loss + 0.5 * penalty @ np.sum(B.reshape(-1, 3) ** 2, axis=1)

    best = minimize(whole, np.zeros(24), method="BFGS", options={"gtol": 1e-7})
    assert found.value == pytest.approx(best.fun, rel=1e-10)
    np.testing.assert_allclose(found.b[1:] @ Q.T, best.x.reshape(-1, 3)[1:], atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fit_is_the_minimum_from_anywhere(name):
    family = FAMILIES[name]
    d, part = rows(family)
    rho = np.array([0.3, -0.5, 1.0])
    penalty = penalties(rho, part)
    found = fit(d, family, penalty, tolerance=1e-16)
    assert found.converged
    X = d.X.dense()
    gradient = X.T @ (d.weight[:, None] * family.losses(found.scores, d.y).slope) + penalty[:, None] * found.b
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    far = fit(d, family, penalties(rho + 5.0, part), tolerance=1e-3)
    again = fit(d, family, penalty, near=far, tolerance=1e-16)
    np.testing.assert_allclose(again.b, found.b, atol=1e-7)
    np.testing.assert_allclose(again.factor, found.factor, atol=1e-6)
    S, P = family.scores, X.shape[1]
    H = np.einsum("i,ia,itu,ib->taub", d.weight, X, family.losses(found.scores, d.y).curvature, X).reshape(S * P, S * P)
    H += np.diag(np.tile(penalty, S))
    np.testing.assert_allclose(found.inverse() @ H, np.eye(S * P), atol=1e-9)
    assert found.log_det() == pytest.approx(np.linalg.slogdet(H)[1])
    repeated = d.rows(np.repeat(np.arange(len(d.y)), d.weight.astype(int)))._replace(
        weight=np.ones(int(d.weight.sum()))
    )
    np.testing.assert_allclose(fit(repeated, family, penalty, tolerance=1e-16).b, found.b, atol=1e-7)


def test_gaussian_rows_have_their_exact_marginal_likelihood():
    """y ~ N(a, phi (I + X diag(1 / penalty) X')); the flat prior of the intercept is one of a large variance."""
    family = FAMILIES["gaussian"]
    d, part = rows(family, weights=False)
    rho = np.array([0.3, -0.5, 1.0])
    found = Marginal(d, family, part)(rho)
    X, large = d.X.dense()[:, 1:], 1e6
    C = np.eye(len(d.y)) + (X / np.exp(rho)[part]) @ X.T + large

    def exact(log_phi):
        phi = np.exp(log_phi)
        law = multivariate_normal(np.zeros(len(d.y)), phi * C)
        # density of N(0, phi large) at 0 is what the flat prior has as 1
        return -law.logpdf(d.y - d.offset[:, 0]) - 0.5 * np.log(2.0 * np.pi * phi * large)

    grid = np.log(found.phi) + np.array([-1e-3, 0.0, 1e-3])
    values = [exact(t) for t in grid]
    assert found.value == pytest.approx(values[1], abs=1e-5)
    assert values[1] < min(values[0], values[2])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_hypergradient_is_the_central_difference(name):
    family = FAMILIES[name]
    d, part = rows(family)
    rho = np.array([0.3, -0.5, 1.0])
    V = Marginal(d, family, part, tolerance=1e-18)
    found = V(rho)
    expected = jacobian(lambda r: V(r).value, rho, 1e-4)
    np.testing.assert_allclose(found.gradient, expected, rtol=1e-6, atol=1e-7)
    assert np.min(np.abs(expected)) > 1e-2
    np.testing.assert_allclose(V(rho + 1.0, found).value, V(rho + 1.0).value, rtol=1e-9)
    if name == "gaussian":
        hessian = jacobian(lambda r: V(r).gradient, rho, 1e-4)
        np.testing.assert_allclose(found.hessian, hessian, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["gaussian", "quasi-poisson", "gamma"])
def test_the_hypergradient_where_the_dispersion_is_a_given_one(name):
    family = FAMILIES[name]
    d, part = rows(family)
    rho = np.array([0.3, -0.5, 1.0])
    V = Marginal(d, family, part, tolerance=1e-18)
    own = V(rho)
    V.least = 0.9 * own.phi
    assert V(rho).value == own.value
    V.least = 3.0 * own.phi
    found = V(rho)
    assert found.phi == pytest.approx(V.least)
    assert found.value > own.value  # at its own phi V is least
    np.testing.assert_allclose(found.gradient, jacobian(lambda r: V(r).value, rho, 1e-4), rtol=1e-6, atol=1e-7)
    if name == "gaussian":
        np.testing.assert_allclose(found.hessian, jacobian(lambda r: V(r).gradient, rho, 1e-4), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["gaussian", "quasi-poisson", "gamma"])
def test_the_spread_is_the_variance_of_the_gradient(name):
    """tr (H^-1 J) / tr (H^-1 X'WX), a row of weight 3 as three rows."""
    family = FAMILIES[name]
    d, part = rows(family)
    V, rho = Marginal(d, family, part, tolerance=1e-18), np.array([0.3, -0.5, 1.0])
    found = V(rho)
    at = np.repeat(np.arange(len(d.y)), d.weight.astype(int))
    X, losses = d.X.dense()[at], family.losses(found.fits[0].scores[at], d.y[at])
    G = X.T @ (losses.curvature[:, 0] * X)
    A = np.linalg.inv(G + np.diag(penalties(rho, part)))
    J = sum(
        np.outer(x, x) * r**2 / (1.0 - W * x @ A @ x)
        for x, r, W in zip(X, losses.slope[:, 0], losses.curvature[:, 0, 0], strict=True)
    )
    assert V.spread(found) == pytest.approx(np.trace(A @ J) / np.trace(A @ G), rel=1e-6)
    # of rows of weight 1/4, of which no leverage exceeds 1
    light = Marginal(d._replace(weight=0.25 * d.weight), family, part)
    assert 0.2 < light.spread(light(rho - 4.0)) / light(rho - 4.0).phi < 20.0


def test_the_spread_is_the_dispersion_where_there_is_one():
    """Of Gaussian rows of variance 2, and of 20 where the one column's leverage is."""
    rng = np.random.default_rng(8)
    codes = np.repeat([0, 1, 2], [20, 20, 960])
    X = BinnedColumns([codes], [np.array([[1.0], [-1.0], [0.0]])])
    for high, expected in ((2.0, 2.0), (20.0, 11.0)):  # the mean of the column's and the intercept's
        scale = np.sqrt(np.where(codes < 2, high, 2.0))
        spreads = []
        for _ in range(40):
            V = Marginal(data(X, scale * rng.normal(size=1000), Gaussian()), Gaussian(), np.zeros(1, int))
            spreads.append(V.spread(V(np.array([-6.0]))))
        assert np.mean(spreads) == pytest.approx(expected, rel=0.12)


def test_counts_whose_variance_rises_faster_do_not_fit_single_rows():
    """Columns of noise, and counts of variance mean + 5 mean^2: V alone meets the largest of them."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(5, 400))
    y = rng.poisson(np.exp(1.0 + 0.8 * x[0]) * rng.gamma(0.2, 5.0, 400)).astype(float)
    effects = [number(str(j), row, smooth=8, coarse=64) for j, row in enumerate(x)]
    X = BinnedColumns([e.codes(row) for e, row in zip(effects, x, strict=True)], [e.basis for e in effects])
    sizes = [part.stop - part.start for effect in effects for part in effect.parts]
    kind = np.tile([0, 1, 2], 5)
    family = Poisson(dispersed=True)
    V = Marginal(data(X, y, family), family, np.repeat(np.arange(15), sizes))
    alone = tune(V, kind)
    V.least = V.spread(V(np.full(15, HIGHEST)))
    # nothing but an intercept: Pearson's
    assert V.least == pytest.approx(np.sum((y - y.mean()) ** 2) / y.mean() / (len(y) - 1), rel=0.05)
    found = tune(V, kind, search=partial(settled, V))
    assert abs(np.log(found.outer.phi / V.spread(found.outer))) <= SETTLED
    assert V.freedom(found.rho, found.outer).sum() < 0.3 * V.freedom(alone.rho, alone.outer).sum()


def test_doubts_of_curves_are_the_posterior_of_gaussian_rows():
    """Cov(f | y) = K - K C^-1 K of the process itself, the intercept's flat prior as one of a large variance."""
    family = FAMILIES["gaussian"]
    d, part = rows(family, weights=False)
    V, rho = Marginal(d, family, part), np.array([0.3, -0.5, 1.0])
    outer = V(rho)
    known = Found(rho, outer._replace(hessian=1e12 * np.eye(3)), 1, True)  # rho without doubt
    Z = d.X.bases[1]
    errors = curve_errors(Z, covariance(V, known)[None, 1:5, 1:5])[:, 0]
    X, lam = d.X.dense()[:, 1:], np.exp(rho)[part]
    C = np.eye(len(d.y)) + (X / lam) @ X.T + 1e7
    K = (Z / lam[:4]) @ X[:, :4].T
    posterior = (Z / lam[:4]) @ Z.T - K @ np.linalg.solve(C, K.T)
    np.testing.assert_allclose(errors, np.sqrt(outer.phi * np.diag(posterior)), rtol=1e-4)
    doubtful = known._replace(outer=outer._replace(hessian=np.eye(3)))
    doubted = curve_errors(Z, covariance(V, doubtful)[None, 1:5, 1:5])[:, 0]
    J = jacobian(lambda r: Z @ Marginal(d, family, part)(r).fits[0].b[1:5, 0], rho)
    np.testing.assert_allclose(doubted**2 - errors**2, np.sum(J**2, axis=1), rtol=1e-4)
    freedom = np.trace(np.linalg.solve(C, (X / lam) @ X.T))
    assert V.freedom(rho, outer).sum() == pytest.approx(freedom, rel=0.02)


def test_evidence_is_a_ratio_of_marginal_likelihoods():
    """log p(y) with a column and without, at one phi: of Gaussian rows, whose law is known."""
    family = FAMILIES["gaussian"]
    d, part = rows(family, weights=False)
    V, rho = Marginal(d, family, part), np.array([0.3, -0.5, 1.0])
    outer = V(rho)
    found = Found(rho, outer, 1, True)
    lam, large = np.exp(rho)[part], 1e5

    def log_p(columns):
        X = d.X.dense()[:, 1:][:, columns]
        C = np.eye(len(d.y)) + (X / lam[columns]) @ X.T + large
        return multivariate_normal(np.zeros(len(d.y)), outer.phi * C).logpdf(d.y - d.offset[:, 0])

    every = np.arange(7)
    for columns in (slice(1, 5), slice(5, 8)):
        expected = log_p(every) - log_p(np.delete(every, np.arange(columns.start, columns.stop) - 1))
        assert evidence(V, found, columns) == pytest.approx(expected, abs=1e-3)
        assert abs(expected) > 0.1


def test_laplace_is_near_the_integral_of_one_weight():
    """One column, one weight, no intercept's doubt to speak of: the integral by quadrature."""
    rng = np.random.default_rng(0)
    family, n = Binomial(), 400
    codes = rng.integers(0, 2, n)
    y = (rng.random(n) < 0.5 + 0.1 * codes).astype(float)
    d = data(BinnedColumns([codes], [np.array([[-1.0], [1.0]])]), y, family)
    rho = np.array([1.0])
    value = Marginal(d, family, np.zeros(1, int))(rho).value
    t = np.linspace(-3.0, 3.0, 601)
    a, b = np.meshgrid(t, t, indexing="ij")
    total = np.zeros_like(a)
    for c in (0, 1):
        s = a + (2 * c - 1) * b
        ones, all_ = y[codes == c].sum(), np.sum(codes == c)
        total += all_ * np.logaddexp(0.0, s) - ones * s
    total += 0.5 * np.exp(rho) * b**2 - 0.5 * rho + 0.5 * np.log(2.0 * np.pi)
    exact = -np.log(np.sum(np.exp(total.min() - total)) * (t[1] - t[0]) ** 2) + total.min()
    assert value == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("name", ["binomial", "multinomial"])
def test_separated_rows_end_by_the_penalty(name):
    family = FAMILIES[name]
    C = family.scores + 1
    y = np.repeat(np.arange(C), 20)
    d = data(BinnedColumns([y], [np.eye(C) - 1.0 / C]), y if C > 2 else y.astype(float), family)
    part = np.zeros(C, int)
    sizes = []
    for rho in (0.0, -4.0, -8.0):
        found = fit(d, family, penalties(np.array([rho]), part))
        assert found.converged
        assert found.steps < 40
        sizes.append(np.abs(found.b).max())
    assert np.all(np.diff(sizes) > 1.0)
    assert sizes[-1] < 20.0


@pytest.mark.parametrize("name", FAMILIES)
def test_the_hypergradient_of_the_folds_is_the_central_difference(name):
    family = FAMILIES[name]
    d, part = rows(family)
    rho = np.array([0.3, -0.5, 1.0])
    fold = np.arange(len(d.y)) % 4 - 1
    E = Folds(d, family, part, fold, tolerance=1e-18)
    found = E(rho)
    expected = jacobian(lambda r: E(r).value, rho, 1e-4)
    np.testing.assert_allclose(found.gradient, expected, rtol=1e-5, atol=1e-7)
    assert np.min(np.abs(expected)) > 1e-3
    if name == "gaussian":
        hessian = jacobian(lambda r: E(r).gradient, rho, 1e-4)
        np.testing.assert_allclose(found.hessian, hessian, rtol=1e-5, atol=1e-7)


def test_the_loss_of_the_folds_is_that_of_ridges():
    """Each row's squared error under the ridge of the others; 1/2 sum of log(2 pi e mean) of them."""
    family = FAMILIES["gaussian"]
    d, part = rows(family, weights=False)
    rho, fold = np.array([0.3, -0.5, 1.0]), np.arange(len(d.y)) % 3
    X, y = d.X.dense(), d.y - d.offset[:, 0]
    errors = np.empty(len(y))
    for k in range(3):
        t = fold != k
        b = np.linalg.solve(X[t].T @ X[t] + np.diag(penalties(rho, part)), X[t].T @ y[t])
        errors[~t] = y[~t] - X[~t] @ b
    expected = 0.5 * len(y) * np.log(2.0 * np.pi * np.e * np.mean(errors**2))
    assert Folds(d, family, part, fold)(rho).value == pytest.approx(expected, rel=1e-10)
    once = Folds(d, family, part, fold, score_weight=(fold == 0).astype(float))(rho)
    assert once.phi == pytest.approx(np.mean(errors[fold == 0] ** 2))


def many_parts(seed=0, n=300, p=6):
    """Columns of one part each, of which the first two have effects."""
    rng = np.random.default_rng(seed)
    codes = [rng.integers(0, 8, n) for _ in range(p)]
    Z = np.linalg.svd(np.eye(8) - 1 / 8)[0][:, :7]
    y = Z[codes[0], 0] * 3.0 + Z[codes[1], 2] * 6.0 + rng.normal(size=n)
    return data(BinnedColumns(codes, [Z] * p), y, Gaussian()), np.repeat(np.arange(p), 7)


@pytest.mark.parametrize("loss", ["marginal", "folds"])
def test_tuned_penalties_are_a_minimum_and_noise_goes(loss):
    d, part = many_parts()
    outer = Marginal(d, Gaussian(), part) if loss == "marginal" else Folds(d, Gaussian(), part, np.arange(len(d.y)) % 5)
    found = tune(outer, np.zeros(6, int), spread=4.0, tolerance=1e-9)
    assert found.converged
    np.testing.assert_allclose(found.outer.gradient, 0.0, atol=1e-3)
    assert max(found.rho[:2]) < min(found.rho[2:]) - 1.0

    def objective(r):
        held = np.minimum(r - CENTRE, 0.0) / LEVEL
        return outer(r).value + 0.5 * np.sum((r - r.mean()) ** 2) / 16.0 + 0.5 * np.sum(held**2)

    assert found.outer.value == pytest.approx(objective(found.rho), rel=1e-9)
    assert found.outer.value - found.outer.prior == pytest.approx(outer(found.rho).value, rel=1e-9)

    best = minimize(objective, np.zeros(6), method="L-BFGS-B", bounds=[(-8.0, 18.0)] * 6)
    assert objective(found.rho) <= best.fun + 1e-5
    quick = tune(outer, np.zeros(6, int), spread=4.0)
    assert objective(quick.rho) <= best.fun + 0.05
    assert quick.evaluations < 25
    loose = tune(outer, np.zeros(6, int), spread=100.0, level=100.0)
    assert np.ptp(loose.rho) > np.ptp(found.rho) + 1.0
    tight = tune(outer, np.array([0, 0, 0, 1, 1, 1]), spread=0.01, level=100.0)
    assert max(np.ptp(tight.rho[:3]), np.ptp(tight.rho[3:])) < 0.1
    assert abs(tight.rho[0] - tight.rho[3]) > 1.0


def test_tied_penalties_are_one():
    d, part = many_parts()
    V, group = Marginal(d, Gaussian(), part), np.array([0, 0, 1, 1, 1, 0])
    theta = np.array([1.0, 2.0])
    shared = tied(V, group)(theta, None)
    np.testing.assert_allclose(shared.gradient, jacobian(lambda t: V(t[group]).value, theta, 1e-4), rtol=1e-6)
    np.testing.assert_allclose(shared.hessian, jacobian(lambda t: tied(V, group)(t, None).gradient, theta), rtol=1e-5)
    found = minimise(tied(V, group), theta)
    assert found.converged
    assert found.rho.shape == (2,)


def test_penalties_stay_within_their_bounds():
    """No signal at all, and no noise at all."""
    d, part = many_parts()
    noise = d._replace(y=np.random.default_rng(1).normal(size=len(d.y)))
    exact = d._replace(y=np.asarray(d.X.dense()[:, 1]))
    for rows_, low, high in ((noise, -8.0, 18.0), (exact, -8.0, 18.0)):
        found = tune(Marginal(rows_, Gaussian(), part), np.arange(6))
        assert np.all((found.rho >= low) & (found.rho <= high))
        assert np.isfinite(found.outer.value)
    assert np.corrcoef(found.outer.fits[0].scores[:, 0], exact.y)[0, 1] > 0.999


def test_jax_is_not_imported():
    code = "import sys, bilevax.tables.effects, bilevax.solvers.additive_folds; "
    code += "assert not {'jax', 'sklearn', 'pandas', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_priors_derivatives_are_central_differences():
    kind, zeros = np.array([0, 1, 0, 1, 1]), np.zeros(5)
    loss = with_prior(lambda rho, near: Outer(0.0, zeros, np.zeros((5, 5)), (), 1.0), kind, spread=1.5, level=0.7)
    rho = CENTRE + np.array([-3.0, -1.0, 2.0, 0.5, -0.2])
    np.testing.assert_allclose(loss(rho, None).gradient, jacobian(lambda r: loss(r, None).value, rho), rtol=1e-7)
    np.testing.assert_allclose(loss(rho, None).hessian, jacobian(lambda r: loss(r, None).gradient, rho), atol=1e-8)


def test_a_curvature_that_vanished_is_factorised():
    G = np.diag([-5e-17, 1.0, 2.0])
    factor = factorised(G, np.zeros(3))
    np.testing.assert_allclose((factor @ factor.T)[1:, 1:], G[1:, 1:], rtol=1e-6)
