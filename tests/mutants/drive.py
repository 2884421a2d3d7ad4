"""Runs pytest in a mutated copy, and says whether a test failed by an assertion.

Called by ``run.py`` as ``drive.py ROOT FILE SNIPPET NODE...``: refuses to begin unless the package that is imported is
that of ROOT and its FILE holds the SNIPPET.
"""

import importlib
import sys
from pathlib import Path

import pytest

KILLED, SURVIVED, BROKEN = 10, 11, 12


class Watch:
    """A plugin that counts tests which failed by an assertion, and those that went wrong otherwise."""

    def __init__(self):
        self.failed, self.wrong, self.passed = [], [], []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
            asserted = call.excinfo.errisinstance((AssertionError, pytest.fail.Exception))
            (self.failed if asserted and call.when == "call" else self.wrong).append(item.nodeid)
        elif call.when == "call":
            self.passed.append(item.nodeid)
        return report


def main(root, file, snippet, *nodes):
    path = Path(root) / file
    module = ".".join(path.relative_to(Path(root) / "src").with_suffix("").parts)
    imported = Path(importlib.import_module(module).__file__).resolve()
    if imported != path.resolve() or snippet not in imported.read_text():
        print(f"{module} was imported from {imported}, which is not the patched copy")
        return BROKEN
    watch = Watch()
    # slow ones, too
    exit_code = pytest.main([*nodes, "-m", "", "-p", "no:cacheprovider", "--tb=short"], plugins=[watch])
    if watch.failed:
        return KILLED
    if exit_code != 0 or watch.wrong or not watch.passed:
        return BROKEN
    return SURVIVED


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
