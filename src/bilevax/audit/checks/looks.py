"""What every check looks through: three compiled programs of the oracles, and rows of a source by their numbers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevax.core.config import config
from bilevax.core.protocols import RowSource, Total
from bilevax.core.trees import PyTree, sub
from bilevax.data import Arrays
from bilevax.problems.problem import Problem

QUICK: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
"""Compiler options of programs that run a few times on a few rows: half the time to compile."""


Parts = tuple[PyTree, PyTree, PyTree]


def inner(problem: Problem, w: PyTree, lam: PyTree, v: PyTree, batch: PyTree) -> Parts:
    """Phi - w, d1Phi^T v and d2Phi^T v."""
    image, pullback = jax.vjp(lambda w, lam: problem.inner_image(w, lam, batch), w, lam)
    return sub(image, w), *pullback(v)


def outer(problem: Problem, w: PyTree, lam: PyTree, v: PyTree, batch: PyTree) -> Parts:
    """E, grad_1 E and grad_2 E; v is not used."""
    value, (by_w, by_lam) = jax.value_and_grad(problem.outer_loss, (0, 1))(w, lam, batch)
    return value, by_w, by_lam


def loss(problem: Problem, w: PyTree, lam: PyTree, v: PyTree, batch: PyTree) -> Parts:
    """The inner loss and its gradients in w and lam; v is not used."""
    inner_map: Any = problem.inner_map
    value, (by_w, by_lam) = jax.value_and_grad(inner_map.loss, (0, 1))(w, lam, batch)
    return value, by_w, by_lam


@config
class Rows:
    """Some rows, read like those of a source."""

    batch: PyTree

    def total(self, fn: Callable[[PyTree, PyTree], Total], args: PyTree) -> Total:
        """``fn(args, batch)``."""
        return fn(args, self.batch)


@partial(jax.jit, static_argnums=0)
def on_every_row(
    oracle: Callable[..., Parts], problem: Problem, w: PyTree, lam: PyTree, v: PyTree, source: RowSource | Rows
) -> Parts:
    """An oracle on every row of a source: compiled once a problem, whatever the point, the step and the direction."""
    return source.total(lambda at, batch: oracle(*at, batch), (problem, w, lam, v))


FEW = {oracle: jax.jit(oracle, compiler_options=QUICK) for oracle in (inner, outer, loss)}
"""On the rows of a small batch."""


def flat(tree: PyTree) -> np.ndarray:
    """The entries of a tree as one float64 vector on the host."""
    return np.concatenate([np.asarray(x).astype(np.float64).ravel() for x in jax.tree.leaves(tree)])


def like(vector: np.ndarray, tree: PyTree) -> PyTree:
    """A vector in the shape and dtypes of a tree."""
    leaves, structure = jax.tree.flatten(tree)
    ends = np.cumsum([x.size for x in leaves])[:-1]
    parts = zip(np.split(vector, ends), leaves, strict=True)
    with np.errstate(over="ignore", invalid="ignore"):
        return jax.tree.unflatten(structure, [p.astype(x.dtype).reshape(x.shape) for p, x in parts])


def rows_of(source: RowSource, numbers: np.ndarray) -> PyTree:
    """The batch of these rows; a leaf without an axis of rows, such as the key of a draw, stays."""
    if hasattr(source, "at") and type(source) is not Arrays:
        return source.at(numbers)
    return jax.tree.map(lambda x: _on_host(x)[numbers] if x.ndim else x, source.all_rows)


def _on_host(x: Any) -> Any:
    return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)
