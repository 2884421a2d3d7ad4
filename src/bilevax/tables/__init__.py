"""A file becomes named columns, and columns become a design matrix and labels."""

from typing import TYPE_CHECKING

from bilevax.core.lazy import attach

if TYPE_CHECKING:
    from bilevax.tables.additive import AdditiveModel
    from bilevax.tables.linear import LinearModel
    from bilevax.tables.read import read_table, table_from_frame
    from bilevax.tables.table import Column, Table

__all__ = ["AdditiveModel", "Column", "LinearModel", "Table", "read_table", "table_from_frame"]

__getattr__, __dir__ = attach(__name__, ["table", "read", "linear", "additive"], __all__)
