"""Rows that a thread was asked for."""

import dataclasses
from concurrent.futures import Future
from typing import TypeAlias

import numpy as np

Numbers: TypeAlias = np.ndarray | range
Rows: TypeAlias = list[np.ndarray]


@dataclasses.dataclass
class Reading:
    """Rows that were asked for, and whether they were used."""

    numbers: Numbers
    job: "Future[Rows]"
    used: bool = False

    @property
    def failed(self) -> bool:
        """True if the rows could not be read."""
        return self.job.done() and self.job.exception() is not None

    @property
    def rows(self) -> Rows | None:
        """What was read; None where it is not there."""
        return None if not self.job.done() or self.job.cancelled() or self.failed else self.job.result()


def these(numbers: Numbers) -> str:
    """So many rows, in words."""
    return f"{len(numbers):,} rows, the first of them row {int(numbers[0]):,}"


def share(some: Rows, others: Rows) -> bool:
    """Whether two answers lie in the same memory, in part."""
    return any(map(np.may_share_memory, some, others))


def write(rows: Rows, some: slice, out: Rows) -> None:
    """Some of these rows to where a program takes them: their numbers in their files, and the leaves."""
    where, *leaves = rows
    np.copyto(out[0], where[some] if where.ndim else where)
    for x, room in zip(leaves, out[1:], strict=True):
        np.copyto(room, x[some])
