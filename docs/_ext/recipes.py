"""The gallery: each recipe of ``examples/`` as a page, run in quick mode, beside the figures of its full run."""

import datetime
import importlib.util
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).parents[1]
SOURCES, MADE, FIGURES = DOCS.parent / "examples", DOCS / "_recipes", DOCS / "figures"
GALLERY: dict[str, Any] = {
    "examples_dirs": str(MADE),
    "gallery_dirs": "gallery",
    "filename_pattern": r".*\.py",
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "min_reported_time": 0,
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("matplotlib",),
    "write_computation_times": False,
}


def recipes() -> list[Path]:
    """The files of ``examples/`` that have a ``main``."""
    return [path for path in sorted(SOURCES.glob("*.py")) if "\ndef main(" in path.read_text(encoding="utf-8")]


def script(source: str) -> str:
    """A recipe as sphinx-gallery wants it: a docstring with a title, and its quick run at the end."""
    from docstrings import structured

    words = re.match(r'r?"""(.*?)"""\n', source, re.DOTALL)
    assert words is not None
    title, _, text = words.group(1).strip().partition("\n")
    code = source[words.end() :].split('\nif __name__ == "__main__":')[0].rstrip()
    text = "\n".join(structured(text.splitlines()))
    head = f'r"""\n{title.rstrip(".")}\n{"=" * len(title)}\n{text}\n"""\n'
    run = "# %%\n# The quick run, which the tests make too:\n\nfor name, figure in main(quick=True).items():\n"
    return f"{head}{code}\n\n{run}    print(name, figure)\n"


def prepare(app: "Sphinx") -> None:
    """Write what sphinx-gallery reads."""
    MADE.mkdir(exist_ok=True)
    for path in MADE.glob("*.py"):
        path.unlink()
    (MADE / "README.txt").write_text((DOCS / "gallery_head.txt").read_text(encoding="utf-8"), encoding="utf-8")
    for path in recipes():
        (MADE / path.name).write_text(script(path.read_text(encoding="utf-8")), encoding="utf-8")


def add_figures(app: "Sphinx", name: str, source: list[str]) -> None:
    """Below a recipe: the figures of its full run, where ``make gallery`` has kept any."""
    kept = FIGURES / f"{name.removeprefix('gallery/')}.json"
    if name.startswith("gallery/") and kept.exists():
        source[0] += table(json.loads(kept.read_text(encoding="utf-8")))


def table(run: dict[str, Any]) -> str:
    """The figures of a full run, as reStructuredText."""
    lines = ["", "", ".. rubric:: The full run (``make gallery``)", "", ".. list-table::", ""]
    for name, value in run["figures"].items():
        lines += [f"   * - {name.replace('_', ' ')}", f"     - {value}"]
    made = f"{run['seconds']:.0f} s of CPU time; {run['versions']}; {run['date']}."
    return "\n".join([*lines, "", made, ""])


def run(path: Path) -> dict[str, Any]:
    """A recipe in full, with what it took."""
    import jax

    import bilevax

    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    begin = time.process_time()
    spec.loader.exec_module(recipe)
    figures = recipe.main()
    seconds = time.process_time() - begin
    versions = f"bilevax {bilevax.__version__}, jax {jax.__version__}"
    return {"figures": figures, "seconds": seconds, "versions": versions, "date": str(datetime.date.today())}


def main(names: list[str]) -> None:
    """``make gallery``: all recipes, or those that are named, one after another."""
    import matplotlib as mpl

    mpl.use("agg")
    FIGURES.mkdir(exist_ok=True)
    for path in recipes():
        if not names or path.stem in names:
            text = json.dumps(run(path), indent=1, default=float)
            (FIGURES / f"{path.stem}.json").write_text(text + "\n", encoding="utf-8")
            print(path.stem, text)


def setup(app: "Sphinx") -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", prepare, priority=100)  # before sphinx-gallery looks
    app.connect("source-read", add_figures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    main(sys.argv[1:])
