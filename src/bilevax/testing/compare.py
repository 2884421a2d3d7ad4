"""Algorithms on the same problems, from the same start, with equal budgets of samples and of seconds.

    from bilevax.testing.compare import compare, named_task

    record = compare([named_task("ridge")], ["SOBA", "SABA"], seeds=5, budget=100_000)

Every run is one of :func:`bilevax.minimize`. It is judged where it was when it had last spent at most so much, by the
exact hypergradient at its lam: what it believes of itself plays no part. The record is of plain values, as JSON has
them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np

from bilevax.core.codes import Code
from bilevax.core.config import check_count, check_real
from bilevax.core.errors import ParameterError
from bilevax.core.events import Event, Plain
from bilevax.core.protocols import Algorithm
from bilevax.core.trees import PyTree
from bilevax.runs import Progress, minimize
from bilevax.testing.entrants import ENTRANTS, GRID, Entrant, Steps
from bilevax.testing.tasks import Task, named_task
from bilevax.testing.tools import vector

__all__ = ["ENTRANTS", "GRID", "Task", "compare", "named_task"]

LOOKS = 64
"""Callbacks in a budget of samples, and how much smaller the smallest budget is at which a run is judged."""

CHOOSING, CHOICES = 2**30, 8
"""Seed of the first of the runs that choose a setting of the grid, and their number a setting; those that are reported
have others."""


class Point(NamedTuple):
    """Where a run was, and what it had spent."""

    w: PyTree
    lam: PyTree
    samples: float = 0.0
    seconds: float = 0.0


class Pace(NamedTuple):
    """Outer steps of a run, more than its budget allows, and from one look at it to the next."""

    steps: int
    every: int

    @staticmethod
    def of(budget: float, each: float) -> "Pace":
        """For a budget of which each step takes so much."""
        steps = max(1, int(np.ceil(budget / each)))
        return Pace(steps + steps // 8 + 1, max(1, steps // LOOKS))


@dataclass
class Watch:
    """A callback that keeps, for each budget, the last point of a run within it, and ends the run after the largest.

    Attributes:
        kind: of what is spent, ``"samples"`` or ``"seconds"``.
        budgets: what may be spent, ascending.
        last: the start of the run, and then the point of the last call.
        kept: the points so far, one a budget.
    """

    kind: str
    budgets: np.ndarray
    last: Point
    began: float = field(default_factory=time.process_time)
    kept: list[Point] = field(default_factory=list)
    failed: bool = False
    steps: int = 0

    def __call__(self, progress: Progress) -> bool:
        """True once every budget is spent, or the run failed."""
        spent = time.process_time() - self.began
        point = Point(progress.w, progress.lam, float(progress.history.samples[-1]), spent)
        self.kept += [self.last] * (int(np.sum(self.budgets < getattr(point, self.kind))) - len(self.kept))
        self.failed = bool(progress.history.code[-1] >= Code.NOT_CONTRACTIVE)
        self.last, self.steps = point, progress.step
        # of a run that ends with its steps, the rest of the budgets have the last point
        if not self.failed and progress.step == progress.steps:
            self.kept += [point] * (len(self.budgets) - len(self.kept))
        return self.failed or len(self.kept) == len(self.budgets)


def compare(
    tasks: Sequence[Task],
    algorithms: Sequence[str],
    *,
    seeds: int = 5,
    budget: float = 200_000,
    seconds: float | None = None,
    grid: Sequence[tuple[float, float]] | None = None,
    points: int = 13,
    entrants: dict[str, Entrant] | None = None,
    told: Callable[[Event], object] = lambda event: None,
) -> Plain:
    """Run each algorithm on each task from each seed, and say how far each got for how much.

    The measures are |grad f|^2 over that at the start, and (f - f*) / (f(start) - f*), f* the least value that any run
    or a deterministic search met; of each the quartiles over the seeds. A run that fails counts as infinite from there
    on (None in the record); one that ends above its start in both measures has failed, too. Seconds are CPU seconds of
    the process, compilation not among them.

    Args:
        tasks: the problems.
        algorithms: names in ``entrants``.
        seeds: how many runs of each, at least 1.
        budget: samples of a run, pilots included.
        seconds: CPU seconds of as many more runs, from the same seeds, that end by time; None: samples alone.
        grid: pairs (rho L, gamma K), of which each algorithm gets the one whose last gradient is smallest, in the
            median of eight runs of other seeds, of which none may fail (one in three fails unseen once in 25 times).
            None: each algorithm as it is built without arguments.
        points: budgets at which a run is judged, at least 2, from 1/64 of the whole to the whole, evenly in logarithm.
        entrants: :data:`ENTRANTS` by default.
        told: called with each entry of the record when it is there.

    Raises:
        ParameterError: there is no algorithm of a name, a count or a budget is not positive, a budget is less than a
            minibatch of either source, tasks or the grid are no lists, or the truth of a task is not like its lam.
    """
    if isinstance(tasks, Task) or isinstance(grid, bool):
        raise ParameterError("compare takes lists: [task], and as grid pairs such as compare.GRID")
    known = ENTRANTS if entrants is None else entrants
    for name in algorithms:
        if name not in known:
            raise ParameterError(f"there is no algorithm {name!r} to compare; there are {', '.join(known)}")
    shares = LOOKS ** -np.linspace(1.0, 0.0, check_count("points", points, low=2))
    budgets = {"samples": shares * check_real("budget", budget, low=0.0, open_low=True)}
    if seconds is not None:
        budgets["seconds"] = shares * check_real("seconds", seconds, low=0.0, open_low=True)
    numbers = range(check_count("seeds", seeds, low=1))
    problems = []
    for task in tasks:
        _check(task, budget)
        found = [_entry(task, name, known[name], numbers, budgets, grid, told) for name in algorithms]
        problems.append(_problem(task, found, len(shares)))
    kept = {kind: values.tolist() for kind, values in budgets.items()}
    return {
        "budgets": kept,
        "seeds": len(numbers),
        "grid": grid and [list(pair) for pair in grid],
        "problems": problems,
    }


def _check(task: Task, budget: float) -> None:
    rows = task.train.rows_per_batch + task.val.rows_per_batch
    if budget < rows:
        raise ParameterError(
            f"a minibatch of train and one of val of {task.name} are {rows} rows, budget is {budget:g}"
        )
    shapes = [jax.tree.map(np.shape, x) for x in (task.truth(task.w0, task.lam)[1], task.lam)]
    if shapes[0] != shapes[1]:
        raise ParameterError(
            f"the truth of {task.name} has a hypergradient of shape {shapes[0]}, and lam has {shapes[1]}"
        )


def _entry(
    task: Task,
    name: str,
    entrant: Entrant,
    seeds: Sequence[int],
    budgets: dict[str, np.ndarray],
    grid: Sequence[tuple[float, float]] | None,
    told: Callable[[Event], object],
) -> Plain:
    """What one algorithm did on one task, or why it cannot run there."""
    entry: Plain = {"problem": task.name, "name": name}
    try:
        chosen = None if grid is None else _chosen(task, entrant, budgets["samples"], grid)
        algorithm = entrant(chosen)
        paces, plain = _paces(task, algorithm, budgets)
    except ParameterError as e:
        entry |= {"refused": str(e)}
    else:
        watches = {k: [_run(task, algorithm, seed, k, budgets[k], paces[k]) for seed in seeds] for k in budgets}
        runs = [
            {kind: [_judged(task, p) for p in watches[kind][i].kept] for kind in budgets} for i in range(len(seeds))
        ]
        last = [{"steps": w.steps, "samples": w.last.samples, "seconds": w.last.seconds} for w in watches["samples"]]
        steps = None if chosen is None else {"inner": chosen.inner, "outer": chosen.outer}
        failed = [any(watches[kind][i].failed for kind in budgets) for i in range(len(seeds))]
        entry |= {"algorithm": plain, "grid": steps, "failed": failed, "spent": last, "runs": runs}
    told({"kind": "compared", **entry})
    return entry


def _paces(task: Task, algorithm: Algorithm, budgets: dict[str, np.ndarray]) -> tuple[dict[str, Pace], PyTree]:
    """How runs within each budget go, and the algorithm as plain values; compiles what they will use."""
    steps = min(8, algorithm.steps_per_record)
    key = jax.random.key(CHOOSING)
    tried = minimize(task.problem, algorithm, *task[2:6], steps=2 * steps, every=steps, key=key)
    samples, at = (np.concatenate([[0], x]) for x in (tried.history.samples, tried.history.step))
    each = (samples[-1] - samples[-2]) / max(at[-1] - at[-2], 1)
    pace = Pace.of(budgets["samples"][-1], max(each, 1.0))
    # once more, compiled: seconds a step
    watch = [_run(task, algorithm, CHOOSING, "samples", budgets["samples"], pace) for _ in range(2)][1]
    spent = max(watch.last.seconds, 1e-3) / max(watch.steps, 1)
    paces = {"samples": pace}
    if "seconds" in budgets:
        paces["seconds"] = Pace.of(budgets["seconds"][-1], spent)
        _run(task, algorithm, CHOOSING, "seconds", budgets["seconds"], paces["seconds"])
    return paces, tried.config["algorithm"]


def _run(task: Task, algorithm: Algorithm, seed: int, kind: str, budgets: np.ndarray, pace: Pace) -> Watch:
    watch = Watch(kind, budgets, Point(task.w0, task.lam))
    key = jax.random.key(seed)
    minimize(task.problem, algorithm, *task[2:6], steps=pace.steps, every=pace.every, key=key, callback=watch)
    return watch


def _chosen(task: Task, entrant: Entrant, budgets: np.ndarray, grid: Sequence[tuple[float, float]]) -> Steps:
    """The steps of the grid after which the hypergradient is smallest, in the median; the first where all fail."""
    tried = [Steps(*pair, task.L, task.K) for pair in grid]
    # one that has no steps to choose
    if entrant(None) == entrant(tried[0]):
        return tried[0]
    pace = _paces(task, entrant(tried[0]), {"samples": budgets})[0]["samples"]
    best, least = tried[0], np.inf
    for steps in tried:
        algorithm = entrant(steps)
        watches = [_run(task, algorithm, CHOOSING + i, "samples", budgets, pace) for i in range(CHOICES)]
        sizes = [None if watch.failed else _judged(task, watch.last)[0] for watch in watches]
        size = np.inf if None in sizes else np.median(np.asarray(sizes, float))
        if size < least:
            best, least = steps, float(size)
    return best


def _judged(task: Task, point: Point) -> tuple[float, float] | tuple[None, None]:
    """|grad f|^2 and f; None where there is no truth at lam."""
    try:
        value, gradient = task.truth(point.w, point.lam)
    except ParameterError:
        return None, None
    size = float(np.sum(vector(gradient) ** 2))
    return (size, float(value)) if np.isfinite(size) and np.isfinite(value) else (None, None)


def _problem(task: Task, entries: list[Plain], budgets: int) -> Plain:
    """The entries of a task in relative measures, with their quartiles."""
    size, value = _judged(task, Point(task.w0, task.lam))
    if size is None or value is None:
        raise ParameterError(f"{task.name} has no hypergradient at its start")
    values = [f for e in entries for run in e.get("runs", []) for points in run.values() for _, f in points]
    least = min([task.least, *(f for f in values if f is not None)])

    def relative(run: Plain) -> Plain:
        """Of a run the two measures, a list for each kind of budget; None where it had failed."""
        out = {}
        for kind, points in run.items():
            seen = [[p[0] / size, (p[1] - least) / (value - least)] if p[0] is not None else [None] * 2 for p in points]
            seen += [[None, None]] * (budgets - len(points))
            out[kind] = {name: [p[i] for p in seen] for i, name in enumerate(("gradient", "gap"))}
        return out

    def lost(run: Plain) -> bool:
        """Whether it ended above its start in both measures, for any kind of budget."""
        ends = [(of["gradient"][-1], of["gap"][-1]) for of in run.values()]
        return any(None not in end and min(end) > 1.0 for end in ends)

    for entry in entries:
        if "runs" in entry:
            entry["runs"] = [relative(run) for run in entry["runs"]]
            entry["failed"] = sum(was or lost(run) for was, run in zip(entry["failed"], entry["runs"], strict=True))
            entry["quartiles"] = _quartiles(entry["runs"])
    return {"name": task.name, "start": {"gradient": size, "value": value}, "least": least, "algorithms": entries}


def _quartiles(runs: list[Plain]) -> Plain:
    """Lower quartile, median and upper quartile over the runs, of each measure at each budget."""
    out: Plain = {}
    for kind, measures in runs[0].items():
        out[kind] = {}
        for name in measures:
            table = np.array([run[kind][name] for run in runs], float)
            # a run that failed is infinitely far, and no two runs are averaged
            table = np.where(np.isnan(table), np.inf, table)
            cut = np.quantile(table, (0.25, 0.5, 0.75), axis=0, method="higher")
            out[kind][name] = [[x if np.isfinite(x) else None for x in row] for row in cut.tolist()]
    return out
