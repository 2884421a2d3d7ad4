"""Two writers in one directory, and readers beside a writer, in processes of their own."""

import os
import re

from race import Racers

LOCKING = """
import os, time
from pathlib import Path
from bilevax.core import files

def act(argument):
    path, seconds = argument
    with files.Lock(Path(path)):
        time.sleep(seconds)
    return os.getpid()
"""


def test_one_of_two_gets_a_lock_and_the_other_is_told_who_has_it(tmp_path):
    with Racers(LOCKING) as racers:
        for _ in range(20):
            outs = racers.race(*[[str(tmp_path), 0.15]] * 2)
            (winner,), ((kind, message),) = ([out for out in outs if isinstance(out, t)] for t in (int, list))
            assert kind == "LockedError"
            assert re.fullmatch(
                rf"{tmp_path} is in use by process {winner} on \S+, since \d{{4}}-.*; wait for it, or choose .*",
                message,
            )
            assert os.listdir(tmp_path) == []


def test_short_holders_wait_for_each_other(tmp_path):
    with Racers(LOCKING) as racers:
        for _ in range(50):
            outs = racers.race(*[[str(tmp_path), 0.0]] * 2)
            assert sorted(outs) == sorted(process.pid for process in racers.processes)
            assert os.listdir(tmp_path) == []


def test_a_lock_of_a_dead_process_is_taken_over(tmp_path):
    with Racers(LOCKING) as racers:
        first, second = racers.processes
        racers.send(first, [str(tmp_path), 60])
        while not (tmp_path / "run.lock").exists() or not (tmp_path / "run.lock").read_bytes():
            pass
        racers.send(second, [str(tmp_path), 0])
        kind, message = racers.receive(second)
        assert (kind, f"process {first.pid} " in message) == ("LockedError", True)
        first.kill()
        first.wait()
        assert (tmp_path / "run.lock").exists()
        racers.send(second, [str(tmp_path), 0])
        assert racers.receive(second) == second.pid
        assert os.listdir(tmp_path) == []
