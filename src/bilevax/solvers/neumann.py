"""The truncated Neumann series on the full batch."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import check_count, check_real, config, set_frozen
from bilevax.core.records import Solution
from bilevax.core.trees import PyTree, add, norm, scale, sub, where
from bilevax.solvers.left import moves_left
from bilevax.solvers.scaling import unit_system
from bilevax.solvers.stability import MoveHistory, empty_history, final_code, monitor


@config
class Neumann:
    """v_k = sum_{j < k} (d1Phi^T)^j g, on every row of train.

    Assumes a spectral radius of d1Phi below one; stops at ||term|| <= tol ||g||, with MAX_STEPS after ``max_steps``,
    and NOT_CONTRACTIVE where the terms grow. Cost: one full Hessian-vector product a term, and one for a given start;
    ``checks`` are those that confirm growth. Source: Lorraine, Vicol, Duvenaud (2020), arXiv:1911.02590.

    Args:
        tol: length of the last term against g, positive. Default 1e-6.
        max_steps: k, a count of at least 1. Default 1000.
        confirm: as in :class:`~bilevax.FixedPoint`.
    """

    stochastic: ClassVar[bool] = False
    needs_symmetry: ClassVar[bool] = False

    tol: float = 1e-6
    max_steps: int = 1000
    confirm: bool = True

    def __post_init__(self) -> None:
        tol = check_real("tol", self.tol, low=0.0, open_low=True)
        set_frozen(self, tol=tol, max_steps=check_count("max_steps", self.max_steps, low=1))

    def solve(
        self, matvec: Callable[[PyTree], PyTree], g: PyTree, metric: PyTree | None, start: PyTree | None = None
    ) -> Solution:
        """Solve A v = g, where v -> A v = (I - d1Phi^T) v; ``start`` is v_0, None for 0."""
        size, b, v = unit_system(g, start)
        term = b if start is None else sub(b, matvec(v))
        length = norm(term)
        goal = jnp.asarray(self.tol).astype(length.dtype) * norm(b)

        def vjp(u: PyTree) -> PyTree:
            return sub(u, matvec(u))  # d1Phi^T u

        def going(state: tuple[PyTree, PyTree, MoveHistory, Array]) -> Array:
            _, term, seen, j = state
            return ~(norm(term) <= goal) & (j < self.max_steps) & (seen.code == Code.OK)

        def step(state: tuple[PyTree, PyTree, MoveHistory, Array]) -> tuple[PyTree, PyTree, MoveHistory, Array]:
            v, term, seen, j = state
            seen = monitor(seen, j, v, term, vjp, confirm=self.confirm)
            good = seen.code == Code.OK
            return where(good, add(v, term), v), where(good, vjp(term), term), seen, j + 1

        v, term, seen, j = jax.lax.while_loop(going, step, (v, term, empty_history(v), jnp.int32(0)))
        met = (norm(term) <= goal) & (seen.code == Code.OK)
        code, checks = final_code(seen, j, (v, v), term, vjp, jnp.inf, confirm=self.confirm)
        code = jnp.where(met, jnp.int32(Code.OK), jnp.maximum(code, jnp.int32(Code.MAX_STEPS)))
        left = moves_left(seen.lengths, j, v, term, jnp.ones_like(length))
        left = left._replace(move=scale(size, left.move))
        return Solution(scale(size, v), code, j + jnp.int32(start is not None), j, checks, left=left)
