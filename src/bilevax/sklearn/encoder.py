"""From a table to a matrix by scikit-learn's preprocessing, and back to plain terms that need none of it."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from bilevax.core.errors import DataError
from bilevax.tables.table import Column, Table
from bilevax.tables.terms import OTHER, NumberType, Term, design_from_terms

__all__ = ["TableEncoder", "Term", "design_from_terms"]

# Below this many different values no column is taken for an identifier.
_FEW = 20
# Beyond it, the squares in a standard deviation overflow.
_LARGEST = 1e100
# Below it, they vanish.
_SMALLEST = 1e-100


class TableEncoder:
    """Numbers imputed by their median and standardised, with a column that marks the missing; text as categories.

    Left out, with a note: columns that say nothing (no value, one value), text that differs from row to row, and
    integers that merely number the rows. A value of a text column that is rare, or that ``transform`` sees first, is
    counted among the column's other values; a missing cell is a category of its own.

    Args:
        min_frequency: rows in which a category must occur to be a term of its own.
        max_categories: the most terms that a text column may have.

    Attributes:
        terms: one :class:`~bilevax.tables.terms.Term` for each column of the matrix.
        columns: the columns of the table that are used.
        notes: what was left out and why, one sentence each.
    """

    def __init__(self, *, min_frequency: int = 5, max_categories: int = 200) -> None:
        self.min_frequency = min_frequency
        self.max_categories = max_categories
        self.terms: tuple[Term, ...] = ()
        self.notes: tuple[str, ...] = ()

    def width(self, table: Table, columns: Sequence[str]) -> int:
        """About as many terms as :meth:`fit` finds, and at most a few more: nothing is encoded for it."""
        out = 0
        for column in map(table.column, columns):
            if _reason_to_drop(column):
                continue
            if column.kind == "text":
                times = Counter(column.values.tolist()).values()
                # those that are frequent, and one for the others
                out += min(sum(n >= self.min_frequency for n in times) + 1, self.max_categories)
            else:
                out += 1 + bool(column.missing.any())
        return out

    def fit(self, table: Table, columns: Sequence[str]) -> "TableEncoder":
        """Learn medians, means, scales and categories from the rows of a table.

        Raises:
            DataError: no column is left, or one has values too large or too small to be standardised.
        """
        kept: list[str] = []
        left_out: dict[str, list[str]] = {}
        for name in columns:
            reason = _reason_to_drop(table.column(name))
            (left_out.setdefault(reason, []) if reason else kept).append(name)
        self.notes = tuple(_note(reason, names) for reason, names in left_out.items())
        numbers = [name for name in kept if table.column(name).kind != "text"]
        texts = [name for name in kept if table.column(name).kind == "text"]
        for name in numbers:
            largest = np.nanmax(np.abs(table.column(name).values))
            spread = np.ptp(table.column(name).values[~table.column(name).missing])
            fault = f"has values up to {largest:.0e}; divide it" if largest > _LARGEST else ""
            if 0 < spread < _SMALLEST:
                fault = f"has values that differ by {spread:.0e}; multiply it"
            if fault:
                raise DataError(f"{table.name}: column '{name}' {fault} or leave it out")
        impute = SimpleImputer(strategy="median", add_indicator=True)
        scaler = Pipeline([("impute", impute), ("scale", StandardScaler())])
        one_hot = OneHotEncoder(
            handle_unknown="infrequent_if_exist",
            min_frequency=self.min_frequency,
            max_categories=self.max_categories,
            sparse_output=False,
        )
        # scikit-learn's transformers refuse a matrix without columns.
        self._parts = [part for part in ((_matrix, numbers, scaler), (_cells, texts, one_hot)) if part[1]]
        if not self._parts:
            raise DataError(
                f"{table.name}: no column is left to learn from" + "".join(f"; {note}" for note in self.notes)
            )
        X = np.hstack([transformer.fit_transform(read(table, names)) for read, names, transformer in self._parts])
        terms = _number_terms(table, numbers, scaler) if numbers else []
        terms += _category_terms(texts, one_hot) if texts else []
        # What is the same in every training row teaches nothing, such as the mark of a cell that is never missing.
        self._kept = np.flatnonzero(np.ptp(X, axis=0) > 0)
        self.terms = tuple(terms[j] for j in self._kept)
        if not self.terms:
            raise DataError(f"{table.name}: no column is left to learn from; each has the same value in every row")
        used = {term.column for term in self.terms}
        self.columns = tuple(name for name in kept if name in used)
        return self

    def transform(self, table: Table) -> np.ndarray:
        """The matrix [rows, terms] of a table, by scikit-learn's transformers."""
        blocks = [transformer.transform(read(table, names)) for read, names, transformer in self._parts]
        return np.hstack(blocks)[:, self._kept]


def _number_terms(table: Table, names: Sequence[str], pipeline: Pipeline) -> list[Term]:
    imputer, scaler = pipeline["impute"], pipeline["scale"]
    means, scales, fills = scaler.mean_.tolist(), scaler.scale_.tolist(), imputer.statistics_.tolist()
    terms = []
    for j, name in enumerate(names):
        kind = table.column(name).kind
        known: NumberType = "boolean" if kind == "boolean" else "date" if kind == "date" else "number"
        terms.append(Term(name, "number", known, mean=means[j], scale=scales[j], fill=fills[j]))
    # The marks of the missing follow the numbers, one for each column that lacks a cell.
    for k, j in enumerate(imputer.indicator_.features_.tolist(), start=len(names)):
        terms.append(Term(names[j], "missing", mean=means[k], scale=scales[k]))
    return terms


def _category_terms(names: Sequence[str], one_hot: OneHotEncoder) -> list[Term]:
    terms = []
    for name, categories, rare in zip(names, one_hot.categories_, one_hot.infrequent_categories_, strict=True):
        # scikit-learn puts all rare values into one last column.
        infrequent = set() if rare is None else set(rare)
        for value in categories:
            if value not in infrequent:
                terms.append(Term(name, "missing") if value is None else Term(name, "category", value=value))
        if infrequent:
            terms.append(Term(name, "category", value=OTHER, other=True))
    return terms


def _matrix(table: Table, names: Sequence[str]) -> np.ndarray:
    return np.column_stack([table.column(name).values for name in names])


def _cells(table: Table, names: Sequence[str]) -> np.ndarray:
    cells = np.empty((table.rows, len(names)), dtype=object)
    for j, name in enumerate(names):
        cells[:, j] = table.column(name).as_text().values
    return cells


def _note(reason: str, names: Sequence[str]) -> str:
    listed = ", ".join(f"'{name}'" for name in names[:6]) + (", ..." if len(names) > 6 else "")
    subject = f"column {listed} is" if len(names) == 1 else f"{len(names)} columns ({listed}) are"
    return f"{subject} left out: {reason}"


def _reason_to_drop(column: Column) -> str:
    """Why a column can teach nothing; empty if it can."""
    missing = column.missing
    known = column.values[~missing]
    if not known.size:
        return "no value in any training row"
    if column.kind == "text":
        distinct = len(set(known.tolist()))
        if distinct > max(known.size / 2, _FEW):
            return f"{distinct:,} different texts in {known.size:,} cells, as names and identifiers have"
        constant = distinct == 1
    else:
        spread = np.ptp(known)
        constant = spread == 0
        # Row numbers, of which the training rows are a part: far denser than distinct integers are by chance.
        dense = _FEW < known.size <= spread + 1 < 2.5 * known.size
        if column.kind == "integer" and dense and np.unique(known).size == known.size:
            return "integers that number the rows"
    return "the same value in every training row" if constant and not missing.any() else ""
