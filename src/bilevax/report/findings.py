"""What an audit found, as a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bilevax.core.files import write
from bilevax.core.text import clean, counted, listed, significant
from bilevax.report.summary import Tile, Verdict
from bilevax.report.templates import render

SEVERITIES = ("error", "warning", "note")


def write_findings(
    path: Path, name: str, findings: Sequence[Mapping[str, str]], figures: Mapping[str, float] | None = None
) -> Path:
    """Write the findings of an audit as one self-contained page: no script, nothing remote.

    Args:
        path: of the page.
        name: of the problem.
        findings: records with ``code``, ``severity``, ``measured`` and ``advice``, the worst first.
        figures: numbers measured on the way, by name.

    Returns:
        The path.

    Raises:
        StorageError: the page could not be written.
    """
    rows = [{key: clean(record[key]) for key in ("code", "severity", "measured", "advice")} for record in findings]
    tiles = [Tile(clean(key), significant(value, 4), "") for key, value in (figures or {}).items()]
    page = {"name": clean(name), "verdict": _verdict(rows), "tiles": tiles, "findings": rows}
    write(path, render("findings.html.j2", page))
    return path


def _verdict(rows: list[dict[str, str]]) -> Verdict:
    # In this order they are said, the worst first.
    numbers = {severity: sum(row["severity"] == severity for row in rows) for severity in SEVERITIES}
    said = listed(counted(number, severity) for severity, number in numbers.items() if number)
    if numbers["error"]:
        return Verdict(
            "worse", "Wrong", f"The audit found {said}.", "A hypergradient of this problem is not to be used."
        )
    if numbers["warning"]:
        return Verdict("same", "Look again", f"The audit found {said}.", "Nothing that it found makes results wrong.")
    return Verdict("better", "Sound", f"The audit found {said or 'nothing'}.", "")
