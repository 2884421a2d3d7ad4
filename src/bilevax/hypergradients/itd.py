"""Iterative differentiation: the derivative of the trajectory itself."""

import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import (
    at_least_one,
    check_choice,
    check_fields,
    config,
    positive,
    replace_unchecked,
    set_frozen,
    static,
)
from bilevax.core.errors import ParameterError
from bilevax.core.instance import Instance
from bilevax.core.protocols import BilevelProblem, Diagnosis, Run
from bilevax.core.records import Cost, Count, Estimate, Failure, first_failure, nonfinite_code
from bilevax.core.trees import Operator, PyTree, add, all_finite, astype_of, axpy, entries, sub, where, zeros_like
from bilevax.data import refuse_keys
from bilevax.hypergradients.residual_error import SolverErrors
from bilevax.solvers.left import moves_left
from bilevax.solvers.schedules import Constant, schedule
from bilevax.solvers.stability import MoveHistory, empty_history, final_code, monitor


class ITDState(NamedTuple):
    """The state of a run: where w started or ended, and the evidence for its error report; None before the first step.

    Forward mode leaves none: it has no v, which a report needs.
    """

    w: PyTree
    trace: SolverErrors | None = None


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

    extensible: ClassVar[bool] = False

    steps: int = static()
    step_size: Any = Constant(1.0)
    mode: str = "reverse"
    tol: float = 0.1
    last: int | None = static(None)
    confirm: bool = True

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("reverse", "forward"))
        check_fields(self, tol=positive, steps=at_least_one)
        if self.last is not None:
            check_fields(self, last=at_least_one)
            if self.last > self.steps:
                raise ParameterError(f"last must lie in [1, steps={self.steps}], got {self.last}")
        set_frozen(self, step_size=schedule(self.step_size))

    def check(self, problem: BilevelProblem) -> None:
        """Every problem will do."""

    def deterministic(self, instance: Instance) -> bool:
        """True: every step sees every row."""
        return True

    def suspecting(self) -> "ITD":
        """The same, but a suspicion that the map does not contract is not tested."""
        return replace_unchecked(self, confirm=False)

    def estimate(
        self, instance: Instance, w0: PyTree, *, key: Array, outer_step: Array | int = 0, v0: PyTree | None = None
    ) -> Estimate:
        """One hypergradient; pure and traceable. Draws nothing, solves no linear system: the options play no part."""
        return self.extend(instance, ITDState(w0), key=key)[0]

    def init(self, instance: Instance, w0: PyTree, *, key: Array, v0: PyTree | None = None) -> ITDState:
        """A run without a step."""
        return ITDState(w0)

    def extend(
        self, instance: Instance, state: ITDState, *, key: Array, doublings: Array | int = 0
    ) -> tuple[Estimate, ITDState]:
        """The estimate, and where w ended; its counts are fixed, so that no run goes on and ``doublings`` is 0."""
        w0, train, val = state.w, instance.train, instance.val
        refuse_keys("ITD", "take bx.JointSID", train=train, val=val)
        end, value, gradient, v = self._differentiated(instance, w0)
        inner, checks = self._final_code(instance, w0, end)
        code, failure = first_failure(
            (inner, self._failure(end)),
            (nonfinite_code((gradient, value)), Failure.of("outer", finite=jnp.isfinite(value))),
        )
        reverse, back = self.mode == "reverse", self._back
        # forward mode moves m tangents through each step
        products = back if reverse else back * entries(instance.lam)
        cost = Cost(
            gradients=Count(jnp.int32(self.steps + (back if reverse else 0)), train.rows),
            hvps=Count(jnp.int32(products), train.rows),
            cross=Count(jnp.int32(products), train.rows),
            outer_gradients=Count(jnp.int32(1), val.rows),
            measuring=Count(checks, train.rows),
        )
        trace = None
        if reverse:
            # of v, the sum of the multipliers, no move is known, but w's curvature is its own
            error = moves_left(end.moves.lengths, jnp.int32(self.steps), end.w, None, self._last_step)
            trace = SolverErrors(error, error._replace(least=jnp.full_like(error.least, jnp.inf)))
        estimate = Estimate(astype_of(gradient, instance.lam), value, end.w, v, code, cost, failure)
        return estimate, ITDState(end.w, trace)

    def diagnose(self, instance: Instance, run: Run, estimate: Estimate, *, key: Array, stage: str) -> Diagnosis | None:
        """The trajectory alone, with what is suspected of the map tested."""
        if stage != "inner":
            return None
        w0 = run.before.w
        # forward only: no checkpoints are kept
        end = unrolled(self, instance, Trajectory.of(w0), (instance.lam, zeros_like(w0)), 0, self.steps)
        code, checks = self._final_code(instance, w0, end)
        return Diagnosis(code, self._failure(end), end.w, estimate.v, Count(checks, instance.train.rows))

    def _failure(self, end: "Trajectory") -> Failure:
        return Failure.of("inner", jnp.where(end.moves.code == Code.OK, self.steps, end.step))

    @property
    def _back(self) -> int:
        """Steps that are differentiated."""
        return self.steps if self.last is None else self.last

    @property
    def _last_step(self) -> Array:
        eta: Array = self.step_size(jnp.int32(self.steps - 1))
        return eta

    def _differentiated(self, instance: Instance, w0: PyTree) -> tuple["Trajectory", Array, PyTree, PyTree | None]:
        """The trajectory, E at its end, the gradient of that in lam, and the sum of the multipliers."""
        lam, none, first = instance.lam, zeros_like(w0), self.steps - self._back
        begun = Trajectory.of(w0)
        # w_{t-k} counts as a constant
        if first:
            begun = jax.lax.stop_gradient(unrolled(self, instance, begun, (lam, none), 0, first))

        def objective(lam: PyTree, offset: PyTree) -> tuple[Array, Trajectory]:
            end = unrolled(self, instance, begun, (lam, offset), first, self._back)
            # E(w_t(lam), lam)
            return instance._replace(lam=lam).mean_outer_loss(end.w), end

        if self.mode == "reverse":
            # d/d offset = sum_j of the multipliers
            (value, end), (gradient, v) = jax.value_and_grad(objective, (0, 1), has_aux=True)(lam, none)
            return end, value, gradient, v
        # d w_t / d lam is carried along: m tangents
        gradient, end = jax.jacfwd(objective, has_aux=True)(lam, none)
        return end, instance.mean_outer_loss(end.w), gradient, None

    def _final_code(self, instance: Instance, w0: PyTree, end: "Trajectory") -> tuple[Array, Array]:
        """The code of the trajectory, and the diagnostic products."""
        # the direction whose growth is tested
        way, vjp = sub(end.w, w0), vjp_of_step(instance, end.w, instance.lam, self._last_step)
        return final_code(end.moves, jnp.int32(self.steps), (w0, end.w), way, vjp, self.tol, confirm=self.confirm)


class Trajectory(NamedTuple):
    """A point of a trajectory, and the moves that led there; only ``w`` has a derivative.

    Attributes:
        w: the last finite point.
        moves: as recorded by :func:`~bilevax.solvers.stability.monitor`, up to the first failure.
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
    """So many steps from number ``start`` on, differentiable: sqrt(steps) checkpoints. The moves are monitored.

    ``point`` is (lam, offset), and an offset of 0, like w, is added to each image of the map: the derivative with
    respect to it is the sum of all multipliers, which approaches v as that with respect to lam does the hypergradient.
    """
    lam, offset = point

    def step(at: Trajectory, j: Array) -> tuple[Trajectory, None]:
        # w <- w + eta_j (Phi(w, lam) + offset - w)
        move = sub(add(instance.mean_image(at.w, lam), offset), at.w)
        # Not from the history of moves: the backward pass computes this anew, and only this.
        finite = all_finite(move)
        before = jax.lax.stop_gradient(at._replace(w=()))
        vjp = vjp_of_step(instance, at.w, lam, method.step_size(j))
        new = monitor(before.moves, j, *jax.lax.stop_gradient((at.w, move)), vjp, confirm=method.confirm)
        failed = new.code != Code.OK
        new = new._replace(look=jnp.where(failed, NEVER, new.look))
        over = before.moves.code != Code.OK
        moves, number = where(over, (before.moves, before.step), (new, jnp.where(failed, j + 1, 0)))
        return Trajectory(where(finite, axpy(method.step_size(j), move, at.w), at.w), moves, number), None

    # segments of sqrt(steps) steps, of which the backward pass keeps the first point and computes the others again
    length = max(1, math.isqrt(steps))
    whole = steps - steps % length
    numbers = start + jnp.arange(steps, dtype=jnp.int32)
    segment = jax.checkpoint(lambda at, js: jax.lax.scan(step, at, js))
    at, _ = jax.lax.scan(segment, before, numbers[:whole].reshape(-1, length))
    return jax.lax.scan(step, at, numbers[whole:])[0]


NEVER = jnp.iinfo(jnp.int32).max
"""A step that does not come."""


def vjp_of_step(instance: Instance, w: PyTree, lam: PyTree, eta: Array) -> Operator:
    """The product u -> u + eta (d1Phi^T u - u) with the transposed Jacobian of a step; not differentiated."""
    # u + eta (d1Phi^T u - u)
    w, instance = jax.lax.stop_gradient(w), instance._replace(lam=jax.lax.stop_gradient(lam))
    return lambda u: axpy(eta, sub(instance.mean_adjoint_product(w, u), u), u)
