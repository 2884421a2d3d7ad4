"""Random keys: named streams, each a pure function of the user's key."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.errors import ParameterError

STREAMS = ("inner", "linear", "cross", "outer", "measure")
"""The independent streams of a hypergradient: its three stages, the outer batches, and the measured step."""


def stream(key: Array, name: str) -> Array:
    """The key of a named stream."""
    return jax.random.fold_in(key, STREAMS.index(name))


def is_key(x: Any) -> bool:
    """True for an array of typed keys."""
    return isinstance(x, jax.Array) and bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def as_key(key: Any) -> Array:
    """A JAX key, checked.

    Raises:
        ParameterError: not a single key.
    """
    typed = is_key(key) and key.ndim == 0
    raw = isinstance(key, jax.Array) and key.dtype == jnp.uint32 and key.ndim == 1
    if not (typed or raw):
        raise ParameterError(f"key must be one JAX random key such as jax.random.key(0), got {key!r}")
    return key
