"""``bilevax check``: audit a problem that a module or a file names."""

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from bilevax.core.errors import BilevaxError, ParameterError, UsageError
from bilevax.core.events import Plain
from bilevax.core.text import clean

REQUIRED = ("problem", "w0", "lam", "train", "val")
_FOUND_ERRORS = 1


def run(name: str, html: Path | None, *, seed: int, force: bool) -> int:
    """Print the findings, and write them as a page where that is wanted; 1 where there is an error among them."""
    if html is not None and html.exists() and not force:
        raise UsageError(f"{html} exists; choose another file, or give --force to replace it")
    given = parts(load(name), name)
    import jax

    from bilevax.audit import check

    findings = check(**given, key=jax.random.key(seed))
    figures = {figure.name: figure.value for figure in findings.figures}
    _show(name, findings.records(), figures)
    if html is not None:
        from bilevax.report import write_findings

        print(clean(write_findings(html, name, findings.records(), figures)))
    return _FOUND_ERRORS if findings.worst == "error" else 0


def load(name: str) -> object:
    """What ``MODULE:NAME`` names; MODULE can be imported from here, or is the path of a file that ends in .py.

    Raises:
        UsageError: there is no such module, file or name.
        ParameterError: the module raises an exception.
    """
    place, colon, attribute = name.rpartition(":")
    if not (colon and place and attribute):
        raise UsageError(f"PROBLEM must be MODULE:NAME, such as my_problem.py:audit, got '{name}'")
    module = _module(place)
    if not hasattr(module, attribute):
        public = ", ".join(n for n in vars(module) if not n.startswith("_")) or "nothing"
        raise UsageError(f"{place} has no '{attribute}'; it has {public}")
    return getattr(module, attribute)


def _module(place: str) -> ModuleType:
    # As python -m does.
    sys.path.insert(0, str(Path.cwd()))
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place)
        if not path.is_file():
            raise UsageError(f"there is no file '{place}'")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise UsageError(f"'{place}' is no Python file")
        # A dataclass looks its module up by name while that is being run.
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except BilevaxError:
        raise
    except SystemExit as e:
        raise ParameterError(f"{place} ends the program when it is imported: sys.exit({e.code!r})") from e
    except ModuleNotFoundError as e:
        # Another module that is missing is a fault of the user's own imports.
        if e.name == place or place.startswith(f"{e.name}."):
            raise UsageError(f"there is no module '{e.name}' in this directory or on Python's path") from e
        raise ParameterError(f"{place} cannot be imported: {e}") from e
    except Exception as e:
        raise ParameterError(f"{place} cannot be imported: {type(e).__name__}: {e}") from e


def parts(thing: object, name: str) -> Plain:
    """The arguments of :func:`bilevax.check` in a mapping or a record, or in what a function without arguments returns.

    Raises:
        ParameterError: one of them is missing, or the function raises an exception.
    """
    if callable(thing):
        try:
            thing = thing()
        except SystemExit as e:
            raise ParameterError(f"{name} ends the program: sys.exit({e.code!r})") from e
        except Exception as e:
            raise ParameterError(f"{name} raises {type(e).__name__}: {e}") from e
    # A record is whatever has attributes of these names: a named tuple, a dataclass, a namespace.
    fields = thing if isinstance(thing, Mapping) else {n: getattr(thing, n) for n in dir(thing) if n[0] != "_"}
    missing = [n for n in REQUIRED if n not in fields]
    if missing:
        raise ParameterError(
            f"{name} must be a dictionary or a record of {', '.join(REQUIRED)} and perhaps estimator, or a function "
            f"that returns one; {', '.join(missing)} is missing"
        )
    return {n: fields[n] for n in (*REQUIRED, "estimator") if n in fields}


def _show(name: str, records: list[dict[str, str]], figures: dict[str, float]) -> None:
    """The findings as a table on standard output."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"error": "bold red", "warning": "yellow", "note": "cyan"}
    # A pipe has no width: findings are sentences, and want room.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if records:
        table = Table(box=None, padding=(0, 2, 1, 0), header_style="bold")
        for heading in ("severity", "code", "what was measured, and what to do"):
            table.add_column(heading)
        for record in records:
            severity, code, measured, advice = (clean(record[n]) for n in ("severity", "code", "measured", "advice"))
            table.add_row(Text(severity, colours[severity]), Text(code), Text(f"{measured}\n{advice}"))
        console.print(table)
    else:
        console.print(Text(f"{clean(name)}: nothing found"))
    for figure, value in figures.items():
        console.print(Text(f"{clean(figure)}: {value:.4g}"))
