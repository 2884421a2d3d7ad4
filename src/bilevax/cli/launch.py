"""``bilevax launch``: processes of one group on this machine, started again where one of them dies.

In, from ``commands_of_problems``: the command and how many. Out: the variables by which the processes find one another
(``group.joined``, ``jax.distributed.initialize``), sentences on standard error, and the exit code.
"""

import contextlib
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from bilevax.cli import group
from bilevax.core.errors import DataError, LostError, ParameterError, UsageError
from bilevax.core.processes import Processes
from bilevax.core.signals import Stops

GRACE = 5.0
"""Seconds from SIGTERM to SIGKILL, and for the others once one has ended as it was told."""

LOOK = 0.02
"""Seconds from one look at the processes to the next."""

LATER = 0.5
"""Seconds to wait, once a process has ended with a code, for one whose death may have been the cause."""

SIGNALLED = 128
"""Exit code of a signal, less its number."""

HOPELESS = UsageError.exit_code, ParameterError.exit_code, DataError.exit_code
"""Codes of a wrong command line, a wrong value and a fault of the data: the same would come again."""

TOGETHER = "tune", "resume"
"""Commands of bilevax that several processes can share: the first one runs it, the others assist."""

SINGLE = "predict", "clean", "check", "bench", "report"
"""Commands of bilevax, each of which is one process."""

OURS = sys.executable, "-m", "bilevax"
"""Before the words of a command of bilevax."""


class Rank:
    """A process of the group.

    Args:
        number: its place, from 0.
        command: what it runs.
        environment: by which it finds the others.
        cores: that it may use; none: all.
    """

    def __init__(self, number: int, command: Sequence[str], environment: dict[str, str], cores: Sequence[int]) -> None:
        self.number = number
        self._process = subprocess.Popen(command, env=os.environ | environment, process_group=0)
        self._still_since: float | None = None
        if cores:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(self._process.pid, cores)

    @property
    def code(self) -> int | None:
        """With which it has ended, less than 0 of one that a signal ended; None while it runs."""
        return self._process.poll()

    @property
    def still(self) -> float:
        """Seconds since it was stopped; 0 of one that runs."""
        found = None
        if self.code is None and hasattr(os, "waitid"):
            # of one that has just ended there is nothing to wait for
            with contextlib.suppress(ChildProcessError):
                found = os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
        if found is not None:
            self._still_since = time.monotonic() if found.si_code == os.CLD_STOPPED else None
        return 0.0 if self._still_since is None or self.code is not None else time.monotonic() - self._still_since

    def signal(self, number: int) -> None:
        """Send it, and what it has started, a signal."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def fault(self, timeout: float) -> "Fault | None":
        """What is wrong with it; None of one that runs, has stood still for no longer than that, or has ended well."""
        code, still = self.code, self.still
        if still > timeout:
            return Fault(f"process {self.number} has stood still for {still:.0f} s", -signal.SIGSTOP)
        if not code:
            return None
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return Fault(f"process {self.number} {how}", code)


def run(command: Sequence[str], number: int, restarts: int, timeout: float) -> int:
    """Run the command in so many processes to its end; the exit code is returned, 0 after a signal.

    Args:
        command: a program and its arguments.
        number: of processes.
        restarts: how often the group is started again.
        timeout: seconds that a process may be stopped for.

    Raises:
        UsageError: the command is one that is a single process, or cannot be started.
        ParameterError: its rows cannot be dealt to so many.
    """
    if command[0] in SINGLE:
        raise UsageError(f"{command[0]} works in one process, with every core of the machine: run it without launch")
    if command[0] in TOGETHER:
        Processes(0, number)  # refuses numbers that rows cannot be dealt to
    with Stops() as stops:
        for left in reversed(range(restarts + 1)):
            ranks: list[Rank] = []
            try:
                _start(ranks, command, number, restarts - left)
                faults = _watched(ranks, stops, timeout, ranks[:1] if command[0] in TOGETHER else ranks)
            finally:
                _end(ranks)
            if stops.number or not faults:
                break
            code = faults[0].code
            again = left > 0 and code not in HOPELESS
            then = [f"starting again, and then {left - 1} times at most"] if again else []
            print("bilevax: " + "; ".join([*(fault.sentence for fault in faults), *then]), file=sys.stderr, flush=True)
            if not again:
                return code if code > 0 else SIGNALLED - code
    # of a signal the entry point says the code
    return 0


class Fault(NamedTuple):
    """How a process failed.

    Attributes:
        sentence: in words, with its number.
        code: as :attr:`Rank.code`; of one that stands still that of SIGSTOP.
    """

    sentence: str
    code: int


def _start(ranks: list[Rank], command: Sequence[str], number: int, again: int) -> None:
    """The processes of a group, which find one another as those that Open MPI starts; those of bilevax by a key."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ours, key = command[0] in TOGETHER, secrets.token_hex()
    # what those of bilevax choose, they choose by one thread each
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") and not ours else []
    for i in range(number):
        words = [*OURS, *(command if i == 0 else ["assist"])] if ours else command
        share = cores[i * len(cores) // number : (i + 1) * len(cores) // number]
        environment = group.environment(address, key, i, number, again) if ours else _of_jax(address, i, number)
        try:
            ranks.append(Rank(i, words, environment, share))
        except OSError as e:
            raise UsageError(f"{command[0]} cannot be started: {e.strerror}") from None


def _of_jax(address: str, i: int, number: int) -> dict[str, str]:
    """What ``jax.distributed.initialize()`` reads."""
    return {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,
        # by this JAX takes them for processes of Open MPI; the address in it plays no part
        "OMPI_MCA_orte_hnp_uri": "0.0;tcp://127.0.0.1:0",
        "OMPI_COMM_WORLD_SIZE": str(number),
        "OMPI_COMM_WORLD_RANK": str(i),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(i),
    }


def _watched(ranks: list[Rank], stops: Stops, timeout: float, ends: list[Rank]) -> list[Fault]:
    """Wait for the end of these, or for the first that fails or stands still for too long: the cause first."""
    told, last, running = 0, math.inf, list(ranks)
    while any(rank.code is None for rank in ends) and time.monotonic() < last:
        time.sleep(LOOK)
        if stops.number and not told:
            told, running = stops.number, [rank for rank in ranks if rank.code is None]
            for rank in running:
                rank.signal(told)
        # once one has ended as it was told, the others have some time
        if told and last == math.inf and any(rank.code is not None for rank in running):
            last = time.monotonic() + GRACE
        if not told and any(rank.code or rank.still > timeout for rank in ranks):
            break
    if not any((rank.code or 0) < 0 or rank.still > timeout for rank in ranks) and any(rank.code for rank in ranks):
        # what was lost with another process is often said before that one is seen to have ended
        time.sleep(LATER)
    found = [fault for rank in ranks if (fault := rank.fault(timeout)) is not None]
    causes = [fault for fault in found if fault.code != LostError.exit_code]
    return sorted(causes or found, key=lambda fault: fault.code > 0)


def _end(ranks: list[Rank]) -> None:
    """Whatever still runs: SIGTERM, and SIGKILL after the time of grace."""
    for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, math.inf)):
        for rank in ranks:
            rank.signal(number)
        until = time.monotonic() + seconds
        while any(rank.code is None for rank in ranks) and time.monotonic() < until:
            time.sleep(LOOK)
