"""Models on rows that no tuning saw: the loss of a row, and how sure a difference is."""

import math

import numpy as np
import pytest
from sklearn.metrics import mean_gamma_deviance, mean_poisson_deviance, roc_auc_score

from bilevax.study.judging import known, paired_interval, paired_scores, row_losses, score, scorer_for
from bilevax.study.target import Target
from bilevax.tables.labels import Labels


def test_a_paired_interval_is_students():
    a, b = np.array([1.0, 2.0, 4.0]), np.array([0.0, 2.0, 1.0])
    mean, low, high = paired_interval(a, b)
    half = 4.302653 * np.std(a - b, ddof=1) / math.sqrt(3)  # the 97.5 % point of t with two degrees of freedom
    assert (mean, low, high) == pytest.approx((4 / 3, 4 / 3 - half, 4 / 3 + half), rel=1e-6)


def test_the_loss_of_a_row():
    P = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
    eps = np.finfo(float).eps
    assert row_losses("classes", P, np.array([0, 0, 1])) == pytest.approx([math.log(2), math.log(4), -math.log(eps)])
    assert row_losses("number", np.array([1.0, 3.0]), np.array([2.0, 0.0])).tolist() == [1.0, 9.0]
    rng = np.random.default_rng(0)
    mean, counts, amounts = rng.gamma(2.0, size=50), rng.poisson(1.0, 50), rng.gamma(2.0, size=50)
    assert row_losses("count", mean, counts).mean() == pytest.approx(mean_poisson_deviance(counts, mean))
    assert row_losses("amount", mean, amounts).mean() == pytest.approx(mean_gamma_deviance(amounts, mean))
    assert np.isfinite(row_losses("count", np.zeros(2), np.array([0.0, 3.0]))).all()


def draw(n, seed):
    """Classes, and two scores of them as probabilities, the first better."""
    rng = np.random.default_rng(seed)
    y, x = rng.integers(0, 2, n), rng.normal(size=n)
    first = y + x + rng.normal(size=n)
    second = first + rng.normal(size=n)
    return y, *(np.stack([-s, s], axis=1) for s in (first, second))


@pytest.mark.slow
def test_an_interval_of_a_difference_of_scores_covers_what_it_should():
    """Of 40 draws of rows from one population, of which the difference of areas is known by a large draw."""
    y, a, b = draw(200_000, 1)
    truth = roc_auc_score(y, a[:, 1]) - roc_auc_score(y, b[:, 1])
    scorer = scorer_for("roc_auc", Target("y", "classes", y, Labels(("no", "yes"), y)))
    covered = 0
    for seed in range(40):
        y, a, b = draw(150, 100 + seed)
        found = paired_scores(scorer, a, b, y, seed)
        covered += found.low <= truth <= found.high
    assert covered >= 34


def test_a_difference_of_scores_is_that_of_all_rows_and_has_an_interval():
    y, a, b = draw(150, 100)
    scorer = scorer_for("roc_auc", Target("y", "classes", y, Labels(("no", "yes"), y)))
    found = paired_scores(scorer, a, b, y, 0)
    assert found.difference == pytest.approx(roc_auc_score(y, a[:, 1]) - roc_auc_score(y, b[:, 1]))
    # of two correlated areas (Hanley, McNeil 1983), each with a standard error of about .04 here
    assert 0.02 < (found.high - found.low) / (2 * 1.96) < 0.05
    assert found == paired_scores(scorer, a, b, y, 0)
    # of one class there is no area
    assert score(scorer, a, y, np.flatnonzero(y == 1)) is None


def test_a_score_that_is_the_loss_is_none():
    y = np.arange(30) % 2
    labels = Labels(("a", "b"), y)
    assert scorer_for("neg_log_loss", Target("y", "classes", y, labels)) is None
    assert scorer_for("neg_mean_squared_error", Target("y", "number", y * 1.0, None)) is None
    assert scorer_for("r2", Target("y", "number", y * 1.0, None)) is not None
    assert known(np.zeros((2, 3))).classes_.tolist() == [0, 1, 2]
