"""L-BFGS on the full batch, for inner problems that have a loss."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import check_count, check_real, config, set_frozen, static
from bilevax.core.protocols import RowSource
from bilevax.core.records import Solution, SolverError
from bilevax.core.trees import PyTree, all_finite, axpy, entries, norm, scale, sub, vdot, where, zeros_like
from bilevax.linalg.row_chunks import value_and_grad
from bilevax.solvers.fixed_point import has_grown

MEMORY = 40, 10
"""Pairs of differences that are kept of few and of many unknowns. Forty save a half of the steps that ten take where
unknowns are few; of many, going through them costs what a pass over sparse rows does."""

MANY = 50_000
"""Unknowns from which they are many."""

DECREASE, CURVATURE = 1e-4, 0.9
"""Of the Wolfe conditions: the loss falls by DECREASE of what its slope promises, the slope to CURVATURE of itself."""

TRIALS = 30
"""Step sizes tried along one direction."""

IDLE = 10
"""Steps in a row in which neither the loss nor the least gradient norm falls: rounding hides any progress."""


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
    """

    stochastic: ClassVar[bool] = False

    tol: float = 1e-6
    max_steps: int = 500
    memory: int | None = static(None)

    def __post_init__(self) -> None:
        tol = check_real("tol", self.tol, low=0.0, open_low=True)
        memory = None if self.memory is None else check_count("memory", self.memory, low=1)
        set_frozen(self, tol=tol, max_steps=check_count("max_steps", self.max_steps, low=1), memory=memory)

    def solve(self, loss: Callable[..., Array], w0: PyTree, lam: PyTree, source: RowSource) -> Solution:
        """Minimise w -> loss(w, lam, every row of the source) from w0."""

        def evaluated(w: PyTree) -> tuple[Array, PyTree]:
            return source.total(lambda at, batch: value_and_grad(loss, at[0], at[1], batch), (w, lam))

        def small(at: _Search) -> Array:
            size, extent = norm(at.gradient), 1.0 + norm(at.w)
            runs_away = size * extent > 2.0 * at.first  # any gradient is small against a w that goes to infinity
            return (size <= jnp.asarray(self.tol).astype(size.dtype) * extent) & ~runs_away

        def going(at: _Search) -> Array:
            can = (at.steps < self.max_steps) & (at.trials < TRIALS) & (at.idle < IDLE) & jnp.isfinite(at.value)
            return (at.steps < 0) | (~small(at) & can)

        def try_size(at: _Search) -> _Search:
            """One evaluation: the step is taken, or the next step size lies between the too short and the too long."""
            w = axpy(at.size, at.direction, at.w)
            value, gradient = evaluated(w)
            slope, reached = vdot(at.gradient, at.direction), vdot(gradient, at.direction)
            rounding = 10 * jnp.finfo(value.dtype).eps * jnp.abs(at.value)
            fell = (value <= at.value + DECREASE * at.size * slope + rounding) & all_finite((w, value, gradient))
            short = fell & (reached < CURVATURE * slope)
            low, high = jnp.where(short, at.size, at.low), jnp.where(fell, at.high, at.size)
            secant = at.size * slope / (slope - reached)  # where the slope would vanish, were the loss quadratic
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
        end = jax.lax.while_loop(going, try_size, _before(w0, jax.eval_shape(evaluated, w0)[0], memory))
        short = jnp.where(end.idle < IDLE, jnp.int32(Code.MAX_STEPS), jnp.int32(Code.STALLED))
        code = jnp.where(small(end), jnp.int32(Code.OK), short)
        far = end.low * norm(end.direction) > 1.0 + norm(end.w)  # where the loss falls as steeply as at w
        code = jnp.where((end.trials >= TRIALS) & far, jnp.int32(Code.DIVERGED), code)
        code = jnp.where(has_grown(w0, end.w), jnp.int32(Code.DIVERGED), code)
        finite = all_finite((end.w, end.value, end.gradient))
        code = jnp.where(finite, code, jnp.int32(Code.NONFINITE))
        unseen = jnp.full_like(end.value, jnp.inf), jnp.zeros_like(end.value)
        return Solution(end.w, code, end.calls, end.steps, left=SolverError(end.direction, *unseen))


def _before(w0: PyTree, value: Any, memory: int) -> _Search:
    """Step -1, of size 0 from w0 with an infinite loss: the first evaluation is that of w0."""
    many = jax.tree.map(lambda x: jnp.zeros((memory, *x.shape), x.dtype), w0)
    pairs = _Pairs(many, many, jnp.zeros(memory, value.dtype), jnp.int32(0))
    infinity = jnp.full((), jnp.inf, value.dtype)
    start = _search(w0, infinity, zeros_like(w0), pairs, zeros_like(w0), jnp.zeros((), value.dtype))
    return start._replace(steps=jnp.int32(-1))


def _start(w: PyTree, value: Array, gradient: PyTree, pairs: _Pairs) -> _Search:
    """A new line search: size 1, or so that the very first step has length one at most."""
    direction = scale(-1.0, _product(pairs, gradient))
    one = jnp.ones_like(value)
    size = jnp.where(pairs.number == 0, one / jnp.maximum(one, norm(direction)), one)
    return _search(w, value, gradient, pairs, direction, size)


def _search(w: PyTree, value: Array, gradient: PyTree, pairs: _Pairs, direction: PyTree, size: Array) -> _Search:
    none, infinity = jnp.int32(0), jnp.full_like(value, jnp.inf)
    at = (w, value, gradient, pairs, direction, size)
    so_far = {"least": infinity, "first": infinity, "idle": none, "steps": none, "calls": none}
    return _Search(*at, low=jnp.zeros_like(value), high=infinity, trials=none, **so_far)


def _remember(pairs: _Pairs, s: PyTree, y: PyTree, taken: Array) -> _Pairs:
    """The pair in place of the oldest, if the step was taken; one without positive curvature is left out."""
    slot, curvature = pairs.number % len(pairs.inverse), vdot(s, y)
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
    """H gradient, by the two loops over the pairs."""
    memory = len(pairs.inverse)
    kept = jnp.minimum(pairs.number, memory)

    def pair(i: Array) -> tuple[Array, PyTree, PyTree, Array]:
        slot = (pairs.number - 1 - i) % memory  # the i-th newest
        s, y = (jax.tree.map(lambda a: a[slot], tree) for tree in (pairs.s, pairs.y))
        return slot, s, y, pairs.inverse[slot]

    def back(i: Array, carry: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        q, share = carry
        slot, s, y, inverse = pair(i)
        a = inverse * vdot(s, q)
        return axpy(-a, y, q), share.at[slot].set(a)

    def forth(i: Array, r: PyTree) -> PyTree:
        slot, s, y, inverse = pair(kept - 1 - i)
        return axpy(share[slot] - inverse * vdot(y, r), s, r)

    q, share = jax.lax.fori_loop(0, kept, back, (gradient, jnp.zeros_like(pairs.inverse)))
    _, _, y, inverse = pair(jnp.int32(0))
    squared = vdot(y, y)
    seen = inverse > 0
    first = jnp.where(seen, 1.0 / jnp.where(seen, inverse * squared, jnp.ones_like(squared)), jnp.ones_like(squared))
    return jax.lax.fori_loop(0, kept, forth, scale(first, q))
