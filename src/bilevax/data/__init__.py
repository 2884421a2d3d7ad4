"""Where rows come from and which rows are minibatch j; tables."""

from typing import TYPE_CHECKING

from bilevax.core.lazy import attach

if TYPE_CHECKING:
    from bilevax.data.arrays import Arrays, Join, join
    from bilevax.data.columns import Column, Table
    from bilevax.data.fold import Draw, Keyed, RowSource, Source, has_keys, refuse_keys
    from bilevax.data.sparse_rows import SparseRows
    from bilevax.data.tables import read_table, table_from_frame

__all__ = [
    "Arrays",
    "Column",
    "Draw",
    "Join",
    "Keyed",
    "RowSource",
    "Source",
    "SparseRows",
    "Table",
    "has_keys",
    "join",
    "read_table",
    "refuse_keys",
    "table_from_frame",
]

__getattr__, __dir__ = attach(__name__, ["columns", "tables", "fold", "arrays", "sparse_rows"], __all__)
