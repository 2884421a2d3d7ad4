"""F2SA: first derivatives only; a second copy of w feels the outer loss a little, and what it changes is weighed.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, the two copies and lam, and minibatches of
train and of val for each of their moves and for that of lam, as looks. Out, to the loop: the next state.
"""

from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.algorithms.common import checked_steps, outer_step_size, step_sizes
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import check_count, check_fields, check_real, config, positive, set_frozen
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import BilevelProblem, Draw, RowSource, Sources, StepLooks
from bilevax.core.records import Cost, Count, Info
from bilevax.core.trees import PyTree, add, axpy, scale, sub
from bilevax.data import Several
from bilevax.solvers.parts import Point, descent, loss_gradients, moved_by, outer_directions, projected


class State(NamedTuple):
    """The inner variable, its copy that feels the outer loss, and the outer variable."""

    w: PyTree
    z: PyTree
    lam: PyTree


@config
class F2SA:
    """Fully first-order: H^-1 grad_1 E is c (z - w), with z the minimiser of G + E / c beside that of G.

        w   <- w - rho_k grad_1 G(w)                                     ``inner_steps`` times, on the same
        z   <- z - rho_k (grad_1 G(z) + grad_1 E(z) / c_k)               minibatches of train for both
        lam <- P(lam - ratio rho_k (grad_2 E(z) + c_k (grad_2 G(z) - grad_2 G(w))))
        c_k  = unit ``multiplier`` (1 + k)^``growth``

    The direction of lam is that of :class:`~bilevax.SOBA` with its derivatives taken as differences over 1 / c: as c
    grows the bias, of order 1 / c, falls, and the noise of a difference grows. As published the copies see minibatches
    of their own; here the same, so that their noise has a difference too.

    Steps are in loss form. Assumes an inner loss, strongly convex, with Lipschitz second derivatives, and smooth
    losses. With the published rates (c_k of order k^(1/7)) the squared hypergradient falls as k^(-2/7) in the mean.
    Cost: two inner gradients on a minibatch of train and one outer on one of val, ``inner_steps`` times and once more.
    Source: Kwon, Kwon, Wright, Nowak (2023), arXiv:2301.10945.

    Args:
        step_size: rho_k, a number or a schedule; None (default): measured at the start of the run.
        ratio: gamma_k / rho_k, positive; None (default): measured.
        inner_steps: T, from 1 to 256. Default 1.
        multiplier: c_0 in units, positive. Default 10.
        growth: power of k by which c grows, from 0 to 1. Default 1/7.
        unit: positive; 1 as published; None (default): measured, |grad_1 E| / |grad_1 G| of minibatches at the start,
            so that a scaled outer loss changes no run.

    Raises:
        ParameterError: the problem has no inner loss, or damping (when a run begins).
    """

    steps_per_record: ClassVar[int] = 256
    defaults: ClassVar[Defaults] = Defaults(1.0, 0.3, power=0.5)

    step_size: Any = None
    ratio: float | None = None
    inner_steps: int = 1
    multiplier: float = 10.0
    growth: float = 1 / 7
    unit: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, multiplier=positive, growth=partial(check_real, low=0.0, high=1.0))
        check_fields(self, inner_steps=partial(check_count, low=1))
        set_frozen(self, **checked_steps(self), unit=None if self.unit is None else positive("unit", self.unit))

    def check(self, problem: BilevelProblem) -> None:
        """Refuse a map that is no gradient step, and damping."""
        if not problem.has_loss:
            raise ParameterError("F2SA needs an inner loss: give Problem a GradientStep, or use bx.SOBA")
        if problem.damping is not None:
            raise ParameterError("F2SA solves no linear system, which damping could change: leave damping away")

    def streams(self, sources: Sources) -> dict[str, RowSource | Several]:
        """A minibatch of each for every move of w and z, and one for that of lam."""
        train, val = sources
        inner, outer = Several(train, self.inner_steps), Several(val, self.inner_steps)
        return {"inner": inner, "outer": outer, "train": train, "val": val}

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources, u0: PyTree = None) -> State:
        """The state before the first step: z is w0 - u0 / c, or w0; lam projected."""
        z = w0 if u0 is None else axpy(-1.0 / self._penalty(jnp.int32(0)), u0, w0)
        return State(w0, z, projected(problem, lam))

    def step(self, problem: BilevelProblem, state: State, looks: StepLooks, k: Array) -> tuple[State, Info]:
        """The moves of w and z, and that of lam; the loop evaluates the outer value and the gradient norm."""
        c, lam = self._penalty(k), state.lam
        rho, gamma = step_sizes(self, k, state.w, lam)

        def move(i: Array, pair: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            def both(draw: Draw) -> tuple[PyTree, PyTree]:
                w, z = (descent(problem, x, lam, draw.batch) for x in pair)
                return scale(draw.weight, w), scale(draw.weight, z)

            d_w, d_z = looks["inner"][i](both)
            _, g, _ = outer_directions(problem, Point(pair[1], None, lam), looks["outer"][i])
            # w - rho grad_1 G(w), z - rho (grad_1 G(z) + grad_1 E(z) / c)
            return moved_by(rho, d_w, pair[0]), moved_by(rho, axpy(-1.0 / c, g, d_z), pair[1])

        w, z = jax.lax.fori_loop(0, self.inner_steps, move, (state.w, state.z))

        def difference(draw: Draw) -> PyTree:
            # c (grad_2 G(z) - grad_2 G(w)), both on the same rows
            at_z, at_w = (loss_gradients(problem, x, lam, draw.batch)[1] for x in (z, w))
            return scale(c * draw.weight, sub(at_z, at_w))

        _, _, direct = outer_directions(problem, Point(z, None, lam), looks["val"])
        d_lam = add(direct, looks["train"](difference))
        return State(w, z, projected(problem, axpy(-gamma, d_lam, lam))), Info()

    def _penalty(self, k: Array) -> Array:
        """c_k."""
        if self.unit is None:
            raise ParameterError(
                "F2SA was built without the unit of its multiplier, and nobody measured it: bx.minimize does; in a loop"
                " of your own, call bx.measure_steps first, or give F2SA a unit"
            )
        return self.unit * self.multiplier * (1.0 + k.astype(float)) ** self.growth

    def outer_step_size(self, k: Array) -> Array:
        """gamma_k, the step of lam."""
        return outer_step_size(self, k)

    def solution(self, state: State) -> tuple[PyTree, PyTree]:
        """The inner and the outer variable of a state."""
        return state.w, state.lam

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> Cost:
        """Two gradients on each minibatch of train, which is read once, and one on each of val."""
        (train, val), number = (source.rows_per_batch for source in sources), self.inner_steps + 1
        return Cost(Count(2 * number, train, number), outer_gradients=Count(number, val))
