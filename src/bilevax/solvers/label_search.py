"""Which strengths a model of wrong labels has: those whose held-out loss is least, by exact hypergradients.

Model k is trained without fold k of all rows, trusted ones too. With E_k the mean of - log p of the trusted rows of the
fold plus that of - log of the probability of the given labels of its others (each over all the rows of its kind),

    E = sum_k E_k,    dE/dlam = - sum_k (d(grad F_k)/dlam)' H_k^-1 grad E_k

L-BFGS goes down E from the better of two starts, flips that go to few classes or to any, and the least that was seen is
kept. The given labels alone do not tell a wrong label from a wrong model; the trusted rows do.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from bilevax.linalg.columns import Matrix
from bilevax.solvers.label_models import LabelModel, Point, Strengths
from bilevax.solvers.label_noise import LEAST, Given, Noise, fit_noise, posterior, uniform_noise

MOST = 50.0
"""A trusted row counts at most so much, or a third of the others' share if that is more."""

EVALUATIONS = 12
"""Of E, at most."""

UNTOLD = 0.1
"""The rate of flips to start from where no row is trusted."""

ROUGH = 1e-5
"""Tolerance of the gradient of F by the number of rows."""


class Found(NamedTuple):
    """What a search found.

    Attributes:
        strengths: the best.
        rate: of flips, of all classes.
        points: of the K models at the best, each trained without its fold.
        loss: E at the start and at the best.
        evaluations: of E.
    """

    strengths: Strengths
    rate: float
    points: tuple[Point, ...]
    loss: tuple[float, float]
    evaluations: int


def first_strengths(X: Matrix, C: int) -> list[Strengths]:
    """Where to start: penalties of 1/20 of the mean squared norm of a row."""
    squares = X.multiply(X).sum() if hasattr(X, "multiply") else np.einsum("ij,ij->", X, X)
    penalty = np.log(max(float(squares) / X.shape[0], LEAST) / 20.0)
    return [Strengths(penalty, np.log(5.0), np.log(20.0), np.log(a)) for a in ([1.0, 100.0] if C > 2 else [1.0])]


def start(X: Matrix, given: Given, by: Strengths, weight: np.ndarray) -> Point:
    """A start of F that sees these rows alone: a model of the trusted rows, and EM for the noise at what it says.

    Without trusted rows: a model of the given labels, a tenth of which are taken for flips to any class.
    """
    C, p = given.classes, X.shape[1]
    few = uniform_noise(C, UNTOLD)
    zero = Point(np.zeros((p, C)), np.zeros(C), Noise.of(few))
    trusted = np.flatnonzero(given.trusted)
    if not len(trusted):
        return LabelModel(X, given, weight, UNTOLD).fit(zero, by, steps=50, tolerance=1e-4, noise=False)
    own = LabelModel(X[trusted], given.take(trusted), weight[trusted], UNTOLD)
    at = own.fit(zero, by._replace(trusted=0.0), steps=100, tolerance=1e-4, noise=False)
    T = fit_noise(at.log_p(X), given, few, by.prior(UNTOLD), steps=30)
    return at._replace(noise=Noise.of(T))


def rate_of(point: Point, counts: np.ndarray) -> float:
    """The share of labels that are flipped, of classes that have so many rows."""
    share = counts / counts.sum()
    return float(np.clip(point.noise.rho @ share, 1e-3, 0.9))


class _Folds:
    """The K models, and E as a function of the strengths."""

    def __init__(self, X: Matrix, given: Given, fold: np.ndarray, rate: float) -> None:
        kinds = given.trusted.astype(int)
        weight = 1.0 / np.bincount(kinds, minlength=2)[kinds]
        self.models, self.held = [], []
        for k in range(int(fold.max()) + 1):
            rows, out = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            self.models.append(LabelModel(X[rows], given.take(rows), np.ones(len(rows)), rate))
            self.held.append(LabelModel(X[out], given.take(out), weight[out], rate))
        self.points: list[Point] = []
        self.best: tuple[float, Strengths, list[Point]] = (np.inf, Strengths(0.0, 0.0, 0.0, 0.0), [])
        self.evaluations = 0

    def begin(self, by: Strengths) -> None:
        """From the starts of these strengths."""
        self.points = [start(m.X, m.given, by, m.weight) for m in self.models]

    def value(self, by: Strengths) -> float:
        """E, the models moved to their minima."""
        self.points = [m.fit(at, by, tolerance=ROUGH) for m, at in zip(self.models, self.points, strict=True)]
        value = sum(held.loss(at, None)[0] for held, at in zip(self.held, self.points, strict=True))
        self.evaluations += 1
        if value < self.best[0]:
            self.best = value, by, self.points
        return value

    def slope(self, by: Strengths) -> np.ndarray:
        """dE/dlam at the last value."""
        out = np.zeros(4)
        for model, held, at in zip(self.models, self.held, self.points, strict=True):
            v = model.solve(at, by, held.loss(at, None)[1])
            out -= model.by_strengths(at, by, v)
        return out


def search(X: Matrix, given: Given, fold: np.ndarray) -> Found:
    """The strengths of least held-out loss.

    Args:
        X: features [n, p], dense or CSR.
        given: labels.
        fold: of every row, [n], from 0 to K - 1.
    """
    counts = np.bincount(given.y[~given.trusted], minlength=given.classes).astype(float)
    starts = first_strengths(X, given.classes)
    rate = rate_of(start(X, given, starts[0], np.ones(len(fold))), counts)
    folds, first = _Folds(X, given, fold, rate), []
    for by in starts:
        folds.begin(by)
        first.append(folds.value(by))
    before, by, folds.points = folds.best
    trusted = int(given.trusted.sum())
    most = max(MOST, (len(fold) - trusted) / max(3 * trusted, 1))
    bounds = [(by.penalty - 7.0, by.penalty + 7.0), (0.0, np.log(most)), (np.log(0.1), np.log(1e4)),
              (np.log(0.1), np.log(1e4))]  # fmt: skip

    # the first step is then one of 1 in the logarithms
    scale = 1.0 / max(float(np.linalg.norm(folds.slope(by))), LEAST)

    def scaled(lam: np.ndarray) -> tuple[float, np.ndarray]:
        at = Strengths(*lam)
        return scale * folds.value(at), scale * folds.slope(at)

    options = {"ftol": 1e-3, "maxfun": EVALUATIONS, "maxls": 4}
    minimize(scaled, np.array(by), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    value, by, points = folds.best
    rate = float(np.mean([rate_of(point, counts) for point in points]))
    return Found(by, rate, tuple(points), (before, value), folds.evaluations)


def cross_fitted(X: Matrix, given: Given, fold: np.ndarray, found: Found) -> np.ndarray:
    """Posterior of the true class of each row by the model that was trained without its fold, [n, C].

    Args:
        X: features [n, p], dense or CSR.
        given: labels.
        fold: of each row, [n], from 0 to K - 1; -1 of trusted rows, on which every model is trained.
        found: the strengths.
    """
    out = np.zeros((len(fold), given.classes))
    out[given.trusted, given.y[given.trusted]] = 1.0
    for k in range(int(fold.max()) + 1):
        rows, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        at = fitted(X[rows], given.take(rows), found)
        out[held] = posterior(at.log_p(X[held]), given.take(held), at.noise.log_matrix)[0]
    return out


def fitted(X: Matrix, given: Given, found: Found) -> Point:
    """The model of these rows, from a start that sees no others."""
    weight = np.ones(len(given.y))
    return LabelModel(X, given, weight, found.rate).fit(
        start(X, given, found.strengths, weight), found.strengths, tolerance=ROUGH
    )


def retrained(X: Matrix, q: np.ndarray, at: Point, by: Strengths) -> Point:
    """The classifier of rows of which each is a copy for each class, weighted by posteriors of models that had not it.

    Trusted rows count as one row: what they tell of the others is in the posteriors already.
    """
    row, c = np.nonzero(q > 1e-3)
    copies = Given(c, np.ones(len(c), bool), q.shape[1])
    return LabelModel(X[row], copies, q[row, c], UNTOLD).fit(at, by._replace(trusted=0.0), tolerance=ROUGH, noise=False)
