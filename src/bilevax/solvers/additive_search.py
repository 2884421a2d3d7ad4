"""Penalties that minimise an outer loss of an additive model and a prior, by Newton's method in their logarithms."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bilevax.solvers.additive_fit import Fit

LOWEST, HIGHEST = -8.0, 18.0
"""Bounds of rho: at the upper one a part is gone."""

LONGEST = 4.0
"""What a step changes a rho by, at most."""


SPREAD = 5.0
"""Standard deviation of log penalties of a kind around their common value."""

START = 2.0
"""Of the rho that all parts share."""


class Outer(NamedTuple):
    """An outer loss at rho.

    Attributes:
        value: in units of a log-likelihood.
        gradient: in rho, [m], exact.
        hessian: in rho, [m, m], approximate: as if the curvature did not depend on b.
        fits: the minima of F at rho that it was made of.
        phi: dispersion.
    """

    value: float
    gradient: np.ndarray
    hessian: np.ndarray
    fits: tuple[Fit, ...]
    phi: float


OuterLoss = Callable[[np.ndarray, Outer | None], Outer]
"""Of rho, and of the loss at another one, from whose fits those at rho start."""


class Found(NamedTuple):
    """Penalties and what led to them.

    Attributes:
        rho: [m].
        outer: the loss there, without the prior.
        hessian: of the objective, the prior's included, [m, m].
        evaluations: of the outer loss.
        converged: whether the projected gradient came below the tolerance.
    """

    rho: np.ndarray
    outer: Outer
    hessian: np.ndarray
    evaluations: int
    converged: bool


def tied(loss: OuterLoss, group: np.ndarray) -> OuterLoss:
    """The loss of penalties that parts share: part j has theta[group_j]; group [m]."""
    T = (np.arange(int(group.max(initial=-1)) + 1)[:, None] == group).astype(float)

    def shared(theta: np.ndarray, near: Outer | None) -> Outer:
        out = loss(theta[group], near)
        return out._replace(gradient=T @ out.gradient, hessian=T @ out.hessian @ T.T)

    return shared


def prior(kind: np.ndarray, spread: float = SPREAD) -> np.ndarray:
    """Q [m, m], with rho' Q rho / 2 = 1/2 sum_j (rho_j - mean of its kind)^2 / spread^2; kind [m].

    Log penalties of a kind are normal around a common value: it ties many penalties on few rows.
    """
    same = kind[:, None] == kind
    out: np.ndarray = (np.eye(len(kind)) - same / same.sum(axis=1, keepdims=True)) / spread**2
    return out


def tune(loss: OuterLoss, kind: np.ndarray, *, spread: float = SPREAD, start: float = START) -> Found:
    """A penalty for every part, from the best that all share.

    Args:
        loss: the outer loss.
        kind: number of each part's kind, within which the prior ties penalties, [m].
        spread: of the prior.
        start: of the shared rho.
    """
    m = len(kind)
    one = minimise(tied(loss, np.zeros(m, int)), np.array([start]), np.zeros((1, 1)), tolerance=0.5)
    found = minimise(loss, np.full(m, one.rho[0]), prior(kind, spread), near=one.outer)
    return found._replace(evaluations=found.evaluations + one.evaluations)


def minimise(
    loss: OuterLoss,
    rho: np.ndarray,
    precision: np.ndarray,
    *,
    near: Outer | None = None,
    tolerance: float = 1e-2,
    most: int = 60,
) -> Found:
    """Newton's method in rho within bounds; the objective is loss + rho' precision rho / 2.

    The eigenvalues of the Hessian are taken by their size, and no rho moves by more than LONGEST; a step is cut until
    the objective falls.

    Args:
        loss: the outer loss.
        rho: start, [m].
        precision: of the prior, [m, m].
        near: the loss at other penalties, from whose fits the first ones start.
        tolerance: of the largest component of the projected gradient, in units of a log-likelihood.
        most: evaluations.
    """
    outer, evaluations, converged = loss(rho, near), 1, False
    value = outer.value + 0.5 * float(rho @ precision @ rho)
    while True:
        gradient, hessian = outer.gradient + precision @ rho, outer.hessian + precision
        free = ~((rho <= LOWEST) & (gradient > 0.0) | (rho >= HIGHEST) & (gradient < 0.0))
        converged = bool(np.max(np.abs(gradient[free]), initial=0.0) <= tolerance)
        if converged:
            break
        step = np.zeros(len(rho))
        step[free] = _newton(gradient[free], hessian[np.ix_(free, free)])
        fell = False
        while not fell and evaluations < most and np.max(np.abs(step)) > 1e-6:
            new = np.clip(rho + step, LOWEST, HIGHEST)
            trial = loss(new, outer)
            evaluations += 1
            trial_value = trial.value + 0.5 * float(new @ precision @ new)
            fell = trial_value <= value + 1e-4 * float(gradient @ (new - rho))
            step *= 0.3
        if not fell:
            break
        rho, outer, value = new, trial, trial_value
    return Found(rho, outer, hessian, evaluations, converged)


def _newton(gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """The step against the gradient, no component longer than LONGEST."""
    e, U = np.linalg.eigh(0.5 * (hessian + hessian.T))
    size = np.abs(e)
    step = -U @ ((U.T @ gradient) / np.maximum(size, max(1e-3, 1e-6 * float(size.max()))))
    out: np.ndarray = step * min(1.0, LONGEST / max(float(np.max(np.abs(step))), 1e-300))
    return out
