"""Effects of pairs of columns: purity, prior covariance, the screen's gain against dense algebra, planted pairs."""

import dataclasses
import json

import numpy as np
import pytest

from bilevax.core.errors import DataError
from bilevax.linalg.binned import BinnedColumns
from bilevax.solvers.additive_families import Binomial, Gaussian, Multinomial
from bilevax.solvers.additive_fit import data
from bilevax.solvers.additive_marginal import Marginal
from bilevax.solvers.additive_search import tune
from bilevax.tables import pair_screen
from bilevax.tables.effects import category, number
from bilevax.tables.pair_screen import screened
from bilevax.tables.pairs import Purifier, margin, pair_from_plain, pure_basis


def text(cells):
    out = np.empty(len(cells), object)
    out[:] = cells
    return out


def columns(n=600, seed=0):
    """Correlated numbers, one with gaps, frequent and rare levels, ordered ones; weights of which some are 0."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    gaps = np.where(rng.random(n) < 0.1, np.nan, x + rng.normal(size=n))
    levels = text(
        [f"v{int(abs(3 * z))}" for z in gaps + rng.normal(size=n) if z == z] + [None] * int(np.isnan(gaps).sum())
    )
    ordered = text([("low", "mid", "high")[k] for k in rng.integers(0, 3, n)])
    two = (x + rng.normal(size=n) > 0.5) * 1.0
    weight = rng.integers(0, 3, n).astype(float)
    effects = [
        number("x", x, weight),
        number("gaps", gaps, weight),
        category("levels", levels, weight),
        category("ordered", ordered, weight, ordered=("low", "mid", "high")),
        number("two", two, weight),
    ]
    cells = [x, gaps, levels, ordered, two]
    return effects, [e.codes(c) for e, c in zip(effects, cells, strict=True)], weight


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("a", range(5))
def test_a_pair_is_orthogonal_to_every_function_of_one_column(a, rough):
    effects, codes, weight = columns()
    for b in range(a + 1, 5):
        ma, mb = (margin(effects[j], 20, 20) for j in (a, b))
        shape = len(ma.weight), len(mb.weight)
        ga, gb = ma.group[codes[a]], mb.group[codes[b]]
        N = np.zeros(shape)
        np.add.at(N, (ga, gb), weight)
        Z = pure_basis(ma, mb, N, rough=rough)
        assert Z.shape[1] > 0
        rows = Z[ga.astype(int) * shape[1] + gb]
        assert weight @ np.sum(rows**2, axis=1) / weight.sum() == pytest.approx(1.0, abs=1e-6)
        largest = np.max(np.abs(Z)) * weight.sum()
        for g, G in ((ga, shape[0]), (gb, shape[1])):
            sums = (np.arange(G)[:, None] == g) * weight @ rows
            assert np.max(np.abs(sums)) < 1e-12 * largest
        square = (weight[:, None] * rows).T @ rows
        np.testing.assert_allclose(square, np.diag(np.diag(square)), atol=1e-9 * weight.sum())
        assert np.all(np.diff(np.diag(square)) <= 1e-9)


def test_the_projection_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    N = rng.integers(0, 3, (5, 4)) * rng.random((5, 4))
    N[2] = 0.0  # a group without rows
    N[:2, :2] = N[3:, 2:] = 0.0  # two blocks that do not meet
    F = rng.normal(size=(20, 3))
    A = np.concatenate([np.kron(np.eye(5), np.ones((4, 1))), np.kron(np.ones((5, 1)), np.eye(4))], axis=1)
    root = np.sqrt(N.ravel())[:, None]
    left = root * F - root * A @ np.linalg.lstsq(root * A, root * F)[0]
    np.testing.assert_allclose(root * Purifier(N)(F), left, atol=1e-12)


def levels_of(n, counts, seed=0):
    rng = np.random.default_rng(seed)
    x = [rng.integers(0, k, n).astype(float) for k in counts]
    effects = [number(str(j), row) for j, row in enumerate(x)]
    return x, effects, [e.codes(row) for e, row in zip(effects, x, strict=True)]


def walk(x):
    """A random walk over the values, less its mean over the rows: its covariance on the rows."""
    F = (x[:, None] >= np.arange(1.0, x.max() + 1.0)) * 1.0
    F -= F.mean(axis=0)
    return F @ F.T


def off_margins(x, K):
    """A covariance on the rows, less what functions of one column say, of mean square 1."""
    A = np.concatenate([np.eye(int(row.max()) + 1)[row.astype(int)] for row in x], axis=1)
    M = np.eye(len(K)) - A @ np.linalg.pinv(A)
    out = M @ K @ M
    return out / np.trace(out) * len(K), A


def test_the_prior_is_the_product_of_two_random_walks():
    x, effects, codes = levels_of(80, (5, 4))
    a, b = (margin(effect, 20, 20) for effect in effects)
    N = np.zeros((len(a.weight), len(b.weight)))
    np.add.at(N, (a.group[codes[0]], b.group[codes[1]]), 1.0)
    rows = pure_basis(a, b, N, rough=True)[a.group[codes[0]].astype(int) * len(b.weight) + b.group[codes[1]]]
    np.testing.assert_allclose(rows @ rows.T, off_margins(x, walk(x[0]) * walk(x[1]))[0], atol=1e-10)


def restricted(y, V, A):
    """Log-likelihood of y ~ N(A anything, V), by all contrasts that A does not see."""
    U, s, _ = np.linalg.svd(A)
    C = U[:, np.sum(s > 1e-9 * s[0]) :]
    V = C.T @ V @ C
    return -0.5 * (np.linalg.slogdet(V)[1] + C.T @ y @ np.linalg.solve(V, C.T @ y))


@pytest.mark.parametrize("phi", [1.0, 2.5])
@pytest.mark.parametrize("scores", [1, 2])
def test_the_gain_is_the_restricted_likelihood_ratio(phi, scores):
    """Levels, whose effects are independent; rows y = f + e of curvature B, e ~ N(0, phi B^-1), slopes B (f - y)."""
    rng = np.random.default_rng(1)
    x = [rng.integers(0, k, 90) for k in (5, 4)]
    effects = [category(str(j), text([str(v) for v in row])) for j, row in enumerate(x)]
    codes = [e.codes(text([str(v) for v in row])) for e, row in zip(effects, x, strict=True)]
    K, A = off_margins(x, 1.0 * np.logical_and(*(row[:, None] == row for row in x)))
    B, S = np.array([[2.0, 0.7], [0.7, 1.0]])[:scores, :scores], np.eye(scores)
    noise, prior, A = phi * np.kron(np.linalg.inv(B), np.eye(90)), np.kron(S, K), np.kron(S, A)
    y = np.linalg.cholesky(noise + 2.0 * prior) @ rng.normal(size=90 * scores)
    y += A @ rng.normal(size=A.shape[1]) * 5.0
    slope = -y.reshape(scores, 90).T @ B
    (pair,) = screened(effects, codes, slope, np.tile(B, (90, 1, 1)), np.ones(90), budget=99, phi=phi)

    def ratio(tau):
        return restricted(y, noise + tau * prior, A) - restricted(y, noise, A)

    assert pair.gain > 5.0
    assert pair.gain == pytest.approx(ratio(phi / np.exp(pair.start)), rel=1e-8)
    assert pair.gain == pytest.approx(max(map(ratio, np.geomspace(0.1, 30, 99))), rel=3e-3)


def test_a_row_of_weight_two_is_two_rows():
    effects, codes, weight = columns()
    slope = np.random.default_rng(3).normal(size=(600, 1))
    one = np.ones((600, 1, 1))
    twice = [np.repeat(z, weight.astype(int), axis=0) for z in (slope, one, *codes)]
    found = screened(effects, codes, slope, one, weight, budget=99, level=1e6)
    again = screened(effects, twice[2:], *twice[:2], np.ones(int(weight.sum())), budget=99, level=1e6)
    assert len(found) > 3
    assert [p.columns for p in found] == [p.columns for p in again]
    np.testing.assert_allclose([p.gain for p in found], [p.gain for p in again])
    np.testing.assert_allclose([p.basis.shape for p in found], [p.basis.shape for p in again])


def additive(x, y, family, blocks=None, codes=None):
    """The effects, codes and tuned model of numbers; of blocks, where they are given."""
    blocks = [number(str(j), row, smooth=8, coarse=16) for j, row in enumerate(x)] if blocks is None else blocks
    codes = [e.codes(row) for e, row in zip(blocks, x, strict=True)] if codes is None else codes
    parts = [part for block in blocks for part in block.parts]
    X = BinnedColumns(codes, [block.basis for block in blocks])
    model = Marginal(data(X, y, family), family, np.repeat(np.arange(len(parts)), [p.stop - p.start for p in parts]))
    return blocks, codes, tune(model, np.unique([part.kind for part in parts], return_inverse=True)[1])


PLANTED = {
    "xor": lambda a, b: 1.2 * np.sign(a * b),
    "product": lambda a, b: 1.2 * a * b,
    "corner": lambda a, b: 4.0 * (a > 0.5) * (b > 0.5),
}


@pytest.mark.parametrize("n", [200, 1000, 4000])
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_pair_is_found_first(name, n):
    others = 0
    for seed in range(2):
        rng = np.random.default_rng([seed, n])
        x = rng.normal(size=(6, n))
        y = x[0] + np.sin(2.0 * x[1]) + PLANTED[name](x[1], x[2]) + rng.normal(size=n)
        effects, codes, found = additive(x, y, Gaussian())
        at = found.outer.fits[0].losses
        pairs = screened(effects, codes, at.slope, at.curvature, np.ones(n), budget=99, phi=found.outer.phi)
        assert pairs[0].columns == (1, 2)
        assert pairs[0].names == ("1", "2")
        others += sum(not {1, 2} & {*pair.columns} for pair in pairs)
    assert others == 0


def test_classes_that_are_an_exclusive_or():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 1500))
    y = (rng.random(1500) < 1.0 / (1.0 + np.exp(-x[0] - 1.2 * np.sign(x[1] * x[2])))) * 1.0
    effects, codes, found = additive(x, y, Binomial())
    at = found.outer.fits[0].losses
    (pair,) = screened(effects, codes, at.slope, at.curvature, np.ones(1500), budget=99)
    assert pair.columns == (1, 2)


@pytest.mark.slow_but("100")
@pytest.mark.parametrize("n", [100, 1000])
def test_noise_is_found_as_seldom_as_asked(n):
    """Of 15 tables of 28 pairs each and skewed slopes, a screen at a level of 1 a table keeps 15 pairs, or fewer."""
    kept = 0
    for seed in range(15):
        rng = np.random.default_rng(seed)
        x, slope = rng.normal(size=(8, n)), rng.exponential(size=(n, 1)) - 1.0
        effects = [number(str(j), row) for j, row in enumerate(x)]
        codes = [e.codes(row) for e, row in zip(effects, x, strict=True)]
        kept += len(screened(effects, codes, slope, np.ones((n, 1, 1)), np.ones(n), budget=99, level=1.0))
    assert 0 < kept <= 23  # 15 + 2 sqrt(15)


def test_a_fitted_pair_is_pure_and_predicts():
    rng = np.random.default_rng(0)
    x, new = rng.normal(size=(2, 3, 800))
    y = (x[0] * x[1] > 0.0).astype(int) + (x[2] > 0.5)
    family = Multinomial(3)
    effects, codes, found = additive(x, y, family)
    at = found.outer.fits[0].losses
    (pair,) = screened(effects, codes, at.slope, at.curvature, np.ones(800), budget=40)
    blocks, joint = [*effects, pair], [*codes, pair.codes(codes[0], codes[1])]
    _, _, both = additive(x, y, family, blocks, joint)
    surface = pair.surface(both.outer.fits[0].b[-pair.basis.shape[1] :])
    assert surface.shape == (*pair.weight.shape, 2)
    for axis in (0, 1):
        np.testing.assert_allclose(np.sum(pair.weight[:, :, None] * surface, axis=axis), 0.0, atol=1e-9)
    codes = [e.codes(row) for e, row in zip(effects, new, strict=True)]
    X = BinnedColumns(
        [np.zeros(800, int), *codes, pair.codes(codes[0], codes[1])], [np.ones((1, 1)), *(e.basis for e in blocks)]
    )
    truth = (new[0] * new[1] > 0.0).astype(int) + (new[2] > 0.5)
    assert np.mean(np.argmax(family.mean(X.dot(both.outer.fits[0].b)), axis=1) == truth) > 0.9


def test_budget_known_and_most():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 3000))
    s = np.sign(x[0] * x[1]) + 0.5 * np.sign(x[2] * x[3]) + 0.2 * x[1] * x[2]
    effects = [number(str(j), row) for j, row in enumerate(x)]
    rows = [e.codes(row) for e, row in zip(effects, x, strict=True)], -(s + 0.5 * rng.normal(size=3000))[:, None]
    rest = np.ones((3000, 1, 1)), np.ones(3000)
    found = screened(effects, *rows, *rest, budget=500, phi=1.5)
    assert [pair.columns for pair in found[:3]] == [(0, 1), (2, 3), (1, 2)]
    widths = [pair.basis.shape[1] for pair in found]
    assert sum(widths) > 60
    fewer = screened(effects, *rows, *rest, budget=60, phi=1.5)
    assert 55 <= sum(pair.basis.shape[1] for pair in fewer) <= 60
    assert fewer[0].parts[0].stop == fewer[0].basis.shape[1] < widths[0]
    np.testing.assert_array_equal(fewer[0].basis, found[0].basis[:, : fewer[0].basis.shape[1]])
    assert [p.columns for p in screened(effects, *rows, *rest, budget=500, most=1, phi=1.5)] == [(0, 1)]
    assert (0, 1) not in [p.columns for p in screened(effects, *rows, *rest, budget=500, known={(0, 1)}, phi=1.5)]


def test_the_most_promising_pairs_are_screened_where_there_are_many(monkeypatch):
    monkeypatch.setattr(pair_screen, "TESTED", 4)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 500))
    effects = [number(str(j), row) for j, row in enumerate(x)]
    codes = [e.codes(row) for e, row in zip(effects, x, strict=True)]
    slope = -(x[3] * x[7] + np.sign(x[2] * x[9]) + rng.normal(size=500))[:, None]
    found = screened(effects, codes, slope, np.ones((500, 1, 1)), np.ones(500), budget=99, phi=3.0)
    assert {pair.columns for pair in found} == {(3, 7), (2, 9)}


def test_columns_that_say_the_same_make_no_pair():
    x = np.random.default_rng(0).normal(size=300)
    effects = [number("x", x), number("y", -2.0 * x), number("z", np.ones(300))]
    codes = [e.codes(c) for e, c in zip(effects, (x, -2.0 * x, np.ones(300)), strict=True)]
    slope = np.sign(x - 0.3)[:, None] * x[:, None] ** 2
    assert screened(effects, codes, slope, np.ones((300, 1, 1)), np.ones(300), budget=99, level=1e9) == []


@pytest.mark.parametrize("rough", [False, True])
def test_no_joint_bin_of_columns_that_go_together_is_free(rough):
    """Most rows are where the two are alike, and there the pure effect is small: over it, others are not large."""
    x = np.random.default_rng(0).normal(size=2000)
    cells = x, x + 0.3 * np.random.default_rng(1).standard_t(1.0, size=2000)
    effects = [number(str(j), row) for j, row in enumerate(cells)]
    a, b = (margin(effect, 20, 20) for effect in effects)
    N = np.zeros((len(a.weight), len(b.weight)))
    np.add.at(N, tuple(m.group[e.codes(row)] for m, e, row in zip((a, b), effects, cells, strict=True)), 1.0)
    largest = np.max(np.linalg.norm(pure_basis(a, b, N, rough=rough), axis=1))
    free = Purifier(N)(np.kron(*(m.rough if rough else m.smooth for m in (a, b))))
    square = np.sum(free**2, axis=1)
    assert np.sqrt(np.max(square) / np.average(square, weights=N.ravel())) > 4.5
    assert largest < 3.8


def test_json_and_back():
    effects, codes, weight = columns()
    slope = np.random.default_rng(3).normal(size=(600, 1))
    pair = screened(effects, codes, slope, np.ones((600, 1, 1)), weight, budget=99, level=1e6)[0]
    plain = json.loads(json.dumps(pair.to_plain()))
    back = pair_from_plain(plain)
    for field in dataclasses.fields(pair):
        if field.name not in ("groups", "weight", "basis"):
            assert getattr(back, field.name) == getattr(pair, field.name)
    np.testing.assert_array_equal(back.weight, pair.weight)
    a, b = pair.columns
    np.testing.assert_array_equal(back.codes(codes[a], codes[b]), pair.codes(codes[a], codes[b]))
    assert np.max(pair.codes(codes[a], codes[b])) < len(pair.basis)
    for wrong in (
        {},
        [],
        plain | {"weight": [[1.0]]},
        plain | {"names": ["a"]},
        plain | {"names": [1, 2]},
        plain | {"groups": [[0], [-1]]},
        plain | {"parts": [{}]},
    ):
        with pytest.raises(DataError, match="not the effect of a pair"):
            pair_from_plain(wrong)
