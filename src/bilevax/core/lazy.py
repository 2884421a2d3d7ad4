"""Packages whose public names are imported at their first use."""

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence


def attach(
    package: str, modules: Sequence[str], names: Sequence[str], whole: Sequence[str] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: its ``__name__``.
        modules: where its names live, the quickest to import first.
        names: what of ``modules`` is public, themselves included.
        whole: modules all of whose public names are the package's, without being listed.
    """

    def get(name: str) -> object:
        # The names of whole modules are not known before these are imported, so that __all__ is made when asked for.
        if name == "__all__" and whole:
            return every_name()
        if name in names and name in modules:
            return importlib.import_module(f"{package}.{name}")
        for module in modules if name in names else () if name.startswith("_") else whole:
            home = importlib.import_module(f"{package}.{module}")
            if hasattr(home, name):
                # From now on an attribute of the package, found without a call of this.
                setattr(sys.modules[package], name, getattr(home, name))
                return getattr(home, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def every_name() -> list[str]:
        homes = [importlib.import_module(f"{package}.{module}") for module in whole]
        more = [name for home in homes for name, value in vars(home).items() if not inspect.ismodule(value)]
        return sorted({*names, *(name for name in more if not name.startswith("_"))})

    return get, every_name
