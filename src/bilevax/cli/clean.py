"""``bilevax clean``: which labels of a table are wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from bilevax.cli.config_file import Options
from bilevax.cli.display import Display
from bilevax.cli.output import Output
from bilevax.cli.predict import csv_lines, safe_cell, safe_id
from bilevax.cli.source import open_table, required_target
from bilevax.cli.tune import described
from bilevax.core.cleaning_records import Verified, Wrong
from bilevax.core.errors import ParameterError, UsageError
from bilevax.core.limits import require
from bilevax.core.record_lines import Records
from bilevax.core.run_files import REPORT, SUSPICIOUS
from bilevax.core.run_records import Note
from bilevax.core.text import clean, counted
from bilevax.tables.memory import HELPS
from bilevax.tables.reading import EVERY, Reading, marks_from_words, types_from_words
from bilevax.tables.table import Table

if TYPE_CHECKING:
    from bilevax.study.cleaning import Cleaning, CleanSettings

_READ = ("drop", "text", "types", "missing", "keep", "max_cells")
"""Options of how the table is read, which the run records where they are given."""

_AT_ONCE = 10_000
"""Rows to a piece of the list of suspicious ones."""

_COPIES = 5
"""Of the numbers of a table, in float64, that a fit takes at most."""


def run(options: Options) -> int:
    """Find wrong labels and write the run; the exit code is returned.

    Args:
        options: of the command, by name, None where not given.
    """
    settings = _settings(options)
    from bilevax.study.run_directory import RunDirectory

    source, out = options["table"], options["out"]
    display = Display(0, quiet=options["quiet"], as_json=options["as_json"])
    with RunDirectory(out, force=options["force"]) as directory, display:
        display({"kind": "stage", "name": "reading the table"})
        table, target, trusted = _tables(source, options, settings)
        suffix = _cleaned(source, options) if options["cleaned"] else ""
        _require_memory(table)
        from bilevax.report import render_report
        from bilevax.study.cleaning import clean_table, config_of

        found = clean_table(table, target, settings, trusted=trusted, on_event=display)
        display({"kind": "stage", "name": "writing what was found"})
        asked = {name: options[name] for name in ("trusted", *_READ) if options[name]}
        directory.begin({**config_of(table, target, settings, asked), "source": described(source)})
        for event in found.events:
            directory.append(event)
        tables = {SUSPICIOUS: _suspicious(found)}
        if suffix:
            from bilevax.tables.replaced import replaced

            tables[f"cleaned{suffix}"] = replaced(Path(source), target, found.corrections(), table.sha256)
        directory.seal({}, {}, render_report, tables=tables)
        display.close()
        _outcome(found.records, directory.path, [*tables], options)
    return 0


def _settings(options: Options) -> "CleanSettings":
    """What was asked for; what does not go together is refused."""
    from bilevax.study.cleaning_rows import CleanSettings

    if options["trusted"] and options["trusted_column"]:
        raise UsageError("--trusted and --trusted-column both say which labels are right; give one")
    rehearsal = options["flip"] is not None
    if rehearsal and (options["truth"] or options["cleaned"]):
        which = "--truth" if options["truth"] else "--cleaned"
        raise UsageError(f"--flip turns labels of its own, whose truth is known, and cleans nothing; leave out {which}")
    if options["trust"] and not rehearsal:
        raise UsageError("--trust says how many labels a rehearsal trusts (--flip); name rows by --trusted-column")
    if options["trust"] and (options["trusted"] or options["trusted_column"]):
        raise UsageError("--trust draws rows to trust, and others are given; leave one of the two out")
    return CleanSettings(**{name: options[name] for name in CleanSettings._fields if options[name] is not None})


def _tables(source: str, options: Options, settings: "CleanSettings") -> tuple[Table, str, Table | None]:
    """What is cleaned, the column of labels, and the other table, if there is one."""
    marks, kinds = marks_from_words(options["missing"] or ()), types_from_words(options["types"] or ())
    given = {name: options[name] for name in ("text", "drop", "keep", "max_cells") if options[name]}
    reading = Reading(missing=marks, types=kinds, **given)
    table, known = open_table(source, reading)
    target = required_target(table, options["target"] or known)
    for name in reading.keep:
        if name in (target, settings.trusted_column, settings.truth):
            raise ParameterError(f"column '{name}' is kept beside the rows and cannot have another part")
    table.require([target])
    other = options["trusted"]
    return table, target, None if other is None else _trusted(other, table, settings, reading)


def _trusted(source: str, table: Table, settings: "CleanSettings", reading: Reading) -> Table:
    """The other table: its columns are read as what they are in the first, and what else is in it is not looked at."""
    columns = [column for column in table.columns if column.name not in (settings.truth, settings.trusted_column)]
    only = [column.name for column in columns]
    like = Reading(
        text=[column.name for column in columns if column.kind == "text"],
        numbers=[column.name for column in columns if column.kind in ("number", "integer", "boolean")],
        only=only,
        missing={name: marks for name, marks in reading.missing.items() if name in (EVERY, *only)},
        types={column.name: column.order or "date" for column in columns if column.kind == "date"},
        max_cells=reading.max_cells,
    )
    return open_table(source, like)[0]


def _cleaned(source: str, options: Options) -> str:
    """The suffix of the cleaned copy; refused where none can be made."""
    path = Path(source)
    if not path.exists():
        raise UsageError(
            f"'{clean(source)}' is a bundled data set, of which no cleaned copy is made; leave out --cleaned"
        )
    from bilevax.tables.replaced import require_replaceable

    return require_replaceable(path)


def _require_memory(table: Table) -> None:
    """Refuse, before it is begun, what takes clearly more memory than there is."""
    need = _COPIES * 8 * table.rows * len(table.columns)
    require(need, f"looking for wrong labels in {counted(table.rows, 'row')}", HELPS)


def _suspicious(found: "Cleaning") -> Iterator[bytes]:
    """The rows that were doubted, most suspicious first, as CSV in pieces."""
    rows = found.rows
    names = [column.name for column in rows.table.kept]
    truth = ["truth"] if rows.truth is not None else []
    yield csv_lines([["row", "probability", "given", "suggested", *truth, *map(safe_cell, names)]]).encode()
    safe = {label: safe_cell(label, label) if rows.text else label for label in rows.labels}
    order, given = found.order, rows.given
    for start in range(0, len(order), _AT_ONCE):
        yield csv_lines(
            [
                str(rows.places[i] + 1),
                f"{found.probability[i]:.6g}",
                safe[given[i]],
                safe[found.suggested[i]],
                *([safe_id(rows.truth[i])] if rows.truth is not None else []),
                *(safe_id(column.values[i]) for column in rows.table.kept),
            ]
            for i in order[start : start + _AT_ONCE].tolist()
        ).encode()


def _outcome(records: Records, directory: Path, written: list[str], options: Options) -> None:
    """The sentence, and where everything is, on standard output."""
    from bilevax.report.cleaning_words import checked, verdict

    wrong, verified = records.last(Wrong), records.last(Verified)
    assert wrong is not None
    console, said = Output(), verdict(records)
    leaks = [note.text for note in records.of(Note) if note.about == "leak"]
    if options["as_json"]:
        plain: dict[str, object] = {
            "directory": str(directory),
            **{name.partition(".")[0]: str(directory / name) for name in (REPORT, *written)},
            "verdict": said.sentence,
            "expected_wrong": dict(zip(("value", "low", "high"), wrong.expected, strict=True)),
            "probably_wrong": wrong.suspicious,
            "notes": [{"about": note.about, "text": note.text} for note in records.of(Note)],
            "verified": None if verified is None else verified.model_dump(mode="json", exclude={"kind"}),
        }
        print(json.dumps(plain))
        return
    if options["quiet"]:
        console.print(Text(clean(directory / REPORT)), soft_wrap=True)
        return
    before = [f"Do not believe this before you have looked at it: {clean(text)}" for text in leaks]
    for text in (said.sentence, *([checked(verified)] if verified else []), *before):
        console.print(Text(text))
    for name in (REPORT, *written):
        console.print(Text(f"{name.partition('.')[0]:<11} {clean(directory / name)}"), soft_wrap=True)
