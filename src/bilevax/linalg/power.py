"""Curvature as an iteration meets it: by power iteration, where it is and on its way."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.trees import PyTree, axpy, norm, scale, sub, vdot, where

POWER_STEPS = 12
"""Power iterations on one matrix."""

MARGIN = 1.1
"""Factor for what the power iteration has not seen yet."""

STEEPER = 4.0
"""The most by which one trial step of a walk raises the curvature: where it flew off, what it met says little."""


def power_iteration(matvec: Callable[[PyTree], PyTree], start: PyTree) -> Array:
    """|largest eigenvalue| of a symmetric linear map, with a margin of 10 %."""
    tiny = jnp.finfo(jnp.result_type(*jax.tree.leaves(start))).tiny

    def step(_: Array, state: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        u, _ = state
        u = scale(1.0 / jnp.maximum(norm(u), tiny), u)
        image = matvec(u)
        return image, jnp.sqrt(vdot(image, image))

    _, value = jax.lax.fori_loop(0, POWER_STEPS, step, (start, jnp.zeros((), jnp.result_type(*jax.tree.leaves(start)))))
    return MARGIN * value


def met_on_a_walk(
    gradient: Callable[[PyTree, PyTree, PyTree], PyTree],
    product: Callable[[PyTree, PyTree, PyTree, PyTree], PyTree],
    start: tuple[PyTree, Array],
    args: PyTree,
    source: Any,
    *,
    key: Array,
    looks: tuple[int, int],
) -> Array:
    """L, the largest curvature that gradient steps of size 1 / L meet from w0 on.

    On each minibatch, with g and H its gradient and Hessian and w where the walk is:

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
    keys = jax.random.split(key, len(leaves))
    normal = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    tiny = jnp.finfo(norm(w).dtype).tiny

    def look(carry: tuple[PyTree, PyTree, Array], args: PyTree, _: Array, draw: Any) -> tuple[PyTree, PyTree, Array]:
        w, u, seen = carry

        def power(_: Array, state: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
            u, length = state
            u = product(w, args, draw.batch, scale(1.0 / jnp.maximum(length, tiny), u))
            return u, norm(u)

        image, length = jax.lax.fori_loop(0, products, power, (u, norm(u)))
        seen = jnp.maximum(seen, MARGIN * length)
        g = gradient(w, args, draw.batch)
        step = 1.0 / jnp.maximum(seen, tiny)
        trial = axpy(-step, g, w)
        change = norm(sub(gradient(trial, args, draw.batch), g))
        along = change / jnp.maximum(norm(sub(trial, w)), tiny)
        steeper = ~(along <= seen) & (norm(g) > 0) & (seen > 0)
        seen = jnp.where(steeper, jnp.fmin(along, STEEPER * seen), seen)
        return where(steeper, w, trial), where(length > 0, image, u), seen

    return source.fold(
        look, (w, jax.tree.unflatten(structure, normal), least), args, key=key, start=0, stop=minibatches
    )[2]
