"""What is measured in one process: the workloads, the comparison with bare JAX, growth with n and m, vmap."""

from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bilevax as bx
from benchmarks import bare_jax
from benchmarks import cases as w
from benchmarks.machine import Ceilings, Times, alternate

Row = dict[str, Any]

SAMPLINGS = ("iid", "blocks", "shuffled")
API_TO_BARE = 1.05
REPORT = 1.15
BARE_TO_ROOFLINE = {"iid": 4.0, "blocks": 2.8}
GROWTH = 1.2
FOUR_KEYS = 3.7
ROUNDING = 1e-3
"""Relative distance up to which two float32 runs of 2,000 steps on the same rows may drift apart."""


def milliseconds(what: str, times: Times, note: str = "") -> Row:
    """A row of medians; every round is kept."""
    cpu, wall = ([round(1e3 * s, 4) for s in t] for t in times)
    return {"what": what, "cpu_ms": median(cpu), "wall_ms": median(wall), "note": note, "rounds": [cpu, wall]}


def ratio(what: str, top: Times, bottom: Times, goal: float | None = None, scale: float = 1.0) -> Row:
    """A row with the ratio of medians, of CPU time (which is held against the goal) and of wall time."""
    value, wall = (scale * median(a) / median(b) for a, b in zip(top, bottom, strict=True))
    low, _, high = quantiles([scale * a / b for a, b in zip(top.cpu, bottom.cpu, strict=True)], n=4)
    note = f"wall {wall:.3f}, quartiles of the rounds {low:.3f} to {high:.3f}"
    return verdict(what, value, goal, note) | {"wall_value": wall, "quartiles": [low, high]}


def verdict(what: str, value: float, goal: float | None, note: str = "") -> Row:
    """A row with a number and whether it is within its goal."""
    row: Row = {"what": what, "value": value, "note": note}
    return row if goal is None else row | {"goal": goal, "met": bool(value <= goal)}


def code(case: w.Case) -> str:
    """The code of round 0's estimate."""
    return bx.Code(int(case.round(0).code)).name


def in_turn(cases: dict[str, w.Case], rounds: int) -> tuple[dict[str, Times], list[Row]]:
    """The times of cases, by what they are, and a row of each."""
    times = alternate({what: case.round for what, case in cases.items()}, rounds)
    return times, [milliseconds(what, times[what], code(case)) for what, case in cases.items()]


def w1(quick: bool, rounds: int) -> list[Row]:
    """W1 by the public door, by hand, which makes no report, and both against the ceilings of the same rounds."""
    shape = w.W1_QUICK if quick else w.W1
    api = {sampling: w.logistic(shape, sampling) for sampling in SAMPLINGS}
    bare = {(s, g): by_hand(shape, s, g) for s in BARE_TO_ROOFLINE for g in bare_jax.GRADIENTS}
    measured = w.logistic(shape, "blocks", step=lambda _: None)
    agreement = [agree(api[s], bare[s, g], f"{s}, {g}") for s, g in bare]
    ceilings = Ceilings(w.split(shape)[0][0], shape.batch, quick)

    cases: dict[str, Callable[[int], Any]] = {}
    for sampling in BARE_TO_ROOFLINE:
        cases[f"API {sampling}"] = api[sampling].round
        cases[f"alone {sampling}"] = api[sampling].alone
        for gradients in bare_jax.GRADIENTS:
            cases[f"bare {sampling} {gradients}"] = bare[sampling, gradients]
    cases |= {"API shuffled": api["shuffled"].round, "API blocks measured": measured.round}
    times = alternate(cases | ceilings.cases, rounds)

    out = [milliseconds(f"W1 API, {s}", times[f"API {s}"], code(api[s])) for s in api]
    out.append(milliseconds("W1 API, blocks, step measured", times["API blocks measured"], code(measured)))
    out += [milliseconds(f"W1 API, {s}, no report", times[f"alone {s}"]) for s in BARE_TO_ROOFLINE]
    out += [milliseconds(f"W1 bare JAX, {s}, {g}", times[f"bare {s} {g}"]) for s, g in bare]
    out += agreement + [milliseconds(f"ceiling: {name}", times[name]) for name in ceilings.cases]
    rates = ceilings.rates(lambda name: median(times[name].cpu))
    out.append(rate("ceiling: products", rates["flop"], "GFLOP/s"))
    out += [rate(f"ceiling: {name}", rates[name], "GB/s") for name in ("read", "gather")]
    for sampling, goal in BARE_TO_ROOFLINE.items():
        seconds, note = roofline(shape, rates, sampling)
        out.append({"what": f"W1 roofline, {sampling}", "cpu_ms": 1e3 * seconds, "note": note})
        best = min((times[f"bare {sampling} {g}"] for g in bare_jax.GRADIENTS), key=lambda t: median(t.cpu))
        reported, alone = times[f"API {sampling}"], times[f"alone {sampling}"]
        out.append(ratio(f"W1 API, no report / bare, {sampling}", alone, best, API_TO_BARE))
        out.append(ratio(f"W1 API / no report, {sampling}", reported, alone, REPORT))
        out.append(verdict(f"W1 bare / roofline, {sampling}", median(best.cpu) / seconds, goal))
        out.append(verdict(f"W1 API / roofline, {sampling}", median(reported.cpu) / seconds, None))
    return out + full_batch("W1", w.logistic(shape, "iid", estimator=deterministic()), quick)


def rate(what: str, value: float, unit: str) -> Row:
    """A row with a rate."""
    return {"what": what, "rate": value / 1e9, "unit": unit, "note": f"{value / 1e9:.1f} {unit}"}


def by_hand(shape: w.Shape, sampling: str, gradients: str) -> Callable[[int], Any]:
    """W1's hypergradient of round i in bare JAX, from the same numbers."""
    train, val = w.split(shape)
    rows = jax.device_put(bare_jax.shuffled(train) if sampling == "blocks" else train)
    held, size = jax.device_put(val), jnp.float32(w.step_size(shape))
    start, lam = jnp.zeros((shape.classes, shape.d), jnp.float32), w.log_penalties(shape)
    options = bare_jax.Settings(shape.batch, shape.steps, shape.steps, sampling, gradients, w.ETA_W, w.ETA_V)

    def run(i: int, chosen: Any = None) -> Any:
        return bare_jax.hypergradient(start, lam, size, rows, held, w.key_of(i), chosen, settings=options)

    return run


def agree(api: w.Case, bare: Callable[..., Any], what: str) -> Row:
    """The distance of the two hypergradients of one key, on the same minibatches: rounding."""
    a = np.stack([np.asarray(api.round(i).value, np.float64) for i in range(4)])
    b = np.stack([np.asarray(bare(i, blocks(api, w.key_of(i)))[0], np.float64) for i in range(4)])
    distance = float(np.linalg.norm(a - b, axis=1).max() / np.linalg.norm(a.mean(axis=0)))
    return verdict(f"W1 API from bare, relative distance, {what}", distance, ROUNDING)


def blocks(case: w.Case, key: jax.Array) -> tuple[jax.Array, ...] | None:
    """The blocks that the API takes for w and for v; None where it draws rows."""
    if case.train.sampling != "blocks":
        return None
    counts = case.estimator.inner.steps, case.estimator.linear.steps

    def taken(key: jax.Array, steps: int) -> jax.Array:
        chunks = [case.train.plan_chunk(None, key, j, True)[0] for j in range(0, steps, bare_jax.CHUNK)]
        return jnp.concatenate(chunks)[:steps]

    return tuple(taken(jax.random.fold_in(key, i), steps) for i, steps in enumerate(counts))


def roofline(shape: w.Shape, rates: dict[str, float], sampling: str) -> tuple[float, str]:
    """Seconds of W1 at the ceilings: the longer of its arithmetic and its reading.

    A step on w is two products of b d C multiplications and additions (scores, gradient), one on v three (scores of w
    and of v, gradient), the validation gradient two over n_val rows. Every minibatch and val are read from memory once.
    """
    flop = 2 * shape.d * shape.classes * (5 * shape.steps * shape.batch + 2 * shape.n_val)
    drawn, once = 4 * shape.d * 2 * shape.steps * shape.batch, 4 * shape.d * shape.n_val
    arithmetic = flop / rates["flop"]
    memory = drawn / rates["gather" if sampling == "iid" else "read"] + once / rates["read"]
    sizes = (
        f"{flop / 1e9:.2f} GFLOP in {1e3 * arithmetic:.1f} ms, {(drawn + once) / 1e9:.2f} GB in {1e3 * memory:.1f} ms"
    )
    return max(arithmetic, memory), sizes


def deterministic(max_steps: int = 500, directions: int = 1000) -> bx.SID:
    """L-BFGS and conjugate gradients on every row."""
    return bx.SID(inner=bx.LBFGS(max_steps=max_steps), linear=bx.CG(max_steps=directions))


def full_batch(what: str, case: w.Case, quick: bool) -> list[Row]:
    """A hypergradient by L-BFGS and CG, beside the stochastic ones."""
    cost = case.round(0).cost
    counts = f"{int(cost.gradients.calls)} gradients, {int(cost.hvps.calls)} products"
    times = alternate({what: case.round}, 1 if quick else 3)
    return [milliseconds(f"{what} API, L-BFGS and CG on every row", times[what], f"{code(case)}; {counts}")]


def w2(quick: bool, rounds: int) -> list[Row]:
    """W2 by the public door."""
    out = []
    for d, shape in (w.W2_QUICK if quick else w.W2).items():
        out += in_turn({f"W2 API, d={d}, {s}": w.logistic(shape, s) for s in SAMPLINGS}, rounds)[1]
        out += full_batch(f"W2, d={d},", w.logistic(shape, "iid", estimator=deterministic()), quick)
    return out


def w3(quick: bool, rounds: int) -> list[Row]:
    """W3 by the public door; on every row with 50 gradient steps and 10 directions, for the loss is not convex."""
    shape = w.W3_QUICK if quick else w.W3
    out = in_turn({f"W3 API, {s}": w.weighted_network(shape, s) for s in SAMPLINGS}, rounds)[1]
    return out + full_batch("W3", w.weighted_network(shape, "iid", deterministic(50, 10)), quick)


def rows_of_train(quick: bool, rounds: int) -> list[Row]:
    """Cost of a step against n, at the shapes of W1 and W2, with 1,000 rows of val, which do not grow with n.

    A minibatch of W2 is 14 kB, which a small table leaves in a cache and a large one does not; one of W1 is 282 kB.
    """
    sizes, steps = ((1000, 4000), 50) if quick else ((10_000, 400_000), 1000)
    out = []
    for d, classes, batch in ((54, 1, 64),) if quick else ((784, 10, 90), (54, 1, 64)):
        for sampling in SAMPLINGS[:1] if quick else SAMPLINGS:
            cases = {}
            for n in sizes:
                shape = w.Shape(n, 1000, d, classes, batch, steps)
                estimator = w.stochastic(shape, cross_batches=10)
                cases[n] = w.logistic(shape, sampling, step=lambda _: 1.0, estimator=estimator)
            times = alternate({str(n): case.round for n, case in cases.items()}, rounds)
            for n, case in cases.items():
                micro = f"{1e6 * median(times[str(n)].cpu) / (2 * steps):.2f} us a step; {code(case)}"
                out.append(milliseconds(f"n = {n:,}, d = {d}, {sampling}", times[str(n)], micro))
            name = f"cost of a step, n = {sizes[0]:,} -> {sizes[-1]:,}, d = {d}, {sampling}"
            out.append(ratio(name, times[str(sizes[-1])], times[str(sizes[0])], GROWTH))
            w.forget()
    return out


def hyperparameters(quick: bool, rounds: int) -> list[Row]:
    """Cost of W1 against m: one penalty in all, one per feature, one per weight."""
    shape, out = (w.W1_QUICK if quick else w.W1), []
    for sampling in SAMPLINGS[: 1 if quick else 2]:
        cases = [w.logistic(shape, sampling, per=per) for per in ("global", "feature", "weight")]
        times, rows = in_turn({f"m = {case.lam.size:,}, W1, {sampling}": case for case in cases}, rounds)
        first, _, last = times.values()
        out += [*rows, ratio(f"cost of W1, m = 1 -> {cases[-1].lam.size:,}, {sampling}", last, first, GROWTH)]
    return out


def four_keys(quick: bool, rounds: int) -> list[Row]:
    """The public door under vmap, over four keys, against one call, at W1."""
    shape, out = (w.W1_QUICK if quick else w.W1), []
    keys = jax.block_until_ready(jax.random.split(jax.random.key(0), 4))
    for sampling in SAMPLINGS[: 1 if quick else 2]:
        case = w.logistic(shape, sampling)
        name = f"W1, vmap over four keys / one, {sampling}"
        try:
            together = jax.block_until_ready(replicas(case, keys)[0])
        except Exception as error:  # reported in the table, not raised
            text = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
            out.append({"what": name, "note": f"not available: {text}", "goal": FOUR_KEYS, "met": False})
            continue
        alone = np.stack([np.asarray(case(key).value) for key in keys])
        distance = float(np.linalg.norm(alone - np.asarray(together)) / np.linalg.norm(alone))
        times = alternate({"one": case.round, "four": lambda _, case=case: replicas(case, keys)}, rounds)
        out += [milliseconds(f"W1, {n} keys, {sampling}", times[k]) for n, k in ((1, "one"), (4, "four"))]
        out.append(ratio(name, times["four"], times["one"], FOUR_KEYS))
        out[-1]["note"] += f"; relative distance from a loop {distance:.1e}"
    return out


@jax.jit
def replicas(case: w.Case, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values and codes of one hypergradient for each key."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        estimate = case(key)
        return estimate.value, estimate.code

    return jax.vmap(one)(keys)
