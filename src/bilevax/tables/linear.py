"""A tuned model as plain numbers: it predicts from a table with numpy alone."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from bilevax.core.errors import DataError
from bilevax.core.events import Plain
from bilevax.linalg.columns import Matrix, dense
from bilevax.tables.labels import Label
from bilevax.tables.table import Order, Table, orders_from_plain
from bilevax.tables.terms import (
    CELLS_FORMULA,
    FORMULA,
    TEXT_FORMULA,
    Term,
    design_from_terms,
    terms_from_plain,
    text_columns,
)

FORMAT = "bilevax-linear-1"


@dataclasses.dataclass(frozen=True, eq=False)
class LinearModel:
    """A logistic regression on the terms of a table.

    Attributes:
        target: the column that it predicts.
        classes: the labels.
        intercept: [C], where C is 1 for two classes, else their number.
        coef: weights of the terms, [C, p].
        terms: the p terms.
        penalties: for each term its penalty, a list of one for each score, or None where there is none.
        missing: for columns, what says in a file that nothing is known, besides what always does.
        dates: for columns of dates, what came first in them, for new rows that leave it open.

    Examples:
        >>> import numpy as np
        >>> from bilevax.tables import LinearModel
        >>> model = LinearModel("sick", ("no", "yes"), np.zeros(1), np.zeros((1, 0)), (), ())
        >>> model.classes
        ('no', 'yes')
    """

    target: str
    classes: tuple[Label, ...]
    intercept: np.ndarray
    coef: np.ndarray
    terms: tuple[Term, ...]
    penalties: tuple[float | list[float] | None, ...]
    missing: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    dates: Mapping[str, Order] = dataclasses.field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a table must have."""
        return tuple(dict.fromkeys(term.column for term in self.terms))

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Those of them that are to be read as text."""
        return text_columns(self.terms)

    @property
    def number_columns(self) -> tuple[str, ...]:
        """Those that are to be read as numbers."""
        return tuple(dict.fromkeys(term.column for term in self.terms if term.kind == "number" and term.type != "date"))

    def predict_proba(self, table: Table) -> np.ndarray:
        """Probabilities [rows, classes]; columns are found by name.

        Raises:
            DataError: the table lacks a column, or holds text where the model knows numbers, or a number so large that
                a score overflows.
        """
        design = design_from_terms(self.terms, table)
        with np.errstate(over="ignore", invalid="ignore"):
            scores = design @ self.coef.T + self.intercept
        overflowing = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        if overflowing.size:
            raise DataError(self._overflow(table, int(overflowing[0]), design))
        # One score is that of the second class; the first has 0.
        if scores.shape[1] == 1:
            scores = np.hstack([np.zeros_like(scores), scores])
        scores -= scores.max(axis=1, keepdims=True)
        # exp(score) / sum of exp(score)
        odds: np.ndarray = np.exp(scores)
        odds /= odds.sum(axis=1, keepdims=True)
        return odds

    def predict_mean(self, table: Table) -> np.ndarray:
        """:meth:`predict_proba`."""
        return self.predict_proba(table)

    def _overflow(self, table: Table, row: int, design: Matrix) -> str:
        """Which cell makes the score of a row overflow."""
        with np.errstate(over="ignore"):
            name = self.terms[int(np.argmax(np.abs(dense(design[[row]])[0]) * np.abs(self.coef).max(axis=0)))].column
        cell = table.column(name).values[row]
        place = f"row {table.before + row + 1}"
        return f"{table.name}: {cell} in column '{name}', {place}, is so large that the model's score overflows"

    def predict(self, table: Table) -> list[Label]:
        """The most probable label of each row."""
        return [self.classes[code] for code in self.predict_proba(table).argmax(axis=1).tolist()]

    def to_plain(self) -> Plain:
        """The model as JSON values, with the formula that turns them into probabilities."""
        terms = [
            {**term.to_plain(), "weight": weight, "penalty": penalty}
            for term, weight, penalty in zip(self.terms, self.coef.T.tolist(), self.penalties, strict=True)
        ]
        grams = {term.grams for term in self.terms if term.kind == "text"}
        texts = [TEXT_FORMULA] * bool(grams - {"cells"}) + [CELLS_FORMULA] * ("cells" in grams)
        return {
            "format": FORMAT,
            "target": self.target,
            "classes": list(self.classes),
            "formula": [*FORMULA, *texts],
            "intercept": self.intercept.tolist(),
            "terms": terms,
            **({"missing": {name: list(marks) for name, marks in self.missing.items()}} if self.missing else {}),
            **({"dates": dict(self.dates)} if self.dates else {}),
        }


def linear_from_plain(plain: object) -> LinearModel:
    """The inverse of :meth:`LinearModel.to_plain`, checked.

    Raises:
        DataError: it is no such model.
    """
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise DataError(f"not a model of the format {FORMAT}")
    try:
        entries = list(plain["terms"])
        model = LinearModel(
            target=str(plain["target"]),
            classes=tuple(plain["classes"]),
            intercept=np.asarray(plain["intercept"], np.float64),
            coef=np.asarray([entry["weight"] for entry in entries], np.float64).T,
            terms=terms_from_plain(entries),
            penalties=tuple(entry.get("penalty") for entry in entries),
            missing={str(name): tuple(map(str, marks)) for name, marks in plain.get("missing", {}).items()},
            dates=orders_from_plain(plain.get("dates", {})),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise DataError(f"the model lacks a part or has a wrong one: {e}") from None
    check_model(model)
    return model


def check_model(model: LinearModel) -> None:
    """Check that the parts fit together.

    Raises:
        DataError: they do not.
    """
    scores = 1 if len(model.classes) == 2 else len(model.classes)
    sound = (
        len(model.classes) >= 2
        and model.intercept.shape == (scores,)
        and model.coef.shape == (scores, len(model.terms))
        and bool(np.all(np.isfinite(model.intercept)) and np.all(np.isfinite(model.coef)))
    )
    if not sound:
        raise DataError("the model's classes, intercepts, weights and terms do not fit together")


def penalties_by_term(penalties: ArrayLike, penalty_per: str, count: int) -> tuple[float | list[float] | None, ...]:
    """For each of the terms its penalty, from the estimator's: a scalar, one a class, one a term, or both."""
    values = np.asarray(penalties, np.float64)
    if penalty_per == "weight" and values.ndim == 2:
        return tuple(values.T.tolist())
    if penalty_per in ("feature", "column") and values.ndim == 1:
        return tuple(values.tolist())
    # One for all terms: a scalar, or one for each class.
    return (values.tolist(),) * count
