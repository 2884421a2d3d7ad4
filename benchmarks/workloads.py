"""The workloads: data, problem, start and estimator of one hypergradient.

W1 is multinomial logistic regression with one penalty per feature, W2 binary logistic regression, W3 a network with one
weight per training row. Data are drawn, not read, so that every machine has the same.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bilevax as bx

ETA_W, ETA_V = 1.0, 0.5


class Shape(NamedTuple):
    """Rows of train and of val, features, classes, rows in a minibatch, and t = k."""

    n: int
    n_val: int
    d: int
    classes: int
    batch: int
    steps: int


W1 = Shape(30_000, 30_000, 784, 10, 90, 1000)
W2 = {d: Shape(50_000, 50_000, d, 1, 64, 1000) for d in (22, 54)}
W3 = Shape(5_000, 5_000, 784, 10, 100, 200)
HIDDEN = 256

W1_QUICK = Shape(600, 500, 20, 3, 32, 300)  # two chunks of draws, a short last block
W2_QUICK = {22: Shape(500, 500, 22, 1, 64, 50)}
W3_QUICK = Shape(200, 200, 20, 3, 32, 20)


class Case(NamedTuple):
    """The arguments of ``bx.hypergradient`` but for the key."""

    problem: bx.Problem
    estimator: bx.SID
    w0: Any
    lam: Array
    train: bx.Arrays
    val: bx.Arrays

    def __call__(self, key: Array) -> bx.Estimate:
        """One hypergradient through the public door."""
        return bx.hypergradient(*self, key=key)

    def round(self, i: int) -> bx.Estimate:
        """The hypergradient of round i."""
        return self(key_of(i))

    def alone(self, i: int) -> tuple[Array, Any]:
        """The same without a report."""
        return bx.value_and_hypergradient(*self, key=key_of(i))


@cache
def _keys() -> list[Array]:
    return [jax.block_until_ready(jax.random.key(i)) for i in range(64)]


def key_of(i: int) -> Array:
    """The key of round i, made before any clock runs."""
    return _keys()[i % 64]


def rows(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """X [n, d] float32 of mean squared norm 1, columns of falling size; y [n] from a noisy linear model."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d), np.float32)
    size = (1.0 + np.arange(d)) ** -0.25
    X *= (size / np.linalg.norm(size)).astype(np.float32)
    truth = np.random.default_rng(99).standard_normal((d, max(classes, 2)), np.float32) * 3
    scores = X @ truth + rng.gumbel(size=(n, max(classes, 2))).astype(np.float32)
    return X, np.argmax(scores, axis=1).astype(np.int32)


@cache
def split(shape: Shape) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Train and val, kept: every case of a run reads the same arrays."""
    return rows(shape.n, shape.d, shape.classes, 1), rows(shape.n_val, shape.d, shape.classes, 2)


@cache
def sources_of(shape: Shape, sampling: str) -> tuple[bx.Arrays, bx.Arrays]:
    """The two sources of W1 or W2."""
    train, _ = split(shape)
    return bx.Arrays(train, batch_size=shape.batch, sampling=sampling), validation(shape)


def forget() -> None:
    """Let go of the arrays that are kept: a large table is in memory only while it is measured."""
    for kept in (split, sources_of, validation):
        kept.cache_clear()


@cache
def validation(shape: Shape) -> bx.Arrays:
    """Every row of val."""
    return bx.Arrays(split(shape)[1])


def log_penalties(shape: Shape, per: str = "feature") -> Array:
    """Between -7 and -5 for one penalty per feature; else all -6, so that the problems are the same."""
    if per == "feature":
        return jnp.asarray(np.random.default_rng(3).uniform(-7, -5, shape.d), jnp.float32)
    return jnp.full({"global": (), "weight": (shape.classes, shape.d)}[per], -6.0, jnp.float32)


@cache
def step_size(shape: Shape) -> float:
    """1 / (largest curvature of eight minibatches + the largest penalty), with a margin: a constant, measured once."""
    (X, _), _ = split(shape)
    rng = np.random.default_rng(4)
    batches = [X[rng.integers(0, len(X), shape.batch)] for _ in range(8)]
    largest = max(float(np.linalg.eigvalsh(B @ B.T / len(B))[-1]) for B in batches)
    return 1.0 / (1.2 * (0.25 if shape.classes == 1 else 0.5) * largest + np.exp(-5.0))


def stochastic(shape: Shape, **counts: Any) -> bx.SID:
    """As many fixed-point iterations for w, eta 1, as for v, eta .5."""
    return bx.SID(
        inner=bx.FixedPoint(steps=shape.steps, step_size=ETA_W),
        linear=bx.FixedPoint(steps=shape.steps, step_size=ETA_V),
        **counts,
    )


def logistic(
    shape: Shape,
    sampling: str,
    *,
    per: str = "feature",
    step: Callable[[Shape], float | None] = step_size,
    sources: tuple[bx.Arrays, bx.Arrays] | None = None,
    estimator: bx.SID | None = None,
) -> Case:
    """W1 (several classes) or W2 (one score)."""
    loss = bx.BinaryLogistic if shape.classes == 1 else bx.MultinomialLogistic
    return Case(
        bx.Problem(bx.GradientStep(loss(penalty=per), step(shape)), loss()),
        estimator or stochastic(shape),
        jnp.zeros((shape.classes, shape.d), jnp.float32),
        log_penalties(shape, per),
        *(sources or sources_of(shape, sampling)),
    )


def network(w: Any, X: Array) -> Array:
    """Scores [b, C] of one hidden layer of softplus units."""
    return jax.nn.softplus(X @ w["in"].T + w["in_bias"][None]) @ w["out"].T + w["out_bias"][None]


def weighted_loss(w: Any, lam: Array, batch: Any) -> Array:
    """Each row's loss times the sigmoid of its entry of lam; a batch brings the numbers of its rows."""
    X, y, row = batch
    losses = bx.MultinomialLogistic.per_row(network(w, X), y)
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(w))
    return jnp.mean(jax.nn.sigmoid(lam[row]) * losses) + 0.5e-2 * squares


def network_loss(w: Any, lam: Array, batch: Any) -> Array:
    """Plain mean loss."""
    X, y = batch
    return jnp.mean(bx.MultinomialLogistic.per_row(network(w, X), y))


def weighted_network(shape: Shape, sampling: str, estimator: bx.SID | None = None) -> Case:
    """W3."""
    train, _ = split(shape)
    rng = np.random.default_rng(5)
    hidden = min(HIDDEN, 4 * shape.d)
    w0 = {
        "in": rng.standard_normal((hidden, shape.d), np.float32),
        "in_bias": np.zeros(hidden, np.float32),
        "out": rng.standard_normal((shape.classes, hidden), np.float32) / np.float32(np.sqrt(hidden)),
        "out_bias": np.zeros(shape.classes, np.float32),
    }
    return Case(
        bx.Problem(bx.GradientStep(weighted_loss, 0.04), network_loss),
        estimator or stochastic(shape),
        jax.tree.map(jnp.asarray, w0),
        jnp.zeros(shape.n, jnp.float32),
        bx.Arrays((*train, np.arange(shape.n, dtype=np.int32)), batch_size=shape.batch, sampling=sampling),
        validation(shape),
    )
