"""What the test rows say of the kept model beyond a mean: discrimination, calibration, confusion, errors."""

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, r2_score, roc_auc_score, roc_curve

from bilevax.core.intervals import wilson
from bilevax.core.run_records import (
    Calibration,
    Confusion,
    Discrimination,
    Errors,
    Group,
    Record,
    Threshold,
)
from bilevax.study.judging import mean_interval
from bilevax.study.target import Target

POINTS, GROUPS, SAMPLE = 100, 10, 1000
"""Of a curve, groups of like predictions, and rows of a scatter, at most."""

_CLASSES = 12
"""Classes that have curves of their own, at most: the most frequent ones."""

_AT = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_QUANTILES = (0.5, 0.8, 0.9, 0.95, 0.99)


def diagnosis(target: Target, prediction: np.ndarray, values: np.ndarray, seed: int) -> list[Record]:
    """Records of the test rows.

    Args:
        target: what is predicted.
        prediction: probabilities [n, C], or means [n].
        values: codes or numbers, [n].
        seed: of the rows that are drawn for a scatter.
    """
    if target.labels is None:
        return [calibrated(prediction, values), _errors(prediction, values, seed)]
    labels = list(target.labels.counts())
    confusion = np.zeros((len(labels), len(labels)), int)
    np.add.at(confusion, (values, prediction.argmax(axis=1)), 1)
    out: list[Record] = [Confusion(labels=labels, rows=confusion.tolist())]
    shown = [1] if len(labels) == 2 else np.argsort(-np.bincount(values, minlength=len(labels)), kind="stable")
    for code in [int(c) for c in shown[:_CLASSES]]:
        own = values == code
        if own.any() and not own.all():
            out += [_discrimination(labels[code], prediction[:, code], own, thresholds=len(labels) == 2)]
            out += [calibrated(prediction[:, code], own.astype(float), labels[code])]
    return out


def _discrimination(label: str, p: np.ndarray, own: np.ndarray, *, thresholds: bool) -> Discrimination:
    false, true, _ = roc_curve(own, p)
    precision, recall, _ = precision_recall_curve(own, p)
    # recall falls along the points; the last, of recall 0, is by convention
    at, back = _thinned(false, true), _thinned(recall[::-1], precision[::-1])
    return Discrimination(
        label=label,
        false_positive_rate=false[at].tolist(),
        true_positive_rate=true[at].tolist(),
        area=float(roc_auc_score(own, p)),
        recall=recall[::-1][back].tolist(),
        precision=precision[::-1][back].tolist(),
        average_precision=float(average_precision_score(own, p)),
        prevalence=float(own.mean()),
        thresholds=[_threshold(at, p, own) for at in _AT] if thresholds else [],
    )


def _thinned(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The points of a line that lie POINTS - 1 equal steps of its length apart, and its ends."""
    # points at equal lengths along the curve, |dx| + |dy|: a steep part keeps as many as a flat one
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    return np.unique(np.searchsorted(length, np.linspace(0.0, length[-1], POINTS)).clip(0, len(x) - 1))


def _threshold(at: float, p: np.ndarray, own: np.ndarray) -> Threshold:
    above = p >= at
    return Threshold(
        at=at,
        true_positive=int(np.sum(above & own)),
        false_positive=int(np.sum(above & ~own)),
        true_negative=int(np.sum(~above & ~own)),
        false_negative=int(np.sum(~above & own)),
    )


def calibrated(prediction: np.ndarray, observed: np.ndarray, label: str = "") -> Calibration:
    """Rows in GROUPS of like predictions, equal ones together: means of both, and a 95 % interval of what is observed.

    The interval is Wilson's where what is observed is 0 or 1, else that of Student's t.
    """
    # tenths of the rows by what is predicted; equal predictions stay together
    edges = np.unique(np.quantile(prediction, np.linspace(0, 1, GROUPS + 1)[1:-1]))
    group = np.searchsorted(edges, prediction, side="right")
    binary = bool(np.all((observed == 0.0) | (observed == 1.0))) and label != ""
    out = []
    for g in np.unique(group):
        own = observed[group == g]
        observed_mean, low, high = mean_interval(own)
        if binary:
            # of a share: inside of [0, 1], and not of width 0 where none or all are
            middle, half = wilson(observed_mean, len(own))
            low, high = max(0.0, middle - half), min(1.0, middle + half)
        predicted = float(prediction[group == g].mean())
        out.append(Group(predicted=predicted, observed=observed_mean, low=low, high=high, rows=len(own)))
    return Calibration(label=label, groups=out)


def _errors(prediction: np.ndarray, values: np.ndarray, seed: int) -> Errors:
    drawn = np.arange(len(values))
    if len(values) > SAMPLE:
        drawn = np.sort(np.random.default_rng(seed).choice(len(values), SAMPLE, replace=False))
    # |y - prediction|, of every row of the test
    size = np.abs(values - prediction)
    return Errors(
        predicted=prediction[drawn].tolist(),
        observed=values[drawn].tolist(),
        quantiles={f"{q:g}": float(np.quantile(size, q)) for q in _QUANTILES},
        explained=float(r2_score(values, prediction)) if np.ptp(values) > 0 else None,
    )
