"""How wrong a hypergradient on every row is, from what is left of its two equations."""

import functools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.instance import Instance
from bilevax.core.records import ErrorReport, SolverError
from bilevax.core.trees import PyTree, add, at_least_single, axpy, norm, scale, sub, vdot, where, zeros_like
from bilevax.theory import Constants, a_posteriori_bound

CERTAIN = jnp.iinfo(jnp.int32).max
"""Degrees of freedom where nothing was sampled."""

ROUNDING = 10.0
"""Units in the last place by which w, v and the hypergradient are taken to be off, each relative to its norm."""


SAFETY = 3.0
"""Times what is estimated: where it is wrong it is too small, by directions that were not seen."""

NEARLY_PARALLEL = 1e-3
"""Of vectors of length one in the norm of A, the eigenvalue of their products below which one is left out."""


class SolverErrors(NamedTuple):
    """What the two solvers say of what they leave undone, None where one does not; and the products they made."""

    inner: SolverError | None = None
    linear: SolverError | None = None
    calls: Array | int = 0

    def curvatures(self, like: Array) -> tuple[Array, Array]:
        """The least and the largest that either met; that one and 1 where neither did."""
        said = [x for x in (self.inner, self.linear) if x is not None]
        least = functools.reduce(jnp.minimum, [x.least.astype(like.dtype) for x in said], jnp.full_like(like, jnp.inf))
        most = functools.reduce(jnp.maximum, [x.most.astype(like.dtype) for x in said], jnp.zeros_like(like))
        return jnp.where(jnp.isfinite(least), least, like), jnp.where(most > 0, most, 1.0)


def residual_error(
    instance: Instance,
    value: PyTree | None,
    points: tuple[PyTree, PyTree],
    lefts: SolverErrors | None = None,
    *,
    constants: Constants | None = None,
) -> ErrorReport:
    """The report on a hypergradient from every row, in place of h(w, v) = grad_2 E + d2Phi^T v; nothing is sampled.

    With A = I - d1Phi^T, the residuals r = Phi(w) - w and s = grad_1 E - A v, and to first order,

        w(lam) - w = dw = (A^T)^-1 r ,      v(lam) - v = A^-1 (s + ds) ,

    ds the change of s as w goes to w + dw. What Krylov methods leave is not in slow directions, so that no quotient of
    residuals tells A^-1 s. It is taken to be the larger of two estimates:

    * what the solver says of itself (:class:`~bilevax.core.records.SolverError`): of conjugate gradients the energy
    that is
      still to fall by its past, of L-BFGS its next direction, of fixed-point iterations the moves to come;
    * for a loss, where A is self-adjoint, the Galerkin solution in the space of v, whose image is known and in which
      slow directions are large, of the solver's own move of w, and of a few conjugate gradients on the equation of dw.

    A^-1 ds is the Galerkin solution, and what that leaves as it is; for another map ds, as much longer as v is than
    grad_1 E. What is left of r after the conjugate gradients is counted with the curvature sqrt(least most).
    ``bias`` is 3 times the change of h as w moves (``inner``), and as v moves (``linear``), hypot the change of
    ``value`` to h, hypot rounding: 2 units in the last place times the condition, most / least. It is an estimate, no
    bound: along a direction of which neither v nor a residual has a share nothing is seen.

    ``bound`` is there if constants are given, and holds if they do; r, s and h are 10 units in the last place of w, v
    and h larger in it.

    Cost: for r, s and h a gradient and a product each with A and d2Phi^T, of all rows; beside these one gradient, 4
    products with A, or a tenth of those of the solvers, 4 with d2Phi^T, and 2 outer gradients.
    Source: the bound is that of Ehrhardt, Roberts (2023), arXiv:2301.04764.

    Args:
        instance: with its inner step measured.
        value: the hypergradient, like lam: h, or close to it as that of ITD; None: h itself.
        points: (w, v).
        lefts: what the solvers say; None: nothing.
        constants: of the problem; None: no bound.
    """
    (problem, lam, train, val), (w, v), lefts = instance, points, lefts or SolverErrors()

    def at(w: PyTree) -> tuple[PyTree, Callable[[PyTree], tuple[PyTree, PyTree]], PyTree, PyTree]:
        """Phi(w), v -> (d1Phi^T v, d2Phi^T v), grad_1 E and grad_2 E."""
        image, pullback = instance.mean_adjoint(w)
        _, g, direct = instance.mean_outer_gradients(w)
        return image, pullback, g, direct

    image, pullback, g, direct = at(w)
    r, v_size = sub(image, w), norm(v)
    shown = jnp.minimum(norm(g) / jnp.where(v_size > 0, v_size, 1.0), 1.0)  # by v itself, as A v is close to g
    least, most = lefts.curvatures(jnp.where(shown > 0, shown, 1.0))
    own = _move(lefts.inner, r, least)
    metric = problem.metric(w, lam) if problem.symmetric else None
    u = own if metric is None else jax.tree.map(jnp.divide, own, metric)
    vectors = _stack(v, u)
    by_w, by_lam = jax.vmap(pullback)(vectors)
    s, h = sub(g, sub(v, _row(by_w, 0))), add(direct, _row(by_lam, 0))
    value = h if value is None else value
    dw, dv = own, _move(lefts.linear, s, least)
    space = None
    if metric is not None:
        known = _Space(vectors, sub(vectors, by_w), metric)
        further = jnp.maximum(lefts.calls // 10 - 2, 2)
        space, dw, rest = _inner_change(known, r, lambda x: sub(x, pullback(x)[0]), further, (lefts.inner, least))
        dw = axpy(1.0 / jnp.sqrt(least * most), rest, dw)
        seen = space.at(space.solved(s))
        dv = seen if lefts.linear is None else _longer(seen, dv)

    _, moved_pullback, moved_g, moved_direct = at(add(w, dw))
    moved_w, moved_lam = moved_pullback(v)
    ds = sub(add(moved_g, moved_w), add(g, _row(by_w, 0)))
    if space is None:
        answer = scale(norm(v) / jnp.where(norm(g) > 0, norm(g), 1.0), ds)
    else:
        solved = space.solved(ds)
        answer = add(space.at(solved), sub(ds, space.image(solved)))
    answers = jax.vmap(pullback)(_stack(answer, dv))[1]
    of_r = scale(SAFETY, add(sub(add(moved_direct, moved_lam), h), _row(answers, 0)))
    of_s = scale(SAFETY, _row(answers, 1))

    size, condition = norm(value), most / least
    eps = float(jnp.finfo(size.dtype).eps)
    left = norm(v), norm(s) + ROUNDING * eps * norm(v), norm(r) + ROUNDING * eps * norm(w)
    parts = sub(h, value), of_r, of_s, scale(2.0 * eps * jnp.maximum(condition, 1.0), value)
    return ErrorReport(
        value=value,
        standard_error=zeros_like(value),
        bias=functools.reduce(partial(jax.tree.map, jnp.hypot), parts),
        degrees_of_freedom=jnp.int32(CERTAIN),
        inner=norm(of_r),
        linear=norm(of_s),
        sampling=jnp.zeros_like(size),
        contraction=(1.0 - jnp.minimum(least, 1.0)).astype(size.dtype),
        bound=None if constants is None else _bound(constants, *left).astype(size.dtype) + ROUNDING * eps * size,
        samples=(5.0 + jnp.maximum(lefts.calls // 10 - 4, 0).astype(size.dtype)) * train.rows + 2.0 * val.rows,
    )


def _move(left: SolverError | None, residual: PyTree, least: Array) -> PyTree:
    """How far it is to a solution, as its solver says; else the residual over the least curvature."""
    if left is None or left.move is None:
        return scale(1.0 / least, residual)
    return left.move


def _inner_change(
    known: "_Space",
    r: PyTree,
    operator: Callable[[PyTree], PyTree],
    steps: Array,
    said: tuple[SolverError | None, Array],
) -> tuple["_Space", PyTree, PyTree]:
    """The space of v, u and a solution x of A x = r / metric after so many conjugate gradients; dw, and what x leaves.

    In the metric A^T is A: dw / metric solves A x = r / metric. It is x, or u, the solver's own move, where that is
    longer; u is cut back to the energy |r|^2 / least, which no solution exceeds.
    """
    metric, (inner, least) = known.metric, said
    right = jax.tree.map(jnp.divide, r, metric)
    begun = known.solved(right)
    rest = sub(right, known.image(begun))
    x, rest = _conjugate_gradients(operator, rest, known.inner, steps)
    x = add(known.at(begun), x)
    space = known.joined(x, sub(right, rest))
    dx = x
    if inner is not None:
        u, image = _row(known.vectors, 1), _row(known.images, 1)
        energy, most = known.inner(u, image), known.inner(right, right) / least
        u = scale(jnp.sqrt(jnp.minimum(1.0, most / jnp.where(energy > 0, energy, 1.0))), u)
        dx = _longer(x, u)
    return space, jax.tree.map(jnp.multiply, metric, dx), jax.tree.map(jnp.multiply, metric, rest)


def _conjugate_gradients(
    operator: Callable[[PyTree], PyTree], right: PyTree, inner: Callable[[PyTree, PyTree], Array], steps: Array
) -> tuple[PyTree, PyTree]:
    """So many steps on A x = right from 0: x, and what is left of the right-hand side."""
    State = tuple[PyTree, PyTree, PyTree, Array, Array]

    def step(state: State) -> State:
        x, r, p, rho, j = state
        image = operator(p)
        curvature = inner(p, image)
        good = (curvature > 0) & (rho > 0)
        a = jnp.where(good, rho / jnp.where(good, curvature, 1.0), 0.0)
        x, r = axpy(a, p, x), axpy(-a, image, r)
        new = inner(r, r)
        p = axpy(jnp.where(good, new / jnp.where(good, rho, 1.0), 0.0), p, r)
        return x, r, p, new, jnp.where(good, j + 1, steps)

    begin = zeros_like(right), right, right, inner(right, right), jnp.zeros_like(steps)
    x, r, *_ = jax.lax.while_loop(lambda state: state[-1] < steps, step, begin)
    return x, r


def _longer(a: PyTree, b: PyTree) -> PyTree:
    return where(norm(a) > norm(b), a, b)


def _row(stack: PyTree, i: int) -> PyTree:
    return jax.tree.map(lambda x: x[i], stack)


def _stack(*trees: PyTree) -> PyTree:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


class _Space(NamedTuple):
    """A few vectors, [K, ...], and their images under A, which is self-adjoint for <a, b> = sum_i a_i metric_i b_i."""

    vectors: PyTree
    images: PyTree
    metric: PyTree

    def inner(self, a: PyTree, b: PyTree) -> Array:
        """<a, b>."""
        return vdot(jax.tree.map(jnp.multiply, a, self.metric), b)

    def solved(self, right: PyTree) -> Array:
        """The coordinates of the point nearest to A^-1 right in the norm of A, [K] (Galerkin)."""
        M = jax.vmap(lambda a: jax.vmap(lambda b: self.inner(a, b))(self.images))(self.vectors)
        c = jax.vmap(lambda a: self.inner(a, right))(self.vectors)
        M, c = at_least_single(M), at_least_single(c)
        scales = jnp.sqrt(jnp.maximum(jnp.diag(M), 0.0))
        inverse = jnp.where(scales > 0, 1.0 / jnp.where(scales > 0, scales, 1.0), 0.0)
        values, axes = jnp.linalg.eigh(0.5 * jnp.outer(inverse, inverse) * (M + M.T))
        kept = values > NEARLY_PARALLEL
        return inverse * (axes @ jnp.where(kept, axes.T @ (inverse * c) / jnp.where(kept, values, 1.0), 0.0))

    def at(self, x: Array) -> PyTree:
        """The point of these coordinates."""
        return jax.tree.map(lambda q: jnp.tensordot(x.astype(q.dtype), q, axes=1), self.vectors)

    def image(self, x: Array) -> PyTree:
        """A of the point of these coordinates."""
        return jax.tree.map(lambda q: jnp.tensordot(x.astype(q.dtype), q, axes=1), self.images)

    def joined(self, vector: PyTree, image: PyTree) -> "_Space":
        """With one more vector."""

        def with_one(stack: PyTree, x: PyTree) -> PyTree:
            return jax.tree.map(lambda q, x: jnp.concatenate([q, x[None]]), stack, x)

        return _Space(with_one(self.vectors, vector), with_one(self.images, image), self.metric)


def _bound(constants: Constants, v: Array, s: Array, r: Array) -> Array:
    gap = 1.0 - constants.q
    letters = {"L_F": constants.mu1, "L_H": constants.nu1, "L_B": constants.nu2, "L_direct": constants.mu2}
    bound = partial(a_posteriori_bound, B=constants.L_Phi, mu=gap, **letters)
    return bound(v=v, residual=s, distance=r / gap)
