"""The command: what it writes, what it says in one line, and with which code it ends."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression

import bilevax
from bilevax.cli import main
from bilevax.cli.cache import SMALL_PROGRAMS_TOO, keep_programs
from bilevax.cli.display import sparkline
from bilevax.cli.predict import safe_cell
from bilevax.core.codes import Code
from bilevax.study import linear, read_model, study
from bilevax.study.rivals import RIDGE, Rival
from bilevax.tables.read import read_table

BILEVAX = [sys.executable, "-m", "bilevax"]

KEEPING = """
import numpy, bilevax.cli, bilevax.study.linear as linear
class Kept(linear.TunedLogisticRegression):
    def fit(self, X, y, **options):
        super().fit(X, y, **options)
        numpy.savez("kept.npz", probabilities=self.predict_proba(X), penalties=self.penalties_)
        return self
linear.TunedLogisticRegression = Kept
bilevax.cli.main()
"""
"""The command, which also keeps what the fitted estimator predicts on the rows that it was given."""


class Quick(ClassifierMixin, BaseEstimator):
    """Stands in for the tuned estimator; ``interrupt`` is a signal that reaches it at its second step."""

    interrupt = 0

    def __init__(self, penalty_per="feature", *, class_weight=None, scoring="", method="auto", steps=3, random_state=0):
        self.penalty_per, self.class_weight, self.scoring = penalty_per, class_weight, scoring
        self.method, self.steps, self.random_state = method, steps, random_state

    def fit(self, X, y, *, groups=None, validation=None, blocks=None, callback=None, run=None):
        self.n_iter_, self.interrupted_ = 0, False
        try:
            for step in range(4):
                record = {
                    "step": step,
                    "seconds": 0.5,
                    "visits": 10 * step,
                    "validation_loss": 0.5 - 0.1 * step,
                    "code": "OK",
                }
                self.n_iter_ += 1
                callback(record)
                if self.interrupt and step == 1:
                    os.kill(os.getpid(), self.interrupt)
                    time.sleep(5)
        except KeyboardInterrupt:
            self.interrupted_ = True
        self.model_ = LogisticRegression(C=0.5, max_iter=500).fit(X, y)
        self.classes_, self.coef_, self.intercept_ = self.model_.classes_, self.model_.coef_, self.model_.intercept_
        self.penalties_ = 1.0 + np.arange(X.shape[1])
        self.method_, self.method_reason_, self.code_, self.visits_ = "deterministic", "asked for", Code.OK, 40
        self.validation_loss_, self.validation_gap_, self.validation_gap_se_ = 0.5, 0.01, 0.002
        return self

    def predict_proba(self, X):
        return self.model_.predict_proba(X)

    def predict(self, X):
        return self.model_.predict(X)


def quick_rivals(prepared, settings, stage):
    stage("fitting: a rival")
    y = prepared.target.values
    P = np.full((len(prepared.split.test), y.max() + 1), 1.0 / (y.max() + 1))
    yield Rival(RIDGE, P, 0.1, True)


def write_table(path, n=200, seed=0, labels=("stays", "=leaves()")):
    rng = np.random.default_rng(seed)
    plan, x = rng.choice(["basic", "family, large"], n), rng.normal(size=n)
    codes = (x + (plan == "basic") + rng.logistic(size=n) > 0).astype(int)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "plan", "income (€)", "\x1b[31mcalls\x1b[0m", "age", "outcome"])
        for i in range(n):
            plan_i, age = plan[i] if i % 9 else "", rng.integers(18, 90) if i % 7 else "NA"
            writer.writerow([1000 + i, plan_i, f"{x[i]:.3f}", rng.poisson(3), age, labels[codes[i]]])
    return path


@pytest.fixture(autouse=True)
def cache_home(monkeypatch, tmp_path):
    """What a command keeps is kept here; and nothing of the user's settings of JAX's cache counts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("JAX_COMPILATION_CACHE_DIR", *SMALL_PROGRAMS_TOO):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture(name="run")
def runner(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(linear, "TunedLogisticRegression", Quick)
    monkeypatch.setattr(study, "rivals", quick_rivals)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Quick, "interrupt", 0)

    def run(*words):
        # tuning takes no time, but where a test asks for the model of every day
        if words[:1] == ("tune",) and "--model" not in words and "--config" not in words:
            words = ("tune", "--model", "linear", *words[1:])
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert "\x1b" not in out + err
        return ended.value.code, out, err

    return run


@pytest.fixture(name="table")
def table_file(tmp_path):
    return write_table(tmp_path / "churn.csv")


def test_help_is_quick_and_needs_nothing():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([*BILEVAX, "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5
    for word in ("tune", "predict", "report", "--version"):
        assert word in done.stdout
    code = "import sys; from bilevax.cli import main\ntry: main(['tune', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'jax', 'sklearn', 'pyarrow', 'matplotlib', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_table_is_tuned_applied_and_reported(tmp_path):
    """The real thing, in processes of its own."""
    table = write_table(tmp_path / "churn.csv", n=150)
    words = ["tune", table, "--target", "outcome", "--out", "run", "--model", "linear", "--steps", "2"]
    words += ["--scoring", "balanced_accuracy"]
    keeping = [sys.executable, "-c", KEEPING, *map(str, words)]
    done = subprocess.run(keeping, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = {path.name for path in (tmp_path / "run").iterdir()}
    written = {"config.toml", "metrics.jsonl", "model.safetensors", "coefficients.json", "report.html"}
    assert files == {*written, "manifest.json"}
    for said in (
        "(bilevax)",
        "linear model, one penalty",
        "gradient boosting",
        "balanced accuracy",
    ):
        assert said in done.stdout
    assert "run/report.html" in done.stdout
    assert "column 'id' is left out: integers that number the rows" in done.stderr
    assert "150 rows: 90 train, 30 validate, 30 test; 4 columns become " in done.stderr
    assert "validation loss" in done.stderr
    words = ["predict", "run", "churn.csv", "--out", "p.csv"]
    done = subprocess.run([*BILEVAX, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model, rows = read_model(tmp_path / "run"), read_table(table)
    kept, predicted = np.load(tmp_path / "kept.npz"), model.predict_proba(rows)
    for row in kept["probabilities"]:
        assert np.abs(predicted - row).max(axis=1).min() < 1e-12
    assert list(model.penalties) == kept["penalties"].tolist()
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == ["prediction", "probability_=leaves()", "probability_stays"]
    found = [[float(row["probability_=leaves()"]), float(row["probability_stays"])] for row in written]
    np.testing.assert_allclose(found, model.predict_proba(rows), rtol=1e-5)
    assert [row["prediction"].removeprefix("'") for row in written] == model.predict(rows)
    assert {row["prediction"][0] for row in written} == {"'", "s"}


def test_the_outcome_is_said_and_the_report_written(run, table, tmp_path):
    code, out, err = run("tune", table, "--target", "outcome", "--out", "run")
    assert code == 0
    lines = out.splitlines()
    assert " ".join(lines[0].split()) == "on the test rows log-loss, 95 % kept minus it, 95 % accuracy seconds"
    assert [line.split("  ")[0] for line in lines[1:3]] == ["one penalty per feature (bilevax)", RIDGE]
    assert "log-loss" in " ".join(lines[3:])
    assert "step 0 of at most 100: validation loss 0.5000" in err
    assert "4 steps: validation loss 0.5000 to 0.2000" in err
    assert "income (€)" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    os.unlink("run/report.html")
    assert run("report", "run") == (0, "run/report.html\n", "")
    assert os.path.exists("run/report.html")


def test_a_bundled_data_set_knows_its_target(run):
    code, out, _ = run("tune", "iris", "--out", "run", "--seed", "1")
    assert code == 0
    assert "run/report.html" in out
    with open("run/metrics.jsonl", encoding="utf-8") as file:
        data = next(record for record in map(json.loads, file) if record["kind"] == "data")
    assert data["classes"] == {"setosa": 50, "versicolor": 50, "virginica": 50}
    assert run("predict", "run", "iris")[1].startswith("prediction,probability_setosa,")
    # a directory of that name is that of a run
    assert run("tune", "iris", "--out", "iris")[0] == 0
    assert run("predict", "iris", "iris")[0] == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("tune churn.csv --target outcom --out o", 4, "churn.csv: no column 'outcom'; did you mean 'outcome'?"),
        ("tune churn.csv --out o", 2, "Missing option '--target'; the last of the 6 columns is 'outcome'"),
        ("tune churn.csv --target outcome", 2, "Missing option '--out'; `bilevax tune --help` has an overview"),
        (
            "tune churm.csv --target outcome --out o",
            2,
            "no file 'churm.csv', and no bundled data set of that name; did you",
        ),
        ("tune digit --out o", 2, "did you mean 'digits'?"),
        ("tune churn.csv --target outcome --out o --trget x", 2, "No such option: --trget"),
        ("tune churn.csv --target outcome --out o --seed banana", 2, "Invalid value for '--seed'"),
        ("tune churn.csv --target outcome --out o --penalty-per row", 2, "'row' is not one of 'feature', 'column'"),
        ("tune churn.csv --target outcome --out o --seed", 2, "Option '--seed' requires an argument"),
        ("tune churn.csv --target outcome --out o --steps 0", 3, "--steps is a whole number, 1 or more, got 0"),
        ("tune churn.csv --target outcome --out o --scoring acuracy", 3, "did you mean 'accuracy'"),
        ("tune churn.csv --target outcome --out o --drop plan --drop pln", 4, "no column 'pln'; did you mean 'plan'?"),
        ("tune churn.csv --target id --out o", 3, "target 'id' holds many numbers, and a linear model is for classes"),
        (
            "tune churn.csv --target outcome --out o --model additive --steps 3",
            3,
            "steps is a setting of model 'linear'",
        ),
        (
            "tune churn.csv --target outcome --out o --time soon",
            3,
            "above 0, or 90s, 5m, 1h, got 'soon'",
        ),
        ("tune --config none.toml", 2, "cannot read none.toml: no such file or directory"),
        ("tune --out o --target outcome", 2, "Missing argument 'TABLE'"),
        ("tune churn.csv --target outcome --out churn.csv", 7, "cannot write churn.csv: "),
        ("tune broken.csv --target outcome --out o", 4, "broken.csv:3: 1 field, expected 2"),
        ("tun churn.csv", 2, "No such command 'tun'. Did you mean 'tune'? (see bilevax --help)"),
        ("predict churn.csv", 2, "Missing argument 'TABLE'"),
        ("predict nowhere churn.csv", 4, "there is no directory nowhere"),
        ("predict churn.csv nowhere", 4, "churn.csv is a file: the directory of the run comes first, then the table"),
        ("predict . churn.csv", 4, ". has no model.safetensors: it is no run directory"),
        (
            "tune churn.csv --target outcome --out o --test-size 20",
            3,
            "--test-size is a share between 0 and 1, got 20.0",
        ),
        (
            "tune churn.csv --target outcome --out o --scoring AUC",
            3,
            "; did you mean 'roc_auc'?",
        ),
        ("tune churn.csv --target outcome --out o --scoring log-loss", 3, "did you mean 'neg_log_loss'?"),
        ("report nowhere", 4, "nowhere is not a run directory"),
    ],
)
def test_a_fault_is_one_line_and_a_code(run, table, tmp_path, words, code, said):
    (tmp_path / "broken.csv").write_text("x,outcome\n1,a\n2\n")
    ended, out, err = run(*words.split())
    faults = [line for line in err.splitlines() if line.startswith("bilevax: ")]
    assert (ended, out, len(faults)) == (code, "", 1)
    assert said in faults[0]
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.csv", "churn.csv"]  # nothing was begun


def test_what_is_not_installed_is_named(run, table, monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "bilevax.cli.app", raising=False)
    code, _, err = run("tune", table, "--target", "outcome", "--out", "o")
    assert code == 2
    assert err == "bilevax: typer is not installed; pip install 'bilevax[cli]' brings all that the command needs\n"


def test_debug_shows_where(run, table):
    _, _, err = run("tune", table, "--target", "outcom", "--out", "o", "--debug")
    assert "Traceback" in err


def test_without_words_the_help_is_shown(run):
    code, out, err = run()
    assert (code, err) == (2, "")
    assert "Commands:" in out
    assert run("--version")[:2] == (0, f"bilevax {bilevax.__version__}\n")


def test_an_earlier_run_is_kept_or_replaced_whole(run, table, tmp_path):
    run("tune", table, "--target", "outcome", "--out", "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    code, _, err = run("tune", table, "--target", "outcome", "--out", "run", "--seed", "1")
    assert code == 2
    assert "run is not empty; choose another directory, or give --force" in err
    code, _, _ = run("tune", table, "--target", "outcom", "--out", "run", "--force")
    assert code == 4
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    code, _, _ = run("tune", table, "--target", "outcome", "--out", "run", "--seed", "1", "--force")
    assert code == 0
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)
    assert run("tune", table, "--target", "outcome", "--out", tmp_path, "--force")[0] == 2  # the table is there
    run("predict", "run", table, "--out", "p.csv")
    code, _, err = run("predict", "run", table, "--out", "p.csv")
    assert code == 2
    assert "p.csv exists" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_tuning_with_what_was_reached(run, table, monkeypatch, number, code):
    monkeypatch.setattr(Quick, "interrupt", number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it from birth
    ended, out, err = run("tune", table, "--target", "outcome", "--out", "run")
    assert ended == code
    assert "The run was interrupted after 2 steps" in out
    assert "Traceback" not in err
    assert os.path.exists("run/report.html")
    assert run("predict", "run", table)[0] == 0


def test_an_interruption_before_the_first_step_leaves_nothing(table, tmp_path):
    words = [*BILEVAX, "tune", str(table), "--target", "outcome", "--out", "run", "--model", "linear"]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "compiling" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists() or "interrupted" in out


def test_a_closed_pipe_is_no_fault(run, table, tmp_path):
    run("tune", table, "--target", "outcome", "--out", "run")
    words = [*BILEVAX, "predict", "run", "churn.csv"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # before the first line is written
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_predictions_say_what_they_ignore_and_refuse_what_they_lack(run, table, tmp_path):
    run("tune", table, "--target", "outcome", "--out", "run")
    _, out, err = run("predict", "run", table)
    assert out.count("\n") == 201
    marks, unused = err.splitlines()
    assert unused == "bilevax: not used by the model: id"
    assert marks.endswith("cells of column 'age'")
    lines = (tmp_path / "churn.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "less.csv").write_text("\n".join([lines[0].replace("plan", "Plans"), *lines[1:]]), encoding="utf-8")
    code, out, err = run("predict", "run", "less.csv")
    assert (code, out) == (4, "")
    assert "no column 'plan'; did you mean 'Plans'?" in err


def spoiled(table, column, cells):
    """The file with other cells in the last rows of a column."""
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    j = rows[0].index(column)
    for row, cell in zip(rows[-len(cells) :], cells, strict=True):
        row[j] = cell
    path = table.with_name("spoiled.csv")
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.mark.parametrize("cells", [["1e999"], ["2024-02-31", "x"]])
def test_a_fault_that_is_not_used_is_no_fault(run, table, cells):
    tuned = ("tune", table, "--target", "outcome", "--out")
    run(*tuned, "run")
    sound = run("predict", "run", table)
    for column in ("id", "outcome"):
        assert run("predict", "run", spoiled(table, column, cells)) == sound
    code, out, err = run("predict", "run", spoiled(table, "age", ["1.5.0"]))
    assert (code, out) == (4, "")
    assert err == "bilevax: spoiled.csv:201: '1.5.0' in column 'age', which the model knows as numbers\n"
    without_age = ("--drop", "age", "--drop", "id")
    assert run(*tuned, "sound", *without_age)[0] == 0
    assert run("tune", spoiled(table, "age", cells), *tuned[2:], "dropped", *without_age)[0] == 0
    assert run("predict", "dropped", table)[1] == run("predict", "sound", table)[1]


@pytest.mark.parametrize("label", ["NA", "null"])
def test_a_class_that_is_called_na_stays(run, tmp_path, label):
    table = write_table(tmp_path / "churn.csv", labels=("stays", label))
    with open(table, encoding="utf-8") as file:
        rows = sum(line.endswith(f",{label}\n") for line in file.read().splitlines(keepends=True))
    code, _, err = run("tune", table, "--target", "outcome", "--out", "run")
    assert code == 0
    assert f"'{label}' is kept as a value in {rows} cells of column 'outcome'" in err
    assert run("predict", "run", table)[1].count(f"\n{label},") > 20
    code, _, err = run("tune", table, "--target", "outcome", "--out", "none", "--missing", f"outcome={label}")
    assert (code, "one class" in err or "'stays' in every row" in err) == (4, True)


@pytest.mark.parametrize("word", ["unk", "-"])
def test_marks_are_the_model_s_too(run, table, word):
    marked = spoiled(table, "age", [word] * 30)
    empty = table.with_name("empty.csv")
    empty.write_text(spoiled(table, "age", [""] * 30).read_text(encoding="utf-8"), encoding="utf-8")
    marked = spoiled(table, "age", [word] * 30)
    code, _, err = run("tune", marked, "--target", "outcome", "--out", "run")
    assert code == 4
    assert f"spoiled.csv:172: '{word}' in column 'age'" in err
    assert run("tune", marked, "--target", "outcome", "--out", "run", "--missing", f"?,{word}")[0] == 0
    assert run("tune", empty, "--target", "outcome", "--out", "other")[0] == 0
    code, out, _ = run("predict", "run", marked)
    assert (code, out) == run("predict", "other", empty)[:2]


def test_what_would_be_a_formula_is_marked_as_text():
    assert [safe_cell(text, text) for text in ("=a", "+a", "-a", "@a", "\ta", "a=", "")] == [
        "'=a", "'+a", "'-a", "'@a", "'\ta", "a=", "",
    ]  # fmt: skip
    assert safe_cell("-1", -1) == "-1"


def test_a_sparkline_has_its_ends():
    assert sparkline([], 10) == ""
    assert sparkline([1.0, 1.0], 10) == "▁▁"
    long = sparkline(np.linspace(1, 0, 1000).tolist(), 30)
    assert (len(long), long[0], long[-1]) == (30, "█", "▁")


@pytest.fixture(name="kept")
def without_jax(monkeypatch, capfd):
    """Where programs would be kept were JAX not imported yet, or None; and what is said."""

    def kept(wanted=True):
        with monkeypatch.context() as patched:
            patched.delitem(sys.modules, "jax")
            keep_programs(wanted)
        where = os.environ.get("JAX_COMPILATION_CACHE_DIR")
        for name in ("JAX_COMPILATION_CACHE_DIR", *SMALL_PROGRAMS_TOO):
            monkeypatch.delenv(name, raising=False)
        return where, capfd.readouterr().err

    return kept


def test_programs_are_kept_where_the_user_alone_may_write(kept, cache_home, monkeypatch, tmp_path):
    old = os.umask(0)
    try:
        assert kept() == (str(cache_home / "bilevax" / "jax"), "")
    finally:
        os.umask(old)
    for made in (cache_home / "bilevax", cache_home / "bilevax" / "jax"):
        assert made.stat().st_mode & 0o777 == 0o700
    assert kept() == (str(cache_home / "bilevax" / "jax"), "")  # what is there is used
    assert kept(wanted=False) == (None, "")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard says to ignore
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kept() == (str(tmp_path / ".cache" / "bilevax" / "jax"), "")


@pytest.mark.parametrize("level", ["", "bilevax", "bilevax/jax"])
@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_programs_are_not_kept_where_others_may_write(kept, cache_home, level, mode):
    kept()
    (cache_home / level).chmod(mode)
    where, said = kept()
    assert where is None
    assert said.startswith("bilevax: compiled programs are not kept: ")
    assert said.count("\n") == 1


def test_programs_are_not_kept_behind_a_link_a_file_or_another_owner(kept, cache_home, tmp_path, monkeypatch):
    (cache_home / "bilevax").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (cache_home / "bilevax" / "jax").symlink_to(tmp_path / "elsewhere")
    assert kept()[0] is None
    (cache_home / "bilevax" / "jax").unlink()
    (cache_home / "bilevax" / "jax").write_text("")
    assert kept()[0] is None
    (cache_home / "bilevax" / "jax").unlink()
    assert kept()[0] is not None
    monkeypatch.setattr(os, "getuid", lambda: os.stat(cache_home).st_uid + 1)
    assert kept()[0] is None


def test_a_cache_of_the_users_own_stays(kept, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    assert kept()[0] == str(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # off
    assert kept()[0] == ""


AUDITED = """
import jax.numpy as jnp, numpy as np, bilevax as bx
rows = bx.Arrays((np.eye(4, dtype="f"), np.ones(4, "f")))
given = {"problem": bx.Problem(bx.GradientStep(bx.Squared("feature")), bx.Squared()), "w0": np.zeros((1, 4), "f"),
         "lam": np.array([1, 2]), "train": rows, "val": rows}
jnp.linspace(0.0, 1.0, 7)
"""


@pytest.mark.slow
def test_the_command_keeps_what_it_compiles_unless_told_not_to(cache_home, tmp_path):
    (tmp_path / "audited.py").write_text(AUDITED)

    def check(*more):
        command = [*BILEVAX, "check", "audited.py:given", *more]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert (done.returncode, done.stderr) == (1, "")  # INTEGER_LEAF
        return {path: path.stat().st_mtime_ns for path in cache_home.rglob("*-cache")}

    assert not check("--no-cache")
    kept = check()
    assert kept
    assert check() == kept
