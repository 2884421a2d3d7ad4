"""Conjugate gradients on the full batch, for symmetric problems."""

from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import at_least_one, check_fields, config, nonnegative, positive
from bilevax.core.records import Solution, SolverError
from bilevax.core.trees import Operator, PyTree, all_finite, axpy, scale, sub, vdot, where, zeros_like
from bilevax.solvers.left import KEPT, Ritz, energy_left
from bilevax.solvers.scaling import FLAT, unit_system


class _State(NamedTuple):
    v: PyTree
    r: PyTree  # residual b - A v
    p: PyTree  # search direction
    last: tuple[PyTree, PyTree]  # the one before, and A of it
    rho: Array  # <r, r>_s
    top: Array  # largest ||A p||_s / ||p||_s met: at most the norm of A
    j: Array
    code: Array
    ritz: Ritz
    energy: Array  # [KEPT], of the last steps, a <r, r>_s


FEW = 8.0
"""Steps j of which the energy left is taken (1 + FEW / j)^2 times: the fewer, the less is known of the spectrum."""


@config
class CG:
    """Conjugate gradients for (I - d1Phi^T) v = g, on every row of train.

    The operator is A = H s for a gradient step of diagonal size s: not symmetric, but self-adjoint for the inner
    product <a, b>_s = sum_i a_i s_i b_i, in which the iteration is run; so a diagonal step is a preconditioner.

    Assumes a symmetric problem (the map of a loss); stops at ||r||_s <= tol ||g||_s, with MAX_STEPS after
    ``max_steps``, SINGULAR at a direction p with A p = 0, and INDEFINITE at one of no positive curvature otherwise, or
    where two directions p, q in turn show that A is not self-adjoint, <p, A q>_s != <A p, q>_s. Cost: one full
    Hessian-vector product a step, and one for a given start. Source: Hestenes and Stiefel (1952); as a hypergradient,
    Pedregosa (2016), arXiv:1602.02355.

    Args:
        tol: relative residual, positive. Default 1e-6.
        max_steps: a count of at least 1. Default 1000.
        damping: delta >= 0 solves (A + delta I) v = g instead. Default 0.

    Examples:
        >>> import bilevax as bx
        >>> bx.CG(tol=1e-8, damping=0.01)
        CG(tol=1e-08, max_steps=1000, damping=0.01)
    """

    stochastic: ClassVar[Literal[False]] = False
    needs_symmetry: ClassVar[bool] = True

    tol: float = 1e-6
    max_steps: int = 1000
    damping: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, tol=positive, max_steps=at_least_one, damping=nonnegative)

    def solve(self, matvec: Operator, g: PyTree, metric: PyTree | None, start: PyTree | None = None) -> Solution:
        """Solve A v = g.

        Args:
            matvec: v -> A v = (I - d1Phi^T) v.
            g: the right-hand side, like w.
            metric: positive weights s, like w, for which A is self-adjoint.
            start: v_0; None for 0.
        """

        def operator(v: PyTree) -> PyTree:
            return axpy(self.damping, v, matvec(v))

        def inner(a: PyTree, b: PyTree) -> Array:
            return vdot(jax.tree.map(jnp.multiply, a, metric), b)

        size, b, v = unit_system(g, start)
        r = b if start is None else sub(b, operator(v))
        rho = inner(r, r)
        # ||r||_s <= tol ||b||_s
        goal = jnp.asarray(self.tol).astype(rho.dtype) ** 2 * inner(b, b)

        def step(state: _State) -> _State:
            image = operator(state.p)
            curvature, square = inner(state.p, image), inner(state.p, state.p)
            top = jnp.maximum(state.top, jnp.sqrt(inner(image, image) / square))
            code = _breakdown(state, image, top, inner)
            # a = <r, r> / <p, A p>, v <- v + a p, r <- r - a A p
            a = state.rho / curvature
            v = axpy(a, state.p, state.v)
            r = axpy(-a, image, state.r)
            rho = inner(r, r)
            # p <- r + b p, b = <r_new, r_new> / <r, r>
            p = axpy(rho / state.rho, state.p, r)
            # the energy ||v - v*||_A^2 falls by a <r, r>
            ritz, energy = state.ritz.extended(a, rho / state.rho), state.energy.at[state.j % KEPT].set(a * state.rho)
            new = _State(v, r, p, (state.p, image), rho, top, state.j + 1, code, ritz, energy)
            return where(code == Code.OK, new, state._replace(j=state.j + 1, code=code))

        def keep_going(state: _State) -> Array:
            return (state.rho > goal) & (state.j < self.max_steps) & (state.code == Code.OK)

        ok, none = jnp.int32(Code.OK), zeros_like(b)
        unknown = Ritz.of(rho), jnp.zeros(KEPT, rho.dtype)
        begin = _State(v, r, r, (none, none), rho, jnp.zeros_like(rho), jnp.int32(0), ok, *unknown)
        end = jax.lax.while_loop(keep_going, step, begin)
        code = jnp.where((end.code == ok) & (end.rho > goal), jnp.int32(Code.MAX_STEPS), end.code)
        # ||v|| > ||b|| / (eps ||A||): v is along a direction whose curvature is rounding. Of the first direction of all
        # only the products after it show that.
        rounding = jnp.finfo(rho.dtype).eps * end.top * jnp.sqrt(inner(end.v, end.v))
        lost = rounding > jnp.sqrt(inner(b, b))
        code = jnp.where(lost, jnp.int32(Code.SINGULAR), code)
        code = jnp.where(all_finite((end.v, rho)), code, jnp.int32(Code.NONFINITE))
        calls = end.j + jnp.int32(start is not None)
        return Solution(scale(size, where(lost, v, end.v)), code, calls, end.j, error=_error(end, size, inner))


def _error(end: _State, size: Array, inner: Callable[[PyTree, PyTree], Array]) -> SolverError:
    """The last direction, scaled to the energy ||v - v*||_A^2 that is left."""
    p, image = end.last
    # the least of two bounds: extrapolated from its fall, and <r, A^-1 r> <= ||r||^2 / (smallest Ritz value)
    more = jnp.minimum(energy_left(end.energy, end.j), end.rho * end.ritz.square)
    energy = inner(p, image)
    more = (1.0 + FEW / jnp.maximum(end.j, 1).astype(more.dtype)) ** 2 * more
    # ||c p||_A^2 = more
    move = scale(size * jnp.sqrt(more / jnp.where(energy > 0, energy, 1.0)), p)
    return SolverError(move, 1.0 / end.ritz.square, end.top)


def _breakdown(state: _State, image: PyTree, top: Array, inner: Callable[[PyTree, PyTree], Array]) -> Array:
    """Why the next step cannot be made from <p, A p>, or OK.

    A positive semi-definite A has ||A p||^2 <= ||A|| <p, A p>: a curvature of rounding size with a larger image is that
    of an indefinite one. The last direction and this one are conjugate by construction, if A is self-adjoint: that both
    ways of saying so agree costs no product, and fails before a system that is not is said to lack steps.
    """
    eps = jnp.finfo(top.dtype).eps
    curvature, square, image_square = inner(state.p, image), inner(state.p, state.p), inner(image, image)
    # |<p, A p>| <= eps ||A|| ||p||^2, and ||A p||^2 <= eps ||A||^2 ||p||^2
    flat = jnp.abs(curvature) <= FLAT * eps * top * square
    vanishes = flat & (image_square <= FLAT * eps * top**2 * square)
    # with q = p_{j-1}: |<q, A p> - <A q, p>| > sqrt(eps) ||A|| ||q|| ||p||
    p, before = state.last
    skew = jnp.abs(inner(p, image) - inner(before, state.p)) > jnp.sqrt(eps) * top * jnp.sqrt(inner(p, p) * square)
    code = jnp.where(flat | (curvature < 0) | skew, jnp.int32(Code.INDEFINITE), jnp.int32(Code.OK))
    code = jnp.where(vanishes, jnp.int32(Code.SINGULAR), code)
    return jnp.where(jnp.isfinite(curvature), code, jnp.int32(Code.NONFINITE))
