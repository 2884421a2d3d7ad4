"""What do rows cost that are not in memory, against rows that are?

On W1 (multinomial logistic regression, 30,000 rows of train and of val, 784 features, ten classes, a penalty a feature,
minibatches of 90), one hypergradient of 1000 + 1000 steps by SID without a report:

- *memory map*: train and val as ``.npy`` files that the page cache holds, drawn i.i.d., shuffled and in blocks, against
  the same rows in ``bx.Arrays`` (wall time; goal 1.3 of i.i.d. rows);
- *loader*: gradient steps of w from an object that gives its rows as late as a step takes, by sleeping, against the
  slower of the two alone (wall time; goal 1.15); and from one that takes half as long, and twice; of W1, and of a
  network (W3), whose steps compute for longer on as many bytes;
- *bare*: what can be had: such steps in a plain program of JAX whose argument is a piece of 16 minibatches, which
  a thread has read meanwhile from a loader as slow, against the slower of the two alone.

XLA computes on one thread, and the reader's thread has a core of its own; the cases run in turn, round by round.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine, store, tables

MAPPED, LOADED = 1.3, 1.15
SHARES = 0.5, 1.0, 2.0
"""Time that the loader takes for a minibatch, in steps."""

TOGETHER = 16
"""Minibatches that are read together for the bare program, as for the others."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=15, help="default %(default)s; with --quick 3")
    parser.add_argument("--core", default="0,1", help="the cores to run on; default %(default)s")


class Late:
    """Rows in memory that take their time, by the row."""

    def __init__(self, data: Any, seconds: float) -> None:
        self.data, self.seconds, self.taken = data, seconds, 0.0

    def __len__(self) -> int:
        return len(self.data[0])

    def rows(self, numbers: Any) -> Any:
        """These rows, after so many seconds a row in all."""
        end = time.perf_counter() + self.seconds * len(numbers)
        rows = tuple(x[numbers] for x in self.data)
        time.sleep(max(end - time.perf_counter(), 0.0))
        self.taken += self.seconds * len(numbers)
        return rows


def steps(case: Any) -> Any:
    """So many gradient steps of w from its start, by a source of train rows: (source, number of steps) -> w."""
    import jax

    def move(w: Any, lam: Any, j: Any, draw: Any) -> Any:
        return case.problem.inner_map(w, lam, draw.batch)

    @jax.jit
    def run(source: Any, w: Any, lam: Any, number: Any) -> Any:
        return source.fold(move, w, lam, key=jax.random.key(0), start=0, stop=number)

    return lambda source, number: jax.block_until_ready(run(source, case.w0, case.lam, number))


def beside(name: str, case: Any, number: int, share: float, rounds: int) -> dict[str, Any]:
    """The row of the table: a loader that takes so many steps for a minibatch, against the slower of the two alone."""
    import jax
    import numpy as np

    import bilevax as bx

    run, data, b = steps(case), jax.tree.map(np.asarray, case.train.data), case.train.batch_size
    held = {"arrays": lambda _: run(case.train, number)}
    alone = median(machine.alternate(held, rounds)["arrays"].wall)
    slow = bx.Stream(Late(data, share * alone / number / b), b)  # type: ignore[arg-type]
    times = machine.alternate({"loader": lambda _: run(slow, number), **held}, rounds)
    slower = share * alone, median(times["arrays"].wall)
    value = median(times["loader"].wall) / max(slower)
    goal = {"goal": LOADED, "met": value <= LOADED} if share == 1.0 else {}
    note = f"loader alone {1e3 * slower[0]:.0f} ms, steps alone {1e3 * slower[1]:.0f} ms"
    return {"what": f"{name}, a loader of {share:g} steps / the slower alone", "value": value, "note": note, **goal}


def bare(name: str, case: Any, number: int, rounds: int) -> dict[str, Any]:
    """The row of the table: a program that takes pieces, and a thread that reads the next, without bilevax between."""
    import jax
    import numpy as np

    from bilevax.tables.ahead import ahead

    data, b, lam = jax.tree.map(np.asarray, case.train.data), case.train.batch_size, case.lam
    numbers = np.random.default_rng(0).integers(0, len(data[0]), (-(-number // TOGETHER), TOGETHER * b))

    @jax.jit
    def steps(w: Any, lam: Any, piece: Any) -> Any:
        return jax.lax.scan(lambda w, batch: (case.problem.inner_map(w, lam, batch), None), w, piece)[0]

    def along(pieces: Any) -> Any:
        at = case.w0
        for piece in pieces:
            at = steps(at, lam, tuple(x.reshape(TOGETHER, b, *x.shape[1:]) for x in piece))
            jax.block_until_ready(at)
        return at

    held = [tuple(x[some] for x in data) for some in numbers]
    alone = median(machine.alternate({"bare": lambda _: along(held)}, rounds)["bare"].wall)
    late = Late(data, alone / numbers.size)
    cases = {"thread": lambda _: along(ahead(map(late.rows, numbers))), "bare": lambda _: along(held)}
    times = machine.alternate(cases, rounds)
    slower = max(alone, median(times["bare"].wall))
    what, value = f"{name}, bare, a loader of 1 step / the slower alone", median(times["thread"].wall) / slower
    return {"what": what, "value": value, "note": f"steps alone {1e3 * slower:.0f} ms"}


def measured(quick: bool, rounds: int, directory: Path) -> list[dict[str, Any]]:
    """The rows of the table."""
    import numpy as np

    import bilevax as bx
    from benchmarks import cases as w
    from benchmarks.measures import ratio

    shape = w.W1_QUICK if quick else w.W1
    train, val = w.split(shape)
    paths = [tuple(directory / f"{name}{i}.npy" for i in range(2)) for name in ("train", "val")]
    for files, data in zip(paths, (train, val), strict=True):
        for file, x in zip(files, data, strict=True):
            np.save(file, x)

    def mapped(sampling: str) -> w.Case:
        sources: Any = bx.Stream(paths[0], shape.batch, sampling), bx.Stream(paths[1])
        return w.logistic(shape, sampling, sources=sources)

    def whole(sampling: str) -> w.Case:
        return w.logistic(shape, sampling, sources=(bx.Arrays(train, shape.batch, sampling), bx.Arrays(val)))

    out = []
    for sampling in ("iid", "shuffled", "blocks"):
        cases = {"memory map": mapped(sampling).alone, "arrays": whole(sampling).alone}
        times = machine.alternate(cases, rounds)
        found = ratio(f"W1 {sampling}, memory map / arrays", times["memory map"], times["arrays"])
        value = found["wall_value"]
        goal: dict[str, Any] = {"goal": MAPPED, "met": value <= MAPPED} if sampling == "iid" else {}
        note = f"arrays {1e3 * median(times['arrays'].wall):.0f} ms, CPU {found['value']:.2f}"
        out.append({"what": found["what"], "value": value, "note": note, **goal})
    network = w.weighted_network(w.W3_QUICK if quick else w.W3, "iid")
    cases = {"W1 iid": (whole("iid"), 2 * shape.steps), "W3 iid": (network, shape.steps)}
    for name, case in cases.items():
        out += [*(beside(name, *case, share, rounds) for share in SHARES), bare(name, *case, rounds)]
    return out


def main(options: argparse.Namespace) -> None:
    machine.pin(options.core, options.quick)
    table = tables.Table("", "ratio", "goal", "met", "note")
    with tempfile.TemporaryDirectory() as directory:
        rows = measured(options.quick, 3 if options.quick else options.rounds, Path(directory))
    for row in rows:
        if options.quick:  # no goal applies
            row = {k: v for k, v in row.items() if k not in ("goal", "met")}
        table(*map(row.get, ("what", "value", "goal", "met", "note")))
    store.keep(options, {"setting": machine.setting(), "rows": rows})
