"""Cards of algorithms: what the pages' tables say of one, below its docstring."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).parents[1]
Row = dict[str, str]
MARKDOWN_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


def tables(page: str) -> list[dict[str, Row]]:
    """The tables of a Markdown page: row by first cell, cell by head."""
    found = []
    for block in re.findall(r"^(?:\|.*\|\n)+", page, re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        found.append({row[0].strip("`"): dict(zip(head[1:], row[1:], strict=False)) for row in rows})
    return found


def said(name: str, pages: list[dict[str, Row]]) -> list[str]:
    """What tables with words say of a name, as a table of two columns."""
    cells = {head: cell for table in pages for head, cell in table.get(name, {}).items()}
    plain = {head: re.sub(MARKDOWN_LINK, r"\1", cell).replace("`", "``") for head, cell in cells.items()}
    rows = [line for head, cell in plain.items() for line in (f"   * - {head}", f"     - {cell}")]
    return [".. list-table::", "", *rows, ""] if rows else []


def measured(name: str, samples: dict[str, Row], seconds: dict[str, Row]) -> list[str]:
    """The medians of docs/comparison.md, and the place among all."""
    lines = [".. list-table:: Squared norm of the exact hypergradient over that at the start, and the place among all"]
    lines += ["   :header-rows: 1", "", "   * - problem", "     - after samples", "     - after CPU seconds"]
    for (problem, one), (again, other) in zip(samples[name].items(), seconds[name].items(), strict=True):
        cells = [placed(one, [row[problem] for row in samples.values()])]
        cells += [placed(other, [row[again] for row in seconds.values()])]
        budgets = [head.split(", ")[1] for head in (problem, again)]
        lines.append(f"   * - {problem.split(',')[0]}")
        lines += [f"     - {cell} after {budget}" for cell, budget in zip(cells, budgets, strict=True)]
    return [*lines, "", "From :doc:`/comparison`, which says how this was measured, and what it does not say.", ""]


def placed(cell: str, column: list[str]) -> str:
    """A median, and how many are lower."""
    if not (number := re.match(r"[\d.e+-]+", cell)):
        return cell
    value = float(number.group())
    others = [float(match.group()) for text in column if (match := re.match(r"[\d.e+-]+", text))]
    return f"{value:.1e} ({1 + sum(other < value for other in others)} of {len(column)})"


def process(app: "Sphinx", what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """After napoleon."""
    short = name.removeprefix("bilevax.")
    if what != "class" or "." in short:
        return
    words = tables((DOCS / "algorithms.md").read_text(encoding="utf-8"))
    samples, seconds = tables((DOCS / "comparison.md").read_text(encoding="utf-8"))[:2]
    if fields := said(short, words):
        lines += ["", ".. rubric:: Beside the others", "", *fields]
    if short in samples:
        lines += ["", ".. rubric:: Measured", "", *measured(short, samples, seconds)]


def setup(app: "Sphinx") -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", process, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
