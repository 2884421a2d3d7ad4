"""What tuning by hand reaches: every setting is run, and the one with the least error, by the truth, is taken."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from verdict_runs import largest_stable, rows_of_system

import bilevax as bx
from bilevax.core.config import canonicalize, replace_unchecked
from bilevax.core.trees import norm, sub
from bilevax.testing.problems import NamedProblem, problem

SPLITS = (12, 12, 1), (4, 4, 3), (4, 8, 1)  # of the minibatches: t : k : J
STEPS = 0.03, 0.12, 0.5  # of the largest that is stable in mean square
GAMMAS = 0.3, 1.0, 4.0, 1e9  # times 2 / (1 - q^2), where steps fall as (1 + j / gamma)^-1; the last are constant
VAL_ROWS = 2, 8  # of a minibatch of val, of JointSID
TINY = 1e-15  # tolerance: all iterations are made

Scores = dict[str, dict[str, Any]]


LANES = 8  # runs of one call of a compiled program


class Seeds(NamedTuple):
    """Runs for each setting, for the best eight again, and for the winner."""

    screened: int = 8
    again: int = 32
    fresh: int = 64


class Case:
    """A problem with its truth and its sources; users hand in ``unmeasured``, rivals know the step of the map."""

    def __init__(self, p: NamedProblem) -> None:
        self.drawn, self.problem, self.unmeasured = p, canonicalize(p.problem), p.unmeasured
        self.truth, w0, lam = jax.tree.map(jnp.asarray, (p.solution().hypergradient, p.w0, p.lam))
        self.points, self.sampled, self.is_full_batch = (w0, lam), p.sources(), p.sources(None)

    def errors(self, estimator: Any, sources: Any, seed: int, runs: int) -> tuple[np.ndarray, float]:
        """Relative square errors, [runs], and sample visits of one."""
        out = []
        for part in range(-(-runs // LANES)):
            key = jax.random.fold_in(jax.random.key(seed), part)
            errors, visits = _errors(self.problem, canonicalize(estimator), *self.points, sources, self.truth, key)
            out.append(np.asarray(errors, np.float64))
        return np.nan_to_num(np.concatenate(out)[:runs], nan=np.inf), float(np.max(visits))

    def relative(self, value: Any) -> float:
        """Square error of a value over the square of the truth."""
        return float(norm(sub(value, self.truth)) / norm(self.truth)) ** 2


def case(name: str, draw: int) -> Case:
    return Case(problem(name, draw))


@jax.jit
def _errors(problem: Any, estimator: Any, w0: Any, lam: Any, sources: Any, truth: Any, key: Any) -> Any:
    def one(key: Any) -> Any:
        est = estimator.estimate(bx.Instance(problem, lam, *sources), w0, key=key)
        return (norm(sub(est.value, truth)) / norm(truth)) ** 2, jnp.asarray(est.cost.samples, float)

    return jax.vmap(one)(jax.random.split(key, LANES))


def settings(case: Case, budget: float) -> list[tuple[str, Any, Any]]:
    """(name, estimator, sources) of 36 settings of SID, and of JointSID with minibatches of val."""
    train, val = case.sampled
    systems = rows_of_system(case.drawn)
    stable, mean = largest_stable(systems, case.drawn.batch_size), systems.mean(axis=0)
    q = np.max(np.abs(np.linalg.eigvals(np.eye(len(mean)) - min(1.0, stable) * mean)))
    gamma = 2.0 / (1.0 - min(q, 1.0 - 1e-6) ** 2)
    batches, found = (budget - val.rows) / train.rows_per_batch, []
    for split, size, longer in itertools.product(SPLITS, STEPS, GAMMAS):
        t, k, J = (max(1, int(batches * share / sum(split))) for share in split)
        steps = bx.Harmonic(size * stable * gamma * longer, gamma * longer)
        sid = bx.SID(bx.FixedPoint(t, steps), bx.FixedPoint(k, steps), cross_batches=J)
        found.append((f"SID {split}, step x {size:g}, gamma x {longer:g}", sid, case.sampled))
    for rows in VAL_ROWS:
        sources = train, replace_unchecked(val, batch_size=rows)
        joint = _filling(lambda i: bx.JointSID(i), case, sources, budget)
        found.append((f"JointSID, {rows} rows of val", joint, sources))
    return found


def _filling(make: Callable[[int], Any], case: Case, sources: Any, budget: float) -> Any:
    """With as many steps as fit, by halving."""
    low, high = 1, int(budget / sources[0].rows_per_batch)
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (middle, high) if case.errors(make(middle), sources, 0, 1)[1] <= budget else (low, middle)
    return make(low)


def rivals(case: Case, budget: float, seeds: Seeds) -> Scores:
    """The best of SID and of JointSID, and the two deterministic methods, with their mean square errors."""
    found: Scores = {}
    every = settings(case, budget)
    for method in ("SID", "JointSID"):
        best = [s for s in every if s[0].split()[0].strip(",") == method]
        for stage, runs, kept in ((1, seeds.screened, 8), (2, seeds.again, 1)):
            scores = [case.errors(estimator, sources, stage, runs)[0].mean() for _, estimator, sources in best]
            best = [best[i] for i in np.argsort(scores)[:kept]]
        name, estimator, sources = best[0]
        errors, visits = case.errors(estimator, sources, 3, seeds.fresh)
        found[method] = {"mse": errors.mean(), "visits": visits, "setting": name}
    if case.drawn.unmeasured is case.drawn.problem:  # a map without a loss
        krylov: Any = lambda i: bx.SID(bx.FixedPoint(i), bx.GMRES(TINY, i))  # noqa: E731
    else:
        krylov = lambda i: bx.SID(bx.LBFGS(TINY, i), bx.CG(TINY, i))  # noqa: E731
    plain: Any = lambda i: bx.SID(bx.FixedPoint(i), bx.FixedPoint(i))  # noqa: E731
    for method, make in (("AID-FP", plain), ("AID-CG", krylov)):
        found[method] = _deterministic(case, budget, make)
    return found


def _deterministic(case: Case, budget: float, make: Callable[[int], Any]) -> dict[str, Any]:
    """As many iterations for w as for v, and as many as fit."""
    train, val = case.is_full_batch
    most = max(1, int((budget - train.rows - val.rows) / (2 * train.rows)))
    for i in range(most, 0, -1):
        errors, visits = case.errors(make(i), case.is_full_batch, 0, 1)
        if visits <= budget or i == 1:
            return {"mse": errors[0], "visits": visits, "setting": f"{i} iterations of each"}
    raise AssertionError
