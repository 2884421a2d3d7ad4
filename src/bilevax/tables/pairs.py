"""Effects of pairs of columns: joint bins, and functions of these that no function of one column can stand for.

The bins of a column are put together to *groups*; the joint bins of a pair are all its pairs of groups, and its effect
is f = Z b. The prior covariance of f is the product of those of the two columns' effects, both smooth or both rough,
of which the first principal functions on the training rows are kept. f is *pure* (functional analysis of variance;
Lengerich et al. 2020, arXiv:1911.04974): with N the weight of the training rows in the joint bins,

    sum_b N_ab Z_ab = 0 for every group a,    sum_a N_ab Z_ab = 0 for every group b

so that a pair takes nothing from the effects of its columns, whatever b is.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bilevax.core.errors import DataError
from bilevax.core.events import Plain
from bilevax.tables.effects import Effect, Part, first_of_groups, linear_part, principal, smooth_part, steps

PRODUCTS = 100
"""Products of the functions of two columns that a pair is made of, at most."""

LARGEST = 3.0
"""Prior standard deviation of f in a joint bin, over its root mean square on the rows, to which larger ones are cut."""

PURE = 1e-9
"""Part of its mean square that a pair's covariance keeps when it is made pure; with less there is no such pair."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Joint bins of two columns, and what they may do.

    Attributes:
        names: of the columns.
        columns: their numbers, the first below the second.
        groups: the group of each bin of the first and of the second, [bins] each; missing cells have the last one.
        basis: Z, [groups_a * groups_b, k].
        parts: of the columns of Z; one.
        weight: of the training rows in each joint bin, [groups_a, groups_b].
        gain: in log marginal likelihood, when it was screened.
        start: the log penalty with this gain.
    """

    names: tuple[str, str]
    columns: tuple[int, int]
    groups: tuple[np.ndarray, np.ndarray]
    basis: np.ndarray
    parts: tuple[Part, ...]
    weight: np.ndarray
    gain: float
    start: float

    def codes(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The joint bins, uint16 [n], of rows in these bins of the two columns, [n] each."""
        a, b = self.groups
        # joint bin (g, h) is number g groups_b + h
        out: np.ndarray = a[first] * np.uint16(self.weight.shape[1]) + b[second]
        return out

    def surface(self, b: np.ndarray) -> np.ndarray:
        """f in the joint bins, [groups_a, groups_b, S] of weights [k, S]."""
        out: np.ndarray = (self.basis @ b).reshape(*self.weight.shape, -1)
        return out

    def to_plain(self) -> Plain:
        """Joint bins as JSON values, without Z: a fitted model has its surfaces, one number a joint bin."""
        return {
            "names": list(self.names),
            "columns": list(self.columns),
            "groups": [group.tolist() for group in self.groups],
            "parts": [{"kind": part.kind, "start": part.start, "stop": part.stop} for part in self.parts],
            "weight": self.weight.tolist(),
            "gain": self.gain,
            "start": self.start,
        }


def pair_from_plain(plain: Plain) -> Pair:
    """The inverse of :meth:`Pair.to_plain`; Z has no columns.

    Raises:
        DataError: the entry is no pair.
    """
    try:
        (a, b), (i, j) = plain["names"], plain["columns"]
        first, second = (np.asarray(group, np.uint16) for group in plain["groups"])
        parts = tuple(Part(part["kind"], int(part["start"]), int(part["stop"])) for part in plain["parts"])
        weight = np.asarray(plain["weight"], float)
        if weight.shape != (int(first.max()) + 1, int(second.max()) + 1):
            raise ValueError(f"groups up to {first.max()} and {second.max()}, {weight.shape} weights")
        if not (isinstance(a, str) and isinstance(b, str) and isinstance(i, int) and isinstance(j, int)):
            raise TypeError(f"{plain['names']} of {plain['columns']}")
        basis = np.zeros((weight.size, 0))
        return Pair((a, b), (i, j), (first, second), basis, parts, weight, float(plain["gain"]), float(plain["start"]))
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as e:
        raise DataError(f"not the effect of a pair of columns: {e}") from None


class Margin(NamedTuple):
    """A column's groups, and what an effect of it may do.

    Attributes:
        group: of each bin, uint16 [bins]; the last one is that of missing cells.
        weight: of the training rows in each group.
        smooth: functions of the group, [groups, k]; a line among them.
        rough: the same without smoothness; None of categories, whose functions are those of ``smooth``.
    """

    group: np.ndarray
    weight: np.ndarray
    smooth: np.ndarray
    rough: np.ndarray | None


def margin(effect: Effect, groups: int, functions: int) -> Margin:
    """Groups of about equally many rows; of categories, the most frequent levels and the rest.

    Args:
        effect: of the column.
        groups: that of missing cells aside, at most.
        functions: of each kind, at most.
    """
    at, centre = effect.weight[:-1], effect.centre
    if centre is None and any(part.kind == "steps" for part in effect.parts):
        centre = np.arange(float(len(at)))  # ordered levels, by their numbers
    # Levels stand in the order of their frequency, unseen ones with the rest.
    first = np.arange(min(len(at), groups)) if centre is None else first_of_groups(at, groups)
    group = np.append(np.searchsorted(first, np.arange(len(at)), side="right") - 1, len(first)).astype(np.uint16)
    weight = np.bincount(group, effect.weight, len(first) + 1)
    mass, rough = weight[:-1], None
    if centre is None:
        # A level that no row has, has no effect.
        smooth = principal(np.eye(len(mass))[:, mass > 0.0], mass, most=functions, scaled=True)
    else:
        # Divided first: sums of the largest floats overflow.
        share = at / np.maximum(mass[group[:-1]], np.finfo(float).tiny)
        centre = np.bincount(group[:-1], share * centre, len(mass))
        smooth = linear_part(centre, mass)
        if len(mass) > 2:
            smooth = np.concatenate([smooth, smooth_part(centre, mass, functions)], axis=1)
            rough = _or_missing(principal(steps(np.arange(len(mass))), mass, most=functions, scaled=True), weight)
    return Margin(group, weight, _or_missing(smooth, weight), rough)


def _or_missing(Z: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Z [groups - 1, k], 0 where the cell is missing, and 1 there, where there are such rows."""
    k = Z.shape[1]
    out = np.zeros((len(weight), k + (weight[-1] > 0.0)))
    out[:-1, :k] = Z
    out[-1, k:] = 1.0
    return out


def products(a: Margin, b: Margin, most: int = PRODUCTS, *, rough: bool) -> np.ndarray:
    """Products of a function of one column and one of the other, [joint bins, k]: the largest on the training rows.

    Args:
        a: the first column.
        b: the second.
        most: k, at most.
        rough: whether the functions of numbers are the rough ones.
    """
    f, g = (m.rough if rough and m.rough is not None else m.smooth for m in (a, b))
    # of products f_i g_j the largest, were the two columns independent
    size = np.outer(a.weight @ f**2, b.weight @ g**2).ravel()
    i, j = np.unravel_index(np.argsort(-size, kind="stable")[:most], (f.shape[1], g.shape[1]))
    out: np.ndarray = f[:, None, i] * g[None, :, j]
    return out.reshape(len(f) * len(g), -1)


class Purifier:
    """The projection off the functions of one column, in the inner product of N [groups_a, groups_b].

    F - A (A'NA)^+ A'NF, with A the indicators of the groups, scaled to a mean square of 1.
    """

    def __init__(self, N: np.ndarray) -> None:
        rows, columns = N.shape
        sums = np.concatenate([N.sum(axis=1), N.sum(axis=0)])
        scale = np.where(sums > 0.0, 1.0 / np.sqrt(np.where(sums > 0.0, sums, 1.0)), 0.0)
        # marks of the rows and of the columns of the table: A theta is a sum of two main effects
        A = np.concatenate([np.repeat(np.eye(rows), columns, axis=0), np.tile(np.eye(columns), (rows, 1))], axis=1)
        self._A = A * scale
        self._NA = N.ravel()[:, None] * self._A
        self._inverse = np.linalg.pinv(self._A.T @ self._NA, rcond=1e-12, hermitian=True)

    def __call__(self, F: np.ndarray) -> np.ndarray:
        """F [joint bins, k], pure."""
        for _ in range(2):  # once more for rounding
            # F less its projection on the main effects, weighted by N: A (A'NA)^-1 A'N F
            F = F - self._A @ (self._inverse @ (self._NA.T @ F))
        return F


def pure_basis(a: Margin, b: Margin, N: np.ndarray, *, rough: bool) -> np.ndarray:
    """Z of a pair, all of it, of mean square 1 on the training rows; [joint bins, 0] where there is no pure effect.

    Args:
        a: the first column.
        b: the second.
        N: weight of the training rows, [groups_a, groups_b].
        rough: whether effects of numbers are rough.
    """
    w, F = N.ravel() / N.sum(), products(a, b, rough=rough)
    purifier, there = Purifier(N), np.logical_and.outer(a.weight > 0.0, b.weight > 0.0).reshape(-1, 1)
    pure = purifier(F) * there
    if np.sum(w @ pure**2) <= PURE * np.sum(w @ F**2):
        return np.zeros((len(F), 0))
    # Of columns that go together, most rows are where the pure effect is small; elsewhere it would be at large. Making
    # it pure again brings some of that back.
    for _ in range(3):
        # standard deviation of each joint bin's effect, in units of the mean over the rows; LARGEST at most
        variance = np.sum(pure**2, axis=1)
        size = np.sqrt(variance / (w @ variance))
        F = F * (LARGEST / np.maximum(size, LARGEST))[:, None]
        pure = purifier(F) * there
    return principal(pure, N.ravel(), most=PRODUCTS, scaled=True)
