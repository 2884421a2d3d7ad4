"""``bilevax check``: how a problem is named, what is printed and written, and with which code it ends."""

import importlib.util
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import jax
import pytest

import bilevax.audit
from bilevax.cli import main
from bilevax.report import write_findings

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "check_me.py"

STAND_IN = """
import bilevax.audit
from bilevax import Finding, Findings
from bilevax.audit.findings import Figure

def check(problem, w0, lam, train, val, *, key, estimator="none"):
    print(problem, w0, lam, train, val, estimator)
    return Findings(FOUND, (Figure("spectral radius", 0.5),))

bilevax.audit.check = check
given = {"problem": 1, "w0": 2, "lam": 3, "train": 4, "val": 5}
"""


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data):
        self.text += data


def elements(path):
    found = Elements()
    found.feed(path.read_text())
    return found


@pytest.fixture(name="run")
def runner(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *sys.path])
    monkeypatch.setattr("bilevax.audit.check", None)

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main(["check", *map(str, words)])
        out, err = capfd.readouterr()
        assert "\x1b" not in out + err
        return ended.value.code, out, err

    return run


def module(path, found="()", more=""):
    path.write_text(f"{STAND_IN.replace('FOUND', found)}\n{more}\n")


ERROR = "(Finding('SUM', 'error', 'It is \\x1b[31ma sum.', 'Take the mean.'), Finding('SLOW', 'warning', 'q', 'r'))"
WARNING = "(Finding('SLOW', 'warning', 'q', 'r'), Finding('COMPOSITE', 'note', 's', 't'))"


@pytest.mark.parametrize(("found", "code"), [("()", 0), (WARNING, 0), (ERROR, 1)])
def test_the_exit_code_is_one_where_there_are_errors(run, tmp_path, found, code):
    module(tmp_path / f"mine{code}{len(found)}.py", found)
    ended, out, err = run(f"mine{code}{len(found)}:given")
    assert (ended, err) == (code, "")
    assert "1 2 3 4 5 none\n" in out
    assert "spectral radius: 0.5" in out
    assert ("nothing found" in out) == (found == "()")
    if code:
        assert re.search(r"error +SUM +It is a sum. *\n +Take the mean.", out)


def test_a_problem_is_a_dictionary_a_record_or_a_function(run, tmp_path):
    more = "from types import SimpleNamespace\nrecord = SimpleNamespace(estimator=6, other=7, **given)\n"
    module(tmp_path / "parts.py", more=more + "def posed(): return record\n")
    for name, said in (("given", "none"), ("record", "6"), ("posed", "6")):
        assert f"1 2 3 4 5 {said}\n" in run(f"parts.py:{name}")[1]


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("nocolon", 2, "PROBLEM must be MODULE:NAME, such as my_problem.py:audit, got 'nocolon'"),
        ("there/is/none.py:x", 2, "there is no file 'there/is/none.py'"),
        ("none.such:x", 2, "there is no module 'none'"),
        ("faulty.py:other", 2, "faulty.py has no 'other'; it has"),
        ("faulty.py:less", 3, "lam, val is missing"),
        ("faulty.py:fails", 3, "faulty.py:fails raises ZeroDivisionError"),
        ("broken.py:x", 3, "broken.py cannot be imported: SyntaxError"),
        ("leaving.py:x", 3, "leaving.py ends the program when it is imported: sys.exit(0)"),
        ("faulty.py:leaves", 3, "faulty.py:leaves ends the program: sys.exit(0)"),
        ("lacking.py:x", 3, "lacking.py cannot be imported: No module named 'not_installed'"),
    ],
)
def test_a_wrong_name_is_said_in_one_line(run, tmp_path, name, code, said):
    more = "less = {'problem': 1, 'w0': 2, 'train': 4}\ndef fails(): return 1 / 0\ndef leaves(): raise SystemExit(0)"
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(0)")
    module(tmp_path / "faulty.py", more=more)
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "lacking.py").write_text("import not_installed")
    ended, out, err = run(name)
    assert (ended, out) == (code, "")
    assert said in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_a_page_is_written_once(run, tmp_path):
    module(tmp_path / "page.py", ERROR)
    assert run("page.py:given", "--html", "audit.html")[0] == 1
    page = elements(tmp_path / "audit.html")
    assert "The audit found 1 error and 1 warning." in page.text
    code, _, err = run("page.py:given", "--html", "audit.html")
    assert (code, err.count("\n")) == (2, 1)
    assert "audit.html exists; choose another file, or give --force" in err
    assert run("page.py:given", "--html", "audit.html", "--force")[0] == 1


def test_no_finding_becomes_part_of_the_page(tmp_path):
    hostile = "<script>alert(1)</script>\"><img src=x onerror='alert(1)'></style></title>{{ 7*7 }}\x1b[31m"
    plain = dict.fromkeys(("code", "severity", "measured", "advice"), "words")
    tame = elements(write_findings(tmp_path / "a.html", "name", [plain], {"figure": 1.0}))
    wild = elements(write_findings(tmp_path / "b.html", hostile, [dict.fromkeys(plain, hostile)], {hostile: 1.0}))
    assert wild.tags == tame.tags
    assert "{{ 7*7 }}" in wild.text
    assert "\x1b" not in wild.text
    page = (tmp_path / "b.html").read_text()
    assert page.index("Content-Security-Policy") < page.index("<style")
    assert "http://" not in page


@pytest.mark.parametrize(
    ("severities", "word"),
    [((), "Sound"), (("note",), "Sound"), (("warning", "note"), "Look again"), (("error",), "Wrong")],
)
def test_the_page_says_the_worst_first(tmp_path, severities, word):
    rows = [{"code": "C", "severity": severity, "measured": "m", "advice": "a"} for severity in severities]
    assert word in elements(write_findings(tmp_path / "a.html", "name", rows)).text


@pytest.mark.slow
def test_the_example_has_the_three_mistakes_it_says_and_none_when_mended():
    import bilevax as bx

    spec = importlib.util.spec_from_file_location("check_me", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    strict = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with jax.enable_x64(False), strict[0], strict[1]:
        found = bx.check(**example.audit(), key=jax.random.key(0))
        mended = bx.check(**example.mended(), key=jax.random.key(0))
    assert set(found.codes) == {"BIASED", "STEP_TOO_LONG", "LAM_UNUSED"}
    assert not mended, mended


def test_the_documentation_lists_every_code():
    audit = Path(bilevax.audit.__file__).parent
    source = "\n".join(path.read_text() for path in audit.rglob("*.py"))
    codes = set(re.findall(r'Finding\(\s*"([A-Z_0-9]+)"', source))
    listed = set(re.findall(r"^\| `([A-Z_0-9]+)` \|", (ROOT / "docs" / "check.md").read_text(), re.MULTILINE))
    assert codes == listed
    assert len(codes) > 25
