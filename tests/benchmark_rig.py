"""The benchmarks, which are no part of the package: their modules, from the tree that the tests are in."""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def module(name):
    """The module of this whole name."""
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT))
