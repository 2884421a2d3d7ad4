"""How fast, how large and how wrong is one hypergradient on 20 Newsgroups?

Multinomial logistic regression on tf-idf, one penalty exp(lam_j) per word, half of the 11,293 training documents held
out: t = k = 1000 steps on minibatches of 90 documents, the gradient of the validation loss, ten cross products. Calls
with a report and without take turns; what they and four replicas take beside each other is of CPU.
"""

import argparse
import time
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

import bilevax as bx
from benchmarks import cases, datasets, machine, store, tables

SECONDS, GIGABYTES = 15.0, 2.0
REPORT, REPLICAS = 1.15, 4.2
"""With a report beside without; four replicas beside one."""


def timed(call: Any) -> tuple[Any, dict[str, float]]:
    """What a call returns, and its seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    out = jax.block_until_ready(call())
    return out, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def middle(calls: list[tuple[Any, dict[str, float]]], clock: str) -> float:
    """Median seconds of all calls but the first, which compiles."""
    return median(seconds[clock] for _, seconds in calls[1:])


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--batch", type=int, default=90)
    parser.add_argument("--steps", type=int, default=1000)


def main(options: argparse.Namespace) -> None:
    calls, steps, rows = (1, 20, 400) if options.quick else (options.calls, options.steps, None)
    data = datasets.newsgroups() if rows is None else datasets.newsgroups().few(rows)
    read = machine.peak_bytes()
    sid = bx.SID(bx.FixedPoint(steps), bx.FixedPoint(steps), cross_batches=10)
    case, built = timed(lambda: cases.penalised(data, batch=options.batch).by(sid))
    runs, alone = [], []
    for seed in range(1 + calls):
        runs.append(timed(lambda seed=seed: case(jax.random.key(seed))))
        alone.append(timed(lambda seed=seed: case.alone(seed)))
    peak, est = machine.peak_bytes(), runs[-1][0]
    four = [timed(lambda seed=seed: case(jax.random.key(seed), replicas=4)) for seed in range(2 + calls // 4)]
    exact = case.by(bx.SID(bx.LBFGS(1e-6), bx.CG(1e-6)), None, None)
    truth, reference = timed(lambda: exact(jax.random.key(0)))
    error = float(jnp.linalg.norm(est.value - truth.value) / jnp.linalg.norm(truth.value))
    wall, cpu = (middle(runs, clock) for clock in ("wall", "cpu"))
    report, replicas = cpu / middle(alone, "cpu"), middle(four, "cpu") / cpu
    found = [
        {"what": "sources built, seconds", "value": built["wall"]},
        {"what": "first call, compilation included, seconds", "value": runs[0][1]["wall"]},
        {"what": "later calls, median seconds", "value": wall, "goal": SECONDS, "met": wall <= SECONDS},
        {"what": "later calls, median CPU seconds", "value": cpu},
        {"what": "without a report, median seconds", "value": middle(alone, "wall")},
        {"what": "without a report, median CPU seconds", "value": middle(alone, "cpu")},
        {"what": "with a report, times without", "value": report, "goal": REPORT, "met": report <= REPORT},
        {"what": "four replicas, times one", "value": replicas, "goal": REPLICAS, "met": replicas <= REPLICAS},
        {"what": "peak memory, data read, GB", "value": read / 1e9},
        {"what": "peak memory, GB", "value": peak / 1e9, "goal": GIGABYTES, "met": peak < 1e9 * GIGABYTES},
        {"what": f"relative error, code {bx.Code(int(est.code)).name}", "value": error},
        {"what": f"L-BFGS and CG, code {bx.Code(int(truth.code)).name}, seconds", "value": reference["wall"]},
    ]
    table = tables.Table("what", "value", "at most", "met")
    for row in found:
        table(*map(row.get, ("what", "value", "goal", "met")))
    kept = data.X[cases.halves(data, 0)[0]]
    shape = {"rows": kept.shape[0], "columns": kept.shape[1], "non-zeros": kept.nnz, "classes": data.classes}
    store.keep(
        options,
        {
            "shape": shape,
            "rows": found,
            "calls": [seconds for _, seconds in runs],
            "alone": [seconds for _, seconds in alone],
        },
    )
