"""The effects of a table's columns: bins, and what each bin may do, as functions whose penalties are ridges.

A column becomes *bins*, and a matrix Z [bins, k] whose columns are functions of the bin, so that an effect is f = Z b,
with a penalty exp(rho) |b|^2 / 2 for the weights of one *part*. Each part is a Gaussian process on the bins: its
covariance, less its mean over the training rows, is Z Z', and the columns of Z are its principal functions on these
rows (Z' diag(w) Z is diagonal), of which the last and smallest may be left out.

    linear   f(x) = b x
    smooth   second differences of f along the bins are independent, less what a line says
    rough    first differences of f along the bins, or coarser ones, are independent
    levels   f of every level is independent; that of an unseen one is what the prior says, the mean over levels
    steps    first differences of f along the levels are independent
    missing  f is one number where the cell is missing

Numbers outside of the training range fall in the end bins. The last bin is the missing cell's; of categories, the one
before it is that of unseen levels. The parts of numbers have mean square 1 on the training rows, so that a penalty
means the same for each; levels are 0 and 1, so that rare ones are shrunken more than common ones.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bilevax.core.errors import DataError
from bilevax.core.events import Plain
from bilevax.linalg.places import places
from bilevax.tables.terms import OTHER

PartKind = Literal["linear", "smooth", "rough", "levels", "steps", "missing", "pair"]

MISSING = "(missing)"
"""The bin of missing cells."""

BINS = 128
"""Fine bins of a column of numbers, at most."""

COARSE = 128
"""Bins of a rough part, at most. Adult, 4,500 rows: log-loss .2967 with 32, .2946 with 64, .2938 with 128."""

SMOOTH = 24
"""Functions of a smooth part, at most."""

LEVELS = 250
"""Levels of a category with an effect of their own, at most: the most frequent ones."""

BUDGET = 1500
"""Weights of a model, about, at most."""

FEW_SMOOTH, LEAST = 6, 3
"""Functions of a smooth part where there is little room, and functions of any part for which there has to be room."""

VARIANCE = 1e-6
"""What the functions left out of a part may be of its variance."""


@dataclass(frozen=True)
class Part:
    """Columns of Z that share a penalty.

    Attributes:
        kind: what they are.
        start: the first.
        stop: the one after the last.
    """

    kind: PartKind
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Effect:
    """A column's bins, and what they may do.

    Attributes:
        name: of the column.
        edges: of numbers: bin b has edges[b - 1] <= x < edges[b], [bins - 2].
        levels: of categories: bin b has levels[b]; the bin after the last is that of other cells.
        basis: Z, [bins, k].
        parts: of the columns of Z.
        weight: of the training rows in each bin, [bins].
        centre: of numbers: their mean in each bin but the last, [bins - 1].
    """

    name: str
    edges: np.ndarray | None
    levels: tuple[str, ...]
    basis: np.ndarray
    parts: tuple[Part, ...]
    weight: np.ndarray
    centre: np.ndarray | None

    def codes(self, values: np.ndarray) -> np.ndarray:
        """The bins of cells, uint8 or uint16 [n]: float64 with NaN where missing, or text with None."""
        kind = np.uint8 if len(self.basis) <= 256 else np.uint16
        last = len(self.basis) - 1
        if self.edges is not None:
            return places(self.edges, np.asarray(values, float)).astype(kind, copy=False)
        known: dict[str | None, int] = {level: b for b, level in enumerate(self.levels)} | {None: last}
        return np.fromiter(map(known.get, values.tolist(), itertools.repeat(last - 1)), kind, len(values))

    @property
    def in_order(self) -> int:
        """How many bins have an order, the first ones: all but those of other levels and of missing cells."""
        return len(self.levels) if self.edges is None else len(self.edges) + 1

    def labels(self) -> tuple[float | str, ...]:
        """What is in the bins: the mean of their numbers, or levels and ``OTHER``; ``MISSING`` is the last."""
        if self.centre is not None:
            return (*self.centre.tolist(), MISSING)
        return (*self.levels, OTHER, MISSING)

    def to_plain(self) -> Plain:
        """Bins and parts as JSON values, without Z: a fitted model has its curves, one number a bin."""
        return {
            "name": self.name,
            "edges": None if self.edges is None else self.edges.tolist(),
            "levels": list(self.levels),
            "parts": [{"kind": part.kind, "start": part.start, "stop": part.stop} for part in self.parts],
            "weight": self.weight.tolist(),
            "centre": None if self.centre is None else self.centre.tolist(),
        }


def effect_from_plain(plain: Plain) -> Effect:
    """The inverse of :meth:`Effect.to_plain`; Z has no columns.

    Raises:
        DataError: the entry is no effect.
    """
    try:
        edges, centre = (None if plain[key] is None else np.asarray(plain[key], float) for key in ("edges", "centre"))
        levels, weight = tuple(plain["levels"]), np.asarray(plain["weight"], float)
        parts = tuple(Part(part["kind"], int(part["start"]), int(part["stop"])) for part in plain["parts"])
        bins = len(levels) + 2 if edges is None else len(edges) + 2
        if weight.shape != (bins,) or not all(isinstance(text, str) for text in (plain["name"], *levels)):
            raise ValueError(f"{bins} bins, {weight.shape} weights")
        if edges is not None and not np.all(np.diff(edges) > 0.0):
            raise ValueError("edges that do not rise")
        return Effect(plain["name"], edges, levels, np.zeros((bins, 0)), parts, weight, centre)
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise DataError(f"not the effect of a column: {e}") from None


def room(classes: int, budget: int = BUDGET) -> int:
    """Weights that a score may have, BUDGET / sqrt(C) where each of C classes has a score.

    A Hessian that is taken class by class then has BUDGET^2 entries, however many classes there are.

    Args:
        classes: C; 1 of families with one score.
        budget: weights of a model of one score.
    """
    # C scores of P weights cost C P^2: the same at P = BUDGET / sqrt(C)
    return int(budget / np.sqrt(classes))


def resolution(numbers: int, others: int, budget: int = BUDGET) -> tuple[int, int]:
    """Functions of smooth parts and bins of rough parts, with which a table's weights are about ``budget`` at most.

    Where there is little room smooth parts have up to FEW_SMOOTH functions, and rough ones what is left, or none. So
    many columns that there is room for less than LEAST each are to share penalties, and have smooth parts alone.

    Args:
        numbers: columns of numbers.
        others: weights that the other columns have.
        budget: weights of the model.
    """
    # what is left for each column of numbers, beside its line
    each = (budget - others) // max(numbers, 1) - 1
    if each < LEAST:
        return FEW_SMOOTH, 1
    smooth = int(np.clip(each // 4, min(each, FEW_SMOOTH), SMOOTH))
    coarse = min(each - smooth, COARSE)
    return smooth, coarse if coarse > LEAST else 1


def number(
    name: str,
    values: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    distinct: np.ndarray | None = None,
    bins: int = BINS,
    coarse: int = COARSE,
    smooth: int = SMOOTH,
) -> Effect:
    """The effect of a column of numbers: linear, smooth, rough, and missing where cells are.

    Args:
        name: of the column.
        values: float64 [n], NaN where missing; infinite ones fall in the end bins.
        weight: of the rows, [n]; 1 if None.
        distinct: how many different numbers each value stands for, [n]; 1 if None.
        bins: fine bins, at most.
        coarse: bins of the rough part, at most; 1: there is none.
        smooth: functions of the smooth part, at most.
    """
    x = np.clip(np.asarray(values, float), -np.finfo(float).max, np.finfo(float).max)
    w = np.ones(len(x)) if weight is None else np.asarray(weight, float)
    known, mass, first, edges = _grouped(x, w, distinct, bins)
    group = np.searchsorted(first, np.arange(len(known)), side="right") - 1
    bin_mass = np.bincount(group, mass, len(first)) if len(first) else np.zeros(1)
    # Divided first: sums of the largest floats overflow.
    centre = np.bincount(group, mass / bin_mass[group] * known, len(first)) if len(first) else np.zeros(1)
    parts: list[tuple[PartKind, np.ndarray]] = [("linear", linear_part(centre, bin_mass))]
    if len(centre) > 2:
        parts += [("smooth", smooth_part(centre, bin_mass, smooth)), ("rough", _rough(bin_mass, coarse))]
    total = np.append(bin_mass, w[np.isnan(x)].sum())
    return _assembled(name, parts, total, edges=edges, centre=centre)


def edges_of(values: np.ndarray, weight: np.ndarray, distinct: np.ndarray | None = None) -> np.ndarray:
    """Between the bins of :func:`number`."""
    return _grouped(values, weight, distinct, BINS)[3]


def _grouped(x: np.ndarray, w: np.ndarray, distinct: np.ndarray | None, bins: int) -> tuple[np.ndarray, ...]:
    """Different numbers, their weight, which of them are the first of a bin, and the edges between bins."""
    there = ~np.isnan(x) & (w > 0.0)
    known, inverse = np.unique(x[there], return_inverse=True)
    mass = np.bincount(inverse, w[there], len(known))
    many = None if distinct is None else np.bincount(inverse, distinct[there], len(known))
    first = first_of_groups(mass, bins, many)
    return known, mass, first, _between(known[first[1:] - 1], known[first[1:]])


def category(
    name: str,
    values: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    ordered: Sequence[str] | None = None,
    most: int = LEVELS,
) -> Effect:
    """The effect of a column of categories: levels, or steps between ordered ones, and missing where cells are.

    Args:
        name: of the column.
        values: object [n] of text, None where missing.
        weight: of the rows, [n]; 1 if None.
        ordered: all levels in their order; others are as unseen.
        most: levels with an effect of their own, at most; the rarest share one with all that is unseen.
    """
    w = np.ones(len(values)) if weight is None else np.asarray(weight, float)
    missing = np.fromiter((cell is None for cell in values), bool, len(values))
    if ordered is None:
        seen: dict[str, int] = {}
        inverse = np.fromiter((seen.setdefault(cell, len(seen)) for cell in values[~missing].tolist()), np.intp)
        mass = dict(zip(seen, np.bincount(inverse, w[~missing], len(seen)).tolist(), strict=True))
        frequent = sorted((level for level in seen if mass[level] > 0.0), key=lambda level: (-mass[level], level))
        levels = tuple(frequent[:most])
    else:
        levels = tuple(ordered)
    bare = Effect(name, None, levels, np.zeros((len(levels) + 2, 0)), (), np.zeros(0), None)
    total = np.bincount(bare.codes(values), w, len(levels) + 2)
    if ordered is None:
        Z = principal(np.eye(len(levels) + 1)[:, total[:-1] > 0.0], total[:-1], scaled=False)
        return _assembled(name, [("levels", Z)], total, levels=levels)
    Z = principal(steps(np.arange(len(levels))), total[:-2], scaled=True)
    # The bin of other cells has the mean effect, 0.
    return _assembled(name, [("steps", np.concatenate([Z, np.zeros((1, Z.shape[1]))]))], total, levels=levels)


def date_parts(days: np.ndarray, *, every: bool = False) -> dict[str, np.ndarray]:
    """Numbers of a date in days since 1970-01-01 with fractions: year, month, day, weekday (0: Monday), hour.

    A part that does not vary is left out, but the year, unless ``every`` one is asked for; NaN stays NaN.
    """
    missing = ~np.isfinite(days)
    whole = np.floor(np.where(missing, 0.0, days))
    day = whole.astype("datetime64[D]")
    month = day.astype("datetime64[M]")
    out = {
        "year": day.astype("datetime64[Y]").astype(float) + 1970.0,
        "month": month.astype(float) % 12.0 + 1.0,
        "day": (day - month).astype(float) + 1.0,
        # 1970-01-01 was a Thursday
        "weekday": (whole + 3.0) % 7.0,
        "hour": np.where(missing, 0.0, days - whole) * 24.0,
    }
    out = {part: np.where(missing, np.nan, x) for part, x in out.items()}
    return {part: x for part, x in out.items() if every or part == "year" or len(np.unique(x[~missing])) > 1}


def first_of_groups(mass: np.ndarray, count: int, distinct: np.ndarray | None = None) -> np.ndarray:
    """The first value of each group of neighbours, at most ``count``: half way between equal rows and equal values.

    Args:
        mass: of the values, in their order.
        count: groups.
        distinct: how many values each is in truth, 1 if None.
    """
    if len(mass) <= count:
        return np.arange(len(mass))
    share = shares(mass, count, distinct)
    # a value is in the group in which the middle of its share lies
    group = np.minimum((np.cumsum(share) - 0.5 * share) * count, count - 1).astype(int)
    return np.unique(group, return_index=True)[1]


def shares(mass: np.ndarray, count: int, distinct: np.ndarray | None = None) -> np.ndarray:
    """What values have of the whole that :func:`first_of_groups` cuts into equal parts."""
    for _ in range(10):  # a value of many rows is one group, whatever its mass
        mass = np.minimum(mass, mass.sum() / count)
    values = 1.0 / len(mass) if distinct is None else distinct / distinct.sum()
    # half of the share of the rows, and half of that of the different values
    out: np.ndarray = (mass / mass.sum() + values) / 2.0
    return out


def _between(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Edges e with low < e <= high, half way where that is a float."""
    # each halved first: the sum of two large floats overflows
    middle = 0.5 * low + 0.5 * high
    return np.where(middle > low, middle, high)


def principal(F: np.ndarray, mass: np.ndarray, *, most: int | None = None, scaled: bool) -> np.ndarray:
    """Z with the covariance of F u, u ~ N(0, 1), less the mean; its principal functions on the training rows."""
    if not F.size or mass.sum() <= 0.0:
        return np.zeros((len(F), 0))
    w = mass / mass.sum()
    # F u less its mean: sqrt(w) F = U s V', so that the columns of F V have the mean squares s^2, falling
    F = F - w @ F
    _, s, Vt = np.linalg.svd(np.sqrt(w)[:, None] * F, full_matrices=False)
    variance = float(np.sum(s**2))
    if variance <= 1e-20 * float(np.sum(F**2)) or variance == 0.0:
        return np.zeros((len(F), 0))
    # variance of the i-th function and of all after it
    left_out = np.cumsum((s**2)[::-1])[::-1]
    kept = int(np.sum(left_out > VARIANCE * variance)) if most is not None else int(np.sum(s > 1e-9 * s[0]))
    # scaled: a part's functions have the mean square 1 together, as one penalty is to mean the same for every part
    Z: np.ndarray = F @ Vt[: min(kept, most or kept)].T
    return Z / np.sqrt(variance) if scaled else Z


def linear_part(centre: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """A line in the bins' centres, [bins, 1]; [bins, 0] if they are one."""
    # From one of the values, so that far-away ones keep their digits; half of it, so that nothing overflows.
    x = (0.5 * centre - 0.5 * centre[len(centre) // 2])[:, None]
    return principal(x / max(float(np.max(np.abs(x))), np.finfo(float).tiny), mass, scaled=True)


def smooth_part(centre: np.ndarray, mass: np.ndarray, most: int) -> np.ndarray:
    """Hinges (t - m)_+ with independent weights, t the number of the bin; and a line in t, where it is none in x."""
    t = np.arange(float(len(centre)))
    w = mass / mass.sum()
    hinges = np.maximum(t[:, None] - t[1:-1], 0.0)
    line = linear_part(t, mass)
    # hinges less their constant and their line: what bends alone
    hinges = _less(_less(hinges, np.ones((len(t), 1)), w), line, w)
    size = np.sqrt(np.sum(w @ hinges**2))
    hinges = hinges / size if size > 1e-9 * len(t) else hinges[:, :0]  # rows in two bins alone: rounding
    F = _less(np.concatenate([hinges, line], axis=1), linear_part(centre, mass), w)
    return principal(F, mass, most=most, scaled=True)


def _less(F: np.ndarray, direction: np.ndarray, w: np.ndarray) -> np.ndarray:
    """F less its projection on a direction [bins, 1 or 0] in the inner product of the training rows."""
    size = float(np.sum(w @ direction**2))
    # F - d <d, F>_w / <d, d>_w
    return F - direction @ (direction.T @ (w[:, None] * F)) / size if size > 0.0 else F


def _rough(mass: np.ndarray, coarse: int) -> np.ndarray:
    first = first_of_groups(mass, coarse)
    group = np.searchsorted(first, np.arange(len(mass)), side="right") - 1
    return principal(steps(group), mass, scaled=True)


def steps(group: np.ndarray) -> np.ndarray:
    """1 from each group on, [bins, groups - 1]."""
    return (group[:, None] >= np.arange(1, group.max(initial=0) + 1)).astype(float)


def _assembled(
    name: str,
    parts: Sequence[tuple[PartKind, np.ndarray]],
    total: np.ndarray,
    *,
    edges: np.ndarray | None = None,
    levels: tuple[str, ...] = (),
    centre: np.ndarray | None = None,
) -> Effect:
    """An effect of parts [bins - 1, k] each, 0 where the cell is missing, and of missing cells where there are some."""
    blocks = [(kind, np.concatenate([Z, np.zeros((1, Z.shape[1]))])) for kind, Z in parts]
    if 0.0 < total[-1] < total.sum():
        missing = np.zeros((len(total), 1))
        missing[-1] = 1.0
        # a mark of the mean 0 over the rows
        blocks.append(("missing", missing - total[-1] / total.sum()))
    blocks = [(kind, Z) for kind, Z in blocks if Z.shape[1]]
    stops = np.cumsum([Z.shape[1] for _, Z in blocks]).tolist()
    basis = np.concatenate([np.zeros((len(total), 0)), *(Z for _, Z in blocks)], axis=1)
    named = tuple(Part(kind, stop - Z.shape[1], stop) for (kind, Z), stop in zip(blocks, stops, strict=True))
    return Effect(name, edges, levels, basis, named, total, centre)
