"""``python -m benchmarks NAME [--quick] [options]``; without a name, the list of the questions."""

import argparse
import ast
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from benchmarks import QUESTIONS, store


def summary(name: str) -> str:
    """The first line of a question's docstring; nothing is imported for it."""
    spec = find_spec(f"benchmarks.{name}")
    assert spec is not None
    assert spec.origin is not None
    return (ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or "").partition("\n")[0]


def question(name: str) -> tuple[ModuleType, argparse.ArgumentParser]:
    """The module of a question, and the parser of its options."""
    module = import_module(f"benchmarks.{name}")
    parser = argparse.ArgumentParser(
        f"python -m benchmarks {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="on very little: a smoke test, no measurement")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where to keep the record")
    if hasattr(module, "arguments"):
        module.arguments(parser)
    return module, parser


def main() -> None:
    name, *words = sys.argv[1:] or ["--help"]
    if name.startswith("-"):
        print("python -m benchmarks NAME [--quick] [options]; NAME --help says more\n")
        print(*(f"{name:<14}{summary(name)}" for name in QUESTIONS), sep="\n")
        return
    if name not in QUESTIONS:
        sys.exit(f"there is no question {name!r}; there are {', '.join(QUESTIONS)}")
    module, parser = question(name)
    options = parser.parse_args(words)
    if options.out is None and not options.quick:
        options.out = store.RESULTS / f"{name}.json"
    module.main(options)


if __name__ == "__main__":
    main()
