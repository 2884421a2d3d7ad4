"""The recipes of ``examples/`` on learning to learn, choosing operations, and rewards; as in ``test_recipes.py``."""

import pytest
from recipe_rig import checked


def maml_on_sines(f):
    assert max(f["new_tasks_plug_in"], f["new_tasks_average"]) < f["new_tasks_plain_sgd"] - 0.02
    assert f["f_average"] < 0.8 * f["f_plug_in"]
    assert f["gradient_average"] < 0.7 * f["gradient_plug_in"]


CHECKS = [maml_on_sines]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_recipe_runs_and_its_figures_are_about_right(check):
    checked(check)
