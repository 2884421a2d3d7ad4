"""Tables of more rows than memory holds: what passes say of all rows, and ``tune`` and ``predict`` on sets of files."""

import os
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from bilevax.cli import main
from bilevax.cli.source import open_rows
from bilevax.core.errors import DataError, ParameterError
from bilevax.core.record_lines import read_records
from bilevax.core.run_records import Data, Effect, Note
from bilevax.linalg.places import CELLS
from bilevax.sklearn import TunedAdditiveClassifier, TunedAdditiveRegressor
from bilevax.sklearn.additive_base import learn_from
from bilevax.solvers.additive_families import Binomial, Gamma, Gaussian, Multinomial, Poisson
from bilevax.solvers.additive_fit import data, penalties
from bilevax.solvers.additive_marginal import Marginal
from bilevax.solvers.additive_models import ADDITIVE, ONE_PENALTY, PENALTY_EACH, AdditiveFit, Rows
from bilevax.solvers.additive_passes import Passing
from bilevax.solvers.additive_stack import with_pairs
from bilevax.study import TuneSettings, read_model
from bilevax.study.preparation import prepare
from bilevax.study.row_set import RowSet, _add
from bilevax.tables.additive import Source, bins
from bilevax.tables.ahead import ahead
from bilevax.tables.effects import category, number
from bilevax.tables.file_set import concatenated, files_of, open_set
from bilevax.tables.marginals import LevelCounts, NumberCounts
from bilevax.tables.reading import Reading
from bilevax.tables.table import CodedColumn

N = 3000
RNG = np.random.default_rng(0)


def rows_of(family, n=N):
    """A wave, a step, noise and a category; what the family draws."""
    x, z = RNG.normal(size=(n, 3)), np.array(list("abc"), object)[RNG.integers(0, 3, n)]
    effects = (*(number(f"x{j}", x[:, j], smooth=4, coarse=8) for j in range(3)), category("z", z))
    codes = tuple(e.codes(v) for e, v in zip(effects, [*x.T, z], strict=True))
    s = 0.7 * np.sin(2 * x[:, 0]) + 0.5 * (x[:, 1] > 0.0) + 0.3 * (z == "a") + 0.3 * x[:, 0] * x[:, 1]
    y = {
        "Gaussian": lambda: s + 0.5 * RNG.normal(size=n),
        "Binomial": lambda: (RNG.logistic(size=n) < 2.0 * s).astype(float),
        "Poisson": lambda: RNG.poisson(np.exp(s)).astype(float),
        "Gamma": lambda: np.exp(s) * RNG.gamma(4.0, 0.25, n),
        "Multinomial": lambda: (s > 0.5).astype(int) + RNG.integers(0, family.scores, n),
    }[type(family).__name__]()
    return Rows(effects, codes, y, np.ones(n), np.zeros((n, family.scores)), family, (0,) * 4)


def passed(rows, fit):
    """In pieces of 700 rows, until it has settled."""
    model = Passing(fit)
    going = True
    while going:
        for start in range(0, len(rows.y), 700):
            at = np.arange(start, min(start + 700, len(rows.y)))
            model.add(model.sums([c[at] for c in rows.codes], rows.y[at], rows.weight[at]))
        model.end()
        going = model.step()
    return model.fitted(rows.effects)


FAMILIES = {
    "gaussian": (Gaussian(), ADDITIVE),
    "binomial": (Binomial(), ADDITIVE),
    "one penalty": (Binomial(), ONE_PENALTY),
    "poisson": (Poisson(dispersed=True), PENALTY_EACH),
    "gamma": (Gamma(), PENALTY_EACH),
    "classes": (Multinomial(3), PENALTY_EACH),
    "many classes": (Multinomial(12), PENALTY_EACH),
}


@pytest.mark.parametrize(("family", "candidate"), FAMILIES.values(), ids=FAMILIES)
def test_passes_end_where_the_gradient_of_all_rows_is_zero(family, candidate):
    rows = rows_of(family)
    part = AdditiveFit(rows.take(np.arange(400)), candidate)
    fit = passed(rows, part)
    b, rho = fit.found.outer.fits[0].b, fit.found.rho
    d = data(fit.columns(rows.codes), rows.y, family, rows.weight)
    X = d.X.dense()
    penalty = penalties(rho, fit.marginal.part)[:, None]

    def gradient(b):
        return X.T @ family.losses(X @ b, rows.y).slope + penalty * b

    # what the step to it promises, of the log-likelihood, by the curvature of one score that bounds that of each
    H = X.T @ X * np.max(family.losses(X @ b, rows.y).curvature[:, 0, 0]) + np.diag(penalty[:, 0])
    left, before = (
        float(np.sum(g * np.linalg.solve(H, g))) for g in (gradient(b), gradient(part.found.outer.fits[0].b))
    )
    assert left < 1e-2
    assert left < 1e-3 * before
    np.testing.assert_allclose(fit.scores(rows.codes), X @ b, atol=1e-9)
    assert np.isfinite(fit.evidence()).all()
    assert all(np.isfinite(e).all() for e in fit.errors(getattr(family, "contrasts", np.eye(1))))


def test_of_gaussian_rows_a_pass_has_the_marginal_likelihood_and_the_best_penalties():
    rows = rows_of(Gaussian())
    part = with_pairs(AdditiveFit(rows.take(np.arange(1200)), ADDITIVE))
    assert part.pairs
    fit, like = passed(rows, part), part.marginal
    whole = Marginal(data(fit.columns(rows.codes), rows.y, rows.family, rows.weight), rows.family, like.part)
    whole.least = fit.marginal.least
    found, there = fit.found, whole(fit.found.rho)
    np.testing.assert_allclose(found.outer.value - found.outer.prior, there.value, rtol=1e-10)
    np.testing.assert_allclose(found.outer.phi, there.phi, rtol=1e-9)
    np.testing.assert_allclose(found.outer.fits[0].b, there.fits[0].b, atol=1e-8)
    # of 1,200 rows the penalties were others
    best = fit.retuned(whole, part.found.rho)
    np.testing.assert_allclose(found.rho, best.rho, atol=1e-4)
    assert np.abs(part.found.rho - best.rho).max() > 0.05


def test_rows_that_vary_more_where_weights_depend_on_them_do_so_in_passes():
    """The dispersion is that of all rows, as far as the rows of high leverage vary more than others in the sample."""
    rows = rows_of(Gaussian(), 6000)
    x = rows.effects[0].centre[np.minimum(rows.codes[0], len(rows.effects[0].centre) - 1)]
    rows = rows._replace(y=rows.y + x**2 * RNG.normal(size=len(rows.y)))
    part = AdditiveFit(rows.take(np.arange(3000)), PENALTY_EACH)
    fit = passed(rows, part)
    whole = Marginal(data(fit.columns(rows.codes), rows.y, rows.family, rows.weight), rows.family, fit.marginal.part)
    alone = whole(fit.found.rho)
    right = whole.spread(alone)
    assert right > 1.3 * alone.phi
    np.testing.assert_allclose(fit.found.outer.phi, right, rtol=0.15)


def test_a_model_whose_parts_share_penalties_has_the_same_columns_of_other_rows():
    x = RNG.normal(size=(60, 40))
    effects = tuple(number(f"x{j}", x[:, j], smooth=4, coarse=1) for j in range(40))
    codes = tuple(e.codes(v) for e, v in zip(effects, x.T, strict=True))
    rows = Rows(
        effects, codes, x[:, 0] + 0.1 * RNG.normal(size=60), np.ones(60), np.zeros((60, 1)), Gaussian(), (0,) * 40
    )
    fit = AdditiveFit(rows, ADDITIVE)
    assert fit.model.note
    np.testing.assert_allclose(fit.columns(codes).dense(), fit.marginal.data.X.dense()[:, 1:], atol=1e-10)


def test_counts_of_pieces_are_those_of_the_column():
    x = np.concatenate([RNG.integers(0, 40, 5000) / 10.0, np.full(30, np.nan)])
    counts, levels = NumberCounts(x[:300]), LevelCounts()
    texts = np.array([None if np.isnan(v) else f"{v:g}" for v in x], object)
    for piece in np.split(np.arange(len(x)), [1000, 1700]):
        # two rows that are not meant, in front
        counts.add(np.append([0.3, np.nan], x[piece]), np.arange(2))
        levels.add(texts[piece])
    values, count, _ = counts.found()
    known, right = np.unique(x[~np.isnan(x)], return_counts=True)
    np.testing.assert_array_equal(values[:-1], known)
    np.testing.assert_array_equal(count, [*right, 30])
    there = {f"{v:g}": c for v, c in zip(known, right, strict=True)}
    assert dict(zip(*map(list, levels.found()[:2]), strict=True)) == {**there, None: 30}


@pytest.mark.parametrize("near", [0.0, 1.7e9])
def test_numbers_are_told_apart_by_the_edges_of_groups(near):
    """Also where float32, in which they are sorted, rounds to an edge; numbers far from zero it does not tell apart."""
    known = near + RNG.normal(size=300)
    counts = NumberCounts(known)
    assert (counts._sorted.dtype == np.float32) == (near == 0.0)
    edges = counts._edges
    assert np.all(np.diff(np.searchsorted(np.sort(known), edges)) == 1)
    x = np.concatenate([edges, np.nextafter(edges, np.inf), known, [np.inf, -np.inf, 1e300, np.nan]])
    counts.add(x)
    right = np.searchsorted(np.sort(x[:-1]), edges, side="right")
    np.testing.assert_array_equal(np.cumsum(counts.state()["count"]), [*right, len(x) - 1])
    assert counts.state()["missing"] == 1
    nothing = NumberCounts(np.full(3, np.nan))
    nothing.add(x)
    assert nothing.found().weight.sum() == 1


@pytest.mark.parametrize("ties", [False, True])
def test_quantiles_by_counts_are_those_of_all_rows(ties):
    """Of a skewed column, of which 20,000 rows are known before; after a second pass to the row."""
    x = np.exp(np.random.default_rng(2).normal(size=200_000))
    if ties:
        x[::3], x[::7] = 1.0, np.inf
    counts = NumberCounts(x[:20_000])
    for piece in np.split(x, 4):
        counts.add(piece)
    right = number("x", x)

    def apart():
        """Largest difference of edges, in rows."""
        values, rows, distinct = counts.found()
        found = number("x", values, rows, distinct=distinct)
        np.testing.assert_allclose(found.weight.sum(), len(x))
        ranks = np.searchsorted(np.sort(x), [found.edges, right.edges])
        return np.abs(ranks[0] - ranks[1]).max()

    assert 9 < apart() < 200
    assert counts.choose()
    sieve = counts.sieve()
    for piece in np.split(x, 4):
        counts.add_around(sieve, sieve(piece))
    # of ties it is guessed how many different numbers there are between edges
    assert apart() <= (9 if ties else 1)
    np.testing.assert_allclose(number("x", *counts.found()[:2], distinct=counts.found()[2]).centre, right.centre, 0.02)
    counts.forget()
    assert 9 < apart() < 200


@pytest.mark.parametrize("scale", [1.0, 1e-308, 1e300])
def test_bins_are_the_same_however_they_are_looked_up(scale):
    x = np.append(RNG.standard_cauchy(2 * CELLS) * scale, [np.nan, 1.7e308, -1.7e308])
    effect = number("x", np.clip(RNG.normal(size=500), -3, 3) * scale)
    x = np.concatenate([x, *(np.nextafter(effect.edges, to) for to in (-np.inf, np.inf)), effect.edges])
    right = np.where(np.isnan(x), len(effect.edges) + 1, np.searchsorted(effect.edges, x, side="right"))
    np.testing.assert_array_equal(effect.codes(x), right)


def write(folder, n=4000, task="number", seed=1):
    """Three files; a wave, a step with missing cells, noise, a category, and a few rows without a target."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    # of so few different numbers that each has a bin
    x, z = rng.normal(size=(n, 3)).round(1), np.array(list("abc"))[rng.integers(0, 3, n)]
    s = np.sin(2.0 * x[:, 0]) + 0.8 * (x[:, 1] > 0.0) + 0.5 * (z == "a")
    x[::17, 1] = np.nan
    labels = np.where(rng.logistic(size=n) < 3.0 * (s - 0.5), "yes", "no")
    y = s + 0.5 * rng.normal(size=n) if task == "number" else labels
    mask = np.arange(n) % 29 == 3
    for part, at in enumerate(np.array_split(np.arange(n), 3)):
        columns = {"wave": x[at, 0], "step": x[at, 1], "noise": x[at, 2], "z": z[at]}
        columns["y"] = pa.array(y[at].tolist(), mask=mask[at])
        parquet.write_table(pa.table(columns), folder / f"part{part}.parquet", row_group_size=500)
    return folder


@pytest.fixture(name="small")
def few_rows(monkeypatch):
    """Limits of a test's size: a choice is made on 1,500 rows, pieces have 300."""
    monkeypatch.setattr("bilevax.study.row_set.ROWS", 1500)
    monkeypatch.setattr("bilevax.cli.source.HELD", 100)
    monkeypatch.setattr("bilevax.tables.file_set.FEWEST", 300)
    monkeypatch.setattr("bilevax.tables.file_set.MOST", 300)


def opened(folder, **options):
    settings = TuneSettings(pairs=False, **options)
    pieces = open_set(folder.name, files_of(str(folder)), settings.reading)
    return RowSet(pieces, "y", settings), settings


def test_texts_that_are_read_as_numbers_of_words_are_those_of_the_file(tmp_path):
    words = [*["a", " a ", "", None, "b", "?"] * 200, "c"]
    parquet.write_table(pa.table({"z": words, "x": range(1201)}), tmp_path / "set.parquet", row_group_size=500)
    reading = Reading(missing={"z": ("?",)})
    tables = list(open_set("set", [tmp_path / "set.parquet"], reading).tables())
    right = np.array([None if word in ("", None, "?") else word.strip() for word in words], object)
    effect, counts, before = category("z", right), LevelCounts(), 0
    for table in tables:
        column, there = table.column("z"), right[before : before + table.rows]
        assert isinstance(column, CodedColumn)
        np.testing.assert_array_equal(column.missing, np.equal(there, None))
        np.testing.assert_array_equal(bins(table, Source("z", "text"), effect), effect.codes(there))
        _add(table, np.flatnonzero(np.arange(table.rows) % 7 == 0), Source("z", "text"), counts)
        np.testing.assert_array_equal(column.take(np.arange(5)).values, there[:5])
        np.testing.assert_array_equal(column.values, there)
        before += table.rows
    assert before == len(words)
    used = np.concatenate([np.arange(table.rows) % 7 > 0 for table in tables])
    assert dict(zip(*map(list, counts.found()[:2]), strict=True)) == Counter(right[used].tolist())


def test_every_row_trains_once_a_pass_but_those_of_the_test(tmp_path, small):
    every, settings = opened(write(tmp_path / "set"))
    prepared = prepare(every.sample(), "y", settings)
    every.begin(prepared, lambda: False)
    whole = concatenated(every.pieces)
    assert every.rows == np.sum(~np.isnan(whole.column("y").values)) < whole.rows
    test = prepared.target.values[prepared.split.test]
    for _ in range(2):
        y = np.concatenate([y for _, _, y in every.rows_of_pass()])
        # the values tell the rows apart
        known = whole.column("y").values
        np.testing.assert_array_equal(np.sort(np.concatenate([y, test])), np.sort(known[~np.isnan(known)]))
    # rows that are shown have their numbers in the set
    places = every.of_all(prepared).places
    np.testing.assert_array_equal(whole.column("y").values[places], prepared.target.values)


@pytest.mark.parametrize("task", ["number", "classes"])
def test_the_model_of_all_rows_is_that_of_the_rows_in_memory(tmp_path, small, task):
    every, settings = opened(write(tmp_path / "set", 6000, task))
    prepared = prepare(every.sample(), "y", settings)
    every.begin(prepared, lambda: False)
    every.count()
    make = TunedAdditiveRegressor if task == "number" else TunedAdditiveClassifier
    rows = prepared.split.train
    models = [make(choose=False, pairs=False, random_state=0) for _ in range(3)]
    learn_from(models[0], every)
    models[0].fit(prepared.features.take(rows), prepared.target.values[rows])
    tables, y = zip(*((table.take(there), y) for table, there, y in every.rows_of_pass()), strict=True)
    whole = concatenated(every.pieces, tables)
    models[1].fit(whole, np.concatenate(y))
    models[2].fit(prepared.features.take(rows), prepared.target.values[rows])
    found, known, part = (model.model_.scores(model.model_.codes(whole)) for model in models)
    # of 1,500 rows the curves are others
    apart, before = (float(np.sqrt(np.mean((s - known) ** 2)) / np.std(known)) for s in (found, part))
    assert apart < 0.03
    assert before > 3.0 * apart
    assert models[0].drop_columns_ == models[1].drop_columns_ == ("noise",)
    assert sum(models[0].curves_["z"].weight) == whole.rows
    np.testing.assert_allclose(models[0].dispersion_, models[1].dispersion_, rtol=0.1)


@pytest.fixture(name="run")
def runner(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return ended.value.code, *capfd.readouterr()

    return run


def test_tune_and_predict_on_a_set(tmp_path, small, run):
    write(tmp_path / "set")
    code, _, said = run("tune", "set", "--target", "y", "--out", "out", "--no-pairs", "--time", "1s")
    assert code == 0, said
    records = read_records((tmp_path / "out" / "metrics.jsonl").read_bytes(), "metrics.jsonl")
    notes = [note.text for note in records.of(Note)]
    assert any("4,000 rows are too many to hold: 1,875 of them" in note for note in notes)
    assert "fitted to all rows in a pass" in notes
    (data,) = records.of(Data)
    rows = data.rows.train + data.rows.test
    assert rows == 4000 - len(range(3, 4000, 29))
    assert {e.name: e.droppable for e in records.of(Effect)} == {
        "wave": False,
        "step": False,
        "z": False,
        "noise": True,
    }
    assert run("predict", "out", "set/part*.parquet", "--out", "p.csv")[0] == 0
    lines = (tmp_path / "p.csv").read_text().splitlines()
    whole = concatenated(open_set("set", files_of("set"), Reading()))
    predicted = read_model(tmp_path / "out").predict_mean(whole)
    np.testing.assert_allclose(np.array(lines[1:], float), predicted, rtol=1e-6)
    # of fewer rows the same command has a table
    assert open_rows(str(tmp_path / "set" / "part0.parquet"), Reading())[0].rows == 1334


def test_what_cannot_be_is_refused_and_faults_of_files_are_one_sentence(tmp_path, small, run):
    folder = write(tmp_path / "set")
    tune = ("tune", "set", "--target", "y", "--out", "out", "--no-pairs")
    for words, sentence in {
        ("--group", "z"): "--group splits rows of a table that fits into memory; set does not",
        ("--time-column", "wave"): "--time-column splits rows",
        ("--model", "linear"): "--model linear is of a table that fits into memory",
    }.items():
        code, _, said = run(*tune, *words)
        assert (code, sentence in said, said.count("\n")) == (3, True, 1), said
    path = folder / "part1.parquet"
    whole = path.read_bytes()
    # row groups of 500 rows; pieces have 300
    start = parquet.read_metadata(path).row_group(1).column(0).data_page_offset
    path.write_bytes(whole[:start] + bytes(255 - x for x in whole[start : start + 300]) + whole[start + 300 :])
    code, _, said = run(*tune)
    assert code == 4
    assert "part1.parquet, row group 1: no readable Parquet file" in said.splitlines()[-1]
    path.write_bytes(whole)
    other = parquet.read_table(path)
    parquet.write_table(other.set_column(0, "wave", other["wave"].cast("f4")), path)
    code, _, said = run(*tune)
    assert code == 4
    sentence = "column 'wave' is double in part0.parquet and float in part1.parquet; all must be alike"
    assert sentence in said.splitlines()[-1]
    parquet.write_table(other.drop_columns(["z"]), path)
    assert "part1.parquet has no column 'z', which part0.parquet has" in run(*tune)[2]
    assert not (tmp_path / "out").exists()


def test_a_file_that_vanishes_between_passes_is_named(tmp_path, small):
    folder = write(tmp_path / "set")
    every, settings = opened(folder)
    prepared = prepare(every.sample(), "y", settings)
    every.begin(prepared, lambda: False)
    (folder / "part2.parquet").unlink()
    with pytest.raises(DataError, match=r"^part2\.parquet is gone$"):
        every.count()
    with pytest.raises(ParameterError, match="--model linear"):
        opened(folder, model="linear")


class Passes(RowSet):
    """A set that notes its passes, one of which has a fault."""

    def __init__(self, *args):
        super().__init__(*args)
        self.begun, self.fault = [], None

    def _gone_through(self, name, items, before):
        self.begun.append(name)
        for item in super()._gone_through(name, items, before):
            if name == self.fault and before(item) > 1000:
                raise DataError("the disk is gone")
            yield item


def test_passes_that_were_made_are_not_made_again(tmp_path, small):
    folder, settings = write(tmp_path / "set", task="classes"), TuneSettings(pairs=False)

    def fitted(fault=None, keep=True):
        every = Passes(open_set("set", files_of(str(folder)), settings.reading), "y", settings)
        prepared = prepare(every.sample(), "y", settings)
        every.fault = fault
        if keep:
            every.keep_in(tmp_path / "checkpoints")
        every.begin(prepared, lambda: False)
        model, rows = TunedAdditiveClassifier(choose=False, pairs=False, random_state=0), prepared.split.train
        learn_from(model, every)
        try:
            every.count()
            model.fit(prepared.features.take(rows), prepared.target.values[rows])
        except DataError:
            return every.begun, None
        return every.begun, model.model_.to_plain()

    first, second = (f"fitting to every row, pass {k}" for k in (1, 2))
    counting = ["drawing rows", "counting what columns hold"]
    begun, whole = fitted(keep=False)
    assert begun[:4] == [*counting, first, second]
    assert fitted(counting[1]) == (counting, None)
    assert fitted(second) == ([*counting, first, second], None)
    path = tmp_path / "checkpoints" / "pass_model0.npz"
    kept = path.read_bytes()
    # what is damaged is made again
    path.write_bytes(kept[:2000])
    assert fitted(second) == (["drawing rows", first, second], None)
    assert fitted() == (["drawing rows", *begun[3:]], whole)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_at_the_pass(tmp_path, run):
    write(tmp_path / "set", task="classes")
    limits = """
import os, signal, sys
import bilevax.cli.source, bilevax.study.row_set as rows, bilevax.tables.file_set as files
rows.ROWS, bilevax.cli.source.HELD, files.FEWEST, files.MOST = 1500, 100, 300, 300
inner = rows.RowSet._gone_through
def gone_through(self, name, items, before):
    print(name, flush=True)
    for item in inner(self, name, items, before):
        if before(item) > 1000 and name == "fitting to every row, pass " + os.environ.get("END", ""):
            os.kill(os.getpid(), signal.SIGKILL)
        yield item
rows.RowSet._gone_through = gone_through
from bilevax.cli import main
main()
"""

    names = "drawing rows", "counting what columns hold", "placing the bins"

    def begun(*words, end=""):
        command = [sys.executable, "-c", limits, *words]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "END": end}, check=False)
        return done.returncode, [line for line in done.stdout.splitlines() if line in names or "pass " in line]

    tune = ("tune", "set", "--target", "y", "--no-pairs", "--quiet", "--out")
    code, passes = begun(*tune, "whole")
    assert code == 0
    assert begun(*tune, "out", end="2")[0] == -signal.SIGKILL
    code, again = begun("resume", "out")
    assert code == 0
    second = "fitting to every row, pass 2"
    assert again == ["drawing rows", *passes[passes.index(second) :]]
    assert read_model(tmp_path / "out").to_plain() == read_model(tmp_path / "whole").to_plain()
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_labels_that_no_drawn_row_has_are_named(tmp_path, small):
    folder = write(tmp_path / "set", task="classes")
    every, settings = opened(folder)
    every.begin(prepare(every.sample(), "y", settings), lambda: False)
    path = folder / "part1.parquet"
    table = parquet.read_table(path)
    parquet.write_table(table.set_column(4, "y", pa.array(["yes", "perhaps"] * 667)[: len(table)]), path)
    with pytest.raises(DataError, match=r"part1\.parquet: target 'y' has the label 'perhaps', which none of the rows"):
        every.count()


def test_a_signal_ends_the_passes_and_keeps_what_there_is(tmp_path, small, run, monkeypatch):
    write(tmp_path / "set")
    inner = RowSet.bins_of_pass

    def interrupted(self, *of, again):
        for k, piece in enumerate(inner(self, *of, again=again)):
            if k == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield piece

    monkeypatch.setattr(RowSet, "bins_of_pass", interrupted)
    code, _, said = run("tune", "set", "--target", "y", "--out", "out", "--no-pairs", "--time", "1s")
    assert code == 130
    assert "the model is fitted to the rows that it was chosen on" in said
    assert read_model(tmp_path / "out").target == "y"
    monkeypatch.setattr(RowSet, "bins_of_pass", inner)
    assert run("resume", "out")[0] == 0
    notes = read_records((tmp_path / "out" / "metrics.jsonl").read_bytes(), "metrics.jsonl").of(Note)
    assert "fitted to all rows in a pass" in [note.text for note in notes]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_file_that_memory_does_not_hold_is_noticed(tmp_path, small, monkeypatch, suffix):
    folder = write(tmp_path / "set")
    whole = concatenated(open_set("set", files_of(str(folder)), Reading()))
    table = pa.concat_tables([parquet.read_table(file) for file in sorted(folder.iterdir())])
    path = tmp_path / f"one.{suffix}"
    if suffix == "csv":
        from pyarrow import csv

        csv.write_csv(table, path)
    else:
        parquet.write_table(table, path)
    assert open_rows(str(path), Reading())[0].rows == whole.rows
    monkeypatch.setattr("bilevax.tables.large_file.fits", lambda need: need < 1e5)
    monkeypatch.setattr("bilevax.tables.large_file.FIRST", 20_000)
    pieces, _ = open_rows(str(path), Reading())
    assert not hasattr(pieces, "columns")
    found = concatenated(pieces)
    for column, right in zip(found.columns, whole.columns, strict=True):
        assert (column.name, column.kind == "text") == (right.name, right.kind == "text")
        np.testing.assert_array_equal(column.values, right.values)
    assert pieces.sha256 == open_rows(str(path), Reading())[0].sha256


def test_the_next_item_is_made_while_one_is_in_use_and_its_fault_comes_out():
    made = []

    def items():
        for k in range(4):
            made.append(k)
            yield k
        raise DataError("the disk is gone")

    gone = ahead(items())
    for k in range(4):
        assert next(gone) == k
        assert len(made) <= k + 2
    with pytest.raises(DataError, match="the disk is gone"):
        next(gone)
