"""Inner maps of an equilibrium: nobody has anything cheaper to choose, given the choices of all."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.config import check_fields, config, function_of, positive
from bilevax.core.trees import PyTree


@config
class ProjectionStep:
    """Phi(w, lam) = P(w - s c(w, lam; zeta)), whose fixed point solves <c(w, lam), u - w> >= 0 for every u of a set.

    This variational inequality says, of flows and the costs of their paths, that all paths in use are cheapest
    (Wardrop), and of players and their gradients that none gains by another move (Nash). c need not be a gradient, so
    that the linear system is not symmetric.

    Assumes that c is strongly monotone and s less than twice its modulus over its Lipschitz constant squared, and d1Phi
    as of :class:`~bilevax.ProximalStep`, likewise biased on minibatches. Cost: that of c and of P.
    Source: Li, Yu, Liu, Nie, Wang (2023), arXiv:2302.09734, as the inner level of a bilevel problem.

    Args:
        cost: c, (w, lam, batch) -> a tree like w.
        project: P, the projection of w onto the set, such as :class:`~bilevax.Simplex`.
        step_size: s, positive, in units of w per unit of cost.

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> two_roads = bx.ProjectionStep(lambda w, lam, batch: w + lam, bx.Simplex(), step_size=1.0)
        >>> two_roads(jnp.array([0.5, 0.5]), jnp.array([0.0, 0.5]), None).tolist()  # both cost 0.75 then
        [0.75, 0.25]
    """

    cost: Callable[[PyTree, PyTree, PyTree], PyTree]
    project: Callable[[PyTree], PyTree]
    step_size: float

    def __post_init__(self) -> None:
        check_fields(self, cost=function_of("(w, lam, batch)"), project=function_of("w"), step_size=positive)

    def __call__(self, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
        """P(w - s c(w, lam; zeta))."""
        s = jnp.asarray(self.step_size)
        return self.project(jax.tree.map(lambda x, c: x - s.astype(x.dtype) * c, w, self.cost(w, lam, batch)))


@config
class LogitResponse:
    """Phi(w, lam) = softmax(-c(w, lam; zeta) / T) over the last axis: shares of those who choose by noisy costs.

    Its fixed point is the logit equilibrium (stochastic user equilibrium; quantal response): each alternative has the
    share that its cost, at these shares, gives it. As T falls it tends to that of :class:`ProjectionStep`. An
    alternative of cost inf has the share 0, and no derivative.

    Assumes that costs rise with their shares; Phi contracts where T is large, and else a shorter step of it does, such
    as that of ``bx.FixedPoint(steps, step_size=0.1)``. Of minibatches it is biased. Cost: that of c.
    Source: Fisk (1980); McKelvey, Palfrey (1995).

    Args:
        cost: c, (w, lam, batch) -> an array like w, [..., K], alternatives last.
        temperature: T, positive, in units of cost. Default 1.

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> response = bx.LogitResponse(lambda w, lam, batch: lam)  # costs without congestion
        >>> response(jnp.ones(2) / 2, jnp.array([0.0, jnp.log(3.0)]), None).round(2).tolist()
        [0.75, 0.25]
    """

    cost: Callable[[Array, PyTree, PyTree], Array]
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, cost=function_of("(w, lam, batch)"), temperature=positive)

    def __call__(self, w: Array, lam: PyTree, batch: PyTree) -> Array:
        """softmax(-c(w, lam; zeta) / T), like w."""
        return jax.nn.softmax(-self.cost(w, lam, batch) / jnp.asarray(self.temperature).astype(w.dtype), axis=-1)
