"""Which of several additive models, in which proportion: convex stacking of their scores for rows they had not seen."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize

from bilevax.solvers.additive_families import Family
from bilevax.solvers.additive_marginal import dispersion
from bilevax.solvers.additive_models import ADDITIVE, PAIRS, TOLERANCE, AdditiveFit, Candidate, Rows, Start

Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]

ROUGH = 0.1
"""Of the outer loss of models that are only compared, in units of a log-likelihood.

A start that has seen the held-out rows says something of them where the outer loss is flat: in simulations of 300 rows
it favoured additive models by .2 to 1.3 nats over the simplest, of which DOUBT is several times as much.
"""

ROUNDS = 3
"""How often pairs of columns are screened for, at most."""

SMALLEST = 0.05
"""Weights below it are 0."""

DOUBT = 4.0
"""Nats by which the others together must be better before they are mixed in."""


def held_out(
    rows: Rows, candidates: Sequence[Candidate], held: np.ndarray, near: Sequence[AdditiveFit] = ()
) -> np.ndarray:
    """Scores of each candidate for some rows [n'], tuned and fitted without them, [candidates, n', S].

    Args:
        rows: all of them.
        candidates: which.
        held: numbers of those that are left out.
        near: as in :func:`fitted`.
    """
    train, codes = rows.take(np.setdiff1d(np.arange(len(rows.y)), held)), [c[held] for c in rows.codes]
    return np.array([fit.scores(codes) + rows.offset[held] for fit in fitted(train, candidates, near)])


def fitted(
    rows: Rows, candidates: Sequence[Candidate], near: Sequence[AdditiveFit] = (), additive: AdditiveFit | None = None
) -> list[AdditiveFit]:
    """The candidates, tuned and fitted; that with pairs begins where the one without ends.

    Args:
        rows: to fit to.
        candidates: which.
        near: their fits to more rows, from whose penalties and weights the searches start, and go on to ROUGH.
        additive: the additive model of these rows, where it is there already.
    """
    fits, tolerance = [], ROUGH if near else TOLERANCE
    starts: Sequence[AdditiveFit | None] = near or [None] * len(candidates)
    for candidate, start in zip(candidates, starts, strict=True):
        if candidate in (ADDITIVE, PAIRS):
            additive = additive or AdditiveFit(rows, ADDITIVE, near=start, tolerance=tolerance)
            fits.append(with_pairs(additive, start) if candidate is PAIRS else additive)
        else:
            fits.append(AdditiveFit(rows, candidate, near=start, tolerance=tolerance))
    return fits


def with_pairs(fit: AdditiveFit, near: AdditiveFit | None = None) -> AdditiveFit:
    """The additive model with the pairs of columns that it lacks; itself, where it lacks none.

    Pairs that neighbours of others imitate, and those that the noise hid, show when the others are there.

    Args:
        fit: without pairs.
        near: the model with pairs of other rows, from whose penalties the search starts.
    """
    start = near.start() if near else fit.start()
    for _ in range(ROUNDS):
        new = fit.screened(frozenset(pair.columns for pair in fit.pairs))
        if not new:
            break
        fit = AdditiveFit(fit.rows, PAIRS, (*fit.pairs, *new), fit, start, fit.tolerance)
        start = Start({**start.rho, **fit.start().rho}, fit.found.outer.phi)
    return fit


def stacked(family: Family, scores: np.ndarray, y: np.ndarray, weight: np.ndarray, doubt: float = DOUBT) -> np.ndarray:
    """a >= 0 of sum 1 that minimises sum_i w_i d(y_i, sum_c a_c s_ci) / R + DOUBT sum_(c > 0) phi_c a_c, [candidates].

    A mixture of additive models on the scale of the scores is additive. phi_c is 1, or the dispersion: that of the best
    of them, or that of the rows on which c differs from the first, if it is larger (see :func:`_units`).

    Args:
        family: of the losses.
        scores: of R repeats, [R, candidates, n, S], the simplest candidate first.
        y: [n].
        weight: [n].
        doubt: nats.
    """
    R, K = scores.shape[:2]
    phi = _units(family, scores, y, weight)
    # the least phi makes nats of it
    unit, doubts = R * phi.min(), doubt * phi / phi.min()
    doubts[0] = 0.0

    def objective(a: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = float(doubts @ a), doubts.copy()
        for s in scores:
            # the mixture's scores sum_c a_c s_c, and the slope of its loss in a
            losses = family.losses(np.tensordot(a, s, 1), y)
            value += float(weight @ losses.value) / unit
            slope += np.einsum("i,is,cis->c", weight, losses.slope, s) / unit
        return value, slope

    kept = np.ones(K, bool)
    a = np.full(K, 1.0 / K)
    while True:
        a = _on_simplex(objective, np.where(kept, a, 0.0), kept)
        # weights too small to matter leave, and those that stay are fitted anew
        small = kept & (a < SMALLEST)
        if not small.any():
            return a
        kept &= ~small


def _units(family: Family, scores: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """phi_c, what a nat is in the loss of candidate c, [candidates].

    The variance of the slope of the loss along delta = s_c - s_0 over its curvature, at the first candidate:
    sum_i w_i (r_i delta_i)^2 / sum_i w_i W_i delta_i^2, r and W the first derivatives and the second.
    """
    K = scores.shape[1]
    if not family.dispersed:
        return np.ones(K)
    least = min(float(weight @ sum(family.losses(s, y).value for s in of_one)) for of_one in scores.swapaxes(0, 1))
    best = float(np.exp(dispersion(family, least / len(scores), weight, 0)[0]))
    variance, curvature = np.zeros(K), np.zeros(K)
    for s in scores[..., 0]:
        at, squares = family.losses(s[0][:, None], y), (s - s[0]) ** 2
        # of s_c - s_0: sum w (slope (s_c - s_0))^2 over sum w W (s_c - s_0)^2, in units of phi
        variance += squares @ (weight * at.slope[:, 0] ** 2)
        curvature += squares @ (weight * at.curvature[:, 0, 0])
    out: np.ndarray = np.maximum(best, np.divide(variance, curvature, out=np.zeros(K), where=curvature > 0.0))
    return out


def _on_simplex(objective: Objective, start: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """A minimum over a >= 0 of sum 1 that is 0 but where it is kept."""
    a = start / start.sum()
    if kept.sum() > 1:
        bounds = [(0.0, 1.0 if k else 0.0) for k in kept]
        total = {"type": "eq", "fun": lambda a: a.sum() - 1.0, "jac": np.ones_like}
        a = np.clip(minimize(objective, a, jac=True, method="SLSQP", bounds=bounds, constraints=[total]).x, 0.0, 1.0)
    out: np.ndarray = a / a.sum()
    return out
