"""The one stochastic solver: it finds w, and it solves the linear system for v."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import config, count, real, set_fields
from bilevax.core.records import Solved
from bilevax.core.trees import PyTree, all_finite, axpy, sub, where, zeros_like
from bilevax.data.fold import RowSource
from bilevax.solvers.contraction import Moves, no_moves, verdict, watch
from bilevax.solvers.schedules import Constant, at_step, schedule

DIVERGED = 1e12
"""Growth of the norm, against 1 + the start's, beyond which an iteration is said to diverge."""


@config
class FixedPoint:
    """x_{j+1} = x_j + eta_j (T(x_j; zeta_j) - x_j), j < steps: stochastic approximation of a fixed point.

    Assumes that T is a contraction in expectation. For T = Phi(., lam) and Phi a gradient step this is stochastic
    gradient descent; for T(v) = d1Phi^T v + g it is the linear solver of SID.

    Where every row is seen at each step the moves are watched: it ends early with NOT_CONTRACTIVE where they grow, and
    says BUDGET where the estimated error is more than ``tol``.

    Cost: ``steps`` minibatches. Source: Grazzi, Pontil, Salzo (2021), arXiv:2011.07122.

    Args:
        steps: t (or k), a count of at least 0, or :class:`~bilevax.Growing` with the outer step.
        step_size: eta_j: a number in (0, inf), or :class:`Constant`, :class:`Harmonic`, :class:`Polynomial`, or any
            function of j. Restarts at j = 0 for every hypergradient. Default 1: the map itself.
        tol: relative error of x above which the code is BUDGET, estimated where every row is seen. Default 0.1.
    """

    stochastic: ClassVar[bool] = True

    steps: Any
    step_size: Any = Constant(1.0)
    tol: float = 0.1

    def __post_init__(self) -> None:
        tol = real("tol", self.tol, low=0.0, open_low=True)
        set_fields(self, steps=count("steps", self.steps), step_size=schedule(self.step_size), tol=tol)

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
        if source.whole:
            return self._on_every_row(image, start, args, source.full, steps)

        def step(carry: tuple[PyTree, Array], args: PyTree, j: Array, draw: Any) -> tuple[PyTree, Array]:
            x, lost = carry
            eta = self.step_size(j) * draw.weight
            move = sub(image(x, args, draw.batch), x)
            good = (lost < 0) & jnp.isfinite(_sum(move))  # the last finite x is kept
            return where(good, axpy(eta, move, x), x), jnp.where(good | (lost >= 0), lost, j)

        end, lost = source.fold(step, (start, jnp.int32(-1)), args, key=key, start=0, stop=steps)
        code = jnp.where(lost < 0, growth_code(start, end), jnp.int32(Code.NONFINITE))
        return Solved(end, code, steps, jnp.where(lost < 0, steps, lost + 1))

    def _on_every_row(
        self,
        image: Callable[[PyTree, PyTree, PyTree], PyTree],
        start: PyTree,
        args: PyTree,
        batch: PyTree,
        steps: Array,
    ) -> Solved:
        """The deterministic iteration, its moves watched."""

        def push(x: PyTree, j: Array) -> Callable[[PyTree], PyTree]:
            eta = self.step_size(j)

            def along(u: PyTree) -> PyTree:
                return axpy(eta, sub(jax.jvp(lambda x: image(x, args, batch), (x,), (u,))[1], u), u)

            return along

        def going(state: tuple[PyTree, PyTree, Moves, Array]) -> Array:
            _, _, seen, j = state
            return (j < steps) & (seen.code == Code.OK)

        def step(state: tuple[PyTree, PyTree, Moves, Array]) -> tuple[PyTree, PyTree, Moves, Array]:
            x, _, seen, j = state
            move = sub(image(x, args, batch), x)
            seen = watch(seen, j, x, move, push(x, j))
            return where(seen.code == Code.OK, axpy(self.step_size(j), move, x), x), move, seen, j + 1

        state = (start, zeros_like(start), no_moves(start), jnp.int32(0))
        x, move, seen, j = jax.lax.while_loop(going, step, state)
        code = jnp.where(steps > 0, verdict(seen, j, (start, x), move, push(x, j), self.tol), jnp.int32(Code.OK))
        return Solved(x, code, j, j)


def _sum(tree: PyTree) -> Array:
    """Sum over all entries, finite if all are and no overflow of their sum occurs."""
    return functools.reduce(jnp.add, [jnp.sum(x).astype(jnp.result_type(float)) for x in jax.tree.leaves(tree)])


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
