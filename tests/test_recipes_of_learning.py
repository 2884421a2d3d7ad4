"""The recipes of ``examples/`` on learning to learn, on what to keep or hide, and on rewards."""

import pytest
from recipe_rig import checked


def maml_on_sines(f):
    assert max(f["new_tasks_plug_in"], f["new_tasks_average"]) < f["new_tasks_plain_sgd"] - 0.02
    assert f["f_average"] < 0.8 * f["f_plug_in"]
    assert f["gradient_average"] < 0.7 * f["gradient_plug_in"]


def personal_models(f):
    assert f["nodes_better"] >= 8
    assert f["loss_personal"] < min(f["loss_shared"], f["loss_alone"]) - 0.05


def sparse_regression(f):
    assert f["difference_from_formula"] < 1e-10
    assert f["difference_from_differences"] < 1e-7
    assert f["largest_off_the_support"] == 0.0
    assert f["loss_tuned"] < min(f["loss_start"] - 0.1, f["loss_grid"] + 1e-4)


def meta_learning(f):
    assert f["accuracy_meta_learned"] > f["accuracy_untrained"] + 0.05


def influence_of_rows(f):
    assert f["correlation"] > 0.95
    assert f["wrong_among_most_harmful"] > 0.7


def choosing_operations(f):
    assert f["mean_rank_influence"] <= 5  # of 25
    assert f["loss_best"] < f["loss_median"] - 0.1


def passage_mask(f):
    assert f["validation_loss_learned"] < f["validation_loss_uniform"] - 0.1
    assert f["validation_loss_uniform"] < f["validation_loss_no_mask"] - 0.05
    assert f["weight_of_hiding_the_first"] > 0.5


def learned_reward(f):
    assert f["metric_reward_anticipating"] > 1.05 * f["metric_start"] + 0.1
    assert f["quality_reward_anticipating"] > f["quality_start"] + 0.1


def many_solutions(f):
    assert f["lam_unrolled_16"] == pytest.approx(0.5, abs=1e-3)
    assert 0.97 < f["lam_aggregated_16"] < 0.99
    assert f["lam_penalty"] == pytest.approx(1.0, abs=1e-4)


CHECKS = [
    maml_on_sines,
    personal_models,
    sparse_regression,
    meta_learning,
    influence_of_rows,
    choosing_operations,
    passage_mask,
    learned_reward,
    many_solutions,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_recipe_runs_and_its_figures_are_about_right(check):
    checked(check)
