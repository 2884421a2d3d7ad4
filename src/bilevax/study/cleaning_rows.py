"""The rows of a cleaning: given labels, those that are trusted, true ones where known; every fault of the tables."""

from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np

from bilevax.core.errors import DataError, ParameterError
from bilevax.core.run_records import Note
from bilevax.core.text import counted
from bilevax.study import faults
from bilevax.study.findings import findings
from bilevax.study.levels import levels_of
from bilevax.study.splits import Split, rows_seen_before
from bilevax.tables.labels import Labels, encode_labels, is_quantity, label_text
from bilevax.tables.table import Table, suggestion

_FEWEST_ROWS = 20

_YES, _NO = {"true", "yes", "1", "y", "t"}, {"false", "no", "0", "n", "f"}

_SEEN = ("leak", "identifier", "date", "duplicates")
"""Findings that matter here; others advise on predictions."""


class CleanSettings(NamedTuple):
    """What a user may set.

    Attributes:
        model: of the true classes: ``linear`` or ``additive``.
        task: ``classes`` where the target holds many numbers and these are classes.
        trusted_column: says by yes and no whose label is known to be right; it is no feature.
        truth: column of true labels, where these are known; it is no feature.
        flip: share of the labels that are turned, for a rehearsal.
        trust: of a rehearsal, how many labels are trusted.
        seed: of folds, and of a rehearsal.
    """

    model: Literal["linear", "additive"] = "linear"
    task: Literal["auto", "classes"] = "auto"
    trusted_column: str | None = None
    truth: str | None = None
    flip: float | None = None
    trust: int | None = None
    seed: int = 0


class Labelled(NamedTuple):
    """Rows that have a label.

    Attributes:
        table: all of their columns.
        features: the columns to learn from.
        places: their numbers in the table as it was given, from 0, [n].
        labels: the classes, as text, and ``codes`` of the given labels, [n].
        text: whether the file has texts there.
        trusted: whose label is known to be right, [n].
        below: other such rows, and the codes of their labels; None: there are none.
        trusted_from: the table or column that says so.
        truth: true labels as text, None where not known, [n]; None: no column says them.
        notes: what the user should know, one sentence each.
    """

    table: Table
    features: Table
    places: np.ndarray
    labels: tuple[str, ...]
    codes: np.ndarray
    text: bool
    trusted: np.ndarray
    below: tuple[Table, np.ndarray] | None
    trusted_from: str
    truth: np.ndarray | None
    notes: tuple[Note, ...]

    @property
    def given(self) -> np.ndarray:
        """The labels as text, [n]."""
        given: np.ndarray = np.array(self.labels)[self.codes]
        return given


def rows_to_clean(table: Table, target: str, settings: CleanSettings, trusted: Table | None = None) -> Labelled:
    """Check tables and settings, and sort out the rows.

    Args:
        table: with the labels to doubt.
        target: the column of labels.
        settings: see :class:`CleanSettings`.
        trusted: other rows, whose labels are right.

    Raises:
        DataError: a fault of a table.
        ParameterError: a setting does not suit the table.
    """
    apart = _columns_apart(table, target, settings)
    labels = _labels(table, target, settings)
    names = [name for name in table.names if name not in apart]
    if not names:
        raise DataError(f"{table.name}: no column is left to learn from beside '{target}'")
    notes = [Note(text=text) for text in table.notes] + _found(table.select([*names, target]), target)
    there = np.flatnonzero(labels.codes >= 0)
    if len(there) < table.rows:
        left = table.rows - len(there)
        notes.append(Note(text=f"{left:,} of {table.rows:,} rows are left out: '{target}' is missing there"))
        table, labels = table.take(there), labels._replace(codes=labels.codes[there])
    if table.rows < _FEWEST_ROWS:
        raise DataError(
            f"{table.name}: {counted(table.rows, 'row')} with a label; {_FEWEST_ROWS} are the least that can be judged"
        )
    mask, below, come_from = np.zeros(table.rows, bool), None, ""
    if settings.trusted_column is not None:
        mask, come_from = _marked(table, settings.trusted_column), f"column {settings.trusted_column}"
    elif trusted is not None:
        below, come_from = _trusted(trusted, names, target, labels, table.name), trusted.name
        notes += [Note(text=f"{trusted.name}: {text}") for text in trusted.notes]
        notes += _in_both(table.select(names), below[0], trusted.name)
    truth = None if settings.truth is None else table.column(settings.truth).as_text().values
    texts = tuple(map(label_text, labels.classes))
    rows = Labelled(
        table=table,
        features=table.select(names),
        places=there,
        labels=texts,
        codes=labels.codes,
        text=isinstance(labels.classes[0], str),
        trusted=mask,
        below=below,
        trusted_from=come_from,
        truth=truth,
        notes=tuple(notes),
    )
    return rows if settings.flip is None else _rehearsal(rows, settings.flip, settings.trust or 0, settings.seed)


def _columns_apart(table: Table, target: str, settings: CleanSettings) -> set[str]:
    """The columns that are not learned from, which are all there and have one part each."""
    parts = [target, *(name for name in (settings.trusted_column, settings.truth) if name is not None)]
    for name in parts:
        if parts.count(name) > 1:
            raise ParameterError(
                f"column '{name}' is given two parts; target, trusted and true labels are three columns"
            )
    table.require(parts)
    return set(parts)


def _labels(table: Table, target: str, settings: CleanSettings) -> Labels:
    column = table.column(target)
    if settings.task == "auto" and is_quantity(column):
        many = len(np.unique(column.values[~column.missing]))
        raise DataError(
            f"{table.name}: target '{target}' holds {many:,} different numbers, which are no labels; if they are "
            "classes, say --task classes; `bilevax tune`, which predicts a number, shows the rows that fit worst"
        )
    # a class that few rows have may be a slip of the pen
    return encode_labels(column, table.name, fewest=1)


def _found(table: Table, target: str) -> list[Note]:
    """What is seen in the columns: of a copy of the labels no model learns that one is wrong."""
    found = [note for note in findings(table, target, task="classes", cleaning=True) if note.about in _SEEN]
    text = faults.alike(levels_of(table.column(target)), target=True)
    return [*([Note(text=text, about="labels")] if text else []), *found]


def _marked(table: Table, name: str) -> np.ndarray:
    """True for the rows that a column says are trusted."""
    cells = table.column(name).as_text().values
    said = np.array([None if cell is None else cell.strip().casefold() for cell in cells.tolist()], object)
    unique = {cell for cell in said.tolist() if cell is not None}
    if strange := sorted(unique - _YES - _NO):
        row = int(np.flatnonzero(said == strange[0])[0]) + 1
        raise DataError(
            f"{table.name}: column '{name}' holds '{strange[0]}' in row {row:,}; rows are marked as trusted by true, "
            "yes or 1, others by false, no, 0 or an empty cell"
        )
    mask = np.isin(said, sorted(_YES))
    if not mask.any():
        raise DataError(f"{table.name}: column '{name}' marks no row as trusted; leave --trusted-column out")
    if mask.all():
        raise DataError(f"{table.name}: column '{name}' marks every row as trusted, so that there is no label to doubt")
    return mask


def _trusted(trusted: Table, names: list[str], target: str, labels: Labels, source: str) -> tuple[Table, np.ndarray]:
    """Rows of the other table that have a label, which one of the classes is."""
    trusted.require([*names, target])
    cells = trusted.column(target).as_text().values
    there = np.array([cell is not None for cell in cells.tolist()], bool)
    if not there.any():
        raise DataError(f"{trusted.name}: '{target}' is missing in every row; trusted rows have labels")
    texts = list(map(label_text, labels.classes))
    code = {text: c for c, text in enumerate(texts)}
    strange = next((row for row in np.flatnonzero(there) if cells[row] not in code), None)
    if strange is not None:
        raise DataError(
            f"{trusted.name}: row {strange + 1:,} has the label '{cells[strange]}', which no row of {source} has; "
            f"{suggestion(cells[strange], texts)}"
        )
    return trusted.select(names).take(there), np.array([code[cell] for cell in cells[there].tolist()])


def _in_both(features: Table, trusted: Table, name: str) -> list[Note]:
    """A note of rows that are trusted there and doubted here; none where rows agree because columns are coarse."""
    pairs = list(zip(features.columns, trusted.columns, strict=True))
    if any((one.kind == "text") != (other.kind == "text") for one, other in pairs):
        return []
    both = [replace(one, values=np.concatenate([one.values, other.values])) for one, other in pairs]
    own, below = np.split(np.arange(features.rows + trusted.rows), [features.rows])
    seen = rows_seen_before(replace(features, columns=tuple(both)), Split(train=below, validation=below[:0], test=own))
    if not 0 < seen <= 2 * trusted.rows:
        return []
    have, are = ("has", "is") if seen == 1 else ("have", "are")
    text = (
        f"{counted(seen, 'row')} of {features.name} {have} the cells of a row of {name} in every column but the "
        f"label, and {are} doubted all the same: where it is the same row, leave it out of {features.name}, or mark it "
        "there and give that column as --trusted-column"
    )
    return [Note(text=text, about="duplicates")]


def _rehearsal(rows: Labelled, share: float, trust: int, seed: int) -> Labelled:
    """The rows with a share of the labels turned to any other class, as if what they were before were true."""
    random = np.random.RandomState(seed)
    n, C = len(rows.codes), len(rows.labels)
    order = random.permutation(np.flatnonzero(~rows.trusted))
    sure, turned = order[:trust], order[trust : trust + round(share * n)]
    if trust + round(share * n) >= n:
        raise ParameterError(f"--trust {trust} and --flip {share:g} are all of the {n:,} rows; trust or flip fewer")
    codes, mask = rows.codes.copy(), rows.trusted.copy()
    # another class, each of the C - 1 as likely
    codes[turned] = (codes[turned] + random.randint(1, C, len(turned))) % C
    mask[sure] = True
    truth = np.array(rows.labels, object)[rows.codes]
    text = (
        f"a rehearsal: {len(turned):,} of {n:,} labels were turned to another class, each to any with equal chance "
        f"(seed {seed}); what they were is taken for the truth"
    )
    come_from = rows.trusted_from or ("drawn by --trust" if trust else "")
    return rows._replace(
        codes=codes, trusted=mask, truth=truth, trusted_from=come_from, notes=(Note(text=text), *rows.notes)
    )
