"""Where a run has come to: begun, gone on with from a checkpoint, kept in one, and turned into its result."""

import dataclasses
import time
import warnings
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.algorithms.measured_steps import SAMPLES, SHARE, Measurable, measure_steps, needs_measuring, steepness
from bilevax.core.config import canonicalize, replace_unchecked, to_plain
from bilevax.core.dealt import Dealing, placed, whole
from bilevax.core.errors import CorruptError, ParameterError
from bilevax.core.events import Plain
from bilevax.core.programs import weighed
from bilevax.core.protocols import Algorithm, Sources
from bilevax.core.records import Cost
from bilevax.core.results import Result
from bilevax.core.trees import PyTree
from bilevax.data.looks import stream_key
from bilevax.problems.problem import Problem
from bilevax.problems.validate import check_functions
from bilevax.runs.back_off import BackOff
from bilevax.runs.callbacks import Callbacks, Progress
from bilevax.runs.checkpoints import Checkpoint, Resumable, pack, unpack
from bilevax.runs.history import Log
from bilevax.runs.identity import check_same, machine


class Setting(NamedTuple):
    """What a run is given: with it, and a checkpoint, it goes on.

    Attributes:
        problem: the maps.
        algorithm: as given, perhaps without its steps.
        start: (w0, lam).
        sources: (train, val).
        key: a JAX random key.
        steps: outer steps.
        callbacks: called between compiled calls.
    """

    problem: Problem
    algorithm: Algorithm
    start: tuple[PyTree, PyTree]
    sources: Sources
    key: Array
    steps: int
    callbacks: Callbacks

    @property
    def dealing(self) -> Dealing:
        """How w0 is dealt."""
        return Dealing.of(self.start[0])

    def shardings(self, algorithm: Algorithm, state: PyTree) -> PyTree | None:
        """How states are dealt, that of each call alike, so that calls are one program; None of a w0 that is whole."""
        shardings = self.dealing.shardings(state)
        if shardings is None:
            return None
        leaves, structure = jax.tree.flatten(shardings)
        # lam is whole, though it be as long as w: a solution's leaves are those of the state
        program = jax.make_jaxpr(lambda state: algorithm.solution(state)[1])(state).jaxpr
        lam = {id(x) for x in program.outvars}
        leaves = [self.dealing.whole if id(x) in lam else s for x, s in zip(program.invars, leaves, strict=True)]
        return jax.tree.unflatten(structure, leaves)


@dataclasses.dataclass
class Course:
    """Where a run has come to.

    Attributes:
        given: what it was given.
        problem: perhaps damped.
        algorithm: with every step filled in.
        state: of the algorithm.
        log: the history, the worst code, the cost.
        back_off: what may still be tried.
        settings: of the result's ``config``.
        shardings: of the state; None: of no account.
        clock: at which, in monotonic seconds, the run would have begun if it had never been interrupted.
        step: outer steps done.
        ended: why no step will follow: "finished", "failed", "stopped" by a callback; "" while some will.
        resumed: where it went on otherwise than it was begun, one record a time.
    """

    given: Setting
    problem: Problem
    algorithm: Algorithm
    state: PyTree
    log: Log
    back_off: BackOff
    settings: dict[str, PyTree]
    clock: float
    step: int = 0
    ended: str = ""
    resumed: list[Plain] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.change(self.problem, self.algorithm)
        self.shardings = self.given.shardings(self.algorithm, self.state)
        self.state = placed(self.state, self.shardings)

    def change(self, problem: Problem, algorithm: Algorithm) -> None:
        """Go on with these."""
        self.problem, self.algorithm = problem, algorithm
        # their numbers as arrays, which compiled calls take
        self.ready = canonicalize(problem), canonicalize(algorithm)

    def steepness(self) -> Array | None:
        """Of the inner loss where the run is, beside that for which its steps are; None of a map. Its cost counts."""
        key = jax.random.fold_in(stream_key(self.given.key, "measuring"), self.step)
        algorithm = cast(Measurable, self.algorithm)
        found, cost = steepness(self.problem, algorithm, *algorithm.solution(self.state), self.given.sources, key=key)
        self.log.add(cost)
        return found

    @staticmethod
    def begun(given: Setting) -> "Course":
        """At its start."""
        given.callbacks.begin(Progress(0, given.steps, *given.start, Log(None, Cost()).history))
        clock, back_off = time.monotonic(), BackOff(given.problem, given.algorithm)
        algorithm, state, spent, back_off.limit = _begin(given)
        log = Log(algorithm.step_cost(given.problem, given.sources), spent)
        return Course(given, given.problem, algorithm, state, log, back_off, _settings(given, algorithm), clock)

    @staticmethod
    def gone_on(given: Setting, found: Checkpoint, named: Plain, override: tuple[str, ...]) -> "Course":
        """From a checkpoint of the same run.

        Args:
            given: as at the start.
            found: the checkpoint.
            named: the identity of what was given.
            override: names of what may differ.

        Raises:
            MismatchError: something else differs.
            ParameterError: the checkpoint is beyond the last step.
            CorruptError: the checkpoint is not of such a run.
        """
        content, now = found.content, machine()
        before = {"devices": 1} | content["machine"]
        now = {"devices": 1} | now
        changed = {name: f"{was} -> {now[name]}" for name, was in before.items() if was != now[name]}
        # other versions trace other programs from the same functions
        differs = check_same(content["identity"], named, override, without=("functions",) if changed else ())
        if given.steps < found.step:
            raise ParameterError(
                f"steps={given.steps}, but the run is at step {found.step}: at least so many are needed"
            )
        # what a start would look like; nothing is computed
        algorithm, state = jax.eval_shape(lambda: _arrays(*_begin(given)[:2]))
        state = _filled(state, "state", found)
        if needs_measuring(given.algorithm):
            algorithm = _filled(algorithm, "algorithm", found)
            algorithm = placed(algorithm, given.dealing.shardings(algorithm))
        else:
            algorithm = given.algorithm
        problem, damping = given.problem, content["damping"]
        problem = problem if damping is None else replace_unchecked(problem, damping=damping)
        log = Log(algorithm.step_cost(problem, given.sources), Cost())
        back_off = BackOff(given.problem, given.algorithm)
        settings = _settings(given, algorithm) if differs else content["settings"]
        clock = time.monotonic() - content["seconds"]
        course = Course(given, problem, algorithm, state, log, back_off, settings, clock, found.step)
        course.ended = "" if differs or "ended" in override else content["ended"]
        course.resumed = content["resumed"]
        for name, part in course._parts.items():
            part.resume(unpack(content["parts"][name], found.arrays))
        given.callbacks.begin(course.progress)
        if differs or changed:
            course.resumed.append({"step": found.step, **differs, **changed})
        if changed:
            words = "; ".join(f"{name}: {text}" for name, text in changed.items())
            warnings.warn(f"the run was begun elsewhere, and may not go on to the same bits: {words}", stacklevel=3)
        return course

    @property
    def _parts(self) -> dict[str, Resumable]:
        return {"log": self.log, "back_off": self.back_off, "callbacks": self.given.callbacks}

    def kept(self, named: Plain) -> tuple[Plain, dict[str, PyTree]]:
        """What a checkpoint keeps: plain values, and arrays by name."""
        arrays = _named("state", self.state)
        if needs_measuring(self.given.algorithm):  # its steps are not given again
            arrays |= _named("algorithm", self.ready[1])
        parts = {name: pack(part.state(), name, arrays) for name, part in self._parts.items()}
        content = {
            "identity": named,
            "machine": machine(),
            "parts": parts,
            # None where nobody has damped it; a damping that was given is part of the problem
            "damping": None if self.given.problem.damping is not None else self.problem.damping,
            "settings": self.settings,
            "ended": self.ended,
            "seconds": time.monotonic() - self.clock,
            "resumed": self.resumed,
        }
        return content, whole(arrays)

    @property
    def progress(self) -> Progress:
        """What a callback sees."""
        return Progress(self.step, self.given.steps, *self.algorithm.solution(self.state), self.log.history)

    def result(self, interrupted: bool) -> Result:
        """What was reached."""
        w, lam = self.algorithm.solution(self.state)
        log, settings = self.log, self.settings | self.back_off.tried
        settings |= {"resumed": self.resumed} if self.resumed else {}
        held = getattr(self.problem.project, "at_bound", None)
        at_bound = None if held is None else held(lam)
        return Result(w, lam, log.code, log.failure, log.history, log.cost, settings, interrupted, at_bound)


def _settings(given: Setting, algorithm: Algorithm) -> dict[str, PyTree]:
    problem, algorithm = whole((given.problem, algorithm))
    return {"problem": to_plain(problem), "algorithm": to_plain(algorithm), "steps": given.steps}


def _named(name: str, tree: PyTree) -> dict[str, PyTree]:
    """Its leaves by their paths."""
    return {f"{name}{jax.tree_util.keystr(path)}": x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _filled(shape: PyTree, name: str, found: Checkpoint) -> PyTree:
    """A tree of that shape from the arrays of a checkpoint."""

    def leaf(path: tuple[object, ...], wanted: jax.ShapeDtypeStruct) -> np.ndarray | Array:
        at = f"{name}{jax.tree_util.keystr(path)}"
        array = found.arrays.get(at)
        if array is None or (array.shape, array.dtype) != (wanted.shape, wanted.dtype):
            raise CorruptError(f"the checkpoint of step {found.step} has no {at} of {wanted.dtype}{list(wanted.shape)}")
        return array

    return jax.tree_util.tree_map_with_path(leaf, shape)


def _arrays(algorithm: Algorithm, state: PyTree) -> tuple[Algorithm, PyTree]:
    return canonicalize(algorithm), state


def _begin(given: Setting) -> tuple[Algorithm, PyTree, Cost, Array | float]:
    """The algorithm with every step filled in, its first state, what it cost to measure the steps, and their limit."""
    problem, algorithm, (w0, lam), sources = canonicalize(given.problem), given.algorithm, given.start, given.sources
    _check.eval_shape(problem, w0, lam, sources)  # traced, never compiled
    if not needs_measuring(algorithm):
        return algorithm, _init(given, algorithm, w0), Cost(), jnp.inf
    step_cost = algorithm.step_cost(problem, sources)
    of_step = sum(source.rows_per_batch for source in sources) if step_cost is None else step_cost.samples
    samples = max(SAMPLES, int(SHARE * given.steps * of_step))
    key = stream_key(given.key, "measuring")
    found = measure_steps(problem, algorithm, w0, lam, *sources, key=key, samples=samples)
    algorithm = _as_w0(given, found.algorithm)
    return algorithm, _init(given, algorithm, found.w0, found.u0), found.cost, found.limit


def _as_w0(given: Setting, algorithm: Algorithm) -> Algorithm:
    """An algorithm that was measured: what it has of w's shape is where w0 is."""
    if not given.dealing.leaves:
        return algorithm
    algorithm = whole(canonicalize(algorithm))
    out: Algorithm = placed(algorithm, given.dealing.shardings(algorithm))
    return out


def _init(given: Setting, algorithm: Algorithm, w0: PyTree, *u0: PyTree) -> PyTree:
    """The first state, which is never whole where w0 is not."""
    args = canonicalize(given.problem), canonicalize(algorithm), w0, given.start[1], given.sources, *u0
    if not given.dealing.leaves:
        return _first(*args)
    return jax.jit(_first, out_shardings=given.shardings(algorithm, jax.eval_shape(_first, *args)))(*args)


@jax.jit
def _check(problem: Problem, w0: PyTree, lam: PyTree, sources: Sources) -> None:
    check_functions(problem, w0, lam, *sources)


@partial(weighed, what="the first state of the algorithm")
@jax.jit
def _first(problem: Problem, algorithm: Algorithm, w0: PyTree, lam: PyTree, sources: Sources, *u0: PyTree) -> PyTree:
    return algorithm.init(problem, w0, lam, sources, *u0)
