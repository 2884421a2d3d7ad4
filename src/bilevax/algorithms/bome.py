"""BOME: one descent of w and lam together, along grad E and as far along grad q as keeps q falling.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, (w, lam), minibatches of train for the moves
that estimate min G, and one each of train and val for the descent, as looks. Out, to the loop: the next (w, lam).
"""

from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from bilevax.algorithms.common import Draws, FirstOrder, checked_steps, step_sizes
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import at_least_one, check_fields, config, or_none, positive, set_frozen
from bilevax.core.protocols import BilevelProblem, Sources, StepLooks
from bilevax.core.records import Cost, Count, Info
from bilevax.core.trees import axpy, scale, vdot, zeros_like
from bilevax.data import Several
from bilevax.solvers.parts import Copies, Pair, gap_gradients, inner_moves, moved_by, outer_directions, outer_move


@config
class BOME(FirstOrder):
    """The value function q = G(w) - G(z) as a constraint, with the multiplier that makes q fall.

        z    = w after ``inner_steps`` moves z <- z - rho_k grad_1 G(z);   in grad q it is held
        m    = max(1 - <grad E / c, grad q> / |grad q|^2, 0)
        w   <- w - rho_k (grad_1 E(w) / c + m grad_1 G(w))
        lam <- P(lam - ratio rho_k (grad_2 E(w) + m c (grad_2 G(w) - grad_2 G(z))))
        c    = unit ``multiplier``

    That is the published step with eta = c, multiplier m c, phi = eta |grad q|^2 and steps rho_k / c of w and
    ratio rho_k of lam, by which the inner product weighs its two parts: so it is in units of lam in which they are one.
    Near a solution m c grows until steps of w are as long as they can be: (w, lam) sways about the stationary point of
    E + m c q with m rho_k of order 1 / L, the nearer the shorter the steps. With few moves of z it is one of the series
    of :class:`~bilevax.StocBiO` with T terms.

    Steps are in loss form. Assumes an inner loss with the Polyak-Lojasiewicz property, smooth losses, and every row, as
    published; minibatches are allowed. Cost: ``inner_steps`` + 2 inner gradients on ``inner_steps`` + 1 minibatches of
    train, and one outer gradient.
    Source: Ye, Liu, Wright, Stone, Liu (2022), arXiv:2209.08709.

    Args:
        step_size: rho_k, a number or a schedule; None (default): measured at the start of the run.
        ratio: gamma_k / rho_k, positive; 1 / c as published; None (default): measured.
        inner_steps: T, from 1 to 256. Default 10.
        multiplier: c in units, positive. Default 0.5.
        unit: positive, 1 as published; None (default): |grad_1 E| / |grad_1 G| as measured, so that E may be scaled.

    Raises:
        ParameterError: the problem has no inner loss, or damping (when a run begins).

    Examples:
        >>> BOME(step_size=0.1, ratio=0.3)
        BOME(step_size=Constant(value=0.1), ratio=0.3, inner_steps=10, multiplier=0.5, unit=None)
    """

    defaults: ClassVar[Defaults] = Defaults(0.5, 0.1, carried=False, power=0.5)

    inner_steps: int = 10
    multiplier: float = 0.5
    unit: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, inner_steps=at_least_one, multiplier=positive, unit=or_none(positive))
        set_frozen(self, **checked_steps(self))

    def streams(self, sources: Sources) -> Draws:
        """A minibatch of train for each move of z, and one of each source for the descent."""
        return {"inner": Several(sources[0], self.inner_steps), **super().streams(sources)}

    def step(self, problem: BilevelProblem, pair: Pair, looks: StepLooks, k: Array) -> tuple[Pair, Info]:
        """The move of both; the loop evaluates the outer value and the gradient norm."""
        (w, lam), c, (rho, gamma) = pair, self.first_multiplier(), step_sizes(self, k, *pair)
        # z - rho_k grad_1 G(z), T times from w
        z = inner_moves(problem, w, lam, looks["inner"], rho)
        # grad q = (grad_1 G(w), grad_2 G(w) - grad_2 G(z)), z held
        q = gap_gradients(problem, Copies(z, w, lam), looks["train"])
        # grad E / c
        e = scale(1.0 / c, Pair(*outer_directions(problem, w, lam, looks["val"])))
        # by the steps of both, rho of w and gamma c of lam
        weighed = Pair(moved_by(rho, q.w, zeros_like(q.w)), scale(gamma * c, q.lam))
        square = vdot(q, weighed)
        # m = max(1 - <grad E / c, grad q> / |grad q|^2, 0): the least for which <d, grad q> >= |grad q|^2
        m = jnp.maximum(1.0 - vdot(e, weighed) / jnp.where(square > 0, square, 1.0), 0.0)
        # grad E / c + m grad q
        d = axpy(m, q, e)
        # w - rho_k d_w, P(lam - gamma_k c d_lam)
        return Pair(moved_by(rho, scale(-1.0, d.w), w), outer_move(problem, lam, scale(c, d.lam), gamma)), Info()

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> Cost:
        """A gradient on each minibatch of train and one more at z; one on that of val."""
        (train, val), number = (source.rows_per_batch for source in sources), self.inner_steps
        return Cost(Count(number + 2, train, number + 1), outer_gradients=Count(1, val))
