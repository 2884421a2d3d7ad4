"""A chain of moves towards a fixed point, on minibatches or on every row: what all stochastic solvers share.

In, from a solver: its settings, and its rule, how a point moves along T(x; zeta) - x, with a memory (momentum, a table)
that is carried. Out: the :class:`~bilevax.core.records.Solution`, its code, and the evidence for an error report.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import Steps
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
from bilevax.solvers.schedules import StepSize, at_step
from bilevax.solvers.stability import (
    DIVERGED,
    NEVER,
    WINDOW,
    MoveHistory,
    confirm_divergence,
    empty_history,
    final_code,
    mean_over,
    monitor,
)

SUSPICIOUS = 3.0
"""||x_t - x_0|| / max_{j <= t/2} ||x_j - x_0|| beyond which a stochastic iteration is under suspicion.

In the mean ||x_t - x_0|| / ||x_{t/2} - x_0|| is 1 + q^(t/2), at most 2 for a contraction, and sqrt(1 + q^t) where
there is nothing but noise, which may bring one point back to x_0, but hardly all of them.
"""

Image: TypeAlias = Callable[[PyTree, PyTree, PyTree], PyTree]
"""T as (x, args, batch) -> x."""


class View(NamedTuple):
    """What a move sees of its step.

    Attributes:
        batch: the minibatch; None where it is every row.
        number: of steps made before it in this chain.
        eta: the step size, in map form.
        weight: of the minibatch, a factor on its direction.
        block: its number in ``sampling="blocks"``, else -1.
        direction: x -> T(x; zeta) - x.
        mean_direction: x -> T(x) - x, on every row.
    """

    batch: PyTree
    number: Array
    eta: Array
    weight: Array | float
    block: Array | int
    direction: Operator
    mean_direction: Operator


class Rule(NamedTuple):
    """How a chain moves.

    Attributes:
        begin: x_0 -> the memory before the first move.
        move: (x, memory, view) -> x and memory after it, and the direction by whose lengths growth is seen.
        tested: what is looked into under suspicion of growth: the "pair" of x and memory, the "point" x alone, as it
            moves without a memory; None: nothing.
        curvature: 1 - q -> eta times the curvature of a direction that shrinks by q in a step.
        caution: of the estimated error on every row, what 1 - q leaves out: curvature(1 - q) >= caution (1 - q).
        pace: eta -> the plain step in which a direction relaxes no faster than in one of this rule; for the snapshots.
        average: part of the steps, the last, of whose points the mean is returned; None: the last point. On full
            batches there is no noise to average: the last point.
        calls: steps -> oracle calls, each on a minibatch.
    """

    begin: Callable[[PyTree], PyTree]
    move: Callable[[PyTree, PyTree, View], tuple[PyTree, PyTree, PyTree]]
    tested: Literal["pair", "point"] | None = "point"
    curvature: Callable[[Array], Array] = lambda slow: slow
    caution: Array | float = 1.0
    pace: Callable[[Array], Array] = lambda eta: eta
    average: Array | float | None = None
    calls: Callable[[Array], Array] = lambda steps: steps


def plain(x: PyTree, memory: PyTree, view: View) -> tuple[PyTree, PyTree, PyTree]:
    """X <- x + eta_j (T(x; zeta_j) - x)."""
    d = view.direction(x)
    return axpy(view.eta * view.weight, d, x), memory, d


PLAIN = Rule(lambda x: (), plain)
"""Stochastic approximation, without a memory."""


class Settings(Protocol):
    """Of a solver that runs a chain; see :class:`~bilevax.FixedPoint`."""

    @property
    def steps(self) -> Steps:
        """How many."""

    @property
    def step_size(self) -> StepSize | None:
        """eta_j; None: the rule has none."""

    @property
    def tol(self) -> float:
        """Relative error on every row above which the code is TOLERANCE_NOT_MET."""

    @property
    def confirm(self) -> bool:
        """Whether a suspicion is tested."""

    def rule(self, args: PyTree, source: RowSource) -> Rule:
        """How x moves; ``args`` are those of T."""


class Iterate(NamedTuple):
    """The loop of a chain.

    Attributes:
        x: the last finite one, if a failure is looked for.
        memory: of the rule.
        lost: the step at which x was lost, or -1.
        clock: sum of the step sizes, up to where averaging begins.
        mean: of the last points; () where none is asked for.
    """

    x: PyTree
    memory: PyTree
    lost: Array
    clock: Array
    mean: PyTree


def confirms(solver: object) -> bool:
    """True for a solver that can be told to take a suspicion for proof, by its field ``confirm``."""
    return dataclasses.is_dataclass(solver) and any(f.name == "confirm" for f in dataclasses.fields(solver))


class Chain:
    """A solver that runs a chain, with the settings of :class:`~bilevax.FixedPoint` as its fields."""

    stochastic: ClassVar[Literal[True]] = True

    def solve(
        self: Settings,
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
            first: number of the first minibatch and step size, those made before. A memory begins anew; without one, a
                chain that is continued is to the bit the one that was not stopped.
        """
        rule = self.rule(args, source)
        steps, average = at_step(self.steps, outer_step), rule.average
        if source.is_full_batch:
            return _on_every_row(rule, self, image, start, args, source, steps=steps, first=first)
        # a rule that is not tested has no confirm, and what it lost is recorded
        recorded = self.confirm or rule.tested is None
        led = _before_averaging(steps, average)

        def step(at: Iterate, args: PyTree, j: Array, draw: Draw) -> Iterate:
            view = _view(image, args, source, draw)(j - first, _size(self, j))
            new, memory, d = rule.move(at.x, at.memory, view)
            clock, lost = at.clock, at.lost
            clock += jnp.where(view.number < led, rule.pace(view.eta), 0.0).astype(clock.dtype)
            if recorded:
                # the last x at which the direction was finite, and the step at which it was not
                good = (lost < 0) & jnp.isfinite(_sum(d))
                new, lost = where(good, new, at.x), jnp.where(good | (lost >= 0), lost, j)
            # mean <- mean + (x - mean) / (number of points)
            points = jnp.maximum(view.number - led + 1, 1).astype(at.clock.dtype)
            mean = at.mean if average is None else axpy(1.0 / points, sub(new, at.mean), at.mean)
            return Iterate(new, memory, lost, clock, mean)

        # one loop, whose carry is returned at each of the stops, [SNAPSHOTS, ...]; where points are averaged the last
        # but one are those before, and the clock stands still: the mean is as near as the first of its points
        counted = first + boundaries(led)
        mean = () if average is None else start
        begin = Iterate(start, rule.begin(start), jnp.int32(-1), jnp.zeros((), jnp.result_type(float)), mean)
        reached = source.fold(step, begin, args, key=key, start=first, stop=counted.at[-1].set(first + steps))
        points, lost = reached.x, reached.lost[-1]
        if average is not None:
            points = jax.tree.map(lambda x, m: x.at[-1].set(m[-1]), points, reached.mean)
        end = row(points, -1)
        # ||x_t - x_0|| > 3 ||x_j - x_0|| at the stops j <= t/2
        half_way = jnp.max(jax.vmap(lambda x: norm(sub(x, start)))(row(points, slice(None, SNAPSHOTS - 2))))
        suspicious = (led > WINDOW) & (norm(sub(end, start)) > SUSPICIOUS * half_way)
        if not recorded:
            lost = jnp.where(jnp.isfinite(_sum(end)), lost, first)
        sizes = jax.vmap(lambda j: _size(self, j))(jnp.maximum(counted - 1, first))
        code, checks = _verdict(
            rule, self, image, (start, end), args, source,
            key=key, start=first + steps, eta=sizes[-1], suspicious=(lost < 0) & suspicious,
        )  # fmt: skip
        code = jnp.where((lost >= 0) & (code == Code.OK), jnp.int32(Code.NONFINITE), code)
        # without a record of the step no last finite x is known
        if not recorded:
            end = where(lost < 0, end, start)
        last_step = jnp.where(lost < 0, first + steps, lost + 1)
        clock = (None, None) if self.step_size is None else (reached.clock, rule.pace(sizes))
        return Solution(end, code, rule.calls(steps), last_step, checks, Snapshots(points, *clock))


def _before_averaging(steps: Array, average: Array | float | None) -> Array:
    """How many steps there are before those whose points are averaged: a part of all, at least one."""
    # ceil(part t), at least one
    kept = 0.0 if average is None else jnp.maximum(jnp.ceil(jnp.asarray(average) * steps.astype(float)), 1.0)
    return steps - jnp.asarray(kept).astype(jnp.int32)


def _size(solver: Settings, j: Array) -> Array:
    """eta_j; 1 where the rule has none."""
    eta = solver.step_size
    if eta is None:
        return jnp.ones(())
    return jnp.asarray(eta(j) if callable(eta) else eta)


def _view(image: Image, args: PyTree, source: RowSource, draw: Draw) -> Callable[[Array, Array], View]:
    """(number, eta) -> what a move on this minibatch sees."""

    def direction(x: PyTree) -> PyTree:
        return sub(image(x, args, draw.batch), x)

    def mean_direction(x: PyTree) -> PyTree:
        return sub(mean_over(image, x, args, source), x)

    return lambda number, eta: View(draw.batch, number, eta, draw.weight, draw.block, direction, mean_direction)


def _verdict(
    rule: Rule,
    solver: Settings,
    image: Image,
    points: tuple[PyTree, PyTree],
    args: PyTree,
    source: RowSource,
    *,
    key: Array,
    start: Array,
    eta: Array,
    suspicious: Array,
) -> tuple[Array, Array]:
    """The code of a chain that may be growing, and diagnostic products (:func:`confirm_divergence`)."""
    judged = partial(
        confirm_divergence,
        source=source,
        key=key,
        start=start,
        suspicious=suspicious & (rule.tested is not None),
        grown=has_grown(*points),
        confirm=solver.confirm,
    )
    if rule.tested != "pair":
        return judged(image, points, args, step_size=eta)

    # the pair z = (x, memory), which moves by its own map, z <- z + (move(z) - z)
    def pair_image(z: PyTree, args: PyTree, batch: PyTree) -> PyTree:
        x, memory = z
        return rule.move(x, memory, _view(image, args, source, Draw(batch, -1, 1.0))(jnp.int32(1), eta))[:2]

    begin, end = ((x, rule.begin(x)) for x in points)
    return judged(pair_image, (begin, end), args, step_size=jnp.ones_like(eta))


def _on_every_row(
    rule: Rule,
    solver: Settings,
    image: Image,
    start: PyTree,
    args: PyTree,
    source: RowSource,
    *,
    steps: Array,
    first: Array | int,
) -> Solution:
    """The deterministic iteration, its moves monitored."""

    def direction(x: PyTree) -> PyTree:
        return sub(mean_over(image, x, args, source), x)

    def moved(z: tuple[PyTree, PyTree], j: Array) -> tuple[PyTree, PyTree, PyTree]:
        return rule.move(*z, View(None, j, _size(solver, first + j), 1.0, -1, direction, direction))

    def vjp(z: PyTree, j: Array) -> Operator:
        # of the derivative's transpose, the only product that a custom_vjp has
        return lambda u: jax.vjp(lambda z: moved(z, j)[:2], z)[1](u)[0]

    def pair(d: PyTree, memory: PyTree) -> PyTree:
        # a direction of (x, memory); where nothing is tested, of x
        return d if rule.tested is None else (d, zeros_like(memory))

    confirm = solver.confirm and rule.tested is not None

    def keep_going(state: tuple[PyTree, PyTree, MoveHistory, Array]) -> Array:
        _, _, moves, j = state
        return (j < steps) & (moves.code == Code.OK)

    def step(state: tuple[PyTree, PyTree, MoveHistory, Array]) -> tuple[PyTree, PyTree, MoveHistory, Array]:
        z, _, moves, j = state
        *new, d = moved(z, j)
        d = pair(d, z[1])
        moves = monitor(moves, j, z[0], d, vjp(z, j), confirm=confirm)
        return where(moves.code == Code.OK, tuple(new), z), d, moves, j + 1

    z = start, rule.begin(start)
    moves = empty_history(start)
    if rule.tested is None:
        moves = moves._replace(look=jnp.int32(NEVER))
    z, d, moves, j = jax.lax.while_loop(keep_going, step, (z, pair(zeros_like(start), z[1]), moves, jnp.int32(0)))
    x, tol = z[0], jnp.asarray(solver.tol) * rule.caution
    code, checks = final_code(moves, j, (start, x), d, vjp(z, j), tol, confirm=confirm)
    eta = _size(solver, first + jnp.maximum(j - 1, 0)).astype(moves.lengths.dtype)
    move = d if rule.tested is None else d[0]
    error = moves_left(moves.lengths, j, x, move, eta, rule.curvature)
    if rule.tested is None:
        # moves that do not fall are no proof, and their rate is no curvature
        code = jnp.where(code == Code.NOT_CONTRACTIVE, jnp.int32(Code.TOLERANCE_NOT_MET), code)
        code = jnp.where(has_grown(start, x), jnp.maximum(code, jnp.int32(Code.DIVERGED)), code)
        error = error._replace(least=jnp.full_like(error.least, jnp.inf), most=jnp.zeros_like(error.most))
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
