"""EM for wrong labels with a classifier of any kind: it need only learn from weighted rows and give probabilities.

The E step is the posterior of the true classes, by probabilities of models that were trained without the row (two
halves take turns: what a flexible classifier says of its own rows is what it was told). The M step trains on a copy of
each row for each class, weighted by the posterior, and updates the noise matrix.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, clone

from bilevax.core.errors import ParameterError
from bilevax.sklearn.frames import Features
from bilevax.sklearn.row_splits import deal_folds
from bilevax.solvers.label_noise import Given, Prior, fit_noise, normalised, posterior, uniform_noise

ROUNDS, TRUSTED, LEAST_SHARE, LEAST_P = 3, 5.0, 1e-3, 1e-6
RATES = 20.0
OTHERS = 1.0, 100.0
SHARPNESS = 0.5, 0.7, 1.0, 1.4, 2.0, 2.8
UNTOLD = 0.1

Take = Callable[[np.ndarray], Features]
"""Rows of the features, by their numbers."""


class Fitted(NamedTuple):
    """A classifier of true classes, the noise matrix, and what the classifier's log-probabilities are multiplied by."""

    model: BaseEstimator
    T: np.ndarray
    sharpness: float = 1.0

    def log_p(self, X: Features, classes: int) -> np.ndarray:
        """Log-probabilities of the true classes, [n, C]."""
        # a class that the training rows lack has the probability LEAST_P, not 0
        known = self.model.predict_proba(X)
        p = np.full((classes, len(known)), LEAST_P)
        p[self.model.classes_] += known.T
        return normalised(self.sharpness * np.log(p).T)[0]


def require_weights(estimator: BaseEstimator) -> None:
    """Refuse what cannot stand in.

    Raises:
        ParameterError: it gives no probabilities.
    """
    if not (hasattr(estimator, "fit") and hasattr(estimator, "predict_proba")):
        raise ParameterError(
            "model must be 'linear', 'additive', a classifier with fit and predict_proba, or a JAX model (an equinox or"
            f" flax module, or a pair of functions init and apply), got {estimator!r}"
        )


class EM:
    """EM with copies of an estimator.

    Args:
        estimator: to be cloned; its ``fit`` takes ``sample_weight``.
        take: rows of the features.
        given: labels.
        random: of the halves.
    """

    def __init__(self, estimator: BaseEstimator, take: Take, given: Given, random: np.random.RandomState) -> None:
        self.estimator, self.take, self.given, self.random = estimator, take, given, random

    def fit(self, rows: np.ndarray, others: float) -> Fitted:
        """A model of these rows, which sees no others.

        Args:
            rows: their numbers.
            others: how many flips the prior counts as for where they go.
        """
        given = self.given.take(rows)
        half = deal_folds(given.y + given.classes * given.trusted, None, 2, self.random)
        log_p = self._first(rows, half)
        T = uniform_noise(given.classes, UNTOLD)
        for _ in range(ROUNDS):
            q, T, _ = self._step(log_p, given, T, others)
            log_p = self._out_of_half(rows, q, half)
        q, T, sharpness = self._step(log_p, given, T, others)
        return Fitted(self._trained(rows, q), T, sharpness)

    def _step(
        self, log_p: np.ndarray, given: Given, T: np.ndarray, others: float
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Posterior, noise matrix and sharpness of most likelihood: forests are unsure, and nearest neighbours sure."""
        # p^sharpness, normalised, for each sharpness: the likeliest with the noise matrix that fits it best
        best = (-np.inf, T, 1.0)
        for sharpness in SHARPNESS:
            at, prior = normalised(sharpness * log_p)[0], self._prior(T, others)
            new = fit_noise(at, given, T, prior, steps=30)
            value = float(posterior(at, given, np.log(new))[1].sum()) + prior.log_density(new)
            best = max(best, (value, new, sharpness), key=lambda x: x[0])
        _, T, sharpness = best
        return posterior(normalised(sharpness * log_p)[0], given, np.log(T))[0], T, sharpness

    def _prior(self, T: np.ndarray, others: float) -> Prior:
        # rate = 1 - mean_c T_cc: one for all classes
        return Prior(float(np.clip(1.0 - np.diag(T).mean(), 1e-3, 0.9)), RATES, others)

    def _first(self, rows: np.ndarray, half: np.ndarray) -> np.ndarray:
        """Probabilities to start from: of a model of the trusted rows if they have all classes, else of the labels."""
        given = self.given.take(rows)
        sure = np.eye(given.classes)[given.y]
        trusted = np.flatnonzero(given.trusted)
        if np.bincount(given.y[trusted], minlength=given.classes).min() >= 2:
            return Fitted(self._trained(rows[trusted], sure[trusted]), sure).log_p(self.take(rows), given.classes)
        return self._out_of_half(rows, sure, half)

    def _out_of_half(self, rows: np.ndarray, q: np.ndarray, half: np.ndarray) -> np.ndarray:
        """Of each row by a model that was trained without its half, [n, C]."""
        out = np.zeros(q.shape)
        for k in (0, 1):
            own, other = np.flatnonzero(half == k), np.flatnonzero(half != k)
            out[own] = Fitted(self._trained(rows[other], q[other]), q).log_p(self.take(rows[own]), q.shape[1])
        return out

    def _trained(self, rows: np.ndarray, q: np.ndarray) -> BaseEstimator:
        """A copy of each row for each class of which it may be."""
        # row i as class c with the weight q_ic
        row, c = np.nonzero(q > LEAST_SHARE)
        weight = q[row, c] * np.where(self.given.trusted[rows[row]], TRUSTED, 1.0)
        return clone(self.estimator).fit(self.take(rows[row]), c, sample_weight=weight)

    def choose(self, fold: np.ndarray) -> float:
        """Of the two strengths of the prior, the one with the less loss on the first fold of all rows."""
        if self.given.classes == 2:
            return OTHERS[0]
        rows, held = np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)
        given = self.given.take(held)
        loss = {}
        for others in OTHERS:
            fitted = self.fit(rows, others)
            _, log_m = posterior(fitted.log_p(self.take(held), given.classes), given, np.log(fitted.T))
            # trusted rows and others count alike, however many there are of each
            parts = [log_m[kind] for kind in (given.trusted, ~given.trusted) if kind.any()]
            loss[others] = -sum(float(part.mean()) for part in parts)
        return min(loss, key=loss.__getitem__)
