"""The TABLE argument: a file, or the name of a bundled data set."""

from pathlib import Path
from typing import TYPE_CHECKING

from bilevax.core.errors import UsageError
from bilevax.tables.reading import Reading
from bilevax.tables.svmlight import TARGET
from bilevax.tables.table import Table, suggestion

if TYPE_CHECKING:
    from bilevax.tables.pieces import Pieces

HELD = 1_000_000
"""Rows of many files up to which they are read as one table."""

_SPARSE = (".svm", ".svmlight", ".libsvm")
_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", *_SPARSE)


def open_table(name: str, reading: Reading) -> tuple[Table, str | None]:
    """The table, and its target where it is a bundled data set or a svmlight file.

    Raises:
        UsageError: there is neither a file nor a data set of that name.
    """
    from bilevax.tables.read import read_table

    path = Path(name)
    if _is_there(path):
        table = read_table(path, **reading._asdict())
        return table, TARGET if path.suffix.lower() in _SPARSE and TARGET in table.names else None
    return _bundled(name, reading)


def required_target(table: Table, target: str | None) -> str:
    """The column to predict.

    Raises:
        UsageError: nobody says it.
    """
    if target is None:
        last = f"the last of the {len(table.names)} columns is '{table.names[-1]}'"
        raise UsageError(f"Missing option '--target'; {last}")
    return target


def open_rows(name: str, reading: Reading, *, large: bool = False) -> "tuple[Table | Pieces, str | None]":
    """The table where memory holds it; else its rows in pieces, of a Parquet or CSV file, or of many Parquet files.

    And the target, where it is a bundled data set.

    Args:
        name: of the table.
        reading: how.
        large: whether it is known that memory does not hold it.

    Raises:
        UsageError: there is nothing of that name.
    """
    from bilevax.tables.file_set import concatenated, open_set
    from bilevax.tables.large_file import open_large

    if (paths := _set(name)) is not None:
        files = open_set(name, paths, reading)
        return files if files.rows > HELD else concatenated(files), None
    pieces = open_large(Path(name), reading, surely=large) if Path(name).is_file() else None
    return (pieces, None) if pieces else open_table(name, reading)


def open_in_pieces(name: str, reading: Reading) -> "Pieces":
    """The table in pieces of rows.

    Raises:
        UsageError: there is neither a file nor a data set of that name.
    """
    from bilevax.tables.file_set import open_set
    from bilevax.tables.pieces import open_pieces, pieces_of_table

    if (paths := _set(name)) is not None:
        return open_set(name, paths, reading)
    if _is_there(Path(name)):
        return open_pieces(Path(name), reading)
    return pieces_of_table(_bundled(name, reading)[0])


def _set(name: str) -> list[Path] | None:
    """The Parquet files of a set; None of a file, and of a bundled data set."""
    from bilevax.tables.file_set import files_of

    path = Path(name)
    return None if path.is_file() or (path.is_dir() and _is_bundled(path)) else files_of(name)


def _is_there(path: Path) -> bool:
    """True of a file, which comes before the data set of that name; a directory, as of its run, does not."""
    return path.exists() if not path.is_dir() else not _is_bundled(path)


def _is_bundled(path: Path) -> bool:
    from bilevax.study.bundled import NAMES

    return str(path) in NAMES


def _bundled(name: str, reading: Reading) -> tuple[Table, str]:
    from bilevax.study.bundled import NAMES, bundled_target, load_bundled

    if name in NAMES:
        if reading.types or reading.keep:
            raise UsageError(f"--types and --keep say how a file is read; '{name}' is a bundled data set")
        return load_bundled(name), bundled_target(name)
    folder = Path(name).parent
    files = [str(folder / file.name) for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
    tables = [file for file in files if file.lower().endswith(_SUFFIXES)]
    hint = suggestion(name, [*NAMES, *sorted(tables)])
    raise UsageError(f"there is no file '{name}', and no bundled data set of that name; {hint}")
