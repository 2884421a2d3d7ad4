"""The truncated Neumann series on the full batch."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import at_least_one, check_fields, config, positive
from bilevax.core.records import Solution
from bilevax.core.trees import Operator, PyTree, add, norm, scale, sub, where
from bilevax.solvers.left import moves_left
from bilevax.solvers.scaling import unit_system
from bilevax.solvers.stability import MoveHistory, empty_history, final_code, monitor


@config
class Neumann:
    """v_k = sum_{j < k} (d1Phi^T)^j g, on every row of train.

    Assumes a spectral radius of d1Phi below one; stops at ||term|| <= tol ||g||, with MAX_STEPS after ``max_steps``,
    and NOT_CONTRACTIVE where the terms grow. Cost: one full Hessian-vector product a term, and one for a given start;
    ``diagnostic_products`` are those that confirm growth. Source: Lorraine, Vicol, Duvenaud (2020), arXiv:1911.02590.

    Args:
        tol: length of the last term against g, positive. Default 1e-6.
        max_steps: k, a count of at least 1. Default 1000.
        confirm: as in :class:`~bilevax.FixedPoint`.

    Examples:
        >>> import bilevax as bx
        >>> bx.SID(bx.FixedPoint(200), bx.Neumann(max_steps=50)).linear
        Neumann(tol=1e-06, max_steps=50, confirm=True)
    """

    stochastic: ClassVar[Literal[False]] = False
    needs_symmetry: ClassVar[bool] = False

    tol: float = 1e-6
    max_steps: int = 1000
    confirm: bool = True

    def __post_init__(self) -> None:
        check_fields(self, tol=positive, max_steps=at_least_one)

    def solve(self, matvec: Operator, g: PyTree, metric: PyTree | None, start: PyTree | None = None) -> Solution:
        """Solve A v = g, where v -> A v = (I - d1Phi^T) v; ``start`` is v_0, None for 0."""
        size, b, v = unit_system(g, start)
        # from v_0 the series is that of the residual: v* = v_0 + sum_j (d1Phi^T)^j (g - A v_0)
        term = b if start is None else sub(b, matvec(v))
        # ||term|| <= tol ||g||
        length = norm(term)
        goal = jnp.asarray(self.tol).astype(length.dtype) * norm(b)

        def vjp(u: PyTree) -> PyTree:
            return sub(u, matvec(u))  # d1Phi^T u

        def keep_going(state: tuple[PyTree, PyTree, MoveHistory, Array]) -> Array:
            _, term, moves, j = state
            return ~(norm(term) <= goal) & (j < self.max_steps) & (moves.code == Code.OK)

        def step(state: tuple[PyTree, PyTree, MoveHistory, Array]) -> tuple[PyTree, PyTree, MoveHistory, Array]:
            v, term, moves, j = state
            moves = monitor(moves, j, v, term, vjp, confirm=self.confirm)
            good = moves.code == Code.OK
            # v <- v + term, term <- d1Phi^T term
            return where(good, add(v, term), v), where(good, vjp(term), term), moves, j + 1

        v, term, moves, j = jax.lax.while_loop(keep_going, step, (v, term, empty_history(v), jnp.int32(0)))
        met = (norm(term) <= goal) & (moves.code == Code.OK)
        code, checks = final_code(moves, j, (v, v), term, vjp, jnp.inf, confirm=self.confirm)
        # tol is of the last term, which is no estimated error: no TOLERANCE_NOT_MET
        code = jnp.where(met, jnp.int32(Code.OK), jnp.maximum(code, jnp.int32(Code.MAX_STEPS)))
        error = moves_left(moves.lengths, j, v, term, jnp.ones_like(length))
        error = error._replace(move=scale(size, error.move))
        return Solution(scale(size, v), code, j + jnp.int32(start is not None), j, checks, error=error)
