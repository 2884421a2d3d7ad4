"""What can be known of a failure beside its code; computed only where there was one."""

from collections.abc import Callable
from functools import partial

import jax
import jax.extend
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import replace
from bilevax.core.records import Failure
from bilevax.core.trees import PyTree, all_finite, largest, sub, where
from bilevax.problems.gradient_step import GradientStep
from bilevax.problems.problem import Problem, adjoint_product, inner_image
from bilevax.problems.proximal_step import ProximalStep
from bilevax.solvers.stability import growth, suspicion_is_proof

PRODUCTS = 50
"""Products with the Hessian from which its largest eigenvalue is estimated."""


def diagnosed(
    code: Array, failure: Failure, problem: Problem, points: tuple[PyTree, PyTree], batch: PyTree, grown: PyTree
) -> Failure:
    """The failure, with its ``finite``, ``relative_step`` and ``curvature`` filled in.

    Cost: none without a failure; else the value of the inner map, or PRODUCTS Hessian-vector products, on the batch.

    Args:
        code: of the estimate.
        failure: its stage and step.
        problem: with its inner step measured.
        points: (w, lam), the last finite ones.
        batch: every row of train.
        grown: a direction that grew, like w.
    """
    if suspicion_is_proof():
        return failure
    w, lam = points
    inner = failure.stage == Failure.stage_of("inner")

    def look(i: Array, _: Array) -> Array:
        x = where(i == 0, w, grown)  # always w; what does not depend on i would be computed even if the loop is empty
        image = all_finite(inner_image(problem, x, lam, batch))
        loss = getattr(problem.inner_map, "loss", None)
        return jnp.where(inner, False if loss is None else jnp.isfinite(loss(x, lam, batch)), image)

    in_map = (code == Code.NONFINITE) & (failure.stage != Failure.stage_of("outer"))
    finite = jax.lax.fori_loop(0, jnp.where(in_map, 1, 0), look, failure.finite)
    if not problem.has_loss:
        return failure._replace(finite=finite)

    def hessian(u: PyTree) -> PyTree:
        """H s u, where s is the step."""
        return sub(u, adjoint_product(problem, w, lam, batch, u))

    grew = (code == Code.NOT_CONTRACTIVE) | (code == Code.DIVERGED)
    relative = jnp.exp(growth(hessian, grown, jnp.where(grew, PRODUCTS, 0)).rate)
    relative = jnp.where(grew, relative, 0.0).astype(failure.relative_step.dtype)
    step = largest(problem.metric(w, lam)).astype(relative.dtype)
    return failure._replace(finite=finite, relative_step=relative, curvature=relative / step)


def unused_leaves(problem: Problem, w: PyTree, lam: PyTree, batches: tuple[PyTree, PyTree]) -> PyTree:
    """A tree like lam: True where a leaf enters neither function, as their jaxprs have it. Costs a trace of each."""
    inner_map, (train, val) = problem.inner_map, batches
    if isinstance(inner_map, GradientStep | ProximalStep):
        inner_map = replace(inner_map, step_size=1.0)  # the fixed point does not depend on it, though it may on lam

    def functions(lam: PyTree) -> tuple[PyTree, Array]:
        return inner_map(w, lam, train), partial(problem.outer_loss)(w, lam, val)

    structure = jax.tree.structure(lam)
    return jax.tree.unflatten(structure, [jnp.asarray(not used) for used in _inputs_used(functions, lam)])


def _inputs_used(fn: Callable[[PyTree], PyTree], x: PyTree) -> list[bool]:
    """Whether each leaf of x is on the way to a result."""
    jaxpr = jax.make_jaxpr(fn)(x).jaxpr
    wanted = {v for v in jaxpr.outvars if not isinstance(v, jax.extend.core.Literal)}
    for eqn in reversed(jaxpr.eqns):
        if wanted.intersection(eqn.outvars):
            wanted.update(v for v in eqn.invars if not isinstance(v, jax.extend.core.Literal))
    return [v in wanted for v in jaxpr.invars]
