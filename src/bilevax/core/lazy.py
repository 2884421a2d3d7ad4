"""Packages whose public names are imported at their first use."""

import importlib
import sys
from collections.abc import Callable, Sequence


def attach(
    package: str, modules: Sequence[str], names: Sequence[str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: its ``__name__``.
        modules: where its names live, the quickest to import first.
        names: what of ``modules`` is public, themselves included.
    """

    def get(name: str) -> object:
        if name in names and name in modules:
            return importlib.import_module(f"{package}.{name}")
        for module in modules if name in names else ():
            home = importlib.import_module(f"{package}.{module}")
            if hasattr(home, name):
                # From now on an attribute of the package, found without a call of this.
                setattr(sys.modules[package], name, getattr(home, name))
                return getattr(home, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted(names)
