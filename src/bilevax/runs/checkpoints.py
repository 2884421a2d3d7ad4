"""Checkpoints: where a run has come to, in directories that are whole or not there at all.

``DIR/step_00000042/`` holds a ``.npy`` file for each array and ``manifest.json`` for everything else; see
``docs/formats.md``.
"""

import io
import json
import math
import os
import tokenize
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from bilevax.core import files, manifest
from bilevax.core.config import as_path, at_least_one, check_fields, nonnegative, set_frozen, to_plain
from bilevax.core.errors import CheckpointError, CorruptError, ParameterError, TooNewError, UsageError
from bilevax.core.events import Plain
from bilevax.core.keys import is_key
from bilevax.core.run_files import STEP
from bilevax.core.trees import PyTree

KIND, FORMAT = "checkpoint", 1

ARRAY, NUMBER = "$array", "$number"
"""What stands in JSON for an array, and for a number that JSON has not."""


@dataclass(frozen=True)
class Run:
    """Where a run is kept, so that it can be killed at any instant and goes on to the same bits.

    Args:
        directory: of its checkpoints and nothing else; it is made. If it holds some already, the run goes on from the
            newest that is whole; a run that has ended is not made again, and its result returned.
        seconds: from one checkpoint to the next; 0: after every compiled call. Default 30.
        keep: checkpoints that are kept. Default 3.
        override: names of what may differ from the run that was begun, such as ``("steps",)``, which is then noted in
            the result's ``config``; ``"ended"`` lets a run go on that a callback has ended.

    Raises:
        ParameterError: a number is out of its range.

    Examples:
        >>> import bilevax as bx
        >>> bx.Run("runs/mine", seconds=60.0, override=("steps",)).keep  # bx.minimize(..., run=bx.Run(...))
        3
    """

    directory: str | os.PathLike[str]
    seconds: float = 30.0
    keep: int = 3
    override: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = (self.override,) if isinstance(self.override, str) else tuple(self.override)
        set_frozen(self, override=names)
        check_fields(self, directory=as_path, seconds=nonnegative, keep=at_least_one)


@runtime_checkable
class Resumable(Protocol):
    """What a checkpoint keeps beside the state of the algorithm, such as a callback that remembers."""

    def state(self) -> Mapping[str, PyTree]:
        """Dictionaries, lists, numbers, strings, None and arrays that say all that it will need."""

    def resume(self, state: Mapping[str, PyTree]) -> None:
        """As it was then; tuples have become lists."""


class Checkpoint(NamedTuple):
    """A checkpoint that was read, every byte of it checked.

    Attributes:
        step: outer steps done.
        content: plain values by name.
        arrays: arrays by name.
    """

    step: int
    content: Plain
    arrays: dict[str, np.ndarray | jax.Array]


class Checkpoints:
    """The checkpoints in a directory, which no other run may use meanwhile.

    Args:
        run: where, how often, how many.

    Raises:
        UsageError: the directory holds something else.
        LockedError: another run uses it.
        StorageError: the system refused.
    """

    def __init__(self, run: Run) -> None:
        self.directory, self._keep = Path(run.directory), run.keep
        self._damaged: list[str] = []
        foreign = [n for n in files.names(self.directory) if not (STEP.fullmatch(n) or n[0] == "." or n == files.LOCK)]
        if foreign:
            raise UsageError(f"{self.directory} holds {foreign[0]!r}, which is no checkpoint; choose another directory")
        files.make_directory(self.directory)
        self._lock = files.Lock(self.directory)

    def __enter__(self) -> "Checkpoints":
        try:
            files.remove_leftovers(self.directory)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def newest(self) -> Checkpoint | None:
        """The newest that is whole; None where there is none at all.

        Raises:
            CorruptError: each of them is damaged.
            TooNewError: a later release wrote it.
        """
        damaged: CheckpointError | None = None
        for name in reversed(self._names()):
            try:
                found = _read(self.directory / name)
            except TooNewError:
                raise
            except CheckpointError as e:
                damaged = e
                self._damaged.append(name)
                continue
            if damaged is not None:
                warnings.warn(f"{damaged}; the run goes on from step {found.step:,}", stacklevel=3)
            return found
        if damaged is not None:
            raise CorruptError(f"{damaged}, and no other checkpoint is whole") from damaged
        return None

    def save(self, step: int, content: Plain, arrays: Mapping[str, PyTree]) -> None:
        """Write a checkpoint; then remove the oldest, and those that were found damaged.

        Raises:
            StorageError: the system refused; the checkpoints before are as they were.
        """
        encoded = {f"{i:04}.npy": (name, *_encode(array)) for i, (name, array) in enumerate(arrays.items())}
        said = {name: {"file": file, **kind} for file, (name, kind, _) in encoded.items()}
        contents = {file: data for file, (_, _, data) in encoded.items()}
        body = {"step": step, "arrays": said, "content": content}
        # none is ever overwritten: a second one of the same step has the next number
        before = [_order(name) for name in self._names()]
        number = max((n + 1 for s, n in before if s == step), default=0)
        path = self.directory / (f"step_{step:08}" + (f"-{number}" if number else ""))
        manifest.write_directory(path, KIND, FORMAT, contents, body)
        while self._damaged:
            files.discard(self.directory / self._damaged.pop())
        for old in self._names()[: -self._keep]:
            files.discard(self.directory / old)

    def _names(self) -> list[str]:
        """Of the checkpoints, the oldest first."""
        return sorted(filter(STEP.fullmatch, files.names(self.directory)), key=_order)


def _order(name: str) -> tuple[int, int]:
    match = STEP.fullmatch(name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _read(path: Path) -> Checkpoint:
    step, _ = _order(path.name)
    sealed = manifest.read(path, KIND, FORMAT)
    try:
        said, content = sealed.content["arrays"], sealed.content["content"]
        arrays = {name: _decode(sealed.files[of["file"]], of) for name, of in said.items()}
        if sealed.content["step"] != step:
            raise ValueError(f"it is of step {sealed.content['step']}")
    # the last two of a header that is no Python
    except (ValueError, TypeError, KeyError, AttributeError, SyntaxError, tokenize.TokenError) as e:
        raise CorruptError(f"{path} is damaged: {e}") from None
    return Checkpoint(step, content, arrays)


def packed(found: Checkpoint) -> bytes:
    """A checkpoint in one piece, for other processes."""
    encoded = {name: _encode(array) for name, array in found.arrays.items()}
    said = {name: (kind, len(data)) for name, (kind, data) in encoded.items()}
    head = json.dumps({"step": found.step, "content": found.content, "arrays": said}).encode()
    return len(head).to_bytes(8, "big") + head + b"".join(data for _, data in encoded.values())


def unpacked(piece: bytes) -> Checkpoint:
    """The inverse of :func:`packed`."""
    start = 8 + int.from_bytes(piece[:8], "big")
    head, arrays = json.loads(piece[8:start]), {}
    for name, (kind, size) in head["arrays"].items():
        arrays[name] = _decode(piece[start : start + size], kind)
        start += size
    return Checkpoint(head["step"], head["content"], arrays)


def _encode(array: PyTree) -> tuple[Plain, bytes]:
    """What the manifest says of an array, and its ``.npy``."""
    kind: Plain = {}
    if is_key(array):
        kind["key"], array = str(jax.random.key_impl(array)), jax.random.key_data(array)
    a = np.asarray(array, order="C")
    kind |= {"dtype": str(a.dtype), "shape": list(a.shape)}
    # bfloat16 and its kind are no types of numpy's own: their bytes are kept
    plain = a.view(f"u{a.dtype.itemsize}") if a.dtype.kind == "V" else a
    out = io.BytesIO()
    np.lib.format.write_array(out, plain, allow_pickle=False)
    return kind, out.getvalue()


def _decode(content: bytes, said: Plain) -> np.ndarray | jax.Array:
    """The array, if header and size are what the manifest says; nothing is allocated by the header's word."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array is of another version of .npy")
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    # numpy looks at what is no header as at Python's tokens
    except (SyntaxError, tokenize.TokenError):
        raise ValueError("an array has no header") from None
    wanted, start = jax.numpy.dtype(said["dtype"]), file.tell()
    stored = np.dtype(f"u{wanted.itemsize}") if wanted.kind == "V" else wanted
    if (list(shape), dtype, fortran) != (said["shape"], stored, False):
        raise ValueError("the header of an array is not what the manifest says")
    if len(content) - start != math.prod(shape) * stored.itemsize:
        raise ValueError("an array has another size than its header says")
    # a copy, aligned and writable
    array = np.frombuffer(content, stored, offset=start).reshape(shape).copy().view(wanted)
    return jax.random.wrap_key_data(jax.numpy.asarray(array), impl=said["key"]) if "key" in said else array


def pack(value: PyTree, name: str, arrays: dict[str, PyTree]) -> PyTree:
    """Plain containers for JSON, their arrays put aside under ``name``.

    Raises:
        ParameterError: there is something else among them.
    """
    if isinstance(value, Mapping):
        return {key: pack(x, f"{name}.{key}", arrays) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [pack(x, f"{name}[{i}]", arrays) for i, x in enumerate(value)]
    if isinstance(value, np.ndarray | jax.Array):
        arrays[name] = value
        return {ARRAY: name}
    if value is None or isinstance(value, bool | int | float | str | np.generic):
        plain = to_plain(value)
        return {NUMBER: plain["number"]} if isinstance(plain, dict) else plain
    raise ParameterError(f"{name} must be a number, a string, an array, a list or a dictionary, got {value!r}")


def unpack(value: PyTree, arrays: Mapping[str, PyTree]) -> PyTree:
    """The inverse of :func:`pack`; tuples have become lists."""
    if isinstance(value, list):
        return [unpack(x, arrays) for x in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {ARRAY}:
        return arrays[value[ARRAY]]
    if value.keys() == {NUMBER}:
        return float(value[NUMBER])
    return {key: unpack(x, arrays) for key, x in value.items()}


def kept_state(run: Run | str | os.PathLike[str]) -> dict[str, PyTree] | None:
    """What the one callback of a run kept in its newest checkpoint, before the run goes on; None where there is none.

    Raises:
        CheckpointError: as of :meth:`Checkpoints.newest`, or another process uses the directory.
    """
    with Checkpoints(run if isinstance(run, Run) else Run(run)) as store:
        found = store.newest()
    kept = [] if found is None else [unpack(x, found.arrays) for x in found.content["parts"]["callbacks"].values()]
    return kept[0] if kept else None
