r"""Speed, compilation and memory of hypergradients, against bare JAX, the machine's ceilings and other packages.

    python benchmarks/core.py [--quick] [--only w1,w2,...] [--rounds 15] [--core 0] [--torch-python PYTHON]

One command, one table, and benchmarks/results/core.json (with --quick, only where --out says). The command starts
itself again on one thread and one core, as this would:

    NPROC=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 JAX_PLATFORMS=cpu \
    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 python benchmarks/core.py

Cases that are compared run in turn, round by round. A ratio is that of their medians of process CPU time, which is held
against the goal; that of wall time stands beside it. Absolute times of a shared machine drift; ratios of one run hold.

The parts: w1 (API, bare JAX, ceilings, roofline), w2, w3, n (cost of a step against rows), m (against
hyperparameters), vmap, compile, memory, rivals. With --only, the other parts of the file stay as they were, with the
setting of their run.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import machine

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
RESULTS = Path(__file__).parent / "results" / "core.json"
LEAST_ROUNDS = 15


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and 3 rounds: a smoke test, no measurement")
    parser.add_argument("--only", default=",".join(PARTS), help="some of: %(default)s")
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS, help=f"at least {LEAST_ROUNDS}, the default")
    parser.add_argument("--core", type=int, default=0, help="the core to run on")
    parser.add_argument("--out", type=Path, help="where to keep the JSON; with --quick, nowhere unless given")
    parser.add_argument("--torch-python", help="interpreter of an environment with torch and torchopt, for rivals")
    out = parser.parse_args()
    out.only = out.only.split(",")
    if unknown := set(out.only) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if out.rounds < LEAST_ROUNDS:
        parser.error(f"medians need at least {LEAST_ROUNDS} rounds")
    return out


def part(name: str) -> Callable[[bool, int], list[dict[str, Any]]]:
    """The function of a part; only now are numpy and jax imported."""
    module, _, function = PARTS[name].partition(":")
    return getattr(import_module(module), function)


def line(row: dict[str, Any]) -> str:
    """One line of the table."""

    def number(name: str) -> str:
        return f"{row[name]:.4g}" if name in row else ""

    met = {True: "yes", False: "NO", None: ""}[row.get("met")]
    columns = [f"{number(name):>9}" for name in ("cpu_ms", "wall_ms", "value", "goal")]
    return f"{row['what']:<58} {' '.join(columns)} {met:>4}  {row.get('note', '')}".rstrip()


HEAD = f"{'':<58} {'CPU ms':>9} {'wall ms':>9} {'value':>9} {'goal':>9} {'met':>4}"


def main() -> None:
    chosen = options()
    if chosen.torch_python:
        os.environ["BILEVAX_BENCHMARK_TORCH"] = chosen.torch_python
    machine.pin(chosen.core, chosen.quick)
    rounds = 3 if chosen.quick else chosen.rounds
    setting = machine.setting(("jaxopt", "optimistix", "lineax"))
    print(json.dumps(setting), "\n" + HEAD, sep="\n", flush=True)
    file = chosen.out or (None if chosen.quick else RESULTS)
    found = json.loads(file.read_text()) if file and file.exists() else {}
    unmet, failed = [], []
    for name in chosen.only:
        clock = time.perf_counter()
        try:
            rows = part(name)(chosen.quick, rounds)
        except Exception:  # the other parts are still worth having
            traceback.print_exc()
            failed.append(name)
            continue
        if chosen.quick:
            rows = [{k: v for k, v in row.items() if k not in ("goal", "met")} for row in rows]
        print(*map(line, rows), sep="\n", flush=True)
        unmet += [row["what"] for row in rows if row.get("met") is False]
        seconds = round(time.perf_counter() - clock, 1)
        found[name] = {"setting": setting, "quick": chosen.quick, "rounds": rounds, "seconds": seconds, "rows": rows}
        if file:
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(found, indent=1) + "\n")
    print("\nquick: no goal applies" if chosen.quick else f"\ngoals not met: {'; '.join(unmet) or 'none'}")
    if failed:
        sys.exit(f"parts that failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
