"""The losses' own gradient and Hessian-vector product against autodiff, on few rows and piece by piece."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.linalg import row_chunks

SHAPES = {"none": (), "global": (), "class": (3,), "feature": (4,), "weight": (3, 4), "groups": (2,)}
PENALTIES = {name: name for name in SHAPES} | {"none": None, "groups": bx.Groups([0, 0, 1, 1])}
LOSSES = {loss.__name__: loss for loss in (bx.Squared, bx.BinaryLogistic, bx.MultinomialLogistic)}
EVERY = product(("few", "many"), LOSSES, SHAPES, ("weights", "with-bias"), ("plain", "weighted"))
CASES = [case for case in EVERY if case[2] == "feature" or (case[0], case[4]) == ("few", "plain")]
"""Every way to read rows under one penalty, and every penalty, which reads none, beside one way to read rows."""


def is_slow(case):
    """Half of the cases: the others have each loss with any two of the rest, and with each penalty."""
    rows, loss, penalty, bias, weighted = case
    if penalty == "feature":
        return ((rows == "many") + (bias == "with-bias") + (weighted == "weighted")) % 2 == 0
    return (list(LOSSES).index(loss) + list(SHAPES).index(penalty) + (bias == "with-bias")) % 2 == 0


@jax.jit
def derivatives(loss, w, v, lam, batch):
    """The loss's own, and those of autodiff: value, gradient, and Hessian products in w and in lam."""

    def second(gradient):
        return jax.jvp(lambda x: gradient(x, lam, batch), (w,), (v,))[1]

    def back(gradient):
        return jax.vjp(lambda w, lam: gradient(w, lam, batch), w, lam)[1](v)

    own = lambda *args: loss.value_and_grad(*args)[1]  # noqa: E731
    product, (_, across) = second(jax.grad(loss)), back(jax.grad(loss))
    ours = loss.value_and_grad(w, lam, batch), loss.hessian_product(w, lam, batch, v), second(own), back(own)
    return ours, (jax.value_and_grad(loss)(w, lam, batch), product, product, (product, across))


@pytest.mark.parametrize(
    ("rows", "loss", "penalty", "bias", "weighted"),
    [pytest.param(*case, id="-".join(case), marks=pytest.mark.slow if is_slow(case) else ()) for case in CASES],
)
def test_own_derivatives_are_those_of_autodiff(rows, loss, penalty, bias, weighted, monkeypatch):
    """6 rows of 4 features as one piece, or as a piece of 4 and the 2 left over."""
    if rows == "many":
        monkeypatch.setattr(row_chunks, "MANY", 1)
        monkeypatch.setattr(row_chunks, "PIECE", 16)
    rng = np.random.default_rng(0)
    outputs, p, b = 1 if loss == "BinaryLogistic" else 3, 4, 6
    shape = tuple(outputs if size == 3 else size for size in SHAPES[penalty])

    def tree():
        weights = rng.normal(size=(outputs, p))
        return {"weights": weights, "bias": rng.normal(size=outputs)} if bias == "with-bias" else weights

    w, v, lam = tree(), tree(), rng.normal(size=shape)
    y = rng.normal(size=(b, outputs)) if loss == "Squared" else rng.integers(0, max(outputs, 2), b)
    batch = [rng.normal(size=(b, p)), y]
    batch += [rng.uniform(size=b)] if weighted == "weighted" else []
    derivatives.clear_cache()  # it does not know into how many pieces rows are cut
    ours, truth = derivatives(LOSSES[loss](PENALTIES[penalty]), w, v, lam, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), ours, truth)


def test_many_rows_are_read_in_pieces():
    """What is kept of a pass over 2^23 entries, or for its derivative in reverse, is no copy of them."""
    X = jax.ShapeDtypeStruct((1 << 18, 32), jnp.float32)
    y, w = jax.ShapeDtypeStruct((1 << 18,), jnp.int32), jax.ShapeDtypeStruct((1, 32), jnp.float32)
    loss = bx.BinaryLogistic()

    def product(w, X, y):
        return jax.vjp(lambda w: loss.value_and_grad(w, None, (X, y))[1], w)[1](w)[0]

    memory = jax.jit(product).lower(w, X, y).compile().memory_analysis()
    assert memory.temp_size_in_bytes < X.size  # a quarter of X


def test_adjoint_product_of_a_diagonal_step_is_that_of_the_map():
    """v - H (s v), not v - s (H v): they differ unless s is a scalar."""
    rng = np.random.default_rng(1)
    loss = bx.MultinomialLogistic("feature")
    w, v, s = (jnp.asarray(rng.uniform(0.1, 1.0, size=(3, 4))) for _ in range(3))
    lam, batch = jnp.asarray(rng.normal(size=4)), (jnp.asarray(rng.normal(size=(6, 4))), jnp.arange(6) % 3)
    both = jax.jit(lambda step: (step.adjoint_product(w, lam, batch, v), jax.vjp(step, w, lam, batch)[1](v)[0]))
    for inner in (loss, lambda w, lam, batch: loss(w, lam, batch)):  # with a product of its own, and without
        found, truth = both(bx.GradientStep(inner, s))
        np.testing.assert_allclose(found, truth, rtol=1e-12)
