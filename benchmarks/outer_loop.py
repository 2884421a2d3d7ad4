"""What does the outer loop cost: an algorithm through it against a bare scan by hand over the same losses?

The shape is that of W5: binary logistic regression, 50,000 rows of train and of val, 22 and 54 features, one penalty a
feature, minibatches of 64 from both; in blocks the last one has 16 rows. Of each algorithm it measures

- *bare*: the scan of ``bare_loops``, over minibatches that were chosen beforehand, nothing recorded;
- *loop*: what ``bx.minimize`` compiles, with its entries of the history, in one call of at most 64 of them;
- of SOBA also *own loop*, ``bx.fold_looks`` over its ``step``, nothing recorded, and *minimize*, all of it.

In blocks with 22 features bare SOBA takes its turn with each algorithm, as the unit. Cases take turns, on one thread of
one core; a ratio is that of their medians of process CPU time. Where lam ends must be the same in *bare* and in *loop*.
Then one outer step of BSGM with few inner steps, and a long run of SOBA: what its memory grows by, and the share of its
time that records take.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from benchmarks import machine, store

NAMES = ("SOBA", "MASOBA", "SABA", "SRBA", "AmIGO", "StocBiO", "SUSTAIN", "F2SA",
         "FSLA", "BSA", "ALSET", "TTSA", "MSTSA", "MRBO", "VRBO")  # fmt: skip
DOUBLE = ("AmIGO", "StocBiO", "SUSTAIN", "F2SA", "FSLA", "BSA", "ALSET", "TTSA", "MSTSA", "MRBO", "VRBO")
SHORT = ("F2SA", "FSLA")  # without a loop in the loop
LATER = NAMES[8:]
STEPS = {False: 16_384, True: 4096}  # of a run, by whether it has a loop in the loop
SAMPLINGS = ("blocks", "iid", "shuffled")
UNITS = {"SOBA": 1.05, "SABA": 1.8, "SRBA": 3.5, "AmIGO": 10.0, "StocBiO": 10.0}
RECORD_SHARE, ROUNDING = 0.01, 1e-4
RHO, RATIO = 0.5, 0.1


def case(sampling: str, quick: bool, d: int = 22) -> Any:
    """The problem of W5, with two sources of minibatches."""
    import bilevax as bx
    from benchmarks import cases as w

    shape = w.W2_QUICK[d] if quick else w.W2[d]
    sources = [bx.Arrays(rows, batch_size=shape.batch, sampling=sampling) for rows in w.split(shape)]
    return w.logistic(shape, sampling, sources=tuple(sources))


def built(name: str) -> Any:
    """An algorithm with given steps, so that nothing is measured."""
    import bilevax as bx

    return getattr(bx, name)(RHO, RATIO, **({"unit": 1.0} if name == "F2SA" else {}))


def chosen(source: Any, key: Any, number: int) -> Any:
    """The rows of the first so many minibatches of a stream, [number, b], or the first row of each block, [number]."""
    import jax.numpy as jnp

    import bilevax as bx

    numbers, b = jnp.arange(source.rows), source.rows_per_batch
    blocks = source.sampling == "blocks"
    source = bx.Arrays(numbers, b, source.sampling, seed=None)  # rows that are their own numbers, in the same order

    def note(log: Any, _: Any, j: Any, draw: Any) -> Any:
        return log.at[j].set(draw.block * b if blocks else draw.batch)

    shape = (number,) if blocks else (number, b)
    return source.fold(note, jnp.zeros(shape, jnp.int32), (), key=key, start=0, stop=number)


def places(algorithm: Any, sources: tuple[Any, Any], key: Any, steps: int) -> dict[str, Any]:
    """By stream what :func:`chosen` says of each step, of several minibatches a step [steps, T, ...]."""
    import jax.numpy as jnp

    import bilevax as bx
    from bilevax.data.looks import Uniform, stream_key

    out = {"k": jnp.arange(steps, dtype=jnp.int32)}
    for name, stream in algorithm.streams(sources).items():
        of_stream = stream_key(key, name)
        if isinstance(stream, bx.Several):
            # T minibatches of each step, of one chunk of 256
            T, a_chunk = stream.number, 256 // stream.number
            first = out["k"] // a_chunk * 256 + out["k"] % a_chunk * T
            every = chosen(stream.source, of_stream, int(first[-1]) + T)
            out[name] = every[first[:, None] + jnp.arange(T)[None, :]]
        elif isinstance(stream, bx.Arrays):
            out[name] = chosen(stream, of_stream, steps)
        elif isinstance(stream, Uniform):
            note = lambda log, _, j, p: log.at[j].set(p)  # noqa: E731
            out[name] = stream.fold(note, jnp.zeros_like(out["k"]), (), key=of_stream, start=0, stop=steps)
    return out


def timed(name: str, sampling: str, d: int, quick: bool, rounds: int) -> list[dict[str, Any]]:
    """Microseconds a step of one algorithm: by hand, in the loop, and of SOBA in two more ways."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import bilevax as bx
    from benchmarks.bare_loops import bare, start
    from bilevax.algorithms.outer_loop import RECORDED, advance
    from bilevax.core.config import canonicalize

    c, given = case(sampling, quick, d), built(name)
    # as many as one call of the loop makes at most
    steps = 64 if quick else min(STEPS[name in DOUBLE and name not in SHORT], RECORDED * given.steps_per_record)
    sources, key = (c.train, c.val), jax.random.key(0)
    ready = problem, algorithm = canonicalize(c.problem), canonicalize(given)
    state = algorithm.init(problem, c.w0, c.lam, sources)
    sizes, epochs = (jnp.float32(RHO), jnp.float32(RHO * RATIO)), [-(-s.rows // s.rows_per_batch) for s in sources]

    @jax.jit
    def own(problem: Any, algorithm: Any, state: Any, sources: Any, key: Any, stop: Any) -> Any:
        def step(p: Any, _: Any, k: Any, looks: Any) -> Any:
            return algorithm.step(problem, p, looks, k)[0]

        return bx.fold_looks(algorithm.streams(sources), step, state, (), key=key, start=0, stop=stop)

    def by_hand(name: str, given: Any) -> Callable[[int], Any]:
        run, first = bare(name, c.problem, sampling == "blocks"), start(name, c.w0, c.lam, epochs)
        at = places(given, sources, key, steps)
        return lambda _: run(first, c.train.data, c.val.data, at, sizes)

    loop = jax.jit(partial(advance, start=jnp.int32(0)))
    cases = {
        "bare": by_hand(name, given),
        "loop": lambda _: loop(*ready, state, sources, key=key, stop=jnp.int32(steps)).state,
    }
    if name == "SOBA":
        cases["own loop"] = lambda _: own(*ready, state, sources, key, steps)
        cases["minimize"] = lambda _: bx.minimize(c.problem, given, c.w0, c.lam, *sources, steps=steps, key=key).lam
    elif in_units(name, sampling, d):
        cases["bare SOBA"] = by_hand("SOBA", built("SOBA"))
    compiled = {}
    for what, run in cases.items():
        clock = time.process_time()
        jax.block_until_ready(run(0))
        compiled[what] = time.process_time() - clock
    times = {what: median(t.cpu) / steps for what, t in machine.alternate(cases, rounds).items()}
    out, base = [], times["bare"]
    for what, seconds in times.items():
        row = {"what": f"{name} {sampling} d={d}, {what}", "us": 1e6 * seconds, "ratio": seconds / base}
        out.append(row | {"compile_s": compiled[what]} | (judged(row["ratio"], goal(name, sampling, what))))
    if in_units(name, sampling, d):
        units = times["loop"] / times["bare" if name == "SOBA" else "bare SOBA"]
        out.append({"what": f"{name} in units of bare SOBA", "value": units} | judged(units, UNITS[name]))
    ends = [np.asarray(lam) for lam in (cases["bare"](0), algorithm.solution(cases["loop"](0))[1])]
    apart = float(np.linalg.norm(ends[0] - ends[1]) / np.linalg.norm(ends[1] - np.asarray(c.lam)))
    same = {} if sampling == "blocks" else judged(apart, ROUNDING)  # bare slides the short block
    return [*out, {"what": f"{name} {sampling} d={d}, lam: bare and loop apart / way", "value": apart} | same]


def in_units(name: str, sampling: str, d: int) -> bool:
    """Whether there is a goal in units of bare SOBA."""
    return sampling == "blocks" and d == 22 and name in UNITS


def goal(name: str, sampling: str, what: str) -> float | None:
    """The largest ratio to the bare scan."""
    if what != "loop":
        return None
    return 1.1 if sampling == "blocks" and name not in LATER else 1.45 if name in DOUBLE else 1.3


def judged(value: float, goal: float | None) -> dict[str, Any]:
    """A goal, and whether it was met."""
    return {} if goal is None else {"goal": goal, "met": value <= goal}


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
    parser.add_argument("names", nargs="*", default=[*NAMES, "BSGM", "long"], help="algorithms, BSGM, or long")
    machine.arguments(parser, 15)
    parser.add_argument("--steps", type=int, default=1_000_000, help="of the long run")


def main(options: argparse.Namespace) -> None:
    machine.pin(options.core, options.quick)
    rounds, rows = 3 if options.quick else options.rounds, []
    runs = [
        partial(timed, name, sampling, d, options.quick, rounds)
        for name in NAMES
        if name in options.names
        for d in ((22,) if options.quick else (22, 54))
        for sampling in SAMPLINGS
        if not (name == "SABA" and sampling != "blocks") and (sampling != "shuffled" or (name == "SOBA" and d == 22))
    ]
    for part in (
        *runs,
        *(partial(bsgm, s, options.quick, rounds) for s in (SAMPLINGS if "BSGM" in options.names else ())),
        *([partial(long_run, 3000 if options.quick else options.steps)] if "long" in options.names else []),
    ):
        for row in part():
            if options.quick:  # no goal applies
                row = {k: v for k, v in row.items() if k not in ("goal", "met")}
            print(json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}), flush=True)
            rows.append(row)
    store.keep(options, {"rounds": rounds, "rows": rows})
