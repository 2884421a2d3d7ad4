"""The error report of one run of SID from snapshots of its two chains: their noise, and the bias of their starts."""

import functools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.error_report import as_others
from bilevax.core.instance import Instance, Oracle
from bilevax.core.keys import stream
from bilevax.core.protocols import Draw, RowSource
from bilevax.core.records import ErrorReport, Estimate, Snapshots
from bilevax.core.trees import PyTree, add, astype_of, axpy, norm, row, scale, sub, vdot, where, zeros_like
from bilevax.data.hashed import HashedBatches
from bilevax.data.sampling import Numbered
from bilevax.hypergradients.batches import Sampled, mean_and_deviation, revised, stack_mean, with_squares
from bilevax.hypergradients.residual_error import CERTAIN, residual_error
from bilevax.hypergradients.spread import RelaxationRate, last_point_error, sum_of_entries
from bilevax.linalg.power import nonzero

ANSWERED, FEWEST = 40, 24
"""Minibatches of a chain for each of the linear systems of its report, and the fewest of these."""

READ, LEAST_READ = 8, (64, 4)
"""Minibatches of those for each on which gradients and products are compared, and the fewest rows and minibatches of
either source."""

UNRESOLVED = 0.67
"""Along a cumulative step s, of curvatures of all sizes, the slowest is not resolved from one larger by .67 / s."""

LEAST = 0.07
"""Least fraction of the curvature seen that the slowest direction has."""

Parts = dict[str, PyTree]
"""Stacks [L, ...], like w or like lam, by the stage of SID they come from."""

Stack = TypeVar("Stack")

Systems: TypeAlias = tuple[PyTree, PyTree, Array, Array, Array]
"""A direction u; solutions of the linear systems in a stack; step size; cumulative step; sum of <u, A u>."""


class ChainTrace(NamedTuple):
    """Evidence of a run of SID for its report.

    Attributes:
        inner: snapshots of the chain of w; None where w comes from every row, or is given.
        linear: of the chain of v; likewise.
        cross: of the products of cross batches.
        outer: of (grad_1 E, grad_2 E): half of the difference between the means of the two halves of the outer batches,
            times the root of their number.
        unseen: bias of the value of which neither chain shows anything, in absolute value, like lam; None: none.
    """

    inner: Snapshots | None
    linear: Snapshots | None
    cross: Sampled | None
    outer: Sampled | None
    unseen: PyTree = None

    @property
    def last(self) -> Snapshots | None:
        """The snapshots of the chain that was run last."""
        return self.inner if self.linear is None else self.linear

    @property
    def chains(self) -> dict[str, Snapshots]:
        """The snapshots that there are, by their stage."""
        both = {"inner": self.inner, "linear": self.linear}
        return {name: chain for name, chain in both.items() if chain is not None}


def snapshot_report(instance: Instance, estimate: Estimate, trace: ChainTrace, *, key: Array) -> ErrorReport:
    """The report on an estimate of :class:`~bilevax.SID` that sampled, to first order.

    The snapshots of w, less its last iterate, change grad_1 E + d1Phi^T v, the right-hand side of v, and so v by the
    solution of the linear system, and grad_2 E + d2Phi^T v at a fixed v; those of v change d2Phi^T v. So both chains
    are mapped into the hypergradient, where :func:`last_point_error` estimates noise and bias. ``bias`` is the sum of
    both; ``inner``, ``linear`` and ``sampling`` are the parts of w, of v, and of the cross and outer batches in the
    root mean square error. Whether a deterministic solver beside a stochastic one has converged, its code says.

    Cost: on a fortieth of k minibatches, at least 24, Hessian-vector products of eight directions at once; on an eighth
    as many of either source, at least 4 and 64 rows, gradients and cross products at as many points.

    Args:
        instance: with its inner step measured.
        estimate: to report on.
        trace: of its run.
        key: its stream measure is used.
    """
    # Blocks of an epoch are not independent, and their noise would be taken for less.
    drawn = with_independent(instance)
    train, val = drawn.train, drawn.val
    steps = estimate.cost.gradients.calls if trace.linear is None else estimate.cost.hvps.calls
    # k / 40 minibatches, at least 24; an eighth of these for gradients and products
    solving = jnp.maximum(jnp.asarray(steps) // ANSWERED, FEWEST)
    reading = _batches(train, solving), _batches(val, solving)
    points = estimate.w, estimate.v
    rate, images, deviation = _images(drawn, points, trace, (solving, reading), key=stream(key, "measure"))

    errors = {
        name: last_point_error(chain._replace(points=_with_last(images[name])), rate)
        for name, chain in trace.chains.items()
    }
    noise = {name: (error.squares, error.degrees_of_freedom) for name, error in errors.items()}
    if trace.outer is not None:
        one = trace.outer.number < 2  # a single minibatch has no noise to be seen
        # one difference of two halves: its square, with one degree of freedom
        squares = jax.tree.map(lambda x: jnp.where(one, jnp.inf, x[0] ** 2), images["outer"])
        noise["outer"] = squares, jnp.ones_like(rate.seen)
    if trace.cross is not None:
        noise["cross"] = _of_products(trace.cross, Sampled(deviation, reading[0]))
    if trace.last is None:
        rest = residual_error(instance, None, points)._replace(value=estimate.value)
    else:
        bias, sizes = {name: error.bias for name, error in errors.items()}, trace.last.step_sizes
        assert sizes is not None
        rest = _bias_only(estimate.value, bias, 1.0 - rate.seen * sizes[-1])
    if trace.unseen is not None:
        rest = rest._replace(bias=add(rest.bias, trace.unseen))
    # every minibatch that is read once for the changes of w, where it has a chain, and once for the products
    twice = int(trace.inner is not None)
    minibatches = solving + (1 + twice) * reading[0], twice * reading[1]
    samples = minibatches[0] * train.rows_per_batch + minibatches[1] * val.rows_per_batch
    dtype = rate.seen.dtype
    return _with_noise(rest, noise)._replace(samples=rest.samples + samples.astype(dtype), order=jnp.ones((), dtype))


def _images(
    instance: Instance,
    points: tuple[PyTree, PyTree],
    trace: ChainTrace,
    numbers: tuple[Array, tuple[Array, Array]],
    *,
    key: Array,
) -> tuple[RelaxationRate, Parts, PyTree]:
    """The hypergradient at earlier points of the chains, less that at their ends; [L, ...], like lam.

    Beside the curvature of the linear system, and the standard deviation of the product of one cross batch.
    """
    (w, v), (solving, reading) = points, numbers
    system_key, read_key = jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)
    right_hand_sides: Parts = {}
    direct: Parts = {}  # changes at a fixed v
    if trace.inner is not None:
        before = jax.tree.map(lambda x: x[:-1], trace.inner.points)
        right_hand_sides["inner"], direct["inner"] = _changes(instance, points, before, reading, key=read_key)
    if trace.outer is not None:
        right_hand_sides["outer"], direct["outer"] = jax.tree.map(lambda x: x[None], _of_mean(trace.outer))
    # a chain averages its fast directions away: its drift is in the slow ones
    drift = v if trace.last is None else jax.tree.map(lambda x: x[-1] - x[0], trace.last.points)
    rate, solutions = _solve_many(instance, w, drift, right_hand_sides, number=solving, key=system_key)
    if trace.linear is not None:
        solutions["linear"] = jax.tree.map(lambda x: x[:-1] - x[-1:], trace.linear.points)
    solutions["cross"] = jax.tree.map(lambda x: x[None], v)
    # d2Phi^T dv, all in one stack; with the change at a fixed v it is that of the hypergradient
    products = _in_one_stack(partial(_products, instance, w, number=reading[0], key=read_key), solutions)
    images = {name: add(mean, direct[name]) if name in direct else mean for name, (mean, _) in products.items()}
    return rate, images, row(products["cross"][1], 0)


def _with_last(differences: PyTree) -> PyTree:
    """Snapshots that differ by these from the last, [SNAPSHOTS, ...]."""
    return jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:1])]), differences)


def _bias_only(value: PyTree, bias: dict[str, PyTree], contraction: Array) -> ErrorReport:
    """A report of bias alone."""
    zero, none = jnp.zeros_like(norm(value)), zeros_like(value)
    # biases add up in absolute value, as their signs are not known
    inner, linear = (astype_of(bias.get(name, none), value) for name in ("inner", "linear"))
    sizes = norm(inner), norm(linear), zero, contraction.astype(zero.dtype)
    return ErrorReport(value, none, add(inner, linear), jnp.int32(CERTAIN), *sizes)


def _with_noise(rest: ErrorReport, noise: dict[str, tuple[PyTree, Array]]) -> ErrorReport:
    """The report with the noise of its parts: squares of standard errors, and degrees of freedom (Welch 1947)."""
    # variances of independent parts add up
    squares = functools.reduce(add, [part for part, _ in noise.values()])
    zero = jnp.zeros_like(rest.inner)
    sizes = {name: jnp.sqrt(sum_of_entries(part)).astype(zero.dtype) for name, (part, _) in noise.items()}
    inner, linear, cross, outer = (sizes.get(name, zero) for name in ("inner", "linear", "cross", "outer"))
    total = jnp.sqrt(functools.reduce(jnp.add, [x**2 for x in sizes.values()]))
    # (sum_i s_i^2)^2 / sum_i (s_i^4 / n_i) degrees of freedom
    shares = {name: (x / jnp.maximum(total, jnp.finfo(zero.dtype).tiny)) ** 4 for name, x in sizes.items()}
    spent = functools.reduce(jnp.add, [shares[name] / n.astype(zero.dtype) for name, (_, n) in noise.items()])
    degrees = jnp.where(jnp.isfinite(total), 1.0 / jnp.maximum(spent, 1e-9), 1.0)
    return rest._replace(
        standard_error=as_others(jax.tree.map(jnp.sqrt, squares)),
        bias=as_others(rest.bias),
        degrees_of_freedom=jnp.clip(degrees, 1.0, CERTAIN // 2).astype(jnp.int32),
        inner=jnp.hypot(rest.inner, inner),
        linear=jnp.hypot(rest.linear, linear),
        sampling=jnp.hypot(cross, outer),
    )


def _of_mean(sampled: Sampled) -> PyTree:
    return scale(1.0 / jnp.sqrt(jnp.maximum(sampled.number, 1).astype(jnp.result_type(float))), sampled.deviation)


def _of_products(cross: Sampled, more: Sampled) -> tuple[PyTree, Array]:
    """Squared standard errors of the mean of the cross batches, from these and some more, and degrees of freedom."""
    # pooled variance ((J - 1) a^2 + (n - 1) b^2) / (J + n - 2), over J
    first, second = (jnp.maximum(x.number - 1, 0).astype(jnp.result_type(float)) for x in (cross, more))
    degrees = first + second

    def pooled(a: Array, b: Array) -> Array:
        share = (first / jnp.maximum(degrees, 1.0)).astype(a.dtype)
        square = (share * a**2 + (1 - share) * b**2) / jnp.maximum(cross.number, 1).astype(a.dtype)
        return jnp.where(degrees > 0, square, jnp.inf)  # of a single one no noise is seen

    return jax.tree.map(pooled, cross.deviation, more.deviation), jnp.maximum(degrees, 1.0)


def _in_one_stack(fn: Callable[[PyTree], Stack], parts: Parts) -> dict[str, Stack]:
    """A function of all parts in one stack, part by part: one pass over the rows for all."""
    return _split_like(fn(jax.tree.map(lambda *x: jnp.concatenate(x), *parts.values())), parts)


def _split_like(stack: Stack, like: Parts) -> dict[str, Stack]:
    """A stack in parts that are as long as those."""
    first, found = 0, {}
    for name, part in like.items():
        last = first + jax.tree.leaves(part)[0].shape[0]
        found[name] = jax.tree.map(lambda x, a=first, b=last: x[a:b], stack)
        first = last
    return found


def _changes(
    instance: Instance, points: tuple[PyTree, PyTree], before: PyTree, read: tuple[Array, Array], *, key: Array
) -> tuple[PyTree, PyTree]:
    """What grad_1 E + d1Phi^T v and grad_2 E + d2Phi^T v were before, [L, ...], less what they are at (w, v)."""
    w, v = points
    # w itself last: the same minibatches at all points, whose noise drops out of the differences
    here = jax.tree.map(lambda x, b: jnp.concatenate([b, x[None]]), w, before)

    def inner(args: tuple[Oracle, PyTree], w: PyTree, batch: PyTree) -> PyTree:
        oracle, v = args
        # d1Phi^T v, d2Phi^T v
        return oracle.inner_pullback(w, batch)[1](v)

    def outer(args: tuple[Oracle, PyTree], w: PyTree, batch: PyTree) -> PyTree:
        # grad_1 E, grad_2 E
        return args[0].outer_gradients(w, batch)[1:]

    args = instance.oracle, v
    through, direct = (
        stack_mean(fn, args, here, source, key=key, number=number)
        for fn, source, number in zip((inner, outer), (instance.train, instance.val), read, strict=True)
    )
    by_w, by_lam = jax.tree.map(lambda x: x[:-1] - x[-1:], add(through, direct))
    return by_w, by_lam


def _batches(source: RowSource, solving: Array) -> Array:
    """Minibatches of a source on which gradients and products are compared."""
    if source.is_full_batch:
        return jnp.asarray(1, jnp.int32)
    rows, least = LEAST_READ
    return jnp.maximum(solving // READ, max(rows // source.rows_per_batch, least))


def _solve_many(
    instance: Instance, w: PyTree, direction: PyTree, right_hand_sides: Parts, *, number: Array, key: Array
) -> tuple[RelaxationRate, Parts]:
    """The curvature of the linear system, and its solutions for many right-hand sides, after so many steps.

    A direction u <- u - eta (I - d1Phi^T) u shrinks to the slowest; ``seen`` is the mean of <u, (I - d1Phi^T) u> over
    the last half, each minibatch with the direction that those before it made. The step of all is 1 at first, and
    halved whenever u grows. Not :func:`~bilevax.linalg.power.contraction_rate`: here one pass over the rows serves u
    and a stack of systems, and its step is sought.
    """
    real = norm(direction).dtype
    tiny = jnp.finfo(real).tiny
    right = jax.tree.map(lambda *x: jnp.concatenate(x), *right_hand_sides.values()) if right_hand_sides else ()

    def step(carry: Systems, args: tuple[Oracle, PyTree, PyTree, Array], j: Array, draw: Draw) -> Systems:
        (u, x, eta, cumulative_step, total), (oracle, w, right, number) = carry, args
        # one linearisation at w serves u and all systems: A_B u = u - d1Phi_B^T u
        _, pullback = jax.vjp(lambda w: oracle.inner_image(w, draw.batch), w)

        def product(u: PyTree) -> PyTree:
            return sub(u, pullback(u)[0])

        image = product(u)
        moved = axpy(-eta * draw.weight, image, u)
        # ||u - eta A_B u||; squares of a vector of length 1 may overflow, which is growth, and do not vanish
        length = jnp.sqrt(vdot(moved, moved).astype(real))
        # eta <- eta / 2, and no step, where that is > 1
        grown = ~(length <= 1.0)

        def solved(x: PyTree, right: PyTree) -> PyTree:
            # x <- x + eta (right - A_B x)
            return where(grown, x, axpy(eta * draw.weight, sub(right, product(x)), x))

        x = revised(solved, x, right, batch=draw.batch) if right_hand_sides else x
        total = total + jnp.where(j >= number // 2, vdot(u, image).astype(real), 0.0)
        cumulative_step = cumulative_step + jnp.where(grown, 0.0, eta)
        # u <- (u - eta A_B u) / ||u - eta A_B u||
        u = where(grown, u, scale(1.0 / jnp.maximum(length, tiny), moved))
        return u, x, jnp.where(grown, 0.5 * eta, eta), cumulative_step, total

    zero, one = jnp.zeros((), real), jnp.ones((), real)
    start = nonzero(direction)
    begin = scale(1.0 / norm(start), start), zeros_like(right), one, zero, zero
    args = instance.oracle, w, right, number
    _, x, _, cumulative_step, total = instance.train.fold(step, begin, args, key=key, start=0, stop=number)
    seen = jnp.maximum(total / (number - number // 2).astype(real), tiny)
    # h >= seen - .67 / s, and .07 seen at least
    slowest = jnp.maximum(seen - UNRESOLVED / jnp.maximum(cumulative_step, tiny), LEAST * seen)
    rate = RelaxationRate(*(x.astype(jnp.result_type(float)) for x in (seen, slowest)))
    return rate, _split_like(x, right_hand_sides)


def relaxation_rate(instance: Instance, w: PyTree, direction: PyTree, *, number: Array, key: Array) -> RelaxationRate:
    """The curvatures of the system at w along a direction that shrinks to the slowest, on so many minibatches."""
    return _solve_many(instance, w, direction, {}, number=number, key=key)[0]


def _products(instance: Instance, w: PyTree, v: PyTree, *, number: Array, key: Array) -> tuple[PyTree, PyTree]:
    """Mean and standard deviation over so many minibatches of d2Phi^T v, [L, ...]."""

    def products(args: tuple[Oracle, PyTree], v: PyTree, batch: PyTree) -> PyTree:
        oracle, w = args
        return oracle.cross_product(w, batch, v)

    args, source = (instance.oracle, w), instance.train
    return mean_and_deviation(stack_mean(with_squares(products), args, v, source, key=key, number=number), number)


def with_independent(instance: Instance) -> Instance:
    """The instance with both sources in independent minibatches (:func:`independent`)."""
    train, val = independent(instance.train, instance.val)
    return instance._replace(train=train, val=val)


def independent(train: RowSource, val: RowSource) -> tuple[RowSource, RowSource]:
    """Both sources in independent minibatches, full batches of val in minibatches of no more rows than train's."""
    return _independent(train, None), _independent(val, train.rows_per_batch)


def _independent(source: RowSource, rows: int | None) -> RowSource:
    """The source in independent minibatches; full batches in minibatches of so many rows, None: as they are."""
    # rows in windows cannot be read one here, one there, and are nearly independent
    if not isinstance(source, Numbered) or source.sampling == "windows":
        return source
    if source.is_full_batch:
        return source if rows is None or source.rows <= rows else HashedBatches(source, rows)
    # without a batch size a draw is every row, with a key of its own
    return HashedBatches(source, source.rows_per_batch) if source.batch_size else source
