"""The question ``labels``: how labels are flipped, and what its goals say of a record."""

import numpy as np
import pytest
from benchmark_rig import module

cells, figures = module("benchmarks.labels_cells"), module("benchmarks.labels_figures")


def drawn(n=4000):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    return 1.2 * np.eye(3)[y] * [1.0, 2.0, 3.0] + rng.normal(size=(n, 3)), y, rng


@pytest.mark.parametrize("kind", ["class", "uniform", "boundary", "region"])
def test_a_share_is_flipped(kind):
    X, y, rng = drawn()
    if kind in ("class", "uniform"):
        given = cells.flip(y, 3, kind, 0.2, rng)
    else:
        given = cells.flip_where(X, y, 3, kind, 0.2, rng)
    flipped = given != y
    assert flipped.mean() == pytest.approx(0.2, abs=0.02)
    to = np.unique((given - y)[flipped] % 3)
    assert list(to) == ([1] if kind == "class" else [1, 2])


def test_of_two_classes_one_alone_turns():
    y = np.arange(1000) % 2
    given = cells.flip(y, 2, "class", 0.4, np.random.default_rng(0))
    assert np.mean(given[y == 0] == 1) == pytest.approx(0.4, abs=0.06)
    assert np.all(given[y == 1] == 1)


def test_flips_are_where_they_are_said_to_be():
    X, y, rng = drawn()
    z = (X - X.mean(axis=0)) @ np.linalg.svd(X - X.mean(axis=0), full_matrices=False)[2][0]
    flipped = cells.flip_where(X, y, 3, "region", 0.2, rng) != y
    upper = z > np.median(z)
    assert sorted([flipped[upper].mean(), flipped[~upper].mean()]) == pytest.approx([0.0, 0.4], abs=0.04)
    # the logit of the true class by the drawn densities
    score = X @ np.diag([1.2, 2.4, 3.6]) - 0.5 * np.square([1.2, 2.4, 3.6])
    own = score[np.arange(len(y)), y]
    score[np.arange(len(y)), y] = -np.inf
    margin = own - score.max(axis=1)
    flipped = cells.flip_where(X, y, 3, "boundary", 0.2, rng) != y
    near, far = margin < np.quantile(margin, 0.25), margin > np.quantile(margin, 0.75)
    assert flipped[near].mean() == pytest.approx(0.35, abs=0.05)
    assert flipped[far].mean() == pytest.approx(0.05, abs=0.03)


def test_goals_are_of_the_worst_cell_and_of_seeds_that_both_have():
    good, bad = {"auc": 0.9, "ece": 0.01, "expected": 1.1}, {"auc": 0.8, "ece": 0.04, "expected": 0.9}
    runs = {
        "digits 200 class 20%": {"1": {"cleaner": good, "cleanlab": {"auc": 0.7}}, "2": {"cleaner": bad}},
        "digits 200 uniform 20%": {"1": {"cleaner": bad, "cleanlab": {"auc": 0.85}}},
    }
    by = {what.split(",")[0]: (figure, met) for what, figure, _, met in figures.goals(runs)}
    assert by["digits: auc over that of cleanlab"] == ("-0.0500; 1 of 2 cells below", False)
    assert by["digits: calibration error"] == ("0.0400", False)
    assert by["digits: expected over true number"] == ("0.1000", True)
    assert "| digits 200 class 20% | 2 | 0.8500 | 0.7000 |" in figures.page({"runs": runs})
