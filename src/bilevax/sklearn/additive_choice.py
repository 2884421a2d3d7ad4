"""The choice among additive models: each is tuned inside outer folds, and what it says of held-out rows is stacked."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.utils.parallel import Parallel, delayed

from bilevax.core.events import Callback
from bilevax.sklearn.row_splits import deal_folds
from bilevax.sklearn.threads import one_thread
from bilevax.solvers.additive_families import Family
from bilevax.solvers.additive_models import AdditiveFit, Candidate, Rows
from bilevax.solvers.additive_stack import held_out, stacked
from bilevax.tables.effects import BUDGET

FOLDS, FEW, REPEATS = 5, 2000, 4
"""Outer folds, dealt out anew REPEATS times below FEW rows, and up to BUDGET weights of all scores."""

ROWS = 50_000
"""Rows that the choice is made on, at most; where penalties are tuned by folds, it is those that they are tuned on."""


class Compared(NamedTuple):
    """A candidate on rows that it had not seen.

    Attributes:
        candidate: its name.
        loss: mean over the held-out rows: log-loss, or half the deviance.
        difference: of its loss from that of the first candidate.
        standard_error: of the difference (Nadeau, Bengio 2003).
        weight: of the candidate in the mixture that is kept; the last entry, ``"mixture"``, has 1.
    """

    candidate: str
    loss: float
    difference: float
    standard_error: float
    weight: float


class Choice(NamedTuple):
    """What is kept.

    Attributes:
        kept: the candidates that are kept, the richest last, with their weights.
        compared: of the candidates, and of their mixture.
        rows: number of rows that the choice was made on.
        ended: True if the callback ended it: it was made on the folds that were done by then, if any was.
    """

    kept: tuple[tuple[Candidate, float], ...]
    compared: tuple[Compared, ...]
    rows: int
    ended: bool


def choose(
    rows: Rows,
    candidates: Sequence[Candidate],
    fits: Sequence[AdditiveFit],
    strata: np.ndarray,
    groups: np.ndarray | None,
    random: np.random.RandomState,
    callback: Callback | None = None,
    n_jobs: int | None = None,
) -> Choice:
    """Weights of the candidates, the simplest of which is first.

    Args:
        rows: to choose on; ROWS of them, drawn at random, where there are more.
        candidates: what is compared.
        fits: of the candidates to all rows: where those to the rows outside of a fold start.
        strata: classes that folds have in equal shares, [n].
        groups: a group per row, which no two folds share, [n].
        random: of the draw and the folds.
        callback: may end the comparison; the richest candidate is kept where no fold was done.
        n_jobs: folds that are fitted at the same time, as scikit-learn has it.
    """
    drawn = some_rows(len(rows.y), ROWS, groups, random) if rows.fold is None else np.flatnonzero(rows.fold >= 0)
    rows, strata = rows.take(drawn), strata[drawn]
    of_rows = None if groups is None else groups[drawn]
    weights = rows.family.scores * sum(effect.basis.shape[1] for effect in rows.effects)
    repeats = REPEATS if len(drawn) < FEW and weights <= BUDGET else 1
    folds = np.array([deal_folds(strata, of_rows, FOLDS, random) for _ in range(repeats)])
    scores = np.full((repeats, len(candidates), len(rows.y), rows.family.scores), np.nan)
    turns = [(r, np.flatnonzero(fold == k)) for r, fold in enumerate(folds) for k in range(int(fold.max()) + 1)]
    start, ended = time.perf_counter(), False
    tasks = (delayed(_held_out)(rows, candidates, held, fits) for _, held in turns if not ended)
    found = Parallel(n_jobs=n_jobs, return_as="generator", pre_dispatch="n_jobs")(tasks)
    for done, (r, held) in enumerate(turns):
        seconds = time.perf_counter() - start
        ended = callback is not None and bool(callback({"fold": done, "of": len(turns), "seconds": seconds}))
        if ended:
            break
        scores[r][:, held] = next(found)
    for _ in found:
        pass  # begun in vain
    # whole repeats; or the rows of the folds that were done of the first
    known = ~np.isnan(scores[:, 0, :, 0])
    whole, there = known.all(axis=1), known[0]
    if not there.any():
        return Choice(((candidates[-1], 1.0),), (), 0, ended)
    scores, folds = (scores[whole], folds[whole]) if whole.any() else (scores[:1, :, there], folds[:1, there])
    rows = rows if whole.any() else rows.take(np.flatnonzero(there))
    return _made(rows, candidates, scores, folds)._replace(ended=ended)


def _held_out(rows: Rows, candidates: Sequence[Candidate], held: np.ndarray, fits: Sequence[AdditiveFit]) -> np.ndarray:
    """Of one fold, with as many threads wherever it is: the bits are the same."""
    with one_thread():
        return held_out(rows, candidates, held, fits)


def _made(rows: Rows, candidates: Sequence[Candidate], scores: np.ndarray, folds: np.ndarray) -> Choice:
    """The choice by scores of R repeats for rows that no fit of theirs had seen, [R, candidates, n, S]."""
    weight = stacked(rows.family, scores, rows.y, rows.weight)
    # sum_c a_c s_c, [R, n, S]
    mixed = np.einsum("c,rcis->ris", weight, scores)[:, None]
    losses = _fold_losses(rows.family, np.concatenate([scores, mixed], axis=1), rows.y, rows.weight, folds)
    names = [*(candidate.name for candidate in candidates), "mixture"]
    weights = [*weight.tolist(), 1.0]
    compared = (_compared(*entry, losses) for entry in zip(names, weights, range(len(names)), strict=True))
    kept = tuple((candidate, a) for candidate, a in zip(candidates, weights, strict=False) if a > 0.0)
    return Choice(kept, tuple(compared), len(rows.y), False)


def some_rows(n: int, most: int, groups: np.ndarray | None, random: np.random.RandomState) -> np.ndarray:
    """At most so many rows, in their order: whole groups, as many as fit, but FOLDS of them."""
    if n <= most:
        return np.arange(n)
    if groups is None:
        return np.sort(random.choice(n, most, replace=False))
    _, code, count = np.unique(groups, return_inverse=True, return_counts=True)
    order = random.permutation(len(count))
    fits = order[(np.cumsum(count[order]) <= most) | (np.arange(len(order)) < FOLDS)]
    return np.flatnonzero(np.isin(code, fits))


def _fold_losses(
    family: Family, scores: np.ndarray, y: np.ndarray, weight: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    """Mean loss of each candidate in each fold of each repeat, and the fold's weight, [folds, candidates + 1]."""
    out = []
    for of_candidates, fold in zip(scores, folds, strict=True):
        losses = np.array([family.losses(s, y).value for s in of_candidates])
        for k in range(int(fold.max()) + 1):
            # sum_i w_i l_ic / sum_i w_i over the rows i of the fold
            w = weight * (fold == k)
            if w.sum() > 0.0:
                out.append([*(losses @ w / w.sum()), w.sum()])
    return np.array(out)


def _compared(name: str, weight: float, c: int, losses: np.ndarray) -> Compared:
    share = losses[:, -1] / losses[:, -1].sum()
    difference = losses[:, c] - losses[:, 0]
    J = len(losses)
    # (1/J + n_test / n_train) s^2
    variance = (1.0 / J + 1.0 / (FOLDS - 1)) * float(np.var(difference, ddof=1)) if J > 1 else 0.0
    # means over the folds by their weights
    return Compared(name, float(share @ losses[:, c]), float(share @ difference), float(np.sqrt(variance)), weight)
