"""The report: what it says is what the records say, and no record can become part of the page's structure."""

import base64
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bilevax.core import manifest
from bilevax.core.errors import CorruptError, DataError
from bilevax.core.run_files import FILES, FORMAT, KIND, REPORT
from bilevax.core.text import clean, shorten, significant
from bilevax.report import write_report
from bilevax.report.penalties import pixels
from bilevax.report.standalone import probabilities

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "' onmouseover='alert(1)",
    "</style></title></svg><iframe src=http://evil.example>",
    "$\\frac{1}{$ & &lt; ]]> <!-- {{ 7*7 }} {% raw %}",
    "\x1b[31mred\x1b[0m \x00\x07\x9b2J \u202egnp.exe \ud800 \ufffe",
]
RIVAL = "single penalty, grid of 20"
OWN = "one penalty per feature (bilevax)"


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


def outline(path: Path) -> Outline:
    """Of the page and, after it, of all its pictures."""
    page = path.read_text(encoding="utf-8")
    return parsed("".join([page, *drawings(page)]))


def toml(tables: dict[str, dict[str, Any]]) -> str:
    """TOML, which unlike JSON has no word for a lone surrogate."""
    text = "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    )
    return text.replace("\\ud800", "")


def steps(n: int, *, validation: bool = True) -> list[dict[str, Any]]:
    return [
        {
            "kind": "step",
            "step": i,
            "seconds": 2.0 + 0.05 * i,
            "visits": 1000 * (i + 1),
            "tuning_loss": 0.4 + 0.3 * math.exp(-i / 5),
            "validation_loss": 0.42 + 0.3 * math.exp(-i / 5) if validation else None,
            "gradient_norm": math.exp(-i / 8),
            "code": "OK",
        }
        for i in range(n)
    ]


def compared(difference: float, names: tuple[str, str] = (OWN, RIVAL)) -> list[dict[str, Any]]:
    models = [
        {
            "kind": "comparison",
            "name": name,
            "test_log_loss": loss,
            "test_log_loss_se": 0.01,
            "test_accuracy": 0.85,
            "validation_log_loss": 0.39,
            "seconds": 3.0,
        }
        for name, loss in zip(names, (0.45 + difference, 0.45), strict=True)
    ]
    low, high = difference - 0.008, difference + 0.008
    return [
        *models,
        {"kind": "paired", "name": names[1], "difference": difference, "low": low, "high": high},
        {"kind": "gap", "validation_gap": 0.01, "standard_error": 0.002},
    ]


def end(**changes: Any) -> dict[str, Any]:
    record = {"kind": "end", "code": "OK", "message": "No failure was seen.", "interrupted": False}
    return {**record, "seconds": 4.0, "visits": 40000, "steps": 40, **changes}


def terms(names: list[str], classes: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = 1 if classes == 2 else classes
    out = []
    for name in names:
        numbers = {"mean": 1.0, "scale": 2.0, "fill": 0.5}
        weight = rng.normal(size=rows).round(6).tolist()
        out.append(
            {"column": name, "kind": "number", "weight": weight, "penalty": float(np.exp(rng.normal())), **numbers}
        )
    return out


def make_run(
    directory: Path,
    *,
    names: list[str] | None = None,
    labels: list[str] | None = None,
    records: list[dict[str, Any]] | None = None,
    table: str = "table.csv",
    extra: list[dict[str, Any]] | None = None,
    model: bool = True,
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    names, labels = names or ["age", "height", "weight"], labels or ["no", "yes"]
    data = {
        "kind": "data",
        "rows": {"train": 600, "validation": 200, "test": 200},
        "features": len(names),
        "design_columns": len(names),
        "classes": {label: 100 + i for i, label in enumerate(labels)},
        "missing_cells": 7,
    }
    if records is None:
        records = [data, *steps(40), *compared(-0.012), end()]
    config = {
        "data": {"table": table, "target": labels[0], "classes": labels},
        "tune": {"penalty_per": "feature", "seed": 0},
        "method": {"name": "stochastic", "reason": f"because {table}"},
        "versions": {"bilevax": "0.1.0"},
    }
    (directory / "config.toml").write_text(toml(config), encoding="utf-8")
    (directory / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if model:
        coefficients = {
            "format": "bilevax-linear-1",
            "target": labels[0],
            "classes": labels,
            "intercept": [0.1] * (1 if len(labels) == 2 else len(labels)),
            "terms": terms(names, len(labels)) + (extra or []),
        }
        (directory / "coefficients.json").write_text(json.dumps(coefficients))
    return seal(directory)


def seal(directory: Path, *, running: bool = False) -> Path:
    """With a manifest: of a finished run, or of one that goes on, none of whose files is listed."""
    there = [name for name in FILES if name != REPORT and (directory / name).exists()]
    listed = {name: manifest.fingerprint((directory / name).read_bytes()) for name in there}
    if running:
        manifest.write(directory, KIND, FORMAT, {}, {"state": "running", "config": {}})
    else:
        manifest.write(directory, KIND, FORMAT, listed, {"state": "finished", "interrupted": False})
    return directory


def sentence(path: Path) -> str:
    found = re.search(r'<p class="sentence">(.*?)</p>', path.read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


# ---- hostile strings: faults F6 and F8 (docs/faults.md)


def hostile_and_benign(directory: Path) -> tuple[Path, Path]:
    """Two runs that differ in their strings only."""
    pages = []
    for name, strings in (("hostile", HOSTILE), ("benign", [f"plain {c}" for c in "abcdefg"])):
        models = [(s, f"{s} grid") for s in strings]
        records = [r for own, rival in models for r in compared(-0.012, (own, rival))]
        records += [{**r, "score": 0.5, "score_name": strings[1]} for r in records if r["kind"] == "comparison"]
        data = {"kind": "data", "rows": {"train": 9, "validation": 9, "test": 9}, "features": 7, "design_columns": 7}
        data |= {"classes": dict.fromkeys(strings, 3), "missing_cells": 0}
        odd = [{**step, "code": strings[0]} for step in steps(20)]
        closing = end(code=strings[3], message=strings[1], interrupted=True)
        categories = [
            {"column": s, "kind": kind, "value": s, "weight": [0.1] * 7, "penalty": 3.0 + i}
            for i, s in enumerate(strings)
            for kind in ("category", "missing")
        ]
        run = make_run(
            directory / name,
            names=strings,
            labels=strings,
            records=[data, *odd, *records, closing],
            table=strings[0],
            extra=categories,
        )
        with (run / "config.toml").open("a", encoding="utf-8") as f:
            f.write(toml({json.dumps(strings[1]): {json.dumps(s): s for s in strings}}))
        seal(run)
        pages.append(write_report(run))
    return pages[0], pages[1]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return hostile_and_benign(tmp_path_factory.mktemp("pages"))


def test_hostile_strings_add_no_element_and_no_attribute(pages: tuple[Path, Path]) -> None:
    hostile, benign = map(outline, pages)
    assert hostile.elements == benign.elements
    assert len(hostile.elements) > 500
    assert {tag for tag, _ in hostile.elements}.isdisjoint({"script", "iframe", "object", "link", "base", "form"})
    images = sum(tag == "img" for tag, _ in hostile.elements)
    assert images == len(drawings(pages[0].read_text(encoding="utf-8"))) > 5
    assert not any(name.startswith("on") for _, attributes in hostile.elements for name in attributes)
    targets = [value for _, name, value in hostile.values if name in ("href", "xlink:href", "src")]
    assert targets
    assert all(value.startswith(("#", "data:image/png", "data:image/svg+xml;base64,")) for value in targets)


def test_hostile_strings_are_shown_as_what_they_are(pages: tuple[Path, Path]) -> None:
    text = outline(pages[0]).text
    for s in HOSTILE[:5]:
        assert s in text
    assert "{{ 7*7 }}" in text  # not rendered as a template


def test_terminal_escapes_and_control_characters_are_stripped(pages: tuple[Path, Path]) -> None:
    page = pages[0].read_text(encoding="utf-8")
    for text in (page, *drawings(page)):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe]", text)
        assert "[31m" not in text
    assert "red gnp.exe" in page


@pytest.mark.parametrize("which", [0, 1])
def test_page_is_self_contained(pages: tuple[Path, Path], which: int) -> None:
    page = pages[which].read_text(encoding="utf-8")
    policy = [value for tag, name, value in parsed(page).values if tag == "meta" and name == "content"]
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in policy
    head = page[: page.index("<style>")]
    assert 'http-equiv="Content-Security-Policy"' in head  # before any style
    assert page.count("Content-Security-Policy") == page.count("<style") == 1
    assert "http" not in page.replace("http-equiv", "").replace("http://evil.example", "")
    for text in (page, *drawings(page)):
        assert not re.search(r"@import|url\((?!#)", text)


def test_ids_are_unique_and_every_reference_is_met(pages: tuple[Path, Path]) -> None:
    page = pages[0].read_text(encoding="utf-8")
    for text in (page, *drawings(page)):
        values = parsed(text).values
        ids = [value for _, name, value in values if name == "id"]
        assert len(ids) == len(set(ids))
        links = {value[1:] for _, name, value in values if name in ("href", "xlink:href") and value[0] == "#"}
        assert links | set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)


def test_pictures_are_light_and_dark_in_the_colours_of_the_page(pages: tuple[Path, Path]) -> None:
    page = pages[0].read_text(encoding="utf-8")
    root = page.split("body {")[0].split("prefers-color-scheme: dark")
    light, dark = (dict(re.findall(r"--(\w+): (#\w+);", part)) for part in root)
    for picture in drawings(page):
        drawn, swaps = picture.split("</style>", 1)[1], picture.split("prefers-color-scheme: dark", 1)[1]
        for name in ("ink", "muted", "grid", "card", "accent", "second"):
            for what in ("fill", "stroke"):
                assert f'[style*="{what}: {light[name]}"] {{ {what}: {dark[name]} !important }}' in swaps
        used = set(re.findall(r"(?:fill|stroke): (#\w+)", drawn)) & {*light.values()}
        assert used <= {light[name] for name in ("ink", "muted", "grid", "card", "accent", "second")}
        assert light["muted"] in drawn


# ---- what the page says


@pytest.mark.parametrize(
    ("difference", "tone", "words"),
    [
        (-0.012, "better", "lowered the test log-loss by 0.0120 (95\u202f% interval 0.0040 to 0.0200) against"),
        (0.001, "same", "made no measurable difference to the test log-loss against"),
        (-0.001, "same", "changed by −0.0010 (95\u202f% interval −0.0090 to 0.0070)"),
        (0.012, "worse", "raised the test log-loss by 0.0120 (95\u202f% interval 0.0040 to 0.0200) against"),
    ],
)
def test_verdict_is_that_of_the_paired_interval(tmp_path: Path, difference: float, tone: str, words: str) -> None:
    path = write_report(make_run(tmp_path, records=[*compared(difference), end()], model=False))
    assert words in sentence(path)
    assert f"“{RIVAL}”" in sentence(path)
    assert sentence(path).startswith("Tuning one penalty per feature ")
    assert f'class="verdict {tone}"' in path.read_text(encoding="utf-8")


def test_verdict_prefers_the_grid_searched_penalty(tmp_path: Path) -> None:
    others = compared(0.02, (OWN, "no tuning (C = 1)"))
    path = write_report(make_run(tmp_path, records=[*others, *compared(-0.012), end()], model=False))
    assert f"lowered the test log-loss by 0.0120 (95\u202f% interval 0.0040 to 0.0200) against “{RIVAL}”" in sentence(
        path
    )
    assert "against no tuning (C = 1)" in outline(path).text


def test_tiles_and_sections(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path)).read_text(encoding="utf-8")
    for label, value in (("rows", "1,000"), ("features", "3"), ("penalties tuned", "3"), ("sample visits", "40,000")):
        assert f'<dt>{label}</dt><dd class="value">{value}</dd>' in page
    for section in ("comparison", "penalties", "course", "gap", "data", "method", "use", "settings"):
        assert f'<section id="{section}">' in page
        assert f'href="#{section}"' in page
    assert "because table.csv" in page
    assert "Empty: 7 cells." in page


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
    records = [{"kind": "gap", "validation_gap": gap, "standard_error": error}, end()]
    assert words in outline(write_report(make_run(tmp_path, records=records, model=False))).text


def test_interrupted_run_without_comparison_has_a_page(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path, records=[*steps(5, validation=False), end(interrupted=True, steps=5)]))
    page = path.read_text(encoding="utf-8")
    assert "cannot say whether tuning helped" in sentence(path)
    assert "The run was interrupted after 5 steps" in page
    assert '<section id="comparison">' not in page
    assert '<section id="course">' in page
    assert "validation loss" not in page.lower()


def test_run_without_its_end_says_so(tmp_path: Path) -> None:
    assert "has not written its end" in write_report(make_run(tmp_path, records=steps(1), model=False)).read_text(
        encoding="utf-8"
    )


def test_failed_run_shows_its_code(tmp_path: Path) -> None:
    records = [*steps(3), end(code="DIVERGED", message="The iterates grew.")]
    page = write_report(make_run(tmp_path, records=records, model=False)).read_text(encoding="utf-8")
    assert "The run ended with the code DIVERGED. The iterates grew." in page


def test_notes_of_the_run_are_shown(tmp_path: Path) -> None:
    records = [{"kind": "note", "text": "3 rows without a label were left out."}, *steps(3), end()]
    page = write_report(make_run(tmp_path, records=records, model=False)).read_text(encoding="utf-8")
    assert "3 rows without a label were left out." in page


@pytest.mark.parametrize(("scoring", "shown"), [("neg_log_loss", 0), ("accuracy", 2), ("roc_auc", 1)])
def test_a_score_has_a_column_unless_another_shows_it(tmp_path: Path, scoring: str, shown: int) -> None:
    models = [r | {"score": 0.5, "score_name": scoring} if r["kind"] == "comparison" else r for r in compared(-0.012)]
    page = write_report(make_run(tmp_path, records=[*models, end()])).read_text(encoding="utf-8")
    assert page.count(f">test {scoring}<") == shown


@pytest.mark.parametrize("kept", ["config.toml", "metrics.jsonl", "coefficients.json"])
def test_any_one_file_is_enough(tmp_path: Path, kept: str) -> None:
    run = make_run(tmp_path)
    for path in list(run.iterdir()):
        if path.name != kept:
            path.unlink()
    seal(run)
    assert "</html>" in write_report(run).read_text(encoding="utf-8")


# ---- torn files


def test_torn_last_line_is_ignored(tmp_path: Path) -> None:
    whole, torn = (seal(make_run(tmp_path / name, model=False), running=True) for name in "ab")
    with (torn / "metrics.jsonl").open("ab") as f:
        f.write(b'{"kind": "end", "code": "DIVERGED", "mess\xff')
    assert write_report(whole).read_bytes() == write_report(torn).read_bytes()


@pytest.mark.parametrize("torn", [b'{"kind": "st', b"12", b"\xff\xfe", b"[" * 100_000])
def test_torn_middle_line_is_refused_by_file_and_line(tmp_path: Path, torn: bytes) -> None:
    run = seal(make_run(tmp_path), running=True)
    lines = (run / "metrics.jsonl").read_bytes().split(b"\n")
    (run / "metrics.jsonl").write_bytes(b"\n".join([*lines[:4], torn, *lines[4:]]))
    with pytest.raises(CorruptError, match=r"metrics\.jsonl:5 "):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("name", ["config.toml", "coefficients.json"])
def test_damaged_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path)
    (run / name).write_bytes(b'{"a": = \xff')
    for again in (False, True):  # damaged, and written so
        with pytest.raises(CorruptError, match=re.escape(name)):
            write_report(seal(run) if again else run)


def test_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a run directory"):
        write_report(tmp_path)


def test_values_of_the_wrong_kind_do_not_break_the_page(tmp_path: Path) -> None:
    odd = ["text", None, True, [1], {"a": 1}, 1e308, -1e308, float("nan"), 10**400]
    records = [
        {"kind": kind, **dict.fromkeys(list(record)[1:], value)}
        for value in odd
        for record in ([*steps(1), *compared(0.1), end()])
        for kind in [record["kind"]]
    ]
    records += [{"kind": "data", "rows": value, "classes": value, "features": value} for value in odd]
    extra = [{"column": v, "kind": v, "weight": v, "penalty": v} for v in odd]
    extra += [{"column": "tiny", "kind": "number", "weight": [1e-320], "penalty": 5e-324}]
    extra += [{"column": "none", "kind": "number", "weight": [0.1], "penalty": [0.0, 1.0]}]
    assert "</html>" in write_report(make_run(tmp_path, records=records, extra=extra)).read_text(encoding="utf-8")


# ---- sizes and sameness


def test_two_writes_are_equal_to_the_byte(tmp_path: Path) -> None:
    run = make_run(tmp_path, names=[f"pixel_{i}_{j}" for i in range(8) for j in range(8)])
    first = write_report(run).read_bytes()
    assert write_report(run) == run / "report.html"
    assert (run / "report.html").read_bytes() == first


def test_784_features_and_ten_classes(tmp_path: Path) -> None:
    names, labels = [f"pixel{i}" for i in range(1, 785)], [f"class {i}" for i in range(10)]
    path = write_report(make_run(tmp_path, names=names, labels=labels))
    page = path.read_text(encoding="utf-8")
    assert "The 30 most trusted features" in page
    assert "28 rows by 28 columns" in page
    assert page.count("<tr><td>pixel") == 784
    assert "<figcaption>All penalties</figcaption>" in page
    assert len(page) < 1_000_000


def test_three_features(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path)).read_text(encoding="utf-8")
    assert "Every feature" in page
    assert "Bars to the right speak for “yes”" in page
    assert "All penalties as a table" in page
    assert "<figcaption>All penalties</figcaption>" not in page


def test_long_tables_are_capped_and_say_so(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path, names=[f"word {i}" for i in range(2500)], records=[end()])).read_text(
        encoding="utf-8"
    )
    assert "the 2,000 smallest of 2,500" in page
    assert page.count("<tr><td>word") == 2000


def test_one_shared_penalty_needs_no_picture(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    model = json.loads((run / "coefficients.json").read_text())
    for term in model["terms"]:
        term["penalty"] = 0.25
    (run / "coefficients.json").write_text(json.dumps(model))
    page = write_report(seal(run)).read_text(encoding="utf-8")
    assert "All features share the penalty 0.250." in page
    assert "Every feature" not in page


def test_penalties_per_class_are_shown_as_ranges(tmp_path: Path) -> None:
    run = make_run(tmp_path, labels=["a", "b", "c"])
    model = json.loads((run / "coefficients.json").read_text())
    for i, term in enumerate(model["terms"]):
        term["penalty"] = [0.01, 0.1, 1.0 + i]
    (run / "coefficients.json").write_text(json.dumps(model))
    page = write_report(seal(run)).read_text(encoding="utf-8")
    assert "<td>0.0100 to 3.00</td>" in page
    assert '<dt>penalties tuned</dt><dd class="value">9</dd>' in page


def test_long_names_are_short_in_pictures_and_whole_in_the_table(tmp_path: Path) -> None:
    long = "a very long name " * 12 + "end"
    page = write_report(make_run(tmp_path, names=[long, "b", "c"], records=[end()])).read_text(encoding="utf-8")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", "".join(drawings(page)))
    assert shorten(long, 21) in texts
    assert long not in texts
    assert f"<td>{long}</td>" in page


def test_names_in_other_scripts_reach_the_pictures(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path, names=["年齢", "возраст", "العمر"], records=[end()])).read_text(
        encoding="utf-8"
    )
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", "".join(drawings(page)))
    assert {"年齢", "возраст", "العمر"} <= set(texts)


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


@pytest.mark.parametrize("labels", [["no", "yes"], ["a", "b", "c"]])
def test_standalone_code_of_the_page_is_the_formula(tmp_path: Path, labels: list[str]) -> None:
    width = 1 if len(labels) == 2 else 3
    extra = [
        {"column": "city", "kind": "category", "value": "Paris", "weight": [0.7] * width, "penalty": 1.0},
        {"column": "city", "kind": "missing", "weight": [-0.4, 0.1, 0.2][:width], "penalty": 1.0},
    ]
    run = make_run(tmp_path, labels=labels, names=["age"], extra=extra, records=[end()])
    shown = outline(write_report(run)).texts
    code = next(text for text in shown if "def probabilities" in text)
    scope: dict[str, Any] = {}
    exec(code, scope)
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
    code = "import sys, bilevax.report; print([m for m in ('matplotlib', 'jinja2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_users_own_settings_change_nothing_and_stay(tmp_path: Path) -> None:
    import matplotlib

    run = make_run(tmp_path)
    first = write_report(run).read_bytes()
    with matplotlib.rc_context({"font.size": 31.0, "axes.grid": True, "lines.linewidth": 9.0}):
        assert write_report(run).read_bytes() == first
        assert matplotlib.rcParams["font.size"] == 31.0
        assert matplotlib.rcParams["svg.hashsalt"] != "bilevax"
