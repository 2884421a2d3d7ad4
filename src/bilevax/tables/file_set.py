"""Tables of many Parquet files, which are read in pieces, the next one while one is in use."""

import glob
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from bilevax.core.errors import DataError
from bilevax.core.processes import STRATA
from bilevax.tables.ahead import ahead
from bilevax.tables.arrow import arrow_column, kept_column
from bilevax.tables.parquet_file import ParquetFile, open_parquet
from bilevax.tables.pieces import Pieces
from bilevax.tables.reading import Reading
from bilevax.tables.table import Column, Kind, Table

BYTES, FEWEST, MOST = 1 << 26, 1 << 14, 1 << 18
"""Of the numbers in a piece, about; its rows."""

_SUFFIXES = (".parquet", ".pq")


def files_of(name: str) -> list[Path] | None:
    """The Parquet files in a directory, or those that a pattern such as ``2024/*.parquet`` means; None of others."""
    path = Path(name)
    if path.is_dir():
        found = (file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
        files = [file for file in found if not any(part[0] in "._" for part in file.relative_to(path).parts)]
    elif not path.exists() and glob.has_magic(name):
        files = [Path(file) for file in glob.glob(name, recursive=True)]
    else:
        return None
    return sorted(files) or None


def open_set(name: str, paths: Sequence[Path], reading: Reading) -> Pieces:
    """The rows of Parquet files, one file after the other; at first their footers alone are read.

    Args:
        name: of the set.
        paths: of the files.
        reading: which columns, and as what; the cells are not counted, as they are never there together.

    Raises:
        DataError: a file has a fault, or other columns than the first.
    """
    reading = reading._replace(max_cells=2**63)
    files = [open_parquet(path.name, path, reading) for path in paths]
    first = files[0]
    for file in files[1:]:
        _require_alike(first, file)
    rows = int(np.clip(BYTES // (8 * max(len(first.wanted), 1)), FEWEST, MOST))

    starts = _starts(files)

    def between(start: int, stop: int) -> Iterator[Table]:
        for first, last in pairwise(x for x in sorted(set(starts)) if start <= x <= stop):
            before = 0
            for file in files:
                there = first < before + file.rows and before < last
                for table in _tables(file, reading, rows, first - before, last - before) if there else ():
                    yield replace(table, before=before + table.before)
                before += file.rows

    others = tuple(label for j, label in enumerate(first.names) if j not in first.wanted and label)
    by_name = any("=" in part for path in paths for part in path.parts[:-1])
    notes = ("what the names of directories say (COLUMN=VALUE) is not read",) if by_name else ()
    told = [(path.name, path.stat().st_size, file.rows) for path, file in zip(paths, files, strict=True)]
    known = hashlib.sha256(repr(told).encode()).hexdigest()
    every = sum(file.rows for file in files)
    return Pieces(name, every, others, notes, lambda: ahead(between(0, every)), known, starts, between)


def _starts(files: Sequence[ParquetFile]) -> tuple[int, ...]:
    """Of strata: of the row groups, those that begin next to where equal parts would."""
    groups = np.cumsum([0, *(rows for file in files for rows in file.groups)])
    parts = groups[-1] * np.arange(STRATA + 1) / STRATA
    return tuple(int(groups[np.argmin(np.abs(groups - part))]) for part in parts)


def _require_alike(first: ParquetFile, file: ParquetFile) -> None:
    known = dict(zip(first.names, first.types, strict=True))
    for j in file.wanted:
        label, kind = file.names[j], file.types[j]
        if label not in known:
            raise DataError(f"{file.name} has a column '{label}', which {first.name} has not; all must be alike")
        if kind != known[label]:
            raise DataError(
                f"column '{label}' is {known[label]} in {first.name} and {kind} in {file.name}; all must be alike"
            )
    if absent := {first.names[j] for j in first.wanted} - set(file.names):
        raise DataError(f"{file.name} has no column '{min(absent)}', which {first.name} has; all must be alike")


def _tables(file: ParquetFile, reading: Reading, rows: int, start: int, stop: int) -> Iterator[Table]:
    """Of the row groups that begin from one row to another, in pieces of so many rows."""
    first, last = np.searchsorted(np.cumsum([0, *file.groups[:-1]]), [start, stop])
    wanted, kept, before = reading.choose(file.name, file.names), reading.kept(file.names), sum(file.groups[:first])
    for arrays in file.batches(rows, range(first, last), coded=True):
        of = {j: pa.chunked_array([array]) for j, array in zip(file.wanted, arrays, strict=True)}
        columns = tuple(arrow_column(file.name, file.names[j], of[j], reading, before) for j in wanted)
        passed = tuple(kept_column(file.name, file.names[j], of[j]) for j in kept)
        yield Table(file.name, columns, kept=passed, before=before)
        before += len(arrays[0])


def concatenated(pieces: Pieces, tables: Iterable[Table] | None = None) -> Table:
    """The rows of all pieces, or those that were taken from them, as a table.

    Raises:
        DataError: there are none, or a column holds texts in one and other cells in another.
    """
    parts = list(pieces.tables() if tables is None else tables)
    if not parts:
        raise DataError(f"{pieces.name}: no rows")
    columns, kept = (
        tuple(_column(pieces.name, of) for of in zip(*each, strict=True))
        for each in ([table.columns for table in parts], [table.kept for table in parts])
    )
    return Table(pieces.name, columns, pieces.notes, pieces.sha256, pieces.others, kept)


def _column(source: str, parts: Sequence[Column]) -> Column:
    kinds: set[Kind] = {part.kind for part in parts}
    if len(kinds) > 1 and not kinds <= {"number", "integer"}:
        told = " and ".join(f"{kind}s" for kind in sorted(kinds))
        raise DataError(f"{source}: column '{parts[0].name}' holds {told}; have it read as one kind (--types)")
    kind = parts[0].kind if len(kinds) == 1 else "number"
    return Column(parts[0].name, kind, np.concatenate([part.values for part in parts]), parts[0].order)
