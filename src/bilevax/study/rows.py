"""Rows that deserve a look: hardest, most influential, typical; and what each cell adds to their scores."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from bilevax.core.run_records import Contribution, Row
from bilevax.study.kept import TableModel
from bilevax.study.preparation import Prepared
from bilevax.tables.additive import AdditiveModel, exposures
from bilevax.tables.linear import LinearModel
from bilevax.tables.table import Column, Table
from bilevax.tables.terms import design_from_terms

HARDEST, INFLUENTIAL, SHOWN = 10, 10, 8
"""Rows of each kind, and contributions of a row, at most."""


def telling_rows(
    prepared: Prepared,
    model: TableModel,
    prediction: np.ndarray,
    losses: np.ndarray,
    influence: Sequence[float] | None,
) -> list[Row]:
    """Records of them.

    Args:
        prepared: all rows.
        model: the kept one.
        prediction: for the test rows.
        losses: of the test rows.
        influence: of the training rows.
    """
    test, train = prepared.split.test, prepared.split.train
    hardest = test[np.argsort(-losses, kind="stable")[:HARDEST]]
    by_row = dict(zip(test.tolist(), losses.tolist(), strict=True))
    out = _rows("hardest", hardest, prepared, model, by_row, {})
    out += _rows("typical", test[_typical(prepared, prediction)], prepared, model, by_row, {})
    if influence is not None:
        size = np.asarray(influence)
        moving = train[np.argsort(-size, kind="stable")[:INFLUENTIAL]]
        out += _rows("influential", moving, prepared, model, {}, dict(zip(train.tolist(), size.tolist(), strict=True)))
    return out


def _typical(prepared: Prepared, prediction: np.ndarray) -> list[int]:
    """Of frequent classes the row in the middle, by the probability of its class; of numbers, rows at the quartiles."""
    target, test = prepared.target, prepared.split.test
    if target.labels is None:
        order = np.argsort(prediction, kind="stable")
        return [int(order[int(q * (len(order) - 1))]) for q in (0.25, 0.5, 0.75)]
    out, values = [], target.values[test]
    for code in np.argsort(-np.bincount(values), kind="stable")[:3].tolist():
        own = np.flatnonzero(values == code)
        if len(own):
            # of each class the row whose probability is the median of its own
            out.append(int(own[np.argsort(prediction[own, code], kind="stable")[len(own) // 2]]))
    return out


def _rows(
    why: Literal["hardest", "influential", "typical"],
    rows: np.ndarray,
    prepared: Prepared,
    model: TableModel,
    losses: dict[int, float],
    influence: dict[int, float],
) -> list[Row]:
    if not len(rows):
        return []
    target, table = prepared.target, prepared.table.take(rows)
    names, adds = contributions(model, table)
    means = model.predict_mean(table)
    out = []
    for k, row in enumerate(rows.tolist()):
        value = target.values[row]
        classes = target.labels is not None
        # of several scores that of the true class
        s = int(value) if adds.shape[2] > 1 else 0
        order = np.argsort(-np.abs(adds[k, :, s]), kind="stable")
        shown, rest = order[:SHOWN].tolist(), order[SHOWN:]
        out.append(
            Row(
                why=why,
                number=int(prepared.places[row]) + 1,
                truth=target.text(value),
                predicted=target.text(int(means[k].argmax()) if classes else means[k]),
                probability=float(means[k, value]) if classes else None,
                loss=losses.get(row),
                influence=influence.get(row),
                intercept=float(model.intercept[s]),
                contributions=[
                    Contribution(name=names[j], cell=_cell(table, names[j], k), adds=float(adds[k, j, s]))
                    for j in shown
                ],
                rest=float(adds[k, rest, s].sum()),
            )
        )
    return out


def contributions(model: TableModel, table: Table) -> tuple[list[str], np.ndarray]:
    """What each effect and exposure, or each column of a linear model, adds to the scores: names, [n, effects, S]."""
    if isinstance(model, AdditiveModel):
        names, adds = list(model.names), model.contributions(model.codes(table))
        if not model.exposure:
            return names, adds
        added = np.log(exposures(table, model.exposure))[:, None, None]
        return [*names, model.exposure], np.concatenate([adds, added], axis=1)
    return _of_columns(model, table)


def _of_columns(model: LinearModel, table: Table) -> tuple[list[str], np.ndarray]:
    design, names = design_from_terms(model.terms, table), list(model.columns)
    adds = np.zeros((table.rows, len(names), len(model.intercept)))
    of_term = np.array([names.index(term.column) for term in model.terms], int)
    for k in range(len(names)):
        own = np.flatnonzero(of_term == k)
        adds[:, k] = design[:, own] @ model.coef[:, own].T
    return names, adds


def _cell(table: Table, name: str, row: int) -> str:
    """What stands in the row: of a column, of the column of a date's part, or of both columns of a pair."""
    if name in table.names:
        return _text(table.column(name), row)
    first, found, second = name.partition(" x ")
    if found and first in table.names and second in table.names:
        return f"{_text(table.column(first), row)}, {_text(table.column(second), row)}"
    column = name.rpartition(" (")[0]
    return _text(table.column(column), row) if column in table.names else ""


def _text(column: Column, row: int) -> str:
    cell = column.as_text().values[row] if column.kind != "date" else None
    if column.kind == "date" and not column.missing[row]:
        return str(np.datetime64(int(column.values[row] * 86400), "s"))
    return "(missing)" if cell is None else str(cell)
