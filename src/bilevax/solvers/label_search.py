"""Which strengths a model of wrong labels has: those whose held-out loss is least, by exact hypergradients.

Model k is trained without fold k of all rows, trusted ones too. With E_k the mean of - log p of the trusted rows of the
fold plus that of - log of the probability of the given labels of its others (each over all the rows of its kind),

    E = sum_k E_k,    dE/dlam = - sum_k (d(grad F_k)/dlam)' H_k^-1 grad E_k

BFGS goes down E from the best of some starts on the first fold (more penalty; flips that go to any class), and the
least that was seen is kept. A classifier of so many weights (:func:`is_wide`) is fitted to the flips, of which it
leaves few to the matrix: there the prior decides on the rates, and those that it is about are strengths, too; else they
are one rate, from which the training departs. Without trusted rows training would stay near the rate that it starts
from, as softer probabilities explain flips nearly as well: there, too, the rates are strengths, from the best of
several. The given labels alone do not tell a wrong label from a wrong model; the trusted rows do.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.special import logit

from bilevax.linalg.columns import Matrix
from bilevax.solvers.label_models import LabelModel, Point, Strengths
from bilevax.solvers.label_noise import LEAST, Given, Noise, fit_noise, posterior, uniform_noise

MOST = 50.0
"""A trusted row counts at most so much, or a third of the others' share if that is more."""

EVALUATIONS, STEP, LEAST_GAIN = 16, 1.0, 1e-4
"""Of E at most; the longest step in a logarithm; what a step is to gain."""

TRUSTED = 5.0
"""What a trusted row counts at first."""

UNTOLD, OTHER_RATES = 0.1, (0.02, 0.2, 0.3, 0.4)
"""The rate of flips to start from where no row is trusted, and those that are tried, too: one start may end far off."""

RATES = 0.02, 0.5
"""Of flips that the prior is about at first: at least, at most."""

ROWS_A_COLUMN = 10
"""Fewer, and a classifier is overfitted."""

ROUGH = 1e-5
"""Tolerance of the gradient of F by the number of rows."""


class Found(NamedTuple):
    """What a search found.

    Attributes:
        strengths: the best.
        points: of the K models at the best, each trained without its fold.
        loss: E at the start and at the best.
        evaluations: of E.
    """

    strengths: Strengths
    points: tuple[Point, ...]
    loss: tuple[float, float]
    evaluations: int


def is_wide(X: Matrix, C: int) -> bool:
    """Whether a classifier would be overfitted: fewer than ten rows a column (Peduzzi et al. 1996), or than weights."""
    n, p = X.shape
    return bool(p * max(C - 1, ROWS_A_COLUMN) > n)


def first_strengths(X: Matrix, C: int) -> Strengths:
    """Where to start: a penalty of 1/20 of the mean squared norm of a row."""
    squares = X.multiply(X).sum() if hasattr(X, "multiply") else np.einsum("ij,ij->", X, X)
    # alpha = sum_i |x_i|^2 / (20 n)
    penalty = float(np.log(max(float(squares) / X.shape[0], LEAST) / 20.0))
    return Strengths(penalty, np.log(TRUSTED), np.log(20.0), np.log(1.0), np.full(C, logit(UNTOLD)))


def start(X: Matrix, given: Given, by: Strengths, weight: np.ndarray, *, told: bool = True) -> Point:
    """A start of F that sees these rows alone: a model of the trusted rows, and EM for the noise at what it says.

    Without trusted rows, or ``told`` nothing by them: a model of all labels at the rates that the prior is about.
    """
    C, p = given.classes, X.shape[1]
    trusted = np.flatnonzero(given.trusted)
    few = uniform_noise(C, UNTOLD)
    zero = Point(np.zeros((p, C)), np.zeros(C), Noise(by.rate, np.zeros((C, C))))
    if not (told and len(trusted)):
        return LabelModel(X, given, weight).fit(zero, by, steps=50, tolerance=1e-4, noise=False)
    own = LabelModel(X[trusted], given.take(trusted), weight[trusted])
    at = own.fit(zero, by._replace(trusted=0.0), steps=100, tolerance=1e-4, noise=False)
    T = fit_noise(at.log_p(X), given, few, by.prior, steps=30)
    return at._replace(noise=Noise.of(T))


class _Folds:
    """The K models, and E as a function of the strengths."""

    def __init__(self, X: Matrix, given: Given, fold: np.ndarray, first: Strengths) -> None:
        kinds = given.trusted.astype(int)
        weight = 1.0 / np.bincount(kinds, minlength=2)[kinds]
        self.models, self.held = [], []
        for k in range(int(fold.max()) + 1):
            rows, out = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            self.models.append(LabelModel(X[rows], given.take(rows), np.ones(len(rows))))
            self.held.append(LabelModel(X[out], given.take(out), weight[out]))
        self.points: list[Point] = []
        self.best: tuple[float, Strengths, list[Point]] = (np.inf, first, [])
        self.evaluations = 0

    def begin(self, starts: list[tuple[dict[str, Any], bool]]) -> None:
        """From the best of the changes, each of the best before it, by the first fold."""
        first, held = self.models[0], self.held[0]
        least, best, how = np.inf, self.best[1], True
        for change, told in starts:
            by = best._replace(**change)
            at = first.fit(start(first.X, first.given, by, first.weight, told=told), by, tolerance=ROUGH)
            value = held.loss(at, None)[0]
            if value < least:
                least, best, found, how = value, by, at, told
        others = [start(m.X, m.given, best, m.weight, told=how) for m in self.models[1:]]
        self.best, self.points = (np.inf, best, []), [found, *others]

    def value(self, by: Strengths) -> float:
        """E, the models moved to their minima."""
        points = [m.fit(at, by, tolerance=ROUGH) for m, at in zip(self.models, self.points, strict=True)]
        value = sum(held.loss(at, None)[0] for held, at in zip(self.held, points, strict=True))
        self.evaluations += 1
        if value < self.best[0]:
            self.best, self.points = (value, by, points), points
        return value

    def slope(self) -> np.ndarray:
        """dE/dlam at the best."""
        _, by, points = self.best
        out = np.zeros(4 + self.models[0].C)
        for model, held, at in zip(self.models, self.held, points, strict=True):
            v = model.solve(at, by, held.loss(at, None)[1])
            # dE / dlam = -v' d(grad F) / dlam, H v = grad E
            out -= model.by_strengths(at, by, v)
        return out

    def descend(self, low: np.ndarray, high: np.ndarray) -> float:
        """BFGS from the best, whose E is returned; a step that does not gain is cut to a quarter."""
        first = before = self.value(self.best[1])
        lam, slope = self.best[1].flat(), self.slope()
        # the first step is one of 1 in the logarithms
        B = np.eye(len(lam)) / max(float(np.linalg.norm(slope)), LEAST)
        while self.evaluations < EVALUATIONS:
            step = -B @ slope
            step = np.clip(lam + step * min(1.0, STEP / np.abs(step).max(initial=LEAST)), low, high) - lam
            if -slope @ step < LEAST_GAIN:
                break
            if self.value(Strengths.of(lam + step)) >= before:
                B *= 0.25 * min(1.0, STEP / max(np.abs(B @ slope).max(), LEAST))
                continue
            before, lam, last, slope = self.best[0], lam + step, slope, self.slope()
            y = slope - last
            if (sy := float(step @ y)) > 0.0:
                # B <- (I - s y' / s'y) B (I - y s' / s'y) + s s' / s'y
                keep = np.eye(len(lam)) - np.outer(step, y) / sy
                B = keep @ B @ keep.T + np.outer(step, step) / sy
        return first


def search(X: Matrix, given: Given, fold: np.ndarray) -> Found:
    """The strengths of least held-out loss.

    Args:
        X: features [n, p], dense or CSR.
        given: labels.
        fold: of every row, [n], from 0 to K - 1.
    """
    n, C = len(given.y), given.classes
    wide, first = is_wide(X, C), first_strengths(X, C)
    by_rates = not wide and not given.trusted.any()
    rho = start(X, given, first, np.ones(n)).noise.rho
    if by_prior := wide or by_rates:
        first = first._replace(rates=float(np.log(n)), rate=logit(np.clip(rho, *RATES)))
    else:
        share = np.bincount(given.y[~given.trusted], minlength=C) / np.sum(~given.trusted)
        first = first._replace(rate=np.full(C, logit(np.clip(rho @ share, *RATES))))
    starts: list[tuple[dict[str, Any], bool]] = [({}, True), ({"penalty": first.penalty + np.log(8.0)}, True)]
    folds = _Folds(X, given, fold, first)
    starts += [({"others": np.log(100.0)}, True)] * (C > 2) + [({}, False)] * wide
    folds.begin(starts + [({"rate": np.full(C, logit(rate))}, True) for rate in OTHER_RATES * by_rates])
    penalty, trusted = folds.best[1].penalty, int(given.trusted.sum())
    most = max(MOST, (n - trusted) / max(3 * trusted, 1))
    least_rate, most_rate = (np.full(C, logit(x)) if by_prior else first.rate for x in (1e-3, 0.5 if by_rates else 0.9))
    low = Strengths(penalty - 5.0, 0.0, np.log(0.1), np.log(0.1), least_rate)
    high = Strengths(penalty + 5.0, np.log(most), np.log(10.0 * n), np.log(1e4), most_rate)
    before = folds.descend(low.flat(), high.flat())
    value, by, points = folds.best
    return Found(by, tuple(points), (before, value), folds.evaluations)


def cross_fitted(X: Matrix, given: Given, fold: np.ndarray, found: Found) -> np.ndarray:
    """Posterior of the true class of each row by the model that was trained without its fold, [n, C].

    It starts from that of the search, which had not seen the fold either.

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
        at = fitted(X[rows], given.take(rows), found, k)
        out[held] = posterior(at.log_p(X[held]), given.take(held), at.noise.log_matrix)[0]
    return out


def fitted(X: Matrix, given: Given, found: Found, k: int = 0) -> Point:
    """The model of these rows from where the search's model k is, or from a start that sees no others."""
    by, weight = found.strengths, np.ones(len(given.y))
    at = found.points[k] if found.points else start(X, given, by, weight)
    return LabelModel(X, given, weight).fit(at, by, tolerance=ROUGH)


def retrained(X: Matrix, q: np.ndarray, at: Point, by: Strengths) -> Point:
    """The classifier of rows of which each is a copy for each class, weighted by posteriors of models that had not it.

    Trusted rows count as one row: what they tell of the others is in the posteriors already.
    """
    row, c = np.nonzero(q > 1e-3)
    copies = Given(c, np.ones(len(c), bool), q.shape[1])
    return LabelModel(X[row], copies, q[row, c]).fit(at, by._replace(trusted=0.0), tolerance=ROUGH, noise=False)
