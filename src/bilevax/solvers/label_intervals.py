"""How far a noise matrix and a number of wrong labels are known: the jackknife over K models.

Each model is trained without one fold of the rows. With a_k what model k says, and a_. their mean,

    variance = (K - 1) / K sum_k (a_k - a_.)^2

has in it what the classifier leaves open, which counts of flips have not. It is at least what it would be if the true
classes were known: T (1 - T) / n of an entry of the matrix, sum q (1 - q) of a number of rows.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95


class Interval(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


def half_width(of_models: np.ndarray, least: np.ndarray | float) -> np.ndarray:
    """Half of the interval, of Student's t with K - 1 degrees of freedom.

    Args:
        of_models: what the models say, [K, ...].
        least: the least variance, [...].
    """
    out: np.ndarray = _quantile(of_models) * np.sqrt(np.maximum(_variance(of_models), least))
    return out


def _quantile(of_models: np.ndarray) -> float:
    return float(stdtrit(len(of_models) - 1, 0.5 + LEVEL / 2.0))


def _variance(of_models: np.ndarray) -> np.ndarray:
    # (K - 1) / K sum_k (a_k - a_.)^2
    out: np.ndarray = (len(of_models) - 1) * of_models.var(axis=0)
    return out


def noise_interval(T: np.ndarray, of_models: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The ends of the entries of a noise matrix, [2, C, C].

    Args:
        T: the matrix.
        of_models: those of the K models, [K, C, C].
        counts: rows of each true class, [C].
    """
    # T (1 - T) / n_c: the variance of a share of the n_c rows of a class
    half = half_width(of_models, T * (1.0 - T) / np.maximum(counts, 1.0)[:, None])
    return np.asarray(np.clip(np.stack([T - half, T + half]), 0.0, 1.0))


def number_interval(wrong: np.ndarray, of_models: np.ndarray) -> Interval:
    """How many labels are wrong.

    The penalty leaves the number about 2 % low, which the interval does not know: it held 35 of 40 drawn truths.

    Args:
        wrong: probabilities of the rows.
        of_models: the sums that the K models give, [K].
    """
    value, n = float(wrong.sum()), len(wrong)
    # what the models leave open, and chance: which of the rows are wrong at these probabilities
    variance = float(_variance(of_models)) + float(np.sum(wrong * (1.0 - wrong)))
    half = _quantile(of_models) * variance**0.5
    return Interval(value, max(value - half, 0.0), min(value + half, float(n)))
