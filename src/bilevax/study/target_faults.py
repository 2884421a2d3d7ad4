"""What is wrong with the target, or may be."""

import numpy as np

from bilevax.core.run_records import Task
from bilevax.core.text import counted, percent
from bilevax.study.levels import Levels, rows_in, shown, such_as

_MANY = 20
_ROWS_OF_A_CLASS = 50
_RARE_ROWS, _RARE_SHARE = 20, 0.01
_FEW_NUMBERS = 10
_SHOWN = 5


def is_classes(column: Levels, task: Task | None) -> bool:
    """True where the target holds classes: it was said so, or they are texts, truth values or few numbers."""
    if task is not None:
        return task == "classes"
    if column.kind in ("text", "boolean"):
        return True
    few = len(column.levels) <= _MANY
    return column.kind != "date" and (few or (column.whole and column.known >= _ROWS_OF_A_CLASS * len(column.levels)))


def described(column: Levels, task: Task | None = None) -> str:
    """The target in a few words: its classes and their rows, or where its numbers lie."""
    if not column.known:
        return "empty in every row"
    if not is_classes(column, task):
        if column.kind == "date":
            return "dates"
        return f"numbers from {shown(column.levels[0])} to {shown(column.levels[-1])}"
    order = np.argsort(-column.counts, kind="stable")[:_SHOWN].tolist()
    named = ", ".join(f"{shown(column.levels[i])} in {counted(int(column.counts[i]), 'row')}" for i in order)
    more = len(column.levels) - len(order)
    return f"{counted(len(column.levels), 'class')}: {named}" + (f" and {more:,} more" if more else "")


def faults_of(column: Levels, task: Task | None) -> list[str]:
    """A sentence for each."""
    n, found = len(column.codes), []
    if column.known < n:
        found.append(f"'{column.name}' is missing in {rows_in(n - column.known, n)}: these are left out")
    if not column.known:
        return found
    if not is_classes(column, task):
        if len(column.levels) <= _FEW_NUMBERS and task not in ("count", "amount"):
            found.append(
                f"'{column.name}' is predicted as a number and has {len(column.levels)} different values "
                f"({such_as(column, 4)}): are these classes?"
            )
        return found
    most = column.counts.max() / column.known
    rarest = int(column.counts.argmin())
    rows, share = int(column.counts[rarest]), column.counts[rarest] / column.known
    label = shown(column.levels[rarest])
    if len(column.levels) == 1:
        found.append(f"'{column.name}' is {label} in every row: there is nothing to predict")
    elif (rows < _RARE_ROWS and column.known >= 10 * _RARE_ROWS) or share < _RARE_SHARE:
        number = f" if it is a quantity, predict {_as_number(column)}; as a class," if column.ordered else ""
        tail = (
            f": always predicting the most frequent class is right in {percent(float(most))} of the rows, so accuracy "
            "says little; score by roc_auc or average_precision (--scoring)"
            if len(column.levels) == 2
            else f":{number} little is learned of it; merge it into another class, or gather more rows"
        )
        found.append(f"class {label} of '{column.name}' has {rows_in(rows, column.known)}{tail}")
    return found


def _as_number(column: Levels) -> str:
    """How a quantity is predicted: counts are whole, at least 0, and mostly small."""
    if column.whole and column.levels[0] >= 0:
        ranked = np.repeat(column.levels, column.counts)
        if ranked.mean() > np.median(ranked):
            return "a count (--task count)"
    return "a number (--task number)"
