"""Whether the target is made of other columns: a sum, a product, a quotient, in every row and up to rounding."""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from bilevax.core.text import listed
from bilevax.study.levels import option
from bilevax.tables.table import Table

_FEW_NUMBERS = 10
_SAMPLE = 2000
# Of a sum that holds in every row: columns, rows for each of them, and the error that arithmetic leaves.
_COLUMNS, _ROWS, _ROUNDING = 60, 3, 1e-7
# A number of a sum of which less is used is noise, where the target is rounded; that is asked of deviations only.
_USED, _USED_OF_ROUNDED = 1e-6, 1e-3
# Of a target that is rounded: decimals at most, and half units that its deviation has at least.
_DECIMALS, _COARSE, _LARGEST = 6, 40, 1e12
# Columns from which formulas are made, rows by which these are sieved, and rows needed.
_TRIED, _SIEVE, _FEWEST = 24, 16, 30


class _Sample(NamedTuple):
    """Rows in which all is known: target, error that rounding may leave, columns and their names."""

    y: np.ndarray
    slack: float
    X: np.ndarray
    names: list[str]


def made_of(table: Table, target: str) -> str:
    """A sentence where the target is a sum, a product or a quotient of two or more columns in every row."""
    sample = _sample(table, target)
    if sample is None:
        return ""
    y, slack, X, names = sample
    if used := _exact(X, y, np.full(len(y), slack)):
        return _made(target, [names[j] for j in used], "a sum (with factors)")
    if found := _formula(sample):
        return _made(target, *found)
    positive = np.asarray((X > 0).all(axis=0))
    if (y > 0).all() and (used := _exact(np.log(X[:, positive]), np.log(y), slack / y)):
        kept = [name for name, one in zip(names, positive, strict=True) if one]
        return _made(target, [kept[j] for j in used], "a product (with powers)")
    return ""


def _sample(table: Table, target: str) -> _Sample | None:
    numbers = [c for c in table.columns if c.kind in ("integer", "number") and np.ptp(c.values) != 0]
    y = next((c.values for c in numbers if c.name == target), None)
    others = [c for c in numbers if c.name != target]
    if y is None or not 2 <= len(others) <= _COLUMNS or len(np.unique(y)) <= _FEW_NUMBERS:
        return None
    rows = np.random.default_rng(0).permutation(table.rows)[:_SAMPLE]
    y, X = y[rows], np.column_stack([c.values[rows] for c in others])
    whole = ~np.isnan(y)
    known = np.isnan(X[whole]).mean(axis=0) < 0.2
    whole &= ~np.isnan(X[:, known]).any(axis=1)
    names = [c.name for c, one in zip(others, known, strict=True) if one]
    return _Sample(y[whole], _slack(y[whole]), X[whole][:, known], names) if whole.any() else None


def _slack(y: np.ndarray) -> float:
    """Half a unit of the last decimal of numbers that are rounded to far less than their deviation; else 0."""
    if np.abs(y).max() > _LARGEST:
        return 0.0
    for decimals in range(_DECIMALS + 1):
        unit = 10.0**-decimals
        if np.abs(y - np.round(y, decimals)).max() <= 1e-9 * np.abs(y).max():
            return 0.5 * unit if y.std() >= _COARSE * 0.5 * unit else 0.0
    return 0.0


def _exact(X: np.ndarray, y: np.ndarray, slack: np.ndarray) -> list[int]:
    """The two or more columns of which y is a linear function to rounding; empty where it is none."""
    if X.shape[1] < 2 or len(y) < _ROWS * (X.shape[1] + 1):
        return []
    Z, z = _standard(X), _standard(y)
    if not z.any():
        return []
    factors, _, _, _ = np.linalg.lstsq(Z, z, rcond=1e-10)
    if np.abs(Z @ factors - z).max() <= _ROUNDING:
        used = np.flatnonzero(np.abs(factors) > _USED).tolist()
    else:
        used = _rounded(Z, z, slack / y.std()) if np.all(slack > 0) else []
    return used if len(used) >= 2 else []


def _rounded(Z: np.ndarray, z: np.ndarray, slack: np.ndarray) -> list[int]:
    """The columns of which z is a linear function up to an error in each row."""
    # the less a row is rounded, the more it says
    weight = (slack.min() / slack)[:, None]
    A = np.column_stack([np.ones(len(z)), Z])
    factors, _, _, _ = np.linalg.lstsq(A * weight, z * weight[:, 0], rcond=1e-10)
    used = np.flatnonzero(np.abs(factors[1:]) > _USED_OF_ROUNDED)
    A = A[:, [0, *(used + 1)]]
    factors, _, _, _ = np.linalg.lstsq(A * weight, z * weight[:, 0], rcond=1e-10)
    # the fit may be off by as much as the rounding
    return used.tolist() if np.all(np.abs(A @ factors - z) <= 1.5 * slack) else []


def _standard(x: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and deviation 1; of 0 where a column is constant."""
    x = x / np.maximum(np.abs(x).max(axis=0), np.finfo(float).tiny)  # squares do not overflow
    x = x - x.mean(axis=0)
    spread = x.std(axis=0)
    standard: np.ndarray = np.where(spread > 1e-12, x / np.where(spread > 1e-12, spread, 1.0), 0.0)
    return standard


class _Formula(NamedTuple):
    """``b o c``, multiplied by ``a``, divided by it, or it divided by them; -1 stands for no column."""

    outer: str
    a: int
    inner: str
    b: int
    c: int

    def of(self, X: np.ndarray) -> np.ndarray:
        """Its value in each row."""
        b = X[:, self.b]
        inner = b if self.c < 0 else _INNER[self.inner](b, X[:, self.c])
        return inner if self.a < 0 else _OUTER[self.outer](X[:, self.a], inner)

    def text(self, names: list[str]) -> str:
        """As one writes it."""
        inner = f"'{names[self.b]}'" if self.c < 0 else f"'{names[self.b]}' {self.inner} '{names[self.c]}'"
        if self.a < 0:
            return inner
        inner = f"({inner})" if self.c >= 0 else inner
        a = f"'{names[self.a]}'"
        product = f"{a} x {inner}" if self.c >= 0 else f"{inner} x {a}"
        return {"x": product, "/": f"{inner} / {a}", "\\": f"{a} / {inner}"}[self.outer]

    def columns(self, names: list[str]) -> list[str]:
        """Those that it has."""
        return list(dict.fromkeys(names[j] for j in (self.a, self.b, self.c) if j >= 0))


_INNER: dict[str, Callable[..., np.ndarray]] = {"+": np.add, "-": np.subtract, "x": np.multiply}
_OUTER: dict[str, Callable[..., np.ndarray]] = {"x": np.multiply, "/": lambda a, inner: inner / a, "\\": np.divide}


def _sieved(X: np.ndarray, y: np.ndarray, slack: float) -> Iterator[_Formula]:
    """Formulas that hold in a few rows: those of two columns, then those of three."""
    every = range(X.shape[1])
    alone = [("", b, -1) for b in every]
    pairs = [(o, b, c) for b, c in itertools.permutations(every, 2) for o in _INNER if b < c or o == "-"]
    for inner, b, c in (*alone, *pairs):
        value = _Formula("", -1, inner, b, c).of(X)
        if c >= 0 and np.all(np.abs(value - y) <= slack):
            yield _Formula("", -1, inner, b, c)
        for outer, apply in _OUTER.items():
            holds = np.all(np.abs(apply(X, value[:, None]) - y[:, None]) <= slack, axis=0)
            yield from (_Formula(outer, a, inner, b, c) for a in np.flatnonzero(holds).tolist() if c >= 0 or a != b)


def _formula(sample: _Sample) -> tuple[list[str], str] | None:
    """The columns of a formula that holds in every row, and the formula."""
    y, slack, X, names = sample
    slack = max(1.001 * slack, 1e-9 * float(np.abs(y).max()))
    # a copy, which alone is found as one, makes a formula with anything that is nearly 0 or 1
    kept = np.flatnonzero((np.abs(X - y[:, None]) > slack).any(axis=0))
    if len(y) < _FEWEST or len(kept) < 2:
        return None
    strength = np.abs(_standard(X[:, kept]).T @ _standard(y))
    kept = np.sort(kept[np.argsort(-strength, kind="stable")[:_TRIED]])
    X, names = X[:, kept], [names[j] for j in kept]
    rows = np.argsort(y, kind="stable")[np.linspace(0, len(y) - 1, _SIEVE).astype(int)]
    with np.errstate(all="ignore"):
        for formula in _sieved(X[rows], y[rows], slack):
            if np.all(np.abs(formula.of(X) - y) <= slack):
                return formula.columns(names), formula.text(names)
    return None


def _made(target: str, names: list[str], how: str) -> str:
    listing = listed(f"'{name}'" for name in names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    what = how if "'" in how else f"{how} of columns {listing}"
    return (
        f"'{target}' is {what} in every row: are these known before '{target}' is? If not, leave "
        f"them out ({' '.join(option('--drop', name) for name in names[:6])})"
    )
