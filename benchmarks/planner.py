"""Are plans as good as tuning by hand, and do they know how good they are? Plans on ten families of problems.

    python benchmarks/planner.py [--families judging] [--only huber ...] [--problems 3] [--passes 5 20 80] [--plans 20]
        [--draw SEED] [--workers 2] [--rivals FILE.json]

Families are those of ``bilevax.testing.problems``: constants are chosen on ten of them and judged on the ten others,
with a seed that is made of the commit. A cell is a problem and a budget of so many passes over train; it has so many
plans, each from keys of its own, made of the problem as users hand it in: steps are measured, and pilots are counted.

Tuning by hand knows the steps that are stable, and the truth: the best of 36 settings of SID (3 splits t : k : J, 3
steps, 4 ways to fall) and JointSID with minibatches of val of 2 and of 8 rows, chosen on one set of seeds and measured
on another; and AID-FP and AID-CG (L-BFGS and conjugate gradients; for a map without a loss fixed-point steps and
GMRES), as many iterations for w as for v. Errors are relative to the exact hypergradient, runs are in float32.

Prints markdown tables and checks, and writes benchmarks/results/planner.json, or planner-choosing.json; a judging run
also adds a line to benchmarks/results/planner-judged.jsonl. ``--rivals``: they are kept there, or taken from there.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import machine
import numpy as np
from planner_rivals import Case, Seeds, case, rivals
from scipy.stats import beta
from verdicts import RESULTS, commit

import bilevax as bx
from bilevax.testing.problems import families

PASSES = 5, 20, 80
TOL = 0.1
COUNTS = 1e-3  # least error of the best rival with which a cell counts
Cell = dict[str, Any]


def planned(case: Case, budget: float, plans: int) -> dict[str, Any]:
    """What plans predict, say and are, lists with an entry a plan."""
    found: dict[str, list[Any]] = {name: [] for name in ("error", "visits", "predicted", "method", "code", "upper")}
    for seed in range(plans):
        plan_key, run_key = jax.random.split(jax.random.key(1000 + seed))
        plan = bx.plan(case.unmeasured, *case.points, *case.sampled, key=plan_key, budget=budget)
        est = plan.run(key=run_key)
        assert est.error is not None
        one = (
            case.relative(est.value) ** 0.5, (plan.spent + est.cost.samples) / budget, plan.predicted, plan.method,
            int(est.code), float(est.error.upper),
        )  # fmt: skip
        for of, x in zip(found.values(), one, strict=True):
            of.append(x)
    return found


def work(name: str, draws: list[int], passes: list[int], plans: int, known: dict[str, Any]) -> list[Cell]:
    """A family, in a process of its own."""
    jax.clear_caches()  # of the family before
    cells = []
    for number, draw in enumerate(draws):
        of = case(name, draw)
        for times in passes:
            budget = float(times * of.sampled[0].rows)
            clock = time.perf_counter()
            of_hand = known.get(f"{name}/{draw}/{times}") or rivals(of, budget, Seeds())
            tuned = time.perf_counter()
            made = planned(of, budget, plans)
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


def row(c: Cell) -> str:
    methods = c["plans"]["method"]
    said = " ".join(f"{m} {methods.count(m)}" for m in sorted(set(methods)))
    hand = [f"{x['mse'] ** 0.5:.1e}" for x in c["rivals"].values()]
    predicted = f"{np.median(c['plans']['predicted']):.1e}"
    figures = f"{c['factor']:.2g}" if c["counts"] else f"({c['factor']:.2g})", f"{c['forecast']:.2g}"
    seconds = "+".join(f"{s:.0f}" for s in c["seconds"])
    shown = (c["family"], c["number"], c["passes"], *hand, said, f"{c['rms']:.1e}", predicted, *figures, c["ok"],
             c["wrong"], f"{c['visits']:.2f}", seconds)  # fmt: skip
    return "| " + " | ".join(map(str, shown)) + " |"


def checks(cells: list[Cell]) -> list[tuple[str, str, str, bool]]:
    """(what, figure, goal, met)."""
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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", choices=("choosing", "judging"), default="judging")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of these families")
    parser.add_argument("--problems", type=int, default=3, help="of each family")
    parser.add_argument("--passes", nargs="+", type=int, choices=PASSES, default=PASSES, help="over train: budgets")
    parser.add_argument("--plans", type=int, default=20, help="of a cell")
    parser.add_argument("--draw", type=int, help="seed; if it is left out 0 for choosing, of the commit for judging")
    parser.add_argument("--rivals", type=Path, metavar="FILE.json", help="kept there, and taken from there")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.only = [name for name in families(options.families) if name in (options.only or [name])]
    if options.draw is None:
        options.draw = int(commit()[:12], 16) if options.families == "judging" else 0
    return options


def main() -> None:
    options, clock = arguments(), time.perf_counter()
    os.environ.update(machine.ONE_THREAD)
    file = options.rivals
    known = json.loads(file.read_text()) if file and file.exists() else {}
    draws = [(options.draw + i) % 2**63 for i in range(options.problems)]
    cells: list[Cell] = []
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        tasks = [pool.submit(work, name, draws, options.passes, options.plans, known) for name in options.only]
        for done in as_completed(tasks):
            found = [figures(cell) for cell in done.result()]
            cells += found
            print("\n".join(map(row, found)), flush=True)
            known |= {f"{c['family']}/{c['draw']}/{c['passes']}": c["rivals"] for c in found}
            if file:
                file.write_text(json.dumps(known, default=float))
    finish(options, cells, time.perf_counter() - clock)


def finish(options: Any, cells: list[Cell], seconds: float) -> None:
    """Checks and files."""
    rows = checks(cells)
    print("\n| check | figure | goal | met |\n|---|---|---|---|")
    for what, figure, goal, met in rows:
        print(f"| {what} | {figure} | {goal} | {'yes' if met else 'NO'} |")
    judging = options.families == "judging"
    record = {
        "setting": machine.setting(), "options": {k: str(v) for k, v in vars(options).items()},
        "checks": [list(map(str, r)) for r in rows], "seconds": round(seconds), "cells": cells,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    name = "planner.json" if judging else "planner-choosing.json"
    (RESULTS / name).write_text(json.dumps(record, indent=1, default=float) + "\n")
    if judging:
        line = {"date": time.strftime("%Y-%m-%d %H:%M"), "commit": commit(), "draw": options.draw,
                "tree": record["setting"]["versions"]["commit"], "families": options.only,
                "checks": {what: figure for what, figure, _, _ in rows}, "seconds": round(seconds)}  # fmt: skip
        with (RESULTS / "planner-judged.jsonl").open("a") as out:
            out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
