"""The section that compares the kept model with what a user would have had without it."""

from collections.abc import Sequence
from typing import NamedTuple

from bilevax.core.intervals import NORMAL
from bilevax.core.record_lines import Records
from bilevax.core.run_records import Compared, Paired, Scoring
from bilevax.core.text import decimal, duration, percent
from bilevax.report.pictures import Interval, intervals
from bilevax.report.run import Run
from bilevax.report.summary import headline, kept_model, loss_places, models, notes, pairs
from bilevax.report.words import Measure, asked_for, loss_of, places_for


class Row(NamedTuple):
    """One model, as the table shows it."""

    name: str
    kept: bool
    cells: tuple[str, ...]


class Comparison(NamedTuple):
    """Pictures with their titles and notes, the table, and sentences."""

    pictures: tuple[tuple[str, str, str], ...]
    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    loss: str
    sentences: tuple[str, ...]
    paired: bool


def comparison(run: Run) -> Comparison | None:
    """The section; None where no model was compared."""
    compared = models(run.records)
    if not compared:
        return None
    scoring = run.records.last(Scoring)
    asked, loss = asked_for(scoring), loss_of(scoring)
    differences = {m.field: pairs(run.records, m) for m in (asked, loss)}
    shown = [m for m in dict.fromkeys((asked, loss)) if differences[m.field]]
    pictures = [_differences(run.records, m, list(differences[m.field].values())) for m in shown]
    if len(pictures) < 2:
        pictures.append(_levels(compared, loss))
    # of rows that chose, rare classes perhaps weigh more: not like with like
    seen = not (scoring and scoring.class_weight) and any(m.validation_loss is not None for m in compared)
    heads, rows = _table(compared, differences, (asked, loss), seen)
    said = [*_weighted(scoring), _gained_and_kept(run.records) if seen else "", *notes(run.records, ["comparison"])]
    return Comparison(tuple(pictures), heads, rows, loss.name, tuple(filter(None, said)), bool(shown))


def _weighted(scoring: Scoring | None) -> list[str]:
    if scoring is None or not scoring.class_weight:
        return []
    return [
        "Where models are fitted, rare classes weigh as much as frequent ones. The figures here are of all models "
        f"alike: the {scoring.loss} is a mean over the test rows, each of which counts the same."
    ]


def _table(
    compared: Sequence[Compared],
    differences: dict[str, dict[str, Paired]],
    measures: tuple[Measure, Measure],
    seen: bool,
) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    asked, loss = measures
    places = loss_places(compared)
    scored = asked.field == "score" and asked.name != "accuracy" and any(m.score is not None for m in compared)
    accurate = any(m.accuracy is not None for m in compared)

    def cells(m: Compared) -> tuple[str, ...]:
        out = []
        if asked.field == "score":
            out += [_number(m.score, asked.sign)] * scored + [_difference(differences["score"].get(m.name))]
        out.append(f"{decimal(m.loss, places)} ± {decimal(NORMAL * m.loss_se, places)}")
        out.append(_difference(differences["loss"].get(m.name)))
        out += ["–" if m.accuracy is None else percent(m.accuracy)] * accurate
        out += [_number(m.validation_loss, 1, places)] * seen
        return tuple(_unbroken(cell) for cell in (*out, duration(m.seconds)))

    heads = []
    if asked.field == "score":
        heads += [asked.name] * scored + [f"{asked.name}: kept minus this"]
    heads += [loss.name, f"{loss.name}: kept minus this"]
    heads += ["accuracy"] * accurate + [f"{loss.name} of validation rows"] * seen
    return (*heads, "time"), tuple(Row(m.name or "(no name)", m.role == "kept", cells(m)) for m in compared)


def _unbroken(cell: str) -> str:
    """Breaks before an interval in brackets alone."""
    return cell.replace(" ", "\N{NO-BREAK SPACE}").replace("\N{NO-BREAK SPACE}(", " (")


def _number(value: float | None, sign: int, places: int = 4) -> str:
    return "–" if value is None else decimal(sign * value, places)


def _difference(p: Paired | None) -> str:
    if p is None:
        return "–"
    places = places_for((p.high - p.low) / 2)
    return f"{decimal(p.difference, places)} ({decimal(p.low, places)} to {decimal(p.high, places)})"


def _levels(compared: Sequence[Compared], loss: Measure) -> tuple[str, str, str]:
    places = loss_places(compared)
    rows = []
    for m in compared:
        half = NORMAL * m.loss_se
        text = f"{decimal(m.loss, places)} ± {decimal(half, places)}"
        rows.append(Interval(m.name, m.loss, m.loss - half, m.loss + half, text, m.role == "kept"))
    title = f"Test {loss.name} of each model"
    return title, intervals(rows, title, xlabel=f"← better · {loss.name}"), "Each by itself, with 95 % intervals."


def _differences(records: Records, measure: Measure, found: Sequence[Paired]) -> tuple[str, str, str]:
    main = headline(records)
    rows = []
    for p in found:
        text = decimal(p.difference, places_for((p.high - p.low) / 2))
        strong = main is not None and p.name == main[1].name
        rows.append(Interval(f"against {p.name}", p.difference, p.low, p.high, text, strong))
    sides = ("better", "worse") if measure.less_is_better else ("worse", "better")
    title = f"Difference in {measure.name}"
    picture = intervals(rows, title, xlabel=f"← kept is {sides[0]} · {sides[1]} →", zero=True)
    note = "The kept model minus each other one, on the same rows. An interval off the dashed line is more than chance."
    return title, picture, note


def _gained_and_kept(records: Records) -> str:
    """How much of what was gained on the validation rows was still there on the test rows."""
    own, losses = kept_model(records), pairs(records, loss_of(records.last(Scoring)))
    main = next((p for p in losses.values() if p.main), None)
    rival = next((m for m in models(records) if main is not None and m.name == main.name), None)
    if own is None or main is None or rival is None or own.validation_loss is None or rival.validation_loss is None:
        return ""
    # Both are the rival's loss minus the kept model's: positive where the kept one is better.
    seen = rival.validation_loss - own.validation_loss
    places = places_for((main.high - main.low) / 2)
    before, after = (f"{'gained' if x >= 0 else 'lost'} {decimal(abs(x), places)}" for x in (seen, -main.difference))
    return (
        f"On the validation rows, which chose, it {before} over “{main.name}”; on the test rows, which it did not see, "
        f"it {after}."
    )
