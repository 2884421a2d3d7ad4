"""Penalties of many columns as functions of a few numbers: what is tied, and what a column's frequency says."""

from typing import NamedTuple

import numpy as np
import scipy.sparse

from bilevax.linalg.columns import Matrix
from bilevax.sklearn.penalty_search import BOX
from bilevax.solvers.l1_models import HeldOut

SLOPES = -3.0, 3.0
"""Bounds of the power of the frequency."""


class Ties(NamedTuple):
    """log l2 = basis lam: levels of groups of columns, and powers of what is known of a column.

    A level is free; a power has a standard normal prior, whose density counts like that of the held-out rows. So a few
    rows leave powers near 0, the single penalty.

    Attributes:
        basis: sparse [p, q], the first of its columns those of levels, 0 or 1.
        levels: how many of the q are.
        classes: of lam [q, C], a column of its own for each class; None: lam [q], the same for every class.
        rows: the weight of the held-out rows.
    """

    basis: scipy.sparse.csr_array
    levels: int
    classes: int | None
    rows: float

    @property
    def groups(self) -> int:
        """Numbers that are tuned."""
        return int(self.basis.shape[1]) * (self.classes or 1)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Shares of l1 with which a single penalty is tried: none."""
        return (0.0,)

    def penalties(self, lam: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(l1, l2), l1 being 0: [p], or [p, C]."""
        l2 = np.exp(self.basis @ self._shaped(lam))
        return np.zeros_like(l2), l2

    def single(self, alpha: float, ratio: float) -> np.ndarray:
        """Log-penalties that are the same for every column."""
        lam = self._shaped(np.zeros(self.groups))
        lam[: self.levels] = np.log(alpha)
        return lam.ravel()

    def slope(self, held: HeldOut) -> np.ndarray:
        """dE / dlam, flat."""
        return np.ravel(self.basis.T @ (held.l2 if self.classes else held.l2.sum(axis=1)))

    def prior(self, lam: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the log-density of the powers by the number of rows, and its slope, flat."""
        powers = self._shaped(lam.copy())
        powers[: self.levels] = 0.0
        # 1/2 sum_k lam_k^2 / n
        return 0.5 * float(np.vdot(powers, powers)) / self.rows, np.ravel(powers) / self.rows

    def bounds(self, top: float) -> list[tuple[float, float]]:
        """Of lam, flat; the single penalty's path begins with exp(top)."""
        level = top + BOX[0], top + BOX[1]
        each = self.classes or 1
        return [level] * (self.levels * each) + [SLOPES] * (self.groups - self.levels * each)

    def _shaped(self, lam: np.ndarray) -> np.ndarray:
        return lam.reshape(-1, self.classes) if self.classes else lam


def tied(group: np.ndarray, *, powers: np.ndarray | None = None, classes: int | None = None, rows: float) -> Ties:
    """A level for each group of columns.

    Args:
        group: of each column, [p], from 0.
        powers: what penalties are powers of, by its logarithm, [p, r]; None: of nothing.
        classes: levels are of a class each, too; None: they are not.
        rows: the weight of the held-out rows.
    """
    p, levels = len(group), int(group.max()) + 1
    level = scipy.sparse.csr_array((np.ones(p), (np.arange(p), group)), shape=(p, levels))
    basis = level if powers is None else scipy.sparse.hstack([level, scipy.sparse.csr_array(powers)], format="csr")
    return Ties(basis, levels, classes, rows)


def log_frequency(X: Matrix, weight: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Logarithm of the share of the rows in which a column is not 0, less its mean over the group, [p, 0 or 1].

    None where it is the same in all columns of every group.
    """
    share = np.asarray(weight @ (X != 0.0)).ravel() / weight.sum()
    # half a row more, so that a column of zeros has a logarithm
    log = np.log(share + 0.5 / X.shape[0])
    number = np.bincount(group)
    log -= (np.bincount(group, log) / np.maximum(number, 1))[group]
    return log[:, None] if np.ptp(log) > 1e-9 else np.zeros((len(log), 0))
