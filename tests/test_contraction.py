"""theory.md 10.5: does a noisy map contract? What a coupled pair says of w <- A w + b, A = q I + noise, b noise.

A = q I + (s / sqrt d) G with G standard normal: every direction is alike, so ln ||A u|| are independent draws of one
distribution, and the growth rate of the random iteration is its mean, which numpy knows without the code under test.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import bilevax as bx
from bilevax.solvers.contraction import BURN_IN, Pair, coupled_pair

pytestmark = pytest.mark.usefixtures("quick_to_compile")

D, ROWS, SEEDS = 10, 2000, 400
KEYS = jax.random.split(jax.random.key(1), SEEDS)


def affine(x: Array, q: Array, batch: Array) -> Array:
    """A row is [d, d + 1]: the noise of A, and b."""
    return q * x + batch[0, :, :-1] @ x + batch[0, :, -1]


def rows(s: float, additive: float = 1.0) -> bx.Arrays:
    noise = np.random.default_rng(0).normal(size=(ROWS, D, D + 1))
    noise[:, :, :-1] *= s / np.sqrt(D)
    noise[:, :, -1] *= additive
    return bx.Arrays(noise, 1)


@partial(jax.jit, static_argnames="steps")
def pairs(source: bx.Arrays, q: Array, eta: Array, start: Array, steps: int) -> Pair:
    """One for every key."""

    def one(key: Array) -> Pair:
        options = {"key": key, "start": start, "steps": steps, "step_size": lambda j: eta}
        return coupled_pair(affine, jnp.zeros(D), q, source, **options)

    return jax.vmap(one)(KEYS)


def followed(source: bx.Arrays, q: float, steps: int, *, eta: float = 1.0, start: int = 0) -> Pair:
    return pairs(source, jnp.float64(q), jnp.float64(eta), jnp.int32(start), steps)


def truth(q: float, s: float) -> tuple[float, float]:
    """Mean of ln ||A u|| and half the logarithm of the mean of ||A u||^2."""
    g = np.random.default_rng(9).normal(size=(1_000_000, D)) * s / np.sqrt(D)
    squares = (q + g[:, 0]) ** 2 + np.sum(g[:, 1:] ** 2, axis=1)
    return float(0.5 * np.log(squares).mean()), float(0.5 * np.log(squares.mean()))


TABLE = {
    2.0: (1.0, 1.0, 1.0),
    1.3: (0.99, 0.99, 0.99),
    1.1: (0.92, 0.89, 0.53),
    1.05: (0.73, 0.65, 0.11),
    1.01: (0.36, 0.03, 0.02),
}


@pytest.mark.parametrize(("q", "fractions"), TABLE.items(), ids=str)
def test_growth_is_named_within_20_steps_at_least_as_often_as_in_the_table(q: float, fractions: Any) -> None:
    for s, fraction in zip((0.0, 0.1, 0.3), fractions, strict=True):
        assert np.mean(followed(rows(s), q, 20).expands) >= fraction - 1e-6, s


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


@pytest.mark.parametrize(("q", "s"), [(0.9, 0.3), (0.99, 0.1), (1.1, 0.3), (0.5, 0.0), (2.0, 0.0)])
def test_the_rate_and_its_standard_error_are_right(q: float, s: float) -> None:
    pair = followed(rows(s), q, 400)
    rate, second = truth(q, s)
    spread = np.std(pair.rate) / np.sqrt(SEEDS)
    finite_sample = 4 * s / np.sqrt(D * ROWS)  # 2,000 rows are not the distribution
    assert abs(np.mean(pair.rate) - rate) < 4 * spread + finite_sample + 1e-9
    assert abs(np.mean(pair.second_moment) - second) < 4 * spread + 2 * finite_sample + 1e-9
    if s:
        np.testing.assert_allclose(np.sqrt(np.mean(pair.standard_error**2)), np.std(pair.rate), rtol=0.15)
    else:
        np.testing.assert_allclose(pair.standard_error, 0.0, atol=1e-8)


def test_a_contractive_mean_whose_second_moment_grows() -> None:
    """A is .2 I or 1.7 I: its mean is .95 I, E ln A = ln sqrt(.34) < 0, E A^2 = 1.465 > 1."""
    factors = np.tile([0.2, 1.7], ROWS // 2)
    data = np.zeros((ROWS, D, D + 1))
    data[:, :, :-1] = factors[:, None, None] * np.eye(D)
    pair = followed(bx.Arrays(data, 1), 0.0, 400)
    assert np.all(pair.rate < 0)
    assert np.all(pair.second_moment > 0)
    assert not np.any(pair.expands)
    np.testing.assert_allclose(np.mean(pair.rate), 0.5 * np.log(0.34), atol=0.02)
    np.testing.assert_allclose(np.mean(pair.second_moment), 0.5 * np.log(1.465), atol=0.02)


def test_a_shorter_step_contracts_where_the_map_itself_does_not() -> None:
    """q = .9, s = .6: the mean map contracts, the random one has rate ln sqrt(1.17); at eta = .2, ln sqrt(.975)."""
    source = rows(0.6)
    whole, short = followed(source, 0.9, 400), followed(source, 0.9, 400, eta=0.2)
    assert np.mean(whole.expands) >= 0.99
    assert np.mean(short.expands) <= 0.01
    assert abs(np.mean(short.rate) - truth(0.98, 0.12)[0]) < 0.002


def test_additive_noise_cancels() -> None:
    calm, loud = (followed(rows(0.1, additive), 0.99, 60) for additive in (0.0, 1e3))
    for a, b in zip(calm, loud, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_pair_sees_the_minibatches_from_its_start_on() -> None:
    """Those of the iteration it watches: others at another number, of the same key."""
    source = rows(0.3)
    first, again, later = (followed(source, 0.9, 60, start=start) for start in (0, 0, 500))
    assert np.array_equal(first.rate, again.rate)
    assert np.mean(np.asarray(first.rate) == np.asarray(later.rate)) < 0.01
    np.testing.assert_allclose(np.mean(later.rate), np.mean(first.rate), atol=0.005)


def test_growth_of_a_non_normal_map_ends() -> None:
    """.5 I + shift grows for tens of steps: over a long window it is seen to contract."""
    A = 0.5 * np.eye(D) + np.eye(D, k=1)
    data = np.zeros((ROWS, D, D + 1))
    data[:, :, :-1] = A
    pair = followed(bx.Arrays(data, 1), 0.0, 400)
    assert not np.any(pair.expands)
    np.testing.assert_allclose(pair.rate, np.log(0.5), atol=0.1)


def test_the_steps_before_the_direction_has_settled_are_left_out() -> None:
    """A direction of which nine tenths vanish in the first step: only what remains is of interest."""
    assert BURN_IN == 10
    data = np.zeros((ROWS, D, D + 1))
    data[:, 0, 0] = 1.2
    pair = followed(bx.Arrays(data, 1), 0.0, 20)
    np.testing.assert_allclose(pair.rate, np.log(1.2), rtol=1e-9)
    np.testing.assert_allclose(pair.second_moment, np.log(1.2), rtol=1e-9)
    assert np.all(pair.expands)
