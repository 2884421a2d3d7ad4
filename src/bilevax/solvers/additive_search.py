"""Penalties that minimise an outer loss of an additive model and a prior, by Newton's method in their logarithms."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from bilevax.solvers.additive_fit import Fit

LOWEST, HIGHEST = -8.0, 18.0
"""Bounds of rho: at the upper one a part is gone."""

LONGEST = 4.0
"""What a step changes a rho by, at most."""


SPREAD = 2.0
"""Standard deviation of log penalties of a kind around their common value."""

LEVEL = 3.0
"""Standard deviation of log penalties below CENTRE."""

CENTRE = 2.0
"""Below it the prior holds log penalties; the start of the one that all parts share."""


class Outer(NamedTuple):
    """An outer loss at rho.

    Attributes:
        value: in units of a log-likelihood.
        gradient: in rho, [m], exact.
        hessian: in rho, [m, m], approximate: as if the curvature did not depend on b.
        fits: the minima of F at rho that it was made of.
        phi: dispersion.
        prior: the prior's part of the value.
    """

    value: float
    gradient: np.ndarray
    hessian: np.ndarray
    fits: tuple[Fit, ...]
    phi: float
    prior: float = 0.0


OuterLoss = Callable[[np.ndarray, Outer | None], Outer]
"""Of rho, and of the loss at another one, from whose fits those at rho start."""


class Found(NamedTuple):
    """Penalties and what led to them.

    Attributes:
        rho: [m].
        outer: the loss there, the prior included.
        evaluations: of the outer loss.
        converged: whether a step promised no more than the tolerance.
    """

    rho: np.ndarray
    outer: Outer
    evaluations: int
    converged: bool


def tied(loss: OuterLoss, group: np.ndarray) -> OuterLoss:
    """The loss of penalties that parts share: part j has theta[group_j]; group [m]."""
    T = (np.arange(int(group.max(initial=-1)) + 1)[:, None] == group).astype(float)

    def shared(theta: np.ndarray, near: Outer | None) -> Outer:
        out = loss(theta[group], near)
        # rho = T' theta, so that slopes add up over the parts of a group
        return out._replace(gradient=T @ out.gradient, hessian=T @ out.hessian @ T.T)

    return shared


def with_prior(loss: OuterLoss, kind: np.ndarray, *, spread: float = SPREAD, level: float = LEVEL) -> OuterLoss:
    """The loss and 1/2 sum_j (rho_j - mean of its kind)^2 / spread^2 + 1/2 sum_j min(0, rho_j - CENTRE)^2 / level^2.

    The first term ties many penalties on few rows. The second holds them where the likelihood does not: of rows that a
    plane separates, Laplace's approximation may grow without end as penalties fall.

    Args:
        loss: of rho.
        kind: number of each part's kind, [m].
        spread: of log penalties within a kind.
        level: of log penalties below CENTRE.
    """
    same = kind[:, None] == kind
    # rho' Q rho = sum_j (rho_j - mean of its kind)^2 / spread^2
    Q = (np.eye(len(kind)) - same / same.sum(axis=1, keepdims=True)) / spread**2

    def both(rho: np.ndarray, near: Outer | None) -> Outer:
        out, below = loss(rho, near), np.minimum(rho - CENTRE, 0.0)
        # rho' Q rho / 2 + |min(0, rho - CENTRE)|^2 / (2 level^2), and its derivatives
        value = 0.5 * float(rho @ Q @ rho) + 0.5 * float(below @ below) / level**2
        gradient, hessian = Q @ rho + below / level**2, Q + np.diag((below < 0.0) / level**2)
        return Outer(out.value + value, out.gradient + gradient, out.hessian + hessian, out.fits, out.phi, value)

    return both


class Search(Protocol):
    """What finds penalties that minimise a loss, as :func:`minimise` does."""

    def __call__(
        self, loss: OuterLoss, rho: np.ndarray, *, near: Outer | None = None, tolerance: float = 1e-2
    ) -> Found:
        """From rho, [m]."""


def tune(
    loss: OuterLoss,
    kind: np.ndarray,
    *,
    spread: float = SPREAD,
    level: float = LEVEL,
    tolerance: float = 1e-2,
    search: Search | None = None,
) -> Found:
    """A penalty for every part, from the best that all share.

    Args:
        loss: the outer loss.
        kind: number of each part's kind, within which the prior ties penalties, [m].
        spread: of the prior.
        level: of the prior.
        tolerance: of the search.
        search: :func:`minimise` if None.
    """
    m, objective, search = len(kind), with_prior(loss, kind, spread=spread, level=level), search or minimise
    one = search(tied(objective, np.zeros(m, int)), np.array([CENTRE]), tolerance=0.1)
    found = search(objective, np.full(m, one.rho[0]), near=one.outer, tolerance=tolerance)
    return found._replace(evaluations=found.evaluations + one.evaluations)


def minimise(
    loss: OuterLoss,
    rho: np.ndarray,
    *,
    near: Outer | None = None,
    at: Outer | None = None,
    tolerance: float = 1e-2,
    most: int = 60,
) -> Found:
    """Newton's method in rho within bounds.

    What the Hessian leaves out is learnt from the gradients along the way, by symmetric rank-one updates. Its
    eigenvalues are taken by their size, and no rho moves by more than LONGEST; a step is cut until the objective falls.

    Args:
        loss: the outer loss.
        rho: start, [m].
        near: the loss at other penalties, from whose fits the first ones start.
        at: the loss at rho, where it is there already.
        tolerance: of the decrease that a step promises, in units of a log-likelihood.
        most: evaluations.
    """
    outer, evaluations = (loss(rho, near), 1) if at is None else (at, 0)
    learnt = np.zeros_like(outer.hessian)
    while True:
        gradient = outer.gradient
        # a penalty at its limit that would go further stays there, out of the Newton system
        free = ~((rho <= LOWEST) & (gradient > 0.0) | (rho >= HIGHEST) & (gradient < 0.0))
        step = np.zeros(len(rho))
        step[free] = _newton(gradient[free], (outer.hessian + learnt)[np.ix_(free, free)])
        # - g' step = 2 (what the quadratic model promises)
        converged = -float(gradient @ step) <= 2.0 * tolerance
        fell = False
        while not fell and not converged and evaluations < most and np.max(np.abs(step)) > 1e-6:
            new = np.clip(rho + step, LOWEST, HIGHEST)
            trial = loss(new, outer)
            evaluations += 1
            # Armijo: value(new) <= value + 1e-4 g' (new - rho)
            fell = trial.value <= outer.value + 1e-4 * float(gradient @ (new - rho))
            learnt = learnt + _secant(trial.gradient - gradient, trial.hessian + learnt, new - rho)
            step *= 0.3
        if not fell:
            return Found(rho, outer, evaluations, converged)
        rho, outer = new, trial


def _secant(change: np.ndarray, hessian: np.ndarray, step: np.ndarray) -> np.ndarray:
    """The matrix of rank one by which a Hessian turns a step into the change of the gradient."""
    r = change - hessian @ step
    size = float(r @ step)
    if abs(size) <= 1e-6 * float(np.linalg.norm(r) * np.linalg.norm(step)):
        return np.zeros_like(hessian)
    # symmetric rank one: B + r r' / (r' s), r = change of the gradient - B s, takes s to that change
    return np.outer(r, r) / size


def _newton(gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """The step against the gradient, no component longer than LONGEST."""
    e, U = np.linalg.eigh(0.5 * (hessian + hessian.T))
    size = np.abs(e)
    # - |H|^-1 g, of the absolute eigenvalues: downhill where the approximate H is not positive
    step = -U @ ((U.T @ gradient) / np.maximum(size, max(1e-3, 1e-6 * float(np.max(size, initial=0.0)))))
    out: np.ndarray = step * min(1.0, LONGEST / max(float(np.max(np.abs(step), initial=0.0)), 1e-300))
    return out
