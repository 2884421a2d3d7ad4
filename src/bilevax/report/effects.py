"""The sections on what columns, and pairs of columns, add to a prediction."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from bilevax.core.run_records import Effect, Pair, Scoring
from bilevax.core.text import counted, decimal, listed, significant
from bilevax.report import effect_pictures
from bilevax.report.run import Run
from bilevax.report.svg import look
from bilevax.report.words import NO_SIGN, SHARES, strength, unit

OPEN, FOLDED = 12, 8
"""Pictures that are seen at once, and that are behind a fold."""

LISTED = 400
"""Rows of a table of effects, at most."""

_NAMED, _FOREMOST, _MAPS = 11, 5, 4
_DATE_PARTS = ("year", "month", "day", "weekday", "hour")

_ODDS = (
    "The score is the log of the odds: adding 0.7 to it doubles them, taking 0.7 from it halves them, and the "
    "contributions of all columns and the intercept are added up."
)
_SCALES = {
    "number": "Contributions are in units of “{target}” and are added up, with the intercept, to the prediction.",
    "count": "Contributions are added up, with the intercept, to the log of the mean: adding 0.7 doubles the mean.",
    "amount": "Contributions are added up, with the intercept, to the log of the mean: adding 0.7 doubles the mean.",
}
_MANY = (
    "Each class has a score, and a line; the higher a class's score beside the others', the more probable it is. "
    "Adding 0.7 to one of them doubles its odds against every other class."
)


class Picture(NamedTuple):
    """An effect or pair: its name, what is to be said of it, and the image."""

    name: str
    note: str
    image: str


class Importance(NamedTuple):
    """A row of the list of effects; ``width`` is in per cent of the largest."""

    name: str
    value: str
    width: str
    evidence: str
    freedom: str
    droppable: bool


class Effects(NamedTuple):
    """Everything of the section."""

    scale: str
    towards: str
    rows: tuple[Importance, ...]
    more: tuple[Importance, ...]
    left_out: int
    open: tuple[Picture, ...]
    folded: tuple[Picture, ...]
    pairs: tuple[Picture, ...]
    sparse: tuple[Picture, ...]
    legend: tuple[tuple[str, str, bool], ...]
    classes: int
    droppable: str
    several: bool


def effects_section(run: Run) -> Effects | None:
    """The section; None where no effect was recorded."""
    effects, pairs = run.records.of(Effect), run.records.of(Pair)
    if not effects:
        return None
    scoring, labels = run.records.last(Scoring), run.labels()
    target = run.setting("data", "target")
    measured = unit(scoring, labels, target)
    curves = [e for e in effects[: OPEN + FOLDED] if e.curve and any(w > 0 for w in e.weight)]
    shown = run.shown_labels()
    sharing = _sharing(effects)
    dates = {column_of(e.name) for e in effects if e.name.endswith(" (year)")}
    drawn = [_picture(e, labels, measured, shown, shares=e.name in sharing, part=_part(e.name, dates)) for e in curves]
    maps = [p for p in pairs[:OPEN] if any(w > 0 for row in p.weight for w in row)]
    folded = [p for p in maps[_MAPS:] if effect_pictures.grey(p) > 0.5]
    rows = _importances(effects, pairs, sharing)
    several = any(len(e.curve[0]) > 1 for e in effects if e.curve)
    return Effects(
        scale=_scale(scoring, labels, target),
        towards=labels[1] if len(labels) == 2 else "",
        rows=tuple(rows[:OPEN]),
        more=tuple(rows[OPEN:LISTED]),
        left_out=max(0, len(rows) - LISTED),
        open=tuple(drawn[:OPEN]),
        folded=tuple(drawn[OPEN:]),
        pairs=tuple(_pair(p, labels, dates) for p in maps if p not in folded),
        sparse=tuple(_pair(p, labels, dates) for p in folded),
        legend=legend_of(run) if several else (),
        classes=len(labels),
        droppable=_droppable(effects, sharing),
        several=several,
    )


def legend_of(run: Run) -> tuple[tuple[str, str, bool], ...]:
    """The classes that have lines: label, colour, and whether it is dashed."""
    labels = run.labels()
    looks = [(labels[c], *look(c)) for c in run.shown_labels()]
    return tuple((label, colour, dashes != "solid") for label, colour, dashes in looks)


def _scale(scoring: Scoring | None, labels: Sequence[str], target: str) -> str:
    task = scoring.task if scoring else "classes"
    if task != "classes":
        return _SCALES[task].format(target=target or "the target")
    return _MANY if len(labels) > 2 else _ODDS


def _evidence(log_evidence: float | None, *, shares: bool = False) -> str:
    said = SHARES if shares else strength(log_evidence)
    return said if said in (NO_SIGN, SHARES) else "" if log_evidence is None else f"evidence: {said}"


def _picture(effect: Effect, labels: list[str], measured: str, shown: list[int], *, shares: bool, part: str) -> Picture:
    note = _evidence(effect.log_evidence, shares=shares)
    if sum(w > 0 for w in effect.weight) > effect_pictures.LEVELS and any(p.part == "levels" for p in effect.parts):
        note += f"; the {effect_pictures.LEVELS} most frequent levels"
    return Picture(
        effect.name or "(no name)",
        note.removeprefix("; "),
        effect_pictures.picture(effect, labels, measured, shown, part=part),
    )


def _pair(pair: Pair, labels: Sequence[str], dates: Collection[str]) -> Picture:
    parts = _part(pair.names[0], dates), _part(pair.names[1], dates)
    image, label = effect_pictures.pair_picture(pair, labels, parts)
    evidence = _evidence(pair.log_evidence)
    of = f"for “{label}”, which it moves most" if label else ""
    return Picture(_pair_name(pair), ", ".join(filter(None, [evidence, of])), image)


def _part(name: str, dates: Collection[str]) -> str:
    """Which part of a date it is; a column that is only called so is none."""
    column = column_of(name)
    return name[len(column) + 2 : -1] if column != name and column in dates else ""


def _pair_name(pair: Pair) -> str:
    return f"{pair.names[0]} × {pair.names[1]}"


def _importances(effects: Sequence[Effect], pairs: Sequence[Pair], sharing: Collection[str]) -> list[Importance]:
    entries: list[tuple[str, Effect | Pair]] = [(e.name or "(no name)", e) for e in effects]
    entries += [(_pair_name(p), p) for p in pairs]
    entries.sort(key=lambda entry: -entry[1].importance)
    largest = max(entry.importance for _, entry in entries) or 1.0
    return [
        Importance(
            name=name,
            value=significant(entry.importance, 2),
            width=f"{100 * max(0.0, entry.importance) / largest:.2f}",
            evidence=SHARES if name in sharing else strength(entry.log_evidence),
            freedom=decimal(entry.freedom, 1) if isinstance(entry, Effect) else "–",
            droppable=isinstance(entry, Effect) and entry.droppable,
        )
        for name, entry in entries
    ]


def _sharing(effects: Sequence[Effect]) -> set[str]:
    """Effects that can be dropped although they move the score: among the most important, with a band that leaves 0."""
    return {e.name for e in effects[:_FOREMOST] if e.droppable and _leaves_zero(e)}


def _leaves_zero(effect: Effect) -> bool:
    # a bin with rows whose band lies on one side of 0
    bands = zip(effect.lower, effect.upper, effect.weight, strict=False)
    return any(low > 0 or high < 0 for lows, highs, w in bands if w > 0 for low, high in zip(lows, highs, strict=False))


def _droppable(effects: Sequence[Effect], sharing: Collection[str]) -> str:
    """Which columns can be left out, those with the least evidence first."""
    found = sorted((e for e in effects if e.droppable), key=lambda e: e.log_evidence or 0.0)
    if not found:
        return "No column can be dropped: there is evidence for each."
    idle = _columns(e for e in found if column_of(e.name) not in set(map(column_of, sharing)))
    twins = [name for name in _columns(found) if name not in idle]
    said = [f"No sign that they matter, so that each can be dropped: {_some(idle)}."] if len(idle) > 1 else []
    said += [f"No sign that it matters, so that it can be dropped: {idle[0]}."] if len(idle) == 1 else []
    if twins:
        they = "These move" if len(twins) > 1 else "This one moves"
        why = "since what is in it other columns say as well"
        said.append(f"{they} the score, but could be dropped too, {why}: {_some(twins)}.")
    if len(idle) + len(twins) > 1:
        said.append("Each by itself, that is: of columns that go together, one may need to stay.")
    if any(column_of(e.name) != e.name for e in effects):
        said.append("A date is dropped as a whole: its parts are grey only if none of them is needed.")
    return " ".join(said)


def _columns(effects: Iterable[Effect]) -> list[str]:
    """The columns of effects, each once."""
    return list(dict.fromkeys(column_of(e.name) for e in effects))


def _some(names: Sequence[str]) -> str:
    return listed([*names[:_NAMED], counted(len(names) - _NAMED, "other")] if len(names) > _NAMED + 1 else names)


def column_of(name: str) -> str:
    """The column of an effect, which may be of a part of a date.

    >>> column_of("made (weekday)"), column_of("weight (kg)")
    ('made', 'weight (kg)')
    """
    column, _, part = name.rpartition(" (")
    return column if column and part.removesuffix(")") in _DATE_PARTS else name
