"""Random keys: named streams, each a pure function of the user's key."""

from typing import TypeGuard

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.errors import ParameterError

# New names at the end: see stream().
STREAMS = ("inner", "linear", "cross", "outer", "measure", "mixing")
"""The streams of a hypergradient: its three stages, the outer batches, the measured step, and nodes' random graphs."""


def stream(key: Array, name: str) -> Array:
    """The key of a named stream."""
    # By the place of its name: a new name goes to the end, so that no other stream changes.
    return jax.random.fold_in(key, STREAMS.index(name))


def is_key(x: object) -> TypeGuard[Array]:
    """True for an array of typed keys."""
    return isinstance(x, jax.Array) and bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def as_key(key: object) -> Array:
    """A JAX key, checked.

    Raises:
        ParameterError: not a single key.
    """
    # jax.random.key(0) is a scalar of a type of its own, jax.random.PRNGKey(0) a vector of two integers.
    if isinstance(key, jax.Array) and (key.ndim == 0 if is_key(key) else key.dtype == jnp.uint32 and key.ndim == 1):
        return key
    raise ParameterError(f"key must be one JAX random key such as jax.random.key(0), got {key!r}")
