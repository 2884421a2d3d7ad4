"""The record that every check of the doctor reads.

In, from :func:`bilevax.check`: a problem, w0, lam, both sources and a key. ``with_measured_step`` fills in the inner
step, ``solved`` then the points of evaluation: the inner solution, a generic point near it, and the residual. Out, to
the checks: these, and the oracles as means over every row.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.audit.oracles import Parts, Rows, flat, inner, like, loss, on_every_row, outer
from bilevax.audit.solving import descended, iterated
from bilevax.core.config import canonicalize, replace_unchecked
from bilevax.core.estimator import Estimator
from bilevax.core.protocols import RowSource
from bilevax.core.trees import PyTree, entries, leaf_name, rounding_unit
from bilevax.problems.gradient_step import GradientStep
from bilevax.problems.problem import Problem
from bilevax.problems.proximal_step import ProximalStep

SOLVE_STEPS = 300
"""Steps on every row in which the inner solution is looked for."""

POWER_STEPS = 16
"""Power iterations, d1Phi^T products, from which a step is measured."""

TINY = 1e-300
"""Divides what may be zero."""

Step = TypeVar("Step", GradientStep, ProximalStep)


class AuditedProblem(NamedTuple):
    """A problem under audit.

    Attributes:
        problem: as given, then with its inner step measured.
        w0: start, as arrays.
        lam: as arrays.
        train: source of inner minibatches.
        val: source of outer minibatches.
        key: of everything drawn.
        given: the problem as the user gave it; None before ``with_measured_step``.
        estimator: in use, or None.
        solution: the inner solution as far as SOLVE_STEPS steps find it: the last finite iterate of L-BFGS on the loss;
            of a map without a loss its last iterate, w0 where the moves grow. None before ``solved``, as is
            ``perturbed``.
        perturbed: the solution plus Gaussian noise, where nothing vanishes as it does at the solution.
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
        """The problem without its prox: its map is a mean over rows, as a prox of a mean is not."""
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
        """The key of use ``number``: independent for each."""
        return jax.random.fold_in(self.key, number)

    def rng(self, number: int) -> np.random.Generator:
        """The host generator of use ``number``: independent for each."""
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
        """True where the step of a :class:`~bilevax.GradientStep` is not given and its loss offers no curvature.

        It is then 1 / (1.1 L), by power iteration at the inner solution.
        """
        inner_map = (self.given or self.problem).inner_map
        if not isinstance(inner_map, GradientStep) or inner_map.step_size is not None:
            return False
        return not any(hasattr(inner_map.loss, name) for name in ("curvature", "penalty_curvature"))

    def with_measured_step(self) -> "AuditedProblem":
        """With an inner step, where none is given: a placeholder of 1 where ``solved`` is to measure it."""
        s = self._replace(given=self.problem)
        if s.measures_step:
            return s._with_step(1.0)
        inner_map = self.problem.inner_map
        if not (isinstance(inner_map, GradientStep | ProximalStep) and inner_map.step_size is None):
            return s
        # the loss offers a curvature, or there is a prox: measured on minibatches, as before an estimate
        ready = _measured(inner_map, self.w0, self.lam, self.train, self.stream(0))
        return s._replace(problem=replace_unchecked(self.problem, inner_map=ready))

    def solved(self) -> "AuditedProblem":
        """With the inner solution, a perturbed point, and a step measured there."""
        start = flat(self.w0)
        w, trusted = self._minimised(start)
        # perturbed = w + .3 scale N(0, I), scale = ||w|| / sqrt(d); of w0 where w is zero but for rounding; or 1
        rms, rms_start = (float(np.linalg.norm(x)) / np.sqrt(self.size) for x in (w, start))
        scale = rms if trusted and rms > 1e-3 * rms_start else rms_start or 1.0
        noise = self.rng(2).normal(size=self.size)
        s = self._replace(solution=like(w, self.w0), perturbed=like(w + 0.3 * scale * noise, self.w0))
        s = s._with_step(s._longest_step()) if s.measures_step else s
        # ||Phi(w) - w|| / (1 + ||w||); the cotangent, here the solution, plays no part
        residual = flat(s.inner(s.solution, s.lam, s.solution)[0])
        return s._replace(residual=float(np.linalg.norm(residual)) / (1.0 + float(np.linalg.norm(w))))

    def _minimised(self, start: np.ndarray) -> tuple[np.ndarray, bool]:
        """The inner solution, and whether its size can be trusted: False where it may be rounding alone."""
        rounding = rounding_unit(self.w0)
        if not self.problem.has_loss:
            # w <- w + (Phi(w) - w)
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
        audited, step, u = self, 1.0, self.rng(0).normal(size=self.size)
        u /= np.linalg.norm(u)
        for _ in range(POWER_STEPS):
            # s H u = u - d1Phi^T u, with s the step and Phi = w - s grad_1 G
            product = u - audited.adjoint_product(u)
            length = float(np.linalg.norm(product))
            if not np.isfinite(length):
                break
            known = length > 1e3 * rounding_unit(self.w0)  # else rounding: a longer step shows more
            # s <- s / ||s H u||, so that s = 1 / L in the end;  u <- s H u / ||s H u||
            step = min(step / length if known else 1e4 * step, 1e30)
            u = product / length if known else u
            audited = audited._with_step(step)
        return step / 1.1


def normal(rng: np.random.Generator, tree: PyTree) -> PyTree:
    """Standard normal entries in the shape of a tree."""
    return like(rng.normal(size=entries(tree)), tree)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """||a - b|| against the larger of the two."""
    return float(np.linalg.norm(a - b) / np.maximum(np.linalg.norm(a), np.linalg.norm(b) + TINY))


def other_rows(rows: PyTree, rng: np.random.Generator) -> PyTree:
    """Rows with Gaussian noise for their real numbers: a function constant on them too does not read them at all."""
    return jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, rows
    )


def leaf_names(name: str, tree: PyTree) -> list[str]:
    """The path of each leaf as Python writes it, such as ``lam['a'][0]``."""
    return [leaf_name(name, path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


@jax.jit
def _measured(inner_map: Step, w0: PyTree, lam: PyTree, train: RowSource, key: Array) -> Step:
    return inner_map.measured(w0, lam, train, key)
