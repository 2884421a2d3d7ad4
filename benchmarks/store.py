"""What was measured, as JSON in benchmarks/results/: a file a question."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from benchmarks import machine

RESULTS = machine.ROOT / "benchmarks" / "results"


def plain(x: Any) -> Any:
    """What JSON holds: arrays are lists, NaN is null, paths are below the checkout, the rest is text.

    A record says by ``record()`` what is kept of it.
    """
    if hasattr(x, "record"):
        return plain(x.record())
    if isinstance(x, dict):
        return {str(name): plain(value) for name, value in x.items()}
    if isinstance(x, list | tuple):
        return [plain(value) for value in x]
    if hasattr(x, "tolist"):
        return plain(x.tolist())
    if isinstance(x, Path):
        return str(x.relative_to(machine.ROOT)) if x.is_relative_to(machine.ROOT) else x.name
    if isinstance(x, float):
        return None if math.isnan(x) else x
    return x if x is None or isinstance(x, str | int) else str(x)


def read(file: Path | None) -> dict[str, Any]:
    """What is kept there; nothing where there is no file."""
    return json.loads(file.read_text()) if file and file.exists() else {}


def write(file: Path, record: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(plain(record), indent=1) + "\n")


def keep(options: argparse.Namespace, record: dict[str, Any]) -> None:
    """Keep a question's record, with where and how it was measured, if it is to be kept."""
    if options.out:
        write(options.out, {**record, "setting": machine.setting(), "options": vars(options)})


def kept(options: argparse.Namespace) -> dict[str, Any]:
    """The record that is there, for a question that runs a part of it again."""
    return read(options.out)


def append(file: Path, line: dict[str, Any]) -> None:
    """A line of JSON more."""
    with file.open("a") as out:
        out.write(json.dumps(plain(line)) + "\n")
