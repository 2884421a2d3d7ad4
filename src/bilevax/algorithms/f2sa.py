"""F2SA: first derivatives only; a second copy of w feels the outer loss a little, and what it changes is weighed.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, the two copies and lam, and minibatches of
train and of val for each of their moves and for that of lam, as looks. Out, to the loop: the next state.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.algorithms.common import Draws, Penalised, checked_steps, step_sizes
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import at_least_one, check_fields, config, fraction, or_none, positive, set_frozen, static
from bilevax.core.protocols import BilevelProblem, Sources, StepLooks
from bilevax.core.records import Cost, Count, Info
from bilevax.core.trees import PyTree, axpy
from bilevax.data import Several
from bilevax.solvers.parts import Copies, moved_by, outer_move, penalty_descents, penalty_direction, projected


@config
class F2SA(Penalised):
    """Fully first-order: H^-1 grad_1 E is c (w - z), with z the minimiser of G + E / c beside that of G.

        w   <- w - rho_k grad_1 G(w)                                     ``inner_steps`` times, on the same
        z   <- z - rho_k (grad_1 G(z) + grad_1 E(z) / c_k)               minibatches of train for both
        lam <- P(lam - ratio rho_k (grad_2 E(z) + c_k (grad_2 G(z) - grad_2 G(w))))
        c_k  = unit ``multiplier`` (1 + k)^``growth``

    The direction of lam is that of :class:`~bilevax.SOBA` with differences over 1 / c for derivatives: as c grows its
    bias falls as 1 / c, and its noise grows; less so than with minibatches of their own for both copies, as published.

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
        unit: positive, 1 as published; None (default): |grad_1 E| / |grad_1 G| as measured, so that E may be scaled.

    Raises:
        ParameterError: the problem has no inner loss, or damping (when a run begins).

    Examples:
        >>> import bilevax as bx
        >>> bx.F2SA(step_size=0.1, ratio=0.3, multiplier=20.0).multiplier  # less bias, more noise
        20.0
    """

    defaults: ClassVar[Defaults] = Defaults(1.0, 0.3, power=0.5)

    inner_steps: int = static(1)
    multiplier: float = 10.0
    growth: float = 1 / 7
    unit: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, inner_steps=at_least_one, multiplier=positive, growth=fraction, unit=or_none(positive))
        set_frozen(self, **checked_steps(self))

    def streams(self, sources: Sources) -> Draws:
        """A minibatch of each for every move of w and z, and one for that of lam."""
        # one a step is the same minibatch without a look-up
        inner, outer = (x if self.inner_steps == 1 else Several(x, self.inner_steps) for x in sources)
        return {"inner": inner, "outer": outer, "train": sources[0], "val": sources[1]}

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources, u0: PyTree = None) -> Copies:
        """The state before the first step: z is w0 - u0 / c, or w0; lam projected."""
        z = w0 if u0 is None else axpy(-1.0 / self.penalty(jnp.int32(0)), u0, w0)
        return Copies(w0, z, projected(problem, lam))

    def step(self, problem: BilevelProblem, state: Copies, looks: StepLooks, k: Array) -> tuple[Copies, Info]:
        """The moves of w and z, and that of lam; the loop evaluates the outer value and the gradient norm."""
        c, (rho, gamma) = self.penalty(k), step_sizes(self, k, state.w, state.lam)

        def move(i: Array, p: Copies) -> Copies:
            # -grad_1 G(w) and -(grad_1 G(z) + grad_1 E(z) / c_k), on the same rows
            d_w, d_z = penalty_descents(problem, p, c, looks["inner"][i], looks["outer"][i])
            return Copies(moved_by(rho, d_w, p.w), moved_by(rho, d_z, p.z), p.lam)

        p = jax.lax.fori_loop(0, self.inner_steps, move, state)
        # grad_2 E(z) + c_k (grad_2 G(z) - grad_2 G(w)), where c_k (w - z) stands for H^-1 grad_1 E
        d_lam = penalty_direction(problem, p, c, looks["train"], looks["val"])
        return p._replace(lam=outer_move(problem, p.lam, d_lam, gamma)), Info()

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> Cost:
        """Two gradients on each minibatch of train, which is read once, and one on each of val."""
        (train, val), number = (source.rows_per_batch for source in sources), self.inner_steps + 1
        return Cost(Count(2 * number, train, number), outer_gradients=Count(number, val))
