"""Does a noisy map contract? What a coupled pair, and the solver that asks it, say of w <- A w + b, A = q I + noise.

A = q I + (s / sqrt d) G with G standard normal: every direction is alike, so ln ||A u|| are independent draws of one
distribution, and the growth rate of the random iteration is its mean, which numpy knows without the code under test.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import bilevax as bx
from bilevax.core.config import canonicalize
from bilevax.solvers.stability import BURN_IN, CoupledPair, coupling

OPTIMISED = True
D, ROWS, SEEDS = 10, 2000, 400
KEYS = jax.random.split(jax.random.key(1), SEEDS)


def affine(x: Array, q: Array, batch: Array) -> Array:
    """A row is [d, d + 1]: the noise of A, and b."""
    mean = jnp.mean(batch, axis=0)
    return q * x + mean[:, :-1] @ x + mean[:, -1]


def rows(s: float, additive: float = 1.0) -> bx.Arrays:
    noise = np.random.default_rng(0).normal(size=(ROWS, D, D + 1))
    noise[:, :, :-1] *= s / np.sqrt(D)
    noise[:, :, -1] *= additive
    return bx.Arrays(noise, 1)


@jax.jit
def pairs(source: bx.Arrays, q: Array, eta: Array, start: Array, steps: Array) -> CoupledPair:
    """One for every key."""

    def one(key: Array) -> CoupledPair:
        options = {"key": key, "start": start, "steps": steps, "step_size": lambda j: eta}
        points = jnp.zeros(D), jax.random.normal(jax.random.fold_in(key, np.uint32(2**32 - 1)), (D,))
        return coupling(affine, points, q, source, **options)

    return jax.vmap(one)(KEYS)


def followed(source: bx.Arrays, q: float, steps: int, *, eta: float = 1.0, start: int = 0) -> CoupledPair:
    return pairs(source, jnp.float64(q), jnp.float64(eta), jnp.int32(start), jnp.int32(steps))


def truth(q: float, s: float) -> tuple[float, float]:
    """Mean of ln ||A u|| and half the logarithm of the mean of ||A u||^2."""
    g = np.random.default_rng(9).normal(size=(200_000, D)) * s / np.sqrt(D)
    squares = (q + g[:, 0]) ** 2 + np.sum(g[:, 1:] ** 2, axis=1)
    return float(0.5 * np.log(squares).mean()), float(0.5 * np.log(squares.mean()))


TABLE = {
    2.0: (1.0, 1.0, 1.0),
    1.3: (0.99, 0.99, 0.99),
    1.1: (0.92, 0.89, 0.53),
    1.05: (0.73, 0.65, 0.11),
    1.01: (0.36, 0.03, 0.02),
}


@pytest.mark.slow_but("1.3-(0.99, 0.99, 0.99)")
@pytest.mark.parametrize(("q", "fractions"), TABLE.items(), ids=str)
def test_growth_is_named_within_20_steps_at_least_as_often_as_in_the_table(q: float, fractions: Any) -> None:
    for s, fraction in zip((0.0, 0.1, 0.3), fractions, strict=True):
        assert np.mean(followed(rows(s), q, 20).expands) >= fraction - 1e-6, s


@pytest.mark.slow_but("0.3-0.9")
@pytest.mark.parametrize("factor", [0.9, 0.99])
@pytest.mark.parametrize("s", [0.0, 0.1, 0.3])
def test_false_alarms_are_at_most_one_in_a_hundred(factor: float, s: float) -> None:
    """Factor is that of the random iteration, exp(rate): q I alone would be .94 for .99 at s = .3."""
    q = float(np.sqrt(factor**2 - s**2))
    assert np.exp(truth(q, s)[0]) < factor + 0.001
    alarms = np.zeros(SEEDS, bool)
    for steps in (20, 60, 400):
        alarms |= np.asarray(followed(rows(s), q, steps).expands)
    assert alarms.mean() <= 0.01


@pytest.mark.slow_but("0.5-0.0", "1.1-0.3")
@pytest.mark.parametrize(("q", "s"), [(0.9, 0.3), (0.99, 0.1), (1.1, 0.3), (0.5, 0.0), (2.0, 0.0)])
def test_the_rate_and_its_standard_error_are_right(q: float, s: float) -> None:
    pair = followed(rows(s), q, 400)
    rate, second = truth(q, s)
    spread = np.std(pair.lyapunov_exponent) / np.sqrt(SEEDS)
    finite_sample = 4 * s / np.sqrt(D * ROWS)  # 2,000 rows are not the distribution
    assert abs(np.mean(pair.lyapunov_exponent) - rate) < 4 * spread + finite_sample + 1e-9
    assert abs(np.mean(pair.second_moment) - second) < 4 * spread + 2 * finite_sample + 1e-9
    if s:
        np.testing.assert_allclose(np.sqrt(np.mean(pair.standard_error**2)), np.std(pair.lyapunov_exponent), rtol=0.15)
    else:
        np.testing.assert_allclose(pair.standard_error, 0.0, atol=1e-8)


@pytest.mark.slow
def test_a_contractive_mean_whose_second_moment_grows() -> None:
    """A is .2 I or 1.7 I: its mean is .95 I, E ln A = ln sqrt(.34) < 0, E A^2 = 1.465 > 1."""
    factors = np.tile([0.2, 1.7], ROWS // 2)
    data = np.zeros((ROWS, D, D + 1))
    data[:, :, :-1] = factors[:, None, None] * np.eye(D)
    pair = followed(bx.Arrays(data, 1), 0.0, 400)
    assert np.all(pair.lyapunov_exponent < 0)
    assert np.mean(pair.second_moment > 0) > 0.98
    assert not np.any(pair.expands)
    np.testing.assert_allclose(np.mean(pair.lyapunov_exponent), 0.5 * np.log(0.34), atol=0.02)
    np.testing.assert_allclose(np.mean(pair.second_moment), 0.5 * np.log(1.465), atol=0.02)


@pytest.mark.slow
def test_a_shorter_step_contracts_where_the_map_itself_does_not() -> None:
    """q = .9, s = .6: the mean map contracts, the random one has rate ln sqrt(1.17); at eta = .2, ln sqrt(.975)."""
    source = rows(0.6)
    whole, short = followed(source, 0.9, 400), followed(source, 0.9, 400, eta=0.2)
    assert np.mean(whole.expands) >= 0.99
    assert np.mean(short.expands) <= 0.01
    assert abs(np.mean(short.lyapunov_exponent) - truth(0.98, 0.12)[0]) < 0.002


def test_additive_noise_cancels() -> None:
    calm, loud = (followed(rows(0.1, additive), 0.99, 60) for additive in (0.0, 1e3))
    for a, b in zip(calm, loud, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_pair_sees_the_minibatches_from_its_start_on() -> None:
    """Those of the iteration it watches: others at another number, of the same key."""
    source = rows(0.3)
    first, again, later = (followed(source, 0.9, 60, start=start) for start in (0, 0, 500))
    assert np.array_equal(first.lyapunov_exponent, again.lyapunov_exponent)
    assert np.mean(np.asarray(first.lyapunov_exponent) == np.asarray(later.lyapunov_exponent)) < 0.01
    np.testing.assert_allclose(np.mean(later.lyapunov_exponent), np.mean(first.lyapunov_exponent), atol=0.005)


def test_growth_of_a_non_normal_map_ends() -> None:
    """.5 I + shift grows for tens of steps: over a long window it is seen to contract."""
    A = 0.5 * np.eye(D) + np.eye(D, k=1)
    data = np.zeros((ROWS, D, D + 1))
    data[:, :, :-1] = A
    pair = followed(bx.Arrays(data, 1), 0.0, 400)
    assert not np.any(pair.expands)
    np.testing.assert_allclose(pair.lyapunov_exponent, np.log(0.5), atol=0.1)


def test_the_steps_before_the_direction_has_settled_are_left_out() -> None:
    """A direction of which nine tenths vanish in the first step: only what remains is of interest."""
    assert BURN_IN == 10
    data = np.zeros((ROWS, D, D + 1))
    data[:, 0, 0] = 1.2
    pair = followed(bx.Arrays(data, 1), 0.0, 20)
    np.testing.assert_allclose(pair.lyapunov_exponent, np.log(1.2), rtol=1e-9)
    np.testing.assert_allclose(pair.second_moment, np.log(1.2), rtol=1e-9)
    assert np.all(pair.expands)


# The solver, which asks the pair where a chain looks suspicious


@jax.jit
def chains(source: bx.Arrays, q: Array, solver: bx.FixedPoint, x0: Array) -> Any:
    """One for every key."""
    return jax.vmap(lambda key: solver.solve(affine, x0, q, source, key=key))(KEYS)


def solved(s: float, q: float, steps: int, x0: float = 0.0, eta: float = 1.0) -> Any:
    return chains(rows(s), jnp.float64(q), canonicalize(bx.FixedPoint(steps, eta)), jnp.full(D, x0))


@pytest.mark.slow_but("1.3-0.3-20-0.95")
@pytest.mark.parametrize(
    ("q", "s", "steps", "least"), [(1.3, 0.1, 20, 0.95), (1.1, 0.1, 50, 0.9), (1.3, 0.3, 20, 0.95)]
)
def test_chains_that_expand_are_named(q: float, s: float, steps: int, least: float) -> None:
    """From the fixed point itself, where there is nothing but noise, and from far away."""
    for x0 in (0.0, 100.0):
        out = solved(s, q, steps, x0)
        assert np.mean(out.code == bx.Code.NOT_CONTRACTIVE) >= least
        assert np.all(np.isfinite(out.value))


def test_chains_that_grow_by_twelve_orders_have_diverged() -> None:
    assert np.all(solved(0.1, 2.0, 60).code == bx.Code.DIVERGED)
    lost = solved(0.1, 2.0, 2000)  # beyond the largest float: the last finite point is kept
    assert np.all(lost.code == bx.Code.DIVERGED)
    assert np.all(np.isfinite(lost.value))
    assert np.all(np.abs(lost.last_step - 1020) < 20)


@pytest.mark.parametrize(("q", "s"), [(0.5, 0.1), (0.9, 0.3), (0.95, 0.3), (0.99, 0.0), (0.99, 0.1)])
def test_chains_that_contract_are_accused_at_most_once_in_a_hundred(q: float, s: float) -> None:
    for steps in (20, 50, 400):
        for x0 in (0.0, 100.0):
            out = solved(s, q, steps, x0)
            assert np.mean(out.code != bx.Code.OK) <= 0.01
            assert np.all((out.diagnostic_products == 0) | (out.diagnostic_products == 2 * 400))
            assert np.mean(out.diagnostic_products > 0) <= 0.1


def test_noise_that_leads_back_to_the_start_is_hardly_ever_suspected() -> None:
    """Along one direction a chain from the fixed point is three times as far in the end as half-way in one of six."""
    noise = np.random.default_rng(0).normal(size=(ROWS, D, D + 1))
    noise[:, :, :-1] = noise[:, 1:, -1] = 0.0
    for steps in (64, 400):
        out = chains(bx.Arrays(noise, 1), jnp.float64(0.9), canonicalize(bx.FixedPoint(steps, 1.0)), jnp.zeros(D))
        assert np.mean(out.diagnostic_products > 0) <= 0.01


def test_chains_whose_mean_contracts_and_whose_second_moment_grows_are_unstable() -> None:
    """q = .8, s = .8: the mean map contracts by .8; the random one expands, by ln sqrt(1.28)."""
    out = solved(0.8, 0.8, 100)
    named = np.asarray(out.code == bx.Code.UNSTABLE)
    assert named.mean() >= 0.95
    assert np.all(out.code != bx.Code.NOT_CONTRACTIVE)
    assert np.all(np.asarray(out.diagnostic_products)[named] == 2 * 400 + 50 * ROWS)
    assert "too large for this batch size" in bx.Code.UNSTABLE.message


def test_a_smaller_step_makes_them_stable() -> None:
    """At eta = .3: q = .94, s = .24, second moment .9412."""
    assert np.mean(solved(0.8, 0.8, 100, eta=0.3).code != bx.Code.OK) <= 0.01


def test_a_second_moment_that_grows_alone_is_seen_by_the_pair() -> None:
    """A is .55 I or 1.35 I: E ln A = -.149, E A = .95, E A^2 = 1.0625."""
    data = np.zeros((ROWS, D, D + 1))
    data[:, :, :-1] = np.tile([0.55, 1.35], ROWS // 2)[:, None, None] * np.eye(D)
    pair = followed(bx.Arrays(data, 1), 0.0, 4000)
    assert not np.any(pair.expands)
    assert np.mean(pair.spreads) > 0.3
    np.testing.assert_allclose(np.mean(pair.second_moment), 0.5 * np.log(1.0625), atol=0.002)


def test_what_is_not_random_adds_nothing_to_the_second_moment() -> None:
    """.95 times a rotation seen through a shear: lengths grow by up to 40 and fall again, for ever."""
    turn = np.array([[np.cos(1.0), -np.sin(1.0)], [np.sin(1.0), np.cos(1.0)]])
    shear = np.diag([1.0, 50.0])
    data = np.zeros((ROWS, D, D + 1))
    data[:, :2, :2] = 0.95 * shear @ turn @ np.linalg.inv(shear)
    pair = followed(bx.Arrays(data, 1), 0.0, 400)
    assert not np.any(pair.spreads | pair.expands)
    np.testing.assert_allclose(pair.second_moment, pair.lyapunov_exponent, atol=1e-9)
    np.testing.assert_allclose(pair.lyapunov_exponent, np.log(0.95), atol=0.02)
