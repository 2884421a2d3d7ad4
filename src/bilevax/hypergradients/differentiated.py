"""The derivative of an estimate: that of the outer value in lam is the hypergradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from bilevax.core.codes import Code
from bilevax.core.forward_only import forward_only
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree, is_concrete

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
    if all(map(is_concrete, jax.tree.leaves((lam, starts, rest)))):
        return run(lam, starts, rest)
    estimate = jax.custom_jvp(run)

    def rule(primals: tuple[PyTree, ...], tangents: tuple[PyTree, ...]) -> tuple[Estimate, Estimate]:
        out = estimate(*primals)  # so that the hypergradient can be differentiated again
        leaves, structure = jax.tree.flatten(primals)
        dots = jax.tree.leaves(tangents)
        moving = [i for i, x in enumerate(dots) if not isinstance(x, SymbolicZero) and x.dtype != jax.dtypes.float0]
        in_lam = set(moving) <= set(range(len(jax.tree.leaves(primals[0]))))

        def moved(values: list[Any]) -> list[Any]:
            new = dict(zip(moving, values, strict=True))
            at = [new.get(i, x) for i, x in enumerate(leaves)]
            return [x for x in jax.tree.leaves(run(*jax.tree.unflatten(structure, at))) if _is_float(x)]

        @jax.checkpoint  # else reverse mode would run the algorithm a second time, for what nobody asks
        def push(primals: list[Any], tangents: list[Any]) -> list[Any]:
            out: list[Any] = jax.jvp(moved, (primals,), (tangents,))[1]
            return out

        pushed = iter(push([leaves[i] for i in moving], [dots[i] for i in moving]))
        tangent = jax.tree.map(lambda x: forward_only(next(pushed), _FIRST_ORDER) if _is_float(x) else _none(x), out)
        if in_lam:
            slope = sum(
                jnp.vdot(_sound(out, x), dots[i]).astype(out.outer_value.dtype)
                for i, x in enumerate(jax.tree.leaves(out.value))
                if i in moving
            )
            tangent = tangent._replace(outer_value=jnp.asarray(slope))
        return out, tangent

    estimate.defjvp(rule, symbolic_zeros=True)
    out: Estimate = estimate(lam, jax.lax.stop_gradient(starts), rest)
    return out


def _is_float(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _none(x: Any) -> np.ndarray:
    """The tangent of integers."""
    return np.zeros(x.shape, jax.dtypes.float0)


def _sound(estimate: Estimate, x: Any) -> Any:
    return jnp.where(estimate.code < Code.DIVERGED, x, jnp.full_like(x, jnp.nan))
