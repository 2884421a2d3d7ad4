"""More recipes of ``examples/``: uses of the family in control, traffic, imaging and the choice of data."""

import pytest
from recipe_rig import checked


def reward_design(f):
    assert f["hypergradient_at_last"] < 0.11 * f["hypergradient_at_first"]  # (1 - .008)^300 = .09
    assert f["standard_errors_off"] < 4 < 6 < f["standard_errors_of_the_truth"]


def road_tolls(f):
    assert abs(f["braess_above_0"] - 325.144176) < 1e-4  # by numpy alone
    # the grid of a hurry is a coarse one
    assert f["braess_below_4"] <= min(f["braess_on_the_grid"], f["braess_above_4"])
    assert f["braess_above_4"] < 1.001 * f["braess_on_the_grid"] < f["braess_above_0"] - 30


def learned_regulariser(f):
    assert f["maid_from_0.5_rises"] == f["maid_from_0.001_rises"] == 0
    assert f["maid_spread"] < 0.05
    assert f["maid_from_0.001_test"] > f["test_noisy"] + 3


def coreset(f):
    assert f["loss_of_the_pool"] < f["random_loss_of_the_pool"]
    assert f["accuracy"] > f["random_accuracy"] + f["random_accuracy_deviation"]


def implicit_bias(f):
    assert f["cold_joint"] > 0.85
    assert abs(f["cold_joint"] - f["cold_again"]) < 0.03
    assert f["warm_joint"] - f["warm_again"] > 0.2


def unfolded_microscopy(f):
    assert f["loss_learned"] < f["loss_by_hand"]
    assert abs(f["width_learned"] - 2.5) < 0.2


CHECKS = [reward_design, road_tolls, learned_regulariser, coreset, implicit_bias, unfolded_microscopy]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_recipe_runs_and_its_figures_are_about_right(check):
    checked(check)
