"""``bilevax tune``: read, tune, compare, write."""

from pathlib import Path
from typing import Any

from bilevax.cli.display import Display, print_outcome
from bilevax.cli.source import open_table
from bilevax.core.errors import UsageError
from bilevax.tables.table import Table

_INTERRUPTED = 130


def run(source: str, target: str | None, out: Path, values: dict[str, object], *, force: bool) -> int:
    """Tune a table and write the run; the exit code is returned."""
    from bilevax.study.run_directory import RunDirectory
    from bilevax.study.settings import settings_from

    settings = settings_from(values)
    directory = RunDirectory(out, force=force)
    with Display(settings.steps) as display:
        display({"kind": "stage", "name": "reading the table"})
        table, target = _table(source, target, settings.text)
        display({"kind": "stage", "name": "starting JAX"})
        from bilevax.study.study import tune_table

        def record(event: dict[str, Any]) -> None:
            if event["kind"] != "stage":
                directory.append(event)
            display(event)

        try:
            study = tune_table(table, target, settings=settings, on_event=record)
            display({"kind": "stage", "name": "writing the model and the report"})
            directory.finish(study)
        except BaseException:
            directory.discard()
            raise
        report = _report(out)
    print_outcome(study, out, report)
    return _INTERRUPTED if study.interrupted else 0


def _table(source: str, target: str | None, text: tuple[str, ...]) -> tuple[Table, str]:
    table, known = open_table(source, text=text)
    target = target or known
    if target is None:
        raise UsageError(
            f"Missing option '--target'; the last of the {len(table.names)} columns is '{table.names[-1]}'"
        )
    return table, target


def _report(directory: Path) -> Path:
    from bilevax.report import write_report

    return write_report(directory)
