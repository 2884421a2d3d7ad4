"""Comparisons: equal budgets, judged by exact hypergradients; and ``bilevax bench``."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import bilevax as bx
from bilevax.cli import main
from bilevax.core.errors import ParameterError
from bilevax.report import write_courses
from bilevax.testing import compare as comparison
from bilevax.testing.compare import LOOKS, Pace, Point, Watch, compare, named_task
from bilevax.testing.descent import Descent
from bilevax.testing.entrants import ENTRANTS, GRID, Steps
from bilevax.testing.problems import problem
from bilevax.testing.tasks import exact, iterated, outer_curvature

TINY = "quadratic-10-b32"


@pytest.fixture(name="task", scope="module")
def tiny():
    return named_task(TINY)


@pytest.fixture(name="record", scope="module")
def compared(task):
    return compare([task], ["SOBA", "Descent"], seeds=3, budget=60_000, points=4)


def progress(samples, code=0, step=1):
    history = SimpleNamespace(samples=np.array([samples]), code=np.array([code]))
    return SimpleNamespace(step=step, steps=100, w=samples, lam=samples, history=history)


def test_a_run_is_judged_where_it_was_within_each_budget():
    watch = Watch("samples", np.array([10.0, 20.0, 40.0]), Point(0, 0))
    assert [watch(progress(x)) for x in (10, 15, 21, 41)] == [False, False, False, True]
    assert [p.lam for p in watch.kept] == [10, 15, 21]


def test_a_run_that_fails_keeps_what_it_had_and_no_more():
    watch = Watch("samples", np.array([10.0, 20.0, 40.0]), Point(0, 0))
    watch(progress(12))
    assert watch(progress(15, code=int(bx.Code.NOT_CONTRACTIVE)))
    assert ([p.lam for p in watch.kept], watch.failed) == ([0], True)


def test_a_pace_passes_the_budget_in_so_many_looks():
    pace = Pace.of(64_000.0, 10.0)
    assert pace.every == 6400 // LOOKS
    assert pace.steps * 10 > 64_000 + pace.every * 10


def test_the_measures_are_those_of_the_closed_form(task, record):
    (found,) = record["problems"]
    p = problem(TINY)
    start = np.sum(p.solution().hypergradient ** 2)
    assert found["start"]["gradient"] == pytest.approx(start, rel=1e-6)
    # f is a quadratic: from three exact gradients along each axis its minimum is known
    g0, m = p.solve(np.zeros(5)), len(p.lam)
    H = np.stack([p.solve(np.eye(m)[i]).hypergradient - g0.hypergradient for i in range(m)])
    least = p.solve(np.linalg.solve(H, -g0.hypergradient)).value
    assert found["least"] == pytest.approx(least, rel=1e-6)
    largest = np.linalg.eigvalsh((H + H.T) / 2)[-1]
    assert abs(task.K - largest) < 0.01 * largest


def test_each_run_spends_its_budget_and_gets_nearer(record):
    soba, descent = record["problems"][0]["algorithms"]
    assert soba["quartiles"]["samples"]["gradient"][1][-1] < 0.1
    for entry in (soba, descent):
        low, middle, high = np.array(entry["quartiles"]["samples"]["gap"])
        assert (low <= middle).all()
        assert (middle <= high).all()
        assert (low >= 0).all()
        assert all(run["samples"] >= 60_000 for run in entry["spent"])
    # every row of train in each gradient: no seed changes it, but for the metric of conjugate gradients
    spread = [np.ptp([run["samples"]["gradient"][-1] for run in entry["runs"]]) for entry in (soba, descent)]
    assert spread[1] < 1e-6 < spread[0]


def test_the_two_ways_to_the_truth_agree():
    p = problem("ridge")
    direct, found = exact(p)(p.w0, p.lam), iterated(p.problem, p.w0, p.lam, p.train, p.val)
    np.testing.assert_allclose(found.hypergradient, direct.hypergradient, atol=1e-8)
    np.testing.assert_allclose(found.value, direct.value, rtol=1e-8)
    # the start that is given plays no part
    np.testing.assert_allclose(exact(p)(p.w0 + 1.0, p.lam).hypergradient, direct.hypergradient, atol=1e-10)


def test_the_curvature_of_a_quadratic_is_found():
    H = np.diag([3.0, 1.0])

    def at(w, lam):
        return SimpleNamespace(hypergradient=H @ lam + 1.0)

    assert outer_curvature(at, 0.0, np.zeros(2), products=12) == pytest.approx(3.0, rel=1e-6)


def test_steps_are_in_units_of_the_curvatures():
    steps = Steps(0.5, 0.1, L=4.0, K=2.0)
    assert (steps.rho, steps.rho * steps.ratio) == (0.125, pytest.approx(0.05))
    assert len(set(GRID)) == 24


def test_the_best_of_a_grid_is_taken(task):
    # the first leaves lam where it is, the last loses it
    grid = [(1e-6, 1e-6), (0.3, 0.03), (0.3, 1e6)]
    made = {"SOBA": ENTRANTS["SOBA"]}
    record = compare([task], ["SOBA"], seeds=1, budget=20_000, points=2, grid=grid, entrants=made)
    assert record["problems"][0]["algorithms"][0]["grid"] == {"inner": 0.3, "outer": 0.03}


def test_a_setting_that_fails_with_another_key_is_not_chosen(task, monkeypatch):
    def run(task, algorithm, seed, kind, budgets, pace):
        watch = Watch(kind, budgets, Point(task.w0, task.lam))
        watch.failed = algorithm.ratio > 0.2 and seed == comparison.CHOOSING + 2
        return watch

    monkeypatch.setattr(comparison, "_run", run)
    monkeypatch.setattr(comparison, "_paces", lambda *args: ({"samples": Pace(1, 1)}, None))
    unit = task.L / task.K
    grid = [(1.0, 0.3 / unit), (1.0, 0.1 / unit)]
    assert comparison._chosen(task, ENTRANTS["SOBA"], np.ones(1), grid).outer == 0.1 / unit


def test_a_run_that_ends_above_its_start_has_failed(task):
    """By an algorithm that says nothing of it; in one measure alone it need not be worse."""
    size, value = comparison._judged(task, Point(task.w0, task.lam))
    ends = [(4 * size, value + 1.0), (4 * size, value - 1e-3), (0.5 * size, value + 1.0)]
    entry = {"runs": [{"samples": [end]} for end in ends], "failed": [False] * 3}
    assert comparison._problem(task, [entry], 1)["algorithms"][0]["failed"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"tasks": "one"}, "compare takes lists"),
        ({"grid": True}, "compare takes lists"),
        ({"budget": 10}, r"of quadratic-10-b32 are \d+ rows, budget is 10"),
        ({"truth": lambda w, lam: (0.0, np.zeros(2))}, r"has a hypergradient of shape \(2,\), and lam has \(5,\)"),
    ],
)
def test_what_is_no_comparison_is_refused_at_once(task, words, said):
    task = task._replace(truth=words.pop("truth", task.truth))
    words = {"tasks": [task], "algorithms": ["SOBA"]} | words
    with pytest.raises(ParameterError, match=said):
        compare(**words | ({"tasks": task} if words["tasks"] == "one" else {}))


def test_a_curvature_is_looked_for_where_there_is_a_solution():
    """Entries of very different size: a step in proportion to lam is too long for the small ones."""

    def at(w, lam):
        if abs(lam[1]) > 10:
            raise ParameterError("no fixed point")
        return SimpleNamespace(hypergradient=np.diag([0.0, 2.0]) @ lam + [0.0, 1.0])

    assert outer_curvature(at, 0.0, np.array([1e6, 0.0])) == pytest.approx(2.0, rel=1e-6)


def test_a_lost_run_has_no_figures(task):
    lost = {"SOBA": lambda steps: bx.SOBA(100.0, 1.0)}
    (entry,) = compare([task], ["SOBA"], seeds=1, budget=20_000, points=3, entrants=lost)["problems"][0]["algorithms"]
    assert entry["failed"] == 1
    assert entry["quartiles"]["samples"]["gradient"][1][-1] is None
    json.dumps(entry, allow_nan=False)


@pytest.mark.slow
def test_the_page_compares_a_problem_of_ones_own(capsys):
    page = (Path(__file__).parent.parent / "docs" / "comparison.md").read_text(encoding="utf-8")
    known = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], known)
    left = dict(line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert float(left["SOBA"]) < 1e-3
    assert 0.01 < float(left["slow SOBA"]) < 0.9
    words = {"seeds": 1, "budget": 1000, "points": 2, "grid": [(0.5, 0.1)]}
    (entry,) = compare([known["task"]], ["SOBA"], **words)["problems"][0]["algorithms"]
    assert "step_size must lie in" in entry["refused"]


def test_what_cannot_run_is_said(task):
    class Refusing:
        def check(self, problem):
            raise ParameterError("not here")

        steps_per_record = 1
        streams = init = step = solution = outer_step_size = step_cost = None

    record = compare([task], ["it"], seeds=1, budget=1000, entrants={"it": lambda steps: Refusing()})
    assert record["problems"][0]["algorithms"][0]["refused"] == "not here"
    with pytest.raises(ParameterError, match="there is no algorithm 'SOAB' to compare; there are SOBA"):
        compare([task], ["SOAB"])


def test_an_algorithm_that_lacks_a_member_is_refused_before_its_first_step(task):
    class Half(Descent):
        def __getattribute__(self, name):
            if name in ("outer_step_size", "solution"):
                raise AttributeError(name)
            return super().__getattribute__(name)

        def step(self, *_):
            raise AssertionError("computed")

    with pytest.raises(ParameterError, match="Half lacks solution and outer_step_size; an algorithm has all of steps"):
        bx.minimize(task.problem, Half(), *task[2:6], steps=4, key=jax.random.key(0))


def test_descent_takes_no_step_up(task):
    p = task.problem
    result = bx.minimize(p, Descent(), *task[2:6], steps=40, key=jax.random.key(0))
    values = result.history.outer_value
    assert (values[1:] <= values[:-1] * (1 + 1e-4)).all()
    assert values[-1] == pytest.approx(task.least, abs=1e-4)
    # its own gradient norm is the exact one, and it reads every row for each
    size = np.linalg.norm(task.truth(result.w, result.lam).hypergradient)
    assert result.history.gradient_norm[-1] == pytest.approx(size, abs=1e-4)
    assert result.cost.samples > 40 * 512


def test_the_picture_is_one_document(record, tmp_path):
    path = write_courses(tmp_path / "picture.svg", [record])
    text = path.read_text()
    assert text.startswith("<?xml")
    assert re.findall(r">(SOBA|Descent|quadratic-10-b32)<", text)
    assert write_courses(tmp_path / "again.svg", [record]).read_bytes() == path.read_bytes()


@pytest.fixture(name="run")
def runner(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main(["bench", *map(str, words)])
        return ended.value.code, *capfd.readouterr()

    return run


def test_the_command_compares_prints_and_writes(run, tmp_path):
    words = TINY, "--algorithms", "SOBA,Descent", "--seeds", 1, "--budget", 30_000, "--out", "here"
    code, out, _ = run(*words)
    assert code == 0
    assert {"SOBA", "Descent"} <= set(re.findall(r"^\w+", out, re.MULTILINE))
    assert json.loads((tmp_path / "here" / "comparison.json").read_text())["problems"][0]["name"] == TINY
    assert (tmp_path / "here" / "samples.svg").exists()
    code, _, err = run(*words)
    assert (code, "here has a comparison" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a problem"),
        (["rigde"], "there is no problem 'rigde'; did you mean 'ridge'"),
        (["mine.py:problem"], "one of your own is compared in Python"),
        (["ridge", "--algorithms", "SOAB"], "there is no algorithm 'SOAB'; did you mean 'SOBA'"),
    ],
)
def test_a_wrong_word_is_one_line(run, words, said):
    code, _, err = run(*words)
    assert (code, said in err, err.count("\n")) == (2, True, 1)


def test_the_list_names_problems_and_algorithms(run):
    code, out, err = run("--list")
    assert (code, err) == (0, "")
    assert {"ridge", "digits", "one-row", "SOBA", "Descent"} <= set(out.split())
