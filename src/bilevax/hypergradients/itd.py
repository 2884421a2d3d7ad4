"""Iterative differentiation: the derivative of the trajectory itself."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import check_choice, check_count, check_real, config, replace_unchecked, set_frozen, static
from bilevax.core.errors import ParameterError
from bilevax.core.instance import Instance
from bilevax.core.protocols import BilevelProblem
from bilevax.core.records import Cost, Count, Estimate, Failure, nonfinite_code, worst_part
from bilevax.core.trees import PyTree, add, all_finite, astype_of, axpy, entries, sub, where, zeros_like
from bilevax.data import refuse_keys
from bilevax.hypergradients.diagnosis import Diagnosis, Run
from bilevax.hypergradients.residual_error import SolverErrors
from bilevax.solvers.left import moves_left
from bilevax.solvers.schedules import Constant, schedule
from bilevax.solvers.stability import MoveHistory, empty_history, final_code, monitor


@config
class ITD:
    """The gradient of lam -> E(w_t(lam), lam), with w_t from t steps of the inner map on every row of train.

    By the chain rule through all steps, in reverse (memory of order sqrt(t) points, by checkpointing; each step is
    computed twice) or forward (memory of m points, m times the cost). Its error falls as t q^(t-1). With ``last=k`` the
    chain rule goes through the last k steps only, w_{t-k} counting as a constant: the error has a floor that falls as
    q^k.

    Assumes nothing of the map; the hypergradient is right as t grows if it contracts. Cost: t + k gradients, and in
    reverse k Hessian-vector and k cross products; memory of order sqrt(k). Source: Franceschi, Donini, Frasconi, Pontil
    (2017), arXiv:1703.01785; Grazzi, Franceschi, Pontil, Salzo (2020), arXiv:2006.16218; truncated: Shaban, Cheng,
    Hatch, Boots (2019), arXiv:1810.10667.

    Args:
        steps: t, a count of at least 1; a changed one compiles anew.
        step_size: eta_j, a number or a schedule. Default 1: the map itself.
        mode: ``"reverse"`` (default) or ``"forward"``.
        tol: relative error of w above which the code is TOLERANCE_NOT_MET; see :class:`~bilevax.FixedPoint`. Default
            0.1.
        last: k, a count from 1 to t; a changed one compiles anew. None (default): t.
        confirm: as in :class:`~bilevax.FixedPoint`.
    """

    steps: int = static()
    step_size: Any = Constant(1.0)
    mode: str = "reverse"
    tol: float = 0.1
    last: int | None = static(None)
    confirm: bool = True

    def __post_init__(self) -> None:
        mode = check_choice("mode", self.mode, ("reverse", "forward"))
        tol = check_real("tol", self.tol, low=0.0, open_low=True)
        steps = check_count("steps", self.steps, low=1)
        last = None if self.last is None else check_count("last", self.last, low=1)
        if last is not None and last > steps:
            raise ParameterError(f"last must lie in [1, steps={steps}], got {last}")
        set_frozen(self, steps=steps, last=last, step_size=schedule(self.step_size), mode=mode, tol=tol)

    def check(self, problem: BilevelProblem) -> None:
        """Every problem will do."""

    def deterministic(self, instance: Instance) -> bool:
        """True: every step sees every row."""
        return True

    def suspecting(self) -> "ITD":
        """The same, but a suspicion that the map does not contract is not looked into."""
        return replace_unchecked(self, confirm=False)

    def estimate(
        self, instance: Instance, w0: PyTree, *, key: Array, outer_step: Array | int = 0, v0: PyTree | None = None
    ) -> Estimate:
        """One hypergradient; pure and traceable. Draws nothing, solves no linear system: the options play no part."""
        train, val = instance.train, instance.val
        refuse_keys("ITD", "take bx.JointSID", train=train, val=val)
        end, value, gradient, v = self._differentiated(instance, w0)
        inner, checks = self._final_code(instance, w0, end)
        code, failure = worst_part(
            (inner, Failure.of("inner", jnp.where(end.moves.code == Code.OK, self.steps, end.step))),
            (nonfinite_code((gradient, value)), Failure.of("outer", finite=jnp.isfinite(value))),
        )
        reverse, back = self.mode == "reverse", self._back
        products = back if reverse else back * entries(instance.lam)
        cost = Cost(
            gradients=Count(jnp.int32(self.steps + (back if reverse else 0)), train.rows),
            hvps=Count(jnp.int32(products), train.rows),
            cross=Count(jnp.int32(products), train.rows),
            outer_gradients=Count(jnp.int32(1), val.rows),
            measuring=Count(checks, train.rows),
        )
        seen = None
        if reverse:
            left = moves_left(end.moves.lengths, jnp.int32(self.steps), end.w, None, self._last_step)
            seen = SolverErrors(left, left._replace(least=jnp.full_like(left.least, jnp.inf)))
        return Estimate(astype_of(gradient, instance.lam), value, end.w, v, code, cost, failure, seen=seen)

    def diagnose(self, instance: Instance, run: Run, estimate: Estimate, *, key: Array, stage: str) -> Diagnosis | None:
        """The trajectory alone, with what is suspected of the map looked into."""
        if stage != "inner":
            return None
        w0 = run.before
        end = unrolled(self, instance, Trajectory.of(w0), (instance.lam, zeros_like(w0)), 0, self.steps)
        code, checks = self._final_code(instance, w0, end)
        failure = Failure.of("inner", jnp.where(end.moves.code == Code.OK, self.steps, end.step))
        return Diagnosis(code, failure, end.w, estimate.v, Count(checks, instance.train.rows))

    @property
    def _back(self) -> int:
        """Steps that are differentiated."""
        return self.steps if self.last is None else self.last

    @property
    def _last_step(self) -> Array:
        return self.step_size(jnp.int32(self.steps - 1))

    def _differentiated(self, instance: Instance, w0: PyTree) -> tuple["Trajectory", Array, PyTree, PyTree | None]:
        """The trajectory, E at its end, the gradient of that in lam, and the sum of the multipliers."""
        lam, none, first = instance.lam, zeros_like(w0), self.steps - self._back
        begun = Trajectory.of(w0)
        if first:
            begun = jax.lax.stop_gradient(unrolled(self, instance, begun, (lam, none), 0, first))

        def objective(lam: PyTree, offset: PyTree) -> tuple[Array, Trajectory]:
            end = unrolled(self, instance, begun, (lam, offset), first, self._back)
            return instance._replace(lam=lam).mean_outer_loss(end.w), end

        if self.mode == "reverse":
            (value, end), (gradient, v) = jax.value_and_grad(objective, (0, 1), has_aux=True)(lam, none)
            return end, value, gradient, v
        gradient, end = jax.jacfwd(objective, has_aux=True)(lam, none)
        return end, instance.mean_outer_loss(end.w), gradient, None

    def _final_code(self, instance: Instance, w0: PyTree, end: "Trajectory") -> tuple[Array, Array]:
        """The code of the trajectory, and the products spent on it."""
        way, vjp = sub(end.w, w0), vjp_of_step(instance, end.w, instance.lam, self._last_step)
        return final_code(end.moves, jnp.int32(self.steps), (w0, end.w), way, vjp, self.tol, confirm=self.confirm)


class Trajectory(NamedTuple):
    """Where a trajectory is, and what was seen on the way; only ``w`` has a derivative.

    Attributes:
        w: the last finite point.
        moves: as :func:`~bilevax.solvers.stability.monitor` keeps them, up to the first failure.
        step: of that failure.
    """

    w: PyTree
    moves: MoveHistory
    step: Array

    @staticmethod
    def of(w: PyTree) -> "Trajectory":
        """Before the first step."""
        return Trajectory(w, empty_history(w), jnp.int32(0))


def unrolled(
    method: ITD, instance: Instance, before: Trajectory, point: tuple[PyTree, PyTree], start: int, steps: int
) -> Trajectory:
    """So many steps from number ``start`` on, differentiable: sqrt(steps) checkpoints. The moves are watched.

    ``point`` is (lam, offset), and an offset of 0, like w, is added to each image of the map: the derivative with
    respect to it is the sum of all multipliers, which approaches v as that with respect to lam does the hypergradient.
    """
    lam, offset = point

    def step(at: Trajectory, j: Array) -> tuple[Trajectory, None]:
        move = sub(add(instance.mean_image(at.w, lam), offset), at.w)
        finite = all_finite(move)  # not by way of what is watched: the backward pass computes this anew, and only this
        seen = jax.lax.stop_gradient(at._replace(w=()))
        vjp = vjp_of_step(instance, at.w, lam, method.step_size(j))
        new = monitor(seen.moves, j, *jax.lax.stop_gradient((at.w, move)), vjp, confirm=method.confirm)
        failed = new.code != Code.OK
        new = new._replace(look=jnp.where(failed, NEVER, new.look))
        over = seen.moves.code != Code.OK
        moves, number = where(over, (seen.moves, seen.step), (new, jnp.where(failed, j + 1, 0)))
        return Trajectory(where(finite, axpy(method.step_size(j), move, at.w), at.w), moves, number), None

    length = max(1, math.isqrt(steps))
    whole = steps - steps % length
    numbers = start + jnp.arange(steps, dtype=jnp.int32)
    segment = jax.checkpoint(lambda at, js: jax.lax.scan(step, at, js))
    at, _ = jax.lax.scan(segment, before, numbers[:whole].reshape(-1, length))
    return jax.lax.scan(step, at, numbers[whole:])[0]


NEVER = jnp.iinfo(jnp.int32).max
"""A step that does not come."""


def vjp_of_step(instance: Instance, w: PyTree, lam: PyTree, eta: Array) -> Callable[[PyTree], PyTree]:
    """U -> u + eta (d1Phi^T u - u), which grows as products with the Jacobian of a step do; not differentiated."""
    w, instance = jax.lax.stop_gradient(w), instance._replace(lam=jax.lax.stop_gradient(lam))
    return lambda u: axpy(eta, sub(instance.mean_adjoint_product(w, u), u), u)
