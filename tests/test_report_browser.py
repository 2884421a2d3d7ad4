"""The pages in a browser: every fold and order clicked, and nothing happens but that folds open and rows move."""

import json
from collections.abc import Iterator
from pathlib import Path

import cleaning_runs
import pytest
import report_runs as runs
from browser import CHROMIUM, Browser
from test_report import HOSTILE

from bilevax.core.run_records import Note, Record
from bilevax.report import write_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]

LOOK = """(() => {
  const folds = [...document.querySelectorAll('details')];
  const closed = folds.find(fold => !fold.open && fold.checkVisibility());
  if (!closed) return null;
  const summary = closed.querySelector('summary');
  summary.scrollIntoView({block: 'center'});
  const box = summary.getBoundingClientRect();
  return [box.x + 5, box.y + box.height / 2];
})()"""
"""Where the next closed fold is, scrolled into view."""


def hostile() -> list[Record]:
    names = [*HOSTILE, "العمر بالسنوات", "a very long name " * 5, "\U0001f469\u200d\U0001f52c emoji"]
    records = runs.win((HOSTILE[0], HOSTILE[1]), names, level_names=[f"{s} {i}" for i in range(5) for s in HOSTILE])
    notes = [Note(text=s, about="leak") for s in HOSTILE * 2]
    return [*records, *notes, *runs.rows(HOSTILE, names, HOSTILE), *runs.steps(9)]


RUNS = {**runs.RUNS, "hostile": hostile, "forty": lambda: runs.win(columns=[f"column {i}" for i in range(40)])}


@pytest.fixture(scope="module", params=[(1280, False), (390, True)], ids=["desktop", "phone, dark"])
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    width, dark = request.param
    with Browser(tmp_path_factory.mktemp("profile"), dark=dark, width=width) as found:
        yield found


@pytest.mark.parametrize("kind", RUNS)
def test_page_is_opened_and_clicked(browser: Browser, tmp_path: Path, kind: str) -> None:
    records = RUNS[kind]()
    config = runs.config_of(records, HOSTILE[0] if kind == "hostile" else "table.csv")
    page = write_report(runs.write(tmp_path, records, config=config))
    browser.events.clear()
    browser.open(page)
    clicks = 0
    while place := browser.run(LOOK):
        browser.click(*place)
        clicks += 1
        assert clicks < 200
    assert clicks > 15
    assert browser.run("[...document.querySelectorAll('details')].every(fold => fold.open)")
    # every picture is one, and none is wider than its place
    pictures = browser.run(
        "[...document.images].map(i => [i.complete, i.naturalWidth, i.getBoundingClientRect().width])"
    )
    assert len(pictures) >= 6
    assert all(complete and natural > 0 and width > 200 for complete, natural, width in pictures)
    check_harmless(browser, page)


def check_harmless(browser: Browser, page: Path) -> None:
    """Nothing sticks out, nothing is asked for but the page and what is within it, and nothing is said."""
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert (
        browser.run("document.querySelectorAll('script, iframe, object, embed, [onerror], [onmouseover]').length") == 0
    )
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    within = ("data:image/svg+xml;base64,", "data:image/png;base64,")
    assert [url for url in asked if not url.startswith(within)] == [page.as_uri()]
    bad = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening")
    assert [json.dumps(e) for e in browser.events if e["method"] in bad] == []


SEEN = """(() => {
  const top = row => row.getBoundingClientRect().top, left = row => row.getBoundingClientRect().left;
  const rows = [...document.querySelectorAll('.in-order')];
  return rows.map((row, k) => [k, top(row), left(row)]).sort((a, b) => a[1] - b[1] || a[2] - b[2]).map(of => of[0]);
})()"""
"""The rows, counted as they stand in the page, in the order in which they are seen."""


def hostile_labels() -> list[Record]:
    found = cleaning_runs.records(HOSTILE, HOSTILE)
    return [*found, *cleaning_runs.verified(), *(Note(text=s, about="leak") for s in HOSTILE)]


CLEANINGS = {**cleaning_runs.RUNS, "hostile": hostile_labels}


@pytest.mark.parametrize("kind", CLEANINGS)
def test_suspicious_rows_are_put_in_every_order(browser: Browser, tmp_path: Path, kind: str) -> None:
    name = HOSTILE[0] if kind == "hostile" else "table.csv"
    page = write_report(cleaning_runs.write(tmp_path, CLEANINGS[kind](), table=name))
    browser.events.clear()
    browser.open(page)
    ranks = "[...document.querySelectorAll('.in-order')].map(row => +getComputedStyle(row).getPropertyValue('--o%d'))"
    assert browser.run(SEEN) == list(range(browser.run("document.querySelectorAll('.in-order').length")))
    orders = browser.run("document.querySelectorAll('input.order').length") // 2
    assert orders >= 5
    for j in range(orders):
        rank = browser.run(ranks % j)
        for way, sign in (("u", 1), ("d", -1)):
            box = browser.run(
                f"(() => {{ const l = [...document.querySelectorAll('label[for=o{j}{way}]')].at(-1);"
                " l.scrollIntoView({block: 'center', inline: 'center'});"
                " const b = l.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
            )
            browser.click(*box)
            assert browser.run(f"document.getElementById('o{j}{way}').checked")
            assert browser.run(SEEN) == sorted(range(len(rank)), key=lambda k: sign * rank[k])
    images = browser.run("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert all(images)
    assert len(images) == {"images": 41, "hostile": 1, "aside": 1}.get(kind, 0)
    check_harmless(browser, page)
