"""The page of a run of ``clean``: which labels are wrong, how sure that is, and what to do."""

from typing import NamedTuple

from bilevax.core.cleaning_records import KeptAside, Labelled, Verified, Wrong, read_cleaning
from bilevax.core.errors import DataError
from bilevax.core.record_lines import Records
from bilevax.core.run_files import METRICS, RunFiles
from bilevax.core.run_records import Calibration
from bilevax.core.text import count, decimal, percent, shorten
from bilevax.report import svg
from bilevax.report.about import Bar, settings
from bilevax.report.cleaning_suspects import suspects_section
from bilevax.report.cleaning_words import Flow, checked, flows, kept_aside, verdict
from bilevax.report.diagnostic_pictures import calibration
from bilevax.report.run import Run, cleaned, config_from
from bilevax.report.summary import Tile, notes
from bilevax.report.summary import warnings as warnings_of
from bilevax.report.templates import render

_MOST_CLASSES, _MOST_FLOWS = 20, 12


class Cell(NamedTuple):
    """A cell of the noise matrix; ``shade`` in per cent of the colour."""

    text: str
    interval: str
    shade: str
    right: bool


class Matrix(NamedTuple):
    """From true classes (lines) to given labels (columns): those that have most wrong labels."""

    labels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    classes: int
    flows: tuple[tuple[str, ...], ...]


class Check(NamedTuple):
    """What true labels say, or trusted rows: a sentence, figures, and the picture of the probabilities."""

    sentence: str
    figures: tuple[tuple[str, str], ...]
    picture: str
    truth: bool


def is_cleaning(found: RunFiles) -> bool:
    """Whether a directory is of ``clean``."""
    return "clean" in config_from(found)


def page_of_cleaning(found: RunFiles) -> str:
    """The page of a run's files.

    Raises:
        DataError: nothing was recorded.
        CorruptError: a file is torn.
    """
    if METRICS not in found.files:
        raise DataError(f"{found.path} has no {METRICS}: nothing was recorded, so there is nothing to report")
    records = cleaned(read_cleaning(found.files[METRICS], str(found.path / METRICS)))
    with svg.style():
        return render("cleaning.html.j2", _page(Run(records, config_from(found), None)))


def _page(run: Run) -> dict[str, object]:
    records, labelled = run.records, run.records.last(Labelled)
    return {
        "table": shorten(run.setting("data", "table"), 80),
        "target": shorten(run.setting("data", "target"), 60),
        "verdict": verdict(records),
        "warnings": warnings_of(records),
        "tiles": _tiles(records),
        "matrix": _matrix(records),
        "suspects": suspects_section(records),
        "suspicious": wrong.suspicious if (wrong := records.last(Wrong)) else 0,
        "check": _check(records),
        "trusted": labelled.trusted if labelled else 0,
        "rehearsal": bool(labelled and labelled.flipped),
        "classes": _classes(labelled),
        "sentences": notes(records, ["table", "model"]),
        "settings": settings(run),
    }


def _tiles(records: Records) -> list[Tile]:
    labelled, wrong, verified = records.last(Labelled), records.last(Wrong), records.last(Verified)
    if labelled is None or wrong is None:
        return []
    value, low, high = (x / max(labelled.rows, 1) for x in wrong.expected)
    sure = shorten(labelled.trusted_from, 30) if labelled.trusted_from else "none is known to be right"
    out = [
        Tile("Labels looked at", count(labelled.rows), f"of {len(labelled.classes)} classes"),
        Tile("Expected to be wrong", percent(value), f"{percent(max(low, 0.0))} to {percent(high)} with 95\u202f%"),
        Tile("Probably wrong", count(wrong.suspicious), "labels: more probably than right"),
        Tile("Trusted rows", count(labelled.trusted), sure),
    ]
    if verified is not None and verified.suspicious:
        note = (
            f"of those called wrong; {percent(verified.right / verified.wrong)} found"
            if verified.wrong
            else "are wrong"
        )
        out.append(Tile("Wrong indeed", percent(verified.right / verified.suspicious), note))
    return out


def _matrix(records: Records) -> Matrix | None:
    wrong = records.last(Wrong)
    if wrong is None:
        return None
    C = len(wrong.labels)
    # rows that are truly of a class, or given as it, and not both
    moved = [sum(wrong.flows[c][j] + wrong.flows[j][c] for j in range(C) if j != c) for c in range(C)]
    kept = sorted(sorted(range(C), key=lambda c: -moved[c])[:_MOST_CLASSES])
    most = max((wrong.noise[c][j] for c in kept for j in kept if j != c), default=0.0) or 1.0
    rows = tuple((wrong.labels[c] or "(empty)", tuple(_cell(wrong, c, j, most) for j in kept)) for c in kept)
    named = [flow for flow in flows(wrong) if flow.rows >= 0.5][:_MOST_FLOWS]
    return Matrix(tuple(shorten(wrong.labels[c], 24) for c in kept), rows, C, tuple(map(_flow, named)))


def _cell(wrong: Wrong, c: int, j: int, most: float) -> Cell:
    p = wrong.noise[c][j]
    interval = f"{wrong.labels[c]} given as {wrong.labels[j]}: {_shares(p, wrong.low[c][j], wrong.high[c][j])}"
    # half of the colour at most, so that ink can be read on it
    shade = 50 * p if c == j else 50 * p / most
    return Cell("·" if p < 0.0005 else decimal(100 * p, 1), interval, f"{shade:.0f}", c == j)


def _shares(p: float, low: float, high: float) -> str:
    return f"{percent(p)}, {decimal(100 * low, 1)} to {percent(high)} with 95\u202f%"


def _flow(flow: Flow) -> tuple[str, ...]:
    interval = f"{decimal(100 * flow.low, 1)} to {percent(flow.high)}"
    return flow.truth or "(empty)", flow.given or "(empty)", decimal(flow.rows, 1), percent(flow.share), interval


def _check(records: Records) -> Check | None:
    found, aside, groups = records.last(Verified), records.last(KeptAside), records.last(Calibration)
    if groups is None:
        return None
    picture = calibration([(0, groups)])
    if found is None:
        return None if aside is None else Check(kept_aside(aside), (), picture, False)
    figures = [
        ("expected to be wrong", f"{decimal(found.expected, 1)} (are: {count(found.wrong)})"),
        ("of those called wrong, are", f"{count(found.right)} of {count(found.suspicious)}"),
        ("of these, the true label is suggested for", count(found.corrected)),
    ]
    if found.at_number is not None:
        figures.append((f"of the {count(found.wrong)} most suspicious, are wrong", percent(found.at_number)))
    if found.area is not None:
        figures.append(("area under the ROC curve", decimal(found.area, 4)))
    figures.append(("probabilities are off by, on average", decimal(found.calibration_error, 3)))
    return Check(checked(found), tuple(figures), picture, True)


def _classes(labelled: Labelled | None) -> tuple[Bar, ...]:
    found = sorted(labelled.classes.items(), key=lambda of: -of[1])[:_MOST_CLASSES] if labelled else []
    total, most = max(1, labelled.rows if labelled else 0), max((n for _, n in found), default=0) or 1
    return tuple(Bar(name, count(n), percent(n / total), f"{100 * n / most:.2f}") for name, n in found)
