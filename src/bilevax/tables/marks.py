"""Cells that say that nothing is known, in columns of numbers, truth values and dates; among texts they are values."""

import contextlib
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from bilevax.tables.table import Column

# What is not known in files of Excel, R, SAS, SQL, pandas, C (nan(ind), 1.#QNAN), UCI. A dash may be a zero.
MARK = r"^(?i:\?|\.|na|n/a|n\.a\.|#n/?a|<na>|null|none|nat|[+-]?(nan(\([^()]*\))?|1\.#(qnan|snan|ind)\d*))$"


def without_marks(values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, dict[str, int]]:
    """The cells, null where they are marks, and how often each mark occurs."""
    # The usual column needs no pattern: numbers alone, of which pyarrow takes nan(1) for one.
    with contextlib.suppress(pa.ArrowInvalid):
        if not pc.any(pc.is_nan(pc.cast(values, pa.float64()))).as_py():
            return values, {}
    found = pc.fill_null(pc.match_substring_regex(values, MARK), False)
    counts = pc.value_counts(values.filter(found))
    marks = {pair["values"]: pair["counts"] for pair in counts.to_pylist()}
    return (pc.if_else(found, pa.scalar(None, pa.string()), values), marks) if marks else (values, marks)


def notes_on_marks(seen: Iterable[tuple[Column, dict[str, int]]]) -> list[str]:
    """What was made of the marks in each column: a note for each mark that is missing, or is a value."""
    missing: dict[str, list[tuple[str, int]]] = {}
    kept: dict[str, list[tuple[str, int]]] = {}
    for column, marks in seen:
        for mark, count in marks.items():
            (kept if column.kind == "text" else missing).setdefault(mark, []).append((column.name, count))
    return [
        *(f"'{mark}' is read as missing in {_listed(columns)}" for mark, columns in missing.items()),
        *(
            f"'{mark}' is kept as a value in {_listed(columns)}; --missing '{columns[0][0]}={mark}' makes it missing"
            for mark, columns in kept.items()
        ),
    ]


def _listed(columns: list[tuple[str, int]]) -> str:
    """``4 cells of column 'age'``, or of several."""
    cells = sum(count for _, count in columns)
    names = ", ".join(f"'{name}'" for name, _ in columns[:6]) + (", ..." if len(columns) > 6 else "")
    of = f"column {names}" if len(columns) == 1 else f"{len(columns)} columns ({names})"
    return f"{cells:,} cell{'' if cells == 1 else 's'} of {of}"
