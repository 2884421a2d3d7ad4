"""Is a target met? Root mean square errors of 100 runs that were asked for a relative error, on the twenty problems.

    python benchmarks/targets.py [--only NAME ...] [--doors plan JointSID] [--seeds 100]

Two doors: ``bx.plan(target=)`` and its run; and ``bx.hypergradient(target=, budget=)`` with JointSID, which goes on
from 100 steps until its error report is below the target, or 100 passes over train are spent. A run that says
TOLERANCE_NOT_MET, or worse, is flagged, and apart. Targets are relative to the norm of the exact hypergradient, in
float64.

Prints a markdown table, and keeps it in benchmarks/results/targets.json, where what is not run again stays as it was.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from planner_rivals import Case

import bilevax as bx
from bilevax.core.records import Estimate
from bilevax.planning.pilot import in_minibatches
from bilevax.testing.problems import problem, problems

TARGETS = 0.1, 0.01
PASSES = 100


def planned(case: Case, target: float) -> Callable[[int], tuple[Estimate, float]]:
    """A plan for the target and its run."""

    def run(seed: int) -> tuple[Estimate, float]:
        plan_key, run_key = jax.random.split(jax.random.key(seed))
        plan = bx.plan(case.problem, *case.points, *case.sampled, key=plan_key, target=target)
        est = plan.run(key=run_key)
        return est, plan.spent + est.cost.samples

    return run


def continued(case: Case, target: float) -> Callable[[int], tuple[Estimate, float]]:
    """JointSID until its report says so."""
    sources = in_minibatches(*case.sampled)
    goal: dict[str, Any] = {"target": target, "budget": PASSES * sources[0].rows}

    def run(seed: int) -> tuple[Estimate, float]:
        key = jax.random.key(seed)
        est = bx.hypergradient(case.problem, bx.JointSID(100), *case.points, *sources, key=key, **goal)
        return est, est.cost.samples

    return run


DOORS = {"plan": planned, "JointSID": continued}


def measure(case: Case, door: str, target: float, seeds: int) -> dict[str, Any]:
    """One problem, door and target."""
    clock, run = time.perf_counter(), DOORS[door](case, target)
    errors, flagged, visits = [], [], []
    for seed in range(seeds):
        est, spent = run(seed)
        errors.append(case.relative(est.value) ** 0.5)
        flagged.append(int(est.code) != bx.Code.OK)
        visits.append(spent / case.sampled[0].rows)
    trusted = np.array(errors)[~np.array(flagged)]
    return {
        "problem": case.drawn.name, "door": door, "target": target, "seeds": seeds, "flagged": float(np.mean(flagged)),
        "rms": float(np.sqrt(np.mean(trusted**2))) if len(trusted) else None, "passes": float(np.median(visits)),
        "largest": float(trusted.max()) if len(trusted) else None, "seconds": time.perf_counter() - clock,
    }  # fmt: skip


def row(r: dict[str, Any]) -> str:
    ratio = "-" if r["rms"] is None else f"{r['rms'] / r['target']:.2g}"
    largest = "-" if r["largest"] is None else f"{r['largest'] / r['target']:.2g}"
    cells = r["problem"], r["door"], r["target"], ratio, largest, f"{r['flagged']:.0%}", f"{r['passes']:.1f}"
    return "| " + " | ".join(map(str, cells)) + " |"


def verdict(rows: list[dict[str, Any]]) -> str:
    met = sum(r["rms"] is None or r["rms"] <= 2 * r["target"] for r in rows)
    return f"{met} of {len(rows)} within a factor of 2 of the target, or flagged"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=problems(), metavar="NAME")
    parser.add_argument("--doors", nargs="+", choices=DOORS, default=DOORS)
    parser.add_argument("--seeds", type=int, default=100)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    file = Path(__file__).parent / "results" / "targets.json"
    known = json.loads(file.read_text())["rows"] if file.exists() else []
    rows = {(r["problem"], r["door"], r["target"]): r for r in known}
    print("| problem | door | target | RMS / target | largest / target | flagged | passes |\n" + "|---" * 7 + "|")
    for name in options.only or problems():
        case = Case(problem(name))
        for door in options.doors:
            for target in TARGETS:
                rows[name, door, target] = measure(case, door, target, options.seeds)
                print(row(rows[name, door, target]), flush=True)
        every = list(rows.values())
        versions = {"bilevax": bx.__version__, "jax": jax.__version__}
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"versions": versions, "verdict": verdict(every), "rows": every}, indent=1) + "\n")
    print("\n" + verdict(list(rows.values())))


if __name__ == "__main__":
    main()
