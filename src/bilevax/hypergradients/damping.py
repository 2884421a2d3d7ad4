"""What the damping of the linear system does to a hypergradient."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.instance import Instance
from bilevax.core.keys import stream
from bilevax.core.records import Cost, Count, Estimate
from bilevax.core.trees import PyTree, axpy, norm, scale, sub, zeros_like
from bilevax.hypergradients.joint_sid import measured_step, measuring_calls

LONGEST = 1000
"""Most minibatches that the price of a damping takes."""


def damping_bias(instance: Instance, points: tuple[PyTree, PyTree], *, key: Array) -> tuple[PyTree, Array]:
    """The size of what damping by delta changes, per entry, to first order, and the minibatches spent.

    With v = (A + delta I)^-1 g, A = I - d1Phi^T, undamped it would be

        A^-1 g = v + delta A^-1 v = v + delta (A + delta I)^-1 v + O(delta^2),

    of which the first two terms are the first order: |d2Phi^T delta z|, (A + delta I) z = v. The chain for z takes
    4 / (eta delta) minibatches, which forget its start by e^-4, and is averaged over their last half. Where A has
    curvatures of the size of delta, as where it is indefinite, this is a size and no more.

    Args:
        instance: with its inner step measured and a damping.
        points: (w, v) of an estimate.
        key: of the estimate.
    """
    (w, v), (problem, lam, train, _) = points, instance
    delta = jnp.asarray(problem.damping).astype(norm(v).dtype)
    eta = measured_step(instance, w, key=stream(key, "measure"))
    number = jnp.clip(4.0 / (eta * jnp.maximum(delta, 1e-6)), 10, LONGEST).astype(jnp.int32)

    def step(carry: tuple[PyTree, PyTree], args: Any, j: Array, draw: Any) -> tuple[PyTree, PyTree]:
        z, total = carry
        problem, w, v, lam, eta = args
        z = axpy(eta * draw.weight, sub(v, problem.system_product(w, lam, draw.batch, z)), z)
        return z, axpy((j >= number // 2).astype(eta.dtype), z, total)

    start, args = (zeros_like(v), zeros_like(v)), (problem, w, v, lam, eta)
    total = train.fold(step, start, args, key=stream(key, "linear"), start=0, stop=number)[1]
    mean = scale(delta / (number - number // 2).astype(delta.dtype), total)
    return jax.tree.map(jnp.abs, instance.mean_cross_product(w, mean)), number


def add_damping_bias(estimate: Estimate, instance: Instance, *, key: Array) -> Estimate:
    """The estimate with what the problem's damping does in the bias of its report, and counted."""
    if instance.problem.damping is None or estimate.error is None or estimate.v is None:
        return estimate
    bias, number = damping_bias(instance, (estimate.w, estimate.v), key=key)
    both = jax.tree.map(lambda known, more: jnp.nan_to_num(known) + more, estimate.error.bias, bias)
    error = estimate.error._replace(bias=both)
    train = instance.train
    b = train.rows_per_batch
    spent = Cost(
        hvps=Count(number, b),
        cross=Count(jnp.int32(1), train.rows),
        measuring=Count(jnp.int32(measuring_calls(train)), b),
    )
    return estimate._replace(error=error, cost=estimate.cost.plus(spent))
