"""The linear system by its dense matrix."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevax.core.codes import Code
from bilevax.core.config import config
from bilevax.core.errors import ParameterError
from bilevax.core.records import Solution, SolverError
from bilevax.core.trees import Operator, PyTree, all_finite, at_least_single, norm, where, zeros_like
from bilevax.solvers.scaling import FLAT

LARGEST = 5000
"""Entries of w up to which the dense matrix is built."""


@config
class Exact:
    """v = (I - d1Phi^T)^{-1} g by the dense matrix [d, d], on every row of train.

    Assumes d <= 5,000. Singular values that are rounding against the largest, d eps, count as 0: then v is the shortest
    solution, as the Krylov solvers have it, and the code is SINGULAR where there is none, g having a component outside
    of the range of A. Cost: d full Hessian-vector products, d^2 memory, d^3 time. The truth that other solvers are
    measured against.

    Examples:
        >>> import bilevax as bx
        >>> bx.SID(bx.LBFGS(), bx.Exact()).linear
        Exact()
    """

    stochastic: ClassVar[Literal[False]] = False
    needs_symmetry: ClassVar[bool] = False

    def solve(self, matvec: Operator, g: PyTree, metric: PyTree | None, start: PyTree | None = None) -> Solution:
        """Solve A v = g, where v -> A v = (I - d1Phi^T) v; the start does not matter.

        Raises:
            ParameterError: w has more than 5,000 entries.
        """
        b, unravel = ravel_pytree(g)
        d = b.size
        if d > LARGEST:
            raise ParameterError(f"Exact builds a dense matrix [d, d] and w has d={d:,} entries; use bx.CG or bx.GMRES")
        # A = (A e_1, ..., A e_d), one column after another: at once they would be d passes' worth of memory
        columns = jax.lax.map(lambda e: ravel_pytree(matvec(unravel(e)))[0], jnp.eye(d, dtype=b.dtype))
        # A = U diag(sigma) V', v = V diag(1 / sigma) U'b over the sigma that are not rounding
        left, singular, right = (x.astype(b.dtype) for x in jnp.linalg.svd(at_least_single(columns.T)))
        eps, shares = jnp.finfo(b.dtype).eps, left.T @ b
        # sigma > d eps sigma_max
        kept = singular > d * eps * singular[0]
        v = unravel(right.T @ jnp.where(kept, shares / jnp.where(kept, singular, 1.0), 0.0))
        # b lies in the range of A
        solvable = norm(jnp.where(kept, 0.0, shares)) <= FLAT * d * eps * norm(b)
        code = jnp.where(solvable, jnp.int32(Code.OK), jnp.int32(Code.SINGULAR))
        finite = all_finite(v) & jnp.all(jnp.isfinite(columns))
        v = where(finite, v, zeros_like(v))
        error = SolverError(zeros_like(v), jnp.min(jnp.where(kept, singular, jnp.inf)), singular[0])
        return Solution(v, jnp.where(finite, code, jnp.int32(Code.NONFINITE)), jnp.int32(d), jnp.int32(d), error=error)
