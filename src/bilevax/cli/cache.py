"""Compiled programs kept from one command to the next, where nobody else can write."""

import os
import stat
import sys
from pathlib import Path

OWN = 0o700
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

SMALL_PROGRAMS_TOO = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def keep_programs(wanted: bool) -> None:
    """Switch on JAX's persistent cache, which runs what it finds: so only in a directory that the user owns alone.

    That is ``$XDG_CACHE_HOME/bilevax/jax``, or ``~/.cache/bilevax/jax``; where it cannot be had, a line says why. A
    ``JAX_COMPILATION_CACHE_DIR`` of the user's stays as it is. JAX reads all this when it is imported; where it has
    been already, its settings are left alone.
    """
    if not wanted or "jax" in sys.modules or "JAX_COMPILATION_CACHE_DIR" in os.environ or not hasattr(os, "getuid"):
        return
    try:
        given = os.environ.get("XDG_CACHE_HOME", "")
        directory = _private(Path(given) if os.path.isabs(given) else Path.home() / ".cache")
    # Path.home() raises a RuntimeError where there is none.
    except (OSError, RuntimeError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        print(f"bilevax: compiled programs are not kept: {reason}", file=sys.stderr)
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory)
    # JAX's own defaults leave out what compiles in less than a second: nearly everything here.
    for name, value in SMALL_PROGRAMS_TOO.items():
        os.environ.setdefault(name, value)


def _private(home: Path) -> Path:
    """``home/bilevax/jax``, made if need be.

    Raises:
        OSError: it cannot be made; or it, or ``home/bilevax``, is no directory, not the user's own, or one that others
            may write to; or others may exchange them, since they may write to ``home``.
    """
    home.mkdir(mode=OWN, parents=True, exist_ok=True)
    # In a directory of others with the sticky bit, as /tmp is, nobody can exchange what is another's.
    above = home.stat()
    if above.st_uid not in (0, os.getuid()) or (above.st_mode & OTHERS_WRITE and not above.st_mode & stat.S_ISVTX):
        raise PermissionError(0, f"others may write to {home}")
    directory = home
    for name in ("bilevax", "jax"):
        directory = directory / name
        directory.mkdir(mode=OWN, exist_ok=True)
        # Of the entry itself: a symbolic link may lead to where others write.
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & OTHERS_WRITE:
            raise PermissionError(0, f"{directory} is not a directory that you own and nobody else may write to")
    return directory
