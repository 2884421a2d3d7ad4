"""What a pilot measures, and the errors that it lets expect."""

from typing import NamedTuple

import numpy as np

UNRESOLVED = 0.67
"""What is left after a horizon h is forgotten faster than the slowest direction: by 0.67 / h in the mean over the last
half, if directions of all rates are there."""

NOTICED = 0.33
"""The same where conjugate gradients follow, which have not the time to notice the slowest few."""

LEAST = 0.07
"""Share, at least, of the forgetting seen that the slowest direction has."""

MODELLED = 200
"""Entries, at most, of the system that stands for the one to be solved."""


class Rates(NamedTuple):
    """What the pilot measured, the constants of a plan; step, noise and cross are NaN where it took no minibatch.

    Attributes:
        step: eta of the stochastic run.
        noise: relative standard error of the stochastic estimate after one minibatch; after N it is noise / sqrt(N).
        forgetting: share of an error that one of its steps takes away, once the fast directions are forgotten.
        horizon: steps over which that was seen.
        kappa: condition number of I - d1Phi on every row that follows.
        cross: standard deviation of the cross products of minibatches over their mean; 0 where lam enters a penalty
            alone.
    """

    step: float
    noise: float
    forgetting: float
    horizon: float
    kappa: float
    cross: float

    @classmethod
    def of(cls, step: float, noise: float, seen: tuple[float, float], top: float, cross: float) -> "Rates":
        """With kappa, from the forgetting that was seen, over a horizon, and the largest curvature of every row."""
        return cls(step, noise, *seen, max(top * step / _slowest(*seen, NOTICED), 1.0), cross)

    @property
    def slowest(self) -> float:
        """Share of the error in the slowest direction that a step takes away."""
        return _slowest(self.forgetting, self.horizon, UNRESOLVED)

    def kept(self, steps: float) -> float:
        """Share of an error that so many steps leave, (1 + steps / (2 horizon))^-(slowest horizon).

        Whatever is forgotten at the rate seen within the horizon is; of what is slower, the slower the rates the longer
        the run.
        """
        return (1.0 + 0.5 * steps / self.horizon) ** -(self.slowest * self.horizon)

    def kept_by_falling(self, steps: int) -> float:
        """Share of an error that so many steps leave which fall as 1 / (1 + forgetting j)."""
        return (1.0 + self.forgetting * steps) ** -(self.slowest / self.forgetting)

    def iterated(self, steps: int, d: int) -> float:
        """Share of an error that so many steps of the map on every row leave, in a model system of d entries."""
        curvatures = self._model(d)
        return float(np.linalg.norm((1.0 - curvatures) ** steps / curvatures) / np.linalg.norm(1.0 / curvatures))

    def krylov(self, steps: int, d: int) -> float:
        """Share of an error that so many conjugate gradients on every row leave, in a model system of d entries."""
        curvatures = self._model(d)
        entries, solution = len(curvatures), 1.0 / curvatures
        x, r = np.zeros(entries), np.ones(entries)
        p, square = r, float(entries)
        for _ in range(steps):
            if square <= np.finfo(float).eps ** 2 * entries:
                break
            image = curvatures * p
            length = square / (p @ image)
            x, r = x + length * p, r - length * image
            square, before = float(r @ r), square
            p = r + square / before * p
        return float(np.linalg.norm(x - solution) / np.linalg.norm(solution))

    def _model(self, d: int) -> np.ndarray:
        """Curvatures of that condition, evenly spaced in their logarithm; the right-hand side prefers none of them."""
        entries = min(d, MODELLED)
        return self.kappa ** -((np.arange(entries) + 0.5) / entries)


def _slowest(forgetting: float, horizon: float, unresolved: float) -> float:
    return max(forgetting - unresolved / horizon, LEAST * forgetting)
