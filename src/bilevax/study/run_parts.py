"""What in a directory is of a run, and how it is removed: nothing else ever is."""

import json
import os
from pathlib import Path

from bilevax.core import files, manifest
from bilevax.core.events import Plain
from bilevax.core.run_files import CHECKPOINTS, FILES, KIND, METRICS, PASS, RUNNING, STEP, TABLES, siblings, state_of


def occupied(path: Path) -> bool:
    """True if anything is there beside a lock and what was not yet whole."""
    return any(name != files.LOCK and not files.is_leftover(name) for name in files.names(path))


def holds_run(path: Path) -> bool:
    """True if there is a manifest of a run, be it damaged, or the metrics of one, as in runs of old."""
    first, _, _ = (files.read(path / METRICS) or b"").partition(b"\n")
    return _record(files.read(path / manifest.NAME)).get("kind") == KIND or "kind" in _record(first)


def _record(content: bytes | None) -> Plain:
    try:
        found = json.loads(content or b"0")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def did_not_end(path: Path) -> bool:
    """True if there is a run that was begun and is not finished, here or beside what it is to replace."""
    place = Path(os.path.realpath(path))
    return any(state_of(found) == RUNNING for found in (place, *siblings(place, "new")))


def is_ours(name: str) -> bool:
    """True of the names that runs have for what they write."""
    return name in (*FILES, *TABLES, manifest.NAME, files.LOCK, CHECKPOINTS) or files.is_leftover(name)


def remove_run(directory: Path) -> None:
    """Remove all that is of a run, and nothing else; the manifest last, by which it is known."""
    remove_checkpoints(directory)
    files.remove_leftovers(directory)
    for name in (*FILES, *TABLES, manifest.NAME):
        files.remove(directory / name)


def remove_checkpoints(directory: Path) -> None:
    """Those of the tuning, and nothing else that is beside them."""
    checkpoints = directory / CHECKPOINTS
    files.remove_leftovers(checkpoints)
    for name in files.names(checkpoints):
        if STEP.fullmatch(name) or PASS.fullmatch(name) or name == files.LOCK:
            files.remove(checkpoints / name)
    files.remove_empty(checkpoints)


def erase(directory: Path) -> None:
    """Remove a directory beside, whose lock goes last, by which it is known; what is not of a run stays."""
    remove_run(directory)
    files.remove(directory / files.LOCK)
    files.remove_empty(directory)
