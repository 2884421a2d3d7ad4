"""The one stochastic solver: it finds w, and it solves the linear system for v."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import check_count, check_real, config, set_frozen
from bilevax.core.protocols import RowSource
from bilevax.core.records import SNAPSHOTS, Snapshots, Solution
from bilevax.core.trees import PyTree, at_least_single, axpy, largest, norm, sub, where, zeros_like
from bilevax.solvers.left import moves_left
from bilevax.solvers.schedules import Constant, at_step, schedule
from bilevax.solvers.stability import (
    DIVERGED,
    WINDOW,
    MoveHistory,
    confirm_divergence,
    empty_history,
    final_code,
    monitor,
)

SUSPICIOUS = 3.0
"""||x_t - x_0|| / ||x_{t/2} - x_0|| beyond which a stochastic iteration is looked into.

In the mean it is 1 + q^(t/2), at most 2 for a contraction, and sqrt(1 + q^t) where there is nothing but noise.
"""


@config
class FixedPoint:
    """x_{j+1} = x_j + eta_j (T(x_j; zeta_j) - x_j), j < steps: stochastic approximation of a fixed point.

    Assumes that T is a contraction in expectation. For T = Phi(., lam) and Phi a gradient step this is stochastic
    gradient descent; for T(v) = d1Phi^T v + g it is the linear solver of SID.

    Where every row is seen at each step the moves are watched: it ends early with NOT_CONTRACTIVE where they grow, and
    says TOLERANCE_NOT_MET where the estimated error is more than ``tol``.

    On minibatches a chain of more than ten steps is looked into where it ends three times as far from its start as it
    was half-way, or has grown by 1e12: 400 steps of a coupled pair say whether it is NOT_CONTRACTIVE, UNSTABLE (the
    mean map contracts) or DIVERGED. So q = 1.3 is named after 20 steps and q = 1.1 after 50, whatever the additive
    noise. A random walk (q = 1) is not told from slow contraction, nor a second moment that grows while the chain at
    hand does not.

    Cost: ``steps`` minibatches; where it is looked into 400 more, and where growth is found 50 products on every row.
    Source: Grazzi, Pontil, Salzo (2021), arXiv:2011.07122.

    Args:
        steps: t (or k), a count of at least 0, or :class:`~bilevax.Growing` with the outer step.
        step_size: eta_j: a number in (0, inf), or :class:`Constant`, :class:`Harmonic`, :class:`Polynomial`, or any
            function of j. Restarts at j = 0 for every hypergradient. Default 1: the map itself.
        tol: relative error of x above which the code is TOLERANCE_NOT_MET, estimated where every row is seen. Default
            0.1.
        confirm: look into a suspicion that the iteration does not contract (default). False: take it for proof, and do
            not look for the step at which x was lost: it compiles in half of the time, and is right where the code is
            less than NOT_CONTRACTIVE.
    """

    stochastic: ClassVar[bool] = True

    steps: Any
    step_size: Any = Constant(1.0)
    tol: float = 0.1
    confirm: bool = True

    def __post_init__(self) -> None:
        tol = check_real("tol", self.tol, low=0.0, open_low=True)
        set_frozen(self, steps=check_count("steps", self.steps), step_size=schedule(self.step_size), tol=tol)

    def solve(
        self,
        image: Callable[[PyTree, PyTree, PyTree], PyTree],
        start: PyTree,
        args: PyTree,
        source: RowSource,
        *,
        key: Array,
        s: Array | int = 0,
        first: Array | int = 0,
    ) -> Solution:
        """Run the iteration.

        Args:
            image: T as (x, args, batch) -> x.
            start: x_0.
            args: what T reads beside x and the batch.
            source: where the minibatches come from.
            key: of this stream.
            s: outer step, for counts that grow.
            first: number of the first minibatch and step size, those made before; a chain that is continued is to the
                bit the one that was not stopped.
        """
        steps = at_step(self.steps, s)
        if source.is_full_batch:
            return self._on_every_row(image, start, args, source, steps, first)

        def step(carry: tuple[PyTree, Array, Array], args: PyTree, j: Array, draw: Any) -> tuple[PyTree, Array, Array]:
            x, lost, travel = carry
            eta = self.step_size(j) * draw.weight
            move = sub(image(x, args, draw.batch), x)
            new, travel = axpy(eta, move, x), travel + jnp.asarray(eta).astype(travel.dtype)
            if not self.confirm:
                return new, lost, travel
            good = (lost < 0) & jnp.isfinite(_sum(move))  # the last finite x is kept
            return where(good, new, x), jnp.where(good | (lost >= 0), lost, j), travel

        stops = first + _cuts(steps)
        carry = (start, jnp.int32(-1), jnp.zeros((), jnp.result_type(float)))
        points, lost, travel = source.fold(step, carry, args, key=key, start=first, stop=stops)
        end, lost = jax.tree.map(lambda x: x[-1], points), lost[-1]
        way = norm(sub(jax.tree.map(lambda x: x[SNAPSHOTS - 3], points), start))  # half-way
        if not self.confirm:
            lost = jnp.where(jnp.isfinite(_sum(end)), lost, first)
        sizes = jax.vmap(lambda j: jnp.asarray(self.step_size(j)))(jnp.maximum(stops - 1, first))
        code, checks = confirm_divergence(
            image, (start, end), args, source,
            key=key, start=first + steps, step_size=sizes[-1],
            suspicious=(lost < 0) & (steps > WINDOW) & (norm(sub(end, start)) > SUSPICIOUS * way),
            grown=has_grown(start, end), confirm=self.confirm,
        )  # fmt: skip
        code = jnp.where((lost >= 0) & (code == Code.OK), jnp.int32(Code.NONFINITE), code)
        if not self.confirm:
            end = where(lost < 0, end, start)  # the last finite x was not looked for
        step_number = jnp.where(lost < 0, first + steps, lost + 1)
        return Solution(end, code, steps, step_number, checks, Snapshots(points, travel, sizes))

    def _on_every_row(
        self,
        image: Callable[[PyTree, PyTree, PyTree], PyTree],
        start: PyTree,
        args: PyTree,
        source: RowSource,
        steps: Array,
        first: Array | int,
    ) -> Solution:
        """The deterministic iteration, its moves watched."""

        def mean_image(x: PyTree) -> PyTree:
            return source.total(lambda at, batch: image(at[0], at[1], batch), (x, args))

        def vjp(x: PyTree, j: Array) -> Callable[[PyTree], PyTree]:
            eta = self.step_size(first + j)

            def transposed(u: PyTree) -> PyTree:  # of its derivative: the only product that a custom_vjp has
                product = jax.vjp(mean_image, x)[1](u)[0]
                return axpy(eta, sub(product, u), u)

            return transposed

        def going(state: tuple[PyTree, PyTree, MoveHistory, Array]) -> Array:
            _, _, seen, j = state
            return (j < steps) & (seen.code == Code.OK)

        def step(state: tuple[PyTree, PyTree, MoveHistory, Array]) -> tuple[PyTree, PyTree, MoveHistory, Array]:
            x, _, seen, j = state
            move = sub(mean_image(x), x)
            seen = monitor(seen, j, x, move, vjp(x, j), confirm=self.confirm)
            return where(seen.code == Code.OK, axpy(self.step_size(first + j), move, x), x), move, seen, j + 1

        state = (start, zeros_like(start), empty_history(start), jnp.int32(0))
        x, move, seen, j = jax.lax.while_loop(going, step, state)
        code, checks = final_code(seen, j, (start, x), move, vjp(x, j), self.tol, confirm=self.confirm)
        eta = jnp.asarray(self.step_size(first + jnp.maximum(j - 1, 0))).astype(seen.lengths.dtype)
        left = moves_left(seen.lengths, j, x, move, eta)
        return Solution(x, jnp.where(steps > 0, code, jnp.int32(Code.OK)), j, first + j, checks, left=left)


def _cuts(steps: Array) -> Array:
    """Where the stretches of a chain of so many steps end, [TAIL]: each after sqrt(2) times as many as the last."""
    root = 181 * (steps >> 8) + (181 * (steps & 255) >> 8)  # steps / sqrt(2)
    halvings = jnp.arange(SNAPSHOTS // 2 - 1, -1, -1, dtype=jnp.int32)
    return jnp.stack([root >> halvings, steps >> halvings], axis=1).reshape(-1)


def _sum(tree: PyTree) -> Array:
    """Sum over all entries, finite if all are and no overflow of their sum occurs."""
    return functools.reduce(jnp.add, [jnp.sum(x).astype(jnp.result_type(float)) for x in jax.tree.leaves(tree)])


def has_grown(start: PyTree, end: PyTree) -> Array:
    """True where an iteration ended at more than DIVERGED times where it began."""
    return at_least_single(largest(end)) > DIVERGED * (1.0 + at_least_single(largest(start)))


@config
class Given:
    """The inner problem is solved already: w is the start value. Cost: nothing."""
