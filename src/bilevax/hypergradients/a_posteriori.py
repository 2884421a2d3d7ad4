"""How wrong a hypergradient on every row is, from what is left of its two equations."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.records import Error
from bilevax.core.trees import PyTree, add, astype_of, norm, scale, sub, vdot, zeros_like
from bilevax.data import RowSource
from bilevax.problems.problem import Problem, adjoint_product, inner_image, outer_gradients
from bilevax.theory import Constants, a_posteriori_bound

CERTAIN = jnp.iinfo(jnp.int32).max
"""Degrees of freedom where nothing was sampled."""

ROUNDING = 10.0
"""Units in the last place by which w, v and the hypergradient are taken to be off, each relative to its norm."""


def a_posteriori(
    problem: Problem,
    value: PyTree | None,
    points: tuple[PyTree, PyTree, PyTree],
    sources: tuple[RowSource, RowSource],
    constants: Constants | None = None,
) -> Error:
    """The report on a hypergradient from every row, in place of h(w, v) = grad_2 E + d2Phi^T v; nothing is sampled.

    With the residuals r = Phi(w) - w and s = grad_1 E + d1Phi^T v - v, and to first order,

        w(lam) - w = (I - d1Phi)^-1 r ,      v(lam) - v = (I - d1Phi^T)^-1 (s + ds) ,

    ds the change of s as w goes to w(lam). The inverses are estimated by 1 / c, c the mean of I - d1Phi in the
    direction of r, and of I - d1Phi^T in that of s: what iterations leave is in slow directions. ``bias`` is the
    change of h, and of ``value`` to h; ``inner`` what r does to it, ``linear`` what s does.

    Beside it there is rounding: 10 units in the last place of ``value``, over the smaller c.

    ``bound`` is there if constants are given, and holds if they do; r, s and h are 10 units in the last place of w, v
    and h larger in it.

    Cost: 3 gradients, 4 Hessian-vector products, 3 cross products and 2 outer gradients, on every row; those of train
    are read four times, those of val twice.
    Source: the bound is that of Ehrhardt, Roberts (2023), arXiv:2301.04764.

    Args:
        problem: with its inner step measured.
        value: the hypergradient, like lam: h, or close to it as that of ITD; None: h itself.
        points: (w, v, lam).
        sources: (train, val).
        constants: of the problem; None: no bound.
    """
    (w, v, lam), (train, val) = points, sources

    def at(w: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        """Phi(w), s + v and h."""
        image, pullback = jax.vjp(lambda w, lam: inner_image(problem, w, lam, train.full), w, lam)
        by_w, by_lam = pullback(v)
        _, g, direct = outer_gradients(problem, w, lam, val.full)
        return image, add(astype_of(g, w), by_w), add(astype_of(direct, lam), by_lam)

    image, fixed, h = at(w)
    value = h if value is None else value
    r, s = sub(image, w), sub(fixed, v)
    further, moved, h_moved = at(image)
    inner_gap = _gap(r, sub(r, sub(further, image)))
    linear_gap = _gap(s, sub(s, adjoint_product(problem, w, lam, train.full, s)))

    pull = jax.vjp(lambda lam: inner_image(problem, w, lam, train.full), lam)[1]
    of_r = scale(1.0 / inner_gap, add(sub(h_moved, h), pull(scale(1.0 / inner_gap, sub(moved, fixed)))[0]))
    of_s = pull(scale(1.0 / linear_gap, s))[0]
    size = norm(value)
    unit = ROUNDING * float(jnp.finfo(size.dtype).eps)
    rounding = scale(unit / jnp.minimum(inner_gap, linear_gap), value)
    left = norm(v), norm(s) + unit * norm(v), norm(r) + unit * norm(w)
    return Error(
        value=value,
        standard_error=zeros_like(value),
        bias=jax.tree.map(jnp.hypot, add(sub(h, value), add(of_r, of_s)), rounding),
        degrees=jnp.int32(CERTAIN),
        inner=norm(of_r),
        linear=norm(of_s),
        sampling=jnp.zeros_like(size),
        contraction=1.0 - jnp.minimum(inner_gap, linear_gap).astype(size.dtype),
        bound=None if constants is None else _bound(constants, *left).astype(size.dtype) + unit * size,
        visits=4.0 * train.rows + 2.0 * val.rows,
    )


def _gap(direction: PyTree, image: PyTree) -> Array:
    """<u, (I - A) u> / <u, u>, kept within [1e-6, 1]; 1 where u is 0."""
    square = vdot(direction, direction)
    mean = vdot(direction, image) / jnp.where(square > 0, square, 1.0)
    return jnp.where(square > 0, jnp.clip(mean, 1e-6, 1.0), 1.0)


def _bound(constants: Constants, v: Array, s: Array, r: Array) -> Array:
    gap = 1.0 - constants.q
    letters = {"L_F": constants.mu1, "L_H": constants.nu1, "L_B": constants.nu2, "L_direct": constants.mu2}
    bound = partial(a_posteriori_bound, B=constants.L_Phi, mu=gap, **letters)
    return bound(v=v, residual=s, distance=r / gap)
