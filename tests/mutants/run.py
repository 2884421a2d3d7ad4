"""Do the tests see wrong programs? Breaks a copy of the package in one place at a time and runs the tests for it.

    python tests/mutants/run.py [WORD ...]      only the mutants whose name contains one of the words

A mutant is killed if one of its tests fails by an assertion; a crash does not count. The tests must pass on the
unbroken copy first. Exit code 1 if a mutant survives, a patch does not apply, or a copy does not run.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
AT_ONCE = 2
VERDICTS = {10: "killed", 11: "SURVIVED", 12: "BROKEN"}


def copy(origin, to):
    """The package and its tests, without compiled files."""
    for name in ("src", "tests"):
        shutil.copytree(origin / name, to / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    shutil.copy(origin / "pyproject.toml", to)


def patch(root, mutant):
    """Replace the one occurrence of the old text; a sentence if there is none, or more than one."""
    path = root / mutant["file"]
    text = path.read_text()
    if text.count(mutant["old"]) != 1:
        return f"the text to replace occurs {text.count(mutant['old'])} times in {mutant['file']}: {mutant['old']}"
    path.write_text(text.replace(mutant["old"], mutant["new"]))
    return None


def drive(root, file, snippet, nodes):
    """The driver's exit code and its output, with the copy's package before any other."""
    environment = os.environ | {"PYTHONPATH": str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(HERE / "drive.py"), str(root), file, snippet, *nodes]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def judge(origin, mutant):
    """(verdict, seconds, output) of one mutant in a copy of its own."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        root = Path(folder).resolve()
        copy(origin, root)
        wrong = patch(root, mutant)
        if wrong:
            return "BROKEN", time.monotonic() - began, wrong
        code, output = drive(root, mutant["file"], mutant["new"], mutant["killed_by"])
    return VERDICTS.get(code, "BROKEN"), time.monotonic() - began, output


def unbroken(root, mutants):
    """Whether all the tests named pass on a copy without a patch, and what they said."""
    nodes = sorted({node for mutant in mutants for node in mutant["killed_by"]})
    code, output = drive(root, mutants[0]["file"], mutants[0]["old"], nodes)
    return VERDICTS.get(code) == "SURVIVED", output


def main(words):
    mutants = tomllib.loads((HERE / "mutants.toml").read_text())["mutant"]
    mutants = [m for m in mutants if not words or any(word in m["name"] for word in words)]
    if not mutants:
        print("no mutant has such a name")
        return 1
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        origin = Path(folder).resolve()
        copy(ROOT, origin)  # once: the tree may be edited meanwhile
        return report(origin, mutants)


def report(origin, mutants):
    """Print the table; the exit code."""
    began = time.monotonic()
    passed, output = unbroken(origin, mutants)
    if not passed:
        print(output)
        print("the tests do not pass on the unbroken package")
        return 1
    print(f"the tests pass on the unbroken package ({time.monotonic() - began:.0f} s)\n")
    width = max(len(m["name"]) for m in mutants)
    bad = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        verdicts = pool.map(partial(judge, origin), mutants)
        for mutant, (verdict, seconds, output) in zip(mutants, verdicts, strict=True):
            print(f"{mutant['name']:<{width}}  {verdict:<8}  {seconds:5.1f} s", flush=True)
            if verdict != "killed":
                bad.append((mutant, verdict, output))
    for mutant, verdict, output in bad:
        print(f"\n{verdict}: {mutant['name']}\n{output[-3000:]}")
    print(f"\n{len(mutants) - len(bad)} of {len(mutants)} killed in {time.monotonic() - began:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
