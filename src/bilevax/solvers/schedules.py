"""Step sizes eta_j and step counts that grow with the outer step."""

import warnings
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.config import Steps, check_choice, check_fields, config, nonnegative, positive
from bilevax.core.errors import ParameterError, callers_level
from bilevax.core.trees import PyTree, is_concrete
from bilevax.theory import Constants, MeanSquare

Schedule: TypeAlias = Callable[[Array], Array]
"""The step size eta_j, j -> []."""

StepSize: TypeAlias = Schedule | Array | float
"""A step size as it is given: a schedule, or a number, for which :class:`Constant` is kept."""


@config
class Constant:
    """eta_j = value.

    Args:
        value: in map form, w <- w + eta (Phi(w) - w); 1 is the map itself. Default 1.

    Examples:
        >>> import bilevax as bx
        >>> float(bx.Constant(0.5)(1000))
        0.5
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, value=positive)

    def __call__(self, j: Array) -> Array:
        """eta_j."""
        return jnp.asarray(self.value)


@config
class Harmonic:
    """eta_j = beta / (gamma + j), for which the mean square error of a stochastic fixed point falls as 1 / j.

    beta > 1 / (1 - q^2) and gamma >= beta (1 + sigma2) are sufficient for a q-contraction (Grazzi, Pontil, Salzo 2021,
    arXiv:2011.07122); beta = gamma = 2 / (1 - q^2) is what the authors' code uses, so that eta_0 = 1.

    Args:
        beta: positive.
        gamma: positive.

    Examples:
        >>> from bilevax.theory import Constants
        >>> c = Constants(q=0.5, L_Phi=1, L_E=1, mu1=1, mu2=0, nu1=0, nu2=0, sigma2=2, sigma1_prime=0.125)
        >>> Harmonic.optimal(c).gamma / Harmonic.optimal(c).beta, Harmonic.optimal(c, stage="linear").gamma
        (3.0, 5.333333333333333)
    """

    beta: float
    gamma: float

    def __post_init__(self) -> None:
        check_fields(self, beta=positive, gamma=positive)

    def __call__(self, j: Array) -> Array:
        """eta_j."""
        # eta_j = beta / (gamma + j)
        return self.beta / (self.gamma + _real(j))

    @classmethod
    def optimal(cls, constants: Constants, *, stage: str = "inner") -> "Harmonic":
        """The steps with the best guarantee: beta = 2 / (1 - q^2), gamma = beta (1 + sigma2).

        A guarantee, and cautious where the noise is large: ``published_steps`` and ``MeanSquare.of_convex_rows`` of
        :mod:`bilevax.theory` are longer.

        Args:
            constants: of the problem.
            stage: "inner" for w, "linear" for v, whose sigma2 is 2 sigma1_prime / (1 - q)^2.
        """
        # 2 / rate, over the largest step that the noise allows
        return cls(*_recursion(constants, stage).harmonic)

    def checked(self, constants: Constants, *, stage: str = "inner") -> "Harmonic":
        """These steps, with a warning where the constants do not promise the rate 1 / j, and what would be right.

        Args:
            constants: of the problem.
            stage: "inner" for w, "linear" for v.
        """
        for sentence in _recursion(constants, stage).shortcomings(self.beta, self.gamma):
            warnings.warn(f"Harmonic({self.beta:g}, {self.gamma:g}), {stage} solver: {sentence}", stacklevel=2)
        return self


def _recursion(constants: Constants, stage: str) -> MeanSquare:
    return constants.inner if check_choice("stage", stage, ("inner", "linear")) == "inner" else constants.linear()


@config
class Polynomial:
    """eta_j = value / (1 + j / horizon)^power.

    Args:
        value: eta_0, positive.
        power: in [0, 1]; above 1 the steps sum to a finite number, and the iteration stops short of the solution.
        horizon: the number of steps after which the decay sets in, positive.

    Examples:
        >>> import bilevax as bx
        >>> round(float(bx.Polynomial(0.1, 0.5)(99)), 6)  # 0.1 (1 + 99)^(-1/2)
        0.01
    """

    value: float = 1.0
    power: float = 0.5
    horizon: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, value=positive, power=nonnegative)
        # sum_j j^-power is finite above 1
        power = self.power
        if is_concrete(power) and power > 1.0:
            raise ParameterError(
                f"power must be at most 1, got {power:g}: the steps would sum to a finite number, and the iteration"
                " would stop short of the solution however long it runs"
            )
        check_fields(self, horizon=positive)

    def __call__(self, j: Array) -> Array:
        """eta_j."""
        # eta_j = value / (1 + j / horizon)^power
        return self.value / (1.0 + _real(j) / self.horizon) ** self.power


def schedule(name: str, value: StepSize) -> Schedule:
    """A schedule from a schedule or a number.

    Warns of a function whose steps seem to sum to a finite number, at the caller's line.

    Raises:
        ParameterError: neither a schedule nor a positive number.
    """
    # of the user's own functions only the sum of the steps is tested
    if callable(value):
        if not isinstance(value, SHIPPED) and _is_summable(value):
            warnings.warn(
                "step_size(j) falls so fast that its steps sum to a finite number: the iteration stops short of the"
                " solution however long it runs; let it fall no faster than 1/j, as bx.Harmonic(beta, gamma) does",
                stacklevel=callers_level(),
            )
        return value
    if isinstance(value, str | bool) or value is None:
        raise ParameterError(f"{name} must be a number or a schedule such as Harmonic(beta, gamma), got {value!r}")
    return Constant(positive(name, value))


def envelope(name: str, value: StepSize) -> Schedule:
    """A schedule from a schedule or a positive number, of what is no step size.

    Raises:
        ParameterError: neither.
    """
    return schedule(name, value) if callable(value) else Constant(positive(name, value))


@config
class Growing:
    """A count that grows with the outer step s = 0, 1, ...: ceil(rate (s + 1)^power).

    Args:
        rate: positive.
        power: 1 is linear growth, 0.5 that of a square root.

    Examples:
        >>> import bilevax as bx
        >>> [int(bx.Growing(5.0)(k)) for k in range(3)]
        [5, 10, 15]
    """

    rate: float
    power: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, rate=positive, power=nonnegative)

    def __call__(self, outer_step: Array | int) -> Array:
        """The count at outer step s, an int32."""
        # ceil(rate (s + 1)^power), to rounding: 3 * 1.1 / 1.1 is 3 and not 4
        steps = jnp.asarray(self.rate) * (_real(outer_step) + 1.0) ** self.power
        return jnp.ceil(steps * (1 - 4 * jnp.finfo(steps.dtype).eps)).astype(jnp.int32)


def at_step(number: Steps, outer_step: Array | int) -> Array:
    """A count at an outer step: itself, or by its rule of growth."""
    return number(outer_step) if callable(number) else jnp.asarray(number, jnp.int32)


def scheduled(value: StepSize, j: Array) -> Array:
    """A step size or a weight at step j: of a schedule, or a number."""
    return jnp.asarray(value(j) if callable(value) else value)


SHIPPED = (Constant, Harmonic, Polynomial)
"""Schedules whose steps cannot sum to a finite number."""

LATE = (10, 20)
"""Powers of two at which a schedule is evaluated."""


def _is_summable(step_size: Schedule) -> bool:
    """Whether eta_j falls clearly faster than 1 / j between 2^10 and 2^20: j eta_j halves at least.

    By Cauchy's condensation, decreasing eta_j have a finite sum if and only if the 2^i eta_{2^i} have.
    """
    on_host: PyTree = jax.tree.map(_on_host, step_size)  # in numpy, so that nothing is compiled
    early, late = (on_host(np.int32(2**power)) for power in LATE)
    if not (is_concrete(early) and is_concrete(late)):
        return False
    # 2^20 eta(2^20) <= 2^10 eta(2^10) / 2
    return bool(float(late) * 2 ** (LATE[1] - LATE[0]) <= 0.5 * float(early))


def _on_host(x: PyTree) -> PyTree:
    return np.asarray(x) if isinstance(x, jax.Array) and is_concrete(x) else x


def _real(j: Array | int) -> Array:
    """A counter in JAX's default float, so that no dtype is promoted."""
    return jnp.asarray(j).astype(jnp.result_type(float))
