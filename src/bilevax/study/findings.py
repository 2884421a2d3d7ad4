"""What a table looks like before any fit."""

from bilevax.core.run_records import Note, Task
from bilevax.tables.table import Table


def findings(
    table: Table, target: str | None, *, task: Task | None = None, group: str | None = None, time: str | None = None
) -> tuple[Note, ...]:
    """Nothing, yet."""
    return ()
