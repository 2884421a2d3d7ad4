"""The experiments of the paper on stochastic hypergradients, run again: figures and a page in docs/.

    python -m benchmarks.paper [--quick] [--only errors-synthetic,bilevel-fashion,...] [--page] [--processes 2]

Grazzi, Pontil, Salzo (2021), arXiv:2011.07122. Each experiment is a process of one thread, and keeps its results in
benchmarks/results/paper/; what is not run again stays as it was. ``--page`` only draws the figures and writes the page
from what is there. ``--quick`` tries the code on a few rows, dense and sparse, in a temporary folder.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import machine

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "paper"
EXPERIMENTS = ("errors-newsgroups", "bilevel-newsgroups", "errors-fashion", "bilevel-fashion", "errors-synthetic")
"""The longest first."""

QUICK = ("errors-newsgroups", "bilevel-newsgroups", "errors-synthetic")
QUICK_ROWS = 400


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few rows, two runs: a smoke test, no measurement")
    parser.add_argument("--only", help=f"some of {','.join(EXPERIMENTS)}; with --quick, by default no fashion")
    parser.add_argument("--page", action="store_true", help="draw and write only")
    parser.add_argument("--processes", type=int, default=2, help="at a time, default %(default)s")
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)  # given to the process of one experiment
    out = parser.parse_args()
    out.only = tuple(out.only.split(",")) if out.only else QUICK if out.quick else EXPERIMENTS
    if unknown := set(out.only) - set(EXPERIMENTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return out


def experiment(name: str, quick: bool) -> dict[str, Any]:
    """Run one experiment in this process."""
    import jax
    from benchmarks.paper import bilevel, errors, problems

    jax.config.update("jax_enable_x64", True)  # for the references; the rows of the real data stay float32
    part, _, data_name = name.partition("-")
    module: Any = {"errors": errors, "bilevel": bilevel}[part]
    data = problems.LOADERS[data_name]()
    if quick:
        jax.config.update("jax_disable_most_optimizations", True)
        data = data.few(QUICK_ROWS)
    clock = time.perf_counter()
    found = module.experiment(data, module.QUICK if quick else module.PLANS[data_name], lambda s: print(s, flush=True))
    return {"setting": machine.setting(), "seconds": time.perf_counter() - clock, **found}


def fetch(names: tuple[str, ...]) -> None:
    """Download the data of these experiments, or say what is missing."""
    from benchmarks.paper.problems import FETCH

    for data in sorted({name.partition("-")[2] for name in names} & FETCH.keys()):
        try:
            FETCH[data]()
        except (FileNotFoundError, subprocess.CalledProcessError) as e:
            sys.exit(str(e))


def start(name: str, quick: bool, folder: Path) -> None:
    """Run one experiment in a process of its own, on one thread."""
    command = [sys.executable, "-m", "benchmarks.paper", "--only", name, "--results", str(folder)]
    subprocess.run([*command, *(["--quick"] if quick else [])], check=True, env=os.environ | machine.ONE_THREAD)


def write(results: Path, folder: Path) -> None:
    """Figures and page from the results that there are."""
    from benchmarks.paper import figures, page

    found = {name: json.loads(file.read_text()) for name in EXPERIMENTS if (file := results / f"{name}.json").exists()}
    drawn = figures.draw(found, folder / "paper")
    (folder / "paper.md").write_text(page.text(found, drawn))
    print(f"{folder / 'paper.md'} and {len(drawn)} figures")


def run(chosen: argparse.Namespace, results: Path, folder: Path) -> None:
    """All experiments that were asked for, some at a time, then the page."""
    results.mkdir(parents=True, exist_ok=True)
    if not chosen.page:
        fetch(chosen.only)
        with ThreadPoolExecutor(chosen.processes) as pool:
            list(pool.map(lambda name: start(name, chosen.quick, results), chosen.only))
    write(results, folder)


def main() -> None:
    chosen = options()
    if chosen.results:
        (name,) = chosen.only
        record = experiment(name, chosen.quick)
        (chosen.results / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    elif chosen.quick:
        with tempfile.TemporaryDirectory() as folder:
            run(chosen, Path(folder), Path(folder))
    else:
        run(chosen, RESULTS, ROOT / "docs")


if __name__ == "__main__":
    main()
