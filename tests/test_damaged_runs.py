"""A damaged checkpoint or run directory: refused, or the checkpoint before serves and that is said."""

import io
import json
import os
import pickle
import shutil
import warnings

import numpy as np
import pytest
from damage import damages
from stand_in import study_of, tune

from bilevax.cli import main
from bilevax.core import manifest
from bilevax.core.errors import CheckpointError, CorruptError, TooNewError
from bilevax.core.run_files import FORMAT, KIND, read_run_files
from bilevax.report import write_report
from bilevax.runs import checkpoints
from bilevax.runs.checkpoints import Checkpoints, Run
from bilevax.study import read_model

ARRAYS = {"w": np.arange(3.0), "k": np.int32(7), "none": np.zeros((0, 2), np.float32)}


def save(directory, step):
    with Checkpoints(Run(directory)) as store:
        store.newest()
        store.save(step, {"step": step}, ARRAYS)


def newest(directory):
    """Of its newest checkpoint that is whole the step, and what was said."""
    with Checkpoints(Run(directory)) as store:
        return said_by(store)


def said_by(store):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return store.newest().step, [str(warning.message) for warning in said]


@pytest.fixture(name="pair", scope="module")
def two_checkpoints(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    save(directory, 1)
    save(directory, 2)
    assert newest(directory) == (2, [])
    return directory


@pytest.mark.parametrize("name", ["manifest.json", "0000.npy", "0001.npy", "0002.npy"])
def test_of_a_damaged_checkpoint_the_one_before_serves(pair, name):
    path = pair / "step_00000002" / name
    content = path.read_bytes()
    with Checkpoints(Run(pair)) as store:
        for what, damaged in damages(content):
            path.write_bytes(damaged)
            step, said = said_by(store)
            assert (step, len(said)) == (1, 1), what
            assert f"step_00000002/{name} is damaged" in said[0], what
            assert said[0].endswith("; the run goes on from step 1"), what
    path.unlink()
    assert newest(pair)[1] == [f"{path} is missing; the run goes on from step 1"]
    path.write_bytes(content)
    assert newest(pair) == (2, [])


def test_a_damaged_checkpoint_is_replaced_by_the_next(pair, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(pair, directory)
    (directory / "step_00000002" / "0000.npy").write_bytes(b"")
    with Checkpoints(Run(directory)) as store:
        assert said_by(store)[0] == 1
        store.save(2, {}, ARRAYS)
    assert newest(directory) == (2, [])
    for path in directory.glob("step_*"):
        (path / "0001.npy").unlink()
    with pytest.raises(CorruptError, match=r"0001\.npy is missing, and no other checkpoint is whole"):
        newest(directory)


def test_a_checkpoint_of_a_newer_format_is_not_passed_over(pair, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(pair, directory)
    forge(directory / "step_00000002", version=checkpoints.FORMAT + 1)
    with pytest.raises(TooNewError, match=rf"format {checkpoints.FORMAT + 1}, .* formats up to {checkpoints.FORMAT}$"):
        newest(directory)


def forge(path, version=checkpoints.FORMAT, array=None, content=None, **changes):
    """Change what a checkpoint holds, and make the manifest agree."""
    sealed = json.loads((path / manifest.NAME).read_bytes())
    del sealed["sha256"], sealed["kind"], sealed["format"]
    listed = sealed.pop("files")
    if array is not None:
        (path / "0000.npy").write_bytes(array)
        listed["0000.npy"] = manifest.fingerprint(array)
    sealed["arrays"]["w"] |= changes
    sealed |= content or {}
    (path / manifest.NAME).write_bytes(manifest.encode("checkpoint", version, listed, sealed))


def npy(shape, dtype="<f8", data=b"", version=(1, 0), fortran=False):
    """An ``.npy`` whose header says what it likes."""
    out = io.BytesIO()
    header = {"descr": dtype, "fortran_order": fortran, "shape": shape}
    write = np.lib.format.write_array_header_1_0 if version == (1, 0) else np.lib.format.write_array_header_2_0
    write(out, header)
    return out.getvalue() + data


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


HUGE = 10**12
FORGED = {
    "a pickle": lambda canary: {"array": pickle.dumps(Canary(canary))},
    "a pickle in an .npy": lambda canary: {"array": npy((3,), "|O", pickle.dumps([Canary(canary)] * 3))},
    "and it is said": lambda canary: {
        "array": npy((3,), "|O", pickle.dumps([Canary(canary)] * 3)),
        "dtype": "object",
        "shape": [3],
    },
    "10^12 rows": lambda _: {"array": npy((HUGE,))},
    "10^12 rows, as is said": lambda _: {"array": npy((HUGE,)), "shape": [HUGE]},
    "less than nothing": lambda _: {"array": npy((-1, -3), data=bytes(24)), "shape": [-1, -3]},
    "another dtype": lambda _: {"array": npy((3,), "<i8", bytes(24))},
    "another byte order": lambda _: {"array": npy((3,), ">f8", bytes(24))},
    "another order": lambda _: {"array": npy((3,), data=bytes(24), fortran=True)},
    "another shape": lambda _: {"array": npy((3, 1), data=bytes(24))},
    "a byte less": lambda _: {"array": npy((3,), data=bytes(23))},
    "a byte more": lambda _: {"array": npy((3,), data=bytes(25))},
    "version 2": lambda _: {"array": npy((3,), data=bytes(24), version=(2, 0))},
    "no header": lambda _: {"array": b"\x93NUMPY\x01\x00\xff\xff"},
    "a header of brackets": lambda _: {"array": b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000},
    "nothing": lambda _: {"array": b""},
    "an unknown dtype": lambda _: {"dtype": "float65"},
    "a dtype of two": lambda _: {"dtype": [["a", "<f8"]]},
    "a file that is not there": lambda _: {"file": "0009.npy"},
    "a file outside": lambda _: {"file": "../step_00000001/0000.npy"},
    "an unknown key": lambda _: {"key": "no such generator"},
    "a key of floats": lambda _: {"key": "threefry2x32"},
    "another step": lambda _: {"content": {"step": 3}},
    "no arrays": lambda _: {"content": {"arrays": None}},
    "a list": lambda _: {"content": {"arrays": [1]}},
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_what_agrees_with_its_manifest_is_looked_at_as_well(pair, tmp_path, forged):
    directory, canary = tmp_path / "run", tmp_path / "canary"
    shutil.copytree(pair, directory)
    forge(directory / "step_00000002", **forged(str(canary)))
    step, said = newest(directory)
    assert (step, len(said)) == (1, 1)
    assert "step_00000002" in said[0]
    assert not canary.exists()


def test_a_checkpoint_behind_a_link_is_none(pair, tmp_path):
    directory = tmp_path / "run"
    save(directory, 1)
    os.symlink(pair / "step_00000002", directory / "step_00000002")
    save(directory, 3)  # and what it leads to is not touched
    save(directory, 4)
    save(directory, 5)
    assert newest(pair) == (2, [])


# run directories


@pytest.fixture(name="run")
def finished_run(tmp_path):
    tune(tmp_path, 2.0)
    write_report(tmp_path / "run")
    return tmp_path / "run"


FILES = ("manifest.json", "config.toml", "metrics.jsonl", "coefficients.json", "model.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_a_run_directory_with_a_damaged_file_is_refused(run, name):
    assert read_model(run).to_plain() == study_of(2.0).model.to_plain()
    path = run / name
    content = path.read_bytes()
    for what, damaged in damages(content):
        path.write_bytes(damaged)
        with pytest.raises(CorruptError, match=rf"{name} is damaged"):
            print(what, read_model(run))
    path.unlink()
    with pytest.raises(CorruptError, match=rf"{name} is missing"):
        read_model(run)


@pytest.mark.parametrize("name", FILES)
def test_every_command_refuses_it_in_one_line(run, name, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    (run.parent / "t.csv").write_text("x\n1\n")
    path = run / name
    path.write_bytes(path.read_bytes()[:-1])
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for words in (["predict", "run", "t.csv"], ["report", "run"], ["resume", "run"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (CheckpointError.exit_code, ""), words
        assert f"{name} is damaged" in err, words
        assert err.count("\n") == 1, words
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_report_that_was_changed_is_written_anew(run):
    path = run / "report.html"
    content, sealed = path.read_bytes(), (run / manifest.NAME).read_bytes()
    for damaged in (content[:64], b"", bytes(len(content)), content.replace(b"2", b"3", 1), None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        read_model(run)  # which has no use for it
        if damaged is None:
            write_report(run)
        else:
            with pytest.warns(UserWarning, match=r"report\.html was changed since it was written; it is written anew"):
                write_report(run)
        assert (path.read_bytes(), (run / manifest.NAME).read_bytes()) == (content, sealed)


def test_a_run_of_a_newer_format_is_refused_with_both_numbers(run, capsys):
    found = read_run_files(run, without=())
    manifest.write(run, KIND, FORMAT + 1, found.listed, found.content)
    with pytest.raises(TooNewError, match=rf"format {FORMAT + 1}, .* formats up to {FORMAT}$"):
        read_model(run)
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run)])
    assert ended.value.code == TooNewError.exit_code
    assert f"format {FORMAT + 1}" in capsys.readouterr().err
