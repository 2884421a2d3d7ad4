"""A file of bins: the same bins as of the table, the same model with and without it, and nothing of it is left."""

import io
import os
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from test_dealt_passes import together
from test_many_rows import opened, write

from bilevax.sklearn import TunedAdditiveClassifier, TunedAdditiveRegressor
from bilevax.sklearn.additive_base import learn_from
from bilevax.study.bin_file import kept_by
from bilevax.study.preparation import prepare
from bilevax.study.row_set import FITTING, RowSet
from bilevax.tables.effects import category, number
from bilevax.tables.marginals import NumberCounts
from bilevax.tables.table import Column, Table, object_array

N = 40_000
RNG = np.random.default_rng(0)
COLUMNS = {
    "normal": RNG.normal(size=N),
    "skewed": np.exp(3.0 * RNG.normal(size=N)),
    "heavy tails": RNG.standard_cauchy(N),
    "far from zero": 1.7e9 + RNG.normal(size=N),
    "half zeros": np.where(RNG.random(N) < 0.5, 0.0, RNG.normal(size=N)),
    "tens": RNG.integers(0, 40, N) / 10.0,
    "hundreds": RNG.integers(0, 500, N) * 0.01,
    "two": RNG.integers(0, 2, N).astype(float),
    "one": np.zeros(N),
    "missing": np.where(RNG.random(N) < 0.1, np.nan, RNG.normal(size=N)),
    "huge": RNG.standard_cauchy(N) * 1e300,
    "tiny": RNG.standard_cauchy(N) * 1e-308,
}


@pytest.mark.parametrize("name", COLUMNS)
def test_bins_are_those_of_the_numbers(name):
    """Of rows of which some are known before, and some are absent, whose bins are known after they went by."""
    x = COLUMNS[name]
    counts, pieces, absent = NumberCounts(x[::5]), np.split(x, 4), np.arange(0, N // 4, 100)
    for piece in pieces:
        counts.add(piece, absent)
    counts.choose()
    sieve = counts.sieve()
    found = [sieve(piece, absent) for piece in pieces]
    for each in found:
        counts.add_around(sieve, each)
    values, rows, distinct = counts.found()
    there = np.delete(np.arange(N // 4), absent)
    assert rows.sum() == 4 * len(there)
    effect = number("x", values, rows / 3.0, distinct=distinct)
    bins = sieve.bins(effect)
    assert bins is not None
    for piece, (codes, near) in zip(pieces, found, strict=True):
        got = sieve.codes(effect, bins, SimpleNamespace(codes=codes[there], near=near))
        np.testing.assert_array_equal(got, effect.codes(piece[there]))
        assert got.dtype == effect.codes(piece).dtype
    assert sum(len(near) for _, near in found) < 0.2 * N
    # an edge where none was expected is noticed
    elsewhere = number("x", np.append(x[: N // 50], np.nextafter(x[:10], np.inf)))
    table = sieve.bins(elsewhere)
    if table is not None:
        np.testing.assert_array_equal(sieve.codes(elsewhere, table, found[0]), elsewhere.codes(_without(x, absent)))


def _without(x, absent):
    out = x[: N // 4].copy()
    out[absent] = np.nan
    return out


def test_bins_of_effects_that_are_known_are_kept_by_themselves(tmp_path):
    x, z = COLUMNS["missing"], np.array(["a", "b", None, "c"], object)[RNG.integers(0, 4, N)]
    table = Table("t", (Column("x", "number", x), Column("z", "text", object_array(z.tolist()))))
    effects = number("x", x[:200]), category("z", z[z != "c"])
    for effect, cells in zip(effects, (x, z), strict=True):
        how = kept_by(effect)
        source = SimpleNamespace(column=effect.name, kind="text" if effect.edges is None else "number", part="")
        found = how(cells) if effect.edges is not None else SimpleNamespace(codes=how(table, source))
        np.testing.assert_array_equal(how.codes(effect, how.bins(effect), found), effect.codes(cells))


def fitted(folder, keep, task="number", processes=None, passes=None):
    """The model, what passes had to say, and how often the table was gone through."""
    every, settings = opened(folder)
    every = every if processes is None else RowSet(every.pieces, "y", settings, processes)
    begun, inner = [], every._tables
    every._tables = lambda name: begun.append(name) or inner(name)
    prepared = prepare(every.sample(), "y", settings)
    if keep is not None and every.processes.number == 0:
        every.keep_in(keep)
    every.begin(prepared, lambda: False)
    every.count()
    model = (TunedAdditiveRegressor if task == "number" else TunedAdditiveClassifier)(
        choose=False, pairs=False, random_state=0
    )
    learn_from(model, every)
    rows = prepared.split.train
    model.fit(prepared.features.take(rows), prepared.target.values[rows])
    return model.model_.to_plain(), every.notes, sum(name.startswith(FITTING) for name in begun)


@pytest.fixture(name="small", scope="module")
def few_rows():
    """Limits of a test's size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bilevax.study.row_set.ROWS", 400)
        patch.setattr("bilevax.tables.file_set.FEWEST", 300)
        patch.setattr("bilevax.tables.file_set.MOST", 300)
        yield


@pytest.fixture(name="known", scope="module")
def model_without(small, tmp_path_factory):
    """A set one of whose columns has more numbers than there are bins, and the model without a file of these."""
    folder, rng = write(tmp_path_factory.mktemp("some") / "set", 2000), np.random.default_rng(3)
    for path in folder.iterdir():
        table = parquet.read_table(path)
        wave = pa.array(table["wave"].to_numpy() + 0.05 * rng.normal(size=len(table)))
        parquet.write_table(table.set_column(0, "wave", wave), path, row_group_size=500)
    model, notes, passes = fitted(folder, None)
    assert (notes, passes) == ([], 1)
    return folder, model


def test_a_step_does_not_read_the_table_and_has_the_same_bits(known, tmp_path, monkeypatch):
    folder, whole = known
    assert fitted(folder, tmp_path / "one") == (whole, [], 0)
    # a file without a name
    assert sorted(os.listdir(tmp_path / "one")) == ["pass_counts.npz", "pass_model0.npz"]
    for found in together(2, lambda processes: fitted(folder, tmp_path / "two", processes=processes)):
        assert found == (whole, [], 0)
    # where an edge is elsewhere than was thought
    monkeypatch.setattr("bilevax.tables.sieve.Sieve.bins", lambda *of: None)
    assert fitted(folder, tmp_path / "three") == (whole, [], 1)


def test_steps_after_the_first_read_bins_where_none_were_placed(tmp_path, small):
    folder = write(tmp_path / "set", 2000, task="classes")
    whole, notes, passes = fitted(folder, None, "classes")
    assert passes > 1
    assert notes == []
    assert fitted(folder, tmp_path / "checkpoints", "classes") == (whole, [], 1)


def test_a_disk_without_room_is_said_and_the_table_read(known, tmp_path, monkeypatch):
    folder, whole = known
    free = SimpleNamespace(free=40_000)
    monkeypatch.setattr("bilevax.tables.kept_arrays.shutil.disk_usage", lambda path: free)
    model, (note,), passes = fitted(folder, tmp_path / "one")
    assert (model, passes) == (whole, 1)
    assert note.startswith(
        "each pass reads the table, as there is no file of its bins: 0 MB are more than half of what"
    )
    monkeypatch.undo()
    monkeypatch.setattr("bilevax.core.files.unnamed", lambda folder: io.FileIO("/dev/full", "r+"))
    model, (note,), passes = fitted(folder, tmp_path / "two")
    assert (model, passes) == (whole, 1)
    assert "No space left on device; free some space" in note
