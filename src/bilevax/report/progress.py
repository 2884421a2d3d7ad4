"""The sections on how the tuning went and on how far it overfitted."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from bilevax.core.intervals import NORMAL
from bilevax.core.run_records import Gap, Step
from bilevax.core.text import count, counted, decimal, duration, places_for, short_count
from bilevax.report.pictures import Line, course
from bilevax.report.run import Run

_LOSS = "log-loss"


class Course(NamedTuple):
    """Pictures of the run, each with its title, and the run in sentences."""

    pictures: tuple[tuple[str, str], ...]
    sentences: tuple[str, ...]
    has_validation: bool


def course_section(run: Run) -> Course | None:
    """The section; None where no step was recorded."""
    steps = run.records.of(Step)
    if not steps:
        return None
    losses = [Line("tuning loss", _column(steps, "tuning_loss"))]
    validation = Line("validation loss", _column(steps, "validation_loss"), second=True)
    if sum(map(math.isfinite, validation.y)) > 1:
        losses.append(validation)
    visits, seconds = _column(steps, "visits"), _column(steps, "seconds")
    by_visits = partial(course, xlabel="rows read", ylabel=_LOSS, x_text=short_count)
    pictures = {
        "Loss against rows read": by_visits(visits, losses),
        "Loss against time": course(seconds, losses, xlabel="seconds", ylabel=_LOSS, shade=_compilation(steps)),
    }
    late = [line._replace(y=line.y[len(visits) // 4 :]) for line in losses]
    if _is_flat(late, losses):
        pictures["The last three quarters, enlarged"] = by_visits(visits[len(visits) // 4 :], late, from_zero=False)
    norms = [Line("norm", _column(steps, "gradient_norm"))]
    pictures["Slope of the tuning loss in the penalties"] = course(
        _column(steps, "step"), norms, xlabel="step", ylabel="norm", x_text=short_count
    )
    shown = tuple((title, picture) for title, picture in pictures.items() if picture)
    return Course(shown, tuple(_sentences(steps)), len(losses) > 1)


def _is_flat(late: Sequence[Line], whole: Sequence[Line]) -> bool:
    """True if the first fall hides how the later losses differ."""
    # The later range is less than a quarter of the whole one.
    later, all_of = ([v for line in lines for v in line.y if math.isfinite(v)] for lines in (late, whole))
    return bool(later) and max(later) - min(later) <= 0.25 * (max(all_of) - min(all_of))


def _column(steps: Sequence[Step], name: str) -> list[float]:
    values = (getattr(step, name) for step in steps)
    return [math.nan if value is None else float(value) for value in values]


def _pace(steps: Sequence[Step]) -> float:
    """Seconds a step after the first; NaN where that cannot be said."""
    first, last = steps[0], steps[-1]
    return (last.seconds - first.seconds) / (last.step - first.step) if last.step > first.step else math.nan


def _compilation(steps: Sequence[Step]) -> float:
    """When the first step was done, if it was so much slower than the others that it must have compiled."""
    # Nothing but compilation makes a step five times as slow as the rest.
    first, pace = steps[0].seconds, _pace(steps)
    return first if pace > 0 and first > 5 * pace else 0.0


def _sentences(steps: Sequence[Step]) -> list[str]:
    out = [*_loss("tuning loss", steps, "tuning_loss"), *_loss("validation loss", steps, "validation_loss")]
    pace = _pace(steps)
    if _compilation(steps):
        first = duration(steps[0].seconds)
        out.append(
            f"The first step was done after {first}, most of which is compilation (shaded in the picture); "
            f"later steps took {duration(pace)} each on average."
        )
    elif pace > 0:
        out.append(f"A step took {duration(pace)} on average.")
    odd = sum(step.code != "OK" for step in steps)
    if odd:
        out.append(f"At {count(odd)} of {counted(len(steps), 'step')} the fit was less exact than asked for.")
    return out


def _loss(name: str, steps: Sequence[Step], column: str) -> list[str]:
    losses = _column(steps, column)
    points = [(loss, s.step) for loss, s in zip(losses, steps, strict=True) if math.isfinite(loss)]
    if len(points) < 2:
        return []
    (first, _), (last, _), (lowest, at) = points[0], points[-1], min(points)
    # Digits that show a twentieth of the fall.
    places = places_for(abs(first - lowest) / 20)
    text = f"The {name} went from {decimal(first, places)} to {decimal(last, places)}"
    return [f"{text} (lowest: {decimal(lowest, places)}, at step {count(at)})."]


class GapSection(NamedTuple):
    """The gap, its interval, and what it means."""

    value: str
    spread: str
    meaning: str


def gap_section(gap: Gap | None) -> GapSection | None:
    """The section; None where no gap was recorded."""
    if gap is None or gap.validation_gap is None:
        return None
    half = math.nan if gap.standard_error is None else NORMAL * gap.standard_error
    places = places_for(half)
    value = decimal(gap.validation_gap, places)
    spread = f"± {decimal(half, places)} (95\u202f%)" if math.isfinite(half) else "no standard error was recorded"
    return GapSection(value, spread, _meaning(gap.validation_gap, half))


def _meaning(gap: float, half: float) -> str:
    if not math.isfinite(half):
        return (
            f"The tuning loss fell {'further' if gap > 0 else 'no further'} than other rows confirm; without a "
            "standard error nobody can say how much of that is chance."
        )
    if gap > half:
        return (
            "More than chance explains: part of what the tuning loss promises was fitted to these very rows. "
            "Believe the test figures, not the tuning loss; more rows, or fewer penalties, would narrow the gap."
        )
    if gap < -half:
        return (
            "Below zero by more than chance explains: the rows that did not steer gained more than those that did, by "
            "the luck of the split or because the two differ in kind. There is no sign of overfitting."
        )
    return (
        "No overfitting could be measured: the interval holds zero. Anything within it remains possible, so the test "
        "figures are still the ones to quote."
    )
