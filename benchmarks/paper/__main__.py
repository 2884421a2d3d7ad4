"""The experiments of the paper on stochastic hypergradients, run again: figures and a page in docs/.

    python -m benchmarks.paper [--quick] [--only synthetic,fashion,newsgroups] [--parts errors,bilevel] [--page]

Grazzi, Pontil, Salzo (2021), arXiv:2011.07122. Results are kept in benchmarks/results/paper.json; what is not run again
stays as it was. ``--page`` only draws the figures and writes the page from what is there. ``--quick`` tries the code on
a few rows, dense and sparse, in a temporary folder.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from benchmarks import machine
from benchmarks.paper import bilevel, errors, figures, page, problems

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "paper.json"
QUICK = {
    "rows": 400,
    "errors": errors.Plan((1e-2, 1e-3), (1, 2), runs=2),
    "bilevel": bilevel.Plan(1e-2, steps=3, epochs=2, runs=2),
}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few rows, two runs: a smoke test, no measurement")
    parser.add_argument("--only", help=f"some of {','.join(problems.LOADERS)}; default all, with --quick not fashion")
    parser.add_argument("--parts", default="errors,bilevel", help="some of: %(default)s")
    parser.add_argument("--page", action="store_true", help="draw and write only")
    out = parser.parse_args()
    default = [name for name in problems.LOADERS if not (out.quick and name == "fashion")]
    out.only, out.parts = out.only.split(",") if out.only else default, out.parts.split(",")
    if unknown := set(out.only) - set(problems.LOADERS) | set(out.parts) - {"errors", "bilevel"}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return out


def run(chosen: argparse.Namespace, file: Path) -> None:
    """Run what was asked for; the file is written after each part."""
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for name in chosen.only:
        data = problems.LOADERS[name]()
        data = data.few(QUICK["rows"]) if chosen.quick else data
        for part, module in (("errors", errors), ("bilevel", bilevel)):
            if part not in chosen.parts or name not in module.PLANS:
                continue
            clock = time.perf_counter()
            plan = QUICK[part] if chosen.quick else module.PLANS[name]
            result = module.experiment(data, plan, lambda text: print(text, flush=True))
            seconds = time.perf_counter() - clock
            record = {"setting": machine.setting(), "seconds": seconds, **result}
            found.setdefault(part, {})[name] = record
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    chosen = options()
    jax.config.update("jax_enable_x64", True)  # for the references; the rows of the real data stay float32
    if chosen.quick:
        jax.config.update("jax_disable_most_optimizations", True)
        with tempfile.TemporaryDirectory() as folder:
            run(chosen, Path(folder) / "paper.json")
            write(Path(folder) / "paper.json", Path(folder))
        return
    if not chosen.page:
        run(chosen, RESULTS)
    write(RESULTS, ROOT / "docs")


def write(file: Path, folder: Path) -> None:
    """Figures and page."""
    found = json.loads(file.read_text())
    drawn = figures.draw(found, folder / "paper")
    (folder / "paper.md").write_text(page.text(found, drawn))
    print(f"{folder / 'paper.md'} and {len(drawn)} figures")


if __name__ == "__main__":
    main()
