"""The callback that writes a run's history into a file of JSON lines."""

import json
import os
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from bilevax.core import files
from bilevax.core.codes import Code
from bilevax.core.config import as_path, at_least_one, check_fields
from bilevax.core.errors import ParameterError
from bilevax.core.results import History
from bilevax.runs.callbacks import Progress

_LINE_START = b'{"step": '


@dataclass
class JSONLines:
    """Writes the history to a file as the run goes, one JSON object a line.

    Its keys are those of :class:`~bilevax.History`: ``step``, ``outer_value``, ``gradient_norm``, ``code`` (its name),
    ``samples``, ``seconds``; what is not finite is null. A run that is resumed has the file begin with the entries that
    it goes on from, whatever was in it after them: no entry is there twice, and none is lost. The lines of a call are
    appended in one write.

    Args:
        path: of the file; its directory is made. What another run wrote is not overwritten.
        every: a line for every so many entries, the last of them.

    Raises:
        ParameterError: ``every`` is less than 1; when the run begins, the path holds something else, and with the first
            entry, another run's.
        StorageError: the system refused.

    >>> JSONLines("course.jsonl", every=10)
    JSONLines(path='course.jsonl', every=10)
    """

    writes: ClassVar[bool] = True

    path: str | os.PathLike[str]
    _: KW_ONLY
    every: int = 1
    _file: Path = field(init=False, repr=False)
    _lines: int | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._file = as_path("path", self.path)
        check_fields(self, every=at_least_one)

    def begin(self, progress: Progress) -> None:
        """The file becomes what the history is so far."""
        self._lines = None
        files.make_directory(self._file.parent)
        self(progress)

    def __call__(self, progress: Progress) -> None:
        """Write the entries that are new."""
        written = self._lines or 0
        lines = [
            _line(progress.history, i)
            for i in range((written + 1) * self.every - 1, len(progress.history.step), self.every)
        ]
        if self._lines is None:
            self._write(lines)
        elif lines:
            files.append(self._file, b"".join(lines))
        # until there is a line it is not known whether what the file holds is of this run
        self._lines = written + len(lines) or None

    def end(self, progress: Progress) -> None:
        """Write what the last call has not seen."""
        self(progress)

    def _write(self, lines: list[bytes]) -> None:
        """All of them, in the place of what a run with the same first entry has left."""
        found = files.read(self._file)
        # seconds, the last key, are other ones where the first entry was made again
        start = lines[0].partition(b'"seconds"')[0] if lines else _LINE_START
        # cut short in the first line: a part of it
        if found and not (found.startswith(start) or start.startswith(found)):
            raise ParameterError(f"{self._file} is not of this run; remove it, or give JSONLines another path")
        if found is None or (lines and found != b"".join(lines)):
            files.write(self._file, b"".join(lines))


def _line(history: History, i: int) -> bytes:
    record = {
        "step": int(history.step[i]),
        "outer_value": _finite(history.outer_value[i]),
        "gradient_norm": _finite(history.gradient_norm[i]),
        "code": Code(int(history.code[i])).name,
        "samples": int(history.samples[i]),
        "seconds": float(history.seconds[i]),
    }
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _finite(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None
