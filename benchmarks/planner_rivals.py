"""What tuning by hand reaches: every setting is run, and the one with the least error, by the truth, is taken."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bilevax as bx
from benchmarks.cases import Case
from benchmarks.verdict_runs import largest_stable, rows_of_system
from bilevax.testing.problems import NamedProblem

SPLITS = (12, 12, 1), (4, 4, 3), (4, 8, 1)  # of the minibatches: t : k : J
STEPS = 0.03, 0.12, 0.5  # of the largest that is stable in mean square
GAMMAS = 0.3, 1.0, 4.0, 1e9  # times 2 / (1 - q^2), where steps fall as (1 + j / gamma)^-1; the last are constant
VAL_ROWS = 2, 8  # of a minibatch of val, of JointSID
TINY = 1e-15  # tolerance: all iterations are made

Scores = dict[str, dict[str, Any]]


class Seeds(NamedTuple):
    """Runs for each setting, for the best eight again, and for the winner."""

    screened: int = 8
    again: int = 32
    fresh: int = 64


def case_of(p: NamedProblem) -> Case:
    """A problem with its truth, and the step of the map in closed form; sources are its own."""
    truth, w0, lam = jax.tree.map(jnp.asarray, (p.solution().hypergradient, p.w0, p.lam))
    return Case(p.problem, None, w0, lam, *p.sources(), truth)


def settings(p: NamedProblem, case: Case, budget: float) -> list[tuple[str, Case]]:
    """36 settings of SID, and JointSID with minibatches of val, by name."""
    systems, train = rows_of_system(p), case.train
    stable, mean = largest_stable(systems, p.batch_size), systems.mean(axis=0)
    q = np.max(np.abs(np.linalg.eigvals(np.eye(len(mean)) - min(1.0, stable) * mean)))
    gamma = 2.0 / (1.0 - min(q, 1.0 - 1e-6) ** 2)
    batches, found = (budget - case.val.rows) / train.rows_per_batch, []
    for split, size, longer in itertools.product(SPLITS, STEPS, GAMMAS):
        t, k, J = (max(1, int(batches * share / sum(split))) for share in split)
        steps = bx.Harmonic(size * stable * gamma * longer, gamma * longer)
        sid = bx.SID(bx.FixedPoint(t, steps), bx.FixedPoint(k, steps), cross_batches=J)
        found.append((f"SID {split}, step x {size:g}, gamma x {longer:g}", case.by(sid)))
    for rows in VAL_ROWS:
        sampled = case.by(None, train.batch_size, rows)
        found.append((f"JointSID, {rows} rows of val", _filling(sampled, budget)))
    return found


def _filling(case: Case, budget: float) -> Case:
    """JointSID with as many steps as fit, by halving."""
    low, high = 1, int(budget / case.train.rows_per_batch)
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (middle, high) if case.by(bx.JointSID(middle)).errors(1)[1] <= budget else (low, middle)
    return case.by(bx.JointSID(low))


def rivals(p: NamedProblem, case: Case, budget: float, seeds: Seeds) -> Scores:
    """The best of SID and of JointSID, and the two deterministic methods, with their mean square errors."""
    found: Scores = {}
    every = settings(p, case, budget)
    for method in ("SID", "JointSID"):
        best = [s for s in every if s[0].split()[0].strip(",") == method]
        for stage, runs, kept in ((1, seeds.screened, 8), (2, seeds.again, 1)):
            scores = [case.errors(runs, stage)[0].mean() for _, case in best]
            best = [best[i] for i in np.argsort(scores)[:kept]]
        name, winner = best[0]
        errors, visits = winner.errors(seeds.fresh, 3)
        found[method] = {"mse": errors.mean(), "visits": visits, "setting": name}

    def plain(i: int) -> bx.SID:
        return bx.SID(bx.FixedPoint(i), bx.FixedPoint(i))

    def krylov(i: int) -> bx.SID:
        if p.unmeasured is p.problem:  # a map without a loss
            return bx.SID(bx.FixedPoint(i), bx.GMRES(TINY, i))
        return bx.SID(bx.LBFGS(TINY, i), bx.CG(TINY, i))

    for method, make in (("AID-FP", plain), ("AID-CG", krylov)):
        found[method] = _deterministic(case, budget, make)
    return found


def _deterministic(case: Case, budget: float, make: Callable[[int], Any]) -> dict[str, Any]:
    """As many iterations for w as for v, and as many as fit."""
    train, val = case.train, case.val
    most = max(1, int((budget - train.rows - val.rows) / (2 * train.rows)))
    for i in range(most, 0, -1):
        errors, visits = case.by(make(i), None, None).errors(1)
        if visits <= budget or i == 1:
            return {"mse": errors[0], "visits": visits, "setting": f"{i} iterations of each"}
    raise AssertionError
