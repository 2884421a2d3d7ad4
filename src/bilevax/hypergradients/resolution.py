"""Whether the arithmetic tells a step of the map from no step at all, in every entry of w that counts."""

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.trees import PyTree, norm

RESOLVED = 8.0
"""Units in the last place by which a step must move an entry to be seen: of less, rounding leaves no digit."""


def signs(like: PyTree) -> PyTree:
    """Two trees of 1 and -1 in no order, [2, ...], a stack."""

    def of_leaf(x: Array) -> Array:
        # cos k and cos(sqrt(2) k) have no period in k, and need no key
        number = jnp.arange(x.size, dtype=jnp.float32) % 65536.0
        rows = [jnp.cos(turn * (1.0 + number)) > 0 for turn in (1.0, 2.0**0.5)]
        return jnp.where(jnp.stack(rows), 1.0, -1.0).astype(x.dtype).reshape(2, *x.shape)

    return jax.tree.map(of_leaf, like)


def unresolved(signs: PyTree, images: PyTree, g: PyTree) -> Array:
    """True if there is an entry that a step of the map does not move, and on which the outer loss depends.

    With A = I - d1Phi^T, an entry i of A u, for u of signs, is about the norm of row i of A, and that at least the
    least eigenvalue. Below some units in the last place u - d1Phi^T u is rounding: then neither w nor v is known in
    that entry, however many steps were made, and no residual shows it. So it is where columns are in units that differ
    by 1 / sqrt(eps).

    Args:
        signs: two trees of signs, [2, ...].
        images: d1Phi^T of each.
        g: grad_1 E, like w.
    """
    eps = float(jnp.finfo(norm(g).dtype).eps)

    def of_leaf(u: Array, image: Array, g: Array) -> Array:
        # |A u|_i, the larger of two: one alone is 0 now and then
        moved = jnp.max(jnp.abs(u - image), axis=0)
        # u has entries of size 1: what a step moves is in units of them, and so is eps
        return jnp.any((moved < jnp.asarray(RESOLVED * eps, moved.dtype)) & (g != 0))

    found = jax.tree.leaves(jax.tree.map(of_leaf, signs, images, g))
    return jnp.any(jnp.stack(found))
