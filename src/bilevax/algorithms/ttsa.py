"""TTSA: one move of w and a slower one of lam, on two timescales; one drawn term of a Neumann series is the multiplier.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, (w, lam), one minibatch of train for w, and
those of ``solvers.parts.drawn_directions`` for lam, as looks. Out, to the loop: the next (w, lam).
"""

from functools import partial
from typing import ClassVar

from jax import Array

from bilevax.algorithms.common import (
    Draws,
    TwoTimescales,
    checked_steps,
    double_loop_cost,
    drawn_streams,
    series_step,
    sources_of,
    step_sizes,
)
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import at_least_one, check_fields, check_real, config, set_frozen
from bilevax.core.protocols import BilevelProblem, Sources, StepLooks
from bilevax.core.records import Info
from bilevax.solvers.parts import Pair, drawn_directions, horizon, inner_move, outer_move


@config
class TTSA(TwoTimescales):
    """w moves, then lam with a step that falls faster, along a direction whose multiplier is one term of a series.

        w   <- w + rho_k (-grad_1 G)
        u    = K (I - rho_0 H_p) ... (I - rho_0 H_1) rho_0 grad_1 E      p uniform on 0, ..., K - 1; ``linear_steps``
        lam <- P(lam - gamma_k (grad_2 E - d2(grad_1 G)^T u))            at the new w
        gamma_k = ratio rho_0 (rho_k / rho_0)^a                          a = ``outer_power``

    Steps are in loss form, as in :class:`~bilevax.SOBA`. Where rho_k is of order k^(-2/5) gamma_k is of order
    k^(-3/5), the paper's two timescales; constant steps stay constant. lam ends where the mean direction is 0, whose
    multiplier is (I - (I - rho_0 H)^K) H^-1 grad_1 E. Assumes G strongly convex and smooth losses. The squared
    hypergradient falls as k^(-2/5). Cost: one gradient, p Hessian-vector products, one cross product, each on rows of
    its own, and one outer gradient. Source: Hong, Wai, Wang, Yang (2020), arXiv:2007.05170.

    Args:
        step_size: rho_k, a number or a schedule; None (default): measured at the start of the run.
        ratio: gamma_0 / rho_0, positive; None (default): measured.
        outer_power: a, at least 1. Default 3/2.
        linear_steps: K, from 1 to 256. Default 10.

    Examples:
        >>> import bilevax as bx
        >>> bx.TTSA(step_size=bx.Polynomial(0.1, 0.4), ratio=0.3)  # lam: 0.03 k^(-3/5)
        TTSA(step_size=Polynomial(value=0.1, power=0.4, horizon=1.0), ratio=0.3, outer_power=1.5, linear_steps=10)
    """

    defaults: ClassVar[Defaults] = Defaults(1.0, 0.3, carried=False, power=0.4)

    outer_power: float = 1.5
    linear_steps: int = 10

    def __post_init__(self) -> None:
        check_fields(self, outer_power=partial(check_real, low=1.0), linear_steps=at_least_one)
        set_frozen(self, **checked_steps(self))

    def streams(self, sources: Sources) -> Draws:
        """A minibatch of train for w, and those of ``drawn_directions``."""
        return {"inner": sources[0], **drawn_streams(sources, self.linear_steps)}

    def step(self, problem: BilevelProblem, pair: Pair, looks: StepLooks, k: Array) -> tuple[Pair, Info]:
        """The move of w, then that of lam; the loop evaluates the outer value and the gradient norm."""
        (rho, _), rho_0 = step_sizes(self, k, *pair), series_step(self, *pair)
        # w + rho_k (-grad_1 G)
        w = inner_move(problem, pair.w, pair.lam, looks["inner"], rho)
        # d_lam = grad_2 E - d2(grad_1 G)^T u,  u = K (I - rho_0 H_p) ... (I - rho_0 H_1) rho_0 grad_1 E
        d = drawn_directions(problem, Pair(w, pair.lam), looks, rho_0, self.linear_steps)
        cost = double_loop_cost(sources_of(looks), 1, horizon(looks))
        # P(lam - gamma_k d_lam), gamma_k = ratio rho_0 (rho_k / rho_0)^a
        return Pair(w, outer_move(problem, pair.lam, d.lam, self.outer_step_size(k))), Info(cost=cost)
