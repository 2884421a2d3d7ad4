"""Step sizes: those that the theory asks for, and those with which nothing converges (fault C16 of docs/faults.md)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax.testing.closed_forms import FiniteQuadratic
from bilevax.theory import published_steps

P = FiniteQuadratic.random(0)
C = P.constants(P.lam, batch_size=20)


def test_optimal_steps_are_those_of_the_theory():
    q, s = C.q, C.sigma1_prime
    beta = 2 / (1 - q**2)
    assert bx.Harmonic.optimal(C) == bx.Harmonic(beta, beta * (1 + C.sigma2))
    linear = bx.Harmonic.optimal(C, stage="linear")
    np.testing.assert_allclose((linear.beta, linear.gamma), (beta, beta * (1 + 2 * s / (1 - q) ** 2)))
    exact = P.constants(P.lam)
    assert bx.Harmonic.optimal(exact) == bx.Harmonic(*published_steps(q))
    with pytest.raises(bx.ParameterError, match="stage must be one of 'inner', 'linear'"):
        bx.Harmonic.optimal(C, stage="outer")


def test_steps_that_are_long_enough_and_not_too_long_are_not_warned_about():
    for stage in ("inner", "linear"):
        steps = bx.Harmonic.optimal(C, stage=stage)
        assert steps.checked(C, stage=stage) is steps


def test_a_beta_that_is_too_small_is_warned_about():
    limit = 1 / (1 - C.q**2)
    with pytest.warns(UserWarning, match=r"inner solver: beta=.* is too small.* falls as 1/j for beta > .*take beta="):
        bx.Harmonic(0.9 * limit, 1e4).checked(C)
    bx.Harmonic(1.1 * limit, 1e4).checked(C)


def test_first_steps_that_are_too_long_for_the_noise_are_warned_about():
    steps = bx.Harmonic(*published_steps(C.q))
    with pytest.warns(UserWarning, match=r"linear solver: the first step beta/gamma=1 is longer than"):
        steps.checked(C, stage="linear")
    assert steps.checked(P.constants(P.lam), stage="linear") is steps


@pytest.mark.parametrize("power", [1.01, 2.0, np.inf])
def test_c16_polynomial_steps_that_sum_to_a_finite_number_are_refused(power):
    with pytest.raises(bx.ParameterError, match=r"power must be at most 1.*stop short of the solution"):
        bx.Polynomial(1.0, power)


SUMMABLE = {
    "geometric": lambda j: 0.99**j,
    "1/j^1.2": lambda j: (1.0 + j.astype(float)) ** -1.2,
    "zero in the end": lambda j: jnp.where(j < 5000, 0.5, 0.0),
    "optax": optax.exponential_decay(0.5, 100, 0.9),
}


@pytest.mark.parametrize("name", SUMMABLE)
def test_c16_a_function_whose_steps_sum_to_a_finite_number_is_warned_about(name):
    with pytest.warns(UserWarning, match="steps sum to a finite number") as caught:
        bx.FixedPoint(100, SUMMABLE[name])
    assert caught[0].filename == __file__


DIVERGENT = {
    "constant": lambda j: 0.5,
    "two constants": lambda j: jnp.where(j < 100, 0.5, 0.01),
    "1/j": lambda j: 3.0 / (5.0 + j.astype(float)),
    "1/j, late": lambda j: 1e4 / (1e5 + j.astype(float)),
    "1/sqrt(j)": lambda j: 0.5 / jnp.sqrt(1.0 + j.astype(float)),
    "optax": optax.constant_schedule(0.1),
}


@pytest.mark.parametrize("name", DIVERGENT)
def test_c16_control_other_functions_are_not(name):
    bx.FixedPoint(100, DIVERGENT[name])


@pytest.mark.parametrize("steps", [bx.Harmonic(1e-3, 1e6), bx.Polynomial(1e-3, 1.0, 1e6), bx.Constant(1e-9)])
def test_c16_control_shipped_steps_are_not(steps):
    bx.FixedPoint(100, steps)


@pytest.mark.slow
def test_c16_the_steps_that_are_refused_do_stop_short():
    """What the warning says: with 0.9^j the error ends where prod(1 - eta_j (1 - q)) leaves it, at any count."""
    p = FiniteQuadratic.random(0, n=20, d=3, m=2)
    sources = bx.Arrays(p.train_data), bx.Arrays(p.val_data)
    with pytest.warns(UserWarning, match="steps sum"):
        solver = bx.FixedPoint(3000, lambda j: 0.5 * 0.5 ** j.astype(float))
    sid = bx.SID(solver, bx.FixedPoint(1))

    est = bx.hypergradient(p.problem, sid, np.zeros(3), p.lam, *sources, key=jax.random.key(0))
    left = np.linalg.norm(est.w - p.w(p.lam)) / np.linalg.norm(p.w(p.lam))
    assert left > 0.1
