"""The format of a run directory, and how it is read: which files, under which names its writers leave what, by whom.

A directory is replaced by two renames: the new one is written beside it as ``DIR.new-PID``, then ``DIR`` becomes
``DIR.old-PID``, and the new one ``DIR``. Each has a ``run.lock`` until that is done.
"""

import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from bilevax.core import files, manifest
from bilevax.core.errors import CorruptError, DataError
from bilevax.core.events import Plain

KIND, FORMAT = "run", 2

CONFIG, METRICS, MODEL = "config.toml", "metrics.jsonl", "model.safetensors"
COEFFICIENTS, REPORT = "coefficients.json", "report.html"

FILES = (CONFIG, METRICS, MODEL, COEFFICIENTS, REPORT)
"""The files of a run of ``tune``."""

SUSPICIOUS, CLEANED = "suspicious.csv", ("cleaned.csv", "cleaned.parquet")
"""Tables that a run of ``clean`` writes for its user, beside settings, metrics and report; it has no model."""

TABLES = (SUSPICIOUS, *CLEANED)

CHECKPOINTS = "checkpoints"
"""Directory within, where the tuning keeps what it has reached, until the run is finished."""

STEP = re.compile(r"step_(\d{8,})(?:-(\d+))?")
"""Names of checkpoints: the outer steps done, and of several of one step which."""

PASS = re.compile(r"pass_\w+\.npz")
"""Names of what passes over many rows have found."""

RUNNING, FINISHED = "running", "finished"
"""What a manifest calls the run's ``state``."""


class RunFiles(NamedTuple):
    """A run directory as its manifest says that it is.

    Attributes:
        path: where it was read.
        content: what the manifest says: ``state``; of a run that is running ``config``, of one that is finished whether
            it was ``interrupted``.
        files: the bytes of each file that is listed and was asked for; of a run that is running, of which none is, its
            metrics as they are.
        listed: the size and SHA-256 of each file that is listed.
    """

    path: Path
    content: Plain
    files: dict[str, bytes]
    listed: dict[str, Plain]

    @property
    def finished(self) -> bool:
        """True if the run has a result."""
        return bool(self.content["state"] == FINISHED)


def read_run_files(path: Path, *, without: Collection[str] = (REPORT, *TABLES)) -> RunFiles:
    """Read a run directory and check every byte of what is listed; the whole old or the whole new one of a swap.

    Args:
        path: the directory.
        without: names of files that are neither wanted nor checked.

    Raises:
        DataError: it is no run directory.
        CorruptError: a file was changed, cut or lost; or the manifest was.
        TooNewError: a later release wrote it.
        StorageError: the system refused.
    """
    while True:
        place = _located(path)
        try:
            sealed = manifest.read(place, KIND, FORMAT, without=without)
        except CorruptError as e:
            # renamed since it was looked for; a directory that was not there may be there again
            if _located(path) != place or (isinstance(e, manifest.NoDirectoryError) and place.is_dir()):
                continue
            if {*FILES, *TABLES, manifest.NAME} & {*files.names(place)}:
                raise
            raise DataError(f"{path} is not a run directory: it has none of {', '.join(FILES[:-1])}") from None
        contents = dict(sealed.files)
        if sealed.content["state"] == RUNNING:
            # nothing is listed while a run goes on; its metrics are whole lines, the last one perhaps torn
            metrics = files.read(place / METRICS)
            if content_of(place) != sealed.content:
                continue
            contents |= {} if metrics is None else {METRICS: metrics}
        return RunFiles(place, sealed.content, contents, sealed.listed)


def _located(path: Path) -> Path:
    """The directory or, between the two renames of a swap, the new one beside it."""
    if path.is_dir():
        return path
    # beside what a link leads to
    finished = (new for new in siblings(Path(os.path.realpath(path)), "new") if state_of(new) == FINISHED)
    return next(finished, path)


def content_of(directory: Path) -> Plain | None:
    """What the manifest of a run says; None where there is none that is whole.

    Raises:
        TooNewError: a later release wrote it.
        StorageError: the system refused.
    """
    try:
        return manifest.read(directory, KIND, FORMAT, without=FILES).content
    except CorruptError:
        return None


def state_of(directory: Path) -> str | None:
    """``running``, ``finished``, or None where no run is."""
    content = content_of(directory)
    return None if content is None else str(content["state"])


def siblings(path: Path, what: str) -> list[Path]:
    """The directories ``new`` or ``old`` beside it that a swap made, or left.

    Such a name alone says nothing, a user may have chosen it: its ``run.lock`` names the same process, or its manifest
    the directory that it replaces.
    """
    found = []
    for name in files.names(path.parent):
        match = re.fullmatch(rf"{re.escape(path.name)}\.{what}-(\d+)", name)
        if match and (path.parent / name).is_dir() and _is_own(path.parent / name, path.name, int(match[1])):
            found.append(path.parent / name)
    return found


def _is_own(sibling: Path, name: str, pid: int) -> bool:
    lock = files.read(sibling / files.LOCK)
    try:
        holder = json.loads(lock or b"0")
    except ValueError:
        holder = None
    if isinstance(holder, dict) and holder.get("pid") == pid:
        return True
    # or it has been taken over, or nothing was written to it yet
    replaces = (content_of(sibling) or {}).get("replaces")
    return (lock is not None and replaces == name) or {*files.names(sibling)} <= {files.LOCK}
