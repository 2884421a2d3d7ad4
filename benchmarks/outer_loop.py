"""What does the outer loop cost: a single-loop algorithm through it against a bare scan over the same losses?

The shape is that of W5: binary logistic regression, 50,000 rows of train and of val, 22 features, one penalty a
feature, minibatches of 64 from both; in blocks the last one has 16 rows. Of SOBA it measures

- *bare*: ``jax.lax.scan`` over minibatches that were chosen beforehand, one vector-Jacobian product and one gradient a
  step, nothing recorded, and the short block slid back to 64 rows;
- *own loop*: ``bx.fold_looks`` over ``SOBA.step``, nothing recorded;
- *loop*: what ``bx.minimize`` compiles, with an entry of the history every 256 steps;
- *minimize*: all of ``bx.minimize``.

Cases take turns, on one thread of one core; a ratio is that of their medians of process CPU time. Then one outer step
of BSGM with few inner steps, and a long run of SOBA: what its memory grows by, and the share of its time that records
take.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from benchmarks import machine, store

SAMPLINGS = ("blocks", "iid", "shuffled")
GOALS = {"blocks": 1.15, "iid": 1.4, "shuffled": 1.4}
RECORD_SHARE, ROUNDING = 0.01, 1e-4
RHO, RATIO = 0.5, 0.1


def case(sampling: str, quick: bool) -> Any:
    """The problem of W5, with two sources of minibatches."""
    import bilevax as bx
    from benchmarks import cases as w

    shape = w.W2_QUICK[22] if quick else w.W2[22]
    sources = [bx.Arrays(rows, batch_size=shape.batch, sampling=sampling) for rows in w.split(shape)]
    return w.logistic(shape, sampling, sources=tuple(sources))


def chosen(source: Any, key: Any, steps: int) -> Any:
    """The rows of each minibatch of a stream, [steps, b], or the first row of each block, [steps]."""
    import jax.numpy as jnp

    import bilevax as bx

    numbers, b = jnp.arange(source.rows), source.rows_per_batch
    blocks = source.sampling == "blocks"
    source = bx.Arrays(numbers, b, source.sampling, seed=None)  # rows that are their own numbers, in the same order

    def note(log: Any, _: Any, j: Any, draw: Any) -> Any:
        return log.at[j].set(draw.block * b if blocks else draw.batch)

    shape = (steps,) if blocks else (steps, b)
    return source.fold(note, jnp.zeros(shape, jnp.int32), (), key=key, start=0, stop=steps)


def bare(problem: Any, blocks: bool) -> Callable[..., Any]:
    """SOBA by hand."""
    import jax

    loss, outer = problem.inner_loss, problem.outer_loss

    def batch(data: Any, at: Any) -> Any:
        if blocks:
            return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, at, 64), data)
        return jax.tree.map(lambda a: a.at[at].get(mode="promise_in_bounds"), data)

    @jax.jit
    def run(start: Any, train: Any, val: Any, places: Any, steps: Any) -> Any:
        rho, gamma = steps

        def step(p: Any, at: Any) -> Any:
            w, u, lam = p
            rows, held = batch(train, at[0]), batch(val, at[1])
            g, pullback = jax.vjp(lambda w, lam: jax.grad(loss)(w, lam, rows), w, lam)
            hu, cross = pullback(u)
            by_w, by_lam = jax.grad(outer, (0, 1))(w, lam, held)
            return (w - rho * g, u + rho * (by_w - hu), lam - gamma * (by_lam - cross)), None

        return jax.lax.scan(step, start, places)[0]

    return run


def soba(sampling: str, quick: bool, rounds: int) -> list[dict[str, Any]]:
    """Microseconds a step, four ways."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import bilevax as bx
    from bilevax.algorithms.outer_loop import advance
    from bilevax.core.config import canonicalize
    from bilevax.data.looks import stream_key

    c, steps = case(sampling, quick), 256 if quick else 16_384
    sources, key = (c.train, c.val), jax.random.key(0)
    ready = canonicalize(c.problem), canonicalize(bx.SOBA(RHO, RATIO))
    problem, algorithm = ready
    state = algorithm.init(problem, c.w0, c.lam, sources)
    places = tuple(chosen(s, stream_key(key, name), steps) for s, name in zip(sources, ("train", "val"), strict=True))
    by_hand = bare(c.problem, sampling == "blocks")
    sizes = jnp.float32(RHO), jnp.float32(RHO * RATIO)

    @jax.jit
    def own(problem: Any, algorithm: Any, state: Any, sources: Any, key: Any, stop: Any) -> Any:
        def step(p: Any, _: Any, k: Any, looks: Any) -> Any:
            return algorithm.step(problem, p, looks, k)[0]

        return bx.fold_looks(algorithm.streams(sources), step, state, (), key=key, start=0, stop=stop)

    loop = jax.jit(partial(advance, start=jnp.int32(0)))
    cases = {
        "bare": lambda _: by_hand(tuple(state), c.train.data, c.val.data, places, sizes),
        "own loop": lambda _: own(*ready, state, sources, key, steps),
        "loop": lambda _: loop(*ready, state, sources, key=key, stop=jnp.int32(steps)),
        "minimize": lambda _: bx.minimize(*ready, c.w0, c.lam, *sources, steps=steps, key=key).lam,
    }
    compiled = {}
    for name, run in cases.items():
        clock = time.process_time()
        jax.block_until_ready(run(0))
        compiled[name] = time.process_time() - clock
    ends = [
        np.asarray(jax.tree.leaves(out)[-1])
        for out in (
            cases["bare"](0),
            (own(*ready, state, sources, key, steps)),
        )
    ]
    ends.append(np.asarray(cases["loop"](0).state.lam))
    moved = np.linalg.norm(ends[1] - np.asarray(c.lam))
    times = machine.alternate(cases, rounds)
    base, out = median(times["bare"].cpu), []
    for name, t in times.items():
        us = 1e6 * median(t.cpu) / steps
        row = {"what": f"SOBA {sampling}, {name}", "us": us, "ratio": median(t.cpu) / base, "compile_s": compiled[name]}
        if name == "loop":
            row |= {"goal": GOALS[sampling], "met": row["ratio"] <= GOALS[sampling]}
            row["share_of_records"] = 1 - median(times["own loop"].cpu) / median(t.cpu)
        out.append(row)
    apart = max(float(np.linalg.norm(end - ends[1]) / moved) for end in ends)
    same = {} if sampling == "blocks" else {"goal": ROUNDING, "met": apart <= ROUNDING}  # bare slides the short block
    return [*out, {"what": f"SOBA {sampling}, lam: farthest from each other / way", "value": apart} | same]


def bsgm(sampling: str, quick: bool, rounds: int) -> list[dict[str, Any]]:
    """Microseconds an outer step of BSGM with few inner steps."""
    import jax
    import jax.numpy as jnp

    import bilevax as bx
    from bilevax.algorithms.outer_loop import advance
    from bilevax.core.config import canonicalize

    c, steps = case(sampling, quick), 16 if quick else 64
    sources, key, cases = (c.train, c.val), jax.random.key(0), {}

    @jax.jit
    def loop(problem: Any, algorithm: Any, state: Any, sources: Any, key: Any) -> Any:
        return advance(problem, algorithm, state, sources, key=key, start=jnp.int32(0), stop=jnp.int32(steps))

    for counts in ((1, 1, 1, 1), (10, 10, 1, 1)):
        sid = bx.SID(bx.FixedPoint(counts[0]), bx.FixedPoint(counts[1]), *counts[2:])
        ready = canonicalize(c.problem), canonicalize(bx.BSGM(sid, bx.optim("sgd", RHO * RATIO), warm_start=True))
        state = ready[1].init(ready[0], c.w0, c.lam, sources)
        cases[str(counts)] = partial(lambda ready, state, _: loop(*ready, state, sources, key), ready, state)
    times = machine.alternate(cases, rounds)
    return [
        {"what": f"BSGM(SID{name}, warm) {sampling}", "us": 1e6 * median(t.cpu) / steps} for name, t in times.items()
    ]


def long_run(steps: int) -> list[dict[str, Any]]:
    """Memory and book-keeping of a long run of SOBA."""
    import jax

    import bilevax as bx
    from bilevax.runs.history import Log

    c, spent = case("blocks", steps < 100_000), [0.0]
    run = partial(bx.minimize, c.problem, bx.SOBA(RHO, RATIO), c.w0, c.lam, c.train, c.val, key=jax.random.key(0))
    append = Log.append

    def timed(self: Log, *args: Any) -> None:
        clock = time.process_time()
        append(self, *args)
        spent[0] += time.process_time() - clock

    run(steps=steps // 10)
    before = machine.peak_bytes()
    Log.append = timed  # type: ignore[method-assign]
    clock = time.process_time()
    result = run(steps=steps)
    whole = time.process_time() - clock
    Log.append = append  # type: ignore[method-assign]
    share = spent[0] / whole
    return [
        {"what": f"SOBA, {steps:,} steps: CPU seconds", "value": whole, "entries": len(result.history.code)},
        {"what": "its records on the host, share of the time", "value": share, "goal": RECORD_SHARE,
         "met": share <= RECORD_SHARE},
        {"what": "its growth of peak memory, MB", "value": (machine.peak_bytes() - before) / 1e6},
    ]  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    machine.arguments(parser, 41)
    parser.add_argument("--steps", type=int, default=1_000_000, help="of the long run")


def main(options: argparse.Namespace) -> None:
    machine.pin(options.core, options.quick)
    rounds, rows = 3 if options.quick else options.rounds, []
    for part in (
        *(partial(soba, s, options.quick, rounds) for s in SAMPLINGS),
        *(partial(bsgm, s, options.quick, rounds) for s in SAMPLINGS),
        partial(long_run, 3000 if options.quick else options.steps),
    ):
        for row in part():
            print(json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}), flush=True)
            rows.append(row)
    store.keep(options, {"rounds": rounds, "rows": rows})
