"""Labels that are wrong at random: the noise matrix, its prior, and what a given label says of the true class.

The true class c of a row is given as j with probability T_cj, whatever its features are. T has the parameters

    T_cc = 1 - rho_c,    T_cj = rho_c U_cj for j other than c,    rho = 1 / (1 + exp(-r)),    U_c = softmax of R_c

and the prior a beta distribution of each rate rho_c, and a Dirichlet distribution of each U_c about the uniform: flips
to any other class, from which the data depart as far as they tell.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import expit, xlogy

LEAST = 1e-12
"""Of a probability in a noise matrix."""


class Prior(NamedTuple):
    """Pseudo-counts of flips, of each true class.

    Attributes:
        rate: of flips that the prior is about, in (0, 1): one, or of each class [C].
        rates: how many rows it counts as for a class's rate, b.
        others: how many flips it counts as for where they go, a.
    """

    rate: float | np.ndarray
    rates: float
    others: float

    def log_density(self, T: np.ndarray) -> float:
        """sum_c b ((1 - rate_c) log(1 - rho_c) + rate_c log rho_c) + a mean_j log U_cj, j other than c."""
        C, stay = len(T), np.diag(T)
        off = T[~np.eye(C, dtype=bool)].reshape(C, C - 1)
        out = self.rates * (xlogy(1.0 - self.rate, stay) + xlogy(self.rate, 1.0 - stay)).sum()
        others: np.ndarray = np.log(np.maximum(off, LEAST) / np.maximum(1.0 - stay, LEAST)[:, None])
        return float(out + self.others * others.mean(axis=1).sum())


class Noise(NamedTuple):
    """A noise matrix by its parameters; the diagonal of R means nothing.

    Attributes:
        r: [C].
        R: [C, C].
    """

    r: np.ndarray
    R: np.ndarray

    @property
    def rho(self) -> np.ndarray:
        """The rates of flips, [C]."""
        out: np.ndarray = expit(self.r)
        return out

    @property
    def log_others(self) -> np.ndarray:
        """Logarithms of where flips go, [C, C]; -inf on the diagonal."""
        R = self.R.copy()
        np.fill_diagonal(R, -np.inf)
        return normalised(R)[0]

    @property
    def others(self) -> np.ndarray:
        """Where flips go, [C, C], 0 on the diagonal."""
        out: np.ndarray = np.exp(self.log_others)
        return out

    @property
    def log_matrix(self) -> np.ndarray:
        """Logarithms of the matrix, [C, C]."""
        # T_cj = rho_c U_cj off the diagonal, 1 - rho_c on it
        out: np.ndarray = self.log_others - np.logaddexp(0.0, -self.r)[:, None]
        np.fill_diagonal(out, -np.logaddexp(0.0, self.r))
        return out

    @staticmethod
    def of(T: np.ndarray) -> "Noise":
        """The parameters of a matrix, whose zeros become :data:`LEAST`."""
        stay = np.clip(np.diag(T), LEAST, 1.0 - LEAST)
        # r_c = log(rho_c / (1 - rho_c)); R_cj = log T_cj = log U_cj + log rho_c, and a constant of a row is none
        return Noise(np.log1p(-stay) - np.log(stay), np.log(np.maximum(T, LEAST)))


class Given(NamedTuple):
    """Labels of rows.

    Attributes:
        y: classes [n], from 0: the given ones, of trusted rows the true ones.
        trusted: [n], booleans.
        classes: C.
    """

    y: np.ndarray
    trusted: np.ndarray
    classes: int

    def take(self, rows: np.ndarray) -> "Given":
        """Some of the rows."""
        return Given(self.y[rows], self.trusted[rows], self.classes)

    def log_likelihood(self, log_T: np.ndarray) -> np.ndarray:
        """log of the probability of each row's label if its true class is c, [n, C]."""
        out = np.take(log_T, self.y, axis=1).T
        out[self.trusted] = -np.inf
        out[self.trusted, self.y[self.trusted]] = 0.0
        return out

    def expected(self, q: np.ndarray) -> np.ndarray:
        """Expected flips and stays, [C, C]: the sum of q_ic over rows that are not trusted and have the label j."""
        doubted = ~self.trusted
        # N_cj = sum of q_ic over the rows i to doubt whose label is j
        return np.stack([np.bincount(self.y, q_c * doubted, self.classes) for q_c in q.T])


def normalised(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores less the log of the sum of their exponentials over the classes [n, C], and that [n].

    Arrays [n, C] are in Fortran's order throughout: C sums of n numbers are faster than n of C.
    """
    # log sum_c exp(s_c) = t + log sum_c exp(s_c - t), t the largest of them
    top = scores.max(axis=1)
    out = scores - top[:, None]
    log_sum = np.log(np.exp(out).sum(axis=1))
    out -= log_sum[:, None]
    return out, top + log_sum


def posterior(log_p: np.ndarray, given: Given, log_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posterior of the true classes [n, C], and the log of each label's probability [n].

    q_ic = p_ic T_{c, y_i} / m_i,    m_i = sum_c p_ic T_{c, y_i}
    """
    # log q_ic = log p_c(x_i) + log P(label of i | c) - log m_i
    log_q, log_m = normalised(log_p + given.log_likelihood(log_T))
    return np.exp(log_q), log_m


def number_wrong(q: np.ndarray, given: Given) -> float:
    """How many of the labels to doubt are wrong, by posteriors [n, C]."""
    # sum_i P(true class of i is not the given one)
    wrong = 1.0 - q[np.arange(len(q)), given.y]
    return float(wrong[~given.trusted].sum())


def updated(counts: np.ndarray, prior: Prior) -> np.ndarray:
    """The noise matrix that maximises sum of counts log T + log prior: EM's M step, [C, C]."""
    C = len(counts)
    stay = np.diag(counts)
    flips = counts.sum(axis=1) - stay
    # rho_c = (flips_c + b rate_c) / (flips_c + stays_c + b)
    rho = (flips + prior.rates * prior.rate) / (flips + stay + prior.rates)
    # U_cj in proportion to N_cj + a / (C - 1), j other than c
    off = counts + prior.others / (C - 1)
    np.fill_diagonal(off, 0.0)
    T: np.ndarray = rho[:, None] * off / off.sum(axis=1, keepdims=True)
    np.fill_diagonal(T, 1.0 - rho)
    return T


def fit_noise(log_p: np.ndarray, given: Given, T: np.ndarray, prior: Prior, steps: int = 100) -> np.ndarray:
    """EM for the noise matrix at fixed probabilities of the classes; concave, so from anywhere inside."""
    for _ in range(steps):
        # E: the posterior at T; M: the T of most likelihood at the flips that it expects
        q, _ = posterior(log_p, given, np.log(np.maximum(T, LEAST)))
        new = updated(given.expected(q), prior)
        if np.abs(new - T).max() < 1e-6:
            return new
        T = new
    return T


def uniform_noise(classes: int, rate: float) -> np.ndarray:
    """Flips of one rate to any other class, [C, C]."""
    T: np.ndarray = np.eye(classes) * (1.0 - rate) + (1.0 - np.eye(classes)) * (rate / (classes - 1))
    return T
