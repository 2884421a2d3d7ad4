"""One hypergradient on 20 Newsgroups: time, peak memory, and how far it is from the truth.

    python benchmarks/newsgroups.py [--calls 5] [--batch 90] [--steps 1000]

Multinomial logistic regression on tf-idf, one penalty exp(lam_j) per word, half of the 11,293 training documents held
out: t = k = 1000 steps on minibatches of 90 documents, the gradient of the validation loss, ten cross products. Prints
a table and writes benchmarks/results/newsgroups.json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import datasets
import jax
import jax.numpy as jnp
import machine
import numpy as np

import bilevax as bx

RESULTS = Path(__file__).parent / "results" / "newsgroups.json"
SECONDS, BYTES = 15.0, 2e9
STRENGTH = 1e-3


def timed(call: Any) -> tuple[Any, dict[str, float]]:
    """What a call returns, and its seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    out = jax.block_until_ready(call())
    return out, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def measure(calls: int, batch: int, steps: int) -> dict[str, Any]:
    """The rows of the table, and every call."""
    data = datasets.newsgroups()
    held, kept = np.split(np.random.default_rng(0).permutation(len(data.y)), [len(data.y) // 2])
    train, val = (data.X[kept], data.y[kept]), (data.X[held], data.y[held])
    classes, d = int(data.y.max()) + 1, data.X.shape[1]
    read = machine.peak_bytes()
    problem = bx.Problem(bx.GradientStep(bx.MultinomialLogistic("feature")), bx.MultinomialLogistic())
    w0, lam = jnp.zeros((classes, d), jnp.float32), jnp.full(d, np.log(STRENGTH), jnp.float32)
    sid = bx.SID(bx.FixedPoint(steps), bx.FixedPoint(steps), cross_batches=10)
    (source, whole), built = timed(lambda: (bx.SparseRows(train, batch), bx.SparseRows(val)))

    def estimate(estimator: bx.SID, source: bx.SparseRows, seed: int) -> tuple[bx.Estimate, dict[str, float]]:
        return timed(lambda: bx.hypergradient(problem, estimator, w0, lam, source, whole, key=jax.random.key(seed)))

    runs = [estimate(sid, source, seed) for seed in range(1 + calls)]
    peak, est = machine.peak_bytes(), runs[-1][0]
    truth, reference = estimate(bx.SID(bx.LBFGS(1e-6), bx.CG(1e-6)), bx.SparseRows(train), 0)
    error = float(jnp.linalg.norm(est.value - truth.value) / jnp.linalg.norm(truth.value))
    wall, cpu = (float(np.median([seconds[clock] for _, seconds in runs[1:]])) for clock in ("wall", "cpu"))
    rows = [
        {"what": "sources built, seconds", "value": built["wall"]},
        {"what": "first call, compilation included, seconds", "value": runs[0][1]["wall"]},
        {"what": "later calls, median seconds", "value": wall, "goal": SECONDS, "met": wall <= SECONDS},
        {"what": "later calls, median CPU seconds", "value": cpu},
        {"what": "peak memory, data read, GB", "value": read / 1e9},
        {"what": "peak memory, GB", "value": peak / 1e9, "goal": BYTES / 1e9, "met": peak < BYTES},
        {"what": f"relative error, code {bx.Code(int(est.code)).name}", "value": error},
        {"what": f"L-BFGS and CG, code {bx.Code(int(truth.code)).name}, seconds", "value": reference["wall"]},
    ]
    shape = {"rows": len(kept), "columns": d, "non-zeros": int(train[0].nnz), "classes": classes}
    return {"shape": shape, "rows": rows, "calls": [seconds for _, seconds in runs]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--batch", type=int, default=90)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    record = {"setting": machine.setting(), "options": vars(options)}
    record |= measure(options.calls, options.batch, options.steps)
    for row in record["rows"]:
        goal = f"  at most {row['goal']:g}: {'yes' if row['met'] else 'NO'}" if "goal" in row else ""
        print(f"{row['what']:<60} {row['value']:9.4g}{goal}", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
