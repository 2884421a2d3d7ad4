"""The inner map of an inner loss: one gradient step, whose size can be measured."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.config import check_fields, config, function_of, is_scalar, positive, replace_unchecked
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import Draw, RowSource
from bilevax.core.trees import PyTree, sub
from bilevax.linalg.power import walk_curvature
from bilevax.linalg.row_chunks import value_and_grad


@config
class GradientStep:
    """Phi(w, lam) = w - s grad_1 loss(w, lam; zeta), the inner map of a loss.

    The fixed point, and so the hypergradient, does not depend on the step s > 0; how fast the solvers get there does.

    Args:
        loss: (w, lam, batch) -> scalar, a mean over the rows of the batch. A loss may offer ``curvature(w, batch)`` (a
            bound on the largest curvature of its data part) and ``penalty_curvature(w, lam)`` (the diagonal curvature
            of its penalty, to broadcast against w): then a measured step is diagonal, 1 / (L + penalty curvature),
            and serves all penalties at once; and ``value_and_grad(w, lam, batch)``, its gradient in w, and
            ``hessian_product(w, lam, batch, v)``, faster than autodiff's.
        step_size: s, in units of 1 / curvature: a positive number; a pytree like w; a callable of lam that gives either
            (its derivative in lam is stopped, which is exact at the fixed point); or None: measured on the problem,
            1 / (largest curvature that a short walk from w0 meets), before every hypergradient.

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> loss = lambda w, lam, batch: jnp.mean((batch - w) ** 2) + jnp.exp(lam) * w**2
        >>> bx.GradientStep(loss).step_size is None  # measured before a run
        True
        >>> float(bx.GradientStep(loss, 0.25)(jnp.array(0.0), 0.0, jnp.ones(3)))  # w - 0.25 grad
        0.5
    """

    loss: Callable[[PyTree, PyTree, PyTree], Array]
    step_size: PyTree | Callable[[PyTree], PyTree] = None

    def __post_init__(self) -> None:
        check_fields(self, loss=function_of("(w, lam, batch)"))
        if is_scalar(self.step_size):
            check_fields(self, step_size=positive)

    def __call__(self, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
        """One gradient step on the loss of the batch."""
        _, gradient = value_and_grad(self.loss)(w, lam, batch)
        # w - s grad_1 loss
        return jax.tree.map(lambda x, s, g: x - s * g, w, self.metric(w, lam), gradient)

    def adjoint_product(self, w: PyTree, lam: PyTree, batch: PyTree, v: PyTree) -> PyTree:
        """d1Phi(w, lam; zeta)^T v, which is v - H (s v) where the loss offers products with its Hessian H."""
        product = getattr(self.loss, "hessian_product", None)
        if product is None:
            return jax.vjp(lambda x: self(x, lam, batch), w)[1](v)[0]
        # (I - s H)^T v = v - H (s v), H symmetric
        return sub(v, product(w, lam, batch, jax.tree.map(jnp.multiply, self.metric(w, lam), v)))

    def metric(self, w: PyTree, lam: PyTree) -> PyTree:
        """The step s as a tree like w: d1Phi^T = I - H s is self-adjoint for <a, b> = sum_i a_i s_i b_i."""
        # In a trace there is nobody to measure it.
        if self.step_size is None:
            raise ParameterError("step_size is None and was not measured; pass a step, or call bx.hypergradient")
        step = self.step_size
        if callable(step):  # a measured one broadcasts against w, and is as deep a tree as the loss's penalty
            step = step(w, lam) if isinstance(step, InverseCurvature) else step(lam)
        # At the fixed point the gradient is 0, and d/dlam of s grad is s d/dlam of grad: the step has no derivative.
        step = jax.lax.stop_gradient(step)
        if jax.tree_util.all_leaves([step]):
            step = jax.tree.map(lambda _: step, w)
        return jax.tree.map(lambda x, s: jnp.broadcast_to(jnp.asarray(s).astype(x.dtype), x.shape), w, step)

    def measured(
        self, w: PyTree, lam: PyTree, source: RowSource, key: Array, minibatches: int | None = None
    ) -> "GradientStep":
        """This map with its step filled in: 1 / (L + penalty curvature).

        L is the largest curvature along a walk from w (:func:`~bilevax.linalg.power.walk_curvature`), or the
        largest bound of as many minibatches, where the loss offers one; on ``minibatches`` of them, if that is given.
        Cost: ``measuring_products(source)``.
        """
        if self.step_size is not None:
            return self
        bound_at: Callable[[PyTree, PyTree], Array] | None = getattr(self.loss, "curvature", None)
        penalty = getattr(self.loss, "penalty_curvature", None)
        looks = _looks(source, minibatches)
        zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(w)))
        if bound_at is None:
            bound = walk_curvature(self._gradient, self._hessian_product, (w, zero), lam, source, key=key, looks=looks)
            return replace_unchecked(self, step_size=InverseCurvature(bound, penalty))

        def largest(L: Array, w: PyTree, _: Array, draw: Draw) -> Array:
            out: Array = jnp.maximum(L, bound_at(w, draw.batch))
            return out

        # L = max over the minibatches of the loss's own bound, which holds at any w: no walk
        bound = source.fold(largest, zero, w, key=key, start=0, stop=1 if source.is_full_batch else looks[0])
        return replace_unchecked(self, step_size=InverseCurvature(bound, penalty))

    def _gradient(self, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
        return value_and_grad(self.loss)(w, lam, batch)[1]

    def _hessian_product(self, w: PyTree, lam: PyTree, batch: PyTree, u: PyTree) -> PyTree:
        # H u = d/dt grad(w + t u)
        return jax.jvp(lambda x: jax.grad(self.loss)(x, lam, batch), (w,), (u,))[1]


MEASURED = 16, 3
"""Minibatches on which a curvature is measured, and Hessian-vector products on each."""

MEASURED_WHOLE = 8, 2
"""The same on full batches."""


def measuring_products(source: RowSource, minibatches: int | None = None, *, known: bool = False) -> int:
    """Products that measuring a step takes, the two gradients on each minibatch counted as such.

    Of a loss with a curvature of its own, ``known``, one on each; and one where each is every row.
    """
    minibatches, products = _looks(source, minibatches)
    if known:
        return 1 if source.is_full_batch else minibatches
    return minibatches * (products + 2)


def _looks(source: RowSource, minibatches: int | None) -> tuple[int, int]:
    usual, products = MEASURED_WHOLE if source.is_full_batch else MEASURED
    return usual if minibatches is None else minibatches, products


@config
class InverseCurvature:
    """The measured step 1 / (bound + penalty curvature), a function of lam."""

    bound: Array
    penalty: Callable[[PyTree, PyTree], PyTree] | None

    def __call__(self, w: PyTree, lam: PyTree) -> PyTree:
        """The step, a scalar or a tree to broadcast against w."""
        # a step of 0, from a curvature that overflows, would leave w where it is and call that solved
        bound = jnp.where(jnp.isfinite(self.bound), self.bound, jnp.nan)
        if self.penalty is None:  # without any curvature every step will do
            return jnp.where(bound > 0, 1.0 / bound, jnp.where(bound == 0, 1.0, jnp.nan))
        # H <= (L I + diag p), so that |I - s H| <= 1 for s = 1 / (L + p), entry by entry
        return jax.tree.map(lambda p: 1.0 / (bound.astype(p.dtype) + p), self.penalty(w, lam))
