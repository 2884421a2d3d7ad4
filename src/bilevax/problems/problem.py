"""The bilevel problem, and its oracle of three directions."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from bilevax.core.config import config, real, set_fields
from bilevax.core.errors import ParameterError
from bilevax.core.trees import PyTree, add, astype_of, axpy, sub, vdot
from bilevax.linalg.row_chunks import value_and_grad


@config
class Problem:
    """min over lam in Lambda of E(w(lam), lam), where w(lam) is the fixed point of Phi(., lam).

    Both functions are seen through minibatches, of which they must be unbiased: a *mean* over the rows of the batch.

    Args:
        inner_map: (w, lam, batch) -> w, a contraction in w in expectation; :class:`GradientStep` of an inner loss, or
            any function.
        outer_loss: (w, lam, batch) -> scalar.
        project: projection of lam onto the closed convex set Lambda, such as :class:`~bilevax.Box`; None: everything.
        damping: delta >= 0, a number: every estimator solves (I - d1Phi^T + delta I) v = g in place of
            (I - d1Phi^T) v = g (Levenberg), in units in which a gradient step of 1 / L has curvatures of at most 1.
            For an inner loss that is not convex. None (default): 0, and :func:`~bilevax.minimize` raises it where an
            inner loss turns out to be indefinite.
    """

    inner_map: Callable[[PyTree, PyTree, PyTree], PyTree]
    outer_loss: Callable[[PyTree, PyTree, PyTree], Array]
    project: Callable[[PyTree], PyTree] | None = None
    damping: Any = None

    def __post_init__(self) -> None:
        for name in ("inner_map", "outer_loss"):
            if not callable(getattr(self, name)):
                raise ParameterError(f"{name} must be a function of (w, lam, batch), got {getattr(self, name)!r}")
        if self.project is not None and not callable(self.project):
            raise ParameterError(f"project must be a function of lam or None, got {self.project!r}")
        if self.damping is not None:
            set_fields(self, damping=real("damping", self.damping, low=0.0))

    @property
    def has_loss(self) -> bool:
        """True if the inner map says which smooth loss it descends."""
        return hasattr(self.inner_map, "loss") and not self.composite

    @property
    def composite(self) -> bool:
        """True if the inner map ends with a proximal step."""
        return hasattr(self.inner_map, "prox")

    @property
    def symmetric(self) -> bool:
        """True if I - d1Phi is known to be self-adjoint in the metric of :meth:`metric`."""
        return hasattr(self.inner_map, "metric")

    def metric(self, w: PyTree, lam: PyTree) -> PyTree:
        """Positive weights s, like w: I - d1Phi^T is self-adjoint for <a, b> = sum_i a_i s_i b_i."""
        return self.inner_map.metric(w, lam)  # type: ignore[attr-defined]


def lagrangian(problem: Problem, w: PyTree, v: PyTree, lam: PyTree, batches: tuple[PyTree, PyTree]) -> Array:
    """L(w, v, lam) = E(w, lam; xi) + <v, Phi(w, lam; zeta) - w>, the scalar all methods follow.

    Args:
        problem: the maps.
        w: inner variable, d entries.
        v: multiplier, like w.
        lam: outer variable, m entries.
        batches: (zeta, xi), the inner and the outer minibatch.
    """
    inner, outer = batches
    residual = sub(problem.inner_map(w, lam, inner), w)
    return problem.outer_loss(w, lam, outer) + vdot(v, residual)


def directions(
    problem: Problem, w: PyTree, v: PyTree, lam: PyTree, batches: tuple[PyTree, PyTree]
) -> tuple[PyTree, PyTree, PyTree]:
    """The three derivatives of :func:`lagrangian`, from one reverse pass.

    Returns:
        dL/dv = Phi - w, along which w moves; dL/dw = grad_1 E + d1Phi^T v - v, along which v moves; and
        dL/dlam = grad_2 E + d2Phi^T v, the hypergradient once the other two are zero.
    """
    by_w, by_v, by_lam = jax.grad(lagrangian, (1, 2, 3))(problem, w, v, lam, batches)
    return by_v, by_w, by_lam


def inner_image(problem: Problem, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
    """Phi(w, lam; zeta), in the dtypes of w. Cost: one inner gradient a row.

    With damping delta it is Phi(w) - delta (w - w'), w' a constant that equals w: Phi in value, and d1Phi - delta I is
    its derivative.
    """
    image = astype_of(problem.inner_map(w, lam, batch), w)
    if problem.damping is None:
        return image
    return axpy(-problem.damping, sub(w, jax.lax.stop_gradient(w)), image)


def adjoint_product(problem: Problem, w: PyTree, lam: PyTree, batch: PyTree, v: PyTree) -> PyTree:
    """d1Phi(w, lam; zeta)^T v, less delta v. Cost: one Hessian-vector product a row."""
    if hasattr(problem.inner_map, "adjoint_product"):
        product = astype_of(problem.inner_map.adjoint_product(w, lam, batch, v), w)
        return product if problem.damping is None else axpy(-problem.damping, v, product)
    _, pullback = jax.vjp(lambda x: inner_image(problem, x, lam, batch), w)
    return pullback(v)[0]


def cross_product(problem: Problem, w: PyTree, lam: PyTree, batch: PyTree, v: PyTree) -> PyTree:
    """d2Phi(w, lam; zeta)^T v, like lam. Cost: one cross product a row."""
    _, pullback = jax.vjp(lambda x: inner_image(problem, w, x, batch), lam)
    return pullback(v)[0]


def outer_gradients(problem: Problem, w: PyTree, lam: PyTree, batch: PyTree) -> tuple[Array, PyTree, PyTree]:
    """E(w, lam; xi), grad_1 E and grad_2 E. Cost: one outer gradient a row."""
    value, by_w = value_and_grad(problem.outer_loss, w, lam, batch)
    return value, by_w, jax.grad(problem.outer_loss, 1)(w, lam, batch)


def affine_image(problem: Problem, w: PyTree, lam: PyTree, batch: PyTree, g: PyTree, v: PyTree) -> PyTree:
    """Psi(v) = d1Phi(w, lam; zeta)^T v + g, whose fixed point solves (I - d1Phi^T) v = g."""
    return add(adjoint_product(problem, w, lam, batch, v), g)


def residual(problem: Problem, w: PyTree, lam: PyTree, batch: PyTree, v: PyTree) -> PyTree:
    """(I - d1Phi(w, lam; zeta)^T) v."""
    return axpy(-1.0, adjoint_product(problem, w, lam, batch, v), v)
