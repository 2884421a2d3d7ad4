"""The options of ``tune``: by the command line, a TOML file, or an earlier run; what is shown of the outcome."""

import json
import os
import signal
import tomllib

import numpy as np
import pytest

from bilevax.cli import main
from bilevax.cli.config_file import read_config
from bilevax.cli.tune import settings_of
from bilevax.core.errors import ParameterError, UsageError
from bilevax.core.record_lines import read_records
from bilevax.core.run_records import Compared, End, Note
from bilevax.sklearn import additive_choice
from bilevax.study import read_model
from bilevax.study.settings import TuneSettings


@pytest.fixture(name="table")
def small_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bilevax.sklearn.additive_choice.REPEATS", 1)
    rng = np.random.default_rng(0)
    x, plan = rng.normal(size=120), rng.choice(["basic", "family"], 120)
    y = 2.0 * x + (plan == "basic") + 0.3 * rng.normal(size=120)
    lines = [f"{a:.4f},{p},{b:.4f}" for a, p, b in zip(x, plan, y, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["x,plan,y", *lines]) + "\n")
    return tmp_path


@pytest.fixture(name="run")
def runner(capfd):
    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return ended.value.code, *capfd.readouterr()

    return run


def records_of(directory):
    return read_records((directory / "metrics.jsonl").read_bytes(), "metrics.jsonl")


def test_options_from_a_file_and_from_a_run(table, run):
    (table / "options.toml").write_text(
        'table = "t.csv"\ntarget = "y"\nout = "first"\n[tune]\nseed = 3\npairs = false\ntest_size = 0.25\n'
    )
    assert run("tune", "--config", "options.toml", "--quiet") == (0, "first/report.html\n", "")
    written = tomllib.loads((table / "first" / "config.toml").read_text())
    full = {name: written["tune"].get(name) for name in TuneSettings(seed=3, pairs=False, test_size=0.25).plain()}
    assert full == TuneSettings(seed=3, pairs=False, test_size=0.25).plain()
    assert records_of(table / "first").of(Compared)[0].loss < 0.5
    # the same once more, from what the run says of itself
    assert run("tune", "--config", "first/config.toml", "--out", "second", "--quiet")[0] == 0
    assert read_model(table / "second").to_plain() == read_model(table / "first").to_plain()
    # what is said on the command line goes before
    code, out, _ = run("tune", "--config", "first/config.toml", "--out", "third", "--seed", "4", "--json")
    assert code == 0
    outcome = json.loads(out)
    assert (outcome["directory"], outcome["report"]) == ("third", "third/report.html")
    kept, ridge, *_ = outcome["models"]
    assert [model["role"] for model in (kept, ridge)] == ["kept", "rival"]
    assert kept["loss"] == records_of(table / "third").of(Compared)[0].loss
    assert outcome["paired"][0]["difference"] == pytest.approx(kept["loss"] - ridge["loss"])
    assert not outcome["interrupted"]
    assert len(outcome["verdict"]) > 20
    assert tomllib.loads((table / "third" / "config.toml").read_text())["tune"]["seed"] == 4


def test_a_budget_of_time_keeps_what_there_is(table, run):
    code, _, err = run("tune", "t.csv", "--target", "y", "--out", "run", "--time", "0.000001s")
    assert code == 0
    assert "the time is used up before all candidates were compared" in err
    records = records_of(table / "run")
    assert [model.role for model in records.of(Compared)] == ["kept", "rival"]
    assert any("some other models are left out" in note.text for note in records.of(Note))
    assert not records.last(End).interrupted
    assert run("predict", "run", "t.csv")[0] == 0


@pytest.mark.parametrize(("text", "seconds"), [("90", 90.0), ("90s", 90.0), ("1.5m", 90.0), ("2h", 7200.0)])
def test_times(text, seconds):
    assert settings_of({"time": text}, None)[0].time == seconds


@pytest.mark.parametrize("text", ["soon", "5d", "", "s", "-3"])
def test_a_time_that_is_none(text):
    with pytest.raises(ParameterError, match="--time is a number of seconds above 0, or 90s, 5m, 1h, got"):
        settings_of({"time": text}, None)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"a = !!python/object", UsageError, "is not TOML"),
        (b"\xff\xfe", UsageError, "is not TOML"),
        (b"a = " + b"[" * 5000, UsageError, "is not TOML"),
        (b"#" * 1_000_001, UsageError, "options take less than 1,000,000"),
        (b"seed = 3", ParameterError, r"has 'seed', which is no setting there; put it under \[tune\]"),
        (b"sead = 3", ParameterError, "has 'sead', which is no setting there"),
        (b"tune = 3", ParameterError, "tune is 3; it is a table of settings"),
    ],
)
def test_a_file_of_options_that_is_none(tmp_path, content, error, said):
    path = tmp_path / "o.toml"
    path.write_bytes(content)
    with pytest.raises(error, match=said):
        read_config(path)


def test_lists_of_the_file_hold_unless_one_is_given(tmp_path):
    path = tmp_path / "o.toml"
    path.write_text('[tune]\ndrop = ["a", "b"]\ntypes = ["c=date"]\ntime = "5m"\n')
    none = {"drop": [], "types": (), "text": None, "time": None}
    assert settings_of(none, path)[0] == TuneSettings(drop=("a", "b"), types=("c=date",), time=300)
    assert settings_of(none | {"drop": ["d"]}, path)[0].drop == ("d",)


def test_a_leak_is_told_however_little_is_asked_for(table, run):
    lines = (table / "t.csv").read_text().splitlines()
    copies = [f"{line},{line.rsplit(',', 1)[1]}" for line in lines[1:]]
    (table / "leak.csv").write_text("\n".join([f"{lines[0]},copy", *copies]) + "\n")
    words = ("tune", "leak.csv", "--target", "y", "--time", "0.001", "--out")
    code, out, err = run(*words, "a", "--quiet")
    assert (code, out) == (0, "a/report.html\n")
    assert "note: column 'copy'" in err
    _, out, err = run(*words, "b", "--json")
    assert "note: column 'copy'" in err
    assert any(note["about"] == "leak" and "'copy'" in note["text"] for note in json.loads(out)["notes"])
    _, out, _ = run(*words, "c")
    assert "Do not believe this before you have looked at it: column 'copy'" in " ".join(out.split())


def test_what_only_the_other_model_has_is_not_taken_over(tmp_path):
    path = tmp_path / "o.toml"
    path.write_text('[tune]\nmodel = "linear"\nsteps = 7\nseed = 5\n')
    assert settings_of({}, path)[0] == TuneSettings(model="linear", steps=7, seed=5)
    assert settings_of({"model": "additive"}, path)[0] == TuneSettings(seed=5)
    path.write_text("[tune]\nsteps = 7\n")
    with pytest.raises(ParameterError, match="steps is a setting of model 'linear'"):
        settings_of({}, path)
    with pytest.raises(UsageError, match=r"cannot read none\.toml: no such file"):
        settings_of({}, tmp_path.relative_to(tmp_path) / "none.toml")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_known(table, run, monkeypatch, number, code):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it from birth
    held_out, calls = additive_choice.held_out, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return held_out(*args)

    monkeypatch.setattr(additive_choice, "held_out", interrupted)
    ended, out, err = run("tune", "t.csv", "--target", "y", "--out", "run")
    assert (ended, len(calls)) == (code, 3)
    assert "go on   bilevax resume run" in out
    assert "stopping: the model is finished by what is known so far; press again to give up everything" in err
    assert "interrupted before all candidates were compared: what the folds that were done say was kept" in err
    assert records_of(table / "run").last(End).interrupted
    monkeypatch.setattr(additive_choice, "held_out", held_out)
    assert run("resume", "run")[0] == 0
    assert run("tune", "t.csv", "--target", "y", "--out", "whole")[0] == 0
    assert read_model(table / "run").to_plain() == read_model(table / "whole").to_plain()
    assert not records_of(table / "run").last(End).interrupted
