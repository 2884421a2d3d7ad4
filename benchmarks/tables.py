"""Markdown tables, printed row by row as the figures come."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

Check = tuple[str, str, str, bool]
"""(What is checked, its figure, the goal, whether it is met.)"""


def cell(x: Any) -> str:
    """Text as it is; numbers with four digits; nothing for None; parts of a list side by side."""
    if isinstance(x, bool):
        return "yes" if x else "NO"
    if isinstance(x, list | tuple):
        return " / ".join(map(cell, x))
    return "" if x is None else f"{x:.4g}" if isinstance(x, float) else f"{x:,}" if isinstance(x, int) else str(x)


def line(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(map(cell, cells)) + " |"


def text(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A whole table."""
    names = list(head)
    return "\n".join([line(names), "|---" * len(names) + "|", *map(line, rows)])


class Table:
    """A table whose head is printed at once, and whose rows are printed as they come."""

    def __init__(self, *head: str) -> None:
        print("\n" + text(head, ()), flush=True)

    def __call__(self, *cells: Any) -> None:
        """Print a row."""
        print(line(cells), flush=True)


def checks(rows: Iterable[Check]) -> None:
    """Print what was to hold, and whether it does."""
    table = Table("check", "figure", "goal", "met")
    for row in rows:
        table(*row)


def into(page: Path, name: str, text: str) -> None:
    """Write a question's figures between their marks of a page."""
    first, last = f"<!-- figures: python -m benchmarks {name} -->", "<!-- end of figures -->"
    before, _, rest = page.read_text().partition(first)
    page.write_text(f"{before}{first}\n{text}{last}{rest.partition(last)[2]}")
