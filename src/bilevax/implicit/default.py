"""The linear solver that is used if none is given."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.promotion import usual_promotion
from bilevax.core.trees import PyTree, where
from bilevax.solvers import CG

DENSE = 200
"""Entries of b up to which the matrix is written out."""

STEPS = 1000
"""Products with the operator, at most, for each of the two methods."""

RESTART = 20
"""Vectors of the basis that GMRES keeps."""

SYMMETRIC = 1e-4
"""Relative difference of two numbers that are equal for symmetric operators, beyond which CG is not tried."""

FALL = 0.99
"""GMRES gives up after a cycle that leaves more than this of the residual."""

Operator = Callable[[Array], Array]


class _State(NamedTuple):
    x: Array
    r: Array  # b - A x
    size: Array  # ||r||
    falling: Array
    cycle: Array


def default_solve(matvec: Callable[[PyTree], PyTree], b: PyTree) -> tuple[PyTree, Array]:
    """Solve A x = b: up to 200 unknowns by the dense matrix; beyond, by Krylov methods that take over from one another.

    1. Conjugate gradients, if <b, A^2 b> = ||A b||^2, as for every symmetric A.
    2. Restarted GMRES on what is left: few products where the spectrum lies on one side of zero, as for contractions.
    3. LSMR on what is left: on A^T A, so it is slow but does not stagnate, and knows a singular A by A^T r = 0.

    Assumes nothing of A but that it is square and regular and, beyond 200 unknowns, that its transpose can be had from
    ``matvec``. The dense matrix shows every singular system; LSMR, only one that has no solution.

    Cost: one product for each of up to 200 unknowns; else at most 1,000 products for each of the first two methods and
    2,000 for the last. Source: Hestenes and Stiefel (1952); Saad and Schultz (1986); Fong and Saunders (2011); the
    implementations of the last two are lineax's.

    Returns:
        x (NaN for a singular dense matrix), and OK, BUDGET or SINGULAR.
    """
    vector, tree = _as_vector(b)

    def operator(v: Array) -> Array:
        return _as_vector(matvec(tree(v)))[0]

    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(b))
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
    rows = jnp.max(jnp.abs(matrix), axis=1, initial=0.0)
    matrix = matrix / rows[:, None]
    columns = jnp.max(jnp.abs(matrix), axis=0, initial=0.0)
    matrix = matrix / columns
    answers = jnp.linalg.solve(matrix, jnp.concatenate([(b / rows)[:, None], eye], axis=1))
    condition = jnp.linalg.norm(matrix) * jnp.linalg.norm(answers[:, 1:])
    return jnp.where(condition <= 0.1 / eps, answers[:, 0] / columns, jnp.nan)


def _krylov(operator: Operator, b: Array, eps: float) -> tuple[Array, Array]:
    """The three methods in turn; one that is not needed has a right-hand side of zero, and ends at once."""
    tol = max(1e-10, 10.0 * eps)
    goal = tol * jnp.linalg.norm(b)
    image = operator(b)
    square = jnp.vdot(image, image)
    symmetric = jnp.abs(jnp.vdot(b, operator(image)) - square) <= SYMMETRIC * square
    near = CG(tol=0.5 * tol, max_steps=STEPS).solve(
        operator, jnp.where(symmetric, b, jnp.zeros_like(b)), jnp.ones_like(b)
    )
    x = jnp.where(jnp.all(jnp.isfinite(near.value)), near.value, jnp.zeros_like(b))
    r = b - operator(x)
    better = jnp.linalg.norm(r) <= jnp.linalg.norm(b)
    x, r = jnp.where(better, x, jnp.zeros_like(b)), jnp.where(better, r, b)
    x, r = _gmres(operator, x, r, goal)
    met = jnp.linalg.norm(r) <= goal
    rest, code = _lsmr(operator, jnp.where(met, jnp.zeros_like(r), r), eps)
    return x + rest, code


def _gmres(operator: Operator, x: Array, r: Array, goal: Array) -> tuple[Array, Array]:
    """Cycles of GMRES until the residual meets the goal, stops falling, or the steps are used up: the new x and r."""
    import lineax as lx

    system = lx.FunctionLinearOperator(operator, jax.eval_shape(lambda: r))
    method = lx.GMRES(rtol=0.0, atol=0.0, max_steps=2, restart=RESTART)  # its first step is a dummy: this is one cycle

    def step(state: _State) -> _State:
        x = state.x + state.size * lx.linear_solve(system, state.r / state.size, method, throw=False).value
        r = state.r - operator(x - state.x)
        size = jnp.linalg.norm(r)
        new = _State(x, r, size, size <= FALL * state.size, state.cycle + 1)
        old = state._replace(falling=jnp.asarray(False), cycle=state.cycle + 1)
        return where(size < state.size, new, old)  # not if it is NaN

    def going(state: _State) -> Array:
        return (state.size > goal) & state.falling & (state.cycle < STEPS // RESTART)

    start = _State(x, r, jnp.linalg.norm(r), jnp.asarray(True), jnp.int32(0))
    end = jax.lax.while_loop(going, step, start)
    return end.x, end.r


def _lsmr(operator: Operator, b: Array, eps: float) -> tuple[Array, Array]:
    """A least squares solution, and whether it is a solution."""
    import lineax as lx

    system = lx.FunctionLinearOperator(operator, jax.eval_shape(lambda: b))
    method = lx.LSMR(rtol=10.0 * eps, atol=0.0, max_steps=STEPS, conlim=0.1 / eps)
    out = lx.linear_solve(system, b, method, throw=False)
    stop = out.stats["istop"]  # 1: r = 0; 2: A^T r = 0; 3: the condition number of a singular matrix; 4: the steps
    code = jnp.where(stop == 1, jnp.int32(Code.OK), jnp.where(stop == 4, jnp.int32(Code.BUDGET), int(Code.SINGULAR)))
    return out.value, code


def _as_vector(tree: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """All leaves in one vector, of a dtype that linear algebra has, and the way back."""
    leaves, structure = jax.tree.flatten(tree)
    with usual_promotion():
        kind = jnp.result_type(jnp.result_type(float), *(x.dtype for x in leaves))
    ends = np.cumsum([x.size for x in leaves])[:-1]

    def back(vector: Array) -> PyTree:
        parts = jnp.split(vector, ends)
        return jax.tree.unflatten(
            structure, [part.reshape(x.shape).astype(x.dtype) for part, x in zip(parts, leaves, strict=True)]
        )

    return jnp.concatenate([x.reshape(-1).astype(kind) for x in leaves]), back
