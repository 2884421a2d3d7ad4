"""Models of bounded size: shared penalties against the whole model, and what is left out of it."""

import numpy as np
import pytest

from bilevax.solvers import additive_shared as shared
from bilevax.solvers.additive_blocks import Blocks
from bilevax.solvers.additive_families import Binomial, Gaussian, Multinomial
from bilevax.solvers.additive_fit import data
from bilevax.solvers.additive_marginal import Marginal
from bilevax.solvers.additive_search import Found, tune
from bilevax.solvers.additive_shared import additive_model, outer_loss
from bilevax.tables.effects import category, number


def table(n, p, seed=0):
    """p columns of numbers, the last a category: effects and codes."""
    rng = np.random.default_rng(seed)
    x = [rng.normal(size=n) for _ in range(p - 1)]
    x[0][::7] = np.nan
    level = rng.choice(["a", "b", "c"], n).astype(object)
    effects = [number(f"x{j}", v, smooth=5, coarse=1) for j, v in enumerate(x)] + [category("l", level)]
    return effects, [e.codes(v) for e, v in zip(effects, [*x, level], strict=True)], x


def whole(effects, codes):
    """All parts with penalties of their own, whatever there is room for; those of a kind together."""
    t = shared._Table(effects, codes, shared.KINDS)
    return t.model(np.ones(len(t.parts), bool), 10**9)[0], t


def test_where_there_is_room_every_part_has_its_penalty():
    effects, codes, _ = table(200, 4)
    model = additive_model(effects, codes, np.zeros(200), Gaussian())
    assert model.note == ""
    np.testing.assert_array_equal(
        model.X.dense(), np.concatenate([e.basis[c] for e, c in zip(effects, codes, strict=True)], axis=1)
    )
    np.testing.assert_array_equal(model.back.toarray(), np.eye(model.X.shape[1]))
    assert model.parts == tuple(
        (j, part.kind, m) for m, (j, part) in enumerate((j, q) for j, e in enumerate(effects) for q in e.parts)
    )
    names = [kind for _, kind, _ in model.parts]
    assert all((model.kind[a] == model.kind[b]) == (names[a] == names[b]) for a in range(8) for b in range(8))
    linear = additive_model(effects, codes, np.zeros(200), Gaussian(), kinds=("linear",))
    assert linear.X.shape[1] == 3
    assert linear.back.shape == (model.X.shape[1], 3)


def test_a_penalty_takes_rows():
    effects, codes, x = table(60, 9)
    parts = 8 + 8 + 2  # linear and smooth; levels, missing
    assert sum(len(e.parts) for e in effects) == parts
    for classes, apart in ((2, False), (3, True)):
        family = Multinomial(classes)
        model = additive_model(effects, codes, (x[1] > 0.0).astype(int), family)
        assert (len(model.kind) == parts and not model.note) == apart
    assert additive_model(effects, codes, x[1], Gaussian(), kinds=("linear", "smooth")).note.startswith("there are too")
    assert additive_model(effects, codes, x[1], Gaussian(), kinds=("linear",)).note == ""


def alike(model, whole_model):
    """The penalty in a shared model of each one of the whole model."""
    return np.array([m for _, _, m in model.parts])


def test_shared_penalties_are_those_of_the_whole_model():
    """No directions left out: the same marginal likelihood, gradient and curves, of 350 weights on 60 rows."""
    effects, codes, x = table(60, 50)
    rng = np.random.default_rng(1)
    y = x[1] + np.sin(3.0 * x[2]) + 0.5 * rng.normal(size=60)
    family = Gaussian()
    model = additive_model(effects, codes, y, family, apart=False)
    assert model.X.shape[1] <= 59 * 2 + 4
    assert model.note.endswith("0 with strong effects have one of their own, the others of a kind share one")
    everything, _ = whole(effects, codes)
    assert everything.X.shape[1] > 250
    group = alike(model, everything)
    few = Marginal(data(model.X, y, family), family, model.part, tolerance=1e-14)
    all_ = Marginal(data(everything.X, y, family), family, everything.part, tolerance=1e-14)
    theta = np.array([0.5, 1.0, 1.5, 0.2])
    one, other = few(theta), all_(theta[group])
    assert one.value == pytest.approx(other.value, rel=1e-9)
    sums = np.array([other.gradient[group == g].sum() for g in range(4)])
    np.testing.assert_allclose(one.gradient, sums, atol=1e-6)
    curves = model.curves(one.fits[0].b), everything.curves(other.fits[0].b)
    for f, g in zip(*curves, strict=True):
        np.testing.assert_allclose(f, g, atol=1e-7)
    scores = one.fits[0].b[0] + sum(f[c] for f, c in zip(curves[0], codes, strict=True))
    np.testing.assert_allclose(scores, one.fits[0].scores, atol=1e-10)


@pytest.mark.parametrize("family", [Gaussian(), Multinomial(3)], ids=["one score", "classes"])
def test_chances_are_those_of_the_whole_model(family):
    """With A of all columns, exp(rho) |b_j|^2 / phi has the moments of M_j = I - exp(rho) A_jj."""
    effects, codes, x = table(60, 20)
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 60) if family.scores > 1 else x[1] + rng.normal(size=60)
    t = shared._Table(effects, codes, shared.KINDS)
    model, groups = t.model(np.zeros(len(t.parts), bool), 1000)
    everything, _ = whole(effects, codes)
    group = alike(model, everything)
    kind, theta = Blocks if family.scores > 1 else Marginal, np.array([0.5, 1.0, 1.5, 0.2])
    loss = kind(data(model.X, y, family), family, model.part, tolerance=1e-16)
    found = shared._chances(t, groups, loss, Found(theta, loss(theta), 1, True))
    big = kind(data(everything.X, y, family), family, everything.part, tolerance=1e-16)(theta[group])
    Q = family.contrasts if family.scores > 1 else np.eye(1)
    b, A = big.fits[0].b @ Q.T, big.fits[0].inverse().reshape(len(Q), len(big.fits[0].b), -1)
    for m in range(len(t.parts)):
        at, lam = 1 + np.flatnonzero(everything.part == m), np.exp(theta[group[m]])
        M = [np.eye(len(at)) - lam * A_c[np.ix_(at, at)] for A_c in A]
        mean, variance = sum(np.trace(W) for W in M), 2.0 * sum(np.trace(W @ W) for W in M)
        z = lam * np.sum(b[at] ** 2) / big.phi * 2.0 * mean / variance
        expected = shared.gamma.sf(z / 2.0, mean**2 / variance)
        assert found[m] == pytest.approx(expected, rel=1e-4)


def test_strong_effects_stand_apart():
    effects, codes, x = table(120, 40)
    rng = np.random.default_rng(1)
    y = 2.0 * x[3] + 2.0 * np.abs(x[4]) + rng.normal(size=120)
    model = additive_model(effects, codes, y, Gaussian())
    count = np.bincount([m for _, _, m in model.parts])
    alone = {(j, kind) for j, kind, m in model.parts if count[m] == 1 and kind in ("linear", "smooth")}
    assert {(3, "linear"), (4, "smooth")} <= alone
    assert len(alone) <= 4
    assert f"{len(alone)} with strong effects" in model.note
    loss = outer_loss(data(model.X, y, Gaussian()), Gaussian(), model.part)
    found = tune(loss, model.kind, tolerance=0.1)
    curves = model.curves(found.outer.fits[0].b)
    size = [float(np.sqrt(np.mean(f[c] ** 2))) for f, c in zip(curves, codes, strict=True)]
    assert sorted(np.argsort(size)[-2:]) == [3, 4]


def test_noise_stands_apart_once_at_most():
    apart = []
    for seed in range(8):
        effects, codes, _ = table(40, 20, seed)
        y = (np.random.default_rng(seed).random(40) < 0.5).astype(float)
        model = additive_model(effects, codes, y, Binomial())
        apart.append(len(model.kind) - 4)
    assert np.mean(apart) <= 2.0


@pytest.mark.parametrize("family", [Binomial(), Multinomial(5)], ids=["one score", "classes"])
def test_the_size_is_bounded(family):
    """A budget below the number of linear columns: what is left are the directions of most variance."""
    effects, codes, x = table(100, 60)
    y = np.digitize(x[1], [-0.8, -0.2, 0.3, 0.9]) if family.scores > 1 else (x[1] > 0.0).astype(float)
    model = additive_model(effects, codes, y, family, budget=40)
    assert model.X.shape[1] <= 40
    held = {kind for _, kind, m in model.parts if m < 0}
    assert "smooth" in held  # linear parts come first
    assert "linear" not in held
    found = tune(outer_loss(data(model.X, y, family), family, model.part), model.kind, tolerance=0.1)
    # far better than the classes' frequencies
    assert family.losses(found.outer.fits[0].scores, y).value.mean() < 0.7 * np.log(family.scores + 1.0)


def test_errors_are_those_of_the_weights():
    effects, codes, x = table(60, 30)
    y = (x[1] > 0.0).astype(float)
    model = additive_model(effects, codes, y, Binomial(), apart=False)
    P = model.X.shape[1]
    R = np.random.default_rng(0).normal(size=(2, 1 + P, 1 + P))
    V = R @ R.swapaxes(1, 2)
    errors = model.errors(V)
    Z = np.zeros((sum(len(e.basis) for e in effects), model.back.shape[0]))
    row = column = 0
    for e in effects:
        Z[row : row + len(e.basis), column : column + e.basis.shape[1]] = e.basis
        row, column = row + len(e.basis), column + e.basis.shape[1]
    W = Z @ model.back.toarray()
    expected = np.sqrt([np.diag(W @ V_c[1:, 1:] @ W.T) for V_c in V]).T
    np.testing.assert_allclose(np.concatenate(errors), expected, atol=1e-9)


def test_the_engine_goes_by_the_number_of_weights():
    effects, codes, _ = table(100, 20)
    for classes, kind in ((2, Marginal), (3, Marginal), (9, Blocks)):
        family = Multinomial(classes) if classes > 2 else Binomial()
        y = np.arange(100) % classes
        model = additive_model(effects, codes, y, family, kinds=("linear", "smooth"))
        assert isinstance(outer_loss(data(model.X, y, family), family, model.part), kind)
