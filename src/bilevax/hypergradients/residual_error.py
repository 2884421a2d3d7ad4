"""The error of a hypergradient on every row, from the residuals of its two equations."""

import functools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.instance import Instance
from bilevax.core.records import ErrorReport, SolverError
from bilevax.core.trees import (
    Operator,
    PyTree,
    add,
    at_least_single,
    axpy,
    norm,
    row,
    scale,
    sub,
    vdot,
    where,
    zeros_like,
)
from bilevax.hypergradients.resolution import signs, unresolved
from bilevax.theory import Constants, a_posteriori_bound

CERTAIN: int = jnp.iinfo(jnp.int32).max
"""Degrees of freedom where nothing was sampled."""

ROUNDING = 10.0
"""Units in the last place by which w, v and the hypergradient are taken to be off, each relative to its norm."""

SAFETY = 3.0
"""Times the estimated error: where that is wrong it is too small, by directions that were not seen."""

NEARLY_PARALLEL = 1e-3
"""Of vectors of length one in the norm of A, the eigenvalue of their products below which one is left out."""


class SolverErrors(NamedTuple):
    """Estimated errors of the two solvers, None where one has no estimate; and the products they made."""

    inner: SolverError | None = None
    linear: SolverError | None = None
    calls: Array | int = 0

    def curvatures(self, otherwise: Array) -> tuple[Array, Array]:
        """The least and the largest that either met; ``otherwise`` and 1 where neither did."""
        known = [x for x in (self.inner, self.linear) if x is not None]
        kind, infinity = otherwise.dtype, jnp.full_like(otherwise, jnp.inf)
        least = functools.reduce(jnp.minimum, [x.least.astype(kind) for x in known], infinity)
        most = functools.reduce(jnp.maximum, [x.most.astype(kind) for x in known], jnp.zeros_like(otherwise))
        return jnp.where(jnp.isfinite(least), least, otherwise), jnp.where(most > 0, most, 1.0)


def residual_error(
    instance: Instance,
    value: PyTree | None,
    points: tuple[PyTree, PyTree],
    solvers: SolverErrors | None = None,
    *,
    noisy: bool = False,
    constants: Constants | None = None,
) -> ErrorReport:
    """The report on a hypergradient from every row, in place of h(w, v) = grad_2 E + d2Phi^T v; nothing is sampled.

    With A = I - d1Phi^T, the residuals r = Phi(w) - w and s = grad_1 E - A v, and to first order,

        w(lam) - w = dw = (A^T)^-1 r ,      v(lam) - v = A^-1 (s + ds) ,

    ds the change of s as w goes to w + dw. Residuals of Krylov methods are not along slow directions, so that no
    quotient of residuals tells A^-1 s. It is taken to be the larger of two estimates:

    * the solver's own (:class:`~bilevax.core.records.SolverError`): of conjugate gradients the energy that is still to
      fall, extrapolated; of L-BFGS its next direction; of fixed-point iterations the moves to come;
    * for a loss, where A is self-adjoint, the Galerkin solution in the space of v, whose image is known and in which
      slow directions are large, of the solver's own move of w, and of a few conjugate gradients on the equation of dw.

    A^-1 ds is the Galerkin solution, and its residual as it is; for another map ds, as much longer as v is than
    grad_1 E. The residual of the conjugate gradients is counted with the curvature sqrt(least most).
    ``bias`` is 3 times the change of h as w moves (``inner``), and as v moves (``linear``), hypot the change of
    ``value`` to h, hypot rounding: 2 units in the last place times the condition, most / least. It is an estimate, no
    bound: along a direction of which neither v nor a residual has a share nothing is seen. Where rounding hides a step
    of the map (:func:`~bilevax.hypergradients.resolution.unresolved`) it is infinite.

    ``bound`` is there if constants are given, and holds if they do; r, s and h are 10 units in the last place of w, v
    and h larger in it.

    Cost: for r, s and h a gradient and a product each with A and d2Phi^T, of all rows; beside these one gradient, 4
    products with A, or a tenth of those of the solvers, 4 with d2Phi^T, and 2 outer gradients.
    Source: the bound is that of Ehrhardt, Roberts (2023), arXiv:2301.04764.

    Args:
        instance: with its inner step measured.
        value: the hypergradient, like lam: h, or close to it as that of ITD; None: h itself.
        points: (w, v).
        solvers: their estimated errors; None: not known.
        noisy: v is from minibatches: what of s the space does not reach is counted as that of dw is.
        constants: of the problem; None: no bound.
    """
    (w, v), solvers = points, solvers or SolverErrors()
    image, pullback, g, direct = _linearised(instance, w)
    r, v_size = sub(image, w), norm(v)
    # A v ~ g: v itself shows the curvature |g| / |v|
    shown = jnp.minimum(norm(g) / jnp.where(v_size > 0, v_size, 1.0), 1.0)
    least, most = solvers.curvatures(jnp.where(shown > 0, shown, 1.0))
    # dw ~ the solver's own move
    own = _move(solvers.inner, r, least)
    metric = instance.problem.metric(w, instance.lam) if instance.problem.symmetric else None
    pair = _stack(v, own if metric is None else jax.tree.map(jnp.divide, own, metric))
    vectors = jax.tree.map(lambda *x: jnp.concatenate(x), pair, signs(v))
    by_w, by_lam = jax.vmap(pullback)(vectors)
    lost = unresolved(row(vectors, slice(2, 4)), row(by_w, slice(2, 4)), g)
    vectors, by_w = row(vectors, slice(2)), row(by_w, slice(2))
    # s = grad_1 E - A v, h = grad_2 E + d2Phi^T v
    s, h = sub(g, sub(v, row(by_w, 0))), add(direct, row(by_lam, 0))
    dw, dv, space = own, _move(solvers.linear, s, least), None
    if metric is not None:
        # the images A v and A u are known already
        known = _Space(vectors, sub(vectors, by_w), metric)
        steps = jnp.maximum(jnp.asarray(solvers.calls) // 10 - 2, 2)
        space, dw, rest = _inner_change(known, r, lambda x: sub(x, pullback(x)[0]), steps, (solvers.inner, least))
        # what conjugate gradients leave of r, over the geometric mean of the curvatures
        dw = axpy(1.0 / jnp.sqrt(least * most), rest, dw)
        galerkin = space.at(x := space.solved(s))
        if noisy:
            # of noise, which is in every direction, the rest likewise
            galerkin = axpy(1.0 / jnp.sqrt(least * most), sub(s, space.image(x)), galerkin)
        dv = galerkin if solvers.linear is None else _longer(galerkin, dv)

    # at w + dw: ds = d(grad_1 E + d1Phi^T v), dh = d(grad_2 E + d2Phi^T v)
    _, moved_pullback, moved_g, moved_direct = _linearised(instance, add(w, dw))
    moved_w, moved_lam = moved_pullback(v)
    ds = sub(add(moved_g, moved_w), add(g, row(by_w, 0)))
    dh = sub(add(moved_direct, moved_lam), h)
    # d2Phi^T A^-1 ds and d2Phi^T A^-1 s
    products = jax.vmap(pullback)(_stack(_solved(space, ds, norm(v), norm(g)), dv))[1]
    # dh + d2Phi^T A^-1 ds of w, d2Phi^T A^-1 s of v
    of_r, of_s = scale(SAFETY, add(dh, row(products, 0))), scale(SAFETY, row(products, 1))
    value = h if value is None else value
    eps = float(jnp.finfo(norm(value).dtype).eps)
    residuals = norm(v), norm(s) + ROUNDING * eps * norm(v), norm(r) + ROUNDING * eps * norm(w)
    of_s = jax.tree.map(lambda x: jnp.where(lost, jnp.inf, x), of_s)
    report = _report(value, sub(h, value), (of_r, of_s), (jnp.where(lost, 0.0, least), most))
    rows = instance.train.rows, instance.val.rows
    products = report_products(solvers).astype(report.inner.dtype)
    return report._replace(
        bound=None if constants is None else _bound(constants, *residuals, ROUNDING * eps * norm(value)),
        samples=products * rows[0] + 2.0 * rows[1],
    )


def report_products(solvers: SolverErrors) -> Array:
    """Passes over every row of train of :func:`residual_error`; it makes two over val."""
    return 5 + jnp.maximum(jnp.asarray(solvers.calls) // 10 - 4, 0)


def _linearised(
    instance: Instance, w: PyTree
) -> tuple[PyTree, Callable[[PyTree], tuple[PyTree, PyTree]], PyTree, PyTree]:
    """Phi(w), v -> (d1Phi^T v, d2Phi^T v), grad_1 E and grad_2 E, on every row."""
    image, pullback = instance.mean_adjoint(w)
    _, g, direct = instance.mean_outer_gradients(w)
    return image, pullback, g, direct


def _report(value: PyTree, off: PyTree, changes: tuple[PyTree, PyTree], curvatures: tuple[Array, Array]) -> ErrorReport:
    """With the bias hypot(h - value, changes by dw and by dv, rounding)."""
    (of_r, of_s), (least, most) = changes, curvatures
    size = norm(value)
    # 2 eps |value| most / least: w and v solve their equations to rounding at best
    condition = jnp.where(least > 0, jnp.maximum(most / jnp.where(least > 0, least, 1.0), 1.0), 1.0)
    rounding = scale(2.0 * float(jnp.finfo(size.dtype).eps) * condition, value)
    return ErrorReport(
        value=value,
        standard_error=zeros_like(value),
        bias=functools.reduce(partial(jax.tree.map, jnp.hypot), (off, of_r, of_s, rounding)),
        degrees_of_freedom=jnp.int32(CERTAIN),
        inner=norm(of_r),
        linear=norm(of_s),
        sampling=jnp.zeros_like(size),
        contraction=(1.0 - jnp.minimum(least, 1.0)).astype(size.dtype),
    )


def report_of_bias(value: PyTree, bias: PyTree, contraction: Array) -> ErrorReport:
    """Where nothing was sampled, of an estimate without v: its bias, estimated elsewhere, hypot rounding."""
    size = norm(value)
    rounding = scale(ROUNDING * float(jnp.finfo(size.dtype).eps), value)
    bias, unknown = jax.tree.map(jnp.hypot, bias, rounding), jnp.full_like(size, jnp.nan)
    none, zero = zeros_like(value), jnp.zeros_like(size)
    return ErrorReport(
        value, none, bias, jnp.int32(CERTAIN), unknown, unknown, zero, contraction.astype(size.dtype), samples=zero
    )


def _solved(space: "_Space | None", ds: PyTree, v_size: Array, g_size: Array) -> PyTree:
    """A^-1 ds: the Galerkin solution, and its residual as it is; without a space |v| / |g| ds."""
    if space is None:
        return scale(v_size / jnp.where(g_size > 0, g_size, 1.0), ds)
    # Galerkin where the space reaches, and ds itself, as of A = I, where it does not
    x = space.solved(ds)
    return add(space.at(x), sub(ds, space.image(x)))


def _move(error: SolverError | None, residual: PyTree, least: Array) -> PyTree:
    """The move to a solution, as its solver estimates it; else the residual over the least curvature."""
    return scale(1.0 / least, residual) if error is None or error.move is None else error.move


def _inner_change(
    known: "_Space", r: PyTree, operator: Operator, steps: Array, own: tuple[SolverError | None, Array]
) -> tuple["_Space", PyTree, PyTree]:
    """The space of v, u and a solution x of A x = r / metric after so many conjugate gradients; dw; and the residual.

    In the metric A^T is A: dw / metric solves A x = r / metric. It is x, or u, the solver's own move, where that is
    longer; u is cut back to the energy |r|^2 / least, which no solution exceeds.
    """
    metric, (inner, least) = known.metric, own
    # A^T dw = r, A self-adjoint in the metric s: dw = s x with A x = r / s
    right = jax.tree.map(jnp.divide, r, metric)
    # from the Galerkin solution in the space of v and u
    begun = known.solved(right)
    rest = sub(right, known.image(begun))
    x, rest = _conjugate_gradients(operator, rest, known.inner, steps)
    x = add(known.at(begun), x)
    space = known.joined(x, sub(right, rest))
    dx = x
    if inner is not None:
        u, image = row(known.vectors, 1), row(known.images, 1)
        # <u, A u> <= |right|^2 / least
        energy, most = known.inner(u, image), known.inner(right, right) / least
        u = scale(jnp.sqrt(jnp.minimum(1.0, most / jnp.where(energy > 0, energy, 1.0))), u)
        dx = _longer(x, u)
    return space, jax.tree.map(jnp.multiply, metric, dx), jax.tree.map(jnp.multiply, metric, rest)


def _conjugate_gradients(
    operator: Operator, right: PyTree, inner: Callable[[PyTree, PyTree], Array], steps: Array
) -> tuple[PyTree, PyTree]:
    """So many steps on A x = right from 0: x, and the residual. ``CG`` has codes and a tolerance; here are neither."""
    State = tuple[PyTree, PyTree, PyTree, Array, Array]

    def step(state: State) -> State:
        # a = <r, r> / <p, A p>, x <- x + a p, r <- r - a A p, p <- r + <r_new, r_new> / <r, r> p
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

    def solved(self, right: PyTree) -> PyTree:
        """The coordinates of the point nearest to A^-1 right in the norm of A, [K] (Galerkin)."""
        # M_ij = <q_i, A q_j>, M x = (<q_i, right>)
        M = jax.vmap(lambda a: jax.vmap(lambda b: self.inner(a, b))(self.images))(self.vectors)
        c = jax.vmap(lambda a: self.inner(a, right))(self.vectors)
        M, c = at_least_single(M), at_least_single(c)
        # scaled to a diagonal of ones, D M D y = D c, x = D y, without the eigenvectors of nearly parallel vectors
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


def _bound(constants: Constants, v: Array, s: Array, r: Array, rounding: Array) -> Array:
    # |w - w(lam)| <= |Phi(w) - w| / (1 - q), in map form
    c, gap = constants, 1.0 - constants.q
    lipschitz = {"L_F": c.mu1, "L_H": c.nu1, "L_B": c.nu2, "L_direct": c.mu2}
    bound = a_posteriori_bound(v=v, residual=s, distance=r / gap, B=c.L_Phi, mu=gap, **lipschitz)
    return bound.astype(rounding.dtype) + rounding
