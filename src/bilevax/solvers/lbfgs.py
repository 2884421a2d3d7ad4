"""L-BFGS on the full batch, for inner problems that have a loss."""

from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import at_least_one, check_fields, config, or_none, positive, static
from bilevax.core.protocols import Loss, RowSource
from bilevax.core.records import Solution, SolverError
from bilevax.core.trees import PyTree, all_finite, axpy, entries, norm, scale, sub, vdot, where, zeros, zeros_like
from bilevax.linalg.row_chunks import value_and_grad
from bilevax.solvers.chain import has_grown

MEMORY = 40, 10
"""Pairs of differences for few and for many unknowns. Forty save a half of the steps that ten take; of many unknowns,
the two loops over the pairs cost as much as a pass over sparse rows."""

MANY = 50_000
"""Unknowns from which they are many."""

DECREASE, CURVATURE = 1e-4, 0.9
"""Of the Wolfe conditions: the loss falls by DECREASE of what its slope promises, the slope to CURVATURE of itself."""

TRIALS = 30
"""Step sizes tried along one direction."""

IDLE = 10
"""Steps in a row in which neither the loss nor the least gradient norm falls: rounding hides any progress."""


# Not optax's, whose zoom line search is compiled into each of its steps: here a loop body has one evaluation.


class _Pairs(NamedTuple):
    """Differences of points (s) and gradients (y), the newest at slot (number - 1) mod M; leaves [M, ...]."""

    s: PyTree
    y: PyTree
    inverse: Array  # 1 / <s, y>, 0 in an empty slot
    number: Array


class _Search(NamedTuple):
    """A point with its loss and gradient, and the step size that is tried along a direction from it."""

    w: PyTree
    value: Array
    gradient: PyTree
    pairs: _Pairs
    direction: PyTree
    size: Array
    low: Array  # a step size that is too short
    high: Array  # and one that is too long
    trials: Array
    least: Array  # gradient norm so far
    first: Array  # ||grad|| (1 + ||w||) at w0
    idle: Array
    steps: Array
    calls: Array


@config
class LBFGS:
    """Limited-memory BFGS on the inner loss of every row of train.

    w <- w - a H grad, where H is had from the last differences of w and of grad, and the step size a >= 0, found by
    bracketing, fulfils the Wolfe conditions; a = 1 is tried first.

    Assumes an inner loss (:class:`~bilevax.GradientStep`); stops at ||grad|| <= tol (1 + ||w||), with MAX_STEPS after
    ``max_steps``, STALLED where rounding hides any progress, and DIVERGED where the loss falls along a direction
    however far, or w has grown by 1e12: it is unbounded below. Cost: one full gradient for each step size tried, about
    one a step. Source: Liu and Nocedal (1989); Nocedal and Wright (2006), algorithms 3.5 and 7.5.

    Args:
        tol: gradient norm against 1 + ||w||, positive. Default 1e-6.
        max_steps: a count of at least 1. Default 500.
        memory: differences that are kept, a count of at least 1; None (default): 40, or 10 of more than 50,000
            unknowns. Each is two copies of w; another number is another program.

    Examples:
        >>> import bilevax as bx
        >>> bx.LBFGS(tol=1e-8)
        LBFGS(tol=1e-08, max_steps=500, memory=None)
    """

    stochastic: ClassVar[Literal[False]] = False

    tol: float = 1e-6
    max_steps: int = 500
    memory: int | None = static(None)

    def __post_init__(self) -> None:
        check_fields(self, tol=positive, max_steps=at_least_one, memory=or_none(at_least_one))

    def solve(self, loss: Loss, w0: PyTree, lam: PyTree, source: RowSource) -> Solution:
        """Minimise w -> loss(w, lam, every row of the source) from w0."""

        def evaluated(w: PyTree) -> tuple[Array, PyTree]:
            return source.total(lambda at, batch: value_and_grad(loss)(at[0], at[1], batch), (w, lam))

        def small(at: _Search) -> Array:
            # ||grad|| <= tol (1 + ||w||), but not of a w that goes to infinity, against which any gradient is small
            size, extent = norm(at.gradient), 1.0 + norm(at.w)
            runs_away = size * extent > 2.0 * at.first
            return (size <= jnp.asarray(self.tol).astype(size.dtype) * extent) & ~runs_away

        def keep_going(at: _Search) -> Array:
            can = (at.steps < self.max_steps) & (at.trials < TRIALS) & (at.idle < IDLE) & jnp.isfinite(at.value)
            return (at.steps < 0) | (~small(at) & can)

        def try_size(at: _Search) -> _Search:
            """One evaluation: the step is taken, or the next step size lies between the too short and the too long."""
            # w' = w + a p
            w = axpy(at.size, at.direction, at.w)
            value, gradient = evaluated(w)
            # <grad, p> and <grad', p>
            slope, reached = vdot(at.gradient, at.direction), vdot(gradient, at.direction)
            rounding = 10 * jnp.finfo(value.dtype).eps * jnp.abs(at.value)
            # Wolfe: G(w') <= G(w) + c1 a <grad, p> and <grad', p> >= c2 <grad, p>; short: the second alone fails
            fell = (value <= at.value + DECREASE * at.size * slope + rounding) & all_finite((w, value, gradient))
            short = fell & (reached < CURVATURE * slope)
            low, high = jnp.where(short, at.size, at.low), jnp.where(fell, at.high, at.size)
            # a <grad, p> / (<grad, p> - <grad', p>), where the slope would vanish, were the loss quadratic
            secant = at.size * slope / (slope - reached)
            # between the two, a tenth of the room away from either; up to ten times as far where no step was too long
            room = jnp.where(jnp.isfinite(high), high - low, 10 * low)
            size = jnp.clip(jnp.nan_to_num(secant), low + 0.1 * room, low + 0.9 * room)
            taken = (at.steps < 0) | (fell & ~short)
            pairs = _remember(at.pairs, sub(w, at.w), sub(gradient, at.gradient), taken)
            again = at._replace(pairs=pairs, size=size, low=low, high=high, trials=at.trials + 1, calls=at.calls + 1)
            gradient_norm = norm(gradient)
            progress = (value < at.value - rounding) | (gradient_norm < at.least)
            new = _start(w, value, gradient, pairs)._replace(
                least=jnp.minimum(gradient_norm, at.least),
                first=jnp.where(at.steps < 0, gradient_norm * (1.0 + norm(w)), at.first),
                idle=jnp.where(progress, jnp.int32(0), at.idle + 1),
                steps=at.steps + 1,
                calls=at.calls + 1,
            )
            return where(taken, new, again)

        memory = self.memory or MEMORY[entries(w0) > MANY]
        # Step -1, of size 0 from w0 with an infinite loss: the first evaluation is that of w0, in the same loop body.
        kind = jax.eval_shape(evaluated, w0)[0].dtype
        many = zeros(w0, memory)
        pairs = _Pairs(many, many, jnp.zeros(memory, kind), jnp.int32(0))
        none, infinity = zeros_like(w0), jnp.full((), jnp.inf, kind)
        begin = _search(w0, infinity, none, pairs, none, jnp.zeros((), kind))._replace(steps=jnp.int32(-1))
        end = jax.lax.while_loop(keep_going, try_size, begin)
        short = jnp.where(end.idle < IDLE, jnp.int32(Code.MAX_STEPS), jnp.int32(Code.STALLED))
        code = jnp.where(small(end), jnp.int32(Code.OK), short)
        # the loss still falls as steeply as at w after a step as long as w
        far = end.low * norm(end.direction) > 1.0 + norm(end.w)
        code = jnp.where((end.trials >= TRIALS) & far, jnp.int32(Code.DIVERGED), code)
        code = jnp.where(has_grown(w0, end.w), jnp.int32(Code.DIVERGED), code)
        finite = all_finite((end.w, end.value, end.gradient))
        code = jnp.where(finite, code, jnp.int32(Code.NONFINITE))
        # The next direction, -H grad, is the estimated move to the solution; of curvatures it says nothing.
        unknown = jnp.full_like(end.value, jnp.inf), jnp.zeros_like(end.value)
        return Solution(end.w, code, end.calls, end.steps, error=SolverError(end.direction, *unknown))


def _start(w: PyTree, value: Array, gradient: PyTree, pairs: _Pairs) -> _Search:
    """A new line search: size 1, or so that the very first step has length one at most."""
    # p = -H grad
    direction = scale(-1.0, _product(pairs, gradient))
    one = jnp.ones_like(value)
    # before the first pair nothing is known of the curvature: a step of length 1 at most
    size = jnp.where(pairs.number == 0, one / jnp.maximum(one, norm(direction)), one)
    return _search(w, value, gradient, pairs, direction, size)


def _search(w: PyTree, value: Array, gradient: PyTree, pairs: _Pairs, direction: PyTree, size: Array) -> _Search:
    none, infinity = jnp.int32(0), jnp.full_like(value, jnp.inf)
    line = jnp.zeros_like(value), infinity, none
    return _Search(w, value, gradient, pairs, direction, size, *line, infinity, infinity, none, none, none)


def _remember(pairs: _Pairs, s: PyTree, y: PyTree, taken: Array) -> _Pairs:
    """The pair in place of the oldest, if the step was taken; one without positive curvature is left out."""
    slot, curvature = pairs.number % len(pairs.inverse), vdot(s, y)
    # <s, y> > eps <y, y>: else H would not stay positive definite
    kept = taken & (curvature > jnp.finfo(curvature.dtype).eps * vdot(y, y))

    def put(a: Array, x: Array) -> Array:
        return a.at[slot].set(jnp.where(kept, x, a[slot]))

    return _Pairs(
        jax.tree.map(put, pairs.s, s),
        jax.tree.map(put, pairs.y, y),
        put(pairs.inverse, 1.0 / curvature),
        pairs.number + kept.astype(jnp.int32),
    )


def _product(pairs: _Pairs, gradient: PyTree) -> PyTree:
    """H times the gradient, by the two loops over the pairs."""
    memory = len(pairs.inverse)
    kept = jnp.minimum(pairs.number, memory)

    def pair(i: Array) -> tuple[Array, PyTree, PyTree, Array]:
        slot = (pairs.number - 1 - i) % memory  # the i-th newest
        s, y = (jax.tree.map(lambda a: a[slot], tree) for tree in (pairs.s, pairs.y))
        return slot, s, y, pairs.inverse[slot]

    def back(i: Array, carry: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        q, share = carry
        slot, s, y, inverse = pair(i)
        # a_i = <s_i, q> / <s_i, y_i>, q <- q - a_i y_i, from the newest to the oldest
        a = inverse * vdot(s, q)
        return axpy(-a, y, q), share.at[slot].set(a)

    def forth(i: Array, r: PyTree) -> PyTree:
        slot, s, y, inverse = pair(kept - 1 - i)
        # r <- r + (a_i - <y_i, r> / <s_i, y_i>) s_i, from the oldest to the newest
        return axpy(share[slot] - inverse * vdot(y, r), s, r)

    q, share = jax.lax.fori_loop(0, kept, back, (gradient, jnp.zeros_like(pairs.inverse)))
    # between them r = H_0 q, H_0 = <s, y> / <y, y> of the newest pair
    _, _, y, inverse = pair(jnp.int32(0))
    squared = vdot(y, y)
    seen = inverse > 0
    # <s, y> / <y, y>, and 1 before the first pair
    first = jnp.where(seen, 1.0 / jnp.where(seen, inverse * squared, jnp.ones_like(squared)), jnp.ones_like(squared))
    return jax.lax.fori_loop(0, kept, forth, scale(first, q))
