"""Posteriors by scores of models that have not seen the rows: factor, bias and noise matrix fitted to these scores.

A classifier of few rows a column is fitted to the labels that it is trained on. The rates of flips with which it
learns best are therefore not those of the labels; its bias makes up for the difference, and its scores are shrunk by
the penalty. Scores log p of rows that were held out are not fitted to their labels, and of few parameters,

    p~(x) = softmax(s log p(x) + b),        P(label j | x) = sum_c p~_c(x) T_cj,

those of most likelihood are true to the rows. The given labels hardly tell b from T; the trusted rows do, which other
models had held out (Platt 1999 and Guo et al. 2017, arXiv:1706.04599, where every label is right). Where there are
none, b is 0, and no class has more flips than labels that are right: a classifier of ten rows a column has no bias to
make up for, and the labels alone tell s from T, whose flips are as many however sure the scores are. Trusted rows count
:data:`~bilevax.solvers.label_search.TRUSTED` times, lest the many others decide on b by the form of a curve that is not
quite theirs. Of few rows a column scores are means over several splits into folds: what such a classifier says of a row
differs much by the rows that it was trained on.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from bilevax.linalg.columns import Matrix
from bilevax.solvers.label_models import LabelModel, Point, Strengths
from bilevax.solvers.label_noise import Given, Noise, posterior
from bilevax.solvers.label_search import TRUSTED, Found, fitted


class Judged(NamedTuple):
    """What held-out scores say.

    Attributes:
        q: posteriors of the true classes, [n, C].
        T: the noise matrix.
        of_models: those of all rows but a fold, [K, C, C].
        wrong: how many labels are wrong by these, [K].
    """

    q: np.ndarray
    T: np.ndarray
    of_models: np.ndarray
    wrong: np.ndarray


def calibrated(log_p: np.ndarray, given: Given, by: Strengths, start: Noise) -> Point:
    """Factor, bias and noise of most likelihood, as a model of the scores: W = s I.

    Args:
        log_p: of rows that the classifier has not seen, [n, C].
        given: labels.
        by: the prior of where flips go, and without trusted rows of their rates, which counts as one row.
        start: of the noise.
    """
    n, C = log_p.shape
    model = LabelModel(log_p, given, np.ones(n))
    told = bool(given.trusted.any())
    # a class in which no flip is seen has not none
    by = by._replace(penalty=-np.inf, trusted=np.log(TRUSTED), rates=np.log(1e-3 if told else 1.0))

    def point(flat: np.ndarray) -> Point:
        return Point.of(np.concatenate([flat[0] * np.eye(C).ravel(), flat[1:]]), C, C)

    def scaled(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = model.loss(point(flat), by)
        # dF/ds = trace of dF/dW
        gradient = np.concatenate([[gradient[: C * C : C + 1].sum()], gradient[C * C :]])
        if not told:
            # F + (log s)^2 / 2: where scores set the classes apart, the likeliest s is infinite
            value += 0.5 * np.log(flat[0]) ** 2
            gradient[0] += np.log(flat[0]) / flat[0]
        return value / n, gradient / n

    first = np.concatenate([[1.0], np.zeros(C), start.r, start.R.ravel()])
    # the given labels alone do not tell b from T, nor which class is which: at most half of a class is flipped
    s, b, r = ((0.0, None), (None, None), (None, None)) if told else ((1e-3, None), (0.0, 0.0), (None, 0.0))
    bounds = [s] + [b] * C + [r] * C + [(None, None)] * C**2
    options = {"maxiter": 500, "ftol": 1e-13, "gtol": 1e-7}
    return point(minimize(scaled, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x)


def judged(X: Matrix, given: Given, folds: np.ndarray, found: Found) -> Judged:
    """Every row by models that were trained without its fold; without the trusted rows of the fold, too, if it is one.

    Args:
        X: features [n, p], dense or CSR.
        given: labels.
        folds: of every row, from 0 to K - 1, in each of R splits, [R, n].
        found: the strengths, and models of them.
    """
    K, log_p, noises = int(folds.max()) + 1, np.zeros((len(given.y), given.classes), order="F"), []
    for fold in folds:
        for k in range(K):
            at = _without((fold == k) & ~given.trusted, X, given, found, k)
            blind = _without(fold == k, X, given, found, k) if given.trusted.any() else at
            for model, kind in ((at, ~given.trusted), (blind, given.trusted)):
                held = np.flatnonzero((fold == k) & kind)
                log_p[held] += model.log_p(X[held]) / len(folds)
            noises.append(np.exp(at.noise.log_matrix))
    by, start = found.strengths, Noise.of(np.mean(noises, axis=0))
    q, T, _ = _judged(log_p, given, calibrated(log_p, given, by, start))
    parts = [np.flatnonzero(folds[0] != k) for k in range(K)]
    each = [_judged(log_p, given, calibrated(log_p[rows], given.take(rows), by, start)) for rows in parts]
    return Judged(q, T, np.stack([T for _, T, _ in each]), np.array([wrong for *_, wrong in each]))


def _without(left_out: np.ndarray, X: Matrix, given: Given, found: Found, k: int) -> Point:
    """A model of the other rows, from one of the search."""
    rows = np.flatnonzero(~left_out)
    return fitted(X[rows], given.take(rows), found, k % len(found.points))


def _judged(log_p: np.ndarray, given: Given, at: Point) -> tuple[np.ndarray, np.ndarray, float]:
    """Posteriors, noise matrix, and how many labels are wrong."""
    q, _ = posterior(at.log_p(log_p), given, at.noise.log_matrix)
    # P(the given label is wrong) = 1 - q of its class
    wrong = 1.0 - q[np.arange(len(q)), given.y]
    return q, np.exp(at.noise.log_matrix), float(wrong[~given.trusted].sum())
