"""The derivative of an estimate: that of the outer value in lam is the hypergradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero

from bilevax.core.codes import Code
from bilevax.core.forward_only import forward_only
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree

_FIRST_ORDER = (
    "reverse mode of an estimate is that of its outer_value in lam alone, which is the hypergradient; for second"
    " derivatives and for what depends on value, w, v, the data or numbers of the problem take jax.jvp or jax.jacfwd,"
    " or central differences of the hypergradient"
)


def differentiated(
    run: Callable[[PyTree, PyTree, PyTree], Estimate], lam: PyTree, starts: PyTree, rest: PyTree
) -> Estimate:
    """run(lam, starts, rest) as a function with derivatives; those in the starts are zero, as of a solution.

    Formula: d outer_value = <value, d lam>, in both modes; NaN where the code is DIVERGED or worse. All else has the
    derivatives of the algorithm that computed it, in forward mode only, and outer_value too where more than lam moves.

    Cost: nothing beside the run in reverse mode; in forward mode that of the algorithm's derivatives.

    Raises:
        ParameterError: reverse mode of anything else than outer_value, or in anything else than lam.
    """
    estimate = jax.custom_jvp(run)

    def rule(primals: tuple[PyTree, ...], tangents: tuple[PyTree, ...]) -> tuple[Estimate, Estimate]:
        out = estimate(*primals)  # by this rule again, so that the hypergradient has derivatives too
        leaves, structure = jax.tree.flatten(primals)
        dots = jax.tree.leaves(tangents)
        moving = [i for i, x in enumerate(dots) if not isinstance(x, SymbolicZero) and x.dtype != jax.dtypes.float0]
        in_lam = set(moving) <= set(range(len(jax.tree.leaves(primals[0]))))

        def floats(values: list[Array]) -> list[Array]:
            new = dict(zip(moving, values, strict=True))
            at = [new.get(i, x) for i, x in enumerate(leaves)]
            return [x for x in jax.tree.leaves(run(*jax.tree.unflatten(structure, at))) if _is_float(x)]

        # A checkpoint: else reverse mode would run the algorithm a second time, for tangents that are not used.
        @jax.checkpoint
        def push_forward(primals: list[Array], tangents: list[Array]) -> list[Array]:
            out: list[Array] = jax.jvp(floats, (primals,), (tangents,))[1]
            return out

        pushed = iter(push_forward([leaves[i] for i in moving], [dots[i] for i in moving]))
        tangent = jax.tree.map(lambda x: forward_only(next(pushed), _FIRST_ORDER) if _is_float(x) else _none(x), out)
        if in_lam:
            # d outer_value = <value, d lam>, a NaN where the estimate failed
            values = [(dots[i], x) for i, x in enumerate(jax.tree.leaves(out.value)) if i in moving]
            sound = [(dot, jnp.where(out.code < Code.DIVERGED, x, jnp.full_like(x, jnp.nan))) for dot, x in values]
            slope = sum(jnp.vdot(x, dot).astype(out.outer_value.dtype) for dot, x in sound)
            tangent = tangent._replace(outer_value=jnp.asarray(slope))
        return out, tangent

    estimate.defjvp(rule, symbolic_zeros=True)
    out: Estimate = estimate(lam, jax.lax.stop_gradient(starts), rest)
    return out


def _is_float(x: Array) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _none(x: Array) -> np.ndarray:
    """The tangent of integers."""
    return np.zeros(x.shape, jax.dtypes.float0)
