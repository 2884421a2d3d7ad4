"""Are plans as good as tuning by hand, and do they know how good they are? Plans on ten families of problems.

A cell is a problem and a budget of so many passes over train; it has so many plans, each from keys of its own, made of
the problem as users hand it in: steps are measured, and pilots are counted.

Tuning by hand knows the steps that are stable, and the truth: the best of 36 settings of SID (3 splits t : k : J, 3
steps, 4 ways to fall) and JointSID with minibatches of val of 2 and of 8 rows, chosen on one set of seeds and measured
on another; and AID-FP and AID-CG (L-BFGS and conjugate gradients; for a map without a loss fixed-point steps and
GMRES), as many iterations for w as for v. Errors are relative to the exact hypergradient, runs are in float32.
``--rivals FILE.json``: they are kept there, or taken from there.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.stats import beta

import bilevax as bx
from benchmarks import families, store, tables
from benchmarks.cases import Case
from benchmarks.planner_rivals import Seeds, case_of, rivals
from bilevax.testing.problems import problem

PASSES = 5, 20, 80
TOL = 0.1
COUNTS = 1e-3  # least error of the best rival with which a cell counts
Cell = dict[str, Any]


def planned(case: Case, budget: float, plans: int) -> dict[str, Any]:
    """What plans predict, say and are, lists with an entry a plan."""
    found: dict[str, list[Any]] = {}
    for seed in range(plans):
        plan_key, run_key = jax.random.split(jax.random.key(1000 + seed))
        plan = bx.plan(case.problem, *case[2:6], key=plan_key, budget=budget)
        est = plan.run(key=run_key)
        assert est.error is not None
        one = {
            "error": case.relative(est.value) ** 0.5, "visits": (plan.spent + est.cost.samples) / budget,
            "predicted": plan.predicted, "method": plan.method, "code": int(est.code), "upper": float(est.error.upper),
        }  # fmt: skip
        for what, x in one.items():
            found.setdefault(what, []).append(x)
    return found


def work(name: str, options: argparse.Namespace, known: dict[str, Any]) -> list[Cell]:
    """A family, in a process of its own."""
    jax.clear_caches()  # of the family before
    cells = []
    for number in range(options.problems):
        draw = (options.draw + number) % 2**63
        p = problem(name, draw)
        case = case_of(p)
        for times in options.passes:
            budget = float(times * case.train.rows)
            clock = time.perf_counter()
            of_hand = known.get(f"{name}/{draw}/{times}") or rivals(
                p, case, budget, Seeds(1, 1, 2) if options.quick else Seeds()
            )
            tuned = time.perf_counter()
            made = planned(case._replace(problem=p.unmeasured), budget, options.plans)
            seconds = tuned - clock, time.perf_counter() - tuned
            cells.append({"family": name, "number": number, "draw": draw, "passes": times, "rivals": of_hand,
                          "plans": made, "seconds": seconds})  # fmt: skip
    return cells


def figures(cell: Cell) -> Cell:
    """With what is shown of it."""
    errors = np.array([x if np.isfinite(x) else 1e9 for x in cell["plans"]["error"]])
    best = min(cell["rivals"], key=lambda name: cell["rivals"][name]["mse"])
    rms, least = float(np.mean(errors**2) ** 0.5), float(cell["rivals"][best]["mse"] ** 0.5)
    ok = np.array(cell["plans"]["code"]) == bx.Code.OK
    wrong = ok & (errors > TOL)
    deterministic = np.array([m.startswith("AID") for m in cell["plans"]["method"]]) & (errors < TOL / 3)
    return cell | {
        "best": best, "least": least, "rms": rms, "factor": (rms / least) ** 2, "counts": least > COUNTS,
        "forecast": float(np.median(cell["plans"]["predicted"])) / rms, "ok": int(ok.sum()), "wrong": int(wrong.sum()),
        "visits": max(cell["plans"]["visits"]), "certain": int(deterministic.sum()),
        "certain and ok": int((deterministic & ok).sum()),
    }  # fmt: skip


HEAD = ("family", "draw", "passes", "SID", "JointSID", "AID-FP", "AID-CG", "plans", "their error", "predicted",
        "MSE / best", "predicted / error", "OK", "of these wrong", "visits / budget", "s")  # fmt: skip


def row(c: Cell) -> list[Any]:
    methods = c["plans"]["method"]
    said = " ".join(f"{m} {methods.count(m)}" for m in sorted(set(methods)))
    hand = [f"{x['mse'] ** 0.5:.1e}" for x in c["rivals"].values()]
    predicted = f"{np.median(c['plans']['predicted']):.1e}"
    figures = f"{c['factor']:.2g}" if c["counts"] else f"({c['factor']:.2g})", f"{c['forecast']:.2g}"
    seconds = "+".join(f"{s:.0f}" for s in c["seconds"])
    return [c["family"], c["number"], c["passes"], *hand, said, f"{c['rms']:.1e}", predicted, *figures, c["ok"],
            c["wrong"], f"{c['visits']:.2f}", seconds]  # fmt: skip


def checks(cells: list[Cell]) -> list[tables.Check]:
    counted = [c for c in cells if c["counts"]]
    factors, forecasts = (np.array([c[name] for c in counted]) for name in ("factor", "forecast"))
    near, nearer = np.mean(factors <= 4), np.mean(factors <= 2)
    close = np.mean((forecasts <= 3) & (forecasts >= 1 / 3))
    ok, wrong = (np.array([c[name] for c in cells]) for name in ("ok", "wrong"))
    low = max(lower(c["wrong"], c["ok"]) for c in cells)
    certain, known = (sum(c[name] for c in cells) for name in ("certain", "certain and ok"))
    return [
        ("cells that count", str(len(counted)), "", True),
        ("error within 2 of the best by hand", f"{near:.0%}", "85 %", bool(near >= 0.85)),
        ("error over the best, worst", f"{factors.max() ** 0.5:.2g}", "5", bool(factors.max() <= 25)),
        ("mean square error within 2 of it", f"{nearer:.0%}", "85 %", bool(nearer >= 0.85)),
        ("forecasts within 3", f"{close:.0%}", "80 %", bool(close >= 0.8)),
        ("error at most 3 times the forecast", f"{np.mean(forecasts >= 1 / 3):.0%}", "", True),
        ("OK and wrong, pooled", f"{wrong.sum()} of {ok.sum()}", "3 %", bool(wrong.sum() <= 0.03 * ok.sum())),
        ("OK and wrong, worst cell, lower limit", f"{low:.1%}", "5 %", bool(low <= 0.05)),
        ("AID OK where below tol / 3", f"{known} of {certain}", "half", 2 * known >= certain),
        ("visits over the budget, most", f"{max(c['visits'] for c in cells):.3f}", "1.05",
         max(c["visits"] for c in cells) <= 1.05),
    ]  # fmt: skip


def lower(wrong: int, ok: int) -> float:
    """The .95 lower limit of Clopper and Pearson of a share."""
    return float(beta.ppf(0.05, wrong, ok - wrong + 1)) if wrong else 0.0


def arguments(parser: argparse.ArgumentParser) -> None:
    families.arguments(parser)
    parser.add_argument("--problems", type=int, default=3, help="of each family")
    parser.add_argument("--passes", nargs="+", type=int, choices=PASSES, default=PASSES, help="over train: budgets")
    parser.add_argument("--plans", type=int, default=20, help="of a cell")
    parser.add_argument("--rivals", type=Path, metavar="FILE.json", help="kept there, and taken from there")


def main(options: argparse.Namespace) -> None:
    clock, cells = time.perf_counter(), []
    families.settle(options)
    if options.quick:
        options.problems, options.passes, options.plans = 1, (5,), 2
    known = store.read(options.rivals)
    table = tables.Table(*HEAD)
    jobs = [(name, options, known) for name in options.only]
    for _, done in families.outcomes(work, jobs, options.workers):
        for cell in map(figures, done.result()):
            cells.append(cell)
            table(*row(cell))
            known[f"{cell['family']}/{cell['draw']}/{cell['passes']}"] = cell["rivals"]
        if options.rivals:
            store.write(options.rivals, known)
    rows, seconds = checks(cells), round(time.perf_counter() - clock)
    line = {"checks": {what: figure for what, figure, _, _ in rows}, "seconds": seconds}
    families.finish(options, {"seconds": seconds, "cells": cells}, rows, line)
