"""BSA: a few warm-started moves of w, one drawn term of a Neumann series for the multiplier, and one move of lam.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, (w, lam), one minibatch of val, and as many
of train as moves and factors, as looks. Out, to the loop: the next (w, lam).
"""

from typing import ClassVar

from jax import Array

from bilevax.algorithms.common import (
    Draws,
    ScheduledSteps,
    checked_steps,
    double_loop_cost,
    drawn_streams,
    series_step,
    sources_of,
    step_sizes,
)
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import at_least_one, check_fields, config, set_frozen
from bilevax.core.protocols import BilevelProblem, Sources, StepLooks
from bilevax.core.records import Info
from bilevax.data import Several
from bilevax.solvers.parts import Pair, drawn_directions, horizon, inner_moves, outer_move


@config
class BSA(ScheduledSteps):
    """T moves of w from where it was, and one of lam along a direction whose multiplier is one term of a series.

        w   <- w + rho_k (-grad_1 G)                                     ``inner_steps`` times
        u    = K (I - rho_0 H_p) ... (I - rho_0 H_1) rho_0 grad_1 E      p uniform on 0, ..., K - 1; ``linear_steps``
        lam <- P(lam - ratio rho_k (grad_2 E - d2(grad_1 G)^T u))        at the new w

    Steps are in loss form, as in :class:`~bilevax.SOBA`. In the mean over p u is (I - (I - rho_0 H)^K) H^-1 grad_1 E,
    so that lam ends where that direction is 0, as with :class:`~bilevax.StocBiO`, whose series has every term and less
    noise. Assumes G strongly convex and smooth losses. With T growing it takes of the order of eps^-3 samples to a
    squared hypergradient of eps. Cost: ``inner_steps`` gradients, p Hessian-vector products, one cross product, each on
    rows of its own, and one outer gradient. Source: Ghadimi, Wang (2018), arXiv:1802.02246.

    Args:
        step_size: rho_k, a number or a schedule; None (default): measured at the start of the run.
        ratio: gamma_k / rho_k, positive; None (default): measured.
        inner_steps: T, from 1 to 256. Default 10.
        linear_steps: K, from 1 to 256. Default 10.

    Examples:
        >>> import bilevax as bx
        >>> bx.BSA(step_size=bx.Polynomial(0.1, 0.5), ratio=0.3, inner_steps=10, linear_steps=10)
        BSA(step_size=Polynomial(value=0.1, power=0.5, horizon=1.0), ratio=0.3, inner_steps=10, linear_steps=10)
    """

    defaults: ClassVar[Defaults] = Defaults(1.0, 0.5, carried=False, power=0.5)

    inner_steps: int = 10
    linear_steps: int = 10

    def __post_init__(self) -> None:
        check_fields(self, inner_steps=at_least_one, linear_steps=at_least_one)
        set_frozen(self, **checked_steps(self))

    def streams(self, sources: Sources) -> Draws:
        """Fresh minibatches of train for each move of w, and those of ``drawn_directions``."""
        return {"inner": Several(sources[0], self.inner_steps), **drawn_streams(sources, self.linear_steps)}

    def step(self, problem: BilevelProblem, pair: Pair, looks: StepLooks, k: Array) -> tuple[Pair, Info]:
        """The moves of w, then that of lam; the loop evaluates the outer value and the gradient norm."""
        (rho, gamma), rho_0 = step_sizes(self, k, *pair), series_step(self, *pair)
        # w + rho_k (-grad_1 G), T times
        w = inner_moves(problem, pair.w, pair.lam, looks["inner"], rho)
        # d_lam = grad_2 E - d2(grad_1 G)^T u,  u = K (I - rho_0 H_p) ... (I - rho_0 H_1) rho_0 grad_1 E
        d = drawn_directions(problem, Pair(w, pair.lam), looks, rho_0, self.linear_steps)
        cost = double_loop_cost(sources_of(looks), self.inner_steps, horizon(looks))
        # P(lam - gamma_k d_lam)
        return Pair(w, outer_move(problem, pair.lam, d.lam, gamma)), Info(cost=cost)
