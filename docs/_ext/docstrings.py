"""Docstrings are English, code, formulas that are set in, Google's sections: here they become reStructuredText."""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

CODE = re.compile(r"(``.*?``|:\w+:`[^`]*`|`[^`]*`__?)")
SECTIONS = {f"{name}:" for name in ("Args", "Attributes", "Returns", "Raises", "Example", "Examples")}
SPECIAL = re.compile(r"[|*]|(?<=\w)_(?=\W|$)")


def escaped(line: str) -> str:
    """A line in which nothing but code, roles and a list's star means something."""
    parts = CODE.split(line)
    for i in range(0, len(parts), 2):
        star = re.match(r"\s*\* ", parts[i]) if i == 0 else None
        kept = star.group() if star else ""
        parts[i] = kept + SPECIAL.sub(r"\\\g<0>", parts[i][len(kept) :])
    return "".join(parts)


def structured(lines: list[str]) -> list[str]:
    """Blocks that are set in below a line that is not become literal, and all other text is escaped."""
    done: list[str] = []
    literal = example = False
    above = ""  # the last line that was not empty
    for line in lines:
        indented = line.startswith("    ")
        fresh = not done or not done[-1].strip()
        if line.strip():
            example = line.lstrip().startswith((">>>", "...")) or (example and not fresh)
        if line.strip() and not indented:
            literal = False
        elif line.strip() and indented and fresh and not literal and above and not above.startswith(" "):
            literal = above not in SECTIONS
            if literal and not above.endswith("::"):
                done += ["::", ""]
        code = literal or example or not line.strip()
        done.append(line.replace("``", "") if literal else line if code else escaped(line))
        above = line if line.strip() else above
    return done


def process(app: "Sphinx", what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Before napoleon reads the sections."""
    lines[:] = structured(lines)


def skip(app: "Sphinx", what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """What scikit-learn makes of its metadata routing is not ours to describe."""
    return True if re.fullmatch(r"(set_\w+_request|get_metadata_routing|set_output)", name) else None


def without_last_line(app: "Sphinx", tree: Any) -> None:
    """Blocks of code end with their last line: doctest wants an empty one below it."""
    from docutils import nodes

    for block in tree.findall(nodes.literal_block):
        block.children[:] = [nodes.Text(child.astext().rstrip("\n")) for child in block.children[-1:]]


def setup(app: "Sphinx") -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", process, priority=400)
    app.connect("autodoc-skip-member", skip)
    app.connect("doctree-read", without_last_line)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
