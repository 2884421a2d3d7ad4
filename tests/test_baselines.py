"""What the tuned model is compared with, and how."""

import math

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from bilevax.study.baselines import single_penalty_grid, untuned
from bilevax.study.evaluation import paired_interval


def test_a_paired_interval_is_students():
    a, b = np.array([1.0, 2.0, 4.0]), np.array([0.0, 2.0, 1.0])
    mean, low, high = paired_interval(a, b)
    half = 4.302653 * np.std(a - b, ddof=1) / math.sqrt(3)  # the 97.5 % point of t with two degrees of freedom
    assert (mean, low, high) == pytest.approx((4 / 3, 4 / 3 - half, 4 / 3 + half), rel=1e-6)


def test_the_baselines_say_what_they_found():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(200, 5)) * [1, 10, 100, 0.1, 1]
    y = np.where(X[:, 0] + rng.normal(size=200) > 0, "b", "a")
    validation = np.arange(200) % 4 == 0
    grid = single_penalty_grid(X, y, validation, points=5)
    assert grid.grid.tolist() == pytest.approx([1e-4, 1e-2, 1, 1e2, 1e4])
    assert grid.validation_loss == grid.grid_losses.min()
    assert grid.c == grid.grid[grid.grid_losses.argmin()]
    assert grid.converged
    assert grid.model.predict(X[:1])[0] in ("a", "b")
    np.testing.assert_array_equal(grid.model["scale"].mean_, StandardScaler().fit(X[~validation]).mean_)
    assert untuned(X, y, validation).c == 1.0
    assert not single_penalty_grid(X, y, validation, points=5, max_iter=1).converged  # noted, not printed
    balanced = untuned(X, y, validation, class_weight="balanced").model["logistic"]
    assert balanced.get_params()["class_weight"] == "balanced"
