"""Which rows validate, and which fold a row is in."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.model_selection import GroupKFold, GroupShuffleSplit, ShuffleSplit, StratifiedShuffleSplit

from bilevax.core.errors import ParameterError


def validation_rows(
    strata: np.ndarray, groups: ArrayLike | None, given: ArrayLike | None, fraction: float, seed: int
) -> np.ndarray:
    """True for validation rows, [n]."""
    n = len(strata)
    if given is not None:
        mask = np.asarray(given)
        if mask.dtype != bool or mask.shape != (n,) or not mask.any() or mask.sum() > n - 2:
            raise ParameterError(
                f"validation must be a boolean vector of {n} rows, some and at most n - 2 of them True"
            )
        return mask
    # At least one row validates, whatever the fraction.
    held = max(1, round(fraction * n))
    classes, counts = np.unique(strata, return_counts=True)
    if groups is not None:
        splitter = GroupShuffleSplit(1, test_size=fraction, random_state=seed)
    elif counts.min() >= 2 and min(held, n - held) >= len(classes):
        splitter = StratifiedShuffleSplit(1, test_size=held, random_state=seed)
    else:
        splitter = ShuffleSplit(1, test_size=held, random_state=seed)
    mask = np.zeros(n, bool)
    mask[next(splitter.split(strata, strata, groups))[1]] = True
    return mask


def deal_folds(strata: np.ndarray, groups: np.ndarray | None, most: int, random: np.random.RandomState) -> np.ndarray:
    """Fold of each training row: of equal size and stratified; by group where there are groups."""
    n = len(strata)
    folds = np.empty(n, int)
    if groups is None:
        # Dealt out class by class, which unlike StratifiedKFold takes classes with fewer rows than there are folds.
        folds[np.lexsort((random.permutation(n), strata))] = np.arange(n) % min(most, n)
        return folds
    _, index = np.unique(groups, return_inverse=True)
    k = min(most, index.max() + 1)
    if k < 2:
        raise ParameterError("groups must leave at least two groups in training; pass more groups")
    for fold, (_, rows) in enumerate(GroupKFold(k).split(strata, groups=index)):
        folds[rows] = fold
    return folds
