"""An additive model as plain numbers: a curve for every column, and the predictions they sum to, with numpy alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np

from bilevax.core.errors import DataError
from bilevax.core.events import Plain
from bilevax.tables.effects import Effect, date_parts, effect_from_plain
from bilevax.tables.labels import Label
from bilevax.tables.pairs import Pair, pair_from_plain
from bilevax.tables.table import CodedColumn, Column, Order, Table, orders_from_plain

FORMAT = "bilevax-additive-1"

Link = Literal["identity", "log", "logit", "softmax"]
"""The mean is s, exp(s), 1 / (1 + exp(-s)), or softmax of several scores."""

LARGEST = 300.0
"""Scores are cut off here before they are exponentiated."""


class Source(NamedTuple):
    """Where the cells of an effect come from.

    Attributes:
        column: of the table.
        kind: what its cells are.
        part: of a date: ``year``, ``month``, ``day``, ``weekday`` or ``hour``; else empty.
    """

    column: str
    kind: Literal["number", "date", "text"]
    part: str = ""

    @property
    def name(self) -> str:
        """The column, and the part of the date."""
        return f"{self.column} ({self.part})" if self.part else self.column


def sources_of(column: Column, *, text: bool = False) -> tuple[Source, ...]:
    """The effects that a column has: one, or one for each part of its dates that varies.

    Args:
        column: of a table.
        text: whether its numbers are categories.
    """
    if column.kind == "text" or text:
        return (Source(column.name, "text"),)
    if column.kind == "date":
        return tuple(Source(column.name, "date", part) for part in date_parts(column.values))
    return (Source(column.name, "number"),)


def cells(table: Table, source: Source) -> np.ndarray:
    """The cells of an effect: float64 [n] with NaN, or text with None.

    Raises:
        DataError: the column is absent, or holds other cells than those the source knows.
    """
    column = table.column(source.column)
    if source.kind == "text":
        return column.as_text().values
    if found := column.other_than(source.kind):
        raise DataError(f"{table.name}: column '{column.name}' holds {found}; the model knows {source.kind}s")
    if column.kind == "text":  # without a cell
        return np.full(table.rows, np.nan)
    return date_parts(column.values, every=True)[source.part] if source.part else column.values


def bins(table: Table, source: Source, effect: Effect) -> np.ndarray:
    """The bins of the cells of an effect, uint8 or uint16 [n].

    Raises:
        DataError: as of :func:`cells`.
    """
    column = table.column(source.column)
    if source.kind == "text" and isinstance(column, CodedColumn):
        out: np.ndarray = effect.codes(column.words)[column.codes]
        return out
    return effect.codes(cells(table, source))


@dataclass(frozen=True, eq=False)
class AdditiveModel:
    """score = intercept + sum over the effects of the curve's value at the row's bin.

    Attributes:
        link: from scores to means or probabilities.
        classes: the labels, of a classifier.
        intercept: [S]; S is 1, or the number of classes if there are more than two.
        sources: where the cells of every effect come from.
        effects: bins of every column.
        curves: what each effect adds in each of its bins, [bins, S], with mean 0 over the training rows; then what each
            pair adds, [joint bins, S].
        pairs: joint bins of pairs of columns.
        target: the column that it predicts, where that is known.
        missing: for columns, what says in a file that nothing is known, besides what always does.
        dates: for columns of dates, what came first in them, for new rows that leave it open.
        exposure: the column that means are in proportion to, of the link ``log``; empty: none.

    Examples:
        >>> from bilevax.tables import AdditiveModel
        >>> from sklearn.datasets import load_diabetes
        >>> from bilevax.sklearn import TunedAdditiveRegressor
        >>> X, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
        >>> model = TunedAdditiveRegressor(choose=False, pairs=False).fit(X[:100], y[:100]).model_
        >>> isinstance(model, AdditiveModel), sorted(model.to_plain())[:3]
        (True, ['classes', 'effects', 'format'])
    """

    link: Link
    classes: tuple[Label, ...]
    intercept: np.ndarray
    sources: tuple[Source, ...]
    effects: tuple[Effect, ...]
    curves: tuple[np.ndarray, ...] = field(repr=False)
    pairs: tuple[Pair, ...] = ()
    target: str = ""
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dates: Mapping[str, Order] = field(default_factory=dict)
    exposure: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a table must have."""
        return (*dict.fromkeys(source.column for source in self.sources), *self._exposures)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Those of them that are to be read as text."""
        return self._of_kind("text")

    @property
    def number_columns(self) -> tuple[str, ...]:
        """Those that are to be read as numbers."""
        return (*self._of_kind("number"), *self._exposures)

    @property
    def _exposures(self) -> tuple[str, ...]:
        return (self.exposure,) if self.exposure else ()

    def _of_kind(self, kind: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(source.column for source in self.sources if source.kind == kind))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the effects, then of the pairs."""
        return (*(source.name for source in self.sources), *map(pair_name, self.pairs))

    def codes(self, table: Table) -> list[np.ndarray]:
        """The bin of every row in each effect and pair.

        Raises:
            DataError: the table lacks a column, or holds other cells than those the model knows.
        """
        table.require(source.column for source in self.sources)
        codes = [bins(table, source, effect) for source, effect in zip(self.sources, self.effects, strict=True)]
        return codes + [pair.codes(codes[pair.columns[0]], codes[pair.columns[1]]) for pair in self.pairs]

    def contributions(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        """What every effect and pair adds to the scores of each row, [n, effects, S]: with the intercept their sum."""
        return np.stack([np.take(curve, c, axis=0) for curve, c in zip(self.curves, codes, strict=True)], axis=1)

    def scores(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        """[n, S]."""
        out = np.tile(self.intercept, (len(codes[0]), 1))
        for curve, c in zip(self.curves, codes, strict=True):
            # s_i = intercept + sum_j f_j(bin of row i in j)
            out += np.take(curve, c, axis=0)
        return out

    def mean(self, scores: np.ndarray) -> np.ndarray:
        """Means [n] of scores [n, S], or probabilities [n, C]."""
        s = np.clip(scores, -LARGEST, LARGEST)
        if self.link == "identity":
            return np.array(scores[:, 0])
        if self.link == "log":
            return np.asarray(np.exp(s[:, 0]))
        if self.link == "logit":
            # 1 / (1 + exp(s)) and 1 / (1 + exp(-s)): neither rounds to 1 - 1
            return np.asarray(1.0 / (1.0 + np.exp(np.concatenate([s, -s], axis=1))))
        # softmax, exact for scores of any size
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))

    def predict_mean(self, table: Table) -> np.ndarray:
        """Means [n], or probabilities [n, C]; columns are found by name.

        Raises:
            DataError: the table lacks a column, or holds other cells than those the model knows.
        """
        means = self.mean(self.scores(self.codes(table)))
        # exposure times the rate that the scores tell
        return means * exposures(table, self.exposure) if self.exposure else means

    def to_plain(self) -> Plain:
        """The model as JSON values."""
        return {
            "format": FORMAT,
            "target": self.target,
            "missing": {name: list(marks) for name, marks in self.missing.items()},
            **({"dates": dict(self.dates)} if self.dates else {}),
            **({"exposure": self.exposure} if self.exposure else {}),
            "link": self.link,
            "classes": list(self.classes),
            "intercept": self.intercept.tolist(),
            "effects": [
                {"source": source._asdict(), **effect.to_plain(), "curve": curve.tolist()}
                for source, effect, curve in zip(self.sources, self.effects, self.curves, strict=False)
            ],
            "pairs": [
                {**pair.to_plain(), "curve": curve.tolist()}
                for pair, curve in zip(self.pairs, self.curves[len(self.effects) :], strict=True)
            ],
        }


def exposures(table: Table, name: str) -> np.ndarray:
    """What the mean of each row is in proportion to, [n].

    Raises:
        DataError: the column is absent, or does not hold a number above 0 in every row.
    """
    column = table.column(name)
    if found := column.other_than("number"):
        raise DataError(f"{table.name}: exposure column '{name}' holds {found}; it is to hold numbers above 0")
    out = np.asarray(column.values, float)
    wrong = ~(np.isfinite(out) & (out > 0.0))
    if wrong.any():
        row = int(np.argmax(wrong))
        cell = "nothing" if column.missing[row] else f"{out[row]:g}"
        raise DataError(f"{table.name}: exposure column '{name}' holds {cell} in row {row + 1}; it is to be above 0")
    return out


def pair_name(pair: Pair) -> str:
    """The two columns."""
    return " x ".join(pair.names)


def _fits(pair: Pair, effects: tuple[Effect, ...]) -> bool:
    known = all(0 <= j < len(effects) for j in pair.columns)
    return known and all(len(effects[j].weight) == len(g) for j, g in zip(pair.columns, pair.groups, strict=True))


def additive_from_plain(plain: object) -> AdditiveModel:
    """The inverse of :meth:`AdditiveModel.to_plain`, checked.

    Raises:
        DataError: it is no such model.
    """
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise DataError(f"not a model of the format {FORMAT}")
    try:
        entries, pairs = list(plain["effects"]), list(plain["pairs"])
        model = AdditiveModel(
            link=plain["link"],
            classes=tuple(plain["classes"]),
            intercept=np.asarray(plain["intercept"], float),
            sources=tuple(Source(**entry["source"]) for entry in entries),
            effects=tuple(effect_from_plain(entry) for entry in entries),
            curves=tuple(np.asarray(entry["curve"], float) for entry in (*entries, *pairs)),
            pairs=tuple(pair_from_plain(entry) for entry in pairs),
            target=str(plain["target"]),
            missing={str(name): tuple(map(str, marks)) for name, marks in plain["missing"].items()},
            dates=orders_from_plain(plain.get("dates", {})),
            exposure=str(plain.get("exposure", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise DataError(f"the model lacks a part or has a wrong one: {e}") from None
    S = len(model.classes) if model.link == "softmax" else 1
    sizes = [weight.size for weight in (*(e.weight for e in model.effects), *(pair.weight for pair in model.pairs))]
    shapes = all(
        curve.shape == (bins, S) and bool(np.all(np.isfinite(curve)))
        for curve, bins in zip(model.curves, sizes, strict=True)
    ) and all(_fits(pair, model.effects) for pair in model.pairs)
    known = (
        model.link in get_args(Link)
        and (model.link != "logit" or len(model.classes) == 2)
        and (model.link == "log" or not model.exposure)
    )
    if not (shapes and known and model.intercept.shape == (S,) and bool(np.all(np.isfinite(model.intercept)))):
        raise DataError("the model's link, classes, intercept and curves do not fit together")
    return model
