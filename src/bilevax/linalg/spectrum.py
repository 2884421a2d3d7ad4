"""Norms of linear and trilinear maps that are known by their products only. Pure and traceable."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

LANCZOS_STEPS = 30
"""Products with a symmetric map; the extreme eigenvalues converge first."""

SWEEPS = 10
"""Sweeps of the alternating power method, over two arguments and then over three."""

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
    """Ritz pairs of a symmetric map on [d], k = min(steps, d) of them, with full reorthogonalisation.

    Cost: k products. Source: Paige (1972), Computational variants of the Lanczos method.

    Args:
        product: x -> A x, both [d].
        start: a random vector, [d].
        steps: at most this many.
    """
    steps = min(steps, start.size)
    tiny = 100 * jnp.finfo(start.dtype).eps

    fresh = jax.random.key(271828)  # no key that a start value is likely to come from

    def orthogonal(x: Array, basis: Array) -> Array:
        # x <- x - Q Q'x, twice: once is not enough in floating point
        for _ in range(2):
            x = x - basis.T @ (basis @ x)
        return x

    def step(basis: Array, j: Array) -> tuple[Array, tuple[Array, Array]]:
        # beta_{j+1} q_{j+1} = A q_j - alpha_j q_j - beta_j q_{j-1}
        image = product(basis[j])
        rest = orthogonal(image, basis)
        below = jnp.linalg.norm(rest)
        # beta = 0: the basis is invariant, and the iteration goes on in a direction outside of it
        goes_on = below > tiny * jnp.linalg.norm(image)
        anew = orthogonal(jax.random.normal(jax.random.fold_in(fresh, j), start.shape, start.dtype), basis)
        rest = jnp.where(goes_on, rest, anew)
        basis = basis.at[j + 1].set(rest / jnp.linalg.norm(rest))
        return basis, (jnp.vdot(basis[j], image), jnp.where(goes_on, below, 0.0))

    basis = jnp.zeros((steps + 1, start.size), start.dtype).at[0].set(start / jnp.linalg.norm(start))
    basis, (diagonal, below) = jax.lax.scan(step, basis, jnp.arange(steps))
    # T = tridiag(beta, alpha, beta) = S diag(theta) S', Ritz vectors Q S, residuals beta_k |last row of S|
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
    # theta_max of A A'
    square = extreme_eigenvalues(lambda x: forward(adjoint(x)), start)[1]
    # sigma = sqrt(theta), and its error, to first order, is that of theta over 2 sigma
    value = jnp.sqrt(jnp.maximum(square.value, 0.0))
    return Measured(value, jnp.where(value > 0, square.error / jnp.where(value > 0, 2 * value, 1.0), 0.0))


def trilinear_norm(form: Callable[[Array, Array, Array], Array], sizes: tuple[int, int, int], key: Array) -> Measured:
    """The largest |F(a, b, c)| over unit vectors, by an alternating power method: the best of a few local maxima.

    First over a and b alone, with c as it starts, once random signs and otherwise normal: a diagonal F, as of one
    penalty per weight, has a local maximum at each of its entries, and signs find the largest. A lower bound, and most
    often the norm itself; the error is that of the mean over the starts.

    Source: De Lathauwer, De Moor, Vandewalle (2000), On the best rank-1 approximation of higher-order tensors.

    Args:
        form: linear in each of its three arguments.
        sizes: of the arguments.
        key: of the random starts.
    """

    def unit(x: Array) -> Array:
        length = jnp.linalg.norm(x)
        return x / jnp.where(length > 0, length, 1.0)

    def sweep(j: Array, point: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        a, b, c = point
        # a <- F(., b, c) / ||F(., b, c)||, the best unit vector for fixed b and c; then b, then c
        a = unit(jax.grad(form, 0)(a, b, c))
        b = unit(jax.grad(form, 1)(a, b, c))
        return a, b, jnp.where(j < SWEEPS, c, unit(jax.grad(form, 2)(a, b, c)))

    def climb(start: Array) -> Array:
        keys = jax.random.split(jax.random.fold_in(key, start), 3)
        # of several starts, as local maxima are many
        a, b, c = (jax.random.normal(k, (size,)) for k, size in zip(keys, sizes, strict=True))
        c = jnp.where(start == 0, jnp.sign(c), c)
        return jnp.abs(form(*jax.lax.fori_loop(0, 2 * SWEEPS, sweep, (unit(a), unit(b), unit(c)))))

    heights = jax.lax.map(climb, jnp.arange(STARTS))
    # the largest found, and std / sqrt(starts - 1)
    return Measured(jnp.max(heights), jnp.std(heights) / jnp.sqrt(STARTS - 1.0))
