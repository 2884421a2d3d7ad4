"""The one stochastic solver: it finds w, and it solves the linear system for v."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import check_count, check_fields, config, positive, set_frozen
from bilevax.core.protocols import Draw, RowSource
from bilevax.core.records import SNAPSHOTS, Snapshots, Solution
from bilevax.core.trees import (
    Operator,
    PyTree,
    at_least_single,
    axpy,
    largest,
    leaf_sum,
    norm,
    row,
    sub,
    where,
    zeros_like,
)
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
"""||x_t - x_0|| / ||x_{t/2} - x_0|| beyond which a stochastic iteration is under suspicion.

In the mean it is 1 + q^(t/2), at most 2 for a contraction, and sqrt(1 + q^t) where there is nothing but noise.
"""

Image: TypeAlias = Callable[[PyTree, PyTree, PyTree], PyTree]
"""T as (x, args, batch) -> x."""

Iterate: TypeAlias = tuple[PyTree, Array, Array]
"""x, the step at which it was lost or -1, and the sum of the step sizes."""


@config
class FixedPoint:
    """x_{j+1} = x_j + eta_j (T(x_j; zeta_j) - x_j), j < steps: stochastic approximation of a fixed point.

    Assumes that T is a contraction in expectation. For T = Phi(., lam) and Phi a gradient step this is stochastic
    gradient descent; for T(v) = d1Phi^T v + g it is the linear solver of SID.

    On full batches its moves are monitored: it ends early with NOT_CONTRACTIVE where they grow, and the code is
    TOLERANCE_NOT_MET where the estimated error is more than ``tol``.

    On minibatches a chain of more than ten steps is under suspicion where it ends three times as far from its start as
    it was half-way, or has grown by 1e12: 400 steps of a coupled pair tell whether it is NOT_CONTRACTIVE, UNSTABLE (the
    mean map contracts) or DIVERGED. So q = 1.3 is named after 20 steps and q = 1.1 after 50, whatever the additive
    noise. A random walk (q = 1) is not told from slow contraction, nor is a second moment that grows while the chain
    at hand does not.

    Cost: ``steps`` minibatches; 400 more under suspicion, and 50 products on every row where growth is found.
    Source: Grazzi, Pontil, Salzo (2021), arXiv:2011.07122.

    Args:
        steps: t (or k), a count of at least 0, or :class:`~bilevax.Growing` with the outer step.
        step_size: eta_j: a number in (0, inf), or :class:`Constant`, :class:`Harmonic`, :class:`Polynomial`, or any
            function of j. Restarts at j = 0 for every hypergradient. Default 1: the map itself.
        tol: relative error of x above which the code is TOLERANCE_NOT_MET, estimated on full batches. Default 0.1.
        confirm: test a suspicion that the iteration does not contract (default). False: take it for proof, and do not
            record the step at which x was lost: it compiles in half of the time, and is right where the code is less
            than NOT_CONTRACTIVE.
    """

    stochastic: ClassVar[Literal[True]] = True

    steps: Any
    step_size: Any = Constant(1.0)
    tol: float = 0.1
    confirm: bool = True

    def __post_init__(self) -> None:
        check_fields(self, tol=positive, steps=check_count)
        set_frozen(self, step_size=schedule(self.step_size))

    def solve(
        self,
        image: Image,
        start: PyTree,
        args: PyTree,
        source: RowSource,
        *,
        key: Array,
        outer_step: Array | int = 0,
        first: Array | int = 0,
    ) -> Solution:
        """Run the iteration.

        Args:
            image: T as (x, args, batch) -> x.
            start: x_0.
            args: what T reads beside x and the batch.
            source: where the minibatches come from.
            key: of this stream.
            outer_step: for counts that grow.
            first: number of the first minibatch and step size, those made before; a chain that is continued is to the
                bit the one that was not stopped.
        """
        steps = at_step(self.steps, outer_step)
        if source.is_full_batch:
            return self._on_full_batch(image, start, args, source, steps, first)

        def step(carry: Iterate, args: PyTree, j: Array, draw: Draw) -> Iterate:
            x, lost, cumulative_step = carry
            eta = self.step_size(j) * draw.weight
            new = self._moved(image, x, args, draw.batch, eta)
            cumulative_step = cumulative_step + jnp.asarray(eta).astype(cumulative_step.dtype)
            if not self.confirm:
                return new, lost, cumulative_step
            # the last finite x, and the step at which the next was not
            good = (lost < 0) & jnp.isfinite(_sum(new))
            return where(good, new, x), jnp.where(good | (lost >= 0), lost, j), cumulative_step

        stops = first + boundaries(steps)
        carry = (start, jnp.int32(-1), jnp.zeros((), jnp.result_type(float)))
        # one loop, whose carry is returned at each of the stops, [SNAPSHOTS, ...]
        points, lost, cumulative_step = source.fold(step, carry, args, key=key, start=first, stop=stops)
        end, lost = row(points, -1), lost[-1]
        # ||x_t - x_0|| > 3 ||x_{t/2} - x_0||
        half_way = norm(sub(row(points, SNAPSHOTS - 3), start))
        suspicious = (steps > WINDOW) & (norm(sub(end, start)) > SUSPICIOUS * half_way)
        if not self.confirm:
            lost = jnp.where(jnp.isfinite(_sum(end)), lost, first)
        step_sizes = jax.vmap(lambda j: jnp.asarray(self.step_size(j)))(jnp.maximum(stops - 1, first))
        code, checks = confirm_divergence(
            image, (start, end), args, source,
            key=key, start=first + steps, step_size=step_sizes[-1],
            suspicious=(lost < 0) & suspicious, grown=has_grown(start, end), confirm=self.confirm,
        )  # fmt: skip
        code = jnp.where((lost >= 0) & (code == Code.OK), jnp.int32(Code.NONFINITE), code)
        # without a record of the step no last finite x is known
        if not self.confirm:
            end = where(lost < 0, end, start)
        last_step = jnp.where(lost < 0, first + steps, lost + 1)
        return Solution(end, code, steps, last_step, checks, Snapshots(points, cumulative_step, step_sizes))

    def _moved(self, image: Image, x: PyTree, args: PyTree, batch: PyTree, eta: Array) -> PyTree:
        # x + eta_j (T(x; zeta_j) - x)
        return axpy(eta, sub(image(x, args, batch), x), x)

    def _on_full_batch(
        self, image: Image, start: PyTree, args: PyTree, source: RowSource, steps: Array, first: Array | int
    ) -> Solution:
        """The deterministic iteration, its moves monitored."""

        def mean_image(x: PyTree) -> PyTree:
            return source.total(lambda at, batch: image(at[0], at[1], batch), (x, args))

        def vjp(x: PyTree, j: Array) -> Operator:
            # the eta of this step: its Jacobian is I + eta (d1T - I)
            eta = self.step_size(first + j)

            # u + eta (d1T^T u - u): of the derivative's transpose, the only product that a custom_vjp has
            def transposed(u: PyTree) -> PyTree:
                product = jax.vjp(mean_image, x)[1](u)[0]
                return axpy(eta, sub(product, u), u)

            return transposed

        def keep_going(state: tuple[PyTree, PyTree, MoveHistory, Array]) -> Array:
            _, _, moves, j = state
            return (j < steps) & (moves.code == Code.OK)

        def step(state: tuple[PyTree, PyTree, MoveHistory, Array]) -> tuple[PyTree, PyTree, MoveHistory, Array]:
            x, _, moves, j = state
            # x <- x + eta_j (T(x) - x)
            move = sub(mean_image(x), x)
            moves = monitor(moves, j, x, move, vjp(x, j), confirm=self.confirm)
            return where(moves.code == Code.OK, axpy(self.step_size(first + j), move, x), x), move, moves, j + 1

        state = (start, zeros_like(start), empty_history(start), jnp.int32(0))
        x, move, moves, j = jax.lax.while_loop(keep_going, step, state)
        code, checks = final_code(moves, j, (start, x), move, vjp(x, j), self.tol, confirm=self.confirm)
        eta = jnp.asarray(self.step_size(first + jnp.maximum(j - 1, 0))).astype(moves.lengths.dtype)
        error = moves_left(moves.lengths, j, x, move, eta)
        return Solution(x, jnp.where(steps > 0, code, jnp.int32(Code.OK)), j, first + j, checks, error=error)


def boundaries(steps: Array) -> Array:
    """Where the segments of a chain end, [SNAPSHOTS]: each after sqrt(2) times as many steps as the one before."""
    # steps / sqrt(2) = 181 / 256 steps to 1e-4, in integers that do not overflow
    root = 181 * (steps >> 8) + (181 * (steps & 255) >> 8)
    halvings = jnp.arange(SNAPSHOTS // 2 - 1, -1, -1, dtype=jnp.int32)
    return jnp.stack([root >> halvings, steps >> halvings], axis=1).reshape(-1)


def _sum(tree: PyTree) -> Array:
    """Sum over all entries, finite if all are and no overflow of their sum occurs."""
    # one reduction, where all_finite takes two passes a leaf: this is done at every step
    return leaf_sum(jax.tree.map(lambda x: jnp.sum(x).astype(jnp.result_type(float)), tree))


def has_grown(start: PyTree, end: PyTree) -> Array:
    """True where max |end| > DIVERGED (1 + max |start|)."""
    # in float32 at least: 1e12 is beyond the range of float16
    return at_least_single(largest(end)) > DIVERGED * (1.0 + at_least_single(largest(start)))


@config
class Given:
    """The inner problem is solved already: w is the start value. Cost: nothing."""
