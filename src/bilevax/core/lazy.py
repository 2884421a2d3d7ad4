"""Packages whose public names are imported at their first use."""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any


def attach(
    package: str, modules: Sequence[str], names: Sequence[str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: its ``__name__``.
        modules: where its names live, the quickest to import first.
        names: its ``__all__``.
    """

    def get(name: str) -> Any:
        if name in names:
            for module in modules:
                home = importlib.import_module(f"{package}.{module}")
                if hasattr(home, name):
                    setattr(sys.modules[package], name, getattr(home, name))
                    return getattr(home, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted(names)
