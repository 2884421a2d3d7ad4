"""What every estimator of a hypergradient must satisfy."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevax.core.codes import Code
from bilevax.core.config import canonicalize
from bilevax.core.errors import ParameterError
from bilevax.core.instance import Instance
from bilevax.core.records import Cost, Estimate
from bilevax.core.trees import PyTree, zeros_like
from bilevax.data import Arrays
from bilevax.hypergradients import hypergradient
from bilevax.problems import Problem
from bilevax.testing.closed_forms.small import B, Reference, Watched, affine, nest, nested, quadratic, ridge, watched
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
    same_to_rounding,
    title,
    unbiased,
)

KEYS = 1000
"""Independent runs from which a bias is judged."""


def check_estimator(
    estimator: Any,
    *,
    rtol: float = 1e-6,
    stochastic: bool = True,
    is_unbiased: bool = True,
    calls: Mapping[str, int] | None = None,
) -> None:
    """Check an estimator of hypergradients, such as ``bilevax.SID(...)``, against all contracts.

    It must be given enough steps to converge on small problems whose inner contraction is 0.8 or better (100 full steps
    will do), and steps that are stable on their minibatches of 10 of 30 rows. In order: it is a configuration; on every
    row it finds the closed form, or refuses the problem; rebuilding compiles nothing; NaN is said; its randomness is
    the key's; its cost is at least what it read; float32, nested trees, jit and vmap change nothing; its mean is right.

    Args:
        estimator: what is checked.
        rtol: relative error it may have on every row.
        stochastic: whether it draws minibatches of train; if not, the key must play no part.
        is_unbiased: whether its mean is right, once converged, where the map is affine.
        calls: oracle calls by kind on minibatches of train, as its docstring declares: ``{"gradients": 100, ...}``.

    Raises:
        AssertionError: says the first contract that is violated.

    Examples:
        >>> import bilevax as bx
        >>> check_estimator(bx.ITD(100), stochastic=False)  # doctest: +SKIP
    """
    with float64():
        methods(estimator, "check", "estimate")
        configuration(estimator)
        watch = watched()
        for reference in (watch.reference, ridge()):
            _closed_form(estimator, reference, rtol)
        _other_maps(estimator, rtol)
        _continued(estimator, rtol)
        _traces(estimator, watch)
        for where in ("inner", "outer", "cross"):
            _fault(estimator, where, watch.flawed(where))
        _key(estimator, watch.reference, stochastic)
        _cost(estimator, watch.reference, calls)
        _precision(estimator, watch.reference)
        _trees(estimator, watch.reference)
        _transformations(estimator, watch.reference)
        if stochastic and is_unbiased:
            _bias(estimator, watch.reference)


def _run(estimator: Any, reference: Reference, *, batch_size: int | None = None, seed: int = 0) -> Estimate:
    sources = reference.sources(batch_size)
    return hypergradient(
        reference.problem, estimator, reference.w0, reference.lam, *sources, key=jax.random.key(seed)
    )  # fmt: skip


def _closed_form(estimator: Any, reference: Reference, rtol: float) -> None:
    est, name = _run(estimator, reference), title(estimator)
    require(isinstance(est, Estimate), f"{name}.estimate must return a bilevax.Estimate, got {title(est)}")
    like(f"the value of {name}", est.value, jax.tree.map(jnp.asarray, reference.lam))
    like(f"the w of {name}", est.w, jax.tree.map(jnp.asarray, reference.w0))
    require(est.code == Code.OK, f"{name} ends with {est.message} on {reference.name}, every row seen")
    pairs = [("w", est.w, reference.w), ("outer_value", est.outer_value, reference.value)]
    pairs += [("v", est.v, reference.v)] if est.v is not None else []
    pairs += [("value", est.value, reference.hypergradient)]
    for field, found, truth in pairs:
        error = relative(found, truth)
        require(
            error <= rtol,
            f"{field} of {name} has a relative error of {error:.1e} on {reference.name}, every row seen; "
            f"allowed is {rtol:.0e} (has it enough steps?)",
        )


def _other_maps(estimator: Any, rtol: float) -> None:
    """A map without a loss is refused in a sentence, before anything runs, or served."""
    reference = affine()
    try:
        estimator.check(reference.problem)
    except ParameterError as error:
        require(len(str(error)) > 10, f"{title(estimator)}.check must say in a sentence what it needs")
        return
    _closed_form(estimator, reference, rtol)


def _continued(estimator: Any, rtol: float) -> None:
    """Later outer steps and a start of the linear solver, as an algorithm gives them."""
    reference = quadratic()

    def value(w0: Any, lam: Any, sources: Any, key: Any) -> Any:
        instance = Instance(reference.problem, lam, *sources)
        return estimator.estimate(instance, w0, key=key, outer_step=jnp.int32(3), v0=1.0 + zeros_like(w0)).value

    start = jnp.asarray(reference.w0), jnp.asarray(reference.lam), reference.sources()
    error = relative(jax.jit(value)(*start, jax.random.key(0)), reference.hypergradient)
    require(error <= rtol, f"{title(estimator)} has a relative error of {error:.1e} at outer step 3 from a given v0")


def _trees(estimator: Any, reference: Reference) -> None:
    plain = _run(estimator, reference, batch_size=B)
    tree = _run(estimator, nested(reference), batch_size=B)
    error = max(relative(tree.value, nest(plain.value)), relative(tree.w, nest(plain.w)))
    require(error <= ROUNDING, f"{title(estimator)} gives other numbers where w and lam are nested dictionaries")


def _precision(estimator: Any, reference: Reference) -> None:
    est = _run(estimator, reference.single(), batch_size=B)
    for field in ("value", "outer_value", "w", "v"):
        kinds = {str(x.dtype) for x in jax.tree.leaves(getattr(est, field))}
        require(kinds <= {"float32"}, f"{field} of {title(estimator)} is {kinds} where all arguments are float32")
    error = relative(est.value, _run(estimator, reference, batch_size=B).value)
    require(error <= 1e-3, f"{title(estimator)} in float32 differs by {error:.1e} from itself in float64")


def _transformations(estimator: Any, reference: Reference) -> None:
    name = title(estimator)

    def estimate(lam: PyTree, key: Any, *given: Any) -> Estimate:
        estimator, train, val = given  # arguments: XLA folds constants with a rounding of their own
        return hypergradient(reference.problem, estimator, reference.w0, lam, train, val, key=key)

    given = canonicalize(estimator), *reference.sources(B)
    lams = jnp.stack([jnp.asarray(reference.lam) + x for x in (0.0, 0.5)])
    keys = jax.random.split(jax.random.key(1), 2)
    alone = [estimate(lam, key, *given) for lam, key in zip(lams, keys, strict=True)]
    jitted = jax.jit(estimate)(lams[0], keys[0], *given)
    same = same_bits(jitted._replace(error=None), alone[0]._replace(error=None))
    require(same, f"{name} called inside jax.jit differs from {name} called eagerly")
    same = same_to_rounding(jitted.error, alone[0].error)
    require(same, f"the report on {name} inside jax.jit differs from the eager one")
    mapped = jax.jit(jax.vmap(estimate, (0, 0, None, None, None)))(lams, keys, *given)
    for i, lane in enumerate(_lanes(mapped, 2)):
        error = relative((lane.value, lane.w), (alone[i].value, alone[i].w))
        require(error <= ROUNDING, f"{name} under jax.vmap differs from a loop by {error:.1e}")
        require(same_bits(lane.cost, alone[i].cost), f"the cost of {name} under jax.vmap differs from a loop's")


def _lanes(tree: PyTree, number: int) -> list[Any]:
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(number)]


def _traces(estimator: Any, watch: Watched) -> None:
    name, reference = title(estimator), watch.reference
    _run(estimator, reference, batch_size=B)
    require(watch.tally.calls > 0, f"{name} never calls the inner loss")
    again = [
        ("new arrays and a new key", estimator, reference._replace(lam=reference.lam + 1, w0=reference.w0 + 1), 1),
        ("an equal object built again", rebuilt(estimator), reference, 0),
        ("changed numbers", rebuilt(estimator, changed=True), reference, 0),
    ]
    for what, new, changed, seed in again:
        before = watch.tally.calls
        _run(new, changed, batch_size=B, seed=seed)
        same = watch.tally.calls == before
        require(same, f"{name} is traced anew for {what}; numbers must be leaves, not structure")


def _fault(estimator: Any, where: str, reference: Reference) -> None:
    for batch_size in (None, B):
        code = Code(int(_run(estimator, reference, batch_size=batch_size).code))
        place = "cross derivative" if where == "cross" else f"{where} loss"
        sentence = f"{title(estimator)} ends with {code.name}, not NONFINITE, where the {place} is NaN"
        require(code == Code.NONFINITE, sentence)


def _cost(estimator: Any, reference: Reference, calls: Mapping[str, int] | None) -> None:
    name = title(estimator)
    train, val = reference.sources(B)
    seen = Counter()
    start = reference.problem, estimator, reference.w0, reference.lam
    est = hypergradient(*start, Counted(train, seen), val, key=jax.random.key(0), report=False)
    drawn = seen.after(est)
    for part in est.cost:
        whole = np.issubdtype(np.asarray(part.calls).dtype, np.integer)
        require(whole and int(part.calls) >= 0, f"{name} must count its cost in whole numbers")
    declared = sum(int(part.calls) for part in _parts(est.cost) if part.rows == train.rows_per_batch)
    require(declared >= drawn, f"{name} reads {drawn} minibatches of train and counts {declared} in its cost")
    require(int(est.cost.outer_gradients.calls) >= 1, f"{name} counts no gradient of the outer loss")
    for kind, wanted in (calls or {}).items():
        found = int(getattr(est.cost, kind).calls)
        require(found == wanted, f"{name} counts {found} {kind} and declares {wanted}")


def _parts(cost: Cost) -> list[Any]:
    return [cost.gradients, cost.hvps, cost.cross, cost.measuring]


@partial(jax.jit, static_argnames="number")
def _many(problem: Problem, estimator: Any, w0: Any, lam: Any, sources: tuple[Arrays, Arrays], number: int) -> Any:
    def value(key: Any) -> Any:
        return estimator.estimate(Instance(problem, lam, *sources), w0, key=key).value

    return jax.vmap(value)(jax.random.split(jax.random.key(7), number))


def _key(estimator: Any, reference: Reference, stochastic: bool) -> None:
    name = title(estimator)
    first, again, other = (_run(estimator, reference, batch_size=B, seed=seed) for seed in (0, 0, 1))
    require(same_bits(first, again), f"{name} gives different results for the same key")
    if not stochastic:
        require(same_bits(first, other), f"{name} is said to draw nothing, and its result changes with the key")
    else:
        require(relative(first.value, other.value) > 0, f"{name} gives the same value for every key")


def _bias(estimator: Any, reference: Reference) -> None:
    w0, lam = jnp.asarray(reference.w0), jnp.asarray(reference.lam)
    start = canonicalize(reference.problem), canonicalize(estimator), w0, lam, reference.sources(B)
    unbiased(f"{title(estimator)} on minibatches", _many(*start, KEYS), reference.hypergradient)
