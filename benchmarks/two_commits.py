"""Two checkouts side by side: hypergradients of W1 and W2 through the public door, and their first calls.

    python benchmarks/two_commits.py PATH_OF_THE_OTHER [--rounds 15]

Each checkout has a process of its own, which imports its own ``src`` and ``benchmarks/workloads.py``; the calls
alternate,
and what is compared are medians of process CPU seconds. First calls are of fresh processes in turn. Prints a markdown
table, and keeps it in benchmarks/results/two_commits.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

WORKER = """
import sys, time
root = sys.argv[1]
sys.path[:0] = [root + "/src", root + "/benchmarks"]
import jax, workloads as w
assert w.bx.__file__.startswith(root), w.bx.__file__
SHAPES = {"W1": w.W1, "W2": w.W2[22]}
def case(name, kind):
    return w.logistic(SHAPES[name], kind)
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
    name, kind, report, i = line.split()
    made = cases.setdefault((name, kind), case(name, kind))
    began = time.process_time()
    out = made.round(int(i)).value if report == "report" else made.alone(int(i))[1]
    jax.block_until_ready(out)
    print(time.process_time() - began, flush=True)
"""


def worker(root: Path, *arguments: str) -> "subprocess.Popen[str]":
    """A process that runs the code of one checkout, with one thread."""
    threads = dict.fromkeys(("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = os.environ | threads | {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", WORKER, str(root), *(arguments or ("calls",))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def ask(process: "subprocess.Popen[str]", line: str) -> float:
    """The CPU seconds of one call."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(line, file=process.stdin, flush=True)
    return float(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    trees = {"other": options.other.resolve(), "this": ROOT}
    rows: list[dict[str, Any]] = []
    running = {name: worker(tree) for name, tree in trees.items()}
    for what in (
        f"{w} {kind} {report}" for w in ("W1", "W2") for kind in ("iid", "blocks") for report in ("report", "none")
    ):
        for process in running.values():
            ask(process, f"{what} 0")
            ask(process, f"{what} 1")
        spent: dict[str, list[float]] = {name: [] for name in trees}
        for i in range(options.rounds):
            for name in sorted(trees, reverse=bool(i % 2)):
                spent[name].append(ask(running[name], f"{what} {i}"))
        medians = {name: statistics.median(x) for name, x in spent.items()}
        rows.append({"what": what, **medians, "ratio": medians["this"] / medians["other"]})
    for process in running.values():
        process.communicate()
    for kind in ("sound", "failing"):
        first: dict[str, list[float]] = {name: [] for name in trees}
        for _ in range(3):
            for name, tree in trees.items():
                out, _ = worker(tree, "first", kind).communicate()
                first[name].append(float(out.split()[0]))
        medians = {name: statistics.median(x) for name, x in first.items()}
        rows.append({"what": f"first call, {kind}", **medians, "ratio": medians["this"] / medians["other"]})
    print("| CPU seconds | other | this | ratio |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['what']} | {row['other']:.4g} | {row['this']:.4g} | {row['ratio']:.3f} |")
    (ROOT / "benchmarks" / "results" / "two_commits.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
