"""``bilevax tune``: read, tune, compare, write."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bilevax.cli.config_file import Options, read_config
from bilevax.cli.display import Display
from bilevax.cli.group import asked, joined, started_again
from bilevax.cli.source import open_rows, required_target
from bilevax.core.errors import UsageError
from bilevax.core.events import Event, Plain
from bilevax.core.limits import require
from bilevax.core.text import clean, counted
from bilevax.tables.memory import HELPS, MAPPED, PROGRAMS, STARTING, study_memory
from bilevax.tables.table import Table

if TYPE_CHECKING:
    from bilevax.runs import Run
    from bilevax.study.row_set import RowSet
    from bilevax.study.run_directory import RunDirectory, Tables
    from bilevax.study.settings import TuneSettings

_INTERRUPTED = 130


def begin(options: Options) -> int:
    """Tune a table and write the run; the exit code is returned.

    Args:
        options: of the command, by name, None where not given: among them the fields of
            :class:`~bilevax.study.settings.TuneSettings`.
    """
    from bilevax.study.run_directory import RunDirectory
    from bilevax.study.run_parts import did_not_end

    settings, rest = settings_of(options, options["config"])
    source, out = (options[name] or rest.get(name) for name in ("table", "out"))
    if source is None or out is None:
        missing = "argument 'TABLE'" if source is None else "option '--out'"
        raise UsageError(f"Missing {missing}; `bilevax tune --help` has an overview")
    if started_again() and did_not_end(Path(out)):
        from bilevax.cli import resume

        return resume.run(Path(out), None, (), (), quiet=options["quiet"], as_json=options["as_json"])
    display = Display(settings.steps, quiet=options["quiet"], as_json=options["as_json"])
    with said_if_kept(RunDirectory(Path(out), force=options["force"])) as directory, display:
        display({"kind": "stage", "name": "reading the table"})
        opened = open_for(source, options["target"] or rest.get("target"), settings, display)
        return carry_out(directory, display, opened, settings, {"source": described(source)})


def carry_out(
    directory: "RunDirectory",
    display: Display,
    opened: "Opened",
    settings: "TuneSettings",
    more: "Tables",
    *,
    override: tuple[str, ...] = (),
) -> int:
    """Begin the run or go on with it, to its end; the exit code is returned.

    Args:
        directory: where.
        display: shows the records.
        opened: what is tuned.
        settings: how.
        more: tables for ``config.toml``.
        override: as of :class:`bilevax.Run`.
    """
    table, target, every = opened
    if settings.is_linear:
        _require_memory(table, settings)
        # The import takes seconds; faults of the file have been found by now.
        display({"kind": "stage", "name": "starting JAX"})
    from bilevax.report import render_report
    from bilevax.study.study import config_at_start, tune_table

    def record(event: Event) -> bool:
        if event["kind"] != "stage":
            directory.append(event)
        display(event)
        return False

    config = {**config_at_start(table, target, settings), **more}
    if "resumed" in more:
        config["resumed"] = {**more["resumed"], "elsewhere": _elsewhere(directory.config, config)}
    directory.begin(config)
    run = _checkpoints(directory, settings, override)
    if every is not None:
        every.keep_in(directory.checkpoints)
    study = tune_table(table, target, settings=settings, on_event=record, run=run, every=every)
    display({"kind": "stage", "name": "writing the model and the report"})
    directory.finish(study, render_report)
    display.close()
    display.outcome(study.records, study.config(), directory.path)
    return _INTERRUPTED if study.interrupted else 0


def _checkpoints(directory: "RunDirectory", settings: "TuneSettings", override: tuple[str, ...]) -> "Run | None":
    """Of a linear model's tuning; of an additive one passes over many rows alone take time worth keeping."""
    if not settings.is_linear:
        return None
    from bilevax.runs import Run

    return Run(directory.checkpoints, override=override)


def _require_memory(table: Table, settings: "TuneSettings") -> None:
    """Refuse a table of which the numbers alone take too much, before JAX is started: it aborts where memory ends."""
    numbers = sum(column.kind != "text" and column.name not in settings.drop for column in table.columns)
    what = f"tuning {table.rows:,} rows with {counted(numbers, 'column')} of numbers"
    need, programs = study_memory(table.rows, numbers, 1, 3), PROGRAMS + STARTING
    require(need, what, HELPS, compiler=programs, mapped=MAPPED + STARTING)


def described(source: str) -> dict[str, object]:
    """Where a table is found again: as it was given, and the path of a file."""
    return {"given": source, "path": os.path.abspath(source) if Path(source).exists() else None}


def _elsewhere(saved: "Tables", now: "Tables") -> list[object]:
    """What was another version or machine than now, each time that a run went on; its last bits may be others since."""
    before = saved.get("resumed", {}).get("elsewhere", [])
    pairs = [
        (name, was, now[table].get(name)) for table in ("versions", "machine") for name, was in saved[table].items()
    ]
    assert isinstance(before, list)
    return [*before, *(f"{name}: {was} -> {is_now}" for name, was, is_now in pairs if was != is_now)]


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


class Opened(NamedTuple):
    """The table to tune on, the column to predict, and all rows where the table has some of them."""

    table: Table
    target: str
    every: "RowSet | None" = None


def open_for(source: str, target: str | None, settings: "TuneSettings", display: Display) -> Opened:
    """What is tuned; of rows that memory does not hold a sample is drawn.

    Raises:
        UsageError: there is nothing of that name, or the target is not said.
    """
    found, known = open_rows(source, settings.reading)
    target = target or known
    processes = joined()
    if isinstance(found, Table):
        if processes.count > 1:
            text = f"{found.name} fits into memory, where other processes are of no use: one of them tunes"
            display({"kind": "note", "text": text})
        return Opened(found, required_target(found, target))
    from bilevax.study.row_set import RowSet

    if target is None:
        raise UsageError(f"Missing option '--target'; {found.name} has {found.rows:,} rows and does not say it")
    every = RowSet(found, target, settings, processes)
    if processes.count > 1:
        # or each of them would say what the files have not
        next(found.tables()).require([target])
    asked(processes, source, target, settings)
    every.stage = lambda name, **more: display({"kind": "stage", "name": name, **more})
    return Opened(every.sample(), target, every)


def settings_of(options: Options, config: Path | None) -> tuple["TuneSettings", Plain]:
    """Settings by the command line, else by a TOML file, and what else that file says: table, target, out.

    Raises:
        UsageError: there is no such file, or it is no TOML.
        ParameterError: a setting is wrong.
    """
    from bilevax.study.settings import OF_LINEAR, TuneSettings, settings_from

    # a list of which nothing was given is empty
    given = {name: options[name] for name in TuneSettings.model_fields if options.get(name) not in (None, [], ())}
    found, rest = ({}, {}) if config is None else read_config(config)
    # of what one model has and the other has not, none is taken over
    if given.get("model", found.get("model")) != found.get("model"):
        found = {name: value for name, value in found.items() if name not in OF_LINEAR}
    return settings_from({**found, **given}), rest
