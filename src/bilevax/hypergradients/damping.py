"""The bias of a hypergradient that comes of damping the linear system."""

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.instance import Instance, Oracle
from bilevax.core.keys import stream
from bilevax.core.protocols import Draw
from bilevax.core.records import Cost, Count, Estimate
from bilevax.core.trees import PyTree, axpy, norm, scale, sub, zeros_like
from bilevax.hypergradients.joint_sid import measured_step, measuring_calls

LONGEST = 1000
"""Most minibatches of the chain for the bias of a damping."""


def damping_bias(instance: Instance, points: tuple[PyTree, PyTree], *, key: Array) -> tuple[PyTree, Array]:
    """The bias of damping by delta, in absolute value per entry, to first order in delta; and the minibatches read.

    With v = (A + delta I)^-1 g, A = I - d1Phi^T, undamped it would be

        A^-1 g = v + delta A^-1 v = v + delta (A + delta I)^-1 v + O(delta^2),

    of which the first two terms are the first order: |d2Phi^T delta z|, (A + delta I) z = v. The chain for z takes
    4 / (eta delta) minibatches, after which its start is down to e^-4, and is averaged over their last half. Where A
    has curvatures of the size of delta, as where it is indefinite, this is an order of magnitude and no more.

    Args:
        instance: with its inner step measured and a damping.
        points: (w, v) of an estimate.
        key: of the estimate.
    """
    w, v = points
    delta = jnp.asarray(instance.problem.damping).astype(norm(v).dtype)
    eta = measured_step(instance, w, key=stream(key, "measure"))
    # the slowest direction relaxes by eta delta a step, to e^-4 in so many; the mean is of the second half
    number = jnp.clip(4.0 / (eta * jnp.maximum(delta, 1e-6)), 10, LONGEST).astype(jnp.int32)

    def step(
        carry: tuple[PyTree, PyTree], args: tuple[Oracle, PyTree, PyTree, Array], j: Array, draw: Draw
    ) -> tuple[PyTree, PyTree]:
        (z, total), (oracle, w, v, eta) = carry, args
        # z <- z + eta (v - (A_B + delta I) z); the product has the damping in it
        z = axpy(eta * draw.weight, sub(v, oracle.system_product(w, draw.batch, z)), z)
        return z, axpy((j >= number // 2).astype(eta.dtype), z, total)

    start, args = (zeros_like(v), zeros_like(v)), (instance.oracle, w, v, eta)
    total = instance.train.fold(step, start, args, key=stream(key, "linear"), start=0, stop=number)[1]
    # |d2Phi^T delta z|
    mean = scale(delta / (number - number // 2).astype(delta.dtype), total)
    return jax.tree.map(jnp.abs, instance.mean_cross_product(w, mean)), number


def add_damping_bias(estimate: Estimate, instance: Instance, *, key: Array) -> Estimate:
    """The estimate with the bias of the problem's damping in its report, and the cost of that."""
    # Without v there is no linear system to undo the damping of.
    if instance.problem.damping is None or estimate.error is None or estimate.v is None:
        return estimate
    bias, number = damping_bias(instance, (estimate.w, estimate.v), key=key)
    both = jax.tree.map(lambda known, more: jnp.nan_to_num(known) + more, estimate.error.bias, bias)
    train = instance.train
    cost = Cost(
        hvps=Count(number, train.rows_per_batch),
        cross=Count(jnp.int32(1), train.rows),
        measuring=Count(jnp.int32(measuring_calls(train)), train.rows_per_batch),
    )
    return estimate._replace(error=estimate.error._replace(bias=both), cost=estimate.cost.plus(cost))
