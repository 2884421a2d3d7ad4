"""Power iterations: the largest curvature at a point and along a walk, and the growth rate of products."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.protocols import Draw, RowSource
from bilevax.core.trees import Operator, PyTree, axpy, norm, scale, sub, where

POWER_STEPS = 12
"""Power iterations on one matrix."""

MARGIN = 1.1
"""Factor for what the power iteration has not seen yet."""

STEEPER = 4.0
"""The most by which one trial step of a walk raises the curvature: beyond it the trial point says little."""


def unit(u: PyTree, length: Array | None = None) -> PyTree:
    """U / ||u||, and 0 of 0; ``length`` is ||u|| where that is known."""
    # u / |u|, 0 of a zero
    length = norm(u) if length is None else length
    return scale(1.0 / jnp.maximum(length, jnp.finfo(length.dtype).tiny), u)


def nonzero(direction: PyTree) -> PyTree:
    """The direction to start a power iteration from; of one that vanishes, ones."""
    size = norm(direction)
    return where(size > jnp.finfo(size.dtype).tiny, direction, jax.tree.map(jnp.ones_like, direction))


def powers(matvec: Operator, start: PyTree, steps: int) -> tuple[PyTree, Array]:
    """A u / ||u|| after so many products with A, and its length."""

    def step(_: Array, state: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        # u <- A u / ||u||; ||A u|| / ||u|| rises to |largest eigenvalue|, as A is symmetric
        image = matvec(unit(*state))
        return image, norm(image)

    last: tuple[PyTree, Array] = jax.lax.fori_loop(0, steps, step, (start, norm(start)))
    return last


def power_iteration(matvec: Operator, start: PyTree) -> Array:
    """|largest eigenvalue| of a symmetric linear map, with a margin of 10 %."""
    # from below: MARGIN makes up for the steps that are not made
    return MARGIN * powers(matvec, start, POWER_STEPS)[1]


def walk_curvature(
    gradient: Callable[[PyTree, PyTree, PyTree], PyTree],
    product: Callable[[PyTree, PyTree, PyTree, PyTree], PyTree],
    start: tuple[PyTree, Array],
    args: PyTree,
    source: RowSource,
    *,
    key: Array,
    looks: tuple[int, int],
) -> Array:
    """L, the largest curvature along gradient steps of size 1 / L from w0 on.

    On each minibatch, with g and H its gradient and Hessian and w the current point:

        L <- max(L, ||H u|| / ||u||), u <- H u / ||u||              a few times, u that of the minibatch before
        r = ||g(w - g(w) / L) - g(w)|| / ||g(w) / L||               the curvature along a trial step
        w <- w - g(w) / L if r <= L, else L <- min(r, STEEPER L)    and no move

    So a step at which gradients grow is never taken: descent along it would fail on that very minibatch. Where there
    is no curvature at all L is ``start``'s, or 0.

    Cost: a minibatch is read ``looks[0]`` times, each for ``looks[1]`` products and two gradients.

    Args:
        gradient: (w, args, batch) -> g, like w.
        product: (w, args, batch, u) -> H u or H^T u.
        start: (w0, the least L).
        args: what both read beside.
        source: of the minibatches.
        key: of their stream.
        looks: (minibatches, products on each).
    """
    (w, least), (minibatches, products) = start, looks
    leaves, structure = jax.tree.flatten(w)
    # a normal tree like w has a component along every direction
    keys = jax.random.split(key, len(leaves))
    normal = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    tiny = jnp.finfo(norm(w).dtype).tiny

    def look(carry: tuple[PyTree, PyTree, Array], args: PyTree, _: Array, draw: Draw) -> tuple[PyTree, PyTree, Array]:
        w, u, L = carry
        # u <- H u / ||u||, L <- max(L, ||H u|| / ||u||)
        # H u after a few products, from the u of the minibatch before
        image, length = powers(lambda u: product(w, args, draw.batch, u), u, products)
        L = jnp.maximum(L, MARGIN * length)
        g = gradient(w, args, draw.batch)
        # w - g / L
        trial = axpy(-1.0 / jnp.maximum(L, tiny), g, w)
        # r = ||g(w - g / L) - g|| / ||g / L||; NaN, of a step into nowhere, is steeper too
        change = norm(sub(gradient(trial, args, draw.batch), g))
        r = change / jnp.maximum(norm(sub(trial, w)), tiny)
        steeper = ~(r <= L) & (norm(g) > 0) & (L > 0)
        L = jnp.where(steeper, jnp.fmin(r, STEEPER * L), L)
        # a minibatch without curvature leaves u: H u = 0 is no direction
        return where(steeper, w, trial), where(length > 0, image, u), L

    begin = w, jax.tree.unflatten(structure, normal), least
    return source.fold(look, begin, args, key=key, start=0, stop=minibatches)[2]


class Growth(NamedTuple):
    """Growth of a direction under products with a linear map.

    Attributes:
        rate: mean logarithm of its growth in the last half of them.
        amplification: sum of its lengths over all of them, 1 before the first: about 1 / (1 - q) for a map that
            contracts by q, and more for one that grows first.
        products: how many.
    """

    rate: Array
    amplification: Array
    products: Array


def growth_rate(matvec: Operator, direction: PyTree, products: Array | int) -> Growth:
    """Growth of a direction under so many products with a linear map; 0 cost nothing."""
    real = norm(direction).dtype
    tiny = jnp.finfo(real).tiny
    products = jnp.asarray(products, jnp.int32)
    # Explicit constants, so that they can be tied to u in the loop.
    matvec, constants = jax.closure_convert(matvec, direction)

    def step(i: Array, state: tuple[PyTree, Array, Array, Array]) -> tuple[PyTree, Array, Array, Array]:
        u, height, late, amplification = state
        # Tied to u: what depends on the constants alone would be computed before the loop, be that empty or not.
        u, *now = jax.lax.optimization_barrier((u, *constants))
        u = matvec(u, *now)
        # h_i = ln(||A u|| / ||u||); height = sum of all h_i so far, late = that of the last half
        length = jnp.maximum(norm(u), tiny)
        height = height + jnp.log(length)
        late = late + jnp.where(i >= products // 2, jnp.log(length), 0.0)
        return scale(1.0 / length, u), height, late, amplification + jnp.exp(height)

    zero = jnp.zeros((), real)
    _, _, late, amplification = jax.lax.fori_loop(0, products, step, (unit(direction), zero, zero, zero + 1.0))
    # mean of h_i over products // 2 <= i < products
    return Growth(late / jnp.maximum(products - products // 2, 1).astype(real), amplification, products)


def contraction_rate(
    product: Callable[[PyTree, PyTree, PyTree], PyTree],
    direction: PyTree,
    args: PyTree,
    source: RowSource,
    *,
    key: Array,
    eta: Array,
    number: Array,
) -> Array:
    """Mean logarithm of the growth of u <- u - eta A u over the last half of so many minibatches.

    The direction to start from is the drift of a chain: the mean over a segment damps its noise, but in the slowest
    directions.

    Args:
        product: (args, batch, u) -> A u, like u.
        direction: to start from.
        args: what it reads beside.
        source: of the minibatches.
        key: of their stream.
        eta: step size.
        number: of minibatches.
    """
    real = norm(direction).dtype
    tiny = jnp.finfo(real).tiny

    def step(carry: tuple[PyTree, Array], args: PyTree, j: Array, draw: Draw) -> tuple[PyTree, Array]:
        (u, total), (args, eta) = carry, args
        # u <- (I - eta A_B) u / ||u||, h_j = ln ||u||
        u = unit(u)
        u = axpy(-eta * draw.weight, product(args, draw.batch, u), u)
        return u, total + jnp.where(j >= number // 2, jnp.log(jnp.maximum(norm(u), tiny)), 0.0)

    start = nonzero(direction), jnp.zeros((), real)
    total = source.fold(step, start, (args, eta), key=key, start=0, stop=number)[1]
    # mean of h_j over number // 2 <= j < number
    return total / (number - number // 2).astype(real)
