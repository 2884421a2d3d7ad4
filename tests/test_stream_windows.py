"""Rows in windows of groups: their law, and data sets of many files against the same rows in memory."""

import collections
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

import bilevax as bx
from bilevax.testing import check_source

KEY = jax.random.key(2)
SIZES = np.array([30, 7, 19, 30, 30, 11, 30, 23])
N, B, D = int(SIZES.sum()), 8, 3
RNG = np.random.default_rng(4)
X, Y = RNG.normal(size=(N, D)), RNG.normal(size=N)


@jax.jit
def numbers_of(source, key):
    """The numbers of the rows of every minibatch of eleven epochs."""
    return source.fold(
        lambda seen, args, j, draw: seen.at[j].set(draw.batch),
        jnp.zeros((11 * (N // B), B), jnp.int32), (), key=key, start=0, stop=11 * (N // B),
    )  # fmt: skip


WINDOWS = bx.Arrays(np.arange(N, dtype=np.int32), B, "windows", groups=SIZES, window=3)
GROUP = np.repeat(np.arange(len(SIZES)), SIZES)


def test_an_epoch_has_every_row_at_most_once_and_goes_from_window_to_window():
    epoch = N // B
    drawn = np.asarray(numbers_of(WINDOWS, KEY))
    orders = [drawn[i * epoch : (i + 1) * epoch].ravel() for i in range(3)]
    for order in orders:
        assert len(set(order.tolist())) == epoch * B
        left, begun, most = collections.Counter(GROUP[order].tolist()), set(), 0
        for group in GROUP[order].tolist():
            begun.add(group)
            left[group] -= 1
            most = max(most, sum(left[g] > 0 for g in begun))
        assert most <= 6  # groups of the window that is read, and of that in which the epoch began
    assert not np.array_equal(orders[0], orders[1])
    # within a window rows of several groups are mixed
    assert np.mean(np.diff(GROUP[orders[0]]) != 0) > 0.4


def test_every_row_is_as_likely_in_every_minibatch():
    """Though the groups have 7 to 30 rows: without the turn one in a small group would come first twice as often."""
    keys = jax.random.split(KEY, 360)
    # the first minibatches of eleven epochs
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: numbers_of(WINDOWS, key)[:: N // B]))(keys))
    drawn = drawn.reshape(-1, B)
    counts, p = np.bincount(drawn.ravel(), minlength=N), B / N
    z = (counts - len(drawn) * p) / np.sqrt(len(drawn) * p * (1 - p))
    assert np.abs(z).max() < 4.5
    # rows of a group come together: their mean is noisier than of independent ones
    by_group = np.bincount(GROUP, weights=counts) / SIZES / (len(drawn) * p)
    assert np.abs(by_group - 1.0).max() < 0.15


def write(folder, X=X, Y=Y):
    """Three files, of 3, 2 and 3 row groups."""
    folder.mkdir()
    start, parts = 0, [SIZES[:3], SIZES[3:5], SIZES[5:]]
    for i, sizes in enumerate(parts):
        with pq.ParquetWriter(folder / f"part{i}.parquet", schema()) as file:
            for size in sizes:
                rows = slice(start, start + size)
                columns = {"y": Y[rows], "a": X[rows, 0], "text": ["x"] * int(size), "b": X[rows, 1], "c": X[rows, 2]}
                file.write_table(pa.table(columns, schema()), row_group_size=int(size))
                start += size
    return folder


def schema():
    return pa.schema([("y", "f8"), ("a", "f8"), ("text", "string"), ("b", "f8"), ("c", "f8")])


COLUMNS = (["a", "b", "c"], "y")


def stream(folder, b=B, **options):
    data = pyarrow.dataset.dataset(folder)
    return bx.Stream(data, b, "windows", columns=COLUMNS, window=3, **options)


def in_memory(b=B):
    return bx.Arrays((X, Y), b, "windows", groups=SIZES, window=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("set") / "files")


@jax.jit
def sums(source):
    def note(seen, args, j, draw):
        return seen.at[j].set(jnp.append(draw.batch[0].sum(0), draw.batch[1].sum()))

    return source.fold(note, jnp.zeros((66, D + 1)), (), key=KEY, start=0, stop=66)


def test_a_data_set_of_many_files_draws_as_arrays_do(folder):
    source = stream(folder)
    assert source.rows == N
    np.testing.assert_allclose(sums(source), sums(in_memory()), rtol=1e-12)
    total = jax.jit(lambda source: source.total(lambda args, batch: batch[0].mean(0), ()))
    np.testing.assert_allclose(total(source), X.mean(0), rtol=1e-12)


def inner_loss(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def outer_loss(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y - 1.0) ** 2)


@pytest.mark.slow
def test_hypergradients_runs_and_reports_are_those_of_arrays(folder):
    problem, start = bx.Problem(bx.GradientStep(inner_loss), outer_loss), (jnp.zeros(D), jnp.zeros(D))
    sid = bx.SID(bx.FixedPoint(300, 0.5), bx.CG(1e-9), cross_batches=40)
    est = [bx.hypergradient(problem, sid, *start, make, make, key=KEY) for make in (stream(folder), in_memory())]
    assert int(est[0].code) == int(est[1].code)
    for x, y in zip(*(jax.tree.leaves((e.value, e.w, e.outer_value, e.error)) for e in est), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9)
    runs = [
        bx.minimize(problem, bx.SOBA(0.1, 0.1), *start, make, make, steps=200, key=KEY)
        for make in (stream(folder), in_memory())
    ]
    for x, y in zip(*(jax.tree.leaves((r.w, r.lam)) for r in runs), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
    assert bx.check(problem, *start, stream(folder), in_memory(), key=KEY).worst is not None
    plans = [bx.plan(problem, *start, make, make, key=KEY, budget=30_000) for make in (stream(folder), in_memory())]
    assert isinstance(plans[0].train, bx.Stream)
    assert plans[0].estimator == plans[1].estimator


@pytest.mark.slow
def test_the_suite_of_sources(folder):
    check_source(in_memory())
    check_source(stream(folder), (X, Y))


def test_draws_of_single_rows_are_refused_and_windows_without_groups(folder, refused):
    data = pyarrow.dataset.dataset(folder)
    for sampling in ("iid", "shuffled", "blocks"):
        make = lambda: bx.Stream(data, B, sampling, columns=COLUMNS)  # noqa: B023, E731
        refused(make, bx.ParameterError, 'these rows are in 8 groups .*; give sampling="windows"')
    refused(lambda: bx.Stream((X, Y), B, "windows"), bx.ParameterError, "is of rows in groups")
    refused(lambda: bx.Arrays(X, B, "windows"), bx.ParameterError, "needs groups=, the numbers of rows")
    refused(lambda: bx.Arrays(X, B, groups=SIZES), bx.ParameterError, "and of no other")
    refused(lambda: bx.Arrays(X, B, "windows", groups=[N + 1]), bx.ParameterError, f"whose sum is n={N}")
    refused(
        lambda: stream(folder, prefetch_bytes=1000), bx.ParameterError, "a window of 3 groups takes up to 2,880 bytes"
    )
    refused(
        lambda: bx.Stream(data, B, "windows", columns=("no", "y")), bx.DataError, "part0.parquet has no column 'no'"
    )
    refused(
        lambda: bx.Stream(data, B, "windows"),
        bx.DataError,
        "column 'text' is string in row group 0 of .*, and no number",
    )
    problem, start = bx.Problem(bx.GradientStep(inner_loss), outer_loss), (jnp.zeros(D), jnp.zeros(D))
    saba = lambda: bx.minimize(problem, bx.SABA(), *start, stream(folder), in_memory(), steps=3, key=KEY)  # noqa: E731
    refused(saba, bx.ParameterError, "blocks")
    refused(lambda: bx.Stream((X, Y), B, columns="y"), bx.ParameterError, "columns= are those of a pyarrow.dataset")


ENDED = jax.errors.JaxRuntimeError, ValueError


def test_a_file_that_vanishes_and_a_damaged_group_are_named(tmp_path):
    folder = write(tmp_path / "set")
    source = stream(folder)
    known = np.asarray(sums(source))
    path = folder / "part1.parquet"
    whole = path.read_bytes()

    def afresh():
        return sums(stream(folder)).block_until_ready()

    source = stream(folder)
    path.unlink()
    with pytest.raises(ENDED, match=r"part1\.parquet is gone"):
        sums(source).block_until_ready()
    # damage in the pages of the first row group, behind the magic number, and not in the footer
    path.write_bytes(whole[:4] + bytes(255 - x for x in whole[4:400]) + whole[400:])
    with pytest.raises(ENDED, match=r"row group 0 of .*part1\.parquet cannot be read"):
        afresh()
    path.write_bytes(whole)
    np.testing.assert_array_equal(sums(source), known)


def test_two_schemas_are_named(tmp_path):
    folder = write(tmp_path / "set")
    pq.write_table(pa.table({"y": [1, 2], "a": [0.0, 1.0], "b": [0.0, 1.0], "c": [0.0, 1.0]}), folder / "part9.parquet")
    with pytest.raises(bx.DataError, match=r"column 'y' is double in .*part0.parquet and int64 in .*part9.parquet"):
        stream(folder)
    pq.write_table(
        pa.table({"y": [1.0, None], "a": [0.0, 1.0], "b": [0.0, 1.0], "c": [0.0, 1.0]}), folder / "part9.parquet"
    )
    with pytest.raises(ENDED, match=r"column 'y' has 1 missing cells in row group 0 of .*part9\.parquet"):
        sums(stream(folder)).block_until_ready()


def run(folder, **options):
    problem, start = bx.Problem(bx.GradientStep(inner_loss), outer_loss), (jnp.zeros(D), jnp.zeros(D))
    few = 8 * (D + 1) * 100  # a piece has one minibatch, and a window or two are kept
    sources = stream(folder, prefetch_bytes=few), in_memory()
    return bx.minimize(problem, bx.SOBA(0.1, 0.1), *start, *sources, steps=300, every=37, key=KEY, **options)


def gone(path):
    path.unlink()


def damaged(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + bytes(255 - x for x in whole[4:400]) + whole[400:])


FAULTS = {"gone": (gone, r"part1\.parquet is gone"), "damaged": (damaged, r"row group 0 of .*part1\.parquet cannot be")}


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "sentence"), FAULTS.values(), ids=FAULTS)
def test_a_run_on_files_that_fail_goes_on_to_the_same_bits(tmp_path, fault, sentence):
    folder = write(tmp_path / "set")
    known, path = run(folder), folder / "part1.parquet"
    whole = path.read_bytes()

    def fail(progress):
        if progress.step == 111:  # in the middle of the fifth epoch
            fault(path)

    with pytest.raises(bx.DataError, match=sentence) as caught:
        run(folder, run=bx.Run(tmp_path / "run", seconds=1e-9), callback=fail)
    assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    steps = []
    again = run(folder, run=tmp_path / "run", callback=lambda progress: steps.append(progress.step))
    assert 0 < steps[0] <= 148
    for x, y in zip(*(jax.tree.leaves((r.w, r.lam)) for r in (again, known)), strict=True):
        np.testing.assert_array_equal(x, y)


KILLED = """
import os, sys
from pathlib import Path
import jax
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, sys.argv[1])
import bilevax as bx
from test_stream_windows import run

def kill(progress):
    if progress.step == 148:
        os.kill(os.getpid(), 9)


run(Path(sys.argv[2]), run=bx.Run(sys.argv[3], seconds=1e-9), callback=kill)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_in_the_middle_of_an_epoch_to_the_same_bits(tmp_path):
    folder = write(tmp_path / "set")
    words = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(folder), str(tmp_path / "run")]
    assert subprocess.run(words, capture_output=True, text=True, check=False).returncode == -9
    steps = []
    again = run(folder, run=tmp_path / "run", callback=lambda progress: steps.append(progress.step))
    assert steps[0] > 111
    for x, y in zip(*(jax.tree.leaves((r.w, r.lam)) for r in (again, run(folder))), strict=True):
        np.testing.assert_array_equal(x, y)
