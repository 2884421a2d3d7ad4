"""The one stochastic solver: it finds w, and it solves the linear system for v."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import config, count, set_fields
from bilevax.core.records import Solved
from bilevax.core.trees import PyTree, all_finite
from bilevax.data.fold import RowSource
from bilevax.solvers.schedules import Constant, at_step, schedule

DIVERGED = 1e12
"""Growth of the norm, against 1 + the start's, beyond which an iteration is said to diverge."""


@config
class FixedPoint:
    """x_{j+1} = x_j + eta_j (T(x_j; zeta_j) - x_j), j < steps: stochastic approximation of a fixed point.

    Assumes that T is a contraction in expectation. For T = Phi(., lam) and Phi a gradient step this is stochastic
    gradient descent; for T(v) = d1Phi^T v + g it is the linear solver of SID.

    Cost: ``steps`` minibatches. Source: Grazzi, Pontil, Salzo (2021), arXiv:2011.07122.

    Args:
        steps: t (or k), a count of at least 0, or :class:`~bilevax.Growing` with the outer step.
        step_size: eta_j: a number in (0, inf), or :class:`Constant`, :class:`Harmonic`, :class:`Polynomial`, or any
            function of j. Restarts at j = 0 for every hypergradient. Default 1: the map itself.
    """

    stochastic: ClassVar[bool] = True

    steps: Any
    step_size: Any = Constant(1.0)

    def __post_init__(self) -> None:
        set_fields(self, steps=count("steps", self.steps), step_size=schedule(self.step_size))

    def solve(
        self,
        image: Callable[[PyTree, PyTree, PyTree], PyTree],
        start: PyTree,
        args: PyTree,
        source: RowSource,
        *,
        key: Array,
        s: Array | int = 0,
    ) -> Solved:
        """Run the iteration.

        Args:
            image: T as (x, args, batch) -> x.
            start: x_0.
            args: what T reads beside x and the batch.
            source: where the minibatches come from.
            key: of this stream.
            s: outer step, for counts that grow.
        """
        steps = at_step(self.steps, s)

        def step(x: PyTree, args: PyTree, j: Array, draw: Any) -> PyTree:
            eta = self.step_size(j) * draw.weight
            return jax.tree.map(lambda a, b: a + eta.astype(a.dtype) * (b - a), x, image(x, args, draw.batch))

        end = source.fold(step, start, args, key=key, start=0, stop=steps)
        return Solved(end, growth_code(start, end), steps)


def growth_code(start: PyTree, end: PyTree) -> Array:
    """NONFINITE, DIVERGED or OK, from where an iteration began and ended."""
    size = [jnp.max(jnp.abs(x)).astype(jnp.result_type(float)) for x in jax.tree.leaves(end)]
    before = [jnp.max(jnp.abs(x)).astype(jnp.result_type(float)) for x in jax.tree.leaves(start)]
    grown = jnp.max(jnp.stack(size)) > DIVERGED * (1.0 + jnp.max(jnp.stack(before)))
    code = jnp.where(grown, jnp.int32(Code.DIVERGED), jnp.int32(Code.OK))
    return jnp.where(all_finite(end), code, jnp.int32(Code.NONFINITE))


@config
class Given:
    """The inner problem is solved already: w is the start value. Cost: nothing."""
