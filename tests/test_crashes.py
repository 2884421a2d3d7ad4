"""The process is killed, the power cut, the disk full, Ctrl-C pressed, at each file-system call in turn."""

from functools import partial

import numpy as np
import pytest
from crash_rig import FAULTS, FILLING, Rig, Scenario
from stand_in import minimise, resume, run_in, tune

from bilevax.core import files, manifest
from bilevax.runs.checkpoints import Checkpoints, Run, _read

CONTENT = {"steps": 3}


def one_file(path):
    return path.read_bytes() if path.exists() else None


def writing(old):
    """A file is written over another, or where none is."""

    def prepare(root):
        if old is not None:
            (root / "a.json").write_bytes(old)

    def act(root):
        files.remove_leftovers(root)
        files.write(root / "a.json", b"new" * 100)

    return Scenario(prepare, act, act, lambda root: one_file(root / "a.json"))


def a_directory():
    def act(root):
        files.remove_leftovers(root)
        files.remove(root / "step")
        manifest.write_directory(root / "step", "checkpoint", 1, {"a.npy": b"123", "b.npy": b""}, CONTENT)

    def look(root):
        return manifest.read(root / "step", "checkpoint", 1) if (root / "step").exists() else None

    return Scenario(lambda root: None, act, act, look)


def a_seal():
    """A manifest that lists more than the one before."""

    def seal(root, *names):
        listed = {name: manifest.fingerprint((root / name).read_bytes()) for name in names}
        manifest.write(root, "run", 1, listed, {"state": "finished" if "model" in names else "running"})

    def prepare(root):
        files.write(root / "config", b"c")
        seal(root, "config")

    def act(root):
        files.remove_leftovers(root)
        files.write(root / "model", b"m" * 100)
        seal(root, "config", "model")

    return Scenario(prepare, act, act, lambda root: manifest.read(root, "run", 1))


def a_lock():
    """A writer that holds the directory, and has made it."""

    def act(root):
        files.make_directory(root / "a" / "b")
        with files.Lock(root / "a" / "b"):
            files.remove_leftovers(root / "a" / "b")
            files.write(root / "a" / "b" / "c", b"new")
        assert not files.is_locked(root / "a" / "b")

    return Scenario(lambda root: None, act, act, lambda root: one_file(root / "a" / "b" / "c"))


def a_checkpoint():
    """The fourth of a run that keeps three."""

    def save(root, step):
        with Checkpoints(Run(root / "run")) as store:
            store.newest()
            store.save(step, {"step": step}, {"w": np.full(3, step), "k": np.int64(7)})

    def look(root):
        found = [_read(path) for path in sorted((root / "run").glob("step_*"))]
        assert len(found) >= 3
        return found[-1].step, found[-1].content, found[-1].arrays["w"].tolist()

    def tidy(root):
        return len(list((root / "run").iterdir()))

    def act(root):
        save(root, 4)

    return Scenario(lambda root: [save(root, step) for step in (1, 2, 3)], act, act, look, tidy)


def a_run(again):
    """In a directory that is not there."""
    return Scenario(lambda root: None, partial(tune, slope=2.0), partial(again, slope=2.0), run_in)


def a_swap(again):
    """Over an earlier run, beside which the user keeps notes."""

    def prepare(root):
        tune(root, 1.0)
        (root / "run" / "notes.txt").write_text("mine")

    def look(root):
        assert [path.read_text() for path in root.rglob("notes.txt")] == ["mine"]
        return run_in(root)

    return Scenario(prepare, partial(tune, slope=2.0, force=True), partial(again, slope=2.0), look)


SCENARIOS = {
    "a new file": partial(writing, None),
    "another file": partial(writing, b"old"),
    "a directory": a_directory,
    "a manifest": a_seal,
    "a lock": a_lock,
    "a checkpoint": a_checkpoint,
    "a run": partial(a_run, partial(tune, force=True)),
    "a run, resumed": partial(a_run, resume),
    "a swap": partial(a_swap, partial(tune, force=True)),
    "a swap, resumed": partial(a_swap, resume),
}


@pytest.fixture(name="rig", params=SCENARIOS)
def rig_of(request, tmp_path):
    return Rig(SCENARIOS[request.param](), tmp_path / "root")


pytestmark = pytest.mark.timeout(3600)

EVERY = pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "every"])


def numbers(rig, every, first=0):
    """Of the calls that fail: all, or some of many."""
    calls = len(rig.disk.calls)
    return range(calls) if every or calls < 30 else range((first + 1) * calls // 36, calls, calls // 6)


@pytest.mark.parametrize("name", ["a checkpoint", "a run", "a swap"])
def test_there_is_much_that_can_fail(tmp_path, name):
    calls = Rig(SCENARIOS[name](), tmp_path / "root").disk.calls
    assert len(calls) >= 40
    assert {*calls} >= {"open", "write", "fsync", "close", "flock", "mkdir", "rename", "unlink", "rmdir", "listdir"}


@EVERY
def test_killed_or_without_power_before_each_call(rig, every):
    for number in numbers(rig, every):
        rig.stop_before(number)
    rig.lasts()


@EVERY
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_each_call(rig, fault, every):
    for number in numbers(rig, every, FAULTS.index(fault)):
        raised, call = rig.fail(fault, number), rig.disk.calls[number]
        where = f"{fault} at call {number} of {rig.disk.calls}"
        if fault == "short":  # of a line, which is then not there at all
            assert raised is None or ("cannot write" in str(raised) and "metrics.jsonl" in str(raised)), where
        elif fault in ("before", "after"):
            assert raised is not None, where
        elif fault == "full" and call in FILLING:
            assert "free some space" in str(raised), where


def a_minimisation():
    """With a checkpoint after each of three steps, of which two are kept."""

    def act(root):
        return minimise(Run(root / "run", seconds=0, keep=2))

    def look(root):
        for path in (root / "run").glob("step_*"):
            _read(path)

    return Scenario(
        lambda root: None, act, act, look, lambda root: {path.name[:5] for path in (root / "run").iterdir()}
    )


def test_a_lock_is_given_up_where_its_block_is_not_entered(tmp_path, monkeypatch):
    def interrupt(directory):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "remove_leftovers", interrupt)
    with pytest.raises(KeyboardInterrupt), Checkpoints(Run(tmp_path)):
        pass
    assert not files.is_locked(tmp_path)


@EVERY
def test_minimize_goes_on_to_the_same_bits(tmp_path, every):
    rig = Rig(a_minimisation(), tmp_path / "root")
    calls = len(rig.disk.calls)
    for number in range(calls) if every else (2 * calls // 3,):
        rig.stop_before(number)
    for i, fault in enumerate(FAULTS):
        for number in range(calls) if every else ((i + 1) * calls // 6,):
            rig.fail(fault, number)
