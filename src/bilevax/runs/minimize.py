"""The one driver: runs an algorithm in compiled calls, records, reports progress, and ends cleanly when stopped."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.algorithms.measured_steps import SAMPLES, SHARE, measure_steps, needs_measuring
from bilevax.algorithms.outer_loop import RECORDED, Advanced, advance
from bilevax.core.codes import Code
from bilevax.core.config import canonicalize, check_count, to_plain
from bilevax.core.keys import as_key
from bilevax.core.protocols import Algorithm, RowSource, Sources
from bilevax.core.records import Cost, History, Result
from bilevax.core.trees import PyTree, as_parameters, row
from bilevax.data.looks import stream_key
from bilevax.hypergradients.estimate import suspecting
from bilevax.problems.problem import Problem
from bilevax.problems.validate import check_functions
from bilevax.runs.back_off import BackOff
from bilevax.runs.callbacks import Callback, Callbacks
from bilevax.runs.history import Log

CALL_SECONDS = 0.25
"""How long a compiled call should take, so that progress is live and Ctrl-C takes effect."""


class Progress(NamedTuple):
    """What a callback sees.

    Attributes:
        step: outer steps done.
        steps: outer steps of the run.
        w: the inner variable.
        lam: the outer variable.
        history: all steps so far; its arrays do not change any more.
    """

    step: int
    steps: int
    w: PyTree
    lam: PyTree
    history: History


def minimize(
    problem: Problem,
    algorithm: Algorithm,
    w0: PyTree,
    lam: PyTree,
    train: RowSource,
    val: RowSource,
    *,
    steps: int,
    key: Array,
    callback: Callback | Sequence[Callback] | None = None,
    every: int | None = None,
) -> Result:
    """Minimise E(w(lam), lam) over Lambda.

    The run is cut into compiled calls of whole stretches (``algorithm.steps_per_record`` outer steps); how it is cut
    changes no bit of the result. Ctrl-C ends it after the call that is under way, with what was reached. A stretch that
    failed (NOT_CONTRACTIVE or worse) moves nothing and ends the run with the w and lam before it; ``message`` says at
    which outer steps. But first, where an inner loss is not convex and the problem's ``damping`` is None, it is made
    again with each damping of :data:`~bilevax.runs.back_off.DAMPINGS`, and the run goes on with the first that will do.
    And where the algorithm was built without its steps, a stretch that diverged, or whose mean direction of lam is five
    times as long as that at the start, is made again with gamma a third, and every third time rho half, six times at
    most; ``config["slower_from"]`` lists the outer steps.

    Args:
        problem: the inner map, the outer loss, the set Lambda.
        algorithm: such as :class:`~bilevax.BSGM` or :class:`~bilevax.SOBA`.
        w0: start of the inner variable, d entries.
        lam: start of the outer variable, m entries; projected first.
        train: source of inner minibatches.
        val: source of outer minibatches.
        steps: number of outer steps, at least 1.
        key: a JAX random key.
        callback: called with a :class:`Progress` between calls; returning True ends the run. Or several, such as
            ``[bx.ShowProgress(), bx.TimeLimit(3600.0)]``, which are all called.
        every: outer steps from one callback to the next, which also end a stretch; None: as many as take about a
            quarter of a second.

    Raises:
        ParameterError: a wrong argument; see :func:`bilevax.hypergradient`.
    """
    steps = check_count("steps", steps, low=1)
    every = None if every is None else check_count("every", every, low=1)
    algorithm.check(problem)
    w0, lam, key, sources = as_parameters("w0", w0), as_parameters("lam", lam), as_key(key), (train, val)
    algorithm.streams(sources)  # which refuses a source that it cannot use, before anything is compiled
    callbacks, clock = Callbacks(callback), time.monotonic()
    back_off = BackOff(problem, algorithm)
    algorithm, state, spent, back_off.limit = _begin(problem, algorithm, w0, lam, sources, key, steps)
    # before the arrays of problem and algorithm go to the device
    settings = {"problem": to_plain(problem), "algorithm": to_plain(algorithm), "steps": steps}
    ready = canonicalize(problem), canonicalize(algorithm)
    log = Log(algorithm.step_cost(problem, sources), spent)
    pace, done, calls, stop, interrupted = _Pace(algorithm.steps_per_record), 0, 0, False, False
    callbacks.begin(Progress(done, steps, *algorithm.solution(state), log.history))
    try:
        while done < steps and not stop:
            target = steps if every is None else min(steps, (done // every + 1) * every)
            try:
                began = time.monotonic()
                ends = {"start": jnp.int32(done), "stop": jnp.int32(min(pace.end(done), target))}
                call = partial(
                    _advance, state=state, sources=sources, key=key, limit=np.asarray(back_off.limit, float), **ends
                )
                out = jax.block_until_ready(_quick_if_sound(call, *ready))
                number, first, calls, state = int(out.number), done, calls + 1, out.state
                records = row(jax.tree.map(np.asarray, out.records), slice(number))
                done, last = int(out.step), row(records, -1)
                before_last = int(records.step[-2]) if number > 1 else first
                again = back_off.again(problem, algorithm, last, before_last)
                if again is not None:  # the last stretch has moved nothing: it is made again
                    (problem, algorithm), done = again, before_last
                    ready = canonicalize(problem), canonicalize(algorithm)
                    log.spend(row(records, slice(-1, None)), done)
                    records = row(records, slice(-1))
                log.append(records, first, time.monotonic() - clock)
                failed = again is None and int(last.code) >= Code.NOT_CONTRACTIVE
                if callbacks and done and (every is None or done == target or failed):
                    w, lam = algorithm.solution(state)
                    stop = callbacks(Progress(done, steps, w, lam, log.history))
                stop = stop or failed
            # the state is that of the last call that ended
            except KeyboardInterrupt:
                interrupted = True
                break
            # the first call compiles: its time says nothing of the next
            if calls > 1:
                pace.learn(number, time.monotonic() - began)
    finally:
        callbacks.end(Progress(done, steps, *algorithm.solution(state), log.history))
    w, lam = algorithm.solution(state)
    settings |= back_off.tried
    held = getattr(problem.project, "at_bound", None)
    at_bound = None if held is None else held(lam)
    return Result(w, lam, log.code, log.failure, log.history, log.cost, settings, interrupted, at_bound)


class _Pace:
    """How many stretches a call has: one at first, then up to twice as many as before, for CALL_SECONDS."""

    def __init__(self, length: int) -> None:
        self._length, self._stretches = length, 1

    def end(self, done: int) -> int:
        """The outer step after a call from this one on."""
        return (done // self._length + self._stretches) * self._length

    def learn(self, stretches: int, seconds: float) -> None:
        """From a call that had so many."""
        # at most twice as many as before: a first quick call may have been a lucky one
        wanted = CALL_SECONDS * stretches / max(seconds, 1e-9)
        self._stretches = int(np.clip(wanted, 1, min(2 * self._stretches, RECORDED)))


def _begin(
    problem: Problem, algorithm: Algorithm, w0: PyTree, lam: PyTree, sources: Sources, key: Array, steps: int
) -> tuple[Algorithm, PyTree, Cost, Array | float]:
    """The algorithm with every step filled in, its first state, what it cost to measure the steps, and their limit."""
    problem = canonicalize(problem)
    _check(problem, w0, lam, sources)
    if not needs_measuring(algorithm):
        return algorithm, _init(problem, canonicalize(algorithm), w0, lam, sources), Cost(), jnp.inf
    step_cost = algorithm.step_cost(problem, sources)
    of_step = sum(source.rows_per_batch for source in sources) if step_cost is None else step_cost.samples
    samples = max(SAMPLES, int(SHARE * steps * of_step))
    found = measure_steps(problem, algorithm, w0, lam, *sources, key=stream_key(key, "measuring"), samples=samples)
    state = _init(problem, canonicalize(found.algorithm), found.w0, lam, sources, found.u0)
    return found.algorithm, state, found.cost, found.limit


@jax.jit
def _check(problem: Problem, w0: PyTree, lam: PyTree, sources: Sources) -> None:
    check_functions(problem, w0, lam, *sources)


@jax.jit
def _init(problem: Problem, algorithm: Algorithm, w0: PyTree, lam: PyTree, sources: Sources, *u0: PyTree) -> PyTree:
    return algorithm.init(problem, w0, lam, sources, *u0)


_advance: Callable[..., Advanced] = jax.jit(advance)


def _quick_if_sound(call: Callable[..., Advanced], problem: Problem, algorithm: Algorithm) -> Advanced:
    """With a suspicion of divergence taken for proof; and again with a diagnosis of it, if a solver failed."""
    quick = suspecting(algorithm)
    out = call(problem, quick)
    # codes of the solvers alone: what the loop itself finds needs no diagnosis
    codes = np.where(np.asarray(out.records.failure.stage) > 0, np.asarray(out.records.code), Code.OK)
    sound = quick is algorithm or bool(np.all(codes < Code.NOT_CONTRACTIVE))
    return out if sound else call(problem, algorithm)
