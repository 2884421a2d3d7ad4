"""The processes of ``bilevax launch -- tune``: the first one runs the command, the others go through their rows for it.

They tell one another bytes through the first, over sockets of this machine; who leaves is noticed at once.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import TYPE_CHECKING, TypeVar

from bilevax.core.errors import BilevaxError, LostError, UsageError
from bilevax.core.processes import ALONE, Processes
from bilevax.core.signals import Stops

if TYPE_CHECKING:
    from bilevax.study.settings import TuneSettings

T = TypeVar("T")

ADDRESS, KEY, NUMBER, COUNT, STARTS = (
    f"BILEVAX_GROUP_{name}" for name in ("ADDRESS", "KEY", "NUMBER", "COUNT", "STARTS")
)
"""Variables of the environment by which ``launch`` tells a process of its group, and how often that was started."""

WAIT, AGAIN = 60.0, 0.05
"""Seconds for which the first process is waited for, and from one attempt to the next."""


def environment(address: str, key: str, number: int, count: int, starts: int) -> dict[str, str]:
    """Of a process of a group."""
    return dict(
        zip((ADDRESS, KEY, NUMBER, COUNT, STARTS), map(str, (address, key, number, count, starts)), strict=True)
    )


def started_again() -> bool:
    """Whether the group was started before, and one of its processes died."""
    return int(os.environ.get(STARTS, "0")) > 0


def joined() -> Processes:
    """The processes of this one's group, once all are there; this one alone where there is none.

    Raises:
        LostError: the first one is not there.
    """
    number, count = (int(os.environ.get(name, default)) for name, default in ((NUMBER, "0"), (COUNT, "1")))
    if count == 1:
        return ALONE
    host, _, port = os.environ[ADDRESS].rpartition(":")
    address, key = (host, int(port)), bytes.fromhex(os.environ[KEY])
    if number:
        first = _connected(address, key)
        first.send_bytes(str(number).encode())
        return Processes(number, count, lambda mine: _told(first, mine))
    others = _accepted(address, key, count)
    return Processes(0, count, lambda mine: _tell_all(others, mine))


def _accepted(address: tuple[str, int], key: bytes, count: int) -> list[Connection]:
    """To the other processes, in their order."""
    found: dict[int, Connection] = {}
    with Listener(address, "AF_INET", backlog=count, authkey=key) as listener:
        while len(found) < count - 1:
            # who does not know the key is none of them
            with contextlib.suppress(AuthenticationError, EOFError, OSError):
                connection = listener.accept()
                found[int(connection.recv_bytes())] = connection
    return [found[number] for number in range(1, count)]


def _connected(address: tuple[str, int], key: bytes) -> Connection:
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        with contextlib.suppress(EOFError, OSError):
            return Client(address, "AF_INET", authkey=key)
        time.sleep(AGAIN)
    raise LostError("process 0 is not there")


def _told(first: Connection, mine: bytes) -> list[bytes]:
    """What all have, from the first one."""
    _with(0, partial(first.send_bytes, mine))
    return [_with(0, first.recv_bytes) for _ in range(int(_with(0, first.recv_bytes)))]


def _with(number: int, exchange: Callable[[], T]) -> T:
    """Send to a process, or receive."""
    try:
        return exchange()
    except (EOFError, OSError):
        raise LostError(f"process {number} is gone") from None


def _tell_all(others: Sequence[Connection], mine: bytes) -> list[bytes]:
    """What all have, which the others are told."""
    every = [mine, *(_with(number, other.recv_bytes) for number, other in enumerate(others, 1))]
    for number, other in enumerate(others, 1):
        for part in (str(len(every)).encode(), *every):
            _with(number, partial(other.send_bytes, part))
    return every


def asked(processes: Processes, source: str, target: str, settings: "TuneSettings") -> None:
    """Have the other processes go through their rows of a table, too."""
    told = {"source": source, "target": target, "settings": settings.plain()}
    processes.of_first(json.dumps(told).encode())


def assist() -> int:
    """What a process does that is not the first of a group; the exit code is returned.

    Raises:
        BilevaxError: its own rows have a fault. Of others the first process tells.
        UsageError: it is in no group.
    """
    try:
        processes = joined()
    except (LostError, KeyboardInterrupt):
        return 0  # the first one had nothing to be done, or says why not
    if processes is ALONE:
        raise UsageError("assist is what `bilevax launch` has processes do: give it `tune` or `resume`")
    # signals are obeyed by all together, as the first one says
    with Stops(), contextlib.suppress(LostError):
        task = json.loads(processes.of_first(b""))
        _follow(processes, task["source"], task["target"], task["settings"])
        # until the first one has ended
        processes.gathered(b"")
    return 0


def _follow(processes: Processes, source: str, target: str, values: Mapping[str, object]) -> None:
    """The passes over the rows of this process, and the same choice between them."""
    from bilevax.cli.source import open_rows
    from bilevax.study.additive import fit_additive
    from bilevax.study.preparation import prepare
    from bilevax.study.row_set import RowSet
    from bilevax.study.settings import TuneSettings
    from bilevax.tables.table import Table

    settings = TuneSettings.model_validate(values)
    pieces, _ = open_rows(source, settings.reading, large=True)
    assert not isinstance(pieces, Table)
    every = RowSet(pieces, target, settings, processes)
    try:
        prepared = prepare(every.sample(), target, settings)
        fit_additive(prepared, settings, lambda _: None, every.stage, time.perf_counter(), every)
    except BilevaxError:
        if every.passing:
            raise
        raise LostError("process 0 tells the fault") from None
