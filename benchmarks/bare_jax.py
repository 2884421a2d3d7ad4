"""W1 written by hand in JAX, without bilevax: what the public API is held against.

Multinomial logistic regression with one penalty exp(lam_j) per feature. One hypergradient is ``t`` steps of stochastic
gradient descent, the gradient of the validation loss, ``k`` steps on the linear system, and one Jacobian product: one
compiled program, two ``fori_loop``, every array an argument, counts and step sizes constants. Shapes: weights
[classes, features], rows X [n, d], labels y [n], batch [b, d].

``"iid"`` gathers b rows, drawn as :class:`bilevax.Arrays` documents it and from the same keys; ``"blocks"`` slices a
contiguous block of rows that were shuffled once, in a new order each epoch. Given the blocks that bilevax would take,
or drawing rows, its results must agree with those of bilevax to rounding. The short last block is slid back to b rows,
of which those that do not belong to it count zero.

Two ways to the derivatives, of which the faster is the opponent: ``"formulas"`` (derived by hand; X is multiplied with
w and v in one product) and ``"autodiff"``.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

CHUNK = 256
"""Minibatches whose rows are drawn from one key."""

GRADIENTS = ("formulas", "autodiff")


class Batch(NamedTuple):
    """b rows, the share of each in the mean, and a factor on the step (1 but for a short block)."""

    X: Array
    y: Array
    share: Array | float
    factor: Array | float


class Settings(NamedTuple):
    """What the program is compiled for."""

    batch: int
    t: int
    k: int
    sampling: str
    gradients: str
    eta_w: float = 1.0
    eta_v: float = 0.5


def shuffled(data: tuple[np.ndarray, np.ndarray], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The rows in the order in which ``"blocks"`` slices them."""
    order = np.random.default_rng(seed).permutation(len(data[1]))
    return data[0][order], data[1][order]


def choose(key: Array, n: int, b: int, steps: int, sampling: str) -> Array:
    """Rows of every minibatch, [steps, b], or its block, [steps]."""
    if sampling == "iid":
        chunks = jnp.arange(-(-steps // CHUNK))
        rows = jax.vmap(lambda c: jax.random.randint(jax.random.fold_in(key, c), (CHUNK, b), 0, n))(chunks)
        return rows.reshape(-1, b)[:steps]
    blocks = -(-n // b)
    epochs = max(1, CHUNK // blocks)  # in a chunk
    chunks = jnp.arange(-(-steps // (blocks * epochs)))
    keys = jax.vmap(lambda c: jax.random.split(jax.random.fold_in(key, c), epochs))(chunks).reshape(-1)
    return jax.vmap(lambda k: jax.random.permutation(k, blocks))(keys).reshape(-1)[:steps]


def take(X: Array, y: Array, chosen: Array, b: int, sampling: str) -> Batch:
    """One minibatch: rows gathered, or a block sliced."""
    if sampling == "iid":
        return Batch(
            X.at[chosen].get(mode="promise_in_bounds"), y.at[chosen].get(mode="promise_in_bounds"), 1.0 / b, 1.0
        )
    n, blocks, short = X.shape[0], -(-X.shape[0] // b), X.shape[0] % b
    rows = jax.lax.dynamic_slice_in_dim(X, chosen * b, b)  # a start beyond n - b is moved back to it
    labels = jax.lax.dynamic_slice_in_dim(y, chosen * b, b)
    if not short:
        return Batch(rows, labels, 1.0 / b, 1.0)
    last = chosen == blocks - 1
    share = jnp.where(last, jnp.where(jnp.arange(b) < b - short, 0.0, 1.0 / short), 1.0 / b)
    factor = jnp.where(last, short * blocks / n, b * blocks / n)
    return Batch(rows, labels, share[:, None], factor)


def loss(w: Array, strength: Array, batch: Batch) -> Array:
    """Weighted mean of -log softmax(X w^T)_y, plus half the penalised squares; ``strength`` is exp(lam)."""
    z = batch.X @ w.T
    own = batch.y[:, None] == jnp.arange(w.shape[0])
    per_row = jax.nn.logsumexp(z, axis=1, keepdims=True) - jnp.sum(jnp.where(own, z, 0), axis=1, keepdims=True)
    return jnp.sum(per_row * batch.share) + 0.5 * jnp.sum(strength * w**2)


def gradient(w: Array, strength: Array, batch: Batch, how: str) -> Array:
    """grad_w of :func:`loss`."""
    if how == "autodiff":
        return jax.grad(loss)(w, strength, batch)
    residual = jax.nn.softmax(batch.X @ w.T, axis=1) - (batch.y[:, None] == jnp.arange(w.shape[0]))
    return (residual * batch.share).T @ batch.X + strength * w


def hessian_product(w: Array, v: Array, strength: Array, batch: Batch, how: str) -> Array:
    """grad_w^2 of :func:`loss` times v."""
    if how == "autodiff":
        return jax.jvp(lambda x: jax.grad(loss)(x, strength, batch), (w,), (v,))[1]
    classes = w.shape[0]
    both = batch.X @ jnp.concatenate([w, v]).T
    p, u = jax.nn.softmax(both[:, :classes], axis=1), both[:, classes:]
    r = p * (u - jnp.sum(p * u, axis=1, keepdims=True))
    return (r * batch.share).T @ batch.X + strength * v


@partial(jax.jit, static_argnames="settings")
def hypergradient(
    w: Array, lam: Array, step_size: Array, train: Any, val: Any, key: Array, chosen: Any = None, *, settings: Settings
) -> tuple[Array, Array, Array, Array]:
    """(hypergradient, validation loss, w, v) from a start w; for ``"blocks"``, train is shuffled already.

    ``chosen``, the minibatches of both loops as :func:`choose` makes them, replaces those of the key.
    """
    X, y = train
    b, sampling, how = settings.batch, settings.sampling, settings.gradients
    strength = jnp.exp(lam)
    draw = partial(choose, n=X.shape[0], b=b, sampling=sampling)
    first, second = chosen or (
        draw(jax.random.fold_in(key, 0), steps=settings.t),
        draw(jax.random.fold_in(key, 1), steps=settings.k),
    )

    def descend(j: Array, w: Array) -> Array:
        batch = take(X, y, first[j], b, sampling)
        return w - (settings.eta_w * batch.factor) * step_size * gradient(w, strength, batch, how)

    w = jax.lax.fori_loop(0, settings.t, descend, w)
    everything = Batch(*val, 1.0 / val[0].shape[0], 1.0)
    value, g = jax.value_and_grad(loss)(w, jnp.zeros_like(lam), everything)

    def solve(j: Array, v: Array) -> Array:
        batch = take(X, y, second[j], b, sampling)
        return v + (settings.eta_v * batch.factor) * (g - step_size * hessian_product(w, v, strength, batch, how))

    v = jax.lax.fori_loop(0, settings.k, solve, jnp.zeros_like(w))
    return -step_size * strength * jnp.sum(w * v, axis=0), value, w, v
