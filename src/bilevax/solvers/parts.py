"""What algorithms and estimators are made of: pure functions of a point and of a look at a minibatch.

Steps are in loss form. With an inner loss G the multiplier is carried as u = s v, s the step of the inner map: u solves
H u = grad_1 E, H the Hessian of G, and s plays no part. With any other map Phi it is v itself: s = 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.protocols import Draw
from bilevax.core.trees import PyTree, add, astype_of, axpy, scale, sub
from bilevax.linalg.row_chunks import value_and_grad
from bilevax.problems.problem import Problem

Look = Callable[[Callable[[Draw], Any]], Any]
"""``look(use)`` is ``use(draw)`` of one minibatch, the same at every call."""


class Point(NamedTuple):
    """Inner variable w, multiplier u like w, outer variable lam; or a direction in which they move."""

    w: PyTree
    u: PyTree
    lam: PyTree


def descent(problem: Problem, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
    """Along which w moves, like w: -grad_1 G(w, lam; zeta) of an inner loss G, else Phi(w, lam; zeta) - w.

    With damping delta its derivative in w is less by delta / s.
    """
    if not problem.has_loss:
        return sub(problem.inner_image(w, lam, batch), w)
    inner_map: Any = problem.inner_map
    out = scale(-1.0, astype_of(value_and_grad(inner_map.loss, w, lam, batch)[1], w))
    if problem.damping is None:
        return out
    shift = jax.tree.map(lambda x, s: (x - jax.lax.stop_gradient(x)) / s, w, problem.metric(w, lam))
    return axpy(-jnp.asarray(problem.damping), shift, out)


def inner_directions(problem: Problem, p: Point, look: Look) -> Point:
    """What an inner minibatch says of the three directions, from one vector-Jacobian product.

    Returns:
        -grad_1 G, -H u and -d2(grad_1 G)^T u; of a map Phi - w, d1Phi^T u - u and d2Phi^T u.
    """

    def use(draw: Draw) -> Point:
        d_w, pullback = jax.vjp(lambda w, lam: descent(problem, w, lam, draw.batch), p.w, p.lam)
        return scale(draw.weight, Point(d_w, *pullback(p.u)))

    out: Point = look(use)
    return out


def outer_directions(problem: Problem, p: Point, look: Look) -> tuple[Array, PyTree, PyTree]:
    """E, grad_1 E and grad_2 E at (w, lam) on an outer minibatch."""

    def use(draw: Draw) -> tuple[Array, PyTree, PyTree]:
        value, g, direct = problem.outer_gradients(p.w, p.lam, draw.batch)
        return scale(draw.weight, (value, g, direct))

    out: tuple[Array, PyTree, PyTree] = look(use)
    return out


def directions(problem: Problem, p: Point, train: Look, val: Look) -> Point:
    """The three directions on one inner and one outer minibatch: unbiased, and zero at the solution.

    Returns:
        d_w = -grad_1 G, along which w moves; d_u = grad_1 E - H u, along which u moves; and
        d_lam = grad_2 E - d2(grad_1 G)^T u, against which lam moves.
    """
    inner = inner_directions(problem, p, train)
    _, g, direct = outer_directions(problem, p, val)
    return Point(inner.w, add(inner.u, g), add(inner.lam, direct))


def moved(problem: Problem, p: Point, d: Point, rho: Array, gamma: Array) -> Point:
    """A step: w and u by rho along their directions, lam by gamma against its own, then onto Lambda."""
    lam = axpy(-gamma, d.lam, p.lam)
    return Point(axpy(rho, d.w, p.w), axpy(rho, d.u, p.u), projected(problem, lam))


def projected(problem: Problem, lam: PyTree) -> PyTree:
    """The projection onto Lambda."""
    return lam if problem.project is None else problem.project(lam)
