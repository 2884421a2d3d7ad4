"""The page put together: sections from plain records, the template from the package, one file written whole."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from bilevax.core.files import write
from bilevax.core.text import shorten
from bilevax.report.about import data_section, method_section, settings, use_section
from bilevax.report.comparison import comparison
from bilevax.report.penalties import LISTED, penalties_section
from bilevax.report.progress import course_section, gap_section
from bilevax.report.records import Run, read_run
from bilevax.report.summary import notices, tiles, verdict


def write_report(directory: Path) -> Path:
    """Read a run directory and write ``report.html`` into it: one file, no script, nothing remote.

    Equal directories give equal pages, to the byte. What the run did not record is left out.

    Args:
        directory: holds ``config.toml``, ``metrics.jsonl`` and ``coefficients.json``, each optional.

    Returns:
        The path of the page.

    Raises:
        DataError: the directory holds none of these files, or one is torn; the message names file and line.
        StorageError: a file could not be read or written.
    """
    path = directory / "report.html"
    write(path, render("template.html.j2", _page(read_run(directory))))
    return path


def _page(run: Run) -> dict[str, object]:
    """What the template shows; a section that is None is left out."""
    return {
        "table": shorten(run.setting("data", "table"), 80),
        "target": shorten(run.setting("data", "target"), 60),
        "verdict": verdict(run),
        "notices": notices(run),
        "tiles": tiles(run),
        "comparison": comparison(run),
        "course": course_section(run),
        "penalties": penalties_section(run),
        "listed": LISTED,
        "gap": gap_section(run.gap),
        "data": data_section(run),
        "method": method_section(run),
        "use": use_section(run),
        "settings": settings(run),
    }


def render(template: str, page: Mapping[str, object]) -> str:
    """A template of this room, filled in; what a record says is escaped."""
    # Where nothing is rendered, it need not be installed.
    import jinja2

    room = files("bilevax.report")
    # Escaped, a label can become text and nothing else; strict, a section that lacks a part fails its test.
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: room.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(page=page)
