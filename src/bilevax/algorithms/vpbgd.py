"""VPBGD: gradient descent on E + c (G - min G), the minimum followed by a second copy of w.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, the two copies and lam, minibatches of train
for the moves of the second copy, and one each of train and val for the descent, as looks. Out, to the loop: the next
state.
"""

from typing import ClassVar

from jax import Array

from bilevax.algorithms.common import Draws, Penalised, checked_steps, outer_step_size, step_sizes
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import at_least_one, check_fields, config, fraction, or_none, positive, set_frozen
from bilevax.core.protocols import BilevelProblem, Sources, StepLooks
from bilevax.core.records import Cost, Count, Info
from bilevax.core.trees import PyTree, axpy
from bilevax.data import Several
from bilevax.solvers.parts import (
    Copies,
    descent_on,
    inner_moves,
    moved_by,
    outer_directions,
    outer_move,
    penalty_direction,
    projected,
)


@config
class VPBGD(Penalised):
    """Value-gap penalty: (z, lam) descends E(z, lam) + c_k (G(z, lam) - min G(., lam)), with w for the minimiser of G.

        w   <- w - rho_k grad_1 G(w)                                     ``inner_steps`` times
        z   <- z - rho_k (grad_1 G(z) + grad_1 E(z) / c_k)               on the last of their minibatches of train
        lam <- P(lam - gamma_k (grad_2 E(z) + c_k (grad_2 G(z) - grad_2 G(w))))      at the z before
        c_k  = unit ``multiplier`` (1 + k)^``growth``,    gamma_k = ratio rho_k c_0 / c_k

    Against the penalised loss E + c (G - min G) both steps are of order 1 / c_k, as published: with many moves of w, w
    is there at once where lam has moved on, and z is not. z is the solution: where the inner problem has several, it is
    one that makes E small. The bias is that of :class:`~bilevax.F2SA`, of order 1 / c. With one move of w the noise of
    z - w is a difference too; with more it is as large as that of z and of w, times c.

    Steps are in loss form. Assumes an inner loss with the Polyak-Lojasiewicz property, and smooth losses. On every row,
    as published, the squared gradient of the penalised loss falls as c / K. Cost: ``inner_steps`` + 3 inner gradients
    on ``inner_steps`` + 1 minibatches of train, and one outer gradient.
    Source: Shen, Chen (2023), arXiv:2302.05185.

    Args:
        step_size: rho_k, a number or a schedule; None (default): measured at the start of the run.
        ratio: gamma_0 / rho_0, positive; None (default): measured.
        inner_steps: T, from 1 to 256. Default 1.
        multiplier: c_0 in units, positive. Default 10.
        growth: power of k by which c grows, from 0 to 1. Default 1/7.
        unit: positive, 1 as published; None (default): |grad_1 E| / |grad_1 G| as measured, so that E may be scaled.

    Raises:
        ParameterError: the problem has no inner loss, or damping (when a run begins).

    Examples:
        >>> import bilevax as bx
        >>> bx.VPBGD(step_size=0.1, ratio=0.3, inner_steps=5).inner_steps
        5
    """

    defaults: ClassVar[Defaults] = Defaults(1.0, 0.1, power=0.5)

    inner_steps: int = 1
    multiplier: float = 10.0
    growth: float = 1 / 7
    unit: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, inner_steps=at_least_one, multiplier=positive, growth=fraction, unit=or_none(positive))
        set_frozen(self, **checked_steps(self))

    def streams(self, sources: Sources) -> Draws:
        """A minibatch of train for each move of w, the last for z too; one of train for lam, one of val for both."""
        return {"inner": Several(sources[0], self.inner_steps), **super().streams(sources)}

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources, u0: PyTree = None) -> Copies:
        """The state before the first step: z is w0; u0 plays no part; lam projected."""
        return Copies(w0, w0, projected(problem, lam))

    def step(self, problem: BilevelProblem, state: Copies, looks: StepLooks, k: Array) -> tuple[Copies, Info]:
        """The moves of w, then z and lam together; the loop evaluates the outer value and the gradient norm."""
        c, (rho, _), inner = self.penalty(k), step_sizes(self, k, state.z, state.lam), looks["inner"]
        p = state._replace(w=inner_moves(problem, state.w, state.lam, inner, rho))
        # -grad_1 G(z), on the rows of the last of these moves
        d_z = descent_on(problem, p.z, p.lam, inner[self.inner_steps - 1])
        g, _ = outer_directions(problem, p.z, p.lam, looks["val"])
        # grad_2 E(z) + c_k (grad_2 G(z) - grad_2 G(w))
        d_lam = penalty_direction(problem, p, c, looks["train"], looks["val"])
        lam = outer_move(problem, p.lam, d_lam, self.outer_step_size(k))
        # z - rho_k (grad_1 G(z) + grad_1 E(z) / c_k)
        return Copies(p.w, moved_by(rho, axpy(-1.0 / c, g, d_z), p.z), lam), Info()

    def outer_step_size(self, k: Array) -> Array:
        """gamma_k, the step of lam."""
        # ratio rho_k c_0 / c_k
        return outer_step_size(self, k) / self.grown(k)

    def solution(self, state: Copies) -> tuple[PyTree, PyTree]:
        """The inner variable that feels the outer loss, and the outer variable of a state."""
        return state.z, state.lam

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> Cost:
        """A gradient on each minibatch of train and one more on two of them; one on that of val."""
        (train, val), number = (source.rows_per_batch for source in sources), self.inner_steps
        return Cost(Count(number + 3, train, number + 1), outer_gradients=Count(1, val))
