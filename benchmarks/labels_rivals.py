"""The methods of ``labels`` that rank labels and learn from them; all are linear: the question is the ranking."""

import copy
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedKFold

from benchmarks.labels_cells import Cell, cell
from bilevax.linalg.columns import Matrix
from bilevax.sklearn import LabelCleaner
from bilevax.solvers.label_models import LabelModel
from bilevax.solvers.label_noise import Given, Noise, posterior
from bilevax.solvers.label_search import Found, cross_fitted, first_strengths, retrained, start

GRID = 10.0 ** np.arange(-4, 3)
FOLDS = 5


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


def regression(X: Matrix, y: np.ndarray, C: float, steps: int) -> LogisticRegression:
    """Logistic regression by at most so many steps of L-BFGS, in single precision: half the time, the same scores."""
    return LogisticRegression(C=C, max_iter=steps).fit(X.astype(np.float32), y)


def tuned(X: Matrix, y: np.ndarray, seed: int) -> LogisticRegression:
    """Logistic regression with the penalty of least log-loss in three folds."""
    C, loss = np.unique(y), {}
    for value in GRID:
        losses = []
        for train, test in StratifiedKFold(3, shuffle=True, random_state=seed).split(y, y):
            model = regression(X[train], y[train], value, 200)
            losses.append(log_loss(y[test], model.predict_proba(X[test]), labels=C))
        loss[value] = np.mean(losses)
        if loss[value] > min(loss.values()):
            break
    return regression(X, y, min(loss, key=loss.__getitem__), 500)


@cache
def uncleaned(c: Cell, seed: int) -> LogisticRegression:
    """The tuned model of all labels, trusted ones too."""
    X, given = joined(c)
    return tuned(X, given.y, seed)


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
    trusted = (c.X_trusted, c.trusted) if len(c.trusted) else None
    model = LabelCleaner(random_state=seed).fit(c.X, c.given, trusted=trusted)
    cpu = time.process_time() - begin
    low, high = model.expected_wrong_[1:]
    covers = {"covered": float(low <= c.flipped.sum() <= high), "cpu": cpu}
    return known(model.posterior_, c) | accuracy(model, c) | covers | model.strengths_


def weights(c: Cell, seed: int) -> dict[str, float]:
    """A weight per row by hypergradients."""
    model = LabelCleaner(method="weights", random_state=seed).fit(c.X, c.given, trusted=(c.X_trusted, c.trusted))
    return ranked(-model.row_weights_, c) | accuracy(model, c)


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
        model = regression(X[noisy], given.y[noisy], C, 300)
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
    C, fold = uncleaned(c, seed).C, deal(c, seed)
    p = np.zeros((len(fold), c.classes))
    for k in range(FOLDS):
        model = regression(X[fold != k], given.y[fold != k], C, 300)
        p[fold == k] = model.predict_proba(X[fold == k])
    p, out = p[: len(c.given)], {}
    for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
        for adjust in (False, True)[: 1 if method == "confidence_weighted_entropy" else 2]:
            score = get_label_quality_scores(c.given, p, method=method, adjust_pred_probs=adjust)
            out[method + (" adjusted" if adjust else "")] = ranked(-score, c)
    best = max(out.values(), key=lambda x: x["auc"])
    precision = max(x["precision"] for x in out.values())
    keep = np.concatenate([~find_label_issues(c.given, p, n_jobs=1), np.ones(len(c.trusted), bool)])
    after = accuracy(regression(X[keep], given.y[keep], C, 500), c)
    scores = {name: value["auc"] for name, value in out.items()}
    return {"auc": best["auc"], "precision": precision} | after | scores


def matrix(c: Cell) -> Noise:
    """The true one."""
    T = np.stack([np.bincount(c.given[c.true == z], minlength=c.classes) for z in range(c.classes)])
    return Noise.of(T / T.sum(axis=1, keepdims=True))


def told(c: Cell, seed: int) -> dict[str, float]:
    """What LabelCleaner is given and the true matrix; the penalty by the loss of the first fold. Corrected likewise."""
    X, given, fold = *joined(c), deal(c, seed)
    by = first_strengths(X, c.classes)._replace(trusted=0.0)

    def held(k: int, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        rows, out = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        of = LabelModel(X[rows], given.take(rows), np.ones(len(rows)))
        begin = start(of.X, of.given, by, of.weight)._replace(noise=matrix(c))
        at = of.fit(begin, by._replace(penalty=penalty), tolerance=1e-5, noise=False)
        return posterior(at.log_p(X[out]), given.take(out), at.noise.log_matrix)

    penalty = max(by.penalty + np.arange(-2.0, 4.0), key=lambda x: held(0, x)[1].sum())
    q = np.zeros((len(fold), c.classes))
    for k in range(FOLDS):
        q[fold == k] = held(k, penalty)[0]
    q[len(c.given) :] = np.eye(c.classes)[c.trusted]
    by = by._replace(penalty=penalty)
    after = retrained(X, q, start(X, given, by, np.ones(len(fold))), by)
    right = after.log_p(c.X_test).argmax(axis=1) == c.test
    return known(q[: len(c.given)], c) | {"accuracy": float(right.mean())}


def ceiling(c: Cell, seed: int) -> dict[str, float]:
    """A model of the clean labels and the true matrix; its accuracy is that of an oracle that leaves out the flips."""
    C, fold = tuned(c.X, c.true, seed).C, deal(c, seed)[: len(c.given)]
    log_p = np.zeros((len(fold), c.classes))
    for k in range(FOLDS):
        model = regression(c.X[fold != k], c.true[fold != k], C, 300)
        log_p[fold == k] = model.predict_log_proba(c.X[fold == k])
    q, _ = posterior(log_p, Given(c.given, np.zeros(len(fold), bool), c.classes), matrix(c).log_matrix)
    X, y = stacked(c.X[~c.flipped], c.X_trusted), np.concatenate([c.true[~c.flipped], c.trusted])
    return known(q, c) | accuracy(tuned(X, y, seed), c)


def nothing(c: Cell, seed: int) -> dict[str, float]:
    """No cleaning: a tuned model of all labels, trusted ones too."""
    return accuracy(uncleaned(c, seed), c)


def stopped(c: Cell, seed: int) -> dict[str, float]:
    """No cleaning: penalty and number of iterations by the loss of the trusted rows, of which nothing is learned."""
    X, least, best = c.X.astype(np.float32), np.inf, None
    for value in GRID:
        model = LogisticRegression(C=value, max_iter=3, warm_start=True)
        for _ in range(20):
            p = model.fit(X, c.given).predict_proba(c.X_trusted)
            loss = log_loss(c.trusted, p, labels=range(c.classes))
            if loss < least:
                least, best = loss, copy.deepcopy(model)
    return accuracy(best, c)


UNTOLD = "cleaner", "cleanlab", "told", "ceiling", "nothing"
"""Those that need no trusted rows."""

METHODS: dict[str, Callable[[Cell, int], dict[str, float]]] = {
    "cleaner": cleaner, "cleanlab": cleanlab, "trusted": trusted, "glc": glc, "em": em, "told": told,
    "ceiling": ceiling, "weights": weights, "nothing": nothing, "stopped": stopped,
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
