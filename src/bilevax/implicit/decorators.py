"""The two decorators, with the signatures that jaxopt's users know."""

import inspect
from collections.abc import Callable

from bilevax.core.config import check_switch, function_of, positive
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import SystemSolver
from bilevax.core.trees import PyTree
from bilevax.implicit.conditions import Conditions, signature_of
from bilevax.implicit.linear import Solve, as_solve
from bilevax.implicit.solver import ImplicitSolver, Settings

RESIDUAL_TOL = 1e-3
"""Relative residual of the linear system above which a derivative is NaN."""


def custom_root(
    optimality_fun: Callable[..., PyTree],
    has_aux: bool = False,
    solve: Solve | SystemSolver | None = None,
    reference_signature: Callable[..., PyTree] | inspect.Signature | None = None,
    *,
    residual_tol: float = RESIDUAL_TOL,
) -> Callable[[Callable[..., PyTree]], ImplicitSolver]:
    """Give a solver of F(w, theta) = 0 the derivatives of its solution w(theta).

    Formula: with A = d1F(w, theta) at the solver's w, the tangent is A^{-1} (-d2F theta'), and a cotangent g is pulled
    back to -d2F^T u, where A^T u = g. How the solver came to w plays no part: it is neither unrolled nor traced for
    derivatives. The derivative in ``init_params`` is zero: a root does not depend on where the search for it began.

    Assumes that F(w, theta) = 0 holds at the solver's w, that F is differentiable there, and that A is regular. At a w
    of which F is not zero the result is the derivative of something else; ``diagnose`` returns ||F||. F and ``solve``
    are traced by JAX; the solver may be any Python as long as it is not called inside jit, vmap or scan.

    Cost: of a call, tracing F once, and outside of every transformation of JAX only where shapes are new; of each
    tangent or cotangent, one linear solve, one product with d2F, and one with A as a check. Outside of jit the solve is
    traced anew, and partly compiled, each time.
    Source: Blondel et al. (2022), arXiv:2105.15183.

    A solve that failed gives NaN, never a number: its result is not finite, or ||A x - b|| > residual_tol ||b||. The
    reason is logged once for each solver (logger ``bilevax``); :meth:`ImplicitSolver.diagnose` returns it.

    Every argument of the solver after the first is passed on to F as it came, and so are keyword arguments. Arrays of
    floats among them have derivatives, and so have those that F reads from its closure. Integers, strings, functions
    and None are passed on untouched and have none. F with a ``jax.custom_vjp`` in it has reverse mode only, F with a
    while_loop in it forward mode only.

    Args:
        optimality_fun: F as (params, *args, **kwargs) -> a tree like params, zero at the solution.
        has_aux: the solver returns (params, aux); aux has no derivatives.
        solve: (matvec, b) -> x with matvec(x) = b, for trees b and x like params; must be traceable. It may be
            stochastic, with a key of its own, and sees a b of largest entry one. Or one of this library's linear
            solvers, such as ``bx.CG()`` (A symmetric) or ``bx.GMRES()``. None (default): the dense matrix up to 200
            unknowns; beyond, conjugate residuals, then least squares on what they leave; A need not be symmetric.
        reference_signature: a function, or its signature, by which the solver's arguments are assigned to those of F.
            None (default): F's own.
        residual_tol: positive; for coarser dtypes at least 16 units of rounding. Default 1e-3. A noisy or truncated
            ``solve`` needs a larger one; ``inf`` checks only that the result is finite.

    Returns:
        A decorator of solver(init_params, *args, **kwargs) -> params, or -> (params, aux).

    Raises:
        ParameterError: an argument of the wrong kind.

    Example:
        >>> import jax
        >>> @custom_root(lambda w, theta: w**3 - theta)
        ... def cube_root(init_params, theta):
        ...     return theta ** (1 / 3)
        >>> round(float(jax.grad(cube_root, argnums=1)(1.0, 8.0)), 4)    # 1 / (3 w^2)
        0.0833
    """
    return _decorator(optimality_fun, False, has_aux, solve, reference_signature, residual_tol)


def custom_fixed_point(
    fixed_point_fun: Callable[..., PyTree],
    has_aux: bool = False,
    solve: Solve | SystemSolver | None = None,
    reference_signature: Callable[..., PyTree] | inspect.Signature | None = None,
    *,
    residual_tol: float = RESIDUAL_TOL,
) -> Callable[[Callable[..., PyTree]], ImplicitSolver]:
    """Give a solver of w = T(w, theta) the derivatives of its solution w(theta).

    Formula: :func:`custom_root` for F = w - T. So ``solve`` sees A = I - d1T or its transpose; a tangent is
    A^{-1} d2T theta', and a cotangent g is pulled back to d2T^T u, where A^T u = g.

    Assumes w = T(w, theta) at the solver's w, a T that is differentiable there, and no eigenvalue one of d1T. T need
    not be what the solver iterates. Cost and source: as for :func:`custom_root`.

    Args:
        fixed_point_fun: T as (params, *args, **kwargs) -> a tree like params.
        has_aux: as for :func:`custom_root`.
        solve: as for :func:`custom_root`.
        reference_signature: as for :func:`custom_root`.
        residual_tol: as for :func:`custom_root`.

    Returns:
        A decorator of solver(init_params, *args, **kwargs) -> params, or -> (params, aux).

    Raises:
        ParameterError: an argument of the wrong kind.

    Example:
        >>> import jax
        >>> @custom_fixed_point(lambda w, theta: 0.5 * (w + theta / w))
        ... def square_root(init_params, theta):
        ...     return jax.lax.fori_loop(0, 20, lambda _, w: 0.5 * (w + theta / w), init_params)
        >>> round(float(jax.grad(square_root, argnums=1)(1.0, 4.0)), 4)    # 1 / (2 w)
        0.25
    """
    return _decorator(fixed_point_fun, True, has_aux, solve, reference_signature, residual_tol)


def _decorator(
    fun: Callable[..., PyTree],
    is_map: bool,
    has_aux: bool,
    solve: Solve | SystemSolver | None,
    reference: Callable[..., PyTree] | inspect.Signature | None,
    residual_tol: float,
) -> Callable[[Callable[..., PyTree]], ImplicitSolver]:
    name = "fixed_point_fun" if is_map else "optimality_fun"
    # checked where the decorator is written, not at the first derivative
    fun = function_of("(params, *args)")(name, fun)
    settings = Settings(
        Conditions(fun, name, is_map, signature_of(fun if reference is None else reference)),
        check_switch("has_aux", has_aux),
        as_solve(solve),
        positive("residual_tol", residual_tol),
    )

    def decorate(solver: Callable[..., PyTree]) -> ImplicitSolver:
        if not callable(solver):
            raise ParameterError(f"the decorated solver must be a function of (init_params, *args), got {solver!r}")
        return ImplicitSolver(solver, settings)

    return decorate
