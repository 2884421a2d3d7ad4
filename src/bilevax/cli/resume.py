"""``bilevax resume``: go on with a run that was killed or interrupted."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bilevax.cli.config_file import settings_of_run, table_of_run
from bilevax.cli.display import Display
from bilevax.cli.tune import carry_out, described, open_for, said_if_kept
from bilevax.core.errors import MismatchError, UsageError
from bilevax.core.events import Plain
from bilevax.core.text import clean

if TYPE_CHECKING:
    from bilevax.study.settings import TuneSettings

_TABLE = "sha256"
"""The name of what is compared of a table."""

_EVERYTHING = ("problem", "algorithm", "steps", "key", "w0", "lam", "train", "val", "functions")
"""What another table, or another setting than ``steps``, may change in the run of the driver."""


def run(
    path: Path,
    table: str | None,
    settings: Sequence[str],
    override: Sequence[str],
    *,
    quiet: bool = False,
    as_json: bool = False,
) -> int:
    """Go on with the run; the exit code is returned.

    Args:
        path: of the run.
        table: where its table is now; None: where it was.
        settings: given anew, as NAME=VALUE.
        override: names of those that may differ, and ``sha256``.
        quiet: whether only the place of the report is shown.
        as_json: whether the outcome is shown as JSON.
    """
    from bilevax.study.run_directory import RunDirectory

    with said_if_kept(RunDirectory(path, resume=True)) as directory:
        config: dict[str, Plain] = directory.config
        if directory.ended:
            print(f"bilevax: {clean(path)} is finished; there is nothing to go on with", file=sys.stderr)
            return 0
        if not {"data", "tune", "source"} <= config.keys():
            raise UsageError(f"{path} was not begun by `bilevax tune`, and does not say where its table is")
        given, differs = _settings(config, settings)
        source = table or str(table_of_run(config))
        with Display(given.steps, quiet=quiet, as_json=as_json) as display:
            display({"kind": "stage", "name": "reading the table"})
            opened = open_for(source, str(config["data"]["target"]), given, display)
            was, now = config["data"].get(_TABLE, ""), opened.table.sha256
            if was != now:
                differs[_TABLE] = f"{was[:8] or 'none'} -> {now[:8] or 'none'}"
            _refuse(path, differs, override, [*type(given).model_fields, _TABLE])
            before = config.get("resumed", {})
            allowed = list(dict.fromkeys([*before.get("override", []), *differs]))
            resumed = {
                "times": before.get("times", 0) + 1,
                "override": allowed,
                "differing": [*before.get("differing", []), *(f"{name}: {text}" for name, text in differs.items())],
            }
            more = {"source": described(source), "resumed": resumed}
            names = () if not allowed else ("steps",) if allowed == ["steps"] else _EVERYTHING
            return carry_out(directory, display, opened, given, more, override=names)


def _settings(config: dict[str, Plain], words: Sequence[str]) -> tuple["TuneSettings", dict[str, str]]:
    """The settings of the run, those given anew instead, and how these differ by name."""
    from bilevax.study.settings import TuneSettings, settings_from

    saved = settings_of_run(config)
    given: Plain = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"--set takes NAME=VALUE, got '{word}'")
        # a setting of several columns is given column by column
        given[name] = [*given.get(name, []), value] if isinstance(saved.get(name), list) else value or None
    before, now = settings_from(saved), settings_from({**saved, **given})
    pairs = {name: (getattr(before, name), getattr(now, name)) for name in TuneSettings.model_fields}
    return now, {name: f"{was} -> {is_now}" for name, (was, is_now) in pairs.items() if was != is_now}


def _refuse(path: Path, differs: dict[str, str], override: Sequence[str], known: Sequence[str]) -> None:
    for name in override:
        if name not in known:
            raise UsageError(f"--override names '{name}', which is none of {', '.join(known)}")
    refused = [name for name in differs if name not in override]
    if refused:
        told = "; ".join(f"{name}: {differs[name]}" for name in refused)
        raise MismatchError(
            f"{path} was begun with other values than are given now: {told} (give the same ones, or --override "
            f"{refused[0]} to go on all the same)"
        )
