"""Does an iteration contract? A test by its moves, and, under noise, by a pair of coupled points."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.protocols import Draw, RowSource
from bilevax.core.trees import Operator, PyTree, all_finite, at_least_single, axpy, largest, norm, scale, sub, where
from bilevax.linalg.power import Growth, growth_rate

WINDOW = 10
"""Moves over which growth is looked for."""

CONFIRMING = 400
"""Products with the linearised map that confirm a suspicion: a non-normal map grows for a while and then contracts."""

FLOOR = 100
"""Units in the last place of x below which a move is rounding."""

MEAN_PRODUCTS = 50
"""Products with the Jacobian of the mean map that tell an expanding mean from a growing second moment."""

DIVERGED = 1e12
"""Growth that is a divergence: of the largest entry against 1 + the start's; of moves, before one not finite."""

NEVER = jnp.iinfo(jnp.int32).max
"""A step that is not reached: from there on growth is tested again."""

BURN_IN = 10
"""Steps of a coupled pair before its direction has settled."""


def mean_over(image: Callable[..., PyTree], x: PyTree, args: PyTree, source: RowSource) -> PyTree:
    """T(x), like x, on every row: by ``image.mean(x, args, source)`` where there is one, as of a prox of a mean."""
    own = getattr(image, "mean", None)
    return own(x, args, source) if own else source.total(lambda at, batch: image(at[0], at[1], batch), (x, args))


class MoveHistory(NamedTuple):
    """The last moves T(x_j) - x_j of a deterministic iteration."""

    lengths: Array  # [WINDOW], of the last moves; move j is at j mod WINDOW
    look: Array  # the step from which growth is tested again
    code: Array
    checks: Array  # diagnostic products


def empty_history(x: PyTree) -> MoveHistory:
    """Before the first move."""
    return MoveHistory(jnp.full(WINDOW, jnp.inf, norm(x).dtype), jnp.int32(WINDOW), jnp.int32(Code.OK), jnp.int32(0))


def monitor(
    moves: MoveHistory, j: Array, x: PyTree, move: PyTree, vjp: Operator, *, confirm: bool = True
) -> MoveHistory:
    """Move j from x: NOT_CONTRACTIVE where moves have grown for WINDOW steps and the linearised map goes on growing.

    A move that is not finite is NONFINITE, and DIVERGED where those before had grown so far that it is an overflow.

    Args:
        moves: those before.
        j: number of the move.
        x: where it began.
        move: T(x) - x.
        vjp: product with the transposed Jacobian of the iteration at x, or with the Jacobian, which has the same
            spectrum; called only on suspicion.
        confirm: test a suspicion; False: take it for proof.
    """
    # ||m_j|| > ||m_{j-10}||, and no rounding: the growth of a non-normal map, or that of one that does not contract
    length = norm(move)
    rising = (j >= moves.look) & (length > moves.lengths[j % WINDOW]) & ~is_rounding(length, x)
    growth = _suspected_growth(vjp, move, rising, confirm)
    code = jnp.where(rising & (growth.rate > 1e-4), jnp.int32(Code.NOT_CONTRACTIVE), jnp.int32(Code.OK))
    # NaN after growth by 1e12 is an overflow
    lengths = at_least_single(moves.lengths)
    overflow = lengths[(j - 1) % WINDOW] > DIVERGED * jnp.min(lengths)
    lost = jnp.where(overflow, jnp.int32(Code.DIVERGED), jnp.int32(Code.NONFINITE))
    code = jnp.where(jnp.isfinite(length), code, lost)
    # a refuted suspicion is raised again at twice as many steps: products stay in proportion to steps
    look, checks = jnp.where(rising, 2 * j, moves.look), moves.checks + growth.products
    return MoveHistory(moves.lengths.at[j % WINDOW].set(length), look, code, checks)


def mean_contraction(lengths: Array, j: Array) -> tuple[Array, Array, Array]:
    """The length of move j - 1, the mean factor q by which the last moves shrank, and how many factors these are."""
    window = len(lengths)
    number = jnp.minimum(j, window) - 1
    last, before = lengths[(j - 1) % window], jnp.where(j > window, lengths[j % window], lengths[0])
    power = 1.0 / jnp.maximum(number, 1).astype(last.dtype)
    usable = (number > 0) & (before > 0)
    # q = (||m_{j-1}|| / ||m_{j-1-n}||)^(1/n)
    return last, jnp.where(usable, last / jnp.where(usable, before, 1.0), 0.0) ** power, number


def final_code(
    moves: MoveHistory,
    j: Array,
    points: tuple[PyTree, PyTree],
    move: PyTree,
    vjp: Operator,
    tol: Array | float,
    *,
    confirm: bool = True,
) -> tuple[Array, Array]:
    """The code of an iteration from start to x, the ``points``, that ended after move j - 1; and diagnostic products.

    NOT_CONTRACTIVE where the moves do not fall; TOLERANCE_NOT_MET where the estimated error is more than ``tol`` of the
    larger of ||x|| and ||x - start||. The error is length q / (1 - q), q the mean contraction of the last moves. Where
    they do not fall although the linearised map contracts, and are no longer than rounding as the map amplifies it, it
    is that.
    """
    start, x = points
    size = norm(x)
    scale_of_x = jnp.maximum(size, norm(sub(x, start)))
    last, q, number = mean_contraction(moves.lengths, j)
    # moves that neither fall nor are rounding: x goes in circles, unless the linearised map contracts
    still = (moves.code == Code.OK) & (j > WINDOW) & (q >= 1 - 1e-5) & ~is_rounding(last, x)
    growth = _suspected_growth(vjp, move, still, confirm)
    circles = still & (growth.rate > -1e-5)
    # eps ||x|| / (1 - q): what rounding of each step adds up to
    floor = FLOOR * jnp.finfo(size.dtype).eps * size * growth.amplification
    # ||m|| (q + q^2 + ...) = ||m|| q / (1 - q)
    error = jnp.where(q < 1, last * q / jnp.where(q < 1, 1 - q, 1.0), jnp.inf)
    error = jnp.where(number < 1, last, error)
    error = jnp.where(still & (last <= floor), floor, error)
    far = (error > jnp.asarray(tol).astype(error.dtype) * scale_of_x) & ~is_rounding(last, x)
    code = jnp.where(far, jnp.int32(Code.TOLERANCE_NOT_MET), jnp.int32(Code.OK))
    code = jnp.where(circles, jnp.int32(Code.NOT_CONTRACTIVE), code)
    return jnp.where(moves.code == Code.OK, code, moves.code), moves.checks + growth.products


def _suspected_growth(vjp: Operator, direction: PyTree, suspicious: Array, confirm: bool) -> Growth:
    """The growth of a direction along which an iteration is under suspicion; infinite where that is not tested."""
    if confirm:
        return growth_rate(vjp, direction, jnp.where(suspicious, CONFIRMING, 0))
    real = norm(direction).dtype
    return Growth(jnp.where(suspicious, jnp.inf, 0.0).astype(real), jnp.ones((), real), jnp.int32(0))


def is_rounding(length: Array, x: PyTree) -> Array:
    """True of a move that is rounding of x, ||m|| <= FLOOR eps ||x||."""
    size = norm(x)
    return length <= FLOOR * jnp.finfo(size.dtype).eps * size


class CoupledPair(NamedTuple):
    """Two points moved by the same minibatches; d is their difference, infinitely small.

    Attributes:
        lyapunov_exponent: mean of h_j = ln(||d_{j+1}|| / ||d_j||): its exponential is the contraction factor of the
            random iteration.
        standard_error: of the exponent.
        second_moment: mean of h_j + ln cosh(h_j - h'_j), where h'_j is h_j under another minibatch: the rate at which
            sqrt(E ||d||^2) grows, to second order in the noise, and exactly where two outcomes are equally likely.
            Without noise it is the exponent, however far from normal the map is.
        second_error: standard error of ``second_moment``.
        direction: of d in the end, of length one.
    """

    lyapunov_exponent: Array
    standard_error: Array
    second_moment: Array
    second_error: Array
    direction: PyTree

    @property
    def expands(self) -> Array:
        """True where the exponent is positive by three standard errors."""
        return self.lyapunov_exponent - 3.0 * self.standard_error > 1e-3

    @property
    def spreads(self) -> Array:
        """True where the second moment grows, by three standard errors."""
        return self.second_moment - 3.0 * self.second_error > 1e-3

    @property
    def contracts(self) -> Array:
        """True where both are negative by three standard errors."""
        mean_falls = self.lyapunov_exponent < -3.0 * self.standard_error
        return mean_falls & (self.second_moment < -3.0 * self.second_error)


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
) -> CoupledPair:
    """Follow a direction along the iteration x <- x + eta (T(x; zeta) - x), from minibatch ``start`` on.

    Additive noise moves both points alike and cancels; the products of the Jacobians remain. Needs about
    9 (sd(h) / exponent)^2 steps. Cost: ``steps`` minibatches, each an image and two vector-Jacobian products.

    The products are taken with the transposed Jacobians, of which reverse mode is enough: A_n^T ... A_1^T is the
    transpose of A_1 ... A_n, which has the distribution of A_n ... A_1 where the order of the minibatches has none.
    So norms, their rate and that of their second moment are in law those of the iteration itself.

    Args:
        image: T as (x, args, batch) -> x.
        points: x where it begins (a step that would not be finite is not made), and another, of which only the
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
        """The pair u / ||u|| and ln ||u||, where ||u||^2 may overflow."""
        size = jnp.maximum(largest(u), jnp.finfo(real).tiny).astype(real)
        u = jax.tree.map(lambda a: a / size.astype(a.dtype), u)
        length = jnp.maximum(norm(u), jnp.finfo(real).tiny)
        return scale(1.0 / length, u), jnp.log(size) + jnp.log(length)

    def step(carry: tuple[PyTree, ...], args: PyTree, j: Array, draw: Draw) -> tuple[PyTree, ...]:
        x, u, before, h_before, sums = carry
        eta = (step_size(j) * draw.weight).astype(real)
        moved, pullback = jax.vjp(lambda x: image(x, args, draw.batch), x)
        # A_j^T u = u + eta (J_j^T u - u), h_j = ln ||A_j^T u||; h'_{j-1}: the direction before under this minibatch
        (after, h), (_, again) = (unit(axpy(eta, sub(pullback(a)[0], a), a)) for a in (u, before))
        # h + ln cosh(h_{j-1} - h'_{j-1}), by logaddexp, which does not overflow
        second = h + jnp.logaddexp(h_before - again, again - h_before) - jnp.log(2.0).astype(real)
        terms = jnp.where(j - start >= burn_in, jnp.stack([h, second, h**2, second**2]), 0.0)
        moved = axpy(eta, sub(moved, x), x)
        return where(all_finite(moved), moved, x), after, u, h, sums + terms

    u, h = unit(sub(scale(0.125, other), scale(0.125, x)))  # the largest floats have a reciprocal of zero
    begin = x, u, u, h, jnp.zeros(4, real)
    _, u, _, _, sums = source.fold(step, begin, args, key=key, start=start, stop=start + steps)
    number = jnp.maximum(jnp.asarray(steps - burn_in), 2).astype(real)
    # standard error of a mean: sqrt((mean of squares - mean^2) / (n - 1))
    # of h, and of h + ln cosh
    mean = sums[:2] / number
    error = jnp.sqrt(jnp.maximum(sums[2:] / number - mean**2, 0.0) / (number - 1))
    return CoupledPair(mean[0], error[0], mean[1], error[1], u)


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
    """The code of a stochastic iteration that is under suspicion, and the diagnostic products with its Jacobian.

    A coupled pair goes on from its end for CONFIRMING steps, of which the first half is burn-in, so that the transient
    growth of a non-normal map is not counted. Where it grows, by itself or in its second moment, MEAN_PRODUCTS products
    with the Jacobian of the mean map, on every row, test whether that contracts: UNSTABLE if so, else NOT_CONTRACTIVE.
    What has grown by DIVERGED is DIVERGED unless the pair contracts.

    Args:
        image: T as (x, args, batch) -> x.
        points: where the iteration began and where it ended; from one to the other leads the direction that grows.
        args: what T reads beside.
        source: of the minibatches.
        key: of the stream.
        start: number of the next minibatch.
        step_size: eta, one number.
        suspicious: it may be growing.
        grown: it has grown by DIVERGED. Where neither holds all loops are empty, and the code is OK.
        confirm: test a suspicion; False: take it for proof.
    """
    begin, end = points
    if not confirm:
        code = jnp.where(suspicious, jnp.int32(Code.NOT_CONTRACTIVE), jnp.int32(Code.OK))
        return jnp.where(grown, jnp.int32(Code.DIVERGED), code), jnp.int32(0)
    # empty loops where there is no suspicion: a cond would be computed both ways under vmap
    steps = jnp.where(suspicious | grown, CONFIRMING, 0)
    pair = coupling(
        image, (end, begin), args, source,
        key=key, start=start, steps=steps, step_size=lambda _: step_size, burn_in=steps // 2,
    )  # fmt: skip
    # positive by three standard errors
    guilty = suspicious & ~grown & (pair.expands | pair.spreads)

    def mean_image(x: PyTree) -> PyTree:
        return mean_over(image, x, args, source)

    # u <- u + eta (d1T^T u - u), T the mean map
    def vjp(u: PyTree) -> PyTree:
        return axpy(step_size, sub(jax.vjp(mean_image, end)[1](u)[0], u), u)

    products = jnp.where(guilty, MEAN_PRODUCTS, 0)
    mean_grows = growth_rate(vjp, pair.direction, products).rate > 1e-4
    code = jnp.where(mean_grows, jnp.int32(Code.NOT_CONTRACTIVE), jnp.int32(Code.UNSTABLE))
    code = jnp.where(guilty, code, jnp.int32(Code.OK))
    code = jnp.where(grown & ~pair.contracts, jnp.int32(Code.DIVERGED), code)
    # in minibatches: two products of the pair on each, and a product on every row is an epoch
    minibatches = -(-source.rows // source.rows_per_batch)
    return code, 2 * steps + minibatches * products
