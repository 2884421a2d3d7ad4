"""The gallery: each recipe of ``examples/`` as a page, run in quick mode, beside the figures of its full run."""

import argparse
import datetime
import importlib.util
import inspect
import json
import re
import time
from pathlib import Path
from types import ModuleType
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
    seeds: list[dict[str, float]] = run.get("seeds", [])
    if seeds:
        lines[-1:] = ["   :header-rows: 1", "", "   * -", "     - seed 0", f"     - seeds 1 to {len(seeds)}"]
    for name, value in run["figures"].items():
        lines += [f"   * - {name.replace('_', ' ')}", f"     - {value}"]
        if seeds:
            found = [one[name] for one in seeds]
            lines.append(f"     - {min(found)} to {max(found)}")
    made = f"{run['seconds']:.0f} s of CPU time; {run['versions']}; {run['date']}."
    return "\n".join([*lines, "", made, ""])


def loaded(path: Path) -> ModuleType:
    """A recipe's module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe


def run(path: Path) -> dict[str, Any]:
    """A recipe in full, with what it took."""
    import jax

    import bilevax

    begin = time.process_time()
    figures = loaded(path).main()
    seconds = time.process_time() - begin
    versions = f"bilevax {bilevax.__version__}, jax {jax.__version__}"
    return {"figures": figures, "seconds": seconds, "versions": versions, "date": str(datetime.date.today())}


def keep(path: Path, what: dict[str, Any]) -> None:
    """What is known of a recipe's full runs."""
    text = json.dumps(what, indent=1, default=float)
    (FIGURES / f"{path.stem}.json").write_text(text + "\n", encoding="utf-8")
    print(path.stem, text)


def main(names: list[str], seeds: int) -> None:
    """All recipes, or those that are named; with seeds, by each of them those that take one."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    FIGURES.mkdir(exist_ok=True)
    for path in recipes():
        plt.close("all")
        if names and path.stem not in names:
            continue
        if not seeds:
            keep(path, run(path))
        elif "seed" in inspect.signature((recipe := loaded(path)).main).parameters:
            kept = json.loads((FIGURES / f"{path.stem}.json").read_text(encoding="utf-8"))
            keep(path, kept | {"seeds": [recipe.main(seed=seed) for seed in range(1, seeds + 1)]})


def setup(app: "Sphinx") -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", prepare, priority=100)  # before sphinx-gallery looks
    app.connect("source-read", add_figures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Recipes in full; their figures are kept for the site.")
    parser.add_argument("names", nargs="*", help="of recipes; default: all")
    parser.add_argument("--seeds", type=int, default=0, help="how many more, beside what a full run has kept")
    main(**vars(parser.parse_args()))
