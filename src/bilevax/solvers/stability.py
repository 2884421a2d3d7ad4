"""Does an iteration contract? What its moves say, and what a pair of coupled points says under noise."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.protocols import RowSource
from bilevax.core.trees import PyTree, all_finite, at_least_single, axpy, largest, norm, scale, sub, where

WINDOW = 10
"""Moves over which growth is looked for."""

CONFIRMING = 400
"""Products with the linearised map that confirm a suspicion: a non-normal map grows for a while and then contracts."""

FLOOR = 100
"""Units in the last place of x below which a move is rounding."""

MEAN_PRODUCTS = 50
"""Products with the Jacobian of the mean map that tell an expanding mean from a growing second moment."""

DIVERGED = 1e12
"""Growth beyond all measure: of the largest entry against 1 + the start's; of moves, before one that is not finite."""

BURN_IN = 10
"""Steps of a coupled pair before its direction has settled."""


class MoveHistory(NamedTuple):
    """What is kept of the moves T(x_j) - x_j of a deterministic iteration."""

    lengths: Array  # [WINDOW], of the last moves; move j is at j mod WINDOW
    look: Array  # the step from which growth is looked into again
    code: Array
    checks: Array  # products spent on looking


class Growth(NamedTuple):
    """What products with a linear map do to a direction.

    Attributes:
        rate: mean logarithm of its growth in the last half of them.
        amplification: sum of its lengths over all of them, 1 before the first: about 1 / (1 - q) for a map that
            contracts by q, and more for one that grows first.
        products: how many.
    """

    rate: Array
    amplification: Array
    products: Array


def empty_history(x: PyTree) -> MoveHistory:
    """Before the first move."""
    return MoveHistory(jnp.full(WINDOW, jnp.inf, norm(x).dtype), jnp.int32(WINDOW), jnp.int32(Code.OK), jnp.int32(0))


def monitor(
    seen: MoveHistory, j: Array, x: PyTree, move: PyTree, vjp: Callable[[PyTree], PyTree], *, confirm: bool = True
) -> MoveHistory:
    """Move j from x: NOT_CONTRACTIVE where moves have grown for WINDOW steps and the linearised map goes on growing.

    A move that is not finite is NONFINITE, and DIVERGED where those before had grown so far that it is an overflow.

    Args:
        seen: the moves before.
        j: number of the move.
        x: where it began.
        move: T(x) - x.
        vjp: product with the transposed Jacobian of the iteration at x, or with the Jacobian, which has the same
            spectrum; called only on suspicion.
        confirm: look into a suspicion; False: take it for proof.
    """
    length = norm(move)
    rising = (j >= seen.look) & (length > seen.lengths[j % WINDOW]) & ~_rounding(length, x)
    found = _suspected_growth(vjp, move, rising, confirm)
    code = jnp.where(rising & (found.rate > 1e-4), jnp.int32(Code.NOT_CONTRACTIVE), jnp.int32(Code.OK))
    lengths = at_least_single(seen.lengths)
    overflow = lengths[(j - 1) % WINDOW] > DIVERGED * jnp.min(lengths)
    lost = jnp.where(overflow, jnp.int32(Code.DIVERGED), jnp.int32(Code.NONFINITE))
    code = jnp.where(jnp.isfinite(length), code, lost)
    look, checks = jnp.where(rising, 2 * j, seen.look), seen.checks + found.products
    return MoveHistory(seen.lengths.at[j % WINDOW].set(length), look, code, checks)


def final_code(
    seen: MoveHistory,
    j: Array,
    points: tuple[PyTree, PyTree],
    move: PyTree,
    vjp: Callable[[PyTree], PyTree],
    tol: Array | float,
    *,
    confirm: bool = True,
) -> tuple[Array, Array]:
    """The code of an iteration from start to x, the ``points``, that was ended after move j - 1; and all its checks.

    NOT_CONTRACTIVE where the moves do not fall; TOLERANCE_NOT_MET where the estimated error is more than ``tol`` of the
    larger of ||x|| and the way from the start to x. The error is length q / (1 - q), q the mean contraction of the last
    moves. Where they do not fall although the linearised map contracts, and are no longer than rounding as the map
    amplifies it, it is that.
    """
    start, x = points
    size = norm(x)
    way = jnp.maximum(size, norm(sub(x, start)))
    last, oldest = seen.lengths[(j - 1) % WINDOW], seen.lengths[j % WINDOW]
    number = jnp.minimum(j, WINDOW) - 1
    before = jnp.where(j > WINDOW, oldest, seen.lengths[0])
    power = 1.0 / jnp.maximum(number, 1).astype(last.dtype)
    q = jnp.where(before > 0, (last / jnp.where(before > 0, before, 1.0)) ** power, 0.0)
    still = (seen.code == Code.OK) & (j > WINDOW) & (q >= 1 - 1e-5) & ~_rounding(last, x)
    found = _suspected_growth(vjp, move, still, confirm)
    circles = still & (found.rate > -1e-5)
    floor = FLOOR * jnp.finfo(size.dtype).eps * size * found.amplification
    error = jnp.where(q < 1, last * q / jnp.where(q < 1, 1 - q, 1.0), jnp.inf)
    error = jnp.where(number < 1, last, error)
    error = jnp.where(still & (last <= floor), floor, error)
    far = (error > jnp.asarray(tol).astype(error.dtype) * way) & ~_rounding(last, x)
    code = jnp.where(far, jnp.int32(Code.TOLERANCE_NOT_MET), jnp.int32(Code.OK))
    code = jnp.where(circles, jnp.int32(Code.NOT_CONTRACTIVE), code)
    return jnp.where(seen.code == Code.OK, code, seen.code), seen.checks + found.products


def _suspected_growth(vjp: Callable[[PyTree], PyTree], direction: PyTree, suspicious: Array, confirm: bool) -> Growth:
    """The growth of a direction along which an iteration is under suspicion; infinite where that is not looked into."""
    if confirm:
        return growth_rate(vjp, direction, jnp.where(suspicious, CONFIRMING, 0))
    real = norm(direction).dtype
    return Growth(jnp.where(suspicious, jnp.inf, 0.0).astype(real), jnp.ones((), real), jnp.int32(0))


def growth_rate(vjp: Callable[[PyTree], PyTree], direction: PyTree, products: Array | int) -> Growth:
    """What so many products with a linear map do to a direction; 0 cost nothing."""
    real = norm(direction).dtype
    tiny = jnp.finfo(real).tiny
    products = jnp.asarray(products, jnp.int32)
    vjp, held = jax.closure_convert(vjp, direction)

    def step(i: Array, state: tuple[PyTree, Array, Array, Array]) -> tuple[PyTree, Array, Array, Array]:
        u, height, late, amplification = state
        # tied to u: what depends on them alone would otherwise be computed before the loop, be it empty or not
        u, *now = jax.lax.optimization_barrier((u, *held))
        u = vjp(u, *now)
        length = jnp.maximum(norm(u), tiny)
        height = height + jnp.log(length)
        late = late + jnp.where(i >= products // 2, jnp.log(length), 0.0)
        return scale(1.0 / length, u), height, late, amplification + jnp.exp(height)

    zero = jnp.zeros((), real)
    unit = scale(1.0 / jnp.maximum(norm(direction), tiny), direction)
    _, _, late, amplification = jax.lax.fori_loop(0, products, step, (unit, zero, zero, zero + 1.0))
    return Growth(late / jnp.maximum(products - products // 2, 1).astype(real), amplification, products)


def _rounding(length: Array, x: PyTree) -> Array:
    size = norm(x)
    return length <= FLOOR * jnp.finfo(size.dtype).eps * size


class Pair(NamedTuple):
    """Two points moved by the same minibatches; d is their difference, infinitely small.

    Attributes:
        rate: mean of h_j = ln(||d_{j+1}|| / ||d_j||): exp(rate) is the contraction factor of the random iteration.
        standard_error: of the rate.
        second_moment: mean of h_j + ln cosh(h_j - h'_j), where h'_j is h_j under another minibatch: the rate at which
            sqrt(E ||d||^2) grows, to second order in the noise, and exactly where two outcomes are equally likely.
            What is not random adds nothing to it, however far from normal the map is.
        second_error: standard error of ``second_moment``.
        direction: of d in the end, of length one.
    """

    rate: Array
    standard_error: Array
    second_moment: Array
    second_error: Array
    direction: PyTree

    @property
    def expands(self) -> Array:
        """True where the rate is positive by three standard errors."""
        return self.rate - 3.0 * self.standard_error > 1e-3

    @property
    def spreads(self) -> Array:
        """True where the second moment grows, by three standard errors."""
        return self.second_moment - 3.0 * self.second_error > 1e-3

    @property
    def contracts(self) -> Array:
        """True where both are negative by three standard errors."""
        return (self.rate < -3.0 * self.standard_error) & (self.second_moment < -3.0 * self.second_error)


def coupling(
    image: Callable[[PyTree, PyTree, PyTree], PyTree],
    points: tuple[PyTree, PyTree],
    args: PyTree,
    source: RowSource,
    *,
    key: Array,
    start: Array | int,
    steps: Array | int,
    step_size: Callable[[Array], Array],
    burn_in: Array | int = BURN_IN,
) -> Pair:
    """Follow a direction along the iteration x <- x + eta (T(x; zeta) - x), from minibatch ``start`` on.

    Additive noise moves both points alike and cancels; what is left are the products of Jacobians. Needs about
    9 (sd(h) / rate)^2 steps. Cost: ``steps`` minibatches, each an image and two vector-Jacobian products.

    The products are taken with the transposed Jacobians, of which reverse mode is enough: A_n^T ... A_1^T is the
    transpose of A_1 ... A_n, which has the distribution of A_n ... A_1 where the order of the minibatches has none.
    So norms, their rate and that of their second moment are in law those of the iteration itself.

    Args:
        image: T as (x, args, batch) -> x.
        points: x where it begins (it stays where a step would not be finite), and another, of which only the
            direction from x counts.
        args: what T reads beside.
        source: of the minibatches.
        key: of the stream.
        start: number of the first minibatch.
        steps: how many; may be traced, and 0 costs nothing.
        step_size: eta_j.
        burn_in: steps left out at first, fewer than ``steps``.
    """
    x, other = points
    real = norm(x).dtype

    def unit(u: PyTree) -> tuple[PyTree, Array]:
        """U / ||u|| and ln ||u||, where ||u||^2 may overflow."""
        size = jnp.maximum(largest(u), jnp.finfo(real).tiny).astype(real)
        u = jax.tree.map(lambda a: a / size.astype(a.dtype), u)
        length = jnp.maximum(norm(u), jnp.finfo(real).tiny)
        return scale(1.0 / length, u), jnp.log(size) + jnp.log(length)

    def step(carry: tuple[PyTree, ...], args: PyTree, j: Array, draw: Any) -> tuple[PyTree, ...]:
        x, u, before, h_before, sums = carry
        eta = (step_size(j) * draw.weight).astype(real)
        moved, pullback = jax.vjp(lambda x: image(x, args, draw.batch), x)
        (after, h), (_, again) = (unit(axpy(eta, sub(pullback(a)[0], a), a)) for a in (u, before))
        second = h + jnp.logaddexp(h_before - again, again - h_before) - jnp.log(2.0).astype(real)
        seen = jnp.where(j - start >= burn_in, jnp.stack([h, second, h**2, second**2]), 0.0)
        moved = axpy(eta, sub(moved, x), x)
        return where(all_finite(moved), moved, x), after, u, h, sums + seen

    u, h = unit(sub(scale(0.125, other), scale(0.125, x)))  # the largest floats have a reciprocal of zero
    _, u, _, _, sums = source.fold(
        step, (x, u, u, h, jnp.zeros(4, real)), args, key=key, start=start, stop=start + steps
    )
    number = jnp.maximum(jnp.asarray(steps - burn_in), 2).astype(real)
    mean = sums[:2] / number
    error = jnp.sqrt(jnp.maximum(sums[2:] / number - mean**2, 0.0) / (number - 1))
    return Pair(mean[0], error[0], mean[1], error[1], u)


def confirm_divergence(
    image: Callable[[PyTree, PyTree, PyTree], PyTree],
    points: tuple[PyTree, PyTree],
    args: PyTree,
    source: RowSource,
    *,
    key: Array,
    start: Array,
    step_size: Array,
    suspicious: Array,
    grown: Array,
    confirm: bool = True,
) -> tuple[Array, Array]:
    """The code of a stochastic iteration that is under suspicion, and the products with its Jacobian spent.

    A coupled pair goes on from its end for CONFIRMING steps and is listened to in their last half, so that growth that
    ends, as that of a non-normal map does, is not counted. Where it grows, by itself or in its second moment,
    MEAN_PRODUCTS products with the Jacobian of the mean map, on every row, say whether that contracts: UNSTABLE if so,
    else NOT_CONTRACTIVE. What has grown beyond all measure is DIVERGED unless the pair contracts.

    Args:
        image: T as (x, args, batch) -> x.
        points: where the iteration began and where it ended; from one to the other leads the direction that grows.
        args: what T reads beside.
        source: of the minibatches.
        key: of the stream.
        start: number of the next minibatch.
        step_size: eta, one number.
        suspicious: it may be growing.
        grown: it has grown beyond all measure. Where neither holds all loops are empty, the code is OK and nothing is
            spent.
        confirm: look into a suspicion; False: take it for proof.
    """
    begin, end = points
    if not confirm:
        code = jnp.where(suspicious, jnp.int32(Code.NOT_CONTRACTIVE), jnp.int32(Code.OK))
        return jnp.where(grown, jnp.int32(Code.DIVERGED), code), jnp.int32(0)
    steps = jnp.where(suspicious | grown, CONFIRMING, 0)
    pair = coupling(
        image, (end, begin), args, source,
        key=key, start=start, steps=steps, step_size=lambda _: step_size, burn_in=steps // 2,
    )  # fmt: skip
    guilty = suspicious & ~grown & (pair.expands | pair.spreads)

    def mean_image(x: PyTree) -> PyTree:
        return source.total(lambda at, batch: image(at[0], at[1], batch), (x, args))

    def vjp(u: PyTree) -> PyTree:
        return axpy(step_size, sub(jax.vjp(mean_image, end)[1](u)[0], u), u)

    products = jnp.where(guilty, MEAN_PRODUCTS, 0)
    mean_grows = growth_rate(vjp, pair.direction, products).rate > 1e-4
    code = jnp.where(mean_grows, jnp.int32(Code.NOT_CONTRACTIVE), jnp.int32(Code.UNSTABLE))
    code = jnp.where(guilty, code, jnp.int32(Code.OK))
    code = jnp.where(grown & ~pair.contracts, jnp.int32(Code.DIVERGED), code)
    minibatches = -(-source.rows // source.rows_per_batch)  # in every row
    return code, 2 * steps + minibatches * products
