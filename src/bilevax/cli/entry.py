"""Where the command begins and ends: faults become one line on stderr and an exit code.

Called by the script ``bilevax``, by ``python -m bilevax``, and so by each process that ``launch`` starts.
"""

import contextlib
import errno
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import NoReturn, Protocol, runtime_checkable

from bilevax.core.errors import BilevaxError, StorageError
from bilevax.core.limits import said
from bilevax.core.signals import Stops
from bilevax.core.text import clean

_USAGE = 2
_INTERRUPTED = 130
_BROKEN_PIPE = 141
_SIGNALLED = 128
_OUTPUT_REFUSED = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@runtime_checkable
class _Misuse(Protocol):
    """A command line that could not be parsed: an exception of click, which typer may bring under a name of its own."""

    def format_message(self) -> str:
        """What is wrong with it."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with its code.

    0: done; 1: a check that found errors, or a fault of bilevax itself; 2: called wrongly; 3: a wrong value; 4: a fault
    of the data; 5: a computation that failed; 6: what a run has written cannot be used; 7: a file could not be read or
    written; 8: too little memory; 9: a fault of the user's code; 10: another process of the group is gone; 128 and the
    number of the signal that ended it (130: Ctrl-C, 143: SIGTERM, 129: SIGHUP), with what was reached; 141: the reader
    went away.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A signal is raised in the main thread, so that a run that is stopped writes what it reached.
    with warnings.catch_warnings(), Stops(hold=False) as stops:
        warnings.showwarning = lambda message, category, *_: _print(f"{category.__name__}: {message}")
        try:
            code = _code_of(words, debug="--debug" in words)
            sys.stdout.flush()
        except OSError as e:
            code = _without_output(e)
        # it has been obeyed: leaving ``stops`` would hand it to the handler of before
        number, stops.number = stops.number, 0
    sys.exit(_SIGNALLED + number if number else code)


def _code_of(words: list[str], *, debug: bool) -> int:
    """Run the command; a fault is said in one line."""
    try:
        with said("this command", "smaller data take less"):
            return _run(words)
    except KeyboardInterrupt:
        return _say("interrupted", _INTERRUPTED, debug)
    except BilevaxError as e:
        message = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        return _say(message, e.exit_code, debug)
    except ModuleNotFoundError as e:
        return _say(
            f"{e.name} is not installed; pip install 'bilevax[cli]' brings all that the command needs", _USAGE, debug
        )
    except Exception as e:
        # That a file cannot be written is a StorageError: this is standard output.
        refused = isinstance(e, OSError) and e.filename is None and e.errno in _OUTPUT_REFUSED
        if refused or isinstance(e, BrokenPipeError):
            raise
        if isinstance(e, _Misuse):
            return _misused(e)
        return _say(f"{type(e).__name__}: {e} (a fault of bilevax; --debug shows where)", 1, debug)


def _run(words: list[str]) -> int:
    # Imported here: what is missing is then said in one line.
    import typer
    from typer.main import get_command

    from bilevax.cli.app import app

    command = get_command(app)
    try:
        with command.make_context("bilevax", words) as context:
            command.invoke(context)
    except typer.Exit as e:
        return e.exit_code
    return 0


def _without_output(e: OSError) -> int:
    """What is left to do where standard output takes no more: the reader of a pipe went away, or a disk is full."""
    # Python flushes once more at the end
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(e, BrokenPipeError):  # nothing to say, and nobody to say it to
        return _BROKEN_PIPE
    return _say(f"cannot write to standard output: {e.strerror}", StorageError.exit_code, False)


def _say(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    _print(message)
    return code


def _print(text: str) -> None:
    # the terminal may be gone
    with contextlib.suppress(OSError):
        print(f"bilevax: {clean(text)}", file=sys.stderr)


def _misused(error: _Misuse) -> int:
    """Said in one line; without any words, the help is what is meant."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "bilevax"
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return _USAGE
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    return _say(f"{message} (see {path} --help)", _USAGE, False)
