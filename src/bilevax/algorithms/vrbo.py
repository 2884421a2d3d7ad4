"""VRBO: lam moves once and w a few times along recursive directions (SPIDER), a Neumann series in each.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, the state, a minibatch each of train and val
and K of train for every evaluation, as looks, and the sources. Out, to the loop: the next state.
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.algorithms.common import Draws, WithMemory, checked_steps, series_step, sources_of, step_sizes, undrawn
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import at_least_one, check_fields, config, or_none, set_frozen
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import BilevelProblem, RowSource, Sources, StepLooks
from bilevax.core.records import Cost, Count, Info
from bilevax.core.trees import PyTree, is_concrete, zeros_like
from bilevax.data import Several, refuse_keys
from bilevax.data.sampling import CHUNK
from bilevax.solvers.parts import (
    Pair,
    mean_series_directions,
    moved_by,
    outer_move,
    projected,
    series_directions,
    storm,
)


class State(NamedTuple):
    """The variables, and the estimate of their directions there."""

    p: Pair
    d: Pair


@config
class VRBO(WithMemory):
    """lam moves, then T times w; after each move the directions of both are led on by their difference (SPIDER).

        d    = D(w, lam), the mean over every row                               if k is a multiple of ``period``
        lam <- P(lam - ratio rho_k d_lam)
        d   <- d + D(new) - D(old),  w <- w + rho_k d_w                         ``inner_steps`` times
        d   <- d + D(new) - D(old)

    with D of :class:`~bilevax.MRBO`; new and old: (w, lam) after and before a move, on the same K + 2 minibatches.
    Constant steps lead to where the mean direction of :class:`~bilevax.StocBiO` is 0. Assumes G strongly convex, smooth
    losses; order eps^(-3/2) samples to a squared hypergradient of eps. Cost: at 2 (T + 1) points an inner gradient,
    K + 1 products, an outer gradient; and these on every row. Source: Yang, Ji, Liang (2021), arXiv:2106.04692.

    Args:
        step_size: rho_k, a number or a schedule; None (default): measured at the start of the run.
        ratio: gamma_k / rho_k, positive; None (default): measured.
        inner_steps: T, at least 1. Default 3.
        linear_steps: K, at least 1; (T + 1) K at most 256. Default 10.
        period: steps between passes over every row; None (default): until as many rows are read as in one.

    Raises:
        ParameterError: a source has keys, so that no pass stands for the mean (when a run begins).

    Examples:
        >>> algorithm = VRBO(step_size=0.1, period=20)
    """

    defaults: ClassVar[Defaults] = Defaults(1.0, 0.3, carried=False)

    inner_steps: int = 3
    linear_steps: int = 10
    period: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, inner_steps=at_least_one, linear_steps=at_least_one, period=or_none(at_least_one))
        set_frozen(self, **checked_steps(self))
        if is_concrete(drawn := (self.inner_steps + 1) * self.linear_steps) and drawn > CHUNK:
            raise ParameterError(f"(inner_steps + 1) linear_steps must be at most {CHUNK}, got {drawn}")

    def streams(self, sources: Sources) -> Draws:
        """T + 1 minibatches of train and of val and K of train for each of them; and the sources themselves."""
        (train, val), looks = sources, self.inner_steps + 1
        refuse_keys("VRBO", "use bx.MRBO", train=train, val=val)
        several = {"inner": Several(train, looks), "outer": Several(val, looks)}
        return {**several, "linear": Several(train, looks * self.linear_steps), "val": val, **undrawn(sources)}

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources, u0: PyTree = None) -> State:
        """The state before the first step; u0 plays no part; lam projected."""
        pair = Pair(w0, projected(problem, lam))
        return State(pair, zeros_like(pair))

    def step(self, problem: BilevelProblem, state: State, looks: StepLooks, k: Array) -> tuple[State, Info]:
        """The move of lam and those of w; the loop evaluates the outer value and the gradient norm."""
        pair, (train, val), K = state.p, sources_of(looks), self.linear_steps
        (rho, gamma), rho_0 = step_sizes(self, k, *pair), series_step(self, *pair)
        whole, every_row = k % _period(self, train, val) == 0, (problem, pair, train, val, K, rho_0)
        # D(w, lam) on every row at k = 0, period, 2 period, ...; else as the last step has led it on
        d = jax.lax.cond(whole, lambda: mean_series_directions(*every_row), lambda: state.d)

        def move(i: Array, carry: tuple[Pair, Pair, Pair]) -> tuple[Pair, Pair, Pair]:
            before, at, d = carry
            given = looks["inner"][i], looks["outer"][i], looks["linear"].part(i, K)
            now, then = (series_directions(problem, p, *given, rho_0) for p in (at, before))
            # d + D(at) - D(before), and w + rho d_w
            d = storm(d, now, then, 0.0)
            return at, Pair(moved_by(rho, d.w, at.w), at.lam), d

        # T moves of w: of one more d alone is kept
        first = Pair(pair.w, outer_move(problem, pair.lam, d.lam, gamma))
        new, _, d = jax.lax.fori_loop(0, self.inner_steps + 1, move, (pair, first, d))
        return State(new, d), Info(cost=_cost(self, whole, train, val))


def _period(algorithm: VRBO, train: RowSource, val: RowSource) -> Array:
    """The one given, or so many steps as read as many rows as a pass."""
    if algorithm.period is not None:
        return jnp.asarray(algorithm.period)

    looks, uses = (jnp.asarray(number + 1, float) for number in (algorithm.inner_steps, algorithm.linear_steps))

    def rows(b: int, b_val: int) -> Array:
        # of train once and in each factor, of val once
        return uses * b + b_val

    steps = rows(train.rows, val.rows) / (looks * rows(train.rows_per_batch, val.rows_per_batch))
    return jnp.maximum(jnp.round(steps).astype(jnp.int32), 1)


def _cost(algorithm: VRBO, whole: Array, train: RowSource, val: RowSource) -> Cost:
    looks, K = algorithm.inner_steps + 1, algorithm.linear_steps

    def count(source: RowSource, each: Array | int = 1, reads: Array | int | None = None) -> Count:
        # T + 1 times at two points on minibatches which are read once; and the ceil(n / b) that every row makes
        pass_ = jnp.where(whole, -(-source.rows // source.rows_per_batch), 0)
        calls, read = each * (2 * looks + pass_), each * (looks + pass_)
        return Count(calls, source.rows_per_batch, read if reads is None else reads)

    return Cost(count(train), count(train, K), count(train, reads=0), count(val))
