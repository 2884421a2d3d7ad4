"""The closed forms by which the algorithms are judged, against enumeration, other formulas and differences."""

from functools import partial, reduce
from itertools import product

import numpy as np
import pytest

import bilevax as bx
from bilevax.testing.closed_forms import FiniteQuadratic, family
from bilevax.testing.closed_forms.random_maps import moments

D, M = 2, 1
P = FiniteQuadratic.conditioned(3, condition=4, n=2, n_val=3, d=D, m=M)
RHO, RATIO = 0.3, 0.4
STAGES = {
    "SOBA": family.soba(P, RHO, RATIO),
    "MASOBA": family.masoba(P, RHO, RATIO, weight=0.3),
    "AmIGO": family.amigo(P, RHO, RATIO, inner_steps=2, linear_steps=2),
    "StocBiO": family.stocbio(P, RHO, RATIO, inner_steps=2, linear_steps=2),
    "SUSTAIN": family.plain(P, RHO, RATIO, linear_steps=3, horizon=2),
    "FSLA": family.fsla(P, RHO, RATIO, weight=0.3),
    "BSA": family.in_turn(P, RHO, RATIO, linear_steps=3, horizon=1, inner_steps=2),
    "MSTSA": family.mstsa(P, RHO, RATIO, linear_steps=3, horizon=1, weight=0.3),
    "MRBO": family.mrbo(P, RHO, RATIO, linear_steps=2),
    "F2SA": family.f2sa(P, RHO, RATIO, inner_steps=2, multiplier=5.0),
    "MEHA": family.meha(P, RHO, RATIO, proximal=5.0, multiplier=5.0),
    "VPBGD": family.vpbgd(P, RHO, RATIO, inner_steps=2, multiplier=5.0),
}


def draws_of(stages):
    """How many minibatches of train and of val a step takes."""
    counts = [(stage.repeat * (stage.train is not None), stage.repeat * (stage.val is not None)) for stage in stages]
    return [sum(part) for part in zip(*counts, strict=True)]


def on_rows(stages, train, val):
    train, val = (iter(np.eye(size)[list(rows)]) for size, rows in ((2, train), (3, val)))
    return reduce(lambda done, stage: stage.given(train, val) @ done, stages, np.eye(stages[0].fixed.shape[1]))


@pytest.mark.parametrize("name", STAGES)
def test_moments_are_those_of_all_sequences_of_rows(name):
    """Of one row a minibatch, each sequence as likely as any other; after one step and after two."""
    stages = STAGES[name]
    sequences = [[*product(range(size), repeat=count)] for size, count in zip((2, 3), draws_of(stages), strict=True)]
    steps = [on_rows(stages, *rows) for rows in product(*sequences)]
    x = np.append(np.linspace(-1.0, 1.0, len(steps[0]) - 1), 1.0)
    step = moments(stages, 1, 1)
    for number in (1, 2):
        ends = [reduce(lambda at, step: step @ at, path, x) for path in product(steps, repeat=number)]
        first, second = step.power(number).moments(x[:-1])
        np.testing.assert_allclose(first, np.mean(ends, axis=0)[:-1], rtol=1e-12)
        np.testing.assert_allclose(second, np.mean([np.outer(end, end) for end in ends], axis=0), rtol=1e-12)


def test_larger_minibatches_have_less_noise():
    """Two rows with replacement are all pairs."""
    (stage, _), x = STAGES["SOBA"], np.linspace(-1.0, 1.0, 2 * D + 2 * M + 1)
    pairs = [*product(range(2), repeat=2)], [*product(range(3), repeat=2)]
    ends = [(stage.fixed + stage.train[list(i)].mean(0) + stage.val[list(j)].mean(0)) @ x for i, j in product(*pairs)]
    found = stage.moments(2, 2).second @ np.outer(x, x).ravel()
    np.testing.assert_allclose(found, np.mean([np.outer(end, end) for end in ends], axis=0).ravel(), rtol=1e-12)


def test_where_moments_settle():
    step = moments(family.soba(P, RHO, RATIO), 4, 4)
    assert step.rate < 1
    start = np.linspace(-1.0, 1.0, len(step.mean) - 1)
    first, second = step.power(int(-40 / np.log(step.rate))).moments(start)
    np.testing.assert_allclose(step.fixed_point, first, atol=1e-12)
    np.testing.assert_allclose(step.stationary, second, atol=1e-12)
    np.testing.assert_allclose(step.fixed_point[:D], P.w(P.minimiser), rtol=1e-10)
    np.testing.assert_allclose(step.fixed_point[D : D + M], P.minimiser, rtol=1e-10)


# ---- stationary points, by formulas of their own


@pytest.mark.parametrize("name", ["SOBA", "MASOBA", "AmIGO", "FSLA"])
def test_a_carried_multiplier_has_no_bias(name):
    fixed = moments(STAGES[name]).fixed_point
    np.testing.assert_allclose(fixed[D : D + M], P.minimiser, rtol=1e-10)
    np.testing.assert_allclose(fixed[D + M : 2 * D + M], P.v(P.minimiser, alpha=1.0), rtol=1e-10)


def cut_off(terms):
    """Where r lam + B'u = 0 with u = rho sum_{i < terms} (I - rho A)^i (w - target)."""
    (A, b, B), (target, r) = P.means, P.outer_means
    series = RHO * sum(np.linalg.matrix_power(np.eye(D) - RHO * A, i) for i in range(terms))
    root = np.linalg.solve(A, B)
    # r lam + B' series (A^-1 (b + B lam) - target) = 0
    return np.linalg.solve(r * np.eye(M) + B.T @ series @ root, -B.T @ series @ (np.linalg.solve(A, b) - target))


def test_the_bias_of_a_series_that_is_cut_off():
    """K factors are K + 1 terms; a random horizon below K is K terms in the mean. Of many it is small."""
    product_form = partial(family.stocbio, P, RHO, RATIO, inner_steps=2)
    drawn = [family.plain, partial(family.in_turn, inner_steps=2), partial(family.mstsa, weight=0.3)]
    together = partial(family.mrbo, P, RHO, RATIO)
    gaps = []
    for steps in (1, 3, 10, 60):
        found = moments(product_form(linear_steps=steps)).fixed_point[D:]
        np.testing.assert_allclose(found, cut_off(steps + 1), rtol=1e-10)
        for stages in drawn:
            ends = family.over_horizons(partial(stages, P, RHO, RATIO), steps, (None, None)).fixed_point
            np.testing.assert_allclose(ends[D : D + M], cut_off(steps), rtol=1e-10)
        np.testing.assert_allclose(moments(together(linear_steps=steps)).fixed_point[D:], found, rtol=1e-10)
        gaps.append(np.linalg.norm(P.hypergradient(found)))
    assert gaps[-1] < 0.05 * min(gaps[:-1])


def test_product_and_fixed_point_form_have_one_mean():
    """On independent rows too: K factors, and K + 1 moves from 0. What differs is the noise."""
    x = np.linspace(-1.0, 1.0, D + M)
    mean, second = moments(family.stocbio(P, RHO, RATIO, inner_steps=2, linear_steps=4), 1, 1).moments(x)
    fixed_point = family.amigo(P, RHO, RATIO, inner_steps=2, linear_steps=5)
    other, noisy = moments(fixed_point, 1, 1).moments(np.concatenate([x, np.zeros(D)]))
    np.testing.assert_allclose(mean, other[: D + M], rtol=1e-12)
    spread, noise = (np.trace(S[D : D + M, D : D + M]) - mean[D:] @ mean[D:] for S in (second, noisy))
    assert abs(spread / noise - 1) > 1e-3


def test_the_bias_of_a_penalty():
    """z = w - u / c with u = (A + I / c)^-1 (w - target): SOBA's damped by 1 / c."""
    (A, b, B), (target, r) = P.means, P.outer_means
    for c in (1.0, 10.0, 1e3):
        damped = np.linalg.inv(A + np.eye(D) / c)
        lam = np.linalg.solve(
            r * np.eye(M) + B.T @ damped @ np.linalg.solve(A, B), -B.T @ damped @ (np.linalg.solve(A, b) - target)
        )
        found = moments(family.f2sa(P, RHO, RATIO, inner_steps=2, multiplier=c)).fixed_point
        np.testing.assert_allclose(found[D : D + M], lam, rtol=1e-9)
        np.testing.assert_allclose(c * (found[:D] - found[D + M :]), damped @ (P.w(lam) - target), rtol=1e-8)


def test_a_descent_on_the_penalised_loss_ends_where_two_copies_do():
    """Whatever the moves of w: A (z - w) = -(z - target) / c."""
    expected = moments(family.f2sa(P, RHO, RATIO, inner_steps=1, multiplier=10.0)).fixed_point
    w, lam, z = np.split(expected, [D, D + M])
    for T in (1, 4):
        found = moments(family.vpbgd(P, RHO, RATIO, inner_steps=T, multiplier=10.0)).fixed_point
        np.testing.assert_allclose(found, np.concatenate([z, lam, w]), rtol=1e-8)


def test_the_bias_of_a_moreau_envelope():
    """(w - target) / c + S A (w - w(lam)) = 0 and r lam = c B'S (w - w(lam)), S = s A (I + s A)^-1; s alone moves w."""
    (A, b, B), (target, r) = P.means, P.outer_means
    for c, proximal in ((3.0, 2.0), (100.0, 50.0)):
        s = proximal * RHO
        S = s * A @ np.linalg.inv(np.eye(D) + s * A)
        root, base = np.linalg.solve(A, B), np.linalg.solve(A, b)
        system = np.block([[np.eye(D) / c + S @ A, -S @ A @ root], [-c * B.T @ S, r * np.eye(M) + c * B.T @ S @ root]])
        expected = np.linalg.solve(system, np.concatenate([target / c + S @ A @ base, -c * B.T @ S @ base]))
        found = moments(family.meha(P, RHO, RATIO, proximal=proximal, multiplier=c)).fixed_point
        np.testing.assert_allclose(found[: D + M], expected, rtol=1e-8)
        w, lam, theta = np.split(found, [D, D + M])
        # theta is the prox of w
        np.testing.assert_allclose(theta, P.w(lam) + np.linalg.solve(np.eye(D) + s * A, w - P.w(lam)), rtol=1e-8)


def test_the_mean_of_zeroth_order_differences_is_a_series_that_is_cut_off():
    """T moves of w are T terms; and the noise of Q directions is (|a|^2 I + a a') / Q, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    weights = weights / weights.sum()
    x = np.linspace(-1.0, 1.0, D + M)
    for T in (1, 3):
        step = family.pzobo(P, RHO, RATIO, inner_steps=T, perturbations=1)
        np.testing.assert_allclose(step.fixed_point[D:], cut_off(T), rtol=1e-10)
        mean, second = step.moments(x)
        # lam - gamma (r lam + v^2 a) of one normal v
        fixed = x[D:] * (1 - RATIO * RHO * P.outer_means[1])
        ends = [fixed + v**2 * (mean[D:] - fixed) for v in nodes]
        expected = sum(weight * np.outer(end, end) for weight, end in zip(weights, ends, strict=True))
        np.testing.assert_allclose(second[D : D + M, D : D + M], expected, rtol=1e-10)


# ---- the problem


def test_the_quadratic_with_rows_of_target_and_r():
    """Value and gradient are those of the shipped losses on its data; central differences; the wanted condition."""
    p = FiniteQuadratic.conditioned(0, condition=100, n=101, n_val=64)
    assert {name: rows.shape for name, rows in p.val_data.items()} == {"target": (64, 4), "r": (64,)}
    assert np.ptp(p.val_data["r"]) > 0
    np.testing.assert_allclose(p.curvature.L / p.curvature.tau, 100, rtol=1e-9)
    value = float(p.problem.outer_loss(p.w(p.lam), p.lam, p.val_data))
    np.testing.assert_allclose(p.value(p.lam), value, rtol=1e-12)
    steps = 1e-5 * np.eye(2)
    numeric = [(p.value(p.lam + step) - p.value(p.lam - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(p.hypergradient(p.lam), numeric, rtol=1e-7)
    hessian = [(p.hypergradient(p.lam + step) - p.hypergradient(p.lam - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(p.outer_hessian, hessian, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(p.hypergradient(p.minimiser), 0.0, atol=1e-10)
    # noise: rows of A, b, B and target differ, also in what Jacobians of a row do together
    assert min(np.ptp(x, axis=0).max() for x in (p.A, p.b, p.B, p.target)) > 0.1


def test_one_of_them_may_have_rows_alone():
    p = FiniteQuadratic.random(0, n=20, d=4, m=2)
    rows = FiniteQuadratic(A=p.A, b=p.b, B=p.B, target=p.target, r=np.array([0.05, 0.15]), lam=p.lam)
    assert rows.val_data["target"].shape == (2, 4)
    np.testing.assert_allclose(rows.value(p.lam), p.value(p.lam), rtol=1e-12)
    np.testing.assert_allclose(rows.hypergradient(p.lam), p.hypergradient(p.lam), rtol=1e-12)
    np.testing.assert_allclose(rows.moments(p.lam).hypergradient, p.hypergradient(p.lam), rtol=1e-12)


def test_targets_and_weights_of_different_numbers_are_refused(refused):
    p = FiniteQuadratic.random(0, n=20, d=4, m=2)
    wrong = partial(FiniteQuadratic, p.A, p.b, p.B, np.zeros((3, 4)), np.full(2, 0.1), p.lam)
    refused(wrong, bx.ParameterError, "same number of rows, got 3 and 2")
