"""Passes over rows that are dealt to processes: the same bits as in one, however many; faults end all of them."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from test_many_rows import opened, write

from bilevax.cli import main
from bilevax.core.errors import DataError, ParameterError
from bilevax.core.processes import STRATA, Pairwise, Processes
from bilevax.core.record_lines import read_records
from bilevax.core.run_records import Compared, Note
from bilevax.sklearn import TunedAdditiveRegressor
from bilevax.sklearn.additive_base import learn_from
from bilevax.study import read_model
from bilevax.study.additive import fit_additive
from bilevax.study.preparation import prepare
from bilevax.study.row_set import RowSet
from bilevax.tables.file_set import concatenated
from bilevax.tables.marginals import NumberCounts
from bilevax.tables.packed import packed, unpacked
from bilevax.tables.table import Column, Table, object_array


def together(count, work):
    """What each of so many processes finds, which are threads here; a fault of one is raised."""
    barrier, told, found = threading.Barrier(count), [b""] * count, [None] * count

    def gathered(number, mine):
        told[number] = mine
        barrier.wait(60)
        every = list(told)
        barrier.wait(60)
        return every

    def run(number):
        try:
            found[number] = work(Processes(number, count, lambda mine: gathered(number, mine)))
        except BaseException as e:
            found[number] = e
            barrier.abort()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for e in found:
        if isinstance(e, BaseException) and not isinstance(e, threading.BrokenBarrierError):
            raise e
    return found


@pytest.mark.parametrize("empty", [(), (0, 3), (4, 5, 6, 7), range(1, 8)], ids=str)
def test_sums_over_strata_have_the_same_bits_in_any_number_of_processes(empty):
    rng = np.random.default_rng(0)
    pieces = [
        (s, rng.normal(size=3) * 10.0 ** rng.integers(-8, 8)) for s in np.repeat(range(STRATA), 3) if s not in empty
    ]

    def work(processes):
        tree = Pairwise(np.add)
        for s, x in pieces:
            if s in processes.strata:
                tree.add(s, x)
        own = tree.total()
        assert tree.total() is None
        return processes.summed(np.zeros(3) if own is None else own)

    (one,) = together(1, work)
    np.testing.assert_allclose(one, sum(x for _, x in pieces), rtol=1e-6)
    for count in (2, 4, 8):
        for found in together(count, work):
            np.testing.assert_array_equal(found, one)


def test_partial_sums_are_few():
    tree, most = Pairwise(np.add), 0
    for s in np.repeat(range(STRATA), 2):
        tree.add(s, 1.0)
        most = max(most, len(tree._nodes))
    assert most == 4
    assert tree.total() == 2 * STRATA


def test_long_sums_are_told_in_slices(monkeypatch):
    monkeypatch.setattr("bilevax.core.processes.SLICE", 3)
    x = np.arange(8.0).reshape(2, 4)
    for found in together(2, lambda processes: processes.summed((1 + processes.number) * x)):
        np.testing.assert_array_equal(found, 3.0 * x)


def test_what_differs_and_numbers_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="the rows must be the same in every process, and in process 1 n is 1, not 0"):
        together(2, lambda processes: processes.require_same("the rows", {"n": processes.number}))
    assert together(2, lambda processes: processes.any(processes.number == 1)) == [True, True]
    assert together(2, lambda processes: processes.of_first(b"%d" % processes.number)) == [b"0", b"0"]
    with pytest.raises(ParameterError, match="rows are dealt to 1, 2, 4 or 8 processes, got 3"):
        Processes(0, 3)


def test_a_table_comes_out_of_its_bytes_as_it_was():
    text = Column("t", "text", object_array(["a", None, "ü\n"]))
    columns = Column("x", "number", np.array([1.0, np.nan, np.inf])), Column("d", "date", np.arange(3.0), "day-first")
    found = unpacked("n", packed(Table("n", (*columns, text), kept=(text,))))
    for column, right in zip((*found.columns, *found.kept), (*columns, text, text), strict=True):
        assert (column.name, column.kind, column.order) == (right.name, right.kind, right.order)
        np.testing.assert_array_equal(column.values, right.values)
    assert [c.name for c in found.kept] == ["t"]


def test_every_row_is_of_one_stratum(tmp_path, monkeypatch):
    monkeypatch.setattr("bilevax.tables.file_set.FEWEST", 300)
    monkeypatch.setattr("bilevax.tables.file_set.MOST", 300)
    every, _ = opened(write(tmp_path / "set"))
    whole = concatenated(every.pieces).column("wave").values
    # row groups of 500 rows; and rows that are only to be had with all others
    for pieces in (every.pieces, every.pieces._replace(starts=(), between=None)):
        dealt = [list(pieces.dealt(range(s, s + 1))) for s in range(STRATA)]
        assert [{pieces.stratum(t) for t in each} for each in dealt] == [{s} for s in range(STRATA)]
        tables = [table for each in dealt for table in each]
        np.testing.assert_array_equal(np.concatenate([table.column("wave").values for table in tables]), whole)
        assert [t.before for t in tables] == np.cumsum([0, *(t.rows for t in tables)])[:-1].tolist()
        assert max(sum(t.rows for t in each) for each in dealt) <= 1000
        assert sum(t.rows for t in pieces.dealt(range(4, 8))) == sum(t.rows for each in dealt[4:] for t in each)


def test_numbers_around_edges_that_are_too_many_in_all_are_forgotten(monkeypatch):
    x = np.random.default_rng(0).normal(size=40_000)
    counts = [NumberCounts(x[:5000]) for _ in range(2)]
    for half, each in zip(np.split(x, 2), counts, strict=True):
        each.add(half)
    states = [each.state() for each in counts]
    for half, each in zip(np.split(x, 2), counts, strict=True):
        each.join(states)
        assert each.found().weight.sum() == len(x)
        each.choose()
        sieve = each.sieve()
        each.add_around(sieve, sieve(half))
    states = [each.state() for each in counts]
    kept = {name: array.copy() for name, array in states[0].items()}
    monkeypatch.setattr("bilevax.tables.marginals.AROUND", len(states[0]["around"]) + 1)
    coarse = len(counts[0].found().values)
    counts[0].join(states)
    assert len(counts[0].found().values) < coarse
    assert counts[0].found().weight.sum() == len(x)
    counts[1].forget()
    monkeypatch.undo()
    # what one process has forgotten all forget
    counts[0].restore(kept)
    assert counts[0].state()["told"].any()
    counts[0].join([kept, counts[1].state()])
    assert not counts[0].state()["told"].any()


@pytest.fixture(name="small")
def few_rows(monkeypatch):
    """Limits of a test's size."""
    monkeypatch.setattr("bilevax.study.row_set.ROWS", 400)
    monkeypatch.setattr("bilevax.tables.file_set.FEWEST", 300)
    monkeypatch.setattr("bilevax.tables.file_set.MOST", 300)


def test_the_model_has_the_same_bits_in_four_processes_and_goes_on_in_two(tmp_path, small, monkeypatch):
    folder, rng = write(tmp_path / "set"), np.random.default_rng(3)
    for path in folder.iterdir():
        # of more numbers than there are bins
        table = parquet.read_table(path)
        wave = pa.array(table["wave"].to_numpy() + 0.05 * rng.normal(size=len(table)))
        parquet.write_table(table.set_column(0, "wave", wave), path, row_group_size=500)
    every, settings = opened(folder)
    pieces = every.pieces

    def work(processes):
        every = RowSet(pieces, "y", settings, processes)
        if processes.number == 0:
            every.keep_in(tmp_path / "checkpoints")
        prepared = prepare(every.sample(), "y", settings)
        every.begin(prepared, lambda: False)
        every.count()
        model = TunedAdditiveRegressor(choose=False, pairs=False, random_state=0)
        learn_from(model, every)
        model.fit(prepared.features.take(prepared.split.train), prepared.target.values[prepared.split.train])
        return every.rows, model.notes_, model.model_.to_plain()

    ((rows, notes, one),) = together(1, work)
    assert rows == 4000 - len(range(3, 4000, 29))
    assert "fitted to all rows in a pass" in notes
    assert np.load(tmp_path / "checkpoints" / "pass_counts.npz")["passes"] == 2
    # what one kept is not read
    (tmp_path / "checkpoints").rename(tmp_path / "of one")
    assert all(found == (rows, notes, one) for found in together(4, work))
    # and then it is, by all of them
    read: list[str] = []
    monkeypatch.setattr(RowSet, "_training", lambda self, name: read.append(name) or iter(()))
    assert all(found == (rows, notes, one) for found in together(2, work))
    assert not read


def test_a_comparison_that_one_ends_is_ended_by_all_at_the_same_fold(tmp_path, small):
    every, settings = opened(write(tmp_path / "set"))

    def work(processes):
        rows, said = RowSet(every.pieces, "y", settings, processes), []

        def stage(name, done=0, **more):
            return processes.number == 1 and name == "comparing models" and done == 2

        fit_additive(prepare(rows.sample(), "y", settings), settings, said.append, stage, time.perf_counter(), rows)
        return [record.text for record in said if isinstance(record, Note)]

    first, second = together(2, work)
    assert first == second
    assert first[0] == "the candidates were compared on 156 of 388 rows"


LIMITS = """
import os, signal, sys
class Limits:
    def find_spec(self, name, path, target=None):
        if name != "bilevax.cli.entry":
            return
        sys.meta_path.remove(self)
        import bilevax.cli.source as source, bilevax.study.row_set as rows, bilevax.tables.file_set as files
        rows.ROWS, source.HELD, files.FEWEST, files.MOST = 1500, 100, 300, 300
        inner, number = rows.RowSet._gone_through, os.environ.get("BILEVAX_GROUP_NUMBER")
        def gone_through(self, name, *of):
            os.write(2, f"{number} {name}\\n".encode())
            for k, item in enumerate(inner(self, name, *of)):
                if k == 1 and (number, name) == (os.environ.get("WHO"), os.environ.get("END")):
                    if os.environ["BILEVAX_GROUP_STARTS"] == "0":
                        os.kill(os.getpid(), signal.SIGKILL)
                yield item
        rows.RowSet._gone_through = gone_through
sys.meta_path.insert(0, Limits())
"""


@pytest.fixture(name="launch")
def launcher(tmp_path):
    """``bilevax launch`` in a process of its own, with limits of a test's size."""
    (tmp_path / "sitecustomize.py").write_text(LIMITS)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    def run(*words, processes=2, **more):
        command = [sys.executable, "-c", "from bilevax.cli import main; main()", "launch", "-n", str(processes), "--"]
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}
        done = subprocess.run(
            [*command, *words], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False, timeout=600
        )
        return done.returncode, done.stdout, done.stderr

    return run


TUNE = ("tune", "set", "--target", "y", "--no-pairs", "--time", "1s")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["number", "classes"])
def test_tune_in_processes_is_tune_in_one(tmp_path, launch, task):
    write(tmp_path / "set", task=task)
    models = []
    for processes in (1, 2, 4):
        code, out, said = launch(*TUNE, "--out", f"out{processes}", "--json", processes=processes)
        assert code == 0, said
        assert (out[0], out.count("\n")) == ("{", 1)
        models.append(read_model(tmp_path / f"out{processes}"))
        assert said.count("fitting to every row, pass 1\n") == processes
    whole = concatenated(opened(tmp_path / "set")[0].pieces)
    one, *others = (model.predict_mean(whole) for model in models)
    for other in others:
        np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-9)
    assert models[0].to_plain() == models[1].to_plain() == models[2].to_plain()


@pytest.mark.slow
@pytest.mark.parametrize("who", ["0", "1"])
def test_a_group_of_which_one_was_killed_goes_on_at_the_pass(tmp_path, launch, who):
    write(tmp_path / "set", task="classes")
    second = "fitting to every row, pass 2"
    assert launch(*TUNE, "--out", "whole", processes=1)[0] == 0
    began = time.monotonic()
    code, out, said = launch(*TUNE, "--out", "out", "--quiet", WHO=who, END=second)
    assert code == 0, said
    assert time.monotonic() - began < 120
    assert f"bilevax: process {who} was ended by SIGKILL; starting again" in said
    assert out == "out/report.html\n"
    names = [line for line in said.splitlines() if line.startswith("0 ")]
    first = ["drawing rows", "counting what columns hold", "fitting to every row, pass 1", second]
    assert names[:4] == [f"0 {name}" for name in first]
    assert names[4:6] == ["0 drawing rows", f"0 {second}"]
    assert read_model(tmp_path / "out").to_plain() == read_model(tmp_path / "whole").to_plain()
    # a run that has ended is not begun anew
    assert launch("resume", "out")[0] == 0


@pytest.mark.slow
def test_faults_are_said_once_and_end_all(tmp_path, launch):
    folder = write(tmp_path / "set")
    began = time.monotonic()
    code, _, said = launch(*TUNE[:3], "nonesuch", "--out", "out")
    assert (code, said.count("no column")) == (4, 1)
    assert said.splitlines()[-1] == "bilevax: process 0 ended with code 4"
    # of rows of the second process
    path = folder / "part2.parquet"
    whole, start = path.read_bytes(), parquet.read_metadata(path).row_group(1).column(0).data_page_offset
    path.write_bytes(whole[:start] + bytes(255 - x for x in whole[start : start + 300]) + whole[start + 300 :])
    code, _, said = launch(*TUNE, "--out", "out")
    assert (code, said.count("part2.parquet, row group 1")) == (4, 1)
    assert "bilevax: process 1 ended with code 4" in said
    assert not (tmp_path / "out").exists()
    assert time.monotonic() - began < 120


@pytest.mark.slow
def test_a_table_that_fits_is_tuned_by_one(tmp_path, launch):
    code, _, said = launch("tune", "iris", "--no-pairs", "--time", "1s", "--out", "out")
    assert code == 0, said
    assert "iris fits into memory, where other processes are of no use: one of them tunes" in said
    records = read_records((tmp_path / "out" / "metrics.jsonl").read_bytes(), "metrics.jsonl")
    assert records.of(Compared)
    assert not [note for note in records.of(Note) if "processes" in note.text]


@pytest.mark.slow
def test_a_signal_ends_the_passes_in_all(tmp_path, launch):
    write(tmp_path / "set")
    # the group is told by launch
    stop = LIMITS.replace("os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getppid(), signal.SIGTERM)")
    (tmp_path / "sitecustomize.py").write_text(stop)
    code, _, said = launch(*TUNE, "--out", "out", WHO="1", END="fitting to every row, pass 1")
    assert code == 128 + signal.SIGTERM
    assert "the model is fitted to the rows that it was chosen on" in said
    assert read_model(tmp_path / "out").target == "y"


def test_assisting_is_what_launch_starts(capfd):
    with pytest.raises(SystemExit) as ended:
        main(["assist"])
    assert ended.value.code == 2
    assert "assist is what `bilevax launch` has processes do" in capfd.readouterr().err
