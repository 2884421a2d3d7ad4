"""The marginal likelihood class by class: against its formula on dense matrices, differences, and the exact engine."""

import numpy as np
import pytest

from bilevax.core.errors import ParameterError
from bilevax.linalg.binned import BinnedColumns
from bilevax.solvers.additive_blocks import Blocks
from bilevax.solvers.additive_families import Binomial, Gaussian, Multinomial
from bilevax.solvers.additive_fit import data, fit, penalties
from bilevax.solvers.additive_marginal import Marginal, covariance
from bilevax.solvers.additive_search import Found, tune
from bilevax.solvers.preconditioned import conjugate_gradients

RHO = np.array([0.3, -0.5, 1.0])


def rows(family, *, histograms=None, n=90, seed=0):
    """Two columns of 6 and 4 bins with 4 + 3 functions in 3 parts, the first in both; weights and offsets."""
    rng = np.random.default_rng(seed)
    codes = [rng.integers(0, B, n) for B in (6, 4)]
    X = BinnedColumns(codes, [rng.normal(size=(B, k)) for B, k in ((6, 4), (4, 3))], histograms=histograms)
    part = np.array([0, 0, 1, 1, 2, 2, 0])
    offset = 0.3 * rng.normal(size=(n, family.scores))
    p = family.mean(0.7 * X.dense() @ rng.normal(size=(7, family.scores)) + offset)
    y = np.array([rng.choice(p.shape[1], p=q) for q in p]) if p.shape[1] > 1 else 1.0 * (rng.random(n) < p[:, 0])
    return data(X, y, family, rng.integers(0, 4, n).astype(float), offset), part


def hessian(d, family, found, penalty):
    """H on dense matrices, [1 + P, S, 1 + P, S]."""
    X, W = d.X.dense(), family.losses(found.scores, d.y).curvature
    H = np.einsum("i,ia,itu,ib->atbu", d.weight, X, W, X)
    return H + np.einsum("a,ab,tu->atbu", penalty, np.eye(len(penalty)), np.eye(family.scores))


@pytest.mark.parametrize("histograms", [True, False])
def test_the_value_is_that_of_the_formula(histograms):
    family = Multinomial(4)
    d, part = rows(family, histograms=histograms)
    outer = Blocks(d, family, part, tolerance=1e-18)(RHO)
    penalty = penalties(RHO, part)
    exact = fit(d, family, penalty, tolerance=1e-18)
    np.testing.assert_allclose(outer.fits[0].b, exact.b, atol=1e-6)
    X, p = d.X.dense(), family.mean(exact.scores)
    value = exact.value - 2.0 * np.log(2.0 * np.pi)
    for c in range(4):
        B = X.T @ ((d.weight * p[:, c] * (1.0 - p[:, c]))[:, None] * X) + np.diag(penalty)
        value += 0.5 * np.linalg.slogdet(B)[1] - 0.5 * np.sum(RHO[part])
    assert outer.value == pytest.approx(value, rel=1e-10)


def test_the_gradient_is_that_of_the_value():
    family = Multinomial(4)
    d, part = rows(family)
    loss = Blocks(d, family, part, tolerance=1e-18)
    at = loss(RHO)
    step = 1e-3
    differences = [(loss(RHO + step * e, at).value - loss(RHO - step * e, at).value) / (2.0 * step) for e in np.eye(3)]
    np.testing.assert_allclose(at.gradient, differences, atol=1e-6)
    assert np.min(np.abs(at.gradient)) > 0.05
    # its Hessian is one, but for what bends
    slopes = [(loss(RHO + step * e, at).gradient - loss(RHO - step * e, at).gradient) / (2.0 * step) for e in np.eye(3)]
    np.testing.assert_allclose(at.hessian, slopes, atol=0.35 * np.abs(slopes).max())


def test_of_two_classes_it_is_the_exact_one():
    family = Binomial()
    d, part = rows(family)
    blocks, exact = Blocks(d, family, part, tolerance=1e-18), Marginal(d, family, part, tolerance=1e-18)
    one, other = blocks(RHO), exact(RHO)
    assert one.value == pytest.approx(other.value, rel=1e-10)
    np.testing.assert_allclose(one.gradient, other.gradient, atol=1e-7)
    np.testing.assert_allclose(one.hessian, other.hessian, atol=1e-7)
    np.testing.assert_allclose(blocks.freedom(RHO, one), exact.freedom(RHO, other), atol=1e-7)
    kind = np.array([0, 0, 1])
    found, same = tune(blocks, kind), tune(exact, kind)
    np.testing.assert_allclose(found.rho, same.rho, atol=1e-4)
    bands = blocks.covariances(Found(RHO, one, 1, True))[0], covariance(exact, Found(RHO, other, 1, True))
    np.testing.assert_allclose(*bands, atol=1e-6)


def test_conjugate_gradients_go_on_from_a_start_and_carry_an_image():
    rng = np.random.default_rng(3)
    A, U, start, right = rng.normal(size=(9, 6)), rng.normal(size=(2, 6)), rng.normal(size=6), rng.normal(size=6)
    H = A.T @ A + np.eye(6)

    def solved(most):
        return conjugate_gradients(
            lambda d: (H @ d, U @ d), right, lambda r: r / np.diag(H), tolerance=1e-12, most=most, start=start
        )

    x = np.linalg.solve(H, right)
    found, early = solved(20), solved(2)
    assert found.converged
    assert found.products <= 9
    np.testing.assert_allclose(found.x, x, rtol=1e-10)
    np.testing.assert_allclose(found.image, U @ (x - start), rtol=1e-9)
    assert early.products == 2
    assert not early.converged


def test_a_solve_is_one_with_the_whole_hessian():
    family = Multinomial(4)
    d, part = rows(family)
    loss, penalty = Blocks(d, family, part), penalties(RHO, part)
    found = loss.fit(penalty)
    assert found.converged
    r = np.random.default_rng(1).normal(size=found.b.shape)
    x, products, *_ = loss.solve(found.losses, penalty, found.inverse(), r, 1e-10)
    assert 5 < products < 40
    np.testing.assert_allclose(np.einsum("atbu,bu->at", hessian(d, family, found, penalty), x), r, atol=1e-7)


def test_penalties_are_near_those_of_the_exact_likelihood():
    """With many classes its degrees of freedom are larger by C / (C - 1) at most; so are the penalties, about."""
    family = Multinomial(6)
    d, part = rows(family, n=400)
    kind = np.array([0, 0, 0])
    exact = tune(Marginal(d, family, part), kind)
    found = tune(Blocks(d, family, part), kind)
    np.testing.assert_allclose(found.rho, exact.rho, atol=0.5)
    np.testing.assert_allclose(
        family.mean(found.outer.fits[0].scores), family.mean(exact.outer.fits[0].scores), atol=0.02
    )


def test_classes_are_treated_alike():
    family = Multinomial(4)
    d, part = rows(family)
    order, Q = np.array([2, 0, 3, 1]), family.contrasts
    other = d._replace(y=order[d.y], offset=d.offset @ Q.T[:, np.argsort(order)] @ Q)
    one, two = (Blocks(x, family, part, tolerance=1e-18)(RHO) for x in (d, other))
    assert one.value == pytest.approx(two.value, rel=1e-12)
    np.testing.assert_allclose(one.gradient, two.gradient, atol=1e-7)


def test_a_class_without_rows():
    family = Multinomial(5)
    d, part = rows(Multinomial(4))
    d = d._replace(offset=np.zeros((len(d.y), 4)))
    found = tune(Blocks(d, family, part), np.zeros(3, int))
    assert np.all(np.isfinite(found.outer.fits[0].b))
    assert family.mean(found.outer.fits[0].scores)[:, 4].max() < 1e-3


def test_other_families_are_refused():
    d, part = rows(Binomial())
    with pytest.raises(ParameterError, match="class by class"):
        Blocks(d, Gaussian(), part)
