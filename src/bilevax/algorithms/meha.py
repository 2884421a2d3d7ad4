"""MEHA: descent on E / c + G less its Moreau envelope, whose prox is followed by one move a step.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, the prox, w and lam, and a minibatch each of
train and val for the moves of the first two and for that of lam, as looks. Out, to the loop: the next state.
"""

from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from bilevax.algorithms.common import Penalised, checked_steps, rates, step_sizes
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import check_fields, config, fraction, or_none, positive, set_frozen
from bilevax.core.protocols import BilevelProblem, RowSource, Sources, StepLooks
from bilevax.core.records import Cost, Count, Info
from bilevax.core.trees import PyTree, axpy, sub
from bilevax.solvers.parts import Copies, moved_by, outer_move, penalty_descents, penalty_direction, projected


@config
class MEHA(Penalised):
    """Moreau envelope: (w, lam) descends E / c_k + G - v, v(w, lam) = min G(., lam) + |. - w|^2 / (2 s), one loop.

        theta <- theta - rho_k (grad_1 G(theta) + (theta - w) / s)                        towards the prox of w
        w     <- w - rho_k (grad_1 G(w) + grad_1 E(w) / c_k - (w - theta) / s)            on the same minibatches
        lam   <- P(lam - ratio rho_k (grad_2 E(w) + c_k (grad_2 G(w) - grad_2 G(theta))))
        c_k    = unit ``multiplier`` (1 + k)^``growth``,    s = ``proximal`` rho_0

    So it is :class:`~bilevax.F2SA` with a force (w - theta) / s on both copies, and F2SA itself as s grows. The
    published step of lam is along E / c_k + ...: a constant one there is rho_k / c_k here. The inner problem need be
    neither strongly convex nor of a single solution, if s is below the inverse of its least curvature: w is a solution
    that makes E small. The bias is of order 1 / c.

    Steps are in loss form. Assumes an inner loss, weakly convex, and smooth losses. On every row, as published, and
    with c_k of order k^p, p < 1/2, the squared gradient of the penalised loss, over c, falls as K^(2p - 1). Cost: four
    inner gradients on two minibatches of train, two outer ones on two of val.
    Source: Liu, Liu, Yao, Zeng, Zhang (2024), arXiv:2405.09927.

    Args:
        step_size: rho_k, a number or a schedule; None (default): measured at the start of the run.
        ratio: gamma_k / rho_k, positive; None (default): measured.
        proximal: s / rho_0, positive. Default 100.
        multiplier: c_0 in units, positive. Default 10.
        growth: power of k by which c grows, from 0 to 1. Default 1/7.
        unit: positive, 1 as published; None (default): |grad_1 E| / |grad_1 G| as measured, so that E may be scaled.

    Raises:
        ParameterError: the problem has no inner loss, or damping (when a run begins).

    Examples:
        >>> import bilevax as bx
        >>> bx.MEHA(step_size=0.1, ratio=0.3, proximal=100.0).proximal
        100.0
    """

    defaults: ClassVar[Defaults] = Defaults(1.0, 0.3, power=0.5)

    proximal: float = 100.0
    multiplier: float = 10.0
    growth: float = 1 / 7
    unit: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, proximal=positive, multiplier=positive, growth=fraction, unit=or_none(positive))
        set_frozen(self, **checked_steps(self))

    def streams(self, sources: Sources) -> dict[str, RowSource]:
        """A minibatch of each source for theta and w, and one for lam."""
        train, val = sources
        return {"inner": train, "outer": val, "train": train, "val": val}

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources, u0: PyTree = None) -> Copies:
        """The state (theta, w, lam) before the first step: theta is w0; u0 plays no part; lam projected."""
        return Copies(w0, w0, projected(problem, lam))

    def step(self, problem: BilevelProblem, state: Copies, looks: StepLooks, k: Array) -> tuple[Copies, Info]:
        """The moves of theta and w, and that of lam; the loop evaluates the outer value and the gradient norm."""
        c, (rho, gamma) = self.penalty(k), step_sizes(self, k, state.z, state.lam)
        # s = proximal rho_0, of the prox of which v is the Moreau envelope
        (theta, w, lam), s = state, self.proximal * rates(self)[0](jnp.int32(0))
        # of (w, z) = (theta, w): -grad_1 G(theta) and -(grad_1 G(w) + grad_1 E(w) / c_k)
        d_theta, d_w = penalty_descents(problem, state, c, looks["inner"], looks["outer"])
        # -grad_1 G(theta) + (w - theta) / s and -(grad_1 G(w) + grad_1 E(w) / c) + (w - theta) / s
        d_theta, d_w = axpy(1.0 / s, sub(w, theta), d_theta), axpy(1.0 / s, sub(w, theta), d_w)
        p = Copies(moved_by(rho, d_theta, theta), moved_by(rho, d_w, w), lam)
        # grad_2 E(w) + c_k (grad_2 G(w) - grad_2 G(theta))
        d_lam = penalty_direction(problem, p, c, looks["train"], looks["val"])
        return p._replace(lam=outer_move(problem, lam, d_lam, gamma)), Info()

    def solution(self, state: Copies) -> tuple[PyTree, PyTree]:
        """The inner and the outer variable of a state."""
        return state.z, state.lam

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> Cost:
        """Two gradients on each of two minibatches of train, which is read once, and one on each of two of val."""
        train, val = (source.rows_per_batch for source in sources)
        return Cost(Count(4, train, 2), outer_gradients=Count(2, val))
