"""Whether what a cleaning says is right: by true labels where they are known, else by trusted rows kept aside."""

import numpy as np
from sklearn.metrics import roc_auc_score

from bilevax.core.cleaning_records import KeptAside, Verified
from bilevax.core.intervals import wilson
from bilevax.core.run_records import Calibration, Group, Note, Record
from bilevax.sklearn import LabelCleaner
from bilevax.study.cleaning_rows import CleanSettings, Labelled

_GROUPS = 10
_FEWEST = 60
"""Trusted rows of which half may be kept aside."""

_LARGEST = 200_000
"""Cells of a table that is fitted once more for it."""

_LABEL = "wrong"


def verified(rows: Labelled, probability: np.ndarray, suggested: np.ndarray) -> list[Record]:
    """What the true labels say, where some are known.

    Args:
        rows: the table's.
        probability: that a label is wrong, [n].
        suggested: the most probable label, [n].
    """
    if rows.truth is None:
        return []
    known = ~rows.trusted & np.array([label is not None for label in rows.truth.tolist()], bool)
    if not known.any():
        return [Note(text="the column of true labels has none for a row that is doubted")]
    truth, p = rows.truth[known].astype(str), probability[known]
    wrong, suspicious = rows.given[known] != truth, p > 0.5
    number, groups = int(wrong.sum()), _groups(p, wrong, np.ones(len(p)))
    found = Verified(
        rows=len(p),
        wrong=number,
        expected=float(p.sum()),
        suspicious=int(suspicious.sum()),
        right=int(np.sum(suspicious & wrong)),
        corrected=int(np.sum(suspicious & wrong & (suggested[known] == truth))),
        at_number=float(wrong[np.argsort(-p, kind="stable")[:number]].mean()) if number else None,
        area=float(roc_auc_score(wrong, p)) if 0 < number < len(p) else None,
        calibration_error=_error(groups),
    )
    return [found, Calibration(label=_LABEL, groups=groups)]


def may_be_kept_aside(rows: Labelled) -> bool:
    """True where no truth is known, enough rows are trusted, and one fit more takes no time worth mentioning."""
    trusted = int(rows.trusted.sum()) if rows.below is None else len(rows.below[1])
    cells = len(rows.codes) * len(rows.features.names)
    return rows.truth is None and trusted >= max(_FEWEST, 4 * len(rows.labels)) and cells <= _LARGEST


def kept_aside(rows: Labelled, settings: CleanSettings, noise: np.ndarray) -> list[Record]:
    """Half of the trusted rows, judged by a model that knows nothing of them.

    Each is given every label j with its probability T_zj, z its true class: as mistakes come about by the fit that is
    judged, so that one which finds others without these rows is seen.

    Args:
        rows: the table's.
        settings: of the fit.
        noise: its T, [C, C].
    """
    random, texts = np.random.RandomState(settings.seed), np.array(rows.labels)
    cleaner = LabelCleaner(settings.model, random_state=settings.seed)
    if rows.below is None:
        held = random.permutation(np.flatnonzero(rows.trusted))[::2]
        rest = np.setdiff1d(np.arange(len(rows.codes)), held)
        cleaner.fit(rows.features.take(rest), rows.given[rest], trusted=rows.trusted[rest])
        X, truth = rows.features.take(held), rows.given[held]
    else:
        below, codes = rows.below
        order = random.permutation(len(codes))
        held, others = order[::2], order[1::2]
        cleaner.fit(rows.features, rows.given, trusted=(below.take(others), texts[codes[others]]))
        X, truth = below.take(held), texts[codes[held]]
    T, z = cleaner.noise_matrix_, np.searchsorted(cleaner.classes_, truth)
    p, j = cleaner.predict_proba(X), np.arange(len(T))
    # P(wrong | x, label j) = 1 - p_j T_jj / sum_d p_d T_dj
    wrong = 1.0 - p * np.diag(T) / np.maximum(p @ T, 1e-300)
    groups = _groups(wrong.ravel(), (z[:, None] != j).ravel(), noise[z].ravel())
    area = roc_auc_score((z[:, None] != j).ravel(), wrong.ravel(), sample_weight=noise[z].ravel())
    found = KeptAside(rows=len(z), area=float(area), calibration_error=_error(groups))
    return [found, Calibration(label=_LABEL, groups=groups)]


def _groups(p: np.ndarray, wrong: np.ndarray, weight: np.ndarray) -> list[Group]:
    """Rows by tenths of the probability: most are near 0 or 1."""
    group, out = np.minimum((p * _GROUPS).astype(int), _GROUPS - 1), []
    for g in np.unique(group):
        own, n = group == g, float(weight[group == g].sum())
        if n >= 0.5:
            mean, observed = (float(np.average(x[own], weights=weight[own])) for x in (p, wrong))
            middle, half = wilson(observed, round(n))
            low, high = max(0.0, middle - half), min(1.0, middle + half)
            out.append(Group(predicted=mean, observed=observed, low=low, high=high, rows=round(n)))
    return out


def _error(groups: list[Group]) -> float:
    """Mean distance of probabilities from observed shares."""
    # sum_g n_g |predicted_g - observed_g| / sum_g n_g
    return sum(g.rows * abs(g.predicted - g.observed) for g in groups) / sum(g.rows for g in groups)
