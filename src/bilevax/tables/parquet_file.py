"""Parquet files: their page checksums are verified, and what they say of their size is believed within limits."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from pyarrow import parquet

from bilevax.core.errors import DataError
from bilevax.core.limits import require
from bilevax.tables.arrow import table_from_arrow
from bilevax.tables.reading import Reading
from bilevax.tables.table import Table

# Copies of what a file holds, in which it is read; measured.
_COPIES = 3
_HELPS = "fewer rows or columns take less"
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")


def read_parquet(name: str, data: bytes, reading: Reading, *, sha256: str = "") -> Table:
    """The table of a file's bytes.

    Raises:
        DataError: the file is damaged, has too many cells, or a column that no model can use.
        ResourceError: it takes more memory than there is.
    """
    with _readable(name):
        about = parquet.read_metadata(pa.BufferReader(data))
        names = parquet_names(about)
        wanted = [names[j] for j in dict.fromkeys((*reading.choose(name, names), *reading.kept(names)))]
        reading.require_cells(name, about.num_rows, len(wanted))
        groups = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        # A column of one value takes a few bytes in the file, and eight a row here.
        require(_COPIES * max(groups, 8 * about.num_rows * len(wanted)), f"reading {name}", _HELPS)
        table = parquet.read_table(pa.BufferReader(data), columns=wanted, page_checksum_verification=True)
        table.validate()
    read, unread = set(wanted), pa.nulls(table.num_rows)
    whole = pa.table([table.column(label) if label in read else unread for label in names], names=names)
    return table_from_arrow(name, whole, reading, sha256=sha256)


def parquet_names(about: parquet.FileMetaData) -> list[str]:
    """Of the columns, but for the index of pandas."""
    return [label for label in about.schema.to_arrow_schema().names if not _PANDAS_INDEX.fullmatch(label)]


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        # Damaged files have names in any bytes.
        words = (str(e).splitlines() or ["damaged"])[0]
        raise DataError(f"{name}: no readable Parquet file ({words})") from None
