"""``bilevax predict``: a model of a run directory applied to a table."""

import csv
import io
import sys
from pathlib import Path

from bilevax.cli.place import require_free
from bilevax.cli.source import open_table
from bilevax.core import files
from bilevax.core.text import clean
from bilevax.tables.reading import Reading

# What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def run(directory: Path, source: str, out: Path | None, *, force: bool) -> None:
    """Write predictions as CSV: ``prediction``, and ``probability_LABEL`` for every class."""
    from bilevax.study.run_directory import read_model
    from bilevax.tables.labels import label_text

    if out is not None:
        require_free(out, force=force)
    model = read_model(directory)
    # A fault elsewhere, in the label column say, is no fault here.
    reading = Reading(model.text_columns, model.number_columns, only=model.columns, missing=model.missing)
    table, _ = open_table(source, reading)
    probabilities = model.predict_mean(table)
    unused = [
        name for name in (*table.names, *filter(None, table.unread)) if name not in (*model.columns, model.target)
    ]
    if unused:
        shown = ", ".join(unused[:8]) + (", ..." if len(unused) > 8 else "")
        print(f"bilevax: not used by the model: {clean(shown)}", file=sys.stderr)
    labels = [safe_cell(label_text(label), label) for label in model.classes]
    header = ["prediction", *(f"probability_{label_text(label)}" for label in model.classes)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for code, row in zip(probabilities.argmax(axis=1).tolist(), probabilities.tolist(), strict=True):
        writer.writerow([labels[code], *(f"{p:.6g}" for p in row)])
    if out is not None:
        files.write(out, text.getvalue())
        print(f"bilevax: {table.rows:,} predictions in {clean(out)}", file=sys.stderr)
    # A terminal would obey escape sequences in a label; a pipe gets the labels as they are.
    elif sys.stdout.isatty():
        sys.stdout.write("\n".join(map(clean, text.getvalue().splitlines())) + "\n")
    else:
        sys.stdout.write(text.getvalue())


def safe_cell(text: str, label: object) -> str:
    """A text label as a spreadsheet may read it: what begins like a formula is marked as text."""
    return f"'{text}" if isinstance(label, str) and text.startswith(_FORMULA) else text
