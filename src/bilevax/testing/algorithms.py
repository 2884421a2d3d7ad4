"""What every algorithm of the outer loop must satisfy."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevax.algorithms.outer_loop import advance
from bilevax.core.codes import Code
from bilevax.core.config import canonicalize
from bilevax.core.records import Result
from bilevax.core.trees import PyTree
from bilevax.data import Arrays, fold_looks
from bilevax.problems import Box
from bilevax.runs import minimize
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
    float64,
    like,
    methods,
    rebuilt,
    relative,
    require,
    same_bits,
    title,
)

FEW = 7
"""Outer steps where nothing has to converge."""

BOX = Box(lower=-0.2, upper=0.1)


def check_algorithm(algorithm: Any, *, steps: int = 100, decrease: float = 0.1, stochastic: bool = True) -> None:
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
        methods(algorithm, "check", "streams", "init", "step", "solution", "outer_step", "step_cost")
        configuration(algorithm)
        watch = watched(BOX)
        _decrease(algorithm, steps, decrease)
        base = _run(algorithm, watch.reference)
        _record(algorithm, base)
        _cut(algorithm, watch.reference, base)
        _traces(algorithm, watch)
        _faults(algorithm, watch)
        _trees(algorithm, watch.reference, base)
        _precision(algorithm, watch.reference)
        _mapped(algorithm, watch.reference, base)
        _own_loop(algorithm, watch.reference, base)
        _cost(algorithm, watch.reference)
        _randomness(algorithm, watch.reference, base, stochastic)


def _run(algorithm: Any, reference: Reference, *, steps: int = FEW, seed: int = 0, batch_size: int | None = B,
         **options: Any) -> Result:  # fmt: skip
    start = reference.problem, algorithm, reference.w0, reference.lam, *reference.sources(batch_size)
    return minimize(*start, steps=steps, key=jax.random.key(seed), **options)


def _decrease(algorithm: Any, steps: int, decrease: float) -> None:
    name, p = title(algorithm), finite_quadratic()
    result = _run(algorithm, quadratic(), steps=steps, batch_size=None)
    require(result.code < Code.DIVERGED, f"{name} ends with {Code(result.code).name} on FiniteQuadratic")
    like(f"the lam of {name}", result.lam, jnp.asarray(p.lam))
    like(f"the w of {name}", result.w, jnp.zeros_like(jnp.asarray(p.target)))
    least = p.value(minimiser(p))
    left = (p.value(np.asarray(result.lam)) - least) / (p.value(p.lam) - least)
    require(
        left <= decrease,
        f"after {steps} steps on every row {name} has {left:.2g} of its way to the minimum left; allowed is {decrease}",
    )
    best = p.w(np.asarray(result.lam))
    near = relative(result.w, best) < 0.1 + relative(np.zeros_like(best), best) * decrease
    require(near, f"the w that {name} returns does not solve the inner problem at its lam")


def _record(algorithm: Any, result: Result) -> None:
    name = title(algorithm)
    ends = np.asarray(result.history.step)
    right = ends[-1] == FEW and np.all(np.diff(ends, prepend=0) <= algorithm.steps_per_record)
    require(right, f"{name} records {FEW} outer steps in stretches that end after {ends.tolist()}")
    finite = np.all(np.isfinite(result.history.outer_value)) and np.all(np.isfinite(result.history.gradient_norm))
    require(finite, f"{name} records a value or a gradient norm that is not finite, in a run without failure")
    json.dumps(result.config, allow_nan=False)


def _cut(algorithm: Any, reference: Reference, base: Result) -> None:
    name = title(algorithm)
    seen: list[PyTree] = []
    cut = _run(algorithm, reference, every=1, callback=lambda progress: seen.append(progress.lam))
    for field in ("lam", "w", "code", "cost"):
        same = same_bits(getattr(cut, field), getattr(base, field))
        require(same, f"{field} of a run of {name} depends on how it is cut into chunks")
    require(len(seen) == FEW, f"{name} ended after {len(seen)} of {FEW} steps")
    inside = all(np.all((np.asarray(lam) >= -0.2) & (np.asarray(lam) <= 0.1)) for lam in seen)
    require(inside, f"an iterate of {name} left the set Lambda")
    far = reference._replace(lam=np.array([5.0, -5.0, 0.0]))
    start = jnp.asarray(far.w0), jnp.asarray(far.lam)
    state = canonicalize(algorithm).init(canonicalize(far.problem), *start, far.sources(B))
    _, lam = algorithm.solution(state)
    require(same_bits(lam, BOX(start[1])), f"{name}.init must project lam onto Lambda")


def _traces(algorithm: Any, watch: Watched) -> None:
    name, reference = title(algorithm), watch.reference
    moved = reference._replace(lam=reference.lam + 1.0, w0=reference.w0 + 1.0)
    again: list[tuple[str, Any, Reference, dict[str, int]]] = [
        ("more outer steps", algorithm, reference, {"steps": 2 * FEW}),
        ("new arrays and a new key", algorithm, moved, {"seed": 1}),
        ("an equal object built again", rebuilt(algorithm), reference, {}),
        ("changed numbers", rebuilt(algorithm, changed=True), reference, {}),
    ]
    require(watch.tally.calls > 0, f"{name} never calls the inner loss")
    for what, new, start, options in again:
        before = watch.tally.calls
        _run(new, start, **options)
        same = watch.tally.calls == before
        require(same, f"{name} is traced anew for {what}; numbers must be leaves, not structure")


def _faults(algorithm: Any, watch: Watched) -> None:
    name = title(algorithm)
    for where in ("inner", "outer", "cross"):
        place = "cross derivative" if where == "cross" else f"{where} loss"
        result = _run(algorithm, watch.flawed(where), every=1)
        code = Code(result.code)
        require(code == Code.NONFINITE, f"{name} ends with {code.name}, not NONFINITE, where the {place} is NaN")
        finite = np.all(np.isfinite(result.lam)) and np.all(np.isfinite(result.w))
        require(finite, f"{name} must keep its last finite variables where the {place} is NaN")
        require(len(result.history.code) == 1, f"{name} goes on after a step in which the {place} was NaN")


def _trees(algorithm: Any, reference: Reference, base: Result) -> None:
    plain = reference._replace(problem=quadratic().problem)
    wide = _run(algorithm, plain)
    tree = _run(algorithm, nested(plain))
    error = max(relative(tree.lam, nest(wide.lam)), relative(tree.w, nest(wide.w)))
    require(error <= ROUNDING, f"{title(algorithm)} gives other numbers where w and lam are nested dictionaries")


def _precision(algorithm: Any, reference: Reference) -> None:
    plain = reference._replace(problem=quadratic().problem)
    narrow, wide = _run(algorithm, plain.single()), _run(algorithm, plain)
    for field in ("w", "lam"):
        kinds = {str(x.dtype) for x in jax.tree.leaves(getattr(narrow, field))}
        require(kinds == {"float32"}, f"{field} of {title(algorithm)} is {kinds} where all arguments are float32")
    error = relative(narrow.lam, wide.lam)
    require(error <= 1e-2, f"{title(algorithm)} in float32 differs by {error:.1e} from itself in float64")


def _mapped(algorithm: Any, reference: Reference, base: Result) -> None:
    """The traceable loop, two keys at once: the first is that of the base run."""
    ready = canonicalize(reference.problem), canonicalize(algorithm)
    w0, lam = jnp.asarray(reference.w0), jnp.asarray(reference.lam)
    ends = {"start": jnp.int32(0), "stop": jnp.int32(FEW)}

    def run(key: Any, sources: tuple[Arrays, Arrays]) -> PyTree:
        state = algorithm.init(ready[0], w0, lam, sources)
        return algorithm.solution(advance(*ready, state, sources, key=key, **ends).state)

    keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
    lanes = jax.jit(jax.vmap(run, (0, None)))(keys, reference.sources(B))
    error = relative(jax.tree.map(lambda x: x[0], lanes), (base.w, base.lam))
    require(error <= ROUNDING, f"{title(algorithm)} under jax.vmap differs from a run by {error:.1e}")


def _own_loop(algorithm: Any, reference: Reference, base: Result) -> None:
    """A user's own loop over the steps, cut in two."""
    problem, algorithm, sources = canonicalize(reference.problem), canonicalize(algorithm), reference.sources(B)

    def step(state: PyTree, _: PyTree, k: Any, looks: Any) -> PyTree:
        return algorithm.step(problem, state, looks, k)[0]

    def run(state: PyTree, start: Any, stop: Any) -> PyTree:
        return fold_looks(
            algorithm.streams(sources), step, state, (), key=jax.random.key(0), start=start, stop=stop
        )  # fmt: skip

    ready, compiled = (jnp.asarray(reference.w0), jnp.asarray(reference.lam), sources), jax.jit(run)
    found = algorithm.solution(compiled(compiled(algorithm.init(problem, *ready), 0, 3), 3, FEW))
    error = relative(found, (base.w, base.lam))
    require(error <= ROUNDING, f"{title(algorithm)} in a loop over its steps differs from a run by {error:.1e}")


def _cost(algorithm: Any, reference: Reference) -> None:
    name, seen = title(algorithm), Counter()
    train, val = reference.sources(B)
    start = reference.problem, algorithm, reference.w0, reference.lam, Counted(train, seen), val
    result = minimize(*start, steps=FEW, key=jax.random.key(0))
    drawn = seen.after(result.lam)
    parts = [result.cost.gradients, result.cost.hvps, result.cost.cross, result.cost.measuring]
    declared = sum(int(part.calls) for part in parts if part.rows == train.rows_per_batch)
    require(declared >= drawn, f"{name} reads {drawn} minibatches of train and counts {declared} in its cost")
    rising = np.all(np.diff(result.history.samples) > 0) and result.history.samples[-1] == result.cost.samples
    require(rising, f"the samples that {name} records must rise at every step, to those of the whole run")


def _randomness(algorithm: Any, reference: Reference, base: Result, stochastic: bool) -> None:
    name = title(algorithm)
    again, other = (_run(algorithm, reference, seed=seed) for seed in (0, 1))
    require(same_bits((base.lam, base.w), (again.lam, again.w)), f"{name} gives different results for the same key")
    same = same_bits((base.lam, base.w), (other.lam, other.w))
    if stochastic:
        require(not same, f"{name} gives the same result for every key")
    else:
        require(same, f"{name} is said to draw nothing, and its result changes with the key")
