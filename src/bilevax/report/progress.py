"""The sections on how the tuning went and on how far it overfitted."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bilevax.core.text import count, counted, decimal, duration, places_for, short_count, significant
from bilevax.report.pictures import Line, course
from bilevax.report.records import Gap, Run, Step
from bilevax.report.summary import NORMAL


@dataclass(frozen=True)
class Course:
    """Pictures of the run, each with its title, and the run in sentences."""

    pictures: tuple[tuple[str, str], ...]
    sentences: tuple[str, ...]
    has_validation: bool


def course_section(run: Run) -> Course | None:
    """The section; None where no step was recorded."""
    if not run.steps:
        return None
    losses = [("tuning loss", _column(run, "tuning_loss"), False)]
    validation = _column(run, "validation_loss")
    if sum(map(math.isfinite, validation)) > 1:
        losses.append(("validation loss", validation, True))
    visits, seconds = _column(run, "visits"), _column(run, "seconds")
    loss = partial(_picture, losses, ylabel="loss (nats per row)")
    pictures = [
        ("Loss against sample visits", loss(visits, xlabel="sample visits", x_text=short_count)),
        ("Loss against time", loss(seconds, xlabel="seconds", shade=_compilation(run.steps))),
        ("The last three quarters, enlarged", _enlarged(losses, visits)),
        ("Size of the hypergradient", _picture(
            [("norm", _column(run, "gradient_norm"), False)], _column(run, "step"),
            xlabel="step", ylabel="norm", x_text=short_count)),
    ]  # fmt: skip
    shown = tuple((title, picture) for title, picture in pictures if picture)
    return Course(shown, tuple(_sentences(run)), len(losses) > 1)


def _enlarged(losses: Sequence[tuple[str, list[float], bool]], visits: list[float]) -> str:
    """The later losses where the first fall hides them; empty where they can be seen as it is."""
    start = len(visits) // 4
    whole = [v for _, y, _ in losses for v in y if math.isfinite(v)]
    late = [v for _, y, _ in losses for v in y[start:] if math.isfinite(v)]
    if not late or max(late) - min(late) > 0.25 * (max(whole) - min(whole)):
        return ""
    lines = [(label, y[start:], second) for label, y, second in losses]
    return _picture(
        lines, visits[start:],
        xlabel="sample visits", ylabel="loss (nats per row)", x_text=short_count, from_zero=False,
    )  # fmt: skip


def _column(run: Run, name: str) -> list[float]:
    return [getattr(step, name) for step in run.steps]


def _plain(x: float, _position: object) -> str:
    return f"{x:g}"


def _picture(
    lines: Sequence[tuple[str, list[float], bool]],
    x: list[float],
    *,
    xlabel: str,
    ylabel: str,
    x_text: Callable[[float, object], str] = _plain,
    shade: float = 0.0,
    from_zero: bool = True,
) -> str:
    """A course picture; empty where there are fewer than two points."""
    drawn = [Line(label, x, y, second) for label, y, second in lines]
    for line in drawn:
        if sum(math.isfinite(a) and math.isfinite(b) for a, b in zip(line.x, line.y, strict=True)) < 2:
            return ""
    said = "; ".join(f"{label} from {_ends(y)}" for label, y, _ in lines)
    return course(
        drawn, xlabel=xlabel, ylabel=ylabel, x_text=x_text, shade=shade, from_zero=from_zero,
        description=f"{ylabel} against {xlabel}: {said}.",
    )  # fmt: skip


def _ends(values: Sequence[float]) -> str:
    finite = [v for v in values if math.isfinite(v)]
    return f"{significant(finite[0], 4)} to {significant(finite[-1], 4)}"


def _pace(steps: Sequence[Step]) -> float:
    """Seconds a step after the first; NaN where that cannot be said."""
    first, last = steps[0], steps[-1]
    return (last.seconds - first.seconds) / (last.step - first.step) if last.step > first.step else math.nan


def _compilation(steps: Sequence[Step]) -> float:
    """When the first step was done, if it was so much slower than the others that it must have compiled."""
    first, pace = steps[0].seconds, _pace(steps)
    return first if pace > 0 and first > 5 * pace else 0.0


def _sentences(run: Run) -> list[str]:
    out = [*_loss("tuning loss", run, "tuning_loss"), *_loss("validation loss", run, "validation_loss")]
    pace = _pace(run.steps)
    if _compilation(run.steps):
        first = duration(run.steps[0].seconds)
        out.append(
            f"The first step was done after {first}, most of which is compilation (shaded in the picture); "
            f"later steps took {duration(pace)} each on average."
        )
    elif pace > 0:
        out.append(f"A step took {duration(pace)} on average.")
    codes = [step.code for step in run.steps if step.code != "OK"]
    if codes:
        kinds = "; ".join(f"{code}: {count(codes.count(code))}" for code in sorted(set(codes))[:9])
        out.append(
            f"Of {counted(len(run.steps), 'step')}, {count(len(codes))} ended with a code other than OK ({kinds})."
        )
    return out


def _loss(name: str, run: Run, column: str) -> list[str]:
    points = [(getattr(s, column), s.step) for s in run.steps if math.isfinite(getattr(s, column))]
    if len(points) < 2:
        return []
    (first, _), (last, _), (lowest, at) = points[0], points[-1], min(points)
    places = places_for(abs(first - lowest) / 20)
    text = f"The {name} went from {decimal(first, places)} to {decimal(last, places)}"
    return [f"{text} (lowest: {decimal(lowest, places)}, at step {count(at)})."]


@dataclass(frozen=True)
class GapSection:
    """The gap, its interval, and what it means."""

    value: str
    spread: str
    meaning: str


def gap_section(gap: Gap | None) -> GapSection | None:
    """The section; None where no gap was recorded."""
    if gap is None or not math.isfinite(gap.validation_gap):
        return None
    half = NORMAL * gap.standard_error
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
