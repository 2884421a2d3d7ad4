"""A table that is too large to hold: some rows for all that is looked at and chosen, every row for the final fit."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from bilevax.core import files
from bilevax.core.errors import DataError, ParameterError, StorageError
from bilevax.core.limits import size
from bilevax.core.processes import ALONE, STRATA, Processes
from bilevax.sklearn.additive_choice import ROWS
from bilevax.study.bin_file import BinFile, Kept, Piece, decoders, kept_as, kept_by, kept_cells
from bilevax.study.kept import Stage
from bilevax.study.pass_files import Arrays, PassFiles, packed_arrays, unpacked_arrays
from bilevax.study.preparation import Prepared
from bilevax.study.settings import TuneSettings
from bilevax.study.target import Target
from bilevax.tables.additive import Source, bins, cells, sources_of
from bilevax.tables.ahead import THREADS
from bilevax.tables.effects import Effect
from bilevax.tables.file_set import concatenated
from bilevax.tables.kept_arrays import has_room
from bilevax.tables.labels import label_text
from bilevax.tables.marginals import LevelCounts, Marginal, NumberCounts
from bilevax.tables.packed import packed, unpacked
from bilevax.tables.pieces import Pieces
from bilevax.tables.sieve import Sieve, Sieved
from bilevax.tables.table import CodedColumn, Column, Table

CELL, TARGET = 2, 8
"""Bytes that a row takes in a file of bins for each effect, about, and for its target."""

FITTING = "fitting to every row, pass"

T = TypeVar("T")


class RowSet:
    """All rows, which go by piece by piece.

    Args:
        pieces: gives them, as often as they are asked for.
        target: the column that is predicted.
        settings: how.
        processes: to which the rows are dealt; every call here is one of all of them.

    Attributes:
        rows: those with a target; known after :meth:`sample`.
        stage: told how far a pass is.
        passing: whether a pass is under way: a fault is then of the rows of this process.
        notes: what the user should know of the passes.

    Raises:
        ParameterError: a setting needs the rows as a table.
    """

    def __init__(self, pieces: Pieces, target: str, settings: TuneSettings, processes: Processes = ALONE) -> None:
        for name in ("group", "time_column"):
            if getattr(settings, name) is not None:
                option = "--" + name.replace("_", "-")
                raise ParameterError(f"{option} splits rows of a table that fits into memory; {pieces.name} does not")
        if settings.exposure is not None:
            raise ParameterError(f"--exposure is of a table that fits into memory; {pieces.name} does not")
        if settings.is_linear:
            raise ParameterError(f"--model linear is of a table that fits into memory; {pieces.name} does not")
        self.pieces, self.rows, self._target, self._settings = pieces, pieces.rows, target, settings
        self.processes, self.passing = processes, False
        self.stage: Stage = lambda name, **more: None
        self._drawn, self._test = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._ended: Callable[[], bool] = lambda: False
        self._goal: Target | None = None
        self._names: list[str] = []
        self._counts: dict[Source, NumberCounts | LevelCounts] = {}
        self._files: PassFiles | None = None
        self._folder: Path | None = None
        self._bins: BinFile | None = None
        self.notes: list[str] = []

    def keep_in(self, folder: Path) -> None:
        """Keep there what passes find, and do not make those again that were made for the same sample and settings."""
        words = self.pieces.sha256, self._settings.model_dump_json(exclude={"time"}), self._drawn.tobytes()
        self._files, self._folder = PassFiles(folder, hashlib.sha256(repr(words).encode()).hexdigest()), folder

    def kept(self, name: str) -> Arrays | None:
        """What was kept under a name, by the first process."""
        found = None if self._files is None else self._files.read(name)
        content = self.processes.of_first(b"" if found is None else packed_arrays(found))
        return unpacked_arrays(content) if content else None

    def keep(self, name: str, arrays: Arrays) -> None:
        """Keep what a pass found."""
        if self._files is not None:
            self._files.write(name, arrays)

    def sample(self) -> Table:
        """Rows at random, of which as many as a choice is made on train, in their order; a pass.

        Raises:
            DataError: a fault of the files.
        """
        n, settings, name = self.pieces.rows, self._settings, self.pieces.name
        self.processes.require_same(f"the rows of {name}", {"rows": n, "sha256": self.pieces.sha256})
        # so that ROWS are left once those of the test are taken away
        most = int(np.ceil(ROWS / (1.0 - settings.test_size)))
        random = np.random.default_rng(settings.seed)
        self._drawn = np.sort(random.choice(n, min(n, most), replace=False)) if n else self._drawn
        parts, self.rows = [], 0
        for table in self._tables("drawing rows"):
            parts.append(table.take(self._within(self._drawn, table) - table.before))
            self.rows += int(np.sum(~table.column(self._target).missing))
        if self.processes.count > 1:
            own = packed(concatenated(self.pieces, parts)) if parts else b""
            parts = [unpacked(name, part) for part in self.processes.gathered(own) if part]
            self.rows = int(self.processes.summed(np.array([float(self.rows)]))[0])
        note = (
            f"{n:,} rows are too many to hold: {len(self._drawn):,} of them, drawn at random, are looked at, chosen on "
            "and tested on; the model is fitted to all but those of the test"
        )
        return concatenated(self.pieces._replace(notes=(*self.pieces.notes, note)), parts)

    def begin(self, prepared: Prepared, ended: Callable[[], bool]) -> None:
        """Rows are to be those of a prepared sample, without its test; :meth:`count` comes next.

        Args:
            prepared: the sample.
            ended: whether the passes are to end.
        """
        features = prepared.features
        self._goal, self._names, self._ended = prepared.target, list(features.names), ended
        self._test = self._drawn[prepared.places[prepared.split.test]]
        self._counts = {
            source: LevelCounts() if source.kind == "text" else NumberCounts(cells(features, source))
            for column in features.columns
            for source in sources_of(column)
        }

    def of_all(self, prepared: Prepared) -> Prepared:
        """A prepared sample whose rows have their numbers among all."""
        return prepared._replace(places=self._drawn[prepared.places])

    def marginal(self, source: Source) -> Marginal:
        """Of the cells of an effect."""
        return self._counts[source].found()

    def count(self) -> None:
        """What the columns hold; two passes, of which that of some rows will do if they are to end."""
        folder = self.processes.of_first(b"" if self._folder is None else str(self._folder).encode()).decode()
        self._folder = Path(folder) if folder else None
        known = self.kept("counts")
        if known is None:
            with ThreadPoolExecutor(THREADS, "bilevax-count") as threads:
                for table, there, _ in self._training("counting what columns hold"):
                    add = partial(_add, table, np.flatnonzero(~there))
                    list(threads.map(add, *zip(*self._counts.items(), strict=True)))
                    if self.ended():
                        break
            if self._joined(self._counts.values()):
                return
            self._keep_counts(passes=1)
        else:
            for i, counts in enumerate(self._counts.values()):
                counts.restore({key.partition(" ")[2]: x for key, x in known.items() if key.startswith(f"{i} ")})
        # of numbers, groups of which were counted, those where bins begin
        some = {s: c for s, c in self._counts.items() if isinstance(c, NumberCounts) and c.choose()}
        if not some or (known is not None and int(known["passes"]) == 2):
            return
        self._place(some)
        if self._joined(some.values()):
            for numbers in some.values():
                numbers.forget()
            return
        self._keep_counts(passes=2)

    def _place(self, some: Mapping[Source, NumberCounts]) -> None:
        """A pass for the places of bins, and for a file of what is known of them."""
        kept = {source: kept_as(counts) for source, counts in self._counts.items()}

        def counted(source: Source, found: Sieved) -> None:
            if source in some:
                how = kept[source]
                assert isinstance(how, Sieve)
                some[source].add_around(how, found)

        for _ in self._keeping("placing the bins", kept, counted):
            if self.ended():
                break

    def _keeping(
        self, name: str, kept: Kept, each: Callable[[Source, Sieved], None] = lambda source, found: None
    ) -> Iterator[tuple[list[Sieved], np.ndarray, int]]:
        """A pass that keeps cells in a file, where there may be one: these, targets and strata."""
        self.close()
        file = self._bin_file(kept)

        def found_in(table: Table, there: np.ndarray, source: Source) -> Sieved:
            out, found = kept_cells(table, there, source, kept[source])
            each(source, found)
            return out

        with ThreadPoolExecutor(THREADS, "bilevax-place") as threads:
            for table, there, y in self._training(name):
                found, stratum = list(threads.map(partial(found_in, table, there), kept)), self.pieces.stratum(table)
                if file is not None:
                    try:
                        file.add(Piece(table.before, stratum), found, y)
                    except StorageError as e:
                        self._note(str(e))
                        file = None
                yield found, y, stratum
        self._bins = file

    def _bin_file(self, kept: Kept) -> BinFile | None:
        """An empty one, if the run has a folder whose disk has room."""
        if self._folder is None or self.notes:
            return None
        # with those of other processes
        need = self.pieces.rows * (CELL * len(kept) + TARGET)
        try:
            files.make_directory(self._folder)
            if has_room(self._folder, need):
                return BinFile(self._folder, kept)
        except StorageError as e:
            self._note(str(e))
            return None
        self._note(f"{size(need)} are more than half of what is free on the disk of {self._folder}")
        return None

    def _note(self, why: str) -> None:
        self.notes.append(f"each pass reads the table, as there is no file of its bins: {why}")

    def close(self) -> None:
        """Give up what was kept for the passes to come."""
        if self._bins is not None:
            self._bins.close()
        self._bins = None

    def _joined(self, counted: Iterable[NumberCounts | LevelCounts]) -> bool:
        """Add up what the processes have counted in a pass; whether it was ended in one of them."""
        for counts in counted if self.processes.count > 1 else ():
            every = self.processes.gathered(packed_arrays(counts.state()))
            counts.join([unpacked_arrays(state) for state in every])
        return self.processes.any(self.ended())

    def _keep_counts(self, passes: int) -> None:
        states = enumerate(counts.state() for counts in self._counts.values())
        arrays = {f"{i} {key}": x for i, state in states for key, x in state.items()}
        self.keep("counts", {**arrays, "passes": np.array(passes)})

    def rows_of_pass(self, number: int = 1) -> Iterator[tuple[Table, np.ndarray, np.ndarray]]:
        """Features of each piece, which of its rows are meant, and the targets of these."""
        yield from self._training(f"{FITTING} {number}")

    def bins_of_pass(
        self, sources: Sequence[Source], effects: Sequence[Effect], number: int, *, again: bool
    ) -> Iterator[tuple[list[np.ndarray], np.ndarray, int]]:
        """Bins in each effect of the rows of a piece that are meant, their targets, and their stratum.

        ``again``: whether another pass is likely; if there is no file of bins one is then made.
        """
        name, file = f"{FITTING} {number}", self._bins
        decode = None if file is None else decoders(file.kept, sources, effects)
        if file is not None and decode is not None:
            for piece, found, y in self._gone_through(name, file, lambda item: item[0].before):
                yield [of(found[i]) for i, of in decode], y, piece.stratum
        elif again:
            kept = {source: kept_by(effect) for source, effect in zip(sources, effects, strict=True)}
            decode = decoders(kept, sources, effects)
            assert decode is not None
            for found, y, stratum in self._keeping(name, kept):
                yield [of(found[i]) for i, of in decode], y, stratum
        else:
            for table, there, y in self.rows_of_pass(number):
                codes = [bins(table, source, effect)[there] for source, effect in zip(sources, effects, strict=True)]
                yield codes, y, self.pieces.stratum(table)

    def ended(self) -> bool:
        """Whether the passes are to end."""
        return self._ended()

    def _training(self, name: str) -> Iterator[tuple[Table, np.ndarray, np.ndarray]]:
        """Features of each piece, which rows have a target and are not of the test, and the targets of these."""
        for table in self._tables(name):
            y = self._values(table)
            there = y >= 0 if y.dtype.kind == "i" else ~np.isnan(y)
            there[self._within(self._test, table) - table.before] = False
            yield table.select(self._names), there, y[there]

    def _within(self, rows: np.ndarray, table: Table) -> np.ndarray:
        start, stop = np.searchsorted(rows, [table.before, table.before + table.rows])
        return rows[start:stop]

    def _tables(self, name: str) -> Iterator[Table]:
        """The pieces, and how far they are."""
        yield from self._gone_through(name, self.pieces.dealt(self.processes.strata), lambda table: table.before)

    def _gone_through(self, name: str, items: Iterable[T], before: Callable[[T], int]) -> Iterator[T]:
        """The items of a pass, each of rows with so many before them."""
        begun, n, first = time.perf_counter(), self.pieces.rows, self.processes.strata.start
        self.passing = True
        for item in items:
            # the processes are about as far
            part = min(max(0.0, self.processes.count * (before(item) / n - first / STRATA)), 1.0)
            # as long again for each part that is to come
            left = (time.perf_counter() - begun) * (1.0 / part - 1.0) if part else None
            self.stage(name, done=round(part * n), of=n, seconds_left=left)
            yield item
        self.passing = False

    def _values(self, table: Table) -> np.ndarray:
        """Targets as the sample has them, -1 or NaN where missing."""
        assert self._goal is not None
        column, goal = table.column(self._target), self._goal
        if goal.labels is not None:
            return _codes(column, goal, table)
        if found := column.other_than("number"):
            raise DataError(f"{table.name}: target '{column.name}' holds {found}; rows before hold numbers")
        y = column.values
        least = float(np.nanmin(y, initial=np.inf))
        if (goal.task == "count" and least < 0.0) or (goal.task == "amount" and least <= 0.0):
            raise DataError(f"{table.name}: target '{column.name}' holds {least:g}, which no {goal.task} is")
        return y


def _add(table: Table, absent: np.ndarray, source: Source, counts: NumberCounts | LevelCounts) -> None:
    """Count the cells of all rows but the absent ones."""
    column = table.column(source.column)
    if isinstance(counts, NumberCounts):
        counts.add(cells(table, source), absent)
    elif isinstance(column, CodedColumn):
        every, some = (
            np.bincount(codes, minlength=len(column.words)) for codes in (column.codes, column.codes[absent])
        )
        # of each word its rows that have a target, by codes: no cell is made a string
        counts.add(column.words, every - some)
    else:
        counts.add(np.delete(cells(table, source), absent))


def _codes(column: Column, goal: Target, table: Table) -> np.ndarray:
    """The numbers of classes, -1 where missing."""
    assert goal.labels is not None
    classes, missing = goal.labels.classes, column.missing
    text = isinstance(classes[0], str)
    if isinstance(column, CodedColumn):
        used, inverse = np.unique(column.codes[~missing], return_inverse=True)
        distinct = column.words[used]
    else:
        cells_ = column.as_text().values if text else column.values
        distinct, inverse = np.unique(cells_[~missing], return_inverse=True)
    known = {label if text else float(label): code for code, label in enumerate(classes)}
    of = np.array([known.get(label, -1) for label in distinct.tolist()], np.int64)
    if (of < 0).any():
        strange = distinct[int(np.argmin(of))]
        raise DataError(
            f"{table.name}: target '{column.name}' has the label '{label_text(strange)}', which none of the rows has "
            "that were drawn; merge rare labels into others, or leave their rows out"
        )
    out = np.full(len(missing), -1, np.int64)
    out[~missing] = of[inverse]
    return out
