"""The section on the mathematics: formula, candidates, penalties."""

from typing import NamedTuple

from bilevax.core.intervals import NORMAL
from bilevax.core.run_records import Candidate, Effect, Pair, Scoring
from bilevax.core.text import clean, decimal, significant
from bilevax.report.run import Run
from bilevax.report.summary import shares_of
from bilevax.report.words import odds, places_for

_LISTED = 1000


class Mathematics(NamedTuple):
    """Formula of the mean, what tuned the penalties, the table of candidates, and that of penalties."""

    mean: str
    by: str
    candidates: tuple[tuple[str, ...], ...]
    evidence: tuple[tuple[str, str], ...]
    penalties: tuple[tuple[str, ...], ...]
    left_out: int


_MEANS = {
    "number": "mean(x) = s(x)",
    "count": "mean(x) = exp(s(x))",
    "amount": "mean(x) = exp(s(x))",
}


def mathematics_section(run: Run) -> Mathematics | None:
    """The section; None where the model is no additive one."""
    effects, candidates = run.records.of(Effect), run.records.of(Candidate)
    if not effects:
        return None
    last = {c.name: c for c in candidates}
    shares = shares_of([c for c in last.values() if c.name != "mixture"])
    scoring, labels = run.records.last(Scoring), run.labels()
    task = scoring.task if scoring else "classes"
    several = "P(class k) = exp(s_k(x)) / Σ_c exp(s_c(x))"
    binary = f"P({labels[1] if len(labels) == 2 else 'the second class'}) = 1 / (1 + exp(−s(x)))"
    parts = [
        (e.name, part.part, clean(part.candidate), significant(part.penalty), decimal(part.freedom, 2))
        for e in effects
        for part in e.parts
    ]
    return Mathematics(
        mean=_MEANS.get(task) or (several if len(labels) > 2 else binary),
        by=run.setting("method", "name"),
        candidates=tuple(_candidate(c, shares.get(c.name, "")) for c in last.values()),
        evidence=tuple(_odds(run)[:_LISTED]),
        penalties=tuple(parts[:_LISTED]),
        left_out=max(0, len(parts) - _LISTED),
    )


def _odds(run: Run) -> list[tuple[str, str]]:
    """Of columns and pairs, as far as they are known."""
    named: list[tuple[str, Effect | Pair]] = [(e.name or "(no name)", e) for e in run.records.of(Effect)]
    named += [(" × ".join(p.names), p) for p in run.records.of(Pair)]
    return [(name, odds(entry.log_evidence)) for name, entry in named if entry.log_evidence is not None]


def _candidate(c: Candidate, weight: str) -> tuple[str, ...]:
    half = NORMAL * c.standard_error
    places = places_for(half)
    difference = f"{decimal(c.difference, places)} ± {decimal(half, places)}" if half > 0 else "–"
    if half == 0 and c.difference:
        difference = f"{significant(c.difference)} (one fold)"
    return clean(c.name), decimal(c.loss, places), difference, weight
