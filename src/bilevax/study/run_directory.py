"""The run directory: settings, metrics, the model, and its coefficients in words anyone can read.

``config.toml``, ``metrics.jsonl`` (appended to while it runs), ``model.safetensors``, ``coefficients.json``; the report
is written beside them by ``bilevax.report``.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bilevax.core import files
from bilevax.core.errors import DataError, StorageError, UsageError
from bilevax.core.events import Event, Plain
from bilevax.tables.linear import LinearModel, canonical, check_model, linear_from_plain

if TYPE_CHECKING:
    from bilevax.study.study import Study

FILES = ("config.toml", "metrics.jsonl", "model.safetensors", "coefficients.json", "report.html")
"""The files of a run, all that is ever replaced or removed."""

_STAGING = ".new-run"


class RunDirectory:
    """A run directory that is being written.

    A directory that holds an earlier run is left as it is until the new run is complete: the new files are written in a
    directory within, the old ones are then removed, and the new ones moved to their place.

    Args:
        path: the directory; it is made when there is something to be written.
        force: replace the run that is there.

    Raises:
        UsageError: the directory is not empty and ``force`` is not given, or it holds other things than a run.
        StorageError: the system would not let it be written.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        self.path = path
        self._replaces = _occupied(path)
        if self._replaces and not force:
            raise UsageError(f"{path} is not empty; choose another directory, or give --force to replace the run in it")
        if self._replaces and not _holds_run(path):
            raise UsageError(
                f"{path} holds other files and no run; --force replaces runs only, choose another directory"
            )
        # The nearest directory above that is there decides whether this one can be made.
        existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            reason = "no permission" if existing.is_dir() else f"{existing} is no directory"
            raise StorageError(13, f"cannot write {path}: {reason}")
        self._target = path / _STAGING if self._replaces else path
        self._begun = False
        self._made = not path.exists()

    def append(self, record: Event) -> None:
        """Append a record to the metrics."""
        if not self._begun:
            files.make_directory(self._target)
            if self._replaces:
                # What a run that was killed left there.
                _remove(self._target)
            self._begun = True
        files.append_line(self._target / "metrics.jsonl", record)

    def finish(self, study: "Study") -> None:
        """Write everything else and put the run in its place."""
        check_model(study.model)
        files.write(self._target / "config.toml", files.toml(study.config()))
        files.write_json(self._target / "coefficients.json", study.model.to_plain())
        files.write(self._target / "model.safetensors", _model_bytes(study.model))
        if not self._replaces:
            return
        # All new files are complete: from here on only names change.
        _remove(self.path)
        for name in FILES:
            if (self._target / name).exists():
                os.replace(self._target / name, self.path / name)
        self._target.rmdir()

    def discard(self) -> None:
        """After a failure: remove what the new run has written, and nothing else."""
        if self._begun:
            _remove(self._target)
            if self._replaces or self._made:
                self._target.rmdir()


def write_run(study: "Study", directory: Path) -> None:
    """Write a finished study into a directory that is empty or does not exist yet.

    Raises:
        UsageError: the directory is not empty.
        StorageError: the system refused.
    """
    run = RunDirectory(directory)
    for event in study.events:
        run.append(event)
    run.finish(study)


def read_model(directory: Path) -> LinearModel:
    """The tuned model of a run directory.

    Raises:
        DataError: there is none, or it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = directory / "model.safetensors"
    if not path.is_file():
        reason = "the run did not end" if _holds_run(directory) else "it is no run directory"
        raise DataError(f"{directory} has no model.safetensors: {reason}")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            coef, intercept = file.get_tensor("coef"), file.get_tensor("intercept")
        plain = json.loads(metadata["model"])
        # Over labels, terms and penalties as well as the numbers.
        intact = metadata["sha256"] == _digest(plain, coef, intercept)
        for entry, weight in zip(plain["terms"], coef.T.tolist(), strict=True):
            entry["weight"] = weight
        plain["intercept"] = intercept.tolist()
    # Whatever a damaged file makes its readers raise.
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError, OSError):
        raise DataError(f"{path} is damaged, or was not written by bilevax") from None
    if not intact:
        raise DataError(f"{path} is damaged: its checksum does not agree")
    return linear_from_plain(plain)


def _model_bytes(model: LinearModel) -> bytes:
    from safetensors.numpy import save

    plain = model.to_plain()
    # Words are for coefficients.json; the numbers are tensors of their own.
    del plain["formula"], plain["intercept"]
    for entry in plain["terms"]:
        del entry["weight"]
    coef, intercept = np.ascontiguousarray(model.coef), np.ascontiguousarray(model.intercept)
    metadata = {"model": canonical(plain).decode(), "sha256": _digest(plain, coef, intercept)}
    return save({"coef": coef, "intercept": intercept}, metadata)


def _digest(plain: Plain, coef: np.ndarray, intercept: np.ndarray) -> str:
    # Little-endian on every machine.
    parts = (canonical(plain), coef.astype("<f8").tobytes(), intercept.astype("<f8").tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _occupied(path: Path) -> bool:
    try:
        return path.is_dir() and any(path.iterdir())
    except OSError as e:
        raise StorageError(e.errno, f"cannot read {path}: {e.strerror}") from e


def _holds_run(path: Path) -> bool:
    """True if the metrics of a run are there."""
    try:
        with open(path / "metrics.jsonl", "rb") as file:
            record = json.loads(file.readline(1 << 20))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "kind" in record


def _remove(directory: Path) -> None:
    for name in FILES:
        (directory / name).unlink(missing_ok=True)
