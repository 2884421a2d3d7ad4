"""GMRES on the full batch, for systems that are not symmetric."""

from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import at_least_one, check_fields, config, nonnegative, positive, static
from bilevax.core.records import Solution, SolverError
from bilevax.core.trees import (
    Operator,
    PyTree,
    add,
    all_finite,
    at_least_single,
    axpy,
    entries,
    leaf_sum,
    norm,
    scale,
    shrink,
    sub,
    where,
    zeros,
    zeros_like,
)
from bilevax.solvers.scaling import FLAT, unit_system

FALL = 0.999
"""A cycle that leaves more than this of the residual is the last."""


class _Basis(NamedTuple):
    """Orthonormal q_0, ..., q_j of the Krylov space of A and r, with A q_i = sum_l H_li q_l for i < j."""

    q: PyTree  # leaves [restart + 1, ...], zero beyond j
    H: Array  # [restart + 1, restart], zero beyond column j - 1
    u: Array  # [restart + 1], u_0 = 1 and u'H = 0: the least residual in the space is ||r|| / ||u||
    j: Array
    top: Array  # largest ||A q_i|| met, at most the norm of A
    closed: Array  # A q_{j - 1} lies in the space


class _State(NamedTuple):
    v: PyTree
    r: PyTree  # b - A v
    size: Array  # ||r||
    top: Array
    steps: Array
    calls: Array
    code: Array
    least: Array  # smallest singular value of A on a space


@config
class GMRES:
    """Generalised minimal residuals for (I - d1Phi^T) v = g, on every row of train.

    v minimises ||g - A v|| over v_0 plus the space of r, A r, A^2 r, ..., which is built anew from the residual r once
    it has ``restart`` dimensions.

    Assumes nothing of the operator but that it is regular; stops at ||r|| <= tol ||g||, with MAX_STEPS after
    ``max_steps``. Where a cycle lowers the residual no more it is SINGULAR if A maps a direction of the space to
    rounding (v has no component along it), else STALLED, as restarts can be. Cost: one full Hessian-vector product a
    step, one a cycle, and one for a given start; memory of ``restart`` + 1 vectors. Source: Saad and Schultz (1986);
    the residual before the end of a cycle by Ayachour (2003).

    Args:
        tol: relative residual, positive. Default 1e-6.
        max_steps: a count of at least 1. Default 1000.
        restart: vectors of the basis that are kept. Default 50; a changed one compiles anew.
        damping: delta >= 0 solves (A + delta I) v = g instead. Default 0.

    Examples:
        >>> import bilevax as bx
        >>> bx.GMRES(restart=20)
        GMRES(tol=1e-06, max_steps=1000, restart=20, damping=0.0)
    """

    stochastic: ClassVar[Literal[False]] = False
    needs_symmetry: ClassVar[bool] = False

    tol: float = 1e-6
    max_steps: int = 1000
    restart: int = static(50)
    damping: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, tol=positive, max_steps=at_least_one, restart=at_least_one, damping=nonnegative)

    def solve(self, matvec: Operator, g: PyTree, metric: PyTree | None, start: PyTree | None = None) -> Solution:
        """Solve A v = g, where v -> A v = (I - d1Phi^T) v; ``start`` is v_0, None for 0."""

        def operator(v: PyTree) -> PyTree:
            return axpy(self.damping, v, matvec(v))

        scaled, b, v = unit_system(g, start)
        r = b if start is None else sub(b, operator(v))
        size = norm(r)
        tol = jnp.asarray(self.tol).astype(size.dtype)
        restart = min(self.restart, entries(g))

        def keep_going(state: _State) -> Array:
            return (state.size > tol) & (state.steps < self.max_steps) & (state.code == Code.OK)

        def cycle(state: _State) -> _State:
            room = jnp.minimum(self.max_steps - state.steps, restart)
            basis = _krylov(operator, state.r, restart, (tol / state.size, room, state.top))
            # v <- v + argmin over the space of ||r - A x||; the residual anew, as the recursion loses digits
            move, deficient, least = _least_squares(basis, state.size)
            v = add(state.v, move)
            r = sub(b, operator(v))
            size = norm(r)
            # a cycle that leaves more than .999 of the residual
            stuck = (size > tol) & ~(size <= FALL * state.size)
            code = jnp.where(deficient, jnp.int32(Code.SINGULAR), jnp.int32(Code.STALLED))
            code = jnp.where(stuck, code, jnp.int32(Code.OK))
            code = jnp.where(jnp.isfinite(size), code, jnp.int32(Code.NONFINITE))
            # a cycle that rounding made worse is taken back
            v, r, size = where(size < state.size, (v, r, size), (state.v, state.r, state.size))
            least = jnp.minimum(state.least, least)
            return _State(v, r, size, basis.top, state.steps + basis.j, state.calls + basis.j + 1, code, least)

        zero, calls = jnp.int32(0), jnp.int32(start is not None)
        begin = _State(v, r, size, jnp.zeros_like(size), zero, calls, jnp.int32(Code.OK), jnp.full_like(size, jnp.inf))
        end = jax.lax.while_loop(keep_going, cycle, begin)
        code = jnp.where((end.code == Code.OK) & (end.size > tol), jnp.int32(Code.MAX_STEPS), end.code)
        value = scale(scaled, end.v)
        code = jnp.where(all_finite((value, end.size)), code, jnp.int32(Code.NONFINITE))
        error = SolverError(None, end.least, end.top)
        return Solution(where(all_finite(value), value, zeros_like(g)), code, end.calls, end.steps, error=error)


def _krylov(operator: Operator, r: PyTree, restart: int, limits: tuple[Array, Array, Array]) -> _Basis:
    """The space of r (Arnoldi): to a residual of ``goal`` ||r||, ``room`` dimensions, or until A leads no further."""
    goal, room, top = limits
    kind = top.dtype

    def keep_going(basis: _Basis) -> Array:
        # the least residual is ||r|| / ||u||
        return (basis.j < room) & ~basis.closed & (goal * norm(basis.u) < 1.0)

    def step(basis: _Basis) -> _Basis:
        # h_{j+1,j} q_{j+1} = A q_j - sum_{i <= j} h_ij q_i, h_ij = <q_i, A q_j>
        image = operator(jax.tree.map(lambda q: q[basis.j], basis.q))
        top = jnp.maximum(basis.top, norm(image))
        first, rest = _project(basis.q, image)
        # once more, for what rounding left along the basis: twice is enough
        second, rest = _project(basis.q, rest)
        length = norm(rest)
        closed = ~(length > FLAT * jnp.finfo(kind).eps * top)
        divisor = jnp.where(closed, jnp.inf, length)
        h = first + second
        # u'H = 0 column by column: u_{j+1} = -sum_{i <= j} u_i h_ij / h_{j+1,j}
        u = basis.u.at[basis.j + 1].set(-jnp.vdot(basis.u, h) / divisor)
        h = h.at[basis.j + 1].set(jnp.where(closed, 0.0, length))
        q = jax.tree.map(lambda q, x: q.at[basis.j + 1].set(x), basis.q, shrink(divisor, rest))
        return _Basis(q, basis.H.at[:, basis.j].set(h), u, basis.j + 1, top, closed)

    q = jax.tree.map(lambda q, x: q.at[0].set(x), zeros(r, restart + 1), shrink(norm(r), r))
    one = jnp.zeros(restart + 1, kind).at[0].set(1.0)
    begin = _Basis(q, jnp.zeros((restart + 1, restart), kind), one, jnp.int32(0), top, jnp.asarray(False))
    return jax.lax.while_loop(keep_going, step, begin)


def _project(q: PyTree, x: PyTree) -> tuple[Array, PyTree]:
    """The coordinates of x in an orthonormal basis, and what is left of it."""
    # h_i = <q_i, x>, x - sum_i h_i q_i
    h = leaf_sum(jax.tree.map(lambda q, x: jnp.tensordot(q, x, axes=x.ndim), q, x))
    return h, jax.tree.map(lambda q, x: x - jnp.tensordot(h.astype(x.dtype), q, axes=1), q, x)


def _least_squares(basis: _Basis, size: Array) -> tuple[PyTree, Array, Array]:
    """Argmin of ||r - A x|| over the space; whether A maps a direction of it to rounding; and the least other sigma."""
    # H = U diag(sigma) V', y = V diag(1 / sigma) U'(||r|| e_1) over the sigma that are not rounding; x = sum_i y_i q_i
    left, sigma, right = (x.astype(size.dtype) for x in jnp.linalg.svd(at_least_single(basis.H), full_matrices=False))
    # sigma > 32 eps ||A||
    kept = sigma > FLAT * jnp.finfo(sigma.dtype).eps * basis.top
    y = right.T @ (jnp.where(kept, 1.0 / jnp.where(kept, sigma, 1.0), 0.0) * (size * left[0]))
    point = jax.tree.map(lambda q: jnp.tensordot(y.astype(q.dtype), q[:-1], axes=1), basis.q)
    return point, jnp.sum(kept, dtype=jnp.int32) < basis.j, jnp.min(jnp.where(kept, sigma, jnp.inf))
