"""Runs that go on from a checkpoint: to the same bits, or refused with what differs."""

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core import files
from bilevax.core.config import config
from bilevax.core.signals import Stops
from bilevax.runs import checkpoints, course
from bilevax.runs.identity import check_same, described, identity
from bilevax.testing.closed_forms import FiniteQuadratic

KEY = jax.random.key(5)
P = FiniteQuadratic.random(0, n=75, d=6, m=3)
W0 = np.linspace(-1.0, 1.0, 6)
TARGETS = {"target": np.random.default_rng(1).normal(size=(40, 6)), "r": np.linspace(0.05, 0.15, 40)}
TRAIN, VAL = bx.Arrays(P.train_data, 7, "blocks"), bx.Arrays(TARGETS, 6, "blocks")
SOBA = bx.SOBA(0.3 / P.curvature.L, 0.05)
STEPS = 1100
SABA = bx.SABA()  # measures its steps, and keeps a table


ODD = {"a": {"array": "x"}, "b": {"number": 3}}  # what a description of an array or a number looks like elsewhere


class KilledError(Exception):
    """Stands for the end of the process."""


def run(algorithm=SABA, *, problem=P.problem, start=(W0, P.lam), data=(TRAIN, VAL), steps=STEPS, every=256, **options):
    """In calls of 256 steps, so that a checkpoint after every call is after so many."""
    key = options.pop("key", KEY)
    return bx.minimize(problem, algorithm, *start, *data, steps=steps, key=key, every=every, **options)


def killed(directory, step, **options):
    """A run that ends there without a word; a checkpoint after every call."""

    def die(progress):
        if progress.step >= step:
            raise KilledError

    with contextlib.suppress(KilledError):
        run(run=bx.Run(directory, seconds=0), callback=[*options.pop("callbacks", []), die], **options)


def same_bits(a, b):
    assert a.code == b.code
    assert a.cost == b.cost
    assert a.config == b.config
    for x, y in zip(jax.tree.leaves((a.w, a.lam)), jax.tree.leaves((b.w, b.lam)), strict=True):
        assert np.array_equal(x, y)
    for name in set(a.history._fields) - {"seconds"}:
        assert np.array_equal(getattr(a.history, name), getattr(b.history, name)), name


@pytest.fixture(scope="module")
def undisturbed():
    return run()


@pytest.fixture
def begun(tmp_path):
    """A run of SABA that was killed after step 768, whose last checkpoint is of step 512."""
    killed(tmp_path / "run", 768)
    return tmp_path / "run"


def steps_kept(directory):
    return sorted(int(name[5:13]) for name in files.names(directory) if name[0] == "s")


def test_a_run_that_was_killed_goes_on_to_the_same_bits(tmp_path, undisturbed):
    directory = tmp_path / "run"
    for step in (1, 300, 600, 1000):
        killed(directory, step)
        assert not files.is_locked(directory)
    result = run(run=directory)
    same_bits(result, undisturbed)
    assert np.all(np.diff(result.history.seconds) > 0)
    assert steps_kept(directory) == [512, 768, 1100]  # the last three


def test_a_run_that_has_ended_gives_its_result_at_once(tmp_path, undisturbed):
    run(run=tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    result = run(run=tmp_path / "run", callback=lambda _: pytest.fail("there is nothing to do"))
    same_bits(result, undisturbed)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@config
class Hasty(bx.SOBA):
    """SOBA with measured steps that are four times too long."""

    defaults: ClassVar[Defaults] = Defaults(8.0, 0.1)


@pytest.mark.slow
def test_what_was_tried_is_not_tried_again(tmp_path):
    """Steps that were made slower stay slower, and count."""
    given = {"algorithm": Hasty(), "every": 1, "steps": 12}
    whole = run(**given)
    tried = whole.config["slower_from"]
    assert len(set(tried)) > 1
    for step in sorted({at for at in tried if at}):
        killed(tmp_path / "run", step, **given)
    same_bits(run(run=tmp_path / "run", **given), whole)


@pytest.mark.slow
def test_a_damping_that_was_found_stays(tmp_path):
    """At the top of a hill, w = 0, the curvature is -1: with the step .2 a damping above .2 is needed."""

    def double_well(w, lam, batch):
        return jnp.sum(0.25 * (w**2 - 1.0) ** 2 - lam * w) * jnp.mean(batch)

    problem = bx.Problem(bx.GradientStep(double_well, 0.2), lambda w, lam, batch: jnp.sum(w) * jnp.mean(batch))
    algorithm = bx.BSGM(bx.SID(bx.Given(), bx.FixedPoint(100)), bx.optim("sgd", learning_rate=0.5))
    given = {"algorithm": algorithm, "problem": problem, "data": (bx.Arrays(np.ones(1)), bx.Arrays(np.ones(1)))}
    given |= {"start": (np.zeros(1), np.zeros(1)), "steps": 4, "every": 1}
    whole = run(**given)
    assert whole.config["damping"] == [[0, 0.01], [0, 0.04], [0, 0.16], [0, 0.64]]
    killed(tmp_path / "run", 2, **given)
    same_bits(run(run=tmp_path / "run", **given), whole)


def test_other_arguments_are_named(begun):
    shift = np.array(1.0)
    other = bx.Problem(P.problem.inner_map, lambda w, lam, batch: P.problem.outer_loss(w, lam, batch) + shift)
    changed = TARGETS | {"r": TARGETS["r"] + 1e-12}
    cases = {
        "steps: 1100 -> 2000": {"steps": 2000},
        "key: [0, 5] -> [0, 6]": {"key": jax.random.key(6)},
        "lam: ": {"start": (W0, np.asarray(P.lam) + 1e-9)},
        "w0: ": {"start": (W0 + 1.0, P.lam)},
        "algorithm: SABA -> SOBA": {"algorithm": SOBA},
        "algorithm.ratio: None -> 0.1": {"algorithm": bx.SABA(ratio=0.1)},
        "train.batch_size: 7 -> 8": {"data": (bx.Arrays(P.train_data, 8, "blocks"), VAL)},
        "val.data.r: float64[40] ": {"data": (TRAIN, bx.Arrays(changed, 6, "blocks"))},
        "every: 256 -> 10": {"every": 10},
        "functions.outer: ": {"problem": other},
    }
    for text, given in cases.items():
        with pytest.raises(bx.MismatchError) as caught:
            run(run=begun, **given)
        assert text in str(caught.value)
    saved, given = (
        {"train": {"data": [described(x), described(np.ones((9, 2)))]}} for x in (np.ones(99), np.zeros(99))
    )
    with pytest.raises(
        bx.MismatchError, match=r"now: train\.data\[0\]: float64\[99\] \w{8} -> float64\[99\] \w{8} \(give"
    ):
        check_same(saved, given, ())
    assert list(check_same(saved, given, ("train.data",))) == ["train.data[0]"]
    with pytest.raises(bx.MismatchError, match=r"steps: 1100 -> 9; key: \[0, 5\]") as caught:
        run(run=bx.Run(begun, override=("train",)), steps=9, key=jax.random.key(6))
    assert caught.value.exit_code == 6


def test_a_constant_that_a_loss_closes_over_is_seen():
    def problem(shift):
        return bx.Problem(P.problem.inner_map, lambda w, lam, batch: P.problem.outer_loss(w, lam, batch) + shift)

    def outer(shift):
        named = identity(problem(shift), SABA, (jnp.asarray(W0), jnp.asarray(P.lam)), (TRAIN, VAL), KEY)
        return named["functions"]["outer"]

    assert outer(np.float64(1.0)) == outer(np.float64(1.0)) != outer(np.float64(2.0))


def test_a_schedule_is_told_by_what_it_computes():
    def told(value):
        return described(bx.SOBA(lambda k: value / (1.0 + k.astype(float)), 0.1))

    assert told(0.1) == told(0.1) != told(0.2)
    assert described(whole_inner) == {"function": "whole_inner"}  # run as a script or imported


def test_what_may_differ_is_recorded(begun):
    longer = run(run=bx.Run(begun, override="steps"), steps=1300)
    same_bits(longer._replace(config={}), run(steps=1300)._replace(config={}))
    assert longer.config["resumed"] == [{"step": 512, "steps": "1100 -> 1300"}]
    assert longer.config["steps"] == 1300
    again = run(run=begun, steps=1300)
    assert again.config["resumed"] == longer.config["resumed"]
    json.dumps(again.config)
    with pytest.raises(
        bx.ParameterError, match=r"^steps=512, but the run is at step 1300: at least so many are needed"
    ):
        run(run=bx.Run(begun, override="steps"), steps=512)
    with pytest.raises(bx.ParameterError, match=r"override names 'step', which is none of problem, .*steps"):
        run(run=bx.Run(begun, override=("step",)), steps=1300)


def test_another_machine_is_said_and_recorded(begun, monkeypatch, undisturbed):
    here = course.machine()
    monkeypatch.setattr(course, "machine", lambda: here | {"jax": "9.9", "cores": 77})
    with pytest.warns(UserWarning, match=r"may not go on to the same bits: cores: .* -> 77; jax: .* -> 9\.9"):
        result = run(run=begun)
    assert result.config["resumed"][0]["jax"].endswith("-> 9.9")
    same_bits(result._replace(config={}), undisturbed._replace(config={}))


def test_a_damaged_checkpoint_is_passed_over_and_said(begun, undisturbed):
    newest = begun / "step_00000512" / "0000.npy"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\x7f")
    with pytest.warns(UserWarning, match=r"0000\.npy is damaged: .*; the run goes on from step 256"):
        result = run(run=begun)
    same_bits(result, undisturbed)
    for path in begun.glob("step_*/manifest.json"):
        path.write_bytes(b"")
    with pytest.raises(bx.CorruptError, match="no other checkpoint is whole"):
        run(run=begun)


def test_a_checkpoint_of_another_state_is_refused(begun):
    """The manifest agrees with itself, but the state is not one of this algorithm."""
    with checkpoints.Checkpoints(bx.Run(begun)) as store:
        found = store.newest()
        state = next(name for name in found.arrays if name.startswith("state"))
        store.save(513, found.content, found.arrays | {state: np.zeros(17)})
    with pytest.raises(bx.CorruptError, match=r"the checkpoint of step 513 has no state.* of float64\["):
        run(run=begun)


def test_callbacks_end_a_run_and_are_carried(tmp_path):
    class Counts:
        def __init__(self):
            self.seen, self.lam = [], None

        def __call__(self, progress):
            self.seen.append(progress.step)
            self.lam = progress.lam
            return len(self.seen) == 4

        def state(self):
            return {"seen": self.seen, "lam": self.lam, "nothing": None, "inf": np.inf, "pair": (1, "a"), "odd": ODD}

        def resume(self, state):
            assert (state["nothing"], state["inf"], state["pair"], state["odd"]) == (None, np.inf, [1, "a"], ODD)
            self.seen, self.lam = state["seen"], state["lam"]

    whole, first, second = Counts(), Counts(), Counts()
    expected = run(callback=whole, every=200)
    assert whole.seen == [200, 400, 600, 800]
    killed(tmp_path / "run", 400, callbacks=[first], every=200)
    assert first.seen == [200, 400]
    # killed before the checkpoint of step 400
    result = run(run=tmp_path / "run", callback=second, every=200)
    assert second.seen == whole.seen
    assert np.array_equal(second.lam, whole.lam)
    same_bits(result, expected)
    third = Counts()
    same_bits(run(run=tmp_path / "run", callback=third, every=200), expected)  # it has ended
    assert third.seen == whole.seen
    on = run(run=bx.Run(tmp_path / "run", override="ended"), every=200)
    same_bits(on._replace(config={}), run(every=200)._replace(config={}))


def test_a_state_that_is_not_plain_is_refused(tmp_path):
    class Odd:
        def __call__(self, progress):
            return None

        def state(self):
            return {"a": [object()]}

        def resume(self, state):
            pass

    with pytest.raises(bx.ParameterError, match=r"callbacks\.Odd-0\.a\[0\] must be a number"):
        run(run=tmp_path / "run", callback=Odd())


def test_a_directory_has_one_run_at_a_time(tmp_path):
    def another(progress):
        with pytest.raises(bx.LockedError, match=rf"run is in use by process {os.getpid()} on \S+, since 20"):
            run(run=tmp_path / "run")
        return True

    run(run=tmp_path / "run", callback=another)
    assert not files.is_locked(tmp_path / "run")
    assert "run.lock" not in files.names(tmp_path / "run")


def test_places_that_will_not_do_are_refused_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "_begin", lambda *_: pytest.fail("it has begun"))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(bx.UsageError, match=r"holds 'notes\.txt', which is no checkpoint"):
        run(run=tmp_path)
    with pytest.raises(bx.StorageError, match=r"cannot read .*notes\.txt"):
        run(run=tmp_path / "notes.txt")
    with pytest.raises(bx.StorageError, match=r"cannot create /proc/"):
        run(run="/proc/run")
    with pytest.raises(bx.ParameterError, match="directory must be a path, got 3"):
        run(run=3)
    with pytest.raises(bx.ParameterError, match="keep must be at least 1"):
        bx.Run(tmp_path, keep=0)
    with pytest.raises(bx.ParameterError, match="seconds must lie in"):
        bx.Run(tmp_path, seconds=-1.0)


def test_leftovers_of_a_killed_run_are_removed_and_nothing_else(begun):
    (begun / ".step_00000768.tmp-123-0123abcd").mkdir()
    (begun / ".step_00000768.tmp-123-0123abcd" / "0000.npy").write_bytes(b"half")
    (begun / ".hidden").write_text("mine")
    run(run=begun)
    assert files.names(begun)[0] == ".hidden"
    assert steps_kept(begun)[0] != 0
    assert not [name for name in files.names(begun) if ".tmp-" in name]


def signals_at(step, *numbers):
    def callback(progress):
        if progress.step == step:
            for number in numbers:
                os.kill(os.getpid(), number)

    return callback


@pytest.fixture
def heard():
    """Signals that reach the process itself."""
    numbers, before = [], {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        before[number] = signal.signal(number, lambda n, _: numbers.append(n))
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_saves_and_the_run_goes_on(tmp_path, heard, number):
    result = run(run=tmp_path / "run", every=200, callback=signals_at(400, number))
    assert result.interrupted
    assert result.history.step[-1] == 400
    assert heard == ([] if number == signal.SIGINT else [number])  # handed on, once it is saved
    assert steps_kept(tmp_path / "run") == [0, 400]
    on = run(run=tmp_path / "run", every=200)
    assert not on.interrupted
    same_bits(on, run(every=200))


def test_the_second_signal_stops_now(tmp_path, heard):
    with pytest.raises(KeyboardInterrupt):
        run(run=tmp_path / "run", every=200, callback=signals_at(400, signal.SIGINT, signal.SIGINT))
    assert steps_kept(tmp_path / "run") == [0]
    assert not files.is_locked(tmp_path / "run")
    same_bits(run(run=tmp_path / "run", every=200), run(every=200))


def test_without_a_directory_only_ctrl_c_is_held_back(heard):
    result = run(every=200, callback=signals_at(400, signal.SIGTERM, signal.SIGINT))
    assert result.interrupted
    assert heard == [signal.SIGTERM]


def test_one_that_holds_hands_on_to_one_around_it():
    with Stops(hold=False) as outer:
        with Stops() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert (inner.number, outer.number) == (signal.SIGTERM, 0)
        assert outer.number == signal.SIGTERM
        outer.number = 0
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Stops() as stops:
        os.kill(os.getpid(), signal.SIGHUP)  # as under nohup
        assert stops.number == 0
    signal.signal(signal.SIGHUP, before)


def test_arrays_of_every_kind_are_kept():
    arrays = [
        np.arange(6.0).reshape(2, 3).T,
        jnp.asarray([1.5, -2.0], jnp.bfloat16),
        jnp.zeros((0, 3), jnp.float16),
        np.asarray(True),
        np.int64(2**40),
        jax.random.key(3),
        jax.random.split(jax.random.key(3, impl="rbg"), 2),
    ]
    for array in arrays:
        said, content = checkpoints._encode(array)
        back = checkpoints._decode(content, json.loads(json.dumps(said)))
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        as_numbers = jax.random.key_data if "key" in said else np.asarray
        assert np.array_equal(as_numbers(back), as_numbers(array))


# ---- a checkpoint of every format

ASSETS = Path(__file__).parent / "assets"
WHOLE = np.arange(40.0).reshape(10, 4) % 7 - 3  # exact on every machine


def whole_inner(w, lam, batch):
    return 0.5 * jnp.mean((batch @ w - 1.0) ** 2) + 0.5 * jnp.exp(lam) * jnp.sum(w**2)


def whole_outer(w, lam, batch):
    return 0.5 * jnp.mean((batch @ w - 1.0) ** 2)


def run_of_whole_numbers(**options):
    problem = bx.Problem(bx.GradientStep(whole_inner, 0.03125), whole_outer)
    data = bx.Arrays(WHOLE, 5, "iid"), bx.Arrays(-WHOLE, 5, "iid")
    best = bx.EarlyStopping(patience=10**6, score=lambda w, lam: jnp.sum(w**2))
    given = {"algorithm": bx.SOBA(0.03125, 0.5), "problem": problem, "data": data, "start": (np.ones(4), 0.0)}
    return run(**given, steps=800, every=200, callback=best, **options)


@pytest.mark.parametrize("version", range(1, checkpoints.FORMAT + 1))
@pytest.mark.filterwarnings("ignore:the run was begun elsewhere")
def test_a_checkpoint_of_every_format_is_gone_on_from(tmp_path, version):
    """Written by the release of that format: ``run_of_whole_numbers`` killed after step 400."""
    shutil.copytree(ASSETS / f"checkpoint_format_{version}", tmp_path / "run")
    result = run_of_whole_numbers(run=tmp_path / "run")
    assert result.config.get("resumed", [{"step": 400}])[0]["step"] == 400
    np.testing.assert_allclose(result.lam, run_of_whole_numbers().lam, rtol=1e-9)
