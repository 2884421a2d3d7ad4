"""The run directory: settings, metrics, the model, its coefficients in words anyone can read, the page, the manifest.

Whoever writes it holds its ``run.lock``. At every moment its manifest says what is there: a run that goes on, or a
finished one with the size and the SHA-256 of each file. See ``docs/formats.md``.
"""

import errno
import json
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from bilevax.core import files, manifest, toml
from bilevax.core.errors import DataError, StorageError, UsageError
from bilevax.core.events import Event
from bilevax.core.run_files import (
    CHECKPOINTS,
    COEFFICIENTS,
    CONFIG,
    FINISHED,
    FORMAT,
    KIND,
    METRICS,
    MODEL,
    PASS,
    REPORT,
    RUNNING,
    STEP,
    RunFiles,
    content_of,
    read_run_files,
    siblings,
    state_of,
)
from bilevax.study.kept import TableModel
from bilevax.study.model_file import model_bytes, model_from_bytes
from bilevax.study.run_parts import erase, holds_run, is_ours, occupied, remove_checkpoints, remove_run

if TYPE_CHECKING:
    from bilevax.study.study import Study

Tables = Mapping[str, Mapping[str, object]]
"""Of a TOML file."""


class RunDirectory:
    """A run directory that is being written, by this process alone; to be used in a ``with`` statement.

    A new or empty directory is written in place. An earlier run stays as it is until the new one is finished, beside
    it; then it is replaced by two renames, and removed at last. What a process that was killed left is put in order
    first.

    What has failed before there was anything worth keeping is removed.

    Args:
        path: the directory; it is made.
        force: replace the run that is there.
        resume: go on with the run that is there, which did not end or was interrupted.

    Attributes:
        path: as given.
        config: of the run that is resumed, the tables of its ``config.toml``.
        ended: True if the run to be resumed has nothing left to do.
        kept: True if it failed, and ``resume`` goes on from what it had reached.

    Raises:
        UsageError: the directory is not empty and ``force`` is not given, or it holds other things than a run.
        DataError: there is no run to be resumed.
        CheckpointError: another process writes it; or a file of the run to be resumed is damaged.
        StorageError: the system would not let it be written.
    """

    def __init__(self, path: Path, *, force: bool = False, resume: bool = False) -> None:
        self.path, self.config, self.ended, self.kept = path, dict[str, dict[str, object]](), False, False
        # a link to a directory stays one to it
        self._place = self._target = Path(os.path.realpath(path))
        self._force, self._resumes, self._begun, self._lines = force, resume, False, list[bytes]()
        self._target_lock: files.Lock | None = None
        self._continues = self._closed = False
        if resume:
            _check_there(path)
        files.require_place(path, directory=True)
        self._lock, self._made = _locked(self._place)
        try:
            self._put_in_order()
            if resume:
                self._open()
            else:
                self._check()
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    @property
    def checkpoints(self) -> Path:
        """Where the tuning keeps what it has reached."""
        return self._target / CHECKPOINTS

    def begin(self, config: Tables) -> None:
        """Say that a run goes on here, and with what settings; None values are left out."""
        self._begun = True
        self.config = {name: {k: v for k, v in t.items() if v is not None} for name, t in config.items()}
        content: dict[str, object] = {"state": RUNNING, "config": self.config}
        if not self._resumes:
            for left in self._left("new"):
                erase(left)
        in_place = not occupied(self._place) or (self._resumes and _is_unfinished(self._place))
        if self._target == self._place and not in_place:
            self._target = _beside(self._place, "new")
            files.make_directory(self._target)
            self._target_lock = files.Lock(self._target)
            # what an interrupted run reached becomes this one's
            self._continues = self._resumes
        files.remove_leftovers(self._target)
        if self._target != self._place:
            content |= {"replaces": self._place.name, "continues": self._continues}
        manifest.write(self._target, KIND, FORMAT, {}, content)
        if self._resumes:
            # its records are all made again
            files.remove(self._target / METRICS)
        self._take_checkpoints()

    def append(self, record: Event) -> None:
        """Append a record to the metrics."""
        if not self._begun:
            self.begin({})
        self._lines.append(files.append_line(self._target / METRICS, record))

    def finish(self, study: "Study", page: Callable[[RunFiles], str] | None = None) -> None:
        """Write everything else and put the run in its place.

        Args:
            study: what came out.
            page: writes the report, of these files.
        """
        model = model_bytes(study.model)
        coefficients = json.dumps(study.model.to_plain(), indent=1, allow_nan=False) + "\n"
        contents = {COEFFICIENTS: coefficients.encode(), MODEL: model}
        self.seal(study.config(), contents, page, interrupted=study.interrupted)

    def seal(
        self,
        config: Tables,
        contents: Mapping[str, bytes],
        page: Callable[[RunFiles], str] | None = None,
        *,
        tables: Mapping[str, Iterable[bytes]] = MappingProxyType({}),
        interrupted: bool = False,
    ) -> None:
        """Write settings, metrics and what else came out, and put the run in its place.

        Args:
            config: the settings, beside those that it was begun with.
            contents: files by name.
            page: writes the report, of these files.
            tables: files by name, in pieces, each written before the next is asked for.
            interrupted: whether the user ended it.
        """
        if not self._begun:
            self.begin({})
        names = [*config, *(name for name in self.config if name not in config)]
        config = {name: {**self.config.get(name, {}), **config.get(name, {})} for name in names}
        contents = {CONFIG: toml.encode(config).encode(), METRICS: b"".join(self._lines), **contents}
        content: dict[str, object] = {"state": FINISHED, "interrupted": interrupted}
        if page is not None:
            contents[REPORT] = page(RunFiles(self.path, content, contents, {})).encode()
        for name, data in contents.items():
            files.write(self._target / name, data)
        listed = {name: manifest.fingerprint(data) for name, data in contents.items()}
        listed |= {name: manifest.written_in_pieces(self._target / name, data) for name, data in tables.items()}
        if self._target != self._place:
            content["replaces"] = self._place.name
        # with this the run is finished: from here on only names change
        manifest.write(self._target, KIND, FORMAT, listed, content)
        if self._target_lock is not None:
            self._swap(self._target, self._target_lock)
        if not interrupted:
            remove_checkpoints(self._place)
        self._close()

    def discard(self) -> None:
        """Remove what a run that failed has written, unless it is worth keeping; nothing of one that is finished."""
        if self._closed:
            return
        state = state_of(self._target) if self._begun else None
        reached = any(STEP.fullmatch(name) or PASS.fullmatch(name) for name in files.names(self.checkpoints))
        self.kept = state == RUNNING and (reached or self._resumes)
        if self._begun and state != FINISHED and not self.kept:
            (remove_run if self._target == self._place else erase)(self._target)
        self._close()

    def _close(self) -> None:
        self._closed = True
        if self._target_lock is not None:
            # it is known by its lock, to whom puts it in order
            self._target_lock.release(remove=False)
        self._lock.release()
        for made in self._made:
            files.remove_empty(made)

    def _check(self) -> None:
        """Refuse what is not to be replaced."""
        path = self.path
        if not self._force and (_is_unfinished(self._place) or any(map(_is_unfinished, self._left("new")))):
            raise UsageError(
                f"{path} holds a run that did not end; `bilevax resume {path}` goes on with it, --force begins anew"
            )
        if not occupied(self._place):
            return
        if not self._force:
            raise UsageError(f"{path} is not empty; choose another directory, or give --force to replace the run in it")
        if not holds_run(self._place):
            raise UsageError(
                f"{path} holds other files and no run; --force replaces runs only, choose another directory"
            )
        if os.path.ismount(self._place):
            raise UsageError(f"{path} is a mount point, which cannot be replaced whole; choose a directory in it")
        files.require_place(self._place.parent, directory=True)

    def _open(self) -> None:
        """Find the run that is to go on, here or beside."""
        unfinished = next(filter(_is_unfinished, self._left("new")), None)
        if unfinished is not None:
            self._target, self._target_lock = unfinished, files.Lock(unfinished)
        found = read_run_files(self._target)
        self._continues = bool(found.content.get("continues"))
        if found.finished:
            self.config = tomllib.loads(found.files[CONFIG].decode())
            self.ended = not found.content["interrupted"]
        else:
            self.config = found.content["config"]

    def _left(self, what: str) -> list[Path]:
        """The siblings of processes that are dead."""
        return [path for path in siblings(self._place, what) if not files.is_locked(path)]

    def _put_in_order(self) -> None:
        """End what processes that were killed had begun."""
        for old in self._left("old"):
            self._retire(old)
        for new in self._left("new"):
            if state_of(new) == FINISHED:
                self._swap(new, files.Lock(new))
        content = content_of(self._place) or {}
        if content.get("state") == FINISHED and not content["interrupted"]:
            remove_checkpoints(self._place)
        if holds_run(self._place):
            files.remove_leftovers(self._place)

    def _swap(self, new: Path, lock: files.Lock) -> None:
        """Put a finished directory in its place; what was there is removed at last."""
        old = _beside(self._place, "old")
        # with the lock, by which the old one is known
        files.sync_directory(self._place)
        files.rename(self._place, old)
        # in between, readers find the new one by its name
        files.rename(new, self._place)
        files.sync_directory(self._place.parent)
        lock.moved(self._place)
        self._lock, before = lock, self._lock
        if new == self._target:
            self._target, self._target_lock = self._place, None
        try:
            self._retire(old)
        finally:
            before.release()

    def _retire(self, old: Path) -> None:
        """Remove a run that was replaced; what is not of a run is moved to where it was."""
        for name in files.names(old):
            if not is_ours(name) and not os.path.lexists(self._place / name):
                files.rename(old / name, self._place / name)
        files.sync_directory(self._place)
        erase(old)

    def _take_checkpoints(self) -> None:
        earlier = self._place / CHECKPOINTS
        if self._target != self._place and self._continues and earlier.is_dir() and not self.checkpoints.is_dir():
            files.rename(earlier, self.checkpoints)
            files.sync_directory(self._target)


def write_run(study: "Study", directory: Path) -> None:
    """Write a finished study into a directory that is empty or does not exist yet.

    Raises:
        UsageError: the directory is not empty.
        CheckpointError: another process writes it.
        StorageError: the system refused.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from bilevax.study import TuneSettings, load_bundled, tune_table, write_run
        >>> quick = TuneSettings(pairs=False, time=0.1)
        >>> study = tune_table(load_bundled("diabetes"), "progression", settings=quick)
        >>> directory = Path(tempfile.mkdtemp()) / "run"
        >>> write_run(study, directory)
        >>> (directory / "report.html").exists()
        False
    """
    with RunDirectory(directory) as run:
        for event in study.events:
            run.append(event)
        run.finish(study)


def read_model(directory: Path) -> TableModel:
    """The tuned model of a run directory, whose files are all checked.

    Raises:
        DataError: there is none.
        CheckpointError: a file is damaged, or a later release wrote it.
        StorageError: the system refused to read.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from bilevax.study import TuneSettings, load_bundled, read_model, tune_table, write_run
        >>> quick = TuneSettings(pairs=False, time=0.1)
        >>> study = tune_table(load_bundled("diabetes"), "progression", settings=quick)
        >>> directory = Path(tempfile.mkdtemp()) / "run"
        >>> write_run(study, directory)
        >>> type(read_model(directory)).__name__  # NumPy alone applies it
        'AdditiveModel'
    """
    if directory.is_file():
        raise DataError(f"{directory} is a file: the directory of the run comes first, then the table")
    try:
        found = read_run_files(directory)
    except DataError:
        if not directory.exists():
            raise DataError(f"there is no directory {directory}") from None
        raise DataError(f"{directory} has no {MODEL}: it is no run directory") from None
    if not found.finished:
        raise DataError(f"{directory} has no {MODEL}: the run did not end")
    if MODEL not in found.files:
        raise DataError(f"{directory} has no {MODEL}: `bilevax clean` wrote it, and `bilevax tune` makes models")
    return model_from_bytes(found.files[MODEL], found.path / MODEL)


def _locked(place: Path) -> tuple[files.Lock, list[Path]]:
    """The lock of the directory, and what had to be made for it, the innermost first."""
    while True:
        try:
            if not place.exists() and (lock := _put_back(place)):
                return lock, []
            missing = [path for path in (place, *place.parents) if not path.exists()]
            files.make_directory(place)
            return files.Lock(place), missing
        except StorageError as e:
            # who had made or moved it was quicker
            if e.errno != errno.ENOENT:
                raise


def _put_back(place: Path) -> files.Lock | None:
    """The lock of a finished directory that was beside, of a process that was killed between the renames of a swap."""
    for path in (*siblings(place, "new"), *siblings(place, "old")):
        if state_of(path) == FINISHED and not files.is_locked(path):
            lock = files.Lock(path)
            files.rename(path, place)
            files.sync_directory(place.parent)
            lock.moved(place)
            return lock
    return None


def _check_there(path: Path) -> None:
    """Refuse to resume where there is nothing, or what the command did not begin."""
    if not path.exists() and not any(siblings(Path(os.path.realpath(path)), "new")):
        raise DataError(f"{path} is not a run directory")
    if any(map(STEP.fullmatch, files.names(path))) and not holds_run(path):
        raise UsageError(
            f"{path} holds checkpoints of bilevax.minimize, or of a fit, whose functions and data no file has; call it "
            f"again with the same arguments and run={str(path)!r}, and it goes on"
        )


def _beside(place: Path, what: str) -> Path:
    """A free name for a directory in a swap."""
    path = place.with_name(f"{place.name}.{what}-{os.getpid()}")
    if os.path.lexists(path):
        raise StorageError(errno.EEXIST, f"cannot create {path}: it is there; rename or remove it")
    return path


def _is_unfinished(directory: Path) -> bool:
    return state_of(directory) == RUNNING
