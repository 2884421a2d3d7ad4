"""What is wrong with the target, or may be; and whether it is made of other columns."""

import numpy as np

from bilevax.core.run_records import Task
from bilevax.core.text import counted, listed, percent
from bilevax.study.levels import Levels, option, rows_in, shown, such_as
from bilevax.tables.table import Table

_MANY = 20
_ROWS_OF_A_CLASS = 50
_RARE_ROWS, _RARE_SHARE = 20, 0.01
_FEW_NUMBERS = 10
_SHOWN = 5
# Of a sum that holds in every row: columns, rows for each of them, and the error that rounding leaves.
_COLUMNS, _ROWS, _ROUNDING = 60, 3, 1e-7
_SAMPLE = 2000


def is_classes(column: Levels, task: Task | None) -> bool:
    """True where the target holds classes: it was said so, or they are texts, truth values or few numbers."""
    if task is not None:
        return task == "classes"
    if column.kind in ("text", "boolean"):
        return True
    few = len(column.levels) <= _MANY
    return column.kind != "date" and (few or (column.whole and column.known >= _ROWS_OF_A_CLASS * len(column.levels)))


def described(column: Levels) -> str:
    """The target in a few words: its classes and their rows, or where its numbers lie."""
    if not column.known:
        return "empty in every row"
    if not is_classes(column, None):
        if column.kind == "date":
            return "dates"
        return f"numbers from {shown(column.levels[0])} to {shown(column.levels[-1])}"
    order = np.argsort(-column.counts, kind="stable")[:_SHOWN].tolist()
    named = ", ".join(f"{shown(column.levels[i])} in {counted(int(column.counts[i]), 'row')}" for i in order)
    more = len(column.levels) - len(order)
    return f"{counted(len(column.levels), 'class')}: {named}" + (f" and {more:,} more" if more else "")


def faults_of(column: Levels, *, classes: bool) -> list[str]:
    """A sentence for each."""
    n, found = len(column.codes), []
    if column.known < n:
        found.append(f"'{column.name}' is missing in {rows_in(n - column.known, n)}: these are left out")
    if not column.known:
        return found
    if not classes:
        if len(column.levels) <= _FEW_NUMBERS:
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
        number = "; if it is a quantity, predict a number (--task number)" if column.ordered else ""
        tail = (
            f": always predicting the most frequent class is right in {percent(float(most))} of the rows, so accuracy "
            "says little; score by roc_auc or average_precision (--scoring)"
            if len(column.levels) == 2
            else f": little is learned of it; merge it into another class, or gather more rows{number}"
        )
        found.append(f"class {label} of '{column.name}' has {rows_in(rows, column.known)}{tail}")
    return found


def made_of(table: Table, target: str) -> str:
    """A sentence where the target is a sum, or a product, of two or more columns in every row."""
    numbers = [c for c in table.columns if c.kind in ("integer", "number") and np.ptp(c.values) != 0]
    y = next((c.values for c in numbers if c.name == target), None)
    others = [c for c in numbers if c.name != target]
    if y is None or not 2 <= len(others) <= _COLUMNS or len(np.unique(y)) <= _FEW_NUMBERS:
        return ""
    rows = np.random.default_rng(0).permutation(table.rows)[:_SAMPLE]
    y, X = y[rows], np.column_stack([c.values[rows] for c in others])
    whole = ~np.isnan(y)
    X = X[:, np.isnan(X[whole]).mean(axis=0) < 0.2]
    others = [c for c in others if np.isnan(c.values[rows][whole]).mean() < 0.2]
    whole &= ~np.isnan(X).any(axis=1)
    y, X = y[whole], X[whole]
    names = [c.name for c in others]
    if used := _exact(X, y):
        return _made(target, [names[j] for j in used], "a sum (with factors)")
    positive = (X > 0).all(axis=0)
    if (y > 0).all() and (used := _exact(np.log(X[:, positive]), np.log(y))):
        kept = [name for name, one in zip(names, positive, strict=True) if one]
        return _made(target, [kept[j] for j in used], "a product (with powers)")
    return ""


def _exact(X: np.ndarray, y: np.ndarray) -> list[int]:
    """The two or more columns of which y is a linear function to rounding; empty where it is none."""
    if X.shape[1] < 2 or len(y) < _ROWS * (X.shape[1] + 1):
        return []
    Z, z = _standard(X), _standard(y)
    if not z.any():
        return []
    factors, _, _, _ = np.linalg.lstsq(Z, z, rcond=1e-10)
    if np.abs(Z @ factors - z).max() > _ROUNDING:
        return []
    used = np.flatnonzero(np.abs(factors) > 1e-6).tolist()
    return used if len(used) >= 2 else []


def _standard(x: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and deviation 1; of 0 where a column is constant."""
    x = x / np.maximum(np.abs(x).max(axis=0), np.finfo(float).tiny)  # squares do not overflow
    x = x - x.mean(axis=0)
    spread = x.std(axis=0)
    standard: np.ndarray = np.where(spread > 1e-12, x / np.where(spread > 1e-12, spread, 1.0), 0.0)
    return standard


def _made(target: str, names: list[str], how: str) -> str:
    listing = listed(f"'{name}'" for name in names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return (
        f"'{target}' is {how} of columns {listing} in every row: are these known before '{target}' is? If not, leave "
        f"them out ({' '.join(option('--drop', name) for name in names[:6])})"
    )
