"""The linear solver that is used if none is given."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.promotion import usual_promotion
from bilevax.core.trees import PyTree, rounding_unit
from bilevax.implicit.vector import as_vector

DENSE = 200
"""Entries of b up to which the matrix is written out."""

STEPS = 1000
"""Products with the operator, at most, of conjugate residuals; and with it and its transpose, of least squares."""

KEPT = 20
"""Directions of conjugate residuals that a new one is orthogonal to."""

FALL = 0.99
"""Conjugate residuals give up where KEPT steps leave more than this of the residual."""

FLAT = 100.0
"""Units of rounding, relative to ||A|| ||r||, below which A^T r is zero."""

Operator = Callable[[Array], Array]


class _Residuals(NamedTuple):
    x: Array
    r: Array  # b - A x
    size: Array  # ||r||
    p: Array  # [KEPT, n], the last directions
    q: Array  # [KEPT, n], A p, orthonormal
    mark: Array  # ||r|| some steps ago
    falling: Array
    step: Array


class _Squares(NamedTuple):
    x: Array
    r: Array  # b - A x
    s: Array  # A^T r
    p: Array
    top: Array  # largest ||A p|| / ||p|| met, at most the norm of A
    step: Array


def default_solve(matvec: Callable[[PyTree], PyTree], b: PyTree) -> tuple[PyTree, Array]:
    """Solve A x = b: up to 200 unknowns by the dense matrix; beyond, by two Krylov methods of which one goes on.

    1. Generalised conjugate residuals, truncated: for a symmetric A as good as conjugate gradients, although none is
       assumed; few products where the spectrum lies on one side of zero, as for contractions.
    2. Conjugate gradients for least squares on what is left: on A^T A, so they are slow but do not stagnate, and know a
       singular A by A^T r = 0.

    Assumes nothing of A but that it is square and regular and, beyond 200 unknowns, that its transpose can be had from
    ``matvec``. The dense matrix shows every singular system; the Krylov methods, only one that has no solution.

    Cost: one product for each of up to 200 unknowns; else at most 1,000 products for the first method and 2,000 for the
    second. Source: Eisenstat, Elman and Schultz (1983); Hestenes and Stiefel (1952).

    Returns:
        x (NaN for a singular dense matrix), and OK, MAX_STEPS or SINGULAR.
    """
    vector, tree = as_vector(b)

    def operator(v: Array) -> Array:
        return as_vector(matvec(tree(v)))[0]

    eps = rounding_unit(b)
    with usual_promotion():
        if vector.size <= DENSE:
            x = _dense(operator, vector, eps)
            code = jnp.where(jnp.all(jnp.isfinite(x)), jnp.int32(Code.OK), jnp.int32(Code.SINGULAR))
        else:
            x, code = _krylov(operator, vector, eps)
    return tree(x), code


def _dense(operator: Operator, b: Array, eps: float) -> Array:
    """The solution, or NaN if the condition number says that rounding leaves nothing of it.

    The matrix is equilibrated first: rows and columns of different units do not make it singular.
    """
    eye = jnp.eye(b.size, dtype=b.dtype)
    matrix = jax.lax.map(operator, eye).T  # not vmap, which functions with a custom_vjp have only one way
    # R^-1 A C^-1, rows and then columns of largest entry 1; x = C^-1 (R^-1 A C^-1)^-1 R^-1 b
    rows = jnp.max(jnp.abs(matrix), axis=1, initial=0.0)
    matrix = matrix / rows[:, None]
    columns = jnp.max(jnp.abs(matrix), axis=0, initial=0.0)
    matrix = matrix / columns
    solved = jnp.linalg.solve(matrix, jnp.concatenate([(b / rows)[:, None], eye], axis=1))
    # the condition number in the Frobenius norm, ||M|| ||M^-1||
    condition = jnp.linalg.norm(matrix) * jnp.linalg.norm(solved[:, 1:])
    return jnp.where(condition <= 0.1 / eps, solved[:, 0] / columns, jnp.nan)


def _krylov(operator: Operator, b: Array, eps: float) -> tuple[Array, Array]:
    """The two methods in turn, for A in units in which ||A b|| = ||b||, so that no square over- or underflows.

    The second has a right-hand side of zero where it is not needed, and ends at once.
    """
    goal = max(1e-10, 10.0 * eps) * jnp.linalg.norm(b)
    # A / (||A b|| / ||b||)
    size = jnp.linalg.norm(operator(b)) / jnp.linalg.norm(b)
    size = jnp.where((size > 0) & jnp.isfinite(size), size, 1.0)

    def unit(v: Array) -> Array:
        return operator(v) / size

    x = _conjugate_residuals(unit, b, goal)
    r = b - unit(x)
    # b = A x + r, then r = A rest: x + rest
    better = jnp.linalg.norm(r) <= jnp.linalg.norm(b)  # not if it is NaN
    x, r = jnp.where(better, x, 0.0), jnp.where(better, r, b)
    rest, code = _least_squares(unit, r, goal, eps)
    return (x + rest) / size, code


def _conjugate_residuals(operator: Operator, b: Array, goal: Array) -> Array:
    """The iterate x of steps that each lower ||b - A x|| the most along p, with A p orthogonal to the last A p."""

    def step(state: _Residuals) -> _Residuals:
        # p = r less its part along the last q = A p, by Gram-Schmidt, twice: once leaves rounding
        p, q = state.r, operator(state.r)
        for _ in range(2):
            h = state.q @ q
            p, q = p - h @ state.p, q - h @ state.q
        length = jnp.linalg.norm(q)
        p, q = p / length, q / length
        # x <- x + <q, r> p,  r <- r - <q, r> q
        along = jnp.vdot(q, state.r)
        x, r = state.x + along * p, state.r - along * q
        size, place = jnp.linalg.norm(r), state.step % KEPT
        last = place == KEPT - 1
        falling = (size < state.size) & (~last | (size <= FALL * state.mark))  # not if it is NaN
        kept = state.p.at[place].set(p), state.q.at[place].set(q)
        return _Residuals(x, r, size, *kept, jnp.where(last, size, state.mark), falling, state.step + 1)

    def keep_going(state: _Residuals) -> Array:
        return (state.size > goal) & state.falling & (state.step < STEPS)

    none, size = jnp.zeros((KEPT, b.size), b.dtype), jnp.linalg.norm(b)
    start = _Residuals(jnp.zeros_like(b), b, size, none, none, size, jnp.asarray(True), jnp.int32(0))
    return jax.lax.while_loop(keep_going, step, start).x


def _least_squares(operator: Operator, b: Array, goal: Array, eps: float) -> tuple[Array, Array]:
    """The x of the least ||b - A x||, and whether it is a solution."""
    transposed = jax.linear_transpose(operator, b)
    tiny = jnp.finfo(b.dtype).tiny

    def step(state: _Squares) -> _Squares:
        q, square = operator(state.p), jnp.vdot(state.s, state.s)
        # rate = ||A^T r||^2 / ||A p||^2,  x <- x + rate p,  r <- r - rate A p
        rate = square / jnp.maximum(jnp.vdot(q, q), tiny)
        x, r = state.x + rate * state.p, state.r - rate * q
        (s,) = transposed(r)
        # p <- s + (||s||^2 / ||s before||^2) p,  s = A^T r
        p = s + jnp.vdot(s, s) / jnp.maximum(square, tiny) * state.p
        top = jnp.maximum(state.top, jnp.linalg.norm(q) / jnp.linalg.norm(state.p))
        return _Squares(x, r, s, p, top, state.step + 1)

    def flat(state: _Squares) -> Array:
        # ||A^T r|| <= 100 eps ||A|| ||r||
        return jnp.logical_not(jnp.linalg.norm(state.s) > FLAT * eps * state.top * jnp.linalg.norm(state.r))

    def keep_going(state: _Squares) -> Array:
        return jnp.logical_and(jnp.linalg.norm(state.r) > goal, ~flat(state) & (state.step < STEPS))

    (s,) = transposed(b)
    top = jnp.linalg.norm(s) / jnp.maximum(jnp.linalg.norm(b), tiny)
    end = jax.lax.while_loop(keep_going, step, _Squares(jnp.zeros_like(b), b, s, s, top, jnp.int32(0)))
    failed = jnp.where(flat(end), jnp.int32(Code.SINGULAR), jnp.int32(Code.MAX_STEPS))
    return end.x, jnp.where(jnp.linalg.norm(end.r) <= goal, jnp.int32(Code.OK), failed)
