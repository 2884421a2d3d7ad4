"""Is a target met? Root mean square errors of 100 runs that were asked for a relative error, on the twenty problems.

Two doors: ``bx.plan(target=)`` and its run; and ``bx.hypergradient(target=, budget=)`` with JointSID, which goes on
from 100 steps until its error report is below the target, or 100 passes over train are spent. A run that says
TOLERANCE_NOT_MET, or worse, is flagged, and apart. Targets are relative to the norm of the exact hypergradient, in
float64. What is not run again stays in the file as it was.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import bilevax as bx
from benchmarks import store, tables
from benchmarks.cases import Case
from benchmarks.planner_rivals import case_of
from bilevax.core.records import Estimate
from bilevax.planning.pilot import in_minibatches
from bilevax.testing.problems import problem, problems

TARGETS = 0.1, 0.01
PASSES = 100


def planned(case: Case, target: float) -> Callable[[int], tuple[Estimate, float]]:
    """A plan for the target and its run."""

    def run(seed: int) -> tuple[Estimate, float]:
        plan_key, run_key = jax.random.split(jax.random.key(seed))
        plan = bx.plan(case.problem, *case[2:6], key=plan_key, target=target)
        est = plan.run(key=run_key)
        return est, plan.spent + est.cost.samples

    return run


def continued(case: Case, target: float) -> Callable[[int], tuple[Estimate, float]]:
    """JointSID until its report says so."""
    train, val = in_minibatches(case.train, case.val)
    goal: dict[str, Any] = {"target": target, "budget": PASSES * train.rows}
    joint = case._replace(estimator=bx.JointSID(100), train=train, val=val)

    def run(seed: int) -> tuple[Estimate, float]:
        est = joint(jax.random.key(seed), **goal)
        return est, est.cost.samples

    return run


DOORS = {"plan": planned, "JointSID": continued}


def measure(name: str, case: Case, door: str, target: float, seeds: int) -> dict[str, Any]:
    """One problem, door and target."""
    clock, run = time.perf_counter(), DOORS[door](case, target)
    errors, flagged, visits = [], [], []
    for seed in range(seeds):
        est, spent = run(seed)
        errors.append(case.relative(est.value) ** 0.5)
        flagged.append(int(est.code) != bx.Code.OK)
        visits.append(spent / case.train.rows)
    trusted = np.array(errors)[~np.array(flagged)]
    return {
        "problem": name, "door": door, "target": target, "seeds": seeds, "flagged": float(np.mean(flagged)),
        "rms": float(np.sqrt(np.mean(trusted**2))) if len(trusted) else None, "passes": float(np.median(visits)),
        "largest": float(trusted.max()) if len(trusted) else None, "seconds": time.perf_counter() - clock,
    }  # fmt: skip


def row(r: dict[str, Any]) -> list[Any]:
    ratio, largest = ("-" if r[key] is None else f"{r[key] / r['target']:.2g}" for key in ("rms", "largest"))
    return [r["problem"], r["door"], r["target"], ratio, largest, f"{r['flagged']:.0%}", f"{r['passes']:.1f}"]


def verdict(rows: list[dict[str, Any]]) -> str:
    met = sum(r["rms"] is None or r["rms"] <= 2 * r["target"] for r in rows)
    return f"{met} of {len(rows)} within a factor of 2 of the target, or flagged"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=problems(), metavar="NAME", default=problems())
    parser.add_argument("--doors", nargs="+", choices=DOORS, default=tuple(DOORS))
    parser.add_argument("--seeds", type=int, default=100)


def main(options: argparse.Namespace) -> None:
    jax.config.update("jax_enable_x64", True)
    names, seeds = (("ridge",), 2) if options.quick else (options.only, options.seeds)
    every = {(r["problem"], r["door"], r["target"]): r for r in store.kept(options).get("rows", ())}
    table = tables.Table("problem", "door", "target", "RMS / target", "largest / target", "flagged", "passes")
    for name in names:
        case = case_of(problem(name))
        for door in options.doors:
            for target in TARGETS[: 1 if options.quick else None]:
                found = every[name, door, target] = measure(name, case, door, target, seeds)
                table(*row(found))
        rows = list(every.values())
        store.keep(options, {"verdict": verdict(rows), "rows": rows})
    print("\n" + verdict(rows))
