"""What only a fresh process can tell: the time to compile, cold and from the persistent cache, and peak memory."""

import tempfile
import time
from statistics import median
from typing import Any

from benchmarks.machine import fresh, peak_bytes

COLD, CACHED = 2.0, 1.0
ALLOWED_BYTES = 0.5e9

Row = dict[str, Any]


def compilation(quick: bool, rounds: int) -> list[Row]:
    """CPU seconds of the first call of W1, less those of a second one; medians over fresh processes."""
    repeats, out = (1 if quick else 5), []
    for sampling in ("blocks",) if quick else ("iid", "blocks"):
        kinds: dict[str, list[dict[str, Any]]] = {"cold": [], "cached": []}
        for _ in range(repeats):
            once = "benchmarks.fresh:compile_once", sampling, quick
            with tempfile.TemporaryDirectory() as cache:
                kinds["cold"].append(fresh(*once))
                fresh(*once, cache=cache)
                kinds["cached"].append(fresh(*once, cache=cache))
        for kind, goal in (("cold", COLD), ("cached", CACHED)):
            seconds = {clock: median(run[clock] for run in kinds[kind]) for clock in ("cpu", "wall")}
            out.append({
                "what": f"compile W1, {sampling}, {kind}, seconds",
                "cpu_ms": 1e3 * seconds["cpu"], "wall_ms": 1e3 * seconds["wall"],
                "value": seconds["cpu"], "goal": goal, "met": bool(seconds["cpu"] <= goal),
                "note": f"tracing and lowering included; {repeats} processes", "runs": kinds[kind],
            })  # fmt: skip
        again = max(run["compiled_again"] for run in kinds["cold"])
        note = "other step sizes, counts, lam, data; rebuilt objects"
        what = f"programs compiled for new numbers, {sampling}"
        out.append({"what": what, "value": again, "goal": 0, "met": again == 0, "note": note})
    return out


def memory(quick: bool, rounds: int) -> list[Row]:
    """Peak resident memory of a process that makes W1's data and calls the public door once, against its goal."""
    out = []
    for sampling in ("blocks",) if quick else ("iid", "blocks"):
        run = fresh("benchmarks.fresh:memory_once", sampling, quick)
        goal = run["data"] + 3 * run["variables"] + ALLOWED_BYTES
        parts = ", ".join(f"{run[k] / 1e6:.0f} MB {text}" for k, text in MOMENTS.items())
        out.append({
            "what": f"peak memory W1, {sampling}, GB", "value": run["peak"] / 1e9, "goal": goal / 1e9,
            "met": bool(run["peak"] <= goal), "note": f"{parts}; data {run['data'] / 1e6:.0f} MB", "run": run,
        })  # fmt: skip
    return out


MOMENTS = {"imported": "with the package imported", "made": "with the sources made", "peak": "at the end"}


def compile_once(sampling: str, quick: bool) -> dict[str, Any]:
    """Clocks of the first call less the second, and how many programs new numbers compile afterwards."""
    import jax
    import jax.numpy as jnp

    import bilevax as bx
    from benchmarks import cases as w

    shape = (w.W1_QUICK if quick else w.W1)._replace(steps=10)  # the count is an argument: the program is W1's
    case, keys = w.logistic(shape, sampling), (w.key_of(0), w.key_of(1))
    jax.block_until_ready((case.train.data, case.val.data))

    def clocks() -> tuple[float, float]:
        cpu, wall = time.process_time(), time.perf_counter()
        jax.block_until_ready(case(keys[0]))
        return time.process_time() - cpu, time.perf_counter() - wall

    first, second = clocks(), clocks()
    train, val = w.rows(shape.n, shape.d, shape.classes, 7), w.rows(shape.n_val, shape.d, shape.classes, 8)
    other = case._replace(
        problem=bx.Problem(bx.GradientStep(bx.MultinomialLogistic(penalty="feature"), 0.125), bx.MultinomialLogistic()),
        estimator=bx.SID(inner=bx.FixedPoint(steps=7, step_size=0.25), linear=bx.FixedPoint(steps=8, step_size=1.0)),
        lam=case.lam + jnp.float32(0.5),
        train=bx.Arrays(train, batch_size=shape.batch, sampling=sampling),
        val=bx.Arrays(val),
    )
    compiled = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.block_until_ready(other(keys[1]))
    again = len(compiled)
    jax.block_until_ready(jax.jit(lambda x: x * 3 + 1)(jnp.ones(7)))
    if len(compiled) == again:
        raise RuntimeError("this version of JAX does not report what it compiles")
    return {"cpu": first[0] - second[0], "wall": first[1] - second[1], "compiled_again": again}


def memory_once(sampling: str, quick: bool) -> dict[str, Any]:
    """Peak bytes at three moments. The caller's numpy arrays are given up as soon as their source is made."""
    import jax

    import bilevax as bx
    from benchmarks import cases as w

    shape = w.W1_QUICK if quick else w.W1
    key, imported = w.key_of(0), peak_bytes()
    train = bx.Arrays(w.rows(shape.n, shape.d, shape.classes, 1), batch_size=shape.batch, sampling=sampling)
    val = bx.Arrays(w.rows(shape.n_val, shape.d, shape.classes, 2))
    jax.block_until_ready((train.data, val.data))
    made = peak_bytes()
    case = w.logistic(shape, sampling, step=lambda _: 1.0, sources=(train, val))
    jax.block_until_ready(case(key))
    size = sum(x.nbytes for x in jax.tree.leaves((train.data, val.data)))
    variables = sum(x.nbytes for x in (case.w0, case.w0, case.lam))
    return {"imported": imported, "made": made, "peak": peak_bytes(), "data": size, "variables": variables}
