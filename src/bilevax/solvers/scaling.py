"""A linear system in units of its right-hand side."""

import jax.numpy as jnp
from jax import Array

from bilevax.core.trees import PyTree, norm, shrink, where, zeros_like

FLAT = 32
"""Units in the last place of the largest product met, below which the image of a direction is rounding."""


def unit_system(g: PyTree, start: PyTree | None) -> tuple[Array, PyTree, PyTree]:
    """(size, b, v0) such that size v solves A v = g where v solves A v = b, and v0 is its start.

    ||b|| = 1, so that no square overflows or vanishes and a relative tolerance is an absolute one; but where g is zero,
    or not finite, b = g and size = 1, and the start for zero is its solution.
    """
    # A (v / ||g||) = g / ||g||
    size = norm(g)
    usable = (size > 0) & jnp.isfinite(size)
    one = jnp.where(usable, size, jnp.ones_like(size))
    v = zeros_like(g) if start is None else where(size == 0, zeros_like(g), shrink(one, start))
    return one, shrink(one, g), v
