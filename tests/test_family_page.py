"""docs/family.md and docs/survey.md: every row is there, and what they ask of recipes and of the registry exists."""

import json
import re
import sys

import pytest
from recipe_rig import EXAMPLES

DOCS = EXAMPLES.parent / "docs"
FAMILY = (DOCS / "family.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def family():
    sys.path.insert(0, str(DOCS / "_ext"))
    yield pytest.importorskip("family")
    sys.path.remove(str(DOCS / "_ext"))


def test_all_systems_have_their_row():
    numbers = re.findall(r"^\| ([\d, ]+) \|", FAMILY, re.MULTILINE)
    assert sorted(int(x) for cell in numbers for x in cell.split(",")) == list(range(1, 27))


def test_recipes_and_their_figures_are_there(family):
    named = family.RECIPE.findall(FAMILY)
    assert len(named) > 15
    for name, wanted in named:
        assert (EXAMPLES / f"{name}.py").exists(), name
        kept = DOCS / "figures" / f"{name}.json"
        if kept.exists() and wanted:
            assert set(wanted.split(", ")) <= set(json.loads(kept.read_text())["figures"]), name


def test_pages_are_filled(family):
    assert "{" not in re.sub(r"\{py:class\}", "", family.filled(FAMILY))
    survey = family.filled((DOCS / "survey.md").read_text(encoding="utf-8"))
    cards = re.findall(r"^   ([A-Z]\w+)$", (DOCS / "cards.rst").read_text(), re.MULTILINE)
    rows = dict(re.findall(r"^\| \{py:class\}`~bilevax\.(\w+)` \| (.*) \|$", survey, re.MULTILINE))
    assert list(rows) == cards
    for name, row in rows.items():
        assert re.search(r"\(\d{4}\)", row), name  # each has a source
