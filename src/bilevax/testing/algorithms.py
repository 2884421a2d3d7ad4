"""What every algorithm of the outer loop must satisfy."""

import contextlib
import json
import tempfile
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.algorithms.measured_steps import Measurable, Measured, measure_steps
from bilevax.core.codes import Code
from bilevax.core.config import canonicalize, replace_unchecked
from bilevax.core.errors import ParameterError
from bilevax.core.given import METHODS
from bilevax.core.protocols import Algorithm, Sources
from bilevax.core.records import Cost, Count
from bilevax.core.results import Result
from bilevax.core.trees import PyTree
from bilevax.data import Arrays, Looks, fold_looks
from bilevax.data.looks import stream_key
from bilevax.problems import Box
from bilevax.runs import Progress, Run, minimize
from bilevax.testing.closed_forms.small import (
    Reference,
    Watched,
    composed,
    finite_quadratic,
    nest,
    nested,
    quadratic,
    watched,
)
from bilevax.testing.tools import (
    ROUNDING,
    Counted,
    Counter,
    configuration,
    counted_in_full,
    float64,
    keyed,
    like,
    methods,
    place,
    rebuilt,
    relative,
    require,
    same_bits,
    single,
    title,
    traced_once,
)

FEW = 7
"""Outer steps where nothing has to converge."""

BOX = Box(lower=-0.2, upper=0.1)

UNEVEN, EVEN = (11, 2), (10, 1)
"""Rows of a minibatch of train, of 30, and of val, of 5; the first such that in blocks both have a short last one."""

READ = Counter()
"""Minibatches of train that were read; one counter for all algorithms, so that they share programs."""


def check_algorithm(
    algorithm: Algorithm, *, steps: int = 100, decrease: float = 0.1, stochastic: bool = True, cross: bool = True
) -> None:
    """Check an algorithm, such as ``bilevax.BSGM(...)``, against all contracts.

    It must be given steps for an outer function of curvature between 0.1 and 1. In order: it is a configuration; on
    every row it comes near the minimum; in blocks, of which the last is short, how a run is cut, a checkpoint that it
    goes on from, float32 and rebuilding change nothing; no iterate leaves Lambda; NaN ends a run with finite variables;
    nested trees change nothing; its randomness is the key's. Then, on independent rows unless it refuses them, and
    built without arguments where its steps can be measured: its cost is at least the minibatches of train that it read
    (two calls on one are not told apart); its settings can be written as JSON, with every step; a loop of one's own and
    vmap change nothing.

    Args:
        algorithm: what is checked.
        steps: outer steps in which it comes near the minimum.
        decrease: part of f(lam_0) - min f that may be left then.
        stochastic: whether minibatches of train change what it does; if not, the key must play no part.
        cross: whether it asks for a derivative of the inner problem in lam; if not, one that is NaN does no harm.

    Raises:
        AssertionError: says the first contract that is violated.

    Examples:
        >>> import bilevax as bx
        >>> sid = bx.SID(bx.LBFGS(tol=1e-9), bx.CG(tol=1e-9))
        >>> check_algorithm(bx.BSGM(sid, bx.optim("sgd", 0.5)), stochastic=False)  # doctest: +SKIP
    """
    with float64():
        methods(algorithm, *METHODS)
        configuration(algorithm)
        watch = _noisy(watched(BOX))
        _decrease(algorithm, steps, decrease)
        base = _run(algorithm, watch.reference)
        _record(algorithm, base)
        _cut(algorithm, watch.reference, base)
        _resumed(algorithm, watch.reference, base)
        _traces(algorithm, watch)
        _faults(algorithm, watch, ("inner", "outer", "cross") if cross else ("inner", "outer"))
        _trees(algorithm)
        _precision(algorithm, watch.reference, base)
        _randomness(algorithm, watch.reference, stochastic)
        _counted(algorithm)


def _noisy(watch: Watched) -> Watched:
    """The quadratic with five rows of val, whose means are those of its one row."""
    given, spread = watch.reference, np.linspace(-1.0, 1.0, 5)
    val = {"target": given.val["target"] + spread[:, None], "r": given.val["r"] * (1.0 + 0.5 * spread)}
    return watch._replace(reference=given._replace(val=val))


def _start(
    algorithm: Algorithm, reference: Reference, sizes: tuple[int | None, int | None], sampling: str
) -> tuple[PyTree, PyTree, PyTree, Sources]:
    """Problem, as a composition where the algorithm asks for one, w0, lam and the sources."""
    try:
        algorithm.check(reference.problem)
    except ParameterError:
        reference = composed(reference)
    (problem, lam, *_), w0 = reference.start()
    train, val = (Arrays(x, size, sampling) for x, size in zip((reference.train, reference.val), sizes, strict=True))
    return problem, w0, lam, (train, val)


def _run(
    algorithm: Algorithm,
    reference: Reference,
    *,
    steps: int = FEW,
    seed: int = 0,
    sizes: tuple[int | None, int | None] = UNEVEN,
    callback: Callable[[Progress], None] | None = None,
    kept: Run | None = None,
) -> Result:
    """A run in blocks; with a callback, one call of the compiled program a step."""
    problem, w0, lam, sources = _start(algorithm, reference, sizes, "blocks")
    start, every = (problem, algorithm, w0, lam, *sources), None if callback is None else 1
    return minimize(*start, steps=steps, key=jax.random.key(seed), callback=callback, every=every, run=kept)


def _decrease(algorithm: Algorithm, steps: int, decrease: float) -> None:
    name, p = title(algorithm), finite_quadratic()
    result = _run(algorithm, quadratic(), steps=steps, sizes=(None, None))
    require(result.code < Code.DIVERGED, f"{name} ends with {Code(result.code).name} on FiniteQuadratic")
    like(f"the lam of {name}", result.lam, jnp.asarray(p.lam))
    like(f"the w of {name}", result.w, jnp.zeros_like(jnp.asarray(p.target)))
    # (f(lam) - min f) / (f(lam_0) - min f)
    least = p.value(p.minimiser)
    left = (p.value(np.asarray(result.lam)) - least) / (p.value(p.lam) - least)
    require(
        left <= decrease,
        f"after {steps} steps on every row {name} has {left:.2g} of its way to the minimum left; allowed is {decrease}",
    )
    # w lags behind the lam it is returned with, by what is left of the way
    best = p.w(np.asarray(result.lam))
    near = relative(result.w, best) < 0.1 + relative(np.zeros_like(best), best) * decrease
    require(near, f"the w that {name} returns does not solve the inner problem at its lam")


def _record(algorithm: Algorithm, result: Result) -> None:
    name = title(algorithm)
    ends = np.asarray(result.history.step)
    right = ends[-1] == FEW and np.all(np.diff(ends, prepend=0) <= algorithm.steps_per_record)
    require(right, f"{name} records {FEW} outer steps in stretches that end after {ends.tolist()}")
    finite = np.all(np.isfinite(result.history.outer_value)) and np.all(np.isfinite(result.history.gradient_norm))
    require(finite, f"{name} records a value or a gradient norm that is not finite, in a run without failure")
    json.dumps(result.config, allow_nan=False)


def _cut(algorithm: Algorithm, reference: Reference, base: Result) -> None:
    name = title(algorithm)
    seen: list[PyTree] = []
    # a call a step, against one call for all of them
    cut = _run(algorithm, reference, callback=lambda progress: seen.append(progress.lam))
    for field in ("lam", "w", "code", "cost"):
        same = same_bits(getattr(cut, field), getattr(base, field))
        require(same, f"{field} of a run of {name} depends on how it is cut into chunks")
    require(len(seen) == FEW, f"{name} ended after {len(seen)} of {FEW} steps")
    inside = all(np.all((np.asarray(lam) >= -0.2) & (np.asarray(lam) <= 0.1)) for lam in seen)
    require(inside, f"an iterate of {name} left the set Lambda")
    # a lam outside of the box
    problem, w0, lam, sources = _start(algorithm, reference._replace(lam=np.array([5.0, -5.0, 0.0])), UNEVEN, "blocks")
    state = canonicalize(algorithm).init(problem, w0, lam, sources)
    require(same_bits(algorithm.solution(state)[1], BOX(lam)), f"{name}.init must project lam onto Lambda")


class _KilledError(Exception):
    """Stands for the end of the process."""


def _resumed(algorithm: Algorithm, reference: Reference, base: Result) -> None:
    """A run that ended without a word, and goes on from its last checkpoint."""

    def die(progress: Progress) -> None:
        if progress.step == FEW - 2 and not died:
            died.append(True)
            raise _KilledError

    name, died = title(algorithm), list[bool]()
    with tempfile.TemporaryDirectory() as directory:
        kept = Run(directory, seconds=0)
        with contextlib.suppress(_KilledError):
            _run(algorithm, reference, callback=die, kept=kept)
        whole = _run(algorithm, reference, callback=die, kept=kept)
    require(bool(died), f"{name} did not come to step {FEW - 2}")
    for field in ("lam", "w", "code", "cost"):
        same = same_bits(getattr(whole, field), getattr(base, field))
        require(same, f"{field} of a run of {name} is another where it went on from a checkpoint")


def _traces(algorithm: Algorithm, watch: Watched) -> None:
    given = watch.reference
    moved = given._replace(lam=given.lam + 1.0, w0=given.w0 + 1.0)
    runs = {
        "more outer steps": partial(_run, algorithm, given, steps=2 * FEW),
        "new arrays and a new key": partial(_run, algorithm, moved, seed=1),
        "an equal object built again": partial(_run, rebuilt(algorithm), given),
        "changed numbers": partial(_run, rebuilt(algorithm, changed=True), given),
    }
    traced_once(title(algorithm), watch.tally, runs)


def _faults(algorithm: Algorithm, watch: Watched, places: tuple[str, ...]) -> None:
    name = title(algorithm)
    for where in places:
        result = _run(algorithm, watch.flawed(where), callback=lambda _: None)
        code, at = Code(result.code), f"where the {place(where)} is NaN"
        require(code == Code.NONFINITE, f"{name} ends with {code.name}, not NONFINITE, {at}")
        finite = np.all(np.isfinite(result.lam)) and np.all(np.isfinite(result.w))
        require(finite, f"{name} must keep its last finite variables {at}")
        require(len(result.history.code) == 1, f"{name} goes on after a step in which the {place(where)} was NaN")


def _trees(algorithm: Algorithm) -> None:
    # on every row, where the program is that of _decrease
    wide, tree = (_run(algorithm, given, sizes=(None, None)) for given in (quadratic(), nested(quadratic())))
    error = max(relative(tree.lam, nest(wide.lam)), relative(tree.w, nest(wide.w)))
    require(error <= ROUNDING, f"{title(algorithm)} gives other numbers where w and lam are nested dictionaries")


def _precision(algorithm: Algorithm, reference: Reference, base: Result) -> None:
    narrow = _run(algorithm, reference.single())
    single(title(algorithm), w=narrow.w, lam=narrow.lam)
    error = relative(narrow.lam, base.lam)
    require(error <= 1e-2, f"{title(algorithm)} in float32 differs by {error:.1e} from itself in float64")


def _randomness(algorithm: Algorithm, reference: Reference, stochastic: bool) -> None:
    def run(seed: int) -> PyTree:
        result = _run(algorithm, reference, seed=seed)
        return result.lam, result.w

    keyed(title(algorithm), run, draws=stochastic)


def _counted(algorithm: Algorithm) -> None:
    """On independent rows, or blocks, of a train that is counted; without steps where they can be measured."""
    name, reference = title(algorithm), _noisy(watched()).reference
    reference = reference._replace(problem=replace_unchecked(quadratic().problem, project=BOX))
    if isinstance(algorithm, Measurable):
        algorithm = type(algorithm)()
    problem, w0, lam, (train, val) = _start(algorithm, reference, EVEN, _sampling(algorithm, reference))
    sources, key = (Counted(train, READ), val), jax.random.key(0)
    start: PyTree = problem, algorithm, w0, lam, *sources
    first = READ.after(())
    # what measuring reads and costs is no matter of the algorithm's own cost
    measured = measure_steps(*start, key=stream_key(key, "measuring")) if isinstance(algorithm, Measurable) else None
    before = READ.after(measured)
    base = minimize(*start, steps=FEW, key=key)
    # what the run says less what measuring has cost
    spent = [int(part.calls) for part in measured.cost] if measured else [0] * len(base.cost)
    cost = Cost(*(Count(int(part.calls) - calls, part.rows) for part, calls in zip(base.cost, spent, strict=True)))
    # minibatches of train as the running program reads them, against what the cost says
    counted_in_full(name, cost, train.rows_per_batch, READ.after(base.lam) - before - (before - first))
    rising = np.all(np.diff(base.history.samples) > 0) and base.history.samples[-1] == base.cost.samples
    require(rising, f"the samples that {name} records must rise at every step, to those of the whole run")
    if measured:
        _measured(name, measured, base, minimize(*start, steps=FEW, key=key))
    _own_loop(start, measured, base)


def _sampling(algorithm: Algorithm, reference: Reference) -> str:
    """How rows are drawn: each on its own, but for an algorithm that refuses that."""
    try:
        algorithm.streams(_start(algorithm, reference, EVEN, "iid")[-1])
    except ParameterError:
        return "blocks"
    return "iid"


def _measured(name: str, measured: Measured, result: Result, again: Result) -> None:
    for field in ("lam", "w", "cost"):
        same = same_bits(getattr(result, field), getattr(again, field))
        require(same, f"{name}() gives another {field} for the same key")
    settings = result.config["algorithm"]
    filled = all(settings[step] is not None for step in ("step_size", "ratio"))
    require(filled, f"the settings of a run of {name}() must have the steps that were measured")
    json.dumps(result.config, allow_nan=False)
    included = same_bits(result.cost.measuring, measured.cost.measuring)
    require(included, f"the cost of {name}() must include that of measuring its steps")
    require(result.code < Code.DIVERGED, f"{name}() ends with {Code(result.code).name} on FiniteQuadratic")


def _own_loop(start: PyTree, measured: Measured | None, base: Result) -> None:
    """A user's own loop over the steps, of two keys at once: the first is that of the base run."""
    (problem, algorithm, w0, lam, *pair), key = start, jax.random.key(0)
    sources, u0 = (pair[0], pair[1]), []
    if measured:
        algorithm, w0, u0 = measured.algorithm, measured.w0, [measured.u0]
    algorithm = canonicalize(algorithm)

    def step(state: PyTree, _: PyTree, k: Array, looks: Looks) -> PyTree:
        return algorithm.step(problem, state, looks, k)[0]

    # sources are arguments of the program, as their tables are large
    def run(key: Array, sources: Sources) -> PyTree:
        state = algorithm.init(problem, w0, lam, sources, *u0)
        state = fold_looks(algorithm.streams(sources), step, state, (), key=key, start=0, stop=FEW)
        return algorithm.solution(state)

    lanes = jax.jit(jax.vmap(run, (0, None)))(jnp.stack([key, jax.random.key(1)]), sources)
    error = relative(jax.tree.map(lambda x: x[0], lanes), (base.w, base.lam))
    require(error <= ROUNDING, f"{title(algorithm)} in a loop over its steps under jax.vmap is {error:.1e} from a run")
