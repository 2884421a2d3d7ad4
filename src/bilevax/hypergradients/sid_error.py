"""How wrong one run of SID is: the noise of its two chains, and what they remember of their starts."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.error_report import as_others
from bilevax.core.instance import Instance
from bilevax.core.keys import stream
from bilevax.core.protocols import RowSource
from bilevax.core.records import ErrorReport, Estimate, Snapshots
from bilevax.core.trees import PyTree, add, astype_of, axpy, norm, scale, sub, vdot, where, zeros_like
from bilevax.data import Arrays
from bilevax.data.hashed import HashedBatches
from bilevax.hypergradients.batches import Sampled, batch_mean, batch_spread, each
from bilevax.hypergradients.residual_error import CERTAIN, residual_error
from bilevax.hypergradients.spread import ForgettingRate, last_point_error, total_square

ANSWERED, FEWEST = 40, 24
"""One minibatch in so many of a chain, and at least so many, are spent on how v answers to what is wrong with w, and
how a direction shrinks beside it."""

READ, LEAST_READ = 8, (64, 4)
"""One minibatch in so many of those, and at least so many rows and so many minibatches of either source, are spent on
what is wrong with the hypergradient."""

UNRESOLVED = 0.67
"""A travel s cannot tell the slowest direction from one that is forgotten faster by .67 / s, if there are all rates."""

LEAST = 0.07
"""Share, at least, of the rate seen that the slowest direction has."""

Parts = dict[str, PyTree]
"""Stacks [L, ...], like w or like lam, by what they come from."""


class ChainTrace(NamedTuple):
    """What a run of SID leaves to its report.

    Attributes:
        inner: tail of the chain of w; None where w comes from every row, or is given.
        linear: tail of the chain of v; likewise.
        cross: of the products of cross batches.
        outer: of (grad_1 E, grad_2 E): half of what the means of the two halves of the outer batches differ by, times
            the root of their number.
    """

    inner: Snapshots | None
    linear: Snapshots | None
    cross: Sampled | None
    outer: Sampled | None

    @property
    def last(self) -> Snapshots | None:
        """The tail of the chain that was run last."""
        return self.inner if self.linear is None else self.linear


def tail_report(instance: Instance, estimate: Estimate, *, key: Array) -> ErrorReport:
    """The report on an estimate of :class:`~bilevax.SID` that sampled, to first order.

    Where w was on its way, less where it ended, changes grad_1 E + d1Phi^T v, which v answers as the linear system
    says, and grad_2 E + d2Phi^T v at a fixed v; where v was changes d2Phi^T v. So both tails are seen in the
    hypergradient, and :func:`last_point_error` says what noise and bias they show. ``bias`` is the sum of both;
    ``inner``, ``linear`` and ``sampling`` are the parts of w, of v, and of the cross and outer batches in the root mean
    square error. Whether a solver that sees every row is done, beside one that does not, its code says.

    Cost: on a fortieth of k minibatches, at least 24, Hessian-vector products of eight directions at once; on an eighth
    as many of either source, at least 4 and 64 rows, gradients and cross products at as many points.

    Args:
        instance: with its inner step measured.
        estimate: with what was seen.
        key: its stream measure is used.
    """
    seen: ChainTrace = estimate.seen
    drawn = with_independent(instance)
    train, val = drawn.train, drawn.val
    last = seen.last
    steps = estimate.cost.gradients.calls if seen.linear is None else estimate.cost.hvps.calls
    answered = jnp.maximum(steps // ANSWERED, FEWEST)
    read = _batches(train, answered), _batches(val, answered)
    rate, images, deviation = _images(drawn, estimate, (answered, read), key=stream(key, "measure"))

    tails = {"inner": seen.inner, "linear": seen.linear}
    chains = {
        name: last_point_error(tail._replace(points=_ended(images[name])), rate)
        for name, tail in tails.items() if tail is not None
    }  # fmt: skip
    noise = {name: (chain.squares, chain.degrees_of_freedom) for name, chain in chains.items()}
    if seen.outer is not None:
        one = seen.outer.number < 2  # which says nothing of its noise
        squares = jax.tree.map(lambda x: jnp.where(one, jnp.inf, x[0] ** 2), images["outer"])
        noise["outer"] = squares, jnp.ones_like(rate.seen)
    if seen.cross is not None:
        noise["cross"] = _of_products(seen.cross, Sampled(deviation, read[0]))
    if last is None:
        rest = residual_error(instance, None, (estimate.w, estimate.v))._replace(value=estimate.value)
    else:
        bias = {name: chain.bias for name, chain in chains.items()}
        rest = _bias_only(estimate.value, bias, 1.0 - rate.seen * last.sizes[-1])
    twice = int(seen.inner is not None)  # once for the changes, once for the products
    minibatches = answered + (1 + twice) * read[0], twice * read[1]
    samples = minibatches[0] * train.rows_per_batch + minibatches[1] * val.rows_per_batch
    dtype = rate.seen.dtype
    return _with_noise(rest, noise)._replace(samples=rest.samples + samples.astype(dtype), order=jnp.ones((), dtype))


def _images(
    instance: Instance, estimate: Estimate, numbers: tuple[Array, tuple[Array, Array]], *, key: Array
) -> tuple[ForgettingRate, Parts, PyTree]:
    """What the hypergradient would have been where the chains were on their way, less what it is; [L, ...], like lam.

    Beside how fast the linear system forgets, and the standard deviation of the product of one cross batch.
    """
    seen, (w, v), (answered, read) = estimate.seen, (estimate.w, estimate.v), numbers
    answering, reading = jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)
    asked: Parts = {}  # right-hand sides that v answers
    direct: Parts = {}  # what changes beside the answers
    if seen.inner is not None:
        before = jax.tree.map(lambda x: x[:-1], seen.inner.points)
        asked["inner"], direct["inner"] = _changes(instance, (w, v), before, read, key=reading)
    if seen.outer is not None:
        asked["outer"], direct["outer"] = jax.tree.map(lambda x: x[None], _of_mean(seen.outer))
    last = seen.last
    drift = v if last is None else jax.tree.map(lambda x: x[-1] - x[0], last.points)
    rate, answers = _solve_many(instance, w, drift, asked, number=answered, key=answering)
    if seen.linear is not None:
        answers["linear"] = jax.tree.map(lambda x: x[:-1] - x[-1:], seen.linear.points)
    answers["cross"] = jax.tree.map(lambda x: x[None], v)
    products = _in_one_stack(partial(_products, instance, w, number=read[0], key=reading), answers)
    images = {name: add(mean, direct[name]) if name in direct else mean for name, (mean, _) in products.items()}
    return rate, images, jax.tree.map(lambda x: x[0], products["cross"][1])


def _ended(differences: PyTree) -> PyTree:
    """The tail whose points differ by these from the last, [TAIL, ...]."""
    return jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:1])]), differences)


def _bias_only(value: PyTree, bias: dict[str, PyTree], contraction: Array) -> ErrorReport:
    """A report of bias alone."""
    zero, none = jnp.zeros_like(norm(value)), zeros_like(value)
    inner, linear = (astype_of(bias.get(name, none), value) for name in ("inner", "linear"))
    sizes = norm(inner), norm(linear), zero, contraction.astype(zero.dtype)
    return ErrorReport(value, none, add(inner, linear), jnp.int32(CERTAIN), *sizes)


def _with_noise(rest: ErrorReport, noise: dict[str, tuple[PyTree, Array]]) -> ErrorReport:
    """The report with the noise of its parts: squares of standard errors, and degrees of freedom (Welch 1947)."""
    squares = functools.reduce(add, [part for part, _ in noise.values()])
    zero = jnp.zeros_like(rest.inner)
    sizes = {name: jnp.sqrt(total_square(part)).astype(zero.dtype) for name, (part, _) in noise.items()}
    inner, linear, cross, outer = (sizes.get(name, zero) for name in ("inner", "linear", "cross", "outer"))
    total = jnp.sqrt(functools.reduce(jnp.add, [x**2 for x in sizes.values()]))
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
    first, second = (jnp.maximum(x.number - 1, 0).astype(jnp.result_type(float)) for x in (cross, more))
    degrees = first + second

    def pooled(a: Array, b: Array) -> Array:
        share = (first / jnp.maximum(degrees, 1.0)).astype(a.dtype)
        square = (share * a**2 + (1 - share) * b**2) / jnp.maximum(cross.number, 1).astype(a.dtype)
        return jnp.where(degrees > 0, square, jnp.inf)  # a single one says nothing of its noise

    return jax.tree.map(pooled, cross.deviation, more.deviation), jnp.maximum(degrees, 1.0)


def _in_one_stack(fn: Callable[[PyTree], Any], parts: Parts) -> dict[str, Any]:
    """What fn says of all parts in one stack, part by part."""
    return _split_like(fn(jax.tree.map(lambda *x: jnp.concatenate(x), *parts.values())), parts)


def _split_like(stack: PyTree, like: Parts) -> dict[str, Any]:
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
    (w, v), (problem, lam, train, val) = points, instance
    here = jax.tree.map(lambda x, b: jnp.concatenate([b, x[None]]), w, before)

    def inner(args: Any, batch: PyTree) -> PyTree:
        problem, v, lam, here = args

        def at(w: PyTree) -> PyTree:
            return jax.vjp(lambda w, lam: problem.inner_image(w, lam, batch), w, lam)[1](v)

        return each(batch)(at, here)

    def outer(args: Any, batch: PyTree) -> PyTree:
        problem, _, lam, here = args

        def at(w: PyTree) -> PyTree:
            return problem.outer_gradients(w, lam, batch)[1:]

        return each(batch)(at, here)

    args = problem, v, lam, here
    through, direct = (
        batch_mean(fn, args, source, key=key, number=number, first=0)
        for fn, source, number in zip((inner, outer), (train, val), read, strict=True)
    )
    return jax.tree.map(lambda x: x[:-1] - x[-1:], add(through, direct))


def _batches(source: RowSource, answered: Array) -> Array:
    """Minibatches of a source on which it is seen what is wrong."""
    rows, least = LEAST_READ
    return (
        jnp.int32(1)
        if source.is_full_batch
        else jnp.maximum(answered // READ, max(rows // source.rows_per_batch, least))
    )


def _solve_many(
    instance: Instance, w: PyTree, direction: PyTree, asked: Parts, *, number: Array, key: Array
) -> tuple[ForgettingRate, Parts]:
    """How fast the linear system forgets, and its solutions for what is asked, as far as so many steps take them.

    A direction u <- u - eta (I - d1Phi^T) u shrinks to the slowest; ``seen`` is the mean of <u, (I - d1Phi^T) u> over
    the last half, each minibatch being asked about the direction that those before it made. The step of all is 1 at
    first, and halved whenever u grows.
    """
    real = norm(direction).dtype
    tiny = jnp.finfo(real).tiny
    start = where(norm(direction) > tiny, direction, jax.tree.map(jnp.ones_like, direction))
    right = jax.tree.map(
        lambda *x: jnp.concatenate(x), jax.tree.map(lambda x: jnp.zeros_like(x)[None], start), *asked.values()
    )

    def step(carry: Any, args: Any, j: Array, draw: Any) -> Any:
        x, eta, travel, total = carry
        problem, w, lam, right, number = args
        size = jnp.maximum(norm(jax.tree.map(lambda x: x[0], x)), tiny)
        x = jax.tree.map(lambda x: x.at[0].divide(size.astype(x.dtype)), x)
        images = each(draw.batch)(lambda v: problem.system_product(w, lam, draw.batch, v), x)
        new = axpy(eta * draw.weight, sub(right, images), x)
        u, image, moved = (jax.tree.map(lambda x: x[0], tree) for tree in (x, images, new))
        grown = ~(norm(moved) <= 1.0)
        total = total + jnp.where(j >= number // 2, vdot(u, image).astype(real), 0.0)
        return where(grown, x, new), jnp.where(grown, 0.5 * eta, eta), travel + jnp.where(grown, 0.0, eta), total

    zero, one = jnp.zeros((), real), jnp.ones((), real)
    begun = jax.tree.map(lambda u, r: jnp.zeros_like(r).at[0].set(u), start, right)
    args = instance.problem, w, instance.lam, right, number
    x, _, travel, total = instance.train.fold(step, (begun, one, zero, zero), args, key=key, start=0, stop=number)
    seen = jnp.maximum(total / (number - number // 2).astype(real), tiny)
    slowest = jnp.maximum(seen - UNRESOLVED / jnp.maximum(travel, tiny), LEAST * seen)
    rate = ForgettingRate(*(x.astype(jnp.result_type(float)) for x in (seen, slowest)))
    return rate, _split_like(jax.tree.map(lambda x: x[1:], x), asked)


def _products(instance: Instance, w: PyTree, v: PyTree, *, number: Array, key: Array) -> tuple[PyTree, PyTree]:
    """Mean and standard deviation over so many minibatches of d2Phi^T v, [L, ...]."""

    def products(args: Any, batch: PyTree) -> PyTree:
        problem, w, lam, v = args
        return each(batch)(lambda v: problem.cross_product(w, lam, batch, v), v)

    args = instance.problem, w, instance.lam, v
    return batch_spread(products, args, instance.train, key=key, number=number, first=0)


def with_independent(instance: Instance) -> Instance:
    """The instance with both sources in independent minibatches (:func:`independent`)."""
    train, val = independent(instance.train, instance.val)
    return instance._replace(train=train, val=val)


def independent(train: RowSource, val: RowSource) -> tuple[RowSource, RowSource]:
    """Both sources in independent minibatches, val of no more rows than train where it hands out all."""
    return _independent(train, None), _independent(val, train.rows_per_batch)


def _independent(source: Any, rows: int | None) -> RowSource:
    """The source in independent minibatches, of so many rows if it hands out all."""
    if not isinstance(source, Arrays):
        return source
    if source.is_full_batch:
        return source if rows is None or source.rows <= rows else HashedBatches(source, rows)
    return (
        HashedBatches(source, source.rows_per_batch) if source.batch_size else source
    )  # every row, and a key of its own
