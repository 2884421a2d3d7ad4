"""The planner against a hand-tuned SID, AID-FP and AID-CG, at the same number of sample visits, on the twenty problems.

    python benchmarks/planner.py [--only NAME ...] [--draws 0] [--passes 5 20 80] [--quick] [--plans]

Budgets: 5, 20 and 80 passes over train. SID: 200 settings (5 splits t : k : J, 4 betas and 5 gammas around the
published 2 / (1 - q^2), steps that decrease and steps that stay), each screened with a few seeds, the best ten again
with more, and the winner measured with fresh ones. AID-FP and AID-CG (with L-BFGS; where there is no loss, fixed-point
steps and GMRES): as many iterations of both solvers, equally many, as fit. The planner: its pilot is counted; other
seeds for every plan. Mean square errors are relative to the squared norm of the exact hypergradient, in float64.

Prints a markdown table, and keeps it in benchmarks/results/planner.json, where what is not run again stays as it was.
``--draws``: 0 are the problems of the list, by which the constants of the forecasts were chosen; the others are further
problems of the same recipes, which had no part in that. ``--quick``: three problems, or those named, with few seeds.
``--plans``: only plans are measured; their rivals are those of the file.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bilevax as bx
from bilevax.core.config import strong
from bilevax.core.trees import norm, sub
from bilevax.testing.problems import NamedProblem, problem, problems
from bilevax.theory import published_steps

PASSES = (5, 20, 80)
SPLITS = ((1, 1, 1), (5, 4, 1), (4, 5, 1), (12, 12, 1), (3, 6, 1))
BETAS = (0.25, 0.5, 1.0, 2.0)
GAMMAS = (1.0, 3.0, 10.0, 30.0, 100.0)
FLOOR = 1e-20  # relative mean square errors below count as equal
LARGE = 2e8  # visits times inner entries beyond which settings are screened with fewer seeds
QUICK = ("quadratic-10-b1", "logistic-500x20-0.1", "ridge")


class Seeds(NamedTuple):
    """Runs for each of the 200 settings, for the best ten, for the winner, and plans."""

    screened: int
    again: int
    fresh: int
    plans: int


class Case:
    """A problem with its truth and its sources."""

    def __init__(self, p: NamedProblem, draw: int = 0) -> None:
        self.name, self.draw, self.q = p.name, draw, p.curvature.q
        self.truth, w0, lam = jax.tree.map(jnp.asarray, (p.solution().hypergradient, p.w0, p.lam))
        self.problem, self.points = strong(p.problem), (w0, lam)
        self.sampled, self.whole = p.sources(), p.sources(None)
        self.size = sum(x.size for x in jax.tree.leaves(w0))

    def errors(self, estimator: Any, sources: Any, seed: int, runs: int) -> tuple[np.ndarray, float]:
        """Relative square errors, [runs], and sample visits."""
        out, visits = _errors(self.problem, strong(estimator), *self.points, sources, self.truth, seed, runs=runs)
        return np.nan_to_num(np.asarray(out), nan=np.inf), float(visits[0])

    def relative(self, value: Any) -> float:
        """Square error of a value over the square of the truth."""
        return float(norm(sub(value, self.truth)) / norm(self.truth)) ** 2


@partial(jax.jit, static_argnames="runs")
def _errors(problem: Any, estimator: Any, w0: Any, lam: Any, sources: Any, truth: Any, seed: Any, *, runs: int) -> Any:
    def one(key: Any) -> Any:
        est = estimator.estimate(problem, w0, lam, sources, key=key)
        return (norm(sub(est.value, truth)) / norm(truth)) ** 2, jnp.asarray(est.cost.visits, float)

    return jax.vmap(one)(jax.random.split(jax.random.key(seed), runs))


def settings(case: Case, budget: float) -> Iterator[tuple[str, bx.SID]]:
    """The 200 settings; constant steps are decreasing ones of a gamma without end, so that one program serves all."""
    train, val = case.sampled
    batches = (budget - val.rows) / train.rows_per_batch
    best = published_steps(case.q)
    for split, beta, gamma, constant in itertools.product(SPLITS, BETAS, GAMMAS, (False, True)):
        t, k, J = (max(1, int(batches * share / sum(split))) for share in split)
        beta_, gamma_ = best.beta * beta, best.gamma * gamma
        steps = bx.Harmonic(beta_ / gamma_ * 1e9, 1e9) if constant else bx.Harmonic(beta_, gamma_)
        name = f"{split} beta x {beta:g} gamma x {gamma:g}{' constant' * constant}"
        yield name, bx.SID(bx.FixedPoint(t, steps), bx.FixedPoint(k, steps), cross_batches=J)


def tuned(case: Case, budget: float, seeds: Seeds) -> dict[str, Any]:
    """The best setting, measured with fresh seeds."""
    every = list(settings(case, budget))
    for stage, runs, kept in ((1, seeds.screened, 10), (2, seeds.again, 1)):
        scores = [case.errors(sid, case.sampled, stage, runs)[0].mean() for _, sid in every]
        every = [every[i] for i in np.argsort(scores)[:kept]]
    name, sid = every[0]
    errors, visits = case.errors(sid, case.sampled, 3, seeds.fresh)
    return {"mse": errors.mean(), "visits": visits, "setting": name}


def deterministic(case: Case, budget: float, inner: Any, linear: Any) -> dict[str, Any]:
    """As many iterations as fit."""
    train, val = case.whole
    most = max(1, int((budget - train.rows - val.rows) / (2 * train.rows)))
    for i in range(most, 0, -1):
        errors, visits = case.errors(bx.SID(inner(i), linear(i)), case.whole, 0, 1)
        if visits <= budget or i == 1:
            break
    return {"mse": errors[0], "visits": visits, "iterations": i}


def rivals(case: Case, budget: float, seeds: Seeds) -> dict[str, dict[str, Any]]:
    """The hand-tuned SID and the two deterministic methods."""
    found = {"SID": tuned(case, budget, seeds)}
    found["AID-FP"] = deterministic(case, budget, bx.FixedPoint, bx.FixedPoint)
    tiny = 1e-15
    if case.problem.has_loss:
        solvers = (lambda i: bx.LBFGS(tiny, i)), (lambda i: bx.CG(tiny, i))
    else:
        solvers = bx.FixedPoint, (lambda i: bx.GMRES(tiny, i))
    found["AID-CG"] = deterministic(case, budget, *solvers)
    return found


def planned(case: Case, budget: float, plans: int) -> dict[str, Any]:
    """Plans and their runs, each from keys of its own."""
    errors, visits, predicted, methods = [], [], [], []
    for seed in range(plans):
        plan_key, run_key = jax.random.split(jax.random.key(1000 + seed))
        plan = bx.plan(case.problem, *case.points, *case.sampled, key=plan_key, budget=budget)
        est = plan.run(key=run_key)
        errors.append(case.relative(est.value))
        visits.append((plan.spent + est.cost.visits) / budget)
        predicted.append(plan.predicted)
        methods.append(plan.method)
    return {
        "mse": np.mean(errors), "visits": max(visits) * budget, "predicted": float(np.median(predicted)),
        "methods": {m: methods.count(m) for m in sorted(set(methods))},
    }  # fmt: skip


def compare(case: Case, passes: int, quick: bool, found: dict[str, Any] | None = None) -> dict[str, Any]:
    """One problem at one budget; ``found`` are the rivals, where they are known."""
    budget = float(passes * case.sampled[0].rows)
    work = budget * case.size
    seeds = Seeds(1, 4, 10, 2) if quick else Seeds(1, 4, 100, 30) if work > LARGE else Seeds(4, 16, 100, 30)
    clock = time.perf_counter()
    found = found or rivals(case, budget, seeds)
    plan = planned(case, budget, seeds.plans)
    best = min(found, key=lambda name: found[name]["mse"])
    measured = plan["mse"] ** 0.5
    return {
        "problem": case.name, "draw": case.draw, "passes": passes, "seeds": seeds._asdict(),
        "rivals": found, "best": best, "plan": plan,
        "factor": max(plan["mse"], FLOOR) / max(found[best]["mse"], FLOOR),
        "forecast": max(plan["predicted"], FLOOR**0.5) / max(measured, FLOOR**0.5),
        "seconds": time.perf_counter() - clock,
    }  # fmt: skip


def row(r: dict[str, Any]) -> str:
    mse = [f"{x['mse'] ** 0.5:.1e}" for x in r["rivals"].values()]
    plan, methods = r["plan"], " ".join(r["plan"]["methods"])
    errors = f"{plan['mse'] ** 0.5:.1e}", f"{plan['predicted']:.1e}"
    cells = [r["problem"], r["draw"], r["passes"], *mse, methods, *errors]
    return "| " + " | ".join(map(str, [*cells, f"{r['factor']:.2g}", f"{r['forecast']:.2g}"])) + " |"


def verdict(rows: list[dict[str, Any]]) -> str:
    factors = np.array([r["factor"] for r in rows])
    forecasts = np.array([r["forecast"] for r in rows])
    within = int(np.sum((forecasts <= 3) & (forecasts >= 1 / 3)))
    return (
        f"{int(np.sum(factors <= 2))} of {len(rows)} within a factor of 2 of the best, worst {factors.max():.3g};"
        f" {within} of {len(rows)} predicted within a factor of 3"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=problems(), metavar="NAME")
    parser.add_argument("--draws", nargs="+", type=int, default=[0], help="of each problem; 0: that of the list")
    parser.add_argument("--passes", nargs="+", type=int, choices=PASSES, default=PASSES, help="over train: budgets")
    parser.add_argument("--quick", action="store_true", help="three problems, few seeds")
    parser.add_argument("--plans", action="store_true", help="the rivals are those of the file")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    file = Path(__file__).parent / "results" / "planner.json"
    heads = "problem", "draw", "passes", "SID tuned", "AID-FP", "AID-CG", "plan", "its error", "predicted", "MSE / best"
    print("| " + " | ".join([*heads, "predicted / measured"]) + " |\n" + "|---" * 11 + "|")
    kept = json.loads(file.read_text())["rows"] if file.exists() else []
    rows = {(r["problem"], r["draw"], r["passes"]): r for r in kept}
    names = options.only or (QUICK if options.quick else problems())
    for name, draw in itertools.product(names, options.draws):  # draws of one shape share their programs
        case = Case(problem(name, draw), draw)
        for passes in options.passes:
            known = rows.get((name, draw, passes), {}).get("rivals") if options.plans else None
            rows[name, draw, passes] = compare(case, passes, options.quick, known)
            print(row(rows[name, draw, passes]), flush=True)
        versions = {"bilevax": bx.__version__, "jax": jax.__version__}
        every = sorted(rows.values(), key=lambda r: r["draw"])
        verdicts = {d: verdict(list(of)) for d, of in itertools.groupby(every, key=lambda r: r["draw"])}
        out = {"versions": versions, "verdicts": verdicts, "rows": every}
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(out, indent=1, default=float) + "\n")
    for draw, said in verdicts.items():
        print(f"\ndraw {draw}: {said}")


if __name__ == "__main__":
    main()
