"""Families of generalised linear models as losses of scores: half the unit deviance, and its derivatives.

Every loss is convex in the scores. Targets y are [n]; scores s are [n, S], S = 1 but for several classes.
"""

from typing import NamedTuple, Protocol

import numpy as np
from scipy.special import digamma, expit, gammaln, polygamma, xlogy

LARGEST = 300.0
"""Scores are cut off here before they are exponentiated."""


class Losses(NamedTuple):
    """A loss of every row and its first two derivatives in the row's scores.

    Attributes:
        value: [n].
        slope: [n, S].
        curvature: symmetric [n, S, S].
    """

    value: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray


class Family(Protocol):
    """What a fit asks of a family.

    Attributes:
        scores: S.
        dispersed: whether a dispersion phi divides the loss.
        bends: whether the curvature depends on the scores.
    """

    scores: int
    dispersed: bool
    bends: bool

    def losses(self, s: np.ndarray, y: np.ndarray) -> Losses:
        """Half the unit deviance d, and its derivatives in s."""

    def bend(self, s: np.ndarray, y: np.ndarray, h: np.ndarray) -> np.ndarray:
        """d/ds_u of sum over t and v of h_tv d2 loss / ds_t ds_v, [n, S]; h symmetric [n, S, S]."""

    def start(self, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Scores [S] of a model of an intercept alone; w [n] are the weights."""

    def normaliser(self, log_phi: float, w: np.ndarray) -> tuple[float, float, float]:
        """c with -log p(y) = d / phi + c(phi) + const, summed over rows, and its two derivatives in log phi."""

    def mean(self, s: np.ndarray) -> np.ndarray:
        """The mean of y, [n, 1]; probabilities [n, C] for classes."""


def _one_score(value: np.ndarray, slope: np.ndarray, curvature: np.ndarray) -> Losses:
    return Losses(value, slope[:, None], curvature[:, None, None])


def _exp(s: np.ndarray) -> np.ndarray:
    out: np.ndarray = np.exp(np.clip(s, -LARGEST, LARGEST))
    return out


class Gaussian:
    """y ~ N(s, phi)."""

    scores, dispersed, bends = 1, True, False

    def losses(self, s: np.ndarray, y: np.ndarray) -> Losses:
        """1/2 (y - s)^2."""
        r = s[:, 0] - y
        # (s - y)^2 / 2, s - y, 1
        return _one_score(0.5 * r * r, r, np.ones(len(y)))

    def bend(self, s: np.ndarray, y: np.ndarray, h: np.ndarray) -> np.ndarray:
        """0: the curvature is 1 everywhere."""
        return np.zeros((len(y), 1))

    def start(self, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        """The mean."""
        return np.array([np.average(y, weights=w)])

    def normaliser(self, log_phi: float, w: np.ndarray) -> tuple[float, float, float]:
        """1/2 sum of w log(2 pi phi)."""
        half = 0.5 * float(w.sum())
        # n/2 log(2 pi phi), linear in log phi
        return half * (log_phi + np.log(2.0 * np.pi)), half, 0.0

    def mean(self, s: np.ndarray) -> np.ndarray:
        """The score."""
        return s


class Binomial:
    """y in [0, 1], of probability 1 / (1 + exp(-s))."""

    scores, bends = 1, True
    dispersed = False

    def losses(self, s: np.ndarray, y: np.ndarray) -> Losses:
        """log(1 + exp(s)) - y s, less what it is at its least."""
        t, p = s[:, 0], expit(s[:, 0])
        # log(1 + e^t) - y t, less what it is at best, where p = y
        value = np.logaddexp(0.0, t) - y * t + xlogy(y, y) + xlogy(1.0 - y, 1.0 - y)
        # p (1 - p), exact where p rounds to 1
        return _one_score(value, p - y, p * expit(-t))

    def bend(self, s: np.ndarray, y: np.ndarray, h: np.ndarray) -> np.ndarray:
        """h p (1 - p) (1 - 2 p)."""
        # d/ds p (1 - p) = p (1 - p) (1 - 2 p), and 1 - 2 p = q - p
        p, q = expit(s), expit(-s)
        out: np.ndarray = h[:, 0] * p * q * (q - p)
        return out

    def start(self, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        """The log odds, of counts to which half a row of each class is added."""
        ones, n = float(w @ y), float(w.sum())
        # the log-odds, half a row added to each side: finite where one has none
        return np.array([np.log((ones + 0.5) / (n - ones + 0.5))])

    def normaliser(self, log_phi: float, w: np.ndarray) -> tuple[float, float, float]:
        """0: there is no dispersion."""
        return 0.0, 0.0, 0.0

    def mean(self, s: np.ndarray) -> np.ndarray:
        """The probability of 1."""
        out: np.ndarray = expit(s)
        return out


class Poisson(Binomial):
    """y at least 0, of mean exp(s); if ``dispersed``, of variance phi exp(s) (extended quasi-likelihood)."""

    def __init__(self, *, dispersed: bool = False) -> None:
        self.dispersed = dispersed

    def losses(self, s: np.ndarray, y: np.ndarray) -> Losses:
        """exp(s) - y s, less what it is at its least."""
        mu = _exp(s[:, 0])
        # mu - y log mu, less what it is at mu = y; mu - y; mu
        return _one_score(mu - y * s[:, 0] + xlogy(y, y) - y, mu - y, mu)

    def bend(self, s: np.ndarray, y: np.ndarray, h: np.ndarray) -> np.ndarray:
        """h exp(s)."""
        # d mu / ds = mu
        out: np.ndarray = h[:, 0] * _exp(s)
        return out

    def start(self, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        """The log of the mean, of counts to which half a one is added."""
        return np.array([np.log((w @ y + 0.5) / w.sum())])

    def normaliser(self, log_phi: float, w: np.ndarray) -> tuple[float, float, float]:
        """1/2 sum of w log(phi) where there is a dispersion (Nelder, Pregibon 1987), else 0."""
        half = 0.5 * float(w.sum()) if self.dispersed else 0.0
        # a quasi-likelihood: n/2 log phi, as of a Gaussian
        return half * log_phi, half, 0.0

    def mean(self, s: np.ndarray) -> np.ndarray:
        """exp(s)."""
        return _exp(s)


class Gamma:
    """y above 0, of mean exp(s) and variance phi exp(2 s)."""

    scores, dispersed, bends = 1, True, True

    def losses(self, s: np.ndarray, y: np.ndarray) -> Losses:
        """y exp(-s) + s, less what it is at its least."""
        # y / mu + log mu - 1 - log y; 1 - y / mu; y / mu
        ratio = y * _exp(-s[:, 0])
        return _one_score(ratio + s[:, 0] - 1.0 - np.log(y), 1.0 - ratio, ratio)

    def bend(self, s: np.ndarray, y: np.ndarray, h: np.ndarray) -> np.ndarray:
        """- h y exp(-s)."""
        out: np.ndarray = -h[:, 0] * y[:, None] * _exp(-s)
        return out

    def start(self, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        """The log of the mean."""
        return np.array([np.log(np.average(y, weights=w))])

    def normaliser(self, log_phi: float, w: np.ndarray) -> tuple[float, float, float]:
        """Sum of w (v - v log v + log Gamma(v)), v = 1 / phi."""
        n, v = float(w.sum()), float(np.exp(-log_phi))
        # d/dlog v is v (digamma(v) - log v), and log phi = -log v
        first = v * (float(digamma(v)) - np.log(v))
        second = first + v * (v * float(polygamma(1, v)) - 1.0)
        return n * (v - v * np.log(v) + float(gammaln(v))), -n * first, n * second

    def mean(self, s: np.ndarray) -> np.ndarray:
        """exp(s)."""
        return _exp(s)


class Multinomial:
    """y the number of a class, of probabilities softmax(s Q').

    Q [C, C - 1] has orthonormal columns that are orthogonal to 1: a ridge on the weights of the C - 1 scores s is one
    on those of all C classes, whose sum it makes 0; no class is a reference.

    Args:
        classes: C.
    """

    dispersed, bends = False, True

    def __init__(self, classes: int) -> None:
        self.scores = classes - 1
        # Helmert's contrasts: class c against those before it
        Q = np.triu(np.ones((classes, classes)), 1)[:, 1:] - np.diag(np.arange(classes))[:, 1:]
        self.contrasts: np.ndarray = Q / np.sqrt(np.sum(Q**2, axis=0))

    def _log_probabilities(self, s: np.ndarray) -> np.ndarray:
        t = s @ self.contrasts.T
        t -= t.max(axis=1, keepdims=True)
        out: np.ndarray = t - np.log(np.exp(t).sum(axis=1, keepdims=True))
        return out

    def losses(self, s: np.ndarray, y: np.ndarray) -> Losses:
        """- log p_y."""
        Q, log_p = self.contrasts, self._log_probabilities(s)
        p, rows = np.exp(log_p), np.arange(len(y))
        # - log p_y, its slope Q' (p - e_y)
        value = -log_p[rows, y]
        pQ = p @ Q
        # Q' (diag(p) - p p') Q
        curvature = np.einsum("nc,cs,ct->nst", p, Q, Q, optimize=True) - pQ[:, :, None] * pQ[:, None, :]
        return Losses(value, pQ - Q[y], curvature)

    def bend(self, s: np.ndarray, y: np.ndarray, h: np.ndarray) -> np.ndarray:
        """Q' (p (v - p'v)) with v_a = G_aa - 2 (G p)_a, G = Q h Q'."""
        Q, p = self.contrasts, self.mean(s)
        hQ = h @ Q.T
        v = np.einsum("cs,nsc->nc", Q, hQ) - 2.0 * np.einsum("cs,ns->nc", Q, np.einsum("nsc,nc->ns", hQ, p))
        out: np.ndarray = (p * (v - np.sum(p * v, axis=1, keepdims=True))) @ Q
        return out

    def start(self, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Of the frequencies of the classes, half a row of each added."""
        # the log-counts, half a row added to each class, along the contrasts
        out: np.ndarray = np.log(np.bincount(y, w, len(self.contrasts)) + 0.5) @ self.contrasts
        return out

    def normaliser(self, log_phi: float, w: np.ndarray) -> tuple[float, float, float]:
        """0: there is no dispersion."""
        return 0.0, 0.0, 0.0

    def mean(self, s: np.ndarray) -> np.ndarray:
        """Probabilities, [n, C]."""
        out: np.ndarray = np.exp(self._log_probabilities(s))
        return out
