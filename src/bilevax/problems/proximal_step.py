"""The inner map of a composite loss: a gradient step on the smooth part, then a proximal step."""

from collections.abc import Callable

import jax
from jax import Array

from bilevax.core.config import config, replace_unchecked
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import RowSource
from bilevax.core.trees import PyTree
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
        if not callable(self.prox):
            raise ParameterError(f"prox must be a function of (w, lam, s), got {self.prox!r}")
        # Its checks are those of the loss and the step.
        _ = self.smooth

    @property
    def smooth(self) -> GradientStep:
        """The gradient step on the smooth part."""
        return GradientStep(self.loss, self.step_size)

    def __call__(self, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
        """One proximal gradient step on the loss of the batch."""
        # prox(w - s grad, lam, s): at the fixed point grad + d penalty contains 0 for every s: s has no derivative
        smooth = self.smooth
        s = jax.lax.stop_gradient(smooth.metric(w, lam))
        return self.prox(smooth(w, lam, batch), lam, s)

    def measured(
        self, w: PyTree, lam: PyTree, source: RowSource, key: Array, minibatches: int | None = None
    ) -> "ProximalStep":
        """This map with its step filled in; see :meth:`GradientStep.measured`."""
        return replace_unchecked(self, step_size=self.smooth.measured(w, lam, source, key, minibatches).step_size)
