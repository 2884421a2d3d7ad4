"""The cause of a failure beside its code; computed only where there was one."""

from collections.abc import Callable

import jax
import jax.extend
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.instance import Instance
from bilevax.core.records import Estimate, Failure
from bilevax.core.trees import PyTree, all_finite, largest, sub, where
from bilevax.linalg.power import growth_rate

PRODUCTS = 50
"""Products with the Hessian from which its largest eigenvalue is estimated."""


def explain_failure(estimate: Estimate, instance: Instance, w0: PyTree) -> Estimate:
    """The estimate with the ``finite``, ``relative_step`` and ``curvature`` of its failure filled in.

    Cost: none without a failure; else the value of the inner map, or PRODUCTS Hessian-vector products, on every row.

    Args:
        estimate: its w and v the last finite ones.
        instance: with its inner step measured.
        w0: where w started.
    """
    problem, (w, code, failure) = instance.problem, (estimate.w, estimate.code, estimate.failure)
    inner = failure.stage == Failure.stage_of("inner")
    # a direction that grew: of w that from its start, of v itself
    grown = sub(w, w0)
    if estimate.v is not None:
        grown = where(inner, grown, estimate.v)

    def is_finite(i: Array, _: Array) -> Array:
        # Always w: what does not depend on i would be computed before the loop, be that empty or not.
        x = where(i == 0, w, grown)
        image = all_finite(instance.mean_image(x, instance.lam))
        loss = jnp.isfinite(instance.mean_inner_loss(x)) if problem.has_loss else jnp.asarray(False)
        return jnp.where(inner, loss, image)

    # A loop of one step or none, and no cond: under vmap a cond would compute both of its branches.
    in_map = (code == Code.NONFINITE) & (failure.stage != Failure.stage_of("outer"))
    finite = jax.lax.fori_loop(0, jnp.where(in_map, 1, 0), is_finite, failure.finite)
    failure = failure._replace(finite=finite)
    if not problem.has_loss:
        return estimate._replace(failure=failure)

    def hessian(u: PyTree) -> PyTree:
        """H s u, where s is the step."""
        return sub(u, instance.mean_adjoint_product(w, u))

    # s L = ||(H s)^50 u||^(1/50), L = s L / s
    grew = (code == Code.NOT_CONTRACTIVE) | (code == Code.DIVERGED)
    relative = jnp.exp(growth_rate(hessian, grown, jnp.where(grew, PRODUCTS, 0)).rate)
    relative = jnp.where(grew, relative, 0.0).astype(failure.relative_step.dtype)
    step = largest(problem.metric(w, instance.lam)).astype(relative.dtype)
    return estimate._replace(failure=failure._replace(relative_step=relative, curvature=relative / step))


def unused_leaves(instance: Instance, w: PyTree) -> PyTree:
    """A tree like lam: True where a leaf enters neither function, as their jaxprs have it. Costs a trace of each."""
    problem = instance.problem.with_unit_step()  # the fixed point does not depend on the step, though that may on lam

    def functions(lam: PyTree) -> tuple[PyTree, Array]:
        at = instance._replace(problem=problem, lam=lam)
        return at.mean_image(w, lam), at.mean_outer_loss(w)

    structure = jax.tree.structure(instance.lam)
    return jax.tree.unflatten(structure, [jnp.asarray(not used) for used in _inputs_used(functions, instance.lam)])


def _inputs_used(fn: Callable[[PyTree], PyTree], x: PyTree) -> list[bool]:
    """Whether each leaf of x is on the way to a result."""
    # backwards from the results: the inputs of an equation are used if one of its outputs is
    jaxpr = jax.make_jaxpr(fn)(x).jaxpr
    wanted = {v for v in jaxpr.outvars if not isinstance(v, jax.extend.core.Literal)}
    for eqn in reversed(jaxpr.eqns):
        if wanted.intersection(eqn.outvars):
            wanted.update(v for v in eqn.invars if not isinstance(v, jax.extend.core.Literal))
    return [v in wanted for v in jaxpr.invars]
