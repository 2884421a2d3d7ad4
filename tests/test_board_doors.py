"""Faults E7, E9, F11 and F12 (docs/reliability.md): clocks, threads, settings nested deeply, bytes of any kind."""

import ast
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import bilevax
from bilevax.cli.threads import one_thread
from bilevax.core import manifest
from bilevax.core.errors import BilevaxError, CorruptError, UsageError
from bilevax.core.run_files import FORMAT, KIND, RunFiles
from bilevax.report import write_report
from bilevax.report.run import run_of
from bilevax.tables.read import read_table

SOURCES = Path(bilevax.__file__).parent
FINISHED = {"state": "finished", "interrupted": False}

# E7


WALL = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}
ALLOWED = {"core/files.py", "runs/tensorboard.py"}
"""Since when a lock is held, and when TensorBoard's points were made: shown to people, nothing is computed of them."""


def calls(tree):
    """(what, name) of each call of an attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of = node.func.value
            yield of.attr if isinstance(of, ast.Attribute) else getattr(of, "id", ""), node.func.attr
        elif isinstance(node, ast.Attribute):
            yield "", node.attr


def test_e7_no_clock_that_can_be_set_is_read_and_no_file_is_known_by_its_time():
    """Durations are of time.monotonic and its like; checkpoints are in the order of their steps."""
    read = {"wall": set(), "mtime": set()}
    for path in SOURCES.rglob("*.py"):
        text = path.read_text()
        if "time" not in text:
            continue
        name, found = path.relative_to(SOURCES).as_posix(), set(calls(ast.parse(text)))
        if found & WALL:
            read["wall"].add(name)
        if any(what in ("st_mtime", "st_mtime_ns", "st_ctime", "getmtime", "getctime") for _, what in found):
            read["mtime"].add(name)
    assert read["wall"] <= ALLOWED
    assert not read["mtime"]


# E9


PROGRAM = """
from bilevax.cli.threads import one_thread
one_thread()
import jax, pathlib, threadpoolctl
x = jax.numpy.ones((100, 100))
jax.block_until_ready(jax.jit(lambda x: x @ x)(x))
names = [path.read_text().strip() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
assert names.count("tf_XLAEigen") == 1, names
assert all(pool["num_threads"] == 1 for pool in threadpoolctl.threadpool_info()), threadpoolctl.threadpool_info()
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads cannot be counted")
def test_e9_deterministic_takes_one_thread():
    """Of XLA, and of the libraries of numpy."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("NUM_THREADS")}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment | {"NPROC": "3"})
    assert done.returncode == 0, done.stderr


def test_e9_deterministic_is_asked_for_before_jax_is_imported(monkeypatch):
    with pytest.raises(UsageError, match="--deterministic comes too late"):
        one_thread()
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setattr(os, "environ", {})
    one_thread()
    assert os.environ["NPROC"] == os.environ["OPENBLAS_NUM_THREADS"] == "1"


# F11


@pytest.mark.parametrize("depth", [100, 100_000])
@pytest.mark.parametrize("name", ["config.toml", "coefficients.json"])
def test_f11_settings_nested_deeply_are_refused_by_name(tmp_path, name, depth):
    """Or read, where they are not too deep: no error of another library, no end of the stack."""
    nested = "[" * depth + "]" * depth
    contents = {"metrics.jsonl": '{"kind": "note", "text": "."}\n'}
    contents[name] = f"a = {nested}" if name.endswith("toml") else f'{{"more": {nested}}}'
    for file, text in contents.items():
        (tmp_path / file).write_text(text)
    listed = {file: manifest.fingerprint(text.encode()) for file, text in contents.items()}
    manifest.write(tmp_path, KIND, FORMAT, listed, FINISHED)
    if depth == 100:
        assert write_report(tmp_path).exists()
        return
    with pytest.raises(CorruptError, match=name):
        write_report(tmp_path)


# F12


def strings(number):
    """Random bytes, and such of which more is understood."""
    rng = np.random.default_rng(0)
    alphabets = [bytes(range(256)), b'a1,;\t"\n\r \0e.-', b'[]{}="\n a1.#', b'{}[]:,"01 etrufalsn\\']
    for i in range(number):
        alphabet = np.frombuffer(alphabets[i % len(alphabets)], np.uint8)
        yield rng.choice(alphabet, rng.integers(0, 120)).tobytes()


def readers(root):
    """Each reads such bytes: of a table, of the files of a run, of a manifest."""
    table, step = root / "t.csv", root / "step"
    step.mkdir(parents=True)

    def of(file):
        return lambda content: run_of(RunFiles(root, FINISHED, {"metrics.jsonl": b"", file: content}, {}))

    def read(path, reader):
        def write_and_read(content):
            path.write_bytes(content)
            return reader()

        return write_and_read

    return {
        "table": read(table, lambda: read_table(table)),
        "config": of("config.toml"),
        "metrics": of("metrics.jsonl"),
        "coefficients": of("coefficients.json"),
        "manifest": read(step / "manifest.json", lambda: manifest.read(step, "checkpoint", 1)),
    }


def read_all(root, number):
    """How many of so many strings each reader took; what it raises is of our own, and within a second."""
    found = readers(root)
    taken = dict.fromkeys(found, 0)
    for content in strings(number):
        for name, read in found.items():
            began = time.process_time()
            try:
                read(content)
                taken[name] += 1
            except BilevaxError:
                pass
            assert time.process_time() - began < 1.0, content
    return taken


def test_f12_random_bytes_raise_what_is_ours(tmp_path):
    taken = read_all(tmp_path, 400)
    assert taken["manifest"] == 0
    assert all(0 < taken[name] < 400 for name in ("table", "config", "metrics"))


@pytest.mark.slow
def test_f12_a_hundred_thousand_byte_strings(tmp_path):
    read_all(tmp_path / "first", 4000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_all(tmp_path / "all", 100_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
