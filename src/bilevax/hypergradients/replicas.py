"""The mean of independent estimates, and what their spread says of it."""

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.records import Cost, Count, Error, Estimate, Failure
from bilevax.core.trees import PyTree, norm


def pooled(replicas: Estimate) -> Estimate:
    """One estimate from several with a leading axis: means, the worst code, costs added up.

    The standard error is that of their mean, with one degree of freedom less than there are replicas. They share the
    start and the curvature of the problem: a bias is the mean of what each says of its own.
    """
    value, outer_value, w, v = jax.tree.map(
        lambda x: jnp.mean(x, axis=0), (replicas.value, replicas.outer_value, replicas.w, replicas.v)
    )
    number = replicas.code.shape[0]
    spread = jax.tree.map(lambda x: jnp.std(x, axis=0, ddof=1) / number**0.5, replicas.value)
    worst = jnp.argmax(replicas.code)
    failure = Failure(*(x[worst] for x in replicas.failure))
    error = _error(replicas.error, value, spread, number)
    steps = None if replicas.steps is None else replicas.steps[0]
    cost = _added(replicas.cost)
    return Estimate(value, outer_value, w, v, replicas.code[worst], cost, failure, error, steps=steps)


def _error(one: Error | None, value: PyTree, spread: PyTree, number: int) -> Error:
    unknown = jnp.full_like(norm(spread), jnp.nan)
    nowhere = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), value)
    error = Error(value, spread, nowhere, jnp.int32(number - 1), unknown, unknown, unknown, unknown)
    if one is None:
        return error
    bound = None if one.bound is None else jnp.mean(one.bound)
    return error._replace(
        bias=jax.tree.map(lambda b: jnp.mean(b, axis=0), one.bias),
        contraction=jnp.mean(one.contraction),
        bound=bound,
        visits=jnp.sum(one.visits),
    )


def _added(cost: Cost) -> Cost:
    def total(calls: Array | int) -> Array:
        return jnp.sum(jnp.asarray(calls), dtype=jnp.int32)

    return Cost(*(Count(total(c.calls), c.rows, None if c.reads is None else total(c.reads)) for c in cost))
