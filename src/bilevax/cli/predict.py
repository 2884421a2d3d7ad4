"""``bilevax predict``: a model of a run directory applied to a table, piece by piece."""

import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bilevax.cli.place import require_free
from bilevax.cli.source import open_in_pieces
from bilevax.core import files
from bilevax.core.errors import UsageError
from bilevax.core.text import clean
from bilevax.tables.labels import label_text
from bilevax.tables.reading import MAX_CELLS, Reading, marks_from_words, number_of
from bilevax.tables.scores import known_target, most_probable
from bilevax.tables.table import Table
from bilevax.tables.unfamiliar import Unfamiliar

if TYPE_CHECKING:
    from bilevax.study.kept import TableModel

# What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class PredictOptions(NamedTuple):
    """What a user may say of a table to predict.

    Attributes:
        missing: cells that say that nothing is known, besides those of the run: ``?,NA`` or ``COLUMN=?,NA``.
        keep: columns that stand before the prediction.
        score: whether the target is there, and the predictions are compared with it.
        max_cells: rows x columns at most of a file of which a few bytes may stand for many cells; None: the usual.
        threshold: of two classes, the probability from which on the second is predicted; None: the more probable one.
    """

    missing: Sequence[str] = ()
    keep: Sequence[str] = ()
    score: bool = False
    max_cells: int | None = None
    threshold: float | None = None


def run(directory: Path, source: str, out: Path | None, options: PredictOptions, *, force: bool) -> None:
    """Write predictions as CSV: columns that are kept, ``prediction``, and ``probability_LABEL`` for every class."""
    from bilevax.cli import scoring
    from bilevax.report.run import read_records_of
    from bilevax.report.words import AS_IF, is_weighted
    from bilevax.study.run_directory import read_model

    if out is not None:
        require_free(out, force=force)
    model, records = read_model(directory), read_records_of(directory)
    _check_threshold(options.threshold, model.classes)
    pieces = open_in_pieces(source, reading_of(model, options))
    _say(pieces.notes)
    unused = [name for name in pieces.others if name != model.target]
    if unused:
        _say([f"not used by the model: {', '.join(unused[:8])}{', ...' if len(unused) > 8 else ''}"])
    if is_weighted(records):
        _say([AS_IF])
    unfamiliar, scores = Unfamiliar(model), None
    if options.score:
        scores = scoring.scores_for(model.classes, records, options.threshold)
    with _output(out) as write:
        write(csv_lines([[*map(safe_cell, options.keep), "prediction", *_probability_names(model)]]))
        for table in pieces.tables():
            means = model.predict_mean(table)
            unfamiliar.add(table)
            if scores is not None:
                scores.add(means, table.column(model.target))
            write(csv_lines(_rows(model, table, means, options.threshold)))
    _say(unfamiliar.lines())
    if scores is not None:
        _say([scores.line(model.target, scoring.figures(scores, records))])
    if out is not None:
        _say([f"{pieces.rows:,} predictions in {out}"])


def reading_of(model: "TableModel", options: PredictOptions) -> Reading:
    """How a table is read for a model: a fault elsewhere, in the label column say, is no fault here."""
    target = known_target(model) if options.score else {}
    only = (*model.columns, *target)
    known = {name: marks for name, marks in model.missing.items() if name in ("", *only)}
    more = marks_from_words(options.missing)
    typed = {*model.text_columns, *model.number_columns}
    return Reading(
        text=(*model.text_columns, *(name for name, kind in target.items() if kind == "text")),
        numbers=(*model.number_columns, *(name for name, kind in target.items() if kind == "number")),
        only=only,
        missing={name: (*known.get(name, ()), *more.get(name, ())) for name in {**known, **more}},
        types={name: model.dates.get(name) or "date" for name in model.columns if name not in typed},
        keep=options.keep,
        max_cells=options.max_cells or MAX_CELLS,
    )


def _say(lines: Sequence[str] | Iterator[str]) -> None:
    for line in lines:
        print(f"bilevax: {clean(line)}", file=sys.stderr)


def _probability_names(model: "TableModel") -> list[str]:
    return [f"probability_{label_text(label)}" for label in model.classes]


def _check_threshold(threshold: float | None, classes: Sequence[object]) -> None:
    if threshold is None:
        return
    if len(classes) != 2:
        what = f"{len(classes)} classes" if classes else "a number"
        raise UsageError(f"--threshold is for a model of two classes; this one predicts {what}")
    if not 0.0 <= threshold <= 1.0:
        raise UsageError(f"--threshold {threshold:g} is no probability; it lies between 0 and 1")


def _rows(model: "TableModel", table: Table, means: np.ndarray, threshold: float | None) -> Iterator[list[str]]:
    """The lines of a piece."""
    if model.classes:
        labels = [safe_cell(label_text(label), label) for label in model.classes]
        predicted = ([labels[code]] for code in most_probable(means, threshold).tolist())
        numbers = [[f"{p:.6g}" for p in row] for row in means.tolist()]
    else:
        predicted, numbers = ([f"{mean:.10g}"] for mean in means.tolist()), [[]] * table.rows
    kept = [[safe_id(cell) for cell in column.values.tolist()] for column in table.kept]
    for cells, label, row in zip(
        zip(*kept, strict=True) if kept else [()] * table.rows, predicted, numbers, strict=True
    ):
        yield [*cells, *label, *row]


def csv_lines(rows: Sequence[list[str]] | Iterator[list[str]]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


@contextmanager
def _output(out: Path | None) -> Iterator[Callable[[str], object]]:
    """Writes to a file that is replaced at the end, or to standard output as it goes."""
    if out is not None:
        with files.written_in_pieces(out) as append:
            yield lambda text: append(text.encode())
    # A terminal would obey escape sequences in a label; a pipe gets the labels as they are.
    elif sys.stdout.isatty():
        yield lambda text: sys.stdout.write("".join(f"{clean(line)}\n" for line in text.splitlines()))
    else:
        yield sys.stdout.write


def safe_cell(text: str, label: object = "") -> str:
    """A text label as a spreadsheet may read it: what begins like a formula is marked as text."""
    return f"'{text}" if isinstance(label, str) and text.startswith(_FORMULA) else text


def safe_id(cell: str | None) -> str:
    """A cell that passes through, likewise; a number stays as it is."""
    if not cell or not cell.startswith(_FORMULA):
        return cell or ""
    return cell if number_of(cell) is not None else safe_cell(cell)
