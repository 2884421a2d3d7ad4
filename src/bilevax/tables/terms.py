"""The terms of a linear model on a table, as plain values, and the matrix they make: numpy is all that it takes."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from bilevax.core.errors import DataError
from bilevax.core.events import Plain
from bilevax.linalg.columns import Matrix
from bilevax.tables.table import Column, Table
from bilevax.tables.text import Grams, weighted_counts

NumberType = Literal["number", "boolean", "date"]
"""What the cells of a column of numbers are."""

OTHER = "(other values)"
"""The value of the term that stands for all values without a term of their own."""

FORMULA = (
    "score[c] = intercept[c] + sum over the terms of weight[c] * (x - mean) / scale",
    "number: x is the cell, or fill where the cell is missing; true counts 1, false 0; a date counts its days since "
    "1970-01-01 (UTC), with fractions",
    "category: x is 1 where the cell, without blanks around it, is the value, else 0",
    "category with other = true: x is 1 where no other term of the same column is 1, else 0",
    "missing: x is 1 where the cell is missing, else 0",
    "one score: probability of classes[1] = 1 / (1 + exp(-score)), of classes[0] the rest; "
    "several: probability of classes[c] = exp(score[c]) / sum of exp(score)",
)
"""How probabilities come from terms, in words; it stands in every exported model."""

TEXT_FORMULA = (
    "text: x = (1 + log count) / norm, count being how often the value is among the cell's grams, in small letters, "
    "and norm the root of the sum over the terms of the same column and grams of ((1 + log count) / scale)^2; 0 where "
    "the count is. words: of two letters and more; pairs: neighbouring words, a blank between; characters: 3 to 5 in a "
    "row of a word with a blank before and after; with buckets, a gram is # and its CRC-32 modulo buckets"
)
"""How terms of texts do; it stands in models that have any."""

CELLS_FORMULA = "text of cells: x is the number that stands in the text behind value and a colon, 0 where there is none"
"""How terms of numbered values do."""


@dataclasses.dataclass(frozen=True)
class Term:
    """One column of the design matrix: (x - mean) / scale, with x a function of one cell.

    Attributes:
        column: the table's column.
        kind: ``number`` (x is the cell), ``category`` (x is 1 where the cell is ``value``), ``missing`` (x is 1 where
            the cell is missing) or ``text`` (see :mod:`bilevax.tables.text`).
        type: for numbers, what the cells are: ``number``, ``boolean`` or ``date``.
        value: the category, or the n-gram of a text.
        other: True for the category that stands for all values, missing ones included, that have no term of their own.
        mean: subtracted from x.
        scale: divides x - mean.
        fill: for numbers, x where the cell is missing.
        grams: of a text: ``words``, ``pairs``, ``characters`` or ``cells``.
        buckets: of a text whose n-grams are hashed, how many buckets there are.
    """

    column: str
    kind: Literal["number", "category", "missing", "text"]
    type: NumberType | None = None
    value: str | None = None
    other: bool = False
    mean: float = 0.0
    scale: float = 1.0
    fill: float | None = None
    grams: Grams | None = None
    buckets: int | None = None

    def to_plain(self) -> Plain:
        """The term as JSON values; what is None or false is left out."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value is not None and value is not False}


def terms_from_plain(plain: Iterable[Plain]) -> tuple[Term, ...]:
    """The inverse of :meth:`Term.to_plain`; entries that are no fields of a term are left alone.

    Raises:
        DataError: an entry is no term.
    """
    fields = {field.name for field in dataclasses.fields(Term)}
    try:
        terms = tuple(Term(**{name: value for name, value in entry.items() if name in fields}) for entry in plain)
        for term in terms:
            # Raises where a field is of the wrong type.
            numbers = float(term.mean), float(term.scale), float(term.fill or 0.0)
            _ = term.column + (term.value or "")
            if term.kind not in ("number", "category", "missing", "text"):
                raise ValueError(term.kind)
            if not all(map(math.isfinite, numbers)) or term.scale <= 0:
                raise ValueError(f"column '{term.column}' has mean, scale and fill {numbers}; scale must be positive")
    except (TypeError, AttributeError, ValueError) as e:
        raise DataError(f"not the terms of a model: {e}") from None
    return terms


def text_columns(terms: Iterable[Term]) -> tuple[str, ...]:
    """The columns that have to be read as text, for their terms are categories or n-grams."""
    return tuple(dict.fromkeys(term.column for term in terms if term.kind in ("category", "text")))


def design_from_terms(terms: Sequence[Term], table: Table) -> Matrix:
    """The design matrix [rows, terms] of a table; its columns are found by name, in any order, others are ignored.

    It is sparse, CSR, where terms are of texts, which stand behind all others.

    Raises:
        DataError: a column is absent, or holds text where the model knows numbers.
    """
    table.require(dict.fromkeys(term.column for term in terms))
    cells = [term for term in terms if term.kind != "text"]
    if len(cells) == len(terms):
        return _cells_design(terms, table)
    import scipy.sparse

    parts = [scipy.sparse.csr_array(_cells_design(cells, table))] if cells else []
    blocks: dict[tuple[str, Grams | None, int | None], dict[str, float]] = {}
    for term in terms[len(cells) :]:
        # 1 / scale is the weight of the n-gram
        blocks.setdefault((term.column, term.grams, term.buckets), {})[str(term.value)] = 1.0 / term.scale
    for (column, grams, buckets), weights in blocks.items():
        parts.append(weighted_counts(table.column(column).as_text().values, weights, grams or "words", buckets))
    return scipy.sparse.hstack(parts, format="csr")


def _cells_design(terms: Sequence[Term], table: Table) -> np.ndarray:
    """Of terms of one cell each."""
    by_column: dict[str, list[int]] = {}
    for j, term in enumerate(terms):
        by_column.setdefault(term.column, []).append(j)
    # Filled column by column, so stored by columns until it is full.
    design = np.empty((table.rows, len(terms)), order="F")
    for name, positions in by_column.items():
        column = table.column(name)
        missing = column.missing
        own = [terms[j] for j in positions]
        if any(term.kind == "category" for term in own):
            raw = _categories(column.as_text().values, missing, own)
        else:
            raw = _numbers(table.name, column, missing, own)
        for j, x in zip(positions, raw, strict=True):
            with np.errstate(over="ignore"):
                design[:, j] = (x - terms[j].mean) / terms[j].scale
    return np.ascontiguousarray(design)


def _categories(cells: np.ndarray, missing: np.ndarray, terms: Sequence[Term]) -> list[np.ndarray]:
    known = {term.value: k for k, term in enumerate(terms) if term.kind == "category" and not term.other}
    # At most one term of a cell is 1: its position, or -1.
    codes = np.fromiter((known.get(cell, -1) for cell in cells), np.intp, len(cells))
    codes[missing] = next((k for k, term in enumerate(terms) if term.kind == "missing"), -1)
    # What no other term takes goes to the term for other values, where there is one.
    rest = next((k for k, term in enumerate(terms) if term.other), -1)
    codes[codes < 0] = rest
    return [(codes == k).astype(float) for k in range(len(terms))]


def _numbers(source: str, column: Column, missing: np.ndarray, terms: Sequence[Term]) -> list[np.ndarray]:
    out = []
    for term in terms:
        if term.kind == "missing":
            out.append(missing.astype(float))
            continue
        known: Literal["number", "date"] = "date" if term.type == "date" else "number"
        if found := column.other_than(known):
            raise DataError(f"{source}: column '{column.name}' holds {found}; the model knows it as {known}s")
        cells = np.full(len(missing), np.nan) if column.kind == "text" else column.values
        out.append(np.where(missing, np.nan if term.fill is None else term.fill, cells))
    return out
