"""The public names: written down where tools that run nothing see them, and imported at their first use."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import bilevax as bx

WHOLE = ("hypergradients", "algorithms", "planning", "audit", "problems", "runs")
"""Rooms all of whose names are public."""


def exported(room):
    """The names that a room exports: its ``__all__``, or all that it imports but for modules."""
    home = importlib.import_module(f"bilevax.{room}")
    names = [name for name, value in vars(home).items() if name[0] != "_" and not inspect.ismodule(value)]
    return set(getattr(home, "__all__", names))


@pytest.mark.parametrize("room", WHOLE)
def test_what_these_rooms_export_is_public(room):
    missing = exported(room) - set(bx.__all__)
    assert not missing, f"add to __all__ in bilevax/__init__.py: {sorted(missing)}"


def test_every_public_name_is_exported_by_a_room():
    core = ("core.codes", "core.errors", "core.instance", "core.records", "core.results")
    rooms = (*WHOLE, *core, "data", "solvers", "theory")
    found = {
        name: getattr(importlib.import_module(f"bilevax.{room}"), name) for room in rooms for name in exported(room)
    }
    for name in set(bx.__all__) - {"implicit"}:
        assert getattr(bx, name) is found[name]
    assert bx.implicit is importlib.import_module("bilevax.implicit")


def test_tools_that_run_nothing_see_them():
    tree = ast.parse(Path(bx.__file__).read_text(encoding="utf-8"))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    written = [node.value for node in assigned if ast.unparse(node.targets[0]) == "__all__"]
    assert [ast.literal_eval(value) for value in written] == [bx.__all__]
    assert len(set(bx.__all__)) == len(bx.__all__)
    assert dir(bx) == sorted(bx.__all__)
    with pytest.raises(AttributeError, match="module 'bilevax' has no attribute 'hypergradiant'"):
        bx.hypergradiant  # noqa: B018


def test_nothing_is_imported_before_its_first_use():
    code = "import sys, bilevax; assert 'jax' not in sys.modules; bilevax.Code.OK; "
    code += "assert 'bilevax.theory' not in sys.modules; from bilevax import *; minimize, SOBA, implicit.custom_root"
    subprocess.run([sys.executable, "-c", code], check=True)
