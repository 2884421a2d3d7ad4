"""The callback that shows how far a run is."""

import contextlib
import math
import shutil
import sys
import time
from dataclasses import dataclass, field
from typing import ClassVar

from bilevax.core.codes import Code
from bilevax.core.text import count, duration, short_count, significant
from bilevax.runs.callbacks import Progress

_ON_TERMINAL, _ELSEWHERE = 0.2, 5.0
"""Seconds from one line to the next."""


@dataclass
class ShowProgress:
    """Shows on stderr how far a run is: a line that is rewritten on a terminal, one every five seconds elsewhere.

    Steps, the last outer value and gradient norm, samples, the time that the run has taken, and about how much is left
    at the speed it has had since its first call, which compiles. A stderr that is closed or full is no error: the run
    goes on.

    >>> ShowProgress()
    ShowProgress()
    """

    writes: ClassVar[bool] = True

    _terminal: bool = field(default=False, init=False, repr=False)
    _shown: tuple[int, float] = field(default=(0, -math.inf), init=False, repr=False)  # step, and when
    _first: tuple[int, float] | None = field(default=None, init=False, repr=False)

    def begin(self, progress: Progress) -> None:
        """Nothing is shown before the first call."""
        self._terminal = False
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            self._terminal = bool(sys.stderr and sys.stderr.isatty())
        self._shown, self._first = (progress.step, -math.inf), None

    def __call__(self, progress: Progress) -> None:
        """Show a line if it is time."""
        now = time.monotonic()
        # speed is measured from the end of the first call on, which compiled
        self._first = self._first or (progress.step, now)
        if now - self._shown[1] >= (_ON_TERMINAL if self._terminal else _ELSEWHERE):
            self._show(progress, now)

    def end(self, progress: Progress) -> None:
        """Show where the run ended."""
        if progress.step > self._shown[0]:
            self._show(progress, time.monotonic())
        if self._terminal and self._shown[1] > -math.inf:
            _write("\n")

    def _show(self, progress: Progress, now: float) -> None:
        text = _line(progress, *(self._first or (progress.step, now)), now)
        self._shown = progress.step, now
        # back to the start of the line, and nothing of the one before beyond its end
        _write(f"\r{text[: shutil.get_terminal_size().columns - 1]}\x1b[K" if self._terminal else f"{text}\n")


def _line(progress: Progress, first: int, since: float, now: float) -> str:
    step, steps, history = progress.step, progress.steps, progress.history
    parts = [
        f"step {count(step)} of {count(steps)}",
        f"outer value {significant(float(history.outer_value[-1]))}",
        f"gradient norm {significant(float(history.gradient_norm[-1]))}",
        f"{short_count(int(history.samples[-1]))} samples",
        duration(float(history.seconds[-1])),
    ]
    code = Code(int(history.code[-1]))
    if code >= Code.NOT_CONTRACTIVE:
        parts.append(code.name)
    elif first < step < steps:
        # (seconds since the first call) / (steps since then) * (steps left)
        parts.append(f"about {duration((now - since) / (step - first) * (steps - step))} left")
    return ", ".join(parts)


def _write(text: str) -> None:
    if sys.stderr:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()
