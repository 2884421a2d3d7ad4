"""Parts of algorithms and estimators: pure functions of a point and of a look at a minibatch.

Steps are in loss form. With an inner loss G the multiplier is carried as u = s v, s the step of the inner map: u solves
H u = grad_1 E, H the Hessian of G, and s plays no part. With any other map Phi it is v itself: s = 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.protocols import BilevelProblem, Draw, Look
from bilevax.core.trees import PyTree, add, astype_of, axpy, scale, sub
from bilevax.linalg.row_chunks import value_and_grad


class Point(NamedTuple):
    """Inner variable w, multiplier u like w, outer variable lam; or a direction in which they move."""

    w: PyTree
    u: PyTree
    lam: PyTree


def descent(problem: BilevelProblem, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
    """Along which w moves, like w: -grad_1 G(w, lam; zeta) of an inner loss G, else Phi(w, lam; zeta) - w.

    With damping delta its derivative in w is less by delta / s.
    """
    if not problem.has_loss:
        return sub(problem.inner_image(w, lam, batch), w)
    out = scale(-1.0, astype_of(value_and_grad(problem.inner_loss, w, lam, batch)[1], w))
    if problem.damping is None:
        return out
    # -grad - delta (w - w') / s, w' a constant that equals w
    shift = jax.tree.map(lambda x, s: (x - jax.lax.stop_gradient(x)) / s, w, problem.metric(w, lam))
    return axpy(-jnp.asarray(problem.damping), shift, out)


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


def outer_directions(problem: BilevelProblem, p: Point, look: Look) -> tuple[Array, PyTree, PyTree]:
    """E, grad_1 E and grad_2 E at (w, lam) on an outer minibatch."""

    def use(draw: Draw) -> tuple[Array, PyTree, PyTree]:
        value, g, direct = scale(draw.weight, problem.outer_gradients(p.w, p.lam, draw.batch))
        return value, g, direct

    return look(use)


def directions(problem: BilevelProblem, p: Point, train: Look, val: Look) -> Point:
    """The three directions on one inner and one outer minibatch: unbiased, and zero at the solution.

    Returns:
        d_w = -grad_1 G, along which w moves; d_u = grad_1 E - H u, along which u moves; and
        d_lam = grad_2 E - d2(grad_1 G)^T u, against which lam moves.
    """
    inner = inner_directions(problem, p, train)
    _, g, direct = outer_directions(problem, p, val)
    # (-grad_1 G, grad_1 E - H u, grad_2 E - d2(grad_1 G)^T u)
    return Point(inner.w, add(inner.u, g), add(inner.lam, direct))


def moved(problem: BilevelProblem, p: Point, d: Point, rho: Array, gamma: Array) -> Point:
    """A step: w and u by rho along their directions, lam by gamma against its own, then onto Lambda."""
    # w + rho d_w, u + rho d_u, P(lam - gamma d_lam)
    lam = axpy(-gamma, d.lam, p.lam)
    return Point(axpy(rho, d.w, p.w), axpy(rho, d.u, p.u), projected(problem, lam))


def projected(problem: BilevelProblem, lam: PyTree) -> PyTree:
    """The projection onto Lambda."""
    return lam if problem.project is None else problem.project(lam)
