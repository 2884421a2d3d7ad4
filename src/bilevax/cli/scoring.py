"""How good predictions of new rows are, by what the run was judged by, beside its own test rows."""

from collections.abc import Sequence

from bilevax.core.intervals import NORMAL, wilson
from bilevax.core.record_lines import Records
from bilevax.core.run_records import Errors, Scoring
from bilevax.core.text import decimal, significant
from bilevax.report.summary import kept_model
from bilevax.report.words import SHOWN_ANYHOW, asked_for, loss_of, places_for
from bilevax.tables.labels import Label
from bilevax.tables.scores import Scores


def scores_for(classes: Sequence[Label], records: Records, threshold: float | None = None) -> Scores:
    """An empty count, by the loss that the run was tuned by."""
    scoring = records.last(Scoring)
    task, keep = scoring.task if scoring else "number", _asked(scoring) is not None
    return Scores(classes, task, threshold=threshold, keep=keep)


def figures(scores: Scores, records: Records) -> list[str]:
    """The score that was asked for, loss, accuracy or R^2, each with 95 % and what the test rows of the run had."""
    if not scores.loss.count:
        return []
    scoring, own, errors = records.last(Scoring), kept_model(records), records.last(Errors)
    loss = loss_of(scoring).name if scoring or scores.right.count else "mean squared error"
    out = [_figure(loss, scores.loss.mean, NORMAL * scores.loss.error, own.loss if own else None)]
    if scores.right.count:
        half = wilson(scores.right.mean, scores.right.count)[1]
        name, tested = "accuracy", own.accuracy if own else None
        if scores.threshold is not None:
            name, tested = f"accuracy with threshold {scores.threshold:g}", None
        out.append(_figure(name, scores.right.mean, half, tested))
    if scores.explained is not None:
        out.append(_figure("R^2", scores.explained, 0.0, errors.explained if errors else None))
    return _of_score(scores, scoring, own.score if own else None) + out


def _asked(scoring: Scoring | None) -> str | None:
    """The score that is to be had from scikit-learn: what else is shown needs none."""
    return None if scoring is None or scoring.score in {*SHOWN_ANYHOW, "r2"} else scoring.score


def _of_score(scores: Scores, scoring: Scoring | None, tested: float | None) -> list[str]:
    asked = _asked(scoring)
    if asked is None:
        return []
    # which loads scikit-learn
    from bilevax.study.judging import score_and_error

    measure, found = asked_for(scoring), score_and_error(asked, *scores.held())
    if found is None:
        return [f"{measure.name} not known of these rows"]
    value, error = found
    before = None if tested is None else measure.sign * tested
    return [_figure(measure.name, measure.sign * value, NORMAL * error, before)]


def _figure(name: str, value: float, half: float, tested: float | None) -> str:
    places = places_for(half)
    shown = f"{name} {decimal(value, places)}" + (f" ± {decimal(half, places)}" if half > 0 else "")
    return shown if tested is None else f"{shown} (test rows of the run: {significant(tested, 4)})"
