"""``bilevax check TABLE``: what is seen in a table before any fit."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import typer

from bilevax.cli.source import open_table
from bilevax.core.errors import UsageError
from bilevax.core.run_records import Note
from bilevax.core.text import clean, counted, listed
from bilevax.tables.reading import Reading
from bilevax.tables.table import Table

_FOUND_LEAKS = 1

_COLOURS = {"leak": "bold red", "reading": "cyan", "table": "cyan"}
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


def run(name: str, target: str | None, reading: Reading, *, as_json: bool) -> int:
    """Print what is found; 1 where a column knows the target."""
    from bilevax.study.findings import findings

    table, known = open_table(name, reading)
    target = target or known
    found = findings(table, target)
    if as_json:
        print(json.dumps(_plain(table, target, found)))
    else:
        _show(table, target, found)
    return _FOUND_LEAKS if any(note.about == "leak" for note in found) else 0


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


def _summary(table: Table, target: str | None) -> str:
    from bilevax.study.levels import levels_of
    from bilevax.study.target_faults import described

    kinds = Counter(_KINDS[column.kind] for column in table.columns)
    of = listed(f"{number:,} of {kind}" for kind, number in kinds.items())
    missing = _missing(table)
    cells = f"{counted(missing, 'missing cell')}" if missing else "no missing cell"
    shape = f"{counted(table.rows, 'row')}, {counted(len(table.columns), 'column')} ({of}), {cells}"
    if target is None:
        return f"{table.name}: {shape}\nno target: with --target COLUMN, leaks are looked for, too"
    return f"{table.name}: {shape}\ntarget '{target}', {described(levels_of(table.column(target)))}"


def _show(table: Table, target: str | None, found: tuple[Note, ...]) -> None:
    from rich.table import Table as Shown
    from rich.text import Text

    from bilevax.cli.output import Output

    console = Output()
    for line in _summary(table, target).split("\n"):
        console.print(Text(clean(line)))
    rows = [*((note.about, note.text) for note in found), *(("reading", note) for note in table.notes)]
    if not found:
        console.print(Text("nothing found"))
    if rows:
        shown = Shown(box=None, padding=(0, 2, 1, 0), show_header=False)
        for about, text in rows:
            shown.add_row(Text("note" if about == "table" else about, _COLOURS.get(about, "yellow")), Text(clean(text)))
        console.print()
        console.print(shown)
