"""``bilevax bench``: algorithms on the same problems, with equal budgets."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bilevax.core.errors import ParameterError, UsageError
from bilevax.core.events import Event, Plain
from bilevax.core.files import make_directory, require_place, write
from bilevax.core.text import clean, count, duration, significant
from bilevax.tables.table import suggestion

JSON, PICTURE = "comparison.json", "{by}.svg"


def run(
    names: Sequence[str],
    algorithms: str | None,
    out: Path | None,
    *,
    seeds: int,
    budget: float,
    seconds: float | None,
    grid: bool,
    force: bool,
) -> None:
    """Compare, print a table a problem, and write the record and its pictures where that is wanted."""
    if out is not None:
        if (out / JSON).exists() and not force:
            raise UsageError(f"{out} has a comparison; choose another directory, or give --force to replace it")
        require_place(out, directory=True)
    from bilevax.testing.entrants import ENTRANTS, GRID
    from bilevax.testing.problems import families, problems

    known = [*problems(), *families("choosing"), *families("judging")]
    named = [name.strip() for name in algorithms.split(",")] if algorithms else list(ENTRANTS)
    # each once
    names, chosen = list(dict.fromkeys(names)), list(dict.fromkeys(named))
    _refuse_unknown("problem", names, known)
    _refuse_unknown("algorithm", chosen, list(ENTRANTS))
    if not names:
        raise UsageError("name a problem, such as 'bilevax bench ridge'; --list shows all, and the algorithms")
    from bilevax.testing.compare import compare
    from bilevax.testing.tasks import named_task

    if out is not None:
        make_directory(out)
    record: Plain = {"problems": []}
    for name in names:
        pairs = GRID if grid else None
        try:
            task = named_task(name)
        except ParameterError as e:
            raise UsageError(f"{name} cannot be compared: {e}") from e
        found = compare([task], chosen, seeds=seeds, budget=budget, seconds=seconds, grid=pairs, told=_say)
        record = found | {"problems": record["problems"] + found["problems"]}
        show(found)
        # what is done is kept, whatever the next problem does
        if out is not None:
            write(out / JSON, json.dumps(record, indent=1, allow_nan=False) + "\n")
    if out is not None:
        from bilevax.report import write_courses

        for by in record["budgets"]:
            print(clean(write_courses(out / PICTURE.format(by=by), [record], by=by)))


def show_names() -> None:
    """Problems, families and algorithms, on standard output."""
    from bilevax.testing.entrants import ENTRANTS
    from bilevax.testing.problems import families, problems

    print(f"problems    {' '.join([*problems(), *families('choosing'), *families('judging')])}")
    print(f"algorithms  {' '.join(ENTRANTS)}")


def _refuse_unknown(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            own = "one of your own is compared in Python: see Comparison in the documentation"
            raise UsageError(f"there is no {what} {name!r}; {own if '.py' in name else suggestion(name, known)}")


def _say(event: Event) -> None:
    """A line on stderr, so that a long comparison is seen to go on."""
    print(f"{clean(event['problem'])}: {clean(event['name'])} {clean(event.get('refused', 'done'))}", file=sys.stderr)


def show(record: Plain) -> None:
    """A table for each problem on standard output: where the budgets had led to, the best first."""
    from rich.table import Table
    from rich.text import Text

    from bilevax.cli.output import Output

    console = Output()
    for problem in record["problems"]:
        budgets = record["budgets"]
        title = ", ".join(f"{count(x[-1]) if kind == 'samples' else x[-1]} {kind}" for kind, x in budgets.items())
        console.print(Text(f"{clean(problem['name'])} after {title}: median (quartiles) of {record['seeds']}"))
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("algorithm")
        kinds = [f"|grad f|² by {kind}" for kind in budgets]
        for heading in (*kinds, "f - f* left", "steps", "CPU time", "failed"):
            table.add_column(heading, justify="right", no_wrap=True)
        for entry in sorted(problem["algorithms"], key=_last):
            table.add_row(*map(Text, _cells(entry, list(budgets))))
        console.print(table)
    print("both relative to the start; f* is the least value that any run or a deterministic search met")


def _last(entry: Plain) -> float:
    """The median at the end of the budget of samples; infinite where there is none."""
    size = entry["quartiles"]["samples"]["gradient"][1][-1] if "quartiles" in entry else None
    return float("inf") if size is None else float(size)


def _cells(entry: Plain, kinds: Sequence[str]) -> list[str]:
    if "quartiles" not in entry:
        return [entry["name"], *["refused"] * len(kinds), "", "", "", ""]
    found = entry["quartiles"]
    sizes = []
    for kind in kinds:
        low, middle, high = (_figure(row[-1]) for row in found[kind]["gradient"])
        sizes.append(f"{middle} ({low} to {high})")
    spent = sorted(entry["spent"], key=lambda run: float(run["seconds"]))[len(entry["spent"]) // 2]
    gap = _figure(found["samples"]["gap"][1][-1])
    return [entry["name"], *sizes, gap, count(spent["steps"]), duration(spent["seconds"]), count(entry["failed"])]


def _figure(x: float | None) -> str:
    return "–" if x is None else significant(x, 2)
