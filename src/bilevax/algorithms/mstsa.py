"""MSTSA: a plain move of w, and one of lam along a direction with recursive momentum (STORM).

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, the state, one minibatch of train for w, and
those of ``solvers.parts.drawn_directions`` for lam, their number and the sources, as looks. Out, to the loop: the next
state and its cost.
"""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from bilevax.algorithms.common import (
    Draws,
    WithMemory,
    checked_steps,
    drawn_streams,
    memory_weight,
    series_step,
    sources_of,
    step_sizes,
)
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import at_least_one, check_fields, config, set_frozen
from bilevax.core.protocols import BilevelProblem, Sources, StepLooks
from bilevax.core.records import Cost, Count, Info
from bilevax.core.trees import PyTree, zeros_like
from bilevax.solvers.parts import Pair, drawn_directions, horizon, inner_move, outer_move, projected, storm
from bilevax.solvers.schedules import StepSize, scheduled


class State(NamedTuple):
    """The variables, where the direction of lam was estimated last, and that direction, like lam."""

    p: Pair
    before: Pair
    d: PyTree


@config
class MSTSA(WithMemory):
    """w moves, then lam along a direction that is corrected by that at the point before, on the same samples.

        w         <- w + rho_k (-grad_1 G)
        D(w, lam)  = grad_2 E - d2(grad_1 G)^T u
        u          = K (I - rho_0 H_p) ... (I - rho_0 H_1) rho_0 grad_1 E       p uniform on 0, ..., K - 1
        d_k        = D(q_k) + (1 - eta_k) (d_{k-1} - D(q_{k-1}))     q_k the new w and the old lam; same samples and p
        lam       <- P(lam - ratio rho_k d_k)

    The first version of :class:`~bilevax.SUSTAIN`'s paper: w has no momentum, and moves first. lam ends where the mean
    direction is 0, whose multiplier is (I - (I - rho_0 H)^K) H^-1 grad_1 E. With eta_k = 1 it is
    :class:`~bilevax.TTSA` on one timescale.

    Steps are in loss form, as in :class:`~bilevax.SOBA`. Assumes G strongly convex and smooth losses. With steps of
    order k^(-1/2) it takes of the order of eps^-2 samples to a squared hypergradient of eps. Cost: one gradient; two
    cross products on one minibatch of train, p products at each of two points, on p more, and two outer gradients on
    one of val. Source: Khanduri, Zeng, Hong, Wai, Wang, Yang (2021), arXiv:2102.07367v1.

    Args:
        step_size: rho_k, a number or a schedule; None (default): measured at the start of the run.
        ratio: gamma_k / rho_k, positive; None (default): measured.
        linear_steps: K, from 1 to 256. Default 10.
        weight: eta_k, a number in (0, 1] or a schedule; the first is taken as 1. Default 0.5.

    Examples:
        >>> import bilevax as bx
        >>> bx.MSTSA(step_size=0.1, ratio=0.3, weight=0.5)
        MSTSA(step_size=Constant(value=0.1), ratio=0.3, linear_steps=10, weight=Constant(value=0.5))
    """

    defaults: ClassVar[Defaults] = Defaults(1.0, 0.2, carried=False, power=0.5)

    linear_steps: int = 10
    weight: StepSize = 0.5

    def __post_init__(self) -> None:
        check_fields(self, linear_steps=at_least_one)
        set_frozen(self, **checked_steps(self), weight=memory_weight(self.weight))

    def streams(self, sources: Sources) -> Draws:
        """A minibatch of train for w, and those of ``drawn_directions``."""
        return {"inner": sources[0], **drawn_streams(sources, self.linear_steps)}

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources, u0: PyTree = None) -> State:
        """The state before the first step; u0 plays no part; lam projected."""
        pair = Pair(w0, projected(problem, lam))
        return State(pair, pair, zeros_like(pair.lam))

    def step(self, problem: BilevelProblem, state: State, looks: StepLooks, k: Array) -> tuple[State, Info]:
        """The move of w, then that of lam; the loop evaluates the outer value and the gradient norm."""
        (w, lam), ((rho, gamma), rho_0) = state.p, (step_sizes(self, k, *state.p), series_step(self, *state.p))
        # q_k = (w + rho_k (-grad_1 G), lam)
        at = Pair(inner_move(problem, w, lam, looks["inner"], rho), lam)
        # D at the new point and at the one before
        now, then = (drawn_directions(problem, q, looks, rho_0, self.linear_steps).lam for q in (at, state.before))
        # d_k = D(q_k) + (1 - eta_k) (d_{k-1} - D(q_{k-1})), of which nothing came before the first: eta_0 = 1
        d = storm(state.d, now, then, jnp.where(k == 0, 1.0, scheduled(self.weight, k)))
        # P(lam - gamma_k d_k)
        return State(Pair(at.w, outer_move(problem, lam, d, gamma)), at, d), Info(cost=_cost(looks))


def _cost(looks: StepLooks) -> Cost:
    (train, val), p = (source.rows_per_batch for source in sources_of(looks)), horizon(looks)
    # but for the gradient, each at two points on minibatches that are read once
    return Cost(Count(1, train), Count(2 * p, train, p), Count(2, train, 1), Count(2, val, 1))
