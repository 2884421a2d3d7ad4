"""A disk on which every file-system call of the package is counted, recorded, and made to fail in turn.

:class:`Disk` stands in for the module ``os`` (and ``fcntl``). What it has recorded tells what is found after the
process was killed, or the power cut, before any of the calls: see :meth:`Disk.found`.
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from bilevax.core import files, manifest
from bilevax.core.errors import BilevaxError, StorageError

CHANGING = ("open", "write", "fsync", "close", "replace", "rename", "mkdir", "unlink", "rmdir", "ftruncate", "flock")
CALLS = (*CHANGING, "listdir", "fstat", "lstat", "stat", "pread")
"""All file-system calls, by which names they are counted."""

FILLING = ("write", "mkdir")
"""Which a full disk refuses, beside an ``open`` that creates and an ``fsync`` of a file."""

FAULTS = ("error", "full", "short", "before", "after")
"""At one call: an OSError once, or at all from then on that need room; half a write; Ctrl-C before it or after it."""


class Disk:
    """Stands in for ``os``: the calls go through, but for the one that fails, and for fsync, which takes long.

    Args:
        root: a directory; what is in it now counts as on the disk.
        fault: one of :data:`FAULTS`, or None.
        at: the number of the call that fails, from 0.
    """

    def __init__(self, root, fault=None, at=-1):
        self.root, self.fault, self.at, self.calls, self.effects = root, fault, at, [], []
        self.fcntl = SimpleNamespace(**vars(fcntl))
        self.fcntl.flock = partial(self._call, "flock", fcntl.flock)
        # by number: a file's bytes, or {name in a folder: number}
        self._nodes, self._open = [], {}
        self._add(tree(root))
        self._start = [_copy(node) for node in self._nodes]

    def __getattr__(self, name):
        real = getattr(os, name)
        return partial(self._call, name, real) if name in CALLS else real

    @contextlib.contextmanager
    def mounted(self):
        """The package works on it."""
        try:
            files.os, files.fcntl, manifest.os = self, self.fcntl, self
            yield self
        finally:
            files.os, files.fcntl, manifest.os = os, fcntl, os

    def _call(self, name, real, *args, **options):
        number = len(self.calls)
        self.calls.append(name)
        self.effects.append(None)
        fault = self.fault if number == self.at else None
        fills = name in FILLING or (name == "open" and args[1] & os.O_CREAT)
        fills = fills or (name == "fsync" and isinstance(self._nodes[self._open[args[0]]], bytes))
        if fault == "before":
            raise KeyboardInterrupt
        if fault == "error" and name == "close":
            real(*args)  # it closes even where it fails
            self._open.pop(args[0], None)
        if fault == "error" or (self.fault == "full" and number >= self.at >= 0 and fills):
            code = errno.ENOSPC if name in CHANGING else errno.EIO
            raise OSError(code, os.strerror(code))
        if fault == "short" and name == "write":
            args = (args[0], args[1][: len(args[1]) // 2])
        made = name == "open" and not options and args[1] & os.O_CREAT and not os.path.lexists(args[0])
        try:
            result = None if name == "fsync" else real(*args, **options)
            self._record(name, args, options, result, made)
            return result
        finally:
            if fault == "after":
                raise KeyboardInterrupt

    def _record(self, name, args, options, result, made):
        effect = None
        if name == "open" and not options:
            folder, last = self._place(args[0])
            if made:
                effect = self._name((folder, last, self._new(b"")))
            self._open[result] = self._nodes[folder][last] if last else folder
        elif name == "close":
            self._open.pop(args[0], None)
        elif name == "fsync":
            effect = ("fsync", self._open[args[0]])
        elif name in ("write", "ftruncate"):
            node = self._open[args[0]]
            before = self._nodes[node]
            self._nodes[node] = before + bytes(args[1][:result]) if name == "write" else before[: args[1]]
            effect = ("content", node, self._nodes[node])
        elif name == "mkdir":
            effect = self._name((*self._place(args[0]), self._new({})))
        elif name in ("unlink", "rmdir"):
            effect = self._name((*self._place(args[0]), None))
        elif name in ("rename", "replace"):
            (a, old), (b, new) = map(self._place, args)
            effect = self._name((a, old, None), (b, new, self._nodes[a][old]))
        self.effects[-1] = effect

    def _new(self, content):
        self._nodes.append(content)
        return len(self._nodes) - 1

    def _add(self, content):
        """A file or a directory with all that is in it."""
        if isinstance(content, bytes):
            return self._new(content)
        number = self._new({})
        self._nodes[number] |= {name: self._add(value) for name, value in content.items()}
        return number

    def _place(self, path):
        """The number of its folder, and its name there."""
        *above, last = os.path.relpath(path, self.root).split(os.sep)
        folder = 0
        for name in above:
            folder = self._nodes[folder][name]
        return folder, "" if last == "." else last

    def _name(self, *changes):
        _apply(self._nodes, changes)
        return ("name", changes)

    def tree(self):
        """What there is now, as it was recorded: to be compared with the disk."""
        return _grow(self._nodes)

    def found(self, number):
        """{what happened before the call of that number: the tree that is found afterwards}, no two the same.

        After a kill all is there. After a power cut no bytes are there that were not fsynced (or all), and of the names
        that were not synced since they changed: each prefix, as a journal keeps them; those of one folder only; none.
        """
        start = self._start + [type(node)() for node in self._nodes[len(self._start) :]]
        names, durable, written, synced = [], [], dict(enumerate(start)), dict(enumerate(start))
        for kind, what, *content in filter(None, self.effects[:number]):
            if kind == "name":
                names.append(what)
                durable.append(False)
            elif kind == "content":
                written[what] = content[0]
            else:
                synced[what] = written[what]
                durable = [d or what in _folders(n) for d, n in zip(durable, names, strict=True)]
        both = list(zip(durable, names, strict=True))
        journal = max((i + 1 for i, d in enumerate(durable) if d), default=0)
        open_folders = {folder for d, n in both if not d for folder in _folders(n)}
        kept = {f"first {n} of {len(names)} names": names[:n] for n in range(journal, len(names) + 1)}
        kept |= {f"names of folder {f}": [n for d, n in both if d or f in _folders(n)] for f in (-1, *open_folders)}
        trees = {"killed": _rebuilt(written, names)}
        for label, changes in kept.items():
            for what, contents in (("synced", synced), ("all", written)):
                found = _rebuilt(contents, changes)
                if found not in trees.values():
                    trees[f"power cut: {label}, {what} bytes"] = found
        return trees


def _copy(node):
    return node if isinstance(node, bytes) else dict(node)


def _folders(changes):
    return [folder for folder, _, _ in changes]


def _apply(nodes, changes):
    for folder, name, node in changes:
        nodes[folder].pop(name, None)
        if node is not None:
            nodes[folder][name] = node


def _rebuilt(contents, names):
    nodes = {number: _copy(content) for number, content in contents.items()}
    for changes in names:
        _apply(nodes, changes)
    return _grow(nodes)


def _grow(nodes, number=0):
    content = nodes[number]
    if isinstance(content, bytes):
        return content
    return {name: _grow(nodes, node) for name, node in sorted(content.items())}


def tree(root):
    """What there is: {name: bytes of a file, or the same of a directory}."""
    return {path.name: tree(path) if path.is_dir() else path.read_bytes() for path in sorted(root.iterdir())}


def plant(root, content):
    """Make the directory hold that and nothing else."""
    shutil.rmtree(root, ignore_errors=True)
    os.mkdir(root)
    for name, value in content.items():
        if isinstance(value, dict):
            plant(root / name, value)
        else:
            (root / name).write_bytes(value)


class Scenario(NamedTuple):
    """What is done to a directory, and what a reader sees in it.

    Attributes:
        prepare: makes what is there before, in an empty directory.
        act: is made to fail.
        again: must work, whatever was left, and return the same.
        look: what a reader sees, that of before or after; raises if it is not whole.
        tidy: what is there when all is done.
    """

    prepare: Callable[[Path], object]
    act: Callable[[Path], object]
    again: Callable[[Path], object]
    look: Callable[[Path], object]
    tidy: Callable[[Path], object] = lambda root: sorted(root.rglob("*"))


class Rig:
    """Does a scenario without a fault, then with every one.

    Attributes:
        disk: what was recorded of the undisturbed one, whose ``calls`` are those that can fail.
    """

    def __init__(self, scenario, root):
        self.scenario, self.root, self._seen = scenario, root, []
        root.mkdir()
        scenario.prepare(root)
        self.before, self.old = tree(root), scenario.look(root)
        self.disk = Disk(root)
        with self.disk.mounted():
            self.result = scenario.act(root)
        self.new, self.tidy = scenario.look(root), scenario.tidy(root)
        assert self.disk.tree() == tree(root), "the disk changed by other ways than the calls that are counted"

    def stop_before(self, number):
        """Killed, or the power cut, before the call of that number: each tree that leaves, if it is a new one."""
        for label, content in self.disk.found(number).items():
            if content not in self._seen:
                self._seen.append(content)
                plant(self.root, content)
                self._goes_on(f"call {number} of {self.disk.calls}: {label}")

    def fail(self, fault, number):
        """A fault at the call of that number; what was raised, or None."""
        plant(self.root, self.before)
        where, raised = f"{fault} at call {number} of {self.disk.calls}", None
        with Disk(self.root, fault, number).mounted():
            try:
                self.scenario.act(self.root)
            except (StorageError, KeyboardInterrupt) as e:
                raised = e
        interrupted = fault in ("before", "after")
        assert raised is None or isinstance(raised, KeyboardInterrupt) == interrupted, where
        if raised is None:
            assert self.scenario.look(self.root) == self.new, where
        if fault == "full":  # which does not refuse to remove
            assert not any(".tmp-" in path.name for path in self.root.rglob("*")), where
        self._goes_on(where)
        return raised

    def lasts(self):
        """What has returned is there whatever happens."""
        for label, content in self.disk.found(len(self.disk.calls)).items():
            plant(self.root, content)
            assert self.scenario.look(self.root) == self.new, label

    def _goes_on(self, where):
        try:
            seen = self.scenario.look(self.root)
            with Disk(self.root).mounted():
                result = self.scenario.again(self.root)
            new = self.scenario.look(self.root)
        except (BilevaxError, OSError) as e:
            raise AssertionError(f"{type(e).__name__}: {e}: {where}") from e
        assert seen in (self.old, self.new), where
        assert result == self.result, where
        assert new == self.new, where
        assert self.scenario.tidy(self.root) == self.tidy, where
