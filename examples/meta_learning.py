"""Meta-learning: a representation for which a few images of new classes are enough.

A task t has five classes, a few images of each to learn from (support) and others to be judged by (query). A network
lam turns an image into features; each task fits a linear model w_t of its own to those of its support:

    minimise over lam   E(w(lam), lam) = mean_t mean_query l(w_t; h(x; lam), y),
    w_t(lam) = argmin_w mean_support l(w; h(x; lam), y) + (decay / 2) |w|^2

The hypergradient has two parts: how the query's features change, and how the linear model does, as its support's
features change. ``BSGM`` solves all tasks' inner problems anew in every step. Beside it stands plain fine-tuning: the
same network, trained by Adam to tell all classes of the training tasks apart, of which each new task refits the last
layer, or goes on with all layers. New tasks have classes that no training task has.

Images are Fashion-MNIST's, averaged to 14 x 14, and each of its ten classes turned by 0, 90, 180 and 270 degrees counts
as four, so that there are twenty classes to train with and twenty others for new tasks; in a hurry, scikit-learn's
digits likewise.

References: Franceschi, Frasconi, Salzo, Grazzi, Pontil (2018), arXiv:1806.04910, for representations as outer variable;
Grazzi, Pontil, Salzo (2023), arXiv:2202.03397, for the algorithm, with such an experiment.
"""

import gzip
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import bilevax as bx

WAYS, QUERIES, DECAY = 5, 15, 0.01
FASHION = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))  # Debian: dataset-fashion-mnist


# %%
# The network, without and with a last layer.


def features(layers, x):
    for A, b in layers:
        x = jax.nn.relu(x @ A + b)
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def losses(w, layers, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(features(layers, x) @ w, y)


def start(*sizes, seed):
    rng = np.random.default_rng(seed)
    shapes = zip(sizes[:-1], sizes[1:], strict=True)
    return [(np.float32(rng.normal(size=(a, b)) * (2 / a) ** 0.5), np.zeros(b, np.float32)) for a, b in shapes]


# %%
# The two levels, of all tasks at once: a row of the data is a task, x is [tasks, images, pixels], w [tasks, features,
# classes].


def support_loss(w, lam, batch):
    data = jnp.mean(losses(w, lam, *batch))
    return data + 0.5 * DECAY * jnp.sum(w**2) / len(w)


def query_loss(w, lam, batch):
    return jnp.mean(losses(w, lam, *batch))


problem = bx.Problem(bx.GradientStep(support_loss), query_loss)


# %%
# Images by class, [classes, images, pixels], and tasks of them.


def fashion():
    def read(name, skip):
        return np.frombuffer(gzip.decompress((FASHION / f"train-{name}.gz").read_bytes()), np.uint8, offset=skip)

    x = read("images-idx3-ubyte", 16).reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 255
    return x, read("labels-idx1-ubyte", 8)


def classes(quick):
    x, y = load_digits(return_X_y=True) if quick else fashion()
    x, number = x.reshape(len(x), *2 * [int(x[0].size ** 0.5)]), min(np.bincount(y))
    by_class = np.stack([x[y == k][:number] for k in range(10)])
    turned = np.stack([np.rot90(by_class, turns, (2, 3)) for turns in range(4)], 1)
    turned = (turned - turned.mean()) / turned.std()
    return np.float32(turned.reshape(2, 20, number, -1))


def tasks(images, number, shots, seed):
    rng, x = np.random.default_rng(seed), []
    for _ in range(number):
        ways = rng.choice(len(images), WAYS, replace=False)
        x.append([images[k, rng.choice(images.shape[1], shots + QUERIES, replace=False)] for k in ways])
    x, y = np.array(x), np.broadcast_to(np.arange(WAYS)[:, None], (number, WAYS, shots + QUERIES))
    parts = [(x[:, :, at], y[:, :, at]) for at in (slice(shots), slice(shots, None))]
    return [bx.Arrays((a.reshape(number, -1, x.shape[-1]), b.reshape(number, -1))) for a, b in parts]


# %%
# The rival: all classes at once.


@jax.jit
def trained(layers, w, x, y, batches, rate):
    adam = optax.adam(rate)

    def step(state, at):
        model, moments = state
        gradient = jax.grad(lambda model: jnp.mean(losses(*model, x[at], y[at])))(model)
        change, moments = adam.update(gradient, moments)
        return (optax.apply_updates(model, change), moments), None

    model = w, layers
    return jax.lax.scan(step, (model, adam.init(model)), batches)[0][0]


def main(quick=False):
    import sys,time
    shots, number, new, steps, sizes = (3, 20, 20, 15, (64, 32)) if quick else (5, 200, 200, 150, (196, 64, 64))
    images, key = classes(quick), jax.random.key(0)
    seeds = (0,) if quick else (0, 1, 2)
    sid = bx.SID(inner=bx.LBFGS(tol=1e-3), linear=bx.CG(tol=1e-2))
    bsgm = bx.BSGM(sid, bx.optim("adam", learning_rate=3e-3))
    for seed in seeds:
        lam = start(*sizes, seed=seed)
        support, query = tasks(images[0], number, shots, seed)
        t=time.time()
        w0 = np.zeros((number, sizes[-1], WAYS), np.float32)
        result = bx.minimize(problem, bsgm, w0, lam, support, query, steps=steps, key=key)
        print(result.code, result.message, [float(v) for v in result.history.outer_value][::10],time.time()-t)
        s2,q2=tasks(images[1],new,shots,seed+100)
        def accuracy(lam):
            w = bx.retrain_gap(problem, np.zeros((new,sizes[-1],WAYS),np.float32), lam, np.zeros((new,sizes[-1],WAYS),np.float32), s2, q2, key=key).w
            x,y=q2.data
            return float(jnp.mean(jnp.argmax(features(lam,x)@w,-1)==y))
        n,m=images[0].shape[:2]
        x,y=images[0].reshape(n*m,-1),np.repeat(np.arange(n),m)
        rng=np.random.default_rng(seed)
        for upd in ((100,) if quick else (1000,5000)):
            t=time.time()
            model = trained(lam, np.zeros((sizes[-1],n),np.float32), jnp.asarray(x), jnp.asarray(y), rng.integers(0,n*m,(upd,128)), 1e-3)
            print("pretrained",upd,accuracy(model[1]),time.time()-t)
        print("random",accuracy(lam),"meta",accuracy(result.lam))
    return {}


if __name__ == "__main__":
    for name, figure in main().items():
        print(f"{name:<32}{figure}")
    plt.show()
