"""The inner map of a decision maker: the soft Bellman operator of an entropy-regularised Markov decision process."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from bilevax.core.config import check_fields, check_real, config, function_of, positive
from bilevax.core.errors import ParameterError
from bilevax.core.trees import PyTree


@config
class SoftBellman:
    """Phi(V, lam)_s = tau log sum_a exp(Q_sa / tau), Q_sa = r_sa(lam) + gamma sum_t P_sat(lam) V_t.

    S states, A actions. Its fixed point, V [S], is the largest discounted sum of rewards and tau times entropies, and
    softmax(Q / tau) the policy [S, A] that has it. A contraction of modulus gamma in the largest entry, whatever the
    rewards; I - d1Phi = I - gamma P^policy is not symmetric. A state that nothing leaves leads to itself.

    Assumes that the batch is every state: Phi is no mean over rows. Cost: S^2 A a call.
    Source: Yang, Gao, Yuan (2024), arXiv:2405.19697, as the inner level of a bilevel problem.

    Args:
        reward: r, (lam, batch) -> [S, A].
        transitions: P, (lam, batch) -> [S, A, S], each P_sa. a distribution.
        discount: gamma in [0, 1[.
        temperature: tau, positive, in units of the reward. Default 1.

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> stay = bx.SoftBellman(lambda lam, P: lam, lambda lam, P: P, discount=0.5)  # one state, two actions
        >>> V, lam, P = jnp.zeros(1), jnp.array([[0.0, jnp.log(3.0)]]), jnp.ones((1, 2, 1))
        >>> stay.policy(V, lam, P).round(2).tolist()
        [[0.25, 0.75]]
    """

    reward: Callable[[PyTree, PyTree], Array]
    transitions: Callable[[PyTree, PyTree], Array]
    discount: float
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, reward=function_of("(lam, batch)"), transitions=function_of("(lam, batch)"))
        check_fields(self, discount=_below_one, temperature=positive)

    def __call__(self, V: Array, lam: PyTree, batch: PyTree) -> Array:
        """tau log sum_a exp(Q_sa / tau), [S]."""
        tau = jnp.asarray(self.temperature).astype(V.dtype)
        # tau log sum_a exp(Q_sa / tau): a gamma-contraction in the largest norm
        return tau * logsumexp(self.action_values(V, lam, batch) / tau, axis=1)

    def action_values(self, V: Array, lam: PyTree, batch: PyTree) -> Array:
        """Q, [S, A]."""
        gamma = jnp.asarray(self.discount).astype(V.dtype)
        # Q_sa = r_sa + gamma sum_t P_sat V_t
        return self.reward(lam, batch) + gamma * (self.transitions(lam, batch) @ V)

    def policy(self, V: Array, lam: PyTree, batch: PyTree) -> Array:
        """softmax(Q / tau), [S, A]."""
        tau = jnp.asarray(self.temperature).astype(V.dtype)
        return jax.nn.softmax(self.action_values(V, lam, batch) / tau, axis=1)


def _below_one(name: str, value: float) -> float:
    if (value := check_real(name, value, low=0.0)) >= 1.0:
        raise ParameterError(f"{name} must be less than 1, got {value:g}")
    return value
