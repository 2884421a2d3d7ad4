"""The questions of ``python -m benchmarks``: each is listed, says in a line what it asks, and runs with --quick."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmark_rig import ROOT, module
from sklearn.preprocessing import StandardScaler

PARTS = {"core": ["--only", "w1", "memory"]}  # all of it takes longer than two minutes
SHARED = {"additive_figures", "additive_list", "additive_rivals", "additive_times", "bare_jax", "bare_loops",
          "cases", "datasets", "distributed_ranks", "exact", "families", "fresh", "labels_cells", "labels_figures",
          "labels_real", "labels_rivals", "labels_times", "machine", "measures", "planner_rivals", "reported",
          "rival_torch", "rivals", "scaling_ranks", "single_penalty", "store", "tables", "text_data", "text_page",
          "verdict_figures", "verdict_runs"}  # fmt: skip


QUESTIONS = module("benchmarks").QUESTIONS


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_every_module_is_a_question_or_shared():
    found = {path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py")}
    found |= {path.parent.name for path in (ROOT / "benchmarks").glob("*/__init__.py")}
    assert found - SHARED == set(QUESTIONS)


def test_without_a_name_the_questions_are_listed_in_a_line_each():
    lines = run().stdout.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(QUESTIONS)
    assert all(len(line.split()) > 4 and line.endswith((".", "?")) and len(line) < 135 for line in lines)


def test_an_unknown_question_is_refused_in_a_sentence():
    done = run("speed")
    assert done.returncode
    assert done.stderr.startswith("there is no question 'speed'; there are core, ")


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_parses_its_options(name, capsys):
    asked, parser = module("benchmarks.__main__").question(name)
    assert callable(asked.main)
    assert parser.parse_args(["--quick", "--out", "here.json"]).out == Path("here.json")
    with pytest.raises(SystemExit, match="0"):
        parser.parse_args(["--help"])
    assert asked.__doc__.strip().splitlines()[0] in capsys.readouterr().out


def test_records_are_plain_json(tmp_path):
    store = module("benchmarks.store")
    record = {"x": np.float32(0.5), "y": [np.nan, np.arange(2)], "z": {(1, 2): ROOT / "docs", "b": True}}
    store.write(tmp_path / "a" / "x.json", record)
    assert store.read(tmp_path / "a" / "x.json") == {"x": 0.5, "y": [None, [0, 1]], "z": {"(1, 2)": "docs", "b": True}}
    assert store.read(tmp_path / "none.json") == {}


def test_a_table_has_a_line_a_row(capsys):
    tables = module("benchmarks.tables")
    tables.Table("what", "met", "value")("a", True, 1234567)
    assert capsys.readouterr().out == "\n| what | met | value |\n|---|---|---|\n| a | yes | 1,234,567 |\n"
    assert tables.text(("x",), [(1 / 3,), (None,), ([1, 2.5],)]).splitlines()[2:] == [
        "| 0.3333 |",
        "|  |",
        "| 1 / 2.5 |",
    ]


def kept():
    return {path: path.stat().st_mtime_ns for path in (ROOT / "benchmarks" / "results").rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_runs_with_quick_and_keeps_nothing(name):
    before = kept()
    done = run(name, "--quick", *PARTS.get(name, ()))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
    assert kept() == before


@pytest.mark.slow
def test_a_record_is_kept_where_out_says(tmp_path):
    assert run("structure", "--quick", "--out", str(tmp_path / "x.json")).returncode == 0
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["options"]["quick"] is True
    assert record["setting"]["cores"] == os.cpu_count()
    assert record["figures"]["files"] > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion", "newsgroups", "cleaning"])
def test_a_problem_on_real_data_learns_from_what_it_should(name):
    """One penalty per feature, or one weight per row: a few steps along the hypergradient help on validation rows."""
    import jax

    import bilevax as bx

    case = getattr(module("benchmarks.cases"), name)(rows=1000).by(None, None, None)
    sid = bx.SID(bx.LBFGS(1e-3, max_steps=200), bx.CG(1e-2, max_steps=100))
    bsgm = bx.BSGM(sid, bx.optim("adam", learning_rate=0.3))
    result = bx.minimize(case.problem, bsgm, *case[2:6], steps=10, key=jax.random.key(0))
    assert result.code == bx.Code.OK
    assert result.history.outer_value[-1] < 0.97 * result.history.outer_value[0]
    score = case.score(result.w, result.lam)
    assert score["accuracy"] > {"fashion": 0.7, "newsgroups": 0.3, "cleaning": 0.9}[name]
    assert score.get("auc", 1.0) > 0.85


def test_the_grid_says_what_it_found():
    grid_of = module("benchmarks.single_penalty").single_penalty_grid
    rng = np.random.default_rng(1)
    X = rng.normal(size=(200, 5)) * [1, 10, 100, 0.1, 1]
    y = np.where(X[:, 0] + rng.normal(size=200) > 0, "b", "a")
    validation = np.arange(200) % 4 == 0
    grid = grid_of(X, y, validation, points=5)
    assert grid.grid.tolist() == pytest.approx([1e-4, 1e-2, 1, 1e2, 1e4])
    assert grid.validation_loss == grid.grid_losses.min()
    assert grid.c == grid.grid[grid.grid_losses.argmin()]
    assert grid.converged
    assert grid.model.predict(X[:1])[0] in ("a", "b")
    np.testing.assert_array_equal(grid.model["scale"].mean_, StandardScaler().fit(X[~validation]).mean_)
    assert not grid_of(X, y, validation, points=5, max_iter=1).converged  # noted, not printed
    balanced = grid_of(X, y, validation, points=1, class_weight="balanced").model["logistic"]
    assert balanced.get_params()["class_weight"] == "balanced"
