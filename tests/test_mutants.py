"""The patches of `make mutants` apply; what they do to the tests is looked at there."""

import tomllib
from pathlib import Path

import pytest

import bilevax

ROOT = Path(__file__).parents[1]
SOURCES = Path(bilevax.__file__).parents[1]
MUTANTS = tomllib.loads((ROOT / "tests" / "mutants" / "mutants.toml").read_text())["mutant"]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m["name"])
def test_each_patch_has_one_place_and_its_test_is_there(mutant):
    assert (SOURCES / mutant["file"].removeprefix("src/")).read_text().count(mutant["old"]) == 1
    assert mutant["old"] != mutant["new"]
    for node in mutant["killed_by"]:
        file, _, name = node.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(), node


def test_no_two_mutants_share_a_name():
    assert len({m["name"] for m in MUTANTS}) == len(MUTANTS)
