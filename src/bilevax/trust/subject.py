"""What is audited, and the points at which it is looked at."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import replace
from bilevax.core.trees import PyTree, all_finite, axpy, entries, leaf_name, norm, sub
from bilevax.data import Arrays, RowSource
from bilevax.problems.gradient_step import GradientStep
from bilevax.problems.problem import Problem, inner_image
from bilevax.problems.proximal_step import ProximalStep
from bilevax.solvers import LBFGS, FixedPoint

SOLVE_STEPS = 300
"""Steps on every row in which the inner solution is looked for."""

TINY = 1e-300
"""Divides what may be zero."""


class Subject(NamedTuple):
    """A problem under audit.

    Attributes:
        problem: with its inner step measured.
        w0: start, as arrays.
        lam: as arrays.
        train: source of inner minibatches.
        val: source of outer minibatches.
        key: of everything drawn.
        near: the inner solution, or what came nearest to it; w0 where the way there is not finite.
        far: a point of no special kind, about ``near``.
        gap: ||Phi(near) - near|| / (1 + ||near||), on every row.
    """

    problem: Problem
    w0: PyTree
    lam: PyTree
    train: RowSource
    val: RowSource
    key: Array
    near: PyTree = None
    far: PyTree = None
    gap: float = np.inf

    @property
    def size(self) -> int:
        """Inner entries, d."""
        return entries(self.w0)

    @property
    def smooth(self) -> Problem:
        """The problem without its prox: the part that must be a mean over rows."""
        inner = self.problem.inner_map
        return replace(self.problem, inner_map=inner.smooth) if isinstance(inner, ProximalStep) else self.problem

    def stream(self, number: int) -> Array:
        """A key of its own for every use."""
        return jax.random.fold_in(self.key, number)

    def measured(self) -> "Subject":
        """With the inner step measured, where it is not given."""
        inner = self.problem.inner_map
        if not (isinstance(inner, GradientStep | ProximalStep) and inner.step_size is None):
            return self
        ready = _measured(inner, self.w0, self.lam, self.train, self.stream(0))
        return self._replace(problem=replace(self.problem, inner_map=ready))

    def located(self) -> "Subject":
        """With the points ``near`` and ``far``."""
        near = _solved(self.problem, self.w0, self.lam, self.train.full, self.stream(1))
        scale = norm(near) / np.sqrt(self.size)
        scale = jnp.where(scale > 0, scale, jnp.ones_like(scale))
        far = axpy(0.3 * scale, normal(self.stream(2), near), near)
        moved = sub(inner_image(self.problem, near, self.lam, self.train.full), near)
        return self._replace(near=near, far=far, gap=float(norm(moved) / (1.0 + norm(near))))


def normal(key: Array, like: PyTree) -> PyTree:
    """Standard normal entries in the shape of a tree."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure, [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    )


def leaf_names(name: str, tree: PyTree) -> list[str]:
    """How a user would write each leaf."""
    return [leaf_name(name, path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def epsilon(tree: PyTree) -> float:
    """The rounding unit of a tree's coarsest leaf."""
    return max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(tree))


@jax.jit
def _measured(inner: Any, w0: PyTree, lam: PyTree, train: RowSource, key: Array) -> Any:
    return inner.measured(w0, lam, train, key)


@jax.jit
def _solved(problem: Problem, w0: PyTree, lam: PyTree, full: PyTree, key: Array) -> PyTree:
    if problem.has_loss:
        loss: Any = problem.inner_map
        out = LBFGS(tol=10 * epsilon(w0) ** 0.75, max_steps=SOLVE_STEPS).solve(loss.loss, w0, lam, full)
    else:

        def image(w: PyTree, args: PyTree, batch: PyTree) -> PyTree:
            return inner_image(args[0], w, args[1], batch)

        out = FixedPoint(SOLVE_STEPS).solve(image, w0, (problem, lam), Arrays(full), key=key)
    good = (out.code < Code.NOT_CONTRACTIVE) & all_finite(out.value)
    return jax.tree.map(lambda x, y: jnp.where(good, x, y), out.value, w0)
