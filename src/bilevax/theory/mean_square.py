"""How the mean square error of a stochastic fixed-point iteration falls: one inequality and what follows from it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from bilevax.core.errors import ParameterError

Curve: TypeAlias = float | np.ndarray
"""A number, or one for each of an array of counts."""

ROUNDING = 1e-12
"""Relative excess over a limit that is rounding."""


class HarmonicSteps(NamedTuple):
    """The steps eta_j = beta / (gamma + j), j = 0, 1, ...

    Examples:
        >>> from bilevax.theory import HarmonicSteps
        >>> HarmonicSteps(beta=2.0, gamma=4.0).beta
        2.0
    """

    beta: float
    gamma: float


@dataclass(frozen=True)
class MeanSquare:
    """E|x_{j+1} - x*|^2 <= (1 - rate eta_j) E|x_j - x*|^2 + noise eta_j^2, wherever 0 < eta_j <= limit.

    It holds for x_{j+1} = x_j + eta_j (T(x_j; zeta_j) - x_j), with independent minibatches zeta_j, in two settings:

    - T is a q-contraction in the mean with V[T(x)] <= sigma1 + sigma2 |E T(x) - x|^2: :meth:`of_contraction`;
    - T is a gradient step on convex rows, whose noise their own curvature bounds: :meth:`of_convex_rows`.

    Source: Grazzi, Pontil, Salzo (2021), arXiv:2011.07122, for the first; the constants are this project's derivation.

    Args:
        rate: per unit of step, positive.
        noise: per unit of squared step, in the units of |x|^2.
        limit: the largest step, in map form.

    Examples:
        >>> inner = MeanSquare.of_contraction(q=0.5, sigma1=0.375, sigma2=1.0)
        >>> inner.limit, inner.plateau(0.5), float(inner.constant(0.5, steps=1000, start=10.0))
        (0.5, 0.25, 0.25)
        >>> inner.harmonic.gamma == 2 * inner.harmonic.beta
        True
    """

    rate: float
    noise: float
    limit: float

    @classmethod
    def of_contraction(cls, *, q: float, sigma1: float, sigma2: float) -> "MeanSquare":
        """Rate 1 - q^2, noise sigma1, limit 1 / (1 + sigma2).

        Proof. With a = x - x* and b = E T(x) - x*, |b| <= q |a|,

            |(1 - eta) a + eta b|^2 = (1 - eta) |a|^2 + eta |b|^2 - eta (1 - eta) |a - b|^2
                                   <= (1 - eta (1 - q^2)) |a|^2 - eta (1 - eta) |E T(x) - x|^2 ,

        and the noise adds at most eta^2 (sigma1 + sigma2 |E T(x) - x|^2).
        """
        # eta (1 - eta) >= eta^2 sigma2 where eta <= 1 / (1 + sigma2): the two terms of |E T(x) - x|^2 cancel
        return cls(1.0 - q**2, sigma1, 1.0 / (1.0 + sigma2))

    @classmethod
    def of_convex_rows(
        cls, *, L: float, tau: float, row_smoothness: float, noise: float, alpha: float, batch_size: int
    ) -> "MeanSquare":
        """Rate alpha tau, noise 2 noise / b, limit 1 / (alpha (L + 2 row_smoothness / b)): no 1 / (1 - q)^2.

        For T(w) = w - alpha g_B(w), g_B the mean gradient of b independent convex rows plus that of a deterministic
        penalty; and, with the same L, tau and row_smoothness, for the linear system of such a problem.

        Proof. The rows are co-coercive, so E|g_B(w)|^2 <= (L + 2 row_smoothness / b) <g(w), w - w*> + 2 |g_i(w*)|^2 / b
        in the mean over i, and <g(w), w - w*> >= tau |w - w*|^2.

        Args:
            L: largest curvature of the inner loss.
            tau: its smallest curvature, positive.
            row_smoothness: largest curvature of the data part of one row; of a generalised linear model,
                sup a'' max |x_i|^2.
            noise: mean over the rows of |T_i(x*) - x*|^2, x* the fixed point: |alpha g_i(w*)|^2 for w, and
                |alpha (H_i - H) v*|^2 for v.
            alpha: step of the inner map.
            batch_size: b.
        """
        # |w - eta alpha g_B - w*|^2 <= |w - w*|^2 - 2 eta alpha <g, w - w*> + eta^2 alpha^2 |g_B|^2
        return cls(alpha * tau, 2.0 * noise / batch_size, 1.0 / (alpha * (L + 2.0 * row_smoothness / batch_size)))

    @property
    def harmonic(self) -> HarmonicSteps:
        """The decreasing steps with the best guarantee: beta = 2 / rate, gamma = beta / limit."""
        # beta^2 / (beta rate - 1) is least at beta = 2 / rate
        return HarmonicSteps(2.0 / self.rate, 2.0 / (self.rate * self.limit))

    def plateau(self, eta: float) -> float:
        """Where constant steps end at the latest, noise eta / rate."""
        # the fixed point of S -> (1 - rate eta) S + noise eta^2
        return self.noise * self._allowed(eta) / self.rate

    def constant(self, eta: float, steps: Curve, start: float) -> Curve:
        """Bound on E|x_t - x*|^2 for eta_j = eta: (1 - eta rate)^t (start - plateau) + plateau.

        Args:
            eta: at most ``limit``.
            steps: t, a count or an array of them.
            start: |x_0 - x*|^2, or a bound on its mean.

        Raises:
            ParameterError: eta exceeds ``limit``.
        """
        # S_t - plateau = (1 - eta rate)^t (S_0 - plateau)
        level = self.plateau(eta)
        return level + (1.0 - eta * self.rate) ** np.asarray(steps) * (start - level)

    def decreasing(self, beta: float, gamma: float, steps: Curve, start: float) -> Curve:
        """Bound on E|x_t - x*|^2 for eta_j = beta / (gamma + j): c / (gamma + t).

        c = max(gamma start, beta^2 noise / (beta rate - 1)).

        Args:
            beta: more than 1 / rate.
            gamma: at least beta / limit.
            steps: t, a count or an array of them.
            start: |x_0 - x*|^2, or a bound on its mean.

        Raises:
            ParameterError: beta or gamma is too small for the bound.
        """
        for sentence in self.shortcomings(beta, gamma):
            raise ParameterError(sentence)
        # by induction: S_j <= c / (gamma + j) carries over to j + 1 if c (beta rate - 1) >= beta^2 noise
        return max(gamma * start, beta**2 * self.noise / (beta * self.rate - 1.0)) / (gamma + np.asarray(steps))

    def along(self, etas: Iterable[float], start: float) -> float:
        """Bound on E|x_t - x*|^2 for any steps eta_j <= limit: the inequality itself, iterated.

        At most ``constant`` and ``decreasing``, whose closed forms it needs not.

        Raises:
            ParameterError: a step exceeds ``limit``.
        """
        # S <- (1 - rate eta_j) S + noise eta_j^2
        level = start
        for eta in etas:
            level = (1.0 - self._allowed(eta) * self.rate) * level + self.noise * eta**2
        return level

    def highest(self, start: float) -> float:
        """Bound on E|x_j - x*|^2 at every j, whatever the steps up to ``limit``: max(start, plateau(limit))."""
        # (1 - rate eta) S + noise eta^2 lies between S and noise eta / rate
        return max(start, self.plateau(self.limit))

    def steps_to(self, target: float, start: float) -> tuple[float, int]:
        """(eta, t) of constant steps with E|x_t - x*|^2 <= target: half of it plateau, half of it transient.

        t is of order log(1 / target) / target, and logarithmic without noise.
        """
        self._check_target(target)
        # plateau = noise eta / rate <= target / 2
        eta = self.limit if self.noise == 0 else min(self.limit, self.rate * target / (2.0 * self.noise))
        if start <= target:
            return eta, 0
        if eta * self.rate >= 1.0:
            return eta, 1
        # (1 - eta rate)^t start <= target / 2
        return eta, math.ceil(math.log(2.0 * start / target) / -math.log1p(-eta * self.rate))

    def decreasing_steps_to(self, target: float, start: float) -> int:
        """The t after which the steps ``harmonic`` have E|x_t - x*|^2 <= target, of order 1 / target."""
        self._check_target(target)
        if start <= target:
            return 0
        # c / (gamma + t) <= target, and c is gamma times the bound at t = 0
        beta, gamma = self.harmonic
        return math.ceil(float(self.decreasing(beta, gamma, 0, start)) * gamma / target - gamma)

    def shortcomings(self, beta: float, gamma: float) -> list[str]:
        """What keeps the steps beta / (gamma + j) from the rate 1 / j, in sentences; empty if nothing does."""
        found = []
        # beta rate > 1: else the bias, of order j^(-beta rate), falls more slowly than the noise, of order 1 / j
        if not beta * self.rate > 1.0:
            found.append(
                f"beta={beta:g} is too small: the mean square error falls as 1/j for beta > {1 / self.rate:.6g}, and"
                f" more slowly below; take beta={2 / self.rate:.6g}"
            )
        # eta_0 = beta / gamma <= limit
        if gamma * self.limit < beta * (1.0 - ROUNDING):
            found.append(
                f"the first step beta/gamma={beta / gamma:.6g} is longer than {self.limit:.6g}, up to which the noise"
                f" cannot grow; take gamma={beta / self.limit:.6g}"
            )
        return found

    def _allowed(self, eta: float) -> float:
        if not 0.0 < eta <= self.limit * (1.0 + ROUNDING):
            raise ParameterError(f"a step must lie in ]0, {self.limit:g}] for the bound to hold, got {eta:g}")
        return eta

    @staticmethod
    def _check_target(target: float) -> None:
        if not target > 0:
            raise ParameterError(f"target must be positive, got {target:g}")
