"""Penalties that minimise an outer loss of an additive model and a prior, by Newton's method in their logarithms."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bilevax.solvers.additive_fit import Fit

LOWEST, HIGHEST = -8.0, 18.0
"""Bounds of rho: at the upper one a part is gone."""

LONGEST = 4.0
"""What a step changes a rho by, at most."""


class Outer(NamedTuple):
    """An outer loss at rho.

    Attributes:
        value: in units of a log-likelihood.
        gradient: in rho, [m], exact.
        hessian: in rho, [m, m], approximate: as if the curvature did not depend on b.
        fit: the minimum of F at rho.
        phi: dispersion.
        freedom: effective degrees of freedom of each part, r_j - exp(rho_j) tr (H^-1)_jj, [m].
        size: exp(rho_j) |b_j|^2 / phi, [m].
    """

    value: float
    gradient: np.ndarray
    hessian: np.ndarray
    fit: Fit
    phi: float
    freedom: np.ndarray
    size: np.ndarray


class Prior(NamedTuple):
    """rho_j ~ N(common value of its kind, spread^2): what ties many penalties on few rows.

    Attributes:
        kind: number of each part's kind, [m].
        spread: standard deviation within a kind.
    """

    kind: np.ndarray
    spread: float = 3.0

    def precision(self) -> np.ndarray:
        """The matrix of the quadratic form sum_j (rho_j - mean of its kind)^2 / spread^2, [m, m]."""
        same = self.kind[:, None] == self.kind
        out: np.ndarray = (np.eye(len(self.kind)) - same / same.sum(axis=1, keepdims=True)) / self.spread**2
        return out


class Found(NamedTuple):
    """Penalties and what led to them.

    Attributes:
        rho: [m].
        outer: the loss there, without the prior.
        evaluations: of the outer loss.
        converged: whether the projected gradient came below the tolerance.
    """

    rho: np.ndarray
    outer: Outer
    evaluations: int
    converged: bool


OuterLoss = Callable[[np.ndarray, Outer | None], Outer]


def one_penalty(loss: OuterLoss, m: int, *, start: float = 2.0, most: int = 20) -> Found:
    """The best rho common to all parts, by Fellner-Schall steps: exp(rho) <- exp(rho) sum freedom / sum size."""
    rho, outer = start, loss(np.full(m, start), None)
    for evaluations in range(1, most + 1):
        total, size = float(np.sum(outer.freedom)), float(np.sum(outer.size))
        step = np.clip(np.log(max(total, 1e-10) / max(size, 1e-10)), -LONGEST, LONGEST)
        new = float(np.clip(rho + step, LOWEST, HIGHEST))
        if abs(new - rho) < 0.1:
            return Found(np.full(m, rho), outer, evaluations, True)
        rho, outer = new, loss(np.full(m, new), outer)
    return Found(np.full(m, rho), outer, most + 1, False)


def fellner_schall(loss: OuterLoss, found: Found, *, steps: int) -> Found:
    """A few steps of the generalised Fellner-Schall iteration (Wood, Fasiolo 2017): exp(rho_j) times freedom / size."""
    rho, outer = found.rho, found.outer
    for _ in range(steps):
        ratio = np.log(np.maximum(outer.freedom, 1e-10) / np.maximum(outer.size, 1e-10))
        rho = np.clip(rho + np.clip(ratio, -LONGEST, LONGEST), LOWEST, HIGHEST)
        outer = loss(rho, outer)
    return Found(rho, outer, found.evaluations + steps, False)


def minimise(loss: OuterLoss, found: Found, prior: Prior, *, tolerance: float = 1e-2, most: int = 60) -> Found:
    """Newton's method in rho within bounds, from penalties that were found.

    The eigenvalues of the Hessian are taken by their size, and no rho moves by more than LONGEST; a step is cut until
    the objective falls.

    Args:
        loss: the outer loss.
        found: the start.
        prior: of rho; its half quadratic form is added to the loss.
        tolerance: of the largest component of the projected gradient, in units of a log-likelihood.
        most: evaluations.
    """
    Q = prior.precision()
    rho, outer, evaluations = found.rho, found.outer, found.evaluations
    value = outer.value + 0.5 * float(rho @ Q @ rho)
    converged = False
    while evaluations < most:
        gradient = outer.gradient + Q @ rho
        free = ~((rho <= LOWEST) & (gradient > 0.0) | (rho >= HIGHEST) & (gradient < 0.0))
        converged = bool(np.max(np.abs(gradient[free]), initial=0.0) < tolerance)
        if converged:
            break
        step = np.zeros(len(rho))
        step[free] = _newton(gradient[free], (outer.hessian + Q)[np.ix_(free, free)])
        size = 1.0
        while True:
            new = np.clip(rho + size * step, LOWEST, HIGHEST)
            trial = loss(new, outer)
            evaluations += 1
            trial_value = trial.value + 0.5 * float(new @ Q @ new)
            if trial_value <= value + 1e-4 * float(gradient @ (new - rho)) or evaluations >= most:
                break
            size *= 0.3
        if trial_value > value:
            break
        rho, outer, value = new, trial, trial_value
    return Found(rho, outer, evaluations, converged)


def _newton(gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    e, U = np.linalg.eigh(0.5 * (hessian + hessian.T))
    size = np.abs(e)
    step = -U @ ((U.T @ gradient) / np.maximum(size, max(1e-3, 1e-6 * float(size.max()))))
    out: np.ndarray = step * min(1.0, LONGEST / max(float(np.max(np.abs(step))), 1e-300))
    return out
