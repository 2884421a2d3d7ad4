"""``bilevax check TABLE``: what is seen in a table before any fit."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import typer

from bilevax.cli.source import open_table
from bilevax.core.errors import DataError, UsageError
from bilevax.core.run_records import Note, Task
from bilevax.core.text import clean, counted, listed
from bilevax.tables.reading import Reading
from bilevax.tables.table import Table

_FOUND_LEAKS = 1

_COLOURS = {"leak": "bold red", "note": "cyan"}
_KINDS = {"number": "numbers", "integer": "numbers", "boolean": "truth values", "date": "dates", "text": "text"}
_TABLES = (".csv", ".tsv", ".txt", ".tab", ".parquet", ".pq")


def is_table(name: str) -> bool:
    """True where the argument of ``check`` names a table, and no problem in a module: such a file, or a data set."""
    path = Path(name)
    if path.is_file():
        return path.suffix != ".py"
    if ":" in name:
        return False
    if path.suffix.lower() in _TABLES:
        return True
    from bilevax.study.bundled import NAMES

    return name in NAMES


def refuse_options(context: typer.Context, names: Iterable[str], what: str) -> None:
    """Refuse options that say nothing of what is checked.

    Raises:
        UsageError: one of them is given.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{name.removeprefix('as_').replace('_', '-')} says nothing of {what}; leave it out")


class Asked(NamedTuple):
    """What is said of the columns of a table: the one to predict, as what, and those that say what the rows are."""

    target: str | None = None
    task: Task | None = None
    group: str | None = None
    time: str | None = None


def run(name: str, asked: Asked, reading: Reading, *, as_json: bool) -> int:
    """Print what is found; 1 where a column knows the target."""
    from bilevax.study.findings import findings

    table, known = open_table(name, reading)
    asked = asked._replace(target=asked.target or known)
    _require(table, asked)
    found = findings(table, asked.target, task=asked.task, group=asked.group, time=asked.time)
    if as_json:
        print(json.dumps(_plain(table, asked.target, found)))
    else:
        _show(table, asked, found)
    return _FOUND_LEAKS if any(note.about == "leak" for note in found) else 0


def _require(table: Table, asked: Asked) -> None:
    """Refuse columns that are not there, or cannot be what they are said to be."""
    table.require([name for name in (asked.target, asked.group, asked.time) if name is not None])
    if asked.target is None:
        if asked.task is not None:
            raise UsageError("--task says how a target is predicted; name it (--target COLUMN)")
    elif asked.target in (asked.group, asked.time):
        raise UsageError(f"column '{asked.target}' is the target and cannot have another part")
    elif asked.task not in (None, "classes") and (other := table.column(asked.target).other_than("number")):
        raise DataError(f"{table.name}: target '{asked.target}' holds {other}; a {asked.task} is asked for")


def _plain(table: Table, target: str | None, found: tuple[Note, ...]) -> dict[str, object]:
    return {
        "table": table.name,
        "rows": table.rows,
        "columns": {column.name: column.kind for column in table.columns},
        "missing_cells": _missing(table),
        "target": target,
        "reading": list(table.notes),
        "findings": [{"about": note.about, "text": note.text} for note in found],
    }


def _missing(table: Table) -> int:
    return sum(int(column.missing.sum()) for column in table.columns)


def _summary(table: Table, asked: Asked) -> str:
    from bilevax.study.levels import levels_of
    from bilevax.study.target_faults import described

    kinds = Counter(_KINDS[column.kind] for column in table.columns)
    of = listed(f"{number:,} of {kind}" for kind, number in kinds.items())
    missing = _missing(table)
    cells = f"{counted(missing, 'missing cell')}" if missing else "no missing cell"
    shape = f"{counted(table.rows, 'row')}, {counted(len(table.columns), 'column')} ({of}), {cells}"
    if asked.target is None:
        return f"{table.name}: {shape}\nno target: with --target COLUMN, leaks are looked for, too"
    target = described(levels_of(table.column(asked.target)), asked.task)
    return f"{table.name}: {shape}\ntarget '{asked.target}', {target}"


def _show(table: Table, asked: Asked, found: tuple[Note, ...]) -> None:
    from rich.table import Table as Shown
    from rich.text import Text

    from bilevax.cli.output import Output

    console = Output()
    head = [clean(line) for line in _summary(table, asked).split("\n")] + ([] if found else ["nothing found"])
    pairs = [*((note.about, note.text) for note in found), *(("table", text) for text in table.notes)]
    rows = [("note" if about == "table" else about, clean(text)) for about, text in pairs]
    if not console.is_terminal:
        # a finding a line, for grep
        print(*head, *(f"{about}: {text}" for about, text in rows), sep="\n")
        return
    for line in head:
        console.print(Text(line))
    if rows:
        shown = Shown(box=None, padding=(0, 2, 1, 0), show_header=False)
        for about, text in rows:
            shown.add_row(Text(about, _COLOURS.get(about, "yellow")), Text(text))
        console.print()
        console.print(shown)
