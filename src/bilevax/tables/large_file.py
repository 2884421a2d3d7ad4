"""A file that is too large to be read whole: noticed before it is read, by its size."""

import hashlib
from pathlib import Path

from bilevax.core.limits import fits
from bilevax.tables.ahead import ahead
from bilevax.tables.file_set import open_set
from bilevax.tables.parquet_file import open_parquet
from bilevax.tables.pieces import Pieces, open_pieces
from bilevax.tables.read import csv_table, format_of
from bilevax.tables.reading import Reading
from bilevax.tables.table import Kind

COPIES, SIZES = 5, 6
"""Of the numbers of a Parquet file, and sizes of a CSV file, that a table and what is tuned on it take."""

FIRST = 1 << 24
"""Bytes of a CSV file that say what its columns hold."""


def open_large(path: Path, reading: Reading, *, surely: bool = False) -> Pieces | None:
    """The file in pieces, if it is a Parquet or CSV file that memory does not hold; else None.

    Args:
        path: of the file.
        reading: how.
        surely: whether that is known.

    Raises:
        DataError: the file has a fault.
        StorageError: it could not be read.
    """
    kind = format_of(path)
    if kind == "parquet":
        about = open_parquet(path.name, path, reading._replace(max_cells=2**63))
        cells = about.rows * len(about.wanted)
        # cells that take up no room in a file, as of a damaged one, are too many
        large = path.stat().st_size > cells and not (fits(COPIES * 8 * cells) and cells <= reading.max_cells)
        return open_set(path.name, [path], reading) if large or surely else None
    if kind == "csv" and (surely or not fits(SIZES * path.stat().st_size)):
        return _csv(path, reading)
    return None


def _csv(path: Path, reading: Reading) -> Pieces:
    """What its columns hold its first rows say; that all others agree is seen before there is a piece."""
    with path.open("rb") as file:
        first = file.read(FIRST)
    table = csv_table(path.name, first[: first.rfind(b"\n") + 1] or first, reading)

    def of(*kinds: Kind) -> list[str]:
        return [column.name for column in table.columns if column.kind in kinds]

    dates = {column.name: column.order or "date" for column in table.columns if column.kind == "date"}
    typed = reading._replace(text=of("text"), numbers=of("number", "integer"), types={**reading.types, **dates})
    pieces = open_pieces(path, typed, block=FIRST)
    known = hashlib.sha256(repr((path.stat().st_size, pieces.rows)).encode() + first).hexdigest()
    return pieces._replace(tables=lambda: ahead(pieces.tables()), sha256=known)
