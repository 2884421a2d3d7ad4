"""Parts of algorithms and estimators: pure functions of a point and of a look at a minibatch.

Steps are in loss form. With an inner loss G the multiplier is carried as u = s v, s the step of the inner map: u solves
H u = grad_1 E, H the Hessian of G, and s plays no part. With any other map Phi it is v itself: s = 1.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.protocols import BilevelProblem, Carry, Draw, RowSource, StepLooks
from bilevax.core.trees import PyTree, add, astype_of, axpy, row, scale, sub, zeros, zeros_like
from bilevax.linalg.row_chunks import value_and_grad

Used = TypeVar("Used")


class Look(Protocol):
    """One minibatch of a stream, the same at every call."""

    def __call__(self, use: Callable[[Draw], Used], /) -> Used:
        """``use(draw)``."""


class Looks(Protocol):
    """Several minibatches of a stream, the same at every call."""

    def __getitem__(self, i: Array | int, /) -> Look:
        """The i-th of them."""

    def fold(self, move: Callable[[Carry, Array, Draw], Carry], carry: Carry, stop: Array | int | None = None) -> Carry:
        """``carry = move(carry, i, draw)`` over them in order, or over the first ``stop``."""


class Point(NamedTuple):
    """Inner variable w, multiplier u like w, outer variable lam; or a direction in which they move."""

    w: PyTree
    u: PyTree
    lam: PyTree


class Pair(NamedTuple):
    """Inner variable w and outer variable lam; or a direction in which they move."""

    w: PyTree
    lam: PyTree


class Copies(NamedTuple):
    """Inner variable w, a copy z of it that feels the outer loss, and the outer variable lam."""

    w: PyTree
    z: PyTree
    lam: PyTree


def start(problem: BilevelProblem, w0: PyTree, lam: PyTree, u0: PyTree | None = None) -> Point:
    """The point at w0 and at lam, projected; u is u0, or 0."""
    return Point(w0, zeros_like(w0) if u0 is None else u0, projected(problem, lam))


def descent(problem: BilevelProblem, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
    """Along which w moves, like w: -grad_1 G(w, lam; zeta) of an inner loss G, else Phi(w, lam; zeta) - w.

    With damping delta its derivative in w is less by delta / s.
    """
    if not problem.has_loss:
        return sub(problem.inner_image(w, lam, batch), w)
    out = scale(-1.0, astype_of(value_and_grad(problem.inner_loss)(w, lam, batch)[1], w))
    if problem.damping is None:
        return out
    # -grad - delta (w - w') / s, w' a constant that equals w
    shift = jax.tree.map(lambda x, s: (x - jax.lax.stop_gradient(x)) / s, w, problem.metric(w, lam))
    return axpy(-jnp.asarray(problem.damping), shift, out)


def descent_on(problem: BilevelProblem, w: PyTree, lam: PyTree, look: Look) -> PyTree:
    """:func:`descent` on a minibatch of train."""
    return look(lambda draw: scale(draw.weight, descent(problem, w, lam, draw.batch)))


def inner_directions(problem: BilevelProblem, p: Point, look: Look) -> Point:
    """The inner minibatch's part of the three directions, from one vector-Jacobian product.

    Returns:
        -grad_1 G, -H u and -d2(grad_1 G)^T u; of a map Phi - w, d1Phi^T u - u and d2Phi^T u.
    """

    def use(draw: Draw) -> Point:
        # d_w = -grad_1 G, and its pullback of u: (-H u, -d2(grad_1 G)^T u)
        d_w, pullback = jax.vjp(lambda w, lam: descent(problem, w, lam, draw.batch), p.w, p.lam)
        return Point(*scale(draw.weight, (d_w, *pullback(p.u))))

    return look(use)


def outer_directions(problem: BilevelProblem, w: PyTree, lam: PyTree, look: Look) -> tuple[PyTree, PyTree]:
    """The outer minibatch's part of the directions: grad_1 E and grad_2 E at (w, lam)."""

    def use(draw: Draw) -> tuple[PyTree, PyTree]:
        # (grad_1 E, grad_2 E), times the weight of the draw
        _, g, direct = problem.outer_gradients(w, lam, draw.batch)
        return scale(draw.weight, g), scale(draw.weight, direct)

    return look(use)


def directions(problem: BilevelProblem, p: Point, train: Look, val: Look) -> Point:
    """The three directions on one inner and one outer minibatch: unbiased, and zero at the solution.

    Returns:
        d_w = -grad_1 G, along which w moves; d_u = grad_1 E - H u, along which u moves; and
        d_lam = grad_2 E - d2(grad_1 G)^T u, against which lam moves.
    """
    return joined(inner_directions(problem, p, train), outer_directions(problem, p.w, p.lam, val))


def mean_directions(problem: BilevelProblem, p: Point, train: RowSource, val: RowSource) -> Point:
    """The three directions on every row."""
    inner = train.total(lambda p, batch: inner_directions(problem, p, every_row(batch)), p)
    return joined(inner, val.total(lambda p, batch: outer_directions(problem, p.w, p.lam, every_row(batch)), p))


def every_row(batch: PyTree) -> Look:
    """A batch of every row as a look."""
    return lambda use: use(Draw(batch, -1, 1.0))


def joined(inner: Point, outer: tuple[PyTree, PyTree]) -> Point:
    """The three directions from the inner minibatch's part and from (grad_1 E, grad_2 E)."""
    g, direct = outer
    # (-grad_1 G, grad_1 E - H u, grad_2 E - d2(grad_1 G)^T u)
    return Point(inner.w, add(inner.u, g), add(inner.lam, direct))


def penalty_descents(problem: BilevelProblem, p: Copies, c: Array, train: Look, val: Look) -> tuple[PyTree, PyTree]:
    """Along which w and z move: -grad_1 G(w), and -(grad_1 G(z) + grad_1 E(z) / c), both on the same rows of train."""

    def both(draw: Draw) -> tuple[PyTree, PyTree]:
        # -grad_1 G(w), -grad_1 G(z)
        d_w, d_z = (descent(problem, x, p.lam, draw.batch) for x in (p.w, p.z))
        return scale(draw.weight, d_w), scale(draw.weight, d_z)

    d_w, d_z = train(both)
    g, _ = outer_directions(problem, p.z, p.lam, val)
    # -(grad_1 G(z) + grad_1 E(z) / c)
    return d_w, axpy(-1.0 / c, g, d_z)


def penalty_direction(problem: BilevelProblem, p: Copies, c: Array, train: Look, val: Look) -> PyTree:
    """Against which lam moves: grad_2 E(z) + c (grad_2 G(z) - grad_2 G(w)), both on the same rows of train."""
    _, direct = outer_directions(problem, p.z, p.lam, val)
    return add(direct, train(lambda draw: scale(c * draw.weight, _gap_by_lam(problem, p, draw))))


def gap_gradients(problem: BilevelProblem, p: Copies, train: Look) -> Pair:
    """The gradient of q(z, lam) = G(z) - G(w), w held: (grad_1 G(z), grad_2 G(z) - grad_2 G(w)) on the same rows."""

    def use(draw: Draw) -> Pair:
        # grad_1 G(z), the descent turned
        by_z = scale(-draw.weight, descent(problem, p.z, p.lam, draw.batch))
        return Pair(by_z, scale(draw.weight, _gap_by_lam(problem, p, draw)))

    return train(use)


def _gap_by_lam(problem: BilevelProblem, p: Copies, draw: Draw) -> PyTree:
    by_lam = jax.grad(problem.inner_loss, 1)
    # grad_2 G(z) - grad_2 G(w)
    return sub(*(astype_of(by_lam(x, p.lam, draw.batch), p.lam) for x in (p.z, p.w)))


def moved_by(rho: PyTree, d: PyTree, x: PyTree) -> PyTree:
    """X + rho d, rho a scalar or a tree like x."""
    return axpy(rho, d, x) if jax.tree_util.all_leaves([rho]) else jax.tree.map(lambda r, d, x: x + r * d, rho, d, x)


def inner_move(problem: BilevelProblem, w: PyTree, lam: PyTree, look: Look, rho: PyTree) -> PyTree:
    """W after a move along d_w on a minibatch of train; d_w as of :func:`descent`."""
    # w + rho d_w
    return moved_by(rho, look(lambda draw: scale(draw.weight, descent(problem, w, lam, draw.batch))), w)


def inner_moves(problem: BilevelProblem, w: PyTree, lam: PyTree, look: Looks, rho: PyTree) -> PyTree:
    """W after a move along d_w on each of several minibatches of train; d_w as of :func:`descent`."""

    def move(w: PyTree, i: Array, draw: Draw) -> PyTree:
        # w + rho d_w
        return moved_by(rho, scale(draw.weight, descent(problem, w, lam, draw.batch)), w)

    return look.fold(move, w)


def outer_move(problem: BilevelProblem, lam: PyTree, d: PyTree, gamma: Array) -> PyTree:
    """P(lam - gamma d), d a direction of lam."""
    return projected(problem, axpy(-gamma, d, lam))


def minus_hessian_product(problem: BilevelProblem, w: PyTree, lam: PyTree, draw: Draw, u: PyTree) -> PyTree:
    """-H u on one minibatch of train, like w; of a map, d1Phi^T u - u."""
    # the pullback of u by w -> -grad_1 G(w): -H u, H being symmetric
    out: PyTree = scale(draw.weight, jax.vjp(lambda x: descent(problem, x, lam, draw.batch), w)[1](u)[0])
    return out


def neumann(problem: BilevelProblem, w: PyTree, lam: PyTree, g: PyTree, look: Looks, rho: PyTree) -> PyTree:
    """A truncated Neumann series for H^-1 g in product form, from K minibatches of train, one a factor.

    sum_{i=0}^K (I - rho H_i) ... (I - rho H_1) rho g, whose mean is (I - (I - rho H)^(K+1)) H^-1 g.
    """
    factor = neumann_factor(problem, w, lam, rho)

    def term(carry: tuple[PyTree, PyTree], i: Array, draw: Draw) -> tuple[PyTree, PyTree]:
        r, total = carry
        # r = (I - rho H_i) ... (I - rho H_1) rho g, added to the terms before it
        r = factor(r, i, draw)
        return r, add(total, r)

    r = moved_by(rho, g, zeros_like(g))
    # the term of i = 0 is rho g itself
    out: PyTree = look.fold(term, (r, r))[1]
    return out


def series_directions(problem: BilevelProblem, at: Pair, train: Look, val: Look, linear: Looks, rho: PyTree) -> Pair:
    """(d_w, d_lam) at (w, lam), the multiplier by :func:`neumann` on the minibatches of ``linear``."""
    w, lam = at
    g, direct = outer_directions(problem, w, lam, val)
    inner = inner_directions(problem, Point(w, neumann(problem, w, lam, g, linear, rho), lam), train)
    # (-grad_1 G, grad_2 E - d2(grad_1 G)^T u)
    return Pair(inner.w, add(direct, inner.lam))


def neumann_factor(problem: BilevelProblem, w: PyTree, lam: PyTree, rho: PyTree) -> Callable[..., PyTree]:
    """(r, i, draw) -> (I - rho H_i) r, with H_i of a minibatch of train."""

    def factor(r: PyTree, i: Array, draw: Draw) -> PyTree:
        return moved_by(rho, minus_hessian_product(problem, w, lam, draw, r), r)

    return factor


def horizon(looks: StepLooks) -> Array:
    """The step's number of factors of :func:`drawn_directions`, from the stream "horizon"."""
    p: Array = looks["horizon"](lambda p: p)
    return p


def drawn_directions(problem: BilevelProblem, at: Pair, looks: StepLooks, rho: PyTree, terms: Array | int) -> Pair:
    """(d_w, d_lam) at (w, lam), with one term of a truncated Neumann series, drawn at random, for the multiplier.

    u = K (I - rho H_p) ... (I - rho H_1) rho grad_1 E, K = ``terms`` and p uniform on 0, ..., K - 1: its mean over p is
    (I - (I - rho H)^K) H^-1 grad_1 E. The streams are "train", "val", "linear", which has K minibatches, and "horizon",
    which has p. Source: Ghadimi, Wang (2018), arXiv:1802.02246.
    """
    w, lam = at
    g, direct = outer_directions(problem, w, lam, looks["val"])
    # K (I - rho H_p) ... (I - rho H_1) rho g
    r = moved_by(rho, g, zeros_like(g))
    r = looks["linear"].fold(neumann_factor(problem, w, lam, rho), r, stop=horizon(looks))
    inner = inner_directions(problem, Point(w, scale(terms, r), lam), looks["train"])
    # (-grad_1 G, grad_2 E - d2(grad_1 G)^T u)
    return Pair(inner.w, add(direct, inner.lam))


def mean_series_directions(
    problem: BilevelProblem, at: Pair, train: RowSource, val: RowSource, number: Array | int, rho: PyTree
) -> Pair:
    """The directions of :func:`series_directions` on every row, with ``number`` factors I - rho H."""
    g, direct = val.total(lambda at, batch: outer_directions(problem, at.w, at.lam, every_row(batch)), at)

    def factor(args: PyTree, batch: PyTree) -> PyTree:
        w, lam, rho, r = args
        return neumann_factor(problem, w, lam, rho)(r, jnp.int32(0), Draw(batch, -1, 1.0))

    def term(_: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        # r, r + total with r = (I - rho H) r
        r = train.total(factor, (*at, rho, carry[0]))
        return r, add(carry[1], r)

    r = moved_by(rho, g, zeros_like(g))
    p = Point(at.w, jax.lax.fori_loop(0, number, term, (r, r))[1], at.lam)
    inner = train.total(lambda p, batch: inner_directions(problem, p, every_row(batch)), p)
    return Pair(inner.w, add(direct, inner.lam))


class Saga(NamedTuple):
    """The last value of each block, [blocks, ...], and their mean."""

    rows: PyTree
    mean: PyTree


def saga_table(like: PyTree, blocks: int) -> Saga:
    """A table of zeros for values like this."""
    return Saga(zeros(like, blocks), zeros_like(like))


def saga(table: Saga, new: PyTree, block: Array | int) -> tuple[PyTree, Saga]:
    """SAGA's estimate of the mean over blocks, new - old + mean, and the table in which new replaces old.

    Where block 0 comes, once an epoch, the mean is taken anew from the rows: it stays theirs to the rounding of one
    epoch, however many steps are made. Unbiased where each block is as likely as any other. Source: Defazio, Bach,
    Lacoste-Julien (2014), arXiv:1407.0202.
    """
    # of a full batch, -1, the one row
    i = jnp.asarray(block, jnp.int32)

    def anew(rows: PyTree, mean: PyTree) -> tuple[PyTree, PyTree]:
        # mean + mean of (rows - mean), which rounds what is left and no large sum
        return row(rows, i), jax.tree.map(lambda a, m: m + jnp.mean(a - m[None], axis=0), rows, mean)

    # The row is read behind a branch, and written as old + change: else XLA copies the whole table in each step.
    old, mean = jax.lax.cond(i <= 0, anew, lambda rows, mean: (row(rows, i), mean), *table)
    change = sub(new, old)
    # as a slice: a scatter first checks its bounds
    write = partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
    rows = jax.tree.map(write, table.rows, add(old, change))
    blocks = len(jax.tree.leaves(rows)[0])
    # new - old + mean, the mean of the table before; and the mean after, mean + (new - old) / blocks
    return add(change, mean), Saga(rows, axpy(1.0 / blocks, change, mean))


def storm(d: PyTree, now: PyTree, before: PyTree, weight: Array | float) -> PyTree:
    """STORM's estimate: now + (1 - weight) (d - before), now and before on the same minibatch at two points.

    Source: Cutkosky, Orabona (2019), arXiv:1905.10018. With weight 0 it is SPIDER's (Fang, Li, Lin, Zhang 2018,
    arXiv:1807.01695), d + now - before.
    """
    return axpy(1.0 - weight, sub(d, before), now)


def moved(problem: BilevelProblem, p: Point, d: Point, rho: PyTree, gamma: Array) -> Point:
    """A step: w and u by rho along their directions, lam by gamma against its own, then onto Lambda."""
    # w + rho d_w, u + rho d_u, P(lam - gamma d_lam)
    return Point(moved_by(rho, d.w, p.w), moved_by(rho, d.u, p.u), outer_move(problem, p.lam, d.lam, gamma))


def projected(problem: BilevelProblem, lam: PyTree) -> PyTree:
    """The projection onto Lambda."""
    return lam if problem.project is None else problem.project(lam)
