"""``bilevax check``: how a problem is named, what is printed and written, and with which code it ends."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import jax
import pytest

import bilevax.audit
from bilevax.cli import main
from bilevax.cli.user_code import load
from bilevax.report import write_findings

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "check_me.py"

STAND_IN = """
import sys
from types import SimpleNamespace

def check(problem, w0, lam, train, val, *, key, estimator="none"):
    print("audited", problem, w0, lam, train, val, estimator)
    found = FOUND
    keys = "code", "severity", "measured", "advice"
    worst = next((s for s in ("error", "warning") if s in [f[1] for f in found]), None)
    records = [dict(zip(keys, f)) for f in found]
    return SimpleNamespace(records=lambda: records, worst=worst, figures=[SimpleNamespace(name="radius", value=0.5)])

sys.modules["jax"] = SimpleNamespace(random=SimpleNamespace(key=int))  # which takes a second to import
sys.modules["bilevax.audit"] = SimpleNamespace(check=check)
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

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main(["check", *map(str, words)])
        out, err = capfd.readouterr()
        assert "\x1b" not in out
        return ended.value.code, out, err

    return run


def module(path, found="()", more=""):
    path.write_text(f"{STAND_IN.replace('FOUND', found)}\n{more}\n")


ERROR = "(('SUM', 'error', 'It is \\x1b[31ma sum.', 'Take the mean.'), ('SLOW', 'warning', 'q', 'r'))"
WARNING = "(('SLOW', 'warning', 'q', 'r'), ('COMPOSITE', 'note', 's', 't'))"


@pytest.mark.parametrize(("found", "code"), [("()", 0), (WARNING, 0), (ERROR, 1)])
def test_the_exit_code_is_one_where_there_are_errors(run, tmp_path, found, code):
    module(tmp_path / "mine.py", found)
    ended, out, err = run("mine:given")
    assert (ended, err) == (code, "audited 1 2 3 4 5 none\n")
    assert "audited" not in out
    assert "radius: 0.5" in out
    assert ("nothing found" in out) == (found == "()")
    if code:
        assert re.search(r"error +SUM +It is a sum. *\n +Take the mean.", out)


def test_a_problem_is_a_dictionary_a_record_or_a_function(run, tmp_path):
    more = "record = SimpleNamespace(estimator=6, other=7, **given)\n"
    module(tmp_path / "parts.py", more=more + "def posed(): return record\n")
    for name, said in (("given", "none"), ("record", "6"), ("posed", "6")):
        assert run(f"parts.py:{name}")[2] == f"audited 1 2 3 4 5 {said}\n"


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("nocolon", 2, "PROBLEM must be MODULE:NAME, such as my_problem.py:audit, got 'nocolon'"),
        ("there/is/none.py:x", 2, "there is no file 'there/is/none.py'"),
        ("none.such:x", 2, "there is no module 'none'"),
        ("faulty.py:other", 2, "faulty.py has no 'other'; it has"),
        ("faulty.py:less", 3, "lam, val is missing"),
        ("faulty.py:fails", 9, "faulty.py:fails raises ZeroDivisionError"),
        ("faulty.py:leaves", 9, "faulty.py:leaves ends the program: sys.exit(0)"),
        ("broken.py:x", 9, "broken.py, when it is imported, raises SyntaxError"),
        ("lacking.py:x", 9, "lacking.py, when it is imported, raises ModuleNotFoundError: No module named 'not_ins"),
    ],
)
def test_a_wrong_name_is_said_in_one_line(run, tmp_path, name, code, said):
    more = "less = {'problem': 1, 'w0': 2, 'train': 4}\ndef fails(): return 1 / 0\ndef leaves(): raise SystemExit(0)"
    module(tmp_path / "faulty.py", more=more)
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "lacking.py").write_text("import not_installed")
    ended, out, err = run(name)
    assert (ended, out) == (code, "")
    assert said in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


ENDING = {
    "import sys; sys.exit(0)": "bad.py, when it is imported, ends the program: sys.exit(0)",
    "import os; os._exit(0)": "bad.py:x ended the process, with exit code 0, while it is imported",
    "class Odd(BaseException): pass\nraise Odd('no')": "bad.py, when it is imported, raises Odd: no",
    "class Odd(Exception):\n  def __str__(self): raise self\nraise Odd": "bad.py, when it is imported, raises Odd",
    "def f(): return f()\nf()": "bad.py, when it is imported, raises RecursionError: maximum recursion",
    "import ctypes; ctypes.string_at(0)": "bad.py:x crashed the process (SIGSEGV) while it is imported",
    "import os\ndef x(): os.kill(os.getpid(), 9)": "bad.py:x crashed the process (SIGKILL, perhaps for want of memory)",
    "import os, sys; sys.stdout.close(); os.close(2); os.chdir('/'); exit(3)": "",  # with nothing to say it on
    "import sys, time, subprocess; subprocess.Popen(['sleep', '30'], stdout=sys.__stdout__); sys.exit(4)": "exit(4)",
}


@pytest.mark.parametrize("code", ENDING)
def test_the_command_survives_what_it_audits(run, tmp_path, code):
    """None of these is taken for an audit that found nothing, or for one that found errors."""
    (tmp_path / "bad.py").write_text(code)
    ended, out, err = run("bad.py:x")
    assert (ended, out) == (9, "")
    assert ENDING[code] in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


CLUTTER = """
import atexit, os, signal, threading, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
atexit.register(time.sleep, 60)
threading.Thread(target=time.sleep, args=(60,)).start()
os.system("echo from a child")
print("printed", flush=True)
print("left in the buffer")
os.chdir("/")
"""


def test_what_a_module_prints_and_leaves_behind_is_not_in_the_way(run, tmp_path):
    module(tmp_path / "clutter.py", ERROR, more=CLUTTER)
    before = time.monotonic()
    ended, out, err = run("clutter.py:given", "--html", "audit.html")
    assert time.monotonic() - before < 30
    assert ended == 1
    assert (tmp_path / "audit.html").exists()
    assert "SUM" in out
    for said in ("from a child", "printed", "left in the buffer"):
        assert said in err
        assert said not in out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_audit_too(tmp_path, number, code):
    stubborn = "import os, signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    (tmp_path / "slow.py").write_text(stubborn + "open('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)")
    command = [sys.executable, "-c", "from bilevax.cli import main; main()", "check", "slow.py:x"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err == "bilevax: interrupted\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_closed_pipe_is_no_finding(tmp_path):
    module(tmp_path / "mine.py", ERROR)
    command = [sys.executable, "-c", "from bilevax.cli import main; main()", "check", "mine.py:given"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # rich, left alone, exits with 1
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (141, "audited 1 2 3 4 5 none\n")


IN_A_LOSS = """
import os, sys
import bilevax as bx, numpy as np

def outer(w, lam, batch):
    LEAVING

rows = bx.Arrays((np.ones((6, 2), "f"), np.ones(6, "f")))
problem = bx.Problem(bx.GradientStep(bx.Squared("feature")), outer)
given = {"problem": problem, "w0": np.zeros((1, 2), "f"), "lam": np.zeros(2, "f"), "train": rows, "val": rows}
"""


def test_a_loss_may_end_the_process(run, tmp_path):
    (tmp_path / "loss.py").write_text(IN_A_LOSS.replace("LEAVING", "os._exit(0)"))
    ended, out, err = run("loss.py:given", "--no-cache")
    assert (ended, out) == (9, "")
    assert "loss.py:given ended the process, with exit code 0, while it is audited; nothing was found out" in err


def test_a_loss_that_exits_is_found(tmp_path, monkeypatch):
    (tmp_path / "loss.py").write_text(IN_A_LOSS.replace("LEAVING", "sys.exit(0)"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    found = bilevax.audit.check(**load("loss.py:given"), key=jax.random.key(0))
    assert found.codes == ("RAISES",)
    assert "SystemExit: 0" in found.items[0].measured


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
