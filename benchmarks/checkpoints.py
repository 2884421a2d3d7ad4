"""What do checkpoints cost a run of W1's size?

W1 is multinomial logistic regression, 30,000 rows of train and of val, 784 features, ten classes, a penalty a feature,
minibatches of 90 in blocks. Three algorithms: SOBA (its state is w, u, lam), SABA (a table of the directions of every
block too), BSGM with SID and warm starts. Of each it measures one run with and one without a directory, both of which
take at least as long as asked for, and in the former

- *fingerprints*: of the data and the functions, once before the first step;
- *a checkpoint*: the median over the run, wall and CPU seconds, and its size;
- *share*: CPU seconds of a save over the 30 between two of them (goal .01), and wall seconds likewise.

One thread on one core; the directory is on the disk of the working directory.
"""

import argparse
import json
import tempfile
import time
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine, store

APART, GOAL = 30.0, 0.01


def measured(name: str, seconds: float, quick: bool) -> list[dict[str, Any]]:
    """The rows of one algorithm."""
    import jax

    import bilevax as bx
    from benchmarks import cases as w

    driver = import_module("bilevax.runs.minimize")
    shape = w.W1_QUICK if quick else w.W1
    sources = tuple(bx.Arrays(rows, batch_size=shape.batch, sampling="blocks") for rows in w.split(shape))
    c = w.logistic(shape, "blocks", sources=sources)
    algorithm = getattr(bx, name)(0.5, 0.1) if name != "BSGM" else bx.BSGM(
        bx.SID(bx.FixedPoint(100), bx.FixedPoint(100), 10, 10), bx.optim("adam", learning_rate=0.01), warm_start=True
    )  # fmt: skip
    start, key = (c.problem, algorithm, c.w0, c.lam, *sources), jax.random.key(0)

    saves: list[tuple[float, float]] = []

    class Timed(driver._Keep):  # type: ignore[misc, name-defined]
        def save(self) -> None:
            saves.append(machine.times_of_one(super().save))

    def run(directory: str | None) -> tuple[float, float]:
        kept = None if directory is None else bx.Run(directory, seconds=seconds / 12)
        limit = bx.TimeLimit(seconds)
        wall, cpu = time.perf_counter(), time.process_time()
        bx.minimize(*start, steps=10**8, key=key, callback=limit, run=kept)
        return time.process_time() - cpu, time.perf_counter() - wall

    before, driver._Keep = driver._Keep, Timed  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:
        run(None)
        run(directory)
        newest = max(Path(directory).glob("step_*"))
        size = sum(file.stat().st_size for file in newest.iterdir())
        clock = time.perf_counter(), time.process_time()
        driver.identity(c.problem, algorithm, (c.w0, c.lam), sources, key)
        named = time.process_time() - clock[1], time.perf_counter() - clock[0]
    driver._Keep = before  # type: ignore[attr-defined]
    cpu, wall = (median(save[i] for save in saves) for i in (0, 1))
    return [
        {"what": f"{name}: fingerprints at the start", "cpu_s": named[0], "wall_s": named[1]},
        {"what": f"{name}: a checkpoint", "cpu_s": cpu, "wall_s": wall, "MB": size / 1e6, "saves": len(saves)},
        {"what": f"{name}: share of the time, every {APART:g} s", "cpu": cpu / APART, "wall": wall / APART,
         "goal": GOAL, "met": max(cpu, wall) / APART <= GOAL},
    ]  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60.0, help="of a run; default %(default)s; with --quick 1")
    parser.add_argument("--core", type=int, default=0, help="the core to run on")


def main(options: argparse.Namespace) -> None:
    machine.pin(options.core, options.quick)
    rows = []
    for name in ("SOBA", "SABA", "BSGM"):
        for row in measured(name, 1.0 if options.quick else options.seconds, options.quick):
            if options.quick:  # no goal applies
                row = {k: v for k, v in row.items() if k not in ("goal", "met")}
            print(json.dumps({k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in row.items()}), flush=True)
            rows.append(row)
    store.keep(options, {"rows": rows})
