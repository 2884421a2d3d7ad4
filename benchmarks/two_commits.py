"""Is it as fast as another commit: hypergradients of W1 and W2 through the public door, and their first calls?

Each checkout has a process of its own, which imports its own ``src`` and workloads; the calls alternate, and what is
compared are medians of process CPU seconds. First calls are of fresh processes in turn.
"""

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine, store, tables

WORKER = """
import sys, time
root = sys.argv[1]
sys.path[:0] = [root + "/src", root + "/benchmarks"]
import importlib, os, jax
new = os.path.exists(root + "/benchmarks/cases.py")
w = importlib.import_module("benchmarks.cases" if new else "workloads")
assert w.bx.__file__.startswith(root), w.bx.__file__
SHAPES = {"W1": w.W1, "W2": w.W2[22], "quick W1": w.W1_QUICK, "quick W2": w.W2_QUICK[22]}
if sys.argv[2] == "first":
    shape = w.W1_QUICK
    made = w.logistic(shape, "iid", step=(lambda s: 400.0) if sys.argv[3] == "failing" else w.step_size)
    key = w.key_of(0)
    began = time.process_time()
    est = made(key)
    jax.block_until_ready(est.value)
    print(time.process_time() - began, int(est.code), flush=True)
    sys.exit()
cases = {}
for line in sys.stdin:
    name, kind, report, i = line.rsplit(maxsplit=3)
    if (name, kind) not in cases:
        cases[name, kind] = w.logistic(SHAPES[name], kind)
    made = cases[name, kind]
    began = time.process_time()
    out = made.round(int(i)).value if report == "report" else made.alone(int(i))[1]
    jax.block_until_ready(out)
    print(time.process_time() - began, flush=True)
"""


def worker(root: Path, *arguments: str) -> "subprocess.Popen[str]":
    """A process that runs the code of one checkout, with one thread."""
    environment = os.environ | machine.ONE_THREAD | {"XLA_FLAGS": machine.XLA_FLAG}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", WORKER, str(root), *(arguments or ("calls",))]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=root)


def ask(process: "subprocess.Popen[str]", line: str) -> float:
    """The CPU seconds of one call."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(line, file=process.stdin, flush=True)
    return float(process.stdout.readline())


def first(root: Path, kind: str) -> float:
    """The CPU seconds of a first call."""
    return float(worker(root, "first", kind).communicate()[0].split()[0])


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("other", type=Path, nargs="?", default=machine.ROOT, help="a checkout of the other commit")
    parser.add_argument("--rounds", type=int, default=15)


def main(options: argparse.Namespace) -> None:
    trees = {"other": options.other.resolve(), "this": machine.ROOT}
    rounds, firsts = (2, 1) if options.quick else (options.rounds, 3)
    rows: list[dict[str, Any]] = []
    table = tables.Table("CPU seconds", "other", "this", "ratio")

    def compare(what: str, seconds: Callable[[str, int], float], rounds: int) -> None:
        """Rounds in turn, of which every second one begins with the other."""
        spent: dict[str, list[float]] = {name: [] for name in trees}
        for i in range(rounds):
            for name in sorted(trees, reverse=bool(i % 2)):
                spent[name].append(seconds(name, i))
        medians = {name: median(x) for name, x in spent.items()}
        rows.append({"what": what, **medians, "ratio": medians["this"] / medians["other"]})
        table(*rows[-1].values())

    running = {name: worker(tree) for name, tree in trees.items()}
    names = ("quick W1", "quick W2") if options.quick else ("W1", "W2")
    for what in map(" ".join, itertools.product(names, ("iid", "blocks"), ("report", "none"))):
        for process in running.values():
            ask(process, f"{what} 0")
            ask(process, f"{what} 1")
        compare(what, lambda name, i, what=what: ask(running[name], f"{what} {i}"), rounds)
    for process in running.values():
        process.communicate()
    for kind in ("sound", "failing"):
        compare(f"first call, {kind}", lambda name, _, kind=kind: first(trees[name], kind), firsts)
    store.keep(options, {"rows": rows})
