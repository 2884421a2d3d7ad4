"""What the batch means of one run say of the error of their mean."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.config import replace_unchecked
from bilevax.core.instance import Instance
from bilevax.core.protocols import BilevelProblem
from bilevax.core.trees import PyTree, add, axpy, norm, scale, where
from bilevax.data import join

BATCHES = 12
"""Stretches into which the kept steps of a run are cut, K; a third of them is an even number."""

PAIRED = 20.0
"""Relaxation times of a run below which two stretches make one."""

MEMORY = 1.5
"""The squared distances of K stretches of a run of R relaxation times are short by about 4/3 K / R of themselves along
what minibatches drive at once, as w, and by 2 K / R along what they drive by way of w, as v: in between."""


class BatchMeans(NamedTuple):
    """Means of a series over K consecutive stretches of it.

    Attributes:
        means: one each, a tree of arrays [K, ...].
        counts: steps that each is the mean of, [K].
    """

    means: PyTree
    counts: Array

    @classmethod
    def filled(cls, means: PyTree, counts: Array) -> "BatchMeans":
        """Stretches without a step are given the mean of all."""
        mean = cls(means, counts).mean

        def fill(x: Array, m: Array) -> Array:
            return jnp.where((counts > 0).reshape(-1, *[1] * m.ndim), x, m[None])

        return cls(jax.tree.map(fill, means, mean), counts)

    @property
    def shares(self) -> Array:
        """Weights of the means in the mean of all, [K], of sum 1 (or 0, where there is no step)."""
        counts = self.counts.astype(jnp.result_type(float))
        return counts / jnp.maximum(jnp.sum(counts), 1.0)

    @property
    def degrees_of_freedom(self) -> Array:
        """Degrees of freedom: one less than the stretches that have a step."""
        return jnp.maximum(jnp.sum(self.counts > 0, dtype=jnp.int32) - 1, 0)

    @property
    def mean(self) -> PyTree:
        """The mean of the whole series."""
        return self.combined(self.shares)

    @property
    def standard_error(self) -> PyTree:
        """Of the mean, per entry: infinite where there are fewer than two stretches."""
        degrees = self.degrees_of_freedom.astype(jnp.result_type(float))
        factor = jnp.where(degrees > 0, (degrees + 1) / jnp.maximum(degrees, 1.0), jnp.inf)

        def spread(x: Array, mean: Array) -> Array:
            p = self.shares.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
            squares = jnp.sum((p * (x - mean[None])) ** 2, axis=0)
            return jnp.where(degrees > 0, jnp.sqrt(factor.astype(x.dtype) * squares), jnp.inf).astype(x.dtype)

        return jax.tree.map(spread, self.means, self.mean)

    @property
    def halves(self) -> PyTree:
        """The means of the two halves of the series, [2, ...]."""
        early = jnp.arange(BATCHES) < BATCHES // 2
        shares = jnp.stack([jnp.where(early, self.shares, 0.0), jnp.where(early, 0.0, self.shares)])
        return self.combined(shares / jnp.maximum(jnp.sum(shares, axis=1, keepdims=True), 1e-30))

    @property
    def drift(self) -> PyTree:
        """Half of the difference between the two halves of the series."""
        return jax.tree.map(lambda x: 0.5 * (x[0] - x[1]), self.halves)

    @property
    def merged_pairs(self) -> "BatchMeans":
        """Of two neighbouring stretches each, nearer to independence; followed by as many without a step, [K]."""
        counts = self.counts.reshape(-1, 2)
        total = jnp.sum(counts, axis=1, dtype=counts.dtype)
        weights = jnp.where(total[:, None] > 0, counts / jnp.maximum(total, 1)[:, None], 0.5)

        def merge(x: Array) -> Array:
            pairs = jnp.einsum("kp,kp...->k...", weights.astype(x.dtype), x.reshape(-1, 2, *x.shape[1:]))
            return jnp.concatenate([pairs, jnp.zeros_like(pairs)])

        return BatchMeans.filled(jax.tree.map(merge, self.means), jnp.concatenate([total, jnp.zeros_like(total)]))

    @property
    def doubled(self) -> "BatchMeans":
        """What a run of twice the steps keeps of this one: the last two thirds, in pairs, are its first stretches."""
        third = BATCHES // 3

        def later(x: Array) -> Array:
            return jnp.concatenate([x[third:], jnp.zeros_like(x[:third])])

        return BatchMeans(jax.tree.map(later, self.means), later(self.counts)).merged_pairs

    def decorrelated(self, relaxations: Array) -> "BatchMeans":
        """As long, and as far from the mean of all, as stretches would be that have forgotten each other.

        Args:
            relaxations: relaxation times of the slowest direction in the run whose last three quarters these are.
        """
        short = relaxations < PAIRED
        stretches = jnp.where(short, BATCHES / 2, BATCHES)
        factor = jnp.sqrt(1.0 + MEMORY * stretches / jnp.maximum(relaxations, 1.0))

        def move(x: Array, pairs: Array, mean: Array) -> Array:
            return mean[None] + factor.astype(x.dtype) * (jnp.where(short, pairs, x) - mean[None])

        pairs = self.merged_pairs
        means = jax.tree.map(move, self.means, pairs.means, self.mean)
        return BatchMeans(means, jnp.where(short, pairs.counts, self.counts))

    def joined(self, other: "BatchMeans") -> "BatchMeans":
        """Stretch by stretch the mean over the steps of both."""
        counts = self.counts + other.counts
        share = other.counts / jnp.maximum(counts, 1)

        def combine(a: Array, b: Array) -> Array:
            p = share.astype(a.dtype).reshape(-1, *[1] * (a.ndim - 1))
            return jnp.where(p > 0, (1 - p) * a + p * b, a)

        return BatchMeans(jax.tree.map(combine, self.means, other.means), counts)

    def combined(self, weights: Array) -> PyTree:
        """Sums over the stretches, with weights [..., K]."""
        return jax.tree.map(lambda x: jnp.tensordot(weights.astype(x.dtype), x, axes=1), self.means)

    def of(self, means: PyTree) -> "BatchMeans":
        """Other means over the same stretches."""
        return BatchMeans(means, self.counts)


def batch_edges(first: Array, stop: Array) -> Array:
    """Where the BATCHES stretches of the steps first <= j < stop begin and end, int32 [K + 1]."""
    i, steps = jnp.arange(BATCHES + 1, dtype=jnp.int32), stop - first
    return first + i * (steps // BATCHES) + i * (steps % BATCHES) // BATCHES


def excess(mean: PyTree, standard_error: PyTree, deviations: float) -> PyTree:
    """A mean as far as sampling does not explain its norm, which becomes sqrt(|mean|^2 - (deviations |s.e.|)^2)."""
    size = norm(mean)
    ratio = deviations * norm(standard_error).astype(size.dtype) / jnp.where(size > 0, size, 1.0)
    return jax.tree.map(jnp.abs, scale(jnp.sqrt(jnp.maximum(1.0 - ratio**2, 0.0)), mean))


def remaining_bias(value: PyTree, moved: BatchMeans, drift: PyTree, standard_error: PyTree) -> PyTree:
    """Estimated size of the bias of an extrapolated mean, per entry.

    An extrapolation that moved the mean by a share r of its size leaves about 2 r^2 of it (one order more in the step;
    the 2 is measured), and never more than it moved. A drift between the halves of the series beyond two standard
    errors says that the start is not forgotten.

    Args:
        value: what is returned, like lam.
        moved: full steps less half steps.
        drift: half of the difference between the two halves of the series.
        standard_error: of the series.
    """
    way = excess(moved.mean, moved.standard_error, 1.0)
    share = jnp.minimum(1.0, 2.0 * norm(way) / jnp.maximum(norm(value), jnp.finfo(norm(way).dtype).tiny))
    return jax.tree.map(jnp.hypot, scale(share, way), excess(drift, standard_error, 2.0))


def extrapolated(lanes: PyTree) -> PyTree:
    """2 x^(s/2) - x^(s) of two lanes [2, ...], which has no bias of first order in s; one lane [1, ...] as it is."""

    def combine(x: Array) -> Array:
        return x[0] if x.shape[0] == 1 else 2 * x[1] - x[0]

    return jax.tree.map(combine, lanes)


def moved_by(lanes: PyTree) -> PyTree:
    """x^(s) - x^(s/2), by which the extrapolation moves x^(s/2); 0 of one lane."""
    return jax.tree.map(lambda x: x[0] - x[-1], lanes)


def influences(
    instance: Instance,
    means: BatchMeans,
    number: Array,
    *,
    key: Array,
) -> BatchMeans:
    """What the noise of w and v does to a hypergradient on every row: hypergradients at means of them.

    All are taken on the same ``number`` minibatches, whose own noise drops out of their differences; what it does to
    the Jacobians makes the spread too large rather than too small, and goes as the minibatches near a whole epoch:
    rows that are drawn with replacement elsewhere are shuffled here.

    Args:
        instance: with its inner step measured.
        means: batch means of (w, v).
        number: of the minibatches.
        key: of their stream.
    """

    def hypergradient(w: PyTree, v: PyTree, problem: BilevelProblem, lam: PyTree, draws: Any) -> PyTree:
        train, val = draws["train"], draws["val"]
        direct = problem.outer_gradients(w, lam, val.batch)[2]
        product = problem.cross_product(w, lam, train.batch, v)
        return axpy(val.weight, direct, scale(train.weight, product))

    def step(total: PyTree, args: Any, _: Array, draws: Any) -> PyTree:
        problem, lam, w, v = args
        return add(total, jax.vmap(partial(hypergradient, problem=problem, lam=lam, draws=draws))(w, v))

    start = jax.tree.map(lambda x: jnp.zeros((BATCHES, *x.shape), x.dtype), instance.lam)
    both = join(train=_unrepeated(instance.train), val=_unrepeated(instance.val))
    args = instance.problem, instance.lam, *means.means
    total = both.fold(step, start, args, key=key, start=0, stop=number)
    return means.of(scale(1.0 / number.astype(jnp.result_type(float)), total))


def _unrepeated(source: Any) -> Any:
    return replace_unchecked(source, sampling="shuffled") if getattr(source, "sampling", None) == "iid" else source


def contraction_rate(
    instance: Instance, w: PyTree, direction: PyTree, eta: Array, number: Array, *, key: Array
) -> Array:
    """Mean logarithm of the growth of a direction u <- u - eta (I - d1Phi^T) u, over the last half of the minibatches.

    The direction to start from is the drift of v: what an average leaves of its noise is in the slowest directions.
    """
    real = norm(direction).dtype
    tiny = jnp.finfo(real).tiny
    start = where(norm(direction) > tiny, direction, jax.tree.map(jnp.ones_like, direction))

    def step(carry: tuple[PyTree, Array], args: Any, j: Array, draw: Any) -> tuple[PyTree, Array]:
        u, total = carry
        problem, w, lam, eta = args
        u = scale(1.0 / jnp.maximum(norm(u), tiny), u)
        u = axpy(-eta * draw.weight, problem.system_product(w, lam, draw.batch, u), u)
        return u, total + jnp.where(j >= number // 2, jnp.log(jnp.maximum(norm(u), tiny)), 0.0)

    carry, args = (start, jnp.zeros((), real)), (instance.problem, w, instance.lam, eta)
    total = instance.train.fold(step, carry, args, key=key, start=0, stop=number)[1]
    return total / (number - number // 2).astype(real)
