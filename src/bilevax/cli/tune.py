"""``bilevax tune``: read, tune, compare, write."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bilevax.cli.display import Display, print_outcome
from bilevax.cli.source import open_table
from bilevax.core.errors import UsageError
from bilevax.core.events import Event
from bilevax.core.text import clean
from bilevax.tables.table import Table

if TYPE_CHECKING:
    from bilevax.study.run_directory import RunDirectory, Tables
    from bilevax.study.settings import TuneSettings

_INTERRUPTED = 130


def run(source: str, target: str | None, out: Path, options: Mapping[str, object], *, force: bool) -> int:
    """Tune a table and write the run; the exit code is returned.

    Among the options are the fields of :class:`~bilevax.study.settings.TuneSettings`, None where not given.
    """
    from bilevax.study.run_directory import RunDirectory
    from bilevax.study.settings import TuneSettings, settings_from

    settings = settings_from({name: options[name] for name in TuneSettings.model_fields if options[name] is not None})
    with said_if_kept(RunDirectory(out, force=force)) as directory, Display(settings.steps) as display:
        display({"kind": "stage", "name": "reading the table"})
        table, target = _table(source, target, settings.text)
        return carry_out(directory, display, table, target, settings, {"source": described(source)})


def carry_out(
    directory: "RunDirectory",
    display: Display,
    table: Table,
    target: str,
    settings: "TuneSettings",
    more: "Tables",
    *,
    override: tuple[str, ...] = (),
) -> int:
    """Begin the run or go on with it, to its end; the exit code is returned.

    Args:
        directory: where.
        display: shows the records.
        table: what is tuned.
        target: the column to predict.
        settings: how.
        more: tables for ``config.toml``.
        override: as of :class:`bilevax.Run`.
    """
    # The import takes seconds; faults of the file have been found by now.
    display({"kind": "stage", "name": "starting JAX"})
    from bilevax.report import render_report
    from bilevax.runs import Run
    from bilevax.study.study import config_at_start, tune_table

    def record(event: Event) -> None:
        if event["kind"] != "stage":
            directory.append(event)
        display(event)

    directory.begin({**config_at_start(table, target, settings), **more})
    kept = Run(directory.checkpoints, override=override)
    study = tune_table(table, target, settings=settings, on_event=record, run=kept)
    display({"kind": "stage", "name": "writing the model and the report"})
    directory.finish(study, render_report)
    display.close()
    print_outcome(study, directory.path)
    return _INTERRUPTED if study.interrupted else 0


def described(source: str) -> dict[str, object]:
    """Where a table is found again: as it was given, and the path of a file."""
    return {"given": source, "path": os.path.abspath(source) if Path(source).exists() else None}


@contextlib.contextmanager
def said_if_kept(directory: "RunDirectory") -> Iterator["RunDirectory"]:
    """The directory while it is written; if that fails, what was reached may be worth going on with."""
    try:
        with directory:
            yield directory
    except BaseException:
        if directory.kept:
            path = clean(directory.path)
            print(f"bilevax: what was reached is kept: bilevax resume {path}", file=sys.stderr)
        raise


def _table(source: str, target: str | None, text: tuple[str, ...]) -> tuple[Table, str]:
    table, known = open_table(source, text=text)
    target = target or known
    if target is None:
        raise UsageError(
            f"Missing option '--target'; the last of the {len(table.names)} columns is '{table.names[-1]}'"
        )
    return table, target
