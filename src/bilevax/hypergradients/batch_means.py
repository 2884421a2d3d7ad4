"""Batch means of one run, and the standard error and bias of its mean from them."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.config import replace_unchecked
from bilevax.core.instance import Instance, Oracle
from bilevax.core.protocols import Draw, RowSource
from bilevax.core.trees import PyTree, add, axpy, norm, per_row, scale, zeros
from bilevax.data import join

BATCHES = 12
"""Batches of consecutive steps after the burn-in of a run, K; a third of them is an even number."""

PAIRED = 20.0
"""Relaxation times of a run below which two batches make one."""

MEMORY = 1.5
"""With the autocorrelation exp(-s) of s relaxation times, the variance of K batch means of a run of R relaxation times
is too small by the fraction 4/3 K / R for what minibatches drive directly, as w, and 2 K / R for what they drive by way
of w, as v: in between."""


class BatchMeans(NamedTuple):
    """Means of a series over K consecutive batches of its steps.

    Attributes:
        means: one each, a tree of arrays [K, ...].
        counts: steps that each is the mean of, [K].
    """

    means: PyTree
    counts: Array

    @classmethod
    def filled(cls, means: PyTree, counts: Array) -> "BatchMeans":
        """Batches without a step are given the mean of all."""

        def fill(x: Array, mean: Array) -> Array:
            return jnp.where((counts > 0).reshape(-1, *[1] * mean.ndim), x, mean[None])

        return cls(jax.tree.map(fill, means, cls(means, counts).mean), counts)

    @property
    def shares(self) -> Array:
        """Weights of the means in the mean of all, [K], of sum 1 (or 0, where there is no step)."""
        counts = self.counts.astype(jnp.result_type(float))
        return counts / jnp.maximum(jnp.sum(counts), 1.0)

    @property
    def degrees_of_freedom(self) -> Array:
        """One less than the batches that have a step."""
        return jnp.maximum(jnp.sum(self.counts > 0, dtype=jnp.int32) - 1, 0)

    @property
    def mean(self) -> PyTree:
        """The mean of the whole series."""
        return self.combined(self.shares)

    @property
    def standard_error(self) -> PyTree:
        """Of the mean, per entry: infinite where there are fewer than two batches."""
        degrees = self.degrees_of_freedom.astype(jnp.result_type(float))
        factor = jnp.where(degrees > 0, (degrees + 1) / jnp.maximum(degrees, 1.0), jnp.inf)

        def spread(x: Array, mean: Array) -> Array:
            # K / (K - 1) sum_k p_k^2 (x_k - mean)^2, sum p_k = 1
            squares = jnp.sum((per_row(self.shares, x) * (x - mean[None])) ** 2, axis=0)
            return jnp.where(degrees > 0, jnp.sqrt(factor.astype(x.dtype) * squares), jnp.inf).astype(x.dtype)

        return jax.tree.map(spread, self.means, self.mean)

    @property
    def halves(self) -> PyTree:
        """The means of the two halves of the series, [2, ...]."""
        # weights p_k over the batches of one half, divided by their sum there
        early = jnp.arange(BATCHES) < BATCHES // 2
        shares = jnp.stack([jnp.where(early, self.shares, 0.0), jnp.where(early, 0.0, self.shares)])
        return self.combined(shares / jnp.maximum(jnp.sum(shares, axis=1, keepdims=True), 1e-30))

    @property
    def drift(self) -> PyTree:
        """Half of the difference between the two halves of the series."""
        return jax.tree.map(lambda x: 0.5 * (x[0] - x[1]), self.halves)

    @property
    def merged_pairs(self) -> "BatchMeans":
        """Of two neighbouring batches each, nearer to independence; followed by as many without a step, [K]."""
        counts = self.counts.reshape(-1, 2)
        total = jnp.sum(counts, axis=1, dtype=counts.dtype)
        # (n_1 x_1 + n_2 x_2) / (n_1 + n_2)
        weights = jnp.where(total[:, None] > 0, counts / jnp.maximum(total, 1)[:, None], 0.5)

        def merge(x: Array) -> Array:
            pairs = jnp.einsum("kp,kp...->k...", weights.astype(x.dtype), x.reshape(-1, 2, *x.shape[1:]))
            return jnp.concatenate([pairs, jnp.zeros_like(pairs)])

        return BatchMeans.filled(jax.tree.map(merge, self.means), jnp.concatenate([total, jnp.zeros_like(total)]))

    @property
    def doubled(self) -> "BatchMeans":
        """The first batches of a run of twice the steps: the last two thirds of these, in pairs."""
        # of 2 N steps the first 2 N / 4 are burn-in: of the N so far, whose burn-in was N / 4, the last N / 2 stay
        third = BATCHES // 3

        def later(x: Array) -> Array:
            return jnp.concatenate([x[third:], jnp.zeros_like(x[:third])])

        return BatchMeans(jax.tree.map(later, self.means), later(self.counts)).merged_pairs

    def decorrelated(self, relaxations: Array) -> "BatchMeans":
        """As far from the mean of all as they would be without autocorrelation between batches.

        Args:
            relaxations: relaxation times of the slowest direction in the run whose last three quarters these are.
        """
        short = relaxations < PAIRED
        batches = jnp.where(short, BATCHES / 2, BATCHES)
        # x_k <- mean + sqrt(1 + MEMORY K / R) (x_k - mean)
        factor = jnp.sqrt(1.0 + MEMORY * batches / jnp.maximum(relaxations, 1.0))

        def move(x: Array, pairs: Array, mean: Array) -> Array:
            return mean[None] + factor.astype(x.dtype) * (jnp.where(short, pairs, x) - mean[None])

        pairs = self.merged_pairs
        means = jax.tree.map(move, self.means, pairs.means, self.mean)
        return BatchMeans(means, jnp.where(short, pairs.counts, self.counts))

    def joined(self, other: "BatchMeans") -> "BatchMeans":
        """Batch by batch the mean over the steps of both."""
        counts = self.counts + other.counts
        share = other.counts / jnp.maximum(counts, 1)

        def combine(a: Array, b: Array) -> Array:
            # a itself where the other has no step: 0 * NaN is NaN
            p = per_row(share, a)
            return jnp.where(p > 0, (1 - p) * a + p * b, a)

        return BatchMeans(jax.tree.map(combine, self.means, other.means), counts)

    def combined(self, weights: Array) -> PyTree:
        """Sums over the batches, with weights [..., K]."""
        return jax.tree.map(lambda x: jnp.tensordot(weights.astype(x.dtype), x, axes=1), self.means)

    def like(self, means: PyTree) -> "BatchMeans":
        """Other means over the same batches."""
        return BatchMeans(means, self.counts)


def batch_edges(first: Array, stop: Array) -> Array:
    """Where the BATCHES batches of the steps first <= j < stop begin and end, int32 [K + 1]."""
    # first + floor(i steps / K), in parts, as i steps may overflow
    i, steps = jnp.arange(BATCHES + 1, dtype=jnp.int32), stop - first
    return first + i * (steps // BATCHES) + i * (steps % BATCHES) // BATCHES


def excess(mean: PyTree, standard_error: PyTree, deviations: float) -> PyTree:
    """A mean, per entry in absolute value, scaled down to the part of its norm that noise does not explain.

    Its norm becomes sqrt(|mean|^2 - (deviations |standard error|)^2), at least 0.
    """
    size = norm(mean)
    ratio = deviations * norm(standard_error).astype(size.dtype) / jnp.where(size > 0, size, 1.0)
    return jax.tree.map(jnp.abs, scale(jnp.sqrt(jnp.maximum(1.0 - ratio**2, 0.0)), mean))


def remaining_bias(value: PyTree, moved: BatchMeans, drift: PyTree, standard_error: PyTree) -> PyTree:
    """Estimated size of the bias of an extrapolated mean, per entry.

    An extrapolation that moved the mean by a share r of its size leaves about 2 r^2 of it (one order more in the step;
    the 2 is measured), and never more than it moved. A drift between the halves of the series beyond two standard
    errors is taken for what is left of the start.

    Args:
        value: what is returned, like lam.
        moved: full steps less half steps.
        drift: half of the difference between the two halves of the series.
        standard_error: of the series.
    """
    way = excess(moved.mean, moved.standard_error, 1.0)
    # min(1, 2 r) |moved|, r = |moved| / |value|; hypot the drift
    share = jnp.minimum(1.0, 2.0 * norm(way) / jnp.maximum(norm(value), jnp.finfo(norm(way).dtype).tiny))
    return jax.tree.map(jnp.hypot, scale(share, way), excess(drift, standard_error, 2.0))


def extrapolated(chains: PyTree) -> PyTree:
    """2 x^(s/2) - x^(s) of two chains [2, ...], which has no bias of first order in s; one chain [1, ...] as it is."""
    # E x^(s) = x + s b + O(s^2), so that 2 (x + s b / 2) - (x + s b) = x
    return jax.tree.map(lambda x: x[0] if x.shape[0] == 1 else 2 * x[1] - x[0], chains)


def moved_by(chains: PyTree) -> PyTree:
    """x^(s) - x^(s/2), by which the extrapolation moves x^(s/2); 0 of one chain."""
    return jax.tree.map(lambda x: x[0] - x[-1], chains)


def influences(instance: Instance, means: BatchMeans, number: Array, *, key: Array) -> BatchMeans:
    """Hypergradients at batch means of w and v: how their noise propagates into a hypergradient on every row.

    All are taken on the same ``number`` minibatches, whose own noise drops out of their differences; that of the
    Jacobians makes the spread too large rather than too small, and vanishes as the minibatches near an epoch: rows that
    are drawn with replacement elsewhere are shuffled here.

    Args:
        instance: with its inner step measured.
        means: batch means of (w, v).
        number: of the minibatches.
        key: of their stream.
    """

    def hypergradient(w: PyTree, v: PyTree, oracle: Oracle, draws: dict[str, Draw]) -> PyTree:
        # grad_2 E(w; xi) + d2Phi(w; zeta)^T v
        train, val = draws["train"], draws["val"]
        direct = oracle.outer_gradients(w, val.batch)[2]
        return axpy(val.weight, direct, scale(train.weight, oracle.cross_product(w, train.batch, v)))

    def step(total: PyTree, args: tuple[Oracle, PyTree, PyTree], _: Array, draws: dict[str, Draw]) -> PyTree:
        oracle, w, v = args
        return add(total, jax.vmap(partial(hypergradient, oracle=oracle, draws=draws))(w, v))

    both = join(train=_unrepeated(instance.train), val=_unrepeated(instance.val))
    total = both.fold(
        step, zeros(instance.lam, BATCHES), (instance.oracle, *means.means), key=key, start=0, stop=number
    )
    return means.like(scale(1.0 / number.astype(jnp.result_type(float)), total))


def _unrepeated(source: RowSource) -> RowSource:
    """The source without replacement, where it has the choice."""
    return replace_unchecked(source, sampling="shuffled") if getattr(source, "sampling", None) == "iid" else source
