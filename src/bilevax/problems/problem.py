"""The bilevel problem, and its oracle of three directions."""

from collections.abc import Callable

import jax
from jax import Array

from bilevax.core.config import check_fields, config, function_of, nonnegative, or_none, replace_unchecked
from bilevax.core.errors import ParameterError
from bilevax.core.keys import stream
from bilevax.core.protocols import Loss, RowSource
from bilevax.core.trees import PyTree, add, astype_of, axpy, sub, vdot
from bilevax.linalg.row_chunks import value_and_grad
from bilevax.problems.gradient_step import GradientStep, measuring_products
from bilevax.problems.proximal_step import LinearisedStep, ProximalStep


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

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> layer = lambda w, lam, batch: jnp.tanh(0.5 * w + lam)  # any contraction in w
        >>> problem = bx.Problem(layer, lambda w, lam, batch: jnp.sum(w**2), project=bx.Box(-1.0, 1.0))
        >>> problem.has_loss, problem.symmetric
        (False, False)
    """

    inner_map: PyTree  # an InnerMap, and what else its class has
    outer_loss: Loss
    project: Callable[[PyTree], PyTree] | None = None
    damping: Array | float | None = None

    def __post_init__(self) -> None:
        check_fields(self, **dict.fromkeys(("inner_map", "outer_loss"), function_of("(w, lam, batch)")))
        check_fields(self, project=or_none(function_of("lam or None")), damping=or_none(nonnegative))

    @property
    def has_loss(self) -> bool:
        """True if the inner map says which smooth loss it descends."""
        return isinstance(self.inner_map, GradientStep)

    @property
    def composite(self) -> bool:
        """True if the inner map ends with a proximal step."""
        # By its class, never by a method's name: a user's map may have a method ``prox`` too.
        return isinstance(self.inner_map, ProximalStep)

    @property
    def symmetric(self) -> bool:
        """True if I - d1Phi is known to be self-adjoint in the metric of :meth:`metric`."""
        return isinstance(self.inner_map, GradientStep)

    @property
    def inner_loss(self) -> Loss:
        """The loss of which the inner map is a gradient step.

        Raises:
            ParameterError: it is none.
        """
        return self._gradient_step.loss

    def metric(self, w: PyTree, lam: PyTree) -> PyTree:
        """The step s, like w: I - d1Phi^T is self-adjoint for <a, b> = sum_i a_i s_i b_i.

        Raises:
            ParameterError: the inner map is no gradient step.
        """
        return self._gradient_step.metric(w, lam)

    @property
    def _gradient_step(self) -> GradientStep:
        if not isinstance(self.inner_map, GradientStep):
            raise ParameterError(f"bx.GradientStep(loss) is needed as the inner map, got {self.inner_map!r}")
        return self.inner_map

    def with_measured_step(
        self, w0: PyTree, lam: PyTree, train: RowSource, key: Array, minibatches: int | None = None
    ) -> "Problem":
        """The problem with its inner step filled in, where that is None; else the problem itself."""
        step = self._unmeasured
        if step is None:
            return self
        return replace_unchecked(self, inner_map=step.measured(w0, lam, train, stream(key, "measure"), minibatches))

    def measuring_products(self, train: RowSource, minibatches: int | None = None) -> int:
        """Products, of a minibatch each, that measuring the inner step takes; 0 where it is given, or there is none."""
        step = self._unmeasured
        return 0 if step is None else measuring_products(train, minibatches, known=hasattr(step.loss, "curvature"))

    def with_unit_step(self) -> "Problem":
        """The problem with 1 for the inner step, whatever that is; other maps have none."""
        if not isinstance(self.inner_map, GradientStep | ProximalStep):
            return self
        return replace_unchecked(self, inner_map=replace_unchecked(self.inner_map, step_size=1.0))

    @property
    def _unmeasured(self) -> GradientStep | ProximalStep | None:
        """The inner map, where its step is to be measured."""
        step = self.inner_map
        return step if isinstance(step, GradientStep | ProximalStep) and step.step_size is None else None

    def inner_image(self, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
        """Phi(w, lam; zeta), in the dtypes of w. Cost: one inner gradient a row.

        With damping delta it is Phi(w) - delta (w - w'), w' a constant that equals w: Phi in value, and
        d1Phi - delta I is its derivative.
        """
        return self._damped(astype_of(self.inner_map(w, lam, batch), w), w)

    def proximal_image(self, u: PyTree, w: PyTree, lam: PyTree) -> PyTree:
        """G(u, lam) of a composite map, like w, as :meth:`inner_image` damped: Phi(w, lam), where u is That(w, lam)."""
        return self._damped(astype_of(self.inner_map.proximal(u, w, lam), w), w)

    def _damped(self, image: PyTree, w: PyTree) -> PyTree:
        if self.damping is None:
            return image
        # Phi(w) - delta (w - w'): not at w' = w, but in its derivative it is damped
        return axpy(-self.damping, sub(w, jax.lax.stop_gradient(w)), image)

    def smooth_image(self, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
        """That(w, lam; zeta), where the inner map is Phi = G(E That): all of it but a proximal step G at its end."""
        step = self.inner_map
        return astype_of((step.smooth if isinstance(step, ProximalStep) else step)(w, lam, batch), w)

    def relaxed_image(self, w: PyTree, lam: PyTree, batch: PyTree, eta: Array) -> PyTree:
        """prox((1 - eta) w + eta That(w, lam; zeta), lam, eta s): a gradient step of eta s, and its proximal step."""
        step, u = self.inner_map, axpy(eta, sub(self.smooth_image(w, lam, batch), w), w)
        return astype_of(step.proximal(u, w, lam, eta), w) if isinstance(step, ProximalStep) else u

    def linearised(self, u: PyTree) -> "Problem":
        """The problem with its proximal step linearised at u, like w (``LinearisedStep``); without one, itself."""
        step = self.inner_map
        return replace_unchecked(self, inner_map=LinearisedStep(step, u)) if isinstance(step, ProximalStep) else self

    def adjoint_product(self, w: PyTree, lam: PyTree, batch: PyTree, v: PyTree) -> PyTree:
        """d1Phi(w, lam; zeta)^T v, less delta v. Cost: one Hessian-vector product a row."""
        if isinstance(self.inner_map, GradientStep):  # whose loss may know faster products
            product = astype_of(self.inner_map.adjoint_product(w, lam, batch, v), w)
            # d1Phi^T v - delta v
            return product if self.damping is None else axpy(-self.damping, v, product)
        _, pullback = jax.vjp(lambda x: self.inner_image(x, lam, batch), w)
        return pullback(v)[0]

    def system_product(self, w: PyTree, lam: PyTree, batch: PyTree, v: PyTree) -> PyTree:
        """(I - d1Phi(w, lam; zeta)^T + delta I) v, the left-hand side of the linear system."""
        # v - (d1Phi^T - delta I) v
        return axpy(-1.0, self.adjoint_product(w, lam, batch, v), v)

    def affine_image(self, w: PyTree, lam: PyTree, batch: PyTree, g: PyTree, v: PyTree) -> PyTree:
        """Psi(v) = d1Phi(w, lam; zeta)^T v + g, whose fixed point solves (I - d1Phi^T) v = g."""
        return add(self.adjoint_product(w, lam, batch, v), g)

    def cross_product(self, w: PyTree, lam: PyTree, batch: PyTree, v: PyTree) -> PyTree:
        """d2Phi(w, lam; zeta)^T v, like lam. Cost: one cross product a row."""
        _, pullback = jax.vjp(lambda x: self.inner_image(w, x, batch), lam)
        return pullback(v)[0]

    def outer_gradients(self, w: PyTree, lam: PyTree, batch: PyTree) -> tuple[Array, PyTree, PyTree]:
        """E(w, lam; xi), grad_1 E and grad_2 E, like w and lam. Cost: one outer gradient a row."""
        # Two passes: most outer losses do not read lam, and the second is then empty; the first may be the loss's own.
        value, by_w = value_and_grad(self.outer_loss)(w, lam, batch)
        by_lam = jax.grad(self.outer_loss, 1)(w, lam, batch)
        return value, astype_of(by_w, w), astype_of(by_lam, lam)


def lagrangian(problem: Problem, w: PyTree, v: PyTree, lam: PyTree, batches: tuple[PyTree, PyTree]) -> Array:
    """L(w, v, lam) = E(w, lam; xi) + <v, Phi(w, lam; zeta) - w>, the scalar all methods follow.

    Args:
        problem: the maps.
        w: inner variable, d entries.
        v: multiplier, like w.
        lam: outer variable, m entries.
        batches: (zeta, xi), the inner and the outer minibatch.

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> rows = jnp.ones((4, 2))
        >>> layer = bx.Problem(lambda w, lam, batch: 0.5 * w + lam, lambda w, lam, batch: jnp.sum(w**2))
        >>> float(bx.lagrangian(layer, jnp.ones(2), jnp.ones(2), jnp.ones(2), (rows, rows)))  # E + <v, Phi - w>
        3.0
    """
    inner, outer = batches
    # E(w, lam; xi) + <v, Phi(w, lam; zeta) - w>
    # Phi - w, zero at the fixed point
    residual = sub(problem.inner_map(w, lam, inner), w)
    return problem.outer_loss(w, lam, outer) + vdot(v, residual)


def directions(
    problem: Problem, w: PyTree, v: PyTree, lam: PyTree, batches: tuple[PyTree, PyTree]
) -> tuple[PyTree, PyTree, PyTree]:
    """The three derivatives of :func:`lagrangian`, from one reverse pass.

    Returns:
        dL/dv = Phi - w, along which w moves; dL/dw = grad_1 E + d1Phi^T v - v, along which v moves; and
        dL/dlam = grad_2 E + d2Phi^T v, the hypergradient once the other two are zero.

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> rows = jnp.ones((4, 2))
        >>> layer = bx.Problem(lambda w, lam, batch: 0.5 * w + lam, lambda w, lam, batch: jnp.sum(w**2))
        >>> at = jnp.ones(2), jnp.ones(2), jnp.ones(2)  # w, v, lam
        >>> [d.tolist() for d in bx.directions(layer, *at, (rows, rows))]
        [[0.5, 0.5], [1.5, 1.5], [1.0, 1.0]]
    """
    # dL/dw, dL/dv, dL/dlam
    by_w, by_v, by_lam = jax.grad(lagrangian, (1, 2, 3))(problem, w, v, lam, batches)
    return by_v, by_w, by_lam
