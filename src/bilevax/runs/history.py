"""What a run has seen and spent so far: appended to, never rebuilt."""

from collections.abc import Mapping

import numpy as np

from bilevax.algorithms.outer_loop import Record
from bilevax.core.records import Cost, Count, Failure
from bilevax.core.results import History
from bilevax.core.trees import PyTree, row

FIRST_ROOM = 64
"""Entries for which there is room before the columns are first enlarged."""

KINDS = float, float, np.int32, np.int64, float, np.int64
"""Types of the columns."""


class Log:
    """The columns of a :class:`~bilevax.History`, the worst code, and the cost.

    Args:
        step_cost: of one outer step; None where the records say what each stretch cost.
        before: what was spent before the first step.
    """

    def __init__(self, step_cost: Cost | None, before: Cost) -> None:
        self._step_cost = step_cost
        self._columns = History(*(np.empty(FIRST_ROOM, kind) for kind in KINDS))
        self._entries = 0
        # calls, rows of one, reads; and rows that were read since the last entry for what has none
        self._totals, self._unrecorded = [(0, 0, 0)] * len(before), 0
        self.add(before)
        self.code, self.failure = 0, Failure.of("none")

    def append(self, records: Record, first: int, seconds: float) -> None:
        """Records of stretches one after another from outer step ``first``, each an array; room doubles."""
        samples = self._spent(records, first)
        n = self._entries + len(records.step)
        # doubled: appending one entry costs O(1) in the mean, however long the run
        if n > len(self._columns.step):
            self._columns = History(*(np.resize(column, 2 * n) for column in self._columns))
        before = self._columns.samples[self._entries - 1] if self._entries else 0
        if len(samples):
            before, self._unrecorded = before + self._unrecorded, 0
        new = (records.outer_value, records.gradient_norm, records.code, before + np.cumsum(samples), seconds)
        for column, values in zip(self._columns, (*new, records.step), strict=True):
            column[self._entries : n] = values
        self._entries = n
        # only a worse code replaces the first
        if np.max(records.code, initial=0) > self.code:
            worst = int(np.argmax(records.code))
            self.code, self.failure = int(records.code[worst]), row(records.failure, worst)

    def spend(self, records: Record, first: int) -> None:
        """Count the cost of these stretches, without an entry."""
        self._unrecorded += int(self._spent(records, first).sum())

    def add(self, cost: Cost) -> None:
        """Count what else was spent."""
        for i, part in enumerate(cost):
            self._count(i, int(part.calls), part.rows, int(part.calls if part.reads is None else part.reads))
        self._unrecorded += int(cost.samples)

    def _spent(self, records: Record, first: int) -> np.ndarray:
        """Rows that each stretch read, int64, which the cost now includes."""
        # outer steps of each stretch; int64, as samples of a long run exceed an int32
        steps = np.diff(records.step, prepend=first)
        samples = np.zeros(len(steps), np.int64)
        for i, part in enumerate(self._step_cost or records.cost or ()):
            of_step = steps if self._step_cost is not None else np.ones(len(steps), np.int64)
            calls = np.asarray(part.calls, np.int64) * of_step
            reads = calls if part.reads is None else np.asarray(part.reads, np.int64) * of_step
            samples += reads * part.rows
            self._count(i, int(calls.sum()), part.rows, int(reads.sum()))
        return samples

    def _count(self, i: int, calls: int, rows: int, reads: int) -> None:
        totals = self._totals[i]
        self._totals[i] = totals[0] + calls, max(totals[1], rows), totals[2] + reads

    @property
    def cost(self) -> Cost:
        """Oracle calls so far."""
        return Cost(*(Count(*total) for total in self._totals))

    @property
    def history(self) -> History:
        """The entries so far, not copied: they do not change."""
        return History(*(column[: self._entries] for column in self._columns))

    def state(self) -> dict[str, PyTree]:
        """The entries and the sums so far, for a checkpoint."""
        worst = {"code": self.code, "failure": [np.asarray(x) for x in self.failure]}
        return worst | {
            "history": self.history._asdict(),
            "totals": self._totals,
            "unrecorded": self._unrecorded,
        }

    def resume(self, state: Mapping[str, PyTree]) -> None:
        """As it was at a checkpoint."""
        self._columns = History(**state["history"])
        self._entries, self._totals = len(self._columns.step), [tuple(total) for total in state["totals"]]
        # version 0.1.0 kept what was read before the first step, and nothing else that has no entry
        self._unrecorded = state["unrecorded"] if "unrecorded" in state else 0 if self._entries else state["before"]
        self.code, self.failure = state["code"], Failure(*state["failure"])
