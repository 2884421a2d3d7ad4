"""What every row says of a hypergradient: where w and v go from a point, free of noise, and what that does to it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.instance import Instance
from bilevax.core.trees import PyTree, add, axpy, scale, sub
from bilevax.data import join
from bilevax.hypergradients.batch_means import BatchMeans
from bilevax.hypergradients.batches import each
from bilevax.hypergradients.joint_chains import moved

STRETCHES = 16
"""Of the way to where both equations hold, in whose last half it is held to be."""

LEAST_RESOLVED = 0.1
"""Share, at least, of the slowest direction that the way is taken to have made."""


class Way(NamedTuple):
    """From (w, v) to where both equations of every row hold.

    Attributes:
        value: the hypergradient at (w, v), on every row.
        means: of h(w', v') - h(w, v) over the stretches of the way.
        resolved: share of the slowest direction that it made.
    """

    value: PyTree
    means: BatchMeans
    resolved: Array

    @property
    def truth(self) -> PyTree:
        """The hypergradient where both equations hold, about."""
        return axpy(1.0 / self.resolved, self._part(STRETCHES // 2, STRETCHES).mean, self.value)

    @property
    def doubt(self) -> PyTree:
        """Standard error of ``truth``: what the stretches of the last half differ by, and the half before from it."""
        early, late = self._part(STRETCHES // 4, STRETCHES // 2), self._part(STRETCHES // 2, STRETCHES)
        spread = jax.tree.map(jnp.hypot, late.standard_error, sub(late.mean, early.mean))
        return scale(1.0 / self.resolved, spread)

    @property
    def degrees_of_freedom(self) -> Array:
        """Of freedom of ``doubt``."""
        return self._part(STRETCHES // 2, STRETCHES).degrees_of_freedom

    def _part(self, first: int, stop: int) -> BatchMeans:
        return BatchMeans(*jax.tree.map(lambda x: x[first:stop], self.means))


def way_on_every_row(
    instance: Instance,
    points: tuple[PyTree, PyTree],
    steps: tuple[Array, Array],
    rate: Array,
    *,
    key: Array,
) -> Way:
    """Where minibatches, whose noise every row takes away, lead w and v (Johnson, Zhang 2013).

        w' <- w' + eta (Phi_B(w') - Phi_B(w) + Phi(w) - w') ,   v' likewise,

    goes from (w, v) to where both equations of every row hold. What that does to the hypergradient, on the same
    minibatches, is what is left of it, whatever it comes from: noise, a start, long steps, a Jacobian with kinks.

    Cost: a gradient, a Hessian-vector product and a cross product on every row of train, an outer gradient on every row
    of val; two of each on every minibatch.

    Args:
        instance: with its inner step measured, its minibatches independent.
        points: (w, v).
        steps: (eta, number of minibatches).
        rate: mean logarithm of what a step leaves of the slowest direction.
        key: of their stream.
    """
    (problem, lam, train, val), (w, v), (eta, number) = instance, points, steps
    image, pullback = instance.mean_adjoint(w)
    by_w, by_lam = pullback(v)
    _, g, direct = instance.mean_outer_gradients(w)
    residuals = sub(image, w), sub(add(g, by_w), v)

    def step(carry: Any, args: Any, j: Array, draws: Any) -> Any:
        (w, v), totals, counts = carry
        problem, lam, here, residuals, eta, number = args

        def at(pair: tuple[PyTree, PyTree]) -> Any:
            return moved(problem, lam, None, draws, *pair, eta)[:3]

        pairs = jax.tree.map(lambda *x: jnp.stack(x), (w, v), here)
        *new, x = each((draws["train"].batch, draws["val"].batch))(at, pairs)
        change = jax.tree.map(lambda new, at: new[0] - new[1] + at, tuple(new), here)
        place = ((j + 1) * STRETCHES - 1) // number
        totals = jax.tree.map(lambda total, x: total.at[place].add(x[0] - x[1]), totals, x)
        return axpy(eta, residuals, change), totals, counts.at[place].add(1)

    none = jax.tree.map(lambda x: jnp.zeros((STRETCHES, *x.shape), x.dtype), lam)
    start, args = (points, none, jnp.zeros(STRETCHES, jnp.int32)), (problem, lam, points, residuals, eta, number)
    _, totals, counts = join(train=train, val=val).fold(step, start, args, key=key, start=0, stop=number)

    def mean(x: Array) -> Array:
        return x / jnp.maximum(counts, 1).astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))

    resolved = jnp.maximum(1.0 - jnp.exp(rate * number.astype(rate.dtype)), LEAST_RESOLVED)
    value = add(direct, by_lam)
    return Way(value, BatchMeans(jax.tree.map(mean, totals), counts), resolved)
