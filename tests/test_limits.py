"""Limits are said before they are hit: memory, disks, places that cannot be written."""

import importlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import bilevax as bx
from bilevax.cli import main
from bilevax.core import files, limits
from bilevax.core.errors import ResourceError, StorageError
from bilevax.core.programs import COMPILING, COPIES, memory, weighed
from bilevax.sklearn import TunedElasticNet, TunedLogisticRegression
from bilevax.tables.read import read_table

GB = 10**9
EVERYTHING = limits.Left(float("inf")), limits.Left(float("inf")), limits.Left(float("inf"))


@pytest.fixture(name="having")
def has(monkeypatch):
    """having(n): so many bytes are left, and no program was compiled before."""

    def left(n, place=2):
        out = list(EVERYTHING)
        out[place] = limits.Left(n, "are free")
        monkeypatch.setattr(limits, "left", lambda: tuple(out))
        monkeypatch.setattr(limits, "_granted", [0.0, 0.0])

    return left


def test_clearly_too_much_is_refused_and_nearly_too_much_is_a_warning(having):
    having(GB)
    limits.require(0.9 * GB, "it")
    with pytest.warns(UserWarning, match="memory may not be enough: it takes about 1.2 GB of memory, and 1.0 GB are"):
        limits.require(1.2 * GB, "it")
    with pytest.raises(
        ResourceError, match=r"^it takes about 1\.3 GB of memory, and 1\.0 GB are free; buy more$"
    ) as caught:
        limits.require(1.3 * GB, "it", "buy more")
    assert isinstance(caught.value, MemoryError)
    assert caught.value.exit_code == 8


def test_only_the_address_space_counts_what_is_reserved(having):
    having(GB, place=2)
    limits.require(0.5 * GB, "it", mapped=2 * GB)
    having(GB, place=0)
    limits.require(0.5 * GB, "it", mapped=0.4 * GB)
    with pytest.raises(ResourceError):
        limits.require(1.01 * GB, "it")
    with pytest.raises(ResourceError, match=r"2\.1 GB"):
        limits.require(0.5 * GB, "it", mapped=2 * GB)


def test_the_compiler_is_paid_for_once(having):
    having(GB)
    limits.require(0, "it", compiler=0.9 * GB)
    limits.require(0.5 * GB, "it", compiler=0.9 * GB)
    with pytest.raises(ResourceError):
        limits.require(GB, "it", compiler=1.2 * GB)


@pytest.mark.parametrize("version", [1, 2])
def test_control_groups_are_read(monkeypatch, version):
    root = "/sys/fs/cgroup" + ("" if version == 2 else "/memory")
    limit, used, cache = (
        ("memory.max", "memory.current", "file") if version == 2 else
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
    )  # fmt: skip
    system = {
        "/proc/self/cgroup": ["0::/a/b"] if version == 2 else ["5:cpu:/a/b", "4:memory:/a/b", "0::/"],
        f"{root}/a/b/{limit}": ["max"] if version == 2 else ["9223372036854771712"],
        f"{root}/a/b/{used}": ["100"],
        f"{root}/a/{limit}": [str(3 * GB)],
        f"{root}/a/{used}": [str(2 * GB)],
        f"{root}/a/memory.stat": ["anon 7", "", f"{cache} {GB // 2}"],
        "/proc/meminfo": ["MemTotal: 9000000 kB", "MemAvailable:    2000000 kB", "SwapFree: 1000000 kB"],
    }
    monkeypatch.setattr(limits, "_lines", lambda path: system.get(str(path), []))
    space, group, machine = limits.left()
    assert space.bytes == float("inf")  # nothing is known of what is mapped
    assert (group.bytes, group.of) == (1.5 * GB, "of the 3.0 GB of its control group are left")
    assert machine.bytes == 3_000_000 * 1024


def test_this_process_has_a_limit_that_is_read():
    code = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30,) * 2); from bilevax.core import limits; "
    code += "print(limits.left()[0].bytes)"
    left = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 1 << 30 < left < 2 << 30


@pytest.mark.parametrize(
    "raised",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating\n 400 bytes."),
        pa.ArrowMemoryError("malloc of size 7 failed"),
    ],
)
def test_the_end_of_memory_is_a_sentence(having, raised):
    having(GB)
    with pytest.raises(ResourceError) as caught, limits.said("this run", "wait"):
        raise raised
    asked = " ".join(str(raised).split())
    assert (
        str(caught.value) == f"there is too little memory for this run{asked and f' ({asked})'}: 1.0 GB are free; wait"
    )


def test_other_faults_pass_as_they_are():
    refused = ResourceError("as it was")
    for fault in (refused, jax.errors.JaxRuntimeError("INTERNAL: other"), KeyError("x")):
        with pytest.raises(type(fault)) as caught, limits.said("this run"):
            raise fault
        assert caught.value is fault


D = 1000


BY_HAND = {
    "result": (lambda x: x + 1, 1),
    # what is made, and what it is made of, which is freed
    "freed": (lambda x: jnp.sum(jnp.sin(jnp.exp(jnp.cos(x)))), 2),
    "parts": (lambda x: jnp.sum(jnp.stack([x + 1, x + 2, x + 3])), 6),
    "in place": (lambda x: jax.lax.fori_loop(0, 9, lambda i, c: c * 2, x), 1),
    "stacked": (lambda x: jax.lax.scan(lambda c, _: (c * 2, c), x, None, length=50)[1], 51),
    "called": (lambda x: jax.jit(lambda y: jnp.outer(y, y))(x), D),
    "small": (lambda x: jnp.linalg.norm(x[:3]), 0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_memory_of_a_program_by_hand(name):
    fn, copies = BY_HAND[name]
    found = memory(jax.make_jaxpr(fn)(jnp.ones(D)).jaxpr) / (8 * D)
    assert copies <= found < copies + 0.05 * max(copies, 1) + 1 * (copies > 5)


def test_a_program_is_weighed_once_and_before_it_is_compiled(having, refused):
    traces = []

    def large(x):
        traces.append(x)
        return jnp.outer(x, x)

    fn = weighed(jax.jit(large), "this product")
    having(GB)
    few, many = np.ones(10), np.ones(20_000)  # many: 3.2 GB
    refused(
        lambda: fn(many), ResourceError, "^this product takes about 4.3 GB of memory, and 1.0 GB are free; fewer rows"
    )
    assert fn(few).shape == (10, 10)
    before = len(traces)
    assert fn(2 * few)[0, 0] == 4
    assert jax.vmap(fn)(np.ones((2, 10))).shape == (2, 10, 10)  # within a trace it is left alone
    assert before == 2
    having(0.1 * GB)
    assert fn(few).shape == (10, 10)  # it is known to fit
    assert COPIES >= 1
    assert COMPILING >= limits.LEAST


def inner(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def outer(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2)


def test_a_hypergradient_that_does_not_fit_is_refused_before_anything_is_compiled(having, refused):
    d = 5_000
    rows = bx.Arrays((np.ones((8, d)), np.ones(8)))
    problem, zeros = bx.Problem(bx.GradientStep(inner, 0.1), outer), jnp.zeros(d)

    def call():
        estimator = bx.SID(bx.FixedPoint(5), bx.Exact())
        bx.hypergradient(problem, estimator, zeros, zeros, rows, rows, key=jax.random.key(0), report=False)

    # a matrix [d, d] of float64 is 0.2 GB
    having(0.4 * GB)
    message = r"^this hypergradient takes about \d.\d GB of memory, and 400 MB are free; fewer rows, smaller"
    with pytest.raises(ResourceError, match=message):
        call()  # numbers are cast to one dtype by programs of their own
    refused(call, ResourceError, message)


def test_a_run_that_does_not_fit_is_refused_before_anything_is_compiled(having, refused):
    n, d = 100, 50_000
    train, val = (bx.Arrays((np.ones((n, d), "f"), np.ones(n, "f")), batch_size=1, sampling="blocks") for _ in range(2))
    problem, zeros = bx.Problem(bx.GradientStep(inner, 0.1), outer), jnp.zeros(d, "f")

    def call():
        bx.minimize(problem, bx.SABA(0.1, 0.1), zeros, zeros, train, val, steps=2, key=jax.random.key(0))

    # tables of 3 d numbers for each of 100 blocks of train, and of 2 d for each of val: 0.1 GB
    having(0.29 * GB)
    with pytest.raises(ResourceError):
        call()  # as above
    refused(
        call, ResourceError, r"^the first state of the algorithm takes about 39\d MB of memory, and 290 MB are free; "
    )


def test_e14_a_run_whose_memory_ends_keeps_its_checkpoint_and_goes_on_to_the_same_bits(monkeypatch, tmp_path):
    X = np.random.default_rng(0).normal(size=(20, 3))
    rows = bx.Arrays((X, X @ np.ones(3)), batch_size=4)
    problem, zeros = bx.Problem(bx.GradientStep(inner, 0.1), outer), np.zeros(3)
    module, calls = importlib.import_module("bilevax.runs.minimize"), []
    advance = module._advance

    def go(**where):
        return bx.minimize(
            problem, bx.SOBA(0.1, 0.1), zeros, zeros, rows, rows, steps=900, key=jax.random.key(0), every=300, **where
        )

    def ends(*args, **named):
        calls.append(args)
        if len(calls) == 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")
        return advance(*args, **named)

    monkeypatch.setattr(module, "_advance", ends)
    with pytest.raises(ResourceError, match=r"^there is too little memory for this run \(RESOURCE_EXHAUSTED: Out of"):
        go(run=bx.Run(tmp_path / "run", seconds=0))
    monkeypatch.setattr(module, "_advance", advance)
    resumed, undisturbed = go(run=tmp_path / "run"), go()
    assert len(calls) == 2
    assert resumed.lam.tobytes() == undisturbed.lam.tobytes()
    assert int(resumed.history.step[-1]) == 900


@pytest.mark.parametrize("door", ["check", "plan"])
def test_other_doors_say_it_too(monkeypatch, door):
    def ends(*args, **named):
        raise MemoryError

    rows = bx.Arrays((np.ones((8, 2)), np.ones(8)), batch_size=2)
    problem = bx.Problem(bx.GradientStep(inner, 0.1), outer)
    monkeypatch.setattr(importlib.import_module("bilevax.audit.doctor"), "check_leaves", ends)
    monkeypatch.setattr(importlib.import_module("bilevax.planning.planner"), "_for_budget", ends)
    budget = {"budget": 1e5} if door == "plan" else {}
    with pytest.raises(ResourceError, match=f"there is too little memory for this {'plan' if budget else 'audit'}: "):
        getattr(bx, door)(problem, np.zeros(2), np.zeros(2), rows, rows, key=jax.random.key(0), **budget)


def test_a_fit_that_does_not_fit_is_refused_before_anything_is_compiled(having, refused, monkeypatch):
    X, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    having(0.4 * GB)
    message = "^tuning on 40 rows of 3 columns takes about 629 MB of memory, and 400 MB are free; fewer rows"
    refused(lambda: TunedLogisticRegression().fit(X, y), ResourceError, message)
    monkeypatch.setattr(np, "unique", lambda *a, **k: (_ for _ in ()).throw(MemoryError()))
    for model in (TunedLogisticRegression(), TunedElasticNet()):
        monkeypatch.setattr(type(model), "_validate_params", lambda self: np.unique([]))
        with pytest.raises(ResourceError, match="there is too little memory for this fit: "):
            model.fit(X, y)


def test_a_table_is_refused_before_it_is_read(having, tmp_path):
    (tmp_path / "long.csv").write_text("x,y\n" + "1,2\n" * 1_000_000)
    having(15e6)
    with pytest.raises(ResourceError, match=r"^reading long\.csv takes about 20 MB of memory") as caught:
        read_table(tmp_path / "long.csv")
    assert "fewer rows or columns" in str(caught.value)
    constant = pa.table({"x": np.zeros(2_000_000), "y": np.zeros(2_000_000)})
    parquet.write_table(constant, tmp_path / "flat.parquet")
    assert (tmp_path / "flat.parquet").stat().st_size < 100_000
    having(70e6)
    with pytest.raises(ResourceError, match=r"^reading flat\.parquet takes about 96 MB"):
        read_table(tmp_path / "flat.parquet")


LIMITED = """
import resource, sys
from bilevax.cli import main
{before}
resource.setrlimit(resource.{limit}, (int({size}),) * 2)
main(sys.argv[1:])
"""


def limited(limit, size, *words, cwd, before=""):
    """The command in a process that has a limit."""
    code = LIMITED.format(limit=limit, size=size, before=before)
    process = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(process, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def test_tune_refuses_within_an_address_space_that_would_abort_it(tmp_path):
    table = np.random.default_rng(0).normal(size=(60, 3)).round(2)
    rows = [",".join(map(str, row)) + f",{'ab'[int(row[0] > 0)]}" for row in table]
    (tmp_path / "t.csv").write_text("\n".join(["x,y,z,class", *rows]))
    # what is mapped when the table can be read, and 1 GB: JAX would abort while it starts, or compiles
    before = "import pyarrow.csv, rich.console, rich.live\nfrom bilevax.core import limits\n"
    before += "mapped = limits._number('/proc/self/statm') * limits._PAGE"
    words = "tune", "t.csv", "--target", "class", "--out", "run", "--no-cache", "--model", "linear"
    done = limited("RLIMIT_AS", "mapped + 1e9", *words, cwd=tmp_path, before=before)
    assert done.returncode == 8, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("bilevax: ")]
    assert len(said) == 1
    assert said[0].startswith("bilevax: tuning 60 rows with 3 columns of numbers takes about 1.9 GB of memory, and ")
    assert said[0].endswith("are left (ulimit -v); fewer rows or columns (--drop) take less")
    assert not (tmp_path / "run").exists()


def test_a_file_that_may_not_grow_leaves_what_was_there(tmp_path):
    """Beyond RLIMIT_FSIZE the kernel sends SIGXFSZ, which Python ignores, and then refuses with EFBIG."""
    code = """
import pathlib, resource
from bilevax.core import files
from bilevax.core.errors import StorageError
new, log = pathlib.Path("new"), pathlib.Path("log")
files.write(new, b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
files.append_line(log, {"x": "1" * 80})
for call in (lambda: files.write(new, b"x" * 101), lambda: files.append_line(log, {"x": 1234567})):
    try:
        call()
    except StorageError as e:
        print(e.exit_code, e.strerror)
"""
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    said = "File too large; free some space, or choose another place"
    # of a line that was cut short no reason is known
    full = said.replace("File too large", "No space left on device")
    assert done.stdout.splitlines() == [f"7 cannot write new: {said}", f"7 cannot write log: {full}"]
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {"new": 3, "log": 90}


AUDITED = """
import sys
from types import SimpleNamespace
sys.modules["jax"] = SimpleNamespace(random=SimpleNamespace(key=int))
found = SimpleNamespace(records=list, worst=None, figures=[])
sys.modules["bilevax.audit"] = SimpleNamespace(check=lambda *a, **named: found)
given = dict.fromkeys(("problem", "w0", "lam", "train", "val"), 0)
"""

PREDICTING = """
import numpy as np, bilevax.report.run as report, bilevax.study.run_directory as directory
from bilevax.core.record_lines import Records
from types import SimpleNamespace
model = SimpleNamespace(text_columns=(), number_columns=("x",), columns=("x",), missing={})
model.target, model.classes, model.terms = "y", ("a", "b"), ()
model.predict_mean = lambda table: np.full((table.rows, 2), 0.5)
directory.read_model, report.read_records_of = lambda path: model, lambda path: Records()
"""

TUNING = """
import sys
from types import SimpleNamespace
def tune_table(table, target, *, on_event, **more):
    on_event({"kind": "note", "text": "some words"})
sys.modules["bilevax.study.study"] = SimpleNamespace(tune_table=tune_table, config_at_start=lambda *args: {})
sys.modules["bilevax.runs"] = SimpleNamespace(Run=lambda *args, **more: None)
"""

COMPARING = """
import sys
from types import SimpleNamespace
sys.modules["bilevax.testing"] = SimpleNamespace(__path__=[])
for name, parts in {"entrants": {"ENTRANTS": ["SOBA"], "GRID": []}, "tasks": {"named_task": str},
                    "problems": {"problems": lambda: ["ridge"], "families": lambda name: []},
                    "compare": {"compare": lambda *a, **named: {"problems": ["x" * 2000], "budgets": {}}}}.items():
    sys.modules["bilevax.testing." + name] = SimpleNamespace(**parts)
import bilevax.cli.bench
bilevax.cli.bench.show = print
"""
"""What stands in for the parts of the command that take long."""

WRITING = {
    "tune": (TUNING, ("table.csv", "--target", "x", "--out", "place"), "{tmp_path}/place/manifest.json"),
    "predict": (PREDICTING, ("run", "table.csv", "--out", "place"), "place"),
    "check": ("", ("audited.py:given", "--html", "place"), "place"),
    "bench": (COMPARING, ("ridge", "--out", "place"), "place/comparison.json"),
}


@pytest.mark.parametrize("command", WRITING)
def test_a_full_disk_is_one_line_and_nothing_is_left(command, tmp_path):
    (tmp_path / "audited.py").write_text(AUDITED)
    (tmp_path / "table.csv").write_text("x\n" + "1.5\n" * 100)
    before, words, path = WRITING[command]
    done = limited("RLIMIT_FSIZE", 10, command, *words, cwd=tmp_path, before=before)
    assert done.returncode == 7, done.stderr
    place = path.format(tmp_path=tmp_path)
    assert f"bilevax: cannot write {place}: File too large; free some space, or choose another place\n" in done.stderr
    assert "Traceback" not in done.stderr
    left = {p.name for p in tmp_path.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert left == {"audited.py", "table.csv"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_full_standard_output_is_one_line(tmp_path):
    (tmp_path / "table.csv").write_text("x\n1.5\n")
    code = [sys.executable, "-c", PREDICTING + "import sys\nfrom bilevax.cli import main\nmain(sys.argv[1:])"]
    with open("/dev/full", "w", encoding="utf-8") as full:
        words = "predict", "run", "table.csv"
        done = subprocess.run(
            [*code, *words], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.stderr == "bilevax: cannot write to standard output: No space left on device\n"
    assert done.returncode == 7


@pytest.mark.parametrize("command", ["predict", "check", "bench"])
def test_a_place_that_cannot_be_written_is_refused_at_the_start(command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "closed").mkdir()
    allowed = lambda path, mode: not (mode & os.W_OK and os.path.basename(path) == "closed")  # noqa: E731
    monkeypatch.setattr(os, "access", allowed)  # root may do everything
    words = {"predict": ("run", "none.csv"), "check": ("none.py:x",), "bench": ("ridge",)}[command]
    option = "--html" if command == "check" else "--out"
    places = {"file/new": "/file is no directory", "closed/new": "no permission to write in "}
    if command != "bench":  # which makes its directory
        places |= {"nowhere/new": "/nowhere is no directory", "closed": "Is a directory"}
    for place, reason in places.items():
        with pytest.raises(SystemExit) as ended:
            main([command, *words, option, place, "--force"])
        out, err = capfd.readouterr()
        assert (ended.value.code, out) == (7, "")
        assert err.startswith(f"bilevax: cannot write {place}: ")
        assert reason in err
        assert err.count("\n") == 1


def test_a_place_that_can_be_written_is_not(tmp_path):
    (tmp_path / "here").mkdir()
    files.require_place(tmp_path / "file")
    for directory in ("here", "new", "new/newer"):
        files.require_place(tmp_path / directory, directory=True)
    with pytest.raises(StorageError, match="Is a directory"):
        files.require_place(tmp_path / "here")
