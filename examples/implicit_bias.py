"""Implicit bias: which of many solutions is found, and images that teach only the one model they were made with.

Where more than one lam is best, how the inner problem is solved decides which is found. First a quadratic one, both of
whose levels have more unknowns than equations:

    minimise over lam   |C w(lam) - c|^2 / 2,      w(lam) in argmin_w |A w - B lam|^2 / 2

Solved cold, from w = 0 for every lam, w is the least of its solutions, A^+ B lam, and gradient descent from lam = 0
ends at the least lam, (C A^+ B)^+ c. Warm, from where w was, with few steps each time, both keep what they passed
through.

Then distillation: ten images lam, one a class, that a linear classifier is trained on, so that it is right about real
ones:

    minimise over lam   mean l(w_T(lam); x, y),      T = 50 gradient steps on the ten images, from 0 or from where w was

Warm, the images teach their own model over the whole run what they cannot teach another in T steps: its accuracy is
fine, that of one trained again on the images is not (``bx.retrain_gap``). Cold, what they teach they teach anew.

With one seed: 2,000 steps end 2e-14 from the least lam cold, .14 warm, both with a loss below 1e-30. Distilled in 1,500
steps from 1,000 images, the model is right about .921 of others cold, and .921 again when it is trained anew on the ten
images; warm about .816, and .220.

References: Vicol, Lorraine, Pedregosa, Duvenaud, Grosse (2022), arXiv:2212.14032; Wang, Zhu, Torralba, Efros (2018),
arXiv:1811.10959, for distillation.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import bilevax as bx

KEY, T = jax.random.key(0), 50


# %%
# The quadratic problem: w [12] of 5 equations, lam [10], of which 3 are asked for.


def residuals(w, lam, batch):
    return 0.5 * jnp.sum((batch["A"] @ w - batch["B"] @ lam) ** 2)


def missed(w, lam, batch):
    return 0.5 * jnp.sum((batch["C"] @ w - batch["c"]) ** 2)


def on_the_quadratic(steps, seed=0):
    """How far lam is from the least one that is best, cold and warm, and the loss at either."""
    rng = np.random.default_rng(seed)
    # of singular values from 1 to 1.4
    A, C = (np.linalg.qr(rng.normal(size=(12, r)))[0].T * rng.uniform(1.0, 1.4, (r, 1)) for r in (5, 3))
    B, c = rng.normal(size=(5, 10)) / 3, rng.normal(size=3)
    least = np.linalg.pinv(C @ np.linalg.pinv(A) @ B) @ c
    train, val = bx.Arrays({"A": A, "B": B}), bx.Arrays({"C": C, "c": c})
    problem, out = bx.Problem(bx.GradientStep(residuals, step_size=0.5), missed), {}
    for name, inner_steps in (("cold", 80), ("warm", 2)):
        method = bx.BSGM(bx.ITD(inner_steps), bx.optim("sgd", 1.0), warm_start=name == "warm")
        end = bx.minimize(problem, method, np.zeros(12), np.zeros(10), train, val, steps=steps, key=KEY)
        out[f"{name}_from_the_least"] = np.linalg.norm(end.lam - least)
        out[f"{name}_loss"] = end.history.outer_value[-1]
    return out


# %%
# Distillation; w is [features, classes], the images lam are of one class each.


def losses(w, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(x @ w, y)


def taught_loss(w, lam, batch):
    return jnp.mean(losses(w, lam, jnp.arange(10)))


def real_loss(w, lam, batch):
    return jnp.mean(losses(w, *batch))


def images(number, seed=0):
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    x, y = (x[order] / 16).astype(np.float32), y[order].astype(np.int32)
    return bx.Arrays((x[:number], y[:number])), (x[1000:], y[1000:])


def distilled(steps, number, axes, seed=0):
    """Accuracies of the model of each run, and of one that is trained anew on its images."""
    (table, (x, y)), out = images(number), {}
    problem, w0 = bx.Problem(bx.GradientStep(taught_loss, step_size=0.5), real_loss), np.zeros((64, 10), np.float32)
    first = np.float32(0.1 * np.random.default_rng(seed).normal(size=(10, 64)))
    for axis, name in zip(axes, ("cold", "warm"), strict=True):
        method = bx.BSGM(bx.ITD(T, tol=np.inf), bx.optim("adam", 0.01), warm_start=name == "warm")
        end = bx.minimize(problem, method, w0, first, table, table, steps=steps, key=KEY)
        again = bx.retrain_gap(problem, end.w, end.lam, w0, table, table, key=KEY, inner=bx.FixedPoint(T, tol=np.inf))
        for what, w in (("joint", end.w), ("again", again.w)):
            out[f"{name}_{what}"] = jnp.mean(jnp.argmax(x @ w, 1) == y)
        axis.imshow(end.lam.reshape(2, 5, 8, 8).transpose(0, 2, 1, 3).reshape(16, 40), cmap="gray_r")
        axis.set(xticks=[], yticks=[], title=name)
    return out


# %%
# In a hurry, distillation alone.


def main(quick=False):
    axes = plt.subplots(1, 2, figsize=(8, 2.5), layout="constrained")[1]
    figures = distilled(*((100, 200) if quick else (1500, 1000)), axes)
    if not quick:
        with jax.enable_x64(True):
            figures |= on_the_quadratic(2000)
    return {name: float(f"{float(figure):.4g}") for name, figure in figures.items()}


if __name__ == "__main__":
    for name, figure in main().items():
        print(f"{name:<32}{figure}")
    plt.show()
