"""Penalties of many columns as functions of a few numbers: what is tied, and what is known of a column.

The frequency of a column is the share of the rows in which it is not 0; its evidence of a class is the chi-squared
statistic of their covariance. Both are had without any model.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse

from bilevax.linalg.columns import Matrix
from bilevax.solvers.l1_models import HeldOut
from bilevax.solvers.logistic_models import ClassRows

LEVELS = -16.0, 8.0
"""Bounds of a level against the first single penalty."""

SLOPES = -3.0, 3.0
"""Bounds of a power."""

WIDTH = 6.0
"""Standard deviation of the prior of the levels' mean."""


class Ties(NamedTuple):
    """log l2_kjc = (basis lam)_j - b evidence_kjc: levels of groups of columns, and powers of what is known of them.

    A power has a standard normal prior, and the mean of the levels a wide one, whose densities count like those of the
    held-out rows. So a few rows leave powers near 0, the single penalty, and where a few rows are told apart without a
    fault the penalties do not vanish, nor are the probabilities 1.

    Attributes:
        basis: sparse [p, q], the first of its columns those of levels, 0 or 1.
        levels: how many of the q are.
        classes: of lam [q, C], a column of its own for each class; None: lam [q], the same for every class.
        rows: the weight of the held-out rows.
        usual: mean of the prior of the levels' mean.
        evidence: of each model, as a logarithm, [K, p, C], whose power b is the last of lam; None: of no class.
    """

    basis: scipy.sparse.csr_array
    levels: int
    classes: int | None
    rows: float
    usual: float = 0.0
    evidence: np.ndarray | None = None

    @property
    def groups(self) -> int:
        """Numbers that are tuned."""
        return int(self.basis.shape[1]) * (self.classes or 1) + (self.evidence is not None)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Shares of l1 with which a single penalty is tried: none."""
        return (0.0,)

    def penalties(self, lam: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(l1, l2), l1 being 0: [p], [p, C], or of each model [K, p, C]."""
        if self.evidence is None:
            # log l2_jc = (basis lam)_jc
            l2 = np.exp(self.basis @ self._shaped(lam))
        else:
            # log l2_jc = level of the group of j - b evidence_jc
            l2 = np.exp((self.basis @ lam[:-1])[:, None] - lam[-1] * self.evidence)
        return np.zeros(len(self.basis.indptr) - 1), l2

    def single(self, alpha: float, ratio: float) -> np.ndarray:
        """Log-penalties that are the same for every column."""
        lam = self._shaped(np.zeros(self.groups))
        lam[: self.levels] = np.log(alpha)
        return lam.ravel()

    def slope(self, held: HeldOut) -> np.ndarray:
        """dE / dlam, flat."""
        by_column = held.l2.sum(axis=0)
        own = np.ravel(self.basis.T @ (by_column if self.classes else by_column.sum(axis=1)))
        # dE / db = - sum_jc evidence_jc dE / dlog l2_jc
        return own if self.evidence is None else np.append(own, -np.vdot(held.l2, self.evidence))

    def prior(self, lam: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the log-density of the powers and of the levels' mean by the number of rows, and its slope, flat."""
        slope = self._shaped(lam.copy())
        levels = slope[: self.levels]
        away = (float(levels.mean()) - self.usual) / WIDTH
        levels[:] = 0.0
        # (1/2 sum_k power_k^2 + 1/2 ((mean - usual) / WIDTH)^2) / n
        value = 0.5 * float(np.vdot(slope, slope)) + 0.5 * away**2
        levels[:] = away / (WIDTH * levels.size)
        return value / self.rows, np.ravel(slope) / self.rows

    def bounds(self, top: float) -> list[tuple[float, float]]:
        """Of lam, flat; the single penalty's path begins with exp(top)."""
        level = top + LEVELS[0], top + LEVELS[1]
        each = self.classes or 1
        return [level] * (self.levels * each) + [SLOPES] * (self.groups - self.levels * each)

    def _shaped(self, lam: np.ndarray) -> np.ndarray:
        return lam.reshape(-1, self.classes) if self.classes else lam


def tied(group: np.ndarray, *, powers: np.ndarray | None = None, classes: int | None = None, rows: float) -> Ties:
    """A level for each group of columns.

    Args:
        group: of each column, [p], from 0.
        powers: what is known of each column, as a logarithm, [p, r]; None: of nothing.
        classes: levels are of a class each, too; None: they are not.
        rows: the weight of the held-out rows.
    """
    p, levels = len(group), int(group.max()) + 1
    # basis_jg = 1 where column j is in group g, and the powers beside it
    level = scipy.sparse.csr_array((np.ones(p), (np.arange(p), group)), shape=(p, levels))
    basis = level if powers is None else scipy.sparse.hstack([level, scipy.sparse.csr_array(powers)], format="csr")
    return Ties(basis, levels, classes, rows)


def log_frequency(X: Matrix, weight: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Logarithm of the share of the rows in which a column is not 0, less its mean over the group, [p, 0 or 1].

    None in a table that is not mostly 0, where some zeros among measurements say nothing, and where it is the same in
    all columns of every group.
    """
    share = np.asarray(weight @ (X != 0.0)).ravel() / weight.sum()
    # half a row more, so that a column of zeros has a logarithm
    log = _centred(np.log(share + 0.5 / X.shape[0])[:, None], group)
    return log if share.mean() <= 0.5 and np.ptp(log) > 1e-9 else np.zeros((len(log), 0))


def log_evidence(rows: ClassRows, group: np.ndarray) -> np.ndarray:
    """log (1 + chi2_jc), chi2 being that of a column and a class, less its mean over the group and the classes, [p, C].

    chi2_jc = (sum_i c_i x_ij (Y_ic - m_c))^2 / (m_c (1 - m_c) sum_i c_i (x_ij - mean_j)^2), m_c the share of class c:
    about 1 of a column that has nothing to do with the class. A column that does not vary has 0.
    """
    total, share = rows.c.sum(), rows.c @ rows.Y / rows.c.sum()
    # sum_i c_i x_ij (Y_ic - m_c)
    covariance = rows.pulled(rows.c[:, None] * (rows.Y - share))[:-1]
    sums, squares = rows.c @ rows.X, rows.c @ rows.squares
    # m_c (1 - m_c) sum_i c_i (x_ij - mean_j)^2
    spread = np.maximum(squares - sums**2 / total, 0.0)[:, None] * share * (1.0 - share)
    floor = 1e-12 * squares[:, None]
    chi2 = np.divide(covariance**2, spread, out=np.zeros_like(covariance), where=spread > floor)
    return _centred(np.log1p(chi2), group)


def _centred(log: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Less its mean over the group of columns, [p, C]."""
    mean = np.bincount(group, log.mean(axis=1)) / np.maximum(np.bincount(group), 1)
    out: np.ndarray = log - mean[group][:, None]
    return out
