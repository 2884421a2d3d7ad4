"""The file that a command is to write."""

from pathlib import Path

from bilevax.core.errors import UsageError
from bilevax.core.files import require_place


def require_free(path: Path, *, force: bool) -> None:
    """Refuse, before anything is computed, a file that is there or a place that cannot be written.

    Args:
        path: of the file.
        force: it may be replaced.

    Raises:
        UsageError: it is there, and may not be replaced.
        StorageError: the system would not let it be written.
    """
    if path.exists() and not force:
        raise UsageError(f"{path} exists; choose another file, or give --force to replace it")
    require_place(path)
