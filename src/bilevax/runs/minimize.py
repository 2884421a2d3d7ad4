"""The one driver: runs an algorithm in compiled chunks, records, reports progress, and ends cleanly when stopped."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.algorithms.loop import RECORDED, Watched, advance
from bilevax.core.codes import Code
from bilevax.core.config import count, strong, to_plain
from bilevax.core.keys import as_key
from bilevax.core.protocols import RowSource
from bilevax.core.records import Cost, Count, Failure, History, Result
from bilevax.core.trees import PyTree, as_parameters
from bilevax.problems.problem import Problem
from bilevax.problems.validate import check_functions
from bilevax.runs.back_off import damped, dampings
from bilevax.solvers.stability import quickly_if_sound, suspicion_as_proof

CHUNK_SECONDS = 0.25
"""How long a compiled chunk should take, so that progress is live and Ctrl-C is answered."""


class Progress(NamedTuple):
    """What a callback sees after each chunk of outer steps.

    Attributes:
        step: outer steps done.
        steps: outer steps asked for.
        w: the inner variable.
        lam: the outer variable.
        history: all steps so far.
    """

    step: int
    steps: int
    w: PyTree
    lam: PyTree
    history: History


def minimize(
    problem: Problem,
    algorithm: Any,
    w0: PyTree,
    lam: PyTree,
    train: RowSource,
    val: RowSource,
    *,
    steps: int,
    key: Array,
    callback: Callable[[Progress], bool | None] | None = None,
    every: int | None = None,
) -> Result:
    """Minimise E(w(lam), lam) over Lambda.

    The run is cut into compiled chunks; how it is cut changes no bit of the result. Ctrl-C ends it after the chunk that
    is under way, with what was reached. A hypergradient that failed (NOT_CONTRACTIVE or worse) moves nothing and ends
    the run with the w and lam before it; ``message`` says at which outer step. But first, where an inner loss is not
    convex and the problem's ``damping`` is None, the step is made again with each damping of
    :data:`~bilevax.runs.back_off.DAMPINGS`, and the run goes on with the first that will do.

    Args:
        problem: the inner map, the outer loss, the set Lambda.
        algorithm: such as :class:`~bilevax.BSGM`.
        w0: start of the inner variable, d entries.
        lam: start of the outer variable, m entries; projected first.
        train: source of inner minibatches.
        val: source of outer minibatches.
        steps: number of outer steps, at least 1.
        key: a JAX random key.
        callback: called with a :class:`Progress` after each chunk; returning True ends the run.
        every: outer steps in a chunk, at most 64; None: as many as take about a quarter of a second.

    Raises:
        ParameterError: a wrong argument; see :func:`bilevax.hypergradient`.
    """
    steps = count("steps", steps, low=1)
    every = None if every is None else min(count("every", every, low=1), RECORDED)
    algorithm.check(problem)
    w0, lam, key = as_parameters("w0", w0), as_parameters("lam", lam), as_key(key)
    settings = {"problem": to_plain(problem), "algorithm": to_plain(algorithm), "steps": steps}
    ready = (strong(problem), strong(algorithm))
    clock = time.monotonic()
    state = _init(*ready, w0, lam, train, val)
    rows: list[tuple[Watched, float]] = []
    failed: list[tuple[Watched, float]] = []  # steps that were made again
    left, damping = dampings(problem), []
    done, chunk, interrupted = 0, every or 1, False
    while done < steps:
        began = time.monotonic()
        try:
            bounds = (jnp.int32(done), jnp.int32(min(done + chunk, steps)))
            advanced = partial(_advance, *ready, state, w0, (train, val), key, *bounds)
            after = quickly_if_sound(advanced, lambda out: out[2].code)
            state, reached, seen = jax.block_until_ready(after)
            new = int(reached) - done
            seen, seconds = jax.tree.map(lambda x, n=new: np.asarray(x)[:n], seen), time.monotonic() - clock
            done, again = int(reached), damped(problem, seen, left)
            if again is not None:
                problem, ready = again, (strong(again), ready[1])
                failed.append((jax.tree.map(lambda x: x[-1:], seen), seconds))
                seen, new, done = jax.tree.map(lambda x: x[:-1], seen), new - 1, done - 1
                damping.append([done, problem.damping])
            rows.append((seen, seconds))
            if done == 0:
                continue
            history = _history(rows)
            w, lam = algorithm.solution(state)
            stop = bool(callback(Progress(done, steps, w, lam, history))) if callback else False
        except KeyboardInterrupt:
            interrupted = True
            break
        if stop or history.code[-1] >= Code.NOT_CONTRACTIVE:
            break
        if every is None and len(rows) > 1:  # the first call compiles: its time says nothing
            per_step = (time.monotonic() - began) / max(new, 1)
            chunk = int(np.clip(CHUNK_SECONDS / max(per_step, 1e-9), 1, min(2 * chunk, RECORDED)))
    w, lam = algorithm.solution(state)
    history = _history(rows)
    code = int(history.code.max(initial=0))
    settings |= {"damping": damping} if damping else {}
    held = getattr(problem.project, "at_bound", None)
    at_bound = None if held is None else held(lam)
    return Result(w, lam, code, _first(rows, code), history, _total(rows + failed), settings, interrupted, at_bound)


@jax.jit
def _init(problem: Problem, algorithm: Any, w0: PyTree, lam: PyTree, train: RowSource, val: RowSource) -> PyTree:
    check_functions(problem, w0, lam, train, val)
    return algorithm.init(problem, w0, lam)


@partial(jax.jit, static_argnames="thorough")
def _advance(
    problem: Problem,
    algorithm: Any,
    state: PyTree,
    w0: PyTree,
    sources: tuple[RowSource, RowSource],
    key: Array,
    start: Array,
    stop: Array,
    *,
    thorough: bool,
) -> tuple[PyTree, Array, Watched]:
    with suspicion_as_proof(not thorough):
        return advance(problem, algorithm, state, w0, sources, key=key, start=start, stop=stop)


def _samples(cost: Cost) -> np.ndarray:
    """Sample visits of each recorded step, int64."""
    return np.sum([np.asarray(_reads(part), np.int64) * part.rows for part in cost], axis=0)


def _reads(part: Count) -> Any:
    return part.calls if part.reads is None else part.reads


def _history(rows: list[tuple[Watched, float]]) -> History:
    if not rows:
        empty = np.zeros(0)
        return History(empty, empty, np.zeros(0, np.int32), np.zeros(0, np.int64), empty)
    return History(
        outer_value=np.concatenate([r.outer_value for r, _ in rows]),
        gradient_norm=np.concatenate([r.gradient_norm for r, _ in rows]),
        code=np.concatenate([r.code for r, _ in rows]),
        visits=np.cumsum(np.concatenate([np.broadcast_to(_samples(r.cost), r.code.shape) for r, _ in rows])),
        seconds=np.concatenate([np.full(r.code.shape, seconds) for r, seconds in rows]),
    )


def _first(rows: list[tuple[Watched, float]], code: int) -> Failure:
    """The failure of the first step with the code."""
    for seen, _ in rows:
        for i in np.flatnonzero(seen.code == code):
            return jax.tree.map(lambda x, i=i: x[i], seen.failure)
    return Failure.of("none")


def _total(rows: list[tuple[Watched, float]]) -> Cost:
    parts = []
    for i in range(len(Cost._fields)):
        counts = [r.cost[i] for r, _ in rows]
        calls, reads = (sum(int(np.sum(x)) for x in each) for each in ([c.calls for c in counts], map(_reads, counts)))
        parts.append(Count(calls, max((c.rows for c in counts), default=0), reads))
    return Cost(*parts)
