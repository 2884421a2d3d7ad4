"""The checkpoints of a run in one process or in several, of which the first alone reads and writes files."""

from collections.abc import Mapping

from bilevax.core import errors
from bilevax.core.errors import BilevaxError
from bilevax.core.events import Plain
from bilevax.core.ranks import Group, of_first
from bilevax.core.trees import PyTree
from bilevax.runs.checkpoints import Checkpoint, Checkpoints, Run, packed, unpacked

FAULT = b"!"


class Kept:
    """:class:`Checkpoints` of a group: what the first process finds, or meets in vain, all of them do.

    Args:
        run: where, how often, how many.
        group: the processes.
    """

    def __init__(self, run: Run, group: Group) -> None:
        self._run, self._group = run, group
        self._store: Checkpoints | None = None

    def __enter__(self) -> "Kept":
        if not self._group.several:
            self._store = Checkpoints(self._run).__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._store is not None:
            self._store.__exit__()

    def newest(self) -> Checkpoint | None:
        """The newest that is whole; None where there is none at all; faults as of :class:`Checkpoints`."""
        if not self._group.several:
            assert self._store is not None
            return self._store.newest()
        mine = b""
        if self._group.writes:
            try:
                self._store = Checkpoints(self._run).__enter__()
                found = self._store.newest()
                mine = b"" if found is None else packed(found)
            except BilevaxError as fault:
                of_first(FAULT + f"{type(fault).__name__} {fault}".encode())
                raise
        told = of_first(mine)
        if told.startswith(FAULT):
            kind, _, sentence = told[1:].decode().partition(" ")
            raise getattr(errors, kind)(sentence)
        return unpacked(told) if told else None

    def save(self, step: int, content: Plain, arrays: Mapping[str, PyTree]) -> None:
        """Write a checkpoint, in the first process."""
        if self._store is not None:
            self._store.save(step, content, arrays)
