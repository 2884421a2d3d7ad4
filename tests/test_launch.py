"""``bilevax launch``: who dies is named, the others are ended, and all are started again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RANK = "[ $OMPI_COMM_WORLD_RANK = 1 ]"


def begun(script, *options, processes=2, **more):
    """The command as a process of its own, each of its ranks a shell; the words of stderr are kept."""
    words = [sys.executable, "-c", "from bilevax.cli import main; main()", "launch", "-n", str(processes), *options]
    return subprocess.Popen([*words, "--", "sh", "-c", script], stderr=subprocess.PIPE, text=True, **more)


def ended(script, *options, **more):
    process = begun(script, *options, **more)
    _, said = process.communicate(timeout=120)
    return process.returncode, said


def times(tmp_path):
    return len((tmp_path / "starts").read_text().splitlines())


def test_e12_a_process_that_is_killed_is_named_and_all_are_started_again(tmp_path):
    # the first time rank 1 is killed and rank 0 would go on for long
    script = f"echo >> {tmp_path}/starts; while [ $(wc -l < {tmp_path}/starts) -lt 2 ]; do sleep 0.01; done; "
    script += f"if {RANK} && mkdir {tmp_path}/once 2>/dev/null; then kill -9 $$; fi; "
    script += f"[ $(wc -l < {tmp_path}/starts) -gt 2 ] || sleep 60"
    began = time.monotonic()
    code, said = ended(script)
    assert (code, times(tmp_path)) == (0, 4)
    assert said == "bilevax: process 1 was ended by SIGKILL; starting again, and then 2 times at most\n"
    assert time.monotonic() - began < 15


def test_its_code_is_that_of_the_first_that_failed_when_no_start_is_left(tmp_path):
    # rank 0 fails because it has lost rank 1, and is seen to fail first
    script = f"echo >> {tmp_path}/starts; if {RANK}; then sleep 0.2; kill -TERM $$; fi; sleep 0.1; exit 1"
    code, said = ended(script, "--restarts", "1")
    assert (code, times(tmp_path)) == (128 + signal.SIGTERM, 4)
    assert said.splitlines()[-1] == "bilevax: process 1 was ended by SIGTERM; process 0 ended with code 1"


def test_who_has_lost_another_process_is_no_cause(tmp_path):
    # rank 0 has lost rank 1, and ends before it
    script = f"echo >> {tmp_path}/starts; if {RANK}; then sleep 0.2; exit 4; fi; exit 10"
    code, said = ended(script)
    assert (code, said) == (4, "bilevax: process 1 ended with code 4\n")
    assert times(tmp_path) == 2


def test_what_would_fail_again_is_not_started_again(tmp_path):
    assert ended(f"echo >> {tmp_path}/starts; exit 3", processes=1) == (3, "bilevax: process 0 ended with code 3\n")
    assert times(tmp_path) == 1


def test_one_that_is_stopped_for_less_is_not_what_is_wrong(tmp_path):
    script = f"echo >> {tmp_path}/starts; if {RANK}; then kill -STOP $$; fi; sleep 0.3; exit 3"
    code, said = ended(script, "--timeout", "60")
    assert (code, times(tmp_path)) == (3, 2)
    assert said == "bilevax: process 0 ended with code 3\n"


def test_e13_a_process_that_is_stopped_goes_on_within_the_time_and_counts_as_dead_beyond_it(tmp_path):
    script = f"echo $$ >> {tmp_path}/starts; "
    script += f"if {RANK} && mkdir {tmp_path}/once 2>/dev/null; then kill -STOP $$; fi; sleep 0.1"
    code, said = ended(script, "--timeout", "1", "--restarts", "1")
    assert (code, times(tmp_path)) == (0, 4)
    assert said.startswith("bilevax: process 1 has stood still for 1 s; starting again")
    (tmp_path / "once").rmdir()
    process = begun(script, processes=2)
    while not (tmp_path / "once").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    for pid in map(int, (tmp_path / "starts").read_text().split()[4:]):
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            continue
    assert process.communicate(timeout=60) == (None, "")
    assert process.returncode == 0


def test_a_signal_is_passed_on_once_and_ends_all(tmp_path):
    script = f"trap 'echo >> {tmp_path}/told; exit 0' TERM; echo >> {tmp_path}/starts; while :; do sleep 0.05; done"
    process = begun(script)
    while not (tmp_path / "starts").exists() or times(tmp_path) < 2:
        time.sleep(0.02)
    process.terminate()
    assert "bilevax" not in process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert len((tmp_path / "told").read_text().splitlines()) == 2


@pytest.mark.slow
def test_one_that_does_not_heed_is_killed_after_the_time_of_grace(tmp_path):
    script = f"echo $$ >> {tmp_path}/starts; if {RANK}; then sleep 0.3; exit 1; fi; trap '' TERM; "
    code, _ = ended(script + "while :; do sleep 0.05; done", "--restarts", "0")
    assert code == 1
    for pid in map(int, (tmp_path / "starts").read_text().split()):
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["nonesuch"], "nonesuch cannot be started: No such file or directory"),
        (["predict", "run"], "predict works in one process, with every core of the machine: run it without launch"),
        (["tune", "iris"], "rows are dealt to 1, 2, 4 or 8 processes, got 3"),
    ],
)
def test_what_cannot_be_started_is_said(command, sentence, capsys):
    from bilevax.cli import main

    with pytest.raises(SystemExit) as end:
        main(["launch", "-n", "3", "--", *command])
    assert end.value.code == (3 if command[0] == "tune" else 2)
    assert sentence in capsys.readouterr().err
