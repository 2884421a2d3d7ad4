"""The linear system by its dense matrix."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevax.core.codes import Code
from bilevax.core.config import config
from bilevax.core.errors import ParameterError
from bilevax.core.records import Left, Solved
from bilevax.core.trees import PyTree, all_finite

LARGEST = 5000
"""Entries of w up to which the dense matrix is built."""


@config
class Exact:
    """v = (I - d1Phi^T)^{-1} g by the dense matrix [d, d], on every row of train.

    Assumes d <= 5,000; SINGULAR where the smallest singular value is rounding against the largest. Cost: d full
    Hessian-vector products, d^2 memory, d^3 time. The truth that other solvers are measured against.
    """

    stochastic: ClassVar[bool] = False
    needs_symmetry: ClassVar[bool] = False

    def solve(
        self, matvec: Callable[[PyTree], PyTree], g: PyTree, metric: PyTree | None, start: PyTree | None = None
    ) -> Solved:
        """Solve A v = g, where v -> A v = (I - d1Phi^T) v; the start does not matter.

        Raises:
            ParameterError: w has more than 5,000 entries.
        """
        b, unravel = ravel_pytree(g)
        d = b.size
        if d > LARGEST:
            raise ParameterError(f"Exact builds a dense matrix [d, d] and w has d={d:,} entries; use bx.CG or bx.GMRES")
        columns = jax.lax.map(lambda e: ravel_pytree(matvec(unravel(e)))[0], jnp.eye(d, dtype=b.dtype))
        left, singular, right = jnp.linalg.svd(columns.T)
        regular = singular[-1] > d * jnp.finfo(b.dtype).eps * singular[0]
        inverse = jnp.where(regular, 1.0 / jnp.where(regular, singular, 1.0), 0.0)
        v = unravel(right.T @ (inverse * (left.T @ b)))
        code = jnp.where(regular, jnp.int32(Code.OK), jnp.int32(Code.SINGULAR))
        finite = all_finite(v) & jnp.all(jnp.isfinite(columns))
        v = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), v)
        left = Left(jax.tree.map(jnp.zeros_like, v), singular[-1], singular[0])
        return Solved(v, jnp.where(finite, code, jnp.int32(Code.NONFINITE)), jnp.int32(d), jnp.int32(d), left=left)
