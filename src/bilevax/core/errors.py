"""Exceptions, one class per kind of fault; the command line turns each into its exit code."""

import inspect


def callers_level() -> int:
    """The ``stacklevel`` of a warning, of the function that asks: the first line outside of the package."""
    level, frame = 1, inspect.currentframe()
    while (frame := frame and frame.f_back) and frame.f_globals.get("__name__", "").startswith("bilevax."):
        level += 1
    return level


class BilevaxError(Exception):
    """Base of everything that bilevax raises on purpose.

    Examples:
        >>> import bilevax as bx
        >>> try:
        ...     bx.CG(tol=-1.0)
        ... except bx.BilevaxError as error:
        ...     print(type(error).__name__, error.exit_code)
        ParameterError 3
    """

    exit_code = 1


def in_a_line(e: BaseException) -> str:
    """The class of an exception and what it says."""
    return " ".join(f"{type(e).__name__}: {e}".split())


class UsageError(BilevaxError):
    """A command was called wrongly.

    Examples:
        >>> import bilevax as bx
        >>> bx.UsageError.exit_code
        2
    """

    exit_code = 2


class ParameterError(BilevaxError, ValueError):
    """An argument has a wrong value, type or shape; the message names it and says what would be right.

    Examples:
        >>> import bilevax as bx
        >>> bx.CG(tol=-1.0)
        Traceback (most recent call last):
            ...
        bilevax.core.errors.ParameterError: tol must lie in ]0, inf], got -1
    """

    exit_code = 3


class DataError(BilevaxError, ValueError):
    """The data have a fault; the message says where.

    Examples:
        >>> import bilevax as bx
        >>> import numpy as np
        >>> bx.Arrays(np.array([1.0, np.nan], np.float32))
        Traceback (most recent call last):
            ...
        bilevax.core.errors.DataError: data has 1 NaN, first at row 1
    """

    exit_code = 4


class SolveError(BilevaxError):
    """A computation ended with a result code other than OK and the caller asked for an exception.

    Examples:
        >>> import bilevax as bx
        >>> bx.SolveError.exit_code
        5
    """

    exit_code = 5


class StorageError(BilevaxError, OSError):
    """A file could not be written or read; the message names the path and the system's reason.

    Examples:
        >>> import bilevax as bx
        >>> issubclass(bx.StorageError, OSError), bx.StorageError.exit_code
        (True, 7)
    """

    exit_code = 7


class ResourceError(BilevaxError, MemoryError):
    """There is too little memory; the message has the figures, where they are known, and what would help.

    Examples:
        >>> import bilevax as bx
        >>> issubclass(bx.ResourceError, MemoryError), bx.ResourceError.exit_code
        (True, 8)
    """

    exit_code = 8


class UserCodeError(BilevaxError):
    """Code of the user's own, run by a command, raised an exception, ended the process, or crashed it."""

    exit_code = 9


class LostError(BilevaxError):
    """Another process of a group is gone, and this one cannot go on without it."""

    exit_code = 10


class CheckpointError(BilevaxError):
    """What a run has written cannot be used; each kind is a class of its own.

    Examples:
        >>> import bilevax as bx
        >>> [kind.__name__ for kind in bx.CheckpointError.__subclasses__()]
        ['CorruptError', 'MismatchError', 'LockedError', 'TooNewError']
    """

    exit_code = 6


class CorruptError(CheckpointError):
    """A file of a run was changed, cut or lost after it was written; the message names it.

    Examples:
        >>> import bilevax as bx
        >>> issubclass(bx.CorruptError, bx.CheckpointError), bx.CorruptError.exit_code
        (True, 6)
    """


class MismatchError(CheckpointError):
    """A run was begun with other settings or data than it is to go on with; the message names each that differs.

    Examples:
        >>> import bilevax as bx
        >>> issubclass(bx.MismatchError, bx.CheckpointError), bx.MismatchError.exit_code
        (True, 6)
    """


class LockedError(CheckpointError):
    """Another run writes the directory; the message names its process.

    Examples:
        >>> import bilevax as bx
        >>> issubclass(bx.LockedError, bx.CheckpointError), bx.LockedError.exit_code
        (True, 6)
    """


class TooNewError(CheckpointError):
    """A later release of bilevax wrote it; the message names both formats.

    Examples:
        >>> import bilevax as bx
        >>> issubclass(bx.TooNewError, bx.CheckpointError), bx.TooNewError.exit_code
        (True, 6)
    """
