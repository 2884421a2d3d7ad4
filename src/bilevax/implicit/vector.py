"""A tree as one vector, on which linear systems are stated."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.promotion import usual_promotion
from bilevax.core.trees import PyTree


def as_vector(tree: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """All leaves in one vector, of a dtype that linear algebra has, and the way back."""
    leaves, structure = jax.tree.flatten(tree)
    # the widest dtype of the leaves, float32 at least: bfloat16 has no linear algebra
    with usual_promotion():
        kind = jnp.result_type(jnp.result_type(float), *(x.dtype for x in leaves))
    # the way back restores each leaf's shape and dtype
    ends = np.cumsum([x.size for x in leaves])[:-1]

    def back(vector: Array) -> PyTree:
        parts = jnp.split(vector, ends)
        return jax.tree.unflatten(
            structure, [part.reshape(x.shape).astype(x.dtype) for part, x in zip(parts, leaves, strict=True)]
        )

    return jnp.concatenate([x.reshape(-1).astype(kind) for x in leaves]), back
