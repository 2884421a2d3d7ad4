"""From a table to the matrix of a linear model: a transformer whose terms are plain values."""

from collections import Counter
from collections.abc import Sequence
from numbers import Integral
from typing import ClassVar, get_args

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted

from bilevax.core.errors import DataError
from bilevax.linalg.columns import Matrix, are_zero_one, column_moments
from bilevax.sklearn.frames import Features, as_table, notes_on_reading
from bilevax.tables.table import Column, Table
from bilevax.tables.terms import OTHER, NumberType, Term, design_from_terms
from bilevax.tables.text import Grams, vocabulary

# Below this many different values no column is taken for an identifier.
_FEW = 20
# Beyond it, the squares in a standard deviation overflow.
_LARGEST = 1e100
# Below it, they vanish.
_SMALLEST = 1e-100


class TableEncoder(TransformerMixin, BaseEstimator):
    """Numbers imputed by their median and standardised, with a column that marks the missing; text as categories.

    Categories, marks and numbers that are all 0 or 1 are left as 0 and 1: standardised, a category that few rows have
    would hardly be penalised. Left out, with a note: columns that say nothing (no value, one value), text that differs
    from row to row, and integers that merely number the rows. A value of a text column that is rare, or that
    ``transform`` sees first, is counted among the column's other values; a missing cell is a category of its own.

    It takes a data frame (pandas, polars, pyarrow), an array of numbers, text or objects, or a
    :class:`~bilevax.tables.Table`, whose columns are found by name.

    Texts that are read, not told apart, are named: of a column in ``words`` its words are counted, of one in ``pairs``
    its pairs of neighbouring words, of one in ``characters`` three to five characters in a row. A count c of a row is
    weighted, (1 + log c) (1 + log (1 + n) / (1 + n_j)) with n_j of the n rows having it, and divided by the norm of the
    row in that block. A column in ``cells`` has in each row numbered values, ``3:0.5 17:1``, as lines of svmlight:
    they are taken as they are, 0 where there is none. The matrix is then sparse, and these terms are its last.

    Args:
        min_frequency: rows in which a category must occur to be a term of its own. Default 5.
        max_categories: the most terms that a text column may have. Default 200.
        words: names of text columns whose words are terms.
        pairs: names of text columns whose pairs of words are.
        characters: names of text columns whose characters are.
        cells: names of columns of numbered values.
        min_texts: rows in which a word, a pair, characters, or a number must occur to be a term. Default 2.
        buckets: words and the like are hashed into so many terms of a column; None (default): each is its own.

    Attributes:
        terms_: one :class:`~bilevax.tables.terms.Term` for each column of the matrix.
        columns_: the columns of the table that are used.
        notes_: what was left out and why, and texts that are mostly numbers, one sentence each.
        n_features_in_: the number of columns of the table.
        feature_names_in_: their names, where they have any.

    Examples:
        >>> import numpy as np
        >>> from bilevax.sklearn import TableEncoder
        >>> X = np.array([["red", 1.0], ["blue", 2.5], ["red", None]], dtype=object)
        >>> encoder = TableEncoder(min_frequency=1).fit(X)
        >>> list(encoder.get_feature_names_out())
        ['x0 = blue', 'x0 = red', 'x1', 'x1 is missing']
    """

    _parameter_constraints: ClassVar[dict[str, list[object]]] = {
        "min_frequency": [Interval(Integral, 1, None, closed="left")],
        "max_categories": [Interval(Integral, 2, None, closed="left")],
        **{grams: ["array-like"] for grams in get_args(Grams)},
        "min_texts": [Interval(Integral, 1, None, closed="left")],
        "buckets": [Interval(Integral, 2, None, closed="left"), None],
    }

    def __init__(
        self,
        *,
        min_frequency: int = 5,
        max_categories: int = 200,
        words: Sequence[str] = (),
        pairs: Sequence[str] = (),
        characters: Sequence[str] = (),
        cells: Sequence[str] = (),
        min_texts: int = 2,
        buckets: int | None = None,
    ) -> None:
        self.min_frequency = min_frequency
        self.max_categories = max_categories
        self.words = words
        self.pairs = pairs
        self.characters = characters
        self.cells = cells
        self.min_texts = min_texts
        self.buckets = buckets

    def width(self, table: Table) -> int:
        """About as many terms as :meth:`fit` finds, and at most a few more: nothing is encoded for it."""
        out = 0
        for column in table.columns:
            if _reason_to_drop(column):
                continue
            if column.kind == "text":
                times = Counter(column.values.tolist()).values()
                # those that are frequent, and one for the others
                out += min(sum(n >= self.min_frequency for n in times) + 1, self.max_categories)
            else:
                out += 1 + bool(column.missing.any())
        return out

    def fit(self, X: Features, y: ArrayLike | None = None) -> "TableEncoder":
        """Learn medians, means, scales and categories.

        Args:
            X: the rows to learn from.
            y: not used.

        Raises:
            DataError: no column is left, or one mixes types, or has values too large or too small to be standardised.
            ValueError: scikit-learn's, on a wrong shape.
        """
        self._validate_params()
        table = as_table(self, X, reset=True)
        terms: list[Term] = []
        left_out: dict[str, list[str]] = {}
        texts: dict[Grams, Sequence[str]] = {grams: getattr(self, grams) for grams in get_args(Grams)}
        read = dict.fromkeys(name for names in texts.values() for name in names)
        table.require(read)
        for column in table.columns:
            if column.name in read:
                continue
            reason = _reason_to_drop(column)
            own = [] if reason else self._terms(table.name, column)
            if not own:
                reason = reason or f"no value in {self.min_frequency} training rows"
                left_out.setdefault(reason, []).append(column.name)
            terms += own
        for grams, names in texts.items():
            for name in names:
                own = self._text_terms(table, name, grams)
                if not own:
                    of = grams if grams == "characters" else f"{grams} of two letters or more"
                    left_out.setdefault(f"none of its {of} is in {self.min_texts} training rows", []).append(name)
                terms += own
        left = (_note(reason, names) for reason, names in left_out.items())
        self.notes_ = (*notes_on_reading(X, table), *left)
        if not terms:
            raise DataError(f"{table.name}: no column is left to learn from; " + "; ".join(self.notes_))
        self.terms_ = tuple(terms)
        self.columns_ = tuple(dict.fromkeys(term.column for term in terms))
        return self

    def _terms(self, source: str, column: Column) -> list[Term]:
        """Those of a column that vary over the rows."""
        if column.kind == "text":
            return _category_terms(column, self.min_frequency, self.max_categories)
        return _number_terms(source, column)

    def _text_terms(self, table: Table, name: str, grams: Grams) -> list[Term]:
        weights = vocabulary(table.column(name).as_text().values, grams, self.min_texts, self.buckets)
        return [
            # a term is count / scale, and an n-gram's count is multiplied by its weight
            Term(name, "text", value=gram, scale=1.0 / weight, grams=grams, buckets=self.buckets)
            for gram, weight in weights.items()
        ]

    @property
    def blocks_(self) -> np.ndarray:
        """The number of the block of each term, [terms]: each kind of n-grams of a column is one, all else another."""
        # each text column and kind of n-gram is a block, all other terms are one
        kinds = [(term.column, term.grams) if term.kind == "text" else ("", None) for term in self.terms_]
        numbers = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
        return np.array([numbers[kind] for kind in kinds])

    def transform(self, X: Features) -> Matrix:
        """The matrix [n, terms]; sparse, CSR, where there are terms of texts.

        Raises:
            DataError: a column holds text where there were numbers, or a table lacks one.
            ValueError: scikit-learn's, on other columns than in ``fit``.
        """
        check_is_fitted(self)
        return design_from_terms(self.terms_, as_table(self, X, reset=False))

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> np.ndarray:
        """What the columns of the matrix say, [terms]: ``age``, ``age is missing``, ``colour = red``.

        Args:
            input_features: names of the columns; those of ``fit``, where it had any.
        """
        check_is_fitted(self)
        known = _check_feature_names_in(self)
        names = dict(zip(known, _check_feature_names_in(self, input_features), strict=True))
        return np.array([_say(term, names[term.column]) for term in self.terms_], dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.categorical = True
        return tags


def worthless(table: Table) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Columns that can teach nothing (constants, names and identifiers, row numbers), and a note on each cause."""
    left_out: dict[str, list[str]] = {}
    for column in table.columns:
        if reason := _reason_to_drop(column):
            left_out.setdefault(reason, []).append(column.name)
    names = tuple(name for of_reason in left_out.values() for name in of_reason)
    return names, tuple(_note(reason, of_reason) for reason, of_reason in left_out.items())


def _number_terms(source: str, column: Column) -> list[Term]:
    missing = column.missing
    known = column.values[~missing]
    spread = np.ptp(known)
    _check_size(source, column.name, float(np.max(np.abs(known))), float(spread))
    kind: NumberType = "boolean" if column.kind == "boolean" else "date" if column.kind == "date" else "number"
    zero_one, fill = bool(are_zero_one(known[:, None])[0]), float(np.median(known))
    mean, scale = 0.0, 1.0
    if zero_one:
        # the more frequent of the two
        fill = float(np.floor(fill))
    else:
        # missing cells count as the median, as they are filled
        mean, scale = (float(x[0]) for x in column_moments(np.where(missing, fill, column.values)[:, None]))
    terms = [Term(column.name, "number", kind, mean=mean, scale=scale, fill=fill)] if spread > 0 else []
    return terms + ([Term(column.name, "missing")] if missing.any() else [])


def _check_size(source: str, name: str, largest: float, spread: float) -> None:
    fault = f"has values up to {largest:.0e}; divide it" if largest > _LARGEST else ""
    if 0 < spread < _SMALLEST:
        fault = f"has values that differ by {spread:.0e}; multiply it"
    if fault:
        raise DataError(f"{source}: column '{name}' {fault} or leave it out")


def _category_terms(column: Column, min_frequency: int, max_categories: int) -> list[Term]:
    # None is a value like another
    times = Counter(column.values.tolist())
    frequent = [value for value, n in times.most_common() if n >= min_frequency]
    if len(frequent) + (len(frequent) < len(times)) > max_categories:
        # one is for the others
        frequent = frequent[: max_categories - 1]
    terms = [Term(column.name, "category", value=value) for value in sorted(v for v in frequent if v is not None)]
    if None in frequent:
        terms.append(Term(column.name, "missing"))
    if len(frequent) < len(times):
        terms.append(Term(column.name, "category", value=OTHER, other=True))
    # What is the same in every row teaches nothing.
    return terms if len(terms) > 1 else []


def _say(term: Term, name: str) -> str:
    if term.kind == "category":
        return f"{name} = {term.value}"
    if term.grams == "cells":
        return f"{name} {term.value}"
    if term.kind == "text":
        return f"{name} has '{term.value}'"
    return f"{name} is missing" if term.kind == "missing" else name


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
