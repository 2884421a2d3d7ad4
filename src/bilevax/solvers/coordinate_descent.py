"""Proximal coordinate descent on every row, for inner problems of a loss and a separable penalty."""

from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevax.core.codes import Code
from bilevax.core.config import at_least_one, check_fields, config, positive
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import Loss, RowSource
from bilevax.core.records import Solution, SolverError
from bilevax.core.trees import PyTree, all_finite, norm, where
from bilevax.linalg.row_chunks import value_and_grad
from bilevax.problems import ProximalStep
from bilevax.solvers.chain import has_grown
from bilevax.solvers.exact import LARGEST

Prox: TypeAlias = Callable[[Array, Array], Array]
"""(w, s) -> prox, entry by entry, [d]."""


class _Step(NamedTuple):
    """Where the solver is; w is flat."""

    w: Array
    value: Array
    gradient: Array
    move: Array  # prox(w - s grad) - w, the residual
    damping: Array  # part of its diagonal that is added to the Hessian
    steps: Array
    calls: Array


@config
class CoordinateDescent:
    """Proximal coordinate descent on quadratic models of the inner loss, ended by the linear system on the support.

    u_j <- prox_j(u_j - m_j / H_jj, 1 / H_jj) for one coordinate after another, m = grad + H (u - w) the model's
    gradient at u; after each sweep (I - D (I - s H)) d = prox(u - s m) - u, s = 1 / diag(H), D the derivative of the
    prox, 0 off the support and 1 on it for the lasso: u + d is exact, and taken, once the support is right. One model
    suffices for a quadratic loss; of others its minimum is the next w, if the loss there is above that at w by at most
    grad'd + 3/4 d'Hd, d the move; or else H is damped.

    Assumes a loss that is convex in w, a prox that acts on each entry by itself (:class:`~bilevax.ProximalStep`; of a
    :class:`~bilevax.GradientStep` there is none), and d <= 5,000. Stops where w moves by at most tol (1 + ||w||) in a
    proximal step of size s; MAX_STEPS after ``max_steps`` models. Cost of a model: two gradients and d Hessian-vector
    products; of a sweep d^2 and of a system d^3 operations. Source: Friedman, Hastie, Tibshirani (2010); Bertrand et
    al. (2020), arXiv:2002.08943.

    Args:
        tol: as above, positive. Default 1e-6.
        max_steps: models at most, a count of at least 1. Default 100.
        max_sweeps: sweeps over a model at most, a count of at least 1. Default 1000.

    Examples:
        >>> import bilevax as bx
        >>> bx.SID(bx.CoordinateDescent(), bx.GMRES()).inner  # an inner map bx.ProximalStep
        CoordinateDescent(tol=1e-06, max_steps=100, max_sweeps=1000)
    """

    stochastic: ClassVar[Literal[False]] = False
    takes_prox: ClassVar[bool] = True

    tol: float = 1e-6
    max_steps: int = 100
    max_sweeps: int = 1000

    def __post_init__(self) -> None:
        check_fields(self, tol=positive, max_steps=at_least_one, max_sweeps=at_least_one)

    def solve(self, loss: Loss | ProximalStep, w0: PyTree, lam: PyTree, source: RowSource) -> Solution:
        """Minimise w -> loss(w, lam, every row of the source) from w0, plus the penalty of a :class:`ProximalStep`.

        Raises:
            ParameterError: w has more than 5,000 entries.
        """
        flat, unravel = ravel_pytree(w0)
        d, real = flat.size, flat.dtype
        if d > LARGEST:
            raise ParameterError(f"CoordinateDescent builds a Hessian [d, d] and w has d={d:,} entries; use bx.LBFGS")
        prox, smooth = _identity, loss
        if isinstance(loss, ProximalStep):
            penalty, smooth = loss.prox, loss.loss

            def prox(w: Array, s: Array) -> Array:
                return ravel_pytree(penalty(unravel(w), lam, unravel(s)))[0].astype(real)

        def evaluated(w: Array) -> tuple[Array, Array]:
            value, gradient = source.total(
                lambda at, rows: value_and_grad(smooth)(at[0], at[1], rows), (unravel(w), lam)
            )
            return value, ravel_pytree(gradient)[0].astype(real)

        def hessian(w: Array) -> Array:
            # H e_1, ..., H e_d, one column after another
            product = jax.linearize(lambda w: evaluated(w)[1], w)[1]
            columns: Array = jax.lax.map(product, jnp.eye(d, dtype=real))
            return columns

        def settled(at: _Step) -> Array:
            return norm(at.move) <= jnp.asarray(self.tol).astype(real) * (1.0 + norm(at.w))

        def keep_going(at: _Step) -> Array:
            can = (at.steps < self.max_steps) & all_finite((at.value, at.gradient, at.move))
            # the first model is always made: no s is known before
            return (~settled(at) | (at.steps == 0)) & can

        def model_step(at: _Step) -> _Step:
            H = hessian(at.w)
            s = 1.0 / _curvatures(H)
            H = H + jnp.diag(at.damping / s)
            u = self._minimum(H, at.w, at.gradient, prox)
            change = u - at.w
            value, gradient = evaluated(u)
            # F(u) <= F(w) - 1/4 d'Hd follows, F with the penalty: the model falls by 1/2 d'Hd at least
            rounding = 10 * jnp.finfo(real).eps * jnp.abs(at.value)
            allowed = at.value + at.gradient @ change + 0.75 * (change @ H @ change) + rounding
            taken = (value <= allowed) & all_finite((u, value, gradient))
            # Levenberg: a quarter after a step that was taken, four times as much after one that was not
            lower, higher = jnp.where(at.damping < 0.1, 0.0, at.damping / 4), jnp.maximum(1.0, 4 * at.damping)
            damping = jnp.where(taken, lower, higher).astype(real)
            w, value, gradient = where(taken, (u, value, gradient), (at.w, at.value, at.gradient))
            move = prox(w - s * gradient, s) - w
            return _Step(w, value, gradient, move, damping, at.steps + 1, at.calls + d + 2)

        value, gradient = evaluated(flat)
        zero = jnp.zeros((), real)
        begin = _Step(flat, value.astype(real), gradient, gradient, zero, jnp.int32(0), jnp.int32(1))
        end = jax.lax.while_loop(keep_going, model_step, begin)
        code = jnp.where(settled(end), jnp.int32(Code.OK), jnp.int32(Code.MAX_STEPS))
        code = jnp.where(has_grown(flat, end.w), jnp.int32(Code.DIVERGED), code)
        finite = all_finite((end.w, end.value, end.gradient, end.move))
        code = jnp.where(finite, code, jnp.int32(Code.NONFINITE))
        unknown = jnp.full((), jnp.inf, real), jnp.zeros((), real)
        error = SolverError(unravel(jnp.where(finite, end.move, 0.0)), *unknown)
        return Solution(unravel(end.w), code, end.calls, end.steps, error=error)

    def _minimum(self, H: Array, w: Array, gradient: Array, prox: Prox) -> Array:
        """The minimum of grad'(u - w) + 1/2 (u - w)'H(u - w) + the penalty, from w."""
        d, real = w.size, w.dtype
        s = 1.0 / _curvatures(H)
        goal = 0.1 * jnp.asarray(self.tol).astype(real)

        def move(u: Array) -> Array:
            # the residual of the model, whose gradient at u is grad + H (u - w)
            return prox(u - s * (gradient + H @ (u - w)), s) - u

        def coordinate(j: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            u, m = at
            # u_j <- prox_j(u_j - s_j m_j, s_j), m the gradient of the model
            change = prox(u - s * m, s)[j] - u[j]
            return u.at[j].add(change), m + change * H[j]

        def sweep(at: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            u, _, k = at
            u, _ = jax.lax.fori_loop(0, d, coordinate, (u, gradient + H @ (u - w)))
            residual = move(u)
            # D, the derivative of a prox that acts entry by entry, is its derivative along (1, ..., 1)
            _, D = jax.jvp(lambda z: prox(z, s), (u - s * (gradient + H @ (u - w)),), (jnp.ones_like(u),))
            # I - D (I - s H)
            system = jnp.diag(1.0 - D) + (D * s)[:, None] * H
            # Newton on the residual: one step is exact once the support is right
            there = u + jnp.linalg.solve(system, residual)
            # taken if it ends the search alone: sweeps descend, and such a step for another support need not, least of
            # all where the system is singular (a support of more than n) and its length would excuse any residual
            u = jnp.where(solved(u, move(there)), there, u)
            return u, move(u), k + 1

        def solved(u: Array, residual: Array) -> Array:
            return norm(residual) <= goal * (1.0 + norm(u))

        def keep_going(at: tuple[Array, Array, Array]) -> Array:
            u, residual, k = at
            return ~solved(u, residual) & (k < self.max_sweeps)

        u, residual, _ = jax.lax.while_loop(keep_going, sweep, (w, move(w), jnp.int32(0)))
        # the image of the prox: what is off the support is 0, and not nearly so
        return u + residual


def _identity(w: Array, s: Array) -> Array:
    return w


def _curvatures(H: Array) -> Array:
    """The diagonal of H, above 0."""
    diagonal = jnp.diag(H)
    return jnp.maximum(diagonal, jnp.finfo(H.dtype).eps * jnp.max(jnp.abs(diagonal)) + jnp.finfo(H.dtype).tiny)
