"""MRBO: w and lam move together along directions with recursive momentum (STORM), a Neumann series in each.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, the state, one minibatch each of train and
val, and K of train for the linear system, as looks. Out, to the loop: the next state.
"""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from bilevax.algorithms.common import Draws, WithMemory, checked_steps, memory_weight, series_step, step_sizes
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import at_least_one, check_fields, config, set_frozen
from bilevax.core.protocols import BilevelProblem, Sources, StepLooks
from bilevax.core.records import Cost, Count, Info
from bilevax.core.trees import PyTree, zeros_like
from bilevax.data import Several
from bilevax.solvers.parts import Pair, moved_by, outer_move, projected, series_directions, storm
from bilevax.solvers.schedules import Polynomial, StepSize, scheduled


class State(NamedTuple):
    """The variables, those before, and the estimate of their directions there."""

    p: Pair
    before: Pair
    d: Pair


@config
class MRBO(WithMemory):
    """w and lam move together; the direction of each is corrected by what it was a step before, on the same samples.

        D(w, lam) = (-grad_1 G, grad_2 E - d2(grad_1 G)^T u)
        u         = sum_{i=0}^K (I - rho_0 H_i) ... (I - rho_0 H_1) rho_0 grad_1 E             K = ``linear_steps``
        d_k       = D(p_k) + (1 - eta_k) (d_{k-1} - D(p_{k-1}))     D twice, with the same K + 2 minibatches
        w        <- w + rho_k d_w,    lam <- P(lam - ratio rho_k d_lam)

    It is :class:`~bilevax.SUSTAIN` with the whole series of :class:`~bilevax.StocBiO` for one term of it: lam ends
    where the mean direction of StocBiO is 0. With eta_k = 1 there is no memory.

    Steps are in loss form, as in :class:`~bilevax.SOBA`. Assumes G strongly convex and smooth losses. With steps of
    order k^(-1/3) and eta_k of order k^(-2/3) it takes of the order of eps^(-3/2) samples to a squared hypergradient of
    eps. Cost: two inner gradients and cross products on one minibatch of train, ``linear_steps`` products at each of
    two points, each on rows of its own, and two outer gradients on one of val.
    Source: Yang, Ji, Liang (2021), arXiv:2106.04692.

    Args:
        step_size: rho_k, a number or a schedule; None (default): measured at the start of the run.
        ratio: gamma_k / rho_k, positive; None (default): measured.
        linear_steps: K, from 1 to 256. Default 10.
        weight: eta_k, a number in (0, 1] or a schedule; the first is taken as 1. Default (1 + k)^(-2/3).

    Examples:
        >>> import bilevax as bx
        >>> bx.MRBO(step_size=bx.Polynomial(0.1, 1 / 3), ratio=0.3).linear_steps
        10
    """

    defaults: ClassVar[Defaults] = Defaults(1.0, 0.2, carried=False, power=1 / 3)

    linear_steps: int = 10
    weight: StepSize = Polynomial(1.0, 2 / 3)

    def __post_init__(self) -> None:
        check_fields(self, linear_steps=at_least_one)
        set_frozen(self, **checked_steps(self), weight=memory_weight(self.weight))

    def streams(self, sources: Sources) -> Draws:
        """One minibatch of train, one of val, and K of train for the linear system."""
        return {**super().streams(sources), "linear": Several(sources[0], self.linear_steps)}

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources, u0: PyTree = None) -> State:
        """The state before the first step; u0 plays no part; lam projected."""
        pair = Pair(w0, projected(problem, lam))
        return State(pair, pair, zeros_like(pair))

    def step(self, problem: BilevelProblem, state: State, looks: StepLooks, k: Array) -> tuple[State, Info]:
        """Both moves; the loop evaluates the outer value and the gradient norm."""
        (rho, gamma), rho_0 = step_sizes(self, k, *state.p), series_step(self, *state.p)
        given = looks["train"], looks["val"], looks["linear"]
        # D = (-grad_1 G, grad_2 E - d2(grad_1 G)^T u), u the series; at p_k and at p_{k-1}, on the same rows
        now, then = (series_directions(problem, at, *given, rho_0) for at in (state.p, state.before))
        # d_k = D(p_k) + (1 - eta_k) (d_{k-1} - D(p_{k-1})), of which nothing came before the first: eta_0 = 1
        d = storm(state.d, now, then, jnp.where(k == 0, 1.0, scheduled(self.weight, k)))
        # w + rho_k d_w, P(lam - gamma_k d_lam)
        new = Pair(moved_by(rho, d.w, state.p.w), outer_move(problem, state.p.lam, d.lam, gamma))
        return State(new, state.p, d), Info()

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> Cost:
        """Everything at two points on one minibatch each, which is read once."""
        (train, val), K = (source.rows_per_batch for source in sources), self.linear_steps
        return Cost(Count(2, train, 1), Count(2 * K, train, K), Count(2, train, 0), Count(2, val, 1))
