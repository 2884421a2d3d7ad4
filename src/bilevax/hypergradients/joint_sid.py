"""The efficient estimator: one minibatch, three directions, averaged."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import choice, config, count, real, set_fields
from bilevax.core.keys import stream
from bilevax.core.records import Cost, Count, Error, Estimate, Failure, nonfinite, worst_part
from bilevax.core.trees import PyTree, add, all_finite, astype_of, axpy, norm, scale, sub, where, zeros_like
from bilevax.data import RowSource, join
from bilevax.hypergradients.error import BATCHES, BatchMeans, edges, extrapolated, moved_by, remaining_bias
from bilevax.problems.gradient_step import POWER_STEPS, power_iteration
from bilevax.problems.problem import Problem, cross_product, inner_image, outer_gradients, residual
from bilevax.solvers import at_step
from bilevax.solvers.fixed_point import has_grown
from bilevax.solvers.schedules import schedule

DISCARDED = 4
"""One in so many of the steps, the first ones, stays out of the averages."""

MEASURED = 8
"""Minibatches on which the step is measured."""

FORGOTTEN = 10.0
"""Relaxation times that a run must last to have forgotten its start."""

FOLLOWED = 10
"""One in so many of the steps, again, follows how the iteration contracts."""

PRICED = 200
"""One minibatch in so many steps, fixed, prices the noise of w and v after a last pass."""


class Chains(NamedTuple):
    """What is carried from step to step: a lane for each chain, the first with whole steps, the second with half.

    Attributes:
        w: [lanes, ...].
        v: [lanes, ...].
        failure: the first stage and step at which something was not finite; the chains then stand still.
        travel: sum of the eta_j.
    """

    w: PyTree
    v: PyTree
    failure: Failure
    travel: Array


class Series(NamedTuple):
    """Batch means of a run, extrapolated: of the hypergradients x_j, of w_j and v_j, and how far x was moved by it."""

    x: BatchMeans
    w: BatchMeans
    v: BatchMeans
    moved: BatchMeans


@config
class JointSID:
    """Joint stochastic implicit differentiation: each minibatch moves w, moves v, and gives a hypergradient.

    For j < N, with one minibatch zeta_j of train and one, xi_j, of val, all at the same (w_j, v_j):

        x_j     = grad_2 E(w_j; xi_j) + d2Phi(w_j; zeta_j)^T v_j
        v_{j+1} = v_j + eta_j (grad_1 E(w_j; xi_j) + d1Phi(w_j; zeta_j)^T v_j - v_j)
        w_{j+1} = w_j + eta_j (Phi(w_j; zeta_j) - w_j)

    from one reverse pass; value is the mean of the last three quarters of the x_j, w and v the means of theirs. The
    averaging attains the least variance that N minibatches allow (Polyak and Juditsky 1992). Two chains, with eta and
    eta / 2 on the same minibatches, remove the bias of first order in eta: 2 x^(eta/2) - x^(eta). With the *last pass*
    the value is instead grad_2 E + d2Phi^T v at the means of w and v, on every row, free of the cross products' noise.

    ``error`` comes from 20 batch means of the extrapolated series (of the means of w and v, after a last pass). The
    code is BUDGET unless the run lasted 10 relaxation times of its slowest direction and the relative error is at
    most ``tol``. Where both sources hand out every row, the average is over the last 20 steps.

    Assumes what :class:`~bilevax.SID` assumes. Give ``val`` minibatches: one with every row is read at every step.
    Cost: N gradients, Hessian-vector products, cross products and outer gradients a chain (the rows are read once for
    both), n rows for the last pass, and less than 15 % of that for the report; 64 Hessian-vector products for a
    measured step. Memory: 20 (2 d + 2 m).

    Source: theory of averaging by Polyak and Juditsky (1992); the joint recursion with fixed lam is that of SOBA,
    Dagreou, Ablin, Vaiter, Moreau (2022), arXiv:2201.13409; extrapolation as in Dieuleveut, Durmus, Bach (2017),
    arXiv:1707.06386.

    Args:
        steps: N, a count of at least 1, or :class:`~bilevax.Growing` with the outer step; at least 40 for an error.
        step_size: eta_j, a number in (0, inf) or a schedule; None (default): eta = 1 / (the largest
            curvature, |I - d1Phi|, of 8 minibatches at w0), at most 1; without ``extrapolate`` it decays as
            (1 + 10 j / N)^-0.6.
        extrapolate: run the second chain. Default True.
        last_pass: ``"auto"`` (default: where N b > 3 n), ``"always"`` or ``"never"``.
        tol: relative error above which the code is BUDGET. Default 0.1.
    """

    steps: Any
    step_size: Any = None
    extrapolate: bool = True
    last_pass: str = "auto"
    tol: float = 0.1

    def __post_init__(self) -> None:
        tol = real("tol", self.tol, low=0.0, open_low=True)
        set_fields(self, steps=count("steps", self.steps, low=1), tol=tol)
        choice("last_pass", self.last_pass, ("auto", "always", "never"))
        if self.step_size is not None:
            set_fields(self, step_size=schedule(self.step_size))

    def check(self, problem: Problem) -> None:
        """Every problem will do."""

    def estimate(
        self,
        problem: Problem,
        w0: PyTree,
        lam: PyTree,
        sources: tuple[RowSource, RowSource],
        *,
        key: Array,
        s: Array | int = 0,
        v0: PyTree | None = None,
    ) -> Estimate:
        """One hypergradient; pure and traceable.

        Args:
            problem: with its inner step measured.
            w0: start of w.
            lam: where the hypergradient is wanted.
            sources: (train, val).
            key: its streams inner (all minibatches of the run), linear, cross and measure are used.
            s: outer step, for counts that grow.
            v0: start of v; None: 0.
        """
        train, val = sources
        steps = at_step(self.steps, s)
        eta, products = self._step_sizes(problem, w0, lam, train, steps, key=stream(key, "measure"))
        start = begin(w0, zeros_like(w0) if v0 is None else v0, lanes=2 if self.extrapolate else 1)
        first = steps - jnp.minimum(steps, BATCHES) if train.whole and val.whole else steps // DISCARDED
        end, series = run(problem, lam, sources, eta, start, (first, steps), key=stream(key, "inner"))

        any_step = jnp.sum(series.x.counts) > 0
        point = where(any_step, (series.w.mean, series.v.mean), extrapolated((end.w, end.v)))
        outer_value, _, direct = outer_gradients(problem, point[0], lam, val.full)
        passes = {"always": True, "never": False}.get(self.last_pass, steps > 3 * train.rows // train.rows_per_batch)
        priced = jnp.maximum(steps // PRICED, 1)

        def exact() -> tuple[PyTree, PyTree, tuple[Array, Array, Array]]:
            product = cross_product(problem, point[0], lam, train.full, point[1])
            by_w, by_v = influences(problem, lam, sources, series, point, priced, key=stream(key, "cross"))
            both = by_w.of(add(by_w.means, by_v.means))
            parts = norm(by_w.standard_error), norm(by_v.standard_error)
            return add(astype_of(direct, lam), product), both.standard_error, (*parts, jnp.zeros_like(parts[0]))

        def averaged() -> tuple[PyTree, PyTree, tuple[Array, Array, Array]]:
            size = norm(series.x.standard_error)
            unknown = jnp.full_like(size, jnp.nan)
            return series.x.mean, series.x.standard_error, (unknown, unknown, size)

        value, standard_error, parts = jax.lax.cond(passes, exact, averaged)
        followed = jnp.maximum(steps // FOLLOWED, 2)
        eta_mean = end.travel / steps.astype(end.travel.dtype)
        pair = (series.v.drift, eta_mean, followed)
        rate = contraction_rate(problem, point[0], lam, train, *pair, key=stream(key, "linear"))
        bias = remaining_bias(value, series.x, series.moved)
        inner, linear, sampling = parts
        error = Error(value, standard_error, bias, series.x.degrees, inner, linear, sampling, jnp.exp(rate))
        trusted = (-rate * steps.astype(rate.dtype) >= FORGOTTEN) & (error.relative <= self.tol)
        code, failure = _judge(start, end, steps, trusted, outer=(outer_value, direct), value=value)
        chain_calls = steps * (2 if self.extrapolate else 1)
        passed = jnp.asarray(passes, jnp.int32)
        cost = Cost(
            gradients=Count(chain_calls, train.rows_per_batch),
            hvps=Count(chain_calls + followed, train.rows_per_batch),
            cross=Count(chain_calls + passed * (_batches(train) + 2 * BATCHES * priced), train.rows_per_batch),
            outer_gradients=Count(chain_calls + _batches(val) + passed * BATCHES * priced, val.rows_per_batch),
            measuring=Count(jnp.int32(products), train.rows_per_batch),
        )
        w, v = point
        return Estimate(value, outer_value, w, v, code, cost, failure, error)

    def _step_sizes(
        self, problem: Problem, w0: PyTree, lam: PyTree, train: RowSource, steps: Array, *, key: Array
    ) -> tuple[Callable[[Array], Array], int]:
        """The eta_j, and the Hessian-vector products spent on measuring them."""
        if self.step_size is not None:
            return self.step_size, 0
        eta = measured_step(problem, w0, lam, train, key=key)
        products = (1 if train.whole else MEASURED) * POWER_STEPS
        if self.extrapolate:
            return lambda j: eta, products
        return lambda j: eta / (1 + 10 * (j / steps).astype(eta.dtype)) ** 0.6, products


def begin(w0: PyTree, v0: PyTree, *, lanes: int) -> Chains:
    """Chains that all start at (w0, v0)."""
    w, v = jax.tree.map(lambda x: jnp.broadcast_to(x, (lanes, *x.shape)), (w0, v0))
    nowhere = Failure(Failure.stage_of("none"), jnp.int32(0))
    return Chains(w, v, nowhere, jnp.zeros((), jnp.result_type(float)))


def run(
    problem: Problem,
    lam: PyTree,
    sources: tuple[RowSource, RowSource],
    eta: Callable[[Array], Array],
    chains: Chains,
    kept: tuple[Array, Array],
    *,
    key: Array,
) -> tuple[Chains, Series]:
    """Move the chains up to step ``kept[0]``, and then up to ``kept[1]``, in stretches whose means are kept."""
    cuts = edges(*kept)

    def stretch(chains: Chains, ends: tuple[Array, Array]) -> tuple[Chains, Any]:
        chains, sums, number = advance(problem, lam, sources, eta, chains, *ends, key=key)
        x, w, v = scale(1.0 / jnp.maximum(number, 1).astype(jnp.result_type(float)), sums)
        return chains, (number, *extrapolated((x, w, v)), moved_by(x))

    chains, _ = stretch(chains, (jnp.zeros_like(kept[0]), kept[0]))
    chains, (counts, *means) = jax.lax.scan(stretch, chains, (cuts[:-1], cuts[1:]))
    return chains, Series(*(BatchMeans.filled(x, counts) for x in means))


def advance(
    problem: Problem,
    lam: PyTree,
    sources: tuple[RowSource, RowSource],
    eta: Callable[[Array], Array],
    chains: Chains,
    start: Array,
    stop: Array,
    *,
    key: Array,
) -> tuple[Chains, tuple[PyTree, PyTree, PyTree], Array]:
    """The chains after the steps start <= j < stop; with sums over them of x_j, w_j, v_j, and their number."""
    lanes = jax.tree.leaves(chains.w)[0].shape[0]
    halving = 0.5 ** jnp.arange(lanes, dtype=jnp.result_type(float))

    def step(carry: Any, args: tuple[Problem, PyTree], j: Array, draws: Any) -> Any:
        (w, v, failure, travel), sums, number = carry
        move = jax.vmap(partial(moved, *args, draws))
        new_w, new_v, x, stage = move(w, v, eta(j) * halving)
        failure = where(failure.stage == 0, Failure(jnp.max(stage), j + 1), failure)
        good = failure.stage == 0
        sums = where(good, add(sums, (x, w, v)), sums)
        w, v = where(good, (new_w, new_v), (w, v))
        return Chains(w, v, failure, travel + eta(j)), sums, number + good.astype(jnp.int32)

    sums = jax.tree.map(lambda x: jnp.zeros((lanes, *x.shape), x.dtype), lam), *zeros_like((chains.w, chains.v))
    both = join(train=sources[0], val=sources[1])
    return both.fold(step, (chains, sums, jnp.int32(0)), (problem, lam), key=key, start=start, stop=stop)


def moved(
    problem: Problem, lam: PyTree, draws: Any, w: PyTree, v: PyTree, eta: Array
) -> tuple[PyTree, PyTree, PyTree, Array]:
    """One step of one chain: the next w and v, the hypergradient x, and the first stage that is not finite."""
    train, val = draws["train"], draws["val"]
    image, pullback = jax.vjp(lambda w, lam: inner_image(problem, w, lam, train.batch), w, lam)
    by_w, by_lam = pullback(v)
    _, g, direct = outer_gradients(problem, w, lam, val.batch)
    g, direct = astype_of(g, w), astype_of(direct, lam)
    x = axpy(val.weight, direct, scale(train.weight, by_lam))
    by_v = axpy(val.weight, g, scale(train.weight, sub(by_w, v)))
    stages = {"inner": image, "outer": (g, direct), "linear": by_w, "cross": by_lam}
    lost = [~all_finite(part) for part in stages.values()]
    stage = jnp.select(lost, [Failure.stage_of(name) for name in stages], Failure.stage_of("none"))
    return axpy(eta * train.weight, sub(image, w), w), axpy(eta, by_v, v), x, stage


def influences(
    problem: Problem,
    lam: PyTree,
    sources: tuple[RowSource, RowSource],
    series: Series,
    point: tuple[PyTree, PyTree],
    number: Array,
    *,
    key: Array,
) -> tuple[BatchMeans, BatchMeans]:
    """What the batch means of w, and those of v, do to the hypergradient, seen on the same ``number`` minibatches."""

    def hypergradient(problem: Problem, lam: PyTree, draws: Any, w: PyTree, v: PyTree) -> PyTree:
        train, val = draws["train"], draws["val"]
        direct = astype_of(outer_gradients(problem, w, lam, val.batch)[2], lam)
        product = cross_product(problem, w, lam, train.batch, v)
        return axpy(val.weight, direct, scale(train.weight, product))

    def step(total: PyTree, args: Any, _: Array, draws: Any) -> PyTree:
        problem, lam, (w, v), ws, vs = args
        at = partial(hypergradient, problem, lam, draws)
        return add(total, (jax.vmap(at, (0, None))(ws, v), jax.vmap(at, (None, 0))(w, vs)))

    start = zeros_like((series.x.means, series.x.means))
    args = problem, lam, point, series.w.means, series.v.means
    total = join(train=sources[0], val=sources[1]).fold(step, start, args, key=key, start=0, stop=number)
    by_w, by_v = scale(1.0 / number.astype(jnp.result_type(float)), total)
    return series.x.of(by_w), series.x.of(by_v)


def measured_step(problem: Problem, w: PyTree, lam: PyTree, train: RowSource, *, key: Array) -> Array:
    """The largest eta <= 1 with eta |I - d1Phi| <= 1 on each of MEASURED minibatches, by power iteration.

    For a gradient step, E|e - eta H_B e|^2 < |e|^2 as soon as eta E[H_B^2] <= H, for which the largest curvature of any
    minibatch will do (in the metric of the step); such a step is stable in the second moment by a factor of two.
    """

    def largest(seen: Array, args: Any, j: Array, draw: Any) -> Array:
        problem, w, lam, key = args
        leaves, structure = jax.tree.flatten(w)
        keys = jax.random.split(jax.random.fold_in(key, j), len(leaves))
        normal = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        curvature = power_iteration(
            lambda u: residual(problem, w, lam, draw.batch, u), jax.tree.unflatten(structure, normal)
        )
        return jnp.maximum(seen, curvature)

    one = jnp.ones((), norm(w).dtype)
    return 1.0 / train.fold(largest, one, (problem, w, lam, key), key=key, start=0, stop=1 if train.whole else MEASURED)


def contraction_rate(
    problem: Problem,
    w: PyTree,
    lam: PyTree,
    train: RowSource,
    direction: PyTree,
    eta: Array,
    number: Array,
    *,
    key: Array,
) -> Array:
    """Mean logarithm of the growth of a direction u <- u - eta (I - d1Phi^T) u, over the last half of the minibatches.

    The direction to start from is the drift of v: what an average leaves of its noise is in the slowest directions.
    """
    real = norm(direction).dtype
    tiny = jnp.finfo(real).tiny
    start = where(norm(direction) > tiny, direction, jax.tree.map(jnp.ones_like, direction))

    def step(carry: tuple[PyTree, Array], args: Any, j: Array, draw: Any) -> tuple[PyTree, Array]:
        u, total = carry
        problem, w, lam, eta = args
        u = scale(1.0 / jnp.maximum(norm(u), tiny), u)
        u = axpy(-eta * draw.weight, residual(problem, w, lam, draw.batch, u), u)
        return u, total + jnp.where(j >= number // 2, jnp.log(jnp.maximum(norm(u), tiny)), 0.0)

    carry = start, jnp.zeros((), real)
    total = train.fold(step, carry, (problem, w, lam, eta), key=key, start=0, stop=number)[1]
    return total / (number - number // 2).astype(real)


def _judge(
    start: Chains, end: Chains, steps: Array, trusted: Array, *, outer: PyTree, value: PyTree
) -> tuple[Array, Failure]:
    """The worst code, and the first stage that has it."""
    zero, ok = jnp.int32(0), jnp.int32(Code.OK)
    return worst_part(
        (end.failure.stage, jnp.where(end.failure.stage == 0, ok, jnp.int32(Code.NONFINITE)), end.failure.step),
        ("inner", jnp.where(has_grown(start.w, end.w), jnp.int32(Code.DIVERGED), ok), steps),
        ("linear", jnp.where(has_grown(start.v, end.v), jnp.int32(Code.DIVERGED), ok), steps),
        ("outer", nonfinite(outer), zero),
        ("cross", nonfinite(value), zero),
        ("none", jnp.where(trusted, ok, jnp.int32(Code.BUDGET)), zero),
    )


def _batches(source: RowSource) -> int:
    """Minibatches that hold as many rows as the table."""
    return -(-source.rows // source.rows_per_batch)
