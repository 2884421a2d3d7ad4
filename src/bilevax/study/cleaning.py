"""Which labels of a table are wrong: the fit, and what is recorded of it."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bilevax.core.cleaning_records import Labelled as LabelledRecord
from bilevax.core.cleaning_records import Shown, Suspect, Wrong
from bilevax.core.events import Event
from bilevax.core.record_lines import Records
from bilevax.core.run_records import End, Note, Record
from bilevax.sklearn import LabelCleaner
from bilevax.study.cleaning_check import kept_aside, may_be_kept_aside, verified
from bilevax.study.cleaning_rows import CleanSettings, Labelled, rows_to_clean
from bilevax.study.cleaning_shown import MOST_ROWS, brightness, cells_of, pixels_of, telling_columns
from bilevax.study.study import machine_of, plain
from bilevax.tables.table import Table

__all__ = ["CleanSettings", "Cleaning", "clean_table"]


class Cleaning(NamedTuple):
    """What came out.

    Attributes:
        rows: that have a label.
        probability: that a label is wrong, [n]; 0 where it is trusted.
        suggested: the most probable label of each row, [n].
        trusted: whose label is trusted, [n].
        records: the lines of ``metrics.jsonl``, in their order.
    """

    rows: Labelled
    probability: np.ndarray
    suggested: np.ndarray
    trusted: np.ndarray
    records: Records

    @property
    def events(self) -> tuple[Event, ...]:
        """The records as JSON values."""
        return tuple(map(plain, self.records))

    @property
    def order(self) -> np.ndarray:
        """The rows that were doubted, most suspicious first."""
        doubted = np.flatnonzero(~self.trusted)
        return doubted[np.argsort(-self.probability[doubted], kind="stable")]

    def corrections(self) -> dict[int, int]:
        """Rows, from 0, whose label is more probably wrong than right, each with a row that has the suggested label."""
        labels, codes, places = self.rows.labels, self.rows.codes, self.rows.places
        # a row that has the suggested label, whose cell is written as the file writes it
        first = dict(zip(labels, np.unique(codes, return_index=True)[1].tolist(), strict=True))
        at = np.flatnonzero((self.probability > 0.5) & (self.suggested != self.rows.given))
        return {int(places[i]): int(places[first[str(self.suggested[i])]]) for i in at}


def clean_table(
    table: Table,
    target: str,
    settings: CleanSettings | None = None,
    *,
    trusted: Table | None = None,
    on_event: Callable[[Event], object] | None = None,
) -> Cleaning:
    """Find the labels of a table that are wrong, by :class:`~bilevax.sklearn.LabelCleaner`.

    Args:
        table: features and labels.
        target: the column of labels.
        settings: see :class:`~bilevax.study.cleaning_rows.CleanSettings`.
        trusted: other rows, with the same columns, whose labels are right.
        on_event: called with every record as it happens, as JSON values (see ``core/cleaning_records.py``), and with
            ``stage`` records, which are not kept.

    Raises:
        DataError: a fault of a table.
        ParameterError: a setting does not suit the table.
    """
    start, settings = time.perf_counter(), settings or CleanSettings()
    records: list[Record] = []

    def emit(record: Record) -> None:
        records.append(record)
        if on_event is not None:
            on_event(plain(record))

    def stage(name: str) -> None:
        if on_event is not None:
            on_event({"kind": "stage", "name": name, "long": True})

    stage("looking at the table")
    rows = rows_to_clean(table, target, settings, trusted)
    for note in rows.notes:
        emit(note)
    emit(_labelled(rows, settings))
    stage(f"looking for wrong labels among {int(np.sum(~rows.trusted)):,}")
    cleaner = LabelCleaner(settings.model, random_state=settings.seed)
    given = rows.given
    known = None if rows.below is None else (rows.below[0], np.array(rows.labels)[rows.below[1]])
    cleaner.fit(rows.features, given, trusted=known or (rows.trusted if rows.trusted.any() else None))
    for text in cleaner.notes_:
        emit(Note(text=text, about="model"))
    out = Cleaning(rows, cleaner.wrong_label_probability_, cleaner.suggested_, rows.trusted, Records())
    for record in (
        _wrong(rows, cleaner),
        *verified(rows, out.probability, out.suggested),
        *_suspects(out, settings.seed),
    ):
        emit(record)
    if may_be_kept_aside(rows):
        stage("fitting once more, without half of the trusted rows")
        for record in kept_aside(rows, settings, cleaner.noise_matrix_):
            emit(record)
    emit(End(code="OK", message="", interrupted=False, seconds=time.perf_counter() - start))
    return out._replace(records=Records(records))


def config_of(table: Table, target: str, settings: CleanSettings, options: Event) -> dict[str, dict[str, object]]:
    """The tables of ``config.toml``: the table, what was asked for, and what computed it."""
    return {
        "data": {"table": table.name, "target": target, "rows": table.rows, "sha256": table.sha256 or None},
        "clean": {**settings._asdict(), **options},
        **machine_of(jax=False),
    }


def _labelled(rows: Labelled, settings: CleanSettings) -> LabelledRecord:
    doubted = ~rows.trusted
    counts = np.bincount(rows.codes[doubted], minlength=len(rows.labels)).tolist()
    flipped = int(np.sum(rows.given != rows.truth)) if settings.flip is not None else 0
    return LabelledRecord(
        rows=int(doubted.sum()),
        classes=dict(zip(rows.labels, counts, strict=True)),
        trusted=int(rows.trusted.sum()) + (0 if rows.below is None else len(rows.below[1])),
        trusted_from=rows.trusted_from,
        features=len(rows.features.names),
        missing_cells=sum(int(column.missing.sum()) for column in rows.features.columns),
        flipped=flipped,
    )


def _wrong(rows: Labelled, cleaner: LabelCleaner) -> Wrong:
    """With classes in the order of the table's, which of texts is another."""
    place = {label: c for c, label in enumerate(cleaner.classes_.tolist())}
    by = np.array([place[label] for label in rows.labels])
    doubted, square = ~rows.trusted, np.ix_(by, by)
    q, flows = cleaner.posterior_[doubted][:, by], np.zeros((len(by), len(by)))
    # F_cj = sum of P(true c | x, label j) over the rows that are given as j
    for j in range(len(by)):
        flows[:, j] = q[rows.codes[doubted] == j].sum(axis=0)
    low, high = (bound[square].tolist() for bound in cleaner.noise_interval_)
    found = cleaner.expected_wrong_
    return Wrong(
        expected=(float(found.value), float(found.low), float(found.high)),
        suspicious=len(cleaner.suspicious_rows_),
        labels=list(rows.labels),
        noise=cleaner.noise_matrix_[square].tolist(),
        low=low,
        high=high,
        flows=flows.tolist(),
    )


def _suspects(out: Cleaning, seed: int) -> list[Record]:
    """The most suspicious rows, those alone whose label is more probably wrong than right, or the first few."""
    rows = out.rows
    shown = out.order[: min(MOST_ROWS, max(20, int(np.sum(out.probability > 0.5))))]
    pixels = pixels_of(rows.features)
    names = [] if pixels else telling_columns(rows.features, rows.codes, seed)
    dots = brightness(rows.features, pixels, shown).tolist() if pixels else [[]] * len(shown)
    cells = cells_of(rows.features.take(shown), names)
    kept = [[column.values[i] or "" for column in rows.table.kept] for i in shown]
    truth = rows.truth[shown].tolist() if rows.truth is not None else [None] * len(shown)
    image = (pixels.height, pixels.width) if pixels else None
    keeps = [column.name for column in rows.table.kept]
    suspects = [
        Suspect(
            number=int(rows.places[i]) + 1,
            probability=float(out.probability[i]),
            given=rows.labels[rows.codes[i]],
            suggested=str(out.suggested[i]),
            truth=truth[k],
            cells=tuple(cells[k]),
            kept=tuple(kept[k]),
            pixels=tuple(dots[k]),
        )
        for k, i in enumerate(shown.tolist())
    ]
    return [Shown(columns=tuple(names), features=len(rows.features.names), kept=tuple(keeps), image=image), *suspects]
