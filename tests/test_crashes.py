"""The process is killed, the power cut, the disk full, Ctrl-C pressed, at each file-system call in turn."""

from functools import partial

import pytest
from crash_rig import FAULTS, FILLING, Rig, Scenario

from bilevax.core import files, manifest

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

    return Scenario(prepare, act, lambda root: one_file(root / "a.json"))


def a_directory():
    def act(root):
        files.remove_leftovers(root)
        files.remove(root / "step")
        manifest.write_directory(root / "step", "checkpoint", 1, {"a.npy": b"123", "b.npy": b""}, CONTENT)

    def look(root):
        return manifest.read(root / "step", "checkpoint", 1) if (root / "step").exists() else None

    return Scenario(lambda root: None, act, look)


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

    return Scenario(prepare, act, lambda root: manifest.read(root, "run", 1))


def a_lock():
    """A writer that holds the directory, and has made it."""

    def act(root):
        files.make_directory(root / "a" / "b")
        with files.Lock(root / "a" / "b"):
            files.remove_leftovers(root / "a" / "b")
            files.write(root / "a" / "b" / "c", b"new")
        assert not files.is_locked(root / "a" / "b")

    return Scenario(lambda root: None, act, lambda root: one_file(root / "a" / "b" / "c"))


SCENARIOS = {
    "a new file": partial(writing, None),
    "another file": partial(writing, b"old"),
    "a directory": a_directory,
    "a manifest": a_seal,
    "a lock": a_lock,
}


@pytest.fixture(name="rig", params=SCENARIOS)
def rig_of(request, tmp_path):
    return Rig(SCENARIOS[request.param](), tmp_path / "root")


def test_killed_or_without_power_before_each_call(rig):
    for number in range(len(rig.disk.calls)):
        rig.stop_before(number)
    rig.lasts()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_each_call(rig, fault):
    for number, call in enumerate(rig.disk.calls):
        raised = rig.fail(fault, number)
        where = f"{fault} at call {number} of {rig.disk.calls}"
        if fault == "short":
            assert raised is None, where
        elif fault in ("before", "after"):
            assert raised is not None, where
        elif fault == "full" and call in FILLING:
            assert "free some space" in str(raised), where
