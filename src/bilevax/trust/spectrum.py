"""Norms of linear and trilinear maps that are known by their products only. Pure and traceable."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

LANCZOS_STEPS = 30
"""Products with a symmetric map; the extreme eigenvalues converge first."""

SWEEPS = 10
"""Sweeps of the alternating power method."""

STARTS = 3
"""Random starts of it."""

Product = Callable[[Array], Array]


class Measured(NamedTuple):
    """A number and its standard error (of a Lanczos value: the residual, which bounds the distance to an eigenvalue).

    Attributes:
        value: the number.
        error: its standard error.
    """

    value: Array
    error: Array


class Ritz(NamedTuple):
    """Approximate eigenpairs of a symmetric map, in ascending order.

    Attributes:
        values: [k].
        vectors: orthonormal columns, [d, k].
        residuals: |A x - value x|, [k]: an eigenvalue is at most that far from the value.
    """

    values: Array
    vectors: Array
    residuals: Array


def lanczos(product: Product, start: Array, steps: int = LANCZOS_STEPS) -> Ritz:
    """K = min(steps, d) Ritz pairs of a symmetric map on [d], with full reorthogonalisation.

    Cost: k products. Source: Paige (1972), Computational variants of the Lanczos method.

    Args:
        product: x -> A x, both [d].
        start: a random vector, [d].
        steps: at most this many.
    """
    steps = min(steps, start.size)
    tiny = 100 * jnp.finfo(start.dtype).eps

    def step(basis: Array, j: Array) -> tuple[Array, tuple[Array, Array]]:
        image = product(basis[j])
        diagonal = jnp.vdot(basis[j], image)
        rest = image - basis.T @ (basis @ image)
        rest = rest - basis.T @ (basis @ rest)
        below = jnp.linalg.norm(rest)
        goes_on = below > tiny * jnp.linalg.norm(image)
        unit = jnp.where(goes_on, rest / jnp.where(goes_on, below, 1.0), 0.0)
        return basis.at[j + 1].set(unit), (diagonal, jnp.where(goes_on, below, 0.0))

    basis = jnp.zeros((steps + 1, start.size), start.dtype).at[0].set(start / jnp.linalg.norm(start))
    basis, (diagonal, below) = jax.lax.scan(step, basis, jnp.arange(steps))
    found = jnp.sum(basis[:steps] ** 2, axis=1) > 0.5
    diagonal = jnp.where(found, diagonal, diagonal[0])  # an invariant subspace: the rest repeats what lies within it
    values, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(below[:-1], 1) + jnp.diag(below[:-1], -1))
    return Ritz(values, basis[:steps].T @ vectors, below[-1] * jnp.abs(vectors[-1]))


def extreme_eigenvalues(product: Product, start: Array) -> tuple[Measured, Measured]:
    """The smallest and the largest eigenvalue of a symmetric map on [d]; arguments as in :func:`lanczos`."""
    values, _, residuals = lanczos(product, start)
    return Measured(values[0], residuals[0]), Measured(values[-1], residuals[-1])


def spectral_norm(adjoint: Product, forward: Product, start: Array) -> Measured:
    """The largest singular value of a map A: [m] -> [d], from the largest eigenvalue of A A'.

    Cost: min(30, d) products with A' and as many with A.

    Args:
        adjoint: x -> A'x, [d] -> [m].
        forward: y -> A y, [m] -> [d].
        start: a random vector, [d].
    """
    square = extreme_eigenvalues(lambda x: forward(adjoint(x)), start)[1]
    value = jnp.sqrt(jnp.maximum(square.value, 0.0))
    return Measured(value, jnp.where(value > 0, square.error / jnp.where(value > 0, 2 * value, 1.0), 0.0))


def trilinear_norm(form: Callable[[Array, Array, Array], Array], sizes: tuple[int, int, int], key: Array) -> Measured:
    """The largest |F(a, b, c)| over unit vectors, by an alternating power method: the best of a few local maxima.

    A lower bound, and most often the norm itself; the error is that of the mean over the starts.

    Source: De Lathauwer, De Moor, Vandewalle (2000), On the best rank-1 approximation of higher-order tensors.

    Args:
        form: linear in each of its three arguments.
        sizes: of the arguments.
        key: of the random starts.
    """

    def unit(x: Array) -> Array:
        length = jnp.linalg.norm(x)
        return x / jnp.where(length > 0, length, 1.0)

    def sweep(_: Array, point: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        a, b, c = point
        a = unit(jax.grad(form, 0)(a, b, c))
        b = unit(jax.grad(form, 1)(a, b, c))
        return a, b, unit(jax.grad(form, 2)(a, b, c))

    def climb(key: Array) -> Array:
        keys = jax.random.split(key, 3)
        a, b, c = (unit(jax.random.normal(k, (size,))) for k, size in zip(keys, sizes, strict=True))
        return jnp.abs(form(*jax.lax.fori_loop(0, SWEEPS, sweep, (a, b, c))))

    heights = jax.lax.map(climb, jax.random.split(key, STARTS))
    return Measured(jnp.max(heights), jnp.std(heights) / jnp.sqrt(STARTS - 1.0))
