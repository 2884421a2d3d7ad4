"""The inner map of an unrolled method: so many steps from a start, each with parameters of its own."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.config import at_least_one, check_fields, config, function_of, static
from bilevax.core.trees import PyTree


@config
class Unrolled:
    """Phi(w, lam) = z_T, z_{t+1} = step(z_t, lam, batch, t), z_0 = start(lam, batch), whatever w is.

    The inner problem of a method that makes T steps and no more, such as an unfolded network, whose steps may differ:
    lam has what they read at t. Where :class:`~bilevax.ITD` differentiates T steps towards a fixed point, here the last
    of them *is* w(lam), and no fixed point is needed; the Jacobian d1Phi is 0, and the hypergradient backpropagation
    through all steps, by any estimator, at the least cost by ``bx.ITD(1, tol=jnp.inf)``: one move is all there is.

    Assumes nothing of the steps; minibatches are served where z has the rows of the batch, and val those of train (else
    full batches). Cost: T steps, and twice as many backwards; memory of T states, of the steps alone what they give.

    Args:
        step: (z, lam, batch, t) -> a tree like z, t an int32.
        start: (lam, batch) -> z_0, a tree like w.
        steps: T, a count of at least 1; a changed one compiles anew.

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> powers = bx.Unrolled(lambda z, lam, batch, t: lam * z, lambda lam, batch: jnp.ones(()), steps=3)
        >>> float(powers(jnp.zeros(()), jnp.float32(2.0), None))
        8.0
    """

    step: Callable[[PyTree, PyTree, PyTree, Array], PyTree]
    start: Callable[[PyTree, PyTree], PyTree]
    steps: int = static()

    def __post_init__(self) -> None:
        check_fields(
            self, step=function_of("(z, lam, batch, t)"), start=function_of("(lam, batch)"), steps=at_least_one
        )

    def __call__(self, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
        """z_T."""
        # a step is computed again on the way back, of which only z_t is kept
        step = jax.checkpoint(lambda z, t: (self.step(z, lam, batch, t), None))
        # z_T, which depends on lam alone: w plays no part, and the map contracts by 0
        return jax.lax.scan(step, self.start(lam, batch), jnp.arange(self.steps, dtype=jnp.int32))[0]
