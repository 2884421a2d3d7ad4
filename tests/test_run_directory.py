"""The run directory: one writer, a whole run at every moment, and nothing read back that was not checked."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression

from bilevax.cli import main
from bilevax.core import files, manifest
from bilevax.core.codes import Code
from bilevax.core.errors import (
    CorruptError,
    DataError,
    LockedError,
    MismatchError,
    ParameterError,
    StorageError,
    TooNewError,
    UsageError,
)
from bilevax.core.run_files import FILES, FORMAT, KIND, read_run_files
from bilevax.core.run_records import Step
from bilevax.hypergradients import SID
from bilevax.report import render_report, write_report
from bilevax.runs import Run, checkpoints
from bilevax.sklearn import TunedLogisticRegression, tuning, tuning_method
from bilevax.sklearn.tuning import Candidate
from bilevax.sklearn.tuning_method import Method
from bilevax.solvers import FixedPoint, Harmonic
from bilevax.study import linear, read_model, study
from bilevax.study.run_directory import RunDirectory
from bilevax.tables.linear import LinearModel
from bilevax.tables.read import read_table
from bilevax.tables.terms import Term

ASSET = Path(__file__).parent / "assets" / "run_format_1"
ALL = sorted([*FILES, manifest.NAME])


def names(directory):
    return files.names(directory)


def step_record(step, loss=None):
    record = Step(
        step=step, code="OK", seconds=1.0, visits=9, tuning_loss=loss, validation_loss=None, gradient_norm=None
    )
    return record.model_dump()


def study_of(slope, *, interrupted=False):
    """What a run directory is handed, without any tuning."""
    terms = (Term("x", "number", "number"),)
    model = LinearModel("y", ("a", "b"), np.zeros(1), np.array([[slope]]), terms, (1.0,))
    config = {"data": {"table": "t.csv", "slope": slope}, "tune": {"steps": 3}}
    events = [step_record(step, slope) for step in range(3)]
    return SimpleNamespace(model=model, events=events, interrupted=interrupted, config=lambda: config)


def wrote(directory, slope, *, interrupted=False, **options):
    """A whole run."""
    made = study_of(slope, interrupted=interrupted)
    with RunDirectory(directory, **options) as run:
        run.begin({"source": {"given": "t.csv"}, "tune": {"steps": 3, "time": None}})
        for event in made.events:
            run.append(event)
        run.finish(made, render_report)
    return directory


def killed(directory, *, checkpoint=True, **options):
    """A run whose process is killed while it tunes: its files stay, and its locks are free."""
    run = RunDirectory(directory, **options)
    run.begin({"tune": {"steps": 3}})
    run.append(step_record(0))
    if checkpoint:
        files.make_directory(run.checkpoints / "step_00000001")
    for lock in (run._lock, run._target_lock):
        if lock is not None:
            lock.release(remove=False)
    return run


def slope_in(directory):
    """Which run a reader finds; None where none has ended."""
    try:
        return read_model(directory).coef[0, 0]
    except DataError:
        return None


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.fixture(name="run")
def directory(tmp_path):
    return wrote(tmp_path / "run", 1.0)


# ---- what is written


def test_a_run_says_from_its_start_what_it_is(tmp_path):
    path, made = tmp_path / "deep" / "run", study_of(2.0)
    with RunDirectory(path) as run:
        run.begin({"source": {"given": "t.csv", "path": None}, "tune": {"steps": 3}})
        found = read_run_files(path)
        assert (found.finished, found.files) == (False, {})
        assert found.content["config"] == {"source": {"given": "t.csv"}, "tune": {"steps": 3}}
        for event in made.events:
            run.append(event)
        with open(path / "metrics.jsonl", "a") as file:
            file.write('{"kind": "st')  # just being written
        assert "has not written its end" in write_report(path).read_text(encoding="utf-8")
        with pytest.raises(DataError, match="the run did not end"):
            read_model(path)
        run.finish(made, render_report)
    assert names(path) == ALL
    found = read_run_files(path, without=())
    assert found.content == {"state": "finished", "interrupted": False}
    assert [json.loads(line) for line in found.files["metrics.jsonl"].splitlines()] == made.events
    config = tomllib.loads(found.files["config.toml"].decode())
    assert config == {**made.config(), "source": {"given": "t.csv"}}
    assert slope_in(path) == 2.0


def test_a_run_that_fails_leaves_nothing(tmp_path):
    def fail():
        with RunDirectory(tmp_path / "deep" / "run") as run:
            run.append({"kind": "data"})
            raise StorageError(28, "the disk is full")

    with pytest.raises(StorageError):
        fail()
    assert names(tmp_path) == []
    (tmp_path / "run").mkdir()  # which was there stays
    with RunDirectory(tmp_path / "run") as run:
        run.append({"kind": "data"})
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == []


@pytest.mark.parametrize("force", [False, True])
def test_a_run_that_fails_with_a_checkpoint_is_kept(tmp_path, force):
    if force:
        wrote(tmp_path / "run", 1.0)
    with RunDirectory(tmp_path / "run", force=force) as failed:
        failed.append({"kind": "data"})
        files.make_directory(failed.checkpoints / "step_00000001")
    assert failed.kept
    with pytest.raises(UsageError, match=r"holds a run that did not end; `bilevax resume .*run` goes on"):
        RunDirectory(tmp_path / "run")
    assert not force or slope_in(tmp_path / "run") == 1.0
    with RunDirectory(tmp_path / "run", resume=True) as run:
        assert names(run.checkpoints) == ["step_00000001"]
    wrote(tmp_path / "run", 2.0, resume=True)
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ALL
    assert slope_in(tmp_path / "run") == 2.0


def test_what_is_not_of_a_run_stays(run):
    (run / "notes.txt").write_text("mine")
    (run / "folder").mkdir()
    wrote(run, 2.0, force=True)
    assert names(run) == sorted([*ALL, "folder", "notes.txt"])
    assert names(run.parent) == ["run"]
    made, old = study_of(3.0), run.with_name(f"run.old-{os.getpid()}")
    with RunDirectory(run, force=True) as again:
        again.append(made.events[0])
        (again.checkpoints.parent / "notes.txt").write_text("newer")
        again.finish(made)
    assert (run / "notes.txt").read_text() == "newer"
    assert names(run.parent) == ["run", old.name]  # what would have been overwritten stays there
    assert (names(old), (old / "notes.txt").read_text()) == (["notes.txt"], "mine")


def test_a_link_to_a_directory_stays_one(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    wrote(tmp_path / "link", 2.0, force=True)
    assert (tmp_path / "link").is_symlink()
    assert slope_in(run) == slope_in(tmp_path / "link") == 2.0


def test_a_mount_point_is_refused_before_anything_is_computed(run, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(run))
    with pytest.raises(UsageError, match="is a mount point, which cannot be replaced whole"):
        RunDirectory(run, force=True)


def test_a_run_of_old_has_no_manifest_and_can_be_replaced(run):
    (run / manifest.NAME).unlink()
    for read in (read_model, write_report):
        with pytest.raises(CorruptError, match=r"manifest\.json is missing"):
            read(run)
    wrote(run, 2.0, force=True)
    assert slope_in(run) == 2.0


# ---- two at once


def test_a_directory_has_one_writer(tmp_path):
    first = RunDirectory(tmp_path / "run")
    for options in ({}, {"force": True}):
        with pytest.raises(LockedError, match=rf"run is in use by process {os.getpid()} on .*, since "):
            RunDirectory(tmp_path / "run", **options)
    first.discard()
    assert names(tmp_path) == []


def test_readers_beside_a_writer(run, monkeypatch):
    with RunDirectory(run, force=True) as writer:
        writer.begin({})
        assert slope_in(run) == 1.0
        with pytest.raises(LockedError):  # which would be replaced under its hands
            write_report(run)
        with pytest.raises(LockedError):
            RunDirectory(run, resume=True)
        renamed = []

        def watch(old, new):
            assert slope_in(run) == (1.0 if not renamed else 2.0)
            renamed.append(old)
            os.rename(old, new)
            assert slope_in(run) == 2.0
            assert read_run_files(run).path.name == (run.name if run.exists() else f"run.new-{os.getpid()}")

        monkeypatch.setattr(files, "rename", watch)
        writer.finish(study_of(2.0))
    assert len(renamed) == 2
    assert names(run.parent) == ["run"]


# ---- what processes that were killed left


def test_a_killed_run_is_resumed_or_begun_anew(run):
    killed(run, force=True)
    (left,) = (path for path in run.parent.iterdir() if path != run)
    assert left.name == f"run.new-{os.getpid()}"
    assert slope_in(run) == 1.0
    with pytest.raises(UsageError, match="holds a run that did not end"):
        RunDirectory(run)
    with RunDirectory(run, resume=True) as resumed:
        assert resumed.checkpoints.parent == left
        assert resumed.config == {"tune": {"steps": 3}}
    assert left.exists()
    wrote(run, 2.0, force=True)
    assert names(run.parent) == ["run"]
    killed(run, force=True)
    wrote(run, 3.0, resume=True)
    assert (slope_in(run), names(run.parent), names(run)) == (3.0, ["run"], ALL)


def test_a_killed_run_in_place(tmp_path):
    run = tmp_path / "run"
    killed(run)
    assert "has not written its end" in write_report(run).read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="holds a run that did not end"):
        RunDirectory(run)
    wrote(run, 1.0, resume=True)
    assert (slope_in(run), names(run)) == (1.0, ALL)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3  # each record once


def test_a_reader_that_looks_between_the_renames_of_a_swap_reads_on(run, monkeypatch):
    def between(directory, *args, **kwargs):
        monkeypatch.setattr(manifest, "read", read)
        directory.rename(run.parent / "old")
        try:
            return read(directory, *args, **kwargs)
        finally:
            (run.parent / "old").rename(directory)

    read = manifest.read
    monkeypatch.setattr(manifest, "read", between)
    assert slope_in(run) == 1.0


@pytest.mark.parametrize("renames", [0, 1, 2])
@pytest.mark.parametrize("options", [{"force": True}, {"resume": True}, {}])
def test_a_swap_that_was_killed_is_ended(run, monkeypatch, renames, options):
    (run / "notes.txt").write_text("mine")
    writer, rename = RunDirectory(run, force=True), files.rename
    writer.begin({})

    def stop(old, new):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(old)
        rename(old, new)

    done = []
    with monkeypatch.context() as patched:
        patched.setattr(files, "rename", stop)
        with pytest.raises(KeyboardInterrupt), writer:
            writer.finish(study_of(2.0))
    assert not writer.kept
    assert slope_in(run) == (1.0 if renames == 0 else 2.0)
    if options:
        with RunDirectory(run, **options) as after:
            assert after.ended == ("resume" in options)
    else:
        with pytest.raises(UsageError, match="is not empty"):
            RunDirectory(run)
    assert slope_in(run) == 2.0
    assert names(run.parent) == ["run"]
    assert names(run) == sorted([*set(ALL) - {"report.html"}, "notes.txt"])


def test_what_a_user_called_so_is_not_touched(run):
    pid = os.getpid()
    shutil.copytree(run, run.with_name("run.old-20261129"))
    wrote(run.with_name("run.new-5"), 5.0)
    killed(run.with_name("run.new-6"))  # a run of its own
    run.with_name(f"run.old-{pid}").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot create .*run\.old-\d+: it is there"):
        wrote(run, 2.0, force=True)
    run.with_name(f"run.old-{pid}").unlink()
    wrote(run, 2.0, force=True)
    assert names(run.parent) == ["run", "run.new-5", "run.new-6", "run.old-20261129"]
    assert slope_in(run.with_name("run.new-5")) == 5.0
    assert (run.with_name("run.new-6") / "checkpoints" / "step_00000001").exists()


def test_an_interrupted_run_goes_on_and_stays_until_it_is_replaced(run):
    wrote(run, 2.0, force=True, interrupted=True)
    files.make_directory(run / "checkpoints" / "step_00000007")
    writer = killed(run, resume=True, checkpoint=False)
    assert names(writer.checkpoints) == ["step_00000007"]
    assert slope_in(run) == 2.0
    for _ in range(2):
        with RunDirectory(run, resume=True) as again:
            assert (again.ended, names(again.checkpoints)) == (False, ["step_00000007"])
            again.begin(again.config)
    wrote(run, 3.0, resume=True)
    assert (slope_in(run), names(run.parent), names(run)) == (3.0, ["run"], ALL)
    with RunDirectory(run, resume=True) as finished:
        assert finished.ended


def test_checkpoints_of_another_run_are_not_gone_on_with(run):
    wrote(run, 2.0, force=True, interrupted=True)
    files.make_directory(run / "checkpoints" / "step_00000007")
    killed(run, force=True, checkpoint=False)
    with RunDirectory(run, resume=True) as resumed:
        resumed.begin(resumed.config)
        assert not resumed.checkpoints.exists()


# ---- damage


def test_one_byte_changed_anywhere_is_refused(run):
    readers = {read_model: ("report.html",), write_report: ("report.html",)}
    for name in ALL:
        path = run / name
        content = path.read_bytes()
        damages = [*range(0, len(content), max(1, len(content) // 40)), len(content) - 1]
        for position in damages:
            flip(path, position)
            for read, unread in readers.items():
                if name not in unread:
                    with pytest.raises(CorruptError, match=rf"{name} is damaged"):
                        read(run)
            path.write_bytes(content)
        for length in (0, 64, len(content) - 1):
            path.write_bytes(content[:length])
            for read, unread in readers.items():
                if name not in unread:
                    with pytest.raises(CorruptError, match=rf"{name} is damaged"):
                        read(run)
            path.write_bytes(content)
    assert slope_in(run) == 1.0


def test_a_damaged_run_is_not_resumed(tmp_path):
    run = tmp_path / "run"
    wrote(run, 1.0, interrupted=True)
    flip(run / "config.toml", 20)
    with pytest.raises(CorruptError, match=r"config\.toml is damaged"):
        RunDirectory(run, resume=True)
    wrote(run, 2.0, force=True)
    flip(run / manifest.NAME, 40)  # which is then no reason to keep it
    wrote(run, 3.0, force=True)
    assert slope_in(run) == 3.0


def test_a_damaged_page_is_written_anew_and_said(run):
    page = (run / "report.html").read_bytes()
    flip(run / "report.html", 500)
    with pytest.warns(UserWarning, match=r"report\.html was changed since it was written"):
        write_report(run)
    (run / "report.html").unlink()
    write_report(run)
    wrote(run.with_name("other"), 1.0)
    assert (run / "report.html").read_bytes() == page == (run.with_name("other") / "report.html").read_bytes()
    assert read_run_files(run, without=()).files["report.html"] == page
    assert names(run) == ALL


def test_another_format_or_kind_is_named(run):
    found = read_run_files(run)
    manifest.write(run, KIND, FORMAT + 1, found.listed, found.content)
    for read in (
        read_model,
        write_report,
        lambda path: RunDirectory(path, force=True),
        lambda path: RunDirectory(path, resume=True),
    ):
        with pytest.raises(TooNewError, match="of format 3, written by a later bilevax; this one reads formats up"):
            read(run)
    manifest.write(run, "checkpoint", 1, {}, {})
    with pytest.raises(CorruptError, match="holds a checkpoint, not a run"):
        read_model(run)


def test_a_model_that_agrees_with_the_manifest_alone_is_refused(run):
    for content in (b"", b"\0" * 50, (run / "model.safetensors").read_bytes().replace(b"coef", b"cofe")):
        (run / "model.safetensors").write_bytes(content)
        found = read_run_files(run, without=("model.safetensors", "report.html"))
        listed = found.listed | {"model.safetensors": manifest.fingerprint(content)}
        manifest.write(run, KIND, FORMAT, listed, found.content)
        with pytest.raises(CorruptError, match=r"model\.safetensors holds no model that bilevax wrote"):
            read_model(run)


# ---- readers


@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_a_run_of_every_format_is_read(tmp_path, number):
    asset = ASSET.parent / f"run_format_{number}"
    shutil.copytree(asset, tmp_path / "run")
    table = read_table(ASSET.parent / f"run_format_{number}.csv")
    expected = np.loadtxt(ASSET.parent / f"run_format_{number}_predictions.csv", delimiter=",")
    np.testing.assert_allclose(read_model(asset).predict_mean(table), expected, rtol=0, atol=1e-12)
    found = read_run_files(asset, without=())
    assert found.finished
    assert sorted(found.files) == sorted(FILES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "</html>" in write_report(tmp_path / "run").read_text(encoding="utf-8")
    with RunDirectory(tmp_path / "run", resume=True) as run:
        assert run.ended


READERS = """
import sys
from bilevax.cli import main
for words in (["predict", "run", "t.csv"], ["report", "run"], ["resume", "run"], ["resume", "--help"]):
    try:
        main(words)
    except SystemExit as e:
        assert not e.code
assert not {"jax", "sklearn"} & set(sys.modules)
"""


def test_the_page_has_the_formats_of_the_code():
    page = (ASSET.parents[2] / "docs" / "formats.md").read_text()
    said = re.findall(r"^\| `(run|checkpoint)` \| (\d+) \|", page, re.MULTILINE)
    assert {kind: int(number) for kind, number in said} == {KIND: FORMAT, checkpoints.KIND: checkpoints.FORMAT}
    for kind, number in said:  # of each format an asset
        assert all((ASSET.parent / f"{kind}_format_{i}").is_dir() for i in range(1, int(number) + 1))
    assert all(f"| `{name}` |" in page for name in (*FILES, manifest.NAME))


def test_readers_import_neither_jax_nor_scikit_learn(tmp_path):
    shutil.copytree(ASSET, tmp_path / "run")
    shutil.copy(ASSET.parent / "run_format_1.csv", tmp_path / "t.csv")
    done = subprocess.run([sys.executable, "-c", READERS], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "is finished; there is nothing to go on with" in done.stderr


# ---- the command


class Quick(ClassifierMixin, BaseEstimator):
    """Stands in for the tuned estimator: it keeps a checkpoint, and is interrupted when it is told to be."""

    interrupts = 0
    given = None

    def __init__(self, penalty_per="", *, class_weight=None, scoring="", method="", steps=1, random_state=0):
        self.steps = steps

    def fit(self, X, y, *, groups=None, validation=None, blocks=None, callback=None, run=None):
        type(self).given = run
        files.make_directory(run.directory / "step_00000001")
        losses = {"tuning_loss": 0.5, "validation_loss": 0.5, "gradient_norm": 0.1}
        callback({"step": 0, "seconds": 0.5, "visits": 10, "code": "OK", **losses})
        if self.interrupts == 2:
            raise KeyboardInterrupt
        self.model_ = LogisticRegression(C=0.1 * self.steps, max_iter=500).fit(X, y)
        self.classes_, self.penalties_ = self.model_.classes_, np.ones(X.shape[1])
        self.coef_, self.intercept_ = self.model_.coef_, self.model_.intercept_
        self.method_, self.method_reason_, self.code_, self.visits_ = "deterministic", "asked for", Code.OK, 40
        self.validation_loss_, self.validation_gap_, self.validation_gap_se_ = 0.5, 0.01, 0.002
        self.n_iter_, self.interrupted_ = 1, self.interrupts == 1
        return self

    def predict(self, X):
        return self.model_.predict(X)

    def predict_proba(self, X):
        return self.model_.predict_proba(X)


@pytest.fixture(name="command")
def runner(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(linear, "TunedLogisticRegression", Quick)
    monkeypatch.setattr(study, "rivals", lambda *args: iter(()))
    monkeypatch.setattr(Quick, "interrupts", 0)
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "t.csv")

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    return run


def write_table(path, n=120):
    x = np.random.default_rng(0).normal(size=n)
    y = np.where(x + np.random.default_rng(1).logistic(size=n) > 0, "yes", "no")
    path.write_text("x,z,y\n" + "".join(f"{a:.4f},{i % 7},{b}\n" for i, (a, b) in enumerate(zip(x, y, strict=True))))


TUNE = ("tune", "t.csv", "--target", "y", "--out", "run", "--model", "linear")


def test_an_interrupted_run_is_resumed_by_the_command(command, monkeypatch, tmp_path):
    Quick.interrupts = 1
    code, out, _ = command(*TUNE, "--steps", "5", "--drop", "z")
    assert code == 130
    assert "go on   bilevax resume run" in out
    assert command("predict", "run", "t.csv")[0] == 0
    config = tomllib.loads(Path("run/config.toml").read_text())
    assert config["source"] == {"given": "t.csv", "path": str(tmp_path / "t.csv")}
    assert str(tmp_path) not in Path("run/report.html").read_text(encoding="utf-8")
    Quick.interrupts = 0
    code, out, err = command("resume", "run")
    assert (code, Quick.given.directory.name) == (0, "checkpoints")
    assert names(tmp_path / "run") == ALL
    again = tomllib.loads(Path("run/config.toml").read_text())
    assert again["resumed"] == {"times": 1, "override": [], "differing": [], "elsewhere": []}
    assert again["tune"] == config["tune"]
    code, out, err = command("resume", "run")
    assert (code, out, err) == (0, "", "bilevax: run is finished; there is nothing to go on with\n")


def test_a_second_interruption_stops_at_once_and_loses_nothing(command, tmp_path):
    assert command(*TUNE)[0] == 0
    before = read_model(tmp_path / "run").coef
    Quick.interrupts = 2
    code, out, err = command(*TUNE, "--force", "--steps", "7")
    assert (code, out) == (130, "")
    assert "bilevax: what was reached is kept: bilevax resume run\n" in err
    np.testing.assert_array_equal(read_model(tmp_path / "run").coef, before)
    code, _, err = command(*TUNE)
    assert code == 2
    assert "run holds a run that did not end; `bilevax resume run` goes on with it, --force begins anew" in err
    Quick.interrupts = 0
    assert command("resume", "run")[0] == 0
    assert tomllib.loads(Path("run/config.toml").read_text())["tune"]["steps"] == 7
    assert names(tmp_path) == ["run", "t.csv"]


def test_resume_names_what_differs_and_records_what_may(command, tmp_path):
    Quick.interrupts = 2
    assert command(*TUNE, "--steps", "5")[0] == 130
    begun = (tmp_path / "run" / manifest.NAME).read_bytes()
    code, out, err = command("resume", "run", "--set", "steps=9", "--set", "seed=3", "--set", "steps=6")
    assert (code, out) == (6, "")
    assert "run was begun with other values than are given now: seed: 0 -> 3; steps: 5 -> 6 (give the same" in err
    code, _, err = command("resume", "run", "--set", "steps=6", "--set", "seed=3", "--override", "steps")
    assert code == 6
    assert "given now: seed: 0 -> 3 (give the same ones, or --override seed " in err
    for words, said in (
        (["--set", "steps"], "--set takes NAME=VALUE, got 'steps'"),
        (["--override", "stps"], "--override names 'stps', which is none of model, task, "),
    ):
        code, _, err = command("resume", "run", *words)
        assert code == 2
        assert said in err
    assert command("resume", "run", "--set", "steps=x")[0] == 3
    (tmp_path / "t.csv").rename(tmp_path / "moved.csv")
    assert command("resume", "run")[0] == 2  # there is no such file
    with open(tmp_path / "moved.csv", "a") as file:
        file.write("0.1,3,yes\n")
    code, _, err = command("resume", "run", "--table", "moved.csv")
    assert code == 6
    assert "run was begun with other values than are given now: sha256: " in err
    assert (tmp_path / "run" / manifest.NAME).read_bytes() == begun  # all that was refused changed nothing
    Quick.interrupts = 1
    changes = ["--table", "moved.csv", "--override", "sha256", "--set", "steps=6", "--override", "steps"]
    assert command("resume", "run", *changes)[0] == 130
    assert "train" in Quick.given.override
    Quick.interrupts = 0
    assert command("resume", "run")[0] == 0  # what was allowed stays so
    assert "train" in Quick.given.override
    config = tomllib.loads(Path("run/config.toml").read_text())
    assert config["resumed"]["override"] == ["steps", "sha256"]
    assert config["resumed"]["times"] == 2
    assert config["resumed"]["differing"][0] == "steps: 5 -> 6"
    assert config["tune"]["steps"] == 6
    assert config["source"]["path"] == str(tmp_path / "moved.csv")


def test_another_version_or_machine_is_recorded(command, tmp_path):
    Quick.interrupts = 2
    assert command(*TUNE)[0] == 130
    content = read_run_files(tmp_path / "run").content
    content["config"]["versions"]["jax"], content["config"]["machine"]["cores"] = "0.0", 1000
    manifest.write(tmp_path / "run", KIND, FORMAT, {}, content)
    for _ in range(2):
        command("resume", "run")
    Quick.interrupts = 0
    assert command("resume", "run")[0] == 0
    config = tomllib.loads(Path("run/config.toml").read_text())
    now = config["versions"]["jax"], config["machine"]["cores"]
    assert config["resumed"]["elsewhere"] == [f"jax: 0.0 -> {now[0]}", f"cores: 1000 -> {now[1]}"]


@pytest.mark.parametrize("words", [("resume", "run"), (*TUNE, "--force")])
def test_checkpoints_of_minimize_are_not_the_commands(command, tmp_path, words):
    manifest.write_directory(tmp_path / "step", "checkpoint", 1, {}, {})
    files.make_directory(tmp_path / "run")
    files.rename(tmp_path / "step", tmp_path / "run" / "step_00000004")
    code, _, err = command(*words)
    assert code == 2
    assert ("call it again with the same arguments and run='run'" in err) == (words[0] == "resume")
    assert names(tmp_path / "run") == ["step_00000004"]
    killed(tmp_path / "api")
    assert command("resume", "api")[0] == 2
    assert command("resume", "nowhere")[::2] == (4, "bilevax: nowhere is not a run directory\n")
    assert command("resume", "t.csv")[0] == 7


# ---- the real thing

OFTEN = """
import os, signal, sys
from bilevax.cli.cache import keep_programs
keep_programs(True)
from bilevax.cli import main
from bilevax.runs import checkpoints
from bilevax.sklearn import tuning

calls = [words.split() for words in sys.argv[2:]]
made, save = checkpoints.Run.__post_init__, checkpoints.Checkpoints.save

def often(run):
    made(run)
    object.__setattr__(run, "seconds", 0.0)

def saved(self, step, *parts):
    save(self, step, *parts)
    if str(step) == sys.argv[1] and "killed" in str(self.directory):
        os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "the start is kept":
    tuning._single_penalty = None

checkpoints.Run.__post_init__, checkpoints.Checkpoints.save = often, saved
for words in calls:
    try:
        main(words)
    except SystemExit as e:
        assert not e.code
"""
"""Commands in one process, with a checkpoint after every step; in "killed" the process is killed at one of them."""


def without_seconds(directory):
    """The records of the tuning, and of the comparison what is no time."""
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


TUNED = "tune t.csv --target y --model linear --steps 6 --out"


def process(directory, *words):
    """With the programs that processes before it have compiled; a process that was started."""
    environment = os.environ | {"XDG_CACHE_HOME": str(directory / "cache")}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", OFTEN, *words], cwd=directory, env=environment, **pipes)


@pytest.mark.slow
def test_kill_9_and_resume_end_with_the_same_model(tmp_path):
    write_table(tmp_path / "t.csv", n=60)
    with process(tmp_path, "3", f"{TUNED} undisturbed", f"{TUNED} killed") as first:
        err = first.stderr.read()
    assert first.returncode == -9, err
    assert names(tmp_path / "killed" / "checkpoints") == ["run.lock", *(f"step_0000000{i}" for i in (1, 2, 3))]
    with process(tmp_path, "the start is kept", "resume killed") as second:
        err = second.stderr.read()
    assert second.returncode == 0, err
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    for name in ("model.safetensors", "coefficients.json"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
    assert without_seconds(killed) == without_seconds(undisturbed)
    assert names(killed) == names(undisturbed) == ALL


def test_the_stopping_rule_goes_on_as_it_was():
    def candidate(step):
        return Candidate(
            step, np.full(2, 0.1 * step), {"weights": np.ones((1, 2, 1)), "bias": np.zeros((1, 2))}, 0.5, 0.4
        )

    def stopping(callback=None):
        return tuning._EarlyStopping(None, candidate(0), planned, None, time.monotonic(), callback)

    planned = Method("deterministic", "soonest", 3, SID(FixedPoint(3, 0.5), FixedPoint(2, 0.5)))
    before, replayed = stopping(), []
    before.best, before.lam, before.clock = candidate(2), np.full(2, 0.7), time.monotonic() - 100.0
    before.history = [dict.fromkeys(tuning.RECORD, 0.5) | {"step": step} for step in range(4)]
    arrays = {}
    plain = json.loads(json.dumps(checkpoints.pack(before.state(), "", arrays)))
    kept, after = checkpoints.unpack(plain, arrays), stopping(replayed.append)
    after.resume(kept)
    assert jax.tree.all(jax.tree.map(np.array_equal, after.best, before.best))
    assert np.array_equal(after.lam, before.lam)
    assert replayed == after.history == before.history
    assert 100.0 <= time.monotonic() - after.clock < 200.0
    assert jax.tree.all(jax.tree.map(np.array_equal, Candidate.from_plain(kept["start"]), candidate(0)))
    assert Method.from_plain(kept["planned"]) == planned


def test_a_planned_method_is_kept_as_it_was():
    given = Method(
        "stochastic",
        "soonest",
        3,
        SID(FixedPoint(400, Harmonic(0.3, 7)), FixedPoint(200, 0.1 + 0.2), cross_batches=4),
        (64, None),
    )
    assert Method.from_plain(json.loads(json.dumps(given.to_plain()))) == given


@pytest.mark.slow
@pytest.mark.parametrize("near", [1e9, -1.0])  # minibatches, or full batches after all
def test_a_planned_run_goes_on_without_its_plan(tmp_path, monkeypatch, near):
    monkeypatch.setattr(tuning_method, "FULL_BATCH_LIMIT", 0.0)
    monkeypatch.setattr(tuning_method, "NEAR", near)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(900, 8))
    y = X @ rng.normal(size=8) + rng.logistic(size=900) > 0
    whole = TunedLogisticRegression(steps=6, random_state=0).fit(X, y)
    seen = []

    def die(record):
        seen.append(record)
        if record["step"] == 3:
            raise StorageError(28, "the log is full")

    run, model = Run(tmp_path / "run", seconds=0), TunedLogisticRegression(steps=6, random_state=0)
    with pytest.raises(StorageError):
        model.fit(X, y, callback=die, run=run)
    monkeypatch.setattr(tuning, "plan_method", None)
    monkeypatch.setattr(tuning, "_single_penalty", None)
    again = []
    model.fit(X, y, callback=again.append, run=run)
    assert np.array_equal(model.coef_, whole.coef_)
    assert np.array_equal(model.penalties_, whole.penalties_)
    assert (model.method_, model.method_reason_) == (whole.method_, whole.method_reason_)
    assert again[:3] == seen[:3]  # with their own seconds
    assert [record["step"] for record in again] == list(range(6))
    with pytest.raises(MismatchError, match="train"):
        TunedLogisticRegression(steps=6, random_state=1).fit(X, y, run=run)
    with pytest.raises(ParameterError, match="random_state must be an integer where a run is kept"):
        TunedLogisticRegression().fit(X, y, run=run)
