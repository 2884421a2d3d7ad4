"""``bilevax tune``: read, tune, compare, write."""

from collections.abc import Mapping
from pathlib import Path

from bilevax.cli.display import Display, print_outcome
from bilevax.cli.source import open_table
from bilevax.core.errors import UsageError
from bilevax.core.events import Event
from bilevax.tables.table import Table

_INTERRUPTED = 130


def run(source: str, target: str | None, out: Path, options: Mapping[str, object], *, force: bool) -> int:
    """Tune a table and write the run; the exit code is returned.

    Among the options are the fields of :class:`~bilevax.study.settings.TuneSettings`, None where not given.
    """
    from bilevax.study.run_directory import RunDirectory
    from bilevax.study.settings import TuneSettings, settings_from

    settings = settings_from({name: options[name] for name in TuneSettings.model_fields if options[name] is not None})
    directory = RunDirectory(out, force=force)
    with Display(settings.steps) as display:
        display({"kind": "stage", "name": "reading the table"})
        table, target = _table(source, target, settings.text)
        # The import takes seconds; faults of the file have been found by now.
        display({"kind": "stage", "name": "starting JAX"})
        from bilevax.study.study import tune_table

        def record(event: Event) -> None:
            if event["kind"] != "stage":
                directory.append(event)
            display(event)

        try:
            study = tune_table(table, target, settings=settings, on_event=record)
            display({"kind": "stage", "name": "writing the model and the report"})
            directory.finish(study)
        # Ctrl-C before the first step too: an earlier run stays as it was.
        except BaseException:
            directory.discard()
            raise
        from bilevax.report import write_report

        report = write_report(out)
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
