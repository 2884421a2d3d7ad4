"""The report in a browser: opened, every fold clicked, and nothing happens but that the folds open."""

import json
from collections.abc import Iterator
from pathlib import Path

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
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert (
        browser.run("document.querySelectorAll('script, iframe, object, embed, [onerror], [onmouseover]').length") == 0
    )
    # what the page is, and its pictures, which are within it
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:image/svg+xml;base64,")] == [page.as_uri()]
    bad = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening")
    assert [json.dumps(e) for e in browser.events if e["method"] in bad] == []
