"""The recipes of ``examples/``: each runs in quick mode, draws its picture, and its figures are about right.

``make gallery`` runs them in full; the figures of that are in their docstrings.
"""

import re
from pathlib import Path

import pytest
from recipe_rig import EXAMPLES, checked, loaded


def worth(figures, what):
    """Of each network."""
    return [figures[f"{name}_{what}"] for name in ("equinox", "flax")]


def reweight_networks(f):
    for equal, learned, again, auc, ess in zip(
        *(worth(f, x) for x in ("accuracy_equal_weights", "accuracy_learned", "accuracy_retrained", "auc_of_weights",
                                "effective_sample_size")),
        strict=True,
    ):  # fmt: skip
        assert min(learned, again) > equal + 0.03
        assert auc > 0.65
        assert 200 < ess < 350  # of 400 rows 240 are right


def equilibrium_model(f):
    assert f["difference_from_unrolled"] < 1e-6
    assert f["training_loss"] < 2.0
    assert f["test_accuracy"] > 0.3


def poisoning(f):
    assert f["fall_poisoned"] > 2 * max(f["fall_random"], 0.005)


def guided_sequence_model(f):
    assert f["loss_guided_from_1e-05"] < f["loss_held_at_1e-05"]
    assert f["loss_guided_from_0.0001"] < f["loss_held_at_0.0001"]


def decay_per_group(f):
    assert f["test_loss_tuned"] < f["test_loss_held"]
    assert all(f[f"decay_{name}"] > 1e-3 for name in ("first", "second", "last"))


def reweighting_challenge(f):
    assert f["joint_effective_sample_size"] < 0.6 * f["cold_effective_sample_size"]
    assert f["joint_accuracy"] - f["joint_accuracy_retrained"] > 0.05
    assert abs(f["cold_accuracy"] - f["cold_accuracy_retrained"]) < 0.03
    assert f["joint_retrain_gap"] > 0.1 > abs(f["cold_retrain_gap"])


CHECKS = [
    reweight_networks,
    equilibrium_model,
    poisoning,
    guided_sequence_model,
    decay_per_group,
    reweighting_challenge,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_recipe_runs_and_its_figures_are_about_right(check):
    checked(check)


def test_every_recipe_is_tested_and_written_as_the_gallery_reads_it():
    sources = {path.stem: path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")}
    recipes = {
        name: text for name, text in sources.items() if re.search(r"\ndef main\(quick=False(, seed=0)?\):", text)
    }
    tests = [loaded(path) for path in Path(__file__).parent.glob("test_recipes*.py")]
    assert set(recipes) == {check.__name__ for module in tests for check in module.CHECKS}
    for name, text in recipes.items():
        title, blank, *_ = text.removeprefix('"""').splitlines()
        assert title.endswith("."), name
        assert not blank, name
        assert "References: " in text, name
        assert "\n# %%\n" in text, name
        # neither a solver's loop nor a derivative of a hypergradient by hand
        assert not re.search(r"while_loop|fori_loop|jax\.(vjp|jvp|hessian|jacfwd|jacrev)|lineax", text), name
        assert "bilevax." not in text, name
