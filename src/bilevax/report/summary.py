"""What a reader wants first: did it help, was it ended properly, and the figures of the run."""

import math
from typing import NamedTuple

from bilevax.core.text import count, counted, decimal, duration, percent, places_for, short_count, shorten
from bilevax.report.records import End, Model, Paired, Run

# Half-width of a 95 % interval, in standard errors.
NORMAL = 1.96
_PER = {
    "feature": "one penalty per feature",
    "column": "one penalty per column",
    "class": "one penalty per class",
    "group": "one penalty per group",
    "weight": "one penalty per weight",
    "global": "a single penalty",
    "single": "a single penalty",
}


class Verdict(NamedTuple):
    """The run in a sentence; ``tone`` is better, worse, same or unknown."""

    tone: str
    word: str
    sentence: str
    detail: str


class Tile(NamedTuple):
    """One figure of the run."""

    label: str
    value: str
    note: str


def tuned_model(run: Run) -> Model | None:
    """The model that was tuned: the first that none is compared with."""
    rivals = {p.name for p in run.paired}
    return next((m for m in run.models if m.name not in rivals), None)


def main_rival(run: Run) -> Paired | None:
    """The comparison that the verdict speaks of: with the grid-searched single penalty if there is one."""
    known = filter(is_known, run.paired)
    return max(known, key=lambda p: ["grid" in p.name.lower(), "single" in p.name.lower()], default=None)


def is_known(p: Paired) -> bool:
    """True if the difference and its interval were recorded."""
    return all(map(math.isfinite, (p.difference, p.low, p.high)))


def verdict(run: Run) -> Verdict:
    """Whether tuning helped, as the paired interval has it."""
    rival = main_rival(run)
    if rival is None:
        return Verdict("unknown", "No comparison", _no_comparison(run), "")
    what = _PER.get(run.setting("tune", "penalty_per"))
    subject = f"Tuning {what}" if what else "Tuning the penalties"
    places = places_for((rival.high - rival.low) / 2)
    against, detail = f"against “{shorten(rival.name, 80)}”", _levels(run, rival)
    # The interval of (tuned - rival) lies below zero, above it, or holds it.
    if rival.high < 0:
        by = _by(-rival.difference, -rival.high, -rival.low, places)
        return Verdict("better", "Better", f"{subject} lowered the test log-loss by {by} {against}.", detail)
    if rival.low > 0:
        by = _by(rival.difference, rival.low, rival.high, places)
        sentence = f"{subject} raised the test log-loss by {by} {against}: on this table the other model is better."
        return Verdict("worse", "Worse", sentence, detail)
    by = _by(rival.difference, rival.low, rival.high, places)
    sentence = f"{subject} made no measurable difference to the test log-loss {against}: it changed by {by}."
    return Verdict("same", "No measurable difference", sentence, detail)


def _by(value: float, low: float, high: float, places: int) -> str:
    interval = f"{decimal(low, places)} to {decimal(high, places)}"
    return f"{decimal(value, places)} (95\u202f% interval {interval})"


def _levels(run: Run, rival: Paired) -> str:
    tuned, other = tuned_model(run), next((m for m in run.models if m.name == rival.name), None)
    if tuned is None or other is None:
        return ""
    parts = []
    if math.isfinite(tuned.test_log_loss) and math.isfinite(other.test_log_loss):
        places = places_for((rival.high - rival.low) / 2)
        was, now = decimal(other.test_log_loss, places), decimal(tuned.test_log_loss, places)
        parts.append(f"Test log-loss {now} instead of {was}")
    if math.isfinite(tuned.test_accuracy) and math.isfinite(other.test_accuracy):
        accuracy = f"{percent(tuned.test_accuracy)} instead of {percent(other.test_accuracy)}"
        parts.append(f"accuracy {accuracy}" if parts else f"Test accuracy {accuracy}")
    if not parts:
        return ""
    rows = f", on {counted(run.data.test, 'test row')}" if run.data and run.data.test > 0 else ""
    return f"{', '.join(parts)}{rows}."


def _no_comparison(run: Run) -> str:
    if run.models:
        return "The models were not compared pair by pair, so this report cannot say whether tuning helped."
    return "No comparison with simpler models was made, so this report cannot say whether tuning helped."


def notices(run: Run) -> list[str]:
    """What a reader must know before believing the rest: how the run ended, and the notes it wrote."""
    return [*ending(run), *(note for note in run.notes if note)]


def ending(run: Run) -> list[str]:
    """How the run ended, unless it ended well."""
    if run.end is None:
        return [
            "The run has not written its end: it is still going, or it was killed. This is what it had written; "
            "`bilevax resume` goes on from there."
        ]
    out = []
    if run.end.interrupted:
        reached = f" after {counted(int(run.end.steps), 'step')}" if math.isfinite(run.end.steps) else ""
        out.append(f"The run was interrupted{reached}; the model is the one that had been reached by then.")
    if run.end.code != "OK":
        out.append(f"The run ended with the code {run.end.code}. {run.end.message}".strip())
    return out


def penalty_count(run: Run) -> int:
    """How many penalties were tuned."""
    found = [t.penalties for t in run.terms if t.penalties]
    per = run.setting("tune", "penalty_per")
    if per in ("global", "single"):
        return min(1, len(found))
    if per == "class":
        return max(map(len, found), default=0)
    if per in ("column", "group"):
        return len(set(found))
    return sum(map(len, found))


def tiles(run: Run) -> list[Tile]:
    """The figures of the run, those that are known."""
    out = []
    if run.data and run.data.rows:
        splits = {"train": run.data.train, "validation": run.data.validation, "test": run.data.test}
        note = ", ".join(f"{count(n)} {name}" for name, n in splits.items() if n >= 0)
        out.append(Tile("rows", count(run.data.rows), note))
    if run.data and run.data.features >= 0:
        columns = run.data.design_columns
        note = f"{counted(columns, 'column')} once encoded" if columns >= 0 else ""
        out.append(Tile("features", count(run.data.features), note))
    penalties = penalty_count(run)
    if penalties:
        per = _PER.get(run.setting("tune", "penalty_per"), "")
        out.append(Tile("penalties tuned", count(penalties), per))
    tuned = tuned_model(run)
    if tuned and math.isfinite(tuned.test_accuracy):
        out.append(Tile("test accuracy", percent(tuned.test_accuracy), _accuracy_note(run, tuned.test_accuracy)))
    return out + _effort(run)


def _accuracy_note(run: Run, accuracy: float) -> str:
    n = run.data.test if run.data else 0
    return f"± {percent(accuracy_error(accuracy, n))} (95\u202f%)" if n > 0 else ""


def accuracy_error(accuracy: float, rows: int) -> float:
    """Half-width of the 95 % interval of an accuracy on some rows (Wilson's, which is sane at 0 and 1)."""
    # z / (n + z^2) sqrt(n p (1 - p) + z^2 / 4)
    z = NORMAL
    return z / (rows + z * z) * math.sqrt(rows * max(0.0, accuracy * (1 - accuracy)) + z * z / 4)


def _effort(run: Run) -> list[Tile]:
    last = run.end or (run.steps[-1] if run.steps else None)
    out = []
    if last and math.isfinite(last.seconds):
        out.append(Tile("tuning time", duration(last.seconds), "with compilation"))
    if last and math.isfinite(last.visits):
        steps = last.steps if isinstance(last, End) else last.step
        note = f"in {counted(int(steps), 'step')}" if math.isfinite(steps) else ""
        # A large count in few enough characters for a tile.
        visits = short_count(float(f"{last.visits:.3g}")) if last.visits >= 1e6 else count(last.visits)
        out.append(Tile("sample visits", visits, note))
    return out
