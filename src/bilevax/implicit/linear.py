"""The linear system behind a derivative: solved, checked, and given a code."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core import records
from bilevax.core.codes import Code
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import SystemSolver
from bilevax.core.trees import PyTree, all_finite, rounding_unit, scale, shrink, sub, where, zeros_like
from bilevax.implicit.conditions import check_like
from bilevax.implicit.default import default_solve
from bilevax.implicit.vector import as_vector

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


def as_solve(solve: Solve | SystemSolver | None) -> CodedSolve:
    """The user's choice as (matvec, b) -> (x, code).

    Raises:
        ParameterError: neither a function, nor a deterministic linear solver of this library, nor None.
    """
    if solve is None:
        return default_solve
    of_library = getattr(solve, "solve", None)
    if of_library is not None and not getattr(solve, "stochastic", True):
        return partial(_library_solve, of_library)
    if callable(solve):
        return lambda matvec, b: (solve(matvec, b), jnp.int32(Code.OK))
    raise ParameterError(
        f"solve must be a function (matvec, b) -> x, or a linear solver such as bx.GMRES(), got {solve!r}"
    )


def _library_solve(solve: Callable[..., records.Solution], matvec: Matvec, b: PyTree) -> tuple[PyTree, Array]:
    # the metric of an A that is symmetric as it is: 1
    out = solve(matvec, b, jax.tree.map(jnp.ones_like, b))
    return out.value, out.code


def solved(solve: CodedSolve, matvec: Matvec, b: PyTree, residual_tol: float) -> Solution:
    """Solve A x = b and check the result.

    The right-hand side is divided by its largest entry beforehand: the squares of a tiny one would vanish and an
    absolute tolerance would accept x = 0. Zero gives zero, whatever ``solve`` makes of it.
    """
    size = jnp.max(jnp.abs(as_vector(b)[0]), initial=0.0)
    zero, usable = size == 0, (size > 0) & jnp.isfinite(size)
    divisor = jnp.where(usable, size, jnp.ones_like(size))
    # A x = b / max |b_i|, x <- max |b_i| x; a b that is not finite becomes 0 for the solver, and NONFINITE below
    unit = where(usable, shrink(divisor, b), zeros_like(b))
    x, code = solve(matvec, unit)
    check_like("solve", x, b)
    residual, broken = _check(matvec, x, unit, residual_tol)
    tol = max(residual_tol, ROUNDING * rounding_unit(b))
    code = _verdict(all_finite(x), code, residual, broken, tol)
    code = jnp.where(usable, code, jnp.where(zero, jnp.int32(Code.OK), jnp.int32(Code.NONFINITE)))
    residual = jnp.where(usable, residual, jnp.where(zero, 0.0, jnp.nan))
    return Solution(where(zero, zeros_like(x), scale(divisor, x)), code, residual)


def _check(matvec: Matvec, x: PyTree, b: PyTree, residual_tol: float) -> tuple[Array, Array]:
    """The relative residual (NaN where there is none, or none is wanted), and whether the operator is not finite."""
    if np.isinf(residual_tol):
        return jnp.full((), jnp.nan), jnp.asarray(False)
    finite = all_finite(x)
    # A b where x is not finite: A x would be NaN whatever A is
    image = matvec(where(finite, x, b))
    size, left = (jnp.linalg.norm(as_vector(tree)[0]) for tree in (b, sub(image, b)))
    residual = left / jnp.where(size > 0, size, jnp.ones_like(size))
    return jnp.where(finite, residual, jnp.nan), ~all_finite(image)


def _verdict(finite: Array, code: Array, residual: Array, broken: Array, tol: float) -> Array:
    """The residual decides, where it is wanted; else whether the result is finite, and the solver's code.

    A solver of this library that met a singular or indefinite system, or diverged, may return zero: its result passes
    only with a residual that shows that it is none the worse.
    """
    # tol = inf: nothing is known of the residual
    ok = finite & (code <= Code.STALLED) if np.isinf(tol) else residual <= tol
    failed = jnp.maximum(code, jnp.where(finite, jnp.int32(Code.MAX_STEPS), jnp.int32(Code.SINGULAR)))
    return jnp.where(ok, jnp.int32(Code.OK), jnp.where(broken, jnp.int32(Code.NONFINITE), failed))


def masked(x: PyTree, ok: Array) -> PyTree:
    """The tree, or NaN throughout."""
    return where(ok, x, jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), x))
