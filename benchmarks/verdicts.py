"""Does OK mean OK? Runs of the default estimators on ten families of problems, and what they say of themselves.

Each family has 40 random problems, each of these 8 step counts, each of these cells 12 runs in float32 through
``bx.hypergradient``, within one jit and vmap; truths are in float64. The step counts of a problem are such that the
root mean square of the relative error, over the runs of a cell, is spread log-uniformly over .01 to 1, or over what can
be reached: a pilot with other keys has looked for it. JointSID has its defaults; SID two chains of as many steps, which
for even problems fall as Grazzi, Pontil and Salzo propose, beta = gamma = 2 / (1 - q^2) (of the map that takes a part
of the step where less than .7 of it is stable in mean square), for every fourth are constant, half of what is stable,
and for the others fall more slowly, with the power .75; a fourth as many cross batches.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import families, tables
from benchmarks import verdict_figures as figures
from benchmarks.verdict_figures import ESTIMATORS
from benchmarks.verdict_runs import Setting, measure, with_target


def work(part: str, name: str, estimator: str, setting: Setting) -> dict[str, Any]:
    """In a process of its own."""
    jax.clear_caches()  # of the job before
    return {"verdicts": measure, "target": with_target}[part](name, estimator, setting)


def arguments(parser: argparse.ArgumentParser) -> None:
    families.arguments(parser)
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=ESTIMATORS)
    parser.add_argument("--parts", nargs="+", choices=("verdicts", "target"), default=("verdicts", "target"))
    parser.add_argument("--problems", type=int, default=40, help="of each family")
    parser.add_argument("--counts", type=int, default=8, help="of steps, for each problem")
    parser.add_argument("--runs", type=int, default=12, help="of each cell")
    parser.add_argument("--cap", type=int, default=150_000, help="most steps of a run")
    parser.add_argument("--keep", type=Path, metavar="FILE.npz", help="every run, for looking into")


def main(options: argparse.Namespace) -> None:
    clock, lanes, enough = time.perf_counter(), 120, figures.ENOUGH
    families.settle(options)
    if options.quick:
        options.problems, options.counts, options.runs, options.cap, options.parts = 3, 2, 8, 3000, ("verdicts",)
        lanes, enough = 24, 1
    setting = Setting(options.problems, options.counts, options.runs, options.cap, options.draw, lanes)
    found: dict[str, dict[tuple[str, str], Any]] = {"verdicts": {}, "target": {}}
    kept: dict[str, np.ndarray] = {}
    rows: list[tables.Check] = []
    jobs = [(part, name, e, setting) for part in options.parts for e in options.estimators for name in options.only]
    table = tables.Table(*figures.HEAD)
    for (part, name, estimator, _), done in families.outcomes(work, jobs, options.workers):
        if done.exception() is not None:
            table(name, estimator, f"{part} failed: {done.exception()!r}")
            rows.append((f"{part} {name} {estimator}", "failed", "runs", False))
            continue
        kept |= {f"{part}/{name}/{estimator}/{key}": x for key, x in done.result().items()}
        judge, row = {
            "verdicts": (figures.figures, figures.row), "target": (figures.target_figures, figures.target_row),
        }[part]  # fmt: skip
        out = found[part][name, estimator] = judge(done.result())
        table(name, estimator, *row(out))
    rows = [*(figures.checks(found["verdicts"], enough) if found["verdicts"] else ()), *rows]
    rows += figures.target_checks(found["target"])
    headline = figures.headline(found["verdicts"]) | {
        "checks met": f"{sum(r[-1] for r in rows)} of {len(rows)}", "seconds": round(time.perf_counter() - clock),
    }  # fmt: skip
    record = {part: {"/".join(key): f for key, f in of.items()} for part, of in found.items()}
    size = {"problems": setting.problems, "counts": setting.counts, "a cell": setting.runs}
    families.finish(options, {"headline": headline, **record}, rows, headline | size)
    print(f"\n{json.dumps(headline)}")
    if options.keep:
        np.savez_compressed(options.keep, **kept)
