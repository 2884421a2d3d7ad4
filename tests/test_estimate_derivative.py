"""The derivative of outer_value is the hypergradient; what has no derivative in reverse mode is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

import bilevax as bx

N, D = 8, 3
_RNG = np.random.default_rng(1)
X, Y = _RNG.normal(size=(N, D)), _RNG.normal(size=N)
XV, YV = _RNG.normal(size=(N, D)), _RNG.normal(size=N)
KEY = jax.random.key(0)
LAM = jnp.asarray([-0.5, 0.0, 0.3])


def inner(w: Array, lam: Array, batch: Any) -> Array:
    return 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def outer(w: Array, lam: Array, batch: Any) -> Array:
    return 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2)


PROBLEM = bx.Problem(bx.GradientStep(inner, 0.4), outer)
SID = bx.SID(bx.FixedPoint(200), bx.FixedPoint(200))
TRAIN, VAL = bx.Arrays((X, Y)), bx.Arrays((XV, YV))


def estimate(lam: Array, w0: Array | None = None, problem: Any = PROBLEM, train: Any = TRAIN) -> bx.Estimate:
    start = jnp.zeros(D) if w0 is None else w0
    return bx.hypergradient(problem, SID, start, lam, train, VAL, key=KEY, report=False)


def closed(lam: np.ndarray) -> float:
    w = np.linalg.solve(X.T @ X / N + np.diag(np.exp(lam)), X.T @ Y / N)
    return float(0.5 * np.mean((XV @ w - YV) ** 2))


def slopes(f: Any, lam: np.ndarray, step: float) -> np.ndarray:
    moves = step * np.eye(D)
    return np.stack([(f(lam + e) - f(lam - e)) / (2 * step) for e in moves])


TRUE = slopes(closed, np.asarray(LAM), 1e-5)
TRUE_SECOND = slopes(lambda lam: slopes(closed, lam, 1e-3), np.asarray(LAM), 1e-3)


def test_grad_of_the_outer_value_is_the_hypergradient() -> None:
    value, slope = jax.value_and_grad(lambda lam: estimate(lam).outer_value)(LAM)
    np.testing.assert_allclose(slope, TRUE, rtol=1e-7)
    np.testing.assert_array_equal(slope, estimate(LAM).value)  # it is that number, not another computation of it
    assert float(value) == float(estimate(LAM).outer_value)
    push = jax.jvp(lambda lam: estimate(lam).outer_value, (LAM,), (jnp.asarray([1.0, 2.0, -1.0]),))[1]
    np.testing.assert_allclose(push, TRUE @ [1.0, 2.0, -1.0], rtol=1e-7)


def test_with_jit_vmap_and_ones_own_loop() -> None:
    """A function of lam through it, with a part of one's own, under vmap, jit and optax."""
    rule = optax.sgd(0.5)

    def loss(lam: Array) -> tuple[Array, Array]:
        est = estimate(lam)
        return 3.0 * est.outer_value + jnp.sum(lam**2), est.code

    @jax.jit
    def step(lams: Array) -> tuple[Array, Array, Array]:
        (_, code), slope = jax.vmap(jax.value_and_grad(loss, has_aux=True))(lams)
        updates, _ = rule.update(slope, rule.init(lams))
        return optax.apply_updates(lams, updates), slope, code

    lams = jnp.stack([LAM, LAM + 0.5])
    new, slope, code = step(lams)
    np.testing.assert_array_equal(code, bx.Code.OK)
    for lam, found in zip(np.asarray(lams), slope, strict=True):
        np.testing.assert_allclose(found, 3 * slopes(closed, lam, 1e-5) + 2 * lam, rtol=1e-6)
    np.testing.assert_allclose(new, lams - 0.5 * slope, rtol=1e-12)


@pytest.mark.slow
def test_the_derivative_of_the_value_is_in_forward_mode_only() -> None:
    np.testing.assert_allclose(jax.jacfwd(lambda lam: estimate(lam).value)(LAM), TRUE_SECOND, rtol=1e-5)
    np.testing.assert_allclose(jax.hessian(lambda lam: estimate(lam).outer_value)(LAM), TRUE_SECOND, rtol=1e-5)
    sentence = r"reverse mode of an estimate is that of its outer_value in lam alone"
    for wrong in (
        lambda lam: jnp.sum(estimate(lam).value),
        lambda lam: jnp.sum(estimate(lam).w),
        lambda lam: jnp.sum(jax.grad(lambda lam: estimate(lam).outer_value)(lam)),
    ):
        with pytest.raises(bx.ParameterError, match=sentence):
            jax.grad(wrong)(LAM)


def test_the_derivative_in_the_start_is_zero_and_in_the_data_refused() -> None:
    in_start, in_lam = jax.grad(lambda w0, lam: estimate(lam, w0).outer_value, (0, 1))(jnp.ones(D), LAM)
    np.testing.assert_array_equal(in_start, 0.0)
    np.testing.assert_allclose(in_lam, TRUE, rtol=1e-7)
    with pytest.raises(bx.ParameterError, match="in lam alone"):
        jax.grad(lambda X: estimate(LAM, train=bx.Arrays((X, jnp.asarray(Y)))).outer_value)(jnp.asarray(X))


def test_a_failed_estimate_has_a_derivative_that_is_not_a_number() -> None:
    failing = bx.Problem(bx.GradientStep(inner, 0.4), lambda w, lam, batch: jnp.sqrt(-1.0 - outer(w, lam, batch)))
    slope = jax.grad(lambda lam: estimate(lam, problem=failing).outer_value)(LAM)
    assert np.isnan(slope).all()


def test_value_and_hypergradient_too() -> None:
    def value(lam: Array) -> Array:
        return bx.value_and_hypergradient(PROBLEM, SID, jnp.zeros(D), lam, TRAIN, VAL, key=KEY)[0]

    np.testing.assert_allclose(jax.jit(jax.grad(value))(LAM), TRUE, rtol=1e-7)
