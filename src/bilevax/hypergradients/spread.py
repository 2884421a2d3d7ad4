"""What points on its way say of where a chain has come to: its noise, and what is left of its start."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.records import SNAPSHOTS, Snapshots
from bilevax.core.trees import PyTree, norm

DOUBT = 0.25
"""Share, at least, of the square of what noise may have moved that is held to be bias."""

FRESH = 0.25
"""Share, at least, of the noise at a point of a tail that is new since the one before."""

FASTER, PRIOR = 4.0, 0.25
"""Noise may forget so many times as fast as the slowest direction; how likely that is, against that it does not."""


class ForgettingRate(NamedTuple):
    """How the iteration forgets.

    Attributes:
        seen: curvature of I - d1Phi in a direction that has shrunk for a while.
        slowest: of the slowest direction, no more than this.
    """

    seen: Array
    slowest: Array


class PointError(NamedTuple):
    """What the tail of a chain says of its last point.

    Attributes:
        squares: of its standard error, entry by entry.
        degrees: of freedom: two less than the points, or fewer on a tail shorter than the slowest relaxation time.
        bias: size of what is left of the start, at most, entry by entry; infinite where no step was made.
    """

    squares: PyTree
    degrees_of_freedom: Array
    bias: PyTree


def last_point_error(tail: Snapshots, rate: ForgettingRate) -> PointError:
    """Noise and bias of the last point of a chain, from its points on the way there, or any linear image of them.

    With the travel s, the sum of the eta_j, a direction of rate h forgets as exp(-h s), its start as well as its noise,
    whose variance goes as eta. So in the slowest direction the points are a constant, a multiple of exp(-h s_i), and
    noise of covariance eta_i exp(-h (s_j - s_i)), i <= j, whose scale has an unbiased estimate (restricted maximum
    likelihood). It is too large in directions that forget faster: so it is a mean with that of noise which forgets
    FASTER times as fast, weighted by how likely either makes the points. And what moved D on a stretch of length S has
    at most D / (exp(h S) - 1) to go, where noise does not explain D: the least over the stretches.
    """
    real = tail.cumulative_step.dtype
    h, s, sizes = (x.astype(real) for x in (rate.seen, tail.cumulative_step, tail.sizes))
    roots = jnp.sqrt(sizes / sizes[-1])
    decay = jnp.exp(-h * (s - s[0]))

    def fitted(h: Array) -> tuple[PyTree, Array]:
        """Squares of the noise if it forgets at the rate h, and -log |V| - log |X'V^-1 X|, X the constant and decay."""
        kept = jnp.minimum(jnp.exp(-h * (s[1:] - s[:-1])) * roots[:-1] / roots[1:], (1.0 - FRESH) ** 0.5)
        fresh = jnp.sqrt(1.0 - kept**2)

        def whitened(y: Array) -> Array:
            y = y / _broadcast_rows(roots, y)
            return jnp.concatenate([y[:1], (y[1:] - _broadcast_rows(kept, y) * y[:-1]) / _broadcast_rows(fresh, y)])

        constant = whitened(jnp.ones_like(s))
        start = _project_out(whitened(decay), constant)

        def square(x: Array) -> Array:
            left = _project_out(_project_out(whitened(x), constant), start)
            return jnp.sum(left**2, axis=0) / (SNAPSHOTS - 2)

        volume = 2.0 * jnp.sum(jnp.log(fresh)) + jnp.log(constant @ constant) + jnp.log(start @ start)
        return jax.tree.map(square, tail.points), -volume

    squares = _mean(*jax.vmap(fitted)(h * jnp.asarray([1.0, FASTER], real)))
    moved = jax.vmap(norm)(jax.tree.map(lambda x: x[-1:] - x[:-1], tail.points)).astype(real)
    root, stretch = roots[:-1], s[-1] - s[:-1]
    explained = (1.0 + root**2 * (1.0 - 2.0 * jnp.exp(-h * stretch))) * total_square(squares).astype(real)
    way = jnp.sqrt(jnp.maximum(moved**2 - explained, DOUBT * explained))
    left = jnp.where(stretch > 0, way / jnp.expm1(rate.slowest.astype(real) * stretch), jnp.inf)
    i = jnp.argmin(left)
    share = jnp.where(moved[i] > 0, left[i] / moved[i], jnp.where(jnp.isinf(left[i]), jnp.inf, 0.0))

    def way_to_go(x: Array) -> Array:
        way = jnp.abs(x[-1] - x[i])
        return jnp.where(jnp.isinf(share), share.astype(x.dtype), share.astype(x.dtype) * way)

    degrees = (SNAPSHOTS - 2.0) * jnp.minimum(h * (s[-1] - s[0]), 1.0)
    return PointError(squares, jnp.maximum(degrees, 1.0), jax.tree.map(way_to_go, tail.points))


def _mean(squares: PyTree, volumes: Array) -> PyTree:
    """Of two fits, [2, ...], weighted by prior times likelihood, in the mean over the entries by the noise they have.

    log likelihood = -((TAIL - 2) log square + log |V| + log |X'V^-1 X|) / 2.
    """
    total = _positive(total_square(jax.tree.map(lambda x: x[0], squares)))

    def weighted(x: Array) -> Array:
        logs = jnp.log(_positive(x)).reshape(2, -1)
        return jnp.sum(logs * (x[0] / total.astype(x.dtype)).reshape(1, -1), axis=1).astype(volumes.dtype)

    logs = functools.reduce(jnp.add, map(weighted, jax.tree.leaves(squares)))
    shares = jax.nn.softmax(
        0.5 * (volumes - (SNAPSHOTS - 2) * logs) + jnp.log(jnp.asarray([1.0, PRIOR], volumes.dtype))
    )
    return jax.tree.map(lambda x: jnp.tensordot(shares.astype(x.dtype), x, axes=1), squares)


def _positive(x: Array) -> Array:
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny)


def _broadcast_rows(c: Array, y: Array) -> Array:
    return c.astype(y.dtype).reshape(-1, *[1] * (y.ndim - 1))


def _project_out(y: Array, direction: Array) -> Array:
    """Y less its part along a direction [TAIL]."""
    square = jnp.maximum(jnp.vdot(direction, direction), jnp.finfo(direction.dtype).tiny)
    return y - _broadcast_rows(direction, y) * jnp.tensordot((direction / square).astype(y.dtype), y, axes=1)[None]


def total_square(squares: PyTree) -> Array:
    """The sum of squares, over all entries."""
    return functools.reduce(jnp.add, map(jnp.sum, jax.tree.leaves(squares)))
