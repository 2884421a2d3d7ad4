"""What the families of problems share: losses of scores, penalties, and random rows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.random import Generator

from bilevax.core.config import config
from bilevax.core.trees import PyTree

CONDITIONS = 6.0, 500.0
"""Between which the conditions that recipes are given are spread; penalties take a part away."""

TRAIN, VAL = 256, 128
"""Rows of most families."""


def squared(w: PyTree, lam: PyTree, batch: PyTree) -> Array:
    """Mean of 1/2 (x'w - y)^2."""
    return 0.5 * jnp.mean((batch["x"] @ w - batch["y"]) ** 2)


def logistic(w: PyTree, lam: PyTree, batch: PyTree) -> Array:
    """Mean of log(1 + exp(-y x'w)), y = -1 or 1."""
    return jnp.mean(jax.nn.softplus(-batch["y"] * (batch["x"] @ w)))


def ridge(w: Array, logarithms: Array) -> Array:
    """1/2 sum exp(logarithms) w^2."""
    return 0.5 * jnp.sum(jnp.exp(logarithms) * w**2)


@config
class Penalised:
    """A loss with a penalty per weight, 1/2 sum exp(lam) w^2."""

    loss: Callable[[Array, Array, PyTree], Array]

    def __call__(self, w: Array, lam: Array, batch: PyTree) -> Array:
        """The loss of the batch, and the penalty."""
        return self.loss(w, lam, batch) + ridge(w, lam)


def a_condition(rng: Generator) -> float:
    """Log-uniform between the :data:`CONDITIONS`."""
    return float(np.exp(rng.uniform(*np.log(CONDITIONS))))


def mixed(raw: np.ndarray, condition: float, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """White features [n, d], turned and stretched to eigenvalues from 1 to 1 / condition; and weights of size one.

    Each direction adds as much to the scores as any other.
    """
    d = raw.shape[1]
    # x = raw S^1/2 Q', S from 1 to 1 / condition; weights Q S^-1/2 z: x'w = raw z
    scales, basis = np.geomspace(1.0, 1.0 / condition, d) ** 0.5, np.linalg.qr(rng.normal(size=(d, d)))[0]
    weights = basis @ (rng.normal(size=d) / np.sqrt(scales))
    x = raw * scales @ basis.T
    return x, weights / np.std(x @ weights)


def penalties(rng: Generator, level: float, number: int) -> np.ndarray:
    """Logarithms of penalties around a level."""
    return np.add(np.log(level), 0.5 * rng.normal(size=number))


def signs(rng: Generator, score: np.ndarray) -> np.ndarray:
    """Labels -1 and 1 of a logistic model."""
    # P(1) = 1 / (1 + exp(-score))
    return np.where(rng.uniform(size=len(score)) < 1.0 / (1.0 + np.exp(-score)), 1.0, -1.0)


def divided(rows: dict[str, np.ndarray], n: int = TRAIN) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The first n rows, and the others."""
    return {name: x[:n] for name, x in rows.items()}, {name: x[n:] for name, x in rows.items()}
