"""What a process of a group measures or trains: ``python -m benchmarks.distributed_ranks NAME ARGUMENTS`` (as JSON).

Behind ``bilevax launch`` it finds the others; alone it is a group of one. The first one prints what was found, as JSON.
"""

import json
import os
import sys
import time
from typing import Any

STRATA = 8


def sources(parts: Any, batches: Any) -> Any:
    """Rows dealt to every device there is."""
    import jax

    import bilevax as bx

    mesh = jax.make_mesh((jax.device_count(),), ("rows",))
    return [bx.sharded(bx.Arrays(part, b), mesh, STRATA) for part, b in zip(parts, batches, strict=True)]


def steps(quick: bool, dealt: bool) -> Any:
    """Milliseconds of a step of SOBA on W1, on dealt rows or on plain ones: of 256 at a time, the median."""
    import jax
    import numpy as np

    import bilevax as bx
    from benchmarks import cases as w

    shape, number = (w.W1_QUICK, 512) if quick else (w.W1, 1280)
    case, parts, b = w.logistic(shape, "iid"), w.split(shape), shape.batch // STRATA * STRATA
    pair = sources(parts, (b, b)) if dealt else [bx.Arrays(part, b) for part in parts]
    method = bx.SOBA(0.1, 0.1)
    result = bx.minimize(case.problem, method, case.w0, case.lam, *pair, steps=number, key=jax.random.key(0))
    # the first entry has the compilation
    return {"ms": float(np.median(np.diff(np.asarray(result.history.seconds)))) / 256 * 1e3}


def chains(quick: bool, every_step: bool, keys: int) -> Any:
    """Errors of hypergradients from equally many samples, and seconds of each.

    ``every_step``: all processes make one chain, each minibatch b / P rows of each; else a chain each, of b / P rows of
    all, whose hypergradients are averaged once.
    """
    import jax
    import numpy as np

    import bilevax as bx
    from benchmarks import cases as w
    from bilevax.core.ranks import gathered

    shape = w.W2_QUICK[22] if quick else w.W2[22]._replace(n=4000, n_val=4000)
    case, parts, b = w.logistic(shape, "iid"), w.split(shape), 64
    rounds = bx.FixedPoint(50 if quick else 2000, bx.Harmonic(2.0, 4.0))
    sid = bx.SID(rounds, rounds, cross_batches=None)
    exact = bx.SID(bx.LBFGS(1e-6), bx.CG(1e-6))
    whole = [bx.Arrays(part) for part in parts]
    args = case.problem, sid, case.w0, case.lam
    truth = np.asarray(bx.value_and_hypergradient(case.problem, exact, *args[2:], *whole, key=jax.random.key(0))[1])
    P = jax.process_count()
    pair = sources(parts, (b, None)) if every_step else [bx.Arrays(parts[0], b // P), whole[1]]
    found, seconds = [], []
    for i in range(keys):
        key, began = jax.random.key(i), time.perf_counter()
        key = key if every_step else jax.random.fold_in(key, jax.process_index())
        value = np.asarray(bx.value_and_hypergradient(*args, *pair, key=key)[1])
        found.append(value if every_step else gathered(value).mean(axis=0))
        seconds.append(time.perf_counter() - began)
    errors = np.linalg.norm(np.asarray(found) - truth, axis=-1).reshape(keys, -1)
    error = float(np.sqrt(np.mean(np.sum(errors**2, axis=1))) / np.linalg.norm(truth))
    return {"error": error, "seconds": float(np.median(seconds[1:]))}


def train(directory: str, out: str, number: int) -> Any:
    """A run that can be killed: its digest is written at its end, its processes' numbers at their start."""
    import hashlib
    from pathlib import Path

    import jax
    import jax.numpy as jnp
    import numpy as np

    import bilevax as bx

    rng = np.random.default_rng(0)
    tables = ((X := rng.normal(size=(n, 5)), X @ np.arange(5.0) + rng.normal(size=n)) for n in (203, 71))
    parts = [tuple(x.astype(np.float32) for x in table) for table in tables]

    def outer(w: Any, lam: Any, batch: Any) -> Any:
        return 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2)

    def inner(w: Any, lam: Any, batch: Any) -> Any:
        return outer(w, lam, batch) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)

    problem = bx.Problem(bx.GradientStep(inner), outer, bx.Box(-8.0, 2.0))
    pair, start = sources(parts, (16, 8)), (np.zeros(5, np.float32), np.zeros(5, np.float32))
    run, key = bx.Run(directory, seconds=0.0), jax.random.key(1)
    result = bx.minimize(
        problem, bx.SOBA(0.05, 0.3), *start, *pair, steps=number, key=key, every=10, run=run, callback=_noted
    )
    if jax.process_index() == 0:
        history = result.history._replace(seconds=None)
        leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves((result.w, result.lam, history, result.code))]
        Path(out).write_text(hashlib.sha256(b"".join(leaves)).hexdigest())
    return None


def passes(data: str) -> Any:
    """Seconds of each pass of ``tune``, from when all processes begin it to when all have ended."""
    from pathlib import Path

    from benchmarks.many_rows import ready, rows_of
    from bilevax.cli.group import joined

    every, found = rows_of(Path(data)), dict[str, float]()
    every.processes = processes = joined()
    inner = every._tables

    def timed(name: str) -> Any:
        processes.any(False)
        began = time.perf_counter()
        yield from inner(name)
        processes.any(False)
        found[name] = time.perf_counter() - began

    every._tables = timed
    _, rows, model = ready(Path(data), every)
    every.count()
    model.fit(*rows)
    return found


def _noted(progress: Any) -> bool:
    """As slow as a step that is worth dealing."""
    time.sleep(0.02)
    return False


def main() -> None:
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    if name == "passes":
        print(json.dumps(passes(*arguments)))
        return
    import jax

    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        jax.distributed.initialize()
    found = {"steps": steps, "chains": chains, "train": train}[name](*arguments)
    if jax.process_index() == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
