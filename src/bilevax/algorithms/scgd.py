"""SCGD: w is a moving average of the inner function of a composition, under which lam moves by the chain rule.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, (w, lam) and one minibatch each of train and
val, as looks. Out, to the loop: the next (w, lam).
"""

from typing import ClassVar

from jax import Array

from bilevax.algorithms.common import TwoTimescales, checked_steps, step_sizes, together_cost
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import check_real, config, set_frozen
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import BilevelProblem, Sources, StepLooks
from bilevax.core.records import Cost, Count, Info
from bilevax.core.trees import add
from bilevax.problems.composition import Composition
from bilevax.solvers.parts import Pair, Point, inner_directions, inner_move, outer_directions, outer_move


@config
class SCGD(TwoTimescales):
    """Of a composition f(lam) = E(E g(lam; zeta), lam): w follows the mean of g, and lam moves by the chain rule.

        w   <- (1 - rho_k) w + rho_k g(lam; zeta)
        lam <- P(lam - gamma_k (grad_2 E + dg(lam; zeta)^T grad_1 E))    grad E at the new w, g on the same samples
        gamma_k = ratio rho_0 (rho_k / rho_0)^a                          a = ``outer_power``

    The inner map is :class:`~bilevax.Composition`, Phi(w, lam) = g(lam), so that the multiplier is grad_1 E itself, and
    steps are in map form. With rho_k = 1 nothing is averaged: stochastic gradients of E(g(lam; zeta)), biased where E
    is not linear in w, and lam ends where their mean is 0; with small ones w is the mean of g, and there is no bias.

    Where rho_k is of order k^(-1/2) gamma_k is of order k^(-3/4), the paper's two timescales; constant steps stay
    constant. Of a convex f the excess of f at the averaged lam falls as k^(-1/4), of a strongly convex one, with other
    steps, as k^(-2/3). Assumes smooth g and E. Cost: one inner image and one cross product on the same rows of train,
    and one outer gradient. Source: Wang, Fang, Liu (2014), arXiv:1411.3803.

    Args:
        step_size: rho_k, a number or a schedule, at most 1; None (default): measured at the start of the run.
        ratio: gamma_0 / rho_0, positive; None (default): measured.
        outer_power: a, at least 1. Default 3/2.

    Examples:
        >>> import bilevax as bx
        >>> bx.SCGD(step_size=bx.Polynomial(0.5, 0.5), ratio=0.1)  # with bx.Composition(g) as inner map
        SCGD(step_size=Polynomial(value=0.5, power=0.5, horizon=1.0), ratio=0.1, outer_power=1.5)
    """

    defaults: ClassVar[Defaults] = Defaults(0.3, 0.1, carried=False, power=0.5)

    outer_power: float = 1.5

    def __post_init__(self) -> None:
        set_frozen(self, **checked_steps(self), outer_power=check_real("outer_power", self.outer_power, low=1.0))

    def check(self, problem: BilevelProblem) -> None:
        """Refuse a problem that is no composition."""
        if not isinstance(problem.inner_map, Composition):
            raise ParameterError(
                f"SCGD needs bx.Composition(g) as the inner map, a function g of (lam, batch) that w plays no part in,"
                f" got {problem.inner_map!r}; bx.SOBA() serves maps of w"
            )

    def step(self, problem: BilevelProblem, pair: Pair, looks: StepLooks, k: Array) -> tuple[Pair, Info]:
        """The average, then the move of lam; the loop evaluates the outer value and the gradient norm."""
        rho, _ = step_sizes(self, k, *pair)
        # w + rho (g(lam) - w)
        w = inner_move(problem, pair.w, pair.lam, looks["train"], rho)
        g, direct = outer_directions(problem, w, pair.lam, looks["val"])
        # grad_2 E + dg^T grad_1 E
        d = add(direct, inner_directions(problem, Point(w, g, pair.lam), looks["train"]).lam)
        return Pair(w, outer_move(problem, pair.lam, d, self.outer_step_size(k))), Info()

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> Cost:
        """An image and a cross product on one minibatch of train, which is read once, and one outer gradient."""
        return together_cost(sources)._replace(hvps=Count())
