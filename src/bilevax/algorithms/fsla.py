"""FSLA: w, the multiplier u and lam move in turn, lam along a direction with recursive momentum (STORM).

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, the state, and minibatches of train and val
as looks, one for each move. Out, to the loop: the next state.
"""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from bilevax.algorithms.common import WithMemory, checked_steps, memory_weight, step_sizes
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import config, set_frozen
from bilevax.core.protocols import BilevelProblem, RowSource, Sources, StepLooks
from bilevax.core.records import Cost, Count, Info
from bilevax.core.trees import PyTree, zeros_like
from bilevax.solvers.parts import Point, directions, inner_move, moved_by, outer_move, start, storm
from bilevax.solvers.schedules import Polynomial, StepSize, scheduled


class State(NamedTuple):
    """The point, where the direction of lam was estimated last, and that direction, like lam."""

    p: Point
    before: Point
    d: PyTree


@config
class FSLA(WithMemory):
    """One move each of w, u and lam, in turn, each on minibatches of its own; d_lam is corrected by the one before.

        w   <- w + rho_k (-grad_1 G)
        u   <- u + rho_k (grad_1 E - H u)                        at the new w; H the Hessian of the inner loss G
        D    = grad_2 E - d2(grad_1 G)^T u                       a function of (w, u, lam)
        d_k  = D(p_k) + (1 - eta_k) (d_{k-1} - D(p_{k-1}))       p_k the new w and u, and lam; D twice, same samples
        lam <- P(lam - ratio rho_k d_k)

    Steps are in loss form, as in :class:`~bilevax.SOBA`. Assumes G strongly convex and smooth losses. With steps of
    order k^(-1/2) it takes of the order of eps^-2 samples to a squared hypergradient of eps. With eta_k = 1 it is SOBA
    in turn. Cost: one gradient, one Hessian-vector product and two cross products, each kind on a minibatch of train of
    its own; one outer gradient on a minibatch of val, and two on another.
    Source: Li, Gu, Huang (2022), arXiv:2112.04660.

    Args:
        step_size: rho_k, a number or a schedule; None (default): measured at the start of the run.
        ratio: gamma_k / rho_k, positive; None (default): measured.
        weight: eta_k, a number in (0, 1] or a schedule; the first is taken as 1. Default (1 + k)^(-1/2).

    Examples:
        >>> import bilevax as bx
        >>> bx.FSLA(step_size=0.1, ratio=0.3, weight=0.1)
        FSLA(step_size=Constant(value=0.1), ratio=0.3, weight=Constant(value=0.1))
    """

    defaults: ClassVar[Defaults] = Defaults(1.0, 0.3, power=0.5)

    weight: StepSize = Polynomial(1.0, 0.5)

    def __post_init__(self) -> None:
        set_frozen(self, **checked_steps(self), weight=memory_weight(self.weight))

    def streams(self, sources: Sources) -> dict[str, RowSource]:
        """A minibatch of train for each of the three moves, and one of val for those of u and of lam."""
        train, val = sources
        return {"inner": train, "linear": train, "train": train, "outer": val, "val": val}

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources, u0: PyTree = None) -> State:
        """The state before the first step: u is u0, or 0; lam projected."""
        p = start(problem, w0, lam, u0)
        return State(p, p, zeros_like(p.lam))

    def step(self, problem: BilevelProblem, state: State, looks: StepLooks, k: Array) -> tuple[State, Info]:
        """The moves of w, of u, of lam; the loop evaluates the outer value and the gradient norm."""
        (w, u, lam), (rho, gamma) = state.p, step_sizes(self, k, state.p.w, state.p.lam)
        # w + rho_k (-grad_1 G)
        w = inner_move(problem, w, lam, looks["inner"], rho)
        # u + rho_k (grad_1 E - H u), at the new w
        u = moved_by(rho, directions(problem, Point(w, u, lam), looks["linear"], looks["outer"]).u, u)
        p = Point(w, u, lam)
        # D at the new point and at the one before
        now, then = (directions(problem, at, looks["train"], looks["val"]).lam for at in (p, state.before))
        # d_k = D(p_k) + (1 - eta_k) (d_{k-1} - D(p_{k-1})), of which nothing came before the first: eta_0 = 1
        d = storm(state.d, now, then, jnp.where(k == 0, 1.0, scheduled(self.weight, k)))
        # P(lam - gamma_k d_k)
        return State(Point(w, u, outer_move(problem, lam, d, gamma)), p, d), Info()

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> Cost:
        """Each kind on a minibatch of its own; the cross products, and two of the outer gradients, share theirs."""
        train, val = (source.rows_per_batch for source in sources)
        return Cost(Count(1, train), Count(1, train), Count(2, train, 1), Count(3, val, 2))
