"""docs/reliability.md and its board: the tests that it names are there, and the page says what the table does."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("board", Path(__file__).parent / "board.py")
board = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(board)
ROWS = board.rows()
NUMBERS = {"A": 15, "B": 18, "C": 22, "D": 18, "E": 14, "F": 12}


def test_every_row_is_there_once_with_tests_or_a_reason():
    wanted = [f"{letter}{i}" for letter, number in NUMBERS.items() for i in range(1, number + 1)]
    assert [row.number for row in ROWS] == wanted
    for row in ROWS:
        assert row.points in (0, 1, 2)
        assert bool(row.why) == (row.points < 2), row.number
        assert row.ids or row.points == 0, row.number
        assert len(set(row.ids)) == len(row.ids)


def test_every_test_that_the_board_names_is_there():
    assert board.missing(ROWS) == []
    assert board.missing([board.Row("A1", "", "", ["test_board::test_none"], ["test_none::test_x"])]) == [
        "test_board::test_none",
        "test_none::test_x",
    ]


def test_the_page_is_that_of_the_table():
    assert board.PAGE.read_text(encoding="utf-8") == board.write_page(ROWS), "python tests/board.py --markdown"


@pytest.mark.parametrize(
    ("outcomes", "score"),
    [
        ({"a": True, "b": True}, 1),
        ({"a": False, "b": True}, 0),
        ({"a": True, "b": False}, -2),
        ({"a": False, "b": False}, -2),
        ({"b": True}, 1),
        ({}, None),
    ],
)
def test_a_row_has_its_points_where_all_of_its_tests_pass(outcomes, score):
    assert board.Row("A1", "", "", ["a"], ["b"], 1, "why").score(outcomes) == score
    assert board.Row("B17", "", "", points=0, why="not offered").score(outcomes) == 0


def test_a_sum_says_what_is_at_minus_two():
    two = [board.Row("A1", "", "", ["a"]), board.Row("A2", "", "", ["b"]), board.Row("A3", "", "", ["c"])]
    assert board.summary([2, -2, None], two) == "0 of 4 points, 2 rows, 1 below 2, 1 at -2: A2"


def test_tests_are_run_and_each_of_their_cases_counts(tmp_path, monkeypatch):
    """One case fails, one function is skipped whole, one errs in its fixture; others pass, one with a case skipped."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('x', [1, 2])\ndef test_a(x):\n    assert x == 1\n"
        "def test_b():\n    pytest.skip('')\n"
        "def test_c(none):\n    pass\n"
        "@pytest.mark.parametrize('x', ['a::b', '[]'])\ndef test_d(x):\n    pass\n"
        "@pytest.mark.parametrize('x', [1, 2])\ndef test_e(x):\n    x == 1 or pytest.skip('')\n"
    )
    monkeypatch.setattr(board, "TESTS", tmp_path / "tests")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    row = board.Row("A1", "", "", [f"test_it::test_{x}" for x in "abcde"])
    outcomes = board.run([row], slow=False, processes=0)
    assert outcomes == {"test_it::test_a": False, "test_it::test_b": False, "test_it::test_c": False} | {
        "test_it::test_d": True,
        "test_it::test_e": True,
    }
