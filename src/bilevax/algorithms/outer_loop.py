"""The outer loop of every algorithm: the fold over its streams, pure and traceable, with a record for each stretch."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import Algorithm, BilevelProblem, Sources, StepLooks
from bilevax.core.records import Cost, Failure, Info, first_failure
from bilevax.core.trees import PyTree, add, at_least_single, largest, norm, stays_finite, sub, zeros
from bilevax.data.fold import Underway, continued, no_plan
from bilevax.data.looks import Streams
from bilevax.solvers.stability import DIVERGED

EXPLODED = 1e4
"""Times its size before, the size of w that says that steps which were measured are too long."""

RECORDED = 64
"""Most stretches in one call of :func:`advance`."""


class Record(NamedTuple):
    """What is kept of a stretch of outer steps; see :class:`~bilevax.History`.

    Attributes:
        outer_value: mean over its steps, or at its end on the last minibatch of val.
        gradient_norm: mean over its steps, or norm of the mean direction: the change of lam over the sum of the steps.
        code: of the first step that failed, else the worst.
        failure: of the first step with that code.
        cost: of the stretch; None where the algorithm's ``step_cost`` says it.
        step: the outer step after it.
    """

    outer_value: Array
    gradient_norm: Array
    code: Array
    failure: Failure
    cost: Cost | None
    step: Array


class Advanced(NamedTuple):
    """Where a run has come to, and its records, [RECORDED], of which the first ``number`` are filled."""

    state: PyTree
    step: Array
    records: Record
    number: Array


class _Run(NamedTuple):
    """The loop of :func:`advance`: the fold under way, the worst code, and the records."""

    at: Underway
    code: Array
    records: Record
    number: Array


def advance(
    problem: BilevelProblem,
    algorithm: Algorithm,
    state: PyTree,
    sources: Sources,
    *,
    key: Array,
    start: Array,
    stop: Array,
    limit: Array | float = jnp.inf,
) -> Advanced:
    """Outer steps start <= k < stop, in stretches that end at multiples of ``algorithm.steps_per_record``.

    At most RECORDED stretches. Ends early with a stretch whose code is NOT_CONTRACTIVE or worse, in which an entry of
    the state became infinite or NaN (NONFINITE), or one of w or lam passed 1e12, or the recorded gradient norm its
    ``limit``, or, of a run that has one, w became 10,000 times as large (DIVERGED); the state is then the one before
    that stretch. How a run is cut into calls changes no iterate.

    Args:
        problem: the maps.
        algorithm: whose steps are made.
        state: from its ``init``, or from a call before.
        sources: (train, val).
        key: a JAX random key, the same in every call of a run.
        start: first outer step.
        stop: one past the last.
        limit: of the gradient norm of a stretch.
    """
    streams = Streams(algorithm.streams(sources), key)
    length = algorithm.steps_per_record

    def step(carry: tuple[PyTree, Info], _: PyTree, k: Array, looks: StepLooks) -> tuple[PyTree, Info]:
        state, total = carry
        state, info = algorithm.step(problem, state, looks, k)
        return state, _plus(total, info)

    def record(at: Underway, before: PyTree, first: Array) -> Record:
        after, total = at.carry
        points, end = (algorithm.solution(before), algorithm.solution(after)), at.j
        value = total.outer_value
        # where no step knows E anyway, one evaluation at the end of the stretch
        if value is None:
            value = streams.visit(at.plan, end - 1, partial(_outer_value, problem, points[1]))
        else:
            value = _mean(value, end - first)
        # DIVERGED where w or lam passed the bound in this stretch, or the norm its limit; NONFINITE where an entry of
        # the state was lost
        sizes = [[at_least_single(largest(x)) for x in point] for point in points]
        far = [jnp.maximum(*size) > DIVERGED for size in sizes]
        size = total.gradient_norm
        if size is None:
            way = norm(sub(points[1][1], points[0][1]))
            size = way / _sum_of_steps(algorithm, first, end).astype(way.dtype)  # |P-step| / sum of gamma_k
        else:
            size = _mean(size, end - first)
        beyond = (far[1] & ~far[0]) | (size > jnp.asarray(limit).astype(size.dtype))
        # a lam that is held by its set hides a w that explodes
        beyond |= (jnp.asarray(limit) < jnp.inf) & (sizes[1][0] > EXPLODED * sizes[0][0]) & (sizes[0][0] > 0)
        grown = jnp.where(beyond, jnp.int32(Code.DIVERGED), jnp.int32(Code.OK))
        lost = jnp.where(stays_finite(before, after), grown, jnp.int32(Code.NONFINITE))
        seen = () if total.outcome is None else (total.outcome,)
        code, failure = first_failure(*seen, (lost, Failure.of("none")))
        return Record(value, size, code, failure, total.cost, end)

    def stretch(run: _Run) -> _Run:
        before, first = run.at.carry[0], run.at.j
        # the next multiple of the length: so a run in several calls has the stretches of a run in one
        end = jnp.minimum(stop, (first // length + 1) * length)
        at = run.at._replace(carry=(before, nothing))
        at, _ = continued(streams, step, (), at, end, key=key, start=start)
        # a stretch that failed is undone: its record stays, the state is the one before it
        new = record(at, before, first)
        # by a branch, which copies one of the two: a select reads both
        state = jax.lax.cond(new.code < Code.NOT_CONTRACTIVE, lambda: at.carry[0], lambda: before)
        records = jax.tree.map(lambda a, x: a.at[run.number].set(x), run.records, new)
        return _Run(at._replace(carry=(state, nothing)), new.code, records, run.number + 1)

    def keep_going(run: _Run) -> Array:
        return (run.at.j < stop) & (run.number < RECORDED) & (run.code < Code.NOT_CONTRACTIVE)

    # the loop begins with empty records and sums, whose shapes a trace of one step tells
    nothing = _nothing(problem, algorithm, state, streams, key)
    at = Underway(start, no_plan(streams, key), (state, nothing))
    empty = zeros(jax.eval_shape(record, at, state, start), RECORDED)
    run = jax.lax.while_loop(keep_going, stretch, _Run(at, jnp.int32(Code.OK), empty, jnp.int32(0)))
    return Advanced(run.at.carry[0], run.at.j, run.records, run.number)


def _nothing(problem: BilevelProblem, algorithm: Algorithm, state: PyTree, streams: Streams, key: Array) -> Info:
    """What a stretch without a step would have seen: zeros in the shape of what a step lets be watched."""

    def first() -> Info:
        k = jnp.int32(0)
        plan = streams.plan_chunk(None, key, k, True)
        return streams.visit(plan, k, lambda looks: algorithm.step(problem, state, looks, k)[1])

    nothing: Info = zeros(jax.eval_shape(first))
    return nothing


def _plus(total: Info, info: Info) -> Info:
    """Sums, and the first failure, or else the worst code."""
    summed: Info = add(total._replace(outcome=None), info._replace(outcome=None))
    # codes do not add up: the first failure is kept, or else the worst code
    if total.outcome is None or info.outcome is None:
        return summed
    return summed._replace(outcome=first_failure(total.outcome, info.outcome))


def _outer_value(problem: BilevelProblem, point: tuple[PyTree, PyTree], looks: StepLooks) -> Array:
    """E at a point on the minibatch of val."""
    if "val" not in looks:
        raise ParameterError("a step must let its outer_value be watched, or one of the streams be called 'val'")
    value: Array = looks["val"](lambda draw: problem.outer_loss(*point, draw.batch))
    return value


def _sum_of_steps(algorithm: Algorithm, first: Array, end: Array) -> Array:
    """Sum of gamma_k over first <= k < end."""
    steps = first + jnp.arange(algorithm.steps_per_record, dtype=jnp.int32)
    gamma = jax.vmap(algorithm.outer_step_size)(steps)
    if gamma is None:
        raise ParameterError(
            "a step must let its gradient_norm be watched, or the algorithm have an outer_step_size(k)"
        )
    return jnp.sum(jnp.where(steps < end, gamma, jnp.zeros_like(gamma)))


def _mean(total: Array, steps: Array) -> Array:
    return total / steps.astype(total.dtype)
