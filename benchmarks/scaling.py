"""What would a step cost on 8 to 512 hosts, and when is it better to average whole chains than gradients?

A model of two parts, whose constants are measured here between processes of one machine (gloo, one thread each):

    step(P)      = c0 + c1 (b / P) d + reduce(P, 4 d)       gradients averaged at every step, b / P rows a process
    chain(P)     = c0 + c1 (b / P) d                        a chain a process, averaged once, at its end
    reduce(P, m) = 2 (P - 1) latency + 2 (P - 1) / P m / bandwidth                                   a ring, m bytes

It is checked against steps that are run in 1, 2 and 4 processes, by constants fitted on other sizes of w. For a cluster
its latency and bandwidth are stated, not measured; c0 and c1 are those of a thread here. Writes docs/scaling.md.
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np

from benchmarks import machine, store, tables

ROWS = 64
"""Rows of a minibatch, over all processes."""

HOSTS = 8, 32, 128, 512
SIZES = 10**3, 10**4, 10**5, 10**6, 10**7, 10**8
CLUSTERS = {"Ethernet, 25 Gbit/s": (30e-6, 3.1e9), "InfiniBand, 200 Gbit/s": (3e-6, 25e9)}
"""Seconds a message and bytes a second, each way of each host: stated."""


def found(name: str, *arguments: Any, processes: int = 1) -> list[float]:
    """What the first process of a group timed, each on one thread."""
    words = [sys.executable, "-m", "benchmarks.scaling_ranks", name, json.dumps(arguments)]
    if processes > 1:
        door = [sys.executable, "-c", "from bilevax.cli import main; main()", "launch", "--restarts", "0"]
        words = [*door, "-n", str(processes), "--", *words]
    environment = os.environ | machine.ONE_THREAD | {"XLA_FLAGS": machine.XLA_FLAG}
    done = subprocess.run(words, cwd=machine.ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds: list[float] = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])[
        "seconds"
    ]
    return seconds


def line(x: Any, y: Any) -> tuple[float, float]:
    """Nonnegative (a, b) of the least relative squares of a + b x against y."""
    from scipy.optimize import nnls

    x, y = np.asarray(x, float), np.asarray(y)
    scale = x.max()
    a, b = nnls(np.stack([1 / y, x / scale / y], axis=1), np.ones(len(y)))[0]
    return float(a), float(b / scale)


def reduced(hosts: int, size: float, latency: float, bandwidth: float) -> float:
    """Seconds of a ring's all-reduce of so many float32."""
    return 2 * (hosts - 1) * latency + 2 * (hosts - 1) / hosts * 4 * size / bandwidth


def measure(quick: bool) -> dict[str, Any]:
    """Constants, and steps that had no part in them."""
    times, groups = (3, (2,)) if quick else (50, (2, 4))
    fitted, judged = ((1000, 10_000), (3000,)) if quick else ((10_000, 100_000, 500_000), (30_000, 300_000))
    shapes = [(rows, d) for d in fitted for rows in (ROWS // 4, ROWS)]
    # what is judged by is timed in the same process: what else runs here changes by the minute
    alone = found("step", [*shapes, *((ROWS, d) for d in judged)], times)
    c0, c1 = line([b * d for b, d in shapes], alone[: len(shapes)])
    out: dict[str, Any] = {"c0": c0, "c1": c1, "shapes": shapes, "alone": alone, "groups": {}, "checks": []}
    sizes = sorted({1000, *fitted})
    for P in groups:
        seconds = found("reduce", sizes, times, processes=P)
        a, b = line([4 * d for d in sizes], seconds)
        out["groups"][P] = {
            "sizes": sizes, "seconds": seconds,
            "latency": a / (2 * (P - 1)), "bandwidth": 2 * (P - 1) / P / b if b else float("inf"),
        }  # fmt: skip
    for P in (1, *groups):
        wanted = [(ROWS // P, d) for d in judged]
        own = out["groups"].get(P)
        seen = alone[len(shapes) :] if P == 1 else found("step", wanted, times, processes=P)
        for (rows, d), seconds in zip(wanted, seen, strict=True):
            # more processes than cores take turns
            turns = max(1.0, P / len(os.sched_getaffinity(0)))
            model = turns * (c0 + c1 * rows * d) + (reduced(P, d, own["latency"], own["bandwidth"]) if own else 0.0)
            out["checks"].append({"processes": P, "size": d, "measured": seconds, "model": model})
    return out


def cluster(c0: float, c1: float, latency: float, bandwidth: float) -> list[dict[str, Any]]:
    """Of each number of hosts: steps of each size, and from which size on chains are twice as quick."""
    out = []
    for P in HOSTS:
        chain = {d: c0 + c1 * max(ROWS * 8 / P, 1) * d for d in SIZES}
        step = {d: chain[d] + reduced(P, d, latency, bandwidth) for d in SIZES}
        twice = [d for d in SIZES if step[d] >= 2 * chain[d]]
        out.append({"hosts": P, "chain": chain, "step": step, "twice": twice})
    return out


def short(d: int) -> str:
    """A power of ten."""
    return f"{d:.0e}".replace("e+0", "e")


def page(record: dict[str, Any]) -> str:
    """The tables of docs/scaling.md."""
    of, ms = record["found"], lambda s: f"{1e3 * s:.3g}"
    words = [
        f"`python -m benchmarks scaling`, {str(record['setting']['date'])[:10]}, on a machine of"
        f" {record['setting']['cores']} cores. A thread: c0 = {1e6 * of['c0']:.3g} us a step and"
        f" c1 = {1e9 * of['c1']:.3g} ns a row and an entry of w.\n",
        tables.text(
            ("processes", "latency of a message, us", "bandwidth, GB/s", "4 kB, ms", "the largest, ms"),
            [[int(P), f"{1e6 * g['latency']:.3g}", f"{g['bandwidth'] / 1e9:.3g}", ms(g["seconds"][0]),
              f"{ms(g['seconds'][-1])} ({4 * g['sizes'][-1] / 1e6:.3g} MB)"] for P, g in of["groups"].items()],
        ) + "\n",
        f"Steps of {ROWS} rows that no cache holds, on sizes of w that the constants were not fitted on:\n",
        tables.text(
            ("processes", "entries of w", "measured, ms", "by the model, ms", "model / measured"),
            [[c["processes"], c["size"], ms(c["measured"]), ms(c["model"]), f"{c['model'] / c['measured']:.2f}"]
             for c in of["checks"]],
        ) + "\n",
    ]  # fmt: skip
    for name, constants in CLUSTERS.items():
        latency, bandwidth = constants
        words.append(
            f"## {name}\n\nStated: {1e6 * latency:.3g} us a message, {bandwidth / 1e9:.3g} GB/s. Minibatches of"
            f" {8 * ROWS} rows, at least one a host; milliseconds of a step with averaged gradients, and of a step of a"
            " chain alone.\n"
        )
        head = "hosts", *(f"d = {short(d)}" for d in SIZES), "chains twice as quick"
        rows = []
        for row in cluster(of["c0"], of["c1"], latency, bandwidth):
            cells = [f"{ms(row['step'][d])} / {ms(row['chain'][d])}" for d in SIZES]
            twice = ", ".join(short(d) for d in row["twice"]) or "at none"
            rows.append([row["hosts"], *cells, "at all" if len(row["twice"]) == len(SIZES) else twice])
        words.append(tables.text(head, rows) + "\n")
    sent = [[P, *(f"{2 * (P - 1) / P * 4 * d / 1e6:.3g}" for d in SIZES)] for P in HOSTS]
    head = "hosts", *(f"d = {short(d)}" for d in SIZES)
    words.append(
        "## Bytes\n\nMegabytes that each host sends in a step with averaged gradients; a chain sends them once.\n"
    )
    words.append(tables.text(head, sent) + "\n")
    return "\n".join(words)


def main(options: argparse.Namespace) -> None:
    record = {"found": measure(options.quick), "setting": machine.setting()}
    text = page(json.loads(json.dumps(store.plain(record))))
    print(text)
    if not options.quick:
        store.keep(options, {"found": record["found"]})
        tables.into(machine.ROOT / "docs" / "scaling.md", "scaling", f"{text}\n")
