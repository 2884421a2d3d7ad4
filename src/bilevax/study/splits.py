"""Which rows train, which validate, and which are kept for the test that no tuning sees."""

from typing import NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split

from bilevax.core.errors import DataError
from bilevax.study.levels import option
from bilevax.tables.table import Column, Table

# Assignments of whole groups that are tried.
_DRAWS = 100


class Split(NamedTuple):
    """Row numbers of the three parts, each sorted."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class Sizes(NamedTuple):
    """Shares of the rows; what is left trains. No row validates where its share is 0."""

    validation: float
    test: float


def split_stratified(codes: np.ndarray, sizes: Sizes, seed: int) -> Split:
    """A random split with each class in the same proportions in every part.

    Raises:
        DataError: there are too few rows.
    """
    rows, none = np.arange(len(codes)), np.zeros(0, np.int64)
    classes = int(codes.max()) + 1
    for part, size in sizes._asdict().items():
        if size > 0 and round(len(codes) * size) < classes:
            raise DataError(f"the {part} part has {round(len(codes) * size)} rows, too few for {classes} classes")
    rest, test = train_test_split(rows, test_size=sizes.test, stratify=codes, random_state=seed)
    if sizes.validation == 0:
        return Split(np.sort(rest), none, np.sort(test))
    # Of the rows that are left: v / (1 - t).
    share = sizes.validation / (1 - sizes.test)
    train, validation = train_test_split(rest, test_size=share, stratify=codes[rest], random_state=seed)
    return Split(np.sort(train), np.sort(validation), np.sort(test))


def split_by_group(groups: Column, codes: np.ndarray, sizes: Sizes, seed: int) -> Split:
    """A split with every group whole in one part: of many random ones that with the most even sizes and classes.

    Raises:
        DataError: a cell of the column is missing, or there are fewer than four groups.
    """
    _refuse_missing(groups, "group")
    _, group = np.unique(groups.values, return_inverse=True)
    count = int(group.max()) + 1
    if count < 4:
        raise DataError(f"group column '{groups.name}' has {count} groups; four are the least that can be split")
    # Rows of each class in each group, [groups, classes].
    table = np.zeros((count, int(codes.max()) + 1))
    np.add.at(table, (group, codes), 1.0)
    # rows of each class that each part is to have, [3, classes]
    wanted = np.array([1 - sizes.validation - sizes.test, sizes.validation, sizes.test])[:, None] * table.sum(axis=0)
    rng = np.random.default_rng(seed)
    best, least = np.zeros(count, np.int64), np.inf
    for _ in range(_DRAWS):
        part = _assign(rng.permutation(count), table.sum(axis=1), sizes)
        found = np.stack([table[part == k].sum(axis=0) for k in range(3)])
        # sum |found - wanted| / (1 + wanted) over parts and classes, and 10 for each class that is not trained
        distance = float(np.sum(np.abs(found - wanted) / (1 + wanted)) + 10 * np.sum(found[0] == 0))
        if distance < least:
            best, least = part, distance
    return Split(*(np.flatnonzero(best[group] == k) for k in range(3)))


def _assign(order: np.ndarray, weights: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Groups in the order given fill the test part, then the validation part, if any; at least one each, two train."""
    part = np.zeros(len(order), np.int64)
    # Where the middle of each group lies, if the groups are laid end to end.
    reached = np.cumsum(weights[order]) - weights[order] / 2
    total = weights.sum()
    last = max(1, min(int(np.searchsorted(reached, sizes.test * total)), len(order) - 3))
    # test takes the first groups, validation the next ones; each part has one group at least
    end = max(last + 1, min(int(np.searchsorted(reached, (sizes.test + sizes.validation) * total)), len(order) - 2))
    end = end if sizes.validation > 0 else last
    part[order[:last]], part[order[last:end]] = 2, 1
    return part


def split_by_time(times: Column, sizes: Sizes) -> Split:
    """The oldest rows train, the newest test; rows of one moment stay together.

    Raises:
        DataError: the column holds text, a cell is missing, or there are too few moments.
    """
    if times.kind == "text":
        raise DataError(
            f"time column '{times.name}' holds text; have its dates read as such "
            f"({option('--types', times.name, '=date')}), or write dates as 2024-12-31 and times as numbers"
        )
    _refuse_missing(times, "time")
    moments, first = np.unique(np.sort(times.values), return_index=True)
    n = len(times.values)
    # The boundaries lie between moments, as near to the shares as those allow.
    begin = _nearest(first, (1 - sizes.test) * n)
    middle = _nearest(first[:begin], (1 - sizes.test - sizes.validation) * n) if sizes.validation > 0 else begin
    if not (0 < middle < begin or 0 < middle == begin < len(moments)):
        raise DataError(f"time column '{times.name}' has {len(moments)} moments, too few to split the rows by them")
    later, tests = times.values >= moments[middle], times.values >= moments[begin]
    return Split(np.flatnonzero(~later), np.flatnonzero(later & ~tests), np.flatnonzero(tests))


def _nearest(first: np.ndarray, target: float) -> int:
    """The moment whose first row is nearest to the target."""
    return int(np.argmin(np.abs(first - target))) if len(first) else 0


def _refuse_missing(column: Column, role: str) -> None:
    missing = int(column.missing.sum())
    if missing:
        raise DataError(f"{role} column '{column.name}' is empty in {missing:,} rows; fill or leave out these rows")


def check_classes(split: Split, codes: np.ndarray, labels: list[str]) -> None:
    """Check that every class is trained, and that each part has rows of at least two classes.

    Raises:
        DataError: a class is absent from the training rows, or a part has one class only.
    """
    everywhere = set(codes.tolist())
    absent = sorted(everywhere - set(codes[split.train].tolist()))
    if absent:
        listed = ", ".join(f"'{labels[code]}'" for code in absent)
        raise DataError(f"no training row is of class {listed}; split the rows otherwise, or leave the class out")
    for name, rows in split._asdict().items():
        found = np.unique(codes[rows])
        if len(found) < 2 and (len(rows) or name != "validation"):
            only = f"class '{labels[found[0]]}' only" if len(found) else "no row"
            raise DataError(f"the {name} part has {only}; split the rows otherwise")


def rows_seen_before(table: Table, split: Split) -> int:
    """The number of test rows that agree with a training or validation row in all columns."""
    cells = []
    for column in table.columns:
        if column.kind == "text":
            cells.append(np.unique(column.as_text().values.astype(str), return_inverse=True)[1].astype(float))
        else:
            # One NaN, and no minus zero: equal cells have equal bytes.
            cells.append(np.where(column.missing, np.nan, column.values + 0.0))
    rows = [row.tobytes() for row in np.column_stack(cells)]
    before = {rows[i] for i in (*split.train, *split.validation)}
    return sum(rows[i] in before for i in split.test)
