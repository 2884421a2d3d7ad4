"""The one driver: runs an algorithm in compiled calls, records, reports progress, and ends cleanly when stopped."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.algorithms.outer_loop import RECORDED, Advanced, advance
from bilevax.core.codes import Code
from bilevax.core.config import check_count
from bilevax.core.dealt import Dealing, placed
from bilevax.core.events import Plain
from bilevax.core.given import require_algorithm, require_problem
from bilevax.core.keys import as_key
from bilevax.core.limits import said
from bilevax.core.programs import weighed
from bilevax.core.protocols import Algorithm, RowSource, Sources
from bilevax.core.ranks import Group, same_numbers, same_on_all
from bilevax.core.results import Result
from bilevax.core.signals import Stopped, Stops
from bilevax.core.trees import PyTree, as_parameters, is_spread, row
from bilevax.hypergradients.driver import suspecting
from bilevax.problems.problem import Problem
from bilevax.problems.strata import over_strata
from bilevax.runs.callbacks import Callback, Callbacks
from bilevax.runs.checkpoints import Run
from bilevax.runs.course import Course, Setting
from bilevax.runs.identity import identity
from bilevax.runs.kept import Kept

CALL_SECONDS = 0.25
"""How long a compiled call should take, so that progress is live and Ctrl-C takes effect."""


@said("this run")
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
    run: Run | str | os.PathLike[str] | None = None,
) -> Result:
    """Minimise E(w(lam), lam) over Lambda.

    The run is cut into compiled calls of whole stretches (``algorithm.steps_per_record`` outer steps); how it is cut
    changes no bit of the result. Ctrl-C ends it after the call that is under way, with what was reached; a second one
    stops it at once. A stretch that failed (NOT_CONTRACTIVE or worse) moves nothing and ends the run with the w and lam
    before it; ``message`` says at which outer steps. But first, where an inner loss is not convex and the problem's
    ``damping`` is None, it is made again with each damping of :data:`~bilevax.runs.back_off.DAMPINGS`, and the run goes
    on with the first that will do. And where the algorithm was built without its steps, a stretch that diverged, or
    whose mean direction of lam is five times as long as that at the start, is made again with gamma a third, and every
    third time rho half, six times at most; ``config["slower_from"]`` lists the outer steps.

    Args:
        problem: the inner map, the outer loss, the set Lambda.
        algorithm: such as :class:`~bilevax.BSGM` or :class:`~bilevax.SOBA`.
        w0: start of the inner variable, d entries; where its leaves are dealt to devices, so is what is as long
            (docs/distributed.md).
        lam: start of the outer variable, m entries; projected first.
        train: source of inner minibatches.
        val: source of outer minibatches.
        steps: number of outer steps, at least 1.
        key: a JAX random key.
        callback: called with a :class:`Progress` between calls; True ends the run. Or several, such as
            ``[bx.ShowProgress(), bx.TimeLimit(3600.0)]``, which are all called, in their order.
        every: outer steps from one callback to the next, which also end a stretch; None: as many as take about a
            quarter of a second.
        run: a directory, or a :class:`Run`, in which checkpoints of this run are kept. A run that was killed goes on
            from the newest, to the same bits on the same machine with the same number of cores; one that has ended
            gives its result at once. SIGTERM and SIGHUP then end it as Ctrl-C does, and reach the process after the
            last checkpoint. None: nothing is kept.

    Raises:
        ParameterError: a wrong argument; see :func:`bilevax.hypergradient`.
        MismatchError: the directory is of a run with other arguments or data; each that differs is named.
        LockedError: another run uses the directory.
        CorruptError: all its checkpoints are damaged. If only the newest is, the one before serves, with a warning.
        TooNewError: a later release wrote them.
        UsageError: it holds other things.
        StorageError: the system would not let it be written.

    Examples:
        >>> import bilevax as bx
        >>> import jax, jax.numpy as jnp
        >>> inner_loss = lambda w, lam, batch: jnp.mean((w - batch) ** 2) + jnp.exp(lam) * w**2
        >>> outer_loss = lambda w, lam, batch: jnp.mean((w - batch) ** 2)
        >>> train, val = bx.Arrays(jnp.array([1.0, 3.0])), bx.Arrays(jnp.array([1.0]))
        >>> problem = bx.Problem(bx.GradientStep(inner_loss, 0.25), outer_loss)
        >>> method = bx.SOBA(step_size=0.2, ratio=1.0)
        >>> result = bx.minimize(problem, method, 0.0, 2.0, train, val, steps=2000, key=jax.random.key(0))
        >>> bx.Code(int(result.code)).name, round(float(result.w), 2)  # lam is now about 0, and w what val has
        ('OK', 1.0)
    """
    group = Group((train, val))
    callbacks, steps = Callbacks(callback, writes=group.writes), check_count("steps", steps, low=1)
    every = None if every is None else check_count("every", every, low=1)
    require_problem(problem)
    require_algorithm(algorithm)
    algorithm.check(problem)
    start, key, sources = _start(w0, lam, (train, val)), as_key(key), (train, val)
    algorithm.streams(sources)  # which refuses a source that it cannot use, before anything is compiled
    problem = over_strata(problem, *sources)
    given = Setting(problem, algorithm, start, sources, key, steps, callbacks)
    named = {}
    if run is not None or group.several:
        named = identity(problem, algorithm, start, sources, key, steps=steps, every=every)
    if group.several:
        same_on_all("what minimize is given", named)
    if run is None:
        with Stops((signal.SIGINT,)) as stops:
            course = Course.begun(given)
            _go_on(course, every, stops, group)
        return course.result(bool(stops.number))
    run = run if isinstance(run, Run) else Run(run)
    with Kept(run, group) as store, Stops() as stops:
        found = store.newest()
        course = Course.begun(given) if found is None else Course.gone_on(given, found, named, run.override)
        keep = _Keep(store, course, named, run.seconds)
        if found is None:
            keep.save()
        _go_on(course, every, stops, group, keep)
        if (course.step, course.ended) != keep.last:
            keep.save()
        group.largest(0)  # none ends before it is kept
    return course.result(bool(stops.number))


def _start(w0: PyTree, lam: PyTree, sources: Sources) -> tuple[PyTree, PyTree]:
    """Checked, and the same in every process, as what is read of it after that is by all of them."""
    w0, lam = as_parameters("w0", w0, spread=True), as_parameters("lam", lam)
    Dealing.of(w0).check(sources)
    if is_spread(sources):
        same_numbers("what minimize is given", w0=w0, lam=lam)
    return w0, lam


def _go_on(course: Course, every: int | None, stops: Stops, group: Group, keep: "_Keep | None" = None) -> None:
    """Call after call, until the run ends or is stopped, of which the callbacks are told."""
    try:
        _make_calls(course, every, stops, group, keep)
    finally:
        course.given.callbacks.end(course.progress)


def _make_calls(course: Course, every: int | None, stops: Stops, group: Group, keep: "_Keep | None") -> None:
    """Until the run ends or is stopped."""
    pace, calls, steps = _Pace(course.algorithm.steps_per_record), 0, course.given.steps
    callbacks, stop = course.given.callbacks, 0
    while True:
        # what any process is told ends all of them, and how far a call goes the first one says
        due = int(keep is not None and group.writes and keep.due)
        stop, stops.number, due = group.largest(stop, stops.number, due)
        if keep is not None and due:
            keep.save()
        course.ended = course.ended or ("stopped" if stop else "finished" if course.step == steps else "")
        if course.ended or stops.number:
            return
        began, calls = time.monotonic(), calls + 1
        target = steps if every is None else min(steps, (course.step // every + 1) * every)
        number = _call(course, group.of_first(min(pace.end(course.step), target)))
        seen = course.step and (every is None or course.step == target or course.ended)
        try:
            stop = int(bool(seen and callbacks and callbacks(course.progress)))
        except Stopped:
            raise
        except KeyboardInterrupt:
            stops.number = signal.SIGINT
        # the first call compiles: its time says nothing of the next
        if calls > 1:
            pace.learn(number, time.monotonic() - began)


def _call(course: Course, stop: int) -> int:
    """One compiled call of outer steps up to ``stop``, and its records; the number of its stretches."""
    first, given, limit = course.step, course.given, np.asarray(course.back_off.limit, float)
    ends = {"start": jnp.int32(first), "stop": jnp.int32(stop)}
    call = partial(_advance, state=course.state, sources=given.sources, key=given.key, limit=limit, **ends)
    out = jax.block_until_ready(_quick_if_sound(call, *course.ready))
    number, course.step = int(out.number), int(out.step)
    course.state = placed(out.state, course.shardings)
    records = row(jax.tree.map(np.asarray, out.records), slice(number))
    last, before_last = row(records, -1), int(records.step[-2]) if number > 1 else first
    again = course.back_off.again(course.problem, course.algorithm, last, before_last, course.steepness)
    if again is not None:  # the last stretch has moved nothing: it is made again
        course.step = before_last
        course.change(*again)
        course.log.spend(row(records, slice(-1, None)), before_last)
        records = row(records, slice(-1))
    elif int(last.code) >= Code.NOT_CONTRACTIVE:
        course.ended = "failed"
    course.log.append(records, first, time.monotonic() - course.clock)
    return number


class _Keep:
    """Checkpoints of a run, when it is time for one.

    Args:
        store: where.
        course: the run.
        named: its identity.
        seconds: from one to the next.
    """

    def __init__(self, store: Kept, course: Course, named: Plain, seconds: float) -> None:
        self._store, self._course, self._named, self._seconds = store, course, named, seconds
        self._saved, self.last = time.monotonic(), (course.step, course.ended)

    @property
    def due(self) -> bool:
        """True if it is time, and there is something new."""
        come_to = self._course.step, self._course.ended
        return come_to != self.last and time.monotonic() - self._saved >= self._seconds

    def save(self) -> None:
        """Write one."""
        self.last = self._course.step, self._course.ended
        self._store.save(self._course.step, *self._course.kept(self._named))
        self._saved = time.monotonic()


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


_advance: Callable[..., Advanced] = weighed(jax.jit(advance), "an outer step")


def _quick_if_sound(call: Callable[..., Advanced], problem: Problem, algorithm: Algorithm) -> Advanced:
    """With a suspicion of divergence taken for proof; and again with a diagnosis of it, if a solver failed."""
    quick = suspecting(algorithm)
    out = call(problem, quick)
    # codes of the solvers alone: what the loop itself finds needs no diagnosis
    codes = np.where(np.asarray(out.records.failure.stage) > 0, np.asarray(out.records.code), Code.OK)
    sound = quick is algorithm or bool(np.all(codes < Code.NOT_CONTRACTIVE))
    return out if sound else call(problem, algorithm)
