"""The error of a hypergradient from every row: an SVRG iteration from (w, v) to where both equations hold."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.instance import Instance, Oracle
from bilevax.core.protocols import Draw
from bilevax.core.trees import PyTree, add, axpy, per_row, row, scale, sub, zeros
from bilevax.data import join
from bilevax.hypergradients.batch_means import BatchMeans
from bilevax.hypergradients.batches import each
from bilevax.hypergradients.joint_chains import moved
from bilevax.hypergradients.resolution import signs, unresolved

PARTS = 16
"""Consecutive parts of the iteration; it is taken to have arrived in the last half of them."""

LEAST_RESOLVED = 0.1
"""Least fraction of the slowest direction that the iteration is taken to have gone."""

Carry: TypeAlias = tuple[tuple[PyTree, PyTree], PyTree, Array]
"""(w', v'), sums of h(w', v') - h(w, v) over each part [PARTS, ...], and their numbers [PARTS]."""


class Way(NamedTuple):
    """An iteration from (w, v) to where both equations of every row hold.

    Attributes:
        value: the hypergradient at (w, v), on every row.
        means: of h(w', v') - h(w, v) over the parts.
        resolved: fraction of the slowest direction that it has gone, 1 - exp(rate steps).
        lost: whether rounding hides a step of the map (:func:`~bilevax.hypergradients.resolution.unresolved`).
    """

    value: PyTree
    means: BatchMeans
    resolved: Array
    lost: Array

    @property
    def truth(self) -> PyTree:
        """The hypergradient where both equations hold, approximately."""
        # h + (mean of the last half) / resolved: the slowest direction is extrapolated to its end
        return axpy(1.0 / self.resolved, self._part(PARTS // 2, PARTS).mean, self.value)

    @property
    def standard_error(self) -> PyTree:
        """Of ``truth``: of the mean of the last half, and its distance from that of the quarter before."""
        # hypot(error of the late mean, late - early): noise, and what has not arrived
        early, late = self._part(PARTS // 4, PARTS // 2), self._part(PARTS // 2, PARTS)
        spread = jax.tree.map(jnp.hypot, late.standard_error, sub(late.mean, early.mean))
        return scale(1.0 / self.resolved, spread)

    @property
    def degrees_of_freedom(self) -> Array:
        """Of ``standard_error``."""
        return self._part(PARTS // 2, PARTS).degrees_of_freedom

    def _part(self, first: int, stop: int) -> BatchMeans:
        return BatchMeans(*jax.tree.map(lambda x: x[first:stop], self.means))


def way_on_every_row(
    instance: Instance, points: tuple[PyTree, PyTree], steps: tuple[Array, Array], rate: Array, *, key: Array
) -> Way:
    """Variance-reduced steps of w and v from a snapshot (w, v) on (SVRG: Johnson, Zhang 2013).

        w' <- w' + eta (Phi_B(w') - Phi_B(w) + Phi(w) - w') ,   v' likewise,

    goes from (w, v) to where both equations of every row hold. The change of the hypergradient on that way, on the same
    minibatches, is its error, wherever that comes from: noise, a start, long steps, a Jacobian with kinks.

    Cost: a gradient, a Hessian-vector product and a cross product on every row of train, an outer gradient on every row
    of val; two of each on every minibatch.

    Args:
        instance: with its inner step measured, its minibatches independent.
        points: (w, v).
        steps: (eta, number of minibatches).
        rate: mean logarithm of the factor by which a step shrinks the slowest direction.
        key: of their stream.
    """
    (w, v), (eta, number) = points, steps
    # Phi(w), d1Phi^T v, d2Phi^T v, E and its gradients, on every row
    image, pullback = instance.mean_adjoint(w)
    vectors = jax.tree.map(lambda x, u: jnp.concatenate([x[None], u]), v, signs(v))
    images, crossed = each(instance.train.example())(pullback, vectors)
    by_w, by_lam = row(images, 0), row(crossed, 0)
    _, g, direct = instance.mean_outer_gradients(w)
    lost = unresolved(row(vectors, slice(1, 3)), row(images, slice(1, 3)), g)
    # Phi(w) - w and grad_1 E + d1Phi^T v - v, on every row
    residuals = sub(image, w), sub(add(g, by_w), v)

    def step(
        carry: Carry, args: tuple[Oracle, tuple[PyTree, PyTree], PyTree, Array, Array], j: Array, draws: dict[str, Draw]
    ) -> Carry:
        (here, totals, counts), (oracle, snapshot, residuals, eta, number) = carry, args

        def at(pair: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree, PyTree]:
            return moved(oracle, None, draws, *pair, eta)[:3]

        # the same minibatch at (w', v') and at the snapshot: Phi_B(w') - Phi_B(w) + w, and eta times the residuals
        pairs = jax.tree.map(lambda *x: jnp.stack(x), here, snapshot)
        *new, x = each((draws["train"].batch, draws["val"].batch))(at, pairs)
        change = jax.tree.map(lambda new, at: new[0] - new[1] + at, tuple(new), snapshot)
        # step j < number is in part ceil((j + 1) PARTS / number) - 1, so that the last of them ends the last part
        part = ((j + 1) * PARTS - 1) // number
        # h_B(w', v') - h_B(w, v)
        totals = jax.tree.map(lambda total, x: total.at[part].add(x[0] - x[1]), totals, x)
        # (w', v') <- snapshot + change of the minibatch's move + eta (residual on every row)
        return axpy(eta, residuals, change), totals, counts.at[part].add(1)

    start, args = (
        (points, zeros(instance.lam, PARTS), jnp.zeros(PARTS, jnp.int32)),
        (instance.oracle, points, residuals, eta, number),
    )
    both = join(train=instance.train, val=instance.val)
    _, totals, counts = both.fold(step, start, args, key=key, start=0, stop=number)
    means = jax.tree.map(lambda x: x / per_row(jnp.maximum(counts, 1), x), totals)
    # 1 - exp(rate steps)
    resolved = jnp.maximum(1.0 - jnp.exp(rate * number.astype(rate.dtype)), LEAST_RESOLVED)
    return Way(add(direct, by_lam), BatchMeans(means, counts), resolved, lost)
