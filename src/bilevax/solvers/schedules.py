"""Step sizes eta_j and step counts that grow with the outer step."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from bilevax.core.config import config, real, set_fields
from bilevax.core.errors import ParameterError


@config
class Constant:
    """eta_j = value.

    Args:
        value: in map form, w <- w + eta (Phi(w) - w); 1 is the map itself. Default 1.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        set_fields(self, value=real("value", self.value, low=0.0, open_low=True))

    def __call__(self, j: Array) -> Array:
        """eta_j."""
        return jnp.asarray(self.value)


@config
class Harmonic:
    """eta_j = beta / (gamma + j), for which the mean square error of a stochastic fixed point falls as 1 / j.

    beta > 1 / (1 - q^2) and gamma >= beta (1 + sigma_2) are sufficient for a q-contraction (Grazzi, Pontil, Salzo 2021,
    arXiv:2011.07122); beta = gamma = 2 / (1 - q^2) is what the authors' code uses, so that eta_0 = 1.

    Args:
        beta: positive.
        gamma: positive.
    """

    beta: float
    gamma: float

    def __post_init__(self) -> None:
        beta = real("beta", self.beta, low=0.0, open_low=True)
        set_fields(self, beta=beta, gamma=real("gamma", self.gamma, low=0.0, open_low=True))

    def __call__(self, j: Array) -> Array:
        """eta_j."""
        return self.beta / (self.gamma + _real(j))


@config
class Polynomial:
    """eta_j = value / (1 + j / horizon)^power.

    Args:
        value: eta_0, positive.
        power: in [0, 1]; above 1 the steps would sum to a finite number and the iteration would stop short.
        horizon: the number of steps after which the decay sets in, positive.
    """

    value: float = 1.0
    power: float = 0.5
    horizon: float = 1.0

    def __post_init__(self) -> None:
        value = real("value", self.value, low=0.0, open_low=True)
        power = real("power", self.power, low=0.0, high=1.0)
        set_fields(self, value=value, power=power, horizon=real("horizon", self.horizon, low=0.0, open_low=True))

    def __call__(self, j: Array) -> Array:
        """eta_j."""
        return self.value / (1.0 + _real(j) / self.horizon) ** self.power


def schedule(value: Any) -> Any:
    """A schedule from a schedule or a number.

    Raises:
        ParameterError: neither a schedule nor a positive number.
    """
    if callable(value):
        return value
    if isinstance(value, str | bool) or value is None:
        raise ParameterError(f"step_size must be a number or a schedule such as Harmonic(beta, gamma), got {value!r}")
    return Constant(value)


@config
class Growing:
    """A count that grows with the outer step s = 0, 1, ...: ceil(rate (s + 1)^power).

    Args:
        rate: positive.
        power: 1 is linear growth, 0.5 that of a square root.
    """

    rate: float
    power: float = 1.0

    def __post_init__(self) -> None:
        rate = real("rate", self.rate, low=0.0, open_low=True)
        set_fields(self, rate=rate, power=real("power", self.power, low=0.0))

    def __call__(self, s: Array | int) -> Array:
        """The count at outer step s, an int32."""
        steps = jnp.asarray(self.rate) * (_real(s) + 1.0) ** self.power
        return jnp.ceil(steps * (1 - 4 * jnp.finfo(steps.dtype).eps)).astype(jnp.int32)


def at_step(number: Any, s: Array | int) -> Array:
    """A count at outer step s: itself, or what its rule of growth says."""
    return number(s) if callable(number) else jnp.asarray(number, jnp.int32)


def _real(j: Array | int) -> Array:
    """A counter in JAX's default float, so that no dtype is promoted."""
    return jnp.asarray(j).astype(jnp.result_type(float))
