"""Exceptions, one class per kind of fault; the command line turns each into its exit code."""


class BilevaxError(Exception):
    """Base of everything that bilevax raises on purpose."""

    exit_code = 1


class UsageError(BilevaxError):
    """A command was called wrongly."""

    exit_code = 2


class ParameterError(BilevaxError, ValueError):
    """An argument has a wrong value, type or shape; the message names it and says what would be right."""

    exit_code = 3


class DataError(BilevaxError, ValueError):
    """The data have a fault; the message says where."""

    exit_code = 4


class SolveError(BilevaxError):
    """A computation ended with a result code other than OK and the caller asked for an exception."""

    exit_code = 5


class StorageError(BilevaxError, OSError):
    """A file could not be written or read; the message names the path and the system's reason."""

    exit_code = 7


class ResourceError(BilevaxError, MemoryError):
    """There is too little memory; the message has the figures, where they are known, and what would help."""

    exit_code = 8


class UserCodeError(BilevaxError):
    """Code of the user's own, run by a command, raised an exception, ended the process, or crashed it."""

    exit_code = 9


class CheckpointError(BilevaxError):
    """What a run has written cannot be used; each kind is a class of its own."""

    exit_code = 6


class CorruptError(CheckpointError):
    """A file of a run was changed, cut or lost after it was written; the message names it."""


class MismatchError(CheckpointError):
    """A run was begun with other settings or data than it is to go on with; the message names each that differs."""


class LockedError(CheckpointError):
    """Another run writes the directory; the message names its process."""


class TooNewError(CheckpointError):
    """A later release of bilevax wrote it; the message names both formats."""
