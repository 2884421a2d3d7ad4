"""The TABLE argument: a file, or the name of a bundled data set."""

from pathlib import Path
from typing import TYPE_CHECKING

from bilevax.core.errors import UsageError
from bilevax.tables.reading import Reading
from bilevax.tables.svmlight import TARGET
from bilevax.tables.table import Table, suggestion

if TYPE_CHECKING:
    from bilevax.tables.pieces import Pieces

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


def open_in_pieces(name: str, reading: Reading) -> "Pieces":
    """The table in pieces of rows.

    Raises:
        UsageError: there is neither a file nor a data set of that name.
    """
    from bilevax.tables.pieces import open_pieces, pieces_of_table

    if _is_there(Path(name)):
        return open_pieces(Path(name), reading)
    return pieces_of_table(_bundled(name, reading)[0])


def _is_there(path: Path) -> bool:
    """True of a file, which comes before the data set of that name; a directory, as of its run, does not."""
    if not path.is_dir():
        return path.exists()
    from bilevax.study.bundled import NAMES

    return str(path) not in NAMES


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
