"""An equilibrium model: a network of infinite depth, trained through its fixed point.

The state of each image is not a layer's output but the point where a layer changes nothing any more:

    minimise over lam = (A', U, b, V)   mean_i l(z_i(lam) V, y_i),      z_i = tanh(z_i A + x_i U + b)

The inner map is the layer itself, of all images at once; no loss is descended in it, so the linear system of the
hypergradient is not symmetric. A = .9 A' / (1 + |A'|_F^2)^(1/2) has a norm below .9, so that the layer contracts.
``ITD`` differentiates two hundred layers one after the other; ``SID`` solves one linear system at the fixed point and
keeps nothing of the way there. ``main`` compares the two, in float64.

With one seed, of 898 images and 32 units: the two hypergradients differ by 2e-11 of their length; after 150 steps the
training loss is .010, and the accuracy on other images .971.

References: Bai, Kolter, Koltun (2019), arXiv:1909.01377; Grazzi, Franceschi, Pontil, Salzo (2020), arXiv:2006.16218,
which compares the two derivatives on such models.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import bilevax as bx

LAYERS = 200


# %%
# The layer is the inner map Phi(z, lam, batch), the readout the outer loss E(z, lam, batch).


def layer(z, lam, batch):
    A = 0.9 * lam["A"] / jnp.sqrt(1.0 + jnp.sum(lam["A"] ** 2))
    return jnp.tanh(z @ A + batch["x"] @ lam["U"] + lam["b"][None])


def readout_loss(z, lam, batch):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z @ lam["V"], batch["y"]))


problem = bx.Problem(layer, readout_loss)


def images(number, seed=0):
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    x, y = x[order] / 16, y[order]
    return [bx.Arrays({"x": x[at], "y": y[at]}) for at in (slice(number), slice(number, 2 * number))]


def parameters(hidden, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"A": (hidden, hidden), "U": (64, hidden), "b": (hidden,), "V": (hidden, 10)}
    return {name: 0.3 * rng.normal(size=shape) for name, shape in shapes.items()}


# %%
# Both derivatives at one lam, and how much of the one is not in the other.


def relative_difference(a, b):
    a, b = (jax.flatten_util.ravel_pytree(x)[0] for x in (a, b))
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


def solved(how, rows, lam):
    z0, key = np.zeros((rows.rows, len(lam["b"]))), jax.random.key(0)
    out = bx.hypergradient(problem, how, z0, lam, rows, rows, key=key, report=False)
    assert out.code == bx.Code.OK, out.message
    return out


implicit, unrolled = bx.SID(inner=bx.FixedPoint(LAYERS), linear=bx.GMRES(tol=1e-10)), bx.ITD(LAYERS)


# %%
# Training: Adam along the hypergradient, both solvers warm from where they ended. The states of images that were not
# trained on are the fixed point at the lam that was found: ``w`` of a hypergradient.


def main(quick=False, seed=0):
    number, hidden, steps = (100, 8, 15) if quick else (898, 32, 150)
    with jax.enable_x64(True):
        (train, test), lam = images(number, seed), parameters(hidden, seed)
        difference = relative_difference(*(solved(how, train, lam).value for how in (implicit, unrolled)))

        sid = bx.SID(inner=bx.FixedPoint(30), linear=bx.Neumann(tol=1e-4))
        bsgm = bx.BSGM(sid, bx.optim("adam", learning_rate=0.03), warm_start=True)
        z0, key = np.zeros((number, hidden)), jax.random.key(0)
        result = bx.minimize(problem, bsgm, z0, lam, train, train, steps=steps, key=key)

        logits = solved(implicit, test, result.lam).w @ result.lam["V"]
        right = jnp.argmax(logits, 1) == test.data["y"]

    axis = plt.subplots(figsize=(6, 3), layout="constrained")[1]
    axis.semilogy(result.history.step, result.history.outer_value)
    axis.set(xlabel="outer steps", ylabel="training loss at the fixed point")
    return {
        "difference_from_unrolled": difference,
        "training_loss": round(float(result.history.outer_value[-1]), 4),
        "test_accuracy": round(float(jnp.mean(right)), 4),
    }


if __name__ == "__main__":
    for name, figure in main().items():
        print(f"{name:<32}{figure}")
    plt.show()
