"""What do rows cost that are not in memory, against rows that are?

On W1 (multinomial logistic regression, 30,000 rows of train and of val, 784 features, ten classes, a penalty a feature,
minibatches of 90), one hypergradient of 1000 + 1000 steps by SID without a report:

- *memory map*: train and val as ``.npy`` files that the page cache holds, drawn i.i.d., shuffled and in blocks, against
  the same rows in ``bx.Arrays`` (wall time; goal 1.3 of i.i.d. rows);
- *loader*: an object that gives its rows as late as a step takes, by sleeping, against the slower of the two alone
  (wall time; goal 1.15); and one that takes half as long, and twice;
- *bare*: what can be had: gradient steps of W1 in a plain program of JAX whose argument is a piece of 16 minibatches,
  which a thread has read meanwhile from a loader as slow, against the slower of the two alone.

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
"""Minibatches that are read together for the bare program, as for W1's."""


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


def bare(shape: Any, train: Any, drawn: int, rounds: int) -> dict[str, Any]:
    """The row of the table: a program that takes pieces, and a thread that reads the next, without bilevax between."""
    import jax
    import numpy as np

    import bilevax as bx
    from benchmarks import cases as w
    from bilevax.tables.ahead import ahead

    loss, lam = bx.MultinomialLogistic(penalty="feature"), w.log_penalties(shape, "feature")
    start, rng = np.zeros((shape.classes, shape.d), np.float32), np.random.default_rng(0)
    numbers = rng.integers(0, shape.n, (-(-drawn // TOGETHER), TOGETHER * shape.batch))

    @jax.jit
    def steps(w: Any, lam: Any, piece: Any) -> Any:
        return jax.lax.scan(lambda w, batch: (w - 0.01 * jax.grad(loss)(w, lam, batch), None), w, piece)[0]

    def along(pieces: Any) -> Any:
        at = start
        for piece in pieces:
            at = steps(at, lam, tuple(x.reshape(TOGETHER, shape.batch, *x.shape[1:]) for x in piece))
            jax.block_until_ready(at)
        return at

    held = [tuple(x[some] for x in train) for some in numbers]
    alone = median(machine.alternate({"bare": lambda _: along(held)}, rounds)["bare"].wall)
    late = Late(train, alone / numbers.size)
    cases = {"thread": lambda _: along(ahead(map(late.rows, numbers))), "bare": lambda _: along(held)}
    times = machine.alternate(cases, rounds)
    slower = max(alone, median(times["bare"].wall))
    what, value = "W1 iid, bare, a loader of 1 step / the slower alone", median(times["thread"].wall) / slower
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
    # loader: time a minibatch of a step is that of the whole over all minibatches that are drawn
    case = w.logistic(shape, "iid", sources=(bx.Arrays(train, shape.batch), bx.Arrays(val)))
    steps = median(machine.alternate({"arrays": case.alone}, rounds)["arrays"].wall)
    drawn = int(case.round(0).cost.gradients.calls) + int(case.round(0).cost.hvps.calls)
    for share in SHARES:
        late = Late(train, share * steps / drawn / shape.batch)
        slow = w.logistic(shape, "iid", sources=(bx.Stream(late, shape.batch), bx.Arrays(val)))  # type: ignore[arg-type]
        times = machine.alternate({"loader": slow.alone, "arrays": case.alone}, rounds)
        alone = share * steps, median(times["arrays"].wall)
        value = median(times["loader"].wall) / max(alone)
        goal = {"goal": LOADED, "met": value <= LOADED} if share == 1.0 else {}
        note = f"loader alone {1e3 * alone[0]:.0f} ms, steps alone {1e3 * alone[1]:.0f} ms"
        out.append(
            {"what": f"W1 iid, a loader of {share:g} steps / the slower alone", "value": value, "note": note, **goal}
        )
    return [*out, bare(shape, train, drawn, rounds)]


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
