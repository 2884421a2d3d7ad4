"""In a process of its own, which it may end, crash and print from: a user's problem, loaded and audited.

Standard output is the line to the parent: a JSON record for each stage that begins, and one at the end, of what was
found or of what was wrong. What the user's code prints goes to standard error.
"""

import importlib
import importlib.util
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import NoReturn, TextIO

from bilevax.core.errors import BilevaxError, ParameterError, UsageError, UserCodeError
from bilevax.core.events import Plain
from bilevax.core.text import clean

REQUIRED = ("problem", "w0", "lam", "train", "val")


def main() -> NoReturn:
    """Audit what the last argument of the process orders: its ``name``, ``seed``, and whether to ``debug``."""
    order = json.loads(sys.argv.pop())
    line = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.showwarning = lambda message, category, *_: print(
        f"bilevax: {clean(f'{category.__name__}: {message}')}", file=sys.stderr
    )
    code = 0
    try:
        _tell(line, **_audited(order["name"], order["seed"], line))
    except KeyboardInterrupt:
        code = 130
    except BaseException as e:
        if order["debug"]:
            traceback.print_exc()
        _tell(line, error=type(e).__name__, text=_text(e))
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # the user may have closed it
            stream.flush()
    # at once: threads and exit handlers of the user's may not want to end
    os._exit(code)


def _audited(name: str, seed: int, line: TextIO) -> Plain:
    _tell(line, stage="while it is imported")
    thing = load(name)
    _tell(line, stage="while its parts are fetched")
    given = parts(thing, name)
    import jax

    from bilevax.audit import check

    _tell(line, stage="while it is audited")
    try:
        found = check(**given, key=jax.random.key(seed))
    except Exception:
        raise  # of the user's code they are findings
    except BaseException as e:
        raise UserCodeError(f"a function of {name} raises {_named(e)}") from e
    figures = {figure.name: figure.value for figure in found.figures}
    return {"findings": found.records(), "figures": figures, "worst": found.worst}


def _tell(line: TextIO, **record: object) -> None:
    line.write(json.dumps(record) + "\n")
    line.flush()


def load(name: str) -> object:
    """What ``MODULE:NAME`` names; MODULE can be imported from here, or is the path of a file that ends in .py.

    Raises:
        UsageError: there is no such module, file or name.
        UserCodeError: the module raises an exception, or would end the process.
    """
    place, colon, attribute = name.rpartition(":")
    if not (colon and place and attribute):
        raise UsageError(f"PROBLEM must be MODULE:NAME, such as my_problem.py:audit, got '{name}'")
    module = _module(place)
    with _users_own(name):
        if not hasattr(module, attribute):
            public = ", ".join(n for n in vars(module) if not n.startswith("_")) or "nothing"
            raise UsageError(f"{place} has no '{attribute}'; it has {public}")
        return getattr(module, attribute)


def _module(place: str) -> ModuleType:
    # As python -m does.
    sys.path.insert(0, str(Path.cwd()))
    path = Path(place)
    if place.endswith(".py") and not path.is_file():
        raise UsageError(f"there is no file '{place}'")
    with _users_own(f"{place}, when it is imported,"):
        if not place.endswith(".py"):
            try:
                return importlib.import_module(place)
            except ModuleNotFoundError as e:
                # Another module that is missing is a fault of the user's own imports.
                if e.name == place or place.startswith(f"{e.name}."):
                    raise UsageError(f"there is no module '{e.name}' in this directory or on Python's path") from e
                raise
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise UsageError(f"'{place}' is no Python file")
        # A dataclass looks its module up by name while that is being run.
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def parts(thing: object, name: str) -> Plain:
    """The arguments of :func:`bilevax.check` in a mapping or a record, or in what a function without arguments returns.

    Raises:
        ParameterError: one of them is missing.
        UserCodeError: the function raises an exception, or would end the process.
    """
    with _users_own(name):
        thing = thing() if callable(thing) else thing
        # A record is whatever has attributes of these names: a named tuple, a dataclass, a namespace.
        known = thing if isinstance(thing, Mapping) else dir(thing)
        names = [n for n in (*REQUIRED, "estimator") if n in known]
        fields = {n: thing[n] if isinstance(thing, Mapping) else getattr(thing, n) for n in names}
    missing = [n for n in REQUIRED if n not in fields]
    if missing:
        raise ParameterError(
            f"{name} must be a dictionary or a record of {', '.join(REQUIRED)} and perhaps estimator, or a function "
            f"that returns one; {', '.join(missing)} is missing"
        )
    return fields


@contextmanager
def _users_own(what: str) -> Iterator[None]:
    """Whatever comes out of the user's code, as one sentence."""
    try:
        yield
    except (BilevaxError, KeyboardInterrupt):
        raise
    except SystemExit as e:
        raise UserCodeError(f"{what} ends the program: sys.exit({e.code!r})") from e
    except BaseException as e:
        raise UserCodeError(f"{what} raises {_named(e)}") from e


def _named(e: BaseException) -> str:
    return f"{type(e).__name__}: {_text(e)}".removesuffix(": ")


def _text(e: BaseException) -> str:
    try:
        return str(e)
    except BaseException:  # that, too, may be the user's
        return ""
