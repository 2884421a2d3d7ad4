"""The question ``additive``: the list of tables, what rivals are given, and the figures that are made of a record."""

import hashlib
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmark_rig import module

listed, rivals, figures, additive, machine = (
    module(f"benchmarks.{name}")
    for name in ("additive_list", "additive_rivals", "additive_figures", "additive", "machine")
)


def test_the_list_of_tables_is_as_it_was_agreed():
    assert len(listed.TABLES) == 20
    assert sum(table.small for table in listed.TABLES.values()) == 13
    assert {t.family for t in listed.TABLES.values()} == {"binary", "multinomial", "gaussian", "poisson", "gamma"}
    fixed = repr([(name, *t._replace(read=None)) for name, t in listed.TABLES.items()] + [listed.SPLITS])
    assert hashlib.sha256(fixed.encode()).hexdigest()[:16] == "e32cd40ebd5f306c"


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes"])
def test_a_table_is_split_by_its_seed(name):
    X, y, _ = listed.whole(name)
    parts = [listed.split(name, seed) for seed in listed.SPLITS]
    for part in parts:
        both = np.column_stack([np.vstack([part.X, part.X_test]), np.concatenate([part.y, part.y_test])])
        assert np.array_equal(np.sort(both, axis=0), np.sort(np.column_stack([X, y]), axis=0))
        assert len(part.y_test) == -(-len(y) // 4)
    again = listed.split(name, 0)
    assert np.array_equal(again.X_test, parts[0].X_test)
    assert not np.array_equal(parts[1].y_test, parts[0].y_test)


def test_groups_are_not_divided(monkeypatch):
    groups = np.repeat(np.arange(8), 5)
    rows = pd.DataFrame({"x": np.arange(40.0)})
    monkeypatch.setattr(listed, "whole", lambda name: (rows, np.tile([0, 1], 20), groups))
    part = listed.split("bio", 1)
    train = set(part.groups)
    assert len(train) == 6
    assert set(part.X_test["x"] // 5) == set(range(8)) - train


def mixed():
    X = pd.DataFrame({"a": [1.0, np.nan, 3.0, 8.0] * 10, "b": np.array(["u", "v", np.nan, "u"] * 10, object)})
    X_test = pd.DataFrame({"a": [np.nan, 5.0], "b": np.array(["w", "v"], object)})
    return listed.Split("binary", X, np.repeat([0, 1, 1, 0], 10), None, X_test, np.array([0, 1]))


def test_linear_models_get_standardised_numbers_and_plain_categories():
    s = mixed()
    X = rivals.encoder(s.X).fit(s.X).transform(s.X_test)
    a = s.X["a"].fillna(3.0)
    first, second = ((x - a.mean()) / a.std(ddof=0) for x in (3.0, 5.0))
    assert np.allclose(X, [[first, 1, 0, 0, 0], [second, 0, 0, 1, 0]])


def test_gaps_are_filled_and_marked_for_mgcv():
    s = mixed()
    _, test = rivals.filled(s.X, [s.X, s.X_test])
    assert test.to_dict("list") == {
        "x0": [3.0, 5.0], "x0_missing": ["missing", "there"], "x1": ["level w", "level v"],
    }  # fmt: skip


def test_losses_are_those_of_their_families():
    y, mean = np.array([1.0, 2.0, 4.0]), np.array([2.0, 2.0, 2.0])
    s = mixed()._replace(y=y, y_test=y)
    poisson, gamma = 2 * (y * np.log(y / mean) - y + mean), 2 * (y / mean - 1 - np.log(y / mean))
    assert rivals.loss(s._replace(family="poisson"), mean) == pytest.approx(poisson.mean())
    assert rivals.loss(s._replace(family="gamma"), mean) == pytest.approx(gamma.mean())
    assert rivals.loss(s._replace(family="gaussian"), mean) == pytest.approx(np.mean((y - 2) ** 2) / y.var())
    p = np.array([[0.25, 0.5, 0.25], [0.0, 1.0, 0.0]])
    classes = s._replace(family="multinomial", y_test=np.array([2, 1]))
    assert rivals.loss(classes, p) == pytest.approx(np.log(4) / 2)


@pytest.mark.filterwarnings("ignore")  # as in a run: ends of a grid do not converge
@pytest.mark.parametrize("method", ["linear", "lasso", "boosting"])
@pytest.mark.parametrize(
    "family", ["binary", *(pytest.param(f, marks=pytest.mark.slow) for f in ("gaussian", "poisson", "gamma"))]
)
def test_scikit_learns_rivals_predict(method, family, monkeypatch):
    monkeypatch.setattr(rivals, "GRID", 3)
    s = mixed()._replace(family=family)
    if family != "binary":
        s = s._replace(y=s.y + 1.0, y_test=s.y_test + 1.0)
    out = rivals.METHODS[method](s)
    if method == "lasso" and family in ("poisson", "gamma"):
        assert out is None
    else:
        assert rivals.loss(s, out.prediction) < 5
        assert 0 < out.cpu < 60


def record():
    def runs(*losses, cpu=1.0, **about):
        return {str(seed): {"loss": loss, "cpu": cpu, **about} for seed, loss in enumerate(losses)}

    late = {"0": {"failed": "time"}, "1": {"failed": "time"}}
    return {
        "german": {
            "linear": runs(0.5, 0.5), "ebm": runs(0.4, 0.5, cpu=9.0), "ebm_pairs": late,
            "additive": runs(0.5, 0.5, cpu=2.0, rows=750, weights=100),
            "chosen": runs(0.505, 0.525, cpu=8.0), "pairs": runs(0.5, 0.5),
        },
        "adult": {
            "linear": runs(0.25), "ebm": runs(0.2, cpu=100.0), "ebm_pairs": runs(0.2),
            "additive": runs(0.2, cpu=21.0, rows=36_631, weights=400),
            "chosen": runs(0.2, cpu=90.0), "pairs": runs(0.203),
        },
        "saheart": {"linear": runs(0.1), "chosen": runs(0.104)},
    }  # fmt: skip


def test_goals_are_counted_from_the_record():
    goals = {what: (figure, met) for what, figure, _, met in figures.goals(record())}
    assert goals == {
        "german: loss over the ridge grid's": ("+3.0%, +0.0150", False),
        "adult: loss over the ridge grid's": ("-20.0%, -0.0500", True),
        "saheart: loss over the ridge grid's": ("+4.0%, +0.0040", True),
        "loss over the ridge grid's, mean of 3 tables": ("-4.33%", True),
        # sqrt(sqrt(.505 .525 / (.4 .5)) 1)
        "loss over EBM's, geometric mean of 2 tables": (f"{(0.505 * 0.525 / 0.2) ** 0.25:.4f}", False),
        "pairs: part of 1 tables within 1.02 of EBM": ("1.00", True),
        "additive: CPU over EBM's, 2 tables in total": ("23 s / 109 s = 0.211", True),
        "additive, chosen: CPU over EBM's, 2 tables in total": ("98 s / 109 s = 0.899", True),
        "adult: CPU over EBM's": ("21 / 100", False),
    }


def test_only_splits_of_both_are_compared():
    runs = record()
    del runs["german"]["ebm"]["0"]
    assert figures.ratios(runs, "chosen", "ebm")["german"] == pytest.approx(0.525 / 0.5)
    assert figures.excess(runs, "chosen", "ebm_pairs").keys() == {"adult"}


def test_the_page_says_what_was_not_measured():
    lines = figures.page(record()).splitlines()
    german = next(line for line in lines if line.startswith("| german ("))
    assert german == "| german (binary, 1,000 x 20, seen) | 0.5000 | 0.4500 | > 30 min | 0.5000 | 0.5150 | 0.5000 |"


def test_a_run_is_kept_and_not_made_again(monkeypatch, tmp_path, capsys):
    asked = []

    def once(name, method, seed, quick):
        asked.append((name, method, seed))
        return {"missing": "x"} if method == "bam" else {"loss": 0.1, "cpu": 1.0}

    monkeypatch.setattr(additive, "once", once)
    monkeypatch.setattr(machine, "pin", lambda core, quick: None)
    _, parser = module("benchmarks.__main__").question("additive")
    words = ["--only", "cpu", "--methods", "linear", "bam", "--out", str(tmp_path / "x.json")]
    for more in ([], [], ["--show", "--again"]):
        additive.main(parser.parse_args([*words, *more]))
    assert [run for run in asked if run[1] == "linear"] == [("cpu", "linear", seed) for seed in listed.SPLITS]
    assert len(asked) == 5  # what is missing is asked once a command
    assert "| cpu (gamma, 209 x 7) | 0.1000 |" in capsys.readouterr().out


def test_a_process_that_takes_too_long_is_ended():
    with pytest.raises(TimeoutError, match="more than 1 CPU"):
        machine.fresh("test_benchmark_additive:burn", cpu_seconds=1, PYTHONPATH=str(Path(__file__).parent))


def burn():
    end = time.process_time() + 10
    while time.process_time() < end:
        pass
