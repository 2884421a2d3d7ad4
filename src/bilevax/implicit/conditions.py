"""What holds at a solution: the user's function as a function of the parameters and of every array that it reads."""

import inspect
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from bilevax.core.errors import ParameterError
from bilevax.core.trees import PyTree, leaf_name, map_named, strongly_typed, sub

Args: TypeAlias = tuple[PyTree, ...]
Kwargs: TypeAlias = dict[str, PyTree]

Signature: TypeAlias = inspect.Signature | None
"""None where Python cannot tell, as for some built-in functions."""


class System(NamedTuple):
    """F at one call of the solver.

    Attributes:
        residual: (params, inputs) -> F, like params.
        inputs: the arrays among the arguments, and the traced ones that F reads from its closure.
    """

    residual: Callable[[PyTree, PyTree], PyTree]
    inputs: PyTree


class Conditions(NamedTuple):
    """The user's F, or T for which F = params - T.

    Attributes:
        fun: the function.
        name: what its argument is called, for messages.
        is_map: it is T.
        reference: the signature by which the solver's arguments are assigned.
    """

    fun: Callable[..., PyTree]
    name: str
    is_map: bool
    reference: Signature

    def at(self, params: PyTree, args: Args, kwargs: Kwargs) -> System:
        """F with these arguments, checked at these params.

        Traced once, to a program whose constants are known: traced values that the function reads from its closure
        become inputs, so that they have derivatives too (as arguments of a custom rule they would be lost).

        Raises:
            ParameterError: F or T does not return a tree like params.
        """
        arrays, rebuild = leaves_apart((args, kwargs), Array)

        def call(params: PyTree, arrays: list[Array]) -> PyTree:
            args, kwargs = rebuild(arrays)
            out = self._call(params, args, kwargs)
            check_like(self.name, out, params)
            # F = params - T
            return sub(params, out) if self.is_map else out

        # F as a program of its arguments and of constants; a tracer among these is a value that it closed over
        closed = jax.make_jaxpr(call)(params, arrays)
        captured, constants = leaves_apart(closed.consts, jax.core.Tracer)
        structure = jax.tree.structure(params)

        def residual(params: PyTree, inputs: PyTree) -> PyTree:
            arrays, captured = inputs
            # the traced constants in their places, as inputs
            program = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, constants(captured)))
            return jax.tree.unflatten(structure, program(*jax.tree.leaves((params, arrays))))

        return System(residual, (arrays, captured))

    def _call(self, params: PyTree, args: Args, kwargs: Kwargs) -> PyTree:
        if self.reference is None:
            return self.fun(params, *args, **kwargs)
        bound = self.reference.bind(params, *args, **kwargs)
        return self.fun(*bound.args, **bound.kwargs)

    def assigned(self, own: Signature, args: Args, kwargs: Kwargs) -> Kwargs:
        """The keyword arguments for F: those of the call, and defaults of the solver that F would otherwise not see.

        Args:
            own: the solver's signature.
            args: of the call, without the first.
            kwargs: of the call.

        Raises:
            ParameterError: F cannot be called with the solver's arguments.
        """
        if self.reference is None:
            return kwargs
        # F(params, *args, **kwargs) with the solver's defaults, which Python would fill in for the solver alone
        try:
            known = self.reference.bind_partial(None, *args, **kwargs).arguments
            left = {} if own is None else _defaults(own, len(args) + 1)
            extra = {n: v for n, v in left.items() if n in self.reference.parameters and n not in known}
            self.reference.bind(None, *args, **kwargs, **extra)
        except TypeError as e:
            raise ParameterError(
                f"{self.name} cannot be called with the arguments of the solver ({e}); let both take the same arguments"
                " after the first, or give reference_signature"
            ) from None
        return {**kwargs, **extra}


def _defaults(own: inspect.Signature, given: int) -> Kwargs:
    """Defaults of the solver's parameters beyond the first ``given``."""
    left = list(own.parameters.values())[given:]
    return {p.name: p.default for p in left if p.default is not p.empty}


def signature_of(function: object) -> Signature:
    """The signature of a function, or the signature itself.

    Raises:
        ParameterError: neither a function nor a signature.
    """
    if isinstance(function, inspect.Signature):
        return function
    if not callable(function):
        raise ParameterError(f"reference_signature must be a function or an inspect.Signature, got {function!r}")
    # built-in functions may have none: their arguments are then passed on as they are
    try:
        return inspect.signature(function)
    except ValueError:
        return None


def leaves_apart(tree: PyTree, kind: type[Array]) -> tuple[list[Array], Callable[[list[Array]], PyTree]]:
    """The leaves of a kind, and how to put others in their places; every other leaf stays as it is."""
    leaves, structure = jax.tree.flatten(tree)

    def rebuild(others: list[Array]) -> PyTree:
        new = iter(others)
        return jax.tree.unflatten(structure, [next(new) if isinstance(x, kind) else x for x in leaves])

    return [x for x in leaves if isinstance(x, kind)], rebuild


def stopped(tree: PyTree) -> PyTree:
    """The tree with no derivatives."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if isinstance(x, Array) else x, tree)


def as_params(params: PyTree, hint: str = "") -> PyTree:
    """A solution as a tree of real arrays, which need not be finite.

    Raises:
        ParameterError: a leaf is no real floating array, or there is none.
    """
    if not jax.tree.leaves(params):
        raise ParameterError("params has no leaves; the solver must return at least one float array")

    def check(name: str, x: object) -> Array:
        kind = jnp.result_type(x) if isinstance(x, Array | np.ndarray | np.generic | float) else type(x).__name__
        if isinstance(kind, str) or not jnp.issubdtype(kind, jnp.floating):
            raise ParameterError(f"leaf {name} is {kind}; a solution must consist of real float arrays{hint}")
        return strongly_typed(jnp.asarray(x))

    return map_named(check, "params", params)


def check_like(name: str, out: PyTree, params: PyTree) -> None:
    """Refuse what is not a tree like params.

    Raises:
        ParameterError: says which function, which leaf, and what would be right.
    """
    structure: object = jax.tree.structure(out)
    wanted = jax.tree.structure(params)
    if structure != wanted:
        raise ParameterError(f"{name} must return a tree like params, {wanted}; got {structure}")
    for (path, x), w in zip(jax.tree_util.tree_leaves_with_path(out), jax.tree.leaves(params), strict=True):
        shape, kind = np.shape(x), jnp.result_type(x)
        if shape != w.shape or kind != w.dtype:
            leaf = leaf_name("params", path)
            raise ParameterError(
                f"{name} returns {kind}{list(shape)} for leaf {leaf}, which is {w.dtype}{list(w.shape)}"
            )
