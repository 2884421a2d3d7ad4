"""The linear system by its normal equations on the full batch, for maps that are not symmetric."""

from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import at_least_one, check_fields, config, or_none, positive
from bilevax.core.records import Solution, SolverError
from bilevax.core.trees import Operator, PyTree, all_finite, axpy, scale, sub, vdot, where
from bilevax.solvers.left import Ritz
from bilevax.solvers.scaling import FLAT, unit_system


class _State(NamedTuple):
    v: PyTree
    r: PyTree  # residual b - A v
    p: PyTree  # search direction
    square: Array  # |r|^2
    rho: Array  # |A^T r|^2
    top: Array  # largest |A p| / |p| met: at most the norm of A
    j: Array
    code: Array
    ritz: Ritz
    falls: Array  # |A^T r|, over what it was a step before


@config
class NormalEquations:
    """min_v |A v - g|^2, A = I - d1Phi^T, on every row of train: v <- v + a p along gradients A^T (g - A v).

    With a given ``step_size`` zeta it is gradient descent, v <- v + zeta A^T (g - A v), which converges for every
    regular A where zeta < 2 / |A|^2, symmetric or not; else p are conjugate (CGLS), and no step is needed. With
    ``max_steps=1`` and a start that is carried (:class:`~bilevax.BSGM` with ``warm_start``) v follows lam by one move a
    step.

    Stops at |r| <= tol |g|, r = g - A v, with MAX_STEPS after ``max_steps``, SINGULAR where A^T r vanishes and r does
    not (v is then a solution of least squares), NOT_CONTRACTIVE where |r| grows, which no zeta < 2 / |A|^2 lets it. The
    condition of A enters squared: CGLS takes of the order of its square root more steps than conjugate gradients on a
    symmetric A. Cost: a product with A and one with A^T each step, the latter a Jacobian-vector product of Phi, of all
    rows; one of each before.
    Source: Hestenes and Stiefel (1952); as a move of reinforcement learning: Yang, Gao, Yuan (2024), arXiv:2405.19697.

    Args:
        tol: relative residual, positive. Default 1e-6.
        max_steps: a count of at least 1. Default 1000.
        step_size: zeta, positive; None (default): conjugate directions.

    Examples:
        >>> import bilevax as bx
        >>> bx.NormalEquations(max_steps=200)
        NormalEquations(tol=1e-06, max_steps=200, step_size=None)
    """

    stochastic: ClassVar[Literal[False]] = False
    needs_symmetry: ClassVar[bool] = False

    tol: float = 1e-6
    max_steps: int = 1000
    step_size: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, tol=positive, max_steps=at_least_one, step_size=or_none(positive))

    def solve(self, matvec: Operator, g: PyTree, metric: PyTree | None, start: PyTree | None = None) -> Solution:
        """Solve A v = g, where v -> A v = (I - d1Phi^T) v; ``start`` is v_0, None for 0."""
        size, b, v = unit_system(g, start)
        transposed = jax.linear_transpose(matvec, b)
        r = b if start is None else sub(b, matvec(v))
        (s,) = transposed(r)
        square, rho = vdot(r, r), vdot(s, s)
        goal = jnp.asarray(self.tol).astype(square.dtype) ** 2 * vdot(b, b)
        eps = jnp.finfo(square.dtype).eps

        def step(state: _State) -> _State:
            image = matvec(state.p)
            image_square, p_square = vdot(image, image), vdot(state.p, state.p)
            # a = |A^T r|^2 / |A p|^2, or zeta; v <- v + a p, r <- r - a A p
            a = state.rho / image_square if self.step_size is None else jnp.asarray(self.step_size).astype(rho.dtype)
            v, r = axpy(a, state.p, state.v), axpy(-a, image, state.r)
            (s,) = transposed(r)
            square, after = vdot(r, r), vdot(s, s)
            # p <- A^T r + b p, b = |A^T r_new|^2 / |A^T r|^2, or A^T r
            ratio = after / state.rho
            p = s if self.step_size is not None else axpy(ratio, state.p, s)
            top = jnp.maximum(state.top, jnp.sqrt(image_square / p_square))
            grown = square > (1.0 + FLAT * eps) * state.square
            code = jnp.where(grown, jnp.int32(Code.NOT_CONTRACTIVE), jnp.int32(Code.OK))
            # |A^T r| <= eps |A| |r|: what is left is not in the range of A
            flat = after <= (FLAT * eps * top) ** 2 * square
            code = jnp.where(flat & (square > goal), jnp.int32(Code.SINGULAR), code)
            code = jnp.where(all_finite((square, after, a)), code, jnp.int32(Code.NONFINITE))
            ritz = state.ritz.extended(a, ratio)
            new = _State(v, r, p, square, after, top, state.j + 1, code, ritz, jnp.sqrt(ratio))
            kept = (code == Code.OK) | (code == Code.SINGULAR)
            return where(kept, new, state._replace(j=state.j + 1, code=code))

        def keep_going(state: _State) -> Array:
            # ~(<=): a residual that is not a number is looked at by a step
            return ~(state.square <= goal) & (state.j < self.max_steps) & (state.code == Code.OK)

        zero = jnp.zeros_like(rho)
        begin = _State(v, r, s, square, rho, zero, jnp.int32(0), jnp.int32(Code.OK), Ritz.of(rho), zero)
        end = jax.lax.while_loop(keep_going, step, begin)
        short = jnp.where(end.square <= goal, jnp.int32(Code.OK), jnp.int32(Code.MAX_STEPS))
        code = jnp.where(end.code == Code.OK, short, end.code)
        code = jnp.where(all_finite((end.v, end.square)), code, jnp.int32(Code.NONFINITE))
        # the least singular value met: of conjugate directions by the Ritz values of A^T A, of descent by how A^T r
        # falls, 1 - zeta sigma^2
        least = 1.0 / jnp.sqrt(end.ritz.square)
        if self.step_size is not None:
            slow = jnp.maximum(1.0 - end.falls, eps) / jnp.asarray(self.step_size).astype(rho.dtype)
            least = jnp.where(end.j > 1, jnp.sqrt(slow), jnp.inf)
        # a product with A and one with A^T each
        calls = 2 * (end.j + jnp.int32(start is not None)) + jnp.int32(start is None)
        return Solution(scale(size, end.v), code, calls, end.j, error=SolverError(None, least, end.top))
