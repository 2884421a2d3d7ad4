r"""How fast, how soon compiled and how large are hypergradients, against bare JAX, the machine and other packages?

On one thread and one core: the command starts itself again as

    NPROC=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 JAX_PLATFORMS=cpu \
    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 python -m benchmarks core

Cases that are compared run in turn, round by round. A ratio is that of their medians of process CPU time, which is held
against the goal; that of wall time stands beside it. Absolute times of a shared machine drift; ratios of one run hold.

The parts: w1 (API, bare JAX, ceilings, roofline), w2, w3, n (cost of a step against rows), m (against
hyperparameters), vmap, compile, memory, rivals. With --only, the other parts of the file stay as they were, with the
setting of their run.
"""

import argparse
import os
import sys
import time
import traceback
from importlib import import_module

from benchmarks import machine, store, tables

PARTS = {
    "w1": "measures:w1",
    "w2": "measures:w2",
    "w3": "measures:w3",
    "n": "measures:rows_of_train",
    "m": "measures:hyperparameters",
    "vmap": "measures:four_keys",
    "compile": "fresh:compilation",
    "memory": "fresh:memory",
    "rivals": "rivals:compare",
}
LEAST_ROUNDS = 15


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    machine.arguments(parser, LEAST_ROUNDS)
    parser.add_argument("--torch-python", help="interpreter of an environment with torch and torchopt, for rivals")


def main(options: argparse.Namespace) -> None:
    if options.rounds < LEAST_ROUNDS:
        sys.exit(f"medians need at least {LEAST_ROUNDS} rounds")
    if options.torch_python:
        os.environ["BILEVAX_BENCHMARK_TORCH"] = options.torch_python
    machine.pin(options.core, options.quick)
    rounds, setting, found = 3 if options.quick else options.rounds, machine.setting(), store.kept(options)
    unmet, failed = [], []
    table = tables.Table("", "CPU ms", "wall ms", "value", "goal", "met", "note")
    for name in options.only:
        clock = time.perf_counter()
        module, _, function = PARTS[name].partition(":")
        try:
            rows = getattr(import_module(f"benchmarks.{module}"), function)(options.quick, rounds)
        except Exception:  # the other parts are still worth having
            traceback.print_exc()
            failed.append(name)
            continue
        if options.quick:
            rows = [{k: v for k, v in row.items() if k not in ("goal", "met")} for row in rows]
        for row in rows:
            table(*map(row.get, ("what", "cpu_ms", "wall_ms", "value", "goal", "met", "note")))
        unmet += [row["what"] for row in rows if row.get("met") is False]
        seconds = round(time.perf_counter() - clock, 1)
        found[name] = {"setting": setting, "quick": options.quick, "rounds": rounds, "seconds": seconds, "rows": rows}
        store.keep(options, found)
    print("\nquick: no goal applies" if options.quick else f"\ngoals not met: {'; '.join(unmet) or 'none'}")
    if failed:
        sys.exit(f"parts that failed: {', '.join(failed)}")
