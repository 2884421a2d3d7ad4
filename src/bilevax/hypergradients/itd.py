"""Iterative differentiation: the derivative of the trajectory itself."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import at_least_one, check_choice, check_fields, config, or_none, positive, static
from bilevax.core.errors import ParameterError
from bilevax.core.estimator import Diagnosis, Run
from bilevax.core.instance import Instance
from bilevax.core.protocols import BilevelProblem
from bilevax.core.records import Cost, Count, ErrorReport, Estimate, Failure, first_failure, nonfinite_code
from bilevax.core.trees import (
    Operator,
    PyTree,
    add,
    all_finite,
    astype_of,
    axpy,
    entries,
    norm,
    scale,
    sub,
    where,
    zeros_like,
)
from bilevax.data import refuse_keys
from bilevax.hypergradients.once import Once, RunsOnce
from bilevax.hypergradients.residual_error import SAFETY, SolverErrors, report_of_bias
from bilevax.solvers.left import moves_left
from bilevax.solvers.schedules import Constant, StepSize, envelope, schedule, scheduled
from bilevax.solvers.stability import NEVER, MoveHistory, empty_history, final_code, monitor


@config
class ITD(RunsOnce):
    """The gradient of lam -> E(w_t(lam), lam), with w_t from t steps of the inner map on every row of train.

    By the chain rule through all steps, in reverse (memory of order sqrt(t) points, by checkpointing; each step is
    computed twice) or forward (memory of m points, m times the cost). Its error falls as t q^(t-1). With ``last=k`` the
    chain rule goes through the last k steps only, w_{t-k} counting as a constant: the error has a floor that falls as
    q^k.

    Two options are for inner problems with more than one solution, where there is no hypergradient, and the derivative
    of the trajectory is all that there is. With ``outer_weight`` the steps descend the outer loss too, ever less
    (bi-level descent aggregation), so that of all solutions w tends to one that is best for E:

        w <- w + eta_j (Phi(w, lam) - w) - a_j grad_1 E(w, lam)

    The published mu and a_j = mu / (j + 1) are ``ITD(steps, 1 - mu, outer_weight=Harmonic(mu, 1.0))``. Where the
    solution is one this has a bias of order a_t. With ``truncate="worst"`` it is the gradient of
    lam -> max_j E(w_j(lam), lam), 1 <= j <= t: through the steps up to the point of the largest outer loss
    (pessimistic trajectory truncation, of IAPTT-GM); w is that point.

    Assumes nothing of the map; the hypergradient is right as t grows if it contracts. ``error`` is from the residuals
    of the two equations; in forward mode from the last move of the value, which shows nothing of directions in which
    the map does not contract, and there is none with ``truncate``. Cost: t + k gradients, and in reverse k
    Hessian-vector and k cross products; memory of order sqrt(k); one outer gradient, t + 2 k more with
    ``outer_weight``, t more with ``truncate``. Source: Franceschi, Donini, Frasconi, Pontil (2017), arXiv:1703.01785;
    Grazzi, Franceschi, Pontil, Salzo (2020), arXiv:2006.16218; truncated: Shaban, Cheng, Hatch, Boots (2019),
    arXiv:1810.10667; aggregation: Liu, Mu, Yuan, Zeng, Zhang (2020), arXiv:2006.04045; worst point: Liu, Liu, Zeng,
    Zhang (2021), arXiv:2110.00455.

    Args:
        steps: t, a count of at least 1; a changed one compiles anew.
        step_size: eta_j, a number or a schedule. Default 1: the map itself.
        mode: ``"reverse"`` (default) or ``"forward"``.
        tol: relative error of w above which the code is TOLERANCE_NOT_MET; see :class:`~bilevax.FixedPoint`. Default
            0.1.
        last: k, a count from 1 to t; a changed one compiles anew. None (default): t.
        confirm: as in :class:`~bilevax.FixedPoint`.
        outer_weight: a_j, a schedule such as :class:`~bilevax.Harmonic`, or a number; None (default): 0.
        truncate: ``"worst"``, not with ``last``; None (default): the last point.

    Examples:
        >>> import bilevax as bx
        >>> bx.ITD(100).mode, bx.ITD(100, last=20).last  # truncated: the last 20 steps alone
        ('reverse', 20)
    """

    steps: int = static()
    step_size: StepSize = Constant(1.0)
    mode: str = "reverse"
    tol: float = 0.1
    last: int | None = static(None)
    confirm: bool = True
    outer_weight: StepSize | None = None
    truncate: str | None = None

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("reverse", "forward"))
        check_fields(self, tol=positive, steps=at_least_one, last=or_none(at_least_one))
        if self.last is not None and self.last > self.steps:
            raise ParameterError(f"last must lie in [1, steps={self.steps}], got {self.last}")
        if self.truncate is not None:
            check_choice("truncate", self.truncate, ("worst",))
            if self.last is not None:
                raise ParameterError('truncate="worst" says where the chain rule ends: leave last away')
        check_fields(self, step_size=schedule, outer_weight=or_none(envelope))

    def check(self, problem: BilevelProblem) -> None:
        """Every problem will do."""

    def deterministic(self, instance: Instance) -> bool:
        """True: every step sees every row."""
        return True

    def extend(
        self,
        instance: Instance,
        state: Once,
        *,
        key: Array,
        doublings: Array | int = 0,
        outer_step: Array | int = 0,
    ) -> tuple[Estimate, Once]:
        """The estimate, and where w ended; its counts are fixed, so that no run goes on and ``doublings`` is 0.

        Draws nothing, solves no linear system: the options play no part.
        """
        w0, train, val = state.w, instance.train, instance.val
        refuse_keys("ITD", "take bx.JointSID", train=train, val=val)
        end, (value, gradient, v), before = self._differentiated(instance, w0)
        inner, checks = self._final_code(instance, w0, end)
        code, failure = first_failure(
            (inner, self._failure(end)),
            (nonfinite_code((gradient, value)), Failure.of("outer", finite=jnp.isfinite(value))),
        )
        reverse, back = self.mode == "reverse", self._back
        # forward mode moves m tangents through each step
        products = back if reverse else back * entries(instance.lam)
        outer = 1 + (self.steps + 2 * back if self.outer_weight is not None else 0)
        cost = Cost(
            gradients=Count(jnp.int32(self.steps + (back if reverse else 0)), train.rows),
            hvps=Count(jnp.int32(products), train.rows),
            cross=Count(jnp.int32(products), train.rows),
            outer_gradients=Count(jnp.int32(outer + (self.steps if self.truncate else 0)), val.rows),
            measuring=Count(checks, train.rows),
        )
        gradient, w = astype_of(gradient, instance.lam), end.w if end.worst is None else end.worst.w
        # of v, the sum of the multipliers, no move is known, but w's curvature is its own
        left = moves_left(end.moves.lengths, jnp.int32(self.steps), end.w, None, self._last_step)
        trace, error = None, None
        if before is not None:
            q = 1.0 - left.least * self._last_step.astype(left.least.dtype)
            error = _of_last_move(gradient, sub(gradient, before), q)
        elif reverse and end.worst is None and self.outer_weight is None:
            # (moves that follow a_j say nothing of the curvature)
            trace = SolverErrors(left, left._replace(least=jnp.full_like(left.least, jnp.inf)))
        # the worst point solves nothing, and the multipliers up to it neither
        v = v if end.worst is None else None
        estimate = Estimate(gradient, value, w, v, code, cost, failure, error)
        return estimate, Once(w, None, trace)

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
        return scheduled(self.step_size, jnp.int32(self.steps - 1))

    def _differentiated(
        self, instance: Instance, w0: PyTree
    ) -> tuple["Trajectory", tuple[Array, PyTree, PyTree | None], PyTree | None]:
        """The trajectory; E at its end, the gradient of that in lam and the sum of the multipliers.

        And, in forward mode, the gradient after one step less.
        """
        lam, none, first = instance.lam, zeros_like(w0), self.steps - self._back
        begun = Trajectory.of(w0, worst=self.truncate is not None)
        # w_{t-k} counts as a constant
        if first:
            begun = jax.lax.stop_gradient(unrolled(self, instance, begun, (lam, none), 0, first))

        def outer(at: Trajectory, lam: PyTree) -> Array:
            # E(w_t(lam), lam), or the largest on the way
            return instance._replace(lam=lam).mean_outer_loss(at.w) if at.worst is None else at.worst.value

        def objective(lam: PyTree, offset: PyTree) -> tuple[Array, Trajectory]:
            end = unrolled(self, instance, begun, (lam, offset), first, self._back)
            return outer(end, lam), end

        def last_two(lam: PyTree) -> tuple[tuple[Array, Array], Trajectory]:
            before = unrolled(self, instance, begun, (lam, none), first, self._back - 1)
            end = unrolled(self, instance, before, (lam, none), self.steps - 1, 1)
            return (outer(before, lam), outer(end, lam)), end

        if self.mode == "reverse":
            # d/d offset = sum_j of the multipliers
            (value, end), (gradient, v) = jax.value_and_grad(objective, (0, 1), has_aux=True)(lam, none)
            return end, (value, gradient, v), None
        if self.truncate is not None:
            gradient, end = jax.jacfwd(objective, has_aux=True)(lam, none)
            return end, (end.worst.value, gradient, None), None
        # d w_t / d lam is carried along: m tangents
        (before, gradient), end = jax.jacfwd(last_two, has_aux=True)(lam)
        return end, (instance.mean_outer_loss(end.w), gradient, None), before

    def _final_code(self, instance: Instance, w0: PyTree, end: "Trajectory") -> tuple[Array, Array]:
        """The code of the trajectory, and the diagnostic products."""
        # the direction whose growth is tested
        way, vjp = sub(end.w, w0), vjp_of_step(instance, end.w, instance.lam, self._last_step)
        return final_code(end.moves, jnp.int32(self.steps), (w0, end.w), way, vjp, self.tol, confirm=self.confirm)


def _of_last_move(value: PyTree, move: PyTree, q: Array) -> ErrorReport:
    """The report on a value that came by this move, of which the next are shorter by q each."""
    # move (q + q^2 + ...) is left to go; q is 1 - least curvature, or -inf where the moves are rounding
    left = jnp.where(jnp.isfinite(q), q / (1.0 - q), 1.0)
    return report_of_bias(value, scale(SAFETY * left, jax.tree.map(jnp.abs, move)), jnp.maximum(q, 0.0))


class Worst(NamedTuple):
    """The point of the largest outer loss so far; both have derivatives."""

    value: Array
    w: PyTree


class Trajectory(NamedTuple):
    """A point of a trajectory, and the moves that led there; only ``w`` and ``worst`` have a derivative.

    Attributes:
        w: the last finite point.
        moves: as recorded by :func:`~bilevax.solvers.stability.monitor`, up to the first failure.
        step: of that failure.
        worst: None where it is not asked for.
    """

    w: PyTree
    moves: MoveHistory
    step: Array
    worst: Worst | None = None

    @staticmethod
    def of(w: PyTree, *, worst: bool = False) -> "Trajectory":
        """Before the first step."""
        none = Worst(jnp.full((), -jnp.inf, norm(w).dtype), w) if worst else None
        return Trajectory(w, empty_history(w), jnp.int32(0), none)


def unrolled(
    method: ITD, instance: Instance, before: Trajectory, point: tuple[PyTree, PyTree], start: int, steps: int
) -> Trajectory:
    """So many steps from number ``start`` on, differentiable: sqrt(steps) checkpoints. The moves are monitored.

    ``point`` is (lam, offset), and an offset of 0, like w, is added to each image of the map: the derivative with
    respect to it is the sum of all multipliers, which approaches v as that with respect to lam does the hypergradient.
    """
    lam, offset = point

    def step(at: Trajectory, j: Array) -> tuple[Trajectory, None]:
        # w <- w + eta_j (Phi(w, lam) + offset - w) - a_j grad_1 E(w, lam)
        move, eta = sub(add(instance.mean_image(at.w, lam), offset), at.w), scheduled(method.step_size, j)
        if method.outer_weight is not None:
            _, g, _ = instance._replace(lam=lam).mean_outer_gradients(at.w)
            move = axpy(-scheduled(method.outer_weight, j) / eta, g, move)
        # Not from the history of moves: the backward pass computes this anew, and only this.
        finite = all_finite(move)
        before = jax.lax.stop_gradient(at._replace(w=(), worst=None))
        vjp = vjp_of_step(instance, at.w, lam, eta)
        new = monitor(before.moves, j, *jax.lax.stop_gradient((at.w, move)), vjp, confirm=method.confirm)
        failed = new.code != Code.OK
        new = new._replace(look=jnp.where(failed, NEVER, new.look))
        over = before.moves.code != Code.OK
        moves, number = where(over, (before.moves, before.step), (new, jnp.where(failed, j + 1, 0)))
        w, worst = where(finite, axpy(eta, move, at.w), at.w), at.worst
        if worst is not None:
            value = instance._replace(lam=lam).mean_outer_loss(w)
            # a loss of NaN is kept, and told
            worst = where(~(value <= worst.value), Worst(value, w), worst)
        return Trajectory(w, moves, number, worst), None

    # segments of sqrt(steps) steps, of which the backward pass keeps the first point and computes the others again
    length = max(1, math.isqrt(steps))
    whole = steps - steps % length
    numbers = start + jnp.arange(steps, dtype=jnp.int32)
    segment = jax.checkpoint(lambda at, js: jax.lax.scan(step, at, js))
    at, _ = jax.lax.scan(segment, before, numbers[:whole].reshape(-1, length))
    return jax.lax.scan(step, at, numbers[whole:])[0]


def vjp_of_step(instance: Instance, w: PyTree, lam: PyTree, eta: Array) -> Operator:
    """The product u -> u + eta (d1Phi^T u - u) with the transposed Jacobian of a step; not differentiated."""
    # u + eta (d1Phi^T u - u)
    w, instance = jax.lax.stop_gradient(w), instance._replace(lam=jax.lax.stop_gradient(lam))
    return lambda u: axpy(eta, sub(instance.mean_adjoint_product(w, u), u), u)
