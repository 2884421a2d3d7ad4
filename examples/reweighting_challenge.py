"""The reweighting challenge: weights that were learned together with the model, and are worth little without it.

Half of three hundred training labels are drawn at random. The weights of all rows together are a softmax of lam:

    minimise over lam   E(w(lam)) = mean_val l(w(lam)),
    w(lam) = argmin_w sum_i softmax(lam)_i l_i(w) + (decay / 2) |w|^2

``SOBA`` moves the model, the multiplier and lam once a step, and solves nothing. But the model remembers rows whose
weight has gone, so that nothing brings it back: the weights become sparse, and the loss of the joint model hides it.
``bx.effective_sample_size`` and ``bx.retrain_gap`` show it. Where the inner problem is solved for every lam, from where
it was (warm) or from scratch (cold), with the same step of lam, the weights that are found are those that are worth it.

FULL

References: Ivanova, Ablin (2023), arXiv:2310.17386; Vicol, Lorraine, Pedregosa, Duvenaud, Grosse (2022),
arXiv:2212.14032, on cold and warm starts; Dagréou, Ablin, Vaiter, Moreau (2022), arXiv:2201.13409, for SOBA.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import bilevax as bx

TRAIN, VAL, RANDOM, DECAY, STEP = 300, 200, 0.5, 1e-3, 0.5


# %%
# Both losses; w is [features, classes].


def losses(w, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(x @ w, y)


def inner_loss(w, lam, batch):
    x, y, row = batch
    return jnp.sum(jax.nn.softmax(lam)[row] * losses(w, x, y)) + 0.5 * DECAY * jnp.sum(w**2)


def outer_loss(w, lam, batch):
    return jnp.mean(losses(w, *batch))


problem = bx.Problem(bx.GradientStep(inner_loss, step_size=STEP), outer_loss)


def images(seed=0):
    rng = np.random.default_rng(seed)
    x, y = load_digits(return_X_y=True)
    order = rng.permutation(len(y))
    x, y = (x[order] / 16).astype(np.float32), y[order].astype(np.int32)
    train, val, test = slice(TRAIN), slice(TRAIN, TRAIN + VAL), slice(TRAIN + VAL, None)
    relabelled = rng.random(TRAIN) < RANDOM
    noisy = np.where(relabelled, rng.integers(0, 10, TRAIN), y[train]).astype(np.int32)
    return bx.Arrays((x[train], noisy, np.arange(TRAIN))), bx.Arrays((x[val], y[val])), (x[test], y[test]), relabelled


# %%
# Three ways to the same end, with one step of lam; in a hurry, two.


def methods(quick):
    solved = bx.SID(inner=bx.FixedPoint(1000), linear=bx.CG(tol=1e-3))
    outer, number = bx.optim("sgd", learning_rate=STEP), 20 if quick else 150
    joint = {"joint": (bx.SOBA(step_size=STEP, ratio=1.0), 2000 if quick else 20_000)}
    warm = {"warm": (bx.BSGM(solved, outer, warm_start=True), number)}
    return joint | ({} if quick else warm) | {"cold": (bx.BSGM(solved, outer), number)}


def main(quick=False):
    train, val, (x, y), relabelled = images()
    w0, lam, key = np.zeros((64, 10), np.float32), np.zeros(TRAIN, np.float32), jax.random.key(0)
    runs, out = methods(quick), {}
    axes = plt.subplots(1, len(runs), figsize=(9, 3), sharey=True, layout="constrained")[1]

    def accuracy(w):
        return float(jnp.mean(jnp.argmax(x @ w, 1) == y))

    for axis, (name, (method, steps)) in zip(axes, runs.items(), strict=True):
        result = bx.minimize(problem, method, w0, lam, train, val, steps=steps, key=key)
        again = bx.retrain_gap(problem, result.w, result.lam, w0, train, val, key=key)
        weights = np.asarray(jax.nn.softmax(result.lam))
        figures = {
            "effective_sample_size": bx.effective_sample_size(weights),
            "accuracy": accuracy(result.w),
            "accuracy_retrained": accuracy(again.w),
            "retrain_gap": again.gap,
        }
        out |= {f"{name}_{what}": round(float(value), 4) for what, value in figures.items()}
        for rows, label in ((~relabelled, "as it was"), (relabelled, "random label")):
            axis.plot(np.sort(weights[rows])[::-1], label=label)
        axis.set(title=name, xlabel="rows, by weight", yscale="log", ylim=(1e-8, 1))
    axes[0].set_ylabel("weight")
    axes[0].legend()
    return out


if __name__ == "__main__":
    for name, figure in main().items():
        print(f"{name:<32}{figure}")
    plt.show()
