"""More recipes of ``examples/``: uses of the family in control, traffic, imaging and the choice of data."""

import pytest
from recipe_rig import checked


def reward_design(f):
    assert f["hypergradient_at_last"] < 0.11 * f["hypergradient_at_first"]  # (1 - .008)^300 = .09
    assert f["standard_errors_off"] < 4


CHECKS = [reward_design]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_recipe_runs_and_its_figures_are_about_right(check):
    checked(check)
