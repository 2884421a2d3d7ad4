"""The linear system behind a derivative: solved, checked, and given a code."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.errors import ParameterError
from bilevax.core.trees import PyTree, all_finite, sub
from bilevax.implicit.conditions import check_like
from bilevax.implicit.default import default_solve

Matvec: TypeAlias = Callable[[PyTree], PyTree]
Solve: TypeAlias = Callable[[Matvec, PyTree], PyTree]
CodedSolve: TypeAlias = Callable[[Matvec, PyTree], tuple[PyTree, Array]]

ROUNDING = 16.0
"""A residual of this many units of the coarsest dtype's rounding is never called a failure."""


class Solution(NamedTuple):
    """Attributes: x, as it was returned; its code; ||A x - b|| / ||b||."""

    value: PyTree
    code: Array
    residual: Array


def as_solve(solve: Solve | Any | None) -> CodedSolve:
    """The user's choice as (matvec, b) -> (x, code).

    Raises:
        ParameterError: neither a function, nor a deterministic linear solver of this library, nor None.
    """
    if solve is None:
        return default_solve
    if hasattr(solve, "solve") and not getattr(solve, "stochastic", True):
        return lambda matvec, b: _library_solve(solve, matvec, b)
    if callable(solve):
        return lambda matvec, b: (solve(matvec, b), jnp.int32(Code.OK))
    raise ParameterError(
        f"solve must be a function (matvec, b) -> x, or a linear solver such as bx.GMRES(), got {solve!r}"
    )


def _library_solve(solver: Any, matvec: Matvec, b: PyTree) -> tuple[PyTree, Array]:
    out = solver.solve(matvec, b, jax.tree.map(jnp.ones_like, b))
    return out.value, out.code


def solved(solve: CodedSolve, matvec: Matvec, b: PyTree, residual_tol: float) -> Solution:
    """Solve A x = b and check the result.

    The right-hand side is divided by its largest entry beforehand: the squares of a tiny one would vanish and an
    absolute tolerance would accept x = 0. Zero gives zero, whatever ``solve`` makes of it.
    """
    size = _largest(b)
    usable = (size > 0) & jnp.isfinite(size)
    divisor = jnp.where(usable, size, jnp.ones_like(size))
    unit = jax.tree.map(lambda x: jnp.where(usable, x / divisor.astype(x.dtype), jnp.zeros_like(x)), b)
    x, code = solve(matvec, unit)
    check_like("solve", x, b)
    residual, broken = _check(matvec, x, unit, residual_tol)
    code = _verdict(all_finite(x), code, residual, broken, _tolerance(residual_tol, b))
    zero, ok = size == 0, jnp.int32(Code.OK)
    code = jnp.where(usable, code, jnp.where(zero, ok, jnp.int32(Code.NONFINITE)))
    residual = jnp.where(usable, residual, jnp.where(zero, jnp.zeros_like(residual), jnp.full_like(residual, jnp.nan)))
    x = jax.tree.map(lambda a: jnp.where(zero, jnp.zeros_like(a), divisor.astype(a.dtype) * a), x)
    return Solution(x, code, residual)


def _check(matvec: Matvec, x: PyTree, b: PyTree, residual_tol: float) -> tuple[Array, Array]:
    """The relative residual (NaN where there is none, or none is wanted), and whether the operator is not finite."""
    if np.isinf(residual_tol):
        return jnp.full((), jnp.nan), jnp.asarray(False)
    finite = all_finite(x)
    image = matvec(jax.tree.map(lambda a, c: jnp.where(finite, a, c), x, b))
    size = length(b)
    residual = length(sub(image, b)) / jnp.where(size > 0, size, jnp.ones_like(size))
    return jnp.where(finite, residual, jnp.nan), ~all_finite(image)


def _verdict(finite: Array, code: Array, residual: Array, broken: Array, tol: float) -> Array:
    """The residual decides, where it is wanted; else whether the result is finite, and the solver's code.

    A solver of this library that met a singular or indefinite system, or diverged, may return zero: its result passes
    only with a residual that shows that it is none the worse.
    """
    ok = finite & (code <= Code.STALLED) if np.isinf(tol) else residual <= tol
    failed = jnp.maximum(code, jnp.where(finite, jnp.int32(Code.MAX_STEPS), jnp.int32(Code.SINGULAR)))
    return jnp.where(ok, jnp.int32(Code.OK), jnp.where(broken, jnp.int32(Code.NONFINITE), failed))


def _tolerance(residual_tol: float, b: PyTree) -> float:
    return max(residual_tol, ROUNDING * max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(b)))


def masked(x: PyTree, ok: Array) -> PyTree:
    """The tree, or NaN throughout."""
    return jax.tree.map(lambda a: jnp.where(ok, a, jnp.full_like(a, jnp.nan)), x)


def length(tree: PyTree) -> Array:
    """Euclidean norm over all leaves, in JAX's default float."""
    kind = jnp.result_type(float)
    return jnp.sqrt(functools.reduce(jnp.add, [jnp.sum(jnp.square(x.astype(kind))) for x in jax.tree.leaves(tree)]))


def _largest(tree: PyTree) -> Array:
    """Largest absolute entry over all leaves, NaN if one is."""
    kind = jnp.result_type(float)
    sizes = [jnp.max(jnp.abs(x.astype(kind)), initial=0.0) for x in jax.tree.leaves(tree)]
    return functools.reduce(jnp.maximum, sizes)
