"""The losses' own Hessian-vector product against the derivative of the derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx

OPTIMISED = True
SHAPES = {"none": (), "global": (), "class": (3,), "feature": (4,), "weight": (3, 4), "groups": (2,)}
PENALTIES = {name: name for name in SHAPES} | {"none": None, "groups": bx.Groups([0, 0, 1, 1])}


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("bias", [False, True], ids=["weights", "with-bias"])
@pytest.mark.parametrize("penalty", SHAPES)
@pytest.mark.parametrize("loss", [bx.Squared, bx.BinaryLogistic, bx.MultinomialLogistic])
def test_hessian_product_is_the_second_derivative(loss, penalty, bias, weighted):
    rng = np.random.default_rng(0)
    outputs, p, b = 1 if loss is bx.BinaryLogistic else 3, 4, 6
    shape = tuple(outputs if size == 3 else size for size in SHAPES[penalty])

    def tree():
        weights = jnp.asarray(rng.normal(size=(outputs, p)))
        return {"weights": weights, "bias": jnp.asarray(rng.normal(size=outputs))} if bias else weights

    w, v, lam = tree(), tree(), jnp.asarray(rng.normal(size=shape))
    y = rng.normal(size=(b, outputs)) if loss is bx.Squared else rng.integers(0, max(outputs, 2), b)
    batch = [jnp.asarray(rng.normal(size=(b, p))), jnp.asarray(y)]
    batch += [jnp.asarray(rng.uniform(size=b))] if weighted else []
    one = loss(PENALTIES[penalty])
    ours = one.hessian_product(w, lam, batch, v)
    truth = jax.jvp(lambda x: jax.grad(one)(x, lam, batch), (w,), (v,))[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), ours, truth)


def test_adjoint_product_of_a_diagonal_step_is_that_of_the_map():
    """v - H (s v), not v - s (H v): they differ unless s is a scalar."""
    rng = np.random.default_rng(1)
    loss = bx.MultinomialLogistic("feature")
    w, v, s = (jnp.asarray(rng.uniform(0.1, 1.0, size=(3, 4))) for _ in range(3))
    lam, batch = jnp.asarray(rng.normal(size=4)), (jnp.asarray(rng.normal(size=(6, 4))), jnp.arange(6) % 3)
    for inner in (loss, lambda w, lam, batch: loss(w, lam, batch)):  # with a product of its own, and without
        step = bx.GradientStep(inner, s)
        truth = jax.vjp(step, w, lam, batch)[1](v)[0]
        np.testing.assert_allclose(step.adjoint_product(w, lam, batch, v), truth, rtol=1e-12)
