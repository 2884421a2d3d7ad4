"""How near are the estimates of memory, by which work is refused, to what is taken?

Peaks of resident memory and of address space beyond what a process had before, of tuning drawn tables (few steps, as
steps take no more) and of programs on rows of many columns; each in a process of its own, beside the estimate. The
formulas: ``bilevax.tables.memory``, ``bilevax.core.programs``.
"""

import argparse
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import machine, store, tables

Row = dict[str, Any]

TABLES = (
    (1_000, 5, 2), (20_000, 100, 2), (100_000, 100, 2), (50_000, 500, 2), (20_000, 2_000, 2), (5_000, 4_000, 2),
    (400_000, 50, 2), (50_000, 100, 10), (5_000, 1_000, 40),
)  # fmt: skip
"""Rows, columns and classes."""

PROGRAMS = ("SOBA", "SABA", "SRBA", "SID", "JointSID", "SVRG", "SAGA", "L-BFGS and CG", "GMRES")
MB = 2**20


class Watch:
    """The most pages resident, and mapped, while it runs; a thread looks every four milliseconds."""

    def __init__(self) -> None:
        self._most, self._begun, self._over = [0, 0], self._now(), False
        threading.Thread(target=self._look, daemon=True).start()

    @staticmethod
    def _now() -> list[int]:
        with open("/proc/self/statm", encoding="ascii") as file:
            mapped, resident = map(int, file.read().split()[:2])
        return [resident * 4096, mapped * 4096]

    def _look(self) -> None:
        while not self._over:
            self._most = list(map(max, self._most, self._now()))
            time.sleep(0.004)

    def end(self) -> tuple[float, float]:
        """Megabytes resident and mapped beyond those at the beginning."""
        self._over = True
        resident, mapped = ((most - begun) / MB for most, begun in zip(self._most, self._begun, strict=True))
        return resident, mapped


def asked_for(call: Callable[[], object]) -> tuple[float, float]:
    """Runs it, and gives the largest of its estimates, counted from the beginning, resident and mapped."""
    from bilevax.core import limits, programs
    from bilevax.sklearn import penalised
    from bilevax.study import linear

    most, begun = [0.0, 0.0], Watch._now()

    def require(need: float, what: str, helps: str = "", *, compiler: float = 0.0, mapped: float = 0.0) -> None:
        held = [now - before for now, before in zip(Watch._now(), begun, strict=True)]
        if not any(most):  # the compiler's share is asked for once
            need = need + compiler
        each = held[0] + need, held[1] + need + (0.0 if any(most) else mapped)
        most[:] = map(max, most, each)

    for module in (limits, programs, penalised, linear):
        module.require = require  # type: ignore[attr-defined]
    call()
    return most[0] / MB, most[1] / MB


def tuned(n: int, p: int, classes: int) -> Row:
    """The study of a drawn table."""
    import pyarrow as pa

    from bilevax.sklearn import tuning
    from bilevax.study import study
    from bilevax.study.settings import TuneSettings
    from bilevax.tables.read import table_from_frame

    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, p))
    score = X[:, 0] + rng.logistic(size=n)
    y = np.searchsorted(np.quantile(score, np.linspace(0, 1, classes + 1)[1:-1]), score)
    columns = {f"x{j}": X[:, j] for j in range(p)} | {"y": np.char.add("class", y.astype(str))}
    table = table_from_frame(pa.table(columns))
    del X, columns
    study.rivals = lambda *_: iter(())  # type: ignore[attr-defined]
    tuning.PATH = tuning.PATH[:2]
    watch = Watch()
    estimate = asked_for(lambda: study.tune_table(table, "y", settings=TuneSettings(model="linear", steps=2)))
    return {"what": f"tune {n:,} x {p:,}, {classes} classes", "estimate": estimate, "taken": watch.end()}


def programmed(name: str, d: int) -> Row:
    """A hypergradient, or some steps, on few rows of d columns."""
    import jax
    import jax.numpy as jnp

    import bilevax as bx

    def inner(w: Any, lam: Any, batch: Any) -> Any:
        X, y = batch
        return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)

    def outer(w: Any, lam: Any, batch: Any) -> Any:
        X, y = batch
        return 0.5 * jnp.mean((X @ w - y) ** 2)

    X = np.random.default_rng(0).random(size=(128, d), dtype=np.float32) / np.sqrt(d, dtype=np.float32)
    train, val = (bx.Arrays((half, half[:, 0].copy()), 8, sampling="blocks") for half in (X[:64], X[64:]))
    del X
    jax.block_until_ready((train.data, val.data))
    problem, start = bx.Problem(bx.GradientStep(inner, 0.05), outer), np.zeros(d, np.float32)
    algorithms = {"SOBA": bx.SOBA(0.05, 0.01), "SABA": bx.SABA(0.05, 0.01), "SRBA": bx.SRBA(0.05, 0.01)}
    fixed = bx.FixedPoint(200)
    estimators = {
        "SID": bx.SID(fixed, fixed, cross_batches=2), "JointSID": bx.JointSID(400),
        "SVRG": bx.SID(bx.SVRG(2, 64), fixed),
        "SAGA": bx.SID(bx.SAGA(200), fixed), "L-BFGS and CG": bx.SID(bx.LBFGS(), bx.CG()),
        "GMRES": bx.SID(bx.LBFGS(), bx.GMRES()),
    }  # fmt: skip
    args, key = (start, start, train, val), jax.random.key(0)

    def call() -> None:
        if name in algorithms:
            jax.block_until_ready(bx.minimize(problem, algorithms[name], *args, steps=300, key=key).w)
        else:
            jax.block_until_ready(bx.hypergradient(problem, estimators[name], *args, key=key))

    watch = Watch()
    estimate = asked_for(call)
    return {"what": f"{name}, {d:,} columns", "estimate": estimate, "taken": watch.end()}


def main(options: argparse.Namespace) -> None:
    quick = options.quick
    calls = [("tuned", *shape) for shape in (TABLES[:1] if quick else TABLES)]
    calls += [("programmed", name, 1_000 if quick else 1_000_000) for name in (PROGRAMS[:1] if quick else PROGRAMS)]
    table = tables.Table("what", "MB resident", "estimate", "ratio", "MB mapped", "estimate", "ratio")
    rows = []
    for name, *args in calls:
        row = machine.fresh(f"benchmarks.memory:{name}", *args)
        rows.append(row)
        pairs = list(zip(row["taken"], row["estimate"], strict=True))
        table(row["what"], *(figure for taken, asked in pairs for figure in (taken, asked, asked / max(taken, 1.0))))
    store.keep(options, {"rows": rows})
