"""The callback that writes a run's history as TensorBoard reads it."""

import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from bilevax.core import files
from bilevax.core.config import as_path
from bilevax.core.errors import UsageError
from bilevax.core.results import History
from bilevax.runs.callbacks import Progress


@dataclass
class TensorBoard:
    """Writes ``outer_value``, ``gradient_norm`` and ``samples_per_second`` by outer step, for TensorBoard.

    Every run, and every going on of one, begins an event file with the history from its first entry on, and has
    TensorBoard forget what earlier files of the directory say: no entry is shown twice, and none is lost. Two runs that
    are to be compared need two directories. Samples per second are those of a compiled call, compilation included.

    tensorboardX encodes the events (``pip install 'bilevax[tensorboard]'``). They are written as all files of bilevax
    are, when the callback is called and by no other thread: a full disk is an error, and neither a loss nor a wait.

    Args:
        directory: for the event files; it is made.

    Raises:
        UsageError: tensorboardX is not installed.
        StorageError: the system refused.

    Examples:
        >>> import bilevax as bx
        >>> bx.TensorBoard("runs/board").directory  # bx.minimize(..., callback=bx.TensorBoard(...))
        'runs/board'
    """

    writes: ClassVar[bool] = True

    directory: str | os.PathLike[str]
    _directory: Path = field(init=False, repr=False)
    _path: Path | None = field(default=None, init=False, repr=False)
    _seen: int = field(default=0, init=False, repr=False)
    _origin: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            import tensorboardX  # noqa: F401
        except ModuleNotFoundError as e:
            raise UsageError(f"{e.name} is not installed; pip install 'bilevax[tensorboard]' brings it") from e
        self._directory = as_path("directory", self.directory)

    def begin(self, progress: Progress) -> None:
        """A new event file, with the history so far."""
        files.make_directory(self._directory)
        now, seconds = time.time(), progress.history.seconds
        # readers take the files of a directory in the order of their names
        name = f"events.out.tfevents.{now:017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path, self._seen = self._directory / name, 0
        self._origin = now - float(seconds[-1] if len(seconds) else 0.0)
        version = {"wall_time": now, "file_version": "brain.Event:2"}
        # a session that starts at step 0: what files before say of a step from there on is forgotten
        start = {"wall_time": now, "step": 0, "session_log": {"status": "START"}}
        files.write_new(self._path, _encoded([version, start]))
        self(progress)

    def __call__(self, progress: Progress) -> None:
        """Write the entries that are new."""
        if self._path is None:  # in a loop of one's own
            self.begin(progress)
            return
        history, events = progress.history, list[Mapping[str, object]]()
        for i, scalars in enumerate(_scalars(history, self._seen), self._seen):
            values = [{"tag": tag, "simple_value": float(value)} for tag, value in scalars.items()]
            at = {"wall_time": self._origin + float(history.seconds[i]), "step": int(history.step[i])}
            events.append(at | {"summary": {"value": values}})
        self._seen = len(history.step)
        if events:
            files.append(self._path, _encoded(events))

    def end(self, progress: Progress) -> None:
        """Write what the last call has not seen."""
        self(progress)


def _scalars(history: History, first: int) -> Iterator[dict[str, float]]:
    """What is shown of each entry from this one on; samples per second at the last entry of each compiled call."""
    samples, seconds = (history.samples[first - 1], history.seconds[first - 1]) if first else (0, 0.0)
    for i in range(first, len(history.step)):
        scalars = {"outer_value": history.outer_value[i], "gradient_norm": history.gradient_norm[i]}
        # the entries of a call have the same seconds
        if np.all(history.seconds[i + 1 : i + 2] > history.seconds[i]):
            scalars["samples_per_second"] = (history.samples[i] - samples) / (history.seconds[i] - seconds)
            samples, seconds = history.samples[i], history.seconds[i]
        yield scalars


def _encoded(events: Iterable[Mapping[str, object]]) -> bytes:
    """Events as records of an event file: length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    def summed(data: bytes) -> bytes:
        return data + struct.pack("<I", masked_crc32c(data))

    encoded = [Event(**event).SerializeToString() for event in events]
    return b"".join(summed(struct.pack("<Q", len(event))) + summed(event) for event in encoded)
