"""Two writers in one directory, and readers beside a writer, in processes of their own."""

import os
import re

import pytest
from race import Racers
from stand_in import run_in, run_of, tune

LOCKING = """
import os, time
from pathlib import Path
from bilevax.core import files

def act(argument):
    path, until = map(Path, argument)
    with files.Lock(path):
        while not until.exists():
            time.sleep(0.001)
    return os.getpid()
"""


def test_one_of_two_gets_a_lock_and_the_other_is_told_who_has_it(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    with Racers(LOCKING) as racers:
        for trial in range(20):
            over = tmp_path / f"over {trial}"
            racers.start(*[[str(directory), str(over)]] * 2)
            loser = racers.first()
            (winner,) = {*racers.processes} - {loser}
            kind, message = racers.receive(loser)
            assert kind == "LockedError"
            assert re.fullmatch(
                rf"{directory} is in use by process {winner.pid} on \S+, since \d{{4}}-.*; wait for it, or .*", message
            )
            over.touch()
            assert racers.receive(winner) == winner.pid
            assert os.listdir(directory) == []


def test_a_lock_of_a_dead_process_is_taken_over(tmp_path):
    with Racers(LOCKING) as racers:
        first, second = racers.processes
        racers.send(first, [str(tmp_path), str(tmp_path / "never")])
        while not (tmp_path / "run.lock").exists() or not (tmp_path / "run.lock").read_bytes():
            pass
        racers.send(second, [str(tmp_path), str(tmp_path)])
        kind, message = racers.receive(second)
        assert (kind, f"process {first.pid} " in message) == ("LockedError", True)
        first.kill()
        first.wait()
        assert (tmp_path / "run.lock").exists()
        racers.send(second, [str(tmp_path), str(tmp_path)])
        assert racers.receive(second) == second.pid
        assert os.listdir(tmp_path) == []


TUNING = """
import time
from functools import partial
from pathlib import Path
from stand_in import tune

def until(path):
    while not path.exists():
        time.sleep(0.001)

def act(argument):
    root, slopes, force, over = argument
    for slope in slopes:
        tune(Path(root), slope, force=force, wait=partial(until, Path(over)))
    return slopes[-1]
"""


@pytest.fixture(name="tuners", scope="module")
def two_tuners():
    with Racers(TUNING) as racers:
        yield racers


@pytest.mark.slow_but("True")
@pytest.mark.parametrize("force", [False, True])
def test_one_of_two_runs_gets_the_directory(tuners, tmp_path, force):
    for trial in range(20):
        root, over = tmp_path / f"{trial}", tmp_path / f"over {trial}"
        root.mkdir()
        if force:
            tune(root, 5.0)
        tuners.start(*[[str(root), [slope], force, str(over)] for slope in (1.0, 2.0)])
        loser = tuners.first()
        (winner,) = {*tuners.processes} - {loser}
        kind, message = tuners.receive(loser)
        assert kind == "LockedError"
        assert re.match(rf"{root / 'run'} is in use by process {winner.pid} on \S+, since \d{{4}}-", message)
        assert run_in(root) == (run_of(5.0) if force else None)
        over.touch()
        slope = tuners.receive(winner)
        assert slope == 1.0 + tuners.processes.index(winner)
        assert run_in(root) == run_of(slope)
        assert os.listdir(root) == ["run"]


def test_two_that_do_not_wait_leave_one_whole_run(tuners, tmp_path):
    """The later one may come when the first has ended; it then replaces the whole run."""
    for _ in range(20):
        tuners.start(*[[str(tmp_path), [slope], True, str(tmp_path)] for slope in (1.0, 2.0)])
        outs = [tuners.receive(process) for process in tuners.processes]
        ended = [out for out in outs if isinstance(out, float)]
        assert ended
        assert all(out[0] == "LockedError" for out in outs if out not in ended), outs
        assert run_in(tmp_path) in [run_of(slope) for slope in ended]
        assert os.listdir(tmp_path) == ["run"]


MINIMISING = """
import os, time
from pathlib import Path
import jax
from stand_in import minimise
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)

def act(argument):
    directory, over = map(Path, argument)

    def wait(progress):
        while not over.exists():
            time.sleep(0.001)

    return minimise(directory, wait)
"""


@pytest.mark.slow
def test_one_of_two_minimisations_gets_the_directory(tmp_path):
    with Racers(MINIMISING) as racers:
        for trial in range(20):
            directory, over = tmp_path / f"{trial}", tmp_path / f"over {trial}"
            racers.start(*[[str(directory), str(over)]] * 2)
            loser = racers.first()
            (winner,) = {*racers.processes} - {loser}
            kind, message = racers.receive(loser)
            assert kind == "LockedError"
            assert re.match(rf"{directory} is in use by process {winner.pid} on \S+, since \d{{4}}-", message)
            over.touch()
            result = racers.receive(winner)
            # the other has it afterwards, and the same result at once
            racers.send(loser, [str(directory), str(over)])
            assert racers.receive(loser) == result
            assert sorted(path.name for path in directory.iterdir()) == [f"step_0000000{step}" for step in (0, 3)]


@pytest.mark.parametrize("number", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_a_reader_sees_a_whole_run_while_it_is_replaced(tuners, tmp_path, number):
    tune(tmp_path, 0.0)
    writer, slopes = tuners.processes[0], [float(slope) for slope in range(1, number + 1)]
    tuners.send(writer, [str(tmp_path), slopes, True, str(tmp_path)])
    seen, slope = {0.0}, 0.0
    while slope < number:
        found, before = run_in(tmp_path), slope
        slope = found[1][0]["tuning_loss"]
        assert slope >= before
        assert found == run_of(slope)
        seen.add(slope)
    assert tuners.receive(writer) == number
    assert len(seen) > number / 20
