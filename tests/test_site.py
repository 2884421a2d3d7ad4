"""The site: links lead somewhere, every public name has its place and its example, one version is said everywhere."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import bilevax

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
MADE = {"_build", "_recipes", "gallery", "names"}
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += [path for path in sorted(DOCS.rglob("*.md")) if not MADE & set(path.parts)]
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^()\s]+(?:\([^()\s]*\))?)\)")
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```", re.DOTALL | re.MULTILINE)
HOSTS = {"arxiv.org", "doi.org", "benchopt.github.io"}


def prose(path):
    """A page without its blocks of code, also those that are set in."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*`", "``", re.sub(r"^(>>>|\.\.\.|    ).*$", "", text, flags=re.MULTILINE))


def anchors(path):
    """The anchors of a page's headings, as GitHub and the site make them."""
    heads = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def broken(page):
    """The links of a page that lead nowhere."""
    for link in LINK.findall(prose(page)):
        target, _, anchor = link.partition("#")
        path = (page.parent / target) if target else page
        if re.match(r"https?://", link):
            if link.split("/")[2] not in HOSTS:
                yield link
        elif "gallery" in target:  # made of examples/
            continue
        elif not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert not list(broken(page))


def test_a_link_that_leads_nowhere_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A head\n[a](#a-head) [b](#a-foot) [c](none.md) [d](https://example.com/x) `[e](none.md)`\n")
    assert list(broken(page)) == ["#a-foot", "none.md", "https://example.com/x"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_is_shown_as_code(page):
    """A prompt outside of a fence is run by doctest, and shown as a quotation."""
    assert ">>> " not in FENCED.sub("", page.read_text(encoding="utf-8"))


def test_an_example_is_shown_as_it_is_written(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_ext")
    structured = importlib.import_module("docstrings").structured
    example = ["Examples:", "    >>> found.drop_columns_ ** 2", "    a_", "", "    Of x_:", "    >>> 1"]
    assert structured(example) == [*example[:4], "    Of x\\_:", example[5]]
    assert structured(["So:", "", "    ``x_`` * 2"])[-1] == "    x_ * 2"


def test_every_page_is_in_the_index_once():
    listed = []
    for path in DOCS.rglob("*.md"):
        for block in TOCTREE.findall(path.read_text(encoding="utf-8")):
            names = [line for line in block.splitlines() if line and line[0] != ":"]
            listed += [(path.parent / name).resolve() for name in names]
    pages = {path.with_suffix("") for path in PAGES if DOCS in path.parents} - {DOCS / "index"}
    assert pages <= set(listed)
    assert len(listed) == len(set(listed))


def names():
    """Every name of the API pages, by its module."""
    found = {}
    for page in sorted((DOCS / "api").glob("*.rst")):
        module = None
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith(".. currentmodule:: "):
                module = line.split()[-1]
            elif module and re.fullmatch(r"   \w+", line):
                found.setdefault(module, []).append(line.strip())
    return found


NAMES = names()


@pytest.mark.parametrize("module", sorted(NAMES))
def test_the_api_pages_have_every_public_name_once(module):
    home = importlib.import_module(module)
    public = getattr(home, "__all__", None) or [
        name
        for name, value in vars(home).items()
        if name[0] != "_" and not inspect.ismodule(value) and getattr(value, "__module__", "").startswith("bilevax")
    ]
    elsewhere = {"implicit"} if module == "bilevax" else set(NAMES["bilevax"])  # a module; Constants
    assert sorted(NAMES[module]) == sorted(set(public) - elsewhere)


def example_of(module, name):
    """The examples of a public name's docstring."""
    value = getattr(importlib.import_module(module), name)
    return doctest.DocTestParser().get_examples(inspect.getdoc(value) or "")


def test_every_public_name_has_an_example_that_runs():
    without = []
    for module, found in NAMES.items():
        for name in found:
            ran = [example for example in example_of(module, name) if doctest.SKIP not in example.options]
            if not ran and not module.startswith("bilevax.testing"):
                without.append(f"{module}.{name}")
    assert not without


def seen_by_doctest(value):
    """Whether doctest finds the docstring when it goes through the module that has it."""
    home = importlib.import_module(value.__module__)
    found = {test.name for test in doctest.DocTestFinder().find(home, home.__name__) if test.examples}
    return f"{home.__name__}.{value.__qualname__}" in found


def test_doctest_sees_every_example():
    values = [getattr(importlib.import_module(module), name) for module, found in NAMES.items() for name in found]
    unseen = {value.__qualname__ for value in values if callable(value) and not seen_by_doctest(value)}
    assert not unseen


def test_every_algorithm_and_estimator_has_a_card():
    listed = re.findall(r"^   (\w+)$", (DOCS / "cards.rst").read_text(encoding="utf-8"), re.MULTILINE)
    rooms = [importlib.import_module(f"bilevax.{room}") for room in ("algorithms", "hypergradients")]
    classes = {value.__name__ for room in rooms for value in vars(room).values() if inspect.isclass(value)}
    assert classes - {"Bernoulli", "Gaussian"} == set(listed)


def test_the_version_is_said_once():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    release = bilevax.__version__.split(".dev")[0]
    assert f'\nversion: "{bilevax.__version__}"\n' in citation
    assert f"\n## {release}" in changes
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
