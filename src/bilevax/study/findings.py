"""What is seen in a table before any fit: leaks, identifiers, dates as numbers, copies, constants, labels that differ.

One pass over the columns; each is looked at by its different values, in time linear in the table up to their sorting.
"""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from bilevax.core.run_records import Note, Task
from bilevax.study import dates, faults, identifiers, leaks, target_faults
from bilevax.study.levels import Levels, levels_of, option, shown, words_of
from bilevax.study.made_of import made_of
from bilevax.tables.table import Table

__all__ = ["findings"]

_FEWEST_ROWS = 10
_SHOWN = 3
_NAMED = 8

About: TypeAlias = Literal["leak", "identifier", "date", "duplicates", "constant", "labels", "table"]

# Most serious first, and what each is about.
_KINDS: dict[str, About] = {
    "alike": "labels",
    "leak": "leak",
    "sum": "leak",
    "target": "labels",
    "rows": "duplicates",
    "identifier": "identifier",
    "date": "date",
    "quantity": "table",
    "mark": "table",
    "code": "table",
    "levels": "labels",
    "columns": "duplicates",
    "constant": "constant",
    "group": "table",
    "time": "table",
    "order": "table",
}


class _Found(NamedTuple):
    kind: str
    column: str
    text: str


def findings(
    table: Table,
    target: str | None,
    *,
    task: Task | None = None,
    group: str | None = None,
    time: str | None = None,
    cleaning: bool = False,
) -> tuple[Note, ...]:
    """What is wrong with a table, or may be, most serious first; a few of each kind, the others by name.

    Args:
        table: as it was read.
        target: the column to predict; None: what needs one is left out.
        task: what is predicted; None: by the target's values.
        group: the column whose values keep rows together, if one was given.
        time: the column that says which rows are older, likewise.
        cleaning: whether labels are to be cleaned, which neither splits rows by a column nor reads words.

    Raises:
        DataError: there is no such target.
    """
    if target is not None:
        table.require([target])
    if table.rows < _FEWEST_ROWS:
        return ()
    return tuple(_a_few_of_each(list(_all(table, target, task, {group, time} - {None}, cleaning))))


def _a_few_of_each(found: list[_Found]) -> Iterator[Note]:
    for kind, about in _KINDS.items():
        of_kind = [one for one in found if one.kind == kind]
        if kind == "time":  # one column is asked for
            del of_kind[1:]
        # One more is shown as easily as named.
        shown = _SHOWN if len(of_kind) > _SHOWN + 1 else len(of_kind)
        yield from (Note(text=one.text, about=about) for one in of_kind[:shown])
        if len(of_kind) > shown:
            rest = [f"'{one.column}'" for one in of_kind[shown:]]
            names = ", ".join(rest[:_NAMED]) + (", ..." if len(rest) > _NAMED else "")
            yield Note(text=f"and {len(rest):,} more columns likewise: {names}", about=about)


def _all(
    table: Table, target: str | None, task: Task | None, apart: set[str | None], cleaning: bool
) -> Iterator[_Found]:
    of_target = None if target is None else levels_of(table.column(target))
    asked = None
    if of_target is not None:
        if text := faults.alike(of_target, target=True):
            yield _Found("alike", of_target.name, text)
        of_target = faults.spelled_alike(of_target)
        yield from (_Found("target", of_target.name, text) for text in target_faults.faults_of(of_target, task))
        if len(of_target.levels) > 1:
            asked = leaks.target_of(of_target, classes=target_faults.is_classes(of_target, task))
    same_columns, same_rows = faults.SameColumns(), faults.SameRows(table.rows)
    indicators = faults.Indicators(table.rows)
    if in_order := asked is not None and _in_order(asked):
        text = f"the rows are sorted by '{target}': a column that goes with their order, such as a running number,"
        yield _Found("order", table.name, f"{text} would tell it")
    for given in table.columns:
        if given.name == target:
            continue
        column = levels_of(given)
        of_column = list(_of_column(column, asked, in_order, split=cleaning or bool(apart), words=not cleaning))
        if column.name not in apart:
            yield from of_column
        if any(one.kind in ("identifier", "leak") for one in of_column):
            same_rows.leave_out(column)
        else:
            if text := same_columns.add(column):
                yield _Found("columns", column.name, text)
            else:
                same_rows.add(column)
                indicators.add(column)
    yield from (_Found("columns", *found) for found in indicators.found())
    if text := same_rows.found(of_target):
        yield _Found("rows", table.name, text)
    if target is not None and asked is not None and (text := made_of(table, target)):
        yield _Found("sum", target, text)


def _in_order(asked: leaks.Target) -> bool:
    """Whether the rows are sorted by the target."""
    steps = np.diff(asked.y)
    if asked.classes:
        in_order = int(np.count_nonzero(steps)) < len(np.unique(asked.y))
    else:
        in_order = bool(np.all(steps >= 0)) or bool(np.all(steps <= 0))
    return in_order and len(asked.y) >= 30


def _of_column(
    column: Levels, asked: leaks.Target | None, in_order: bool, *, split: bool, words: bool
) -> Iterator[_Found]:
    """What is found in a column: the one kind that explains it best, and what may come beside that."""

    def one(kind: str, text: str) -> Iterable[_Found]:
        return [_Found(kind, column.name, text)] if text else []

    if constant := faults.constant(column):
        yield from one("constant", constant)
        return
    known = (
        one("date", dates.date(column))
        or one("quantity", faults.quantity(column))
        or one("identifier", identifiers.identifier(column, words=words, older=not split))
    )
    yield from known
    in_time = column.kind == "date" or any(found.kind == "date" for found in known) or words_of(column.name).time
    # not where it is time that the target follows, nor where the rows are known to be sorted by it
    follows = in_time and (column.steady or (asked is not None and not asked.classes))
    if asked is not None and not follows and not (column.steady and in_order):
        yield from one("leak", leaks.leak(column, asked))
    if in_time and not split:
        yield from one("time", _time(column))
    if known:
        return
    yield from one("code", identifiers.code(column))
    if not split:
        yield from one("group", identifiers.group(column))
    yield from one("mark", faults.mark(column))
    yield from one("levels", faults.alike(column, target=False))


def _time(column: Levels) -> str:
    """A sentence where a column may say when a row was made."""
    if column.steady:
        why = "the rows are in its order"
    elif column.kind == "date":
        why = "it holds dates"
    elif dates.years(column):
        why = f"it holds years, {shown(column.levels[0])} to {shown(column.levels[-1])}"
    else:
        return ""
    return (
        f"column '{column.name}' says when a row was made ({why}): if it is later rows that are to be predicted, "
        f"{option('--time-column', column.name)} tests on the latest"
    )
