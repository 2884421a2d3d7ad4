"""The linear system by its dense matrix."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevax.core.codes import Code
from bilevax.core.config import config
from bilevax.core.errors import ParameterError
from bilevax.core.records import Solution, SolverError
from bilevax.core.trees import PyTree, all_finite, at_least_single, norm
from bilevax.solvers.scaling import FLAT

LARGEST = 5000
"""Entries of w up to which the dense matrix is built."""


@config
class Exact:
    """v = (I - d1Phi^T)^{-1} g by the dense matrix [d, d], on every row of train.

    Assumes d <= 5,000. Singular values that are rounding against the largest, d eps, count as 0: then v is the shortest
    solution, as the Krylov solvers have it, and the code is SINGULAR where there is none, g having a share that no
    A v has. Cost: d full
    Hessian-vector products, d^2 memory, d^3 time. The truth that other solvers are measured against.
    """

    stochastic: ClassVar[bool] = False
    needs_symmetry: ClassVar[bool] = False

    def solve(
        self, matvec: Callable[[PyTree], PyTree], g: PyTree, metric: PyTree | None, start: PyTree | None = None
    ) -> Solution:
        """Solve A v = g, where v -> A v = (I - d1Phi^T) v; the start does not matter.

        Raises:
            ParameterError: w has more than 5,000 entries.
        """
        b, unravel = ravel_pytree(g)
        d = b.size
        if d > LARGEST:
            raise ParameterError(f"Exact builds a dense matrix [d, d] and w has d={d:,} entries; use bx.CG or bx.GMRES")
        columns = jax.lax.map(lambda e: ravel_pytree(matvec(unravel(e)))[0], jnp.eye(d, dtype=b.dtype))
        left, singular, right = (x.astype(b.dtype) for x in jnp.linalg.svd(at_least_single(columns.T)))
        eps, shares = jnp.finfo(b.dtype).eps, left.T @ b
        kept = singular > d * eps * singular[0]
        v = unravel(right.T @ jnp.where(kept, shares / jnp.where(kept, singular, 1.0), 0.0))
        solvable = norm(jnp.where(kept, 0.0, shares)) <= FLAT * d * eps * norm(b)
        code = jnp.where(solvable, jnp.int32(Code.OK), jnp.int32(Code.SINGULAR))
        finite = all_finite(v) & jnp.all(jnp.isfinite(columns))
        v = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), v)
        left = SolverError(jax.tree.map(jnp.zeros_like, v), jnp.min(jnp.where(kept, singular, jnp.inf)), singular[0])
        return Solution(v, jnp.where(finite, code, jnp.int32(Code.NONFINITE)), jnp.int32(d), jnp.int32(d), left=left)
