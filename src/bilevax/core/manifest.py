"""``manifest.json``: what a directory holds, by which every byte that is read back is checked.

It names each file with its size and its SHA-256, is written last, and carries a SHA-256 of itself. How it is encoded
is the same in every format, so that each release can tell what a later one wrote from what was damaged.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from bilevax.core import files
from bilevax.core.errors import CorruptError, StorageError, TooNewError
from bilevax.core.events import Plain

NAME = "manifest.json"

_NO_FILE = (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.ENAMETOOLONG)
"""What the system says of a link, a socket, a name that no writer gave: damage; all else is no fault of the files."""

_LONGEST = 1 << 26  # bytes of a manifest

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class NoDirectoryError(CorruptError):
    """Nothing is there; to a reader beside a writer, perhaps for a moment."""


class Sealed(NamedTuple):
    """A directory as its manifest says that it is.

    Attributes:
        content: what the manifest says beside ``kind``, ``format`` and ``files``.
        files: the bytes of each file that was asked for, by name.
        listed: the size and SHA-256 of each file that the manifest names.
    """

    content: Plain
    files: dict[str, bytes]
    listed: dict[str, Plain]


def fingerprint(content: bytes) -> Plain:
    """What a manifest says of a file."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def written_in_pieces(path: Path, pieces: Iterable[bytes]) -> Plain:
    """Write a file piece by piece, and return what a manifest says of it.

    Raises:
        StorageError: the system refused; nothing is at ``path`` that was not there.
    """
    size, digest = 0, hashlib.sha256()
    with files.written_in_pieces(path) as append:
        for piece in pieces:
            size += len(piece)
            digest.update(piece)
            append(piece)
    return {"bytes": size, "sha256": digest.hexdigest()}


def encode(kind: str, version: int, listed: Mapping[str, Plain], content: Plain) -> bytes:
    """The bytes of a manifest: of equal values the same."""
    body = {"kind": kind, "format": version, "files": dict(listed), **content}
    canonical = json.dumps(body, sort_keys=True, allow_nan=False).encode()
    sealed = {"sha256": hashlib.sha256(canonical).hexdigest(), **body}
    return (json.dumps(sealed, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def write(directory: Path, kind: str, version: int, listed: Mapping[str, Plain], content: Plain) -> None:
    """Write the manifest of a directory whose files are on the disk; with it they are the directory's state.

    Raises:
        StorageError: the system refused; the manifest that was there is as it was.
    """
    files.write(directory / NAME, encode(kind, version, listed, content))


def write_directory(path: Path, kind: str, version: int, contents: Mapping[str, bytes], content: Plain) -> None:
    """Write a directory whole: beside, under a name for leftovers, then renamed; ``path`` is free.

    Raises:
        StorageError: the system refused; there is nothing at ``path``.
    """
    temporary = files.temporary_name(path)
    try:
        files.make_directory(temporary)
        for name, data in contents.items():
            files.write_new(temporary / name, data)
        listed = {name: fingerprint(data) for name, data in contents.items()}
        files.write_new(temporary / NAME, encode(kind, version, listed, content))
        files.sync_directory(temporary)
        # the step at which it becomes visible
        files.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(StorageError):
            files.remove(temporary)
        raise
    files.sync_directory(path.parent)


def read(directory: Path, kind: str, version: int, *, without: Collection[str] = ()) -> Sealed:
    """Read a directory and check every byte of it.

    Consistent while another process replaces the directory by a rename: it is then read again.

    Args:
        directory: where.
        kind: of directory that is wanted.
        version: the newest format that is known.
        without: names of files that are neither wanted nor checked.

    Raises:
        CorruptError: there is no manifest, it or a file was changed, cut or lost; which is said.
        TooNewError: a later release wrote it.
        StorageError: the system refused.
    """
    while True:
        with files.refused("read", directory), _opened(directory) as descriptor:
            try:
                return _read(directory, descriptor, kind, version, without)
            except (CorruptError, TooNewError):
                # replaced meanwhile: what is there now may be whole
                if _is_there(directory, descriptor):
                    raise


def _read(directory: Path, descriptor: int, kind: str, version: int, without: Collection[str]) -> Sealed:
    path = directory / NAME
    raw = _file(directory, descriptor, NAME, None)
    try:
        sealed = json.loads(raw)
        body = {name: value for name, value in sealed.items() if name != "sha256"}
        listed, found_kind, found = body.pop("files"), body.pop("kind"), body.pop("format")
        # the exact bytes that such values have: not one of them was changed
        intact = encode(found_kind, found, listed, body) == raw
        # and of the types that are written, whoever computed that checksum
        plain = type(found) is int and all(type(said["bytes"]) is int for said in listed.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        intact = plain = False
    if not intact or not plain:
        raise CorruptError(f"{path} is damaged: its checksum does not agree")
    if found_kind != kind:
        raise CorruptError(f"{directory} holds a {found_kind}, not a {kind}")
    if found > version:
        raise TooNewError(
            f"{directory} is of format {found}, written by a later bilevax; this one reads formats up to {version}"
        )
    contents = {}
    for name, said in listed.items():
        if not _PLAIN_NAME.fullmatch(name):
            raise CorruptError(f"{path} names {name!r}, which is no file of this directory")
        if name not in without:
            contents[name] = _file(directory, descriptor, name, said)
    return Sealed(body, contents, listed)


def _file(directory: Path, descriptor: int, name: str, said: Plain | None) -> bytes:
    """Its bytes, as the manifest says that they are."""
    path = directory / name
    with files.refused("read", path):
        try:
            # by the open directory, whatever its name is now; a link is not followed
            opened = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
        except FileNotFoundError:
            raise CorruptError(f"{path} is missing") from None
        except OSError as e:
            if e.errno not in _NO_FILE:
                raise
            raise CorruptError(f"{path} is damaged: {e.strerror}") from None
        try:
            status = os.fstat(opened)
            if not stat.S_ISREG(status.st_mode):
                raise CorruptError(f"{path} is no file")
            # before anything is read into memory
            if said is None and status.st_size > _LONGEST:
                raise CorruptError(f"{path} is damaged: it has {status.st_size:,} bytes")
            if said is not None and status.st_size != said["bytes"]:
                raise CorruptError(
                    f"{path} is damaged: it has {status.st_size:,} bytes, {said['bytes']:,} were written"
                )
            with os.fdopen(opened, "rb", closefd=False) as file:
                content = file.read()
        finally:
            os.close(opened)
    if said is not None and fingerprint(content) != said:
        raise CorruptError(f"{path} is damaged: its checksum does not agree")
    return content


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    except FileNotFoundError:
        raise NoDirectoryError(f"there is no directory {directory}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_there(directory: Path, descriptor: int) -> bool:
    """True if the open directory is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(directory))
    except FileNotFoundError:
        return False
