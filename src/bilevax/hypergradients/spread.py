"""Noise and bias of the last iterate of a chain, from snapshots of it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.records import SNAPSHOTS, Snapshots
from bilevax.core.trees import PyTree, leaf_sum, norm, per_row

DOUBT = 0.25
"""Least fraction of the variance of a move that is taken for bias, however well noise explains the move."""

INNOVATION = 0.25
"""Least fraction of the variance at a snapshot that is new since the one before."""

FASTER, PRIOR = 4.0, 0.25
"""Noise may decorrelate so many times as fast as the slowest direction relaxes; prior odds of that."""


class RelaxationRate(NamedTuple):
    """Curvatures of I - d1Phi, by which a direction relaxes as exp(-h s) in the cumulative step s.

    Attributes:
        seen: in the direction that products of Jacobians shrink to.
        slowest: a lower estimate of that of the slowest direction.
    """

    seen: Array
    slowest: Array


class PointError(NamedTuple):
    """The error of the last iterate of a chain.

    Attributes:
        squares: of its standard error, entry by entry.
        degrees_of_freedom: two less than the snapshots, or fewer on a chain shorter than the slowest relaxation time.
        bias: estimated from above, in absolute value, entry by entry; infinite where no step was made.
    """

    squares: PyTree
    degrees_of_freedom: Array
    bias: PyTree


def last_point_error(chain: Snapshots, rate: RelaxationRate) -> PointError:
    """Noise and bias of the last iterate of a chain, from its snapshots, or any linear image of them.

    With the cumulative step s a direction of curvature h relaxes as exp(-h s), its start as well as its noise, whose
    variance goes as eta. So in the slowest direction the snapshots are a constant, a multiple of exp(-h s_i), and noise
    of covariance V_ij = eta_i exp(-h (s_j - s_i)), i <= j, whose scale has an unbiased estimate by restricted maximum
    likelihood (Patterson, Thompson 1971). It is too large for directions that decorrelate faster: so it is averaged
    with that of noise which decorrelates FASTER times as fast, by their likelihoods. And what moved by D along a
    segment of length S has at most D / (exp(h S) - 1) to go, where noise does not explain D: the least over segments.
    """
    assert chain.cumulative_step is not None
    assert chain.step_sizes is not None
    real = chain.cumulative_step.dtype
    s, sizes = (x.astype(real) for x in (chain.cumulative_step, chain.step_sizes))
    # where nothing is seen to relax h S is a rounding: exp(-h s) is a line, and the way to go as good as endless
    span = jnp.maximum(s[-1] - s[0], jnp.finfo(real).tiny)
    resolved = jnp.finfo(real).eps / span
    h, slowest = (jnp.maximum(x.astype(real), resolved) for x in rate)
    # y_i = x_i / sqrt(eta_i / eta_L): of equal variance
    roots = jnp.sqrt(sizes / sizes[-1])
    # (exp(-h s) - 1) / (h S): with a constant it spans what exp(-h s) does
    decay = jnp.expm1(-h * (s - s[0])) / (h * span)
    rates = h * jnp.asarray([1.0, FASTER], real)
    # two relaxation rates, that which was seen and a faster one, by how likely they make the snapshots
    squares = _weighted_mean(*jax.vmap(lambda h: _restricted_fit(chain.points, s, roots, decay, h))(rates))
    bias = _remaining_bias(chain.points, (h, slowest), (s, roots), sum_of_entries(squares).astype(real))
    # less than 6 where the chain is shorter than a relaxation time: snapshots then are nearly one point
    degrees = (SNAPSHOTS - 2.0) * jnp.minimum(h * (s[-1] - s[0]), 1.0)
    return PointError(squares, jnp.maximum(degrees, 1.0), bias)


def _restricted_fit(points: PyTree, s: Array, roots: Array, decay: Array, h: Array) -> tuple[PyTree, Array]:
    """The noise variance if it decorrelates as exp(-h s), like a point; and -log |V| - log |X'V^-1 X|.

    The snapshots are x = X b + e, X = (1, decay) and Cov(e) = variance V. In units of ``roots`` e is an AR(1) process:
    its whitened entries are uncorrelated and of one variance.
    """
    # correlation r_i = exp(-h (s_{i+1} - s_i)) sqrt(eta_i / eta_{i+1}), innovation sqrt(1 - r_i^2)
    correlation = jnp.exp(-h * (s[1:] - s[:-1])) * roots[:-1] / roots[1:]
    correlation = jnp.minimum(correlation, (1.0 - INNOVATION) ** 0.5)
    innovation = jnp.sqrt(1.0 - correlation**2)

    def whitened(x: Array) -> Array:
        # V^(-1/2) x: y_0, (y_{i+1} - r_i y_i) / sqrt(1 - r_i^2)
        y = x / per_row(roots, x)
        return jnp.concatenate([y[:1], (y[1:] - per_row(correlation, y) * y[:-1]) / per_row(innovation, y)])

    # the columns of V^(-1/2) X, the second orthogonal to the first (Gram, Schmidt)
    constant = whitened(jnp.ones_like(s))
    start = _project_out(whitened(decay), constant)

    def variance(x: Array) -> Array:
        # REML: |V^(-1/2) (x - X b)|^2 / (L - 2), b by generalised least squares
        residual = _project_out(_project_out(whitened(x), constant), start)
        return jnp.sum(residual**2, axis=0) / (SNAPSHOTS - 2)

    # log |V| = 2 sum log innovation, log |X'V^-1 X| = log |constant|^2 + log |start|^2, both but for constants
    volume = 2.0 * jnp.sum(jnp.log(innovation)) + jnp.log(constant @ constant) + jnp.log(start @ start)
    return jax.tree.map(variance, points), -volume


def _remaining_bias(points: PyTree, rates: tuple[Array, Array], clock: tuple[Array, Array], noise: Array) -> PyTree:
    """The way that is left to go, in absolute value, entry by entry: D / (exp(h S) - 1), least over the segments."""
    (h, slowest), (s, roots) = rates, clock
    moved = jax.vmap(norm)(jax.tree.map(lambda x: x[-1:] - x[:-1], points)).astype(s.dtype)
    root, segment = roots[:-1], s[-1] - s[:-1]
    # E|e_L - e_i|^2 = variance (1 + eta_i / eta_L - 2 (eta_i / eta_L) exp(-h S_i))
    explained = (1.0 + root**2 * (1.0 - 2.0 * jnp.exp(-h * segment))) * noise
    # D_i^2 = |x_L - x_i|^2 - E|e_L - e_i|^2, at least DOUBT of the latter
    way = jnp.sqrt(jnp.maximum(moved**2 - explained, DOUBT * explained))
    # what is left of a way of D_i that decays at the slowest rate: D_i / (exp(slowest S_i) - 1)
    left = jnp.where(segment > 0, way / jnp.expm1(slowest * segment), jnp.inf)
    i = jnp.argmin(left)
    share = jnp.where(moved[i] > 0, left[i] / moved[i], jnp.where(jnp.isinf(left[i]), jnp.inf, 0.0))

    def way_to_go(x: Array) -> Array:
        # infinite, not NaN, where nothing moved
        way = jnp.abs(x[-1] - x[i])
        return jnp.where(jnp.isinf(share), share.astype(x.dtype), share.astype(x.dtype) * way)

    return jax.tree.map(way_to_go, points)


def _weighted_mean(squares: PyTree, volumes: Array) -> PyTree:
    """Of two fits, [2, ...], weighted by prior times likelihood, its log a mean over the entries, weighted by noise.

    log likelihood = -((L - 2) log variance + log |V| + log |X'V^-1 X|) / 2, with L snapshots.
    """
    total = _positive(sum_of_entries(jax.tree.map(lambda x: x[0], squares)))

    def weighted(x: Array) -> Array:
        # mean of log squares over the entries, each by its share of the noise
        logs = jnp.log(_positive(x)).reshape(2, -1)
        return jnp.sum(logs * (x[0] / total.astype(x.dtype)).reshape(1, -1), axis=1).astype(volumes.dtype)

    logs = functools.reduce(jnp.add, map(weighted, jax.tree.leaves(squares)))
    prior = jnp.asarray([1.0, PRIOR], volumes.dtype)
    # prior times the restricted likelihood exp((volume - (L - 2) log square) / 2)
    shares = jax.nn.softmax(0.5 * (volumes - (SNAPSHOTS - 2) * logs) + jnp.log(prior))
    return jax.tree.map(lambda x: jnp.tensordot(shares.astype(x.dtype), x, axes=1), squares)


def _positive(x: Array) -> Array:
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny)


def _project_out(y: Array, direction: Array) -> Array:
    """The array y [L, ...] less its component along a direction [L]."""
    # y - d <d, y> / <d, d>
    square = jnp.maximum(jnp.vdot(direction, direction), jnp.finfo(direction.dtype).tiny)
    return y - per_row(direction, y) * jnp.tensordot((direction / square).astype(y.dtype), y, axes=1)[None]


def sum_of_entries(squares: PyTree) -> Array:
    """Sum over all entries of all leaves."""
    return leaf_sum(jax.tree.map(jnp.sum, squares))
