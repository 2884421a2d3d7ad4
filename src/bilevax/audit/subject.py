"""What is audited, and the points at which it is looked at."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.audit.oracles import Parts, Rows, flat, inner, like, loss, on_every_row, outer
from bilevax.audit.solving import descended, iterated
from bilevax.core.config import canonicalize, replace_unchecked
from bilevax.core.protocols import Estimator, RowSource
from bilevax.core.trees import PyTree, entries, leaf_name, rounding_unit
from bilevax.problems.gradient_step import GradientStep
from bilevax.problems.problem import Problem
from bilevax.problems.proximal_step import ProximalStep

SOLVE_STEPS = 300
"""Steps on every row in which the inner solution is looked for."""

POWER_STEPS = 16
"""Products from which a step is measured."""

TINY = 1e-300
"""Divides what may be zero."""

Step = TypeVar("Step", GradientStep, ProximalStep)


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
        solution: the inner solution, or the iterate nearest to it; w0 where the iterates do not stay finite.
        perturbed: the solution plus Gaussian noise, a point of no special kind.
        residual: ||Phi(w) - w|| / (1 + ||w||) at the solution w, on every row.
    """

    problem: Problem
    w0: PyTree
    lam: PyTree
    train: RowSource
    val: RowSource
    key: Array
    given: Problem | None = None
    estimator: Estimator | None = None
    solution: PyTree = None
    perturbed: PyTree = None
    residual: float = np.inf

    @property
    def size(self) -> int:
        """Inner entries, d."""
        return entries(self.w0)

    @property
    def smooth(self) -> Problem:
        """The problem without its prox: the part that must be a mean over rows."""
        inner_map = self.problem.inner_map
        smooth = inner_map.smooth if isinstance(inner_map, ProximalStep) else inner_map
        return replace_unchecked(self.problem, inner_map=smooth)

    @property
    def is_solved(self) -> bool:
        """True where the inner residual is down to rounding."""
        return bool(self.residual <= 10 * np.sqrt(rounding_unit(self.w0)))

    @property
    def tables(self) -> dict[str, PyTree]:
        """Every row of train and of val, for what looks at them one by one."""
        return {"train": self.train.all_rows, "val": self.val.all_rows}

    def stream(self, number: int) -> Array:
        """A key of its own for every use."""
        return jax.random.fold_in(self.key, number)

    def rng(self, number: int) -> np.random.Generator:
        """A generator on the host, of its own for every use."""
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

    def adjoint_product(self, u: np.ndarray) -> np.ndarray:
        """d1Phi^T u at the inner solution, as vectors [d]."""
        return flat(self.inner(self.solution, self.lam, like(u, self.solution))[1])

    @property
    def measures_step(self) -> bool:
        """True where the inner step is left to be measured, and nothing but the loss says how."""
        inner_map = (self.given or self.problem).inner_map
        if not isinstance(inner_map, GradientStep) or inner_map.step_size is not None:
            return False
        return not any(hasattr(inner_map.loss, name) for name in ("curvature", "penalty_curvature"))

    def with_measured_step(self) -> "AuditedProblem":
        """With an inner step, where none is given: for the moment 1, if it can be measured at the inner solution."""
        s = self._replace(given=self.problem)
        if s.measures_step:
            return s._with_step(1.0)
        inner_map = self.problem.inner_map
        if not (isinstance(inner_map, GradientStep | ProximalStep) and inner_map.step_size is None):
            return s
        # what the loss says of its curvature is measured on minibatches, as an estimate would
        ready = _measured(inner_map, self.w0, self.lam, self.train, self.stream(0))
        return s._replace(problem=replace_unchecked(self.problem, inner_map=ready))

    def solved(self) -> "AuditedProblem":
        """With the inner solution, a perturbed point, and a step measured there."""
        start = flat(self.w0)
        w, elsewhere = self._minimised(start)
        # the perturbation is as large as the entries of the solution or, where that is zero, of w0, or 1
        size, begun = (float(np.linalg.norm(x)) / np.sqrt(self.size) for x in (w, start))
        scale = size if elsewhere and size > 1e-3 * begun else begun or 1.0
        noise = self.rng(2).normal(size=self.size)
        s = self._replace(solution=like(w, self.w0), perturbed=like(w + 0.3 * scale * noise, self.w0))
        s = s._with_step(s._longest_step()) if s.measures_step else s
        # ||Phi(w) - w|| / (1 + ||w||)
        residual = flat(s.inner(s.solution, s.lam, s.solution)[0])
        return s._replace(residual=float(np.linalg.norm(residual)) / (1.0 + float(np.linalg.norm(w))))

    def _minimised(self, start: np.ndarray) -> tuple[np.ndarray, bool]:
        """The inner solution, and whether it is elsewhere than the start by more than rounding."""
        rounding = rounding_unit(self.w0)
        if not self.problem.has_loss:
            w = iterated(lambda w: flat(self.inner(like(w, self.w0), self.lam, self.w0)[0]), start, SOLVE_STEPS)
            return w, bool(np.linalg.norm(w - start) > 1e3 * rounding)

        def value_and_gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
            value, by_w, _ = self.loss(like(w, self.w0), self.lam)
            return float(value), flat(by_w)

        w = descended(value_and_gradient, start, SOLVE_STEPS, rounding)
        before, after = value_and_gradient(start)[0], value_and_gradient(w)[0]
        return w, bool(abs(before - after) > 100 * rounding * abs(before)) or bool(np.any(start))

    def _with_step(self, step: float) -> "AuditedProblem":
        ready = replace_unchecked(self.problem.inner_map, step_size=step)
        return self._replace(problem=canonicalize(replace_unchecked(self.problem, inner_map=ready)))

    def _longest_step(self) -> float:
        """1 / (1.1 L), L the largest curvature at the inner solution, by power iteration."""
        s, step, u = self, 1.0, self.rng(0).normal(size=self.size)
        u /= np.linalg.norm(u)
        for _ in range(POWER_STEPS):
            # s H u = u - d1Phi^T u
            product = u - s.adjoint_product(u)
            length = float(np.linalg.norm(product))
            if not np.isfinite(length):
                break
            known = length > 1e3 * rounding_unit(self.w0)  # else rounding: a longer step shows more
            # s <- s / ||s H u||, so that s = 1 / L in the end;  u <- s H u / ||s H u||
            step = min(step / length if known else 1e4 * step, 1e30)
            u = product / length if known else u
            s = s._with_step(step)
        return step / 1.1


def normal(rng: np.random.Generator, tree: PyTree) -> PyTree:
    """Standard normal entries in the shape of a tree."""
    return like(rng.normal(size=entries(tree)), tree)


def other_rows(rows: PyTree, rng: np.random.Generator) -> PyTree:
    """Rows whose real numbers are random: what no such rows show, the functions do not do."""
    return jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, rows
    )


def leaf_names(name: str, tree: PyTree) -> list[str]:
    """How a user would write each leaf."""
    return [leaf_name(name, path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


@jax.jit
def _measured(inner_map: Step, w0: PyTree, lam: PyTree, train: RowSource, key: Array) -> Step:
    return inner_map.measured(w0, lam, train, key)
