"""docs/faults.md: the tests that it names are there, and it knows every number that a test has in its name."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "faults.md").read_text()


def test_every_test_of_the_page_is_there():
    named = re.findall(r"`(test_\w+)::(test_\w+)`", PAGE)
    assert len(named) == len(re.findall(r"^\| .*`test_", PAGE, re.MULTILINE)) > 50
    for file, name in named:
        assert f"def {name}(" in (TESTS / f"{file}.py").read_text(), (file, name)


def test_every_number_in_the_name_of_a_test_is_on_the_page():
    names = re.findall(r"def test_((?:[abcef]\d+_)+)", "".join(path.read_text() for path in TESTS.glob("test_*.py")))
    numbers = {number.upper() for name in names for number in name.split("_") if number}
    assert len(numbers) > 40
    assert numbers <= set(re.findall(r"^\| ([A-F]\d+) ", PAGE, re.MULTILINE))
