"""What every estimator of a hypergradient must satisfy."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import canonicalize
from bilevax.core.errors import ParameterError
from bilevax.core.estimator import Estimator
from bilevax.core.instance import Instance
from bilevax.core.protocols import RowSource
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree, zeros_like
from bilevax.hypergradients import hypergradient
from bilevax.testing.closed_forms.small import B, Reference, Watched, affine, nest, nested, quadratic, ridge, watched
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
    same_to_rounding,
    single,
    title,
    traced_once,
    unbiased,
)

KEYS = 1000
"""Independent runs from which a bias is judged."""


def check_estimator(
    estimator: Estimator,
    *,
    rtol: float = 1e-6,
    stochastic: bool = True,
    is_unbiased: bool = True,
    differentiates: bool = True,
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
        differentiates: whether it takes derivatives in lam, so that NaN in them must be said.
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
        for where in ("inner", "outer", "cross") if differentiates else ("inner", "outer"):
            _fault(estimator, where, watch.flawed(where))
        run = partial(_run, estimator, watch.reference, B)
        keyed(title(estimator), run, draws=stochastic, field="value")
        _cost(estimator, watch.reference, calls)
        _precision(estimator, watch.reference)
        _trees(estimator, watch.reference)
        _transformations(estimator, watch.reference)
        if stochastic and is_unbiased:
            _bias(estimator, watch.reference)


def _run(estimator: Estimator, reference: Reference, batch_size: int | None = None, seed: int = 0) -> Estimate:
    (_, lam, train, val), w0 = reference.start(batch_size)
    return hypergradient(reference.problem, estimator, w0, lam, train, val, key=jax.random.key(seed))


def _closed_form(estimator: Estimator, reference: Reference, rtol: float) -> None:
    est, name, truth = _run(estimator, reference), title(estimator), reference.truth
    require(isinstance(est, Estimate), f"{name}.estimate must return a bilevax.Estimate, got {title(est)}")
    like(f"the value of {name}", est.value, jax.tree.map(jnp.asarray, reference.lam))
    like(f"the w of {name}", est.w, jax.tree.map(jnp.asarray, reference.w0))
    unreported = est.error is None and est.code == Code.TOLERANCE_NOT_MET
    require(est.code == Code.OK or unreported, f"{name} ends with {est.message} on {reference.name}, every row seen")
    # in the order of computation: the first that is wrong is named. v is None where nothing stands for it
    pairs = [("w", est.w, truth.w), ("outer_value", est.outer_value, truth.value)]
    pairs += [("v", est.v, truth.v)] if est.v is not None else []
    for field, found, wanted in [*pairs, ("value", est.value, truth.hypergradient)]:
        error = relative(found, wanted)
        require(
            error <= rtol,
            f"{field} of {name} has a relative error of {error:.1e} on {reference.name}, every row seen; "
            f"allowed is {rtol:.0e} (has it enough steps?)",
        )


def _other_maps(estimator: Estimator, rtol: float) -> None:
    """A map without a loss is refused in a sentence, before anything runs, or served."""
    reference = affine()
    try:
        estimator.check(reference.problem)
    except ParameterError as error:
        require(len(str(error)) > 10, f"{title(estimator)}.check must say in a sentence what it needs")
        return
    _closed_form(estimator, reference, rtol)


def _continued(estimator: Estimator, rtol: float) -> None:
    """Later outer steps and a start of the linear solver, as an algorithm gives them."""
    reference = quadratic()

    def value(instance: Instance, w0: PyTree, key: Array) -> PyTree:
        return estimator.estimate(instance, w0, key=key, outer_step=jnp.int32(3), v0=1.0 + zeros_like(w0)).value

    error = relative(jax.jit(value)(*reference.start(), jax.random.key(0)), reference.truth.hypergradient)
    require(error <= rtol, f"{title(estimator)} has a relative error of {error:.1e} at outer step 3 from a given v0")


def _trees(estimator: Estimator, reference: Reference) -> None:
    plain, tree = (_run(estimator, given, B) for given in (reference, nested(reference)))
    error = max(relative(tree.value, nest(plain.value)), relative(tree.w, nest(plain.w)))
    require(error <= ROUNDING, f"{title(estimator)} gives other numbers where w and lam are nested dictionaries")


def _precision(estimator: Estimator, reference: Reference) -> None:
    est = _run(estimator, reference.single(), B)
    single(title(estimator), value=est.value, outer_value=est.outer_value, w=est.w, v=est.v)
    # the same minibatches, drawn from the same key: rounding alone is left
    error = relative(est.value, _run(estimator, reference, B).value)
    require(error <= 1e-3, f"{title(estimator)} in float32 differs by {error:.1e} from itself in float64")


def _transformations(estimator: Estimator, reference: Reference) -> None:
    name = title(estimator)

    def estimate(lam: PyTree, key: Array, estimator: Estimator, train: RowSource, val: RowSource) -> Estimate:
        return hypergradient(reference.problem, estimator, reference.w0, lam, train, val, key=key)

    # arguments, not closures: XLA folds constants with a rounding of their own
    (_, lam, train, val), _ = reference.start(B)
    given = canonicalize(estimator), train, val
    lams = jnp.stack([lam, lam + 0.5])
    keys = jax.random.split(jax.random.key(1), 2)
    alone = [estimate(lam, key, *given) for lam, key in zip(lams, keys, strict=True)]
    jitted = jax.jit(estimate)(lams[0], keys[0], *given)
    same = same_bits(jitted._replace(error=None), alone[0]._replace(error=None))
    require(same, f"{name} called inside jax.jit differs from {name} called eagerly")
    same = same_to_rounding(jitted.error, alone[0].error)
    require(same, f"the report on {name} inside jax.jit differs from the eager one")
    mapped = jax.jit(jax.vmap(estimate, (0, 0, None, None, None)))(lams, keys, *given)
    for i, one in enumerate(alone):
        lane = jax.tree.map(lambda x, i=i: x[i], mapped)
        error = relative((lane.value, lane.w), (one.value, one.w))
        require(error <= ROUNDING, f"{name} under jax.vmap differs from a loop by {error:.1e}")
        require(same_bits(lane.cost, one.cost), f"the cost of {name} under jax.vmap differs from a loop's")


def _traces(estimator: Estimator, watch: Watched) -> None:
    # the first run compiles; those after it have other numbers in the same shapes
    reference = watch.reference
    _run(estimator, reference, B)
    other = reference._replace(lam=reference.lam + 1, w0=reference.w0 + 1)
    runs = {
        "new arrays and a new key": partial(_run, estimator, other, B, 1),
        "an equal object built again": partial(_run, rebuilt(estimator), reference, B),
        "changed numbers": partial(_run, rebuilt(estimator, changed=True), reference, B),
    }
    traced_once(title(estimator), watch.tally, runs)


def _fault(estimator: Estimator, where: str, reference: Reference) -> None:
    # on every row and on minibatches, which are solved by other programs
    for batch_size in (None, B):
        code = Code(int(_run(estimator, reference, batch_size).code))
        sentence = f"{title(estimator)} ends with {code.name}, not NONFINITE, where the {place(where)} is NaN"
        require(code == Code.NONFINITE, sentence)


def _cost(estimator: Estimator, reference: Reference, calls: Mapping[str, int] | None) -> None:
    name, seen = title(estimator), Counter()
    (_, lam, train, val), w0 = reference.start(B)
    start = estimator, w0, lam, Counted(train, seen), val
    est = hypergradient(reference.problem, *start, key=jax.random.key(0), report=False)
    # without a report, which draws minibatches of its own
    drawn = seen.after(est)
    for part in est.cost:
        whole = np.issubdtype(np.asarray(part.calls).dtype, np.integer)
        require(whole and int(part.calls) >= 0, f"{name} must count its cost in whole numbers")
    counted_in_full(name, est.cost, train.rows_per_batch, drawn)
    require(int(est.cost.outer_gradients.calls) >= 1, f"{name} counts no gradient of the outer loss")
    for kind, wanted in (calls or {}).items():
        found = int(getattr(est.cost, kind).calls)
        require(found == wanted, f"{name} counts {found} {kind} and declares {wanted}")


@jax.jit
def _many(estimator: Estimator, instance: Instance, w0: PyTree, keys: Array) -> PyTree:
    return jax.vmap(lambda key: estimator.estimate(instance, w0, key=key).value)(keys)


def _bias(estimator: Estimator, reference: Reference) -> None:
    # one program for all keys, without the driver: its checks would be traced KEYS times
    keys = jax.random.split(jax.random.key(7), KEYS)
    samples = _many(canonicalize(estimator), *reference.start(B), keys)
    unbiased(f"{title(estimator)} on minibatches", samples, reference.truth.hypergradient)
