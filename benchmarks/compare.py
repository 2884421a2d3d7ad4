"""Which algorithm gets how far for how much? All of them and the plain deterministic method on eight problems.

Equal budgets in samples and in CPU seconds, five seeds, each algorithm as it is built without arguments; with --grid
with the best of 24 settings of its steps, the same for all. The measure is the squared norm of the exact hypergradient
(``bilevax.testing.compare``). Five of the problems are drawn; Fashion-MNIST, 20 Newsgroups and data cleaning are real
data, of which some thousand rows are taken, so that the exact hypergradient stays cheap: 1,000 images each in train and
val, 1,000 documents each and 500 words, and digits with half of the labels drawn anew. What is measured already is not
measured again: the command goes on where it ended, and --again begins anew. With default steps the tables and the
pictures of docs/comparison.md are written, too; its advice is for people to read off them.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bilevax as bx
from benchmarks import cases, machine, store, tables
from bilevax.core.events import Plain
from bilevax.report import write_courses
from bilevax.testing.entrants import ENTRANTS, GRID
from bilevax.testing.tasks import Task, Truth, named_task, outer_curvature

REAL = {
    "fashion": lambda: cases.fashion(rows=2_000),
    "newsgroups": lambda: cases.newsgroups(rows=2_000),
    "cleaning": lambda: cases.cleaning(rows=1_000),
}

# Samples and CPU seconds of a run, and budgets at which it is judged.
BUDGETS = {
    "quadratic-10-b32": (200_000, 0.2, 13),
    "quadratic-1000-b32": (200_000, 0.2, 13),
    "ridge": (200_000, 0.2, 13),
    "logistic-20000x20-0.1": (1_000_000, 0.5, 13),
    "digits": (500_000, 0.5, 7),
    "fashion": (200_000, 1.0, 4),
    "newsgroups": (100_000, 1.0, 4),
    "cleaning": (500_000, 0.5, 7),
}

PAGE = Path(__file__).parents[1] / "docs" / "comparison.md"
TITLES = {"samples": "samples", "seconds": "CPU seconds"}


def real_task(name: str) -> Task:
    """A problem on real data, its rows in blocks; the truth by L-BFGS and conjugate gradients on every row."""
    case = REAL[name]()
    batch = case.train.rows_per_batch
    blocks = case.by(None, batch, batch, sampling="blocks")
    whole = case.by(bx.SID(bx.LBFGS(1e-6, 2000), bx.CG(1e-6, 2000)), None)

    def truth(w: Any, lam: Any) -> Truth:
        w, lam = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (w, lam))
        value, gradient = bx.value_and_hypergradient(
            whole.problem, whole.estimator, w, lam, whole.train, whole.val, key=cases.key_of(0)
        )
        return Truth(float(value), jax.tree.map(np.asarray, gradient))

    measured = bx.Instance(case.problem, case.lam, case.train, case.val).with_measured_step(case.w0, cases.key_of(0))
    # the step is 1 / (L + penalty), entry by entry
    L = 1.0 / min(float(np.min(s)) for s in jax.tree.leaves(measured.problem.inner_map.metric(case.w0, case.lam)))
    K = outer_curvature(truth, case.w0, case.lam)
    return Task(name, case.problem, case.w0, case.lam, blocks.train, blocks.val, truth, L, K)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=BUDGETS, default=list(BUDGETS), metavar="PROBLEM")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--grid", action="store_true", help="the best of 24 settings of the steps")
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    machine.arguments(parser, 0)


def main(options: argparse.Namespace) -> None:
    machine.pin(options.core, options.quick)
    # after the restart on one thread
    from bilevax.testing.compare import compare

    steps, record = "grid" if options.grid else "default", store.kept(options)
    found = record.setdefault(steps, {})
    names = ["ridge"] if options.quick else options.only
    algorithms = ["SOBA", "Descent"] if options.quick else list(ENTRANTS)
    for name in names:
        if name in found and not options.again:
            continue
        samples, seconds, points = (20_000, 0.05, 3) if options.quick else BUDGETS[name]
        task = real_task(name) if name in REAL else named_task(name)
        found[name] = brief(compare(
            [task], algorithms, seeds=1 if options.quick else options.seeds, budget=samples, seconds=seconds,
            points=points, grid=GRID if options.grid else None, told=said,
        ))  # fmt: skip
        store.keep(options, record)
    print(figures(found))
    if options.out and not options.grid and not options.quick:
        write_page(found)


def write_page(found: dict[str, Plain]) -> None:
    """The pictures, and the tables between the marks of the page."""
    measured = {name: found[name] for name in BUDGETS if name in found}
    for by in ("samples", "seconds"):
        write_courses(PAGE.with_name(f"comparison_{by}.svg"), list(measured.values()), by=by)
    tables.into(PAGE, "compare", f"{figures(measured)}\n")


def brief(record: Any) -> Any:
    """What the page needs: quartiles, and no run of its own; four digits."""
    if isinstance(record, dict):
        return {name: brief(x) for name, x in record.items() if name != "runs"}
    if isinstance(record, list):
        return [brief(x) for x in record]
    return float(f"{record:.4g}") if isinstance(record, float) else record


def said(event: Plain) -> None:
    print(event["problem"], event["name"], event.get("refused", ""), flush=True)


def figures(found: dict[str, Plain]) -> str:
    """Medians of |grad f|^2 over that at the start, at the end of both budgets; a row an algorithm."""
    parts = []
    for by in ("samples", "seconds"):
        head = ["", *(f"{name}, {tables.cell(r['budgets'][by][-1])}" for name, r in found.items())]
        rows = [[name, *(_cell(r, name, by) for r in found.values())] for name in ENTRANTS]
        parts.append(f"\nAfter a budget of {TITLES[by]}:\n\n{tables.text(head, rows)}\n")
    return "".join(parts)


def _cell(record: Plain, algorithm: str, by: str) -> str:
    """The median with the quartiles, and how many runs failed."""
    entry = next((e for e in record["problems"][0]["algorithms"] if e["name"] == algorithm), {})
    if "quartiles" not in entry:
        return "refused" if "refused" in entry else ""
    low, middle, high = ("lost" if x[-1] is None else f"{x[-1]:.1e}" for x in entry["quartiles"][by]["gradient"])
    failed = f"; {entry['failed']} failed" if entry["failed"] else ""
    return f"{middle} ({low} to {high}{failed})"
