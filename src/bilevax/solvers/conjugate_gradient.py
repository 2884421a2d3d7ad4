"""Conjugate gradients on the full batch, for symmetric problems."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import config, count, real, set_fields
from bilevax.core.records import Solved
from bilevax.core.trees import PyTree, all_finite, axpy, sub, vdot, where, zeros_like


class _State(NamedTuple):
    v: PyTree
    r: PyTree  # residual g - A v
    p: PyTree  # search direction
    rho: Array  # <r, r>_s
    top: Array  # largest curvature met, <p, A p>_s / <p, p>_s
    j: Array
    code: Array


@config
class CG:
    """Conjugate gradients for (I - d1Phi^T) v = g, on every row of train.

    The operator is A = H s for a gradient step of diagonal size s: not symmetric, but self-adjoint for the inner
    product <a, b>_s = sum_i a_i s_i b_i, in which the iteration is run; so a diagonal step is a preconditioner.

    Assumes a symmetric problem (the map of a loss); stops at ||r||_s <= tol ||g||_s, with BUDGET after ``max_steps``,
    INDEFINITE at a direction of negative curvature and SINGULAR at one of none. Cost: one full Hessian-vector product
    a step. Source: Hestenes and Stiefel (1952); as a hypergradient, Pedregosa (2016), arXiv:1602.02355.

    Args:
        tol: relative residual, positive. Default 1e-6.
        max_steps: a count of at least 1. Default 1000.
        damping: delta >= 0 solves (A + delta I) v = g instead. Default 0.
    """

    stochastic: ClassVar[bool] = False
    needs_symmetry: ClassVar[bool] = True

    tol: float = 1e-6
    max_steps: int = 1000
    damping: float = 0.0

    def __post_init__(self) -> None:
        tol = real("tol", self.tol, low=0.0, open_low=True)
        damping = real("damping", self.damping, low=0.0)
        set_fields(self, tol=tol, max_steps=count("max_steps", self.max_steps, low=1), damping=damping)

    def solve(
        self, matvec: Callable[[PyTree], PyTree], g: PyTree, metric: PyTree, start: PyTree | None = None
    ) -> Solved:
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

        v = zeros_like(g) if start is None else start
        r = g if start is None else sub(g, operator(v))
        rho = inner(r, r)
        goal = jnp.asarray(self.tol).astype(rho.dtype) ** 2 * inner(g, g)

        def step(state: _State) -> _State:
            image = operator(state.p)
            curvature = inner(state.p, image)
            a = state.rho / curvature
            v = axpy(a, state.p, state.v)
            r = axpy(-a, image, state.r)
            rho = inner(r, r)
            p = axpy(rho / state.rho, state.p, r)
            rayleigh = curvature / inner(state.p, state.p)
            top = jnp.maximum(state.top, jnp.abs(rayleigh))
            new = _State(v, r, p, rho, top, state.j + 1, state.code)
            flat = jnp.abs(rayleigh) <= 100 * jnp.finfo(rho.dtype).eps * top
            bad = jnp.where(flat, jnp.int32(Code.SINGULAR), jnp.int32(Code.INDEFINITE))
            bad = jnp.where(jnp.isfinite(curvature), bad, jnp.int32(Code.NONFINITE))
            stopped = state._replace(j=state.j + 1, code=bad)
            return where((rayleigh > 0) & ~flat, new, stopped)

        def going(state: _State) -> Array:
            return (state.rho > goal) & (state.j < self.max_steps) & (state.code == Code.OK)

        ok = jnp.int32(Code.OK)
        end = jax.lax.while_loop(going, step, _State(v, r, r, rho, jnp.zeros_like(rho), jnp.int32(0), ok))
        code = jnp.where((end.code == ok) & (end.rho > goal), jnp.int32(Code.BUDGET), end.code)
        code = jnp.where(all_finite(end.v), code, jnp.int32(Code.NONFINITE))
        return Solved(end.v, code, end.j, end.j)
