"""What is audited, and the points at which it is looked at."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.audit.checks.looks import Parts, Rows, flat, inner, like, loss, on_every_row, outer
from bilevax.audit.checks.solving import descended, iterated
from bilevax.core.config import canonicalize, replace_unchecked
from bilevax.core.protocols import RowSource
from bilevax.core.trees import PyTree, entries, leaf_name
from bilevax.problems.gradient_step import GradientStep
from bilevax.problems.problem import Problem
from bilevax.problems.proximal_step import ProximalStep

SOLVE_STEPS = 300
"""Steps on every row in which the inner solution is looked for."""

POWER_STEPS = 16
"""Products from which a step is measured."""

TINY = 1e-300
"""Divides what may be zero."""


class AuditedProblem(NamedTuple):
    """A problem under audit.

    Attributes:
        problem: with its inner step measured, at the inner solution where that is possible.
        w0: start, as arrays.
        lam: as arrays.
        train: source of inner minibatches.
        val: source of outer minibatches.
        key: of everything drawn.
        given: the problem as it was given.
        estimator: in use, or None.
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
    given: Problem | None = None
    estimator: Any = None
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
        inner_map = self.problem.inner_map
        return (
            replace_unchecked(self.problem, inner_map=inner_map.smooth)
            if isinstance(inner_map, ProximalStep)
            else self.problem
        )

    @property
    def solved(self) -> bool:
        """True where ``near`` is the inner solution, as far as rounding lets one see."""
        return self.gap <= 10 * np.sqrt(epsilon(self.w0))

    @property
    def tables(self) -> dict[str, PyTree]:
        """Every row of train and of val, for what looks at them one by one."""
        return {"train": self.train.all_rows, "val": self.val.all_rows}

    def stream(self, number: int) -> Array:
        """A key of its own for every use."""
        return jax.random.fold_in(self.key, number)

    def draw(self, number: int) -> np.random.Generator:
        """Random numbers of the host, of their own for every use."""
        return np.random.default_rng([number, *np.asarray(jax.random.key_data(self.key)).ravel().tolist()])

    def inner(self, w: PyTree, lam: PyTree, v: PyTree, rows: PyTree = None) -> Parts:
        """Phi - w, d1Phi^T v and d2Phi^T v, on every row of train or on ``rows`` in their place."""
        return on_every_row(inner, self.problem, w, lam, v, self.train if rows is None else Rows(rows))

    def outer(self, w: PyTree, lam: PyTree, rows: PyTree = None) -> Parts:
        """E, grad_1 E and grad_2 E, on every row of val or on ``rows`` in their place."""
        return on_every_row(outer, self.problem, w, lam, None, self.val if rows is None else Rows(rows))

    def loss(self, w: PyTree, lam: PyTree) -> Parts:
        """The inner loss and its gradients in w and lam, on every row of train."""
        return on_every_row(loss, self.problem, w, lam, None, self.train)

    def push(self, u: np.ndarray) -> np.ndarray:
        """d1Phi^T u at the inner solution, as vectors [d]."""
        return flat(self.inner(self.near, self.lam, like(u, self.near))[1])

    @property
    def steps_itself(self) -> bool:
        """True where the inner step is left to be measured, and nothing but the loss says how."""
        inner_map = (self.given or self.problem).inner_map
        if not isinstance(inner_map, GradientStep) or inner_map.step_size is not None:
            return False
        return not any(hasattr(inner_map.loss, name) for name in ("curvature", "penalty_curvature"))

    def measured(self) -> "AuditedProblem":
        """With an inner step, where none is given: for the moment 1, if it can be measured at the inner solution."""
        inner_map = self.problem.inner_map
        s = self._replace(given=self.problem)
        if s.steps_itself:
            return s._stepping(1.0)
        if not (isinstance(inner_map, GradientStep | ProximalStep) and inner_map.step_size is None):
            return s
        ready = _measured(inner_map, self.w0, self.lam, self.train, self.stream(0))
        return s._replace(problem=replace_unchecked(self.problem, inner_map=ready))

    def located(self) -> "AuditedProblem":
        """With the points ``near`` and ``far``, and a step measured there."""
        start = flat(self.w0)
        near, settled = self._solved(start)
        size = float(np.linalg.norm(near)) / np.sqrt(self.size)
        noise = self.draw(2).normal(size=self.size)
        begun = float(np.linalg.norm(start)) / np.sqrt(self.size)
        scale = size if settled and size > 1e-3 * begun else begun or 1.0
        s = self._replace(near=like(near, self.w0), far=like(near + 0.3 * scale * noise, self.w0))
        s = s._stepping(s._longest()) if s.steps_itself else s
        moved = flat(s.inner(s.near, s.lam, s.near)[0])
        return s._replace(gap=float(np.linalg.norm(moved)) / (1.0 + float(np.linalg.norm(near))))

    def _solved(self, start: np.ndarray) -> tuple[np.ndarray, bool]:
        """The inner solution, and whether it is elsewhere than the start by more than rounding."""
        rounding = epsilon(self.w0)
        if not self.problem.has_loss:
            near = iterated(lambda w: flat(self.inner(like(w, self.w0), self.lam, self.w0)[0]), start, SOLVE_STEPS)
            return near, bool(np.linalg.norm(near - start) > 1e3 * rounding)

        def look(w: np.ndarray) -> tuple[float, np.ndarray]:
            value, by_w, _ = self.loss(like(w, self.w0), self.lam)
            return float(value), flat(by_w)

        near = descended(look, start, SOLVE_STEPS, rounding)
        before, after = look(start)[0], look(near)[0]
        return near, bool(abs(before - after) > 100 * rounding * abs(before)) or bool(np.any(start))

    def _stepping(self, step: float) -> "AuditedProblem":
        ready = replace_unchecked(self.problem.inner_map, step_size=step)
        return self._replace(problem=canonicalize(replace_unchecked(self.problem, inner_map=ready)))

    def _longest(self) -> float:
        """1 / (1.1 L), L the largest curvature at ``near``, by power iteration: step H u = u - d1Phi^T u."""
        s, step, u = self, 1.0, self.draw(0).normal(size=self.size)
        u /= np.linalg.norm(u)
        for _ in range(POWER_STEPS):
            product = u - s.push(u)
            length = float(np.linalg.norm(product))
            if not np.isfinite(length):
                break
            known = length > 1e3 * epsilon(self.w0)  # else rounding: a longer step shows more
            step = min(step / length if known else 1e4 * step, 1e30)
            u = product / length if known else u
            s = s._stepping(step)
        return step / 1.1


def normal(rng: np.random.Generator, tree: PyTree) -> PyTree:
    """Standard normal entries in the shape of a tree."""
    return like(rng.normal(size=entries(tree)), tree)


def other_rows(rows: PyTree, rng: np.random.Generator) -> PyTree:
    """Rows whose real numbers are random: what no such rows show, the functions do not do."""

    def other(x: Any) -> Any:
        return rng.normal(size=x.shape).astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(other, rows)


def leaf_names(name: str, tree: PyTree) -> list[str]:
    """How a user would write each leaf."""
    return [leaf_name(name, path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def epsilon(tree: PyTree) -> float:
    """The rounding unit of a tree's coarsest leaf."""
    return max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(tree))


@jax.jit
def _measured(inner_map: Any, w0: PyTree, lam: PyTree, train: RowSource, key: Array) -> Any:
    return inner_map.measured(w0, lam, train, key)
