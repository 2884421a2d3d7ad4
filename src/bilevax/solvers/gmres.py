"""GMRES on the full batch, for systems that are not symmetric."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import config, count, real, set_fields, static
from bilevax.core.promotion import usual_promotion
from bilevax.core.records import Solved
from bilevax.core.trees import PyTree, all_finite, axpy, norm, scale, sub, where, zeros_like


@config
class GMRES:
    """Generalised minimal residuals for (I - d1Phi^T) v = g, on every row of train.

    Assumes nothing of the operator but that it is regular; stops at ||r|| <= tol ||g||, with BUDGET after
    ``max_steps``, SINGULAR or STALLED where the residual stops falling. Cost: one full Hessian-vector product a step,
    in cycles of ``restart`` + 1, and two more. Source: Saad and Schultz (1986); the implementation is lineax's.

    Args:
        tol: relative residual, positive. Default 1e-6.
        max_steps: a count of at least 1. Default 1000.
        restart: vectors of the basis that are kept. Default 50; a changed one compiles anew.
        damping: delta >= 0 solves (A + delta I) v = g instead. Default 0.
    """

    stochastic: ClassVar[bool] = False
    needs_symmetry: ClassVar[bool] = False

    tol: float = 1e-6
    max_steps: int = 1000
    restart: int = static(50)
    damping: float = 0.0

    def __post_init__(self) -> None:
        tol = real("tol", self.tol, low=0.0, open_low=True)
        damping = real("damping", self.damping, low=0.0)
        steps, restart = count("max_steps", self.max_steps, low=1), count("restart", self.restart, low=1)
        set_fields(self, tol=tol, max_steps=steps, restart=restart, damping=damping)

    def solve(
        self, matvec: Callable[[PyTree], PyTree], g: PyTree, metric: PyTree | None, start: PyTree | None = None
    ) -> Solved:
        """Solve A v = g, where v -> A v = (I - d1Phi^T) v; ``start`` is v_0, None for 0."""
        import lineax as lx

        def operator(v: PyTree) -> PyTree:
            return axpy(self.damping, v, matvec(v))

        size = norm(g)
        one = jnp.where(size > 0, size, jnp.ones_like(size))
        b = scale(1.0 / one, g)  # of length one: tol is then absolute as well
        first = None if start is None else scale(1.0 / one, start)
        tol = jnp.asarray(self.tol).astype(size.dtype)
        with usual_promotion():
            shape = jax.eval_shape(lambda: g)
            system = lx.FunctionLinearOperator(operator, shape)
            method = lx.GMRES(rtol=0.0, atol=0.5 * tol, max_steps=self._cycles, restart=self.restart)
            options = {} if first is None else {"y0": first}
            out = lx.linear_solve(system, b, method, options=options, throw=False)
        cycles = jnp.asarray(out.stats["num_steps"], jnp.int32)
        finite = all_finite(out.value)
        v = where(finite, out.value, zeros_like(g))
        r = sub(b, operator(v))
        calls = cycles * (self.restart + 1) + 2
        code = jnp.where(cycles < self._cycles, _why(operator, r), jnp.int32(Code.BUDGET))
        code = jnp.where(finite & (norm(r) <= tol), jnp.int32(Code.OK), code)
        code = jnp.where(all_finite((g, r)), code, jnp.int32(Code.NONFINITE))
        return Solved(scale(one, v), code, calls, calls)

    @property
    def _cycles(self) -> Any:
        return (self.max_steps + self.restart - 1) // self.restart


def _why(operator: Callable[[PyTree], PyTree], r: PyTree) -> Array:
    """SINGULAR where the residual is one of least squares, A^T r = 0; else STALLED, as restarts can be."""
    back = jax.linear_transpose(operator, r)(r)[0]
    least = norm(back) <= jnp.sqrt(jnp.finfo(norm(r).dtype).eps) * jnp.maximum(norm(operator(r)), norm(r))
    return jnp.where(least, jnp.int32(Code.SINGULAR), jnp.int32(Code.STALLED))
