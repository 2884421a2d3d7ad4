"""The error of a deterministic solver, estimated from its own iterates."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from bilevax.core.records import SolverError
from bilevax.core.trees import PyTree, scale
from bilevax.solvers.stability import is_rounding, mean_contraction

KEPT = 64
"""Steps whose share of the energy is kept."""


class Ritz(NamedTuple):
    """The smallest Ritz value of conjugate gradients, step by step.

    T = L L^T is the Lanczos matrix, L lower bidiagonal of diagonal 1 / sqrt(a_j) and below it sqrt(b_j / a_j), a_j and
    b_j the step sizes. A unit vector c is kept with a large x = L^-1 c, and extended with the best share of the next
    unit vector: 1 / ||x||^2 is not below the smallest Ritz value (Meurant, Tichy 2019, section 4).

    Attributes:
        square: ||x||^2.
        last: the last entry of x.
        below: of L, left of the next diagonal entry.
    """

    square: Array
    last: Array
    below: Array

    def extended(self, a: Array, b: Array) -> "Ritz":
        """After a step of size a, and b = ||r_new||^2 / ||r||^2."""
        # row j of L: below = sqrt(b_{j-1} / a_{j-1}) and diagonal = 1 / sqrt(a_j); so L^-1 (s c, t) has the new entry
        # t / diagonal - s (below / diagonal) last
        diagonal = 1.0 / jnp.sqrt(a)
        slope, one = self.below * self.last / diagonal, 1.0 / diagonal
        # ||L^-1 (s c, t)||^2 = s^2 square + (t one - s slope)^2, largest for an eigenvector of a matrix of 2 x 2
        p, q, m = self.square + slope**2, one**2, -slope * one
        top = 0.5 * (p + q + jnp.hypot(p - q, 2 * m))
        s, t = jnp.where(p > q, top - q, m), jnp.where(p > q, m, top - p)
        length = jnp.maximum(jnp.hypot(s, t), jnp.finfo(a.dtype).tiny)
        s, t = s / length, t / length
        return Ritz(top, t * one - s * slope, jnp.sqrt(b / a))

    @staticmethod
    def of(a: Array) -> "Ritz":
        """Before the first step."""
        zero = jnp.zeros_like(a)
        return Ritz(zero, zero, zero)


def energy_left(terms: Array, number: Array) -> Array:
    """What is still to come of a sum of positive terms, the last of which are kept at j mod KEPT.

    The last d terms have the sum E, those before F: what is left is E q + E q^2 + ... with q = E / F; the least over
    some d.
    """
    back = number - 1 - jnp.arange(KEPT, dtype=jnp.int32)
    # sums[i]: of the last i + 1 terms, the newest first
    sums = jnp.cumsum(jnp.where(back >= 0, terms[back % KEPT], 0.0))
    # d = 1, 2, 4, ...: E of the last d, F of the d before them
    d = jnp.int32(1) << jnp.arange(KEPT.bit_length() - 1, dtype=jnp.int32)
    late, both = sums[d - 1], sums[2 * d - 1]
    early = both - late
    q = jnp.where(early > 0, late / jnp.where(early > 0, early, 1.0), 1.0)
    q = jnp.clip(q, 0.0, 0.95)
    usable = (2 * d <= number) & (d >= jnp.minimum(4, number // 4 + 1))
    # E q / (1 - q)
    return jnp.min(jnp.where(usable, late * q / (1.0 - q), jnp.inf), initial=20.0 * sums[-1])


UNRESOLVED = 1.0
"""However small the least curvature is, j steps show one of about 1 / j: so much of what is seen is discounted."""


def slowest(seen: Array, j: Array) -> Array:
    """The least curvature, from that seen in j steps: less by UNRESOLVED / j, but half of it and eps at least."""
    discounted = seen - UNRESOLVED / jnp.maximum(jnp.asarray(j), 1).astype(seen.dtype)
    return jnp.maximum(jnp.maximum(discounted, 0.5 * seen), jnp.finfo(seen.dtype).eps)


def moves_left(
    lengths: Array,
    j: Array,
    x: PyTree,
    move: PyTree | None,
    eta: Array,
    curvature: Callable[[Array], Array] = lambda slow: slow,
) -> SolverError:
    """The error of an iteration of step eta after its move j - 1; ``lengths`` are as in ``MoveHistory``.

    Moves that shrink by q go move (q + q^2 + ...) further. Of a sum of exponentials q only grows, so that 1 - q is
    discounted (:func:`slowest`). Moves that are rounding of x show nothing. ``curvature`` is eta times that of a
    direction that shrinks by q, 1 - q without momentum.
    """
    last, q, _ = mean_contraction(lengths, j)
    slow = slowest(jnp.maximum(1.0 - q, 0.0), j)
    rounding = is_rounding(last, x)
    # 1 - q = eta h, h the curvature
    relative = curvature(slow).astype(slow.dtype)
    least = jnp.where(rounding, jnp.inf, relative / eta.astype(slow.dtype))
    if move is not None:
        # the next move over h, move q / h: the moves T(x) - x are eta times as long in x
        move = scale(eta * jnp.where(rounding, 1.0, (1.0 - slow) / relative), move)
    return SolverError(move, least, jnp.ones_like(slow))
