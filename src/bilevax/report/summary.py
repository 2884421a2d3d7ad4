"""What a reader wants first: what was kept, what it gained, how sure that is, how the run ended."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bilevax.core.codes import Code
from bilevax.core.intervals import NORMAL, wilson
from bilevax.core.record_lines import Records
from bilevax.core.run_records import Candidate, Compared, Data, End, Note, Paired, Scoring, Step
from bilevax.core.text import clean, count, counted, decimal, duration, listed, percent, shorten, significant
from bilevax.report.run import Config, Run, setting
from bilevax.report.words import Measure, asked_for, loss_of, places_for, rounded_shares

WARNINGS = ("leak", "identifier", "date", "duplicates", "labels", "constant")
"""What notes are about that come before all else, the gravest first."""

_PER = {
    "feature": "one penalty for each feature",
    "column": "one penalty for each column",
    "class": "one penalty for each class",
    "group": "one penalty for each group",
    "weight": "one penalty for each weight",
    "frequency": "penalties tied to the frequency of words",
    "evidence": "penalties tied to how frequent their columns are, and to what they say of a class",
    "global": "one penalty for all columns",
    "single": "one penalty for all columns",
}
_LINEAR, _ADDITIVE = "a linear model", "an additive model"
_KEPT = {
    "one penalty": (_LINEAR, "one penalty for all columns", "straight lines that share one penalty"),
    "a penalty a column": (_LINEAR, "a penalty for each column", "straight lines with a penalty each"),
    "additive": (_ADDITIVE, "a curve for each column", "curves"),
    "additive with pairs": (
        _ADDITIVE,
        "a curve for each column, and surfaces for pairs",
        "curves with pairs of columns",
    ),
}
"""Candidates: what each is, what is in it, and how that is called in a mixture."""

_PERCENT = 0.005
"""Weight in a mixture below which a candidate is not named."""

_NOT_SURE = "by one fold; how sure that is cannot be said"


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


class Kept(NamedTuple):
    """What was kept, what is in it, and why."""

    what: str
    parts: str
    why: str


def models(records: Records) -> list[Compared]:
    """What was compared, the kept one first; of what is said twice the last word counts."""
    last = {model.name: model for model in records.of(Compared)}
    return sorted(last.values(), key=lambda model: model.role != "kept")


def kept_model(records: Records) -> Compared | None:
    """The figures of the model of this run."""
    return next((model for model in models(records) if model.role == "kept"), None)


def pairs(records: Records, measure: Measure) -> dict[str, Paired]:
    """The differences of one measure, by rival; kept minus rival, in the sign of the measure's name."""
    found = (p for p in records.of(Paired) if p.measure == measure.field)
    return {p.name: p if measure.sign > 0 else _negated(p) for p in found}


def _negated(p: Paired) -> Paired:
    return p.model_copy(update={"difference": -p.difference, "low": -p.high, "high": -p.low})


def headline(records: Records) -> tuple[Measure, Paired] | None:
    """The comparison of the first sentence: with the main rival, by the score asked for if it was compared by that."""
    scoring = records.last(Scoring)
    for measure in (asked_for(scoring), loss_of(scoring)):
        found = list(pairs(records, measure).values())
        if found:
            return measure, next((p for p in found if p.main), found[0])
    return None


def kept(records: Records, config: Config, *, same_penalty: bool = False) -> Kept:
    """What was kept, and why: as the held-out rows of the candidates say, or the settings of a linear run.

    Args:
        records: of the run.
        config: of the run.
        same_penalty: True if all terms of a linear model have one penalty.
    """
    last = {candidate.name: candidate for candidate in records.of(Candidate)}
    mixture = last.pop("mixture", None)
    if last:
        return _mixed(list(last.values()), mixture, loss_of(records.last(Scoring)).name)
    found = setting(config, "method", "penalty_per")
    per = found if found in ("evidence", "frequency") else setting(config, "tune", "penalty_per")
    wanted, same = _PER.get(per, ""), same_penalty or found == "global"
    if same and per not in ("global", "single", ""):
        why = f"Tuning began with one penalty for all; {wanted} did no better on the validation rows, and was not kept."
        return Kept(_LINEAR, _PER["global"], why)
    return Kept(_LINEAR if wanted else "the tuned model", wanted, "")


def _mixed(candidates: list[Candidate], mixture: Candidate | None, loss: str) -> Kept:
    used, shares = [c for c in candidates if c.weight >= _PERCENT], shares_of(candidates)
    first, rest = candidates[0], [c for c in candidates if c not in used]
    kinds = {_kind(c)[0] for c in used}
    what = kinds.pop() if len(kinds) == 1 else _ADDITIVE
    alone = len(used) == 1
    parts = _kind(used[0])[1] if alone else listed(f"{shares[c.name]} {_kind(c)[2]}" for c in used)
    seen = "On held-out training rows"
    if used == [first] and rest:
        nearest = min(rest, key=lambda c: c.difference)
        side = "above" if nearest.difference > 0 else "below"
        found = f"the {loss} of {_named(nearest)} was {_spread(nearest)} {side} its own{_unsure(nearest)}"
        why = f"{seen}, nothing richer earned its place: {found}."
        return Kept(what, parts, why)
    judged = mixture or (used[0] if alone else None)
    if judged is None or used == [first]:
        return Kept(what, parts, "")
    side = "below" if judged.difference < 0 else "above"
    why = f"{seen}, its {loss} was {_spread(judged)} {side} that of {_named(first)}{_unsure(judged)}."
    return Kept(what, parts, why)


def shares_of(candidates: Sequence[Candidate]) -> dict[str, str]:
    """Weights in a mixture as whole per cents that add up to 100; what is not named has none."""
    whole = rounded_shares([c.weight if c.weight >= _PERCENT else 0.0 for c in candidates])
    return {c.name: percent(share / 100, 0) for c, share in zip(candidates, whole, strict=True)}


def _kind(candidate: Candidate) -> tuple[str, str, str]:
    name = clean(candidate.name)
    return _KEPT.get(name, (_ADDITIVE, name, name))


def _named(candidate: Candidate) -> str:
    return " with ".join(_kind(candidate)[:2])


def _spread(candidate: Candidate) -> str:
    half = NORMAL * candidate.standard_error
    if half == 0:
        return significant(abs(candidate.difference))
    places = places_for(half)
    return f"{decimal(abs(candidate.difference), places)} ± {decimal(half, places)} (95\u202f%)"


def _unsure(candidate: Candidate) -> str:
    return "" if candidate.standard_error > 0 else f" ({_NOT_SURE})"


def verdict(records: Records, config: Config, *, same_penalty: bool = False) -> Verdict:
    """What was kept, what it gained over what, and how sure that is; as the paired interval has it.

    Args:
        records: of the run.
        config: of the run.
        same_penalty: True if all terms of a linear model have one penalty.
    """
    what, parts, why = kept(records, config, same_penalty=same_penalty)
    subject = f"{what[0].upper()}{what[1:]} was kept{parts and f': {parts}'}"
    if _interrupted(records):
        subject = f"The run was interrupted; it had reached {what}{parts and f': {parts}'}"
    found = headline(records)
    if found is None:
        sentence = f"{subject}. It was compared with no other model: what it gains is not known."
        return Verdict("unknown", "Not compared", sentence, why)
    measure, rival = found
    tone, word, gained = _gain(measure, rival, records.last(Data))
    others = better_rivals(records, besides=rival.name if tone == "worse" else "")
    if others:
        gained = " ".join([gained, *others.values()])
        tone, word = _beside_others(tone, word, measure in others, loss_of(records.last(Scoring)))
    return Verdict(tone, word, f"{subject}{gained}", " ".join(filter(None, [_levels(records, measure, rival), why])))


def _beside_others(tone: str, word: str, by_it: bool, loss: Measure) -> tuple[str, str]:
    """Tone and word where other rivals are surely better, by what the first sentence speaks of or by the loss alone."""
    if tone == "worse":
        return tone, word
    if not by_it:
        return tone, f"{word}, but another model has a lower {loss.name}"
    if tone == "better":
        return "same", f"{word}, but another model is better still"
    return "worse", "Another model is better"


def better_rivals(records: Records, *, besides: str) -> dict[Measure, str]:
    """Sentences on rivals that are surely better: by the score that was asked for, or else by the loss."""
    scoring, out, named = records.last(Scoring), dict[Measure, str](), {besides}
    for measure in dict.fromkeys((asked_for(scoring), loss_of(scoring))):
        found = [p for name, p in pairs(records, measure).items() if name not in named and _surely(measure, p)]
        named |= {p.name for p in found}
        if found:
            out[measure] = " ".join(_better(measure, p) for p in found)
    return out


def _surely(measure: Measure, rival: Paired) -> bool:
    return rival.low > 0 if measure.less_is_better else rival.high < 0


def _better(measure: Measure, rival: Paired) -> str:
    side = "lower" if measure.less_is_better else "higher"
    ends = sorted((abs(rival.low), abs(rival.high)))
    name = shorten(clean(rival.name), 80)
    return f"“{name}” has a {side} {measure.name} by {_by(abs(rival.difference), *ends)}."


def _gain(measure: Measure, rival: Paired, data: Data | None) -> tuple[str, str, str]:
    against = f"“{shorten(clean(rival.name), 80)}”"
    rows = f"On {counted(data.rows.test, 'test row')}" if data and data.rows.test > 0 else "On the test rows"
    if rival.low <= 0 <= rival.high:
        by = _by(rival.difference, rival.low, rival.high)
        said = f". {rows} it cannot be told from {against}: their {measure.name} differs by {by}."
        return "same", "No measurable difference", said
    lower = rival.high < 0
    better = lower == measure.less_is_better
    ends = (-rival.difference, -rival.high, -rival.low) if lower else (rival.difference, rival.low, rival.high)
    how = f"{'lowered' if lower else 'raised'} the {measure.name} by {_by(*ends)} against {against}"
    if better:
        return "better", "Better", f". {rows} it {how}."
    return "worse", "Worse", f". {rows} it {how}: on this table the other model is better."


def _by(value: float, low: float, high: float) -> str:
    places = places_for((high - low) / 2)
    return f"{decimal(value, places)} (95\u202f% interval {decimal(low, places)} to {decimal(high, places)})"


def _levels(records: Records, measure: Measure, rival: Paired) -> str:
    """Both models' figures side by side, and the loss where the sentence speaks of a score."""
    own, other = kept_model(records), next((m for m in models(records) if m.name == rival.name), None)
    if own is None or other is None:
        return ""
    loss = loss_of(records.last(Scoring))
    shown = [measure, *([loss] if measure.field == "score" else [])]
    parts = [_instead(m.name, _figure(own, m), _figure(other, m), (rival.high - rival.low) / 2) for m in shown]
    if own.accuracy is not None and other.accuracy is not None and measure.name != "accuracy":
        parts.append(f"accuracy {percent(own.accuracy)} instead of {percent(other.accuracy)}")
    said = ", ".join(filter(None, parts))
    return f"{said[0].upper()}{said[1:]}." if said else ""


def _figure(model: Compared, measure: Measure) -> float | None:
    value = model.loss if measure.field == "loss" else model.score
    return None if value is None else measure.sign * value


def _instead(name: str, now: float | None, was: float | None, spread: float) -> str:
    if now is None or was is None:
        return ""
    places = places_for(spread)
    return f"{name} {decimal(now, places)} instead of {decimal(was, places)}"


def _interrupted(records: Records) -> bool:
    end = records.last(End)
    return end is not None and end.interrupted


def ending(records: Records) -> list[str]:
    """How the run ended, unless it ended well; in the words of a table's user."""
    end = records.last(End)
    if end is None:
        return [
            "The run has not written its end: it is still going, or it was killed. This is what it had written; "
            "`bilevax resume` goes on from there."
        ]
    if end.interrupted:
        reached = f" after {counted(end.steps, 'step')}" if end.steps is not None else ""
        return [f"The run was interrupted{reached}; the model is the one that had been reached by then."]
    if end.code in _FINE:
        return []
    return [_UNSTABLE if end.code in Code.__members__ else clean(end.message or f"The run ended with {end.code}.")]


# the best step is kept, whether or not a fit among them was as exact as asked for
_FINE = {code.name for code in (Code.OK, Code.TOLERANCE_NOT_MET, Code.MAX_STEPS, Code.STALLED)}
_UNSTABLE = (
    "Tuning became unstable and was stopped; the model is the best that had been reached by then. Judge it by its test "
    "figures. Columns with a few huge values are the usual cause."
)


def warnings(records: Records) -> list[str]:
    """Notes on what may be wrong with the table, the gravest first."""
    found = [note for note in records.of(Note) if note.about in WARNINGS and note.text]
    return [_sentence(note.text) for note in sorted(found, key=lambda note: WARNINGS.index(note.about))]


def notes(records: Records, about: Iterable[str]) -> list[str]:
    """Notes about something, each once."""
    wanted = set(about)
    return list(dict.fromkeys(_sentence(note.text) for note in records.of(Note) if note.about in wanted and note.text))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}{'' if text[-1] in '.!?' else '.'}"


def tiles(run: Run) -> list[Tile]:
    """The figures of the run, those that are known."""
    data, own = run.records.last(Data), kept_model(run.records)
    out = []
    if data is not None:
        splits = {"train": data.rows.train, "validate": data.rows.validation, "test": data.rows.test}
        note = ", ".join(f"{count(n)} {name}" for name, n in splits.items() if n)
        out.append(Tile("rows", count(sum(splits.values())), note))
        note = f"{counted(data.terms, 'term')} once encoded" if data.terms else ""
        out.append(Tile("columns", count(data.features), note))
    if own is not None:
        out += _figures(run.records, own, data.rows.test if data else 0)
    end = run.records.last(End) or run.records.last(Step)
    if end is not None:
        whole = duration(end.seconds)
        note = f"to choose and fit it; {whole} with the comparison" if own else ""
        out.append(Tile("time", duration(own.seconds) if own else whole, note))
    return out


def _figures(records: Records, own: Compared, rows: int) -> list[Tile]:
    scoring = records.last(Scoring)
    asked, loss = asked_for(scoring), loss_of(scoring)
    half, places = NORMAL * own.loss_se, loss_places(models(records))
    out = [Tile(f"test {loss.name}", decimal(own.loss, places), f"± {decimal(half, places)} (95\u202f%)")]
    value = _figure(own, asked)
    if asked.field == "score" and value is not None and asked.name != "accuracy":
        out.insert(0, Tile(f"test {asked.name}", decimal(value, 4), ""))
    if own.accuracy is not None:
        note = f"± {percent(wilson(own.accuracy, rows)[1])} (95\u202f%)" if rows > 0 else ""
        out.append(Tile("test accuracy", percent(own.accuracy), note))
    return out


def loss_places(compared: Sequence[Compared]) -> int:
    """Decimals of the losses of models: the smallest error decides for all, so that they can be compared."""
    errors = [m.loss_se for m in compared if m.loss_se > 0]
    return places_for(NORMAL * min(errors)) if errors else 4
