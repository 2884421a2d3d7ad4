"""What every algorithm of the outer loop must satisfy."""

import json
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.algorithms.outer_loop import advance
from bilevax.core.codes import Code
from bilevax.core.config import canonicalize
from bilevax.core.protocols import Algorithm, Sources
from bilevax.core.records import Result
from bilevax.core.trees import PyTree
from bilevax.data import Looks, fold_looks
from bilevax.problems import Box
from bilevax.runs import Progress, minimize
from bilevax.testing.closed_forms.small import (
    B,
    Reference,
    Watched,
    finite_quadratic,
    minimiser,
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


def check_algorithm(algorithm: Algorithm, *, steps: int = 100, decrease: float = 0.1, stochastic: bool = True) -> None:
    """Check an algorithm, such as ``bilevax.BSGM(...)``, against all contracts.

    It must be given steps for an outer function of curvature between 0.1 and 1. In order: it is a configuration; on
    every row it comes near the minimum; how a run is cut, nested trees, float32, vmap and rebuilding change nothing; no
    iterate leaves Lambda; NaN ends a run with finite variables; its cost is at least what it read; its settings can be
    written as JSON; its randomness is the key's.

    Args:
        algorithm: what is checked.
        steps: outer steps in which it comes near the minimum.
        decrease: part of f(lam_0) - min f that may be left then.
        stochastic: whether minibatches of train change what it does; if not, the key must play no part.

    Raises:
        AssertionError: says the first contract that is violated.

    Examples:
        >>> import bilevax as bx
        >>> sid = bx.SID(bx.LBFGS(tol=1e-9), bx.CG(tol=1e-9))
        >>> check_algorithm(bx.BSGM(sid, bx.optim("sgd", 0.5)), stochastic=False)  # doctest: +SKIP
    """
    with float64():
        methods(algorithm, "check", "streams", "init", "step", "solution", "outer_step_size", "step_cost")
        configuration(algorithm)
        watch = watched(BOX)
        _decrease(algorithm, steps, decrease)
        base = _run(algorithm, watch.reference)
        _record(algorithm, base)
        _cut(algorithm, watch.reference, base)
        _traces(algorithm, watch)
        _faults(algorithm, watch)
        _trees(algorithm, watch.reference)
        _precision(algorithm, watch.reference)
        _mapped(algorithm, watch.reference, base)
        _own_loop(algorithm, watch.reference, base)
        _cost(algorithm, watch.reference)
        _randomness(algorithm, watch.reference, stochastic)


def _run(
    algorithm: Algorithm,
    reference: Reference,
    *,
    steps: int = FEW,
    seed: int = 0,
    batch_size: int | None = B,
    callback: Callable[[Progress], None] | None = None,
) -> Result:
    """A run; with a callback, one call of the compiled program a step."""
    (_, lam, train, val), w0 = reference.start(batch_size)
    start, every = (reference.problem, algorithm, w0, lam, train, val), None if callback is None else 1
    return minimize(*start, steps=steps, key=jax.random.key(seed), callback=callback, every=every)


def _decrease(algorithm: Algorithm, steps: int, decrease: float) -> None:
    name, p = title(algorithm), finite_quadratic()
    result = _run(algorithm, quadratic(), steps=steps, batch_size=None)
    require(result.code < Code.DIVERGED, f"{name} ends with {Code(result.code).name} on FiniteQuadratic")
    like(f"the lam of {name}", result.lam, jnp.asarray(p.lam))
    like(f"the w of {name}", result.w, jnp.zeros_like(jnp.asarray(p.target)))
    # (f(lam) - min f) / (f(lam_0) - min f)
    least = p.value(minimiser(p))
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
    (problem, lam, *sources), w0 = reference._replace(lam=np.array([5.0, -5.0, 0.0])).start(B)
    state = canonicalize(algorithm).init(problem, w0, lam, (sources[0], sources[1]))
    require(same_bits(algorithm.solution(state)[1], BOX(lam)), f"{name}.init must project lam onto Lambda")


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


def _faults(algorithm: Algorithm, watch: Watched) -> None:
    name = title(algorithm)
    for where in ("inner", "outer", "cross"):
        result = _run(algorithm, watch.flawed(where), callback=lambda _: None)
        code, at = Code(result.code), f"where the {place(where)} is NaN"
        require(code == Code.NONFINITE, f"{name} ends with {code.name}, not NONFINITE, {at}")
        finite = np.all(np.isfinite(result.lam)) and np.all(np.isfinite(result.w))
        require(finite, f"{name} must keep its last finite variables {at}")
        require(len(result.history.code) == 1, f"{name} goes on after a step in which the {place(where)} was NaN")


def _trees(algorithm: Algorithm, reference: Reference) -> None:
    plain = reference._replace(problem=quadratic().problem)
    wide, tree = _run(algorithm, plain), _run(algorithm, nested(plain))
    error = max(relative(tree.lam, nest(wide.lam)), relative(tree.w, nest(wide.w)))
    require(error <= ROUNDING, f"{title(algorithm)} gives other numbers where w and lam are nested dictionaries")


def _precision(algorithm: Algorithm, reference: Reference) -> None:
    plain = reference._replace(problem=quadratic().problem)
    narrow, wide = _run(algorithm, plain.single()), _run(algorithm, plain)
    single(title(algorithm), w=narrow.w, lam=narrow.lam)
    error = relative(narrow.lam, wide.lam)
    require(error <= 1e-2, f"{title(algorithm)} in float32 differs by {error:.1e} from itself in float64")


def _mapped(algorithm: Algorithm, reference: Reference, base: Result) -> None:
    """The traceable loop, two keys at once: the first is that of the base run."""
    (_, lam, *sources), w0 = reference.start(B)
    problem, ready = canonicalize(reference.problem), canonicalize(algorithm)

    def run(key: Array, sources: Sources) -> PyTree:
        state, ends = algorithm.init(problem, w0, lam, sources), {"start": jnp.int32(0), "stop": jnp.int32(FEW)}
        return algorithm.solution(advance(problem, ready, state, sources, key=key, **ends).state)

    # sources are arguments of the program, as their tables are large
    keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
    lanes = jax.jit(jax.vmap(run, (0, None)))(keys, tuple(sources))
    error = relative(jax.tree.map(lambda x: x[0], lanes), (base.w, base.lam))
    require(error <= ROUNDING, f"{title(algorithm)} under jax.vmap differs from a run by {error:.1e}")


def _own_loop(algorithm: Algorithm, reference: Reference, base: Result) -> None:
    """A user's own loop over the steps, cut in two."""
    (problem, lam, *pair), w0 = reference.start(B)
    algorithm, sources = canonicalize(algorithm), (pair[0], pair[1])

    def step(state: PyTree, _: PyTree, k: Array, looks: Looks) -> PyTree:
        return algorithm.step(problem, state, looks, k)[0]

    @jax.jit
    def run(state: PyTree, start: int, stop: int) -> PyTree:
        streams, ends = algorithm.streams(sources), {"start": start, "stop": stop}
        return fold_looks(streams, step, state, (), key=jax.random.key(0), **ends)

    state = algorithm.init(problem, w0, lam, sources)
    error = relative(algorithm.solution(run(run(state, 0, 3), 3, FEW)), (base.w, base.lam))
    require(error <= ROUNDING, f"{title(algorithm)} in a loop over its steps differs from a run by {error:.1e}")


def _cost(algorithm: Algorithm, reference: Reference) -> None:
    name, seen = title(algorithm), Counter()
    (_, lam, train, val), w0 = reference.start(B)
    start = reference.problem, algorithm, w0, lam, Counted(train, seen), val
    # minibatches of train as the running program reads them, against what the cost says
    result = minimize(*start, steps=FEW, key=jax.random.key(0))
    counted_in_full(name, result.cost, train.rows_per_batch, seen.after(result.lam))
    rising = np.all(np.diff(result.history.samples) > 0) and result.history.samples[-1] == result.cost.samples
    require(rising, f"the samples that {name} records must rise at every step, to those of the whole run")


def _randomness(algorithm: Algorithm, reference: Reference, stochastic: bool) -> None:
    def run(seed: int) -> PyTree:
        result = _run(algorithm, reference, seed=seed)
        return result.lam, result.w

    keyed(title(algorithm), run, draws=stochastic)
