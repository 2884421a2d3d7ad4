"""Formulas of the theory against brute force, closed forms, and cases in which a bound is an equality."""

import itertools
import math

import numpy as np
import pytest

from bilevax.core.config import replace_unchecked
from bilevax.core.errors import ParameterError
from bilevax.testing.closed_forms import FiniteQuadratic, PenalisedRidge
from bilevax.theory import (
    Constants,
    Counts,
    MeanSquare,
    Traces,
    a_posteriori_bound,
    aid_bound,
    aid_fixed_point_bound,
    bias_bound,
    burn_in_steps,
    conjugate_gradient_factor,
    equal_split_mse,
    glm,
    inner_moments,
    itd_bound,
    known,
    linear_bias_bound,
    linear_moments,
    mse_bound,
    optimal_split,
    published_steps,
    sample_complexity,
    second_moment_rate,
    smoothness,
    stationarity_bound,
)

ALL = dict.fromkeys(("L_Phi", "L_E", "mu1", "mu2", "nu1", "nu2"), 1.0)
C = Constants(q=0.5, L_Phi=2.0, L_E=3.0, mu1=0.7, mu2=0.2, nu1=0.3, nu2=0.4)


# The constants


@pytest.mark.parametrize("q", [1.0, 1.2, -0.1, math.nan])
def test_a_contraction_constant_outside_its_range_is_refused(q):
    with pytest.raises(ParameterError, match="q must lie in"):
        Constants(q=q, **ALL)


def test_constants_that_make_no_sense_are_refused():
    with pytest.raises(ParameterError, match="nu1 must lie in"):
        Constants(q=0.5, **{**ALL, "nu1": -1.0})
    with pytest.raises(ParameterError, match="tau must lie in"):
        Constants(q=0.5, **ALL, tau=0.0)
    with pytest.raises(ParameterError, match="names no constant: sigma3"):
        Constants(q=0.5, **ALL, standard_errors={"sigma3": 0.1})
    with pytest.raises(ParameterError, match="kappa is L / tau"):
        _ = C.kappa


def matrices(number, d=6):
    return np.random.default_rng(5).normal(size=(number, d))


@pytest.mark.parametrize("p", [FiniteQuadratic.random(1, n=30, d=6, m=4), PenalisedRidge.random(1, d=6)])
@pytest.mark.parametrize("alpha", [None, 0.2])
def test_the_exact_constants_hold_and_are_attained(p, alpha):
    """Against the map itself, row by row: each inequality holds in random directions, and in the worst one is one."""
    lam, b = p.lam, 4
    c = p.constants(lam, batch_size=b, alpha=alpha)
    alpha = c.alpha
    w = p.w(lam).reshape(-1)
    if isinstance(p, FiniteQuadratic):
        A, B, s = p.A, p.B, p.b + p.B @ lam
        slope, hessian = w - p.target, np.eye(6)
    else:
        A, B = p.X[:, :, None] * p.X[:, None, :] + np.diag(np.exp(lam)), -np.diag(np.exp(lam) * w)[None]
        s, hessian = p.X * p.y[:, None], p.Z.T @ p.Z / len(p.u)
        slope = hessian @ w - p.Z.T @ p.u / len(p.u)
    noise = -alpha * ((A @ w - s) - (A @ w - s).mean(0))
    jacobian = np.eye(6) - alpha * A.mean(0)
    assert c.q == pytest.approx(np.linalg.norm(jacobian, 2))
    assert c.kappa == pytest.approx(np.linalg.cond(A.mean(0)))
    assert c.mu1 == pytest.approx(np.linalg.norm(hessian, 2))
    assert pytest.approx(np.linalg.norm(slope) + c.mu1 * np.linalg.norm(w)) == c.L_E
    dA = alpha * (A - A.mean(0))
    worst = {
        "sigma1_prime": np.linalg.norm(np.mean(dA @ dA.transpose(0, 2, 1), axis=0), 2) / b,
        "sigma2_prime": alpha**2
        * np.linalg.norm(np.mean((B - B.mean(0)) @ (B - B.mean(0)).transpose(0, 2, 1), axis=0), 2)
        / b,
    }
    for name, value in worst.items():
        assert getattr(c, name) == pytest.approx(value)
    for x in matrices(20):
        moved = noise - dA @ x
        variance = np.mean(np.sum((moved - moved.mean(0)) ** 2, axis=1)) / b
        assert variance <= c.sigma1 + c.sigma2 * np.sum((alpha * A.mean(0) @ x) ** 2)
    assert c.sigma1 == pytest.approx(2 * np.mean(np.sum(noise**2, axis=1)) / b)
    if isinstance(p, FiniteQuadratic):
        assert c.L_Phi == pytest.approx(alpha * np.linalg.norm(B.mean(0), 2))
    else:
        assert c.nu2 == pytest.approx(alpha * np.exp(lam).max())
        assert c.L_Phi >= alpha * np.linalg.norm(B.mean(0), 2)
    exact = p.constants(lam, alpha=alpha)
    assert (exact.sigma1, exact.sigma2, exact.sigma1_prime, exact.sigma2_prime) == (0, 0, 0, 0)


def test_the_constants_of_a_gradient_step_with_the_best_step():
    p = FiniteQuadratic.random(0)
    c = p.constants(p.lam)
    assert c.q == pytest.approx((c.kappa - 1) / (c.kappa + 1))
    assert c.inner.rate == pytest.approx(4 * c.kappa / (c.kappa + 1) ** 2)


# The inner iterate: one inequality for both kinds of steps


def scalar_square(q, variance, etas, start):
    """E x_t^2 of x+ = (1 - eta) x + eta (q x + noise)."""
    square = start
    for eta in etas:
        square = (1 - eta * (1 - q)) ** 2 * square + eta**2 * variance
    return square


@pytest.mark.parametrize("q", [0.0, 0.6, -0.6])
def test_t1_is_an_equality_for_one_step_of_length_one(q):
    """Additive noise and eta = 1: there |(1 - eta) a + eta b|^2 loses nothing, at every t."""
    bound = MeanSquare.of_contraction(q=abs(q), sigma1=0.3, sigma2=0.0)
    for t in (0, 1, 2, 7):
        assert bound.constant(1.0, t, 2.0) == pytest.approx(scalar_square(q, 0.3, [1.0] * t, 2.0), rel=1e-13)


def test_t1_is_the_inequality_iterated():
    bound = MeanSquare(rate=0.3, noise=0.7, limit=0.8)
    counts = np.arange(30)
    expected = [bound.along([0.5] * t, 4.0) for t in counts]
    np.testing.assert_allclose(bound.constant(0.5, counts, 4.0), expected, rtol=1e-13)
    assert bound.constant(0.5, 10_000, 4.0) == pytest.approx(bound.plateau(0.5)) == pytest.approx(0.5 * 0.7 / 0.3)


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 2.5), (1.1, 3.0), (5.0, 40.0)])
@pytest.mark.parametrize("start", [0.0, 0.1, 50.0])
def test_t2_is_above_the_inequality_iterated(beta, gamma, start):
    bound = MeanSquare(rate=1.0, noise=0.7, limit=0.8)
    levels = [bound.along([beta / (gamma + j) for j in range(t)], start) for t in range(300)]
    closed = bound.decreasing(beta, gamma, np.arange(300), start)
    assert np.all(levels <= closed * (1 + 1e-12))


def test_t2_is_attained_in_the_limit():
    """c / (gamma + t) is the asymptote of the inequality itself: no smaller c would do."""
    bound = MeanSquare(rate=1.0, noise=0.7, limit=1.0)
    t = 20_000
    level = bound.along((2.0 / (2.0 + j) for j in range(t)), 0.0)
    assert level == pytest.approx(bound.decreasing(2.0, 2.0, t, 0.0), rel=1e-3)


def test_t2_the_optimal_beta_makes_the_noise_term_smallest():
    bound = MeanSquare.of_contraction(q=0.8, sigma1=1.0, sigma2=3.0)
    beta, gamma = bound.harmonic
    assert beta == pytest.approx(2 / (1 - 0.64))
    assert gamma == pytest.approx(beta * (1 + 3.0))
    best = bound.decreasing(beta, 1e4, 0, 0.0)
    assert best * 1e4 == pytest.approx(4 / (1 - 0.64) ** 2)
    for factor in (0.8, 1.25):
        assert bound.decreasing(factor * beta, 1e4, 0, 0.0) > best
    assert published_steps(0.8) == (beta, beta)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: m.constant(0.81, 3, 1.0), r"a step must lie in \]0, 0.8\]"),
        (lambda m: m.plateau(0.0), "a step must lie in"),
        (lambda m: m.along([0.1, 0.9], 1.0), "a step must lie in"),
        (lambda m: m.decreasing(2.0, 30.0, 3, 1.0), "beta=2 is too small.*beta > 2, .*take beta=4"),
        (lambda m: m.decreasing(4.0, 4.9, 3, 1.0), "first step.*is longer than 0.8.*take gamma=5"),
        (lambda m: m.steps_to(0.0, 1.0), "target must be positive"),
    ],
)
def test_steps_for_which_no_bound_holds_are_refused(call, sentence):
    with pytest.raises(ParameterError, match=sentence):
        call(MeanSquare(rate=0.5, noise=0.7, limit=0.8))


@pytest.mark.parametrize("target", [10.0, 1.0, 1e-2, 1e-4])
def test_the_steps_to_a_target_reach_it_and_no_fewer_do(target):
    bound = MeanSquare(rate=0.3, noise=0.7, limit=0.8)
    eta, t = bound.steps_to(target, 4.0)
    assert bound.constant(eta, t, 4.0) <= target * (1 + 1e-12)
    assert t == 0 or bound.constant(eta, t - 1, 4.0) > (1 - eta * 0.3) * target
    t = bound.decreasing_steps_to(target, 4.0)
    assert bound.decreasing(*bound.harmonic, t, 4.0) <= target * (1 + 1e-12)
    assert t == 0 or bound.decreasing(*bound.harmonic, t - 1, 4.0) > target


def test_the_number_of_steps_is_of_order_one_over_the_target_and_logarithmic_without_noise():
    noisy, exact = MeanSquare(0.3, 0.7, 0.8), MeanSquare(0.3, 0.0, 0.8)
    assert noisy.decreasing_steps_to(1e-6, 4.0) / noisy.decreasing_steps_to(1e-4, 4.0) == pytest.approx(100, rel=0.01)
    assert exact.steps_to(1e-8, 1.0)[1] <= 2 * exact.steps_to(1e-4, 1.0)[1]


def squares_and_levels(p, bound_of, *, batch_size, steps):
    """E|w_t - w*|^2 and E|v_t - v*|^2 at w*, exact, beside what ``bound_of`` gives."""
    exact = p.moments(p.lam)
    inner = known(np.zeros_like(exact.w), exact.w)
    for stage in ("inner", "linear"):
        start = float(np.sum((exact.w if stage == "inner" else exact.v) ** 2))
        bound = bound_of(stage)
        for etas in steps(bound):
            if stage == "inner":
                found = inner_moments(exact, inner, etas, batch_size).square
            else:
                found = linear_moments(exact, known(exact.w, exact.w), etas, batch_size).square
            yield found, bound.along(etas, start)


@pytest.mark.parametrize("batch_size", [1, 10])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_self_bounded_noise_bounds_both_iterations_with_much_longer_steps(seed, batch_size):
    p = FiniteQuadratic.random(seed, n=60, d=6, m=3)
    data = p.A - 0.3 * np.eye(6)
    p = replace_unchecked(p, A=data + 0.01 * np.eye(6))  # the worse the condition, the more there is to gain
    c, exact = p.constants(p.lam, batch_size=batch_size), p.moments(p.lam)
    shared = {
        "L": c.L, "tau": c.tau, "row_smoothness": max(np.linalg.norm(a, 2) for a in data),
        "alpha": c.alpha, "batch_size": batch_size,
    }  # fmt: skip
    noise = {"inner": float(np.trace(exact.noise)), "linear": np.mean(np.sum(((p.A - p.A.mean(0)) @ exact.v) ** 2, 1))}
    noise["linear"] *= c.alpha**2

    def bound_of(stage):
        return MeanSquare.of_convex_rows(noise=noise[stage], **shared)

    def steps(bound):
        beta, gamma = bound.harmonic
        return [np.full(200, bound.limit), np.full(1000, bound.limit / 3), beta / (gamma + np.arange(1000))]

    pairs = list(squares_and_levels(p, bound_of, batch_size=batch_size, steps=steps))
    assert all(found <= level for found, level in pairs)
    assert max(found / level for found, level in pairs) > 0.05  # a bound, and not far above
    assert bound_of("linear").limit > 5 * c.linear().limit
    assert second_moment_rate(exact, bound_of("linear").limit, batch_size) < 1


def test_self_bounded_noise_in_loss_form():
    """s = alpha eta <= 1 / (L + 2 R^2 / b), plateau 2 s sigma^2 / (b tau), max(gamma e^2, 8 sigma^2 / (b tau^2))."""
    alpha, L, tau, R, noise, b = 0.5, 3.0, 0.2, 7.0, 1.3, 4
    bound = MeanSquare.of_convex_rows(L=L, tau=tau, row_smoothness=R, noise=alpha**2 * noise, alpha=alpha, batch_size=b)
    assert alpha * bound.limit == pytest.approx(1 / (L + 2 * R / b))
    s = 0.1
    assert bound.constant(s / alpha, 10, 4.0) == pytest.approx(
        (1 - s * tau) ** 10 * (4.0 - 2 * s * noise / (b * tau)) + 2 * s * noise / (b * tau)
    )
    beta, gamma = bound.harmonic
    assert (alpha * beta, gamma) == pytest.approx((2 / tau, 2 * (L + 2 * R / b) / tau))
    for start in (0.0, 100.0):
        expected = max(gamma * start, 8 * noise / (b * tau**2)) / (gamma + 9)
        assert bound.decreasing(beta, gamma, 9, start) == pytest.approx(expected)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_the_second_moments_factor_is_that_of_every_minibatch(eta, batch_size):
    """The mean of M_B x M_B over all minibatches, one by one."""
    p = FiniteQuadratic.random(0, n=8, d=3, m=2)
    exact = p.moments(p.lam)
    batches = itertools.product(range(8), repeat=batch_size)
    maps = [np.eye(3) - eta * exact.alpha * p.A[list(rows)].mean(0) for rows in batches]
    radius = np.max(np.abs(np.linalg.eigvals(np.mean([np.kron(M, M) for M in maps], axis=0))))
    assert second_moment_rate(exact, eta, batch_size) == pytest.approx(radius)
    assert (radius > 1) == (eta == 1.0)
    whole = np.eye(3) - eta * exact.alpha * exact.A
    assert second_moment_rate(exact, eta, None) == pytest.approx(np.linalg.norm(whole, 2) ** 2)


# The linear system and the hypergradient


def test_t3_with_the_optimal_beta_is_the_closed_form():
    c = Constants(q=0.6, **{**ALL, "L_E": 3.0}, sigma1_prime=0.2)
    linear, gamma = c.linear(), 2 / 0.64 * (1 + 0.4 / 0.16)
    assert linear.harmonic == pytest.approx((2 / 0.64, gamma))
    expected = 9 / 0.16 * max(gamma, 8 * 0.2 / 0.64**2)
    k = np.array([0, 10, 1000])
    np.testing.assert_allclose(linear.decreasing(*linear.harmonic, k, c.linear_start()), expected / (gamma + k))


def test_the_bias_of_the_linear_iteration_is_attained_along_the_slowest_direction():
    etas = [0.5, 0.3, 1.0, 1.2]
    v = 1.0
    for eta in etas:
        v = v + eta * (0.8 * v - v)
    assert linear_bias_bound(0.8, etas[:3], 1.0) == pytest.approx(math.prod(1 - 0.2 * eta for eta in etas[:3]))
    assert linear_bias_bound(0.8, etas, 1.0) >= abs(v)
    flipped = math.prod(1 - eta - 0.8 * eta for eta in etas[2:])
    assert linear_bias_bound(0.8, etas[2:], 1.0) >= abs(flipped)


def test_t4_without_any_error_is_the_floor_and_the_floor_is_attained():
    """w and v exact, in one dimension: the cross product's variance alone, of which the bound is twice the truth."""
    c = Constants(q=0.5, **{**ALL, "L_E": 3.0}, sigma2_prime=0.4)
    v = 3.0 / (1 - 0.5)
    assert mse_bound(c, 0.0, 0.0, 5) == pytest.approx(2 * 0.4 * v**2 / 5)
    assert mse_bound(c, 0.0, 0.0, None) == 0
    assert bias_bound(c, 0.0, 0.0) == 0


def test_t4_is_attained_where_the_two_errors_are_equal_and_of_one_sign():
    c, e, d = C, 0.3, 0.3 * C.c1 / C.L_Phi
    assert mse_bound(c, e**2, d**2, None) == pytest.approx((c.c1 * e + c.L_Phi * d) ** 2)


def test_c1_is_the_lipschitz_constant_of_the_worst_case():
    """Phi = q(w) w-free pieces in one dimension whose derivatives all change at their largest rate, and together."""
    q, h = 0.5, 1e-6
    mu1, mu2, nu1, nu2, L_Phi, L_E = 0.7, 0.2, 0.3, 0.4, 2.0, 3.0

    def estimate(e):
        return mu2 * e + (L_Phi + nu2 * e) * (L_E + mu1 * e) / (1 - q - nu1 * e)

    c = Constants(q=q, L_Phi=L_Phi, L_E=L_E, mu1=mu1, mu2=mu2, nu1=nu1, nu2=nu2)
    assert c.c1 == pytest.approx((estimate(h) - estimate(-h)) / (2 * h), rel=1e-8)
    assert bias_bound(c, h**2, 0.0) == pytest.approx(estimate(h) - estimate(0.0), rel=1e-4)
    assert bias_bound(c, 0.0, 0.1) == pytest.approx(2.0 * 0.1)


def test_t4_with_outer_minibatches_covers_their_variance():
    """Two outer rows, w and v exact, in one dimension: every pair of draws enumerated."""
    q, B, J1 = 0.5, 2.0, 3
    g, r = np.array([1.0, 4.0]), np.array([-2.0, 1.0])
    c = Constants(q=q, L_Phi=B, L_E=2.5, mu1=0, mu2=0, nu1=0, nu2=0, sigma1_E=g.var(), sigma2_E=r.var())
    truth = r.mean() + B * g.mean() / (1 - q)
    draws = [np.array(rows) for rows in itertools.product((0, 1), repeat=J1)]
    mse = np.mean([(r[i].mean() + B * g[i].mean() / (1 - q) - truth) ** 2 for i in draws])
    bound = mse_bound(c, 0.0, 0.0, None, J1)
    assert mse <= bound <= 4 * mse
    square = np.mean([g[i].mean() ** 2 for i in draws])
    assert c.outer_square(J1) == pytest.approx(square)
    noisy = replace_unchecked(c, sigma1_prime=0.1)
    assert noisy.linear(J1).noise == pytest.approx(2 * 0.1 * square / (1 - q) ** 2)
    assert noisy.linear_start(J1) == pytest.approx(square / (1 - q) ** 2)


def test_the_sample_complexity_keeps_its_promise_and_is_of_order_one_over_the_target():
    p = FiniteQuadratic.random(0)
    c = p.constants(p.lam, batch_size=20)
    start = float(np.sum(p.w(p.lam) ** 2))
    counts = [sample_complexity(c, target, start) for target in (1.0, 1e-2)]
    for (t, k, J), target in zip(counts, (1.0, 1e-2), strict=True):
        rho = c.inner.decreasing(*c.inner.harmonic, t, start)
        sigma = c.linear().decreasing(*c.linear().harmonic, k, c.linear_start())
        assert 0.5 * target < mse_bound(c, rho, sigma, J) <= target * (1 + 1e-9)
    np.testing.assert_allclose(np.array(counts[1]) / np.array(counts[0]), 100, rtol=0.05)
    c = replace_unchecked(c, sigma2_prime=50 * c.L_Phi**2)
    target = 6.001 * c.L_Phi**2 * c.linear_start()  # v_0 = 0 is good enough, and just so
    t, k, J = sample_complexity(c, target, 1e6)
    assert k == 0
    rho = c.inner.decreasing(*c.inner.harmonic, t, 1e6)
    assert 0.9 * target < mse_bound(c, rho, c.linear_start(), J) <= target
    assert sample_complexity(p.constants(p.lam), 1e-2, start).J == 1


# Deterministic bounds


def test_the_deterministic_bounds_are_equalities_in_one_dimension():
    """Phi = q w + B lam, E = g w + mu w^2/2 from below: the parts of the bound that a linear problem can reach."""
    q, B, g = 0.8, 2.0, 3.0
    c = Constants(q=q, L_Phi=B, L_E=g, mu1=0.0, mu2=0.0, nu1=0.0, nu2=0.0)
    truth = B * g / (1 - q)
    for t in (1, 5, 30):
        itd = B * g * sum(q**i for i in range(t))
        assert itd_bound(c, t, 4.0) == pytest.approx(truth - itd)
        assert aid_fixed_point_bound(c, 99, t, 4.0) == pytest.approx(truth - itd)
        assert aid_bound(c, 0.5, q**t, 4.0) == pytest.approx(truth - itd)


def test_the_deterministic_bounds_contain_the_change_of_jacobians_that_itd_suffers_at_every_step():
    c = C
    direct, jacobians, system = 0.2 + 0.7 * 2 / 0.5, 0.4 * 3 + 0.3 * 3 * 2 / 0.5, 3 * 2 / 0.5
    for t in (0, 1, 10):
        assert itd_bound(c, t, 4.0) == pytest.approx((direct * 4 + jacobians * 4 * t / 0.5 + system) * 0.5**t)
        short = (direct * 4 + jacobians * 4 * (1 - 0.5**t) / 0.5) * 0.5**t + system * 0.5**t
        assert aid_fixed_point_bound(c, t, t, 4.0) == pytest.approx(short)
        assert short <= itd_bound(c, t, 4.0)
    assert aid_bound(c, 0.3, 0.1, 4.0) == pytest.approx(c.c1 * 4 * 0.3 + system * 0.1)


def test_conjugate_gradients_factor_bounds_their_error():
    rng = np.random.default_rng(0)
    for kappa in (1.0, 3.0, 100.0):
        values = np.geomspace(1 / kappa, 1.0, 30)
        g = rng.normal(size=30)
        v, r, truth = np.zeros(30), g.copy(), g / values
        p = r.copy()
        for k in range(1, 15):
            if r @ r < 1e-28:
                break
            step = (r @ r) / (p @ (values * p))
            v, new = v + step * p, r - step * values * p
            p, r = new + (new @ new) / (r @ r) * p, new
            error = np.linalg.norm(v - truth) / np.linalg.norm(truth)
            assert error <= conjugate_gradient_factor(k, kappa) + 1e-12
    with pytest.raises(ParameterError, match="at least 1"):
        conjugate_gradient_factor(3, 0.5)


def test_the_a_posteriori_bound_is_never_exceeded_and_attained_in_one_dimension():
    """Errors in w and v on random quadratics of which every constant is known."""
    rng = np.random.default_rng(1)
    for seed in range(40):
        p = FiniteQuadratic.random(seed, n=20, d=5, m=3)
        H, B = p.A.mean(0), p.B.mean(0)
        w = p.w(p.lam) + 10.0 ** rng.uniform(-6, 0) * rng.normal(size=5)
        v = np.linalg.solve(H, w - p.target) + 10.0 ** rng.uniform(-6, 0) * rng.normal(size=5)
        bound = a_posteriori_bound(
            v=np.linalg.norm(v),
            residual=np.linalg.norm(H @ v - (w - p.target)),
            distance=np.linalg.norm(H @ (w - p.w(p.lam))) / p.curvature.tau,
            B=np.linalg.norm(B, 2), mu=p.curvature.tau, L_F=1.0, L_H=0.0, L_B=0.0,
        )  # fmt: skip
        assert np.linalg.norm(p.r * p.lam + B.T @ v - p.hypergradient(p.lam)) <= bound
    h, e, v = 2.0, 0.1, 1.5  # H = h - L_H e, B + L_B e, g - L_F e at w, and all errors of one sign
    truth = (0.5 + 0.3 * e) * (h * v + 0.2 + 0.4 * e + v * 0.6 * e) / h
    found = a_posteriori_bound(v=v, residual=0.2, distance=e, B=0.5, mu=h, L_F=0.4, L_H=0.6, L_B=0.3)
    assert found == pytest.approx(truth - 0.5 * v)
    direct = a_posteriori_bound(v=v, residual=0.2, distance=e, B=0.5, mu=h, L_F=0.4, L_H=0.6, L_B=0.3, L_direct=7.0)
    assert direct == pytest.approx(found + 0.7)


# The outer problem


def test_the_smoothness_of_f_is_attained_by_a_quadratic():
    """w(lam) = B lam / (1 - q) and E = w^2/2 + lam^2/2: f'' = (B / (1 - q))^2 + 1."""
    c = Constants(q=0.5, L_Phi=2.0, L_E=3.0, mu1=1.0, mu2=0.0, nu1=0.0, nu2=0.0)
    assert smoothness(c, mu2_lam=1.0) == pytest.approx((2.0 / 0.5) ** 2 + 1.0)
    p = FiniteQuadratic.random(0)
    jacobian = np.linalg.solve(p.A.mean(0), p.B.mean(0))
    truth = np.linalg.norm(jacobian.T @ jacobian + p.r * np.eye(5), 2)
    assert truth <= smoothness(p.constants(p.lam), mu2_lam=p.r) < 30 * truth


def test_the_smoothness_of_f_with_every_constant_is_the_worst_case_in_one_dimension():
    """All derivatives change at their largest rates along lam, in w and in lam at once."""
    h, bars = 1e-6, {"mu1_lam": 0.6, "mu2_lam": 0.9, "nu1_lam": 0.15, "nu2_lam": 0.35}
    L_w = C.L_Phi / (1 - C.q)

    def gradient(e):
        w = L_w * e
        direct = C.mu2 * w + bars["mu2_lam"] * e
        d2 = C.L_Phi + C.nu2 * w + bars["nu2_lam"] * e
        g = C.L_E + C.mu1 * w + bars["mu1_lam"] * e
        return direct + d2 * g / (1 - C.q - C.nu1 * w - bars["nu1_lam"] * e)

    assert smoothness(C, **bars) == pytest.approx((gradient(h) - gradient(-h)) / (2 * h), rel=1e-8)


def test_projected_inexact_gradients_keep_the_stationarity_bound():
    rng = np.random.default_rng(0)
    scales, box = np.linspace(0.1, 2.0, 8), 0.5
    centre = rng.normal(size=8)
    for noise, S in ((0.0, 30), (0.3, 30), (0.3, 300)):
        lam, step, measures, errors = np.zeros(8), 0.5 / 2.0, [], []
        value = [0.5 * np.sum(scales * (x - centre) ** 2) for x in (lam, np.clip(centre, -box, box))]
        for _ in range(S):
            gradient = scales * (lam - centre)
            h = gradient + noise * rng.normal(size=8)
            errors.append(np.sum((h - gradient) ** 2))
            measures.append(np.sum((lam - np.clip(lam - step * gradient, -box, box)) ** 2) / step**2)
            lam = np.clip(lam - step * h, -box, box)
        bound = stationarity_bound(value[0] - value[1], L_f=2.0, step=step, steps=S, mse=np.mean(errors))
        assert np.mean(measures) <= bound
    with pytest.raises(ParameterError, match="outer step"):
        stationarity_bound(1.0, L_f=2.0, step=0.3, steps=10, mse=0.0)


# Generalised linear models

LOSSES = {
    "LOGISTIC": lambda z: np.logaddexp(0.0, -z),
    "LOG_COSH": lambda z: np.abs(z) + np.log1p(np.exp(-2 * np.abs(z))),
    "SQUARED": lambda z: 0.5 * z**2,
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_curvature_of_a_loss_and_how_fast_it_changes(name):
    link, h = getattr(glm, name), 1e-3
    z = np.arange(-6.0, 6.0, h)
    second = np.diff(LOSSES[name](z), 2) / h**2
    third = np.diff(second) / h
    assert second.max() == pytest.approx(link.second, rel=1e-4)
    assert np.abs(third).max() == pytest.approx(link.third, rel=1e-3, abs=1e-4)


def test_the_curvature_of_a_softmax_and_how_fast_it_changes():
    rng = np.random.default_rng(0)

    def hessian(scores):
        p = np.exp(scores - scores.max())
        p /= p.sum()
        return np.diag(p) - np.outer(p, p)

    second = third = 0.0
    for _ in range(6_000):
        scores, along = rng.normal(size=(2, rng.integers(2, 6))) * np.array([[rng.uniform(0, 3)], [1.0]])
        second = max(second, np.linalg.norm(hessian(scores), 2))
        step = 1e-4 * along / np.linalg.norm(along)
        third = max(third, np.linalg.norm(hessian(scores + step) - hessian(scores - step), 2) / 2e-4)
    assert 0.49 < second <= glm.SOFTMAX.second
    assert 0.95 * glm.SOFTMAX.third < third <= glm.SOFTMAX.third * (1 + 1e-6)


def test_the_constants_of_rows_bound_what_the_rows_do():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(50, 4)) * np.array([2.0, 1.0, 0.5, 0.3])
    alpha, b = 0.3, 5
    c = glm.row_constants(X, glm.LOG_COSH, alpha=alpha, batch_size=b)

    def hessians(w):
        return X[:, :, None] * X[:, None, :] / np.cosh(X @ w)[:, None, None] ** 2

    for _ in range(50):
        w, other, x = rng.normal(size=(3, 4)) * rng.uniform(0, 2)
        H = hessians(w)
        assert np.linalg.norm(H.mean(0), 2) <= c.L
        assert max(np.linalg.norm(h, 2) for h in H) <= c.row_smoothness
        spread = alpha**2 * np.mean(np.sum(((H - H.mean(0)) @ x) ** 2, axis=1)) / b
        assert spread <= c.sigma1_prime * np.sum(x**2)
        change = alpha * np.linalg.norm(H.mean(0) - hessians(other).mean(0), 2)
        assert change <= c.nu1 * np.linalg.norm(w - other)
    H = hessians(np.zeros(4))
    assert np.linalg.norm(H.mean(0), 2) == pytest.approx(c.L)
    assert glm.row_constants(X, glm.LOG_COSH, alpha=alpha).sigma1_prime == 0
    steep = np.arccosh(math.sqrt(1.5)) / 2.0  # where the curvature of log cosh 2w changes fastest
    slope = (np.cosh(2 * (steep + 1e-5)) ** -2 - np.cosh(2 * (steep - 1e-5)) ** -2) / 2e-5 * 4.0
    assert glm.row_constants([[2.0]], glm.LOG_COSH, alpha=alpha).nu1 == pytest.approx(alpha * abs(slope))
    halves = [glm.row_constants(X, glm.Link(s, 0.2), alpha=alpha, batch_size=b) for s in (1.0, 0.5)]
    assert halves[1].sigma1_prime == pytest.approx(halves[0].sigma1_prime / 4)


def test_the_constants_of_a_penalty_are_those_of_the_closed_form():
    p = PenalisedRidge.random(0)
    c = p.constants(p.lam, radius=0.25)
    found = glm.penalty_constants(p.lam, p.w(p.lam)[0], alpha=c.alpha, radius=0.25)
    assert found == pytest.approx((c.L_Phi, c.nu2))
    far = p.w(p.lam)[0] + 0.25 * np.eye(20)[np.argmax(p.lam)] * np.sign(p.w(p.lam)[0])
    assert c.alpha * np.max(np.exp(p.lam) * np.abs(far)) <= found.L_Phi


# Efficiency


def hypergradient_of_weights(p, weights):
    """The hypergradient of a problem whose rows have weights of mean one."""
    A, b, B = (np.tensordot(weights, x, 1) / weights.sum() for x in (p.A, p.b, p.B))
    w = np.linalg.solve(A, b + B @ p.lam)
    return p.r * p.lam + B.T @ np.linalg.solve(A, w - p.target)


@pytest.mark.parametrize("correlated", [False, True], ids=["uncorrelated", "correlated"])
def test_the_influence_of_a_row_is_the_derivative_in_its_weight(correlated):
    p = FiniteQuadratic.random(0, correlated=correlated, n=12, d=4, m=3)
    found, h = p.influence(p.lam), 1e-5
    for i in range(12):
        unit = h * np.eye(12)[i]
        change = hypergradient_of_weights(p, 1 + unit) - hypergradient_of_weights(p, 1 - unit)
        np.testing.assert_allclose(found.psi[i], 12 * change / (2 * h), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.psi.mean(0), 0, atol=1e-12)


def test_the_terms_of_the_influence_are_what_the_stages_contribute():
    """Each stage alone at constant small steps, from the exact moments: N MSE -> its trace, once averaged over N."""
    p = FiniteQuadratic.random(0, n=60, d=4, m=3)
    exact, b = p.moments(p.lam), 2
    traces = p.influence(p.lam).traces(b)
    spread = exact.alpha**2 * np.trace((exact.cross_noise @ np.outer(exact.v, exact.v).reshape(-1)).reshape(3, 3))
    assert traces.cross == pytest.approx(spread / b)
    Hinv = np.linalg.inv(p.A.mean(0))
    by_w = p.B.mean(0).T @ Hinv @ Hinv  # the hypergradient's derivative in w, along v
    xi = exact.noise / exact.alpha**2
    assert traces.inner == pytest.approx(np.trace(by_w @ xi @ by_w.T) / b)
    u = exact.alpha * exact.v
    noise = (exact.jacobian_noise @ np.outer(u, u).reshape(-1)).reshape(4, 4)
    by_v = p.B.mean(0).T @ Hinv
    assert traces.linear == pytest.approx(np.trace(by_v @ noise @ by_v.T) / b)
    whole = p.influence(p.lam)
    assert whole.variance(b) == pytest.approx(np.trace(np.cov(whole.psi.T, bias=True)) / b)
    assert whole.variance_with_exact_pass(b) == pytest.approx(
        np.trace(np.cov((whole.inner + whole.linear).T, bias=True)) / b
    )
    assert whole.variance(b) <= sum(math.sqrt(x) for x in traces) ** 2


# Splits


@pytest.mark.parametrize("costs", [(1.0, 1.0, 1.0), (1.0, 1.7, 0.4)])
def test_the_optimal_split_is_the_best_of_all(costs):
    traces, budget = Traces(4.0, 1.0, 25.0), 300.0
    (t, k, J), mse = optimal_split(traces, budget, costs=costs)
    assert abs(np.dot((t, k, J), costs) - budget) <= sum(costs)
    found = {}
    for t1, k1 in itertools.product(range(5, 200, 1), repeat=2):
        J1 = (budget - costs[0] * t1 - costs[1] * k1) / costs[2]
        if J1 >= 1:
            found[t1, k1] = 4.0 / t1 + 1.0 / k1 + 25.0 / J1
    assert mse <= min(found.values()) * (1 + 1e-12)
    assert min(found.values()) == pytest.approx(mse, rel=1e-3)
    assert max(abs(a - b) for a, b in zip(min(found, key=found.get), (t, k), strict=True)) <= 1
    assert mse <= equal_split_mse(traces, budget, costs=costs)


def test_an_equal_split_costs_at_most_three_times_as_much():
    assert equal_split_mse(Traces(1.0, 0.0, 0.0), 300) == pytest.approx(
        3 * optimal_split(Traces(1.0, 0.0, 0.0), 300).mse
    )
    assert equal_split_mse(Traces(1.0, 1.0, 1.0), 300) == pytest.approx(optimal_split(Traces(1.0, 1.0, 1.0), 300).mse)


def test_burn_in_is_paid_first_and_given_to_both_chains():
    assert burn_in_steps(0.1, 0.05, 1e6) == pytest.approx(300)
    assert burn_in_steps(0.1, 0.05, 600) == pytest.approx(100)
    traces = Traces(4.0, 4.0, 4.0)
    (t, k, J), mse = optimal_split(traces, 600, burn_in=100)
    assert (t, k, J) == Counts(233, 233, 133)
    assert mse == pytest.approx(36.0 / 400)
    with pytest.raises(ParameterError, match="does not cover"):
        optimal_split(traces, 600, burn_in=300)


def test_an_exact_pass_is_taken_where_it_is_better():
    traces, budget = Traces(1.0, 1.0, 16.0), 360.0
    pays = budget * (1 - 4 / 36)  # (1 + 1)^2 / (N - pass) against (1 + 1 + 4)^2 / N
    for cost in (pays - 1, pays + 1):
        (t, k, J), mse = optimal_split(traces, budget, exact_pass=cost)
        if cost < pays:
            assert J is None
            assert t == k == round((budget - cost) / 2)
            assert mse == pytest.approx(4 / (budget - cost))
        else:
            assert J == 240
            assert mse == pytest.approx(36 / budget)
    assert optimal_split(traces, budget, exact_pass=400.0).counts.J == 240
