"""The report: what it says is what the records say, and no record can become part of the page's structure."""

import base64
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_runs as runs
from report_runs import GRID, RIVAL, write, write_linear

from bilevax.cli.entry import main
from bilevax.core.errors import CorruptError, DataError
from bilevax.core.record_lines import Records
from bilevax.core.run_records import (
    Calibration,
    Candidate,
    Contribution,
    Effect,
    Errors,
    Gap,
    Group,
    Note,
    Paired,
    Record,
    Row,
    Scoring,
)
from bilevax.core.text import clean, shorten, significant
from bilevax.report import effect_pictures, write_report
from bilevax.report.penalties import pixels
from bilevax.report.standalone import probabilities
from bilevax.report.summary import ending, verdict

ASSET = Path(__file__).parent / "assets" / "run_format_1"
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "' onmouseover='alert(1)",
    "</style></title></svg><iframe src=http://evil.example>",
    "$\\frac{1}{$ & &lt; ]]> <!-- {{ 7*7 }} {% raw %}",
    "\x1b[31mred\x1b[0m \x00\x07\x9b2J \u202egnp.exe \ufffe",
]


class Outline(HTMLParser):
    """The elements of a page with their attributes' names, in order; and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[tuple[str, str, str]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.values += [(tag, name, value or "") for name, value in attrs]

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", ()))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def drawings(page: str) -> list[str]:
    """The pictures of a page, each an SVG document."""
    found = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]*)"', page)
    return [base64.b64decode(data).decode() for data in found]


def parsed(text: str) -> Outline:
    parser = Outline()
    parser.feed(text)
    parser.close()
    return parser


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def text_of(run: Path) -> str:
    return parsed(page_of(run)).text


def outline(page: str) -> Outline:
    """Of the page and, after it, of all its pictures."""
    return parsed("".join([page, *drawings(page)]))


def sentence(page: str) -> str:
    found = re.search(r'<p class="sentence">(.*?)</p>', page)
    assert found is not None
    return found[1]


def said(records: Sequence[Record], config: dict[str, dict[str, Any]] | None = None, **more: Any) -> str:
    return verdict(Records(records), config or {}, **more).sentence


# ---- hostile strings: faults F6 and F8 (docs/faults.md)


def hostile_and_benign(directory: Path) -> list[str]:
    """The pages of two runs of each kind that differ in their strings only."""
    pages = []
    for name, strings in (("hostile", HOSTILE), ("benign", [f"plain {c}" for c in "abcdefg"])):
        notes = [Note(text=s, about=about) for s in strings for about in ("leak", "labels", "table", "comparison")]
        several = [
            runs.data(strings, 7),
            Scoring(task="classes", loss=strings[0], score=strings[1]),
            Candidate(name=strings[2], loss=1.0, difference=0.0, standard_error=0.1, weight=0.4),
            Candidate(name=strings[1], loss=1.0, difference=0.0, standard_error=0.1, weight=0.6),
            *runs.compared(-0.012, kept=strings[0], rivals=strings[1:4], score=0.5),
            *runs.scored(-0.02, rivals=strings[1:4]),
            *runs.effects(strings, 7, level_names=strings),
            runs.pair(strings[0], strings[1], 7),
            *(runs.discrimination(s, i, thresholds=False) for i, s in enumerate(strings)),
            runs.confusion(strings),
        ]
        two = runs.win(strings[:2], strings)
        odd = [*notes, *runs.rows(strings, strings, strings), runs.end(code=strings[3], message=strings[1])]
        for kind, records in (("several", several), ("two", two)):
            config = runs.config_of(records, strings[0], strings[1])
            config |= {json.dumps(strings[1]): {json.dumps(s): s for s in strings}}
            pages.append(page_of(write(directory / name / kind, [*records, *odd], config=config)))
        extra = [
            {"column": s, "kind": kind, "value": s, "weight": [0.1] * 7, "penalty": 3.0 + i}
            for i, s in enumerate(strings)
            for kind in ("category", "missing")
        ]
        pages.append(page_of(write_linear(directory / name / "linear", strings, strings, extra=extra)))
    return pages


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three hostile ones, then three benign ones."""
    return hostile_and_benign(tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_hostile_strings_add_no_element_and_no_attribute(pages: list[str], which: int) -> None:
    hostile, benign = outline(pages[which]), outline(pages[which + 3])
    assert hostile.elements == benign.elements
    assert len(hostile.elements) > 500
    assert {tag for tag, _ in hostile.elements}.isdisjoint({"script", "iframe", "object", "link", "base", "form"})
    assert sum(tag == "img" for tag, _ in hostile.elements) == len(drawings(pages[which])) > 5
    assert not any(name.startswith("on") for _, attributes in hostile.elements for name in attributes)
    targets = [value for _, name, value in hostile.values if name in ("href", "xlink:href", "src")]
    assert targets
    assert all(value.startswith(("#", "data:image/png", "data:image/svg+xml;base64,")) for value in targets)
    # what is in an attribute that styles is a number or a colour
    styles = [value for tag, name, value in parsed(pages[which]).values if name == "style"]
    assert all(
        re.fullmatch(r"((left|width): [\d.]+%(; )?)+|color: #\w{6}|background: rgb\([\d ]+ / \d+%\)", s) for s in styles
    )


@pytest.mark.parametrize("which", [0, 1, 2])
def test_hostile_strings_are_shown_as_what_they_are(pages: list[str], which: int) -> None:
    text = outline(pages[which]).text
    for s in HOSTILE[:5]:
        assert s in text
    assert "{{ 7*7 }}" in text  # not rendered as a template


@pytest.mark.parametrize("which", [0, 1, 2])
def test_terminal_escapes_and_control_characters_are_stripped(pages: list[str], which: int) -> None:
    for text in (pages[which], *drawings(pages[which])):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe]", text)
        assert "[31m" not in text
    assert "red gnp.exe" in pages[which]


@pytest.mark.parametrize("which", range(6))
def test_page_is_self_contained(pages: list[str], which: int) -> None:
    page = pages[which]
    policy = [value for tag, name, value in parsed(page).values if tag == "meta" and name == "content"]
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in policy
    head = page[: page.index("<style>")]
    assert 'http-equiv="Content-Security-Policy"' in head  # before any style
    assert page.count("Content-Security-Policy") == page.count("<style") == 1
    assert "http" not in page.replace("http-equiv", "").replace("http://evil.example", "")
    for text in (page, *drawings(page)):
        assert not re.search(r"@import|url\((?!#)", text)


def test_ids_are_unique_and_every_reference_is_met(pages: list[str]) -> None:
    for text in (pages[0], *drawings(pages[0]), pages[1], *drawings(pages[1])):
        values = parsed(text).values
        ids = [value for _, name, value in values if name == "id"]
        assert len(ids) == len(set(ids))
        links = {value[1:] for _, name, value in values if name in ("href", "xlink:href") and value[0] == "#"}
        assert links | set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)


def test_pictures_have_no_background_and_few_colours(pages: list[str]) -> None:
    """In the dark they are inverted: what is white lets the page through, but a grey background would not."""
    sheet = pages[0][pages[0].index("<style>") : pages[0].index("</style>")]
    dark = sheet.split("prefers-color-scheme: dark")[1].split("* {")[0]
    assert re.search(r"figure img[^{]*\{ filter: invert\(1\) hue-rotate\(180deg\); mix-blend-mode: screen; \}", dark)
    for picture in drawings(pages[0]):
        background = re.search(r'<g id="patch_1">\s*<path d="[^"]*"\s*style="([^"]*)"', picture)
        assert background is not None
        assert "fill: none" in background[1]
        assert "#5d6776" in picture  # muted


# ---- the first sentence


def paired(difference: float, *, measure: str = "loss", name: str = RIVAL, main: bool = True) -> Paired:
    low, high = difference - 0.008, difference + 0.008
    return Paired.model_validate(
        {"name": name, "measure": measure, "difference": difference, "low": low, "high": high, "main": main}
    )


@pytest.mark.parametrize(
    ("difference", "tone", "words"),
    [
        (-0.012, "better", "it lowered the log-loss by 0.0120 (95\u202f% interval 0.0040 to 0.0200) against"),
        (0.001, "same", f"it cannot be told from “{RIVAL}”: their log-loss differs by 0.0010"),
        (-0.001, "same", "by −0.0010 (95\u202f% interval −0.0090 to 0.0070)"),
        (0.012, "worse", "it raised the log-loss by 0.0120 (95\u202f% interval 0.0040 to 0.0200) against"),
    ],
)
def test_verdict_is_that_of_the_paired_interval(tmp_path: Path, difference: float, tone: str, words: str) -> None:
    page = page_of(write(tmp_path, [runs.data(["a", "b"]), paired(difference), runs.end()]))
    assert words in sentence(page)
    assert f"“{RIVAL}”" in sentence(page)
    assert ". On 200 test rows it " in sentence(page)
    assert f'class="verdict {tone}"' in page


@pytest.mark.parametrize(
    ("score", "difference", "tone", "words"),
    [
        ("roc_auc", 0.02, "better", "it raised the area under the ROC curve by 0.0200"),
        ("roc_auc", -0.02, "worse", "it lowered the area under the ROC curve by 0.0200"),
        # records have the negative of a loss, and the page the loss
        (
            "neg_mean_absolute_error",
            0.02,
            "better",
            "it lowered the mean absolute error by 0.0200 (95\u202f% interval 0.0120",
        ),
        ("neg_mean_absolute_error", -0.02, "worse", "it raised the mean absolute error by 0.0200"),
    ],
)
def test_verdict_leads_with_the_score_asked_for(score: str, difference: float, tone: str, words: str) -> None:
    records = Records([
        Scoring(task="classes", loss="log-loss", score=score), paired(-0.05), paired(difference, measure="score")
    ])  # fmt: skip
    found = verdict(records, {})
    assert (found.tone, words in found.sentence) == (tone, True), found.sentence


def test_verdict_speaks_of_the_main_rival() -> None:
    records = [paired(0.02, name="other", main=False), paired(-0.012), paired(0.03, name="third", main=False)]
    assert f"lowered the log-loss by 0.0120 (95\u202f% interval 0.0040 to 0.0200) against “{RIVAL}”" in said(records)


@pytest.mark.parametrize(
    ("score", "measured", "word", "words"),
    [
        (None, {"loss": (-0.02, 0.02)}, "Better, but another model is better still", "a lower log-loss by 0.0200"),
        (None, {"loss": (0.001, 0.02)}, "Another model is better", "a lower log-loss by 0.0200"),
        (None, {"loss": (0.02, 0.03)}, "Worse", "a lower log-loss by 0.0300"),
        (None, {"loss": (0.001, 0.002)}, "No measurable difference", ""),
        (
            "roc_auc",
            {"score": (0.001, -0.02), "loss": (0.001, 0.03)},
            "Another model is better",
            "a higher area under the ROC curve by 0.0200",
        ),
        (
            "roc_auc",
            {"score": (0.001, -0.001), "loss": (0.001, 0.02)},
            "No measurable difference, but another model has a lower log-loss",
            "a lower log-loss by 0.0200",
        ),
    ],
)
def test_a_rival_that_is_surely_better_is_told(
    score: str | None, measured: dict[str, tuple[float, float]], word: str, words: str
) -> None:
    records: list[Record] = [Scoring(task="classes", loss="log-loss", score=score)]
    for measure, (first, other) in measured.items():
        records += [paired(first, measure=measure), paired(other, measure=measure, name="other", main=False)]
    found = verdict(Records(records), {})
    assert found.word == word
    if not words:
        assert "other" not in found.sentence
        return
    low = float(words[-6:]) - 0.008
    interval = f"(95\u202f% interval {low:.4f} to {low + 0.016:.4f})"
    assert found.sentence.endswith(f" “other” has {words} {interval}.")
    assert found.sentence.count("“other”") == 1


def test_the_main_rival_is_told_too_where_its_loss_alone_is_surely_better() -> None:
    records = [Scoring(task="classes", loss="log-loss", score="roc_auc"), paired(0.02), paired(0.001, measure="score")]
    assert said(records).endswith(f" “{RIVAL}” has a lower log-loss by 0.0200 (95\u202f% interval 0.0120 to 0.0280).")


def test_a_difference_of_one_fold_has_no_interval(tmp_path: Path) -> None:
    one = [c.model_copy(update={"standard_error": 0.0}) for c in runs.candidates(-0.0198) if isinstance(c, Candidate)]
    assert verdict(Records(one), {}).detail == (
        "On held-out training rows, its log-loss was 0.0198 below that of a linear model with one penalty for all "
        "columns (by one fold; how sure that is cannot be said)."
    )
    text = text_of(write(tmp_path, [*runs.win(), *one]))
    assert "−0.0198 (one fold)" in text
    assert "± 0.0000" not in text


def test_shares_add_up() -> None:
    sentence = verdict(Records(runs.candidates(-0.046, (1 / 6, 0.0, 5 / 12, 5 / 12))), {}).sentence
    assert "16\u202f% straight lines that share one penalty, 42\u202f% curves and 42\u202f% curves" in sentence


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ((1.0, 0, 0, 0), "A linear model was kept: one penalty for all columns."),
        ((0, 1.0, 0, 0), "A linear model was kept: a penalty for each column."),
        ((0, 0, 1.0, 0), "An additive model was kept: a curve for each column."),
        ((0, 0, 0, 1.0), "An additive model was kept: a curve for each column, and surfaces for pairs."),
        (
            (0, 0, 0.35, 0.65),
            "An additive model was kept: 35\u202f% curves and 65\u202f% curves with pairs of columns.",
        ),
        (
            (0.5, 0.5, 0, 0),
            "A linear model was kept: 50\u202f% straight lines that share one penalty "
            "and 50\u202f% straight lines with a penalty each.",
        ),
        (
            (0.1, 0, 0.9, 0.001),
            "An additive model was kept: 10\u202f% straight lines that share one penalty and 90\u202f% curves.",
        ),
    ],
)
def test_verdict_says_what_was_kept(weights: tuple[float, ...], words: str) -> None:
    found = verdict(Records(runs.candidates(-0.046, weights)), {})
    assert found.sentence == f"{words} It was compared with no other model: what it gains is not known."
    if weights[0] < 0.5:
        rest = "below that of a linear model with one penalty for all columns."
        assert found.detail == f"On held-out training rows, its log-loss was 0.0460 ± 0.0098 (95\u202f%) {rest}"


def test_why_nothing_richer_was_kept() -> None:
    found = verdict(Records(runs.candidates(0.02, (1.0, 0, 0, 0))), {})
    nearest = (
        "the log-loss of a linear model with a penalty for each column was 0.0050 ± 0.0078 (95\u202f%) above its own"
    )
    assert found.detail == f"On held-out training rows, nothing richer earned its place: {nearest}."


@pytest.mark.parametrize(
    ("same", "words"), [(True, "one penalty for all columns"), (False, "one penalty for each feature")]
)
def test_a_linear_run_says_which_penalties_it_kept(tmp_path: Path, same: bool, words: str) -> None:
    run = write_linear(tmp_path)
    if same:
        model = json.loads((run / "coefficients.json").read_text())
        for term in model["terms"]:
            term["penalty"] = 0.25
        (run / "coefficients.json").write_text(json.dumps(model))
        runs.seal(run)
    page = page_of(run)
    assert sentence(page).startswith(f"A linear model was kept: {words}. On 200 test rows it lowered")
    assert ("did no better on the validation rows" in page) == same


def test_the_command_says_the_same_of_a_linear_run() -> None:
    """It has no model at hand: the settings say which penalties were kept."""
    for kept, words in (("global", "one penalty for all columns"), ("feature", "one penalty for each feature")):
        config = {"tune": {"penalty_per": "feature"}, "method": {"penalty_per": kept}}
        assert said([paired(-0.012)], config).startswith(f"A linear model was kept: {words}.")


def test_detail_has_both_models_figures() -> None:
    records = [
        Scoring(task="classes", loss="log-loss", score="roc_auc"),
        *runs.compared(-0.045, score=0.8),
        *runs.scored(0.02),
    ]
    detail = verdict(Records(records), {}).detail
    assert detail == (
        "Area under the ROC curve 0.800 instead of 0.800, log-loss 0.405 instead of 0.450, "
        "accuracy 85.0\u202f% instead of 85.0\u202f%."
    )


def test_interrupted_run_without_comparison_has_a_page(tmp_path: Path) -> None:
    records = [*runs.steps(5, validation=False), runs.end(interrupted=True, steps=5)]
    page = page_of(write_linear(tmp_path, records=records))
    assert sentence(page).startswith(
        "The run was interrupted; it had reached a linear model: one penalty for each feature"
    )
    assert "compared with no other model" in sentence(page)
    assert "The run was interrupted after 5 steps" in page
    assert '<section id="comparison"' not in page
    assert '<section id="course"' in page
    assert "validation loss" not in page.lower()


def test_run_without_its_end_says_so(tmp_path: Path) -> None:
    assert "has not written its end" in page_of(write(tmp_path, runs.steps(1)))


@pytest.mark.parametrize("code", ["OK", "MAX_STEPS", "TOLERANCE_NOT_MET", "STALLED"])
def test_what_the_kept_step_does_not_suffer_from_is_no_notice(code: str) -> None:
    assert ending(Records([runs.end(code=code, message="try `step_size=None`")])) == []


def test_failures_are_told_in_a_table_users_words() -> None:
    from bilevax.core.codes import Code

    for code in Code:
        for notice in ending(Records([runs.end(code=code.name, message=code.message)])):
            assert not re.search(r"step_size|damping|Harmonic|GMRES|lam\b|float64|inner|[A-Z]{3}", notice), notice
    assert ending(Records([runs.end(code="DIVERGED")])) != []
    assert ending(Records([runs.end(code="TIME", message="The time was used up.")])) == ["The time was used up."]


# ---- what the page says


@pytest.mark.parametrize("kind", runs.RUNS)
def test_sections_of_each_kind_of_run(tmp_path: Path, kind: str) -> None:
    page = page_of(write(tmp_path, runs.RUNS[kind]()))
    sections = ["effects", "comparison", "diagnostics", "rows", "data", "mathematics", "use", "settings"]
    assert re.findall(r'<section id="(\w+)"', page) == [
        *sections[:1],
        *(["pairs"] if kind in ("win", "many") else []),
        *sections[1:],
    ]
    for section in sections:
        assert f'href="#{section}"' in page
    text = parsed(page).text
    assert "nats" not in text
    assert "sample visits" not in text
    assert "hypergradient" not in text
    words = {"win": "Better", "tie": "No measurable difference, but", "many": "Better", "regression": "Worse"}
    assert words[kind] in text


def test_tiles_of_a_linear_run(tmp_path: Path) -> None:
    page = page_of(write_linear(tmp_path))
    for label, value in (
        ("rows", "1,000"),
        ("columns", "3"),
        ("test log-loss", "0.438"),
        ("test accuracy", "85.0\u202f%"),
    ):
        assert f'<dt>{label}</dt><dd class="value">{value}</dd>' in page
    for section in ("weights", "comparison", "course", "gap", "data", "method", "use", "settings"):
        assert f'<section id="{section}"' in page
    assert "because table.csv" in page
    assert "Empty: 7 cells." in page
    assert "On the validation rows, which chose, it gained 0.0000 over" in page


def test_warnings_come_first_and_the_gravest_before_all(tmp_path: Path) -> None:
    abouts = ("constant", "table", "identifier", "leak", "comparison", "labels", "date", "model", "duplicates")
    notes = [Note(text=f"about {about}", about=about) for about in abouts]
    page = page_of(write(tmp_path, [*runs.tie(), *notes]))
    head, rest = page.split("</header>")
    order = [
        head.index(f"<li>About {about}.</li>")
        for about in ("leak", "identifier", "date", "duplicates", "labels", "constant")
    ]
    assert order == sorted(order)
    for about in ("table", "model"):
        assert f"About {about}" not in head
        assert f"About {about}." in rest[rest.index('id="data"') :]
    assert "About comparison." in rest[rest.index('id="comparison"') : rest.index('id="diagnostics"')]


def test_many_warnings_are_folded_not_lost(tmp_path: Path) -> None:
    page = page_of(write(tmp_path, [Note(text=f"twin {i}.", about="duplicates") for i in range(40)]))
    head = page.split("</header>")[0]
    assert "34 more" in head
    assert all(f"<li>Twin {i}.</li>" in head for i in range(40))
    assert head.index("Twin 5.") < head.index("<details>") < head.index("Twin 6.")


def test_models_are_compared_like_with_like(tmp_path: Path) -> None:
    """Rare classes may weigh more where penalties are chosen: that loss is not set beside the test rows'."""
    for weighted in (False, True):
        scoring = Scoring(task="classes", loss="log-loss", class_weight=weighted)
        text = text_of(
            write(tmp_path / str(weighted), [scoring, *runs.compared(-0.04, validation_loss=0.39), runs.end()])
        )
        assert ("log-loss of validation rows" in text) != weighted
        assert ("rare classes weigh as much as frequent ones" in text) == weighted


@pytest.mark.parametrize(("score", "heads"), [(None, 0), ("accuracy", 1), ("roc_auc", 2)])
def test_a_score_has_a_column_unless_another_shows_it(tmp_path: Path, score: str | None, heads: int) -> None:
    records = [
        Scoring(task="classes", loss="log-loss", score=score),
        *runs.compared(-0.04, score=0.8),
        *runs.scored(0.02),
    ]
    page = page_of(write(tmp_path, [*records, runs.end()]))
    # the score that was asked for comes first
    assert (
        re.findall("<th>([^<]*)</th>", page)[1]
        == {None: "log-loss", "accuracy": "accuracy: kept minus this", "roc_auc": "area under the ROC curve"}[score]
    )
    name = "accuracy" if score == "accuracy" else "area under the ROC curve"
    assert sum(name in head for head in re.findall("<th>([^<]*)</th>", page)) == heads + (score == "accuracy")


def test_effects_are_in_order_and_the_less_important_ones_folded(tmp_path: Path) -> None:
    names = [f"column {i}" for i in range(40)]
    page = page_of(write(tmp_path, runs.win(columns=names)))
    effects = page[page.index('id="effects"') : page.index('id="pairs"')]
    titles = re.findall(r"<figcaption><b>(.*?)</b>", effects)
    by_importance = [r.name for r in runs.win(columns=names) if isinstance(r, Effect)]
    assert titles == by_importance[:20]
    assert effects.index(f"<b>{by_importance[11]}</b>") < effects.index("8 less important columns")
    assert effects.index("8 less important columns") < effects.index(f"<b>{by_importance[12]}</b>")
    listed = re.findall(r'class="label" title="([^"]*)"', effects)
    assert sorted(listed) == sorted([*names, f"{names[0]} × {names[-1]}"])


def test_evidence_is_told_in_words_and_the_odds_with_the_mathematics(tmp_path: Path) -> None:
    against = runs.number("noise", size=0.01).model_copy(update={"log_evidence": -math.log(40), "droppable": True})
    unknown = runs.number("odd").model_copy(update={"log_evidence": None})
    page = page_of(write(tmp_path, [runs.number("age"), unknown, against]))
    effects, mathematics = page[: page.index('id="mathematics"')], page[page.index('id="mathematics"') :]
    assert "to 1" not in effects
    assert "bet" not in re.findall(r"\w+", effects)
    assert 'class="evidence">very clear</span>' in effects
    assert "40 to 1 against" in mathematics
    assert "over 1,000 to 1 for" in mathematics


def zero(name: str, **changes: Any) -> Effect:
    """An effect that can be dropped, whose band does not leave 0."""
    plain = runs.number(name, size=0.01)
    wide = {"lower": [[-1.0]] * len(plain.at), "upper": [[1.0]] * len(plain.at)}
    return plain.model_copy(update={**wide, "droppable": True, "log_evidence": 0.5, **changes})


def test_all_columns_that_can_be_dropped_are_named_once(tmp_path: Path) -> None:
    strong = [runs.number(f"strong {i}") for i in range(5)]
    idle = [zero(f"c{i}") for i in range(8)] + [zero("day (year)"), zero("day (month)")]
    text = text_of(write(tmp_path, [*strong, *idle]))
    names = ", ".join(f"c{i}" for i in range(8))
    assert f"No sign that they matter, so that each can be dropped: {names} and day." in text
    assert "A date is dropped as a whole" in text


def test_what_moves_the_score_is_not_said_to_be_idle(tmp_path: Path) -> None:
    """Among the five most important, with a band that leaves 0."""
    twin = zero("twin", lower=runs.number("x").curve, upper=runs.number("x").curve, importance=0.7)
    strong = [runs.number(f"strong {i}") for i in range(4)]
    page = page_of(write(tmp_path, [*strong, twin, zero("idle"), zero("late", lower=twin.lower)]))
    text = parsed(page).text
    assert "No sign that they matter, so that each can be dropped: idle and late." in text
    assert "could be dropped too, since what is in it other columns say as well: twin." in text
    assert page.count("shares its information with others") == 2  # beside its bar and its picture


def test_levels_without_rows_and_names_that_are_long(tmp_path: Path) -> None:
    names = [f"level {i:02d} " + "long " * 20 for i in range(30)]
    page = page_of(write(tmp_path, [runs.levels("city", names)]))
    (picture,) = drawings(page)[:1]
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", picture)
    shown = [shorten(name.strip(), 21) for name in names]
    assert [name for name in shown if name in texts] == shown[:20]
    assert "(missing)" not in texts
    assert "the 20 most frequent levels" in page


@pytest.mark.parametrize("missing", [0, 9])
def test_only_bins_with_rows_are_drawn(tmp_path: Path, missing: int) -> None:
    effects = [runs.levels("city", ["Rome", "Oslo"]), runs.number("age", missing=missing)]
    points, curve = drawings(page_of(write(tmp_path, effects)))[:2]
    assert set(re.findall(r">(Rome|Oslo|\([a-z ]+\))<", points)) == {"Rome", "Oslo"}
    assert (">missing<" in curve) == (missing > 0)


def test_thresholds_are_counts_of_the_rows(tmp_path: Path) -> None:
    found = runs.discrimination("yes", 0, thresholds=True)
    page = page_of(write(tmp_path, [found]))
    half = next(t for t in found.thresholds if abs(t.at - 0.5) < 0.01)
    there, others = half.true_positive + half.false_negative, half.false_positive + half.true_negative
    row = re.search(r"<tr><td>50.0\u202f%</td>(.*?)</tr>", page)
    assert row is not None
    cells = re.findall("<td>(.*?)</td>", row[1])
    assert cells[0].startswith(f"{half.true_positive} of {there} (")
    assert cells[1].startswith(f"{half.false_positive} of {others} (")
    assert cells[2] == f"{100 * half.true_positive / (half.true_positive + half.false_positive):.1f}\u202f%"
    assert cells[3] == f"{100 * (half.true_positive + half.true_negative) / (there + others):.1f}\u202f%"


@pytest.mark.parametrize(
    ("shift", "time_column", "words"),
    [
        (14.2, "", "Predictions are too low by 14.2 on average on the test rows."),
        (-14.2, "day", "Predictions are too high by 14.2 on average on the test rows (the newest rows)."),
        (3.0, "", ""),
    ],
)
def test_a_systematic_error_is_told(tmp_path: Path, shift: float, time_column: str, words: str) -> None:
    """Of 400 rows with errors of standard deviation 40, three standard errors are 6."""
    error = np.random.default_rng(0).normal(size=400)
    error = shift + 40 * (error - error.mean()) / error.std(ddof=1)
    predicted = np.linspace(50, 250, 400)
    groups = [
        Group(predicted=float(p.mean()), observed=float((p + e).mean()), low=0, high=500, rows=len(p))
        for p, e in zip(np.split(predicted, [150]), np.split(error, [150]), strict=True)
    ]
    drawn = slice(None, None, 4)
    sample = Errors(
        predicted=predicted[drawn].tolist(), observed=(predicted + error)[drawn].tolist(), quantiles={}, explained=None
    )
    config = runs.config_of([])
    config["data"] |= {"time_column": time_column} if time_column else {}
    text = text_of(write(tmp_path, [runs.data(), sample, Calibration(groups=groups)], config=config))
    assert words in text
    assert ("Predictions are too" in text) == bool(words)


def test_parts_of_dates_have_names_and_whole_numbers_whole_ticks(tmp_path: Path) -> None:
    def of(name: str, at: Sequence[int]) -> Effect:
        return runs.number(name, bins=len(at)).model_copy(update={"at": [*map(float, at), "(missing)"]})

    found = [of("day (year)", range(1995, 2004)), of("day (weekday)", range(7)), of("odd (weekday)", range(7))]
    years, week, odd = drawings(page_of(write(tmp_path, found)))[:3]
    assert re.findall(r">(199\d|200\d)<", years)
    assert not re.search(r">(199|200)\d\.\d<", years)
    names = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
    assert re.findall(r">([A-Z][a-z]{2})<", week) == names
    # which is a column of its own
    assert not re.findall(r">([A-Z][a-z]{2})<", odd)


def test_cells_of_rows_are_short(tmp_path: Path) -> None:
    cells = {"day": "1996-11-17T00:00:00", "rate": "127.4759867429546", "a x b": f"{'long ' * 9}end, 127.4759867429546"}
    adds = [Contribution(name=name, cell=cell, adds=1.0) for name, cell in cells.items()]
    row = next(r for r in runs.rows(["no"], ["c"]) if isinstance(r, Row)).model_copy(update={"contributions": adds})
    text = " ".join(text_of(write(tmp_path, [*runs.win(columns=("a", "b")), row])).split())
    assert "day 1996-11-17 " in text
    assert "rate 127.476 " in text
    assert re.search(r" a × b long long.{0,6}….{0,6}end, 127\.476 ", text)


def test_probabilities_under_class_weights_are_no_shares(tmp_path: Path) -> None:
    said = "Probabilities are as if classes were equally frequent (class weights): do not read them as shares."
    assert said in text_of(write(tmp_path / "tie", runs.tie()))
    assert said not in text_of(write(tmp_path / "win", runs.win()))


def test_bars_of_a_row_are_as_long_as_its_contributions(tmp_path: Path) -> None:
    row = next(r for r in runs.rows(["no", "yes"], ["a", "b", "c"]))
    page = page_of(write(tmp_path, [row]))
    bars = re.findall(r'class="fill( up)?" style="left: ([\d.]+)%; width: ([\d.]+)%"', page)
    # contributions 1.3, -0.9, 0.5 and 0.12 of all others; the longest takes half of the track
    expected = [
        (" up", 50, 50),
        ("", 50 - 50 * 0.9 / 1.3, 50 * 0.9 / 1.3),
        (" up", 50, 50 * 0.5 / 1.3),
        (" up", 50, 50 * 0.12 / 1.3),
    ]
    assert [up for up, *_ in bars] == [up for up, *_ in expected]
    np.testing.assert_allclose([[float(x) for x in bar[1:]] for bar in bars], [bar[1:] for bar in expected], atol=0.01)
    assert "intercept −1.20, contributions +1.02: score −0.180" in page


@pytest.mark.parametrize(
    ("gap", "error", "words"),
    [
        (0.03, 0.01, "More than chance explains"),
        (0.01, 0.01, "No overfitting could be measured"),
        (-0.03, 0.01, "Below zero by more than chance explains"),
        (0.03, None, "without a standard error"),
    ],
)
def test_gap_is_read_by_its_interval(tmp_path: Path, gap: float, error: float | None, words: str) -> None:
    records = [Gap(validation_gap=gap, standard_error=error), runs.end()]
    assert words in text_of(write(tmp_path, records))


def test_notes_of_the_run_are_shown(tmp_path: Path) -> None:
    assert "3 rows without a label were left out." in page_of(write(tmp_path, runs.win()))


# ---- files that are absent, torn, or of the first format


@pytest.mark.parametrize("gone", ["config.toml", "coefficients.json"])
def test_any_other_file_may_be_absent(tmp_path: Path, gone: str) -> None:
    run = write(tmp_path, runs.win())
    (run / gone).unlink()
    runs.seal(run)
    assert "</html>" in page_of(run)


@pytest.mark.parametrize("running", [False, True])
def test_a_directory_without_records_is_refused(tmp_path: Path, running: bool) -> None:
    run = write(tmp_path, runs.win())
    (run / "metrics.jsonl").unlink()
    runs.seal(run, running=running)
    with pytest.raises(DataError, match=r"has no metrics\.jsonl: nothing was recorded"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_the_command_refuses_it_with_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path, [])
    (run / "metrics.jsonl").unlink()
    runs.seal(run)
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run)])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (DataError.exit_code, "", 1)
    assert "nothing was recorded" in err


def test_torn_last_line_is_ignored(tmp_path: Path) -> None:
    whole, torn = (runs.seal(write_linear(tmp_path / name), running=True) for name in "ab")
    with (torn / "metrics.jsonl").open("ab") as f:
        f.write(b'{"kind": "end", "code": "DIVERGED", "mess\xff')
    assert write_report(whole).read_bytes() == write_report(torn).read_bytes()


@pytest.mark.parametrize("torn", [b'{"kind": "st', b"12", b"\xff\xfe", b"[" * 100_000])
def test_torn_middle_line_is_refused_by_file_and_line(tmp_path: Path, torn: bytes) -> None:
    run = runs.seal(write_linear(tmp_path), running=True)
    lines = (run / "metrics.jsonl").read_bytes().split(b"\n")
    (run / "metrics.jsonl").write_bytes(b"\n".join([*lines[:4], torn, *lines[4:]]))
    with pytest.raises(CorruptError, match=r"metrics\.jsonl:5 "):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("name", ["config.toml", "coefficients.json"])
def test_damaged_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    run = write_linear(tmp_path)
    (run / name).write_bytes(b'{"a": = \xff')
    for again in (False, True):  # damaged, and written so
        with pytest.raises(CorruptError, match=re.escape(name)):
            write_report(runs.seal(run) if again else run)


def test_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a run directory"):
        write_report(tmp_path)


def test_values_of_the_wrong_kind_are_refused_by_line(tmp_path: Path) -> None:
    for record in (runs.end(), runs.number("age"), runs.data(["a"]), *runs.steps(1), *runs.compared(0.1)[:1]):
        for name in type(record).model_fields:
            if name != "kind":
                content = json.dumps({**record.model_dump(mode="json"), name: {"odd": [{}]}})
                run = write(tmp_path, [])
                (run / "metrics.jsonl").write_text(f"\n{content}\n")
                with pytest.raises(CorruptError, match=r"metrics\.jsonl:2 is not a record"):
                    write_report(runs.seal(run))


@pytest.mark.parametrize("field", ["weight", "penalty", "column"])
def test_a_model_with_values_of_the_wrong_kind_is_refused_by_name(tmp_path: Path, field: str) -> None:
    run = write_linear(
        tmp_path, extra=[{"column": "a", "kind": "number", "weight": [1.0], "penalty": 1.0} | {field: {}}]
    )
    with pytest.raises(CorruptError, match=rf"coefficients\.json is not a model: terms\.3\.{field}"):
        write_report(run)


@pytest.mark.slow
def test_numbers_at_the_ends_of_floats_do_not_break_the_page(tmp_path: Path) -> None:
    def extreme(value: Any, x: float) -> Any:
        if isinstance(value, float):
            return x
        if isinstance(value, list | tuple):
            return [extreme(v, x) for v in value]
        return {k: extreme(v, x) for k, v in value.items()} if isinstance(value, dict) else value

    every = [*runs.win(), *runs.many(), *runs.regression(), *runs.linear()]
    for x in (1e308, -1e308, 0.0, 5e-324):
        records = [type(r).model_validate(extreme(r.model_dump(mode="python"), x)) for r in every]
        extra = [{"column": "tiny", "kind": "number", "weight": [abs(x)], "penalty": abs(x)}]
        assert "</html>" in page_of(write_linear(tmp_path / str(x), records=records, extra=extra))


def test_a_run_of_format_1_still_gives_its_report(tmp_path: Path) -> None:
    shutil.copytree(ASSET, tmp_path / "run")
    page = page_of(tmp_path / "run")
    assert sentence(page) == (
        # penalties were tuned one a feature, and all are equal
        f"A linear model was kept: one penalty for all columns. On 12 test rows it cannot be told from “{GRID}”: "
        "their log-loss differs by 0.075 (95\u202f% interval −0.051 to 0.201)."
    )
    for section in ("weights", "comparison", "course", "gap", "data", "method", "use", "settings"):
        assert f'<section id="{section}"' in page
    text = parsed(page).text
    # the figures of its metrics.jsonl
    for figure in ("0.81 ± 0.30", "0.736 ± 0.202", "−0.166 (−0.392 to 0.061)", "3 features became 5 columns"):
        assert figure.split(" ± ")[0] in text, figure
    assert text.count("neg_log_loss") == 1  # a setting, and no column of its own


def test_format_1_with_a_score_of_its_own(tmp_path: Path) -> None:
    shutil.copytree(ASSET, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(
        re.sub(r'"score": [-.\d]+, "score_name": "neg_log_loss"', '"score": 0.5, "score_name": "f1"', path.read_text())
    )
    page = page_of(runs.seal(tmp_path / "run"))
    assert "<th>F1 score</th>" in page
    assert page.count("<td>0.5000</td>") == 3


# ---- sizes and sameness


@pytest.mark.parametrize("kind", ["win", "many", "regression"])
def test_two_writes_are_equal_to_the_byte(tmp_path: Path, kind: str) -> None:
    run = write(tmp_path, runs.RUNS[kind]())
    first = write_report(run).read_bytes()
    assert write_report(run) == run / "report.html"
    assert (run / "report.html").read_bytes() == first


def test_a_page_of_another_process_is_equal_to_the_byte(tmp_path: Path) -> None:
    first = write_report(write(tmp_path / "a", runs.win())).read_bytes()
    write(tmp_path / "b", runs.win())
    code = (
        "import sys; from pathlib import Path; from bilevax.report import write_report; write_report(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "b"], check=True)
    assert (tmp_path / "b" / "report.html").read_bytes() == first


def test_784_features_and_ten_classes(tmp_path: Path) -> None:
    names, labels = [f"pixel{i}" for i in range(1, 785)], [f"class {i}" for i in range(10)]
    page = page_of(write_linear(tmp_path, names, labels))
    assert "The 30 most trusted features" in page
    assert "28 rows by 28 columns" in page
    assert page.count("<tr><td>pixel") == 784
    assert "<figcaption><b>All penalties</b>" in page
    assert len(page) < 1_000_000


def test_three_features(tmp_path: Path) -> None:
    page = page_of(write_linear(tmp_path))
    assert "Every feature, smallest penalty first" in page
    assert "Bars to the right speak for “yes”" in page
    assert "All penalties as a table" in page
    assert "<figcaption><b>All penalties</b>" not in page


def test_long_tables_are_capped_and_say_so(tmp_path: Path) -> None:
    page = page_of(write_linear(tmp_path, [f"word {i}" for i in range(2500)], records=[runs.end()]))
    assert "the 2,000 smallest of 2,500" in page
    assert page.count("<tr><td>word") == 2000


def test_one_shared_penalty_shows_the_largest_weights(tmp_path: Path) -> None:
    run = write_linear(tmp_path, [f"c{i}" for i in range(40)])
    model = json.loads((run / "coefficients.json").read_text())
    for term in model["terms"]:
        term["penalty"] = 0.25
    (run / "coefficients.json").write_text(json.dumps(model))
    page = page_of(runs.seal(run))
    assert "All features share the penalty 0.250." in page
    assert "The 30 largest weights" in page
    largest = sorted(model["terms"], key=lambda t: -abs(t["weight"][0]))[:30]
    picture = next(p for p in drawings(page) if f">{largest[0]['column']}<" in p)
    assert re.findall(r">(c\d+)<", picture) == [term["column"] for term in largest]


def test_penalties_per_class_are_shown_as_ranges(tmp_path: Path) -> None:
    run = write_linear(tmp_path, labels=["a", "b", "c"])
    model = json.loads((run / "coefficients.json").read_text())
    for i, term in enumerate(model["terms"]):
        term["penalty"] = [0.01, 0.1, 1.0 + i]
    (run / "coefficients.json").write_text(json.dumps(model))
    assert "<td>0.0100 to 3.00</td>" in page_of(runs.seal(run))


def test_long_names_are_short_in_pictures_and_whole_in_the_table(tmp_path: Path) -> None:
    long = "a very long name " * 12 + "end"
    page = page_of(write_linear(tmp_path, [long, "b", "c"], records=[runs.end()]))
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", "".join(drawings(page)))
    assert shorten(long, 21) in texts
    assert long not in texts
    assert f"<td>{long}</td>" in page


@pytest.mark.parametrize(("at", "scores"), [([1.0, 2.0, 3.0], 1), (["a", "b", "c"], 1), (["a", "b", "c"], 4)])
def test_a_column_that_adds_nothing_has_its_picture_about_zero(at: list[float | str], scores: int) -> None:
    flat = [[0.0] * scores] * 3
    effect = Effect(
        name="x", importance=0.0, freedom=0.0, log_evidence=None, droppable=True, at=at, curve=flat, weight=[5.0] * 3
    )
    # what matplotlib warns of is an error
    (drawing,) = drawings(effect_pictures.picture(effect, "abcd", "y", range(scores)))
    ticks = [float(tick.replace("−", "-")) for tick in re.findall(r"<!-- (−?\d\.\d) -->", drawing)]
    assert min(ticks) == -max(ticks) < 0


def test_names_in_other_scripts_reach_the_pictures(tmp_path: Path) -> None:
    names = ["年齢", "возраст", "العمر"]
    page = page_of(write(tmp_path, [runs.levels("city", names)]))
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", "".join(drawings(page)))
    assert set(names) <= set(texts)


# ---- parts


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain", "plain"),
        ("a\tb\nc\x00d", "a b cd"),
        ("\x1b]0;title\x07age", "age"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\u200bb\u00adc", "abc"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
        (3.5, "3.5"),
    ],
)
def test_clean(raw: object, shown: str) -> None:
    assert clean(raw) == shown


def test_clean_bounds_the_length() -> None:
    assert len(clean("x" * 10_000)) == 500


@pytest.mark.parametrize("width", [4, 9, 20])
def test_shorten_keeps_to_the_width(width: int) -> None:
    assert len(shorten("abcdefghijklmnopqrstuvwxyz", width)) <= width
    assert 2 * len(shorten("日" * 40, width)) <= width + 1  # an ideograph takes two columns, the ellipsis one
    assert shorten("abcd", width) == "abcd"


@pytest.mark.parametrize(
    ("x", "shown"), [(9.999e-6, "1.00·10⁻⁵"), (99999.0, "1.00·10⁵"), (5e-324, "4.94·10⁻³²⁴"), (-2.0, "−2.00")]
)
def test_significant_at_the_edges(x: float, shown: str) -> None:
    assert significant(x) == shown


def test_pixels_are_laid_out_by_their_names() -> None:
    by_two = pixels([f"p_{i}_{j}" for i in range(5) for j in range(4)], range(20))
    np.testing.assert_array_equal(by_two, np.arange(20.0).reshape(5, 4))
    from_one = pixels([f"pixel{i + 1}" for i in range(25)], range(25))
    np.testing.assert_array_equal(from_one, np.arange(25.0).reshape(5, 5))
    with_holes = pixels([f"pixel{i}" for i in range(25) if i != 7], [i for i in range(25) if i != 7])
    assert with_holes is not None
    assert np.isnan(with_holes[1, 2])
    assert with_holes[4, 4] == 24
    assert pixels([f"feature {i}" for i in range(25)], range(25)) is None
    assert pixels(["a_1_1", "b_1_2"], range(2)) is None


def shown_code(page: str, name: str) -> dict[str, Any]:
    """What the Python of a page defines."""
    scope: dict[str, Any] = {}
    exec(next(text for text in parsed(page).texts if f"def {name}" in text), scope)
    return scope


@pytest.mark.parametrize("labels", [["no", "yes"], ["a", "b", "c"]])
def test_standalone_code_of_the_page_is_the_formula(tmp_path: Path, labels: list[str]) -> None:
    width = 1 if len(labels) == 2 else 3
    extra = [
        {"column": "city", "kind": "category", "value": "Paris", "weight": [0.7] * width, "penalty": 1.0},
        {"column": "city", "kind": "missing", "weight": [-0.4, 0.1, 0.2][:width], "penalty": 1.0},
    ]
    run = write_linear(tmp_path, ["age"], labels, extra=extra, records=[runs.end()])
    scope = shown_code(page_of(run), "probabilities")
    model = json.loads((run / "coefficients.json").read_text())
    weight = np.array(model["terms"][0]["weight"])
    for row, x, last in (
        ({"age": 3.0, "city": "Paris"}, 3.0, np.full(width, 0.7)),
        ({"age": None, "city": None}, 0.5, np.array([-0.4, 0.1, 0.2][:width])),
        ({"age": "2.5", "city": "Rome"}, 2.5, np.zeros(width)),
    ):
        scores = 0.1 + weight * (x - 1.0) / 2.0 + last
        scores = np.array([0.0, scores[0]]) if width == 1 else scores
        expected = np.exp(scores) / np.exp(scores).sum()
        found = scope["probabilities"](model, row)
        assert list(found) == labels
        np.testing.assert_allclose(list(found.values()), expected, rtol=1e-12)
        assert probabilities(model, row) == found


def test_import_is_light() -> None:
    code = (
        "import sys, bilevax.report; print([m for m in ('matplotlib', 'jinja2', 'jax', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_users_own_settings_change_nothing_and_stay(tmp_path: Path) -> None:
    import matplotlib

    run = write(tmp_path, runs.win())
    first = write_report(run).read_bytes()
    with matplotlib.rc_context({"font.size": 31.0, "axes.grid": True, "lines.linewidth": 9.0}):
        assert write_report(run).read_bytes() == first
        assert matplotlib.rcParams["font.size"] == 31.0
        assert matplotlib.rcParams["svg.hashsalt"] != "bilevax"
