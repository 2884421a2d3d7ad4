"""The inner map of a compositional problem: a function of lam and the minibatch, whatever w is."""

from collections.abc import Callable

from bilevax.core.config import check_fields, config, function_of
from bilevax.core.trees import PyTree


@config
class Composition:
    """Phi(w, lam) = g(lam; zeta), for min over lam of E(w, lam) with w = E g(lam; zeta), a function of a mean.

    Where the outer loss is not linear in w a minibatch of g under it is biased; w is what estimates the mean. The
    Jacobian d1Phi is 0, so that the multiplier v = grad_1 E is known, and grad f = grad_2 E + d2g^T grad_1 E is the
    chain rule. :class:`~bilevax.SCGD` is made for it; every estimator and algorithm serves it.

    Args:
        function: g, (lam, batch) -> a tree like w, a mean over the rows of the batch.

    Examples:
        f(lam) = (E zeta lam)^2, of which a single zeta is 1 or 3:

        >>> import bilevax as bx, jax, numpy as np
        >>> def outer(w, lam, batch):
        ...     return w**2
        >>> problem = bx.Problem(Composition(lambda lam, batch: batch.mean() * lam), outer)
        >>> train, val = bx.Arrays(np.float32([1.0, 3.0]), batch_size=1), bx.Arrays(np.zeros(1, np.float32))
        >>> sid = bx.SID(bx.FixedPoint(1000, 0.01), bx.FixedPoint(1), cross_batches=1000)
        >>> one = np.float32(1.0)
        >>> est = bx.hypergradient(problem, sid, 2 * one, one, train, val, key=jax.random.key(0))
        >>> bool(abs(est.value - 8.0) < 0.5)
        True
    """

    function: Callable[[PyTree, PyTree], PyTree]

    def __post_init__(self) -> None:
        check_fields(self, function=function_of("(lam, batch)"))

    def __call__(self, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
        """g(lam; zeta)."""
        return self.function(lam, batch)
