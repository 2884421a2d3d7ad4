"""What is shown of suspicious rows: the cells of the columns that tell most of the label, or their picture."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bilevax.tables.table import Column, Table

MOST_COLUMNS, MOST_ROWS = 8, 200
"""That are shown."""

_SAMPLED = 20_000
_BINS = 16
_LEAST_PIXELS, _MOST_PIXELS = 16, 128 * 128
_NUMBERED = re.compile(r"(.*?)(\d+)(?:[ ._,:x-](\d+))?\D?")
_OF_IMAGES = re.compile(r"(?i)(^|.*[^a-z])(p|px|pix|pixel|pixels|im|img|image)[^a-z]*")


class Pixels(NamedTuple):
    """Columns that are an image.

    Attributes:
        height, width: of it.
        names: of the columns, line by line.
    """

    height: int
    width: int
    names: tuple[str, ...]


def pixels_of(table: Table) -> Pixels | None:
    """The image that the columns are: numbers all of them, called ``pixel_0_0`` or ``1x1`` and so on, or ``pixel0``.

    Without two numbers in their names they have to be called pixels, and be as many as a square has.
    """
    found = [_NUMBERED.fullmatch(name) for name in table.names]
    if not all(found) or any(column.kind not in ("number", "integer") for column in table.columns):
        return None
    parts = [match.groups() for match in found if match]
    if not _LEAST_PIXELS <= len(parts) <= _MOST_PIXELS or len({prefix for prefix, *_ in parts}) > 1:
        return None
    places = _places([(int(a), None if b is None else int(b)) for _, a, b in parts])
    if places is None or (parts[0][2] is None and not _OF_IMAGES.fullmatch(parts[0][0])):
        return None
    (height, width), order = places
    return Pixels(height, width, tuple(table.names[j] for j in order))


def _places(numbers: Sequence[tuple[int, int | None]]) -> tuple[tuple[int, int], list[int]] | None:
    """Height and width, and the columns in the order of their pixels, if their numbers fill a rectangle."""
    order = sorted(range(len(numbers)), key=lambda j: (numbers[j][0], numbers[j][1] or 0))
    rows, columns = ({of[k] for of in numbers} for k in (0, 1))
    if None in columns:
        side, first = round(len(numbers) ** 0.5), min(a for a, _ in numbers)
        whole = columns == {None} and side**2 == len(numbers) and rows == set(range(first, first + len(numbers)))
        return ((side, side), order) if whole else None
    whole = len(set(numbers)) == len(numbers) == len(rows) * len(columns) and min(len(rows), len(columns)) > 1
    return ((len(rows), len(columns)), order) if whole else None


def brightness(table: Table, pixels: Pixels, rows: np.ndarray) -> np.ndarray:
    """Of some rows' pixels, from 0 to 255 over the whole table, [rows, pixels]; 0 where missing."""
    columns = [table.column(name).values for name in pixels.names]
    low = min(float(np.nanmin(x, initial=np.inf)) for x in columns)
    high = max(float(np.nanmax(x, initial=-np.inf)) for x in columns)
    # 255 (x - low) / (high - low)
    scaled = (np.stack([x[rows] for x in columns], axis=1) - low) / max(high - low, 1e-300)
    return np.rint(255 * np.nan_to_num(scaled)).astype(int)


def telling_columns(table: Table, codes: np.ndarray, seed: int) -> list[str]:
    """The columns that tell most of the label, in the order of the table: all, where there are few.

    By the mutual information of label and column, numbers in bins of equal shares, over some of the rows.
    """
    if len(table.names) <= MOST_COLUMNS:
        return list(table.names)
    n = len(codes)
    some = np.arange(n) if n <= _SAMPLED else np.random.RandomState(seed).choice(n, _SAMPLED, replace=False)
    told = [_information(_levels(column, some), codes[some]) for column in table.columns]
    best = sorted(range(len(told)), key=lambda j: -told[j])[:MOST_COLUMNS]
    return [table.names[j] for j in sorted(best)]


def _levels(column: Column, rows: np.ndarray) -> np.ndarray:
    """At most so many levels, and one more for what is missing."""
    values, missing = column.values[rows], column.missing[rows]
    out = np.zeros(len(values), np.int64)
    if missing.all():
        return out
    if column.kind == "text":
        found, inverse, times = np.unique(values[~missing].astype(str), return_inverse=True, return_counts=True)
        rank = np.empty(len(found), np.int64)
        rank[np.argsort(-times, kind="stable")] = np.arange(len(found))
        out[~missing] = 1 + np.minimum(rank, _BINS - 1)[inverse]
    else:
        edges = np.unique(np.quantile(values[~missing], np.linspace(0, 1, _BINS + 1)[1:-1]))
        out[~missing] = 1 + np.searchsorted(edges, values[~missing], side="right")
    return out


def _information(levels: np.ndarray, codes: np.ndarray) -> float:
    joint = np.zeros((levels.max() + 1, codes.max() + 1))
    np.add.at(joint, (levels, codes), 1.0 / len(codes))
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    # sum p log p / (p_level p_label)
    return float(np.sum(joint[joint > 0] * np.log(joint[joint > 0] / apart[joint > 0])))


def cells_of(table: Table, names: Sequence[str]) -> list[list[str]]:
    """The cells of some columns as one writes them, row by row."""
    columns = [_written(table.column(name)) for name in names]
    return [list(row) for row in zip(*columns, strict=True)] if columns else [[] for _ in range(table.rows)]


def _written(column: Column) -> list[str]:
    if column.kind == "date":
        days = np.where(column.missing, 0.0, column.values)
        texts = np.datetime_as_string(np.rint(days * 86_400.0).astype("int64").astype("datetime64[s]")).tolist()
        cells = [None if gone else text for text, gone in zip(texts, column.missing.tolist(), strict=True)]
        return [(cell or "").removesuffix("T00:00:00") for cell in cells]
    if column.kind == "number":
        return ["" if np.isnan(x) else f"{x:.6g}" for x in column.values.tolist()]
    return [cell or "" for cell in column.as_text().values.tolist()]
