"""The only module that opens a file for writing: every write is whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from bilevax.core.errors import StorageError


def write(path: Path, content: bytes | str) -> None:
    """Write a file atomically: a temporary file beside it, flushed to the disk, then renamed over it.

    Raises:
        StorageError: the system refused; the file at ``path`` is as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        # In the same directory: a rename is atomic within one file system only.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.tmp-")
        with os.fdopen(descriptor, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are the owner's alone
        os.replace(temporary, path)
    except OSError as e:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise StorageError(e.errno, f"cannot write {path}: {e.strerror}") from e


def append_line(path: Path, record: Mapping[str, object]) -> None:
    """Append one JSON record and a newline in a single write.

    Raises:
        StorageError: the system refused.
    """
    # One write of a line, in append mode: a run that is killed leaves whole lines, and perhaps one without its end.
    line = json.dumps(record, allow_nan=False) + "\n"
    try:
        with open(path, "ab") as f:
            f.write(line.encode())
    except OSError as e:
        raise StorageError(e.errno, f"cannot write {path}: {e.strerror}") from e


def write_json(path: Path, record: object) -> None:
    """Write a JSON file atomically, indented, without NaN."""
    write(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def write_toml(path: Path, tables: Mapping[str, Mapping[str, object]]) -> None:
    """Write flat TOML tables atomically; None values are left out."""
    write(path, "\n".join(_toml(tables)) + "\n")


def _toml(tables: Mapping[str, Mapping[str, object]]) -> Iterable[str]:
    for name, table in tables.items():
        yield f"[{name}]"
        for key, value in table.items():
            # A JSON string, number, boolean or list of these is the same in TOML, but for the character DEL.
            if value is not None:
                text = json.dumps(value, allow_nan=False, ensure_ascii=False).replace("\x7f", "\\u007f")
                yield f"{key} = {text}"
        yield ""


def make_directory(path: Path) -> None:
    """Create a directory and its parents.

    Raises:
        StorageError: the system refused.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StorageError(e.errno, f"cannot create {path}: {e.strerror}") from e
