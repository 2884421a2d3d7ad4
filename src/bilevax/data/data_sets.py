"""Rows of Parquet and Arrow data sets of many files, read a row group at a time."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from bilevax.core.errors import DataError, in_a_line
from bilevax.core.trees import PyTree

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.dataset

Columns = str | Sequence[str]


def is_data_set(data: object) -> bool:
    """True of a ``pyarrow.dataset``; pyarrow is not imported for it."""
    return any(base.__module__.startswith("pyarrow._dataset") for base in type(data).__mro__)


class DataSetRows:
    """Rows of a ``pyarrow.dataset``: those of a row group together, and those of the last groups kept.

    Args:
        data: a ``pyarrow.dataset.Dataset``.
        columns: a pytree of column names, a string for a vector [n], a list for a matrix [n, d]; None: every column, a
            dict of vectors.
        most: bytes that the groups that are kept take at most, but for those that are asked for together.
    """

    def __init__(self, data: "pyarrow.dataset.Dataset", columns: PyTree, most: int) -> None:
        named = columns if columns is not None else {name: name for name in data.schema.names}
        leaves, self._structure = jax.tree.flatten(named, is_leaf=lambda x: isinstance(x, str | list))
        self._leaves: list[Columns] = leaves
        self._names = list(
            dict.fromkeys(name for leaf in leaves for name in ([leaf] if isinstance(leaf, str) else leaf))
        )
        self._most = most
        self._groups: list[pyarrow.dataset.Fragment] = []
        self._kinds: dict[str, tuple[pyarrow.DataType, str]] = {}
        try:
            fragments = list(data.get_fragments())
        except ValueError as e:
            raise DataError(f"the data set cannot be read by row groups: {in_a_line(e)}") from None
        for fragment in fragments:
            self._see(fragment)
        if not self._groups:
            raise DataError("the data set has no files")
        self.groups = np.array([_rows(group) for group in self._groups], np.int64)
        # groups without rows are none
        self._groups = [group for group, rows in zip(self._groups, self.groups, strict=True) if rows]
        self.groups = self.groups[self.groups > 0]
        self._ends = np.cumsum(self.groups)
        self._kept: OrderedDict[int, list[np.ndarray]] = OrderedDict()

    def _see(self, fragment: "pyarrow.dataset.Fragment") -> None:
        """The row groups of a file, whose columns must be those of the files before it."""
        try:
            schema = fragment.physical_schema
            parts = fragment.split_by_row_group() if hasattr(fragment, "split_by_row_group") else [fragment]
        except (OSError, ValueError) as e:
            raise DataError(f"{fragment.path} cannot be read: {in_a_line(e)}") from e
        for name in self._names:
            if name not in schema.names:
                raise DataError(f"{fragment.path} has no column '{name}'; it has {', '.join(schema.names)}")
            kind = schema.field(name).type
            first, at = self._kinds.setdefault(name, (kind, fragment.path))
            if kind != first:
                raise DataError(f"column '{name}' is {first} in {at} and {kind} in {fragment.path}; all must be alike")
        self._groups += parts

    def __len__(self) -> int:
        return int(self._ends[-1])

    def rows(self, numbers: np.ndarray) -> PyTree:
        """These rows, from as many groups as they are in."""
        group = np.searchsorted(self._ends, numbers, side="right")
        out: list[np.ndarray] = []
        for g in np.unique(group):
            leaves, here = self._group(int(g)), group == g
            within = numbers[here] - (self._ends[g] - self.groups[g])
            out = out or [np.empty((len(numbers), *x.shape[1:]), x.dtype) for x in leaves]
            for whole, x in zip(out, leaves, strict=True):
                whole[here] = x[within]
        self._forget(len(np.unique(group)))
        return jax.tree.unflatten(self._structure, out)

    def _group(self, g: int) -> list[np.ndarray]:
        """The leaves of a row group, kept."""
        if g not in self._kept:
            self._kept[g] = self._read(g)
        self._kept.move_to_end(g)
        return self._kept[g]

    def _forget(self, together: int) -> None:
        """Of the groups that are kept, those that were used longest ago."""
        while len(self._kept) > together and sum(x.nbytes for rows in self._kept.values() for x in rows) > self._most:
            self._kept.popitem(last=False)

    def _read(self, g: int) -> list[np.ndarray]:
        fragment = self._groups[g]
        where = (
            f"row group {fragment.row_groups[0].id} of {fragment.path}"
            if hasattr(fragment, "row_groups")
            else fragment.path
        )
        try:
            table = fragment.to_table(columns=self._names)
        except FileNotFoundError:
            raise DataError(f"{fragment.path} is gone") from None
        except Exception as e:
            raise DataError(f"{where} cannot be read: {in_a_line(e)}") from e
        if table.num_rows != self.groups[g]:
            raise DataError(f"{where} has {table.num_rows} rows, and had {self.groups[g]}")
        columns = {name: self._numbers(where, name, table.column(name)) for name in self._names}
        return [
            columns[leaf] if isinstance(leaf, str) else np.stack([columns[name] for name in leaf], axis=1)
            for leaf in self._leaves
        ]

    @staticmethod
    def _numbers(where: str, name: str, column: "pyarrow.ChunkedArray") -> np.ndarray:
        if column.null_count:
            raise DataError(f"column '{name}' has {column.null_count} missing cells in {where}")
        values: np.ndarray = column.to_numpy()
        if values.dtype.kind not in "biuf":
            raise DataError(f"column '{name}' is {column.type} in {where}, and no number; leave it out (columns=)")
        return values

    def told(self) -> bytes:
        """What the set is known by beside its rows: its files' names, and the sizes of their groups."""
        names = [Path(group.path).name for group in self._groups]
        return repr((names, self.groups.tolist(), self._leaves)).encode()


def _rows(group: "pyarrow.dataset.Fragment") -> int:
    # a part of a Parquet file knows its own; its count would be that of the file
    parts = getattr(group, "row_groups", None)
    return int(sum(part.num_rows for part in parts) if parts else group.count_rows())
