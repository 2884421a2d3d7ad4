"""Iterative differentiation: the derivative of the trajectory itself."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import choice, config, count, set_fields, static
from bilevax.core.records import Cost, Count, Estimate, Failure
from bilevax.core.trees import PyTree, all_finite, astype_of, axpy, sub
from bilevax.data import RowSource
from bilevax.problems.problem import Problem, inner_image
from bilevax.solvers.schedules import Constant, schedule


@config
class ITD:
    """The gradient of lam -> E(w_t(lam), lam), with w_t from t steps of the inner map on every row of train.

    By the chain rule through all steps, in reverse (memory of order sqrt(t) points, by checkpointing; each step is
    computed twice) or forward (memory of m points, m times the cost). Its error falls as t q^(t-1).

    Assumes nothing of the map; the hypergradient is right as t grows if it contracts. Cost: t gradients, and in reverse
    t Hessian-vector and t cross products. Source: Franceschi, Donini, Frasconi, Pontil (2017), arXiv:1703.01785;
    Grazzi, Franceschi, Pontil, Salzo (2020), arXiv:2006.16218.

    Args:
        steps: t, a count of at least 1; a changed one compiles anew.
        step_size: eta_j, a number or a schedule. Default 1: the map itself.
        mode: ``"reverse"`` (default) or ``"forward"``.
    """

    steps: int = static()
    step_size: Any = Constant(1.0)
    mode: str = "reverse"

    def __post_init__(self) -> None:
        mode = choice("mode", self.mode, ("reverse", "forward"))
        set_fields(self, steps=count("steps", self.steps, low=1), step_size=schedule(self.step_size), mode=mode)

    def check(self, problem: Problem) -> None:
        """Every problem will do."""

    def estimate(
        self,
        problem: Problem,
        w0: PyTree,
        lam: PyTree,
        sources: tuple[RowSource, RowSource],
        *,
        key: Array,
        s: Array | int = 0,
        v0: PyTree | None = None,
    ) -> Estimate:
        """One hypergradient; pure and traceable. Draws nothing, solves no linear system: key, s and v0 play no part."""
        train = sources[0]

        def trajectory(lam: PyTree) -> PyTree:
            return unrolled(problem, w0, lam, train.full, self.step_size, 0, self.steps)

        return differentiated(problem, trajectory, lam, sources, self.mode, self.steps, self.steps)


def unrolled(
    problem: Problem, w: PyTree, lam: PyTree, batch: PyTree, step_size: Callable[[Array], Array], start: int, steps: int
) -> PyTree:
    """W after so many steps from number ``start`` on, differentiable: sqrt(steps) checkpoints."""

    def step(w: PyTree, j: Array) -> tuple[PyTree, None]:
        return axpy(step_size(j), sub(inner_image(problem, w, lam, batch), w), w), None

    length = max(1, math.isqrt(steps))
    whole = steps - steps % length
    numbers = start + jnp.arange(steps, dtype=jnp.int32)
    segment = jax.checkpoint(lambda w, js: jax.lax.scan(step, w, js))
    w, _ = jax.lax.scan(segment, w, numbers[:whole].reshape(-1, length))
    return jax.lax.scan(step, w, numbers[whole:])[0]


def differentiated(
    problem: Problem,
    trajectory: Callable[[PyTree], PyTree],
    lam: PyTree,
    sources: tuple[RowSource, RowSource],
    mode: str,
    steps: int,
    back: int,
) -> Estimate:
    """The estimate from lam -> w, of ``steps`` steps of which the derivative sees the last ``back``."""
    train, val = sources

    def objective(lam: PyTree) -> tuple[Array, PyTree]:
        w = trajectory(lam)
        return problem.outer_loss(w, lam, val.full), w

    if mode == "reverse":
        (value, w), gradient = jax.value_and_grad(objective, has_aux=True)(lam)
    else:
        gradient, w = jax.jacfwd(objective, has_aux=True)(lam)
        value = problem.outer_loss(w, lam, val.full)
    finite = all_finite((gradient, value))
    failed = jnp.where(all_finite(w), Failure.stage_of("outer"), Failure.stage_of("inner"))
    products = back if mode == "reverse" else back * sum(x.size for x in jax.tree.leaves(lam))
    cost = Cost(
        gradients=Count(jnp.int32(steps + (back if mode == "reverse" else 0)), train.rows),
        hvps=Count(jnp.int32(products), train.rows),
        cross=Count(jnp.int32(products), train.rows),
        outer_gradients=Count(jnp.int32(1), val.rows),
    )
    code = jnp.where(finite, jnp.int32(Code.OK), jnp.int32(Code.NONFINITE))
    failure = Failure(jnp.where(finite, Failure.stage_of("none"), failed), jnp.int32(steps))
    return Estimate(astype_of(gradient, lam), value, w, None, code, cost, failure)
