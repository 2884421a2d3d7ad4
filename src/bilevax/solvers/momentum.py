"""Fixed-point iterations with momentum, for w and for v: heavy ball and Nesterov's."""

from functools import partial

import jax.numpy as jnp
from jax import Array

from bilevax.core.config import Steps, check_count, check_fields, config, fraction, positive
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import RowSource
from bilevax.core.trees import PyTree, add, axpy, is_concrete, scale, zeros_like
from bilevax.solvers.chain import Chain, Rule, View
from bilevax.solvers.schedules import Constant, StepSize, schedule


def _pace(beta: Array, eta: Array) -> Array:
    """A plain step in which directions relax no faster: eta / (1 - beta), and what turns relaxes by 1 - sqrt(beta)."""
    # h <= 1 in units of the map: h min(eta / (1 - beta), 1 - sqrt(beta)) <= 1 - |z|, z the larger root of a direction
    return jnp.minimum(eta / (1.0 - beta).astype(eta.dtype), 1.0 - jnp.sqrt(beta).astype(eta.dtype))


def _move(beta: Array, lead: bool, x: PyTree, m: PyTree, view: View) -> tuple[PyTree, PyTree, PyTree]:
    """One step from x with momentum m; ``lead``: from where the momentum leads, as Nesterov's."""
    # m <- beta m + eta (T(y) - y), x <- x + m; y = x, or x + beta m
    ahead = scale(beta, m)
    d = view.direction(add(x, ahead) if lead else x)
    m = axpy(view.eta * view.weight, d, ahead)
    return add(x, m), m, d


def _check_momentum(name: str, value: float) -> float:
    value = fraction(name, value)
    if is_concrete(value) and value == 1.0:
        raise ParameterError(f"{name} must be less than 1, got 1: the iteration would never come to rest")
    return value


@config
class Momentum(Chain):
    """The settings of both."""

    steps: Steps
    step_size: StepSize = Constant(1.0)
    momentum: float = 0.9
    tol: float = 0.1
    confirm: bool = True

    def __post_init__(self) -> None:
        check_fields(self, tol=positive, steps=check_count, momentum=_check_momentum, step_size=schedule)


@config
class HeavyBall(Momentum):
    """x_{j+1} = x_j + eta_j (T(x_j; zeta_j) - x_j) + beta (x_j - x_{j-1}), j < steps, x_{-1} = x_0.

    Assumes that I - d1T has real eigenvalues h > 0, as for the gradient step of a quadratic: it converges where
    eta h < 2 (1 + beta). With h from mu to L, in units of the map, eta = 4 / (sqrt L + sqrt mu)^2 and
    beta = ((sqrt L - sqrt mu) / (sqrt L + sqrt mu))^2 are best: the error falls by about 1 - 2 sqrt(mu / L) a step, in
    place of 1 - 2 mu / L. On minibatches the noise of the last point is about that of the step eta / (1 - beta).

    Reverse differentiation through its steps is heavy ball on the linear system. Codes, continuation (from rest) and
    cost are those of :class:`~bilevax.FixedPoint`.
    Source: Polyak (1964); as a hypergradient: Ehrhardt, Roberts (2023), arXiv:2301.04764.

    Args:
        steps: as in :class:`~bilevax.FixedPoint`.
        step_size: eta_j in map form, likewise. Default 1.
        momentum: beta, in [0, 1[. Default 0.9.
        tol: as in :class:`~bilevax.FixedPoint`.
        confirm: likewise.

    Examples:
        >>> import bilevax as bx
        >>> bx.HeavyBall(200, momentum=0.95).momentum
        0.95
    """

    def rule(self, args: PyTree, source: RowSource) -> Rule:
        """How x moves."""
        beta = jnp.asarray(self.momentum)

        def curvature(slow: Array) -> Array:
            # z^2 - (1 + beta - eta h) z + beta = 0: eta h = (1 - z)(1 - beta / z), the double root z = sqrt(beta)
            z = jnp.maximum(1.0 - slow, jnp.sqrt(beta).astype(slow.dtype))
            return (1.0 - z) * (1.0 - beta.astype(slow.dtype) / z)

        caution = 1.0 - jnp.sqrt(beta)
        return Rule(zeros_like, partial(_move, beta, False), "pair", curvature, caution, partial(_pace, beta))


@config
class Nesterov(Momentum):
    """y_j = x_j + beta (x_j - x_{j-1}), x_{j+1} = y_j + eta_j (T(y_j; zeta_j) - y_j), j < steps, x_{-1} = x_0.

    Assumes that I - d1T has real eigenvalues h > 0: it converges where eta h < 2 (1 + beta) / (1 + 2 beta). With h from
    mu to L, in units of the map, eta = 1 / L and beta = (sqrt L - sqrt mu) / (sqrt L + sqrt mu) let the error fall by
    about 1 - sqrt(mu / L) a step, for gradient steps of strongly convex losses that are not quadratic as well. Codes,
    continuation (from rest) and cost are those of :class:`~bilevax.FixedPoint`.
    Source: Nesterov (1983).

    Args:
        steps: as in :class:`~bilevax.FixedPoint`.
        step_size: eta_j in map form, likewise. Default 1.
        momentum: beta, in [0, 1[. Default 0.9.
        tol: as in :class:`~bilevax.FixedPoint`.
        confirm: likewise.

    Examples:
        >>> import bilevax as bx
        >>> bx.Nesterov(200, momentum=0.95).momentum
        0.95
    """

    def rule(self, args: PyTree, source: RowSource) -> Rule:
        """How x moves."""
        beta = jnp.asarray(self.momentum)

        def curvature(slow: Array) -> Array:
            # z^2 - (1 + beta)(1 - eta h) z + beta (1 - eta h) = 0: eta h = (1 - z)(z - beta) / ((1 + beta) z - beta),
            # the double root z = 2 beta / (1 + beta)
            b = beta.astype(slow.dtype)
            z = jnp.maximum(1.0 - slow, 2.0 * b / (1.0 + b))
            return (1.0 - z) * (z - b) / ((1.0 + b) * z - b)

        # at the double root (z - beta) / ((1 + beta) z - beta) = (1 - beta) / (1 + beta)
        caution = (1.0 - beta) / (1.0 + beta)
        return Rule(zeros_like, partial(_move, beta, True), "pair", curvature, caution, partial(_pace, beta))
