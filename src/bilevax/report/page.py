"""The page put together: sections from plain records, the template from the package, one file written whole."""

import warnings
from pathlib import Path

from bilevax.core import manifest
from bilevax.core.files import Lock, read, write
from bilevax.core.run_files import FORMAT, KIND, REPORT, RunFiles, read_run_files
from bilevax.core.run_records import Gap
from bilevax.core.text import shorten
from bilevax.report import svg
from bilevax.report.about import data_section, method_section, settings, use_section
from bilevax.report.cleaning import is_cleaning, page_of_cleaning
from bilevax.report.comparison import comparison
from bilevax.report.diagnostics import diagnostics_section
from bilevax.report.effects import effects_section
from bilevax.report.mathematics import mathematics_section
from bilevax.report.penalties import LISTED, penalties_section
from bilevax.report.progress import course_section, gap_section
from bilevax.report.rows import rows_section
from bilevax.report.run import Run, run_of
from bilevax.report.summary import ending, tiles, verdict
from bilevax.report.summary import warnings as warnings_of
from bilevax.report.templates import render


def write_report(directory: Path) -> Path:
    """Read a run directory and write ``report.html`` into it: one file, no script, nothing remote.

    Equal directories give equal pages, to the byte. What the run did not record is left out. Of a finished run the
    manifest is written anew, with the page; a page that was changed since it was written is replaced with a warning.

    Args:
        directory: of a run, whether it has ended or not.

    Returns:
        The path of the page.

    Raises:
        DataError: it is no run directory, or nothing was recorded in it.
        CorruptError: a file of it was damaged; the message names it.
        LockedError: it is finished, and another process is replacing it.
        StorageError: a file could not be read or written.
    """
    found = read_run_files(directory)
    while not found.finished:
        write(found.path / REPORT, render_report(found))
        found = read_run_files(directory)
        # it has not ended meanwhile, nor was it replaced
        if not found.finished:
            return found.path / REPORT
    lock = Lock(found.path)
    try:
        found = read_run_files(found.path)
        _write_sealed(found)
    finally:
        # a directory beside, which is still to be renamed, is known by its lock
        lock.release(remove=found.path == directory)
    return found.path / REPORT


def _write_sealed(found: RunFiles) -> None:
    path, content = found.path / REPORT, render_report(found).encode()
    there, said, listed = read(path), found.listed.get(REPORT), manifest.fingerprint(content)
    if there is not None and said is not None and manifest.fingerprint(there) != said:
        warnings.warn(f"{path} was changed since it was written; it is written anew", stacklevel=3)
    if there != content:
        write(path, content)
    if said != listed:
        manifest.write(found.path, KIND, FORMAT, {**found.listed, REPORT: listed}, found.content)


def render_report(found: RunFiles) -> str:
    """The page of a run's files.

    Raises:
        DataError: nothing was recorded.
        CorruptError: a file is torn.
    """
    return page_of_cleaning(found) if is_cleaning(found) else page_of(run_of(found))


def page_of(run: Run) -> str:
    """The page of a run."""
    with svg.style():
        return render("template.html.j2", _page(run))


def _page(run: Run) -> dict[str, object]:
    """What the template shows; a section that is None is left out."""
    same = run.model is not None and run.model.same_penalty
    return {
        "table": shorten(run.setting("data", "table"), 80),
        "target": shorten(run.setting("data", "target"), 60),
        "verdict": verdict(run.records, run.config, same_penalty=same),
        "ending": ending(run.records),
        "warnings": warnings_of(run.records),
        "tiles": tiles(run),
        "effects": effects_section(run),
        "weights": penalties_section(run),
        "comparison": comparison(run),
        "diagnostics": diagnostics_section(run),
        "rows": rows_section(run),
        "course": course_section(run),
        "listed": LISTED,
        "gap": gap_section(run.records.last(Gap)),
        "data": data_section(run),
        "mathematics": mathematics_section(run),
        "method": method_section(run),
        "use": use_section(run),
        "settings": settings(run),
    }
