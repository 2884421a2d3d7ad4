"""Iterative differentiation: the derivative of the trajectory itself."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import choice, config, count, real, set_fields, static
from bilevax.core.protocols import RowSource
from bilevax.core.records import Cost, Count, Estimate, Failure, nonfinite, worst_part
from bilevax.core.trees import PyTree, add, all_finite, astype_of, axpy, entries, sub, where, zeros_like
from bilevax.data import refuse_keys
from bilevax.hypergradients.diagnosis import diagnosed
from bilevax.hypergradients.residual_error import Lefts
from bilevax.problems.problem import Problem, adjoint_product, inner_image
from bilevax.solvers.left import moves_left
from bilevax.solvers.schedules import Constant, schedule
from bilevax.solvers.stability import Moves, no_moves, verdict, watch


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
        tol: relative error of w above which the code is BUDGET, as in :class:`~bilevax.FixedPoint`. Default 0.1.
    """

    steps: int = static()
    step_size: Any = Constant(1.0)
    mode: str = "reverse"
    tol: float = 0.1

    def __post_init__(self) -> None:
        mode = choice("mode", self.mode, ("reverse", "forward"))
        tol = real("tol", self.tol, low=0.0, open_low=True)
        steps = count("steps", self.steps, low=1)
        set_fields(self, steps=steps, step_size=schedule(self.step_size), mode=mode, tol=tol)

    def check(self, problem: Problem) -> None:
        """Every problem will do."""

    def deterministic(self, sources: tuple[RowSource, RowSource]) -> bool:
        """True: every step sees every row."""
        return True

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
        batch = sources[0].full

        def trajectory(lam: PyTree, offset: PyTree) -> Trajectory:
            return unrolled(problem, Trajectory.of(w0), (lam, offset), batch, self.step_size, 0, self.steps)

        return differentiated(self, problem, trajectory, (w0, lam), sources, self.steps)


class Trajectory(NamedTuple):
    """Where a trajectory is, and what was seen on the way; only ``w`` has a derivative.

    Attributes:
        w: the last finite point.
        moves: as :func:`~bilevax.solvers.stability.watch` keeps them, up to the first failure.
        step: of that failure.
    """

    w: PyTree
    moves: Moves
    step: Array

    @staticmethod
    def of(w: PyTree) -> "Trajectory":
        """Before the first step."""
        return Trajectory(w, no_moves(w), jnp.int32(0))


def unrolled(
    problem: Problem,
    before: Trajectory,
    point: tuple[PyTree, PyTree],
    batch: PyTree,
    step_size: Callable[[Array], Array],
    start: int,
    steps: int,
) -> Trajectory:
    """So many steps from number ``start`` on, differentiable: sqrt(steps) checkpoints. The moves are watched.

    ``point`` is (lam, offset), and an offset of 0, like w, is added to each image of the map: the derivative with
    respect to it is the sum of all multipliers, which approaches v as that with respect to lam does the hypergradient.
    """
    lam, offset = point

    def step(at: Trajectory, j: Array) -> tuple[Trajectory, None]:
        move = sub(add(inner_image(problem, at.w, lam, batch), offset), at.w)
        finite = all_finite(move)  # not by way of what is watched: the backward pass computes this anew, and only this
        seen = jax.lax.stop_gradient(at._replace(w=()))
        push = pushing(problem, at.w, lam, batch, step_size(j))
        new = watch(seen.moves, j, *jax.lax.stop_gradient((at.w, move)), push)
        failed = new.code != Code.OK
        new = new._replace(look=jnp.where(failed, NEVER, new.look))
        over = seen.moves.code != Code.OK
        moves, number = where(over, (seen.moves, seen.step), (new, jnp.where(failed, j + 1, 0)))
        return Trajectory(where(finite, axpy(step_size(j), move, at.w), at.w), moves, number), None

    length = max(1, math.isqrt(steps))
    whole = steps - steps % length
    numbers = start + jnp.arange(steps, dtype=jnp.int32)
    segment = jax.checkpoint(lambda at, js: jax.lax.scan(step, at, js))
    at, _ = jax.lax.scan(segment, before, numbers[:whole].reshape(-1, length))
    return jax.lax.scan(step, at, numbers[whole:])[0]


NEVER = jnp.iinfo(jnp.int32).max
"""A step that does not come."""


def pushing(problem: Problem, w: PyTree, lam: PyTree, batch: PyTree, eta: Array) -> Callable[[PyTree], PyTree]:
    """Products with the transposed Jacobian of a step, which grow as those with the Jacobian do; not differentiated."""
    w, lam = jax.lax.stop_gradient((w, lam))

    def push(u: PyTree) -> PyTree:
        return axpy(eta, sub(adjoint_product(problem, w, lam, batch, u), u), u)

    return push


def differentiated(
    estimator: Any,
    problem: Problem,
    trajectory: Callable[[PyTree, PyTree], Trajectory],
    points: tuple[PyTree, PyTree],
    sources: tuple[RowSource, RowSource],
    back: int,
) -> Estimate:
    """The estimate from lam -> w, of ``estimator.steps`` steps of which the derivative sees the last ``back``.

    Args:
        estimator: its ``steps``, ``step_size``, ``tol`` and ``mode``.
        problem: the maps.
        trajectory: of lam and the offset.
        points: (w0, lam).
        sources: (train, val).
        back: steps with a derivative.
    """
    (w0, lam), (train, val), steps = points, sources, estimator.steps
    refuse_keys(type(estimator).__name__, "take bx.JointSID", train=train, val=val)

    def objective(lam: PyTree, offset: PyTree) -> tuple[Array, Trajectory]:
        end = trajectory(lam, offset)
        return problem.outer_loss(end.w, lam, val.full), end

    if estimator.mode == "reverse":
        (value, end), (gradient, v) = jax.value_and_grad(objective, (0, 1), has_aux=True)(lam, zeros_like(w0))
    else:
        (gradient, end), v = jax.jacfwd(objective, has_aux=True)(lam, zeros_like(w0)), None
        value = problem.outer_loss(end.w, lam, val.full)
    push = pushing(problem, end.w, lam, train.full, estimator.step_size(jnp.int32(steps - 1)))
    inner, checks = verdict(end.moves, jnp.int32(steps), (w0, end.w), sub(end.w, w0), push, estimator.tol)
    code, failure = worst_part(
        (inner, Failure.of("inner", jnp.where(end.moves.code == Code.OK, steps, end.step))),
        (nonfinite((gradient, value)), Failure.of("outer", finite=jnp.isfinite(value))),
    )
    failure = diagnosed(code, failure, problem, (end.w, lam), train.full, sub(end.w, w0))
    reverse = estimator.mode == "reverse"
    products = back if reverse else back * entries(lam)
    cost = Cost(
        gradients=Count(jnp.int32(steps + (back if reverse else 0)), train.rows),
        hvps=Count(jnp.int32(products), train.rows),
        cross=Count(jnp.int32(products), train.rows),
        outer_gradients=Count(jnp.int32(1), val.rows),
        measuring=Count(checks, train.rows),
    )
    left = moves_left(end.moves.lengths, jnp.int32(steps), end.w, None, estimator.step_size(jnp.int32(steps - 1)))
    seen = Lefts(left, left._replace(least=jnp.full_like(left.least, jnp.inf))) if reverse else None
    return Estimate(astype_of(gradient, lam), value, end.w, v, code, cost, failure, seen=seen)
