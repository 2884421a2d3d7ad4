"""The inner map of a composite loss: a gradient step on the smooth part, then a proximal step."""

from collections.abc import Callable

import jax
from jax import Array

from bilevax.core.config import check_fields, config, function_of, replace_unchecked
from bilevax.core.protocols import RowSource
from bilevax.core.trees import PyTree, add, scale, sub
from bilevax.problems.gradient_step import GradientStep


@config
class ProximalStep:
    """Phi(w, lam) = prox(w - s grad_1 loss(w, lam; zeta), lam, s), whose fixed point minimises loss + penalty.

    The smooth part is ``smooth``, a :class:`~bilevax.GradientStep`, kept apart from the prox. Phi of a minibatch is
    *biased* unless the prox is linear: SID on minibatches then has a floor, and full batches do not.

    Assumes that d1Phi exists at the fixed point (off the kinks of the prox). Source: Beck and Teboulle (2009); Bertrand
    et al. (2020), arXiv:2002.08943.

    Args:
        loss: smooth part, (w, lam, batch) -> scalar.
        prox: (w, lam, s) -> argmin_u s penalty(u, lam) + 1/2 ||u - w||^2, where s is a tree like w.
        step_size: as in :class:`~bilevax.GradientStep`.

    Examples:
        >>> import jax.numpy as jnp
        >>> def soft(w, lam, s):
        ...     return jnp.sign(w) * jnp.maximum(jnp.abs(w) - s * jnp.exp(lam), 0.0)
        >>> def loss(w, lam, batch):
        ...     return 0.5 * jnp.mean((w - batch) ** 2)
        >>> step = ProximalStep(loss, soft, step_size=1.0)
        >>> float(step(jnp.float32(0.0), jnp.float32(0.0), jnp.float32(3.0)))
        2.0
    """

    loss: Callable[[PyTree, PyTree, PyTree], Array]
    prox: Callable[[PyTree, PyTree, PyTree], PyTree]
    step_size: PyTree | Callable[[PyTree], PyTree] = None

    def __post_init__(self) -> None:
        check_fields(self, prox=function_of("(w, lam, s)"))
        # Its checks are those of the loss and the step.
        _ = self.smooth

    @property
    def smooth(self) -> GradientStep:
        """The gradient step on the smooth part."""
        return GradientStep(self.loss, self.step_size)

    def __call__(self, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
        """One proximal gradient step on the loss of the batch."""
        return self.proximal(self.smooth(w, lam, batch), w, lam)

    def proximal(self, u: PyTree, w: PyTree, lam: PyTree, eta: Array | float = 1.0) -> PyTree:
        """G = prox(u, lam, eta s), with the step s at w."""
        # at the fixed point grad + d penalty contains 0 for every s: s has no derivative
        return self.prox(u, lam, scale(eta, jax.lax.stop_gradient(self.smooth.metric(w, lam))))

    def measured(
        self, w: PyTree, lam: PyTree, source: RowSource, key: Array, minibatches: int | None = None
    ) -> "ProximalStep":
        """This map with its step filled in; see :meth:`GradientStep.measured`."""
        return replace_unchecked(self, step_size=self.smooth.measured(w, lam, source, key, minibatches).step_size)


@config
class LinearisedStep:
    """G(u, lam) + D_1G(u, lam) (That(w, lam; zeta) - u): a proximal step G(That) whose prox is linearised at u.

    So the sample enters linearly: of a minibatch it is unbiased, and its derivatives are D_1G D_1That, and
    D_1G D_2That + D_2G where That is u in the mean; D_1G itself counts as a constant.

    Args:
        step: the proximal step.
        u: where its prox is linearised, like w: the mean of That over many rows.
    """

    step: ProximalStep
    u: PyTree

    def __call__(self, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
        """The step on the loss of the batch."""
        u, at = jax.lax.stop_gradient((self.u, (w, lam)))
        # G(u) + D_1G(u) (That - u), u held: affine in the sample, so that its mean is that of a smooth map
        value, pullback = jax.vjp(lambda x: self.step.proximal(x, *at), u)
        # D_1G (That - u), as the transpose of its transpose: a prox may have a derivative of its own in reverse only
        (change,) = jax.linear_transpose(lambda v: pullback(v)[0], value)(sub(self.step.smooth(w, lam, batch), u))
        return add(self.step.proximal(u, w, lam), change)
