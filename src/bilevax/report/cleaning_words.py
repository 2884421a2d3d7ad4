"""What a cleaning says first: how many labels are expected to be wrong, and between which classes."""

import math
from typing import NamedTuple

from bilevax.core.cleaning_records import KeptAside, Labelled, Verified, Wrong
from bilevax.core.record_lines import Records
from bilevax.core.text import count, counted, decimal, listed, percent
from bilevax.report.summary import Verdict

_FEW, _MANY = 0.02, 0.1
"""Shares of labels that are wrong: few below, many above."""

_NAMED = 3


class Flow(NamedTuple):
    """Rows of one class that are given as another: the expected number, and the share of the class with 95 %."""

    truth: str
    given: str
    rows: float
    share: float
    low: float
    high: float


def flows(wrong: Wrong) -> list[Flow]:
    """All pairs of classes, the most rows first."""
    found = [
        Flow(truth, given, wrong.flows[c][j], wrong.noise[c][j], wrong.low[c][j], wrong.high[c][j])
        for c, truth in enumerate(wrong.labels)
        for j, given in enumerate(wrong.labels)
        if c != j
    ]
    return sorted(found, key=lambda flow: -flow.rows)


def verdict(records: Records) -> Verdict:
    """The first sentence, and what follows from it."""
    wrong, labelled = records.last(Wrong), records.last(Labelled)
    if wrong is None or labelled is None:
        return Verdict("unknown", "Not known", "The run did not end; what it found is not known.", "")
    value, low, high = wrong.expected
    share, all_of = value / max(labelled.rows, 1), counted(labelled.rows, "label")
    if high < 1.0:
        return Verdict("better", "None", f"None of {all_of} seems to be wrong.", _detail(wrong, labelled))
    interval = f"{_number(max(low, 0.0))} to {_number(high)} with 95\u202f%"
    if share < _FEW:
        word, tone, begin = "Few", "better", "Few labels seem wrong: about"
    else:
        word, tone, begin = ("Many", "worse", "About") if share > _MANY else ("Some", "same", "About")
    said = f"{begin} {_number(value)} of {all_of} ({percent(share)}, {interval})"
    said += " are expected to be wrong" if share >= _FEW else ""
    between = _between(wrong)
    sentence = f"{said}{', ' if between else ''}{between}."
    return Verdict(tone, word, sentence, _detail(wrong, labelled))


def _between(wrong: Wrong) -> str:
    found, C = flows(wrong), len(wrong.labels)
    there = [flow for flow in found if flow.rows >= 1.0]
    if not there:
        return ""
    mean = sum(flow.rows for flow in found) / len(found)
    # Pearson's statistic of equal flows, whose mean is its degrees of freedom, and its variance twice these
    spread, freedom = sum((flow.rows - mean) ** 2 for flow in found) / mean, len(found) - 1
    alike = spread < freedom + 3.0 * math.sqrt(2.0 * freedom) or there[0].rows < 1.5 * mean
    if C > 2 and alike:
        return "between all classes alike"
    named = [f"{flow.truth} given as {flow.given} ({_number(flow.rows)})" for flow in there[:_NAMED]]
    return f"most often {listed(named)}" if len(found) > _NAMED else listed(named)


def _detail(wrong: Wrong, labelled: Labelled) -> str:
    if not wrong.suspicious:
        first = "No label is more probably wrong than right."
    elif wrong.suspicious == 1:
        first = "One label is more probably wrong than right: that of the first row of suspicious.csv."
    else:
        first = (
            f"{count(wrong.suspicious)} labels are more probably wrong than right: those of the first "
            f"{count(wrong.suspicious)} rows of suspicious.csv."
        )
    if labelled.trusted:
        return f"{first} Learned from {counted(labelled.trusted, 'trusted row')} and all others."
    return (
        f"{first} No row is trusted, which is weaker: whatever the model cannot learn passes for a wrong label. A few "
        "hundred rows whose labels were checked by hand make it much surer."
    )


def checked(found: Verified) -> str:
    """What the true labels say, in a sentence."""
    if not found.wrong:
        return f"By the true labels none of {count(found.rows)} is wrong; {count(found.suspicious)} were called so."
    right = f" ({percent(found.right / found.suspicious)})" if found.suspicious else ""
    return (
        f"By the true labels {count(found.wrong)} of {count(found.rows)} are wrong: of the {count(found.suspicious)} "
        f"that are called wrong {count(found.right)} are{right}, so {percent(found.right / found.wrong)} of all that "
        "are wrong are found."
    )


def kept_aside(found: KeptAside) -> str:
    """What trusted rows say that a second model has not seen."""
    rows = counted(found.rows, "trusted row")
    return (
        f"{rows} were kept aside from a second model, which judged them with every label, "
        "each as often as the matrix above gives it: wrong labels are told from right ones with an area under the ROC "
        f"curve of {decimal(found.area, 3)}, and the probabilities are off by {decimal(found.calibration_error, 3)} on "
        "average."
    )


def _number(x: float) -> str:
    """An expected number of rows: whole where it is no small one.

    >>> _number(344.2), _number(3.14), _number(0.0)
    ('344', '3.1', '0')
    """
    return decimal(x, 0 if x >= 9.95 or x == 0 else 1)
