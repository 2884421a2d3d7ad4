"""For questions that are asked of families of problems: constants are chosen on ten of them, and judged on ten others.

The families are those of ``bilevax.testing.problems``. The seed of a judging run is made of the commit. It is kept in
NAME.json, and adds a line to NAME-judged.jsonl; a choosing run is kept in NAME-choosing.json. With ``--quick`` one
family is run, with the seed 0.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import jax
import numpy as np

from benchmarks import machine, store, tables
from benchmarks.reported import flat
from bilevax.testing.problems import NamedProblem, families


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of such a question."""
    parser.add_argument("--families", choices=("choosing", "judging"), default="judging")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of these families")
    parser.add_argument("--draw", type=int, help="seed; if it is left out 0 for choosing, of the commit for judging")
    parser.add_argument("--workers", type=int, default=2)


def settle(options: argparse.Namespace) -> None:
    """Names, seed and file that were left open."""
    names = families(options.families)
    if unknown := set(options.only or ()) - set(names):
        sys.exit(f"there is no {options.families} family {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    options.only = [name for name in names if name in (options.only or names[: 1 if options.quick else None])]
    if options.draw is None:
        judged = options.families == "judging" and not options.quick
        options.draw = int(machine.commit()[:12], 16) if judged else 0
    if options.out and options.families == "choosing":
        options.out = options.out.with_stem(f"{options.out.stem}-choosing")


def stacked(problems: Sequence[NamedProblem]) -> tuple[tuple[Any, ...], np.ndarray]:
    """(w0, lam, train, val) of problems of one shape, [problems, ...] in float32; the truths, [problems, m]."""

    def stack(*x: Any) -> np.ndarray:
        out = np.stack(x)
        return out.astype(np.float32) if out.dtype.kind == "f" else out

    truth = np.stack([flat(p.solution().hypergradient) for p in problems])
    return jax.tree.map(stack, *[(p.w0, p.lam, p.train, p.val) for p in problems]), truth


def outcomes(
    work: Callable[..., Any], jobs: Iterable[tuple[Any, ...]], workers: int
) -> Iterator[tuple[tuple[Any, ...], "Future[Any]"]]:
    """Each job and what comes of it, as they are done, in processes of one thread."""
    os.environ.update(machine.ONE_THREAD)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        tasks = {pool.submit(work, *job): job for job in jobs}
        for done in as_completed(tasks):
            yield tasks[done], done


def finish(
    options: argparse.Namespace, record: dict[str, Any], checks: list[tables.Check], line: dict[str, Any]
) -> None:
    """Print the checks, and keep them with the record; of a judging run also ``line``, among its others."""
    if options.quick:
        print("\nquick: no goal applies")
    else:
        tables.checks(checks)
    store.keep(options, {"checks": checks, **record})
    if options.out and options.families == "judging":
        about = {
            "date": time.strftime("%Y-%m-%d %H:%M"), "commit": machine.commit(),
            "tree": machine.commit(described=True), "draw": options.draw, "families": options.only,
        }  # fmt: skip
        store.append(options.out.with_name(f"{options.out.stem}-judged.jsonl"), about | line)
