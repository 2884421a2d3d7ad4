"""What do several devices and processes cost a step, and what becomes of a run whose processes are killed?

On one machine, whose processes have their shares of its cores (``bilevax launch``):

- *overhead*: a step of SOBA on W1 (multinomial logistic regression, 30,000 rows, 784 features, minibatches of 88) on
  plain rows in one process, on dealt ones in one process with one device and two, and in two and four processes. Two
  processes on two cores have twice the sums to make in turn; what they could win is what the cores compute at once;
- *chains*: hypergradients of SID on a logistic regression from equally many samples, by one chain of which every
  minibatch is dealt to the processes, and by a chain in each, averaged once: errors over keys, and seconds;
- *kills*: a run with checkpoints whose processes are killed at random times, the first (which is the coordinator) among
  them, one that is stopped for 30 s, and one that is stopped for longer than it may be: bits against the undisturbed
  run, and seconds from the kill to the start of the next processes;
- *passes*: passes of ``tune`` over a set of Parquet files of ``--held`` GB, in one process, two and four.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import machine, store, tables

PARTS = "overhead", "chains", "kills", "passes"
SOON = 15.0
"""Seconds within which a group is started again: the goal."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--kills", type=int, default=20, help="default %(default)s; with --quick 1")
    parser.add_argument("--held", type=float, default=1.0, help="GB of the set of *passes*; default %(default)s")


def command(name: str, *arguments: Any, processes: int = 1, launch: tuple[str, ...] = ()) -> list[str]:
    """A task of ``distributed_ranks``, alone or as a group."""
    words = [sys.executable, "-m", "benchmarks.distributed_ranks", name, json.dumps(arguments)]
    if processes == 1 and not launch:
        return words
    door = [sys.executable, "-c", "from bilevax.cli import main; main()"]
    return [*door, "launch", "-n", str(processes), *launch, "--", *words]


def found(name: str, *arguments: Any, processes: int = 1, devices: int = 1) -> Any:
    """What the first process of a task found."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        command(name, *arguments, processes=processes, launch=("--restarts", "0") if processes > 1 else ()),
        cwd=machine.ROOT, env=os.environ | {"XLA_FLAGS": flags}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


def overhead(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Milliseconds a step, and times those of plain rows."""
    kinds: dict[str, dict[str, Any]] = {
        "plain rows, one process": {"dealt": False},
        "dealt, one process, one device": {},
        "dealt, one process, two devices": {"devices": 2},
        "dealt, two processes": {"processes": 2},
        "dealt, four processes": {"processes": 4},
    }
    base = 0.0
    for what, kind in list(kinds.items())[: 2 if options.quick else None]:
        ms = found("steps", options.quick, kind.pop("dealt", True), **kind)["ms"]
        base = base or ms
        yield {"what": f"W1, ms a step of SOBA: {what}", "value": ms, "note": f"{ms / base:.2f} times the first"}


def chains(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Errors and seconds of both ways, for one process, two and four."""
    for processes in (1, 2) if options.quick else (1, 2, 4):
        for how, every_step in (("every step", True), ("once, of whole chains", False)):
            of = found("chains", options.quick, every_step, 3 if options.quick else 12, processes=processes)
            what = f"{processes} processes, averaging {how}"
            yield {"what": what, "value": of["error"], "note": f"relative error; {of['seconds']:.2f} s"}


def passes(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Seconds of each pass, of the slowest process."""
    from benchmarks.many_rows import made
    from bilevax.cli.group import environment

    with tempfile.TemporaryDirectory() as folder:
        data = made(Path(folder), 1e9 * (0.004 if options.quick else options.held))
        base: dict[str, float] = {}
        for count in (1, 2) if options.quick else (1, 2, 4):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            groups = [os.environ | environment(address, "00", number, count, 0) for number in range(count)]
            started = [
                subprocess.Popen(command("passes", str(data)), cwd=machine.ROOT, env=own, stdout=subprocess.PIPE)
                for own in groups
            ]
            said = [process.communicate()[0] for process in started]
            for name, seconds in json.loads(said[0]).items():
                base.setdefault(name, seconds)
                note = f"{base[name] / seconds:.2f} times as fast as one"
                yield {"what": f"{name}, {count} processes: seconds", "value": seconds, "note": note}


class Group:
    """A run behind ``bilevax launch``, and its processes as they are now."""

    def __init__(self, directory: Path, steps: int, *launch: str) -> None:
        self.out = directory / "digest"
        words = command("train", str(directory / "run"), str(self.out), steps, processes=2, launch=launch)
        self.said = directory / "stderr"
        cache = {"JAX_COMPILATION_CACHE_DIR": str(directory.parent / "cache"),
                 "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # fmt: skip
        with self.said.open("w") as err:
            self.launcher = subprocess.Popen(
                words, cwd=machine.ROOT, env=os.environ | cache, stdout=subprocess.DEVNULL, stderr=err
            )

    def ranks(self) -> list[int]:
        """Their process numbers, in order."""
        with contextlib.suppress(OSError):
            pid = self.launcher.pid
            return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
        return []

    def others(self, than: list[int]) -> float:
        """Wait until both run again as other processes; the seconds that took."""
        began = time.monotonic()
        while (len(now := self.ranks()) < 2 or set(now) & set(than)) and self.launcher.poll() is None:
            time.sleep(0.02)
        return time.monotonic() - began

    def end(self) -> tuple[int, str]:
        """Its exit code and the digest."""
        code = self.launcher.wait()
        return code, self.out.read_text() if self.out.exists() else "none"


def kills(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each disturbance against the undisturbed run."""
    steps, number = (200, 1) if options.quick else (400, options.kills)
    rng, rows = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:

        def run(name: str, disturb: Callable[[Group], Any], *launch: str) -> tuple[tuple[int, str], Any, str]:
            place = Path(folder) / name
            place.mkdir()
            group = Group(place, steps, *launch)
            group.others([])
            noted = disturb(group)
            return group.end(), noted, group.said.read_text()

        def struck(group: Group, times: int, first: bool) -> list[float]:
            seconds: list[float] = []
            while len(seconds) < times:
                time.sleep(rng.uniform(0.0, lasts))
                before = group.ranks()
                if group.launcher.poll() is not None or len(before) < 2:
                    break
                os.kill(before[0 if first else rng.randrange(2)], signal.SIGKILL)
                seconds.append(group.others(before))
            return seconds

        def stopped(group: Group, seconds: float) -> None:
            time.sleep(0.6 * lasts)
            pid = group.ranks()[1]
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        run("warm", lambda group: None)  # programs are kept: a start is as quick as a later one
        began = time.monotonic()
        whole = run("whole", lambda group: None)[0]
        lasts = time.monotonic() - began
        if whole[0]:
            sys.exit(f"the undisturbed run ended with code {whole[0]}")

        def told(what: str, ends: list[tuple[int, str]], said: str, seconds: list[float]) -> None:
            note = (
                f"{len(ends)} runs, codes {sorted({code for code, _ in ends})}, {said.count('starting again')} restarts"
            )
            note += f", within {max(seconds):.1f} s" if seconds else ""
            same = all(end == whole for end in ends)
            met = same and max(seconds, default=0.0) <= SOON
            value = "same bits" if same else "other bits"
            rows.append({"what": what, "value": value, "note": note, "goal": SOON, "met": met})
            print(
                what, *[line for line in said.splitlines() if line.startswith("bilevax:")][-3:], sep="\n  ", flush=True
            )

        ends, seconds, said = [], [], ""
        while len(seconds) < number and len(ends) <= 2 * number:
            left = number - len(seconds)
            end, more, words = run(
                f"struck{len(ends)}", partial(struck, times=left, first=False), "--restarts", str(left)
            )
            ends, seconds, said = [*ends, end], [*seconds, *more], said + words
        told(f"a process killed at {len(seconds)} random times", ends, said, seconds)
        for what, disturb, *launch in (
            ("the coordinator killed", partial(struck, times=1, first=True)),
            ("a process stopped for 30 s", partial(stopped, seconds=1.0 if options.quick else 30.0)),
            ("a process stopped beyond --timeout 5", partial(stopped, seconds=9.0), "--timeout", "5"),
        ):
            end, noted, words = run(what.replace(" ", "-"), disturb, *launch)
            told(what, [end], words, noted or [])
    return rows


def main(options: argparse.Namespace) -> None:
    table = tables.Table("", "value", "goal", "met", "note")
    record = store.kept(options)
    for part in options.only:
        record[part] = {"setting": machine.setting(), "rows": []}
        for row in {"overhead": overhead, "chains": chains, "kills": kills, "passes": passes}[part](options):
            row = row if not options.quick else {k: v for k, v in row.items() if k not in ("goal", "met")}
            table(*map(row.get, ("what", "value", "goal", "met", "note")))
            record[part]["rows"].append(row)
            store.keep(options, record)
