"""A coreset: which fifty of a thousand images to train on, found by values of the loss alone.

Each image is drawn with a probability of its own, a model is trained on those that were, and all are asked how good it
is:

    minimise over {0 <= lam <= 1, sum lam <= 50}   E over masks m ~ Bernoulli(lam) of L(m),
    L(m) = mean of all l_i(w(m)),      w(m) = argmin_w sum_i m_i l_i(w) / sum m + (decay / 2) |w|^2

No derivative passes through training: the gradient is that of a score, over five masks (``ScoreFunction`` of
``Bernoulli``), clipped, and lam is projected onto the capped simplex. Probabilities go to 0 and 1 by themselves. At the
end twenty masks are drawn, and of those with fifty images or fewer that of the least L is kept; beside it stand twenty
of fifty images at random.

With one seed, 1,500 steps: 47 images, by which the accuracy on others is .910 and the loss of the pool .304; fifty at
random have .798 (deviation .039, best of twenty .862) and .787.

References: Zhou, Pi, Zhang, Lin, Zhang (2022), arXiv:2301.09880.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import bilevax as bx

KEY, DECAY, MASKS, KEPT = jax.random.key(0), 1e-3, 5, 20


# %%
# Both losses; w is [features, classes]. A mean over the chosen rows is none over all: every row is read at once.


def losses(w, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(x @ w, y)


def inner_loss(w, mask, batch):
    chosen = mask @ losses(w, *batch) / jnp.maximum(jnp.sum(mask), 1.0)
    return chosen + 0.5 * DECAY * jnp.sum(w**2)


def outer_loss(w, mask, batch):
    return jnp.mean(losses(w, *batch))


def images(pool, seed=0):
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    x, y = (x[order] / 16).astype(np.float32), y[order].astype(np.int32)
    return bx.Arrays((x[:pool], y[:pool])), (x[1000:], y[1000:])


# %%
# Training, of several masks at once, from 0.

W0 = np.zeros((64, 10), np.float32)
trained = bx.LBFGS(1e-2, memory=10)
problem = bx.Problem(bx.GradientStep(inner_loss, step_size=0.5), outer_loss)


@jax.jit
def judged(masks, pool, test):
    """Of each mask, the loss of the pool and the accuracy of the test images."""

    def one(mask):
        w = trained.solve(inner_loss, jnp.asarray(W0), mask, pool).value
        return outer_loss(w, mask, pool.data), jnp.mean(jnp.argmax(test[0] @ w, 1) == test[1])

    return jax.lax.map(one, masks)


# %%
# The run, and masks of it beside those of a fair lottery.


def main(quick=False):
    number, size, steps = (200, 20, 100) if quick else (1000, 50, 1500)
    pool, test = images(number)
    outer = optax.chain(optax.clip_by_global_norm(3.0), optax.adam(optax.cosine_decay_schedule(0.05, steps)))
    method = bx.BSGM(bx.ScoreFunction(trained, samples=MASKS), outer)
    problem_on_the_set = bx.Problem(problem.inner_map, outer_loss, project=bx.CappedSimplex(size))
    fair = np.full(number, size / number, np.float32)
    found = bx.minimize(problem_on_the_set, method, W0, fair, pool, pool, steps=steps, key=KEY)

    rng = np.random.default_rng(1)
    drawn = rng.random((KEPT, number)) < found.lam
    lottery = np.argsort(rng.random((KEPT, number))) < size
    loss, accuracy = (np.asarray(x) for x in judged(np.float32([*drawn, *lottery]), pool, test))
    best = np.argmin(np.where(drawn.sum(1) <= size, loss[:KEPT], np.inf))
    random = slice(KEPT, None)
    picture(found, pool.data[0], drawn[best])
    figures = {
        "images": drawn[best].sum(),
        "accuracy": accuracy[best],
        "loss_of_the_pool": loss[best],
        "random_accuracy": accuracy[random].mean(),
        "random_accuracy_deviation": accuracy[random].std(),
        "random_accuracy_best": accuracy[random].max(),
        "random_loss_of_the_pool": loss[random].mean(),
        "probabilities_in_between": np.mean((found.lam > 0.05) & (found.lam < 0.95)),
    }
    return {name: round(float(x), 4) for name, x in figures.items()}


def picture(found, x, mask):
    """The loss on the way, and the images that were kept."""
    left, right = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")[1]
    left.plot(found.history.step, found.history.outer_value)
    left.set(xlabel="outer steps", ylabel="loss of the pool")
    kept = x[mask][: len(x[mask]) // 10 * 10].reshape(-1, 10, 8, 8)
    right.imshow(np.pad(kept, ((0, 0), (0, 0), (1, 1), (1, 1))).transpose(0, 2, 1, 3).reshape(-1, 100), cmap="gray_r")
    right.set(xticks=[], yticks=[], title="kept")


if __name__ == "__main__":
    for name, figure in main().items():
        print(f"{name:<32}{figure}")
    plt.show()
