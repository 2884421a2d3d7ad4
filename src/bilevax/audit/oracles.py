"""The oracles of an audited problem as compiled programs, and trees and rows on the host."""

from collections.abc import Callable

import jax
import numpy as np

from bilevax.core.config import config
from bilevax.core.keys import is_key
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
    value, (by_w, by_lam) = jax.value_and_grad(problem.inner_loss, (0, 1))(w, lam, batch)
    return value, by_w, by_lam


@config
class Rows:
    """Some rows, read like those of a source."""

    batch: PyTree

    def total(self, fn: Callable[[PyTree, PyTree], Total], args: PyTree) -> Total:
        """``fn(args, batch)``."""
        return fn(args, self.batch)


def _mean(
    oracle: Callable[..., Parts], problem: Problem, w: PyTree, lam: PyTree, v: PyTree, source: RowSource | Rows
) -> Parts:
    return source.total(lambda at, batch: oracle(*at, batch), (problem, w, lam, v))


on_every_row: Callable[..., Parts] = jax.jit(_mean, static_argnums=0)
"""(oracle, problem, w, lam, v, source) -> its mean over every row: compiled once a problem, whatever the point, the
step and the direction."""

ON_A_BATCH = {oracle: jax.jit(oracle, compiler_options=QUICK) for oracle in (inner, outer, loss)}
"""The oracles on a small batch."""


def flat(tree: PyTree) -> np.ndarray:
    """The entries of a tree as one float64 vector on the host."""
    return np.concatenate([np.asarray(x).astype(np.float64).ravel() for x in jax.tree.leaves(tree)])


def like(vector: np.ndarray, tree: PyTree) -> PyTree:
    """A vector in the shape and dtypes of a tree."""
    leaves, structure = jax.tree.flatten(tree)
    parts = zip(np.split(vector, np.cumsum([x.size for x in leaves])[:-1]), leaves, strict=True)
    # a point far off may lie beyond the range of float32: infinity there, without a warning
    with np.errstate(over="ignore", invalid="ignore"):
        return jax.tree.unflatten(structure, [p.astype(x.dtype).reshape(x.shape) for p, x in parts])


def rows_of(source: RowSource, numbers: np.ndarray) -> PyTree:
    """The batch of these rows; a leaf without an axis of rows, such as the key of a draw, stays."""
    # only Arrays itself holds its batches as they are; a source with `at` of its own makes them (sparse rows)
    if hasattr(source, "at") and type(source) is not Arrays:
        return source.at(numbers)
    # on the host: a gather on the device would compile for every number of rows
    return jax.tree.map(lambda x: (x if is_key(x) else np.asarray(x))[numbers] if x.ndim else x, source.all_rows)
