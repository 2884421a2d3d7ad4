"""A value of which the derivative has no transpose, said where the transpose is asked for."""

from typing import NoReturn

from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from bilevax.core.errors import ParameterError


def forward_only(x: Array, message: str) -> Array:
    """x, or a ParameterError with the message where reverse mode comes through; traceable by everything else."""
    out: Array = _forward_only.bind(x, message=message)
    return out


def _refuse(cotangent: object, x: object, *, message: str) -> NoReturn:
    raise ParameterError(message)


# The identity, linear in x, with every rule of JAX's but that of transposition.
_forward_only = Primitive("forward_only")
_forward_only.def_impl(lambda x, message: x)
_forward_only.def_abstract_eval(lambda x, message: x)
ad.deflinear2(_forward_only, _refuse)
batching.defvectorized(_forward_only)
mlir.register_lowering(_forward_only, mlir.lower_fun(lambda x, message: x, multiple_results=False))
