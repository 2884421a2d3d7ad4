"""Columns that know the target: what one column alone predicts, in rows that had no part in the prediction.

The rows are put in the order of the column. A row whose value is frequent is predicted by the other rows of that value;
one whose value is rare by the rows next to it: a copy, a recoding, a flag, a threshold and any monotone function all
predict nearly every row, and a column that is merely strong does not. What counts is the error that is left, as a share
of that of the best constant guess.
"""

from typing import NamedTuple

import numpy as np

from bilevax.study.levels import BITS, Levels, bits, cut_percent, option

SAMPLE = 50_000
"""Rows that are looked at, at most."""

# Rows of a value that predict each other; fewer of a class, or of empty cells, tell nothing.
_MANY = 10
# Share of the error that may be left: of a flag or a category, of a quantity, of the presence of cells. A single honest
# measurement may separate small classes; that cells are there says little, unless they were filled in afterwards.
_LEFT_BY_LEVELS, _LEFT_BY_QUANTITY, _LEFT_BY_PRESENCE = 0.025, 0.01, 0.1
# Share of the variance of the ranks that may be left where a number is predicted.
_LEFT_OF_VARIANCE = 0.002
# Share of a column's cells that are known, from which on the others are left out of account.
_KNOWN = 0.2
# Below so many rows a law of nature may leave as little; then only a rising or falling function is a leak.
_FEWEST, _ROWS = 30, 100


class Target(NamedTuple):
    """What is predicted.

    Attributes:
        name: of the column.
        y: class codes, or ranks, of the rows looked at [n].
        classes: True for classes.
        rows: which rows of the table those are.
        guess: error of the best constant guess: rows, or sum of squares.
    """

    name: str
    y: np.ndarray
    classes: bool
    rows: np.ndarray
    guess: float


class Score(NamedTuple):
    """How well a column predicts: rows looked at, error left as a share of that of a guess, share of the rows right."""

    rows: int
    left: float
    right: float


def target_of(column: Levels, *, classes: bool) -> Target:
    """The target on the rows where it is known, a sample of them where they are many."""
    rows = np.flatnonzero(column.codes >= 0)
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(0).choice(rows, SAMPLE, replace=False))
    return _target(column.name, rows, column.codes[rows].astype(np.int64), classes=classes)


def _target(name: str, rows: np.ndarray, codes: np.ndarray, *, classes: bool) -> Target:
    counts = np.bincount(codes)
    if classes:
        return Target(name, codes, True, rows, float(len(rows) - counts.max()))
    # rows of one value have the mean of their ranks
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[codes]
    return Target(name, ranks, False, rows, float(np.sum((ranks - ranks.mean()) ** 2)))


def _where_known(column: Levels, target: Target) -> Target:
    """The target in the rows where a cell of the column is known; all rows where few are."""
    known = column.codes[target.rows] >= 0
    if known.all() or np.mean(known) < _KNOWN:
        return target
    codes = np.unique(target.y[known], return_inverse=True)[1]
    return _target(target.name, target.rows[known], codes, classes=target.classes)


def score(codes: np.ndarray, target: Target, *, ordered: bool) -> Score:
    """How well the levels of a column (-1: missing) predict the target."""
    order = np.argsort(codes[target.rows], kind="stable")
    x, y, n = codes[target.rows][order], target.y[order], len(order)
    # Each row's level lies from first to last.
    first, last = np.searchsorted(x, x, "left"), np.searchsorted(x, x, "right")
    frequent = last - first >= _MANY
    near = ~frequent & (x >= 0) & ordered
    # of a level with few rows as of no column: the best constant guess
    errors = (y != np.bincount(y).argmax()) + 0.0 if target.classes else (y - y.mean()) ** 2
    if frequent.any():
        errors[frequent] = _within(first[frequent], y[frequent], target)
    # Missing cells come first, and are no neighbours.
    before, after = first[near] - 1, last[near]
    before = np.where(before < np.searchsorted(x, 0), after, before).clip(0, n - 1)
    after = np.where(after >= n, before, after)
    if target.classes:
        # a row of a rare value is predicted by its neighbours on either side
        errors[near] = 0.5 * (y[before] != y[near]) + 0.5 * (y[after] != y[near])
    else:
        errors[near] = (y[near] - 0.5 * (y[before] + y[after])) ** 2
    error = float(errors.sum())
    # what is left of the error of the best constant guess, and the share of rows that are right
    return Score(n, error / target.guess if target.guess else 1.0, 1.0 - error / n)


def _within(level: np.ndarray, y: np.ndarray, target: Target) -> np.ndarray:
    """The error of each row by the most frequent class, or the mean, of its level."""
    level = np.unique(level, return_inverse=True)[1]
    count = np.bincount(level)
    if not target.classes:
        # each level by its mean, or by its most frequent class
        means = np.bincount(level, y) / count
        squares: np.ndarray = (y - means[level]) ** 2
        return squares
    width = int(target.y.max()) + 1
    pairs, rows = np.unique(level * width + y, return_counts=True)
    most = np.zeros(len(count))
    np.maximum.at(most, pairs // width, rows)
    wrong: np.ndarray = (1 - most / count)[level]
    return wrong


def leak(column: Levels, target: Target) -> str:
    """A sentence where a column, or the presence of its cells, tells the target; empty where it does not."""
    x, y = option("--drop", column.name), target.name
    leave = f"is it known before '{y}' is? If not, leave it out ({x})"
    if text := _presence(column, target, leave):
        return text
    all_rows, target = len(target.rows), _where_known(column, target)
    codes = column.codes[target.rows]
    if len(column.levels) <= 0.5 * len(codes) and _copies(codes, target):
        return f"column '{column.name}' is a copy of '{y}' or a recoding, value for value: {leave}"
    if column.ordered and _monotone(codes, target):
        return f"column '{column.name}' is a rising or falling function of '{y}': {leave}"
    found = score(column.codes, target, ordered=column.ordered)
    if not _tells(column, found, target):
        return ""
    rows = f" ({found.rows:,} of its cells were looked at)" if all_rows == SAMPLE else ""
    if target.classes:
        return f"column '{column.name}' alone predicts '{y}' in {_rows(found, all_rows)}{rows}: {leave}"
    share = cut_percent(1 - found.left)
    return f"column '{column.name}' alone tells {share} of how the rows are ordered by '{y}'{rows}: {leave}"


def _copies(codes: np.ndarray, target: Target) -> bool:
    """True where the levels and the values of the target belong to each other one to one, and not by chance."""
    if codes.min() < 0 or not target.guess:
        return False
    x, y = codes.astype(np.int64), np.unique(target.y, return_inverse=True)[1]
    counts = np.bincount(x)
    values = np.count_nonzero(counts)
    if values != y.max() + 1:
        return False
    # as many pairs as values: each value of the one goes with one of the other
    return bits(counts) > BITS and len(np.unique(x * values + y)) == values


def _monotone(codes: np.ndarray, target: Target) -> bool:
    """True where a number is a rising or falling function of the target."""
    if target.classes or len(codes) < _FEWEST or codes.min() < 0:
        return False
    order = np.argsort(codes, kind="stable")
    steps, moves = np.diff(codes[order]) > 0, np.diff(target.y[order])
    # Both move at the same places, and always the same way.
    return bool(np.all((moves != 0) == steps) and (np.all(moves >= 0) or np.all(moves <= 0)) and steps.any())


def _tells(column: Levels, found: Score, target: Target) -> bool:
    if not target.classes:
        return found.rows >= _ROWS and found.left <= _LEFT_OF_VARIANCE
    few = len(column.levels) * _MANY <= found.rows
    return found.left <= (_LEFT_BY_LEVELS if few else _LEFT_BY_QUANTITY)


def _rows(found: Score, rows: int) -> str:
    where = "" if found.rows == rows else " where it is known"
    return (f"{cut_percent(found.right)} of the rows" if found.right < 1 else "every row") + where


def _presence(column: Levels, target: Target, leave: str) -> str:
    """A sentence where what is missing tells the target: its class, or whether a number is its most frequent one."""
    there = (column.codes >= 0).astype(np.int32)
    if there.all():
        return ""
    asked, what = target, f"'{target.name}'"
    if not target.classes:
        _, y, counts = np.unique(target.y, return_inverse=True, return_counts=True)
        usual = (y == counts.argmax()).astype(np.int64)
        asked = target._replace(y=usual, classes=True, guess=float(min(usual.sum(), len(usual) - usual.sum())))
        what = f"whether '{target.name}' has its most frequent value"
    found = score(there, asked, ordered=False)
    if found.left > (_LEFT_BY_PRESENCE if target.classes else _LEFT_BY_LEVELS):
        return ""
    return f"whether a cell of column '{column.name}' is empty tells {what} in {_rows(found, found.rows)}: {leave}"
