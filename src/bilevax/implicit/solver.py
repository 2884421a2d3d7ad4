"""A decorated solver: what it does when called, differentiated, and diagnosed."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.errors import ParameterError
from bilevax.core.forward_only import forward_only
from bilevax.core.trees import PyTree
from bilevax.implicit.conditions import Args, Conditions, Kwargs, System, as_params, check_like, signature_of, stopped
from bilevax.implicit.failure import reason, reporter
from bilevax.implicit.level import top_level
from bilevax.implicit.linear import CodedSolve, masked, solved
from bilevax.implicit.vector import as_vector

_NO_TRANSPOSE = (
    "{} has forward mode only: take jax.jvp or jax.jacfwd of the solver, or write the function without what has no"
    " transpose. JAX says: {}"
)


class Settings(NamedTuple):
    """What a decorator was given."""

    conditions: Conditions
    has_aux: bool
    solve: CodedSolve
    residual_tol: float


class Diagnosis(NamedTuple):
    """The adjoint system A^T u = g of one solution and one cotangent.

    Attributes:
        code: a :class:`~bilevax.Code`, int32. OK: the derivative is a number; anything else: it is NaN.
        residual: ||A^T u - g|| / ||g||, 0 for g = 0; NaN if u or g is not finite, or if it is not wanted
            (``residual_tol=inf``).
        adjoint: u as ``solve`` returned it, like params, whatever the code (by default, NaN for a singular system).
        optimality: ||F(params)||, or ||params - T(params)||: how far params is from a solution. The derivative is
            that of a solution, so it is as wrong as params is.

    Examples:
        >>> from bilevax.implicit import Diagnosis
        >>> Diagnosis._fields  # of the `diagnose` of a decorated solver
        ('code', 'residual', 'adjoint', 'optimality')
    """

    code: Array
    residual: Array
    adjoint: PyTree
    optimality: Array

    @property
    def message(self) -> str:
        """The code in words."""
        return reason(int(self.code))


class ImplicitSolver:
    """A solver with the derivatives of its solution; made by ``custom_root`` and ``custom_fixed_point``.

    It is called as the function that it decorates, with or without jit, vmap, scan, jvp, grad, jacfwd and jacrev.
    Derivatives of any order are derivatives of the implicit formula: ``solve`` and the solver are never differentiated.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.implicit import custom_root
        >>> root = custom_root(lambda x, a: x**2 - a)(lambda x0, a: jnp.sqrt(a))
        >>> round(float(jax.grad(root, argnums=1)(jnp.array(1.0), jnp.array(4.0))), 4)  # 1 / (2 sqrt(4))
        0.25
    """

    def __init__(self, solver: Callable[..., PyTree], settings: Settings) -> None:
        functools.update_wrapper(self, solver)
        self._solver = solver
        self._settings = settings
        self._signature = signature_of(solver)
        self._name = getattr(solver, "__qualname__", type(solver).__name__)
        self._report = reporter(self._name, settings.residual_tol)
        self._checked: object = None  # what F was last checked with

    def __repr__(self) -> str:
        return f"<implicitly differentiated {self._name}>"

    def __call__(self, *args: PyTree, **kwargs: PyTree) -> PyTree:
        """Solve: (init_params, *args, **kwargs) -> params, or (params, aux).

        Raises:
            ParameterError: F cannot be called with these arguments, the solution is no tree of real floating arrays,
                or F does not return a tree like it.
        """
        if self._signature is not None:
            self._signature.bind(*args, **kwargs)  # Python's own complaint comes first
        rest, named = self._without_start(args, kwargs)
        named = self._settings.conditions.assigned(self._signature, rest, named)
        plain_args, plain_kwargs = stopped((args, kwargs))
        params, assemble = self._without_aux(stopped(self._solver(*plain_args, **plain_kwargs)))
        described = _described((params, rest, named))
        # outside of every transformation nothing is differentiated: F need not be traced again for known shapes
        if top_level() and described is not None and described == self._checked:
            return assemble(params)
        system = self._settings.conditions.at(params, rest, named)
        self._checked = described
        return assemble(self._attach(params, system))

    def diagnose(self, params: PyTree, cotangent: PyTree, /, *args: PyTree, **kwargs: PyTree) -> Diagnosis:
        """Solve the adjoint system A^T u = g once more and say how it went: why is this gradient NaN?

        For loss(solver(init_params, *args, **kwargs)) the params are what the solver returned (without aux), and the
        cotangent is g = jax.grad(loss)(params). May be called inside jit. Cost: one linear solve.

        Args:
            params: a solution.
            cotangent: g, a tree like params.
            *args: what the solver was called with after ``init_params``.
            **kwargs: likewise.

        Returns:
            Its code, the relative residual, the adjoint solution u, and how far params is from a solution.

        Raises:
            ParameterError: the cotangent is no tree like params, or F does not return one.
        """
        params, cotangent = as_params(params), as_params(cotangent)
        check_like("the cotangent", cotangent, params)
        conditions = self._settings.conditions
        system = conditions.at(params, args, conditions.assigned(self._signature, args, kwargs))
        # A^T u = g, A = d1F at the params
        value, product = jax.linearize(lambda w: system.residual(w, system.inputs), params)
        transposed = jax.linear_transpose(product, params)
        out = solved(self._settings.solve, lambda u: transposed(u)[0], cotangent, self._settings.residual_tol)
        return Diagnosis(out.code, out.residual, out.value, jnp.linalg.norm(as_vector(value)[0]))

    def _without_start(self, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """The arguments after the first, which may have been given by its name."""
        if args or self._signature is None:
            return args[1:], kwargs
        first = next(iter(self._signature.parameters), None)
        return (), {name: value for name, value in kwargs.items() if name != first}

    def _without_aux(self, found: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
        """The params in what the solver returned, checked, and how its result is put together again around them."""
        if not self._settings.has_aux:
            return as_params(found, "; a solver that returns (params, aux) needs has_aux=True"), lambda params: params
        if not isinstance(found, tuple) or len(found) < 2:
            raise ParameterError(f"with has_aux=True the solver must return (params, aux), got {type(found).__name__}")
        # a NamedTuple is put together again as one
        make = getattr(type(found), "_make", tuple)
        return as_params(found[0]), lambda params: make((params, *found[1:]))

    def _attach(self, params: PyTree, system: System) -> PyTree:
        """The params, with the derivatives of the solution in the system's inputs."""

        @jax.custom_jvp
        def attach(params: PyTree, inputs: PyTree) -> PyTree:
            return params

        @attach.defjvp
        def rule(primals: tuple[PyTree, PyTree], tangents: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            params, inputs = primals
            # w' = A^-1 (-d2F x');  attached again, so that what follows can be differentiated once more
            params = attach(params, inputs)
            _, change = jax.jvp(lambda x: system.residual(params, x), (inputs,), (tangents[1],))
            _, product = jax.linearize(lambda w: system.residual(w, inputs), params)
            return params, self._solved(product, jax.tree.map(lambda x: -x, change))

        return attach(params, system.inputs)

    def _solved(self, product: Callable[[PyTree], PyTree], b: PyTree) -> PyTree:
        """A^{-1} b, linear in b; on one vector, since leaves of b that no input enters are no unknowns to JAX."""
        vector, tree = as_vector(b)

        def operator(v: Array) -> Array:
            return as_vector(product(tree(v)))[0]

        def solve(matvec: Callable[[Array], Array], b: Array) -> Array:
            def of_tree(x: PyTree) -> PyTree:
                return tree(matvec(as_vector(x)[0]))

            out = solved(self._settings.solve, of_tree, tree(b), self._settings.residual_tol)
            return as_vector(masked(out.value, self._report(out.code, out.residual) == Code.OK))[0]

        # with a transposed solve, in reverse and forward mode; where the operator has no transpose, forward mode alone
        try:
            return tree(jax.lax.custom_linear_solve(operator, vector, solve, solve))
        except ParameterError:
            raise
        except Exception as e:  # whatever JAX says of an operator that has no transpose, as with a while_loop in it
            message = _NO_TRANSPOSE.format(self._settings.conditions.name, f"{type(e).__name__}: {e}")
        return tree(forward_only(jax.lax.custom_linear_solve(operator, vector, solve), message))


def _described(tree: PyTree) -> object:
    """Shapes and dtypes of arrays, and every other leaf itself; None where one cannot be compared."""
    leaves, structure = jax.tree.flatten(tree)
    # other leaves (strings, functions) are part of what F computes
    what = tuple((x.shape, x.dtype) if isinstance(x, jax.Array | np.ndarray) else x for x in leaves)
    try:
        hash(what)
    except TypeError:
        return None
    return structure, what
