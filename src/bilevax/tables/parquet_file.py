"""Parquet files: their page checksums are verified, and what they say of their size is believed within limits."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from bilevax.core.errors import DataError
from bilevax.core.limits import require
from bilevax.tables.arrow import table_from_arrow
from bilevax.tables.reading import Reading
from bilevax.tables.table import Table, check_names

# Copies of what a file holds, in which it is read; measured.
_COPIES = 3
_HELPS = "fewer rows or columns take less"
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")


class ParquetFile(NamedTuple):
    """A file that says what it holds.

    Attributes:
        name: of the file.
        source: where it is.
        names: of its columns.
        types: of its columns.
        wanted: the positions of those to read.
        groups: rows of each row group.
    """

    name: str
    source: Path | pa.Buffer
    names: list[str]
    types: list[pa.DataType]
    wanted: list[int]
    groups: tuple[int, ...]
    coded: list[str]

    @property
    def rows(self) -> int:
        """Of all row groups."""
        return sum(self.groups)

    def batches(self, rows: int, groups: range | None = None, *, coded: bool = False) -> Iterator[list[pa.Array]]:
        """The wanted columns in pieces of rows, at most so many, of some row groups or of all.

        ``coded``: texts as dictionaries, where few differ.
        """
        groups = range(len(self.groups)) if groups is None else groups
        with readable(self.name), self._opened(self.coded if coded else []) as file:
            labels, done = [self.names[j] for j in self.wanted], sum(self.groups[: groups.start])
            try:
                for batch in file.iter_batches(rows, list(groups), labels) if labels and groups else ():
                    yield [batch.column(label) for label in labels]
                    done += len(batch)
            except (pa.ArrowException, OSError):
                with readable(f"{self.name}, row group {_damaged(file, labels, done)}"):
                    raise

    def column(self, position: int) -> pa.ChunkedArray:
        """A column as a whole."""
        with readable(self.name), self._opened() as file:
            return file.read([self.names[position]]).column(0)

    def _opened(self, coded: Sequence[str] = ()) -> parquet.ParquetFile:
        # A page after the other, not a group of rows at once.
        return parquet.ParquetFile(
            self.source, read_dictionary=coded, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
        )


def open_parquet(name: str, source: Path | pa.Buffer, reading: Reading) -> ParquetFile:
    """A file, of which only the footer is read.

    Raises:
        DataError: it is damaged, lacks a column, or says that it has too many cells.
    """
    with readable(name), parquet.ParquetFile(source) as file:
        about = file.metadata
        fields = [field for field in about.schema.to_arrow_schema() if not _PANDAS_INDEX.fullmatch(field.name)]
        groups = tuple(about.row_group(i).num_rows for i in range(about.num_row_groups))
    names = [field.name for field in fields]
    wanted = sorted({*reading.choose(name, names), *reading.kept(names)})
    check_names(name, names, wanted)
    reading.require_cells(name, about.num_rows, len(wanted))
    coded = _of_few_words(about, {names[j] for j in wanted if pa.types.is_string(fields[j].type)})
    return ParquetFile(name, source, names, [field.type for field in fields], wanted, groups, coded)


def _of_few_words(about: parquet.FileMetaData, labels: set[str]) -> list[str]:
    """Of columns of text those whose cells take two bytes at most, being the numbers of words."""
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    columns = [j for j in range(about.num_columns) if about.schema.column(j).path in labels]
    sizes = {j: sum(group.column(j).total_uncompressed_size for group in groups) for j in columns}
    return [about.schema.column(j).path for j in columns if sizes[j] <= 2 * about.num_rows]


def read_parquet(name: str, data: bytes, reading: Reading, *, sha256: str = "") -> Table:
    """The table of a file's bytes.

    Raises:
        DataError: the file is damaged, has too many cells, or a column that no model can use.
        ResourceError: it takes more memory than there is.
    """
    file = open_parquet(name, pa.py_buffer(data), reading)
    wanted = [file.names[j] for j in file.wanted]
    with readable(name):
        about = parquet.read_metadata(pa.BufferReader(data))
        groups = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        # A column of one value takes a few bytes in the file, and eight a row here.
        require(_COPIES * max(groups, 8 * file.rows * len(wanted)), f"reading {name}", _HELPS)
        table = parquet.read_table(pa.BufferReader(data), columns=wanted, page_checksum_verification=True)
    read, unread = set(wanted), pa.nulls(table.num_rows)
    whole = pa.table([table.column(label) if label in read else unread for label in file.names], names=file.names)
    return table_from_arrow(name, whole, reading, sha256=sha256)


def _damaged(file: parquet.ParquetFile, labels: list[str], done: int) -> int:
    """The first row group that cannot be read, where so many rows could."""
    ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
    first = min(int(np.searchsorted(ends, done, side="right")), len(ends) - 1)
    for group in range(first, len(ends)):
        try:
            file.read_row_group(group, columns=labels)
        except (pa.ArrowException, OSError):
            return group
    return first


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Makes a sentence of what pyarrow says of a damaged file."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{name} is gone") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        # Damaged files have names in any bytes.
        words = (str(e).splitlines() or ["damaged"])[0]
        raise DataError(f"{name}: no readable Parquet file ({words})") from None
