"""Are additive models with tuned penalties better than linear ones, and as good as EBM, and in what time?

Twenty tables, fixed beforehand (``additive_list``), three splits each; test log-loss or mean deviance (of a Gaussian
over the variance of y) and CPU seconds of the fit on one thread, each run in a process of its own that may take 30 CPU
minutes. Beside ours: ridge penalties on a grid (LogisticRegressionCV with 20 values, RidgeCV, PoissonRegressor and
GammaRegressor by GridSearchCV; five folds, of groups where there are any) and an l1 grid, both on standardised numbers
and plain 0/1 categories; mgcv's bam(select = TRUE) (Debian's r-base-core and r-cran-mgcv); EBM without and with pairs
(``pip install interpret-core``), scikit-learn's histogram gradient boosting. n/a where a method has no such family.
What is measured already is not measured again, so a run that was stopped goes on; --again measures anew.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks import additive_figures as figures
from benchmarks import additive_times, machine, store, tables
from benchmarks.additive_list import SPLITS, TABLES
from benchmarks.additive_rivals import METHODS

LIMIT = 1800
"""CPU seconds of a run."""

QUICK = "breast_cancer", "diabetes"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=TABLES, metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD",
                        help=", ".join(METHODS))  # fmt: skip
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    parser.add_argument("--show", action="store_true", help="measure nothing: the tables of what is there")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="write them between the marks of a page, too")
    parser.add_argument("--times", action="store_true", help="a first fit, and a million rows, instead of the tables")
    parser.add_argument("--core", type=int, default=0, help="the core to run on")


def main(options: argparse.Namespace) -> None:
    machine.pin(options.core, options.quick)
    record = store.kept(options)
    runs = record.setdefault("runs", {})
    if options.times:
        record["times"] = additive_times.show() | {"tree": machine.commit(described=True)}
        store.keep(options, record)
        return
    if not options.show:
        measure(options, record, runs)
    text = figures.page(runs)
    print(f"\n{text}")
    if options.page:
        tables.into(options.page, "additive", text)


def measure(options: argparse.Namespace, record: dict[str, Any], runs: figures.Runs) -> None:
    """Every run that is asked for and not there; a method that is not installed is left out."""
    names = options.only or (QUICK if options.quick else TABLES)
    row, missing = tables.Table("table", "method", "split", "loss", "CPU s", ""), set()
    for name in names:
        for seed in SPLITS[: 1 if options.quick else None]:
            for method in options.methods:
                kept = runs.setdefault(name, {}).setdefault(method, {})
                if method in missing or (str(seed) in kept and not options.again):
                    continue
                run = once(name, method, seed, options.quick)
                row(name, method, seed, run.get("loss"), run.get("cpu"), run.get("failed") or run.get("missing"))
                if "missing" in run:
                    missing.add(method)
                    continue
                kept[str(seed)] = run | {"tree": machine.commit(described=True)}
                store.keep(options, record)


def once(name: str, method: str, seed: int, quick: bool) -> dict[str, Any]:
    """A run in a process of its own."""
    try:
        return machine.fresh("benchmarks.additive_rivals:measured", name, method, seed, quick, cpu_seconds=LIMIT)
    except TimeoutError:
        return {"failed": "time"}
