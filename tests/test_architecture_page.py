"""The picture of the rooms in docs/architecture.md is that of the import contract."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def rooms(text):
    """Floors from the top, each a set of rooms."""
    return [frozenset(re.findall(r"\w+", floor)) for floor in text]


def test_the_picture_of_the_rooms_is_the_contract():
    page = (ROOT / "docs" / "architecture.md").read_text()
    picture = re.search(r"```\n(core <-.*?)```", page, re.DOTALL).group(1)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "rooms")
    assert rooms(reversed(picture.split("<-"))) == rooms(layers)


def test_every_room_has_a_row():
    page = (ROOT / "docs" / "architecture.md").read_text()
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "rooms")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == frozenset().union(*rooms(layers))
