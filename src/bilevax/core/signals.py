"""Signals that end a run: what is under way is finished first, unless they come twice."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeAlias

Handler: TypeAlias = Callable[[int, FrameType | None], object] | signal.Handlers

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C, a scheduler that wants the machine back, a terminal that was closed."""


class Stopped(KeyboardInterrupt):
    """A signal that ends a run, raised in the main thread as Ctrl-C is.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stops:
    """While it is entered, the first signal is noted and the second raises :class:`Stopped`.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored. At the end of a block the handlers are as they
    were, and a signal that was noted is handed to the one before: another :class:`Stops` notes it, the system's default
    action ends the process; Ctrl-C alone is not passed on. Outside of the main thread it does nothing.

    Args:
        numbers: of the signals.
        hold: False: the first one raises, too.
        told: called at the first one.

    Attributes:
        number: of the first signal; 0 while there was none.
    """

    def __init__(
        self, numbers: tuple[int, ...] = ENDING, *, hold: bool = True, told: Callable[[], object] | None = None
    ) -> None:
        self._numbers, self._hold, self._told, self.number = numbers, hold, told, 0
        self._before: dict[int, Handler | int | None] = {}

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """The handler."""
        again, self.number = self.number, self.number or number
        if again or not self._hold:
            raise Stopped(number)
        if self._told is not None:
            self._told()

    def __enter__(self) -> "Stops":
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
                # None: a handler that Python did not install, and cannot put back
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        before = self._before.pop(self.number, None)
        self._before.clear()
        outer = getattr(before, "__self__", None)
        if isinstance(outer, Stops):
            outer.number = outer.number or self.number
        elif before is not None and self.number != signal.SIGINT:
            _deliver(self.number, before)


def _deliver(number: int, handler: Handler | int) -> None:
    """What would have happened without us."""
    if callable(handler):
        handler(number, None)
    else:
        os.kill(os.getpid(), number)
