"""The board of docs/reliability.md: what goes wrong, and what its tests say of it.

    python tests/board.py              run the tests, print the board, its sum and how often it is -2
    python tests/board.py --quick      without slow tests and nightly rows
    python tests/board.py --markdown   write docs/reliability.md, and run nothing

It ends with 1 if a row is at -2, or if a test is missing. The rows are in `board.toml`.
"""

import argparse
import ast
import functools
import itertools
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
BEST = 2
SILENT = -2
SECTIONS = {
    "A": "Numbers in",
    "B": "Shapes, trees, sizes",
    "C": "Mathematics going wrong",
    "D": "Killing, disks, files",
    "E": "Two at once, signals, clocks",
    "F": "Doors: CSV, command, pages",
}


class Row(NamedTuple):
    """A row of the board; its tests are named ``file::function``."""

    number: str
    fault: str
    expected: str
    tests: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    points: int = BEST
    why: str = ""
    nightly: bool = False

    @property
    def ids(self):
        """All of its tests."""
        return [*self.silent, *self.tests]

    def score(self, outcomes):
        """Its points, 0 or -2; None if none of its tests was asked for. ``outcomes``: {test: whether it passed}."""
        if self.ids and not any(test in outcomes for test in self.ids):
            return None
        if not all(outcomes.get(test, True) for test in self.silent):
            return SILENT
        return self.points if all(outcomes.get(test, True) for test in self.ids) else 0


def rows():
    """The rows of the board."""
    read = tomllib.loads((TESTS / "board.toml").read_text(encoding="utf-8"))
    return [Row(number, **row) for number, row in read.items()]


@functools.cache
def functions(file):
    """The tests of a file, each with its line."""
    path = TESTS / f"{file}.py"
    found = ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.exists() else ()
    return {node.name: node.lineno for node in found if isinstance(node, ast.FunctionDef)}


def missing(board):
    """Tests that are named and not there."""
    named = sorted({test for row in board for test in row.ids})
    return [test for test in named if test.split("::")[1] not in functions(test.split("::")[0])]


def run(board, *, slow, processes):
    """{test: whether it passed}, in the default suite and, if ``slow``, the slow one; skipped whole is not passed."""
    # of one that is missing pytest would run none
    named = [test.split("::") for test in {test for row in board for test in row.ids} - set(missing(board))]
    named.sort(key=lambda test: (test[0], functions(test[0])[test[1]]))  # some share what the first of them compiled
    nodes = [f"tests/{file}.py::{name}" for file, name in named]
    cases = defaultdict(list)
    for marked in ["not slow", "slow"] if slow else ["not slow"]:
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "out.xml"
            command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", marked, f"--junitxml={out}"]
            command += ["-n", str(processes), *(["--dist", "worksteal"] if processes else []), *nodes]
            subprocess.run(command, cwd=TESTS.parent, check=False)
            for case in ElementTree.parse(out).iter("testcase"):
                test = f"{case.get('classname').rpartition('.')[2]}::{case.get('name').partition('[')[0]}"
                cases[test] += [
                    next((kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None), "")
                ]
    return {test: "" in kinds and not {*kinds} & {"failure", "error"} for test, kinds in cases.items()}


def summary(scores, board):
    """What the board comes to, in one line; rows that were not run are left out."""
    known = [score for score in scores if score is not None]
    most = BEST * len(known)
    bad = [row.number for row, score in zip(board, scores, strict=True) if score == SILENT]
    below = sum(score < BEST for score in known)
    of = f"{sum(known)} of {most} points, {len(known)} rows, {below} below {BEST}"
    return f"{of}, {len(bad)} at {SILENT}" + (f": {', '.join(bad)}" if bad else "")


def shown(board, scores, outcomes):
    """The board as text: number, score, fault, and where it is below 2 the reason."""
    for row, score in zip(board, scores, strict=True):
        failed = [test for test in row.ids if not outcomes.get(test, True)]
        reason = f"failed: {', '.join(failed)}" if failed else row.why
        yield f"{row.number:4}{'-' if score is None else score:>3}  {row.fault}" + (f" ({reason})" if reason else "")
        yield from (f"           {test}{' (silent)' if test in row.silent else ''}" for test in row.ids)


HEAD = """\
# Reliability

What bilevax promises, how it says that something is wrong, and the board that shows it: {number} faults, what is
expected of each, and the tests that show it. This page is written by `python tests/board.py --markdown`.

## Promises

1. **Never silently wrong.** Every result has a code. `OK` says that a .95 upper limit of the relative error is at most
   `tol`; how often that is right is measured on problems that had no part in any choice. A *bound* comes of constants
   that you give, or of closed forms; what is measured is an *estimate*.
2. **Refused early, in one sentence**: what is wrong, where, and what would be right.
3. **A run can be killed at any instant**, and goes on to the same bits: on one machine, with the same versions and the
   same number of threads. On a network file system a rename may not be atomic, and a sync may do nothing: the manifest
   of a run says of every byte whether it is the one that was written, there too.
4. **Nothing in a model, a table or a run directory is ever executed**, and every byte of a run that is read back is
   checked. Compiled programs are kept where you alone may write, and can be switched off (`--no-cache`).
5. **The key, the stream and the number of a minibatch determine its rows**, whatever was drawn before.
6. **The same bits on one machine with one number of threads.** With another number sums are split otherwise, and the
   last digits differ; `bilevax tune --deterministic` takes one thread.

Numbers below the smallest normal one of their type (1e-38 in float32) are taken for 0. float16 and bfloat16 are
accepted; sums and products of them are accumulated in float32, and an error report is in float32 at least.

## Result codes

By severity: the code of a whole is the largest of its parts. `Code(code).message` says what was seen, the likely causes
and what to try.

| code | | what was seen |
|---|---|---|
{codes}

## Exceptions and exit codes

| exception | exit code of the command | |
|---|---|---|
{errors}

0 is success; 1 a check that found errors, or a fault of bilevax itself; 130, 143 and 129 a run that SIGINT, SIGTERM or
SIGHUP ended, with what it reached; 141 that the reader of a pipe went away.

## The board

    make board

runs the tests and prints the rows with their scores, the sum, and how many rows are at -2; it ends with 1 if one is, or
if a test is missing (`python tests/board.py --quick` leaves out what is slow or large). A row has 2 points where what
is expected happens, clearly; 1 where it is less, and the last column says what is missing; 0 where one of its tests
fails, or where bilevax does not offer it; -2 where a test marked `!` fails, as then something is wrong or lost and
nobody is told. If all tests pass, the board stands at **{sum}**.
"""


def page(board):
    """docs/reliability.md."""
    from bilevax.core import errors
    from bilevax.core.codes import Code

    codes = (f"| `{code.name}` | {int(code)} | {code.message.split('. ')[0].rstrip('.')} |" for code in Code)
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.BilevaxError)]
    kinds.sort(key=lambda kind: kind.exit_code)
    said = (f"| `{kind.__name__}` | {kind.exit_code} | {kind.__doc__.splitlines()[0].rstrip('.')} |" for kind in kinds)
    whole = summary([row.points for row in board], board)
    yield HEAD.format(number=len(board), codes="\n".join(codes), errors="\n".join(said), sum=whole)
    for letter, group in itertools.groupby(board, key=lambda row: row.number[0]):
        yield f"### {letter}. {SECTIONS[letter]}\n"
        yield "| | fault | expected | points | shown by |\n|---|---|---|---|---|"
        for row in group:
            ids = [f"`{test}`{'!' if test in row.silent else ''}" for test in row.ids] or ["not offered"]
            cell = "<br>".join(ids) + (f"<br>{row.why}" if row.why else "")
            yield f"| {row.number} | {row.fault} | {row.expected} | {row.points} | {cell} |"
        yield ""


def write_page(board):
    """The page as it should stand."""
    return "\n".join(page(board)).rstrip() + "\n"


def main():
    """Score the board, or write its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without slow tests and nightly rows")
    parser.add_argument("--markdown", action="store_true", help="write docs/reliability.md, and run nothing")
    parser.add_argument("--processes", "-n", type=int, default=2, help="of pytest (default: 2)")
    parser.add_argument("--only", default="", help="rows whose number begins so, as A or D1")
    options = parser.parse_args()
    board = rows()
    if options.markdown:
        PAGE.write_text(write_page(board), encoding="utf-8")
        return 0
    absent = missing(board)
    asked = [row for row in board if row.number.startswith(options.only) and not (options.quick and row.nightly)]
    outcomes = run(asked, slow=not options.quick, processes=options.processes) | dict.fromkeys(absent, False)
    scores = [row.score(outcomes) for row in asked]
    print("\n".join(shown(asked, scores, outcomes)))
    print(*(f"missing: {test}" for test in absent), summary(scores, asked), sep="\n")
    return int(bool(absent) or SILENT in scores)


if __name__ == "__main__":
    sys.exit(main())
