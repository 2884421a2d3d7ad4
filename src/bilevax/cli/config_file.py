"""Options of ``tune`` in a TOML file: one that a user wrote, or the ``config.toml`` of a run."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from bilevax.core.errors import ParameterError, UsageError
from bilevax.core.events import Plain
from bilevax.core.text import clean
from bilevax.tables.table import suggestion

Options: TypeAlias = Mapping[str, Any]
"""Options of a command by name, as it was given them; None where not given."""

_LARGEST = 1_000_000
"""Bytes of a file."""

_ELSEWHERE = ("table", "target", "out")


def read_config(path: Path | str) -> tuple[Plain, Plain]:
    """Settings, and what else the file says of ``table``, ``target`` and ``out``.

    Raises:
        UsageError: there is no such file, or it is no TOML.
        ParameterError: it names what is no setting.
    """
    # older versions of typer hand paths over as they were written
    tables = _toml(Path(path))
    if "data" in tables and "versions" in tables:
        return _of_run(tables)
    settings = tables.pop("tune", {})
    if not isinstance(settings, dict):
        raise ParameterError(f"{clean(path)}: tune is {settings!r}; it is a table of settings, [tune]")
    unknown = [name for name in tables if name not in _ELSEWHERE]
    if unknown:
        from bilevax.study.settings import TuneSettings

        settings_there = unknown[0] in TuneSettings.model_fields
        hint = "put it under [tune]" if settings_there else suggestion(unknown[0], [*_ELSEWHERE, "tune"])
        raise ParameterError(f"{clean(path)} has '{clean(unknown[0])}', which is no setting there; {hint}")
    return settings, tables


def settings_of_run(tables: Mapping[str, Plain]) -> Plain:
    """The settings that a run was begun with; what splits its rows stands with its data."""
    data = tables["data"]
    return {**tables.get("tune", {}), **{name: data[name] for name in ("group", "time_column") if name in data}}


def table_of_run(tables: Mapping[str, Plain]) -> str | None:
    """Where its table was: the path of a file, or as it was given."""
    source = tables.get("source", {})
    return source.get("path") or source.get("given")


def _of_run(tables: Plain) -> tuple[Plain, Plain]:
    """What a run was begun with: its settings, its table, and its target."""
    return settings_of_run(tables), {"table": table_of_run(tables), "target": tables["data"].get("target")}


def _toml(path: Path) -> Plain:
    try:
        content = path.read_bytes()
        if len(content) > _LARGEST:
            raise UsageError(f"{clean(path)} has {len(content):,} bytes; options take less than {_LARGEST:,}")
        return tomllib.loads(content.decode())
    except OSError as e:
        raise UsageError(f"cannot read {clean(path)}: {(e.strerror or str(e)).lower()}") from None
    # A decoding error of either kind is a ValueError.
    except (ValueError, RecursionError) as e:
        raise UsageError(f"{clean(path)} is not TOML: {clean(e)}") from None
