"""Does an iteration contract? What its moves say, and what a pair of coupled points says under noise."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.trees import PyTree, axpy, norm, scale, sub
from bilevax.data.fold import RowSource

WINDOW = 10
"""Moves over which growth is looked for."""

CONFIRMING = 400
"""Products with the linearised map that confirm a suspicion: a non-normal map grows for a while and then contracts."""

FLOOR = 100
"""Units in the last place of x below which a move is rounding."""

BURN_IN = 10
"""Steps of a coupled pair before its direction has settled."""


class Moves(NamedTuple):
    """What is kept of the moves T(x_j) - x_j of a deterministic iteration."""

    lengths: Array  # [WINDOW], of the last moves; move j is at j mod WINDOW
    look: Array  # the step from which growth is looked into again
    code: Array


def no_moves(x: PyTree) -> Moves:
    """Before the first move."""
    return Moves(jnp.full(WINDOW, jnp.inf, norm(x).dtype), jnp.int32(WINDOW), jnp.int32(Code.OK))


def watch(seen: Moves, j: Array, x: PyTree, move: PyTree, push: Callable[[PyTree], PyTree]) -> Moves:
    """Move j from x: NOT_CONTRACTIVE where moves have grown for WINDOW steps and the linearised map goes on growing.

    Args:
        seen: the moves before.
        j: number of the move.
        x: where it began.
        move: T(x) - x.
        push: direction -> derivative of the iteration along it; called only on suspicion.
    """
    length = norm(move)
    rising = (j >= seen.look) & (length > seen.lengths[j % WINDOW]) & ~_rounding(length, x)
    expands = rising & (growth(push, move, jnp.where(rising, CONFIRMING, 0)) > 1e-4)
    code = jnp.where(expands, jnp.int32(Code.NOT_CONTRACTIVE), jnp.int32(Code.OK))
    code = jnp.where(jnp.isfinite(length), code, jnp.int32(Code.NONFINITE))
    return Moves(seen.lengths.at[j % WINDOW].set(length), jnp.where(rising, 2 * j, seen.look), code)


def verdict(
    seen: Moves,
    j: Array,
    points: tuple[PyTree, PyTree],
    move: PyTree,
    push: Callable[[PyTree], PyTree],
    tol: Array | float,
) -> Array:
    """The code of an iteration from start to x, the ``points``, that was ended after move j - 1.

    NOT_CONTRACTIVE where the moves do not fall; BUDGET where the estimated error, length q / (1 - q) with q the mean
    contraction of the last moves, is more than ``tol`` of the larger of ||x|| and the way from the start to x.
    """
    start, x = points
    way = jnp.maximum(norm(x), norm(sub(x, start)))
    last, oldest = seen.lengths[(j - 1) % WINDOW], seen.lengths[j % WINDOW]
    number = jnp.minimum(j, WINDOW) - 1
    before = jnp.where(j > WINDOW, oldest, seen.lengths[0])
    power = 1.0 / jnp.maximum(number, 1).astype(last.dtype)
    q = jnp.where(before > 0, (last / jnp.where(before > 0, before, 1.0)) ** power, 0.0)
    still = (j > WINDOW) & (q >= 1 - 1e-5) & ~_rounding(last, x)
    circles = still & (growth(push, move, jnp.where(still, CONFIRMING, 0)) > -1e-5)
    error = jnp.where(q < 1, last * q / jnp.where(q < 1, 1 - q, 1.0), jnp.inf)
    error = jnp.where(number < 1, last, error)
    far = (error > jnp.asarray(tol).astype(error.dtype) * way) & ~_rounding(last, x)
    code = jnp.where(far, jnp.int32(Code.BUDGET), jnp.int32(Code.OK))
    return jnp.where(seen.code == Code.OK, jnp.where(circles, jnp.int32(Code.NOT_CONTRACTIVE), code), seen.code)


def growth(push: Callable[[PyTree], PyTree], direction: PyTree, products: Array | int) -> Array:
    """Mean logarithm of the growth of a direction in the last half of so many products with a linear map."""
    tiny = jnp.finfo(norm(direction).dtype).tiny

    def step(i: Array, state: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        u, total = state
        u = push(scale(1.0 / jnp.maximum(norm(u), tiny), u))
        return u, total + jnp.where(i >= products // 2, jnp.log(jnp.maximum(norm(u), tiny)), 0.0)

    total = jax.lax.fori_loop(0, products, step, (direction, jnp.zeros_like(norm(direction))))[1]
    return total / jnp.maximum(products - products // 2, 1).astype(total.dtype)


def _rounding(length: Array, x: PyTree) -> Array:
    size = norm(x)
    return length <= FLOOR * jnp.finfo(size.dtype).eps * size


class Pair(NamedTuple):
    """Two points moved by the same minibatches.

    Attributes:
        rate: mean of h_j = ln(||d_{j+1}|| / ||d_j||), d_j their difference: exp(rate) is the contraction factor of the
            random iteration.
        standard_error: of the rate.
        second_moment: mean logarithm of the growth of E ||d||^2, over 2; more than ``rate``.
    """

    rate: Array
    standard_error: Array
    second_moment: Array

    @property
    def expands(self) -> Array:
        """True where the rate is positive by three standard errors."""
        return self.rate - 3.0 * self.standard_error > 1e-3


def coupled_pair(
    image: Callable[[PyTree, PyTree, PyTree], PyTree],
    x: PyTree,
    args: PyTree,
    source: RowSource,
    *,
    key: Array,
    start: Array | int,
    steps: int,
    step_size: Callable[[Array], Array],
) -> Pair:
    """Follow a direction along the iteration x <- x + eta (T(x; zeta) - x), from minibatch ``start`` on.

    Additive noise moves both points alike and cancels; what is left are the products of Jacobians. Needs about
    9 (sd(h) / rate)^2 steps. Cost: ``steps`` minibatches, each an image and a Jacobian-vector product.

    Args:
        image: T as (x, args, batch) -> x.
        x: where it begins.
        args: what T reads beside.
        source: of the minibatches.
        key: of the stream.
        start: number of the first minibatch.
        steps: more than BURN_IN, which are left out.
        step_size: eta_j.
    """
    tangent = jax.tree.map(lambda a: jax.random.normal(jax.random.fold_in(key, a.size), a.shape, a.dtype), x)
    real = norm(x).dtype
    tiny = jnp.finfo(real).tiny

    def step(carry: tuple[PyTree, PyTree, Array], args: PyTree, j: Array, draw: Any) -> tuple[PyTree, PyTree, Array]:
        x, u, sums = carry
        eta = (step_size(j) * draw.weight).astype(real)
        moved, pushed = jax.jvp(lambda x: image(x, args, draw.batch), (x,), (u,))
        u = axpy(eta, pushed, scale(1 - eta, u))
        h = jnp.log(jnp.maximum(norm(u), tiny))
        seen = jnp.where(j - start >= BURN_IN, jnp.stack([h, h**2, jnp.exp(2 * h)]), 0.0)
        x = axpy(eta, moved, scale(1 - eta, x))
        return x, scale(1.0 / jnp.maximum(norm(u), tiny), u), sums + seen

    carry = (x, scale(1.0 / norm(tangent), tangent), jnp.zeros(3, real))
    total, squares, powers = source.fold(step, carry, args, key=key, start=start, stop=start + steps)[2]
    number = steps - BURN_IN
    rate = total / number
    variance = jnp.maximum(squares / number - rate**2, 0.0) * (number / max(number - 1, 1))
    return Pair(rate, jnp.sqrt(variance / number), 0.5 * jnp.log(powers / number))
