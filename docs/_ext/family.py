"""Pages whose figures and rows are made when the site is built: what a recipe reached, what each method is."""

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).parents[1]
GROUP = re.compile(r"^\.\. rubric:: (.*)\n\n\.\. autosummary::\n((?:.*\n?)*?)(?=\n\.\. rubric|\Z)", re.MULTILINE)
SOURCE = re.compile(r"(?:Source: |In the\s+spirit of )(.*?)(?:\n\n|\Z)", re.DOTALL)
RECIPE = re.compile(r"\{recipe (\w+)(?:: ([\w., -]+))?\}")
COMPARED = re.compile(r"\{compared (\w+)\}")
MOST = 4
"""Figures of a recipe that are shown where none are named."""


def recipe(name: str, wanted: str | None) -> str:
    """The figures of a full run, with its seconds; all are meant where none are named, and the first few are shown."""
    kept = DOCS / "figures" / f"{name}.json"
    link = f"[`{name}`](gallery/{name})"
    if not kept.exists():
        return f"{link}: not run in full yet"
    run = json.loads(kept.read_text(encoding="utf-8"))
    names = wanted.split(", ") if wanted else list(run["figures"])[:MOST]
    figures = "; ".join(f"{x.replace('_', ' ')} {run['figures'][x]:.4g}" for x in names)
    return f"{link}: {figures} ({run['seconds']:.0f} s)"


def compared(name: str) -> str:
    """What docs/comparison.md has of an algorithm on digits."""
    from cards import tables

    row = tables((DOCS / "comparison.md").read_text(encoding="utf-8"))[0][name]
    problem, cell = next((head, cell) for head, cell in row.items() if head.startswith("digits"))
    return f"{cell.split(' ')[0]} of the start's squared hypergradient after {problem.split(', ')[1]} rows of digits"


def registry() -> str:
    """The groups of docs/cards.rst as tables: each method's name, first sentence and source."""
    text, lines = (DOCS / "cards.rst").read_text(encoding="utf-8"), []
    for head, block in GROUP.findall(text):
        lines += ["", f"## {head}", "", "| | what it does | source |", "|---|---|---|"]
        lines += [method(name) for name in re.findall(r"^   (\w+)$", block, re.MULTILINE)]
    return "\n".join(lines)


def method(name: str) -> str:
    """A row."""
    words = inspect.getdoc(getattr(importlib.import_module("bilevax"), name)) or ""
    first, source = words.split("\n\n")[0], SOURCE.search(words)
    cells = [first, source.group(1) if source else ""]
    said = [" ".join(cell.split()).replace("|", r"\|").replace("``", "`") for cell in cells]
    said = [re.sub(r":\w+:`~?(?:bilevax\.)?([\w.]+)`", r"`\1`", cell) for cell in said]
    return f"| {{py:class}}`~bilevax.{name}` | {said[0]} | {said[1]} |"


def filled(text: str) -> str:
    """A page's text with what stands in braces made."""
    text = RECIPE.sub(lambda match: recipe(*match.groups()), text)
    return COMPARED.sub(lambda match: compared(match.group(1)), text).replace("{registry}", registry())


def fill(app: "Sphinx", name: str, source: list[str]) -> None:
    """The two pages."""
    if name in ("family", "survey"):
        source[0] = filled(source[0])


def setup(app: "Sphinx") -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
