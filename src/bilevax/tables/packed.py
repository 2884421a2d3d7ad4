"""Tables as bytes, for another process: Arrow's format of streams."""

import json
from collections.abc import Sequence
from typing import cast

import pyarrow as pa

from bilevax.tables.table import Column, Kind, Order, Table, object_array


def packed(table: Table) -> bytes:
    """The columns of a table, and those that are passed through."""
    columns = (*table.columns, *table.kept)
    arrays = [pa.array(c.values, pa.large_string() if c.kind == "text" else pa.float64()) for c in columns]
    told = {"columns": [[c.name, c.kind, c.order] for c in columns], "own": len(table.columns)}
    batch = pa.RecordBatch.from_arrays(arrays, names=[str(j) for j in range(len(columns))])
    batch = batch.replace_schema_metadata({"table": json.dumps(told)})
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, batch.schema) as stream:
        stream.write_batch(batch)
    content: bytes = out.getvalue().to_pybytes()
    return content


def unpacked(name: str, content: bytes) -> Table:
    """The inverse of :func:`packed`; the table gets a name."""
    with pa.ipc.open_stream(content) as stream:
        batch = stream.read_next_batch()
    told = json.loads(batch.schema.metadata[b"table"])
    columns = [_column(about, array) for about, array in zip(told["columns"], batch.columns, strict=True)]
    return Table(name, tuple(columns[: told["own"]]), kept=tuple(columns[told["own"] :]))


def _column(about: Sequence[str], array: pa.Array) -> Column:
    name, kind, order = about
    values = object_array(array.to_pylist()) if kind == "text" else array.to_numpy().copy()
    return Column(name, cast(Kind, kind), values, cast(Order, order))
