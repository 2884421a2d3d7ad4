"""What does a user pay for the first call: CPU seconds and peak memory, cold and with JAX's persistent cache?

Each line is run by a process of its own, after imports and data are there, on README's ridge (800 rows of 5) unless it
says otherwise. ``--against DIR`` runs the same on another checkout's sources, DIR/src, in turn with this one's;
``--programs`` prints what was compiled.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bilevax as bx
from benchmarks import machine, store, tables

GOALS = {"SID, report": 3.0, "SID, step too long": 6.0, "MLP, step too long": 6.0, "plan": 6.0, "check": 6.0}
EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "traced",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowered",
    "/jax/core/compile/backend_compile_duration": "compiled",
}
QUICK = "SID, report", "check"


def lines() -> dict[str, Callable[[], Any]]:
    """What is called, by name; data are made here, before the clock starts."""

    def inner(w: Any, lam: Any, batch: Any) -> Any:
        X, y = batch
        return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)

    def outer(w: Any, lam: Any, batch: Any) -> Any:
        X, y = batch
        return 0.5 * jnp.mean((X @ w - y) ** 2)

    def logits(w: Any, X: Any) -> Any:
        return jnp.tanh(X @ w["W1"] + w["b1"]) @ w["W2"] + w["b2"]

    def entropy(w: Any, X: Any, y: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(logits(w, X)), y[:, None], axis=1)[:, 0]

    def weighted(w: Any, lam: Any, batch: Any) -> Any:
        X, y, i = batch
        size = sum(jnp.sum(x**2) for x in jax.tree.leaves(w))
        return jnp.mean(jax.nn.sigmoid(lam[i]) * entropy(w, X, y)) + 0.5e-2 * size

    def clean(w: Any, lam: Any, batch: Any) -> Any:
        return jnp.mean(entropy(w, *batch))

    rng = np.random.default_rng(0)
    X = rng.normal(size=(1200, 5)).astype(np.float32)
    y = X @ np.array([1, -1, 0, 0, 0], np.float32) + rng.normal(size=1200).astype(np.float32)
    train, val = bx.Arrays((X[:800], y[:800]), batch_size=32), bx.Arrays((X[800:], y[800:]))
    some = bx.Arrays((X[800:], y[800:]), batch_size=32)
    problem = bx.Problem(bx.GradientStep(inner), outer, project=bx.Box(-8.0, 4.0))
    long = bx.Problem(bx.GradientStep(inner, 3.0), outer)
    falling = bx.Harmonic(beta=20, gamma=40)
    sid = bx.SID(bx.FixedPoint(1000, falling), bx.FixedPoint(1000, falling), cross_batches=10)
    constant = bx.SID(bx.FixedPoint(1000), bx.FixedPoint(1000), cross_batches=10)
    key, w0, lam = jax.random.key(0), np.zeros(5, np.float32), np.zeros(5, np.float32)

    labels = (X[:, 0] * X[:, 1] > 0).astype(np.int32)
    rows = bx.Arrays((X[:400], labels[:400], np.arange(400, dtype=np.int32)), batch_size=32)
    clean_rows = bx.Arrays((X[800:1000], labels[800:1000]))
    normal = rng.normal(size=(2, 160)).astype(np.float32)
    net = {"W1": normal[0, :80].reshape(5, 16), "b1": 0 * normal[0, :16],
           "W2": normal[1, :32].reshape(16, 2), "b2": 0 * normal[1, :2]}  # fmt: skip
    network = bx.Problem(bx.GradientStep(weighted, 60.0), clean)
    weights = np.zeros(400, np.float32)

    def gradient(problem: Any, estimator: Any, val: Any = val, **options: Any) -> Callable[[], Any]:
        return lambda: bx.hypergradient(problem, estimator, w0, lam, train, val, key=key, **options)

    bsgm = bx.BSGM(sid, outer=bx.optim("adam", learning_rate=0.05))
    return {
        "nothing": lambda: None,
        "SID, no report": gradient(problem, sid, report=False),
        "SID, report": gradient(problem, sid),
        "JointSID, report": gradient(problem, bx.JointSID(4000), some),
        "L-BFGS and CG, report": gradient(problem, bx.SID(bx.LBFGS(), bx.CG())),
        "SID to a target": gradient(problem, sid, target=0.05),
        "SID, step too long": gradient(long, constant),
        "JointSID, step too long": gradient(long, bx.JointSID(1000, 1.0), some),
        "MLP, SID, report": lambda: bx.hypergradient(
            bx.Problem(bx.GradientStep(weighted), clean), constant, net, weights, rows, clean_rows, key=key
        ),
        "MLP, step too long": lambda: bx.hypergradient(network, constant, net, weights, rows, clean_rows, key=key),
        "plan": lambda: bx.plan(problem, w0, lam, train, val, key=key, budget=100_000),
        "plan and run": lambda: bx.plan(problem, w0, lam, train, val, key=key, budget=100_000).run(key=key),
        "check": lambda: bx.check(problem, w0, lam, train, val, key=key),
        "minimize, BSGM": lambda: bx.minimize(problem, bsgm, w0, lam, train, val, steps=5, key=key),
    }


def measured(name: str) -> dict[str, Any]:
    """In a process of its own: CPU and wall seconds of the call, peak memory, and what was compiled."""
    spent: dict[str, list[tuple[str, float]]] = {label: [] for label in EVENTS.values()}

    def listen(event: str, duration: float, **about: Any) -> None:
        if event in EVENTS:
            spent[EVENTS[event]].append((str(about.get("fun_name", "")), duration))

    call = lines()[name]
    jax.monitoring.register_event_duration_secs_listener(listen)
    cpu, wall = time.process_time(), time.perf_counter()
    out = jax.block_until_ready(call())
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    programs = sorted(spent["compiled"], key=lambda p: -p[1])
    code = getattr(out, "code", None)
    return {
        "what": name, "cpu": cpu, "wall": wall, "programs": len(programs),
        "peak_MB": machine.peak_bytes() / 2**20,
        **{label: sum(seconds for _, seconds in each) for label, each in spent.items()},
        "code": None if code is None else int(code), "largest": programs[:12],
    }  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout, measured in turn")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"some of the lines; with --quick {QUICK}")
    parser.add_argument("--no-cache", action="store_true", help="leave out the runs with the persistent cache")
    parser.add_argument("--programs", action="store_true", help="print the largest programs of each line")


def main(options: argparse.Namespace) -> None:
    checkouts = {"this": machine.ROOT} | ({"against": options.against.resolve()} if options.against else {})
    rows = []
    table = tables.Table(
        "first call", "sources", "CPU s, cold", "goal", "cached", "peak MB", "programs", "traced", "lowered", "compiled"
    )
    for name in options.only or (QUICK if options.quick else lines()):
        for label, sources in checkouts.items():
            environment = {"PYTHONPATH": str(sources / "src"), "JAX_PLATFORMS": "cpu"}
            call = "benchmarks.first_calls:measured", name
            row = machine.fresh(*call, **environment) | {"sources": label}
            if not (options.no_cache or options.quick):
                with tempfile.TemporaryDirectory() as cache:
                    machine.fresh(*call, cache=cache, **environment)
                    row["cached"] = machine.fresh(*call, cache=cache, **environment)
            rows.append(row)
            figures = (row[key] for key in ("peak_MB", "programs", "traced", "lowered", "compiled"))
            table(name, label, row["cpu"], GOALS.get(name), row.get("cached", {}).get("cpu"), *figures)
            if options.programs:
                print(row["largest"], flush=True)
    store.keep(options, {"rows": rows})
