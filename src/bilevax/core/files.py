"""The only module that opens a file for writing: a write is whole or not at all, a directory has one writer at a time.

What it leaves when it is killed has names of its own, ``.NAME.tmp-PID-WORD``: see :func:`remove_leftovers`.
"""

import contextlib
import datetime
import errno
import io
import itertools
import json
import os
import re
import secrets
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bilevax.core.errors import LockedError, StorageError

try:
    import fcntl
except ImportError:  # no such locks on Windows: two runs in one directory are then not refused
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"
"""In a directory that is being written: locked by its writer, in which the pid, the host and the time are said."""

ATTEMPTS = 5
"""To get a lock that is held, a fiftieth of a second apart."""


def write(path: Path, content: bytes | str) -> None:
    """Write a file atomically: a temporary file beside it, flushed to the disk, then renamed over it.

    Raises:
        StorageError: the system refused; the file at ``path`` is as it was, or the new one.
    """
    with written_in_pieces(path) as append_piece:
        append_piece(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def written_in_pieces(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Write a file atomically, by a function that appends to a temporary file, which is renamed at the end.

    Raises:
        StorageError: the system refused; the file at ``path`` is as it was, or the new one.
    """
    temporary = temporary_name(path)

    def append_piece(content: bytes) -> None:
        with refused("write", path):
            _write_all(descriptor, content)

    try:
        with refused("write", path):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            yield append_piece
            with refused("write", path):
                os.fsync(descriptor)
        finally:
            with refused("write", path):
                os.close(descriptor)
        with refused("write", path):
            # Within one directory, so within one file system: there a rename is atomic.
            os.replace(temporary, path)
    except BaseException:  # Ctrl-C as well
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def temporary_name(path: Path) -> Path:
    """A name beside it for what is not yet whole; :func:`remove_leftovers` knows it."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def unnamed(directory: Path) -> io.FileIO:
    """A file without a name, gone when it is closed or its process ends, however; or a StorageError."""
    with refused("write", directory):
        return tempfile.TemporaryFile(dir=directory, buffering=0)


def write_new(path: Path, content: bytes) -> None:
    """Write a file that nobody reads yet, such as one in a directory that is itself renamed later; flushed to the disk.

    Raises:
        StorageError: the system refused, or the file is there.
    """
    with refused("write", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            _write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    # a write may be cut short: by a signal, beyond 2 GB, on a disk that is nearly full
    while left:
        left = left[os.write(descriptor, left) :]


def append_line(path: Path, record: Mapping[str, object]) -> bytes:
    """Append one JSON record and a newline in a single write, and return them; the file ends with whole lines.

    Raises:
        StorageError: the system refused; the file is as it was.
    """
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    append(path, line)
    return line


def append(path: Path, content: bytes) -> None:
    """Append to a file in a single write; made if it is not there.

    Raises:
        StorageError: the system refused; the file is as it was.
    """
    # One write, in append mode: a run that is killed leaves whole lines, and perhaps one without its end.
    with refused("write", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, content) < len(content):
                # what comes later must not continue half of it
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)


def require_place(path: Path, *, directory: bool = False) -> None:
    """Refuse, by a StorageError and before anything is computed for it, what could not be written there."""
    with refused("write", path):
        if path.is_dir() and not directory:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        here = path.absolute()
        # of a directory those above it are made, if need be
        place = next(p for p in (here, *here.parents) if p.exists()) if directory else here.parent
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{place} is no directory")
        # false on a file system that is read-only, too, for whomever
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"no permission to write in {place}")


def make_directory(path: Path) -> None:
    """Create a directory and its parents, if they are not there.

    Raises:
        StorageError: the system refused.
    """
    with refused("create", path):
        if path.is_dir():
            return
        if not path.parent.is_dir():
            make_directory(path.parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        sync_directory(path.parent)


def rename(old: Path, new: Path) -> None:
    """Rename a file, or a directory to a name that is free (or an empty directory's); not synced.

    Raises:
        StorageError: the system refused.
    """
    with refused("rename", old):
        os.rename(old, new)


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to the disk: renames before it outlive a power cut.

    Raises:
        StorageError: the system refused.
    """
    with refused("write", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a directory with all that is in it, if it is there; a link is removed, never followed.

    Raises:
        StorageError: the system refused.
    """
    with refused("remove", path), contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            for entry in sorted(os.listdir(path)):
                remove(path / entry)
            os.rmdir(path)
        else:
            os.unlink(path)


def discard(path: Path) -> None:
    """Remove a directory that others may read: whole, or, if the process is killed meanwhile, by its name a leftover.

    Raises:
        StorageError: the system refused.
    """
    leftover = temporary_name(path)
    rename(path, leftover)
    # or a power cut might leave the old name, of what is no longer whole
    sync_directory(path.parent)
    remove(leftover)


def remove_empty(path: Path) -> None:
    """Remove a directory, if it is there and nothing is in it.

    Raises:
        StorageError: the system refused.
    """
    with refused("remove", path):
        try:
            os.rmdir(path)
        except OSError as e:
            if e.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                raise


def remove_leftovers(directory: Path) -> None:
    """Remove what writers of this directory left when they were killed, known by its names; for who holds its lock.

    Raises:
        StorageError: the system refused.
    """
    for name in names(directory):
        if is_leftover(name):
            remove(directory / name)


def is_leftover(name: str) -> bool:
    """True of the name of what was not yet whole when its writer was killed."""
    return bool(re.fullmatch(r"\..+\.tmp-\d+-[0-9a-f]{8}", name))


def names(directory: Path) -> list[str]:
    """What a directory holds, in order; nothing where there is none.

    Raises:
        StorageError: the system refused.
    """
    with refused("read", directory):
        try:
            return sorted(os.listdir(directory))
        except FileNotFoundError:
            return []


def read(path: Path) -> bytes | None:
    """A file's bytes; None where there is none.

    Raises:
        StorageError: the system refused.
    """
    with refused("read", path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


class Lock:
    """A directory's ``run.lock``, held until :meth:`release`, and by no process that is dead.

    Args:
        directory: which is there.

    Raises:
        LockedError: another run holds it; its pid, host and start are named.
        StorageError: the system refused.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / LOCK
        with refused("write", self._path):
            for attempt in itertools.count():
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    if fcntl is not None:
                        # freed by the kernel when its holder ends, however it ends
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # removed, or the directory replaced, between the open and the lock: another holds the new one
                    if _is_at(descriptor, self._path):
                        since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
                        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
                        os.ftruncate(descriptor, 0)
                        os.write(descriptor, json.dumps(holder).encode())
                        # a directory that is left after a power cut is known by it
                        os.fsync(descriptor)
                        sync_directory(directory)
                        self._descriptor: int | None = descriptor
                        break
                except BlockingIOError:
                    holder_text = _holder(descriptor)
                    os.close(descriptor)
                    # once more: is_locked holds it for an instant
                    if attempt < ATTEMPTS:
                        time.sleep(0.02)
                        continue
                    raise LockedError(
                        f"{directory} is in use by {holder_text}; wait for it, or choose another directory"
                    ) from None
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)

    def release(self, *, remove: bool = True) -> None:
        """Give it up, and remove the file, unless a directory is left that is known by it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with contextlib.suppress(OSError):
            try:
                if remove and _is_at(descriptor, self._path):  # the directory may have been renamed meanwhile
                    os.unlink(self._path)
            finally:  # after Ctrl-C as well, or this process would hold it to its end
                os.close(descriptor)

    def moved(self, directory: Path) -> None:
        """The directory has a new name now."""
        self._path = directory / LOCK

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def is_locked(directory: Path) -> bool:
    """True while a process that lives holds the directory's lock.

    Raises:
        StorageError: the system refused.
    """
    with refused("read", directory / LOCK):
        try:
            descriptor = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


def _is_at(descriptor: int, path: Path) -> bool:
    """True if that open file is the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {holder['pid']:d} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, TypeError, KeyError):  # it is just being written
        return "another process"


@contextlib.contextmanager
def refused(what: str, path: Path) -> Iterator[None]:
    """Make a StorageError of what the system refuses: it cannot do ``what`` to the path, and why."""
    try:
        yield
    except StorageError:
        raise
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "; free some space, or choose another place" if full else ""
        raise StorageError(e.errno, f"cannot {what} {path}: {e.strerror or e}{advice}") from e
