"""Projections onto Lambda; any other callable of lam serves as well.

``at_bound(lam)`` says which entries the set holds back, so that a run can report it; a callable need not have it.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevax.core.config import check_fields, check_real, config, is_scalar, positive
from bilevax.core.errors import ParameterError
from bilevax.core.trees import PyTree, norm


@config
class Box:
    """{lam: lower <= lam <= upper}, entry by entry.

    Args:
        lower: a number, or an array or tree that broadcasts against lam.
        upper: likewise, not below ``lower``.

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> bx.Box(-8.0, 4.0)(jnp.array([-10.0, 0.0, 5.0])).tolist()
        [-8.0, 0.0, 4.0]
    """

    lower: PyTree = -jnp.inf
    upper: PyTree = jnp.inf

    def __post_init__(self) -> None:
        # Arrays and trees may have any shape that broadcasts: what fits lam is known when it is there.
        check_fields(self, **{name: check_real for name in ("lower", "upper") if is_scalar(getattr(self, name))})
        if isinstance(self.lower, float) and isinstance(self.upper, float) and self.lower > self.upper:
            raise ParameterError(f"lower must not exceed upper, got {self.lower:g} > {self.upper:g}")

    def __call__(self, lam: PyTree) -> PyTree:
        """The nearest point of the box."""
        return jax.tree.map(
            # min(max(lam, lower), upper)
            lambda x, low, high: jnp.clip(x, jnp.asarray(low).astype(x.dtype), jnp.asarray(high).astype(x.dtype)),
            lam, _like(self.lower, lam), _like(self.upper, lam),
        )  # fmt: skip

    def at_bound(self, lam: PyTree) -> PyTree:
        """Where an entry is no further inside than its bounds."""
        return jax.tree.map(
            lambda x, low, high: (x <= jnp.asarray(low).astype(x.dtype)) | (x >= jnp.asarray(high).astype(x.dtype)),
            lam, _like(self.lower, lam), _like(self.upper, lam),
        )  # fmt: skip


@config
class NonNegative:
    """{lam: lam >= 0}, entry by entry.

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> bx.NonNegative()(jnp.array([-1.0, 2.0])).tolist()
        [0.0, 2.0]
    """

    def __call__(self, lam: PyTree) -> PyTree:
        """The nearest point with no negative entry."""
        return optax.projections.projection_non_negative(lam)

    def at_bound(self, lam: PyTree) -> PyTree:
        """Where an entry is 0."""
        return jax.tree.map(lambda x: x <= 0, lam)


@config
class L2Ball:
    """{lam: ||lam||_2 <= radius}, over all entries of all leaves.

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> bx.L2Ball(2.0)(jnp.array([3.0, 0.0])).tolist()
        [2.0, 0.0]
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, radius=positive)

    def __call__(self, lam: PyTree) -> PyTree:
        """The nearest point of the ball."""
        # lam min(1, radius / ||lam||)
        return optax.projections.projection_l2_ball(lam, self.radius)

    def at_bound(self, lam: PyTree) -> PyTree:
        """All entries, where lam is on the sphere (to rounding), or none."""
        # a projection leaves ||lam|| within a few units in the last place of the radius
        length = norm(lam)
        edge = length >= (1 - 10 * jnp.finfo(length.dtype).eps) * jnp.asarray(self.radius).astype(length.dtype)
        return jax.tree.map(lambda x: jnp.broadcast_to(edge, x.shape), lam)


@config
class Simplex:
    """{lam >= 0, sum lam = total}, over all entries of all leaves.

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> bx.Simplex()(jnp.array([1.0, 1.0, -3.0])).tolist()
        [0.5, 0.5, 0.0]
    """

    total: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, total=positive)

    def __call__(self, lam: PyTree) -> PyTree:
        """The nearest point of the simplex."""
        # max(lam - tau, 0), tau such that the sum is the total
        return optax.projections.projection_simplex(lam, self.total)

    def at_bound(self, lam: PyTree) -> PyTree:
        """Where an entry is 0."""
        return jax.tree.map(lambda x: x <= 0, lam)


@config
class CappedSimplex:
    """{0 <= lam <= 1, sum lam <= total}, over all entries of all leaves: probabilities, of so many choices at most.

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> bx.CappedSimplex(2.0)(jnp.array([9.0, 0.5, 0.5])).tolist()
        [1.0, 0.5, 0.5]
    """

    total: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, total=positive)

    def __call__(self, lam: PyTree) -> PyTree:
        """The nearest point of the set."""
        x, unravel = ravel_pytree(lam)
        total = jnp.asarray(self.total).astype(x.dtype)

        def halved(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = 0.5 * (low + high)
            above = jnp.sum(_capped(x - middle)) > total
            return jnp.where(above, middle, low), jnp.where(above, high, middle)

        # clip(lam - tau, 0, 1), tau >= 0 the least for which the sum is at most the total: 0, or by bisection to the
        # last place, from where the sum is 0
        ends = jnp.zeros((), x.dtype), jnp.maximum(jnp.max(x), 0.0)
        high = jax.lax.fori_loop(0, jnp.finfo(x.dtype).nmant + 10, halved, ends)[1]
        return unravel(_capped(x - jnp.where(jnp.sum(_capped(x)) > total, high, 0.0)))

    def at_bound(self, lam: PyTree) -> PyTree:
        """Where an entry is 0 or 1."""
        return jax.tree.map(lambda x: (x <= 0) | (x >= 1), lam)


def _capped(x: Array) -> Array:
    return jnp.clip(x, 0.0, 1.0)


def _like(bound: PyTree, lam: PyTree) -> PyTree:
    """A bound as a tree like lam: one bound for every leaf, or one each."""
    return jax.tree.map(lambda _: bound, lam) if jax.tree_util.all_leaves([bound]) else bound
