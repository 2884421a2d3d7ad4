"""Rows dealt to devices and processes: one device with the same strata is the reference, for all of them."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import distributed_rig as rig
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.dealt import Dealing
from bilevax.core.strata import Strata
from bilevax.runs.callbacks import Callbacks, Progress
from bilevax.runs.checkpoints import Checkpoint, packed, unpacked

RIG = Path(__file__).with_name("distributed_rig.py")
MESH = jax.make_mesh((1,), ("rows",))
ROWS = np.arange(21.0)


def started(tmp_path, *names, processes=1, devices=1, restarts=0):
    """What a group of processes computes of these."""
    out = tmp_path / "found.npz"
    launch = ["-c", "from bilevax.cli import main; main()", "launch", "-n", str(processes)]
    launch += ["--restarts", str(restarts), "--"]
    words = [*([sys.executable, *launch] if processes > 1 else []), sys.executable, str(RIG), str(out), *names]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    # started again, a group finds its programs
    kept = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = os.environ | {"XLA_FLAGS": flags} | (kept if restarts else {})
    subprocess.run(words, check=True, env=environment, timeout=1200)
    return np.load(out)


def check_equal(found, names):
    train, val = rig.sources(1)
    for name in names:
        np.testing.assert_allclose(found[name], rig.computed(name, train, val), rtol=1e-6, atol=1e-9, err_msg=name)


def test_two_processes_are_as_one(tmp_path):
    names = ["SOBA"]
    check_equal(started(tmp_path, *names, processes=2), names)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("group", [{"devices": 2}, {"processes": 2}, {"processes": 4}], ids=str)
def test_groups_are_as_one_device(tmp_path, group):
    names = [*rig.estimators(), *rig.algorithms()]
    check_equal(started(tmp_path, *names, **group), names)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("group", [{"devices": 2}, {"processes": 2}, {"processes": 4}], ids=str)
def test_w_may_be_dealt_too(tmp_path, group):
    names = ["SID", "SOBA", "AmIGO", "BSGM"]
    found = started(tmp_path, "first", *(f"dealt {name}" for name in names), **group)
    check_equal({name: found[f"dealt {name}"] for name in names}, names)
    # the multiplier is nowhere whole, not even at the start; lam, as long as they, is everywhere
    part = rig.D // sum(group.values())
    assert found["first"].tolist() == [part, part, rig.D]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("processes", [2, 4])
def test_e12_a_run_whose_w_is_dealt_goes_on_to_the_same_bits_after_a_kill(tmp_path, processes):
    found, whole = started(tmp_path, "struck", processes=processes, restarts=1)["struck"]
    np.testing.assert_array_equal(found, whole)
    assert (tmp_path / "found.npz.run.began").read_text().split() == ["0", "20"]
    # a checkpoint is whole: in one process, whose w is too, the run goes on to rounding
    run = bx.Run(tmp_path / "found.npz.run", override=("steps",))
    train, val = rig.sources(1)
    with pytest.warns(UserWarning, match="devices"):
        more = rig.computed("measured", train, val, run, steps=60)
    np.testing.assert_allclose(more, rig.computed("measured", train, val, steps=60), rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_what_differs_between_processes_is_refused_with_its_number(tmp_path):
    found = started(tmp_path, "refusals", processes=2)["refusals"]
    rows, lengths, mesh, start, steps, apart, mixed, plain, none = found
    assert rows.startswith("the source of sharded must be the same in every process, and in process 1 data is ")
    assert "rows is 122, not 123" in lengths
    assert mesh.startswith("each of the 2 processes must have as many devices in the mesh, and they have ")
    assert start.startswith("what hypergradient is given must be the same in every process, and in process 1 w0 is ")
    assert steps == "what minimize is given must be the same in every process, and in process 1 steps is 4, not 3"
    assert apart == "leaf lam is dealt to several processes; give each of them the whole of it"
    assert "in process 1 w0 is float64[4] (crc32" in mixed
    assert mixed.endswith("not float64[4] dealt by P('entries',)")
    assert plain == "leaf w0 is dealt to several processes, so must rows be: use bx.sharded"
    assert not none


def test_what_is_as_long_as_a_leaf_of_w_is_dealt_like_that():
    """By the end of its path, too: leaves of one shape may be dealt each in its way."""
    rows, columns = (jax.NamedSharding(MESH, jax.P(*spec)) for spec in (("rows",), (None, "rows")))
    paths = (("['b']['a']", (2, 2), rows), ("['a']", (2, 2), columns))
    dealing, x, y = Dealing(paths), np.zeros((2, 2)), np.zeros(3)
    found = dealing.shardings({"m": [{"a": x, "b": {"a": x}}], "a": y, "lam": x})
    assert found == {"m": [{"a": columns, "b": {"a": rows}}], "a": dealing.whole, "lam": dealing.whole}
    assert Dealing.of(x).shardings(x) is None


def test_w_and_rows_are_on_the_same_devices():
    dealing = Dealing((("['a']", (4,), jax.NamedSharding(MESH, jax.P("rows"))),))
    elsewhere = SimpleNamespace(mesh=SimpleNamespace(devices=np.array([SimpleNamespace(id=7)])))
    dealing.check((bx.sharded(bx.Arrays(ROWS, 8), MESH, 4), bx.Arrays(ROWS)))
    with pytest.raises(bx.ParameterError, match=r"leaf w0\['a'\] is dealt to the devices \[0\], and rows to \[7\]"):
        dealing.check((elsewhere, bx.Arrays(ROWS)))


def test_which_rows_are_drawn_of_a_stratum_and_how_they_count():
    """Against rows drawn by hand: stratum s of minibatch j is a function of (key, chunk, s) alone."""
    source, key = bx.sharded(bx.Arrays(ROWS, 8), MESH, 4), jax.random.key(3)
    plan = source.plan_chunk(None, key, jnp.int32(256), True)
    sizes = [6, 5, 5, 5]
    for s, size in enumerate(sizes):
        own = jax.random.fold_in(jax.random.fold_in(key, 1), s)
        np.testing.assert_array_equal(plan[s], jax.random.randint(own, (256, 2), 0, size, jnp.int32))
    draw = source.visit(plan, jnp.int32(256 + 7), lambda draw: draw)
    (piece,) = draw.batch.pieces
    # row i is in stratum i mod S
    np.testing.assert_array_equal(piece.rows, 4 * np.asarray(plan[:, 7]) + np.arange(4)[:, None])
    np.testing.assert_allclose(piece.weights, np.array(sizes) / 21)
    mean = sum(n * np.mean(rows**2) for n, rows in zip(sizes, np.asarray(piece.rows), strict=True)) / 21
    np.testing.assert_allclose(draw.batch.mean(lambda rows: jnp.mean(rows**2)), mean)


def test_a_row_that_pads_a_stratum_weighs_nothing():
    source = bx.sharded(bx.Arrays(ROWS), MESH, 4)
    assert source.example().pieces[0].rows.shape == (4, 6)
    of = lambda scale, rows: scale * jnp.mean(jnp.exp(rows / 10))  # noqa: E731
    np.testing.assert_allclose(source.total(of, jnp.float64(2.0)), 2 * np.mean(np.exp(ROWS / 10)), rtol=1e-13)
    # the padding is at least a copy, so that no function of it is infinite
    assert set(np.ravel(source.data)) == set(ROWS)


def test_a_streams_rows_are_those_in_memory(tmp_path):
    values = ROWS**2
    np.save(tmp_path / "x.npy", values)
    one, other = (bx.sharded(x, MESH, 4) for x in (bx.Arrays(values, 8), bx.Stream(tmp_path / "x.npy", 8)))
    np.testing.assert_array_equal(one.data, other.data)
    np.testing.assert_array_equal(one.known, other.known)
    changed = bx.sharded(bx.Arrays(np.where(ROWS == 6, 7, values), 8), MESH, 4)
    assert np.flatnonzero(one.known != changed.known).tolist() == [2]


def test_a_loss_that_knows_its_curvature_has_it_over_strata():
    from bilevax.problems.strata import over_strata

    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(21, 3)), rng.normal(size=21)
    source = bx.sharded(bx.Arrays((X, y)), MESH, 4)
    problem = bx.Problem(bx.GradientStep(bx.Squared("feature"), 1.0), bx.Squared())
    lifted, w, lam = over_strata(problem, source), jnp.ones((1, 3)), jnp.zeros(3)
    batch = source.visit((), jnp.int32(0), lambda draw: draw.batch)
    assert isinstance(batch, Strata)
    largest = np.linalg.eigvalsh(X.T @ X / 21)[-1]
    bound = float(lifted.inner_loss.curvature(w, batch))
    assert largest <= bound < 4 * largest
    np.testing.assert_allclose(lifted.inner_loss(w, lam, batch), problem.inner_loss(w, lam, (X, y)), rtol=1e-12)
    plain = over_strata(problem, bx.Arrays((X, y)))
    assert plain is problem
    assert over_strata(lifted, source) == lifted


def test_a_checkpoint_is_sent_as_it_is_read():
    arrays = {"x": np.arange(6.0).reshape(2, 3), "key": jax.random.key(3), "short": jnp.ones(2, jnp.bfloat16)}
    sent = Checkpoint(7, {"a": [1, None, "x"]}, arrays)
    found = unpacked(packed(sent))
    assert (found.step, found.content, list(found.arrays)) == (7, {"a": [1, None, "x"]}, list(arrays))
    np.testing.assert_array_equal(found.arrays["x"], arrays["x"])
    assert found.arrays["short"].dtype == jnp.bfloat16
    assert found.arrays["key"] == arrays["key"]


def test_one_process_alone_shows_and_writes():
    seen = []
    # a history of None is what ShowProgress could not show
    assert not Callbacks([bx.ShowProgress(), seen.append], writes=False)(Progress(1, 2, 0.0, 0.0, None))
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("source", "strata", "sentence"),
    [
        (bx.Arrays(ROWS, 9), 4, "strata=4 must divide batch_size=9"),
        (bx.Arrays(ROWS), 22, "strata=22 must be at most the number of rows, 21"),
        (bx.Arrays(ROWS, 8, "shuffled"), 4, 'sampling="shuffled" draws others'),
        (bx.Arrays(ROWS, 8, keys=True), 4, "leave out keys=True"),
        (bx.Arrays(ROWS, 8), 0, "strata must be at least 1, got 0"),
        (ROWS, 4, "deals the rows of a bx.Arrays or a bx.Stream, got ndarray"),
    ],
)
def test_what_cannot_be_dealt_is_refused(source, strata, sentence):
    with pytest.raises(bx.ParameterError, match=sentence):
        bx.sharded(source, MESH, strata)


def test_devices_that_do_not_divide_the_strata_are_refused():
    from bilevax.data.shards import _check_fit

    with pytest.raises(bx.ParameterError, match="strata=8 cannot be dealt to 3 devices: their number must divide it"):
        _check_fit(8, 21, 8, np.array([jax.devices()[0]] * 3))


def test_saba_needs_blocks_and_says_so():
    train, val = rig.sources(1)
    with pytest.raises(bx.ParameterError, match="blocks"):
        bx.minimize(rig.problem(), bx.SABA(), np.zeros(4), np.zeros(4), train, val, steps=3, key=jax.random.key(0))
