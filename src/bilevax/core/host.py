"""Faults that a compiled program meets on the host: the sentence itself, in place of what JAX makes of it."""

import logging
from collections import deque

from bilevax.core.errors import BilevaxError

_faults: deque[BilevaxError] = deque(maxlen=16)


def note(fault: BilevaxError) -> BilevaxError:
    """The fault, remembered: it is about to be raised by a callback."""
    _faults.append(fault)
    return fault


def noted(e: BaseException) -> BilevaxError | None:
    """The fault that ended a program, by what the program's end says; None: another one did."""
    # JaxRuntimeError where the call waits for it, ValueError later on
    if isinstance(e, BilevaxError) or not isinstance(e, RuntimeError | ValueError):
        return None
    return next((fault for fault in reversed(_faults) if str(fault) in str(e)), None)


class _Unsaid(logging.Filter):
    """Not what is raised where it is met: JAX would log each with its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], BilevaxError))


logging.getLogger("jax._src.callback").addFilter(_Unsaid())
