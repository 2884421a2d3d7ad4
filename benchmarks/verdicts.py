"""Does OK mean OK? Runs of the default estimators on ten families of problems, and what they say of themselves.

    python benchmarks/verdicts.py [--families judging] [--only huber ...] [--estimators JointSID SID] [--quick]
        [--problems 40] [--parts verdicts target] [--draw SEED] [--cap 150000] [--keep FILE.npz]

Families are those of ``bilevax.testing.problems``: constants are chosen on ten of them and judged on the ten others.
Each has 40 random problems, each of these 8 step counts, each of these cells 12 runs in float32 through
``bx.hypergradient``, within one jit and vmap; truths are in float64. The step counts of a problem are such that the
root mean square of the relative error, over the runs of a cell, is spread log-uniformly over .01 to 1, or over what can
be reached: a pilot with other keys has looked for it. JointSID has its defaults; SID two chains of as many steps, which
for even problems fall as Grazzi, Pontil and Salzo propose, beta = gamma = 2 / (1 - q^2) (of the map that takes a part
of the step where less than .7 of it is stable in mean square), for every fourth are constant, half of what is stable,
and for the others fall more slowly, with the power .75; a fourth as many cross batches.

The seed of a judging run is made of the commit; each such run adds a line to benchmarks/results/verdicts-judged.jsonl.
Prints markdown tables and checks, and writes benchmarks/results/verdicts.json, or verdicts-choosing.json.
"""

import argparse
import json
import os
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import machine
import numpy as np
import verdict_figures as figures
from verdict_figures import ESTIMATORS
from verdict_runs import Setting, measure, with_target

from bilevax.testing.problems import families

RESULTS = Path(__file__).parent / "results"


Key = tuple[str, str]


def work(part: str, name: str, estimator: str, setting: Setting) -> dict[str, Any]:
    """In a process of its own."""
    jax.clear_caches()  # of the job before
    return {"verdicts": measure, "target": with_target}[part](name, estimator, setting)


def commit() -> str:
    git = ["git", "-C", str(RESULTS.parent), "rev-parse", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", choices=("choosing", "judging"), default="judging")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of these families")
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=ESTIMATORS)
    parser.add_argument("--parts", nargs="+", choices=("verdicts", "target"), default=("verdicts", "target"))
    parser.add_argument("--quick", action="store_true", help="6 problems x 4 counts x 8 runs, and no targets")
    parser.add_argument("--problems", type=int, default=40, help="of each family")
    parser.add_argument("--counts", type=int, default=8, help="of steps, for each problem")
    parser.add_argument("--cap", type=int, default=150_000, help="most steps of a run")
    parser.add_argument("--draw", type=int, help="seed; if it is left out 0 for choosing, of the commit for judging")
    parser.add_argument("--keep", type=Path, metavar="FILE.npz", help="every run, for looking into")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.only = [name for name in families(options.families) if name in (options.only or [name])]
    if options.draw is None:
        options.draw = int(commit()[:12], 16) if options.families == "judging" else 0
    if options.quick:
        options.problems, options.counts, options.cap, options.parts = 6, 4, min(options.cap, 30_000), ("verdicts",)
    return options


def main() -> None:
    options, clock = arguments(), time.perf_counter()
    runs, lanes = (8, 24) if options.quick else (12, 120)
    setting = Setting(options.problems, options.counts, runs, options.cap, options.draw, lanes)
    os.environ.update(machine.ONE_THREAD)
    found: dict[str, dict[Key, Any]] = {"verdicts": {}, "target": {}}
    kept: dict[str, np.ndarray] = {}
    failed = []
    jobs = [(part, name, e) for part in options.parts for e in options.estimators for name in options.only]
    figures.head()
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        tasks = {pool.submit(work, *job, setting): job for job in jobs}
        for done in as_completed(tasks):
            part, name, estimator = tasks[done]
            if done.exception() is not None:
                failed.append(f"{part} {name} {estimator}")
                print(f"| {failed[-1]} | failed: {done.exception()!r}", flush=True)
                continue
            out = done.result()
            kept |= {f"{part}/{name}/{estimator}/{key}": x for key, x in out.items()}
            out = figures.figures(out) if part == "verdicts" else figures.target_figures(out)
            found[part][name, estimator] = out
            print(
                figures.row(name, estimator, out) if part == "verdicts" else figures.target_row(name, estimator, out),
                flush=True,
            )
    rows = figures.checks(found["verdicts"], 1 if options.quick else figures.ENOUGH) if found["verdicts"] else []
    rows += figures.target_checks(found["target"])
    rows += [(job, "failed", "runs", False) for job in failed]
    finish(options, setting, found, rows, time.perf_counter() - clock)
    if options.keep:
        np.savez_compressed(options.keep, **kept)


def finish(options: Any, setting: Setting, found: Any, rows: list[Any], seconds: float) -> None:
    """Checks, headline and files."""
    print("\n| check | figure | goal | met |\n|---|---|---|---|")
    for what, figure, goal, met in rows:
        print(f"| {what} | {figure} | {goal} | {'yes' if met else 'NO'} |")
    headline = figures.headline(found["verdicts"]) | {
        "checks met": f"{sum(r[-1] for r in rows)} of {len(rows)}", "seconds": round(seconds),
    }  # fmt: skip
    print(f"\n{json.dumps(headline)}")
    record = {
        "setting": machine.setting(), "options": {k: str(v) for k, v in vars(options).items()},
        "headline": headline, "checks": [list(map(str, r)) for r in rows],
        **{part: {"/".join(key): figures.plain(f) for key, f in of.items()} for part, of in found.items()},
    }  # fmt: skip
    judging = options.families == "judging"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / ("verdicts.json" if judging else "verdicts-choosing.json")).write_text(
        json.dumps(record, indent=1) + "\n"
    )
    if judging:
        size = {
            "families": options.only,
            "problems": setting.problems,
            "counts": setting.counts,
            "a cell": setting.runs,
        }
        described = record["setting"]["versions"]["commit"]  # says if the tree was not that of the commit
        line = {"date": time.strftime("%Y-%m-%d %H:%M"), "commit": commit(), "tree": described, "draw": setting.draw}
        line |= headline | size
        with (RESULTS / "verdicts-judged.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
