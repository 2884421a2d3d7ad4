"""What the page calls tasks, losses, scores and evidence."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from bilevax.core import text
from bilevax.core.record_lines import Records
from bilevax.core.run_records import LOSSES, Scoring
from bilevax.core.text import count, decimal

SHOWN_ANYHOW = {"neg_log_loss", "accuracy"}
"""Scores that have a column of their own in every table of models."""

_SCORES = {
    "roc_auc": "area under the ROC curve",
    "roc_auc_ovr": "area under the ROC curve",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "r2": "share of the variance that is explained",
    "f1": "F1 score",
    "neg_brier_score": "Brier score",
}

AS_IF = "probabilities are as if classes were equally frequent (class weights): do not read them as shares"

NO_SIGN, SHARES = "no sign that it matters", "shares its information with others"
"""Of an effect that the evidence does not speak for."""


class Measure(NamedTuple):
    """What models are compared by.

    Attributes:
        field: ``loss`` or ``score``, as records call it.
        name: in words.
        sign: -1 where the name is of a loss, but records have its negative.
        less_is_better: of what is named.
    """

    field: str
    name: str
    sign: int
    less_is_better: bool


def loss_of(scoring: Scoring | None) -> Measure:
    """The loss that models are compared by."""
    return Measure("loss", scoring.loss if scoring else LOSSES["classes"], 1, True)


def asked_for(scoring: Scoring | None) -> Measure:
    """The score that was asked for, or else the loss; scikit-learn's negated losses are losses again."""
    if scoring is None or scoring.score is None:
        return loss_of(scoring)
    negated = scoring.score.startswith("neg_")
    plain = scoring.score.removeprefix("neg_").replace("_", " ")
    return Measure("score", _SCORES.get(scoring.score, plain), -1 if negated else 1, negated)


def is_weighted(records: Records) -> bool:
    """True if rare classes weighed as much as frequent ones where the model was fitted."""
    scoring = records.last(Scoring)
    return scoring is not None and scoring.class_weight


def places_for(spread: float) -> int:
    """The decimals that show two significant digits of a spread; of a loss, whose spread is small, at least three.

    >>> places_for(0.0081), places_for(0.4), places_for(1.8), places_for(350.0)
    (4, 3, 1, 0)
    """
    return max(0, 1 - math.floor(math.log10(spread))) if 1.0 <= spread < math.inf else text.places_for(spread)


def rounded_shares(weights: Sequence[float]) -> list[int]:
    """Parts of a whole in per cent, whole numbers that add up to 100: the largest remainders are rounded up.

    >>> rounded_shares([1 / 6, 5 / 12, 5 / 12]), rounded_shares([0.263864, 0.0, 0.304908, 0.431229])
    ([16, 42, 42], [26, 0, 31, 43])
    """
    total = math.fsum(weights)
    if not total > 0:
        return [0] * len(weights)
    exact = [100 * w / total for w in weights]
    whole = [math.floor(x) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])
    for i in by_remainder[: 100 - sum(whole)]:
        whole[i] += 1
    return whole


def strength(log_evidence: float | None) -> str:
    """Evidence in a word: below e to 1 there is none; 20 to 1 is clear, 150 to 1 very clear (Kass and Raftery 1995).

    >>> strength(-3.7), strength(0.9), strength(2.0), strength(4.0), strength(30.0)
    ('no sign that it matters', 'no sign that it matters', 'weak', 'clear', 'very clear')
    """
    if log_evidence is None:
        return "–"
    if log_evidence < 1.0:
        return NO_SIGN
    return "weak" if log_evidence < math.log(20) else "clear" if log_evidence < math.log(150) else "very clear"


def odds(log_evidence: float | None) -> str:
    """Evidence as odds: how many to one, and on which side.

    >>> odds(-3.7), odds(2.0), odds(0.05), odds(30.0)
    ('40 to 1 against', '7.4 to 1 for', 'even', 'over 1,000 to 1 for')
    >>> odds(6.2)
    '490 to 1 for'
    """
    if log_evidence is None:
        return "–"
    ratio = math.exp(min(abs(log_evidence), 50.0))
    if ratio < 1.1:
        return "even"
    ratio = float(f"{ratio:.2g}")
    shown = f"over {count(1000)}" if ratio > 1000 else decimal(ratio, 0 if ratio >= 10 else 1)
    return f"{shown} to 1 {'for' if log_evidence > 0 else 'against'}"


def unit(scoring: Scoring | None, labels: list[str], target: str) -> str:
    """What an effect is measured in."""
    task = scoring.task if scoring else "classes"
    if task == "number":
        return target or "the target"
    if task in ("count", "amount"):
        return "log of the mean"
    return "log-odds" if len(labels) < 3 else "score of a class"
