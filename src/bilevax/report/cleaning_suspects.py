"""Suspicious rows as a table, or as images, that is put in another order by a click: by the style sheet, no script."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar

from bilevax.core.cleaning_records import Shown, Suspect
from bilevax.core.record_lines import Records
from bilevax.core.text import count, percent, shorten
from bilevax.report.png import data_url

_CELL, _HEAD = 40, 40

T = TypeVar("T")

Key: TypeAlias = tuple[int, float, str]
"""By which rows are put in order: numbers, then texts, then what is missing."""


class Heading(NamedTuple):
    """A column, and its place among those by which one can order."""

    name: str
    place: int


class SuspectRow(NamedTuple):
    """A row: its cells, its image, and its rank by each heading as declarations of style."""

    cells: tuple[str, ...]
    image: str
    ranks: str
    replaced: bool
    wrong: str


class Suspects(NamedTuple):
    """The section.

    Attributes:
        headings: of the table, or the orders of the images.
        rows: most suspicious first.
        images: whether they are images.
        shown: columns of the table that are shown, of so many ``features``.
    """

    headings: tuple[Heading, ...]
    rows: tuple[SuspectRow, ...]
    images: bool
    shown: int
    features: int


def suspects_section(records: Records) -> Suspects | None:
    """The section; None where nothing was recorded."""
    shown, rows = records.last(Shown), records.of(Suspect)
    if shown is None or not rows:
        return None
    truth = any(row.truth is not None for row in rows)
    columns = _columns(shown, truth=truth)
    ranks = [_ranks([key(row) for row in rows]) for _, _, key in columns]
    out = []
    for k, row in enumerate(rows):
        places = "; ".join(f"--o{j}: {of[k]}" for j, of in enumerate(ranks))
        image = data_url(row.pixels, *shown.image) if shown.image and row.pixels else ""
        wrong = "" if row.truth is None else "wrong" if row.truth != row.given else "right"
        cells = tuple(text(row) for _, text, _ in columns)
        out.append(SuspectRow(cells, image, places, row.suggested != row.given, wrong))
    headings = tuple(Heading(shorten(name, _HEAD), j) for j, (name, _, _) in enumerate(columns))
    return Suspects(headings, tuple(out), shown.image is not None, len(shown.columns), shown.features)


def _columns(shown: Shown, *, truth: bool) -> list[tuple[str, Callable[[Suspect], str], Callable[[Suspect], Key]]]:
    """Name, text and key of each column."""
    out: list[tuple[str, Callable[[Suspect], str], Callable[[Suspect], Key]]] = [
        ("row", lambda row: count(row.number), lambda row: (0, float(row.number), "")),
        # the most suspicious first
        ("probability", lambda row: percent(row.probability), lambda row: (0, -row.probability, "")),
        ("given", lambda row: _text(row.given), lambda row: _key(row.given)),
        ("suggested", lambda row: _text(row.suggested), lambda row: _key(row.suggested)),
    ]
    if truth:
        out.append(("true", lambda row: _text(row.truth or ""), lambda row: _key(row.truth or "")))
    for of, names in (("kept", shown.kept), ("cells", shown.columns)):
        for j, name in enumerate(names):
            cell = partial(_at, of, j)
            out.append((name, _composed(_text, cell), _composed(_key, cell)))
    return out


def _composed(outer: Callable[[str], T], cell: Callable[[Suspect], str]) -> Callable[[Suspect], T]:
    return lambda row: outer(cell(row))


def _at(of: str, j: int, row: Suspect) -> str:
    cells = row.kept if of == "kept" else row.cells
    return cells[j] if j < len(cells) else ""


def _text(cell: str) -> str:
    return shorten(cell, _CELL) or "–"


def _key(cell: str) -> Key:
    if not cell:
        return 2, 0.0, ""
    try:
        number = float(cell)
    except ValueError:
        return 1, 0.0, cell.casefold()
    return (0, number, "") if number == number else (1, 0.0, cell)


def _ranks(keys: Sequence[Key]) -> list[int]:
    """The place of each row, from 1; of equal ones the more suspicious first."""
    out = [0] * len(keys)
    for rank, k in enumerate(sorted(range(len(keys)), key=keys.__getitem__), 1):
        out[k] = rank
    return out
