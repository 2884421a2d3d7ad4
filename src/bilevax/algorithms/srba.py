"""SRBA: SOBA with SPIDER's variance reduction, a pass over every row at times and differences between.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, the state, one minibatch each of train and
val, as looks, and the sources. Out, to the loop: the next state. The directions are those of ``solvers.parts``.
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.algorithms.common import Draws, WithMemory, checked_steps, sources_of, step_sizes, undrawn
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import at_least_one, check_fields, config, or_none, set_frozen
from bilevax.core.protocols import BilevelProblem, RowSource, Sources, StepLooks
from bilevax.core.records import Cost, Count, Info
from bilevax.core.trees import PyTree, zeros_like
from bilevax.data import refuse_keys
from bilevax.solvers.parts import Point, directions, mean_directions, moved, start, storm


class State(NamedTuple):
    """The point, the one before it, and the estimate of the directions at that one; d is made anew at step 0."""

    p: Point
    before: Point
    d: Point


@config
class SRBA(WithMemory):
    """The moves of :class:`~bilevax.SOBA` along recursive directions (SPIDER).

        d_k = D(p_k), the mean over every row                                      if k is a multiple of ``period``
        d_k = d_{k-1} + D(p_k; zeta, xi) - D(p_{k-1}; zeta, xi)                    otherwise, on the same minibatches

    with D the three directions of SOBA, zeta of train and xi of val. Steps are in loss form, as there; constant ones
    lead to the solution itself. Assumes G strongly convex, smooth losses, and rows of which every one can be read, in
    any order. To reach a squared hypergradient of eps it reads of the order of sqrt(n) / eps rows, which is optimal.
    Cost: twice that of SOBA on the same rows, and one pass over train and val every ``period`` steps, counted in
    minibatches.
    Source: Dagreou, Moreau, Vaiter, Ablin (2023), arXiv:2302.08766.

    Args:
        step_size: rho_k, a number or a schedule; None (default): measured at the start of the run.
        ratio: gamma_k / rho_k, positive; None (default): measured.
        period: steps from one pass to the next; None (default): as many as read as many rows as a pass,
            (n + n_val) / (b + b_val).

    Raises:
        ParameterError: a source has keys, so that no pass stands for the mean (when a run begins).

    Examples:
        >>> import bilevax as bx
        >>> bx.SRBA(step_size=0.1, ratio=0.3, period=50)
        SRBA(step_size=Constant(value=0.1), ratio=0.3, period=50)
    """

    defaults: ClassVar[Defaults] = Defaults(1.0, 0.2)

    period: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, period=or_none(at_least_one))
        set_frozen(self, **checked_steps(self))

    def streams(self, sources: Sources) -> Draws:
        """One minibatch of train and one of val a step, and the sources themselves."""
        train, val = sources
        refuse_keys("SRBA", "use bx.SOBA", train=train, val=val)
        return {**super().streams(sources), **undrawn(sources)}

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources, u0: PyTree = None) -> State:
        """The state before the first step: u is u0, or 0; lam projected."""
        p = start(problem, w0, lam, u0)
        return State(p, p, zeros_like(p))

    def step(self, problem: BilevelProblem, state: State, looks: StepLooks, k: Array) -> tuple[State, Info]:
        """One step of all three; the loop evaluates the outer value and the gradient norm."""
        p, before, d = state
        train, val = sources_of(looks)

        def recursive() -> Point:
            # d + D(p) - D(before), on the same rows
            now, then = (directions(problem, at, looks["train"], looks["val"]) for at in (p, before))
            out: Point = storm(d, now, then, 0.0)
            return out

        every_row = k % self._period(train, val) == 0
        # every row at k = 0, period, 2 period, ...; between them d gains errors as small as p's moves
        d = jax.lax.cond(every_row, lambda: mean_directions(problem, p, train, val), recursive)
        new = moved(problem, p, d, *step_sizes(self, k, p.w, p.lam))
        return State(new, p, d), Info(cost=_cost(every_row, train, val))

    def _period(self, train: RowSource, val: RowSource) -> Array | int:
        # (n + n_val) / (b + b_val)
        steps = (train.rows + val.rows) / (train.rows_per_batch + val.rows_per_batch)
        return round(steps) if self.period is None else self.period


def _cost(every_row: Array, train: RowSource, val: RowSource) -> Cost:
    def count(source: RowSource, reads: int | None = None) -> Count:
        # two points on one minibatch, which is read once; or one on the ceil(n / b) that every row makes
        pass_ = -(-source.rows // source.rows_per_batch)
        read = jnp.where(every_row, pass_, 1)
        return Count(jnp.where(every_row, pass_, 2), source.rows_per_batch, read if reads is None else reads)

    return Cost(count(train), count(train, 0), count(train, 0), count(val))
